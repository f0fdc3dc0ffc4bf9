//! A read-only index over a model's main graph: who writes a value, who reads it, what is constant.

use super::Model;
use super::folding::folds;
use super::kind::is_layer;
use super::proto::{GraphProto, NodeProto, TensorProto};
use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The index. Nodes are named by their position in the file.
#[derive(Debug)]
pub(crate) struct Graph<'m> {
    proto: &'m GraphProto,
    producer: HashMap<&'m str, usize>,
    consumers: HashMap<&'m str, Vec<Use>>,
    initializers: HashMap<&'m str, &'m TensorProto>,
    /// Initializers that are also inputs of an IR ≥ 4 model: a caller may replace them.
    overridable: HashSet<&'m str>,
    /// Tensors behind names that are constant.
    constants: HashMap<&'m str, &'m TensorProto>,
    /// Values that no input of the graph changes.
    fixed: HashSet<&'m str>,
    /// For what rearranges or converts a value, how often its result or anything that it follows from is read.
    copies: HashMap<&'m str, usize>,
    order: Vec<usize>,
    /// Where each node stands in the order.
    place: Vec<usize>,
    /// Whether an output follows from a node.
    live: Vec<bool>,
    opset: i64,
    /// In a model of float32, the type of tensors that are read as if they were.
    kept: Option<i32>,
}

/// One reading of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// By a node, at an input position.
    Node(usize, usize),
    /// From inside a node's subgraph.
    Captured(usize),
    /// As an output of the graph.
    Output,
}

impl<'m> Graph<'m> {
    /// # Errors
    /// [`Error::Dangling`], [`Error::WrittenTwice`] or [`Error::Cycle`].
    pub(crate) fn new(model: &'m Model) -> Result<Self> {
        let proto =
            model.proto().graph.as_ref().ok_or_else(|| Error::NotOnnx { reason: "it holds no graph".into() })?;
        let mut initializers: HashMap<&str, &TensorProto> = HashMap::new();
        for tensor in &proto.initializer {
            if initializers.insert(tensor.name(), tensor).is_some() {
                return Err(Error::WrittenTwice { value: tensor.name().into(), node: "(initializer)".into() });
            }
        }
        let inputs: HashSet<&str> = proto.input.iter().map(|i| i.name()).collect();
        let given: HashSet<&str> = inputs
            .iter()
            .copied()
            .chain(initializers.keys().copied())
            .chain(proto.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name()))
            .collect();
        let mut graph = Self {
            proto,
            producer: HashMap::new(),
            consumers: HashMap::new(),
            overridable: HashSet::new(),
            constants: HashMap::new(),
            fixed: HashSet::new(),
            copies: HashMap::new(),
            initializers,
            order: Vec::new(),
            place: Vec::new(),
            live: Vec::new(),
            opset: model.opset(),
            kept: model.kept().map(|precision| precision.data_type() as i32),
        };
        if model.proto().ir_version() >= 4 {
            graph.overridable = inputs.iter().copied().filter(|n| graph.initializers.contains_key(n)).collect();
        }
        for (index, node) in proto.node.iter().enumerate() {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                if given.contains(output.as_str()) || graph.producer.insert(output, index).is_some() {
                    return Err(Error::WrittenTwice { value: output.clone(), node: label(node) });
                }
            }
        }
        for (index, node) in proto.node.iter().enumerate() {
            for (position, input) in node.input.iter().enumerate().filter(|(_, i)| !i.is_empty()) {
                if !given.contains(input.as_str()) && !graph.producer.contains_key(input.as_str()) {
                    return Err(Error::Dangling { node: label(node), value: input.clone() });
                }
                graph.consumers.entry(input).or_default().push(Use::Node(index, position));
            }
            for name in captures(node) {
                if !given.contains(name) && !graph.producer.contains_key(name) {
                    return Err(Error::Dangling { node: label(node), value: name.into() });
                }
                graph.consumers.entry(name).or_default().push(Use::Captured(index));
            }
        }
        for output in &proto.output {
            if !given.contains(output.name()) && !graph.producer.contains_key(output.name()) {
                return Err(Error::Dangling { node: "(graph output)".into(), value: output.name().into() });
            }
            graph.consumers.entry(output.name()).or_default().push(Use::Output);
        }
        graph.order = graph.sort()?;
        graph.place = vec![0; proto.node.len()];
        graph.order.iter().enumerate().for_each(|(at, &node)| graph.place[node] = at);
        graph.live = live(proto);
        graph.resolve_constants();
        Ok(graph)
    }

    fn resolve_constants(&mut self) {
        self.constants = self.initializers.clone();
        self.constants.retain(|name, _| !self.overridable.contains(name));
        let sparse = self.proto.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
        self.fixed = self.constants.keys().copied().chain(sparse.map(|v| v.name())).collect();
        for &index in &self.order {
            let node = &self.proto.node[index];
            if is_repeatable(node) && node.input.iter().all(|i| i.is_empty() || self.fixed.contains(i.as_str())) {
                self.fixed.extend(node.output.iter().map(String::as_str).filter(|o| !o.is_empty()));
            }
            let Some(output) = node.output.first().filter(|_| is_standard(node)) else { continue };
            if folds(node) {
                let input = node.input.first().map_or("", String::as_str);
                self.copies.insert(output, self.readings(output).max(self.constant_uses(input)));
            }
            let tensor = match node.op_type() {
                "Identity" => {
                    let input = node.input.first().map_or("", String::as_str);
                    self.constants.get(input).copied()
                }
                "Constant" => node.attribute.iter().find(|a| a.name() == "value").and_then(|a| a.t.as_ref()),
                _ => None,
            };
            self.constants.extend(tensor.map(|t| (output.as_str(), t)));
        }
    }

    /// Kahn's order, the file's order among nodes that are ready together.
    fn sort(&self) -> Result<Vec<usize>> {
        let nodes = &self.proto.node;
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
        let mut waiting = vec![0usize; nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            let read: BTreeSet<&str> = node.input.iter().map(String::as_str).chain(captures(node)).collect();
            for producer in read.iter().filter_map(|name| self.producer.get(name)) {
                readers[*producer].push(index);
                waiting[index] += 1;
            }
        }
        let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&n| waiting[n] == 0).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(index) = ready.pop_first() {
            order.push(index);
            for &reader in &readers[index] {
                waiting[reader] -= 1;
                if waiting[reader] == 0 {
                    ready.insert(reader);
                }
            }
        }
        match waiting.iter().position(|&w| w > 0) {
            Some(stuck) => Err(Error::Cycle { node: label(&nodes[stuck]) }),
            None => Ok(order),
        }
    }

    pub(crate) fn nodes(&self) -> &'m [NodeProto] {
        &self.proto.node
    }

    pub(crate) fn proto(&self) -> &'m GraphProto {
        self.proto
    }

    /// Node positions such that every node comes after what it reads.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The version of ONNX's own operators that the model is written in.
    pub(crate) fn opset(&self) -> i64 {
        self.opset
    }

    /// Whether a tensor of another type than float32 is read as if it were, see [`Model::mostly_in_f32`].
    pub(crate) fn reads_as_float(&self, tensor: &TensorProto) -> bool {
        self.kept.is_some_and(|kept| kept == tensor.data_type())
    }

    pub(crate) fn producer(&self, value: &str) -> Option<usize> {
        self.producer.get(value).copied()
    }

    pub(crate) fn uses(&self, value: &str) -> &[Use] {
        self.consumers.get(value).map_or(&[], Vec::as_slice)
    }

    /// The only node that reads a value, if nothing else does.
    pub(crate) fn only_reader(&self, value: &str) -> Option<(usize, usize)> {
        match self.uses(value) {
            [Use::Node(node, position)] => Some((*node, *position)),
            _ => None,
        }
    }

    /// The sources and everything that is computed from them, but for what follows from their shapes alone.
    #[cfg(feature = "verify")]
    pub(crate) fn descendants<'s>(&'s self, sources: impl Iterator<Item = &'s str>) -> HashSet<&'s str> {
        let mut found: HashSet<&str> = sources.collect();
        for &index in &self.order {
            let node = &self.proto.node[index];
            let shape_only = is_standard(node) && matches!(node.op_type(), "Shape" | "Size");
            let reads = node.input.iter().map(String::as_str).chain(captures(node)).any(|i| found.contains(i));
            if reads && !shape_only {
                found.extend(node.output.iter().map(String::as_str).filter(|o| !o.is_empty()));
            }
        }
        found
    }

    pub(crate) fn is_overridable(&self, name: &str) -> bool {
        self.overridable.contains(name)
    }

    /// Whether a name is that of a sparse initializer.
    pub(crate) fn is_sparse(&self, name: &str) -> bool {
        self.proto.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).any(|values| values.name() == name)
    }

    /// The tensor behind a name if it is constant: an initializer, a `Constant` node, or either
    /// behind `Identity` nodes.
    pub(crate) fn constant(&self, name: &str) -> Option<&'m TensorProto> {
        self.constants.get(name).copied()
    }

    /// Whether a value is the same in every run: constant, or computed from constants alone.
    pub(crate) fn is_constant(&self, name: &str) -> bool {
        self.fixed.contains(name)
    }

    /// Weights of convolutions and fully connected layers and the biases of the latter, each constant once.
    pub(crate) fn layer_weights(&self) -> u64 {
        let read = self.nodes().iter().filter(|n| is_standard(n)).flat_map(|node| match node.op_type() {
            "Conv" | "ConvTranspose" => node.input.get(1..2),
            "Gemm" => node.input.get(1..),
            "MatMul" => Some(&node.input[..]),
            _ => None,
        });
        let names: HashSet<&str> = read.flatten().map(|name| self.stored(name)).collect();
        let elements = |t: &TensorProto| t.dims.iter().map(|d| d.unsigned_abs()).fold(1, u64::saturating_mul);
        names.into_iter().filter_map(|name| self.constant(name)).map(elements).fold(0, u64::saturating_add)
    }

    /// How often a value is read by what outputs follow from: the rest goes with the tensor.
    fn readings(&self, name: &str) -> usize {
        let read = |each: &&Use| match **each {
            // A shape stays what it was, whatever becomes of the value.
            Use::Node(node, _) if asks_shape(&self.proto.node[node]) && self.constants.contains_key(name) => false,
            Use::Node(node, _) | Use::Captured(node) => self.live[node],
            Use::Output => true,
        };
        self.uses(name).iter().filter(read).count()
    }

    /// Whether an output of the graph follows from a node.
    pub(crate) fn is_live(&self, node: usize) -> bool {
        self.live[node]
    }

    /// Convolutions and fully connected layers whose kernel a name is, if outputs follow from them, in the graph's order.
    pub(crate) fn layers_reading(&self, name: &str) -> Vec<usize> {
        let kernels = self.uses(name).iter().filter_map(|each| match *each {
            Use::Node(node, 1) if self.live[node] && is_layer(self, &self.proto.node[node]) => Some(node),
            _ => None,
        });
        let mut found: Vec<usize> = kernels.collect();
        if found.len() > 1 {
            found.sort_by_key(|node| self.place[*node]);
        }
        found
    }

    /// How often the tensor behind a constant name is read, what rearranges or converts it in between not counted.
    pub(crate) fn constant_uses(&self, name: &str) -> usize {
        self.copies.get(name).copied().unwrap_or_else(|| self.readings(name))
    }
}

/// Whether a node reads the shape of a value alone.
pub(crate) fn asks_shape(node: &NodeProto) -> bool {
    is_standard(node) && node.op_type() == "Shape"
}

/// Whether a node gives the same for the same inputs, as far as can be told.
fn is_repeatable(node: &NodeProto) -> bool {
    let drawn =
        node.op_type().starts_with("Random") || matches!(node.op_type(), "Bernoulli" | "Multinomial" | "Dropout");
    is_standard(node) && !drawn && node.attribute.iter().all(|a| a.g.is_none() && a.graphs.is_empty())
}

/// Whether an operator is ONNX's own, and not one of the same name from another domain.
pub(crate) fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

/// A node's name, or where it has none, its operator and first output.
pub(crate) fn label(node: &NodeProto) -> String {
    match node.name() {
        "" => format!("{}({})", node.op_type(), node.output.first().map_or("", String::as_str)),
        name => name.to_owned(),
    }
}

/// For each node whether an output of the graph follows from it.
pub(crate) fn live(graph: &GraphProto) -> Vec<bool> {
    let written = graph.node.iter().enumerate().flat_map(|(at, n)| n.output.iter().map(move |o| (o.as_str(), at)));
    let producer: HashMap<&str, usize> = written.collect();
    let mut live = vec![false; graph.node.len()];
    let mut open: Vec<usize> = graph.output.iter().filter_map(|o| producer.get(o.name()).copied()).collect();
    while let Some(at) = open.pop() {
        if std::mem::replace(&mut live[at], true) {
            continue;
        }
        let node = &graph.node[at];
        let read = node.input.iter().map(String::as_str).chain(captures(node));
        open.extend(read.filter_map(|name| producer.get(name).copied()));
    }
    live
}

/// Names that a node's subgraphs may read from outside: every name they read that they do not make.
pub(crate) fn captures(node: &NodeProto) -> Vec<&str> {
    fn free<'g>(graph: &'g GraphProto, found: &mut Vec<&'g str>) {
        let own: HashSet<&str> = graph
            .input
            .iter()
            .map(|i| i.name())
            .chain(graph.initializer.iter().map(|t| t.name()))
            .chain(graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name()))
            .chain(graph.node.iter().flat_map(|n| &n.output).map(String::as_str))
            .collect();
        let mut read: Vec<&str> = graph.output.iter().map(|o| o.name()).collect();
        for node in &graph.node {
            read.extend(node.input.iter().filter(|i| !i.is_empty()).map(String::as_str));
            subgraphs(node).for_each(|g| free(g, &mut read));
        }
        found.extend(read.into_iter().filter(|n| !own.contains(n)));
    }
    let mut found = Vec::new();
    subgraphs(node).for_each(|g| free(g, &mut found));
    found.sort_unstable();
    found.dedup();
    found
}

/// The subgraphs of a node, but for those within these.
pub(crate) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// Gives names that nothing else in the model has.
#[derive(Debug)]
pub(crate) struct Namer {
    taken: HashSet<String>,
    /// For a name that was wanted and taken, the number to try next.
    next: HashMap<String, usize>,
}

impl Namer {
    /// Starts from every name in the graph, inside subgraphs too.
    pub(crate) fn new(graph: &GraphProto) -> Self {
        fn collect(graph: &GraphProto, taken: &mut HashSet<String>) {
            taken.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
            let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
            taken.extend(values.map(|v| v.name().to_owned()));
            taken
                .extend(graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name().to_owned()));
            taken.extend(graph.quantization_annotation.iter().map(|a| a.tensor_name().to_owned()));
            for node in &graph.node {
                taken.insert(node.name().to_owned());
                taken.extend(node.input.iter().chain(&node.output).cloned());
                subgraphs(node).for_each(|g| collect(g, taken));
            }
        }
        let mut taken = HashSet::new();
        collect(graph, &mut taken);
        Self { taken, next: HashMap::new() }
    }

    /// Whether nothing has this name.
    #[cfg(feature = "tune")]
    pub(crate) fn is_free(&self, name: &str) -> bool {
        !self.taken.contains(name)
    }

    /// `wanted`, or `wanted_2`, `wanted_3`, … if that is taken.
    pub(crate) fn fresh(&mut self, wanted: &str) -> String {
        let from = self.next.get(wanted).copied().unwrap_or(1);
        let named = |n: usize| if n == 1 { wanted.to_owned() } else { format!("{wanted}_{n}") };
        let found = (from..).map(|n| (n, named(n))).find(|(_, name)| !self.taken.contains(name));
        let (number, name) = found.unwrap_or_default();
        self.next.insert(wanted.to_owned(), number + 1);
        self.taken.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_wanted_often_is_found_at_once() {
        let mut namer = Namer::new(&GraphProto::default());
        assert_eq!(["x", "x", "x_2", "x"].map(|wanted| namer.fresh(wanted)), ["x", "x_2", "x_2_2", "x_3"]);
        // Trying every number again takes minutes.
        (0..100_000).for_each(|_| drop(namer.fresh("y")));
        assert_eq!(namer.fresh("y"), "y_100001");
    }
}
