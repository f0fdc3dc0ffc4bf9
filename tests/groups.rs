//! The groups that matching finds are the paper's, whatever the exporter called things.

mod support;

use onnx_jmd::{GroupBy, GroupOptions, Grouping, Model, find_groups};
use prost::Message;
use std::collections::BTreeSet;
use support::proto::NodeProto;
use support::{ConvSpec, ModelBuilder, ResNet, decode, ints, small_resnet};

fn grouping(bytes: Vec<u8>) -> Grouping {
    find_groups(&Model::from_bytes(bytes).unwrap(), &GroupOptions::default()).unwrap()
}

/// Groups as sets of names, without the `Conv_` of the builder.
fn names(grouping: &Grouping) -> BTreeSet<BTreeSet<String>> {
    let name = |&m: &usize| grouping.convs[m].name.trim_start_matches("Conv_").to_owned();
    grouping.groups.iter().map(|g| g.members.iter().map(name).collect()).collect()
}

/// What the paper groups: in each stage the convolutions at the same place of its blocks.
fn paper(resnet: ResNet) -> BTreeSet<BTreeSet<String>> {
    let mut groups = BTreeSet::from([BTreeSet::from(["conv1".to_owned()])]);
    let places = if resnet.bottleneck { 3 } else { 2 };
    for (stage, &count) in resnet.blocks.iter().enumerate() {
        for place in 1..=places {
            groups.insert((0..count).map(|b| format!("layer{}.{b}.conv{place}", stage + 1)).collect());
        }
        if stage > 0 || resnet.bottleneck {
            groups.insert(BTreeSet::from([format!("layer{}.0.downsample", stage + 1)]));
        }
    }
    // The paper decomposes convolutions alone; the classifier is a group of its own.
    groups.insert(BTreeSet::from(["MatMul_scores".to_owned()]));
    groups
}

#[test]
fn groups_are_the_papers_on_resnet_18_34_and_50_with_batch_norm_folded_or_kept() {
    for resnet in [ResNet::R18, ResNet::R34, ResNet::R50] {
        for batch_norm in [false, true] {
            for cifar in [false, true] {
                let resnet = ResNet { batch_norm, cifar, width: 16, ..resnet };
                assert_eq!(names(&grouping(resnet.build())), paper(resnet), "{resnet:?}");
            }
        }
    }
}

#[test]
fn keeping_batch_norms_changes_no_group() {
    let bytes = ResNet { batch_norm: true, width: 8, ..ResNet::R34 }.build();
    let options = GroupOptions { keep_batch_norm: true, ..GroupOptions::default() };
    let kept = find_groups(&Model::from_bytes(bytes.clone()).unwrap(), &options).unwrap();
    assert_eq!(names(&kept), names(&grouping(bytes)));
}

#[test]
fn kernels_behind_what_rearranges_them_have_the_roles_of_others() {
    let plain = grouping(small_resnet(3));
    let mut model = decode(&small_resnet(3));
    let graph = model.graph.as_mut().unwrap();
    let mut turned = Vec::new();
    for node in graph.node.iter_mut().filter(|n| n.op_type() == "Conv") {
        let name = format!("{}/turned", node.name());
        let kernel = std::mem::replace(&mut node.input[1], name);
        let tensor = graph.initializer.iter_mut().find(|t| *t.name() == kernel).unwrap();
        // As if stored height, width, in, out; the numbers play no part here.
        tensor.dims = [2, 3, 1, 0].map(|axis| tensor.dims[axis]).to_vec();
        turned.push(NodeProto {
            op_type: Some("Transpose".into()),
            input: vec![kernel],
            output: vec![node.input[1].clone()],
            attribute: vec![ints("perm", &[3, 2, 0, 1])],
            ..NodeProto::default()
        });
    }
    graph.node.splice(0..0, turned);
    let found = grouping(model.encode_to_vec());
    let texts = |g: &Grouping| g.groups.iter().map(|g| (g.role.clone(), g.members.clone())).collect::<Vec<_>>();
    assert_eq!(texts(&found), texts(&plain));
    assert!(texts(&plain).iter().any(|(role, _)| role.contains("Conv3x3")));
}

#[test]
fn names_play_no_part() {
    let resnet = ResNet { width: 8, ..ResNet::R34 };
    let expected: Vec<Vec<usize>> = grouping(resnet.build()).groups.into_iter().map(|g| g.members).collect();
    let mut model = resnet.builder();
    for node in &mut model.graph.node {
        node.name = None;
    }
    let anonymous = grouping(model.build(&["scores"]));
    assert_eq!(anonymous.groups.into_iter().map(|g| g.members).collect::<Vec<_>>(), expected);
}

#[test]
fn repeated_blocks_are_counted_with_their_nodes() {
    let found = grouping(ResNet { width: 8, ..ResNet::R34 }.build()).blocks;
    // The first block of a later stage has a stride and a projection, so it is not one of the repeated ones.
    let counts: Vec<usize> = found.iter().map(|b| b.occurrences.len()).collect();
    assert_eq!(counts, [3, 3, 5, 2]);
    assert_eq!(found[0].structure, "Conv3x3 8→8, Relu, Conv3x3 8→8, Add");
    assert_eq!(found[0].occurrences[1][0], "Conv_layer1.1.conv1");
}

#[test]
fn grouping_by_shape_joins_what_roles_keep_apart() {
    let options = GroupOptions { group_by: GroupBy::Shape, ..GroupOptions::default() };
    let found = find_groups(&Model::from_bytes(small_resnet(3)).unwrap(), &options).unwrap();
    let sizes: Vec<usize> = found.groups.iter().map(|g| g.members.len()).collect();
    assert_eq!(sizes, [1, 6, 1]);
}

#[test]
fn a_silu_is_no_fork() {
    let mut b = ModelBuilder::new(&[1, 4, 9, 9], 1);
    let mut x = b.conv("image", &ConvSpec::new(8, 1));
    for _ in 0..2 {
        let y = b.conv(&x, &ConvSpec::new(8, 3));
        let gate = b.unary("Sigmoid", &y);
        let name = format!("{y}_silu");
        b.node("Mul", &[&y, &gate], &name, vec![]);
        let y = {
            // The builder does not know the channels of a node it did not make.
            let same = b.unary("Identity", &y);
            b.graph.node.last_mut().unwrap().input[0] = name;
            b.conv(&same, &ConvSpec::new(8, 3))
        };
        x = b.add(&y, &x);
    }
    let found = grouping(b.build(&[&x]));
    let roles: Vec<(&str, usize)> = found.groups.iter().map(|g| (g.role.as_str(), g.members.len())).collect();
    assert_eq!(
        roles[1..],
        [("fork → ●3x3 → Mul(Sigmoid) → Conv3x3 → Add", 2), ("fork → Conv3x3 → Mul(Sigmoid) → ●3x3 → Add", 2)]
    );
}

#[test]
fn squeeze_and_excite_blocks_share_and_are_reported_whole() {
    let mut b = ModelBuilder::new(&[1, 8, 12, 12], 1);
    let mut x = b.conv("image", &ConvSpec::new(8, 1));
    for block in 0..3 {
        let y = b.conv(&x, &ConvSpec::new(8, 3));
        let y = b.relu(&y);
        let y = b.conv(&y, &ConvSpec::new(8, 3));
        let pooled = b.unary("GlobalAveragePool", &y);
        let gate = b.conv(&pooled, &ConvSpec::new(8, 1));
        let gate = b.unary("Sigmoid", &gate);
        let scaled = b.relu(&y);
        let mul = b.graph.node.last_mut().unwrap();
        mul.op_type = Some("Mul".into());
        mul.input = vec![y.clone(), gate];
        mul.name = Some(format!("scale_{block}"));
        x = b.add(&scaled, &x);
    }
    let found = grouping(b.build(&[&x]));
    let sizes: Vec<usize> = found.groups.iter().map(|g| g.members.len()).collect();
    assert_eq!(sizes, [1, 3, 3, 3]);
    assert_eq!(found.blocks.len(), 1);
    assert_eq!(found.blocks[0].occurrences.len(), 3);
    assert!(found.blocks[0].structure.ends_with("Mul, Add"), "{}", found.blocks[0].structure);
}

#[test]
fn stages_of_equal_width_are_told_apart_by_their_resolution() {
    let mut b = ModelBuilder::new(&[1, 8, 16, 16], 1);
    let mut x = "image".to_owned();
    for stride in [1, 1, 2, 1] {
        let y = b.conv(&x, &ConvSpec::new(8, 3).stride(stride));
        let y = b.relu(&y);
        let y = b.conv(&y, &ConvSpec::new(8, 3));
        let shortcut = if stride == 1 { x.clone() } else { b.max_pool(&x) };
        x = b.add(&y, &shortcut);
    }
    let sizes: Vec<usize> = grouping(b.build(&[&x])).groups.iter().map(|g| g.members.len()).collect();
    assert_eq!(sizes, [2, 2, 2, 2]);
}
