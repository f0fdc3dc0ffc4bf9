//! One of a model's inputs: the picture that it reads, and how pixels become its values.

use super::preprocess::{Affine, Layout};
use crate::onnx::Elements;
use ndarray::{ArrayD, ArrayView3, IxDyn};

/// The picture that an input reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    pub(super) layout: Layout,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// `[1, C, H, W]` or `[1, H, W, C]` with 1, 3 or 4 channels.
pub(super) fn picture(dims: &[usize]) -> Option<Picture> {
    let channels = |n: usize| matches!(n, 1 | 3 | 4);
    match *dims {
        [1, c, height, width] if channels(c) => Some(Picture { layout: Layout::Nchw, channels: c, height, width }),
        [1, height, width, c] if channels(c) => Some(Picture { layout: Layout::Nhwc, channels: c, height, width }),
        _ => None,
    }
}

/// One of the model's inputs.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    pub(super) picture: Option<Picture>,
    /// What is done to pixels; none leaves values as they are.
    pub(super) affine: Option<Affine>,
    /// The sentence that says what was assumed.
    pub(super) assumed: Option<String>,
    pub(super) integer: bool,
}

impl Slot {
    pub(super) fn channels(&self) -> usize {
        let first = self.dims.get(1).copied().unwrap_or(1);
        self.picture.map_or(first, |p| p.channels)
    }

    /// One sample's values as the model reads them; `swapped` if channels stand last in one of the two and not in the other.
    pub(super) fn made(&self, values: Elements, swapped: bool) -> Option<ArrayD<f32>> {
        let plain = Affine::default();
        let (affine, channels) = (self.affine.as_ref(), self.channels());
        let mut values = match (affine, values) {
            (Some(affine), values) => affine.scaled(values),
            (None, Elements::Bytes(bytes)) => bytes.into_iter().map(f32::from).collect(),
            (None, Elements::Floats(values) | Elements::Integers(values)) => values,
        };
        let last = self.picture.is_some_and(|p| p.layout == Layout::Nhwc);
        if let Some(p) = self.picture.filter(|_| swapped) {
            let (from, axes) = match p.layout {
                Layout::Nchw => ((p.height, p.width, p.channels), [2, 0, 1]),
                Layout::Nhwc => ((p.channels, p.height, p.width), [1, 2, 0]),
            };
            let view = ArrayView3::from_shape(from, &values).ok()?;
            values = view.permuted_axes(axes).iter().copied().collect();
        }
        let plane = (values.len() / channels.max(1)).max(1);
        let channel_of = |at: usize| if last { at % channels } else { at / plane };
        affine.unwrap_or(&plain).normalise(&mut values, channel_of);
        ArrayD::from_shape_vec(IxDyn(&self.dims), values).ok()
    }
}

/// What to do about a model that reads several images at a time.
pub(super) fn one_at_a_time(name: &str, dims: &[usize]) -> Option<String> {
    let (&count, one) = dims.split_first().filter(|(count, _)| **count > 1)?;
    picture(&[&[1], one].concat())?;
    let one: Vec<String> = one.iter().map(usize::to_string).collect();
    Some(format!(
        "the model reads {count} at a time, give --input-shape {name}:1,{} to run it on one; if its nodes are made for {count} alone, leave the images out",
        one.join(",")
    ))
}
