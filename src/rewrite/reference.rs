//! The original graph with other kernels: those that factors multiply out to, as the reference for what is written, or others to see what
//! they do.

use super::prune::{Before, drop_unread};
use super::{Compiled, amend, new_bias, patch};
use crate::error::{Error, Result};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{Conv, Kind, Model, Namer, Precision, float_initializer, initializer};
use crate::plan::{Members, Plan, stacked};
use ndarray::Array4;
use std::collections::{HashMap, HashSet};

/// The original graph with each decomposed kernel set to what its factors multiply out to, one convolution each: what the
/// rewritten graph must agree with to rounding, at any rank.
///
/// # Errors
/// [`Error::Options`] if the parts do not belong together.
pub fn reference(model: &Model, plan: &Plan, compiled: &Compiled) -> Result<Model> {
    reference_of(model, plan, compiled, &|_| true)
}

/// The same of only some of the decomposed convolutions, by their positions in [`Plan::convs`].
pub(crate) fn reference_of(
    model: &Model,
    plan: &Plan,
    compiled: &Compiled,
    wanted: &dyn Fn(usize) -> bool,
) -> Result<Model> {
    let groups = plan.groups.iter().zip(&compiled.factors);
    let members = groups.flat_map(|(group, factors)| {
        let members = Members { convs: &plan.convs, members: &group.members };
        group.members.iter().zip(members.parts()).map(move |(&member, parts)| (member, parts, factors))
    });
    let members = members.filter(|(member, ..)| wanted(*member)).map(|(member, parts, factors)| {
        let conv = &plan.convs[member];
        (
            conv,
            stacked(parts.map(|part| factors.reconstruct(part))),
            new_bias(conv, compiled.amends.biases.get(&member)),
        )
    });
    with_kernels(model, members, &mut |graph, namer| amend(graph, plan, &compiled.amends, Precision::Single, namer))
}

/// The model with some convolutions' kernels and, where given, biases replaced, batch norms that they absorb taken out; `also`
/// changes what else it likes and names the initializers to add.
pub(crate) fn with_kernels<'c>(
    model: &Model,
    replaced: impl Iterator<Item = (&'c Conv, Array4<f64>, Option<Vec<f64>>)>,
    also: &mut dyn FnMut(&mut GraphProto, &mut Namer) -> Vec<TensorProto>,
) -> Result<Model> {
    let mut proto = model.proto().clone();
    let ir_version = proto.ir_version();
    let graph = proto.graph.as_mut().ok_or_else(|| Error::Options("the model has no graph".into()))?;
    let before = Before::of(graph, ir_version);
    let mut namer = Namer::new(graph);
    let mut gone = HashSet::new();
    let added = also(graph, &mut namer);
    graph.initializer.extend(added);
    let mut sums: HashMap<usize, NodeProto> = HashMap::new();
    for (conv, kernel, bias) in replaced {
        let kind = &conv.kind;
        let name = namer.fresh(&reference_names(conv)[0]);
        let (dims, elements) = kind.store(kernel.mapv(|x| x as f32).view());
        graph.initializer.push(float_initializer(name.clone(), &dims, elements.into_iter()));
        for conv in conv.all() {
            let node = graph.node.get_mut(conv.node).filter(|n| n.op_type() == kind.op_type() && n.input.len() > 1);
            let node = node.ok_or_else(|| Error::Options(format!("no convolution '{}'", conv.name)))?;
            node.input[1].clone_from(&name);
            node.output[0].clone_from(&conv.output);
        }
        let Some(node) = graph.node.get_mut(conv.node) else { continue };
        if let Some(bias) = bias {
            let name = namer.fresh(&reference_names(conv)[1]);
            graph.initializer.push(initializer(name.clone(), &[conv.shape[0]], bias.into_iter(), Precision::Single));
            if *kind == Kind::MatMul {
                node.output[0] = namer.fresh(&format!("{}/jmd_product", conv.output));
                sums.insert(
                    conv.node,
                    patch::sum(conv, [node.output[0].clone(), name], conv.output.clone(), &mut namer),
                );
            } else {
                node.input.truncate(2);
                node.input.push(name);
            }
        }
        gone.extend(conv.batch_norm.as_ref().map(|b| b.node));
    }
    let mut nodes = Vec::with_capacity(graph.node.len() + sums.len());
    for (index, node) in graph.node.drain(..).enumerate().filter(|(index, _)| !gone.contains(index)) {
        nodes.push(node);
        nodes.extend(sums.remove(&index));
    }
    graph.node = nodes;
    drop_unread(graph, &before);
    Ok(model.derived(proto))
}

/// The names of a kernel that was replaced, and of its bias.
pub(super) fn reference_names(conv: &Conv) -> [String; 2] {
    [format!("{}/jmd_reference", conv.kernel_name), format!("{}/jmd_reference_bias", conv.name)]
}
