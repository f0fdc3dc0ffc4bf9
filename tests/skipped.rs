//! One convolution for each reason to leave it alone, named in the answer.

mod support;

use onnx_jmd::{GroupOptions, Grouping, Model, Plan, PlanOptions, RankPolicy, Scheme, SkipReason, find_groups};
use prost::Message;
use support::proto::{ModelProto, TensorProto};
use support::{ConvSpec, ModelBuilder, decode, int, ints, small_resnet, value};

fn find(model: &ModelProto, options: &GroupOptions) -> Grouping {
    find_groups(&Model::from_bytes(model.encode_to_vec()).unwrap(), options).unwrap()
}

/// The reason given for the one convolution of a model after a change to it.
fn reason(change: impl FnOnce(&mut ModelProto)) -> SkipReason {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let y = b.named_conv("image", "y", &ConvSpec::new(8, 3));
    let mut model = b.build_proto(&[&y]);
    change(&mut model);
    let found = find(&model, &GroupOptions::default());
    assert_eq!(found.skipped.len(), 1, "{:?}", found.skipped);
    assert_eq!(found.skipped[0].name, "Conv_y");
    found.skipped[0].reason.clone()
}

fn attribute(model: &mut ModelProto, attribute: support::proto::AttributeProto) {
    let node = model.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type() == "Conv").unwrap();
    attribute_of(node, attribute);
}

fn attribute_of(node: &mut support::proto::NodeProto, attribute: support::proto::AttributeProto) {
    node.attribute.retain(|a| a.name() != attribute.name());
    node.attribute.push(attribute);
}

fn weight(model: &mut ModelProto) -> &mut TensorProto {
    &mut model.graph.as_mut().unwrap().initializer[0]
}

#[test]
fn kernels_with_other_than_one_to_three_spatial_axes() {
    assert_eq!(reason(|m| weight(m).dims = vec![64, 9]), SkipReason::Axes { axes: 2 });
    assert_eq!(reason(|m| weight(m).dims = vec![8, 8, 3, 3, 1, 1]), SkipReason::Axes { axes: 6 });
}

#[test]
fn depthwise_and_grouped_transposed_convolutions() {
    let found = reason(|m| {
        let weight = weight(m);
        weight.dims = vec![8, 1, 3, 3];
        weight.raw_data = Some(weight.raw_data.as_ref().unwrap().slice(..8 * 9 * 4));
        attribute(m, int("group", 8));
    });
    assert_eq!(found, SkipReason::Depthwise { channel_groups: 8 });
    let found = reason(|m| {
        let node = &mut m.graph.as_mut().unwrap().node[0];
        (node.op_type, node.name) = (Some("ConvTranspose".into()), Some("Conv_y".into()));
        attribute_of(node, int("group", 2));
    });
    assert_eq!(found, SkipReason::Grouped { channel_groups: 2 });
}

#[test]
fn groups_that_contradict_the_kernel_or_the_input() {
    // Of 8 × 8 channels neither can be dealt to three, and the input has no sixteen.
    for (groups, reading) in [(3, "group = 3"), (2, "group = 2"), (0, "group is 0"), (-1, "group is -1")] {
        let found = reason(|m| attribute(m, int("group", groups)));
        assert!(matches!(&found, SkipReason::Inconsistent { what } if what.contains(reading)), "{found}");
    }
}

#[test]
fn kernels_computed_in_the_graph() {
    let found = reason(|m| {
        let graph = m.graph.as_mut().unwrap();
        graph.node[0].input[1] = "computed".into();
        let node = support::proto::NodeProto {
            op_type: Some("Neg".into()),
            input: vec!["y.weight".into()],
            output: vec!["computed".into()],
            ..Default::default()
        };
        graph.node.insert(0, node);
    });
    assert_eq!(found, SkipReason::KernelComputed { value: "computed".into() });
}

#[test]
fn kernels_whose_shape_is_computed() {
    // Which axes of one go is not known, and it need not be all of them.
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let stored = b.tensor("stored", &[1, 8, 8, 3, 1], 0.1);
    let axes = b.tensor("axes", &[1], 0.0);
    let axes = b.node("Abs", &[&axes], "computed", vec![]);
    let kernel = b.node("Squeeze", &[&stored, &axes], "kernel", vec![]);
    b.node("Conv", &["image", &kernel], "y", vec![]);
    let found = find(&b.build_proto(&["y"]), &GroupOptions::default());
    let reasons: Vec<&SkipReason> = found.skipped.iter().map(|s| &s.reason).collect();
    assert_eq!(reasons, [&SkipReason::KernelComputed { value: "kernel".into() }]);
}

#[test]
fn kernels_quantized_in_other_ways_than_are_read() {
    let quantized = |data_type: i32, bytes: usize, attributes: Vec<support::proto::AttributeProto>| {
        reason(|m| {
            let weight = weight(m);
            weight.data_type = Some(data_type);
            weight.raw_data = Some(weight.raw_data.as_ref().unwrap().slice(..8 * 8 * 9 * bytes));
            let scale = TensorProto {
                name: Some("scale".into()),
                data_type: Some(1),
                float_data: vec![0.1],
                ..Default::default()
            };
            let graph = m.graph.as_mut().unwrap();
            graph.initializer.push(scale);
            graph.node[0].input[1] = "kernel".into();
            let node = support::proto::NodeProto {
                op_type: Some("DequantizeLinear".into()),
                input: vec!["y.weight".into(), "scale".into()],
                output: vec!["kernel".into()],
                attribute: attributes,
                ..Default::default()
            };
            graph.node.insert(0, node);
        })
    };
    let other = SkipReason::KernelQuantized { value: "kernel".into() };
    // INT16, and INT8 with a scale a block.
    assert_eq!(quantized(5, 2, vec![]), other);
    assert_eq!(quantized(3, 1, vec![int("block_size", 32)]), other);
}

#[test]
fn kernels_that_callers_may_replace() {
    let listed = |m: &mut ModelProto| m.graph.as_mut().unwrap().input.push(value("y.weight", &[8, 8, 3, 3]));
    assert_eq!(reason(listed), SkipReason::KernelOverridable { tensor: "y.weight".into() });
    // Before IR version 4 every initializer is listed, and none may be replaced.
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    b.ir_version = 3;
    let y = b.conv("image", &ConvSpec::new(8, 3));
    assert!(find(&b.build_proto(&[&y]), &GroupOptions::default()).skipped.is_empty());
}

#[test]
fn kernels_of_other_types() {
    let found = reason(|m| {
        let weight = weight(m);
        weight.data_type = Some(10);
        let half = weight.raw_data.as_ref().unwrap().slice(..8 * 8 * 9 * 2);
        weight.raw_data = Some(half);
    });
    assert_eq!(found, SkipReason::KernelType { element_type: "FLOAT16".into() });
}

#[test]
fn kernels_read_more_than_once() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let y = b.named_conv("image", "y", &ConvSpec::new(8, 3));
    let z = b.named_conv(&y, "z", &ConvSpec::new(8, 3));
    let mut model = b.build_proto(&[&z]);
    model.graph.as_mut().unwrap().node[1].input[1] = "y.weight".into();
    // By convolutions alone: one stands for both.
    let found = find(&model, &GroupOptions::default());
    assert_eq!((found.convs.len(), found.convs[0].name.as_str(), found.skipped.len()), (1, "Conv_y", 0));
    // By something else as well.
    model.graph.as_mut().unwrap().output[0].name = Some("y.weight".into());
    let output = support::proto::ValueInfoProto { name: Some("z".into()), ..Default::default() };
    model.graph.as_mut().unwrap().output.push(output);
    let found = find(&model, &GroupOptions::default());
    let reused = SkipReason::KernelReused { tensor: "y.weight".into(), uses: 3 };
    assert_eq!(found.skipped.iter().map(|s| s.reason.clone()).collect::<Vec<_>>(), [reused.clone(), reused]);
}

#[test]
fn same_padding_is_resolved_where_the_size_is_known_and_left_to_the_factors() {
    let mut b = ModelBuilder::new(&[0, 8, 0, 0], 5);
    let y = b.conv("image", &ConvSpec { auto_pad: Some("SAME_UPPER"), ..ConvSpec::new(8, 3).stride(2) });
    let model = b.build_proto(&[&y]);
    assert_eq!(find(&model, &GroupOptions::default()).convs[0].pads, None);
    let known = GroupOptions { input_shapes: vec!["image:1,8,9,10".parse().unwrap()], ..GroupOptions::default() };
    let found = find(&model, &known);
    // 9 → 5 needs 2 more rows, 10 → 5 needs 1 more column, and SAME_UPPER puts the odd one at the end.
    assert_eq!(found.convs[0].pads, Some(vec![1, 0, 1, 1]));
    assert_eq!(found.convs[0].auto_pad(), Some("SAME_UPPER"));
}

#[test]
fn convolutions_in_subgraphs_and_of_other_domains_are_named() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let y = b.named_conv("image", "y", &ConvSpec::new(8, 3));
    let z = b.named_conv(&y, "z", &ConvSpec::new(8, 3));
    let mut model = b.build_proto(&[&z]);
    let graph = model.graph.as_mut().unwrap();
    let mut inner = graph.node[0].clone();
    inner.name = Some("inside".into());
    inner.output = vec!["inner".into()];
    let branch = support::proto::GraphProto { node: vec![inner], ..Default::default() };
    let attribute =
        support::proto::AttributeProto { name: Some("then_branch".into()), g: Some(branch), ..Default::default() };
    graph.node.push(support::proto::NodeProto {
        op_type: Some("If".into()),
        name: Some("choice".into()),
        input: vec!["y".into()],
        output: vec!["unused".into()],
        attribute: vec![attribute],
        ..Default::default()
    });
    graph.node[1].domain = Some("com.example".into());
    let output = support::proto::ValueInfoProto { name: Some("unused".into()), ..Default::default() };
    graph.output.push(output);
    let reasons: Vec<SkipReason> =
        find(&model, &GroupOptions::default()).skipped.into_iter().map(|s| s.reason).collect();
    assert!(reasons.contains(&SkipReason::InSubgraph { node: "choice".into() }), "{reasons:?}");
    assert!(reasons.contains(&SkipReason::ForeignDomain { domain: "com.example".into() }), "{reasons:?}");
    // The branch reads the kernel too.
    assert!(reasons.contains(&SkipReason::KernelReused { tensor: "y.weight".into(), uses: 2 }), "{reasons:?}");
}

#[test]
fn attributes_that_contradict_the_kernel() {
    for change in [
        ints("kernel_shape", &[5, 5]),
        ints("strides", &[0, 1]),
        ints("strides", &[1]),
        ints("dilations", &[1, 1, 1]),
        ints("pads", &[1, 1]),
        ints("pads", &[1 << 62, 0, 0, 0]),
        ints("strides", &[1 << 62, 1]),
        ints("dilations", &[1, 1 << 62]),
    ] {
        let found = reason(|m| attribute(m, change.clone()));
        assert!(matches!(found, SkipReason::Inconsistent { .. }), "{found}");
    }
    // As no operator reads it, and as it would be lost in a factor.
    let floats = |name: &str| support::proto::AttributeProto {
        name: Some(name.into()),
        floats: vec![2.0, 2.0],
        r#type: Some(support::proto::attribute_proto::AttributeType::Floats as i32),
        ..Default::default()
    };
    for name in ["strides", "group", "auto_pad"] {
        let found = reason(|m| attribute(m, floats(name))).to_string();
        assert!(found.starts_with(&format!("its {name} is of type FLOATS")), "{found}");
    }
    let unnamed = |m: &mut ModelProto| m.graph.as_mut().unwrap().node[0].input[1].clear();
    assert_eq!(reason(unnamed), SkipReason::Inconsistent { what: "it has no kernel".into() });
    let two = |m: &mut ModelProto| m.graph.as_mut().unwrap().node[0].output.push("more".into());
    assert_eq!(reason(two), SkipReason::Inconsistent { what: "it has 2 outputs".into() });
    let empty = |m: &mut ModelProto| {
        weight(m).dims = vec![0, 8, 3, 3];
        weight(m).raw_data = Some(Default::default());
    };
    assert!(matches!(reason(empty), SkipReason::Inconsistent { .. }));
}

#[test]
fn sparse_kernels() {
    let found = reason(|m| {
        let graph = m.graph.as_mut().unwrap();
        let kernel = graph.initializer.remove(0);
        let place = |at: i64| at.to_le_bytes();
        let indices = TensorProto {
            dims: vec![1],
            data_type: Some(support::proto::tensor_proto::DataType::Int64 as i32),
            raw_data: Some(place(7).to_vec().into()),
            ..Default::default()
        };
        let values =
            TensorProto { dims: vec![1], raw_data: Some(1f32.to_le_bytes().to_vec().into()), ..kernel.clone() };
        let sparse =
            support::proto::SparseTensorProto { values: Some(values), indices: Some(indices), dims: kernel.dims };
        graph.sparse_initializer.push(sparse);
    });
    assert_eq!(found, SkipReason::KernelSparse { tensor: "y.weight".into() });
}

#[test]
fn operators_that_compute_in_integers() {
    for operator in ["QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"] {
        let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
        let kernel = b.tensor("kernel", &[8, 8, 3, 3], 0.2);
        let y = b.node(operator, &["image", &kernel], "y", vec![]);
        let model = Model::from_bytes(b.build(&[&y])).unwrap();
        let found = find_groups(&model, &GroupOptions::default()).unwrap();
        assert_eq!(found.skipped[0].reason, SkipReason::Integers { operator: operator.into() });
        let error = Plan::build(&model, &found, &PlanOptions::default()).unwrap_err().to_string();
        assert!(error.contains("DequantizeLinear") && error.contains(operator), "{error}");
    }
}

#[test]
fn products_whose_constant_is_on_the_left_or_a_stack() {
    let mut b = ModelBuilder::new(&[0, 6, 24], 3);
    let left = b.tensor("left", &[10, 6], 0.2);
    let mixed = b.node("MatMul", &[&left, "image"], "mixed", vec![]);
    let stack = b.tensor("stack", &[2, 24, 5], 0.2);
    let split = b.node("Unsqueeze", &[&mixed], "split", vec![ints("axes", &[1])]);
    let heads = b.node("MatMul", &[&split, &stack], "heads", vec![]);
    b.node("MatMul", &["image", "mixed"], "unread", vec![]);
    let model = b.build_proto(&[&heads]);
    let found = find(&model, &GroupOptions::default());
    let reasons: Vec<(&str, &SkipReason, Option<u64>)> =
        found.skipped.iter().map(|s| (s.name.as_str(), &s.reason, s.macs)).collect();
    let (on_the_left, stacked) =
        (SkipReason::KernelOnTheLeft { value: "left".into() }, SkipReason::KernelStack { dims: vec![2, 24, 5] });
    // The product of two computed values is no layer. An open batch is one.
    assert_eq!(
        reasons,
        [("MatMul_mixed", &on_the_left, Some(10 * 6 * 24)), ("MatMul_heads", &stacked, Some(2 * 10 * 24 * 5))]
    );
    assert!(on_the_left.to_string().contains("'left' is the left side") && stacked.to_string().contains("[2, 24, 5]"));
}

#[test]
fn what_the_user_leaves_out() {
    let model = decode(&small_resnet(2));
    let options = GroupOptions { exclude: Some(regex::Regex::new("conv2").unwrap()), ..GroupOptions::default() };
    let found = find(&model, &options);
    assert!(found.skipped.iter().all(|s| s.reason == SkipReason::Excluded && s.name.contains("conv2")));
    assert_eq!((found.skipped.len(), found.convs.len()), (2, 4));
}

#[test]
fn what_no_rank_makes_smaller_is_kept_with_that_reason() {
    // A 1×1 kernel from 2 to 2 channels: rank one costs as much as the whole.
    let mut b = ModelBuilder::new(&[1, 2, 9, 9], 5);
    let x = b.conv("image", &ConvSpec::new(2, 1));
    let y = b.conv(&x, &ConvSpec::new(16, 3));
    let model = Model::from_bytes(b.build(&[&y])).unwrap();
    let grouping = find_groups(&model, &GroupOptions::default()).unwrap();
    let options =
        PlanOptions { scheme: Scheme::LeftShared.into(), policy: RankPolicy::Rate(0.1), ..PlanOptions::default() };
    let plan = Plan::build(&model, &grouping, &options).unwrap();
    assert_eq!(plan.kept.len(), 1);
    assert_eq!(plan.kept[0].reason, SkipReason::NeverPays.to_string());
}

#[test]
fn our_own_factors() {
    let model = Model::from_bytes(small_resnet(2)).unwrap();
    let grouping = find_groups(&model, &GroupOptions::default()).unwrap();
    let options =
        PlanOptions { scheme: Scheme::LeftShared.into(), policy: RankPolicy::Rate(0.3), ..PlanOptions::default() };
    let plan = Plan::build(&model, &grouping, &options).unwrap();
    let small = onnx_jmd::apply(&model, &plan).unwrap().model;
    let again = find_groups(&small, &GroupOptions::default()).unwrap();
    assert!(again.skipped.iter().any(|s| s.reason == SkipReason::AlreadyFactored));
    assert!(again.skipped.iter().all(|s| s.name.contains("jmd_")));
}

#[test]
fn a_depthwise_network_is_nothing_to_compress() {
    let mut b = ModelBuilder::new(&[1, 16, 9, 9], 5);
    let x = b.grouped_conv("image", 16, &ConvSpec::new(16, 3));
    let y = b.grouped_conv(&x, 16, &ConvSpec::new(16, 5));
    let model = Model::from_bytes(b.build(&[&y])).unwrap();
    let grouping = find_groups(&model, &GroupOptions::default()).unwrap();
    assert!(grouping.skipped.iter().all(|s| s.reason == SkipReason::Depthwise { channel_groups: 16 }));
    let error = Plan::build(&model, &grouping, &PlanOptions::default()).unwrap_err();
    assert!(matches!(error, onnx_jmd::Error::NothingToCompress(_)), "{error}");
}
