//! The role of a convolution: a canonical text of its neighbourhood, out to where its branch begins and ends.
//!
//! From the convolution the walk goes up to the value where the enclosing block forks (or two branches meet) and down to
//! where it joins again. Batch norm, dropout and identity are looked through, so that a network has the same roles with
//! its batch norms folded or kept. Channels and strides are not part of the text: the first block of a stage, which has
//! other input channels, a stride and perhaps a projection shortcut, plays the same roles as the blocks after it.

use crate::onnx::proto::NodeProto;
use crate::onnx::{Conv, Graph, Resolutions, Use, is_standard};

/// Steps that a role tells of to each side. Without an end the texts of a long chain would be as long as the chain, each.
const FARTHEST: usize = 256;

/// A role and the value at which its branch ends.
pub(super) struct Role {
    pub(super) text: String,
    pub(super) exit: String,
}

/// Names of the convolutions in a node's subgraphs.
pub(super) fn inner_convs(node: &NodeProto) -> Vec<String> {
    let inner = crate::onnx::subgraphs(node).flat_map(|g| &g.node).flat_map(|n| {
        let own = is_conv(n).then(|| crate::onnx::label(n));
        own.into_iter().chain(inner_convs(n))
    });
    inner.collect()
}

pub(super) fn is_conv(node: &NodeProto) -> bool {
    matches!(node.op_type(), "Conv" | "ConvTranspose") && is_standard(node)
}

/// Operators that a role looks through.
pub(super) fn is_transparent(node: &NodeProto) -> bool {
    is_standard(node) && matches!(node.op_type(), "BatchNormalization" | "Identity" | "Dropout")
}

/// Inputs that are not constant: the data that flows.
pub(super) fn data_inputs<'m>(graph: &Graph<'m>, node: &'m NodeProto) -> Vec<&'m str> {
    let inputs = node.input.iter().map(String::as_str);
    inputs.filter(|i| !i.is_empty() && !graph.is_constant(i)).collect()
}

pub(super) fn of(graph: &Graph<'_>, resolutions: &Resolutions, conv: &Conv) -> Role {
    let mut up = Vec::new();
    let mut value = conv.input.as_str();
    let mut steps = 0;
    let begins = loop {
        // A gate's input has two readers and is no fork, so gates are looked for before forks.
        let gated = graph.producer(value).and_then(|p| gate_above(graph, p));
        if is_fork(graph, value) {
            break "fork".to_owned();
        }
        steps += 1;
        if steps > FARTHEST {
            break "…".to_owned();
        }
        if let Some((label, input)) = gated {
            up.push(label);
            value = input;
            continue;
        }
        let Some(node) = graph.producer(value).map(|p| &graph.nodes()[p]) else {
            break "input".to_owned();
        };
        match data_inputs(graph, node)[..] {
            [input] => {
                up.extend(label(graph, resolutions, node));
                value = input;
            }
            [] => break node.op_type().to_owned(),
            _ => break node.op_type().to_owned(),
        }
    };
    up.reverse();
    let mut down = Vec::new();
    let mut value = conv.output.as_str();
    let mut steps = 0;
    let ends = loop {
        steps += 1;
        if steps > FARTHEST {
            break "…".to_owned();
        }
        if let Some((label, output)) = gate_below(graph, value) {
            down.push(label);
            value = output;
            continue;
        }
        let node = match graph.uses(value) {
            [Use::Node(index, _)] => &graph.nodes()[*index],
            [Use::Output] => break "output".to_owned(),
            _ => break "fork".to_owned(),
        };
        match (data_inputs(graph, node).len(), node.output.first()) {
            (1, Some(output)) => {
                down.extend(label(graph, resolutions, node));
                value = output;
            }
            _ => break node.op_type().to_owned(),
        }
    };
    let here = match conv.kind.window() {
        Some(_) => format!("●{}", sizes(&conv.kind.spatial([conv.shape[2], conv.shape[3]]))),
        None => format!("●{}", conv.kind.op_type()),
    };
    let steps = std::iter::once(begins).chain(up).chain([here]).chain(down).chain([ends]);
    Role { text: steps.collect::<Vec<_>>().join(" → "), exit: value.to_owned() }
}

/// A node as a step of a role; none if it is looked through.
fn label(graph: &Graph<'_>, resolutions: &Resolutions, node: &NodeProto) -> Option<String> {
    if is_transparent(node) {
        return None;
    }
    if !is_conv(node) {
        return Some(node.op_type().to_owned());
    }
    let converted = |kernel: &String| {
        let dims = &graph.unconverted(kernel)?.dims;
        Some(dims.iter().map(|&d| usize::try_from(d).ok()).collect())
    };
    let dims =
        node.input.get(1).and_then(|k| resolutions.stored(graph, k).or_else(|| converted(k))).unwrap_or_default();
    let grouped = dims.get(1) == Some(&Some(1));
    let size: Option<Vec<usize>> = dims.get(2..).and_then(|spatial| spatial.iter().copied().collect());
    let size = size.map_or(String::new(), |spatial| sizes(&spatial));
    Some(format!("{}{size}{}", node.op_type(), if grouped { "/grouped" } else { "" }))
}

/// `3x3`.
fn sizes(extents: &[impl ToString]) -> String {
    extents.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}

fn is_fork(graph: &Graph<'_>, value: &str) -> bool {
    graph.uses(value).len() != 1 && gate_below(graph, value).is_none()
}

/// `Mul(v, f(v))`, as in SiLU, read as one step from `v`: its text and its output.
fn gate_below<'m>(graph: &Graph<'m>, value: &str) -> Option<(String, &'m str)> {
    let (&[Use::Node(a, _), Use::Node(b, _)], nodes) = (graph.uses(value), graph.nodes()) else {
        return None;
    };
    let gate = |inner: usize, outer: usize| {
        let (inner, outer) = (&nodes[inner], nodes.get(outer)?);
        let through = inner.output.first()?;
        let reads = data_inputs(graph, inner).len() == 1
            && outer.op_type() == "Mul"
            && outer.input.iter().any(|i| i == value)
            && outer.input.contains(through)
            && graph.only_reader(through).is_some()
            && !is_conv(inner);
        reads.then(|| Some((format!("Mul({})", inner.op_type()), outer.output.first()?.as_str())))?
    };
    gate(a, b).or_else(|| gate(b, a))
}

/// The gate whose product this node is: its text and its input.
fn gate_above<'m>(graph: &Graph<'m>, producer: usize) -> Option<(String, &'m str)> {
    let node = &graph.nodes()[producer];
    node.input.iter().find_map(|input| {
        let (label, output) = gate_below(graph, input)?;
        (node.output.first()? == output).then_some((label, input.as_str()))
    })
}
