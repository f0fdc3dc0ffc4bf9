//! How a graph normalises its input, if it does so itself.

use super::attributes;
use super::graph::{Graph, is_standard};
use super::tensor::read_floats;

/// Values of pixels that a graph is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PixelRange {
    /// 0 to 1.
    Unit,
    /// 0 to 255.
    Bytes,
}

/// A mean that is beyond this is one of bytes.
const LARGEST_UNIT_MEAN: f64 = 2.0;
/// A mean below this is none of pixels: what comes in is already centred.
const LEAST_MEAN: f64 = 0.1;
/// A graph that divides by at least this reads bytes.
const LEAST_DIVISOR: f64 = 32.0;

/// The range of pixels, told by the constants that the graph subtracts and divides by before anything else: `slope·x + shift`
/// is zero at the mean.
pub(crate) fn pixel_range(graph: &Graph<'_>, input: &str) -> Option<PixelRange> {
    let (mut value, mut slope, mut shift) = (input, 1.0, 0.0);
    while let Some((index, position)) = graph.only_reader(value) {
        let node = &graph.nodes()[index];
        let mean = |input: usize| {
            let values = read_floats(graph.constant(node.input.get(input)?)?)?;
            values.mapv(f64::from).mean().filter(|m| m.is_finite())
        };
        let other = mean(1 - position.min(1));
        match (node.op_type(), other) {
            _ if !is_standard(node) => break,
            ("Cast" | "Identity" | "Transpose", _) => {}
            ("Sub", Some(c)) if position == 0 => shift -= c,
            ("Add", Some(c)) => shift += c,
            ("Mul", Some(c)) => (slope, shift) = (slope * c, shift * c),
            ("Div", Some(c)) if position == 0 && c != 0.0 => (slope, shift) = (slope / c, shift / c),
            ("ImageScaler", _) => {
                let scale = attributes::float(node, "scale").map_or(1.0, f64::from);
                let bias = attributes::floats(node, "bias").unwrap_or_default();
                let bias = bias.iter().copied().map(f64::from).sum::<f64>() / bias.len().max(1) as f64;
                (slope, shift) = (slope * scale, shift * scale + bias);
            }
            ("BatchNormalization", _) if position == 0 => {
                shift -= mean(3)?;
                break;
            }
            _ => break,
        }
        value = node.output.first()?;
    }
    let (mean, divisor) = (-shift / slope, 1.0 / f64::abs(slope));
    if mean > LARGEST_UNIT_MEAN || (shift == 0.0 && divisor >= LEAST_DIVISOR) {
        return Some(PixelRange::Bytes);
    }
    (mean >= LEAST_MEAN).then_some(PixelRange::Unit)
}
