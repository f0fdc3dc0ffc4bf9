//! Which tensors a model stores, and how many parameters are in them.

use super::proto::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};
use super::{Model, functions, is_standard, tensor};
use std::collections::HashSet;

/// Element types that count as parameters.
const FLOAT_TYPES: [i32; 4] =
    [DataType::Float as i32, DataType::Float16 as i32, DataType::Bfloat16 as i32, DataType::Double as i32];

impl Model {
    /// Floating-point parameters: elements of every float tensor and of every tensor that a `DequantizeLinear` makes one of, each
    /// stored tensor counted once, those in the bodies of local functions that are called, too.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let graph =
            self.proto().graph.iter().map(|graph| stored_floats(tensors(graph), &graph.node, &graph.initializer));
        let bodies = functions::reached(self.proto()).into_iter().map(|function| {
            let defaults = function.attribute_proto.iter().flat_map(|a| a.t.iter().chain(&a.tensors));
            stored_floats(function.node.iter().flat_map(node_tensors).chain(defaults).collect(), &function.node, &[])
        });
        graph.chain(bodies).fold(0, u64::saturating_add)
    }
}

/// Every tensor that a graph stores: initializers, sparse ones by their values, and constants, in its subgraphs too.
pub(super) fn tensors(graph: &GraphProto) -> Vec<&TensorProto> {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    let mut found: Vec<&TensorProto> = graph.initializer.iter().chain(sparse).collect();
    found.extend(graph.node.iter().flat_map(node_tensors));
    found
}

/// Elements of tensors of floats, and of those that a `DequantizeLinear` among the nodes makes such.
fn stored_floats(tensors: Vec<&TensorProto>, nodes: &[NodeProto], initializers: &[TensorProto]) -> u64 {
    let is_float = |t: &&TensorProto| FLOAT_TYPES.contains(&t.data_type());
    let nodes = || nodes.iter().filter(|n| is_standard(n));
    let quantized = nodes().filter(|n| n.op_type() == "DequantizeLinear").filter_map(|n| n.input.first());
    let quantized: HashSet<&str> = quantized.map(String::as_str).collect();
    let stored = initializers.iter().filter(|t| quantized.contains(t.name()));
    let constants =
        nodes().filter(|n| n.op_type() == "Constant" && n.output.iter().any(|o| quantized.contains(o.as_str())));
    let constants = constants.flat_map(|n| &n.attribute).filter_map(|a| a.t.as_ref());
    let integers = stored.chain(constants).filter(|t| !is_float(t));
    tensors.into_iter().filter(is_float).chain(integers).filter_map(tensor::element_count).fold(0, u64::saturating_add)
}

/// Tensors among the attributes of a node, those in its subgraphs included.
fn node_tensors(node: &NodeProto) -> Vec<&TensorProto> {
    let mut found = Vec::new();
    for attribute in &node.attribute {
        found.extend(attribute.t.iter().chain(&attribute.tensors));
        attribute.g.iter().chain(&attribute.graphs).for_each(|g| found.extend(tensors(g)));
    }
    found
}
