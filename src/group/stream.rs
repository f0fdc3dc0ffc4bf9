//! Residual streams: which convolutions read, and which write, one common space.
//!
//! The blocks of a stage pass on a value that each only adds to. What they read and what they add are vectors of one space, so
//! these convolutions have most to gain from a shared first (readers) or last factor (writers), whatever their role.

use super::role::{data_inputs, is_transparent};
use crate::onnx::proto::NodeProto;
use crate::onnx::{Conv, Graph, is_standard};
use std::collections::{BTreeMap, HashMap};

/// The convolutions of one residual stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Short name, `s1`, `s2`, … in graph order.
    pub name: String,
    /// Positions in [`Grouping::convs`](super::Grouping::convs) of those that read it, in graph order.
    pub readers: Vec<usize>,
    /// Of those whose output is added to it.
    pub writers: Vec<usize>,
}

/// Operators that act on each element, so that their output lies in the same space as their input.
fn is_elementwise(node: &NodeProto) -> bool {
    const ACTIVATIONS: [&str; 8] = ["Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "HardSwish", "Sigmoid", "Tanh"];
    is_transparent(node) || (is_standard(node) && ACTIVATIONS.contains(&node.op_type()))
}

/// Streams with at least two readers or two writers.
pub(super) fn streams(graph: &Graph<'_>, convs: &[Conv]) -> Vec<Stream> {
    let mut spaces = Spaces::default();
    for &index in graph.order() {
        let node = &graph.nodes()[index];
        let Some(output) = node.output.first() else { continue };
        let inputs = data_inputs(graph, node);
        let sums = is_standard(node) && node.op_type() == "Add" && inputs.len() == 2;
        if sums || (is_elementwise(node) && inputs.len() == 1) {
            inputs.iter().for_each(|input| spaces.join(input, output));
        }
    }
    let mut found: BTreeMap<usize, Stream> = BTreeMap::new();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for (index, conv) in convs.iter().enumerate() {
        for (value, reads) in [(&conv.input, true), (&conv.output, false)] {
            let space = spaces.of(value);
            let next = places.len();
            let place = *places.entry(space).or_insert(next);
            let stream = found.entry(place).or_insert_with(|| Stream {
                name: String::new(),
                readers: Vec::new(),
                writers: Vec::new(),
            });
            if reads { stream.readers.push(index) } else { stream.writers.push(index) }
        }
    }
    let shared = found.into_values().filter(|s| s.readers.len() > 1 || s.writers.len() > 1);
    shared.enumerate().map(|(at, stream)| Stream { name: format!("s{}", at + 1), ..stream }).collect()
}

/// Values in one space, as a forest of parents.
#[derive(Default)]
struct Spaces {
    numbers: HashMap<String, usize>,
    parents: Vec<usize>,
}

impl Spaces {
    fn of(&mut self, value: &str) -> usize {
        let mut at = match self.numbers.get(value) {
            Some(&number) => number,
            None => {
                self.numbers.insert(value.to_owned(), self.parents.len());
                self.parents.push(self.parents.len());
                self.parents.len() - 1
            }
        };
        while self.parents[at] != at {
            self.parents[at] = self.parents[self.parents[at]];
            at = self.parents[at];
        }
        at
    }

    fn join(&mut self, a: &str, b: &str) {
        let (a, b) = (self.of(a), self.of(b));
        self.parents[a.max(b)] = a.min(b);
    }
}
