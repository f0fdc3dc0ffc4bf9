//! Every rule against central differences of tract's forward pass.

use super::Backward;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use crate::onnx::{Graph, Model, float_initializer};
use crate::runtime::{Runner, inputs};
use ndarray::ArrayD;
use rand::SeedableRng;
use rand_distr::{Distribution, Uniform};
use rand_pcg::Pcg64Mcg;
use std::collections::HashMap;

/// Half the distance of the two runs that are compared: less than any input's distance from a kink.
const STEP: f32 = 4e-3;
/// Differences of f32 runs, against the length that the cotangent's part along a random direction has.
const TOLERANCE: f32 = 1e-2;

/// A model whose input `x` is doubled to the wanted value `w`.
pub(crate) struct Net {
    graph: GraphProto,
    dims: Vec<usize>,
    opset: i64,
    rng: Pcg64Mcg,
}

impl Net {
    fn new(dims: &[usize]) -> Self {
        let dim = |&d: &usize| Dimension { value: Some(dimension::Value::DimValue(d as i64)), ..Dimension::default() };
        let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
        let value = type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(1), shape });
        let input = ValueInfoProto {
            name: Some("x".into()),
            r#type: Some(TypeProto { value: Some(value), ..TypeProto::default() }),
            ..ValueInfoProto::default()
        };
        let graph = GraphProto { name: Some("test".into()), input: vec![input], ..GraphProto::default() };
        let net = Self { graph, dims: dims.to_vec(), opset: 17, rng: Pcg64Mcg::seed_from_u64(3) };
        let count = dims.iter().product();
        net.floats("two", dims, &vec![2.0; count]).node("Mul", "x two", "w", &[])
    }

    /// The model `y = operator(w, constants)` with random constants of these shapes.
    pub(crate) fn of(dims: &[usize], operator: &str, constants: &[&[usize]], attributes: &[AttributeProto]) -> Self {
        let mut net = Self::new(dims);
        let mut reads = "w".to_owned();
        for (index, shape) in constants.iter().enumerate() {
            net = net.random(&format!("c{index}"), shape);
            reads += &format!(" c{index}");
        }
        net.node(operator, &reads, "y", attributes)
    }

    pub(crate) fn opset(self, opset: i64) -> Self {
        Self { opset, ..self }
    }

    pub(crate) fn floats(mut self, name: &str, dims: &[usize], values: &[f32]) -> Self {
        self.graph.initializer.push(float_initializer(name.into(), dims, values.iter().copied()));
        self
    }

    /// Numbers of either sign, none near zero.
    pub(crate) fn random(mut self, name: &str, dims: &[usize]) -> Self {
        let values: Vec<f32> = uniform(&mut self.rng, dims.iter().product());
        self.floats(name, dims, &values.iter().map(|v| v + v.signum() / 2.0).collect::<Vec<_>>())
    }

    pub(crate) fn positive(mut self, name: &str, dims: &[usize]) -> Self {
        let values: Vec<f32> = uniform(&mut self.rng, dims.iter().product());
        self.floats(name, dims, &values.iter().map(|v| v.abs() + 0.5).collect::<Vec<_>>())
    }

    pub(crate) fn integers(mut self, name: &str, values: &[i64]) -> Self {
        self.graph.initializer.push(TensorProto {
            name: Some(name.into()),
            dims: vec![values.len() as i64],
            data_type: Some(7),
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
        self
    }

    /// Names apart by spaces; `_` for an input that is left out.
    pub(crate) fn node(mut self, operator: &str, reads: &str, writes: &str, attributes: &[AttributeProto]) -> Self {
        let split = |text: &str| text.split(' ').map(|n| n.replace('_', "")).collect();
        self.graph.node.push(NodeProto {
            op_type: Some(operator.into()),
            name: Some(format!("{operator}-{writes}")),
            input: split(reads),
            output: split(writes),
            attribute: attributes.to_vec(),
            ..NodeProto::default()
        });
        self
    }

    pub(crate) fn model(&self, outputs: &str) -> Model {
        let mut graph = self.graph.clone();
        let named = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
        graph.output = outputs.split(' ').map(named).collect();
        Model::from_proto(ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset) }],
            graph: Some(graph),
            ..ModelProto::default()
        })
    }

    /// Asserts that the cotangent of `w` is what differences of the outputs say.
    fn check(&self) {
        self.check_outputs("y");
    }

    fn check_outputs(&self, outputs: &str) {
        let what = self.graph.node[1..].iter().map(|n| n.op_type()).collect::<Vec<_>>().join(" ");
        let model = self.model(outputs);
        let graph = Graph::new(&model).unwrap();
        let backward = Backward::new(&graph, &["w"]);
        let run = |model: &Model, x: &ArrayD<f32>| {
            let runner = Runner::load(model, &inputs(model, &[]).unwrap(), "the test's model").unwrap();
            runner.run(std::slice::from_ref(x)).unwrap()
        };
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        let x = off_the_kinks(&mut rng, &self.dims);
        let needed: Vec<&str> = backward.needed().iter().map(String::as_str).collect();
        let seen = if needed.is_empty() { Vec::new() } else { run(&model.stretch(&|_| None, &needed).unwrap(), &x) };
        let values: HashMap<String, ArrayD<f32>> = backward.needed().iter().cloned().zip(seen).collect();
        let cotangents: Vec<ArrayD<f32>> = run(&model, &x).iter().map(|y| random(&mut rng, y.shape())).collect();
        let given: Vec<_> = outputs.split(' ').map(str::to_owned).zip(cotangents.iter().cloned()).collect();
        let found = backward.cotangents(&values, &given);
        let found = found[0].as_ref().unwrap_or_else(|| panic!("{what}: no cotangent"));
        assert_eq!(found.shape(), &self.dims[..], "{what}");
        for _ in 0..2 {
            let direction = random(&mut rng, &self.dims);
            let side = |sign: f32| run(&model, &(&x + &(&direction * (sign * STEP))));
            let (above, below) = (side(1.0), side(-1.0));
            let slopes = above.iter().zip(&below).zip(&cotangents).map(|((a, b), v)| ((a - b) * v).sum());
            let expected = slopes.sum::<f32>() / (2.0 * STEP);
            let actual = 2.0 * (found * &direction).sum();
            let length = 2.0 * found.mapv(|f| f * f).sum().sqrt();
            assert!(length > 0.0 && (expected - actual).abs() <= TOLERANCE * length, "{what}: {expected} {actual}");
        }
        // The same of the trainable view, by a weight: the factor that `w` is `x` times.
        #[cfg(feature = "tune")]
        crate::tune::tests::check(&model, &x, &["two"], &what);
    }
}

fn uniform(rng: &mut Pcg64Mcg, count: usize) -> Vec<f32> {
    let all = Uniform::new(-1.0f32, 1.0).unwrap();
    (0..count).map(|_| all.sample(rng)).collect()
}

pub(crate) fn random(rng: &mut Pcg64Mcg, shape: &[usize]) -> ArrayD<f32> {
    ArrayD::from_shape_vec(shape, uniform(rng, shape.iter().product())).unwrap()
}

/// Odd multiples of 1/64 in random order, each once: doubled, they keep 1/32 from whole numbers and 1/16 from each other.
pub(crate) fn off_the_kinks(rng: &mut Pcg64Mcg, shape: &[usize]) -> ArrayD<f32> {
    let count: usize = shape.iter().product();
    let keys = uniform(rng, count);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    let value = |k: usize| (2 * k as i64 + 1 - (count as i64 / 2) * 2) as f32 / 64.0;
    ArrayD::from_shape_vec(shape, order.into_iter().map(value).collect()).unwrap()
}

pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let r#type = Some(AttributeType::Ints as i32);
    AttributeProto { name: Some(name.into()), r#type, ints: values.to_vec(), ..AttributeProto::default() }
}

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    let r#type = Some(AttributeType::Int as i32);
    AttributeProto { name: Some(name.into()), r#type, i: Some(value), ..AttributeProto::default() }
}

fn float(name: &str, value: f32) -> AttributeProto {
    let r#type = Some(AttributeType::Float as i32);
    AttributeProto { name: Some(name.into()), r#type, f: Some(value), ..AttributeProto::default() }
}

fn string(name: &str, value: &str) -> AttributeProto {
    let r#type = Some(AttributeType::String as i32);
    AttributeProto { name: Some(name.into()), r#type, s: Some(value.as_bytes().to_vec()), ..AttributeProto::default() }
}

const IMAGE: [usize; 4] = [1, 4, 5, 6];

#[test]
fn convolutions() {
    let conv = |kernel: &[usize], attributes: &[AttributeProto]| {
        Net::of(&IMAGE, "Conv", &[kernel, &kernel[..1]], attributes).check();
    };
    conv(&[3, 4, 3, 3], &[]);
    conv(&[3, 4, 1, 1], &[]);
    conv(&[3, 4, 1, 1], &[ints("strides", &[2, 2])]);
    conv(&[3, 4, 3, 2], &[ints("pads", &[1, 0, 2, 1]), ints("strides", &[2, 1]), ints("dilations", &[1, 2])]);
    conv(&[6, 2, 3, 3], &[int("group", 2), ints("pads", &[1; 4])]);
    conv(&[4, 1, 3, 3], &[int("group", 4), ints("pads", &[1; 4]), ints("strides", &[2, 2])]);
    for mode in ["SAME_UPPER", "SAME_LOWER", "VALID"] {
        conv(&[2, 4, 3, 2], &[string("auto_pad", mode), ints("strides", &[2, 2])]);
        conv(&[2, 4, 2, 3], &[string("auto_pad", mode)]);
    }
    // Padded by more than there is.
    conv(&[3, 4, 3, 3], &[ints("pads", &[9; 4]), ints("dilations", &[9, 9])]);
    let line = [ints("pads", &[1, 1]), ints("strides", &[2])];
    Net::of(&[1, 3, 9], "Conv", &[&[2, 3, 3], &[2]], &line).check();
}

#[test]
fn transposed_convolutions() {
    let conv = |kernel: &[usize], attributes: &[AttributeProto]| {
        Net::of(&IMAGE, "ConvTranspose", &[kernel], attributes).check();
    };
    conv(&[4, 3, 3, 3], &[]);
    conv(&[4, 3, 2, 2], &[ints("strides", &[2, 2])]);
    conv(&[4, 3, 3, 3], &[ints("strides", &[2, 2]), ints("pads", &[1; 4]), ints("output_padding", &[1, 1])]);
    conv(&[4, 3, 3, 2], &[int("group", 2), ints("pads", &[1, 0, 0, 1])]);
}

#[test]
fn elementwise_functions() {
    for operator in [
        "Relu",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "Sigmoid",
        "HardSwish",
        "Tanh",
        "Softplus",
        "Softsign",
        "Mish",
        "Erf",
        "Neg",
        "Abs",
        "Exp",
        "Identity",
        "Dropout",
    ] {
        Net::of(&[1, 2, 3, 4], operator, &[], &[]).opset(18).check();
    }
    Net::of(&IMAGE, "LeakyRelu", &[], &[float("alpha", 0.3)]).check();
    Net::of(&IMAGE, "Elu", &[], &[float("alpha", 0.3)]).check();
    Net::of(&IMAGE, "HardSigmoid", &[], &[float("alpha", 0.5), float("beta", 0.5)]).check();
    Net::of(&IMAGE, "Gelu", &[], &[]).opset(20).check();
    Net::of(&IMAGE, "Gelu", &[], &[string("approximate", "tanh")]).opset(20).check();
    Net::of(&IMAGE, "Cast", &[], &[int("to", 1)]).check();
    Net::of(&IMAGE, "PRelu", &[&[4, 1, 1]], &[]).check();
    for operator in ["Log", "Sqrt", "Reciprocal"] {
        Net::of(&IMAGE, "Sigmoid", &[], &[]).node(operator, "y", "z", &[]).check_outputs("z");
    }
}

#[test]
fn clips_of_old_and_new() {
    Net::of(&IMAGE, "Clip", &[], &[float("min", -1.0), float("max", 0.5)]).opset(6).check();
    let bounds = |net: Net| net.floats("low", &[], &[-1.0]).floats("high", &[], &[0.5]);
    bounds(Net::new(&IMAGE)).node("Clip", "w low high", "y", &[]).check();
    bounds(Net::new(&IMAGE)).node("Clip", "w _ high", "y", &[]).check();
    bounds(Net::new(&IMAGE)).node("Clip", "w low", "y", &[]).check();
}

#[test]
fn arithmetic_broadcasts_either_way() {
    for operator in ["Add", "Sub", "Mul", "Div"] {
        for shape in [&[][..], &[4, 1, 1], &[1, 4, 5, 6], &[6], &[2, 4, 5, 6]] {
            Net::of(&IMAGE, operator, &[shape], &[]).check();
            Net::new(&[1, 4, 1, 2]).positive("c", &[1, 4, 3, 2]).node(operator, "w c", "y", &[]).check();
            let away = Net::new(&[1, 4, 1, 2]).node("Exp", "w", "e", &[]).positive("c", &[1, 4, 3, 2]);
            away.node(operator, "c e", "y", &[]).check();
        }
        let both = Net::of(&IMAGE, "Sigmoid", &[], &[]).node(operator, "w y", "z", &[]);
        both.node(operator, "z z", "u", &[]).check_outputs("z");
    }
    Net::of(&IMAGE, "Sum", &[&[4, 1, 1]], &[]).check();
    Net::new(&IMAGE).node("Sum", "w w w", "y", &[]).check();
    Net::new(&IMAGE).node("Mul", "w w", "y", &[]).check();
    Net::new(&IMAGE).floats("e", &[], &[2.0]).node("Pow", "w e", "y", &[]).check();
    let roots = Net::of(&IMAGE, "Sigmoid", &[], &[]).floats("e", &[4, 1, 1], &[0.5, 1.0, 3.0, 2.5]);
    roots.node("Pow", "y e", "z", &[]).check_outputs("z");
    Net::new(&[1, 4, 1, 1]).integers("s", &[1, 4, 2, 3]).node("Expand", "w s", "y", &[]).check();
}

#[test]
fn normalizations() {
    let norm = Net::new(&IMAGE).random("gamma", &[4]).random("beta", &[4]).random("mean", &[4]);
    norm.positive("var", &[4]).node("BatchNormalization", "w gamma beta mean var", "y", &[]).check();
    let net = Net::of(&IMAGE, "InstanceNormalization", &[&[4], &[4]], &[float("epsilon", 1e-3)]);
    net.check();
    let attributes = [int("size", 3), float("alpha", 0.7), float("beta", 0.6), float("bias", 1.5)];
    Net::of(&IMAGE, "LRN", &[], &attributes).check();
    Net::of(&IMAGE, "LRN", &[], &[int("size", 2), float("alpha", 0.7)]).check();
    for operator in ["Softmax", "LogSoftmax"] {
        for axis in [1, -1, 2] {
            Net::of(&IMAGE, operator, &[], &[int("axis", axis)]).check();
        }
        Net::of(&IMAGE, operator, &[], &[int("axis", 2)]).opset(11).check();
        Net::of(&[1, 7], operator, &[], &[]).check();
        Net::of(&[1, 7], operator, &[], &[]).opset(9).check();
    }
}

#[test]
fn poolings() {
    for operator in ["MaxPool", "AveragePool"] {
        let pool = |attributes: &[AttributeProto]| Net::of(&IMAGE, operator, &[], attributes).check();
        let kernel = || ints("kernel_shape", &[3, 2]);
        pool(&[kernel()]);
        pool(&[kernel(), ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 0])]);
        pool(&[kernel(), ints("strides", &[2, 3]), int("ceil_mode", 1)]);
        pool(&[kernel(), ints("strides", &[2, 2]), string("auto_pad", "SAME_UPPER")]);
        Net::of(&[1, 2, 9], operator, &[], &[ints("kernel_shape", &[2]), ints("strides", &[2])]).check();
    }
    Net::of(&IMAGE, "MaxPool", &[], &[ints("kernel_shape", &[2, 2]), ints("dilations", &[2, 3])]).check();
    let counted = [ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4]), ints("strides", &[2, 2])];
    Net::of(&IMAGE, "AveragePool", &[], &[&counted[..], &[int("count_include_pad", 1)]].concat()).check();
    Net::of(&IMAGE, "GlobalAveragePool", &[], &[]).check();
    Net::of(&IMAGE, "GlobalMaxPool", &[], &[]).check();
    for operator in ["ReduceMean", "ReduceSum"] {
        let opset = if operator == "ReduceSum" { 11 } else { 17 };
        Net::of(&IMAGE, operator, &[], &[ints("axes", &[2, 3]), int("keepdims", 0)]).opset(opset).check();
        Net::of(&IMAGE, operator, &[], &[ints("axes", &[-3])]).opset(opset).check();
        Net::of(&IMAGE, operator, &[], &[]).opset(opset).check();
        let net = Net::new(&IMAGE).integers("axes", &[1, -1]).opset(18);
        net.node(operator, "w axes", "y", &[int("keepdims", 0)]).check();
    }
}

#[test]
fn matrix_products() {
    Net::of(&[1, 6], "Gemm", &[&[6, 3], &[3]], &[float("alpha", 0.5), float("beta", 3.0)]).check();
    Net::of(&[1, 6], "Gemm", &[&[3, 6]], &[int("transB", 1)]).check();
    Net::of(&[6, 2], "Gemm", &[&[3, 6], &[1, 3]], &[int("transB", 1), int("transA", 1)]).check();
    let second = |transposed: i64, dims: &[usize]| {
        let net = Net::new(dims).random("a", &[2, 3]);
        net.node("Gemm", "a w", "y", &[int("transB", transposed), float("alpha", 2.0)]).check();
    };
    second(0, &[3, 4]);
    second(1, &[4, 3]);
    Net::new(&[1, 4]).random("a", &[2, 3]).random("b", &[3, 4]).node("Gemm", "a b w", "y", &[]).check();
    let product = |dims: &[usize], other: &[usize]| {
        Net::of(dims, "MatMul", &[other], &[]).check();
    };
    product(&[1, 6], &[6, 3]);
    product(&[1, 5, 6], &[6, 3]);
    product(&[2, 1, 5, 6], &[3, 6, 2]);
    product(&[5, 6], &[3, 6, 2]);
    product(&[1, 6], &[6]);
    Net::new(&[1, 6, 2]).random("a", &[3, 6]).node("MatMul", "a w", "y", &[]).check();
    let attention = Net::new(&[1, 3, 5]).node("Transpose", "w", "t", &[ints("perm", &[0, 2, 1])]);
    attention.node("MatMul", "w t", "y", &[]).check();
}

#[test]
fn other_shapes() {
    Net::of(&IMAGE, "Flatten", &[], &[]).check();
    Net::new(&IMAGE).integers("s", &[0, 2, -1]).node("Reshape", "w s", "y", &[]).check();
    Net::of(&[1, 4, 1, 1], "Squeeze", &[], &[ints("axes", &[2, 3])]).opset(11).check();
    Net::new(&[1, 4, 1, 1]).integers("a", &[2, 3]).node("Squeeze", "w a", "y", &[]).check();
    Net::new(&[1, 4]).integers("a", &[2, 3]).node("Unsqueeze", "w a", "y", &[]).check();
    Net::of(&IMAGE, "Transpose", &[], &[]).check();
    Net::of(&IMAGE, "Transpose", &[], &[ints("perm", &[0, 2, 3, 1])]).check();
    // The shape is computed from the value itself.
    let flat = Net::new(&IMAGE).integers("i", &[0]).integers("rest", &[-1]).node("Shape", "w", "s", &[]);
    let flat = flat.node("Gather", "s i", "n", &[int("axis", 0)]);
    flat.node("Concat", "n rest", "t", &[int("axis", 0)]).node("Reshape", "w t", "y", &[]).check();
    for mode in ["DCR", "CRD"] {
        Net::of(&[1, 8, 2, 3], "DepthToSpace", &[], &[int("blocksize", 2), string("mode", mode)]).check();
    }
    Net::of(&[1, 3, 4, 6], "SpaceToDepth", &[], &[int("blocksize", 2)]).check();
}

#[test]
fn joins_and_parts() {
    let join = Net::of(&IMAGE, "Sigmoid", &[], &[]).random("c", &[1, 2, 5, 6]);
    join.node("Concat", "w c y w", "z", &[int("axis", -3)]).check_outputs("z");
    let halves = || Net::new(&IMAGE).node("Split", "w", "a b", &[int("axis", 1)]);
    halves().check_outputs("a b");
    halves().opset(11).check_outputs("b");
    let parts = Net::new(&IMAGE).node("Split", "w", "a b", &[int("axis", 3), ints("split", &[2, 4])]).opset(11);
    parts.node("Sigmoid", "b", "y", &[]).check();
    let parts = Net::new(&IMAGE).integers("s", &[1, 3]).node("Split", "w s", "a b", &[int("axis", -3)]);
    parts.node("Add", "a b", "y", &[]).check();
    let old = [ints("starts", &[1, -3]), ints("ends", &[9, -1]), ints("axes", &[2, 3])];
    Net::of(&IMAGE, "Slice", &[], &old).opset(9).check();
    let slice = |starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]| {
        let net = Net::new(&IMAGE).integers("from", starts).integers("to", ends);
        let net = net.integers("axes", axes).integers("steps", steps);
        net.node("Slice", "w from to axes steps", "y", &[]).check();
    };
    slice(&[1, 0], &[4, 6], &[1, -1], &[1, 2]);
    slice(&[-1], &[-99], &[2], &[-2]);
    let few = Net::new(&IMAGE).integers("from", &[0, 1]).integers("to", &[1, 3]);
    few.node("Slice", "w from to", "y", &[]).check();
    let pads = [0, 1, 2, 1, 0, 0, 1, 2];
    for mode in ["constant", "edge", "reflect"] {
        let pads = if mode == "constant" { pads } else { [0, 0, 2, 1, 0, 0, 1, 2] };
        Net::of(&IMAGE, "Pad", &[], &[ints("pads", &pads), string("mode", mode)]).opset(10).check();
        Net::new(&IMAGE).integers("p", &pads).node("Pad", "w p", "y", &[string("mode", mode)]).check();
    }
    let gather = |indices: &[i64]| {
        Net::new(&IMAGE).integers("i", indices).node("Gather", "w i", "y", &[int("axis", 1)]).check();
    };
    gather(&[3, 0, 0]);
    gather(&[-1]);
}

#[test]
fn upsamplings() {
    let old = |net: Net, opset| net.floats("s", &[4], &[1.0, 1.0, 2.0, 3.0]).opset(opset);
    let nearest = [string("mode", "nearest")];
    // At opset 10 tract rounds where others take the floor, which is the same at scale two.
    let twice = Net::new(&IMAGE).floats("s", &[4], &[1.0, 1.0, 2.0, 2.0]).opset(10);
    twice.node("Resize", "w s", "y", &nearest).check();
    for (mode, grid) in [
        ("nearest", "asymmetric"),
        ("nearest", "half_pixel"),
        ("linear", "half_pixel"),
        ("linear", "asymmetric"),
        ("linear", "align_corners"),
        ("linear", "pytorch_half_pixel"),
    ] {
        let how = [string("mode", mode), string("coordinate_transformation_mode", grid)];
        old(Net::new(&IMAGE), 13).node("Resize", "w _ s", "y", &how).check();
        let sized = Net::new(&IMAGE).integers("n", &[1, 4, 8, 9]);
        sized.node("Resize", "w _ _ n", "y", &how).check();
    }
    let floor = [string("mode", "nearest"), string("nearest_mode", "floor")];
    let floor = [&floor[..], &[string("coordinate_transformation_mode", "asymmetric")]].concat();
    old(Net::new(&IMAGE), 13).node("Resize", "w _ s", "y", &floor).check();
}

/// tract has no Upsample to compare with.
#[test]
fn upsample_is_the_old_resize() {
    let cotangent = |operator: &str| {
        let net = Net::new(&[1, 1, 2, 2]).floats("s", &[4], &[1.0, 1.0, 2.0, 3.0]).opset(10);
        let model = net.node(operator, "w s", "y", &[]).model("y");
        let graph = Graph::new(&model).unwrap();
        let backward = Backward::new(&graph, &["w"]);
        let values = HashMap::from([("w".to_owned(), ArrayD::zeros(&[1, 1, 2, 2][..]))]);
        let given = random(&mut Pcg64Mcg::seed_from_u64(1), &[1, 1, 4, 6]);
        backward.cotangents(&values, &[("y".to_owned(), given)]).remove(0).unwrap()
    };
    assert_eq!(cotangent("Upsample"), cotangent("Resize"));
}

/// Convolution, batch norm and a residual block into a classifier.
fn residual() -> Net {
    let same = ints("pads", &[1; 4]);
    let net = Net::new(&IMAGE).random("k1", &[4, 4, 3, 3]).random("k2", &[4, 4, 3, 3]).random("fc", &[4, 3]);
    let net = net.random("gamma", &[4]).random("beta", &[4]).random("mean", &[4]).positive("var", &[4]);
    let net = net.node("Conv", "w k1", "a", std::slice::from_ref(&same));
    let net = net.node("BatchNormalization", "a gamma beta mean var", "b", &[]).node("Tanh", "b", "c", &[]);
    let net = net.node("Conv", "c k2", "d", &[same]).node("Add", "d w", "e", &[]).node("Sigmoid", "e", "f", &[]);
    let net = net.node("GlobalAveragePool", "f", "g", &[]).node("Flatten", "g", "h", &[]);
    net.node("MatMul", "h fc", "y", &[])
}

#[test]
fn a_network_of_many_ways() {
    residual().check();
    residual().check_outputs("y w c");
}

#[test]
fn only_what_lies_between_is_read() {
    let model = residual().model("y");
    let graph = Graph::new(&model).unwrap();
    assert_eq!(Backward::new(&graph, &["d"]).needed(), ["d", "f", "g", "h"]);
    assert_eq!(Backward::new(&graph, &["c", "d"]).needed(), ["c", "d", "f", "g", "h"]);
}

#[test]
fn an_unknown_operator_blocks_what_it_hides() {
    let net = Net::of(&IMAGE, "Tanh", &[], &[]).node("Sigmoid", "y", "a", &[]).node("Floor", "y", "b", &[]);
    let net = net.node("Relu", "w", "c", &[]).node("Exp", "c", "d", &[]).node("Floor", "c", "unread", &[]);
    let found = |outputs: &str, wanted: &[&str]| -> Vec<bool> {
        let model = net.model(outputs);
        let graph = Graph::new(&model).unwrap();
        let backward = Backward::new(&graph, wanted);
        let one = ArrayD::from_elem(&IMAGE[..], 1.0);
        let values = backward.needed().iter().map(|n| (n.clone(), one.clone())).collect();
        let outputs: Vec<_> = outputs.split(' ').map(|o| (o.to_owned(), one.clone())).collect();
        backward.cotangents(&values, &outputs).iter().map(Option::is_some).collect()
    };
    assert_eq!(found("a d", &["w", "y", "c"]), [true, true, true]);
    assert_eq!(found("a b d", &["w", "y", "c", "a"]), [false, false, true, true]);
    assert_eq!(found("b", &["w", "y", "a", "c"]), [false, false, true, true]);
}

#[test]
fn a_value_that_reaches_no_output_has_no_effect() {
    let net = Net::of(&IMAGE, "Tanh", &[], &[]).node("Exp", "w", "z", &[]);
    let model = net.model("y");
    let graph = Graph::new(&model).unwrap();
    let backward = Backward::new(&graph, &["z"]);
    let values = HashMap::from([("z".to_owned(), ArrayD::from_elem(&IMAGE[..], 1.0))]);
    let given = [("y".to_owned(), ArrayD::from_elem(&IMAGE[..], 1.0))];
    assert_eq!(backward.cotangents(&values, &given), [Some(ArrayD::zeros(&IMAGE[..]))]);
}
