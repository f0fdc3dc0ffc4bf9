//! Takes out of a graph what a rewrite has left without readers.

use super::INPUTS_UNTIL;
use crate::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType, tensor_proto::DataType,
};
use crate::onnx::{asks_shape, folds, is_standard, live, shape_of};
use std::collections::{HashMap, HashSet};

/// Names in a graph before it is rewritten.
pub(super) struct Before {
    read: HashSet<String>,
    /// What is read for more than its shape.
    valued: HashSet<String>,
    /// Initializers that callers may replace, and so name.
    named: HashSet<String>,
    initializers: HashSet<String>,
    written: HashSet<String>,
}

impl Before {
    /// Of the graph of a model of this IR version.
    pub(super) fn of(graph: &GraphProto, ir_version: i64) -> Self {
        let inputs = graph.input.iter().filter(|_| ir_version >= INPUTS_UNTIL);
        Self {
            read: live_names(graph),
            valued: valued(graph).into_iter().map(str::to_owned).collect(),
            named: inputs.map(|input| input.name().to_owned()).collect(),
            initializers: graph.initializer.iter().map(|t| t.name().to_owned()).collect(),
            written: graph.node.iter().flat_map(|n| n.output.iter().cloned()).collect(),
        }
    }
}

/// Removes what was read before and nothing reads now: initializers (as inputs too, where listed), constants and what rearranges them,
/// and descriptions of values that are gone. What nothing read before either is not ours to remove.
pub(super) fn drop_unread(graph: &mut GraphProto, before: &Before) {
    keep_shapes(graph, before);
    drop_dead_readers(graph, before);
    let mut readings = read_names(graph);
    let made: HashMap<String, usize> = graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, n)| is_constant(n))
        .flat_map(|(i, n)| n.output.iter().map(move |o| (o.clone(), i)))
        .collect();
    let mut idle: Vec<String> = before.read.iter().filter(|n| !readings.contains_key(*n)).cloned().collect();
    let mut dead = HashSet::new();
    while let Some(name) = idle.pop() {
        let Some(&index) = made.get(&name) else { continue };
        let node = &graph.node[index];
        if node.output.iter().any(|o| readings.contains_key(o)) || !dead.insert(index) {
            continue;
        }
        for input in &node.input {
            if let Some(count) = readings.get_mut(input) {
                *count -= 1;
                if *count == 0 {
                    readings.remove(input);
                    idle.push(input.clone());
                }
            }
        }
    }
    let mut index = 0..;
    graph.node.retain(|_| index.next().is_none_or(|i| !dead.contains(&i)));
    let stays = |name: &str| !before.read.contains(name) || readings.contains_key(name) || before.named.contains(name);
    graph.initializer.retain(|t| stays(t.name()));
    let kept: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let gone: HashSet<&str> = before.initializers.iter().map(String::as_str).filter(|n| !kept.contains(n)).collect();
    graph.input.retain(|i| !gone.contains(i.name()));
    let made: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let lost: HashSet<&str> = before.written.iter().map(String::as_str).filter(|o| !made.contains(o)).collect();
    graph.value_info.retain(|v| !lost.contains(v.name()) && !gone.contains(v.name()));
    graph.quantization_annotation.retain(|a| !lost.contains(a.tensor_name()) && !gone.contains(a.tensor_name()));
}

/// Whether a node is a constant, or rearranges or converts one.
fn is_constant(node: &NodeProto) -> bool {
    is_standard(node) && (node.op_type() == "Constant" || folds(node))
}

/// What is read for more than its shape, by nodes that outputs follow from.
fn valued(graph: &GraphProto) -> HashSet<&str> {
    let alive = live(graph);
    let nodes = graph.node.iter().zip(alive).filter(|(node, alive)| *alive && !asks_shape(node)).map(|(n, _)| n);
    let read = nodes.flat_map(|n| n.input.iter().map(String::as_str).chain(crate::onnx::captures(n)));
    graph.output.iter().map(|o| o.name()).chain(read).collect()
}

/// Writes down the shapes of constants that nothing else reads any more.
fn keep_shapes(graph: &mut GraphProto, before: &Before) {
    let read = valued(graph);
    let stored = graph.initializer.iter().map(|t| (t.name(), t));
    let made = graph.node.iter().filter(|n| is_standard(n) && n.op_type() == "Constant");
    let made = made.filter_map(|n| Some((n.output.first()?.as_str(), n.attribute.iter().find_map(|a| a.t.as_ref())?)));
    let lost = stored.chain(made).filter(|(name, _)| before.valued.contains(*name) && !read.contains(name));
    let lost: HashMap<String, Vec<i64>> = lost.map(|(name, t)| (name.to_owned(), t.dims.clone())).collect();
    for node in graph.node.iter_mut().filter(|n| asks_shape(n)) {
        let Some(shape) = node.input.first().and_then(|i| shape_of(node, lost.get(i)?)) else { continue };
        let value = AttributeProto {
            name: Some("value".into()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(TensorProto {
                dims: vec![shape.len() as i64],
                data_type: Some(DataType::Int64 as i32),
                int64_data: shape,
                ..TensorProto::default()
            }),
            ..AttributeProto::default()
        };
        (node.op_type, node.input, node.attribute) = (Some("Constant".into()), Vec::new(), vec![value]);
    }
}

/// Removes nodes that no output follows from and that read what was taken away, and those that read them.
fn drop_dead_readers(graph: &mut GraphProto, before: &Before) {
    let now = live_names(graph);
    let stored = graph.initializer.iter().map(TensorProto::name);
    let made = graph.node.iter().filter(|n| is_constant(n)).flat_map(|n| n.output.iter().map(String::as_str));
    let gone = |n: &&str| before.read.contains(*n) && !now.contains(*n);
    let mut lost: HashSet<String> = stored.chain(made).filter(gone).map(str::to_owned).collect();
    let alive = live(graph);
    let mut gone = HashSet::new();
    // A reader may stand before what it reads.
    loop {
        let known = gone.len();
        for (at, node) in graph.node.iter().enumerate().filter(|(at, _)| !alive[*at]) {
            let reads =
                || node.input.iter().map(String::as_str).chain(crate::onnx::captures(node)).any(|n| lost.contains(n));
            if !gone.contains(&at) && reads() {
                gone.insert(at);
                lost.extend(node.output.iter().filter(|o| !o.is_empty()).cloned());
            }
        }
        if gone.len() == known {
            break;
        }
    }
    let mut index = 0..;
    graph.node.retain(|_| index.next().is_none_or(|i| !gone.contains(&i)));
}

/// What the nodes read that outputs follow from, and the outputs.
fn live_names(graph: &GraphProto) -> HashSet<String> {
    let alive = live(graph);
    let nodes = graph.node.iter().zip(&alive).filter(|(_, alive)| **alive).map(|(n, _)| n);
    let read = nodes.flat_map(|n| n.input.iter().map(String::as_str).chain(crate::onnx::captures(n)));
    graph.output.iter().map(|o| o.name()).chain(read).map(str::to_owned).collect()
}

/// How often each value is read by a node, a subgraph or the graph's output.
fn read_names(graph: &GraphProto) -> HashMap<String, usize> {
    let outputs = graph.output.iter().map(|o| o.name());
    let nodes = graph.node.iter().flat_map(|n| n.input.iter().map(String::as_str).chain(crate::onnx::captures(n)));
    let mut readings = HashMap::new();
    for name in outputs.chain(nodes) {
        *readings.entry(name.to_owned()).or_default() += 1;
    }
    readings
}
