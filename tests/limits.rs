//! What a model may ask of the machine: a small file that wants terabytes ends in a sentence.
#![cfg(target_os = "linux")]

mod support;

use prost::Message;
use support::proto::{ModelProto, TensorProto};
use support::scene::Scene;
use support::{decode, small_resnet, value};

/// A sound model whose output is spread by another operator, told by integers how far.
fn spread(op: &str, to: &[i64]) -> Vec<u8> {
    let mut model: ModelProto = decode(&small_resnet(2));
    let graph = model.graph.as_mut().unwrap();
    let raw: Vec<u8> = to.iter().flat_map(|n| n.to_le_bytes()).collect();
    graph.initializer.push(TensorProto {
        name: Some("to".into()),
        dims: vec![to.len() as i64],
        data_type: Some(7),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    });
    let mut node = graph.node[1].clone();
    node.op_type = Some(op.into());
    node.name = Some("spread".into());
    node.attribute.clear();
    let read = if op == "ConstantOfShape" { vec![] } else { vec![graph.output[0].name().to_owned()] };
    node.input = read.into_iter().chain(["to".to_owned()]).collect();
    node.output = vec!["far".into()];
    graph.node.push(node);
    graph.output.push(value("far", &[]));
    model.encode_to_vec()
}

#[test]
fn a_model_that_asks_for_terabytes_ends_in_a_sentence() {
    for (op, to) in [
        ("ConstantOfShape", vec![1_000_000, 1_000_000]),
        ("Expand", vec![1_000_000, 1_000_000, 1, 10]),
        ("Tile", vec![1_000_000, 1_000_000]),
    ] {
        let scene = Scene::new(&spread(op, &to));
        // By default it is what the machine has.
        let message = scene.fails("in.onnx out.onnx --ratio 1.3 -q", 13);
        assert!(message.contains("memory") && message.contains("--max-memory"), "{op}: {message}");
        assert_eq!(scene.files(), ["in.onnx"], "{op}");
        // Not run, it is no danger.
        scene.succeeds("in.onnx out.onnx --ratio 1.3 -q --no-verify");
    }
}

#[test]
fn the_bound_on_time_is_the_users() {
    // Seconds of work.
    let scene = Scene::new(&support::ResNet::R18.build());
    let message = scene.fails("in.onnx out.onnx --ratio 4 --scheme bi-jsvd --calib none -q --max-time 0.2s", 15);
    assert!(message.contains("longer than 0.2 s") && message.contains("--max-time"), "{message}");
    assert_eq!(scene.files(), ["in.onnx"]);
    scene.succeeds("inspect in.onnx -q --max-time 1h");
    for wrong in ["0s", "-1m", "5", "soon", "3epochs"] {
        let message = String::from_utf8(scene.run(&format!("in.onnx out.onnx --max-time={wrong}")).stderr).unwrap();
        assert!(message.contains("--max-time"), "{message}");
    }
}

#[test]
fn the_bound_on_memory_is_the_users() {
    // A gigabyte.
    let scene = Scene::new(&spread("ConstantOfShape", &[256, 1 << 20]));
    let message = scene.fails("in.onnx out.onnx --ratio 1.3 -q --max-memory 0.5", 13);
    assert!(message.contains("more than 512.0 MiB"), "{message}");
    assert_eq!(scene.files(), ["in.onnx"]);
    for wrong in ["0", "-1", "nan", "lots"] {
        let message = String::from_utf8(scene.run(&format!("in.onnx out.onnx --max-memory={wrong}")).stderr).unwrap();
        assert!(message.contains("--max-memory"), "{message}");
    }
}
