//! What is changed to make up for the error of factors without being decomposed.

use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{Conv, Dense, Namer, Precision, initializer};
use crate::plan::Plan;
use std::collections::{BTreeMap, HashSet};

/// Parameters changed in place, so that their number stays what it was.
#[derive(Debug, Clone, Default)]
pub(crate) struct Amends {
    /// Biases that replace the original ones, by position in [`Plan::convs`].
    pub(crate) biases: BTreeMap<usize, Vec<f64>>,
    /// Fully connected layers at the outputs: the layer with its new weight, and its new bias.
    pub(crate) heads: Vec<(Dense, Vec<f64>)>,
}

/// Gives convolutions left whole and layers at the outputs their new parameters; the initializers that hold them.
pub(super) fn amend(
    graph: &mut GraphProto,
    plan: &Plan,
    amends: &Amends,
    precision: Precision,
    namer: &mut Namer,
) -> Vec<TensorProto> {
    let decomposed: HashSet<usize> = plan.groups.iter().flat_map(|g| g.members.iter().copied()).collect();
    let whole = amends.biases.iter().filter(|(m, _)| !decomposed.contains(m));
    let mut added: Vec<TensorProto> =
        whole.filter_map(|(&m, bias)| set_bias(graph, &plan.convs[m], bias, precision, namer)).collect();
    for (head, bias) in &amends.heads {
        let Some([_, weight, place]) = graph.node.get_mut(head.node).map(|n| &mut n.input[..]) else { continue };
        *weight = namer.fresh(&format!("{}/jmd_weight", head.name));
        *place = namer.fresh(&format!("{}/jmd_bias", head.name));
        let stored = if head.transposed { head.weight.t() } else { head.weight.view() };
        added.push(initializer(weight.clone(), stored.shape(), stored.iter().copied(), precision));
        added.push(initializer(place.clone(), &[bias.len()], bias.iter().copied(), precision));
    }
    added
}

/// Gives a convolution left whole another constant in its output: its own bias, or that of its batch norm. The new initializer, if
/// there is such a place.
fn set_bias(
    graph: &mut GraphProto,
    conv: &Conv,
    bias: &[f64],
    precision: Precision,
    namer: &mut Namer,
) -> Option<TensorProto> {
    let (node, place, values) = match (&conv.batch_norm, conv.effective_bias()) {
        (Some(norm), Some(old)) => {
            let moved = norm.beta.iter().zip(bias).zip(&old).map(|((b, new), old)| b + new - old);
            (norm.node, norm.place, moved.collect())
        }
        _ => (conv.node, 2, bias.to_vec()),
    };
    let place = graph.node.get_mut(node)?.input.get_mut(place)?;
    *place = namer.fresh(&format!("{}/jmd_bias", conv.name));
    Some(initializer(place.clone(), &[values.len()], values.into_iter(), precision))
}
