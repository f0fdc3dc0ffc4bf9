//! Models made in a few lines: no files, seeded weights.
#![allow(dead_code, reason = "every test file uses its own part of this")]

#[allow(clippy::all, missing_docs, reason = "generated")]
pub mod proto {
    include!("../../proto/onnx.rs");
}

pub mod choose;
pub mod mutate;
pub mod scene;

use bytes::Bytes;
use prost::Message;
use proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Raw,
    Typed,
    ConstantNode,
}

/// A convolution to add; everything but the output channels and the kernel has ONNX's default.
#[derive(Debug, Clone)]
pub struct ConvSpec {
    pub out: usize,
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    pub pads: [usize; 4],
    pub bias: bool,
    pub auto_pad: Option<&'static str>,
}

impl ConvSpec {
    pub fn new(out: usize, kernel: usize) -> Self {
        let half = kernel / 2;
        Self {
            out,
            kernel: [kernel; 2],
            strides: [1; 2],
            dilations: [1; 2],
            pads: [half; 4],
            bias: true,
            auto_pad: None,
        }
    }

    pub fn stride(self, s: usize) -> Self {
        Self { strides: [s; 2], ..self }
    }

    pub fn no_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

pub struct ModelBuilder {
    pub graph: GraphProto,
    pub ir_version: i64,
    pub opset: i64,
    pub storage: Storage,
    channels: std::collections::HashMap<String, usize>,
    rng: Pcg64Mcg,
    count: usize,
}

impl ModelBuilder {
    /// A model with one float input of these dimensions, 0 for the symbol `batch`.
    pub fn new(dims: &[i64], seed: u64) -> Self {
        let mut channels = std::collections::HashMap::new();
        channels.insert("image".to_owned(), dims[1] as usize);
        Self {
            graph: GraphProto { name: Some("test".into()), input: vec![value("image", dims)], ..GraphProto::default() },
            ir_version: 8,
            opset: 17,
            storage: Storage::Raw,
            channels,
            rng: Pcg64Mcg::seed_from_u64(seed),
            count: 0,
        }
    }

    pub fn tensor(&mut self, name: &str, dims: &[usize], scale: f32) -> String {
        let n = dims.iter().product();
        let values: Vec<f32> = (0..n)
            .map(|_| {
                let x: f32 = StandardNormal.sample(&mut self.rng);
                scale * x
            })
            .collect();
        self.store(name, dims, values)
    }

    pub fn store(&mut self, name: &str, dims: &[usize], values: Vec<f32>) -> String {
        let mut tensor = TensorProto {
            name: Some(name.into()),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(1),
            ..TensorProto::default()
        };
        if self.storage == Storage::Typed {
            tensor.float_data = values;
        } else {
            let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensor.raw_data = Some(Bytes::from(raw));
        }
        if self.storage == Storage::ConstantNode {
            let attribute = AttributeProto {
                name: Some("value".into()),
                r#type: Some(AttributeType::Tensor as i32),
                t: Some(tensor),
                ..AttributeProto::default()
            };
            self.node("Constant", &[], name, vec![attribute]);
        } else {
            self.graph.initializer.push(tensor);
        }
        name.into()
    }

    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> String {
        self.graph.node.push(NodeProto {
            op_type: Some(op.into()),
            name: Some(format!("{op}_{output}")),
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute,
            ..NodeProto::default()
        });
        output.to_owned()
    }

    fn fresh(&mut self, stem: &str) -> String {
        self.count += 1;
        format!("{stem}_{}", self.count)
    }

    pub fn conv(&mut self, input: &str, spec: &ConvSpec) -> String {
        let output = self.fresh("conv");
        self.named_conv(input, &output, spec)
    }

    pub fn named_conv(&mut self, input: &str, output: &str, spec: &ConvSpec) -> String {
        self.any_conv(input, output, 1, spec)
    }

    /// A convolution whose channels are dealt to groups.
    pub fn grouped_conv(&mut self, input: &str, groups: usize, spec: &ConvSpec) -> String {
        let output = self.fresh("grouped");
        self.any_conv(input, &output, groups, spec)
    }

    fn any_conv(&mut self, input: &str, output: &str, groups: usize, spec: &ConvSpec) -> String {
        let inputs = self.channels[input] / groups;
        let [kh, kw] = spec.kernel;
        let scale = (1.0 / (inputs * kh * kw) as f32).sqrt();
        let weight = self.tensor(&format!("{output}.weight"), &[spec.out, inputs, kh, kw], scale);
        let mut reads = vec![input.to_owned(), weight];
        if spec.bias {
            reads.push(self.tensor(&format!("{output}.bias"), &[spec.out], 0.1));
        }
        let mut attributes = vec![
            ints("dilations", &spec.dilations),
            ints("kernel_shape", &spec.kernel),
            ints("strides", &spec.strides),
        ];
        match spec.auto_pad {
            Some(mode) => attributes.push(AttributeProto {
                name: Some("auto_pad".into()),
                r#type: Some(AttributeType::String as i32),
                s: Some(mode.as_bytes().to_vec()),
                ..AttributeProto::default()
            }),
            None => attributes.push(ints("pads", &spec.pads)),
        }
        if groups > 1 {
            attributes.push(int("group", groups as i64));
        }
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        self.node("Conv", &reads, output, attributes);
        self.channels.insert(output.to_owned(), spec.out);
        output.to_owned()
    }

    pub fn batch_norm(&mut self, input: &str) -> String {
        let output = self.fresh("bn");
        let c = self.channels[input];
        let positive = |b: &mut Self, name: &str| {
            let values = (0..c).map(|i| 0.5 + (i % 7) as f32 / 5.0).collect();
            b.store(&format!("{output}.{name}"), &[c], values)
        };
        let gamma = positive(self, "weight");
        let beta = self.tensor(&format!("{output}.bias"), &[c], 0.2);
        let mean = self.tensor(&format!("{output}.mean"), &[c], 0.2);
        let variance = positive(self, "var");
        self.node("BatchNormalization", &[input, &gamma, &beta, &mean, &variance], &output, vec![]);
        self.channels.insert(output.clone(), c);
        output
    }

    pub fn unary(&mut self, op: &str, input: &str) -> String {
        let output = self.fresh(&op.to_lowercase());
        self.node(op, &[input], &output, vec![]);
        self.channels.insert(output.clone(), self.channels[input]);
        output
    }

    pub fn relu(&mut self, input: &str) -> String {
        self.unary("Relu", input)
    }

    pub fn add(&mut self, a: &str, b: &str) -> String {
        let output = self.fresh("add");
        self.node("Add", &[a, b], &output, vec![]);
        self.channels.insert(output.clone(), self.channels[a]);
        output
    }

    pub fn max_pool(&mut self, input: &str) -> String {
        let output = self.fresh("pool");
        let attributes = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4]), ints("strides", &[2, 2])];
        self.node("MaxPool", &[input], &output, attributes);
        self.channels.insert(output.clone(), self.channels[input]);
        output
    }

    /// Global pooling and a linear classifier.
    pub fn classifier(&mut self, input: &str, classes: usize) -> String {
        let c = self.channels[input];
        let pooled = self.unary("GlobalAveragePool", input);
        let flat = self.unary("Flatten", &pooled);
        let weight = self.tensor("fc.weight", &[c, classes], (1.0 / c as f32).sqrt());
        self.node("MatMul", &[&flat, &weight], "scores", vec![])
    }

    /// Declares the outputs and gives the file's bytes.
    pub fn build(self, outputs: &[&str]) -> Vec<u8> {
        self.build_proto(outputs).encode_to_vec()
    }

    pub fn build_proto(mut self, outputs: &[&str]) -> ModelProto {
        self.graph.output = outputs.iter().map(|o| untyped(o)).collect();
        if self.ir_version < 4 {
            let inputs = self.graph.initializer.iter().map(|t| value(t.name(), &t.dims));
            let inputs: Vec<_> = inputs.collect();
            self.graph.input.extend(inputs);
        }
        ModelProto {
            ir_version: Some(self.ir_version),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset) }],
            graph: Some(self.graph),
            ..ModelProto::default()
        }
    }
}

pub fn ints(name: &str, values: &[usize]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.iter().map(|&v| v as i64).collect(),
        ..AttributeProto::default()
    }
}

pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

/// A typed value; dimension 0 is the symbol `batch`.
pub fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = dims.iter().map(|&d| {
        let value = if d == 0 { Value::DimParam("batch".into()) } else { Value::DimValue(d) };
        Dimension { value: Some(value), ..Dimension::default() }
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    tensor_value(name, shape)
}

fn untyped(name: &str) -> ValueInfoProto {
    tensor_value(name, None)
}

fn tensor_value(name: &str, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    let value = type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(1), shape });
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(value), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// A residual network as torchvision builds it, or its CIFAR form; seeded random weights.
#[derive(Debug, Clone, Copy)]
pub struct ResNet {
    pub blocks: [usize; 4],
    pub bottleneck: bool,
    pub cifar: bool,
    pub batch_norm: bool,
    /// Channels of the first stage, 64 in the originals.
    pub width: usize,
}

impl ResNet {
    pub const R18: Self = Self { blocks: [2, 2, 2, 2], bottleneck: false, cifar: false, batch_norm: false, width: 64 };
    pub const R34: Self = Self { blocks: [3, 4, 6, 3], ..Self::R18 };
    pub const R50: Self = Self { blocks: [3, 4, 6, 3], bottleneck: true, ..Self::R18 };

    pub fn builder(self) -> ModelBuilder {
        let size = if self.cifar { 32 } else { 224 };
        let mut b = ModelBuilder::new(&[0, 3, size, size], 7);
        let mut x = if self.cifar {
            self.unit(&mut b, "image", "conv1", ConvSpec::new(self.width, 3))
        } else {
            let stem = self.unit(&mut b, "image", "conv1", ConvSpec::new(self.width, 7).stride(2));
            let stem = b.relu(&stem);
            b.max_pool(&stem)
        };
        if self.cifar {
            x = b.relu(&x);
        }
        let expansion = if self.bottleneck { 4 } else { 1 };
        let mut channels = self.width;
        for (stage, &count) in self.blocks.iter().enumerate() {
            let width = self.width << stage;
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
                let out = width * expansion;
                let y = if self.bottleneck {
                    let y = self.unit(&mut b, &x, &name("conv1"), ConvSpec::new(width, 1));
                    let y = b.relu(&y);
                    let y = self.unit(&mut b, &y, &name("conv2"), ConvSpec::new(width, 3).stride(stride));
                    let y = b.relu(&y);
                    self.unit(&mut b, &y, &name("conv3"), ConvSpec::new(out, 1))
                } else {
                    let y = self.unit(&mut b, &x, &name("conv1"), ConvSpec::new(width, 3).stride(stride));
                    let y = b.relu(&y);
                    self.unit(&mut b, &y, &name("conv2"), ConvSpec::new(width, 3))
                };
                let shortcut = if stride != 1 || channels != out {
                    self.unit(&mut b, &x, &name("downsample"), ConvSpec::new(out, 1).stride(stride))
                } else {
                    x.clone()
                };
                let sum = b.add(&y, &shortcut);
                x = b.relu(&sum);
                channels = out;
            }
        }
        b.classifier(&x, if self.cifar { 10 } else { 1000 });
        b
    }

    pub fn build(self) -> Vec<u8> {
        self.builder().build(&["scores"])
    }

    fn unit(self, b: &mut ModelBuilder, input: &str, name: &str, spec: ConvSpec) -> String {
        if self.batch_norm {
            let y = b.named_conv(input, name, &spec.no_bias());
            b.batch_norm(&y)
        } else {
            b.named_conv(input, name, &spec)
        }
    }
}

/// `n` residual blocks of two 3×3 convolutions at 8 channels, small enough for every test.
pub fn small_resnet(n: usize) -> Vec<u8> {
    ResNet { blocks: [n, 0, 0, 0], cifar: true, width: 8, ..ResNet::R18 }.build()
}

/// One convolution of whole numbers behind an operator that rounds, and before one.
pub fn stepping() -> ModelProto {
    // Whole numbers times whole numbers, just beside which the factors' products fall: a step up or down.
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let rounded = b.node("Round", &["image"], "rounded", vec![]);
    let (first, last) = (|i: usize, y: usize| 1 + (3 * i + y) % 5, |o: usize, x: usize| 1 + (5 * o + x) % 7);
    let kernel = (0..8 * 8 * 9).map(|at| (first(at / 9 % 8, at / 3 % 3) * last(at / 72, at % 3)) as f32).collect();
    let kernel = b.store("kernel", &[8, 8, 3, 3], kernel);
    let y = b.node("Conv", &[&rounded, &kernel], "y", vec![ints("pads", &[1; 4])]);
    let stepped = b.node("Floor", &[&y], "stepped", vec![]);
    b.build_proto(&[&stepped])
}

pub fn decode(bytes: &[u8]) -> ModelProto {
    ModelProto::decode(bytes).unwrap()
}

/// A model without the hashes of what it was made from, which are of its last bits.
pub fn without_origin(mut model: ModelProto) -> ModelProto {
    model.metadata_props.retain(|p| !["onnx_jmd.input", "onnx_jmd.options", "onnx_jmd.output"].contains(&p.key()));
    model
}

/// The graph as text, weights left out: what a golden file holds.
pub fn dump(model: &ModelProto) -> String {
    let graph = model.graph.as_ref().unwrap();
    let mut text = format!("ir {} opset {}\n", model.ir_version(), model.opset_import[0].version());
    for property in without_origin(model.clone()).metadata_props {
        text += &format!("{} = {}\n", property.key(), property.value());
    }
    for input in &graph.input {
        text += &format!("input {}\n", input.name());
    }
    for tensor in &graph.initializer {
        text += &format!("tensor {} {:?}\n", tensor.name(), tensor.dims);
    }
    for node in &graph.node {
        let mut attributes: Vec<String> = node.attribute.iter().map(|a| format!("{}={:?}", a.name(), a.ints)).collect();
        attributes.sort();
        text += &format!(
            "{} {} ({}) -> {} {}\n",
            node.op_type(),
            node.name(),
            node.input.join(", "),
            node.output.join(", "),
            attributes.join(" ")
        );
    }
    for output in &graph.output {
        text += &format!("output {}\n", output.name());
    }
    text
}
