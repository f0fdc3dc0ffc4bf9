//! Kernels in float16, bfloat16 and float64: decided and run in float32, written in their own type.

mod support;

use half::{bf16, f16};
use onnx_jmd::{Model, Options, PlanOptions, RankPolicy, Scheme, SchemeChoice, Unfolding, VerifyOptions, compile};
use support::proto::{ModelProto, NodeProto, TensorProto, type_proto};
use support::scene::Scene;
use support::{ConvSpec, ModelBuilder, decode, small_resnet};

const FLOAT16: i32 = 10;
const BFLOAT16: i32 = 16;
const DOUBLE: i32 = 11;

/// A model with all its float32 tensors and values in another type.
fn cast(model: &[u8], to: i32) -> ModelProto {
    let mut model = decode(model);
    let graph = model.graph.as_mut().unwrap();
    for tensor in graph.initializer.iter_mut().filter(|t| t.data_type() == 1) {
        let raw = tensor.raw_data.take().unwrap_or_default();
        let raw = raw.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
        let values: Vec<f32> = raw.chain(tensor.float_data.drain(..)).collect();
        let bytes = values.into_iter().flat_map(|x| match to {
            FLOAT16 => f16::from_f32(x).to_le_bytes().to_vec(),
            BFLOAT16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => f64::from(x).to_le_bytes().to_vec(),
        });
        tensor.raw_data = Some(bytes.collect::<Vec<u8>>().into());
        tensor.data_type = Some(to);
    }
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            tensor.elem_type = Some(to);
        }
    }
    model
}

fn difference(scene: &Scene, a: &str, b: &str) -> f64 {
    let found: serde_json::Value =
        serde_json::from_str(&scene.succeeds(&format!("verify {a} {b} -q --json -"))).unwrap();
    found["largest_difference"].as_f64().unwrap()
}

#[test]
fn factors_are_written_in_the_type_of_the_kernels() {
    for (to, tolerance) in [(FLOAT16, 5e-3), (BFLOAT16, 5e-2), (DOUBLE, 1e-5)] {
        let scene = Scene::new(&small_resnet(3));
        std::fs::write(scene.path("other.onnx"), prost::Message::encode_to_vec(&cast(&small_resnet(3), to))).unwrap();
        // Other types are compared in float32, too.
        assert!(difference(&scene, "in.onnx", "other.onnx") < tolerance, "{to}");
        for options in ["--scheme ljsvd --calib none", "--calib drawn --calib-samples 20"] {
            scene.succeeds(&format!("in.onnx single.onnx --ratio 1.6 {options} -q"));
            let text = scene.succeeds(&format!("other.onnx out.onnx --ratio 1.6 {options}"));
            assert!(text.contains("the factors are written so"), "{text}");
            let written = decode(&scene.read("out.onnx")).graph.unwrap();
            let floats = written.initializer.iter().filter(|t| [1, FLOAT16, BFLOAT16, DOUBLE].contains(&t.data_type()));
            assert!(floats.clone().count() > 8 && floats.clone().all(|t| t.data_type() == to), "{to}");
            assert!(written.initializer.iter().any(|t| t.name().contains("jmd_")));
            let found = difference(&scene, "single.onnx", "out.onnx");
            assert!(found < 4.0 * tolerance, "{to} {options}: {found}");
        }
        let inspected = scene.succeeds("inspect other.onnx");
        assert!(inspected.contains("Groups") && !inspected.contains("decomposed only where"), "{inspected}");
    }
}

#[test]
fn a_model_that_mixes_types_keeps_the_others_whole() {
    let mut model = decode(&small_resnet(3));
    let halves = cast(&small_resnet(3), FLOAT16).graph.unwrap();
    let graph = model.graph.as_mut().unwrap();
    let odd = graph.node.iter().find(|n| n.op_type() == "Conv").unwrap().input[1].clone();
    let at = graph.initializer.iter().position(|t| t.name() == odd).unwrap();
    graph.initializer[at] = halves.initializer[at].clone();
    let scene = Scene::new(&prost::Message::encode_to_vec(&model));
    let text = scene.succeeds("in.onnx out.onnx --ratio 1.5 --no-verify");
    assert!(text.contains("its kernel is FLOAT16"), "{text}");
}

#[test]
fn infinite_halves_are_refused() {
    let mut model = decode(&small_resnet(3));
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let raw = tensor.raw_data.take().unwrap_or_default();
        let raw = raw.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
        tensor.float_data = raw.chain(tensor.float_data.drain(..)).map(|x| 3e5 * x).collect();
    }
    let scene = Scene::new(&prost::Message::encode_to_vec(&cast(&prost::Message::encode_to_vec(&model), FLOAT16)));
    // Some of the weights are infinite already.
    assert!(scene.fails("in.onnx out.onnx --ratio 1.6", 3).contains("NaN or an infinity"));
}

/// What is calibrated on follows from the model's own arithmetic on its input, too.
#[test]
fn what_was_made_of_another_type_is_known_again() {
    let mut model = decode(&small_resnet(3));
    let graph = model.graph.as_mut().unwrap();
    let image = graph.input[0].name().to_owned();
    graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| **i == image).for_each(|i| *i = "centred".into());
    let mean = (0..3 * 32 * 32).flat_map(|at| (110.0 + (at % 64) as f32 / 4.0).to_le_bytes()).collect::<Vec<u8>>();
    graph.initializer.push(TensorProto {
        name: Some("mean".into()),
        dims: vec![1, 3, 32, 32],
        data_type: Some(1),
        raw_data: Some(mean.into()),
        ..TensorProto::default()
    });
    let subtract = NodeProto {
        name: Some("subtract".into()),
        op_type: Some("Sub".into()),
        input: vec![image, "mean".into()],
        output: vec!["centred".into()],
        ..NodeProto::default()
    };
    graph.node.insert(0, subtract);
    let scene = Scene::new(&prost::Message::encode_to_vec(&cast(&prost::Message::encode_to_vec(&model), FLOAT16)));
    let options = "in.onnx out.onnx --ratio 1.6 --calib-samples 4";
    let said = scene.succeeds(options);
    assert!(said.contains("written so"), "{said}");
    scene.succeeds(&format!("{options} --check"));
    scene.fails(&format!("{options} --seed 5 --check"), 12);
}

/// A large model is not copied to float32, but what is written is the same.
#[test]
fn models_beyond_what_is_run_as_a_whole_are_written_alike() {
    let single = decode(&small_resnet(3));
    let others = [FLOAT16, BFLOAT16, DOUBLE].map(|to| cast(&small_resnet(3), to));
    for (at, model) in std::iter::once(single).chain(others).enumerate() {
        let model = Model::from_bytes(prost::Message::encode_to_vec(&model)).unwrap();
        for scheme in [SchemeChoice::Auto, SchemeChoice::Only(Scheme::LeftShared.into())] {
            let plan = PlanOptions { policy: RankPolicy::Ratio(1.6), scheme, ..PlanOptions::default() };
            let made = |whole: u64| {
                let verify = Some(VerifyOptions { inputs: 2, whole, ..VerifyOptions::default() });
                compile(&model, &Options { plan, verify, ..Options::default() }, &|_| ()).unwrap()
            };
            let (whole, by_parts) = (made(u64::MAX), made(model.file_bytes() / 4));
            let bytes = |done: &onnx_jmd::Compilation| done.model.as_ref().unwrap().to_bytes();
            assert_eq!(bytes(&whole), bytes(&by_parts), "{at}");
            let (whole, by_parts) = (whole.report.verification.unwrap(), by_parts.report.verification.unwrap());
            assert!(whole.parts.is_none() && whole.rewrite_error < 1e-4, "{at}: {whole:?}");
            assert!(by_parts.rewrite_error < 1e-4, "{at}: {by_parts:?}");
            let parts = by_parts.parts.unwrap();
            assert!(parts.checked > 2 && parts.unchecked.is_empty() && parts.reason.contains("MiB"), "{at}: {parts:?}");
        }
    }
}

/// Kernels of exact rank three whose numbers float32 does not hold: nothing is lost in factors of their type.
#[test]
fn factors_of_float64_kernels_have_all_their_digits() {
    let mut model = decode(&small_resnet(3));
    let graph = model.graph.as_mut().unwrap();
    for tensor in graph.initializer.iter_mut().filter(|t| t.dims.len() == 4) {
        let [out, rest] = [tensor.dims[0], tensor.dims[1..].iter().product()];
        let wave = |at: i64, term: i64, step: f64| ((at * (2 * term + 3)) as f64 * step + term as f64).sin();
        let value = |o: i64, i: i64| (0..3).map(|t| wave(o, t, 0.37) * wave(i, t, 0.11)).sum::<f64>() / 50.0;
        let raw = (0..out).flat_map(|o| (0..rest).flat_map(move |i| value(o, i).to_le_bytes()));
        tensor.raw_data = Some(raw.collect::<Vec<u8>>().into());
        tensor.data_type = Some(DOUBLE);
    }
    let rest = cast(&prost::Message::encode_to_vec(&model), DOUBLE);
    let model = Model::from_bytes(prost::Message::encode_to_vec(&rest)).unwrap();
    let form = Scheme::Separate.on(Unfolding::FILTER_BANK);
    let plan =
        PlanOptions { policy: RankPolicy::Ratio(1.5), scheme: SchemeChoice::Only(form), ..PlanOptions::default() };
    let done = compile(&model, &Options { plan, ..Options::default() }, &|_| ()).unwrap();
    let errors: Vec<f64> = done.report.groups.iter().filter_map(|g| g.reconstruction_error).collect();
    assert!(errors.len() > 3 && errors.iter().all(|&e| e < 1e-13), "{errors:?}");
    let written = decode(&done.model.unwrap().to_bytes()).graph.unwrap();
    let factors = written.initializer.iter().filter(|t| t.name().contains("jmd_") && t.dims.len() == 4);
    let factors: Vec<&TensorProto> = factors.collect();
    let wide = |t: &&TensorProto| {
        let raw = t.raw_data.as_ref().unwrap();
        raw.chunks(8).any(|x| f64::from_le_bytes(x.try_into().unwrap()).to_bits() << 40 != 0)
    };
    assert!(factors.len() > 6 && factors.iter().all(wide));
}

/// The groups of a grouped convolution stand in one tensor.
#[test]
fn factors_of_grouped_float64_kernels_have_all_their_digits() {
    let mut b = ModelBuilder::new(&[1, 16, 9, 9], 5);
    let y = b.grouped_conv("image", 2, &ConvSpec::new(16, 3));
    let model = cast(&b.build(&[&y]), DOUBLE);
    let plan = PlanOptions { policy: RankPolicy::Ratio(1.5), allow_more_macs: true, ..PlanOptions::default() };
    let model = Model::from_bytes(prost::Message::encode_to_vec(&model)).unwrap();
    let done = compile(&model, &Options { plan, ..Options::default() }, &|_| ()).unwrap();
    let written = decode(&done.model.unwrap().to_bytes()).graph.unwrap();
    let factors = written.initializer.iter().filter(|t| t.name().contains("jmd_") && t.dims.len() == 4);
    let mut digits = factors.map(|t| {
        let raw = t.raw_data.as_ref().unwrap();
        raw.chunks(8).any(|x| f64::from_le_bytes(x.try_into().unwrap()).to_bits() << 40 != 0)
    });
    assert!(digits.next().is_some_and(|wide| wide) && digits.all(|wide| wide));
}
