//! A `BatchNormalization`, or the `Add` of a bias, that a convolution can absorb.

use super::graph::{Graph, is_standard};
use super::{attributes, tensor::read_numbers};

/// Inference-time batch normalisation as an affine map per output channel: `y = scale·x + shift`, with
/// `scale = γ / √(variance + ε)` and `shift = β − mean·scale` (ONNX operator BatchNormalization).
#[derive(Debug, Clone)]
pub(crate) struct BatchNorm {
    pub(crate) node: usize,
    /// Where among its inputs `β` stands.
    pub(crate) place: usize,
    pub(crate) scale: Vec<f64>,
    pub(crate) shift: Vec<f64>,
    /// `β` as stored.
    pub(crate) beta: Vec<f64>,
    /// The value it writes.
    pub(crate) output: String,
    /// Elements of its parameters that nothing else reads, and that go with it.
    pub(crate) own_parameters: u64,
}

impl BatchNorm {
    /// The batch norm that reads `value` when nothing else does, its parameters are constant, finite
    /// and one a channel, and it runs in inference mode.
    pub(super) fn reading(graph: &Graph<'_>, value: &str, channels: usize) -> Option<Self> {
        let (index, position) = graph.only_reader(value)?;
        let node = &graph.nodes()[index];
        let inference = attributes::int(node, "training_mode").unwrap_or(0) == 0
            && attributes::int(node, "spatial").unwrap_or(1) == 1
            && node.output.iter().skip(1).all(|o| graph.uses(o).is_empty());
        if node.op_type() != "BatchNormalization" || !node.domain().is_empty() || position != 0 || !inference {
            return None;
        }
        let read = |i: usize| -> Option<Vec<f64>> {
            let values = read_numbers(graph.constant(node.input.get(i)?)?)?;
            let fits = values.len() == channels && values.iter().all(|v| v.is_finite());
            fits.then(|| values.iter().copied().collect())
        };
        let (gamma, beta, mean, variance) = (read(1)?, read(2)?, read(3)?, read(4)?);
        let epsilon = f64::from(attributes::float(node, "epsilon").unwrap_or(1e-5));
        let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
        let shift: Vec<f64> = scale.iter().zip(beta.iter().zip(&mean)).map(|(s, (b, m))| b - m * s).collect();
        let finite = scale.iter().chain(&shift).all(|x| x.is_finite());
        // Exporters store equal parameters once, behind Identity nodes.
        let own = (1..5).filter(|&i| graph.constant_uses(&node.input[i]) == 1).count();
        finite.then(|| Self {
            node: index,
            place: 2,
            scale,
            shift,
            beta,
            output: node.output[0].clone(),
            own_parameters: (own * channels) as u64,
        })
    }

    /// The `Add` of a constant, one number a channel along the last axis, that reads `value` when nothing else does: `y = x + β`. Of more
    /// axes than `value` is known to have it would give the sum others.
    pub(super) fn adding(graph: &Graph<'_>, value: &str, channels: usize, rank: Option<usize>) -> Option<Self> {
        let (index, position) = graph.only_reader(value)?;
        let node = &graph.nodes()[index];
        if node.op_type() != "Add" || !is_standard(node) || node.input.len() != 2 {
            return None;
        }
        let place = 1 - position.min(1);
        let stored = read_numbers(&graph.folded(&node.input[place])?)?;
        let fits = stored.len() == channels
            && stored.shape().last() == Some(&channels)
            && stored.iter().all(|v| v.is_finite())
            && stored.ndim() <= rank.unwrap_or(1);
        let beta: Vec<f64> = stored.iter().copied().collect();
        let own = graph.constant_uses(&node.input[place]) == 1;
        fits.then(|| Self {
            node: index,
            place,
            scale: vec![1.0; channels],
            shift: beta.clone(),
            beta,
            output: node.output[0].clone(),
            own_parameters: if own { channels as u64 } else { 0 },
        })
    }
}
