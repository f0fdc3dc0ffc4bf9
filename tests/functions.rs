//! Local functions: their bodies stand in the place of their calls where they hold layers, and mean what they meant.

mod support;

use onnx_jmd::{GroupOptions, Model, SkipReason, find_groups};
use prost::Message;
use support::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use support::scene::Scene;
use support::{ConvSpec, ModelBuilder, decode, ints, small_resnet};

/// Makes some nodes of a graph, which follow each other, a function that reads whatever they read.
fn wrapped(model: &mut ModelProto, name: &str, nodes: std::ops::Range<usize>) {
    let graph = model.graph.as_mut().unwrap();
    let body: Vec<NodeProto> = graph.node.drain(nodes.clone()).collect();
    let made: Vec<&String> = body.iter().flat_map(|n| &n.output).collect();
    let mut input: Vec<String> = body.iter().flat_map(|n| &n.input).filter(|i| !made.contains(i)).cloned().collect();
    input.sort();
    input.dedup();
    let outside = |o: &&String| {
        graph.node.iter().any(|n| n.input.contains(o)) || graph.output.iter().any(|v| v.name() == o.as_str())
    };
    let output: Vec<String> = made.into_iter().filter(outside).cloned().collect();
    graph.node.insert(nodes.start, call(name, &input, &output));
    model.functions.push(function(name, &input, &output, body));
    let local = OperatorSetIdProto { domain: Some("local".into()), version: Some(1) };
    if !model.opset_import.contains(&local) {
        model.opset_import.push(local);
    }
}

fn call(name: &str, input: &[String], output: &[String]) -> NodeProto {
    NodeProto {
        op_type: Some(name.into()),
        domain: Some("local".into()),
        name: Some(format!("{name}-{}", output[0])),
        input: input.to_vec(),
        output: output.to_vec(),
        ..NodeProto::default()
    }
}

fn function(name: &str, input: &[String], output: &[String], node: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: input.to_vec(),
        output: output.to_vec(),
        node,
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        ..FunctionProto::default()
    }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// An attribute that is one of the call.
fn referring(name: &str, to: &str) -> AttributeProto {
    AttributeProto { ints: vec![], ref_attr_name: Some(to.into()), ..ints(name, &[]) }
}

#[test]
fn bodies_compress_as_the_nodes_that_they_are() {
    let plain = small_resnet(3);
    let scene = Scene::new(&plain);
    let mut model = decode(&plain);
    wrapped(&mut model, "Late", 9..14);
    wrapped(&mut model, "Early", 1..6);
    std::fs::write(scene.path("functions.onnx"), model.encode_to_vec()).unwrap();
    scene.succeeds("verify in.onnx functions.onnx --max-difference 1e-6");
    scene.succeeds("in.onnx plain-out.onnx --ratio 1.5 -q");
    let told = scene.succeeds("functions.onnx out.onnx --ratio 1.5");
    assert!(
        told.contains(
            "local functions stand in the place of their calls, as they hold layers or make their kernels: Early, Late"
        ),
        "{told}"
    );
    scene.succeeds("verify out.onnx plain-out.onnx --max-difference 1e-5");
    let written = decode(&scene.read("out.onnx"));
    assert!(written.functions.is_empty());
    // The file is still told by its own bytes.
    scene.succeeds("functions.onnx out.onnx --ratio 1.5 --check");
    let opened = Model::open(scene.path("functions.onnx")).unwrap();
    assert!(opened.to_bytes() == scene.read("functions.onnx") && opened.round_trips());
}

/// `y = Relu(Conv(Relu(Conv(image))))` of strides 2 and 1, and `image` itself: by functions in a function, or plainly.
fn nested(by_functions: bool) -> ModelProto {
    let mut b = ModelBuilder::new(&[1, 4, 9, 8], 5);
    let (v, w) = (b.tensor("v", &[8, 4, 3, 3], 0.2), b.tensor("w", &[8, 8, 3, 3], 0.2));
    let bias = b.store("bias", &[8], (0..8).map(|i| i as f32 / 8.0).collect());
    let mut model = if by_functions {
        b.build_proto(&["y", "same"])
    } else {
        let pads = ints("pads", &[1; 4]);
        b.node("Conv", &["image", &v, &bias], "a", vec![ints("strides", &[2, 2]), pads.clone()]);
        b.node("Relu", &["a"], "c", vec![]);
        b.node("Conv", &["c", &w, &bias], "d", vec![ints("strides", &[1, 1]), pads]);
        b.node("Relu", &["d"], "y", vec![]);
        b.node("Identity", &["image"], "same", vec![]);
        return b.build_proto(&["y", "same"]);
    };
    // The bias is a constant of the body, and the pads are the function's own.
    let graph = model.graph.as_mut().unwrap();
    let bias = graph.initializer.pop().unwrap();
    let body = |op: &str, input: &[&str], output: &str, attribute| NodeProto {
        op_type: Some(op.into()),
        input: strings(input),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    };
    let value =
        AttributeProto { t: Some(bias), r#type: Some(4), name: Some("value".into()), ..AttributeProto::default() };
    let layer = vec![
        body("Constant", &[], "bias", vec![value]),
        body("Conv", &["image", "w", "bias"], "a", vec![referring("strides", "strides"), referring("pads", "pads")]),
        body("Relu", &["a"], "y", vec![]),
    ];
    let mut layer = function("Layer", &strings(&["image", "w"]), &strings(&["y", "image"]), layer);
    (layer.attribute, layer.attribute_proto) = (strings(&["strides"]), vec![ints("pads", &[1; 4])]);
    let mut first = call("Layer", &strings(&["x", "v"]), &strings(&["c", "same"]));
    first.attribute = vec![ints("strides", &[2, 2])];
    let mut second = call("Layer", &strings(&["c", "w"]), &strings(&["d"]));
    second.attribute = vec![ints("strides", &[1, 1])];
    let mut pair = function("Pair", &strings(&["x", "v", "w"]), &strings(&["d", "same"]), vec![first, second]);
    let local = OperatorSetIdProto { domain: Some("local".into()), version: Some(1) };
    pair.opset_import.push(local.clone());
    model.graph.as_mut().unwrap().node = vec![call("Pair", &strings(&["image", "v", "w"]), &strings(&["y", "same"]))];
    model.functions = vec![pair, layer];
    model.opset_import.push(local);
    model
}

#[test]
fn attributes_constants_and_values_that_go_through() {
    let scene = Scene::new(&nested(true).encode_to_vec());
    std::fs::write(scene.path("plain.onnx"), nested(false).encode_to_vec()).unwrap();
    scene.succeeds("verify in.onnx plain.onnx --max-difference 1e-6");
    let (functions, plain) =
        (Model::open(scene.path("in.onnx")).unwrap(), Model::open(scene.path("plain.onnx")).unwrap());
    // The bias of both is stored once.
    assert_eq!(functions.parameters(), plain.parameters());
    assert_eq!(functions.inlined(), ["Layer", "Pair"]);
    let found = find_groups(&functions, &GroupOptions::default()).unwrap();
    let names: Vec<&str> = found.convs.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["Pair-y/Layer-c/Conv(a)", "Pair-y/Layer-d/Conv(a)"]);
}

/// The reasons given for a model whose functions cannot stand in the place of their calls, and whether it comes out as it is.
fn left(change: impl FnOnce(&mut ModelProto)) -> Vec<SkipReason> {
    let mut model = nested(true);
    change(&mut model);
    let scene = Scene::new(&model.encode_to_vec());
    scene.fails("in.onnx out.onnx --ratio 1.5 -q --no-verify", 4);
    assert!(scene.read("out.onnx") == scene.read("in.onnx"));
    let model = Model::open(scene.path("in.onnx")).unwrap();
    assert!(model.inlined().is_empty());
    find_groups(&model, &GroupOptions::default()).unwrap().skipped.into_iter().map(|s| s.reason).collect()
}

#[test]
fn functions_that_cannot_be_inlined_are_left_and_named() {
    // Of another operator set.
    left(|m| m.functions[1].opset_import[0].version = Some(13));
    // A call of itself.
    let reasons = left(|m| {
        let again = call("Pair", &strings(&["x", "v", "w"]), &strings(&["other", "same_2"]));
        m.functions[0].node.push(again);
        let conv = m.functions[1].node[1].clone();
        let named = NodeProto { input: strings(&["x", "v"]), output: strings(&["more"]), attribute: vec![], ..conv };
        m.functions[0].node.push(named);
    });
    // Its own, and that of what it calls.
    assert_eq!(reasons, vec![SkipReason::InFunction { function: "Pair".into() }; 2]);
    // A name that is none of the function's.
    left(|m| m.functions[1].node[2].input[0] = "nowhere".into());
    // A constant that is shorter than it says.
    left(|m| m.functions[1].node[0].attribute[0].t.as_mut().unwrap().dims = vec![9]);
    // More inputs than it takes.
    left(|m| m.graph.as_mut().unwrap().node[0].input.push("image".into()));
    // An attribute of a megabyte that ten thousand nodes refer to.
    left(|m| {
        let large = AttributeProto { ints: vec![1; 1 << 20], ..ints("large", &[]) };
        m.functions[0].node[0].attribute.push(large);
        let conv = m.functions[1].node[1].clone();
        m.functions[1].node.extend((0..10_000).map(|at| NodeProto {
            output: vec![format!("unused_{at}")],
            attribute: vec![referring("pads", "large")],
            ..conv.clone()
        }));
    });
    // Functions that call the next one twice each: two to the power of forty calls.
    left(|m| {
        for depth in 0..40 {
            let next = if depth == 39 { "Pair".to_owned() } else { format!("F{}", depth + 1) };
            let read = strings(&["x", "v", "w"]);
            let twice = ["d", "e"].map(|to| call(&next, &read, &strings(&[to, &format!("same_{to}")])));
            m.functions.push(function(&format!("F{depth}"), &read, &strings(&["d"]), twice.to_vec()));
        }
        let graph = m.graph.as_mut().unwrap();
        graph.node.push(call("F0", &strings(&["image", "v", "w"]), &strings(&["bomb"])));
    });
}

#[test]
fn data_of_bodies_in_other_files_is_read_and_found_missing() {
    let mut model = nested(true);
    let bias = model.functions[1].node[0].attribute[0].t.as_mut().unwrap();
    let raw = bias.raw_data.take().unwrap();
    bias.data_location = Some(support::proto::tensor_proto::DataLocation::External as i32);
    bias.external_data
        .push(support::proto::StringStringEntryProto { key: Some("location".into()), value: Some("bias.bin".into()) });
    let scene = Scene::new(&model.encode_to_vec());
    assert!(scene.fails("in.onnx elsewhere.onnx --ratio 1.2 -q", 3).contains("bias.bin"));
    std::fs::write(scene.path("bias.bin"), &raw).unwrap();
    std::fs::write(scene.path("plain.onnx"), nested(false).encode_to_vec()).unwrap();
    scene.succeeds("verify in.onnx plain.onnx --max-difference 1e-6");
    scene.path("other/out.onnx");
    scene.succeeds("in.onnx other/out.onnx --ratio 1.2 -q");
    scene.succeeds("plain.onnx plain-out.onnx --ratio 1.2 -q");
    scene.succeeds("verify other/out.onnx plain-out.onnx --max-difference 1e-5");
    // Where there is no folder to look in, too.
    let output = scene.pipes("- - --ratio 1.2 --calib none -q", &scene.read("in.onnx"));
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn functions_without_layers_and_of_runtimes_stay() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let x = b.conv("image", &ConvSpec::new(8, 3));
    let y = b.relu(&x);
    let mut model = b.build_proto(&[&y]);
    wrapped(&mut model, "Activation", 1..2);
    let opened = Model::from_bytes(model.encode_to_vec()).unwrap();
    assert!(opened.inlined().is_empty());
    // A runtime has an operator for it.
    let mut model = nested(true);
    for domain in model.functions.iter_mut().map(|f| &mut f.domain) {
        *domain = Some("com.microsoft".into());
    }
    let nodes = model.graph.as_mut().unwrap().node.iter_mut().chain(model.functions[0].node.iter_mut());
    nodes.for_each(|n| n.domain = Some("com.microsoft".into()));
    let opened = Model::from_bytes(model.encode_to_vec()).unwrap();
    assert!(opened.inlined().is_empty());
}

/// An `If` on a constant whose branches each give a value of one name.
fn branches(given: impl Fn(&str) -> Vec<NodeProto>) -> [NodeProto; 2] {
    let branch = |name: &str| AttributeProto {
        name: Some(name.into()),
        r#type: Some(5),
        g: Some(GraphProto {
            name: Some(name.into()),
            node: given(name),
            output: vec![ValueInfoProto { name: Some("r".into()), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        }),
        ..AttributeProto::default()
    };
    let yes = TensorProto { data_type: Some(9), raw_data: Some(vec![1].into()), ..TensorProto::default() };
    let value =
        AttributeProto { name: Some("value".into()), r#type: Some(4), t: Some(yes), ..AttributeProto::default() };
    let node = |op: &str, input: &[&str], output: &str, attribute| NodeProto {
        op_type: Some(op.into()),
        name: Some(format!("{op}-{output}")),
        input: strings(input),
        output: strings(&[output]),
        attribute,
        ..NodeProto::default()
    };
    let attribute = vec![branch("then_branch"), branch("else_branch")];
    [node("Constant", &[], "yes", vec![value]), node("If", &["yes"], "z", attribute)]
}

/// tract knows an operator by its name, whatever its domain.
#[test]
fn functions_named_like_operators_are_run_as_their_bodies() {
    let model = |op: &str| {
        let mut b = ModelBuilder::new(&[1, 3, 16, 16], 5);
        let x = b.conv("image", &ConvSpec::new(8, 3));
        let y = b.unary(op, &x);
        let z = b.conv(&y, &ConvSpec::new(8, 3));
        b.build_proto(&[&z])
    };
    let scene = Scene::new(&model("Neg").encode_to_vec());
    let mut named = model("Neg");
    wrapped(&mut named, "Relu", 1..2);
    std::fs::write(scene.path("named.onnx"), named.encode_to_vec()).unwrap();
    scene.succeeds("verify in.onnx named.onnx --max-difference 1e-6");
    scene.succeeds("in.onnx plain-out.onnx --ratio 2 --calib none -q");
    let told = scene.succeeds("named.onnx out.onnx --ratio 2 --calib none");
    assert!(told.contains("rewrite error") && !told.contains("NOT as a whole"), "{told}");
    scene.succeeds("verify out.onnx plain-out.onnx --max-difference 1e-6");
    let told = scene.succeeds("named.onnx out.onnx --ratio 2 --calib-samples 8");
    assert!(told.contains("rewrite error") && !told.contains("NOT as a whole"), "{told}");
    // What stays in the file is the call.
    assert_eq!(decode(&scene.read("out.onnx")).functions.len(), 1);
    // Nobody knows what it is without its body.
    named.functions.clear();
    std::fs::write(scene.path("named.onnx"), named.encode_to_vec()).unwrap();
    scene.fails("verify in.onnx named.onnx", 7);
    let told = scene.succeeds("named.onnx out.onnx --ratio 2");
    assert!(told.contains("NOT as a whole") && told.contains("local:Relu"), "{told}");
}

#[test]
fn functions_that_make_kernels_stand_in_the_place_of_their_calls() {
    let mut model = nested(false);
    let graph = model.graph.as_mut().unwrap();
    let at = graph.initializer.iter().position(|t| t.name() == "w").unwrap();
    let kernel = graph.initializer.remove(at);
    let value =
        AttributeProto { t: Some(kernel), r#type: Some(4), name: Some("value".into()), ..AttributeProto::default() };
    let constant = NodeProto {
        op_type: Some("Constant".into()),
        output: strings(&["k"]),
        attribute: vec![value],
        ..NodeProto::default()
    };
    graph.node.insert(0, call("Kernel", &[], &strings(&["w"])));
    model.functions.push(function("Kernel", &[], &strings(&["k"]), vec![constant]));
    model.opset_import.push(OperatorSetIdProto { domain: Some("local".into()), version: Some(1) });
    let opened = Model::from_bytes(model.encode_to_vec()).unwrap();
    assert_eq!(opened.inlined(), ["Kernel"]);
    assert_eq!(find_groups(&opened, &GroupOptions::default()).unwrap().convs.len(), 2);
    assert_eq!(opened.parameters(), Model::from_bytes(nested(false).encode_to_vec()).unwrap().parameters());
}

#[test]
fn a_function_that_a_subgraph_calls_too_stays_and_counts() {
    let plain = Model::from_bytes(nested(true).encode_to_vec()).unwrap();
    let reasons = left(|m| {
        let inner = |name: &str| {
            vec![NodeProto { name: Some(name.into()), ..call("Layer", &strings(&["c", "w"]), &strings(&["r"])) }]
        };
        m.functions[0].node.extend(branches(inner));
        assert_eq!(Model::from_bytes(m.encode_to_vec()).unwrap().parameters(), plain.parameters());
    });
    let within = |name: &str| SkipReason::InFunction { function: name.into() };
    assert!(reasons.contains(&within("Pair")), "{reasons:?}");
    // Two of one name: there is no saying which is called.
    left(|m| m.functions.push(m.functions[1].clone()));
}

#[test]
fn branches_of_a_body_may_each_have_a_value_of_one_name() {
    let mut model = nested(true);
    let inner = |name: &str| {
        let op = if name == "then_branch" { "Abs" } else { "Neg" };
        vec![NodeProto {
            op_type: Some(op.into()),
            name: Some(name.into()),
            input: strings(&["d"]),
            output: strings(&["r"]),
            ..NodeProto::default()
        }]
    };
    model.functions[0].node.extend(branches(inner));
    model.functions[0].output[0] = "z".into();
    // What `If` gives is the absolute of what is positive already.
    let scene = Scene::new(&model.encode_to_vec());
    std::fs::write(scene.path("plain.onnx"), nested(false).encode_to_vec()).unwrap();
    assert_eq!(Model::open(scene.path("in.onnx")).unwrap().inlined(), ["Layer", "Pair"]);
    scene.succeeds("verify in.onnx plain.onnx --max-difference 1e-6");
}

#[test]
fn what_nothing_calls_keeps_nothing() {
    let mut model = nested(true);
    let inner = |name: &str| {
        vec![NodeProto { name: Some(name.into()), ..call("Layer", &strings(&["c", "w"]), &strings(&["r"])) }]
    };
    let read = strings(&["c", "w"]);
    model.functions.push(function("Uncalled", &read, &strings(&["z"]), branches(inner).to_vec()));
    let opened = Model::from_bytes(model.encode_to_vec()).unwrap();
    assert_eq!(opened.inlined(), ["Layer", "Pair"]);
    assert_eq!(opened.parameters(), Model::from_bytes(nested(false).encode_to_vec()).unwrap().parameters());
}

/// Where functions cannot be inlined, however often they are called, and from within subgraphs.
#[test]
fn each_layer_within_is_named_once() {
    let reasons = left(|m| {
        m.functions[1].opset_import[0].version = Some(13);
        let inner = |name: &str| {
            vec![NodeProto { name: Some(name.into()), ..call("Layer", &strings(&["y", "w"]), &strings(&["r"])) }]
        };
        let read = strings(&["image", "v", "w"]);
        let nodes = &mut m.graph.as_mut().unwrap().node;
        nodes.extend((0..100).map(|at| call("Pair", &read, &strings(&[&format!("y_{at}"), &format!("same_{at}")]))));
        nodes.extend(branches(inner));
    });
    assert_eq!(reasons, [SkipReason::InFunction { function: "Pair".into() }]);
}

#[test]
fn integers_that_a_body_makes_floats_are_parameters() {
    let mut model = nested(true);
    let before = Model::from_bytes(model.encode_to_vec()).unwrap().parameters();
    let value =
        TensorProto { data_type: Some(3), dims: vec![5], raw_data: Some(vec![1; 5].into()), ..Default::default() };
    let value =
        AttributeProto { name: Some("value".into()), r#type: Some(4), t: Some(value), ..AttributeProto::default() };
    let node = |op: &str, input: &[&str], output: &str, attribute| NodeProto {
        op_type: Some(op.into()),
        input: strings(input),
        output: strings(&[output]),
        attribute,
        ..NodeProto::default()
    };
    // The function has to stay, and its constants with it.
    model.functions[1].opset_import[0].version = Some(13);
    let body = &mut model.functions[0].node;
    body.push(node("Constant", &[], "five", vec![value]));
    body.push(node("Identity", &["five"], "not_counted", vec![]));
    assert_eq!(Model::from_bytes(model.encode_to_vec()).unwrap().parameters(), before);
    model.functions[0].node.push(node("DequantizeLinear", &["five", "v"], "counted", vec![]));
    assert_eq!(Model::from_bytes(model.encode_to_vec()).unwrap().parameters(), before + 5);
}
