//! Parameters that are no numbers, or none that a network learns. They are looked for before a model is run, as running it need not show
//! them: tract's rectifiers, as those of other runtimes, give zero for what is no number.

use super::graph::{Graph, is_standard, label};
use super::proto::{NodeProto, TensorProto};
use super::tensor::{element_count, largest};
use super::{Model, is_layer};
use crate::error::{Error, Result};
use std::collections::HashSet;

/// What a parameter must not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Forbidden {
    Nan,
    /// Infinities, and what exceeds [`EXTREME`], too.
    Extreme,
}

/// A hundred millionth of the largest number of float32: sums of products may reach that.
const EXTREME: f64 = 1e30;

impl Model {
    /// Refuses parameters of layers and normalisations that are no numbers, or larger than any that is learnt.
    ///
    /// # Errors
    /// [`Error::NotFinite`] or [`Error::Extreme`] naming the node and the tensor.
    pub fn check_numbers(&self) -> Result<()> {
        let graph = Graph::new(self)?;
        let mut seen = HashSet::new();
        let live = graph.order().iter().filter(|&&index| graph.is_live(index)).map(|&index| &graph.nodes()[index]);
        for (node, name, place) in live.flat_map(|node| (0..).zip(&node.input).map(move |(at, name)| (node, name, at)))
        {
            let Some(tensor) = graph.constant(graph.stored(name)) else { continue };
            let Some(forbidden) = forbidden(&graph, node, place, tensor) else { continue };
            // One tensor may be read by thousands.
            if !seen.insert((std::ptr::from_ref(tensor), forbidden)) {
                continue;
            }
            let (found, extreme) = (largest(tensor), forbidden == Forbidden::Extreme);
            let (node, tensor) = (label(node), name.clone());
            match found {
                Some(value) if extreme && value.is_infinite() => return Err(Error::NotFinite { node, tensor }),
                Some(value) if extreme && value > EXTREME => {
                    return Err(Error::Extreme { node, tensor, value });
                }
                Some(_) => {}
                None => return Err(Error::NotFinite { node, tensor }),
            }
        }
        Ok(())
    }
}

/// What a constant that a node reads must not hold, if it is a parameter. Others may be infinite, as masks are, or a number alone that
/// stands for what is missing.
fn forbidden(graph: &Graph<'_>, node: &NodeProto, place: usize, tensor: &TensorProto) -> Option<Forbidden> {
    let several = || element_count(tensor).is_some_and(|n| n > 1);
    match node.op_type() {
        _ if !is_standard(node) => None,
        _ if place > 0 && is_layer(graph, node) => Some(Forbidden::Extreme),
        "BatchNormalization" if (1..=3).contains(&place) => Some(Forbidden::Extreme),
        "BatchNormalization"
        | "InstanceNormalization"
        | "LayerNormalization"
        | "GroupNormalization"
        | "PRelu"
        | "RNN"
        | "GRU"
        | "LSTM"
            if place > 0 =>
        {
            Some(Forbidden::Nan)
        }
        "Add" | "Sub" | "Mul" | "Div" if several() => Some(Forbidden::Nan),
        _ => None,
    }
}
