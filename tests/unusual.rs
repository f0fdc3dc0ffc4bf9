//! Sound graphs that few exporters write: their sums keep their axes, their sizes are known or left open, what callers name stays; and
//! models that are not sound in ways that running them would not show.

mod support;

use onnx_jmd::{
    CompareOptions, Compilation, Error, GroupBy, GroupOptions, Model, Options, PlanOptions, RankPolicy, SkipReason,
    VerifyOptions, compare, compile, find_groups,
};
use prost::Message;
use support::proto::{AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use support::{ConvSpec, ModelBuilder, ResNet, int, ints, value};

/// Rank two in every unfolding.
fn low_rank(dims: &[usize]) -> Vec<f32> {
    let value = |mut rest: usize, term: usize| -> f32 {
        let each = dims.iter().rev().map(|&size| {
            let place = rest % size;
            rest /= size;
            ((place * (3 + 2 * term) + term) % 7) as f32 / 4.0 - 0.6
        });
        each.product()
    };
    (0..dims.iter().product()).map(|at| value(at, 0) + value(at, 1)).collect()
}

fn plan(ratio: f64) -> PlanOptions {
    PlanOptions { policy: RankPolicy::Ratio(ratio), allow_more_macs: true, ..PlanOptions::default() }
}

fn compressed(model: &ModelProto, ratio: f64) -> Compilation {
    let model = Model::from_bytes(model.encode_to_vec()).unwrap();
    let verify = Some(VerifyOptions::default());
    compile(&model, &Options { plan: plan(ratio), verify, ..Options::default() }, &|_| ()).unwrap()
}

/// The largest difference between a model of low rank and what becomes of it, of the largest output.
fn lost(model: &ModelProto, ratio: f64) -> f64 {
    let done = compressed(model, ratio);
    assert!(done.report.totals.parameters.ratio >= ratio, "{:?}", done.report.totals);
    let original = Model::from_bytes(model.encode_to_vec()).unwrap();
    compare(&original, &done.model.unwrap(), &CompareOptions::default(), &|_| ()).unwrap().largest_difference
}

/// What is said of the layers that are left alone.
fn reasons(model: &ModelProto) -> Vec<SkipReason> {
    let found = find_groups(&Model::from_bytes(model.encode_to_vec()).unwrap(), &GroupOptions::default()).unwrap();
    found.skipped.into_iter().map(|skipped| skipped.reason).collect()
}

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(3),
        s: Some(value.as_bytes().to_vec()),
        ..Default::default()
    }
}

/// Both are `[out, in, 3, 3]` here, and no runtime could read one for the other.
#[test]
fn kernels_over_other_axes_of_three_share_nothing() {
    let mut b = ModelBuilder::new(&[1, 8, 6, 6, 6], 5);
    for (at, kernel) in [[3, 3, 1], [3, 1, 3]].iter().enumerate() {
        let weight = b.tensor(&format!("w{at}"), &[8, 8, kernel[0], kernel[1], kernel[2]], 0.1);
        let pads = kernel.map(|k| k / 2).repeat(2);
        b.node("Conv", &["image", &weight], &format!("y{at}"), vec![ints("pads", &pads)]);
    }
    let y = b.node("Add", &["y0", "y1"], "y", vec![]);
    let model = Model::from_bytes(b.build(&[&y])).unwrap();
    let options = GroupOptions { group_by: GroupBy::Shape, ..GroupOptions::default() };
    let groups = find_groups(&model, &options).unwrap().groups;
    assert_eq!(groups.iter().map(|g| g.members.len()).collect::<Vec<_>>(), [1, 1]);
}

/// `[4, 32] + [1, 1, 32]` has three axes.
#[test]
fn sums_of_products_keep_their_axes() {
    for (input, bias, folds) in
        [(&[4, 24][..], &[1, 1, 32][..], false), (&[4, 24], &[1, 32], true), (&[2, 4, 24], &[1, 1, 32], true)]
    {
        let mut b = ModelBuilder::new(&[1, 24], 5);
        b.graph.input = vec![value("image", input)];
        b.store("w", &[24, 32], low_rank(&[24, 32]));
        b.tensor("b", bias, 0.5);
        b.node("MatMul", &["image", "w"], "p", vec![]);
        b.node("Add", &["p", "b"], "y", vec![]);
        let model = b.build_proto(&["y"]);
        assert!(lost(&model, 2.0) < 1e-5);
        let written = Model::from_bytes(compressed(&model, 2.0).model.unwrap().to_bytes()).unwrap();
        let kept = support::decode(&written.to_bytes()).graph.unwrap().node.iter().any(|n| n.name() == "Add_y");
        assert_eq!(kept, !folds, "{input:?} {bias:?}");
    }
}

/// One number a row is not one a channel, though there are as many.
#[test]
fn a_column_is_added_to_every_channel() {
    let mut b = ModelBuilder::new(&[20, 24], 5);
    b.store("w", &[24, 20], low_rank(&[24, 20]));
    b.tensor("b", &[20, 1], 2.0);
    b.node("Gemm", &["image", "w", "b"], "p", vec![]);
    for name in ["g", "v"] {
        b.store(name, &[20], (0..20).map(|i| 0.5 + i as f32 / 7.0).collect());
    }
    b.tensor("s", &[20], 0.3);
    b.node("BatchNormalization", &["p", "g", "s", "s", "v"], "y", vec![]);
    assert!(lost(&b.build_proto(&["y"]), 2.0) < 1e-5);
}

/// A transposed convolution of a stated output size, behind something; `sizes` are those of the image.
fn behind(sizes: i64, node: impl Fn(&mut ModelBuilder)) -> ModelProto {
    let mut b = ModelBuilder::new(&[1, 8, sizes, sizes], 5);
    node(&mut b);
    b.store("w", &[8, 8, 3, 3], low_rank(&[8, 8, 3, 3]));
    b.node("ConvTranspose", &["x", "w"], "y", vec![ints("output_shape", &[9, 9]), ints("strides", &[2, 2])]);
    b.build_proto(&["y"])
}

#[test]
fn sizes_that_runtimes_disagree_on_are_open() {
    let resize = |scale: f32| {
        move |b: &mut ModelBuilder| {
            b.store("scales", &[4], vec![1.0, 1.0, scale, scale]);
            b.node("Resize", &["image", "", "scales"], "x", vec![]);
        }
    };
    assert_eq!(reasons(&behind(10, resize(0.7))), [SkipReason::OpenPads]);
    assert_eq!(reasons(&behind(10, resize(0.5))), []);
    let split = |parts: i64| {
        move |b: &mut ModelBuilder| {
            b.opset = 18;
            let outputs: Vec<String> =
                (0..parts).map(|at| if at == 0 { "x".into() } else { format!("x{at}") }).collect();
            b.node("Split", &["image"], "x", vec![int("axis", 2), int("num_outputs", parts)]);
            b.graph.node.last_mut().unwrap().output = outputs;
        }
    };
    assert_eq!(reasons(&behind(7, split(2))), [SkipReason::OpenPads]);
    assert_eq!(reasons(&behind(8, split(2))), []);
}

/// An initializer that callers may replace is the model's own business, whatever reads no more of it than its shape.
#[test]
fn what_callers_name_stays() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    b.store("w", &[12, 8, 3, 3], low_rank(&[12, 8, 3, 3]));
    b.node("Conv", &["image", "w"], "y", vec![]);
    b.tensor("given", &[2, 3], 1.0);
    b.tensor("other", &[4, 3], 1.0);
    b.node("Shape", &["given"], "shape", vec![]);
    b.node("Shape", &["other"], "another", vec![]);
    b.graph.input.push(value("given", &[2, 3]));
    let written = compressed(&b.build_proto(&["y", "shape", "another"]), 2.0).model.unwrap();
    let graph = support::decode(&written.to_bytes()).graph.unwrap();
    assert!(graph.input.iter().any(|i| i.name() == "given"));
    assert!(["given", "other"].iter().all(|name| graph.initializer.iter().any(|t| t.name() == *name)));
    assert_eq!(graph.node.iter().filter(|n| n.op_type() == "Shape").count(), 2);
}

/// The shape of a kernel is written down, wherever the kernel stands.
#[test]
fn a_kernel_in_a_constant_goes_though_its_shape_is_read() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    b.storage = support::Storage::ConstantNode;
    b.store("w", &[12, 8, 3, 3], low_rank(&[12, 8, 3, 3]));
    b.node("Conv", &["image", "w"], "y", vec![]);
    b.node("Shape", &["w"], "shape", vec![]);
    let done = compressed(&b.build_proto(&["y", "shape"]), 1.6);
    assert!(done.report.totals.parameters.ratio >= 1.6, "{:?}", done.report.totals);
    assert!(done.model.unwrap().parameters() < 12 * 8 * 9);
}

#[test]
fn whole_numbers_of_more_than_eight_bits_are_left_alone() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let numbers = low_rank(&[12, 8, 3, 3]).into_iter().flat_map(|x| ((1e6 * x) as i32).to_le_bytes());
    b.graph.initializer.push(TensorProto {
        name: Some("q".into()),
        dims: vec![12, 8, 3, 3],
        data_type: Some(6),
        raw_data: Some(numbers.collect::<Vec<u8>>().into()),
        ..TensorProto::default()
    });
    b.store("scale", &[], vec![1e-6]);
    b.node("DequantizeLinear", &["q", "scale"], "w", vec![]);
    b.node("Conv", &["image", "w"], "y", vec![]);
    assert_eq!(reasons(&b.build_proto(&["y"])), [SkipReason::KernelQuantized { value: "w".into() }]);
}

#[test]
fn subgraphs_define_their_sparse_tensors() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let y = b.conv("image", &ConvSpec::new(8, 3));
    let dense = |name: &str, data_type: i32, raw: Vec<u8>| TensorProto {
        name: Some(name.into()),
        dims: vec![1],
        data_type: Some(data_type),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    };
    let sparse = SparseTensorProto {
        values: Some(dense("s", 1, 1f32.to_le_bytes().to_vec())),
        indices: Some(dense("", 7, 0i64.to_le_bytes().to_vec())),
        dims: vec![4],
    };
    let branch = support::proto::GraphProto {
        node: vec![NodeProto {
            op_type: Some("Identity".into()),
            input: vec!["s".into()],
            output: vec!["inner".into()],
            ..NodeProto::default()
        }],
        output: vec![value("inner", &[4])],
        sparse_initializer: vec![sparse],
        ..Default::default()
    };
    let graphs = ["then_branch", "else_branch"].map(|name| AttributeProto {
        name: Some(name.into()),
        r#type: Some(5),
        g: Some(branch.clone()),
        ..AttributeProto::default()
    });
    b.graph.input.push(value("condition", &[1]));
    b.node("If", &["condition"], "z", graphs.to_vec());
    assert!(Model::from_bytes(b.build(&[&y, "z"])).is_ok());
}

#[test]
fn pads_that_contradict_each_other_are_named() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    b.tensor("w", &[8, 8, 3, 3], 0.1);
    b.node("Conv", &["image", "w"], "y", vec![text("auto_pad", "SAME_UPPER"), ints("pads", &[1, 1, 1, 1])]);
    let model = b.build_proto(&["y"]);
    assert!(matches!(&reasons(&model)[..], [SkipReason::Inconsistent { what }] if what.contains("contradict")));
}

/// tract's rectifiers make zero of what is no number, so that outputs do not tell.
#[test]
fn parameters_that_are_no_numbers_are_named_before_anything_runs() {
    let good = ResNet { batch_norm: true, width: 8, ..ResNet::R18 }.build();
    let original = Model::from_bytes(good.clone()).unwrap();
    for (number, at) in [(f32::NAN, "weight"), (f32::INFINITY, "bias"), (6.5e37, "weight"), (f32::NAN, "var")] {
        let mut model = support::decode(&good);
        let tensors = &mut model.graph.as_mut().unwrap().initializer;
        let norm = |t: &&mut TensorProto| t.name().starts_with("bn_") && t.name().ends_with(at);
        let tensor = tensors.iter_mut().find(norm).unwrap();
        let name = tensor.name().to_owned();
        let mut raw = tensor.raw_data.take().unwrap().to_vec();
        raw[8..12].copy_from_slice(&number.to_le_bytes());
        tensor.raw_data = Some(raw.into());
        let bad = Model::from_bytes(model.encode_to_vec()).unwrap();
        let options = Options { plan: plan(2.0), ..Options::default() };
        let found = [
            compile(&bad, &options, &|_| ()).map(drop).unwrap_err(),
            compare(&original, &bad, &CompareOptions::default(), &|_| ()).map(drop).unwrap_err(),
        ];
        for error in found {
            let told = match &error {
                Error::NotFinite { tensor, .. } if !number.is_finite() => tensor,
                Error::Extreme { tensor, .. } if number.is_finite() => tensor,
                other => panic!("{number} {at}: {other}"),
            };
            assert_eq!((told, error.exit_code()), (&name, 3));
        }
    }
    // Masks are infinite, and so may a variance be.
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let y = b.conv("image", &ConvSpec::new(8, 3));
    b.store("mask", &[9], (0..9).map(|i| if i < 7 { 0.0 } else { f32::NEG_INFINITY }).collect());
    b.node("Add", &[&y, "mask"], "masked", vec![]);
    let model = Model::from_bytes(b.build(&["masked"])).unwrap();
    assert!(model.check_numbers().is_ok());
}

/// Biases of folded batch norms are rounded in the reference as they are in the file.
#[test]
fn folded_batch_norms_in_float16_differ_by_no_more_than_rounding() {
    let with_norms = ResNet { batch_norm: true, width: 8, ..ResNet::R18 };
    let mut model = support::decode(&with_norms.build());
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let raw = tensor.raw_data.take().unwrap_or_default();
        let raw = raw.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
        // Large beside what the layers give, so that their rounding shows.
        let scale = if tensor.name().starts_with("bn_") && tensor.name().ends_with("bias") { 40.0 } else { 1.0 };
        let halves = raw.flat_map(|x| half::f16::from_f32(scale * x).to_le_bytes()).collect::<Vec<u8>>();
        (tensor.raw_data, tensor.data_type) = (Some(halves.into()), Some(10));
    }
    let graph = model.graph.as_mut().unwrap();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(support::proto::type_proto::Value::TensorType(tensor)) =
            value.r#type.as_mut().and_then(|t| t.value.as_mut())
        {
            tensor.elem_type = Some(10);
        }
    }
    let done = compressed(&model, 2.0);
    let error = done.report.verification.unwrap().rewrite_error;
    assert!(error < 1e-5, "{error}");
}
