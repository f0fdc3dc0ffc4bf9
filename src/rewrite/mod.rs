//! From a plan to a smaller model: the factors are computed, each convolution's patch is made of them, and all patches are
//! applied at once.
//!
//! ```text
//! x ─ Conv W ─ y     becomes     x ─ Conv A (kh×1, to r) ─ Conv Bᵢ (1×kw, to out) ─ y
//! ```
//! Stride, dilation and pads go, axis by axis, to the factor that slides along that axis. The bias, with a batch norm
//! folded in, rides on the last convolution, because the first has r channels and not out.

mod prune;

use crate::error::{Error, Result};
use crate::factor::{self, Chain, Factor, Factors, Moment};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use crate::onnx::{Conv, Dense, Model, Namer, VERSION_KEY, float_initializer};
use crate::plan::{GroupPlan, Judged, Members, Plan, RankPolicy};
use ndarray::Array4;
use prune::{Before, drop_unread};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A compressed model and what it is made of.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The model to write.
    pub model: Model,
    /// The factors of each group of the plan.
    pub factors: Vec<Factors>,
    /// Relative reconstruction error `‖W − Ŵ‖ / ‖W‖` of each group, of the factors as written.
    pub errors: Vec<f64>,
    /// What else was changed to make up for the error.
    pub(crate) amends: Amends,
}

impl Compiled {
    /// What was given other parameters without being decomposed: convolutions their bias, fully connected layers all.
    pub(crate) fn refitted(&self, plan: &Plan) -> Vec<String> {
        let decomposed: HashSet<usize> = plan.groups.iter().flat_map(|g| g.members.iter().copied()).collect();
        let whole = self.amends.biases.keys().filter(|m| !decomposed.contains(m)).map(|&m| plan.convs[m].name.clone());
        whole.chain(self.amends.heads.iter().map(|(head, _)| head.name.clone())).collect()
    }
}

/// Parameters changed in place, so that their number stays what it was.
#[derive(Debug, Clone, Default)]
pub(crate) struct Amends {
    /// Biases that replace the original ones, by position in [`Plan::convs`].
    pub(crate) biases: BTreeMap<usize, Vec<f32>>,
    /// Fully connected layers at the outputs: the layer with its new weight, and its new bias.
    pub(crate) heads: Vec<(Dense, Vec<f32>)>,
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
    let (factors, biases): (Vec<Factors>, Vec<BTreeMap<usize, Vec<f32>>>) = solved.into_iter().unzip();
    let biases = biases.into_iter().flatten().collect();
    assemble(model, plan, factors, Amends { biases, heads: Vec::new() })
}

/// The model that given factors and amends make, and how far the factors are from the kernels.
pub(crate) fn assemble(model: &Model, plan: &Plan, factors: Vec<Factors>, amends: Amends) -> Result<Compiled> {
    let errors = plan.groups.par_iter().zip(&factors).with_max_len(1).map(|(g, f)| reconstruction_error(plan, g, f));
    let errors = errors.collect();
    let model = rewritten(model, plan, &factors, &amends)?;
    Ok(Compiled { model, factors, errors, amends })
}

/// The model that given factors and amends make.
pub(crate) fn rewritten(model: &Model, plan: &Plan, factors: &[Factors], amends: &Amends) -> Result<Model> {
    let mut proto = model.proto().clone();
    let ir_version = proto.ir_version();
    let graph = proto.graph.as_mut().ok_or_else(|| Error::Options("the model has no graph".into()))?;
    let mut namer = Namer::new(graph);
    let mut patches: HashMap<usize, Patch> = HashMap::new();
    for (index, (group, factors)) in plan.groups.iter().zip(factors).enumerate() {
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
            patches.insert(
                conv.node,
                patch(&graph.node[conv.node], conv, amends.biases.get(&member), factors, at, &shared, &mut namer),
            );
        }
    }
    let before = Before::of(graph);
    let added = amend(graph, plan, amends, &mut namer);
    install(graph, plan, patches, added, ir_version);
    drop_unread(graph, &before);
    describe(&mut proto, plan);
    Ok(Model::from_proto(proto))
}

/// The original graph with each decomposed kernel set to what its factors multiply out to, one convolution each: what the
/// rewritten graph must agree with to rounding, at any rank.
///
/// # Errors
/// [`Error::Options`] if the parts do not belong together.
pub fn reference(model: &Model, plan: &Plan, compiled: &Compiled) -> Result<Model> {
    let members = plan.groups.iter().zip(&compiled.factors).flat_map(|(group, factors)| {
        group.members.iter().enumerate().map(|(at, &member)| {
            let conv = &plan.convs[member];
            (conv, factors.reconstruct(at), new_bias(conv, compiled.amends.biases.get(&member)))
        })
    });
    with_kernels(model, members, &mut |graph, namer| amend(graph, plan, &compiled.amends, namer))
}

/// Gives convolutions left whole and layers at the outputs their new parameters; the initializers that hold them.
fn amend(graph: &mut GraphProto, plan: &Plan, amends: &Amends, namer: &mut Namer) -> Vec<TensorProto> {
    let decomposed: HashSet<usize> = plan.groups.iter().flat_map(|g| g.members.iter().copied()).collect();
    let whole = amends.biases.iter().filter(|(m, _)| !decomposed.contains(m));
    let mut added: Vec<TensorProto> =
        whole.filter_map(|(&m, bias)| set_bias(graph, &plan.convs[m], bias, namer)).collect();
    for (head, bias) in &amends.heads {
        let Some([_, weight, place]) = graph.node.get_mut(head.node).map(|n| &mut n.input[..]) else { continue };
        *weight = namer.fresh(&format!("{}/jmd_weight", head.name));
        *place = namer.fresh(&format!("{}/jmd_bias", head.name));
        let stored = if head.transposed { head.weight.t() } else { head.weight.view() };
        added.push(float_initializer(weight.clone(), stored.shape(), stored.iter().map(|&x| x as f32)));
        added.push(float_initializer(place.clone(), &[bias.len()], bias.iter().copied()));
    }
    added
}

/// Gives a convolution left whole another constant in its output: its own bias, or that of its batch norm. The new initializer, if
/// there is such a place.
fn set_bias(graph: &mut GraphProto, conv: &Conv, bias: &[f32], namer: &mut Namer) -> Option<TensorProto> {
    let (node, values) = match (&conv.batch_norm, conv.effective_bias()) {
        (Some(norm), Some(old)) => {
            let moved = norm.beta.iter().zip(bias).zip(&old).map(|((b, &new), old)| (b + f64::from(new) - old) as f32);
            (norm.node, moved.collect())
        }
        _ => (conv.node, bias.to_vec()),
    };
    let place = graph.node.get_mut(node)?.input.get_mut(2)?;
    *place = namer.fresh(&format!("{}/jmd_bias", conv.name));
    Some(float_initializer(place.clone(), &[values.len()], values.into_iter()))
}

/// The model with some convolutions' kernels and, where given, biases replaced, batch norms that they absorb taken out; `also`
/// changes what else it likes and names the initializers to add.
pub(crate) fn with_kernels<'c>(
    model: &Model,
    replaced: impl Iterator<Item = (&'c Conv, Array4<f64>, Option<Vec<f32>>)>,
    also: &mut dyn FnMut(&mut GraphProto, &mut Namer) -> Vec<TensorProto>,
) -> Result<Model> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.as_mut().ok_or_else(|| Error::Options("the model has no graph".into()))?;
    let before = Before::of(graph);
    let mut namer = Namer::new(graph);
    let mut gone = HashSet::new();
    let added = also(graph, &mut namer);
    graph.initializer.extend(added);
    for (conv, kernel, bias) in replaced {
        let node = graph.node.get_mut(conv.node).filter(|n| n.op_type() == "Conv" && n.input.len() > 1);
        let node = node.ok_or_else(|| Error::Options(format!("no convolution '{}'", conv.name)))?;
        let name = namer.fresh(&format!("{}/jmd_reference", conv.kernel_name));
        graph.initializer.push(float_initializer(name.clone(), &conv.shape, kernel.iter().map(|&x| x as f32)));
        node.input[1] = name;
        if let Some(bias) = bias {
            let name = namer.fresh(&format!("{}/jmd_reference_bias", conv.name));
            graph.initializer.push(float_initializer(name.clone(), &[conv.shape[0]], bias.into_iter()));
            node.input.truncate(2);
            node.input.push(name);
        }
        node.output[0].clone_from(&conv.output);
        gone.extend(conv.batch_norm.as_ref().map(|b| b.node));
    }
    let mut index = 0..;
    graph.node.retain(|_| index.next().is_none_or(|i| !gone.contains(&i)));
    drop_unread(graph, &before);
    Ok(Model::from_proto(proto))
}

/// The bias to store: the one given, or the batch norm's folded in; none where the node's own stays.
fn new_bias(conv: &Conv, given: Option<&Vec<f32>>) -> Option<Vec<f32>> {
    let folded = || Some(conv.folded_bias()?.into_iter().map(|x| x as f32).collect());
    given.cloned().or_else(folded)
}

/// Factors of a group and, if it was calibrated, the biases of its members.
fn solve(plan: &Plan, group: &GroupPlan) -> Result<(Factors, BTreeMap<usize, Vec<f32>>)> {
    let kernels = Members { convs: &plan.convs, members: &group.members };
    let chains = group.form.chains();
    let failed = |reason: String| Error::Numerical { what: group.group.clone(), reason };
    let Some(sights) = &plan.sights else {
        let factors = factor::factorize(&chains, &kernels, &group.ranks, plan.options.iterations, &group.analysis);
        let factors = factors.map_err(failed)?;
        let fits = factors.is_finite();
        return if fits { Ok((factors, BTreeMap::new())) } else { Err(failed("its factors exceed float32".into())) };
    };
    let judged = Judged::new(&chains, &group.members, sights).map_err(failed)?;
    let (factors, _) =
        factor::factorize_calibrated(&chains, &kernels, &judged.seen(), &group.ranks, SWEEPS, &group.analysis)
            .map_err(failed)?;
    if !factors.is_finite() {
        return Err(failed("its factors exceed float32".into()));
    }
    let mut biases = BTreeMap::new();
    for (at, &member) in group.members.iter().enumerate() {
        let conv = &plan.convs[member];
        biases.extend(shifted_bias(conv, &factors.reconstruct(at), &sights[member].moment).map(|b| (member, b)));
    }
    Ok((factors, biases))
}

/// The bias that keeps the mean output when a kernel is replaced, `b + (W − Ŵ)ᵀ·E[x]`; none if the bias is computed.
pub(crate) fn shifted_bias(conv: &Conv, kernel: &Array4<f64>, moment: &Moment) -> Option<Vec<f32>> {
    let bias = conv.effective_bias()?;
    let shift = factor::respond(&(conv.kernel() - kernel), &moment.mean());
    Some(bias.iter().zip(&shift).map(|(b, s)| (b + s) as f32).collect())
}

fn reconstruction_error(plan: &Plan, group: &GroupPlan, factors: &Factors) -> f64 {
    let squared = |kernel: &Array4<f64>| kernel.iter().map(|x| x * x).sum::<f64>();
    let (mut lost, mut all) = (0.0, 0.0);
    for (at, &member) in group.members.iter().enumerate() {
        let mut kernel = plan.convs[member].kernel();
        all += squared(&kernel);
        kernel -= &factors.reconstruct(at);
        lost += squared(&kernel);
    }
    if all > 0.0 { (lost / all).sqrt() } else { 0.0 }
}

/// Turns between the two halves of a calibrated chain.
const SWEEPS: usize = 6;

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
    given: Option<&Vec<f32>>,
    factors: &Factors,
    member: usize,
    shared: &HashMap<(usize, usize), String>,
    namer: &mut Namer,
) -> Patch {
    let mut patch = Patch { nodes: Vec::new(), initializers: Vec::new() };
    let own = new_bias(conv, given).map(|values| {
        let name = namer.fresh(&format!("{}/jmd_bias", conv.name));
        patch.initializers.push(float_initializer(name.clone(), &[conv.shape[0]], values.into_iter()));
        name
    });
    let bias = own.or_else(|| conv.bias.clone());
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
    // What was written about the convolution stays with the node that gives its result.
    if let Some(last) = patch.nodes.last_mut() {
        last.doc_string.clone_from(&node.doc_string);
        last.metadata_props.clone_from(&node.metadata_props);
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
    let [top, left, bottom, right] = conv.pads.unwrap_or_default();
    let begin = pick([top, left], 0);
    let end = pick([bottom, right], 0);
    let ints = |name: &str, values: &[usize]| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.iter().map(|&v| v as i64).collect(),
        ..AttributeProto::default()
    };
    let padding = match &conv.auto_pad {
        // Each axis is resolved by the factor that slides over it; along an axis of extent one nothing is padded.
        Some(mode) => AttributeProto {
            name: Some("auto_pad".into()),
            r#type: Some(AttributeType::String as i32),
            s: Some(mode.as_bytes().to_vec()),
            ..AttributeProto::default()
        },
        None => ints("pads", &[begin[0], begin[1], end[0], end[1]]),
    };
    vec![
        ints("dilations", &pick(conv.dilations, 1)),
        ints("kernel_shape", &[extent(factor, 0), extent(factor, 1)]),
        padding,
        ints("strides", &pick(conv.strides, 1)),
    ]
}

/// Puts the patches in and takes the folded batch norms out.
fn install(
    graph: &mut GraphProto,
    plan: &Plan,
    mut patches: HashMap<usize, Patch>,
    mut added: Vec<TensorProto>,
    ir_version: i64,
) {
    let gone: HashSet<usize> = plan
        .groups
        .iter()
        .flat_map(|g| &g.members)
        .filter_map(|&m| plan.convs[m].batch_norm.as_ref().map(|b| b.node))
        .collect();
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
        ("onnx_jmd.scheme", plan.options.scheme.to_string()),
        policy,
    ];
    proto.metadata_props.retain(|p| !p.key().starts_with("onnx_jmd."));
    proto.metadata_props.extend(
        ours.into_iter().map(|(key, value)| StringStringEntryProto { key: Some(key.into()), value: Some(value) }),
    );
}

/// Whether a group stores any factor once for all.
pub(crate) fn shares(group: &GroupPlan) -> bool {
    group.form.chains().iter().any(factor::ChainForm::shares)
}
