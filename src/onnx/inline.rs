//! Local functions in the place of their calls (onnx.proto, `FunctionProto`; PyTorch's first dynamo exporters make one of each module).
//!
//! Only where a function that is called holds a layer with a kernel, itself or in what it calls, or makes a layer's kernel or bias: then
//! all are, but for those of domains whose operators runtimes know better than by their bodies, and those that subgraphs call, too, as
//! they would have to stay. A constant of a body is an initializer that all calls share. A model is left as it is where that would not
//! be the same, or would take more than [`MOST_NODES`] or [`MOST_BYTES`].
//!
//! In the copy that a runtime is given that knows operators by their names alone, all functions stand in the place of their calls.

use super::encode;
use super::functions::{Key, by_key, called, called_from, calls, key, reached};
use super::graph::{Namer, is_standard, label, subgraphs};
use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Nodes that calls may become, all together: files of a few kilobytes can double their functions without end.
const MOST_NODES: usize = 1 << 16;
/// Bytes that these may take, but for the data of their constants.
const MOST_BYTES: usize = 1 << 26;
/// Calls within calls.
const DEEPEST: usize = 64;
/// Operators with a kernel.
const LAYERS: [&str; 4] = ["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// Whether runtimes may have an operator of this domain, to which the function is a fallback.
fn is_known_to_runtimes(domain: &str) -> bool {
    domain.is_empty() || domain.starts_with("ai.onnx") || domain.starts_with("com.microsoft")
}

/// The model without the functions that stand in the way of its layers, and the names of these; none if there are none, or if it has to
/// stay as it is.
pub(super) fn inlined(model: &ModelProto) -> Option<(ModelProto, Vec<String>)> {
    let graph = model.graph.as_ref()?;
    let mut functions = by_key(model)?;
    let staying = staying(model, &functions);
    functions.retain(|key, _| !is_known_to_runtimes(key.0) && !staying.contains(key));
    let (holding, kernels) = (holding(&functions), kernels(graph));
    let wanted = |node: &NodeProto| {
        let made = || node.output.iter().any(|output| kernels.contains(output.as_str()));
        functions.contains_key(&called(node)) && (holding.contains(&called(node)) || made())
    };
    if !graph.node.iter().any(wanted) {
        return None;
    }
    without(model, functions)
}

/// The model without any functions, as far as its main graph calls them; none if it calls none, or if that cannot be.
#[cfg(feature = "verify")]
pub(super) fn all_inlined(model: &ModelProto) -> Option<ModelProto> {
    let mut functions = by_key(model)?;
    // An operator of ONNX is what ONNX says, and one of another version is another.
    functions.retain(|key, function| {
        !matches!(key.0, "" | "ai.onnx") && function.opset_import.iter().all(|set| agrees(model, set))
    });
    let calls = model.graph.as_ref()?.node.iter().any(|node| functions.contains_key(&called(node)));
    if calls { without(model, functions).map(|(made, _)| made) } else { None }
}

/// Values that layers of a graph read as kernels and biases, and that are the same in every run.
fn kernels(graph: &GraphProto) -> HashSet<&str> {
    let mut fixed: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    // Nodes stand behind what they read.
    for node in &graph.node {
        let follows = node.input.iter().all(|name| name.is_empty() || fixed.contains(name.as_str()));
        fixed.extend(node.output.iter().filter(|_| follows).map(String::as_str));
    }
    let read = graph.node.iter().filter(|node| is_layer(node)).flat_map(|node| node.input.iter().skip(1));
    read.map(String::as_str).filter(|name| fixed.contains(name)).collect()
}

/// Whether two names of a domain are of one: ONNX's has two.
fn is_same(a: &str, b: &str) -> bool {
    let is_standard = |domain: &str| matches!(domain, "" | "ai.onnx");
    a == b || is_standard(a) && is_standard(b)
}

/// Whether a model has no other version of a domain's operators.
fn agrees(model: &ModelProto, set: &OperatorSetIdProto) -> bool {
    let known = model.opset_import.iter().find(|known| is_same(known.domain(), set.domain()));
    known.is_none_or(|known| known.version() == set.version())
}

fn is_layer(node: &NodeProto) -> bool {
    is_standard(node) && LAYERS.contains(&node.op_type())
}

/// Functions that cannot be taken away, and what they call: those of runtimes, and those that subgraphs call.
fn staying<'m>(model: &'m ModelProto, functions: &HashMap<Key<'m>, &'m FunctionProto>) -> HashSet<Key<'m>> {
    let reached = reached(model);
    let bodies = || reached.iter().flat_map(|f| &f.node);
    let nodes = model.graph.iter().flat_map(|g| &g.node).chain(bodies());
    let mut found = HashSet::new();
    nodes.flat_map(subgraphs).for_each(|graph| calls(&graph.node, &mut found));
    reached.iter().filter(|f| is_known_to_runtimes(f.domain())).for_each(|f| calls(&f.node, &mut found));
    called_from(functions, found)
}

/// The model with the bodies of these functions in the place of their calls.
fn without<'m>(
    model: &'m ModelProto,
    functions: HashMap<Key<'m>, &'m FunctionProto>,
) -> Option<(ModelProto, Vec<String>)> {
    let graph = model.graph.as_ref()?;
    let mut inliner = Inliner {
        functions,
        namer: Namer::new(graph),
        nodes: Vec::with_capacity(graph.node.len()),
        constants: HashMap::new(),
        initializers: Vec::new(),
        placed: 0,
        bytes: 0,
        used: BTreeMap::new(),
    };
    for node in &graph.node {
        inliner.place(node.clone(), 0)?;
    }
    let Inliner { nodes, initializers, used, .. } = inliner;
    let mut made = model.clone();
    // A function's operators are those of its own versions.
    let used_functions: Vec<&FunctionProto> = used.into_values().collect();
    for set in used_functions.iter().flat_map(|function| &function.opset_import) {
        if !agrees(&made, set) {
            return None;
        }
        if !made.opset_import.iter().any(|known| is_same(known.domain(), set.domain())) {
            made.opset_import.push(set.clone());
        }
    }
    let names = used_functions.iter().map(|function| function.name().to_owned()).collect();
    let graph = made.graph.as_mut()?;
    graph.node = nodes;
    graph.initializer.extend(initializers);
    // Of the others, what nothing calls is gone, too: it may hold what stands in the graph now.
    made.functions = reached(&made).into_iter().cloned().collect();
    Some((made, names))
}

/// Which of these functions hold a layer, or call one of them that does.
fn holding<'m>(functions: &HashMap<Key<'m>, &'m FunctionProto>) -> HashSet<Key<'m>> {
    let mut callers: HashMap<Key<'_>, Vec<Key<'_>>> = HashMap::new();
    for (&caller, function) in functions {
        function.node.iter().for_each(|node| callers.entry(called(node)).or_default().push(caller));
    }
    let holds = |(_, function): &(&Key<'_>, &&FunctionProto)| function.node.iter().any(is_layer);
    let mut open: Vec<Key<'_>> = functions.iter().filter(holds).map(|(key, _)| *key).collect();
    let mut found = HashSet::new();
    while let Some(key) = open.pop() {
        if found.insert(key) {
            open.extend(callers.get(&key).into_iter().flatten());
        }
    }
    found
}

/// The graph while calls are replaced.
struct Inliner<'m> {
    functions: HashMap<Key<'m>, &'m FunctionProto>,
    namer: Namer,
    nodes: Vec<NodeProto>,
    /// Constants of bodies that are initializers by now: by function and name.
    constants: HashMap<(Key<'m>, &'m str), String>,
    initializers: Vec<TensorProto>,
    /// Nodes of bodies, calls among them, and the bytes of these and of names.
    placed: usize,
    bytes: usize,
    used: BTreeMap<Key<'m>, &'m FunctionProto>,
}

impl<'m> Inliner<'m> {
    /// Puts a node, or what it calls, behind the others; none if that cannot be.
    fn place(&mut self, node: NodeProto, depth: usize) -> Option<()> {
        self.placed += usize::from(depth > 0);
        if self.placed > MOST_NODES || self.bytes > MOST_BYTES {
            return None;
        }
        let function = self.functions.get(&called(&node)).copied();
        let Some(function) = function else {
            self.nodes.push(node);
            return Some(());
        };
        if depth > DEEPEST || node.input.len() > function.input.len() || node.output.len() > function.output.len() {
            return None;
        }
        self.used.insert(key(function), function);
        // Each node that refers to an attribute gets one of its own.
        let given = encode::length(&node) + encode::length_of(&function.attribute_proto);
        self.bytes += given;
        let owner = label(&node);
        let names = self.names(function, &node, &owner)?;
        for inner in function.node.iter().filter(|inner| hoisted(inner).is_none()) {
            let own = self.namer.fresh(&format!("{owner}/{}", label(inner)));
            self.bytes = self.bytes.saturating_add(encode::length(inner) + own.len() + given * references(inner));
            if self.bytes > MOST_BYTES {
                return None;
            }
            let mut made = inner.clone();
            bind(&mut made, &node, function, &names)?;
            made.name = Some(own);
            self.place(made, depth + 1)?;
        }
        // A value that goes through, or out twice, or that is an initializer, has a name of its own outside.
        for (formal, actual) in function.output.iter().zip(&node.output).filter(|(_, actual)| !actual.is_empty()) {
            let made = names.get(formal.as_str()).filter(|name| !name.is_empty())?;
            if made != actual {
                self.nodes.push(NodeProto {
                    name: Some(self.namer.fresh(&format!("{owner}/{actual}"))),
                    op_type: Some("Identity".into()),
                    input: vec![made.clone()],
                    output: vec![actual.clone()],
                    ..NodeProto::default()
                });
            }
        }
        Some(())
    }

    /// What the names of a body stand for in a call of it; none where one is not of its own.
    fn names(
        &mut self,
        function: &'m FunctionProto,
        call: &NodeProto,
        owner: &str,
    ) -> Option<HashMap<&'m str, String>> {
        let mut names: HashMap<&str, String> = HashMap::new();
        let given = call.input.iter().cloned().chain(std::iter::repeat(String::new()));
        for (formal, actual) in function.input.iter().zip(given) {
            if names.insert(formal, actual).is_some() {
                return None;
            }
        }
        // What goes out has the caller's name from where it is made.
        let mut out: HashMap<&str, &String> = HashMap::new();
        for (formal, actual) in function.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty()) {
            out.entry(formal).or_insert(actual);
        }
        for node in &function.node {
            for name in node.output.iter().filter(|o| !o.is_empty()) {
                let own = match (hoisted(node), out.get(name.as_str())) {
                    (Some(value), _) => self.constant(function, name, value),
                    (None, Some(outer)) => (*outer).clone(),
                    (None, None) => self.namer.fresh(&format!("{owner}/{name}")),
                };
                self.bytes += own.len();
                if names.insert(name, own).is_some() || self.bytes > MOST_BYTES {
                    return None;
                }
            }
        }
        // Two branches may each have a value of one name: it is another one in both.
        let mut inner = Vec::new();
        let graphs = function.node.iter().flat_map(subgraphs);
        graphs.for_each(|graph| defined(graph, &mut inner));
        let mut renamed = HashSet::new();
        for name in inner.into_iter().filter(|name| renamed.insert(*name)) {
            let own = self.namer.fresh(&format!("{owner}/{name}"));
            self.bytes += own.len();
            if names.insert(name, own).is_some() || self.bytes > MOST_BYTES {
                return None;
            }
        }
        Some(names)
    }

    /// The initializer that a body's constant is.
    fn constant(&mut self, function: &'m FunctionProto, output: &'m str, value: &TensorProto) -> String {
        let known = self.constants.entry((key(function), output));
        known
            .or_insert_with(|| {
                let name = self.namer.fresh(&format!("{}/{output}", function.name()));
                self.initializers.push(TensorProto { name: Some(name.clone()), ..value.clone() });
                name
            })
            .clone()
    }
}

/// The tensor of a constant that does not depend on the call.
fn hoisted(node: &NodeProto) -> Option<&TensorProto> {
    let [attribute] = &node.attribute[..] else { return None };
    let constant = is_standard(node) && node.op_type() == "Constant" && node.output.len() == 1;
    attribute.t.as_ref().filter(|_| constant && attribute.name() == "value" && attribute.ref_attr_name().is_empty())
}

/// How many attributes are the call's, within subgraphs too.
fn references(node: &NodeProto) -> usize {
    let own = node.attribute.iter().filter(|a| !a.ref_attr_name().is_empty()).count();
    own + subgraphs(node).flat_map(|g| &g.node).map(references).sum::<usize>()
}

/// Names that a subgraph defines, and those within.
fn defined<'m>(graph: &'m GraphProto, found: &mut Vec<&'m str>) {
    found.extend(graph.input.iter().map(|i| i.name()));
    found.extend(graph.initializer.iter().map(|t| t.name()));
    found.extend(graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name()));
    for node in &graph.node {
        found.extend(node.output.iter().filter(|o| !o.is_empty()).map(String::as_str));
        subgraphs(node).for_each(|inner| defined(inner, found));
    }
}

/// Gives a node of a body the names and attributes of a call.
fn bind(node: &mut NodeProto, call: &NodeProto, function: &FunctionProto, names: &HashMap<&str, String>) -> Option<()> {
    for name in node.input.iter_mut().chain(&mut node.output).filter(|name| !name.is_empty()) {
        name.clone_from(names.get(name.as_str())?);
    }
    let mut bound = Vec::with_capacity(node.attribute.len());
    for attribute in std::mem::take(&mut node.attribute) {
        let wanted = attribute.ref_attr_name();
        let mut attribute = if wanted.is_empty() {
            attribute
        } else {
            // Of the call, else the function's own; one that neither has is the operator's default.
            let given = call.attribute.iter().chain(&function.attribute_proto).find(|a| a.name() == wanted);
            let Some(given) = given else { continue };
            AttributeProto { name: attribute.name.clone(), ..given.clone() }
        };
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            bind_graph(graph, call, function, names)?;
        }
        bound.push(attribute);
    }
    node.attribute = bound;
    Some(())
}

fn bind_graph(
    graph: &mut GraphProto,
    call: &NodeProto,
    function: &FunctionProto,
    names: &HashMap<&str, String>,
) -> Option<()> {
    let of = |name: &str| names.get(name).cloned();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        value.name = Some(of(value.name())?);
    }
    // Of what is not defined there is nothing to say.
    graph.value_info.retain_mut(|value| {
        let known = of(value.name());
        value.name.clone_from(&known);
        known.is_some()
    });
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|s| s.values.as_mut());
    for tensor in graph.initializer.iter_mut().chain(sparse) {
        tensor.name = Some(of(tensor.name())?);
    }
    graph.node.iter_mut().try_for_each(|node| bind(node, call, function, names))
}
