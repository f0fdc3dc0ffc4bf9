//! Back from a rewritten graph to one convolution each, whose kernel is what its factors multiply out to now: a model that was
//! trained in its factors can so be decomposed anew.

use super::reference::{reference_names, with_kernels};
use super::{Amends, Compiled, INPUTS_UNTIL, amend, patches, reconstruction_error, tensor_input};
use crate::error::{Error, Result};
use crate::factor::{Factors, compose};
use crate::onnx::proto::GraphProto;
use crate::onnx::{Conv, Model, Namer, Precision, Storage};
use crate::plan::{GroupPlan, Plan, stacked};
use ndarray::{Array4, s};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The model with the kernels, biases and other values that `tuned` has: `tuned` has the names and shapes of what [`super::apply`] or
/// a refit made of `model` by this plan, with `factors` and `amends`. Batch norms that were folded stay so; all else has the names of
/// `model`.
///
/// # Errors
/// [`Error::Options`] if the parts do not belong together, or kernels are stored in other ways than as plain numbers.
pub(crate) fn undone(model: &Model, plan: &Plan, factors: &[Factors], amends: &Amends, tuned: &Model) -> Result<Model> {
    let members = || plan.groups.iter().flat_map(|g| &g.members).map(|&m| &plan.convs[m]);
    let precision = model.kernel_precision().unwrap_or(Precision::Single);
    if let Some(conv) = members().find(|c| c.storage != Storage::Plain) {
        return Err(foreign(conv, "is not stored as plain numbers"));
    }
    let (replaced, mut namer) = learnt(model, plan, (factors, amends), tuned, members())?;
    let tuned = tuned.floats();
    let also = &mut |graph: &mut GraphProto, _: &mut Namer| amend(graph, plan, amends, precision, &mut namer);
    let whole = with_kernels(&with_node_names(model, members()), replaced.iter().cloned(), also)?;
    let values = tuned.iter().filter_map(|(name, values)| Some((name.as_str(), values.as_slice()?)));
    let whole = whole.with_floats(&values.collect());
    Ok(with_old_names(&whole, members()))
}

/// How far the kernels that factors multiply out to in `tuned` are from the original's, a group each, as in [`Compiled::errors`]. Kernels
/// stored in other ways than as plain numbers are not tuned.
///
/// # Errors
/// [`Error::Options`] if the parts do not belong together.
pub(crate) fn tuned_errors(model: &Model, plan: &Plan, compiled: &Compiled, tuned: &Model) -> Result<Vec<f64>> {
    let changed = |group: &GroupPlan| group.members.iter().all(|&m| plan.convs[m].storage == Storage::Plain);
    let members = plan.groups.iter().filter(|group| changed(group)).flat_map(|group| &group.members);
    let convs = members.map(|&m| &plan.convs[m]);
    let (kernels, _) = learnt(model, plan, (&compiled.factors, &compiled.amends), tuned, convs)?;
    let mut kernels = kernels.into_iter().map(|(_, kernel, _)| kernel);
    let each = plan.groups.iter().zip(&compiled.errors).map(|(group, &untuned)| match changed(group) {
        true => reconstruction_error(plan, group, kernels.by_ref().take(group.members.len())),
        false => untuned,
    });
    Ok(each.collect())
}

/// A decomposed convolution with the kernel that its factors multiply out to and, if it has been given one, its bias.
type Learnt<'p> = (&'p Conv, Array4<f64>, Option<Vec<f64>>);

/// Some of them as `tuned` has them; and the names that are taken.
fn learnt<'p>(
    model: &Model,
    plan: &'p Plan,
    (factors, amends): (&[Factors], &Amends),
    tuned: &Model,
    convs: impl Iterator<Item = &'p Conv>,
) -> Result<(Vec<Learnt<'p>>, Namer)> {
    let precision = model.kernel_precision().unwrap_or(Precision::Single);
    let graph = model.proto().graph.as_ref().ok_or_else(|| Error::Options("the model has no graph".into()))?;
    // The names that it was written with.
    let mut namer = Namer::new(graph);
    let placed = patches(graph, plan, factors, amends, (precision, model.opset()), &mut namer)?;
    let tuned = tuned.floats();
    let values = |name: &String| tuned.get(name);
    let mut replaced = Vec::new();
    for conv in convs {
        let patch = placed.get(&conv.node).ok_or_else(|| foreign(conv, "was not rewritten"))?;
        let factor = |name: &String| {
            let stored = values(name).ok_or_else(|| foreign(conv, "has lost a factor"))?;
            let elements = stored.iter().copied().map(f64::from).collect();
            conv.kind.read(stored.shape(), elements).ok_or_else(|| foreign(conv, "has a factor of another shape"))
        };
        let kernel = multiplied(&patch.weights, conv.channel_groups(), &factor)?;
        if kernel.shape() != conv.shape {
            return Err(foreign(conv, "has factors of other shapes"));
        }
        // Its own stays where it is.
        let made = patch.bias.as_ref().filter(|name| conv.bias.as_ref() != Some(name));
        let bias = made.map(|name| {
            let found = values(name).ok_or_else(|| foreign(conv, "has lost its bias"))?;
            Ok(found.iter().copied().map(f64::from).collect::<Vec<f64>>())
        });
        replaced.push((conv, kernel, bias.transpose()?));
    }
    Ok((replaced, namer))
}

/// `Ŵ` of a convolution of so many groups of channels, of the names of its factors by chain and place.
fn multiplied(
    weights: &HashMap<(usize, usize), String>,
    groups: usize,
    factor: &dyn Fn(&String) -> Result<Array4<f64>>,
) -> Result<Array4<f64>> {
    let mut chains: BTreeMap<usize, BTreeMap<usize, &String>> = BTreeMap::new();
    for (&(chain, place), name) in weights {
        chains.entry(chain).or_default().insert(place, name);
    }
    let mut sum: Option<Array4<f64>> = None;
    for chain in chains.values() {
        let kernels = chain.values().map(|name| factor(name)).collect::<Result<Vec<_>>>()?;
        let product = stacked((0..groups).map(|group| {
            let own = |kernel: &Array4<f64>| {
                let rows = kernel.shape()[0] / groups;
                kernel.slice(s![group * rows..(group + 1) * rows, .., .., ..]).to_owned()
            };
            kernels.iter().map(own).reduce(|a, b| compose(a.view(), b.view())).unwrap_or_default()
        }));
        sum = Some(sum.map_or(product.clone(), |sum| sum + product));
    }
    Ok(sum.unwrap_or_default())
}

/// The model with names for those of some convolutions that have none: what these are called depends on what they give.
fn with_node_names<'c>(model: &Model, convs: impl Iterator<Item = &'c Conv>) -> Model {
    let mut proto = model.proto().clone();
    let Some(graph) = &mut proto.graph else { return model.clone() };
    for conv in convs.flat_map(Conv::all) {
        if let Some(node) = graph.node.get_mut(conv.node).filter(|n| n.name().is_empty()) {
            node.name = Some(conv.name.clone());
        }
    }
    model.derived(proto)
}

/// The model with kernels and biases of convolutions under the names that they had, where nothing else has these now.
fn with_old_names<'c>(whole: &Model, convs: impl Iterator<Item = &'c Conv>) -> Model {
    let mut proto = whole.proto().clone();
    let listed = proto.ir_version() < INPUTS_UNTIL;
    let Some(graph) = &mut proto.graph else { return whole.clone() };
    let namer = Namer::new(graph);
    let own = convs.flat_map(|conv| {
        let bias = conv.bias.clone().unwrap_or_else(|| format!("{}/bias", conv.name));
        reference_names(conv).into_iter().zip([conv.kernel_name.clone(), bias])
    });
    // What was refitted without being decomposed has a new name that the next rewrite will want again.
    let refitted =
        graph.initializer.iter().filter(|t| t.name().ends_with("/jmd_bias") || t.name().ends_with("/jmd_weight"));
    let refitted = refitted.map(|t| (t.name().to_owned(), t.name().replace("/jmd_", "/")));
    // Those that had one bias together may have several now.
    let mut given = HashSet::new();
    let own = refitted.chain(own).filter(|(_, name)| namer.is_free(name) && given.insert(name.clone()));
    let old: HashMap<String, String> = own.collect();
    let values = graph.node.iter_mut().flat_map(|n| &mut n.input);
    values.filter_map(|value| Some((old.get(value)?, value))).for_each(|(name, value)| value.clone_from(name));
    for tensor in &mut graph.initializer {
        if let Some(name) = old.get(tensor.name()) {
            tensor.name = Some(name.clone());
        }
    }
    if listed {
        let known: HashSet<String> = graph.input.iter().map(|i| i.name().to_owned()).collect();
        let new = graph.initializer.iter().filter(|t| !known.contains(t.name())).map(tensor_input);
        graph.input.extend(new.collect::<Vec<_>>());
    }
    whole.derived(proto)
}

fn foreign(conv: &Conv, what: &str) -> Error {
    Error::Options(format!("the kernel of '{}' {what}", conv.name))
}
