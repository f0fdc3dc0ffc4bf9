//! Every operator that computes a convolution: its factors are written as the operator itself and lose nothing that they need not.

#[path = "support/mod.rs"]
mod support;

use onnx_jmd::{Compilation, Model, Options, PlanOptions, RankPolicy, Scheme, SchemeChoice, Unfolding, compile};
use proptest::prelude::*;
use std::collections::HashMap;
use support::proto::{AttributeProto, ModelProto};
use support::scene::{Scene, npy};
use support::{ConvSpec, ModelBuilder, int, ints};

/// One layer: its operator, the dimensions of its input and of its weight as stored, and its attributes.
#[derive(Debug, Clone)]
struct Layer {
    operator: &'static str,
    input: Vec<i64>,
    weight: Vec<usize>,
    bias: Option<usize>,
    attributes: Vec<AttributeProto>,
    opset: i64,
}

impl Layer {
    fn new(operator: &'static str, input: &[i64], weight: &[usize], attributes: Vec<AttributeProto>) -> Self {
        let bias = match operator {
            "Conv" => Some(weight[0]),
            "ConvTranspose" => Some(weight[1]),
            _ => None,
        };
        Self { operator, input: input.to_vec(), weight: weight.to_vec(), bias, attributes, opset: 17 }
    }

    /// The layer alone; its weight is the sum of two outer products, so that every unfolding of it has rank two. No axis is
    /// symmetric.
    fn model(&self) -> Vec<u8> {
        let mut b = ModelBuilder::new(&self.input, 5);
        b.opset = self.opset;
        let count: usize = self.weight.iter().product();
        let value = |at: usize| -> f32 {
            let term = |t: usize| -> f32 {
                let mut rest = at;
                let each = self.weight.iter().rev().enumerate().map(|(axis, &size)| {
                    let place = rest % size;
                    rest /= size;
                    ((place * (3 + 2 * t) + axis * 5 + t) % 7) as f32 / 4.0 - 0.6
                });
                each.product()
            };
            term(0) + term(1)
        };
        let weight = b.store("w", &self.weight, (0..count).map(value).collect());
        let mut reads = vec!["image".to_owned(), weight];
        reads.extend(self.bias.map(|n| b.tensor("b", &[n], 0.5)));
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        b.node(self.operator, &reads, "y", self.attributes.clone());
        b.build(&["y"])
    }
}

fn layers() -> Vec<Layer> {
    let dense = |transposed: bool, opset: i64| {
        let dims = if transposed { [20, 24] } else { [24, 20] };
        let attributes = if transposed { vec![int("transB", 1)] } else { Vec::new() };
        Layer { bias: Some(20), opset, ..Layer::new("Gemm", &[1, 24], &dims, attributes) }
    };
    vec![
        Layer::new(
            "Conv",
            &[1, 10, 23],
            &[12, 10, 5],
            vec![ints("strides", &[2]), ints("dilations", &[2]), ints("pads", &[3, 1])],
        ),
        Layer::new(
            "Conv",
            &[1, 6, 7, 9, 8],
            &[8, 6, 3, 2, 3],
            vec![ints("strides", &[1, 2, 2]), ints("dilations", &[2, 1, 1]), ints("pads", &[1, 0, 2, 2, 1, 0])],
        ),
        Layer::new(
            "Conv",
            &[1, 24, 23],
            &[24, 12, 5],
            vec![int("group", 2), ints("strides", &[2]), ints("dilations", &[2]), ints("pads", &[3, 1])],
        ),
        Layer::new(
            "Conv",
            &[1, 30, 9, 11],
            &[24, 10, 3, 4],
            vec![int("group", 3), ints("strides", &[2, 1]), ints("dilations", &[1, 2]), ints("pads", &[1, 2, 0, 1])],
        ),
        Layer::new(
            "Conv",
            &[1, 12, 7, 9, 8],
            &[16, 6, 3, 2, 3],
            vec![int("group", 2), ints("strides", &[1, 2, 2]), ints("pads", &[1, 0, 2, 2, 1, 0])],
        ),
        Layer::new(
            "ConvTranspose",
            &[1, 10, 9],
            &[10, 8, 5],
            vec![ints("strides", &[3]), ints("pads", &[2, 1]), ints("output_padding", &[1])],
        ),
        Layer::new(
            "ConvTranspose",
            &[1, 10, 5, 6],
            &[10, 8, 3, 4],
            vec![
                ints("strides", &[2, 3]),
                ints("dilations", &[2, 1]),
                ints("pads", &[1, 2, 0, 1]),
                ints("output_padding", &[1, 0]),
            ],
        ),
        Layer::new("ConvTranspose", &[1, 10, 5, 6], &[10, 8, 1, 1], vec![ints("strides", &[2, 2])]),
        Layer::new(
            "ConvTranspose",
            &[1, 6, 3, 4, 5],
            &[6, 5, 2, 3, 2],
            vec![ints("strides", &[1, 2, 2]), ints("pads", &[0, 1, 0, 0, 1, 1])],
        ),
        dense(false, 17),
        dense(true, 17),
        dense(true, 9),
        Layer::new("MatMul", &[1, 5, 24], &[24, 20], Vec::new()),
    ]
}

fn compiled(model: &[u8], unfolding: Unfolding) -> Compilation {
    let plan = PlanOptions {
        scheme: SchemeChoice::Only(Scheme::Separate.on(unfolding)),
        policy: RankPolicy::Ratio(1.3),
        allow_more_macs: true,
        align: 1,
        ..PlanOptions::default()
    };
    let model = Model::from_bytes(model.to_vec()).unwrap();
    compile(&model, &Options { plan, ..Options::default() }, &|_| ()).unwrap()
}

fn operators(model: &Model) -> Vec<String> {
    let proto: ModelProto = prost::Message::decode(&model.to_bytes()[..]).unwrap();
    proto.graph.unwrap().node.into_iter().map(|n| n.op_type.unwrap_or_default()).collect()
}

#[test]
fn a_kernel_of_low_rank_comes_back_in_every_unfolding() {
    for layer in layers() {
        for unfolding in [Unfolding::SPATIAL, Unfolding::FILTER_BANK, Unfolding::POINTWISE_FIRST, Unfolding::TUCKER] {
            let compilation = compiled(&layer.model(), unfolding);
            let found = compilation.report.verification.unwrap();
            // The operator of the original tells a turned, transposed or shifted kernel by itself.
            assert!(found.approximation.relative_error < 1e-5, "{layer:?} {unfolding:?}: {found:?}");
            assert!(found.parts.is_none());
            let operators = operators(&compilation.model.unwrap());
            assert!(operators.len() > 1 && operators.iter().all(|o| o == layer.operator), "{operators:?}");
        }
    }
}

#[test]
fn a_bias_behind_a_product_is_kept_and_moved_with_the_mean() {
    let mut b = ModelBuilder::new(&[1, 6, 24], 9);
    let weight = b.tensor("w", &[24, 20], 0.3);
    let bias = b.tensor("b", &[20], 2.0);
    b.node("MatMul", &["image", &weight], "product", vec![]);
    b.node("Add", &[&bias, "product"], "sum", vec![]);
    b.node("Relu", &["sum"], "y", vec![]);
    let scene = Scene::new(&b.build(&["y"]));
    let values: Vec<u8> = (0..200 * 6 * 24).flat_map(|i| (((i * 37) % 101) as f32 / 50.0).to_le_bytes()).collect();
    std::fs::write(scene.path("x.npy"), npy("<f4", &[200, 6, 24], &values)).unwrap();
    scene.succeeds("in.onnx out.onnx --ratio 1.3 --calib x.npy --align 1 -q");
    let small = Model::open(scene.path("out.onnx")).unwrap();
    assert_eq!(operators(&small), ["MatMul", "MatMul", "Add", "Relu"]);
    let mean = |name: &str| {
        let text = scene.succeeds(&format!("verify in.onnx {name} --images x.npy --json -"));
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        found["approximation"]["relative_error"].as_f64().unwrap()
    };
    // Plain weights know nothing of these inputs, which are all positive.
    scene.succeeds("in.onnx plain.onnx --ratio 1.3 --calib none --align 1 -q");
    assert!(mean("out.onnx") < 0.5 * mean("plain.onnx"), "{} {}", mean("out.onnx"), mean("plain.onnx"));
}

#[test]
fn transposed_convolutions_share_a_factor_as_others_do() {
    let mut b = ModelBuilder::new(&[1, 8, 6, 6], 3);
    let mut value = "image".to_owned();
    for at in 0..3 {
        let weight = b.tensor(&format!("w{at}"), &[8, 8, 3, 3], 0.2);
        let up = b.node("ConvTranspose", &[&value, &weight], &format!("up{at}"), vec![ints("pads", &[1; 4])]);
        let active = b.node("Relu", &[&up], &format!("relu{at}"), vec![]);
        value = b.node("Add", &[&active, &value], &format!("add{at}"), vec![]);
    }
    let model = Model::from_bytes(b.build(&[&value])).unwrap();
    let plan = |unshare: bool| PlanOptions {
        scheme: SchemeChoice::Only(Scheme::LeftShared.into()),
        policy: RankPolicy::Ratio(1.5),
        align: 1,
        unshare,
        ..PlanOptions::default()
    };
    let run = |unshare| compile(&model, &Options { plan: plan(unshare), ..Options::default() }, &|_| ()).unwrap();
    let (shared, own) = (run(false), run(true));
    assert!(shared.report.groups.iter().any(|g| g.shared && g.members.len() > 1));
    // Both keep what was asked for; copies leave less for the ranks.
    for each in [&shared, &own] {
        assert!(each.report.totals.parameters.ratio >= 1.5);
        assert_eq!(each.model.as_ref().unwrap().parameters(), each.report.totals.parameters.after);
    }
    assert!(own.report.groups[0].ranks < shared.report.groups[0].ranks);
    let initializers = |c: &Compilation| {
        let proto: ModelProto = prost::Message::decode(&c.model.as_ref().unwrap().to_bytes()[..]).unwrap();
        proto.graph.unwrap().initializer.len()
    };
    assert_eq!((initializers(&shared), initializers(&own)), (4, 6));
}

#[test]
fn kernels_behind_what_rearranges_them_are_found_and_go_with_it() {
    let mut b = ModelBuilder::new(&[1, 12, 9, 9], 4);
    // As tf2onnx leaves them: height, width, in, out.
    let stored = b.tensor("hwio", &[3, 3, 12, 16], 0.1);
    let oihw = b.node("Transpose", &[&stored], "oihw", vec![ints("perm", &[3, 2, 0, 1])]);
    let axes = b.node("Identity", &[&oihw], "kernel", vec![]);
    b.node("Shape", &[&stored], "shape", vec![]);
    b.node("Conv", &["image", &axes], "y", vec![ints("pads", &[1; 4])]);
    let model = Model::from_bytes(b.build(&["y", "shape"])).unwrap();
    let plan = PlanOptions { policy: RankPolicy::Ratio(2.0), align: 1, ..PlanOptions::default() };
    let compilation = compile(&model, &Options { plan, ..Options::default() }, &|_| ()).unwrap();
    let small = compilation.model.unwrap();
    let operators = operators(&small);
    assert!(!operators.contains(&"Transpose".to_owned()) && !operators.contains(&"Shape".to_owned()), "{operators:?}");
    assert!(operators.contains(&"Constant".to_owned()), "the shape that is an output is kept: {operators:?}");
    assert!(compilation.report.totals.parameters.ratio > 1.8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_transposed_convolution_of_any_attributes_is_taken_apart_exactly(
        kernel in [1usize..4, 1usize..5], strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
        pads in [0usize..3, 0usize..3, 0usize..3, 0usize..3], extra in [0usize..2, 0usize..2],
    ) {
        let size = |axis: usize| 4 * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1;
        prop_assume!((0..2).all(|a| size(a) > pads[a] + pads[a + 2] && extra[a] < strides[a].max(dilations[a])));
        let attributes = vec![
            ints("strides", &strides), ints("dilations", &dilations), ints("pads", &pads), ints("output_padding", &extra),
        ];
        let layer = Layer::new("ConvTranspose", &[1, 14, 5, 5], &[14, 12, kernel[0], kernel[1]], attributes);
        let found = compiled(&layer.model(), Unfolding::SPATIAL).report.verification.unwrap();
        prop_assert!(found.approximation.relative_error < 1e-5, "{:?}", found);
    }
}

#[test]
fn a_kernel_that_several_read_becomes_one_chain_of_factors() {
    // One head on two levels of a pyramid, as detectors have them.
    let mut b = ModelBuilder::new(&[1, 16, 12, 12], 8);
    let shared = b.tensor("head", &[16, 16, 3, 3], 0.1);
    let bias = b.tensor("bias", &[16], 0.3);
    let down = b.node("MaxPool", &["image"], "down", vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]);
    for (value, output, stride) in [("image", "large", 2), (down.as_str(), "small", 1)] {
        b.node("Conv", &[value, &shared, &bias], output, vec![ints("pads", &[1; 4]), ints("strides", &[stride; 2])]);
    }
    let scene = Scene::new(&b.build(&["large", "small"]));
    let values: Vec<u8> = (0..40 * 16 * 144).flat_map(|i| (((i * 31) % 89) as f32 / 40.0).to_le_bytes()).collect();
    std::fs::write(scene.path("x.npy"), npy("<f4", &[40, 16, 12, 12], &values)).unwrap();
    for calibration in ["--calib none", "--calib x.npy"] {
        let text = scene.succeeds(&format!("in.onnx out.onnx --ratio 2 --align 1 {calibration}"));
        assert!(text.contains("Conv_large and Conv_small"), "{text}");
        let small = Model::open(scene.path("out.onnx")).unwrap();
        assert_eq!(operators(&small), ["MaxPool", "Conv", "Conv", "Conv", "Conv"]);
        assert!(small.parameters() <= (16 * 16 * 9 + 16) / 2);
    }
}

/// Two stages of bottlenecks whose 3×3 convolutions are grouped, as in ResNeXt, the second at half the size.
fn resnext(batch_norm: bool) -> Vec<u8> {
    let mut b = ModelBuilder::new(&[1, 16, 12, 12], 11);
    let mut value = b.relu("image");
    for (width, stride) in [(32, 1), (32, 1), (48, 2), (48, 1)] {
        let step = |b: &mut ModelBuilder, x: String| if batch_norm { b.batch_norm(&x) } else { x };
        let narrow = b.conv(&value, &ConvSpec::new(width, 1));
        let narrow = step(&mut b, narrow);
        let narrow = b.relu(&narrow);
        let grouped = b.grouped_conv(&narrow, 4, &ConvSpec::new(width, 3).stride(stride).no_bias());
        let grouped = step(&mut b, grouped);
        let grouped = b.relu(&grouped);
        let wide = b.conv(&grouped, &ConvSpec::new(width, 1));
        let shortcut = b.conv(&value, &ConvSpec::new(width, 1).stride(stride));
        let sum = b.add(&wide, &shortcut);
        value = b.relu(&sum);
    }
    b.build(&[&value])
}

/// Weights and multiply-accumulates of the convolutions of a model of square images, counted node by node.
fn counted(model: &Model, extent: usize) -> (u64, u64) {
    let proto: ModelProto = prost::Message::decode(&model.to_bytes()[..]).unwrap();
    let graph = proto.graph.unwrap();
    let mut extents: HashMap<&str, [usize; 2]> = HashMap::from([("image", [extent; 2])]);
    let (mut weights, mut macs) = (HashMap::new(), 0);
    for node in &graph.node {
        let mut size = extents[node.input[0].as_str()];
        if node.op_type() == "Conv" {
            let dims = &graph.initializer.iter().find(|t| t.name() == node.input[1]).unwrap().dims;
            let ints = |name: &str| node.attribute.iter().find(|a| a.name() == name).unwrap().ints.clone();
            let (pads, strides) = (ints("pads"), ints("strides"));
            for axis in 0..2 {
                let room = size[axis] as i64 + pads[axis] + pads[axis + 2] - dims[axis + 2];
                size[axis] = (room / strides[axis]) as usize + 1;
            }
            let count = dims.iter().product::<i64>() as u64;
            // One that several read is stored once.
            weights.insert(node.input[1].as_str(), count);
            macs += count * (size[0] * size[1]) as u64;
        }
        extents.insert(node.output[0].as_str(), size);
    }
    (weights.values().sum(), macs)
}

#[test]
fn grouped_convolutions_become_grouped_ones_of_one_rank() {
    for batch_norm in [false, true] {
        let model = Model::from_bytes(resnext(batch_norm)).unwrap();
        for scheme in [SchemeChoice::Auto, SchemeChoice::Only(Scheme::LeftShared.into())] {
            let plan = PlanOptions { scheme, policy: RankPolicy::Ratio(1.8), align: 1, ..PlanOptions::default() };
            let compilation = compile(&model, &Options { plan, ..Options::default() }, &|_| ()).unwrap();
            let (report, small) = (compilation.report, compilation.model.unwrap());
            let grouped: Vec<_> = report.groups.iter().filter(|g| !g.channel_groups.is_empty()).collect();
            assert!(!grouped.is_empty());
            for row in &grouped {
                // Nothing is shared: neither with another convolution nor between the groups of channels.
                assert_eq!((row.members.len(), row.shared, &row.channel_groups[..]), (1, false, &[4][..]));
                assert!(row.parameters_after < row.parameters_before && row.macs_after < row.macs_before);
            }
            let (before, after) = (counted(&model, 12), counted(&small, 12));
            let (weights, macs) = (report.totals.weights, report.totals.macs.unwrap());
            assert_eq!(((weights.before, macs.before), (weights.after, macs.after)), (before, after));
            assert_eq!(report.totals.parameters.after, small.parameters());
            let proto: ModelProto = prost::Message::decode(&small.to_bytes()[..]).unwrap();
            for node in proto.graph.unwrap().node.iter().filter(|n| n.name().contains("grouped")) {
                if node.op_type() == "Conv" {
                    let group = node.attribute.iter().find(|a| a.name() == "group").unwrap();
                    assert_eq!(group.i, Some(4), "{}", node.name());
                }
            }
        }
    }
}

#[test]
fn grouped_convolutions_are_fitted_to_what_each_group_sees() {
    let scene = Scene::new(&resnext(true));
    // Channels that differ in size and go together, so that plain weights are not what matters.
    let channel = |i: usize| 1.0 + (i / 144 % 16) as f32 / 4.0;
    let wave = |i: usize| ((i / 2304 * 7 + i % 144 * 3) % 29) as f32 / 14.0 - 1.0;
    let noise = |i: usize| ((i * 37) % 101) as f32 / 101.0;
    let values: Vec<u8> = (0..200 * 16 * 144).flat_map(|i| (channel(i) * wave(i) + noise(i)).to_le_bytes()).collect();
    std::fs::write(scene.path("x.npy"), npy("<f4", &[200, 16, 12, 12], &values)).unwrap();
    let error = |name: &str| {
        let text = scene.succeeds(&format!("verify in.onnx {name} --images x.npy --json -"));
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        found["approximation"]["relative_error"].as_f64().unwrap()
    };
    scene.succeeds("in.onnx plain.onnx --ratio 1.4 --include grouped --align 1 --calib none -q");
    scene.succeeds("in.onnx unrepaired.onnx --ratio 1.4 --include grouped --align 1 --calib x.npy --no-repair -q");
    scene.succeeds(
        "in.onnx out.onnx --ratio 1.4 --include grouped --align 1 --calib x.npy --cache kept --plan-out plan.toml -q",
    );
    let (plain, unrepaired, repaired) = (error("plain.onnx"), error("unrepaired.onnx"), error("out.onnx"));
    assert!(unrepaired < 0.8 * plain && repaired < unrepaired, "{plain} {unrepaired} {repaired}");
    // From what was kept, and as the plan says, the same bytes.
    let written = scene.read("out.onnx");
    scene.succeeds("in.onnx out.onnx --ratio 1.4 --include grouped --align 1 --calib x.npy --cache kept -q");
    assert!(scene.read("out.onnx") == written);
    scene.succeeds("in.onnx out.onnx --plan plan.toml --calib x.npy -q");
    assert!(scene.read("out.onnx") == written);
}

#[test]
fn a_plan_cannot_have_grouped_convolutions_share() {
    let scene = Scene::new(&resnext(false));
    scene.succeeds("in.onnx out.onnx --ratio 1.05 --include grouped_4$|grouped_12 --scheme ljsvd --align 1 --plan-out plan.toml -q");
    let plan = scene.text("plan.toml");
    assert!(plan.matches("[[group]]").count() == 2, "{plan}");
    let members: Vec<&str> = plan.lines().filter(|l| l.trim_start().starts_with("{ node")).collect();
    let first = plan.find("members = [").unwrap();
    let joined = plan[..first].replace("scheme = \"separate\"", "scheme = \"ljsvd\"");
    let joined = format!("{joined}members = [\n{}\n]\n", members.join("\n"));
    std::fs::write(scene.path("plan.toml"), joined).unwrap();
    let said = scene.fails("in.onnx out.onnx --plan plan.toml", 10);
    assert!(said.contains("is a grouped convolution, whose groups share nothing"), "{said}");
}

/// Stores a kernel of a name, dimensions and values, and gives the name to read.
type Store<'s> = dyn Fn(&mut ModelBuilder, &str, &[usize], Vec<f32>) -> String + 's;

/// Two convolutions behind each other, their kernels stored as `store` says.
fn stored(opset: i64, store: &Store<'_>) -> Vec<u8> {
    let mut b = ModelBuilder::new(&[1, 16, 10, 10], 4);
    b.opset = opset;
    let mut value = "image".to_owned();
    for (at, [out, inputs]) in [[32, 16], [24, 32]].into_iter().enumerate() {
        let (dims, rank) = ([out, inputs, 3, 3], 6);
        // Of low rank, and a little more: as trained kernels are.
        let wave = |at: usize| ((at * 7919 + 31) % 1013) as f32 / 506.5 - 1.0;
        let weight = (0..out * inputs * 9).map(|i| {
            let (o, rest) = (i / (inputs * 9), i % (inputs * 9));
            let low: f32 = (0..rank).map(|r| wave(o * 61 + r * 7 + at) * wave(rest * 13 + r * 101)).sum();
            (low + 0.1 * wave(i * 3)) * 0.05
        });
        let weight = weight.collect();
        let kernel = store(&mut b, &format!("w{at}"), &dims, weight);
        let bias = b.tensor(&format!("b{at}"), &[out], 0.1);
        let y = b.node("Conv", &[&value, &kernel, &bias], &format!("y{at}"), vec![ints("pads", &[1; 4])]);
        value = b.node("Relu", &[&y], &format!("relu{at}"), vec![]);
    }
    b.build(&[&value])
}

/// An initializer of a type with these bytes.
fn raw(b: &mut ModelBuilder, name: &str, dims: &[usize], data_type: i32, bytes: Vec<u8>) -> String {
    b.graph.initializer.push(support::proto::TensorProto {
        name: Some(name.into()),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(data_type),
        raw_data: Some(bytes.into()),
        ..Default::default()
    });
    name.into()
}

/// INT8 for each channel, or UINT8 with a zero point for all.
fn quantize(b: &mut ModelBuilder, name: &str, dims: &[usize], values: Vec<f32>, per_channel: bool) -> String {
    let each = values.len() / dims[0];
    let most = |values: &[f32]| values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let stored = format!("{name}_stored");
    let (inputs, attributes) = if per_channel {
        let scales: Vec<f32> = values.chunks(each).map(|c| most(c) / 127.0).collect();
        let bytes = values.iter().enumerate().map(|(i, x)| (x / scales[i / each]).round() as i8 as u8).collect();
        let stored = raw(b, &stored, dims, 3, bytes);
        (vec![stored, b.store(&format!("{name}_scale"), &[dims[0]], scales)], vec![int("axis", 0)])
    } else {
        let scale = most(&values) / 127.0;
        let bytes = values.iter().map(|x| ((x / scale).round() + 127.0) as u8).collect();
        let stored = raw(b, &stored, dims, 2, bytes);
        let scale = b.store(&format!("{name}_scale"), &[], vec![scale]);
        (vec![stored, scale, raw(b, &format!("{name}_zero"), &[], 2, vec![127])], Vec::new())
    };
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    b.node("DequantizeLinear", &inputs, name, attributes)
}

/// The bytes of tensors of a type in a file, and of all others.
fn bytes_by_type(model: &Model, data_type: i32) -> (usize, usize) {
    let proto: ModelProto = prost::Message::decode(&model.to_bytes()[..]).unwrap();
    let sizes = |of: bool| {
        let each = proto.graph.iter().flat_map(|g| &g.initializer).filter(|t| (t.data_type() == data_type) == of);
        each.filter_map(|t| t.raw_data.as_ref()).map(|raw| raw.len()).sum()
    };
    (sizes(true), sizes(false))
}

#[test]
fn quantized_kernels_become_quantized_factors() {
    for (opset, per_channel) in [(17, true), (13, false), (12, false)] {
        let bytes = stored(opset, &|b, name, dims, values| quantize(b, name, dims, values, per_channel));
        let plain = stored(opset, &|b, name, dims, values| b.store(name, dims, values));
        let run = |bytes: &[u8], scheme: SchemeChoice| {
            let plan = PlanOptions { scheme, policy: RankPolicy::Ratio(2.0), align: 1, ..PlanOptions::default() };
            let model = Model::from_bytes(bytes.to_vec()).unwrap();
            let found = compile(&model, &Options { plan, ..Options::default() }, &|_| ()).unwrap();
            (model, found)
        };
        for scheme in [SchemeChoice::Auto, SchemeChoice::Only(Scheme::Separate.on(Unfolding::TUCKER))] {
            let ((model, found), (_, float)) = (run(&bytes, scheme), run(&plain, scheme));
            let small = found.model.unwrap();
            let report = found.report;
            // Elements are counted whatever their type, and so are the factors' scales.
            assert_eq!(report.totals.parameters.before, model.parameters());
            assert!(model.parameters() > 32 * 16 * 9 + 24 * 32 * 9);
            assert_eq!(report.totals.parameters.after, small.parameters());
            assert!(report.totals.parameters.ratio >= 2.0, "{:?}", report.totals.parameters);
            // What was in one byte stays in one.
            let before = bytes_by_type(&model, if per_channel { 3 } else { 2 }).0;
            let (integers, rest) = bytes_by_type(&small, 3);
            // Two zero points stand beside the kernels.
            assert_eq!(before, 32 * 16 * 9 + 24 * 32 * 9 + if per_channel { 0 } else { 2 });
            assert!(integers * 2 <= before + 400 && rest < 4 * 300, "{integers} {rest}");
            assert!(report.totals.file_bytes.unwrap().ratio > 1.2, "{:?}", report.totals.file_bytes);
            // Rounding adds about a hundredth, of one scale a tensor some; what is told is that of the factors as they are read.
            let (error, unrounded) =
                (report.groups[0].reconstruction_error, float.report.groups[0].reconstruction_error);
            assert!(
                error.unwrap() < unrounded.unwrap() + if opset < 13 { 0.05 } else { 0.02 },
                "{error:?} {unrounded:?}"
            );
            let found = report.verification.unwrap();
            assert!(found.rewrite_error < 1e-5 && found.parts.is_none(), "{found:?}");
            assert!(report.notes.iter().any(|n| n.contains("INT8 Conv_y0, Conv_y1")), "{:?}", report.notes);
            let operators = operators(&small);
            let count = |name: &str| operators.iter().filter(|o| *o == name).count();
            assert_eq!(count("DequantizeLinear"), count("Conv"), "{operators:?}");
        }
    }
}

#[test]
fn biases_behind_a_dequantization_are_moved_and_calibrated_factors_stay_quantized() {
    let scene = Scene::new(&stored(17, &|b, name, dims, values| quantize(b, name, dims, values, true)));
    let values: Vec<u8> = (0..60 * 16 * 100).flat_map(|i| (((i * 31) % 89) as f32 / 40.0).to_le_bytes()).collect();
    std::fs::write(scene.path("x.npy"), npy("<f4", &[60, 16, 10, 10], &values)).unwrap();
    let error = |name: &str| {
        let text = scene.succeeds(&format!("verify in.onnx {name} --images x.npy --json -"));
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        found["approximation"]["relative_error"].as_f64().unwrap()
    };
    scene.succeeds("in.onnx plain.onnx --ratio 2.5 --align 1 --calib none -q");
    scene.succeeds("in.onnx out.onnx --ratio 2.5 --align 1 --calib x.npy -q");
    assert!(error("out.onnx") < 0.8 * error("plain.onnx"), "{} {}", error("out.onnx"), error("plain.onnx"));
    let small = Model::open(scene.path("out.onnx")).unwrap();
    let (integers, rest) = bytes_by_type(&small, 3);
    assert!(integers > 2000 && rest < 4 * 300, "{integers} {rest}");
    // A factor is not decomposed again.
    assert_eq!(scene.run("out.onnx again.onnx --ratio 1.2").status.code(), Some(4));
}

#[test]
fn kernels_stored_narrower_than_they_are_read_become_factors_stored_alike() {
    for data_type in [10, 16] {
        let half = |x: f32| match data_type {
            10 => half::f16::from_f32(x).to_le_bytes(),
            _ => half::bf16::from_f32(x).to_le_bytes(),
        };
        let bytes = stored(17, &|b, name, dims, values| {
            let bytes = values.into_iter().flat_map(half).collect();
            let stored = raw(b, &format!("{name}_stored"), dims, data_type, bytes);
            b.node("Cast", &[&stored], name, vec![int("to", 1)])
        });
        let model = Model::from_bytes(bytes).unwrap();
        let plan = PlanOptions { policy: RankPolicy::Ratio(2.0), align: 1, ..PlanOptions::default() };
        let found = compile(&model, &Options { plan, ..Options::default() }, &|_| ()).unwrap();
        let (small, report) = (found.model.unwrap(), found.report);
        let ((before, _), (after, rest)) = (bytes_by_type(&model, data_type), bytes_by_type(&small, data_type));
        assert!(after * 19 < before * 10 && rest <= 4 * (32 + 24), "{before} {after} {rest}");
        assert_eq!(report.totals.parameters.after, small.parameters());
        assert_eq!(report.totals.weights.after + 32 + 24, small.parameters());
        // tract knows no bfloat16, but a copy in float32 is the same.
        assert!(report.verification.is_some_and(|found| found.rewrite_error < 1e-5 && found.parts.is_none()));
        let rounded = report.groups.iter().map(|g| g.reconstruction_error.unwrap() - g.predicted_error);
        assert!(rounded.fold(0.0, f64::max) < 0.01);
        let operators = operators(&small);
        assert!(operators.iter().filter(|o| *o == "Cast").count() >= 4, "{operators:?}");
    }
}
