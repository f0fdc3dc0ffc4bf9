//! Kernels that are stored in fewer bits than operators read them in, and factors stored alike.
//!
//! | the kernel stands behind | its factors are stored as |
//! |---|---|
//! | `Cast` from float16 or bfloat16 | that type, behind a `Cast` each |
//! | `DequantizeLinear` from INT8 or UINT8 | INT8 without a zero point, behind a `DequantizeLinear` each, a scale for each channel of the output (before operator set 13 one for all) |
//!
//! Scales have 16 significant bits, so that they times whole numbers up to 127 are exact in float32: what is rounded once stays what it
//! is, and scales can be read off the rounded factors.

use super::attributes;
use super::folding::folds;
use super::graph::Graph;
use super::precision::Precision;
use super::proto::{NodeProto, TensorProto};
use super::tensor::{element_bits, floats_of, initializer, integers_of};
use crate::factor::StoredKernel;
use ndarray::{Array4, ArrayView4, Axis};

/// From this operator set on `DequantizeLinear` has a scale for each channel.
const SCALE_PER_CHANNEL: i64 = 13;
/// The largest whole number that INT8 holds with either sign.
const MOST: f32 = 127.0;
/// What is smaller is stored as zero.
const LEAST: f32 = 1e-30;
/// Operators between a kernel and what is stored, at most.
const MOST_STEPS: usize = 32;

/// How the kernel that an operator reads is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// As it is read, or in no fewer bits.
    Plain,
    /// In this narrower type.
    Cast(Precision),
    /// As whole numbers.
    Quantized {
        /// Whether factors have a scale for each channel of the output.
        per_channel: bool,
        /// Scales of the kernel that nothing else reads.
        scales: usize,
    },
}

impl Storage {
    /// ONNX's name of the type, if it is another than the operator reads.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Cast(precision) => Some(precision.data_type().as_str_name()),
            Self::Quantized { .. } => Some("INT8"),
        }
    }

    /// Scales that go with the kernel.
    pub(crate) fn scales(self) -> usize {
        if let Self::Quantized { scales, .. } = self { scales } else { 0 }
    }

    /// Rounds the kernels `[out, in, kh, kw]` of one factor, which are stored in one tensor, to what can be stored.
    pub(crate) fn round(self, kernels: &mut [StoredKernel]) {
        match self {
            Self::Plain => {}
            Self::Cast(precision) => {
                let narrow = precision.narrow();
                narrow.into_iter().for_each(|narrow| kernels.iter_mut().for_each(|k| k.narrow_to(narrow)));
            }
            Self::Quantized { per_channel: true, .. } => kernels.iter_mut().for_each(|kernel| {
                kernel.update(|floats| {
                    for mut channel in floats.axis_iter_mut(Axis(0)) {
                        let scale = scale(channel.iter());
                        channel.mapv_inplace(|x| whole(x, scale) * scale);
                    }
                });
            }),
            Self::Quantized { per_channel: false, .. } => {
                let floats: Vec<_> = kernels.iter().map(StoredKernel::floats).collect();
                let scale = scale(floats.iter().flatten());
                kernels.iter_mut().for_each(|kernel| kernel.map(|x| whole(x, scale) * scale));
            }
        }
    }
}

/// A rounded kernel `[out, in, kh, kw]` as whole numbers and their scales, one a channel of the output or one for all.
pub(crate) fn quantized(kernel: ArrayView4<'_, f32>, per_channel: bool) -> (Array4<f32>, Vec<f32>) {
    let scales: Vec<f32> = match per_channel {
        true => kernel.axis_iter(Axis(0)).map(|channel| scale(channel.iter())).collect(),
        false => vec![scale(kernel.iter())],
    };
    let mut numbers = kernel.to_owned();
    for (at, mut channel) in numbers.axis_iter_mut(Axis(0)).enumerate() {
        let scale = scales[at.min(scales.len() - 1)];
        channel.mapv_inplace(|x| whole(x, scale));
    }
    (numbers, scales)
}

/// The least number of 16 significant bits that 127 times is as large as any of these.
fn scale<'x>(values: impl Iterator<Item = &'x f32>) -> f32 {
    let most = values.fold(0.0f32, |most, x| most.max(x.abs()));
    if most < LEAST { 1.0 } else { f32::from_bits(((most / MOST).to_bits() + 0xff) & !0xff) }
}

fn whole(x: f32, scale: f32) -> f32 {
    (x / scale).round().clamp(-MOST, MOST)
}

impl Graph<'_> {
    /// How the kernel that a name stands for is stored.
    pub(crate) fn storage(&self, name: &str) -> Storage {
        let (mut name, mut read) = (name, None);
        for _ in 0..MOST_STEPS {
            if let Some(tensor) = self.constant(name) {
                let narrow = Precision::of(tensor.data_type()).filter(|p| p.is_narrow());
                let wide = read.is_some_and(|p: Precision| !p.is_narrow());
                return narrow.filter(|_| wide).map_or(Storage::Plain, Storage::Cast);
            }
            let Some(node) = self.producer(name).map(|n| &self.nodes()[n]).filter(|n| folds(n)) else { break };
            match node.op_type() {
                "DequantizeLinear" => {
                    let own = node.input.get(1).filter(|s| self.constant_uses(s) == 1).and_then(|s| self.folded(s));
                    let scales = own.map_or(0, |s| floats_of(&s).len());
                    return Storage::Quantized { per_channel: self.opset() >= SCALE_PER_CHANNEL, scales };
                }
                "Cast" => {
                    let to = attributes::int(node, "to").and_then(|to| i32::try_from(to).ok());
                    read = read.or(to.and_then(Precision::of));
                }
                _ => {}
            }
            let Some(input) = node.input.first() else { break };
            name = input;
        }
        Storage::Plain
    }

    /// Whether a name stands for whole numbers of more than eight bits, as biases are: what is stored in fewer would be less precise.
    pub(crate) fn is_widely_quantized(&self, name: &str) -> bool {
        let stored = || self.constant(self.stored(name)).and_then(|tensor| element_bits(tensor.data_type()));
        matches!(self.storage(name), Storage::Quantized { .. }) && stored().is_none_or(|bits| bits > 8)
    }

    /// The constant behind a name, or in other numbers behind what only converts it: of the same dimensions.
    pub(crate) fn unconverted<'n>(&'n self, mut name: &'n str) -> Option<&'n TensorProto> {
        for _ in 0..MOST_STEPS {
            if let Some(tensor) = self.constant(name) {
                return Some(tensor);
            }
            let converts = |n: &&NodeProto| folds(n) && matches!(n.op_type(), "Cast" | "DequantizeLinear");
            name = self.producer(name).map(|n| &self.nodes()[n]).filter(converts)?.input.first()?;
        }
        None
    }

    /// What a `DequantizeLinear` makes of constants, `(x − zero point)·scale`, of the scale's type; none if one of them is not
    /// constant, or if it has a scale a block.
    pub(super) fn dequantized(&self, name: &str, node: &NodeProto) -> Option<TensorProto> {
        let other = |attribute: &str| attributes::int(node, attribute).unwrap_or(0) != 0;
        if other("block_size") || other("output_dtype") {
            return None;
        }
        let stored = self.constant(node.input.first()?)?;
        let dims: Vec<usize> = stored.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
        let scale = self.folded(node.input.get(1)?)?;
        let scales = floats_of(&scale);
        let zeros = match node.input.get(2).filter(|z| !z.is_empty()) {
            Some(zero) => integers_of(self.constant(zero)?)?,
            None => vec![0; scales.len()],
        };
        let (channels, inner) = if scales.len() == 1 {
            (1, 1)
        } else {
            let axis = attributes::int(node, "axis").unwrap_or(1);
            let axis = usize::try_from(if axis < 0 { axis + dims.len() as i64 } else { axis }).ok()?;
            (*dims.get(axis)?, dims[axis + 1..].iter().fold(1, |n: usize, &d| n.saturating_mul(d)))
        };
        if (scales.len(), zeros.len()) != (channels, channels) {
            return None;
        }
        let numbers = integers_of(stored)?.into_iter().enumerate();
        let elements = numbers.map(|(at, x)| {
            let channel = at / inner.max(1) % channels;
            (i64::from(x) - i64::from(zeros[channel])) as f32 * scales[channel]
        });
        Some(initializer(name.to_owned(), &dims, elements, Precision::of(scale.data_type())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rounded_once_stays_and_gives_its_scales_back() {
        let value = |at: usize| ((at * 7919 + 13) % 1009) as f32 / 331.7 - 1.47;
        let kernel = Array4::from_shape_fn([5, 3, 3, 1], |(o, i, y, _)| {
            // A channel of zeros, one of tiny values and others of all sizes.
            let size = [1.0, 0.0, 3e-33, 1e-7, 4e5][o];
            size * value(9 * o + 3 * i + y)
        });
        for per_channel in [true, false] {
            let storage = Storage::Quantized { per_channel, scales: 0 };
            let mut once = [kernel.clone().into()];
            storage.round(&mut once);
            let mut twice = once.clone();
            storage.round(&mut twice);
            assert_eq!(once, twice);
            let (numbers, scales) = quantized(once[0].floats().view(), per_channel);
            assert_eq!(scales.len(), if per_channel { 5 } else { 1 });
            for (at, channel) in numbers.axis_iter(Axis(0)).enumerate() {
                let (scale, rounded) =
                    (scales[at.min(scales.len() - 1)], once[0].floats().index_axis(Axis(0), at).to_owned());
                assert!(channel.iter().all(|x| x.fract() == 0.0 && x.abs() <= 127.0));
                assert_eq!(channel.mapv(|x| x * scale), rounded);
                // At most half a step from what it was.
                let original = kernel.index_axis(Axis(0), at);
                assert!(rounded.iter().zip(&original).all(|(a, b)| (a - b).abs() <= 0.5001 * scale));
            }
        }
    }
}
