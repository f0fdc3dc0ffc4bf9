//! Operators whose output jumps where their input hardly changes, and what stands before them.

use super::proto::{FunctionProto, NodeProto, tensor_proto::DataType};
use super::{Graph, Model, Precision, asks_shape, attributes, captures, subgraphs};
use std::collections::{HashMap, HashSet};

/// What rounds, compares or chooses.
const JUMPING: [&str; 31] = [
    "ArgMax",
    "ArgMin",
    "CastLike",
    "Ceil",
    "Compress",
    "DynamicQuantizeLinear",
    "Equal",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "MaxRoiPool",
    "MaxUnpool",
    "Mod",
    "NonMaxSuppression",
    "NonZero",
    "QAttention",
    "QGemm",
    "QuantizeLinear",
    "RoiAlign",
    "Round",
    "Shrink",
    "Sign",
    "ThresholdedRelu",
    "TopK",
    "Unique",
    "Where",
];
/// Names and domains of functions.
type Names<'m> = HashSet<(&'m str, &'m str)>;

/// The first operators that make a step of the last bit, behind what was changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    /// One of them.
    pub(crate) operator: String,
    /// What they read of what was changed, and outputs that follow from it without them.
    pub(crate) before: Vec<String>,
}

/// What a value follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum From {
    Changed,
    Stepped,
}

impl Model {
    /// Where operators that round, compare or choose stand behind values that were changed; none if there are none.
    pub(crate) fn steps_behind(&self, changed: &HashSet<&str>) -> Option<Steps> {
        let graph = Graph::new(self).ok()?;
        let functions = jumping(&self.proto().functions);
        let mut known: HashMap<&str, From> = HashMap::new();
        let (mut operator, mut before) = (None, Vec::new());
        for &index in graph.order().iter().filter(|&&index| graph.is_live(index)) {
            let node = &graph.nodes()[index];
            let read = || node.input.iter().map(String::as_str).chain(captures(node));
            let mut from =
                if asks_shape(node) { None } else { read().filter_map(|name| known.get(name).copied()).max() };
            if from == Some(From::Changed) && jumps(node, &functions) {
                operator.get_or_insert(node.op_type());
                before.extend(read().filter(|name| known.contains_key(name)));
                from = Some(From::Stepped);
            }
            for output in node.output.iter().map(String::as_str).filter(|o| !o.is_empty()) {
                let own = changed.contains(output).then_some(From::Changed);
                known.extend(from.max(own).map(|from| (output, from)));
            }
        }
        let outputs = self.proto().graph.as_ref()?.output.iter().map(|o| o.name());
        before.extend(outputs.filter(|output| known.get(output) == Some(&From::Changed)));
        let mut seen = HashSet::new();
        before.retain(|name| seen.insert(*name));
        Some(Steps { operator: operator?.to_owned(), before: before.into_iter().map(str::to_owned).collect() })
    }
}

/// The functions that round, compare or choose, or call one that does.
fn jumping(functions: &[FunctionProto]) -> Names<'_> {
    let mut found = Names::new();
    loop {
        let more = functions.iter().filter(|f| f.node.iter().any(|node| jumps(node, &found)));
        let more: Names<'_> = more.map(|f| (f.name(), f.domain())).collect();
        if more.len() == found.len() {
            return found;
        }
        found = more;
    }
}

/// Whether a node, or one within it, rounds, compares or chooses, or calls a function of these.
fn jumps(node: &NodeProto, functions: &Names<'_>) -> bool {
    let to_integers = || {
        let to = attributes::int(node, "to").unwrap_or(0);
        i32::try_from(to).is_ok_and(|to| Precision::of(to).is_none() && to != DataType::String as i32)
    };
    // Of any domain: runtimes have quantized operators of their own.
    let itself = || match node.op_type() {
        "Cast" => to_integers(),
        "MaxPool" => node.output.len() > 1,
        name => name.starts_with("QLinear") || JUMPING.contains(&name),
    };
    let calls = || functions.contains(&(node.op_type(), node.domain()));
    itself() || calls() || subgraphs(node).flat_map(|g| &g.node).any(|inner| jumps(inner, functions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_call_one_that_rounds_jump_in_any_order() {
        let function = |at: usize| {
            let op_type = if at == 12 { "Round".into() } else { format!("F{}", at + 1) };
            let node = NodeProto { op_type: Some(op_type), ..NodeProto::default() };
            FunctionProto { name: Some(format!("F{at}")), node: vec![node], ..FunctionProto::default() }
        };
        let harmless = FunctionProto { name: Some("G".into()), ..FunctionProto::default() };
        let mut functions: Vec<FunctionProto> = (0..13).map(function).chain([harmless]).collect();
        for _ in 0..2 {
            let found = jumping(&functions);
            assert!(found.len() == 13 && !found.contains(&("G", "")), "{found:?}");
            functions.reverse();
        }
    }
    use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, ValueInfoProto, attribute_proto::AttributeType};

    fn node(op: &str, reads: &[&str], writes: &str) -> NodeProto {
        NodeProto {
            op_type: Some(op.into()),
            input: reads.iter().map(|&r| r.to_owned()).collect(),
            output: vec![writes.to_owned()],
            ..NodeProto::default()
        }
    }

    fn cast(reads: &str, writes: &str, to: DataType) -> NodeProto {
        let to = AttributeProto {
            name: Some("to".into()),
            i: Some(to as i64),
            r#type: Some(AttributeType::Int as i32),
            ..AttributeProto::default()
        };
        NodeProto { attribute: vec![to], ..node("Cast", &[reads], writes) }
    }

    /// Behind the change of `y`, of a graph with some outputs.
    fn behind_y(node: Vec<NodeProto>, outputs: &[&str]) -> Option<(String, Vec<String>)> {
        let value = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
        let graph = GraphProto {
            node,
            input: vec![value("x")],
            output: outputs.iter().map(|o| value(o)).collect(),
            ..GraphProto::default()
        };
        let model = Model::from_proto(ModelProto { graph: Some(graph), ..ModelProto::default() });
        model.steps_behind(&HashSet::from(["y"])).map(|steps| (steps.operator, steps.before))
    }

    #[test]
    fn only_steps_behind_a_change_count() {
        let change = || node("Relu", &["x"], "y");
        let found = |before: &[&str], operator: &str| {
            Some((operator.to_owned(), before.iter().map(|&b| b.to_owned()).collect::<Vec<_>>()))
        };
        // Before it, beside it, and of its shape alone.
        let harmless = vec![
            node("Round", &["x"], "r"),
            node("Relu", &["r"], "y"),
            node("Floor", &["x"], "f"),
            node("Shape", &["y"], "s"),
            node("Equal", &["s", "s"], "e"),
            node("Add", &["y", "f"], "z"),
        ];
        assert_eq!(behind_y(harmless, &["z", "e"]), None);
        assert_eq!(behind_y(vec![change(), node("Floor", &["y"], "unread")], &["y"]), None);
        assert_eq!(behind_y(vec![change(), cast("y", "h", DataType::Float16)], &["h"]), None);
        // The first of two, and an output beside them.
        let steps = vec![
            change(),
            node("Neg", &["y"], "n"),
            node("QuantizeLinear", &["n"], "q"),
            node("Round", &["q"], "r"),
            node("Abs", &["y"], "a"),
        ];
        assert_eq!(behind_y(steps, &["r", "a"]), found(&["n", "a"], "QuantizeLinear"));
        assert_eq!(behind_y(vec![change(), cast("y", "i", DataType::Int64)], &["i"]), found(&["y"], "Cast"));
        // Within a branch.
        let branch = GraphProto { node: vec![node("Sign", &["y"], "b")], ..GraphProto::default() };
        let attribute = vec![AttributeProto { g: Some(branch), ..AttributeProto::default() }];
        let choice = NodeProto { attribute, ..node("If", &["x"], "c") };
        assert_eq!(behind_y(vec![change(), choice], &["c"]), found(&["y"], "If"));
    }
}
