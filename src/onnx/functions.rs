//! Local functions (onnx.proto, `FunctionProto`): which a model has, which nodes call which, and the layers that stand in them.

use super::graph::{is_standard, label, subgraphs};
use super::proto::{FunctionProto, ModelProto, NodeProto};
use std::collections::{HashMap, HashSet};

/// Operators that surely have a kernel, whatever stands around them.
const KERNELS: [&str; 3] = ["Conv", "ConvTranspose", "Gemm"];

/// Domain, name and overload.
pub(super) type Key<'m> = (&'m str, &'m str, &'m str);

/// What a node calls: a function, or an operator.
pub(super) fn called(node: &NodeProto) -> Key<'_> {
    (node.domain(), node.op_type(), node.overload())
}

pub(super) fn key(function: &FunctionProto) -> Key<'_> {
    (function.domain(), function.name(), function.overload())
}

/// The functions; none if two are one and the same, and there is no saying which is called.
pub(super) fn by_key(model: &ModelProto) -> Option<HashMap<Key<'_>, &FunctionProto>> {
    let functions: HashMap<Key<'_>, &FunctionProto> = model.functions.iter().map(|f| (key(f), f)).collect();
    (functions.len() == model.functions.len()).then_some(functions)
}

/// Functions that the main graph calls, and what these call.
pub(super) fn reached(model: &ModelProto) -> Vec<&FunctionProto> {
    if model.functions.is_empty() {
        return Vec::new();
    }
    let functions: HashMap<Key<'_>, &FunctionProto> = model.functions.iter().map(|f| (key(f), f)).collect();
    let mut found = HashSet::new();
    calls(model.graph.as_ref().map_or(&[], |graph| &graph.node), &mut found);
    let found = called_from(&functions, found);
    model.functions.iter().filter(|f| found.contains(&key(f))).collect()
}

/// What is called, and what that calls; operators among it.
pub(super) fn called_from<'m>(
    functions: &HashMap<Key<'m>, &'m FunctionProto>,
    called: HashSet<Key<'m>>,
) -> HashSet<Key<'m>> {
    let mut open: Vec<Key<'_>> = called.iter().copied().collect();
    let mut found = called;
    while let Some(key) = open.pop() {
        let mut more = HashSet::new();
        calls(functions.get(&key).map_or(&[], |function| &function.node), &mut more);
        open.extend(more.into_iter().filter(|key| found.insert(*key)));
    }
    found
}

/// What nodes call, those of their subgraphs, too; operators among it.
pub(super) fn calls<'m>(nodes: &'m [NodeProto], found: &mut HashSet<Key<'m>>) {
    for node in nodes {
        found.insert(called(node));
        subgraphs(node).for_each(|g| calls(&g.node, found));
    }
}

/// Which nodes call a function of the model.
#[cfg(feature = "verify")]
pub(super) fn callers(model: &ModelProto) -> impl Fn(&NodeProto) -> bool + use<'_> {
    let functions: HashSet<Key<'_>> = model.functions.iter().map(key).collect();
    move |node| !is_standard(node) && functions.contains(&called(node))
}

/// The layers within functions, each by one way to it.
pub(crate) struct Within<'m> {
    functions: HashMap<Key<'m>, &'m FunctionProto>,
    seen: HashSet<Key<'m>>,
}

impl<'m> Within<'m> {
    pub(crate) fn new(model: &'m ModelProto) -> Self {
        Self { functions: model.functions.iter().map(|f| (key(f), f)).collect(), seen: HashSet::new() }
    }

    /// Those within a function that a node calls, or that one in its subgraphs does, and within what that calls, but for what was named
    /// before: the function that is called, and the layer.
    pub(crate) fn called_by(&mut self, node: &'m NodeProto) -> Vec<(&'m str, String)> {
        let mut found = Vec::new();
        if self.functions.is_empty() {
            return found;
        }
        let mut open = Vec::new();
        nested(node, &mut |call| open.push(call));
        for call in open {
            let mut inner: Vec<&FunctionProto> = self.first(call).into_iter().collect();
            let direct = inner.first().map(|f| key(f));
            while let Some(function) = inner.pop() {
                let way = if direct == Some(key(function)) {
                    label(call)
                } else {
                    format!("{}/…/{}", label(call), function.name())
                };
                for node in &function.node {
                    nested(node, &mut |node| {
                        if is_standard(node) && KERNELS.contains(&node.op_type()) {
                            found.push((call.op_type(), format!("{way}/{}", label(node))));
                        }
                        inner.extend(self.first(node));
                    });
                }
            }
        }
        found
    }

    /// The function that a node calls, the first time.
    fn first(&mut self, node: &'m NodeProto) -> Option<&'m FunctionProto> {
        let (key, function) = self.functions.get_key_value(&called(node))?;
        self.seen.insert(*key).then_some(*function)
    }
}

/// A node and those in its subgraphs.
fn nested<'m>(node: &'m NodeProto, each: &mut dyn FnMut(&'m NodeProto)) {
    each(node);
    subgraphs(node).flat_map(|graph| &graph.node).for_each(|inner| nested(inner, each));
}
