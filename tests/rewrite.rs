//! The rewritten graph computes what was decided, at any rank, for any convolution that is not skipped.

mod support;

use onnx_jmd::{
    Gates, GroupOptions, Model, Options, Plan, PlanOptions, RankPolicy, Scheme, VerifyOptions, apply, compile,
    find_groups,
};
use proptest::prelude::*;
use prost::Message;
use std::collections::HashMap;
use support::{ConvSpec, ModelBuilder, ResNet, Storage, decode, small_resnet};

const SCHEMES: [Scheme; 5] = [
    Scheme::Separate,
    Scheme::LeftShared,
    Scheme::RightSharedWithFirst,
    Scheme::RightShared,
    Scheme::BothShared { split: 0.5 },
];

fn options(scheme: Scheme, policy: RankPolicy) -> Options {
    let plan = PlanOptions {
        scheme: scheme.into(),
        policy,
        iterations: 3,
        allow_more_macs: true,
        align: 1,
        ..PlanOptions::default()
    };
    Options { plan, verify: Some(VerifyOptions { inputs: 2, ..VerifyOptions::default() }), ..Options::default() }
}

/// Three residual blocks with drawn convolutions, of which the first has fewer input channels.
#[derive(Debug, Clone)]
struct Problem {
    spec: ConvSpec,
    channels: usize,
    first_channels: usize,
    batch_norm: bool,
    storage: Storage,
    ir_version: i64,
    seed: u64,
}

impl Problem {
    fn build(&self) -> Vec<u8> {
        let mut b = ModelBuilder::new(&[0, self.first_channels as i64, 13, 11], self.seed);
        b.storage = self.storage;
        b.ir_version = self.ir_version;
        let mut x = "image".to_owned();
        for _ in 0..3 {
            let mut branches = Vec::new();
            for _ in 0..2 {
                let spec = ConvSpec { out: self.channels, ..self.spec.clone() };
                let mut y = b.conv(&x, &spec);
                if self.batch_norm {
                    y = b.batch_norm(&y);
                }
                branches.push(b.relu(&y));
            }
            x = b.add(&branches[0], &branches[1]);
        }
        b.build(&[&x])
    }
}

fn problem() -> impl Strategy<Value = Problem> {
    let conv = (1..5usize, 1..5usize, 1..3usize, 1..3usize, 1..3usize, prop::array::uniform4(0..3usize), any::<bool>());
    let auto_pad = prop::option::weighted(0.3, prop::sample::select(vec!["SAME_UPPER", "SAME_LOWER", "VALID"]));
    let storage = prop::sample::select(vec![Storage::Raw, Storage::Typed, Storage::ConstantNode]);
    let model = (5..8usize, 2..5usize, any::<bool>(), storage, prop::sample::select(vec![3i64, 8]), any::<u64>());
    (conv, auto_pad, model).prop_map(|((kh, kw, sh, sw, d, pads, bias), auto_pad, model)| {
        let (channels, first_channels, batch_norm, storage, ir_version, seed) = model;
        // Enough padding that three convolutions in a row leave something.
        let pads = pads.map(|p| p + kh.max(kw) * d / 2);
        let spec = ConvSpec { out: 0, kernel: [kh, kw], strides: [sh, sw], dilations: [d, d], pads, bias, auto_pad };
        Problem { spec, channels, first_channels, batch_norm, storage, ir_version, seed }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_rewrite_error_is_rounding_for_every_convolution_and_rank(problem in problem(), rate in 0.05..0.6f64) {
        // tract does not run what other runtimes do with dilated SAME padding alike; its own answer is the reference here.
        let model = Model::from_bytes(problem.build()).unwrap();
        for scheme in SCHEMES {
            let done = compile(&model, &options(scheme, RankPolicy::Rate(rate)), &|_| ()).map_err(|e| e.to_string());
            prop_assert!(done.is_ok(), "{scheme}: {done:?}");
            // Tiny kernels may not be worth any rank; everything else was verified, or there would be an error.
            let done = done.unwrap();
            prop_assert!(done.unchanged.is_some() || done.report.verification.is_some());
        }
    }
}

#[test]
fn a_shared_factor_is_stored_once_and_read_by_every_member() {
    let model = Model::from_bytes(small_resnet(4)).unwrap();
    for (scheme, shared) in [(Scheme::LeftShared, 2), (Scheme::BothShared { split: 0.5 }, 4)] {
        let done = compile(&model, &options(scheme, RankPolicy::Rate(0.3)), &|_| ()).unwrap();
        let written = decode(&done.model.unwrap().to_bytes()).graph.unwrap();
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for input in written.node.iter().flat_map(|n| &n.input).filter(|i| i.contains("jmd_shared")) {
            *uses.entry(input).or_default() += 1;
        }
        assert_eq!(uses.len(), shared, "{uses:?}");
        assert!(uses.values().all(|&n| n == 4), "{uses:?}");
    }
}

#[test]
fn parameters_counted_are_parameters_written() {
    let model = Model::from_bytes(ResNet { width: 8, cifar: true, batch_norm: true, ..ResNet::R18 }.build()).unwrap();
    for scheme in SCHEMES {
        let grouping = find_groups(&model, &GroupOptions::default()).unwrap();
        let plan = PlanOptions { scheme: scheme.into(), policy: RankPolicy::Ratio(3.0), ..PlanOptions::default() };
        let plan = Plan::build(&model, &grouping, &plan).unwrap();
        let compiled = apply(&model, &plan).unwrap();
        assert_eq!(plan.parameters_after, compiled.model.parameters(), "{scheme}");
        let stored: usize =
            decode(&compiled.model.to_bytes()).graph.unwrap().initializer.iter().map(|t| t.raw_data().len() / 4).sum();
        assert_eq!(stored as u64, compiled.model.parameters(), "{scheme}");
    }
}

#[test]
fn a_kernel_that_a_node_without_use_reads_too_goes_all_the_same() {
    for storage in [Storage::Raw, Storage::Typed, Storage::ConstantNode] {
        let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
        b.storage = storage;
        let y = b.named_conv("image", "y", &ConvSpec::new(8, 3));
        let copy = b.graph.node.last().unwrap().clone();
        let mut model = b.build_proto(&[&y]);
        // Of what it writes no output follows, and its reader stands before it.
        let nodes = &mut model.graph.as_mut().unwrap().node;
        nodes.push(support::proto::NodeProto { output: vec!["idle".into()], ..copy.clone() });
        nodes.insert(0, support::proto::NodeProto { input: vec!["idle".into()], output: vec!["too".into()], ..copy });
        let model = Model::from_bytes(model.encode_to_vec()).unwrap();
        let done = compile(&model, &options(Scheme::Separate, RankPolicy::Rate(0.3)), &|_| ()).unwrap();
        let written = done.model.unwrap();
        let graph = decode(&written.to_bytes()).graph.unwrap();
        assert_eq!(graph.node.iter().filter(|n| n.op_type() == "Conv").count(), 2, "{storage:?}");
        assert_eq!(written.parameters(), done.report.totals.parameters.after, "{storage:?}");
    }
}

#[test]
fn what_is_left_alone_is_untouched() {
    let model = Model::from_bytes(small_resnet(3)).unwrap();
    let mut options = options(Scheme::LeftShared, RankPolicy::Rate(0.3));
    options.groups.include = Some(regex::Regex::new("conv1$").unwrap());
    let done = compile(&model, &options, &|_| ()).unwrap();
    let (before, after) =
        (decode(&model.to_bytes()).graph.unwrap(), decode(&done.model.unwrap().to_bytes()).graph.unwrap());
    for node in before.node.iter().filter(|n| !n.name().ends_with("conv1")) {
        assert!(after.node.contains(node), "{}", node.name());
    }
    for tensor in before.initializer.iter().filter(|t| !t.name().ends_with("conv1.weight")) {
        assert!(after.initializer.contains(tensor), "{}", tensor.name());
    }
    assert!(after.initializer.iter().all(|t| !t.name().ends_with("conv1.weight")));
    assert_eq!(before.output, after.output);
}

#[test]
fn a_batch_norm_is_folded_only_when_nothing_else_reads_between() {
    let build = |extra_reader: bool| {
        let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
        let mut x = "image".to_owned();
        let mut between = String::new();
        for _ in 0..2 {
            let y = b.conv(&x, &ConvSpec::new(8, 3));
            let n = b.batch_norm(&y);
            between = y;
            x = b.add(&n, &x);
        }
        let outputs: Vec<&str> = if extra_reader { vec![&x, &between] } else { vec![&x] };
        b.build(&outputs)
    };
    let batch_norms = |bytes: Vec<u8>, keep: bool| {
        let mut options = options(Scheme::LeftShared, RankPolicy::Rate(0.4));
        options.groups.keep_batch_norm = keep;
        let done = compile(&Model::from_bytes(bytes).unwrap(), &options, &|_| ()).unwrap();
        let graph = decode(&done.model.unwrap().to_bytes()).graph.unwrap();
        graph.node.iter().filter(|n| n.op_type() == "BatchNormalization").count()
    };
    assert_eq!(batch_norms(build(false), false), 0);
    assert_eq!(batch_norms(build(true), false), 1);
    assert_eq!(batch_norms(build(false), true), 2);
}

#[test]
fn a_folded_batch_norm_computes_what_it_did() {
    // Kernels that are of rank one already lose nothing, so that what is left is the folding, channels of scale zero included.
    let mut b = ResNet { blocks: [3, 0, 0, 0], cifar: true, width: 8, batch_norm: true, ..ResNet::R18 }.builder();
    for tensor in b.graph.initializer.iter_mut().filter(|t| t.dims.len() == 4) {
        let [out, inputs, kh, kw] = <[i64; 4]>::try_from(tensor.dims.clone()).unwrap();
        let value = |n: i64| ((n * 37 % 11) as f32 - 5.0) / 9.0;
        let at = |o: i64, i: i64, y: i64, x: i64| value(3 * i + y) * value(1 + 5 * o + x);
        let all = (0..out)
            .flat_map(|o| (0..inputs).flat_map(move |i| (0..kh).flat_map(move |y| (0..kw).map(move |x| (o, i, y, x)))));
        let raw: Vec<u8> = all.flat_map(|(o, i, y, x)| at(o, i, y, x).to_le_bytes()).collect();
        tensor.raw_data = Some(raw.into());
    }
    let gamma = b.graph.initializer.iter_mut().find(|t| t.name().ends_with("bn_5.weight")).unwrap();
    let mut raw = gamma.raw_data.take().unwrap().to_vec();
    raw[4..8].copy_from_slice(&0f32.to_le_bytes());
    raw[8..12].copy_from_slice(&1e-30f32.to_le_bytes());
    gamma.raw_data = Some(raw.into());
    let model = Model::from_bytes(b.build(&["scores"])).unwrap();
    let small = compile(&model, &options(Scheme::Separate, RankPolicy::Rate(0.2)), &|_| ()).unwrap();
    assert!(small.report.groups.len() >= 6);
    let error = small.report.verification.unwrap().approximation.relative_error;
    assert!(error < 1e-5, "{error}");
    for scheme in SCHEMES {
        compile(&model, &options(scheme, RankPolicy::Rate(0.3)), &|_| ()).unwrap();
    }
}

/// What is found of a model whose compressed form was damaged.
fn found_of_damaged(
    model: &support::proto::ModelProto,
    damage: impl Fn(&mut support::proto::GraphProto),
) -> onnx_jmd::Result<onnx_jmd::Verification> {
    let model = Model::from_bytes(model.encode_to_vec()).unwrap();
    let grouping = find_groups(&model, &GroupOptions::default()).unwrap();
    let plan =
        PlanOptions { scheme: Scheme::LeftShared.into(), policy: RankPolicy::Rate(0.3), ..PlanOptions::default() };
    let plan = Plan::build(&model, &grouping, &plan).unwrap();
    let mut compiled = apply(&model, &plan).unwrap();
    let mut written = decode(&compiled.model.to_bytes());
    damage(written.graph.as_mut().unwrap());
    compiled.model = Model::from_bytes(written.encode_to_vec()).unwrap();
    onnx_jmd::verify(&model, &plan, &compiled, &VerifyOptions::default())
}

#[test]
fn a_written_model_that_computes_something_else_is_caught() {
    let moved_pads = |graph: &mut support::proto::GraphProto| {
        let attributes = graph.node.iter_mut().flat_map(|n| &mut n.attribute);
        let pads = attributes.map(|a| &mut a.ints).find(|ints| **ints == [1, 0, 1, 0]);
        *pads.unwrap() = vec![2, 0, 0, 0];
    };
    let turned_weight = |graph: &mut support::proto::GraphProto| {
        let weights = graph.initializer.iter_mut().find(|t| t.name().contains("jmd_")).unwrap();
        let mut raw = weights.raw_data.take().unwrap().to_vec();
        raw[3] ^= 0x80;
        weights.raw_data = Some(raw.into());
    };
    let other_edge = |graph: &mut support::proto::GraphProto| {
        let add = graph.node.iter_mut().find(|n| n.op_type() == "Add").unwrap();
        add.input[1] = add.input[0].clone();
    };
    let plain = decode(&small_resnet(3));
    // What rounds before all convolutions or beside them excuses nothing, and what does behind them nothing that is before it.
    let mut rounded = plain.clone();
    let graph = rounded.graph.as_mut().unwrap();
    let node = |op: &str, reads: &str, writes: &str| support::proto::NodeProto {
        op_type: Some(op.into()),
        input: vec![reads.into()],
        output: vec![writes.into()],
        ..Default::default()
    };
    graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| *i == "image").for_each(|i| *i = "whole".into());
    graph.node.push(node("Round", "image", "whole"));
    let mut stepped = rounded.clone();
    let graph = stepped.graph.as_mut().unwrap();
    let mut many = node("Mul", "scores", "many");
    many.input.push("thousand".into());
    graph.node.extend([many, node("Floor", "many", "steps")]);
    graph.initializer.push(support::proto::TensorProto {
        name: Some("thousand".into()),
        data_type: Some(1),
        float_data: vec![1e3],
        ..Default::default()
    });
    graph.output[0].name = Some("steps".into());
    for model in [plain, rounded, stepped] {
        assert!(found_of_damaged(&model, |_| ()).is_ok());
        let all: [&dyn Fn(&mut support::proto::GraphProto); 3] = [&moved_pads, &turned_weight, &other_edge];
        for damage in all {
            let found = found_of_damaged(&model, damage);
            assert!(matches!(found, Err(onnx_jmd::Error::RewriteWrong { .. })), "{found:?}");
        }
    }
}

#[test]
fn a_model_that_rounds_is_judged_convolution_by_convolution() {
    let proto = support::stepping();
    let run = |proto: &support::proto::ModelProto| {
        let model = Model::from_bytes(proto.encode_to_vec()).unwrap();
        // The models are run as a whole, and bounds held against that.
        let gates = Gates { min_snr: Some(1.0), ..Gates::default() };
        let options = Options { gates, ..options(Scheme::Separate, RankPolicy::Rate(0.2)) };
        compile(&model, &options, &|_| ()).unwrap()
    };
    let found = run(&proto).report.verification.unwrap();
    let parts = found.parts.as_ref().expect("steps are larger than the tolerance");
    assert!(parts.checked == 1 && parts.reason.contains("Floor"), "{parts:?}");
    assert!(parts.whole_difference.unwrap() > 1e-3);
    assert!(found.rewrite_error < 1e-5 && found.approximation.relative_error > 1e-3, "{found:?}");
    // As it is before it is rounded it is judged as a whole.
    let mut plain = proto;
    plain.graph.as_mut().unwrap().output[0].name = Some("y".into());
    let found = run(&plain).report.verification.unwrap();
    assert!(found.parts.is_none() && found.rewrite_error < 1e-5, "{found:?}");
}

#[test]
fn outputs_that_are_no_numbers_in_both_models_agree() {
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 3);
    let mut x = "image".to_owned();
    for _ in 0..2 {
        let y = b.conv(&x, &ConvSpec::new(8, 3));
        x = b.add(&y, &x);
    }
    let clipped = b.relu(&x);
    let y = b.unary("Log", &clipped);
    let model = Model::from_bytes(b.build(&[&y])).unwrap();
    // Where the original is −∞ and the small model is not, that is approximation and no rewrite error.
    compile(&model, &options(Scheme::LeftShared, RankPolicy::Rate(0.4)), &|_| ()).unwrap();
}

#[test]
fn compressing_twice_leaves_our_factors_alone() {
    let model = Model::from_bytes(small_resnet(3)).unwrap();
    let mut options = options(Scheme::LeftShared, RankPolicy::Rate(0.3));
    let once = compile(&model, &options, &|_| ()).unwrap().model.unwrap();
    options.plan.policy = RankPolicy::Ratio(1.01);
    // The classifier, which a rate leaves whole, could still be decomposed.
    options.groups.exclude = Some(regex::Regex::new("MatMul").unwrap());
    let again = compile(&Model::from_bytes(once.to_bytes()).unwrap(), &options, &|_| ()).unwrap();
    assert!(again.unchanged.is_some());
    assert_eq!(again.model.unwrap().to_bytes(), once.to_bytes());
}

#[test]
fn a_plan_for_another_model_is_refused() {
    let model = Model::from_bytes(small_resnet(3)).unwrap();
    let grouping = find_groups(&model, &GroupOptions::default()).unwrap();
    let plan = Plan::build(&model, &grouping, &PlanOptions::default()).unwrap();
    let other = Model::from_bytes(ModelBuilder::new(&[1, 3, 8, 8], 1).build(&["image"])).unwrap();
    assert!(matches!(apply(&other, &plan), Err(onnx_jmd::Error::Options(_))));
}

#[test]
fn names_that_the_model_already_uses_are_not_taken() {
    let mut b = ResNet { blocks: [2, 0, 0, 0], cifar: true, width: 8, ..ResNet::R18 }.builder();
    let taken = "Conv_layer1.0.conv1/jmd_first".to_owned();
    b.graph.node.iter_mut().find(|n| n.op_type() == "Flatten").unwrap().name = Some(taken.clone());
    let model = Model::from_bytes(b.build(&["scores"])).unwrap();
    let done = compile(&model, &options(Scheme::Separate, RankPolicy::Rate(0.3)), &|_| ()).unwrap();
    let graph = decode(&done.model.unwrap().to_bytes()).graph.unwrap();
    let mut names: Vec<&str> = graph.node.iter().map(|n| n.name()).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
