//! From a plan to a smaller model: the factors are computed, each convolution's patch is made of them, and all patches are
//! applied at once.
//!
//! ```text
//! x ─ Conv W ─ y     becomes     x ─ Conv A (kh×1, to r) ─ Conv Bᵢ (1×kw, to out) ─ y
//! ```
//! The same of `ConvTranspose`, `Gemm` and `MatMul`, each into several of its own; of a grouped `Conv` into grouped ones, r channels
//! a group between them.
//! Stride, dilation and pads go, axis by axis, to the factor that slides along that axis. The bias, with a batch norm
//! folded in, rides on the last convolution, because the first has r channels and not out.

mod amend;
mod patch;
mod prune;
mod reference;
#[cfg(feature = "tune")]
mod undo;

use crate::error::{Error, Result};
use crate::factor::{self, Factor, Factors};
use crate::onnx::proto::{
    GraphProto, ModelProto, StringStringEntryProto, TensorProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use crate::onnx::{Conv, Model, Namer, Precision, Storage, VERSION_KEY};
use crate::plan::{GroupPlan, Judged, Members, Plan, Sight, all_see};
use crate::portions::{in_portions, room};
pub(crate) use amend::Amends;
use amend::amend;
use ndarray::Array4;
use patch::{Parts, Patch, shared_names};
use prune::{Before, drop_unread};
pub use reference::reference;
#[cfg(feature = "verify")]
pub(crate) use reference::{reference_of, with_kernels};
use std::collections::{BTreeMap, HashMap, HashSet, btree_map::Entry};
#[cfg(feature = "tune")]
pub(crate) use undo::{tuned_errors, undone};

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
    /// The values at which a model made of it computes something else than the original.
    #[cfg(feature = "verify")]
    pub(crate) fn changed<'p>(&'p self, plan: &'p Plan) -> HashSet<&'p str> {
        let decomposed = plan.groups.iter().flat_map(|g| &g.members);
        let convs = decomposed.chain(self.amends.biases.keys()).flat_map(|&m| plan.convs[m].all());
        let heads = self.amends.heads.iter().map(|(head, _)| head.output.as_str());
        convs.map(|conv| conv.output.as_str()).chain(heads).collect()
    }

    /// What was given other parameters without being decomposed: convolutions their bias, fully connected layers all.
    pub(crate) fn refitted(&self, plan: &Plan) -> Vec<String> {
        let decomposed: HashSet<usize> = plan.groups.iter().flat_map(|g| g.members.iter().copied()).collect();
        let whole = self.amends.biases.keys().filter(|m| !decomposed.contains(m)).map(|&m| plan.convs[m].name.clone());
        whole.chain(self.amends.heads.iter().map(|(head, _)| head.name.clone())).collect()
    }
}

/// Decomposes as planned and rewrites the graph.
///
/// # Errors
/// [`Error::NotFinite`] or [`Error::Numerical`]; a plan for another model gives [`Error::Options`].
pub fn apply(model: &Model, plan: &Plan) -> Result<Compiled> {
    let room = room(plan.parameters_before);
    let solved = in_portions(
        &plan.groups,
        room,
        |group| group.workspace(&plan.convs),
        |group| solve(plan, group, model.kept()),
    )?;
    let (factors, biases): (Vec<Factors>, Vec<BTreeMap<usize, Vec<f64>>>) = solved.into_iter().unzip();
    let biases = biases.into_iter().flatten().collect();
    assemble(model, plan, factors, Amends { biases, heads: Vec::new() })
}

/// The model that given factors and amends make, and how far the factors are from the kernels.
pub(crate) fn assemble(model: &Model, plan: &Plan, mut factors: Vec<Factors>, amends: Amends) -> Result<Compiled> {
    for (group, factors) in plan.groups.iter().zip(&mut factors) {
        round(plan, group, factors)?;
    }
    lay_out(plan, &mut factors);
    let errors = errors(plan, &factors)?;
    let model = rewritten(model, plan, &factors, &amends)?;
    Ok(Compiled { model, factors, errors, amends })
}

/// Keeps factors in memory in the order in which they are stored.
fn lay_out(plan: &Plan, factors: &mut [Factors]) {
    for (group, factors) in plan.groups.iter().zip(factors) {
        let kind = group.members.first().map(|&m| &plan.convs[m].kind);
        kind.into_iter().for_each(|kind| factors.lay_out(kind));
    }
}

/// How far the factors of each group are from its kernels.
fn errors(plan: &Plan, factors: &[Factors]) -> Result<Vec<f64>> {
    let groups: Vec<(&GroupPlan, &Factors)> = plan.groups.iter().zip(factors).collect();
    let error = |(group, factors): &(&GroupPlan, &Factors)| {
        let written = Members { convs: &plan.convs, members: &group.members }.reconstruct(factors);
        Ok(reconstruction_error(plan, group, written))
    };
    in_portions(&groups, room(plan.parameters_before), |(group, _)| group.workspace(&plan.convs), error)
}

/// Rounds factors to what the kernels are stored as.
///
/// # Errors
/// [`Error::Numerical`] if a factor exceeds the type.
pub(crate) fn round(plan: &Plan, group: &GroupPlan, factors: &mut Factors) -> Result<()> {
    let members = Members { convs: &plan.convs, members: &group.members };
    let stored = group.members.iter().map(|&m| plan.convs[m].storage).zip(members.parts());
    for (storage, own) in stored.filter(|(storage, _)| *storage != Storage::Plain) {
        for factor in factors.chains.iter_mut().flat_map(|chain| &mut chain.factors) {
            match factor {
                Factor::Shared(kernel) => storage.round(std::slice::from_mut(kernel)),
                Factor::Own(kernels) => storage.round(&mut kernels[own.clone()]),
            }
        }
        if !factors.is_finite() {
            let reason = format!("its factors exceed what {} holds", storage.name().unwrap_or_default());
            return Err(members.failed(reason));
        }
    }
    Ok(())
}

/// The model that given factors and amends make.
pub(crate) fn rewritten(model: &Model, plan: &Plan, factors: &[Factors], amends: &Amends) -> Result<Model> {
    let precision = model.kernel_precision().unwrap_or(Precision::Single);
    let mut proto = model.proto().clone();
    let ir_version = proto.ir_version();
    let opset = model.opset();
    let graph = proto.graph.as_mut().ok_or_else(|| Error::Options("the model has no graph".into()))?;
    let mut namer = Namer::new(graph);
    let patches = patches(graph, plan, factors, amends, (precision, opset), &mut namer)?;
    let before = Before::of(graph, ir_version);
    let added = amend(graph, plan, amends, precision, &mut namer);
    install(graph, plan, patches, added, ir_version);
    drop_unread(graph, &before);
    describe(&mut proto, plan);
    Ok(model.derived(proto))
}

/// What takes the place of each decomposed convolution, by the position of its node; in a type and a version of the operators.
fn patches(
    graph: &GraphProto,
    plan: &Plan,
    factors: &[Factors],
    amends: &Amends,
    (precision, opset): (Precision, i64),
    namer: &mut Namer,
) -> Result<HashMap<usize, Patch>> {
    let mut patches: HashMap<usize, Patch> = HashMap::new();
    for (index, (group, factors)) in plan.groups.iter().zip(factors).enumerate() {
        let shared = match plan.options.unshare {
            true => HashMap::new(),
            false => shared_names(group, index, factors, namer),
        };
        let parts = Parts { factors, shared, precision, opset };
        let members = Members { convs: &plan.convs, members: &group.members };
        for (&member, own) in group.members.iter().zip(members.parts()) {
            let brings = own.start == 0;
            let conv = &plan.convs[member];
            let fits = |conv: &Conv| {
                let node = graph.node.get(conv.node);
                node.is_some_and(|n| n.op_type() == conv.kind.op_type() && n.input.first() == Some(&conv.input))
            };
            if !conv.all().all(fits) {
                return Err(Error::Options(format!(
                    "the plan speaks of a convolution '{}' that is not in the model",
                    conv.name
                )));
            }
            let bias = amends.biases.get(&member);
            let patch = Patch::new(&graph.node[conv.node], conv, bias, &parts, (own.clone(), brings), namer);
            for twin in &conv.twins {
                // What the first has written is read by the others.
                let parts = Parts { factors, shared: patch.weights.clone(), precision, opset };
                let patch = Patch::new(&graph.node[twin.node], twin, None, &parts, (own.clone(), false), namer);
                patches.insert(twin.node, patch);
            }
            patches.insert(conv.node, patch);
        }
    }
    Ok(patches)
}

/// For a model whose kernels are not float32: the model to write, its factors and amends rounded to its own type, and the same in
/// float32, with how far these factors are from the kernels.
///
/// # Errors
/// [`Error::Numerical`] if a factor exceeds the type.
pub(crate) fn narrowed(
    original: &Model,
    wide: &Model,
    plan: &Plan,
    compiled: Compiled,
    precision: Precision,
) -> Result<(Model, Compiled)> {
    let Compiled { mut factors, mut amends, model, errors: found } = compiled;
    // It would hold the memory of the factors as they were.
    drop(model);
    factors.iter_mut().for_each(|f| precision.narrow().into_iter().for_each(|narrow| f.narrow_to(narrow)));
    // Biases of folded batch norms are written, and so rounded, as all that is new.
    for &member in plan.groups.iter().flat_map(|group| &group.members) {
        if let (Some(bias), Entry::Vacant(place)) = (plan.convs[member].folded_bias(), amends.biases.entry(member)) {
            place.insert(bias);
        }
    }
    amends.biases.values_mut().flatten().for_each(|x| *x = precision.round(*x));
    for (head, bias) in &mut amends.heads {
        head.weight.mapv_inplace(|x| precision.round(x));
        bias.iter_mut().for_each(|x| *x = precision.round(*x));
    }
    if let Some((group, _)) = plan.groups.iter().zip(&factors).find(|(_, f)| !f.is_finite()) {
        let reason = format!("its factors exceed what {} holds", precision.data_type().as_str_name());
        return Err(Members { convs: &plan.convs, members: &group.members }.failed(reason));
    }
    lay_out(plan, &mut factors);
    let written = rewritten(original, plan, &factors, &amends)?;
    // What is verified is what is written. Where kernels are kept, factors were rounded as they were found.
    let (model, errors) = match wide.kept() {
        Some(_) => (written.mostly_in_f32(), found),
        None => (written.in_f32(), errors(plan, &factors)?),
    };
    let model = model.map_or_else(|| rewritten(wide, plan, &factors, &amends), Ok)?;
    Ok((written, Compiled { model, factors, errors, amends }))
}

/// The bias to store: the one given, or the batch norm's folded in; none where the node's own stays.
fn new_bias(conv: &Conv, given: Option<&Vec<f64>>) -> Option<Vec<f64>> {
    given.cloned().or_else(|| conv.folded_bias())
}

/// Factors of a group, in the type that large tensors of the model are kept in, and, if it was calibrated, the biases of its members.
fn solve(plan: &Plan, group: &GroupPlan, kept: Option<Precision>) -> Result<(Factors, BTreeMap<usize, Vec<f64>>)> {
    let kernels = Members { convs: &plan.convs, members: &group.members };
    let chains = group.form.chains();
    let failed = |reason: String| kernels.failed(reason);
    let sights = plan.sights.as_deref().and_then(|sights| all_see(&group.members, sights));
    let judged = sights.map(|sights| Judged::new(&chains, &group.members, sights)).transpose().map_err(failed)?;
    let analysis = group.analysis(&plan.convs, judged.as_ref()).map_err(failed)?;
    let factors = match &judged {
        None => factor::factorize(&chains, &kernels, &group.ranks, plan.options.iterations, &analysis),
        Some(judged) => {
            factor::factorize_calibrated(&chains, &kernels, &judged.seen(), &group.ranks, SWEEPS, &analysis)
                .map(|solved| solved.0)
        }
    };
    let mut factors = factors.map_err(failed)?;
    if !factors.is_finite() {
        return Err(failed("its factors exceed float32".into()));
    }
    // Biases make up for what rounding does to the mean, too.
    round(plan, group, &mut factors)?;
    if let Some(narrow) = kept.and_then(Precision::narrow) {
        factors.narrow_to(narrow);
    }
    let mut biases = BTreeMap::new();
    let Some(sights) = &plan.sights else { return Ok((factors, biases)) };
    for (&member, kernel) in group.members.iter().zip(kernels.reconstruct(&factors)) {
        biases.extend(shifted_bias(&plan.convs[member], &kernel, &sights[member]).map(|b| (member, b)));
    }
    Ok((factors, biases))
}

/// The bias that keeps the mean output when a kernel is replaced, `b + (W − Ŵ)ᵀ·E[x]`; none if the bias is computed.
pub(crate) fn shifted_bias(conv: &Conv, kernel: &Array4<f64>, sight: &Sight) -> Option<Vec<f64>> {
    let bias = conv.effective_bias()?;
    let shift = sight.respond(&(conv.kernel() - kernel));
    Some(bias.iter().zip(&shift).map(|(b, s)| b + s).collect())
}

/// `‖W − Ŵ‖ / ‖W‖` of a group, its members' kernels one after the other.
fn reconstruction_error(plan: &Plan, group: &GroupPlan, written: impl Iterator<Item = Array4<f64>>) -> f64 {
    let squared = |kernel: &Array4<f64>| kernel.iter().map(|x| x * x).sum::<f64>();
    let (mut lost, mut all) = (0.0, 0.0);
    for (&member, written) in group.members.iter().zip(written) {
        let mut kernel = plan.convs[member].kernel();
        all += squared(&kernel);
        kernel -= &written;
        lost += squared(&kernel);
    }
    if all > 0.0 { (lost / all).sqrt() } else { 0.0 }
}

/// Before this IR version every initializer is also a graph input.
const INPUTS_UNTIL: i64 = 4;

/// Turns between the two halves of a calibrated chain.
const SWEEPS: usize = 6;

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
    // What converts factors reads constants alone, and may have readers anywhere.
    let mut first = Vec::new();
    for (index, node) in graph.node.drain(..).enumerate() {
        match patches.remove(&index) {
            Some(patch) => {
                first.extend(patch.converting);
                nodes.extend(patch.nodes);
                added.extend(patch.initializers);
            }
            None if gone.contains(&index) => {}
            None => nodes.push(node),
        }
    }
    graph.node = first.into_iter().chain(nodes).collect();
    if ir_version < INPUTS_UNTIL {
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
    let policy = plan.options.policy.metadata();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::{Scheme, Unfolding};
    use crate::group::{GroupOptions, find_groups};
    use crate::onnx::{initializer, proto::NodeProto};
    use crate::plan::{PlanOptions, RankPolicy, SchemeChoice};

    #[test]
    fn bases_computed_twice_give_the_same_bytes() {
        let model = Model::open("fixtures/fashion-resnet.onnx").expect("it is in the repository");
        let grouping = find_groups(&model, &GroupOptions::default()).expect("it is sound");
        let split = 0.4;
        let schemes = [
            Scheme::Separate.on(Unfolding::TUCKER),
            Scheme::LeftShared.into(),
            Scheme::RightSharedWithFirst.on(Unfolding::POINTWISE_FIRST),
            Scheme::RightShared.into(),
            Scheme::BothShared { split }.into(),
            Scheme::PartlyCoupled { split }.into(),
            Scheme::CoupledTensorTrain { split }.on(Unfolding::TUCKER),
        ];
        for form in schemes {
            let options = PlanOptions {
                scheme: SchemeChoice::Only(form),
                policy: RankPolicy::Ratio(3.0),
                iterations: 2,
                ..PlanOptions::default()
            };
            let plan = Plan::build(&model, &grouping, &options).expect("the ratio is in reach");
            let mut lean = plan.clone();
            for group in &mut lean.groups {
                group.analysis = std::sync::Arc::new(factor::Analysis::clone(&group.analysis).without_vectors());
                assert!(!group.analysis.has_vectors());
            }
            let written = |plan: &Plan| apply(&model, plan).expect("it converges").model.to_bytes();
            assert_eq!(written(&plan), written(&lean), "{form}");
        }
    }

    /// One layer with a kernel of these dimensions in this type.
    fn layer(operator: &str, dims: &[usize], precision: Precision) -> Model {
        let value = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
        let count: usize = dims.iter().product();
        let values = (0..count).map(|i| ((i * 37 + i * i) % 101) as f32 - 50.0);
        let kernel = initializer("w".into(), dims, values, precision);
        let node = NodeProto {
            op_type: Some(operator.into()),
            input: vec!["x".into(), "w".into()],
            output: vec!["y".into()],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![node],
            initializer: vec![kernel],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        };
        let opset = crate::onnx::proto::OperatorSetIdProto { domain: None, version: Some(17) };
        Model::from_proto(ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(graph),
            ..ModelProto::default()
        })
    }

    #[test]
    fn what_is_written_shares_the_memory_of_the_factors() {
        let layers = [("Conv", &[24, 20, 3, 3][..]), ("ConvTranspose", &[24, 20, 3, 3]), ("MatMul", &[40, 30])];
        let types = [Precision::Single, Precision::Half, Precision::Brain];
        for ((operator, dims), precision) in
            layers.into_iter().flat_map(|layer| types.map(|precision| (layer, precision)))
        {
            let model = layer(operator, dims, precision);
            let wide = model.mostly_in_f32();
            let read = wide.as_ref().unwrap_or(&model);
            let grouping = find_groups(read, &GroupOptions::default()).expect("it is sound");
            let plan = PlanOptions { policy: RankPolicy::Ratio(2.0), allow_more_macs: true, ..PlanOptions::default() };
            let plan = Plan::build(read, &grouping, &plan).expect("the ratio is in reach");
            let compiled = apply(read, &plan).expect("it converges");
            let (written, compiled) = match &wide {
                Some(wide) => narrowed(&model, wide, &plan, compiled, precision).expect("they are numbers"),
                None => (compiled.model.clone(), compiled),
            };
            let kernels = compiled.factors.iter().flat_map(|f| &f.chains).flat_map(|c| &c.factors);
            let arranged = kernels.flat_map(Factor::kernels).map(|k| k.clone().arranged(&plan.convs[0].kind));
            let memory: Vec<usize> = arranged.map(|k| k.bytes().expect("in order").as_ptr().addr()).collect();
            for model in [&written, &compiled.model] {
                let graph = model.proto().graph.as_ref().expect("it has one");
                let stored =
                    graph.initializer.iter().filter_map(|t| t.raw_data.as_ref()).map(|raw| raw.as_ptr().addr());
                let stored: Vec<usize> = stored.collect();
                assert_eq!(stored.len(), 2, "{operator}");
                // In the model that is run, only large ones are as they are written.
                let shared = stored.iter().filter(|at| memory.contains(at)).count();
                let large = graph.initializer.iter().filter(|t| t.data_type() == precision.data_type() as i32).count();
                assert_eq!(shared, large, "{operator} {precision:?}");
            }
        }
    }
}
