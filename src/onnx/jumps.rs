//! Operators whose output jumps where their input hardly changes.

use super::Model;
use super::graph::live;
use super::proto::{NodeProto, tensor_proto::DataType};
use super::{Precision, attributes};

/// What rounds, compares or chooses.
const JUMPING: [&str; 23] = [
    "ArgMax",
    "ArgMin",
    "Ceil",
    "DynamicQuantizeLinear",
    "Equal",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "Less",
    "LessOrEqual",
    "MaxRoiPool",
    "MaxUnpool",
    "Mod",
    "NonMaxSuppression",
    "NonZero",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RoiAlign",
    "Round",
    "Sign",
    "TopK",
];

impl Model {
    /// The first operator of the graph that rounds, compares or chooses, if there is one and outputs follow from it: behind it a
    /// difference in the last bit may be one of a whole step.
    pub(crate) fn jumping_operator(&self) -> Option<&str> {
        let graph = self.proto().graph.as_ref()?;
        let alive = graph.node.iter().zip(live(graph)).filter(|(_, alive)| *alive).map(|(node, _)| node);
        alive.into_iter().find(|node| jumps(node)).map(NodeProto::op_type)
    }
}

fn jumps(node: &NodeProto) -> bool {
    // Of any domain: runtimes have quantized operators of their own.
    let to_integers = || {
        let to = attributes::int(node, "to").unwrap_or(0);
        i32::try_from(to).is_ok_and(|to| Precision::of(to).is_none() && to != DataType::String as i32)
    };
    JUMPING.contains(&node.op_type()) || (node.op_type() == "Cast" && to_integers())
}
