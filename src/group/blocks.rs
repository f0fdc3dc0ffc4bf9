//! Repeated blocks: regions between a fork and the node where its branches have all met, that compute the same thing
//! with other weights.

use super::role::{data_inputs, is_conv, is_transparent};
use crate::onnx::{Graph, Use, label};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

/// A block that occurs at least twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatedBlock {
    /// Its operators in graph order, convolutions with kernel, channels and stride.
    pub structure: String,
    /// For each occurrence the names of its nodes, in graph order.
    pub occurrences: Vec<Vec<String>>,
}

/// The innermost fork–join regions with a convolution, those of equal structure together, in graph order.
pub(super) fn repeated(graph: &Graph<'_>) -> Vec<RepeatedBlock> {
    let mut rank = vec![0; graph.nodes().len()];
    graph.order().iter().enumerate().for_each(|(r, &n)| rank[n] = r);
    let mut regions = regions(graph, &rank);
    // Innermost: no smaller region with a convolution inside.
    regions.sort_by_key(|r| (r.nodes.len(), r.nodes.first().map(|&n| rank[n])));
    let mut innermost: Vec<Region<'_>> = Vec::new();
    // By their first nodes, as there may be very many.
    let mut starting: HashMap<usize, Vec<usize>> = HashMap::new();
    for region in regions {
        let mut within = region.nodes.iter().filter_map(|n| starting.get(n)).flatten();
        if !within.any(|&inner: &usize| innermost[inner].nodes.is_subset(&region.nodes)) {
            region.nodes.first().iter().for_each(|&&n| starting.entry(n).or_default().push(innermost.len()));
            innermost.push(region);
        }
    }
    innermost.sort_by_key(|r| r.nodes.iter().map(|&n| rank[n]).min());
    let mut found: BTreeMap<u64, usize> = BTreeMap::new();
    let mut blocks: Vec<RepeatedBlock> = Vec::new();
    for region in &innermost {
        let mut nodes: Vec<usize> = region.nodes.iter().copied().collect();
        nodes.sort_by_key(|&n| rank[n]);
        let at = *found.entry(signature(graph, region, &nodes)).or_insert(blocks.len());
        if at == blocks.len() {
            let steps: Vec<String> = nodes.iter().filter_map(|&n| step(graph, n)).collect();
            blocks.push(RepeatedBlock { structure: steps.join(", "), occurrences: Vec::new() });
        }
        blocks[at].occurrences.push(nodes.iter().map(|&n| label(&graph.nodes()[n])).collect());
    }
    blocks.retain(|b| b.occurrences.len() > 1);
    blocks
}

/// A region of more nodes than this is no repeated block; following it would take long in deeply nested graphs.
const LARGEST_BLOCK: usize = 500;

struct Region<'m> {
    entry: &'m str,
    join: usize,
    nodes: BTreeSet<usize>,
}

/// For every value with several readers the region up to the node that post-dominates them all.
fn regions<'m>(graph: &Graph<'m>, rank: &[usize]) -> Vec<Region<'m>> {
    let nodes = graph.nodes();
    let exit = nodes.len();
    // Immediate post-dominators (Cooper, Harvey and Kennedy) in reverse topological order; one pass, as the graph has no cycle.
    let height = |n: usize| rank.get(n).copied().unwrap_or(exit);
    let mut post = vec![exit; nodes.len() + 1];
    let meet = |post: &[usize], mut a: usize, mut b: usize| {
        while a != b {
            if height(a) < height(b) { a = post[a] } else { b = post[b] }
        }
        a
    };
    let next = |value: &str| -> Vec<usize> {
        let readers = graph.uses(value).iter().map(|u| match *u {
            Use::Node(n, _) | Use::Captured(n) => n,
            Use::Output => exit,
        });
        readers.collect()
    };
    for &index in graph.order().iter().rev() {
        let readers = nodes[index].output.iter().flat_map(|o| next(o));
        post[index] = readers.reduce(|a, b| meet(&post, a, b)).unwrap_or(exit);
    }
    let inputs = graph.proto().input.iter().map(|i| i.name()).filter(|i| !graph.is_constant(i));
    let values = inputs.chain(graph.order().iter().flat_map(|&n| nodes[n].output.iter().map(String::as_str)));
    let mut regions = Vec::new();
    for entry in values {
        let readers = next(entry);
        let distinct: BTreeSet<usize> = readers.iter().copied().collect();
        if distinct.len() < 2 {
            continue;
        }
        let Some(join) = distinct.iter().copied().reduce(|a, b| meet(&post, a, b)).filter(|&j| j != exit) else {
            continue;
        };
        // A gate, as in squeeze and excite, is a part of a block and no block.
        if nodes[join].op_type() == "Mul" {
            continue;
        }
        let mut inside = BTreeSet::from([join]);
        let mut open: Vec<usize> = distinct.into_iter().collect();
        while let Some(node) = open.pop().filter(|_| inside.len() <= LARGEST_BLOCK) {
            if inside.insert(node) {
                open.extend(nodes[node].output.iter().flat_map(|o| next(o)));
            }
        }
        if inside.len() <= LARGEST_BLOCK && inside.iter().any(|&n| is_conv(&nodes[n])) {
            regions.push(Region { entry, join, nodes: inside });
        }
    }
    regions
}

/// A hash of what the region computes, from its entry up to its join: order among commuting inputs and names do not
/// matter, weights do not matter, shapes and attributes do.
fn signature(graph: &Graph<'_>, region: &Region<'_>, ordered: &[usize]) -> u64 {
    let mut hashes: HashMap<&str, u64> = HashMap::from([(region.entry, 0)]);
    for &index in ordered {
        let node = &graph.nodes()[index];
        let mut inputs: Vec<u64> =
            data_inputs(graph, node).iter().map(|i| hashes.get(i).copied().unwrap_or(1)).collect();
        if matches!(node.op_type(), "Add" | "Mul" | "Sum" | "Max" | "Min") {
            inputs.sort_unstable();
        }
        let hash = if is_transparent(node) && inputs.len() == 1 {
            inputs[0]
        } else {
            let mut hasher = DefaultHasher::new();
            (step(graph, index), inputs).hash(&mut hasher);
            hasher.finish()
        };
        hashes.extend(node.output.iter().map(|o| (o.as_str(), hash)));
    }
    graph.nodes()[region.join].output.first().and_then(|o| hashes.get(o.as_str())).copied().unwrap_or(1)
}

/// A node as a step of a block's structure; none if roles look through it.
fn step(graph: &Graph<'_>, index: usize) -> Option<String> {
    let node = &graph.nodes()[index];
    if is_transparent(node) || (node.op_type() == "Constant") {
        return None;
    }
    if !is_conv(node) {
        return Some(node.op_type().to_owned());
    }
    let dims = node.input.get(1).and_then(|w| graph.unconverted(w)).map_or(&[][..], |t| &t.dims[..]);
    let size: Vec<String> = dims.iter().skip(2).map(i64::to_string).collect();
    let channels = |i: usize| dims.get(i).map_or("?".to_owned(), i64::to_string);
    let strides = node.attribute.iter().find(|a| a.name() == "strides").map_or(&[][..], |a| &a.ints[..]);
    let stride = strides.iter().find(|&&s| s != 1).map_or(String::new(), |s| format!("/{s}"));
    let dilations = node.attribute.iter().find(|a| a.name() == "dilations").map_or(&[][..], |a| &a.ints[..]);
    let dilation = dilations.iter().find(|&&d| d != 1).map_or(String::new(), |d| format!(" dilated {d}"));
    let groups = node.attribute.iter().find(|a| a.name() == "group").map_or(1, |a| a.i());
    let groups = if groups == 1 { String::new() } else { format!(" in {groups} groups") };
    Some(format!("Conv{} {}→{}{stride}{dilation}{groups}", size.join("x"), channels(1), channels(0)))
}
