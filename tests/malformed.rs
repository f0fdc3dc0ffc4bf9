//! Damaged files: each gets its own error, none a panic.

mod support;

use onnx_jmd::{Error, Model, Options, PlanOptions, RankPolicy, Scheme, compile};
use prost::Message;
use std::panic::catch_unwind;
use support::proto::{ModelProto, tensor_proto::DataLocation};
use support::scene::Scene;
use support::{ConvSpec, ModelBuilder, decode, small_resnet};

fn open(model: &ModelProto) -> Result<Model, Error> {
    Model::from_bytes(model.encode_to_vec())
}

fn sound() -> ModelProto {
    decode(&small_resnet(2))
}

/// Applies a damage to a sound model and opens it.
fn damaged(damage: impl FnOnce(&mut ModelProto)) -> Error {
    let mut model = sound();
    damage(&mut model);
    open(&model).expect_err("the damage went unnoticed")
}

fn weight(model: &mut ModelProto) -> &mut support::proto::TensorProto {
    model.graph.as_mut().unwrap().initializer.iter_mut().find(|t| t.name() == "layer1.0.conv1.weight").unwrap()
}

#[test]
fn no_bytes_are_no_model() {
    assert!(matches!(Model::from_bytes(vec![]), Err(Error::Empty)));
}

#[test]
fn text_and_pictures_are_no_model() {
    for bytes in [&b"hello, world"[..], b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", &[0; 64]] {
        assert!(matches!(Model::from_bytes(bytes.to_vec()), Err(Error::NotOnnx { .. })), "{bytes:?}");
    }
}

#[test]
fn a_model_needs_a_graph_a_version_and_an_output() {
    assert!(matches!(damaged(|m| m.graph = None), Error::NotOnnx { .. }));
    assert!(matches!(damaged(|m| m.ir_version = None), Error::NotOnnx { .. }));
    assert!(matches!(damaged(|m| m.graph.as_mut().unwrap().output.clear()), Error::NotOnnx { .. }));
}

#[test]
fn a_value_that_nothing_writes_is_named() {
    let error = damaged(|m| m.graph.as_mut().unwrap().node[1].input[0] = "nowhere".into());
    assert!(matches!(&error, Error::Dangling { value, .. } if value == "nowhere"), "{error}");
    let error = damaged(|m| m.graph.as_mut().unwrap().output[0].name = Some("nowhere".into()));
    assert!(matches!(&error, Error::Dangling { value, .. } if value == "nowhere"), "{error}");
}

#[test]
fn a_value_written_twice_is_named() {
    let error = damaged(|m| {
        let again = m.graph.as_ref().unwrap().node[0].clone();
        m.graph.as_mut().unwrap().node.push(again);
    });
    assert!(matches!(error, Error::WrittenTwice { .. }), "{error}");
    let error = damaged(|m| {
        let again = m.graph.as_ref().unwrap().initializer[0].clone();
        m.graph.as_mut().unwrap().initializer.push(again);
    });
    assert!(matches!(error, Error::WrittenTwice { .. }), "{error}");
}

#[test]
fn a_cycle_is_named() {
    let error = damaged(|m| {
        let last = m.graph.as_ref().unwrap().node.last().unwrap().output[0].clone();
        m.graph.as_mut().unwrap().node[2].input[0] = last;
    });
    assert!(matches!(error, Error::Cycle { .. }), "{error}");
}

#[test]
fn a_tensor_that_lies_about_its_size_is_named() {
    for dims in [vec![8, 8, 3, 4], vec![8, 8, 3], vec![-1, 8, 3, 3], vec![i64::MAX, i64::MAX, 3, 3], vec![0]] {
        let error = damaged(|m| weight(m).dims = dims.clone());
        assert!(matches!(&error, Error::TensorSize { tensor, .. } if tensor == "layer1.0.conv1.weight"), "{error}");
    }
    let error = damaged(|m| {
        let weight = weight(m);
        weight.raw_data = None;
        weight.float_data = vec![0.0; 7];
    });
    assert!(matches!(error, Error::TensorSize { .. }), "{error}");
}

#[test]
fn a_tensor_that_stores_its_data_twice_is_refused() {
    let error = damaged(|m| weight(m).float_data = vec![0.0; 8 * 8 * 9]);
    assert!(matches!(error, Error::TensorSize { .. }), "{error}");
}

#[test]
fn a_name_that_a_subgraph_reads_and_nothing_writes_is_named() {
    let error = damaged(|m| {
        let inner = support::proto::NodeProto { input: vec!["nowhere".into()], ..Default::default() };
        let branch = support::proto::GraphProto { node: vec![inner], ..Default::default() };
        let attribute = support::proto::AttributeProto { g: Some(branch), ..Default::default() };
        m.graph.as_mut().unwrap().node[0].attribute.push(attribute);
    });
    assert!(matches!(&error, Error::Dangling { value, .. } if value == "nowhere"), "{error}");
}

#[test]
fn absurd_sizes_overflow_nothing() {
    for value in [1i64 << 62, i64::MAX, i64::MIN, 1 << 40] {
        for name in ["kernel_shape", "strides", "pads", "dilations", "border", "output_padding"] {
            for op in ["MaxPool", "ConvTranspose", "Crop", "Pad", "Conv"] {
                let mut model = sound();
                let graph = model.graph.as_mut().unwrap();
                let mut attribute = support::ints(name, &[1; 4]);
                attribute.ints = vec![value; if name == "pads" || name == "border" { 4 } else { 2 }];
                let relu = graph.node.iter_mut().find(|n| n.op_type() == "Relu").unwrap();
                relu.op_type = Some(op.into());
                relu.input.push("layer1.0.conv1.weight".into());
                relu.attribute = vec![attribute];
                graph.input[0] = support::value("image", &[1, 3, value, value]);
                let bytes = model.encode_to_vec();
                assert!(catch_unwind(|| try_all(bytes)).is_ok(), "{op} {name} {value}");
            }
        }
    }
}

#[test]
fn long_chains_and_deep_nests_take_no_time_to_speak_of() {
    let mut b = ModelBuilder::new(&[1, 8, 4, 4], 1);
    let mut x = b.conv("image", &ConvSpec::new(8, 3));
    let mut weight = b.tensor("w", &[8, 8, 3, 3], 1.0);
    for at in 0..4000 {
        let next = format!("w{at}");
        weight = b.node("Identity", &[&weight], &next, vec![]);
        let skipped = b.relu(&x);
        x = b.add(&skipped, &x);
    }
    let bytes = b.build(&[&x]);
    let start = std::time::Instant::now();
    try_all(bytes);
    // Quadratic work takes minutes here; this bound is no benchmark.
    assert!(start.elapsed().as_secs() < 60);
}

/// Found by tools/fuzz: convolutions whose work is possible for each and in all beyond 64 bits.
#[test]
fn the_work_of_all_convolutions_overflows_nothing() {
    let side = 1 << 24;
    for group in [1, 2] {
        let mut b = ModelBuilder::new(&[1, 4, side, side], 1);
        for at in 0..4 {
            let weight = b.tensor(&format!("w{at}"), &[1024, 4 / group, 3, 3], 1.0);
            let attributes = vec![support::int("group", group as i64)];
            b.node("Conv", &["image", &weight], &format!("c{at}"), attributes);
        }
        let model = Model::from_bytes(b.build(&["c0", "c1", "c2", "c3"])).unwrap();
        let found = onnx_jmd::inspect(&model, &onnx_jmd::GroupOptions::default()).unwrap();
        assert_eq!(found.macs, Some(u64::MAX), "group {group}");
        try_all(model.to_bytes());
    }
}

/// A model whose nodes read `image` and these weights, and whose output is `out`.
fn of_nodes(nodes: impl FnOnce(&mut ModelBuilder)) -> Vec<u8> {
    let mut b = ModelBuilder::new(&[1, 8, 4, 4], 1);
    b.tensor("w", &[8, 8, 3, 3], 1.0);
    nodes(&mut b);
    b.build(&["out"])
}

/// Each was once quadratic in the size of the file, so that it takes minutes.
#[test]
fn what_is_read_very_often_takes_no_time_to_speak_of() {
    // Copies of a copy, the last of them the kernel of many.
    try_all(of_nodes(|b| {
        let last = (0..20_000).fold("w".to_owned(), |w, at| b.node("Identity", &[&w], &format!("w{at}"), vec![]));
        (0..20_000).for_each(|at| drop(b.node("Conv", &["image", &last], &format!("c{at}"), vec![])));
        b.node("Relu", &["c0"], "out", vec![]);
    }));
    // Many values of one pixel, joined.
    try_all(of_nodes(|b| {
        let all: Vec<String> =
            (0..30_000).map(|at| b.node("GlobalAveragePool", &["image"], &format!("g{at}"), vec![])).collect();
        b.node("Concat", &all.iter().map(String::as_str).collect::<Vec<_>>(), "out", vec![]);
    }));
    // A chain without a fork, whose roles would be as long as itself.
    try_all(of_nodes(|b| {
        let last = (0..30_000).fold("image".to_owned(), |x, at| {
            let x = b.node("Relu", &[&x], &format!("r{at}"), vec![]);
            if at % 10 > 0 {
                return x;
            }
            let own = b.tensor(&format!("w{at}"), &[1, 1, 1, 1], 1.0);
            b.node("Conv", &[&x, &own], &format!("c{at}"), vec![])
        });
        b.node("Relu", &[&last], "out", vec![]);
    }));
    // Values that all end in one place.
    try_all(of_nodes(|b| {
        let all: Vec<String> = (0..20_000)
            .scan("image".to_owned(), |x, at| {
                *x = b.node("Relu", &[x], &format!("r{at}"), vec![]);
                Some(x.clone())
            })
            .collect();
        b.node("Sum", &all.iter().map(String::as_str).collect::<Vec<_>>(), "out", vec![]);
    }));
}

#[test]
fn a_tensor_in_another_file_is_refused() {
    let error = damaged(|m| {
        let weight = weight(m);
        weight.raw_data = None;
        weight.data_location = Some(DataLocation::External as i32);
    });
    assert!(matches!(error, Error::ExternalData { .. }), "{error}");
}

#[test]
fn a_kernel_that_is_not_a_number_is_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut model = sound();
        let weight = weight(&mut model);
        let mut raw = weight.raw_data.take().unwrap().to_vec();
        raw[16..20].copy_from_slice(&bad.to_le_bytes());
        weight.raw_data = Some(raw.into());
        let error = compile(&open(&model).unwrap(), &Options::default(), &|_| ()).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { tensor, .. } if tensor == "layer1.0.conv1.weight"), "{error}");
        // Nor is what is added to all that a layer gives.
        let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
        let y = b.named_conv("image", "y", &ConvSpec::new(8, 3));
        let mut model = b.build_proto(&[&y]);
        let tensors = &mut model.graph.as_mut().unwrap().initializer;
        let bias = tensors.iter_mut().find(|t| t.name() == "y.bias").unwrap();
        bias.raw_data = Some(bad.to_le_bytes().repeat(8).into());
        let plan = PlanOptions { policy: RankPolicy::Ratio(1.2), ..PlanOptions::default() };
        let error = compile(&open(&model).unwrap(), &Options { plan, ..Options::default() }, &|_| ()).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { tensor, .. } if tensor == "y.bias"), "{error}");
    }
}

#[test]
fn the_sentence_names_the_file_whoever_reads_it() {
    let mut dangling = sound();
    dangling.graph.as_mut().unwrap().node[1].input[0] = "nowhere".into();
    let mut endless = sound();
    weight(&mut endless).raw_data = Some(f32::NAN.to_le_bytes().repeat(8 * 8 * 9).into());
    let good = small_resnet(2);
    for (bytes, words) in [
        (good[..3000].to_vec(), "truncated"),
        (Vec::new(), "empty"),
        (dangling.encode_to_vec(), "'nowhere'"),
        (endless.encode_to_vec(), "NaN"),
    ] {
        let scene = Scene::new(&good);
        std::fs::write(scene.path("deep/bad.onnx"), &bytes).unwrap();
        for command in [
            "deep/bad.onnx out.onnx --ratio 1.5 --quiet",
            "inspect deep/bad.onnx --quiet",
            "verify in.onnx deep/bad.onnx --quiet",
            "verify deep/bad.onnx in.onnx --quiet",
            "tune deep/bad.onnx out.onnx --teacher in.onnx --quiet",
        ] {
            let output = scene.run(command);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), said.lines().count()), (Some(3), 1), "{command}: {said}");
            assert!(said.starts_with("onnx-jmd: deep/bad.onnx: ") && said.contains(words), "{command}: {said}");
        }
        let piped = scene.pipes("- out.onnx --ratio 1.5 --calib none --quiet", &bytes);
        assert!(String::from_utf8(piped.stderr).unwrap().starts_with("onnx-jmd: standard input: "), "{words}");
        let error = Model::open(scene.path("deep/bad.onnx"));
        // Which is no number is only seen where it would be run.
        assert!(words == "NaN" || matches!(error, Err(Error::Unsound { .. })), "{error:?}");
    }
}

/// A model of a few hundred bytes, so that every byte can be tried.
fn tiny() -> Vec<u8> {
    let mut b = ModelBuilder::new(&[1, 2, 5, 5], 3);
    let mut x = b.conv("image", &ConvSpec::new(3, 2));
    for _ in 0..2 {
        let y = b.conv(&x, &ConvSpec { out: 3, ..ConvSpec::new(3, 3) });
        x = b.add(&y, &x);
    }
    b.build(&[&x])
}

/// Everything short of running the model, which tract does under its own guard.
fn try_all(bytes: Vec<u8>) {
    if let Ok(model) = Model::from_bytes(bytes) {
        let plan =
            PlanOptions { scheme: Scheme::LeftShared.into(), policy: RankPolicy::Rate(0.5), ..PlanOptions::default() };
        let options = Options { plan, verify: None, ..Options::default() };
        if let Ok(done) = compile(&model, &options, &|_| ()) {
            let written = done.model.unwrap().to_bytes();
            Model::from_bytes(written).expect("what was written cannot be read");
        }
    }
}

#[test]
fn truncation_at_every_offset_panics_nowhere() {
    let bytes = tiny();
    for end in 0..bytes.len() {
        let cut = bytes[..end].to_vec();
        assert!(catch_unwind(|| try_all(cut)).is_ok(), "cut at {end}");
    }
}

#[test]
fn flipping_every_byte_panics_nowhere() {
    let bytes = tiny();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            assert!(catch_unwind(|| try_all(flipped)).is_ok(), "byte {at} ^ {flip:#x}");
        }
    }
}
