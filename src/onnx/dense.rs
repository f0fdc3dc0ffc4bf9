//! A fully connected layer that gives an output of the model.

use super::graph::{Graph, Use, is_standard, label};
use super::{attributes, tensor::read_floats};
use ndarray::{Array2, Ix2};

/// A `Gemm` with constant weights that nothing else uses, `y = x·W + b`, whose result is an output of the graph.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// The node's name.
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) input: String,
    pub(crate) output: String,
    /// `W: in × out`.
    pub(crate) weight: Array2<f64>,
    /// Whether the file stores `Wᵀ`.
    pub(crate) transposed: bool,
}

impl Dense {
    /// All of a graph, in its order.
    pub(crate) fn heads(graph: &Graph<'_>) -> Vec<Self> {
        graph.order().iter().filter_map(|&index| Self::read(graph, index)).collect()
    }

    fn read(graph: &Graph<'_>, index: usize) -> Option<Self> {
        let node = &graph.nodes()[index];
        let plain = node.op_type() == "Gemm"
            && is_standard(node)
            && attributes::float(node, "alpha").unwrap_or(1.0) == 1.0
            && attributes::float(node, "beta").unwrap_or(1.0) == 1.0
            && attributes::int(node, "transA").unwrap_or(0) == 0;
        let [input, weight, bias] = &node.input[..] else { return None };
        let output = node.output.first()?;
        let own = |name: &str| graph.constant_uses(name) == 1;
        if !plain || !own(weight) || !own(bias) || !matches!(graph.uses(output), [Use::Output]) {
            return None;
        }
        let transposed = attributes::int(node, "transB").unwrap_or(0) != 0;
        let stored = read_floats(graph.constant(weight)?)?.into_dimensionality::<Ix2>().ok()?.mapv(f64::from);
        let weight = if transposed { stored.reversed_axes() } else { stored };
        let bias = read_floats(graph.constant(bias)?)?;
        let of_columns = bias.len() == weight.ncols() && bias.shape().last() == Some(&bias.len());
        let fits = of_columns && weight.iter().all(|w| w.is_finite());
        fits.then(|| Self {
            name: label(node),
            node: index,
            input: input.clone(),
            output: output.clone(),
            weight,
            transposed,
        })
    }
}
