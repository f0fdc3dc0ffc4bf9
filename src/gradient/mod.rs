//! What a small change of a value inside a network does to its outputs, for one image: with the forward values given, a
//! walk from the outputs backwards sums `x̄ = Σ (∂y/∂x)ᵀ·ȳ` over the nodes that read x.
//!
//! `rule` says what a node's derivative depends on, `read` finds it in the graph, `vjp` computes it, `window` knows how kernels slide.

mod read;
mod rule;
mod vjp;
mod window;

use crate::onnx::{Graph, captures};
use ndarray::ArrayD;
pub(crate) use read::{Constants, read};
pub(crate) use rule::Rule;
#[cfg(feature = "tune")]
pub(crate) use rule::Unary;
use std::collections::{HashMap, HashSet};

#[cfg(feature = "tune")]
pub(crate) use window::{Run, Shift, Slide, is_pointwise, runs, shifts};

/// The derivative of one node by itself.
pub(crate) struct Local {
    rule: Rule,
    inputs: usize,
}

impl Local {
    pub(crate) fn new(rule: Rule, inputs: usize) -> Self {
        Self { rule, inputs }
    }

    /// The cotangent of the input at `position`, from all inputs, the first output and its cotangent.
    pub(crate) fn cotangent(
        &self,
        inputs: &[ArrayD<f32>],
        output: &ArrayD<f32>,
        given: &ArrayD<f32>,
        position: usize,
    ) -> Option<ArrayD<f32>> {
        let each = inputs.iter().enumerate().map(|(i, x)| (Place::Input(i), x));
        let seen = Seen { values: each.chain([(Place::Output, output)]).collect(), inputs: self.inputs };
        vjp::vjp(&self.rule, &seen, &[Some(given)], position)
    }
}

/// A reverse walk through the part of a graph that lies between some values and the outputs.
pub(crate) struct Backward<'g> {
    wanted: Vec<String>,
    /// Wanted values from which some way to an output passes an operator without a rule.
    blocked: HashSet<&'g str>,
    /// Nodes to walk, in graph order.
    steps: Vec<Step<'g>>,
    needed: Vec<String>,
}

/// One node of the walk.
struct Step<'g> {
    rule: Rule,
    inputs: &'g [String],
    outputs: &'g [String],
    /// Input positions that get a cotangent.
    flowing: Vec<usize>,
    /// What the rule reads of the forward pass.
    reads: Vec<(Place, Operand<'g>)>,
}

/// An input of a node, or its first output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Input(usize),
    Output,
}

/// Where a forward value comes from.
enum Operand<'g> {
    Constant(ArrayD<f32>),
    Value(&'g str),
}

/// The forward values of one node.
struct Seen<'s> {
    values: Vec<(Place, &'s ArrayD<f32>)>,
    inputs: usize,
}

impl<'s> Seen<'s> {
    fn input(&self, position: usize) -> Option<&'s ArrayD<f32>> {
        self.at(Place::Input(position))
    }

    fn output(&self) -> Option<&'s ArrayD<f32>> {
        self.at(Place::Output)
    }

    fn at(&self, place: Place) -> Option<&'s ArrayD<f32>> {
        self.values.iter().find(|v| v.0 == place).map(|v| v.1)
    }
}

/// A cotangent summed so far; none once a summand could not be computed.
type Sum = Option<ArrayD<f32>>;

impl<'g> Backward<'g> {
    /// A reverse walk from the outputs of the graph to `wanted` values.
    pub(crate) fn new(graph: &'g Graph<'g>, wanted: &[&str]) -> Self {
        let constants = Constants::new(graph);
        let known = |name: &str| names(graph).find(|n| *n == name);
        let sources: HashSet<&'g str> = wanted.iter().filter_map(|w| known(w)).collect();
        let (blocked, reaching) = blocked(graph, &constants, &graph.descendants(sources.iter().copied()));
        let open = sources.iter().copied().filter(|w| !blocked.contains(w));
        let descended = graph.descendants(open);
        let mut steps = Vec::new();
        for &index in graph.order() {
            let node = &graph.nodes()[index];
            let flowing: Vec<usize> = positions(&node.input, &descended);
            let walked = node.output.iter().any(|o| reaching.contains(o.as_str()))
                && !node.output.iter().any(|o| blocked.contains(o.as_str()));
            if flowing.is_empty() || !walked {
                continue;
            }
            let Some(rule) = read(node, graph, &constants) else { continue };
            let Some(reads) = operands(&rule, &node.input, &node.output, &flowing, &constants) else { continue };
            steps.push(Step { rule, inputs: &node.input, outputs: &node.output, flowing, reads });
        }
        let mut needed = Vec::new();
        let mut listed = HashSet::new();
        let unreached = sources.iter().copied().filter(|s| !reaching.contains(s));
        let mut unreached: Vec<&str> = unreached.collect();
        unreached.sort_unstable();
        let read = steps.iter().flat_map(|s| &s.reads).filter_map(|(_, operand)| match operand {
            Operand::Value(name) => Some(*name),
            Operand::Constant(_) => None,
        });
        for name in read.chain(unreached) {
            if listed.insert(name) {
                needed.push(name.to_owned());
            }
        }
        let blocked = blocked.into_iter().filter(|b| sources.contains(b)).collect();
        Self { wanted: wanted.iter().map(|w| (*w).to_owned()).collect(), blocked, steps, needed }
    }

    /// Names of the forward values that the walk reads, each once, in the order of the graph.
    pub(crate) fn needed(&self) -> &[String] {
        &self.needed
    }

    /// For each wanted value its cotangent `Σ_o (∂y_o/∂value)ᵀ·v_o`, zero where it reaches no output of `outputs`; none
    /// where some way from it to an output of the graph passes an operator without a rule. That follows from the graph
    /// alone, as long as `values` holds every needed value with the shape that the graph gives it.
    pub(crate) fn cotangents(
        &self,
        values: &HashMap<String, ArrayD<f32>>,
        outputs: &[(String, ArrayD<f32>)],
    ) -> Vec<Option<ArrayD<f32>>> {
        let mut sums: HashMap<&str, Sum> = HashMap::new();
        for (name, cotangent) in outputs {
            add(&mut sums, name, Some(cotangent.clone()));
        }
        for step in self.steps.iter().rev() {
            let mut given: Vec<Option<Sum>> = step.outputs.iter().map(|o| sums.remove(o.as_str())).collect();
            let failed = given.iter().any(|g| matches!(g, Some(None)));
            if given.iter().any(Option::is_some) {
                let arrays: Vec<Option<&ArrayD<f32>>> =
                    given.iter().map(|g| g.as_ref().and_then(Option::as_ref)).collect();
                let seen = step.seen(values).filter(|_| !failed);
                for &position in &step.flowing {
                    let cotangent = seen.as_ref().and_then(|seen| vjp::vjp(&step.rule, seen, &arrays, position));
                    add(&mut sums, &step.inputs[position], cotangent);
                }
            }
            for (output, sum) in step.outputs.iter().zip(&mut given) {
                if let Some(sum) = sum.take().filter(|_| self.wanted.contains(output)) {
                    sums.insert(output, sum);
                }
            }
        }
        let each = self.wanted.iter().map(|wanted| match sums.get(wanted.as_str()) {
            _ if self.blocked.contains(wanted.as_str()) => None,
            Some(sum) => sum.clone(),
            None => values.get(wanted).map(|value| ArrayD::zeros(value.raw_dim())),
        });
        each.collect()
    }
}

impl Step<'_> {
    fn seen<'s>(&'s self, values: &'s HashMap<String, ArrayD<f32>>) -> Option<Seen<'s>> {
        let value = |operand: &'s Operand<'_>| match operand {
            Operand::Constant(array) => Some(array),
            Operand::Value(name) => values.get(*name),
        };
        let found = self.reads.iter().map(|(place, operand)| Some((*place, value(operand)?)));
        Some(Seen { values: found.collect::<Option<_>>()?, inputs: self.inputs.len() })
    }
}

fn add<'n>(sums: &mut HashMap<&'n str, Sum>, name: &'n str, cotangent: Sum) {
    let sum = match (sums.remove(name), cotangent) {
        (None, only) => only,
        (Some(Some(mut sum)), Some(cotangent)) if sum.shape() == cotangent.shape() => {
            sum += &cotangent;
            Some(sum)
        }
        _ => None,
    };
    sums.insert(name, sum);
}

/// Every value of the graph.
fn names<'g>(graph: &'g Graph<'g>) -> impl Iterator<Item = &'g str> {
    let written = graph.nodes().iter().flat_map(|n| &n.output).map(String::as_str);
    written.chain(graph.proto().input.iter().map(|i| i.name())).filter(|n| !n.is_empty())
}

/// Input positions at which a node reads one of some values.
fn positions(inputs: &[String], values: &HashSet<&str>) -> Vec<usize> {
    (0..inputs.len()).filter(|&i| values.contains(inputs[i].as_str())).collect()
}

/// The flowing values from which some way to an output passes a node without a rule, and all from which there is a way.
fn blocked<'g>(
    graph: &'g Graph<'g>,
    constants: &Constants<'g>,
    flowing: &HashSet<&'g str>,
) -> (HashSet<&'g str>, HashSet<&'g str>) {
    let outputs = graph.proto().output.iter().map(|o| o.name());
    let mut reaching: HashSet<&str> = outputs.filter(|o| flowing.contains(o)).collect();
    let mut blocked: HashSet<&str> = HashSet::new();
    for &index in graph.order().iter().rev() {
        let node = &graph.nodes()[index];
        let reached: Vec<usize> = positions(&node.output, &reaching);
        if reached.is_empty() {
            continue;
        }
        let read = positions(&node.input, flowing);
        let closed = node.output.iter().any(|o| blocked.contains(o.as_str()));
        let rule = self::read(node, graph, constants).filter(|rule| {
            (rule.has_several_outputs() || reached == [0])
                && operands(rule, &node.input, &node.output, &read, constants).is_some()
        });
        for position in read {
            let name = node.input[position].as_str();
            reaching.insert(name);
            if closed || !rule.as_ref().is_some_and(|r| r.differentiates(position)) {
                blocked.insert(name);
            }
        }
        for name in captures(node).into_iter().filter(|n| flowing.contains(n)) {
            reaching.insert(name);
            blocked.insert(name);
        }
    }
    (blocked, reaching)
}

/// What a rule reads; none if it needs a constant that is no float32 tensor.
fn operands<'g>(
    rule: &Rule,
    inputs: &'g [String],
    outputs: &'g [String],
    flowing: &[usize],
    constants: &Constants<'g>,
) -> Option<Vec<(Place, Operand<'g>)>> {
    let operand = |place: Place| {
        let name = match place {
            Place::Input(position) => inputs.get(position)?,
            Place::Output => outputs.first()?,
        };
        if !constants.contains(name) {
            return Some((place, Operand::Value(name)));
        }
        Some((place, Operand::Constant(constants.floats(name)?)))
    };
    rule.reads(inputs.len(), flowing).into_iter().map(operand).collect()
}

#[cfg(test)]
pub(crate) mod tests;
