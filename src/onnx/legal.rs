//! An equivalent copy of a model for a runtime that lacks operators of the first ONNX versions.
//!
//! | operator | as |
//! |---|---|
//! | `ImageScaler` | `x·scale + bias` of each channel |
//! | `Affine` | `alpha·x + beta` |
//! | `Crop` | `Slice` along the last two axes |
//! | `Upsample` | `Resize` with its asymmetric coordinates, nearest rounded down |
//! | `Celu` | `alpha·Elu(x / alpha)`, where tract 0.23 takes another for alpha |
//! | one of another domain | one that tract does not know, which takes it for the one of that name in any |
//!
//! Nodes of one name get others, inputs that are left out at the end are not named, and transposed convolutions say the pads that their
//! `auto_pad` or `output_shape` stands for.

use super::functions;
use super::graph::{Graph, Namer, is_standard, label, subgraphs};
use super::inputs::InputShape;
use super::model::is_own;
use super::proto::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType, tensor_proto::DataType};
use super::shapes::Resolutions;
use super::window::LARGEST;
use super::{Model, attributes, float_initializer};
use bytes::Bytes;
use std::collections::{BTreeSet, HashSet};

/// The version in which `Resize` came.
const RESIZE: i64 = 10;
/// The one in which it got the region of interest.
const RESIZE_REGION: i64 = 11;
/// The first version that differs from that of `Resize` only in what is rewritten here.
const OLDEST: i64 = 7;

impl Model {
    /// The copy for inputs of these shapes, and which operators are others in it; none if there is nothing to rewrite.
    pub(crate) fn legalised(&self, shapes: &[InputShape]) -> Option<(Self, BTreeSet<&'static str>)> {
        let graph = self.proto().graph.as_ref()?;
        let named = |n: &&NodeProto| !n.name().is_empty();
        let names: HashSet<&str> = graph.node.iter().filter(named).map(|n| n.name()).collect();
        let repeated = names.len() < graph.node.iter().filter(named).count();
        let old = |n: &NodeProto| is_standard(n) && OPERATORS.contains(&n.op_type());
        let trails = |n: &NodeProto| n.input.last().is_some_and(String::is_empty);
        // The bytes of a model whose functions were inlined have them still.
        let unchanged = !repeated && self.inlined().is_empty();
        let calls = functions::callers(self.proto());
        let others = |n: &NodeProto| old(n) || trails(n) || leaves_pads_open(n) || is_mistakable(n, &calls);
        if unchanged && !graph.node.iter().any(others) {
            return None;
        }
        let closed = self.closed(shapes);
        let mut proto = self.proto().clone();
        // The version of `Resize` for a model that upsamples, if it is near enough.
        let upsamples = graph.node.iter().any(|n| is_standard(n) && n.op_type() == "Upsample");
        let raised = upsamples && (OLDEST..RESIZE).contains(&self.opset());
        let opset = if raised { RESIZE } else { self.opset() };
        if let Some(own) = proto.opset_import.iter_mut().find(|set| is_own(set)) {
            own.version = Some(opset);
        }
        let mut copy = Copy { opset, namer: Namer::new(graph), initializers: Vec::new() };
        let graph = proto.graph.as_mut()?;
        let mut rewritten = BTreeSet::new();
        let mut nodes = Vec::with_capacity(graph.node.len() + 8);
        graph.node.iter_mut().for_each(|node| name_by_domain(node, &calls));
        for (mut node, closed) in graph.node.drain(..).zip(closed) {
            while trails(&node) {
                node.input.pop();
            }
            if let Some([pads, output_padding]) = closed {
                let replaced = ["auto_pad", "output_padding", "output_shape", "pads"];
                node.attribute.retain(|a| !replaced.contains(&a.name()));
                node.attribute.extend([integers("pads", &pads), integers("output_padding", &output_padding)]);
            }
            if let Some(output) = node.output.first().filter(|_| repeated).cloned() {
                node.name = Some(output);
            }
            match copy.rewrite(&node) {
                Some((operator, instead)) => {
                    rewritten.insert(operator);
                    nodes.extend(instead);
                }
                None => nodes.push(node),
            }
        }
        graph.node = nodes;
        graph.initializer.extend(copy.initializers);
        Some((Self::from_proto(proto), rewritten))
    }
}

impl Model {
    /// Of each node the pads and the output padding that follow from inputs of these shapes, where it leaves them open.
    fn closed(&self, shapes: &[InputShape]) -> Vec<Option<[Vec<i64>; 2]>> {
        let nodes = self.proto().graph.as_ref().map_or(&[][..], |graph| &graph.node);
        let graph = Graph::new(self).ok().filter(|_| nodes.iter().any(leaves_pads_open));
        let known = graph.as_ref().map(|graph| (graph, Resolutions::new(graph, shapes)));
        let each = nodes.iter().map(|node| {
            let (graph, resolutions) = known.as_ref().filter(|_| leaves_pads_open(node))?;
            let window = resolutions.closed(graph, node)?;
            let pads = window.pads(&[])?;
            Some([&pads, &window.output_padding].map(|values| values.iter().map(|&n| n as i64).collect()))
        });
        each.collect()
    }

    /// What tract would count up to, take wrongly or look for beyond the end, in a sentence: a window that no convolution or pooling has,
    /// pads that are not known, images of less than two axes.
    pub(crate) fn unreasonable(&self, shapes: &[InputShape]) -> Option<String> {
        let nodes = || self.proto().graph.iter().flat_map(|graph| &graph.node).filter(|node| is_standard(node));
        if let Some(open) = nodes().find(|node| leaves_pads_open(node)) {
            let name = label(open);
            return Some(format!(
                "the pads of node '{name}' are not known, as they follow from its output_shape and a size that is not, or would be negative"
            ));
        }
        let graph = Graph::new(self).ok()?;
        let known = Resolutions::new(&graph, shapes);
        let flat = nodes().filter(|node| IMAGES.contains(&node.op_type())).find_map(|node| {
            let rank = known.rank(&graph, node.input.first()?).filter(|rank| *rank < 2)?;
            Some(format!("node '{}' reads '{}' of {rank} axes, which is no image", label(node), node.input[0]))
        });
        if flat.is_some() {
            return flat;
        }
        let mut each = nodes().flat_map(|node| WINDOW.iter().map(move |name| (node, name)));
        each.find_map(|(node, name)| {
            let value = attributes::ints(node, name)?.iter().find(|n| n.unsigned_abs() > LARGEST.unsigned_abs())?;
            Some(format!("{name} of node '{}' say {value}", label(node)))
        })
    }
}

/// Whether a node of Microsoft's domain is of another kind than what ONNX names alike, and tract does not tell them apart.
fn is_namesake(node: &NodeProto) -> bool {
    match node.op_type() {
        "Attention" => true,
        "QLinearConv" => attributes::int(node, "channels_last").unwrap_or(0) != 0,
        _ => false,
    }
}

/// Whether tract would take an operator for another, or one in a subgraph of it.
fn is_mistakable(node: &NodeProto, calls: &dyn Fn(&NodeProto) -> bool) -> bool {
    names_another(node, calls) || subgraphs(node).flat_map(|g| &g.node).any(|inner| is_mistakable(inner, calls))
}

fn names_another(node: &NodeProto, calls: &dyn Fn(&NodeProto) -> bool) -> bool {
    match node.domain() {
        _ if calls(node) => true,
        "ai.onnx.ml" => false,
        "com.microsoft" => is_namesake(node),
        _ => !is_standard(node) && !node.op_type().contains(':'),
    }
}

/// Gives operators that tract would take for others names that it does not know.
fn name_by_domain(node: &mut NodeProto, calls: &dyn Fn(&NodeProto) -> bool) {
    if names_another(node, calls) {
        node.op_type = Some(format!("{}:{}", node.domain(), node.op_type()));
    }
    let graphs = node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs));
    graphs.flat_map(|g| &mut g.node).for_each(|inner| name_by_domain(inner, calls));
}

/// Whether it is a transposed convolution whose pads follow from other attributes.
fn leaves_pads_open(node: &NodeProto) -> bool {
    let same = || attributes::string(node, "auto_pad").is_some_and(|padding| padding.starts_with("SAME_"));
    let stated = || attributes::ints(node, "output_shape").is_some_and(|sizes| !sizes.is_empty());
    is_standard(node) && node.op_type() == "ConvTranspose" && (same() || stated())
}

/// Operators that read images.
const IMAGES: [&str; 6] = ["AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "LpPool", "MaxPool"];

/// Attributes of a window.
const WINDOW: [&str; 5] = ["dilations", "kernel_shape", "output_padding", "pads", "strides"];

const OPERATORS: [&str; 5] = ["ImageScaler", "Affine", "Crop", "Upsample", "Celu"];

/// The copy while it is made.
struct Copy {
    opset: i64,
    namer: Namer,
    initializers: Vec<TensorProto>,
}

impl Copy {
    /// What stands for an operator, and its name; none where it may stay.
    fn rewrite(&mut self, node: &NodeProto) -> Option<(&'static str, Vec<NodeProto>)> {
        let input = node.input.first().filter(|_| is_standard(node))?.clone();
        let number = |name: &str, otherwise: f32| attributes::float(node, name).unwrap_or(otherwise);
        Some(match node.op_type() {
            "ImageScaler" => {
                let bias = attributes::floats(node, "bias").unwrap_or(&[]).to_vec();
                let dims = if bias.is_empty() { vec![1] } else { vec![bias.len(), 1, 1] };
                let bias = if bias.is_empty() { vec![0.0] } else { bias };
                ("ImageScaler", self.affine(node, input, number("scale", 1.0), (&dims, bias)))
            }
            "Affine" => ("Affine", self.affine(node, input, number("alpha", 1.0), (&[1], vec![number("beta", 0.0)]))),
            "Crop" => {
                let &[left, top, right, bottom] = attributes::ints(node, "border")? else { return None };
                let end = |border: i64| if border > 0 { border.checked_neg() } else { Some(i64::MAX) };
                let ends = match attributes::ints(node, "scale") {
                    Some(&[height, width]) => [top.checked_add(height)?, left.checked_add(width)?],
                    _ => [end(bottom)?, end(right)?],
                };
                ("Crop", vec![self.slice(node, input, &[top, left], &ends, &[2, 3])])
            }
            "Upsample" if self.opset >= RESIZE => {
                let mode = match attributes::string(node, "mode").unwrap_or("nearest") {
                    "nearest" => "nearest",
                    "linear" | "bilinear" => "linear",
                    _ => return None,
                };
                let scales = match (node.input.get(1), attributes::floats(node, "scales")) {
                    (Some(name), _) => name.clone(),
                    (None, Some(scales)) => self.floats(node, &[scales.len()], scales.to_vec()),
                    (None, None) => return None,
                };
                let mut attribute = vec![text("mode", mode)];
                let mut inputs = vec![input];
                if self.opset >= RESIZE_REGION {
                    inputs.push(String::new());
                    attribute.push(text("coordinate_transformation_mode", "asymmetric"));
                    attribute.push(text("nearest_mode", "floor"));
                }
                inputs.push(scales);
                ("Upsample", vec![NodeProto { attribute, ..like(node, "Resize", inputs) }])
            }
            "Celu" if number("alpha", 1.0) != 1.0 => ("Celu", self.celu(node, input, number("alpha", 1.0))),
            // Its attributes became inputs in the version that the copy is raised to.
            "Slice" if self.opset >= RESIZE && node.input.len() == 1 => {
                let (starts, ends) = (attributes::ints(node, "starts")?, attributes::ints(node, "ends")?);
                let all: Vec<i64> = (0..starts.len() as i64).collect();
                let axes = attributes::ints(node, "axes").unwrap_or(&all);
                ("Slice", vec![self.slice(node, input, starts, ends, axes)])
            }
            _ => return None,
        })
    }

    /// `alpha·Elu(x / alpha)`.
    fn celu(&mut self, node: &NodeProto, input: String, alpha: f32) -> Vec<NodeProto> {
        let [divided, curved] =
            ["divided", "curved"].map(|name| self.namer.fresh(&format!("{}/{name}", node.output[0])));
        let factor = self.floats(node, &[1], vec![alpha]);
        let mut step = |op: &str, inputs: Vec<String>, output: &String| NodeProto {
            output: vec![output.clone()],
            name: Some(self.namer.fresh(&format!("{output}/node"))),
            ..like(node, op, inputs)
        };
        let divide = step("Div", vec![input, factor.clone()], &divided);
        let curve = step("Elu", vec![divided], &curved);
        vec![divide, curve, like(node, "Mul", vec![curved, factor])]
    }

    /// `scale·x + bias`.
    fn affine(
        &mut self,
        node: &NodeProto,
        input: String,
        scale: f32,
        (dims, bias): (&[usize], Vec<f32>),
    ) -> Vec<NodeProto> {
        let (scale, bias) = (self.floats(node, &[1], vec![scale]), self.floats(node, dims, bias));
        let scaled = self.namer.fresh(&format!("{}/scaled", node.output[0]));
        let product = NodeProto {
            output: vec![scaled.clone()],
            name: Some(self.namer.fresh(&format!("{}/scale", node.output[0]))),
            ..like(node, "Mul", vec![input, scale])
        };
        vec![product, like(node, "Add", vec![scaled, bias])]
    }

    fn slice(&mut self, node: &NodeProto, input: String, starts: &[i64], ends: &[i64], axes: &[i64]) -> NodeProto {
        let named = [("starts", starts), ("ends", ends), ("axes", axes)];
        if self.opset >= RESIZE {
            let inputs = named.map(|(name, values)| self.integers(node, name, values));
            return like(node, "Slice", std::iter::once(input).chain(inputs).collect());
        }
        let attribute = named.map(|(name, values)| integers(name, values));
        NodeProto { attribute: attribute.to_vec(), ..like(node, "Slice", vec![input]) }
    }

    fn floats(&mut self, node: &NodeProto, dims: &[usize], values: Vec<f32>) -> String {
        let name = self.namer.fresh(&format!("{}/constant", node.output[0]));
        self.initializers.push(float_initializer(name.clone(), dims, values.into_iter()));
        name
    }

    fn integers(&mut self, node: &NodeProto, what: &str, values: &[i64]) -> String {
        let name = self.namer.fresh(&format!("{}/{what}", node.output[0]));
        self.initializers.push(TensorProto {
            name: Some(name.clone()),
            dims: vec![values.len() as i64],
            data_type: Some(DataType::Int64 as i32),
            raw_data: Some(Bytes::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())),
            ..TensorProto::default()
        });
        name
    }
}

/// A node of another operator in the same place.
fn like(node: &NodeProto, operator: &str, input: Vec<String>) -> NodeProto {
    NodeProto {
        input,
        output: node.output.clone(),
        name: node.name.clone(),
        op_type: Some(operator.into()),
        ..NodeProto::default()
    }
}

fn integers(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(value.as_bytes().to_vec()),
        ..AttributeProto::default()
    }
}
