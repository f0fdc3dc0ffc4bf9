//! From a plan to a smaller model: the factors are computed, each convolution's patch is made of them, and all patches are
//! applied at once.
//!
//! ```text
//! x ─ Conv W ─ y     becomes     x ─ Conv A (kh×1, to r) ─ Conv Bᵢ (1×kw, to out) ─ y
//! ```
//! Stride, dilation and pads go, axis by axis, to the factor that slides along that axis. The bias, with a batch norm
//! folded in, rides on the last convolution, because the first has r channels and not out.

use crate::error::{Error, Result};
use crate::factor::{self, Chain, Factor, Factors, Ownership};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use crate::onnx::{Conv, Model, Namer, VERSION_KEY, float_initializer};
use crate::plan::{GroupPlan, Members, Plan, RankPolicy};
use ndarray::Array4;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// A compressed model and what it is made of.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The model to write.
    pub model: Model,
    /// The factors of each group of the plan.
    pub factors: Vec<Factors>,
    /// Relative reconstruction error `‖W − Ŵ‖ / ‖W‖` of each group, of the factors as written.
    pub errors: Vec<f64>,
}

/// What replaces one convolution.
struct Patch {
    /// The nodes, in order, in place of the convolution.
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

/// Decomposes as planned and rewrites the graph.
///
/// # Errors
/// [`Error::NotFinite`] or [`Error::Numerical`]; a plan for another model gives [`Error::Options`].
pub fn apply(model: &Model, plan: &Plan) -> Result<Compiled> {
    let solved = plan.groups.par_iter().with_max_len(1).map(|group| solve(plan, group)).collect::<Result<Vec<_>>>()?;
    let (factors, errors): (Vec<Factors>, Vec<f64>) = solved.into_iter().unzip();
    let mut proto = model.proto().clone();
    let ir_version = proto.ir_version();
    let graph = proto.graph.as_mut().ok_or_else(|| Error::Options("the model has no graph".into()))?;
    let mut namer = Namer::new(graph);
    let mut patches: HashMap<usize, Patch> = HashMap::new();
    for (index, (group, factors)) in plan.groups.iter().zip(&factors).enumerate() {
        let shared = shared_names(group, index, factors, &mut namer);
        for (at, &member) in group.members.iter().enumerate() {
            let conv = &plan.convs[member];
            let fits = graph
                .node
                .get(conv.node)
                .is_some_and(|n| n.op_type() == "Conv" && n.input.first() == Some(&conv.input));
            if !fits {
                return Err(Error::Options(format!(
                    "the plan speaks of a convolution '{}' that is not in the model",
                    conv.name
                )));
            }
            patches.insert(conv.node, patch(&graph.node[conv.node], conv, factors, at, &shared, &mut namer));
        }
    }
    install(graph, plan, patches, ir_version);
    describe(&mut proto, plan);
    Ok(Compiled { model: Model::from_proto(proto), factors, errors })
}

/// The original graph with each decomposed kernel set to what its factors multiply out to, batch norms left in place:
/// what the rewritten graph must agree with to rounding, at any rank.
///
/// # Errors
/// [`Error::Options`] if the parts do not belong together.
pub fn reference(model: &Model, plan: &Plan, compiled: &Compiled) -> Result<Model> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.as_mut().ok_or_else(|| Error::Options("the model has no graph".into()))?;
    let mut namer = Namer::new(graph);
    for (group, factors) in plan.groups.iter().zip(&compiled.factors) {
        for (at, &member) in group.members.iter().enumerate() {
            let conv = &plan.convs[member];
            let kernel = conv.unfolded(factors.reconstruct(at));
            let name = namer.fresh(&format!("{}/jmd_reference", conv.kernel_name));
            graph.initializer.push(float_initializer(name.clone(), &conv.shape, kernel.iter().map(|&x| x as f32)));
            let input = graph.node.get_mut(conv.node).and_then(|n| n.input.get_mut(1));
            *input.ok_or_else(|| Error::Options(format!("no convolution '{}'", conv.name)))? = name;
        }
    }
    drop_unused(graph, model.proto());
    Ok(Model::from_proto(proto))
}

fn solve(plan: &Plan, group: &GroupPlan) -> Result<(Factors, f64)> {
    let kernels = Members { convs: &plan.convs, members: &group.members };
    let chains = group.scheme.chains();
    let factors = factor::factorize(&chains, &kernels, &group.ranks, plan.options.iterations, &group.analysis)
        .map_err(|reason| Error::Numerical { what: group.group.clone(), reason })?;
    let squared = |kernel: &Array4<f64>| kernel.iter().map(|x| x * x).sum::<f64>();
    let (mut lost, mut all) = (0.0, 0.0);
    for (at, &member) in group.members.iter().enumerate() {
        let mut kernel = plan.convs[member].kernel();
        all += squared(&kernel);
        kernel -= &factors.reconstruct(at);
        lost += squared(&kernel);
    }
    Ok((factors, if all > 0.0 { (lost / all).sqrt() } else { 0.0 }))
}

/// Places within a chain, for names.
const PLACES: [&str; 3] = ["first", "second", "third"];

/// `first`, or `a_first` when there are several chains.
fn place(factors: &Factors, chain: usize, factor: usize) -> String {
    let place = PLACES.get(factor).map_or_else(|| format!("factor{}", factor + 1), |p| (*p).to_owned());
    match factors.chains.len() {
        1 => place,
        _ => format!("{}_{place}", char::from(b'a' + (chain % 26) as u8)),
    }
}

/// Names of the shared factors of a group, by chain and factor.
fn shared_names(
    group: &GroupPlan,
    index: usize,
    factors: &Factors,
    namer: &mut Namer,
) -> HashMap<(usize, usize), String> {
    let mut names = HashMap::new();
    for (c, chain) in factors.chains.iter().enumerate() {
        for (f, factor) in chain.factors.iter().enumerate() {
            if matches!(factor, Factor::Shared(_)) {
                let wanted = format!("{}_{}/jmd_shared_{}", group.group, index + 1, place(factors, c, f));
                names.insert((c, f), namer.fresh(&wanted));
            }
        }
    }
    names
}

fn patch(
    node: &NodeProto,
    conv: &Conv,
    factors: &Factors,
    member: usize,
    shared: &HashMap<(usize, usize), String>,
    namer: &mut Namer,
) -> Patch {
    let mut patch = Patch { nodes: Vec::new(), initializers: Vec::new() };
    let folded = conv.folded_bias().map(|values| {
        let name = namer.fresh(&format!("{}/jmd_bias", conv.name));
        let values = values.into_iter().map(|x| x as f32);
        patch.initializers.push(float_initializer(name.clone(), &[conv.shape[0]], values));
        name
    });
    let bias = folded.or_else(|| conv.bias.clone());
    let mut sums = Vec::new();
    for (c, chain) in factors.chains.iter().enumerate() {
        let mut value = conv.input.clone();
        for (f, factor) in chain.factors.iter().enumerate() {
            let place = place(factors, c, f);
            let kernel = factor.of(member);
            let weight = match shared.get(&(c, f)) {
                Some(name) => name.clone(),
                None => {
                    let name = namer.fresh(&format!("{}/jmd_{place}", conv.kernel_name));
                    patch.initializers.push(initializer(name.clone(), kernel));
                    name
                }
            };
            // The first member of a shared factor brings it along.
            if let (Some(name), Factor::Shared(kernel), 0) = (shared.get(&(c, f)), factor, member) {
                patch.initializers.push(initializer(name.clone(), kernel));
            }
            let last = f + 1 == chain.factors.len();
            let output = if last && factors.chains.len() == 1 {
                conv.output.clone()
            } else {
                namer.fresh(&format!("{}/jmd_{place}", conv.output))
            };
            let mut input = vec![value, weight];
            input.extend(bias.clone().filter(|_| last && c == 0));
            patch.nodes.push(NodeProto {
                input,
                output: vec![output.clone()],
                name: Some(namer.fresh(&format!("{}/jmd_{place}", conv.name))),
                op_type: Some("Conv".into()),
                domain: node.domain.clone(),
                attribute: attributes(conv, chain, member, f),
                ..NodeProto::default()
            });
            value = output;
        }
        sums.push(value);
    }
    if sums.len() > 1 {
        let add = |a: String, b: String, output: String, name: String| NodeProto {
            input: vec![a, b],
            output: vec![output],
            name: Some(name),
            op_type: Some("Add".into()),
            domain: node.domain.clone(),
            ..NodeProto::default()
        };
        let count = sums.len();
        let mut sums = sums.into_iter();
        let mut total = sums.next().unwrap_or_default();
        for (at, term) in sums.enumerate() {
            let output =
                if at + 2 == count { conv.output.clone() } else { namer.fresh(&format!("{}/jmd_sum", conv.output)) };
            let name = namer.fresh(&format!("{}/jmd_add", conv.name));
            patch.nodes.push(add(total, term, output.clone(), name));
            total = output;
        }
    }
    patch
}

fn initializer(name: String, kernel: &Array4<f32>) -> TensorProto {
    float_initializer(name, kernel.shape(), kernel.iter().copied())
}

/// Attributes of one factor: it takes stride, dilation and pads of the axes that it carries.
fn attributes(conv: &Conv, chain: &Chain, member: usize, factor: usize) -> Vec<AttributeProto> {
    let extent = |f: usize, axis: usize| chain.factors[f].of(member).shape()[2 + axis];
    let carries = |axis: usize| {
        // An axis of extent one everywhere goes to the first factor: a stride is cheapest there.
        let carrier = (0..chain.factors.len()).find(|&f| extent(f, axis) > 1).unwrap_or(0);
        carrier == factor
    };
    let pick = |values: [usize; 2], otherwise: usize| [0, 1].map(|a| if carries(a) { values[a] } else { otherwise });
    let [top, left, bottom, right] = conv.pads;
    let begin = pick([top, left], 0);
    let end = pick([bottom, right], 0);
    let ints = |name: &str, values: &[usize]| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.iter().map(|&v| v as i64).collect(),
        ..AttributeProto::default()
    };
    vec![
        ints("dilations", &pick(conv.dilations, 1)),
        ints("kernel_shape", &[extent(factor, 0), extent(factor, 1)]),
        ints("pads", &[begin[0], begin[1], end[0], end[1]]),
        ints("strides", &pick(conv.strides, 1)),
    ]
}

/// Puts the patches in, takes the folded batch norms out, and whatever nothing reads any more.
fn install(graph: &mut GraphProto, plan: &Plan, mut patches: HashMap<usize, Patch>, ir_version: i64) {
    let before = graph.clone();
    let gone: HashSet<usize> = plan
        .groups
        .iter()
        .flat_map(|g| &g.members)
        .filter_map(|&m| plan.convs[m].batch_norm.as_ref().map(|b| b.node))
        .collect();
    let mut added = Vec::new();
    let mut nodes = Vec::with_capacity(graph.node.len() + 2 * patches.len());
    for (index, node) in graph.node.drain(..).enumerate() {
        match patches.remove(&index) {
            Some(patch) => {
                nodes.extend(patch.nodes);
                added.extend(patch.initializers);
            }
            None if gone.contains(&index) => {}
            None => nodes.push(node),
        }
    }
    graph.node = nodes;
    if ir_version < 4 {
        // Before IR version 4 every initializer is also a graph input.
        graph.input.extend(added.iter().map(tensor_input));
    }
    graph.initializer.extend(added);
    drop_unread(graph, &before);
}

/// For a model whose rewriting only renamed inputs.
fn drop_unused(graph: &mut GraphProto, before: &ModelProto) {
    if let Some(before) = &before.graph {
        drop_unread(graph, before);
    }
}

/// Removes what `before` read and nothing reads now: initializers (as inputs too, where listed), constants and identities,
/// and descriptions of values that are gone. What nothing read before either is not ours to remove.
fn drop_unread(graph: &mut GraphProto, before: &GraphProto) {
    let was_read = read_names(before);
    loop {
        let read = read_names(graph);
        let idle = |name: &str| was_read.contains(name) && !read.contains(name);
        let count = graph.node.len() + graph.initializer.len();
        graph.initializer.retain(|t| !idle(t.name()));
        graph.node.retain(|n| !matches!(n.op_type(), "Constant" | "Identity") || !n.output.iter().all(|o| idle(o)));
        if count == graph.node.len() + graph.initializer.len() {
            break;
        }
    }
    let kept: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let gone: HashSet<&str> = before.initializer.iter().map(|t| t.name()).filter(|n| !kept.contains(n)).collect();
    graph.input.retain(|i| !gone.contains(i.name()));
    let made: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let lost: HashSet<&str> =
        before.node.iter().flat_map(|n| &n.output).map(String::as_str).filter(|o| !made.contains(o)).collect();
    graph.value_info.retain(|v| !lost.contains(v.name()) && !gone.contains(v.name()));
    graph.quantization_annotation.retain(|a| !lost.contains(a.tensor_name()) && !gone.contains(a.tensor_name()));
}

/// Every value that a node, a subgraph or the graph's output reads.
fn read_names(graph: &GraphProto) -> HashSet<String> {
    let outputs = graph.output.iter().map(|o| o.name().to_owned());
    let nodes = graph
        .node
        .iter()
        .flat_map(|n| n.input.iter().cloned().chain(crate::onnx::captures(n).into_iter().map(str::to_owned)));
    outputs.chain(nodes).collect()
}

fn tensor_input(tensor: &TensorProto) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = tensor.dims.iter().map(|&d| Dimension { value: Some(Value::DimValue(d)), ..Dimension::default() });
    let shape = crate::onnx::proto::TensorShapeProto { dim: dim.collect() };
    let tensor_type = type_proto::Tensor { elem_type: tensor.data_type, shape: Some(shape) };
    let value = Some(type_proto::Value::TensorType(tensor_type));
    ValueInfoProto {
        name: tensor.name.clone(),
        r#type: Some(crate::onnx::proto::TypeProto { value, ..Default::default() }),
        ..ValueInfoProto::default()
    }
}

/// Records version, scheme and ratio in the model's metadata.
fn describe(proto: &mut ModelProto, plan: &Plan) {
    let policy = match plan.options.policy {
        RankPolicy::Ratio(ratio) => ("onnx_jmd.ratio", ratio.to_string()),
        RankPolicy::Rate(rate) => ("onnx_jmd.rank_rate", rate.to_string()),
    };
    let ours = [
        (VERSION_KEY, env!("CARGO_PKG_VERSION").to_owned()),
        ("onnx_jmd.scheme", plan.options.scheme.name().to_owned()),
        policy,
    ];
    proto.metadata_props.retain(|p| !p.key().starts_with("onnx_jmd."));
    proto.metadata_props.extend(
        ours.into_iter().map(|(key, value)| StringStringEntryProto { key: Some(key.into()), value: Some(value) }),
    );
}

/// Whether a group stores any factor once for all.
pub(crate) fn shares(group: &GroupPlan) -> bool {
    group.scheme.chains().iter().any(|c| c.first == Ownership::Shared || c.last == Ownership::Shared)
}
