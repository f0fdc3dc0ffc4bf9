//! Other views of an image: mirrored, shifted, mixed with another.

use ndarray::{ArrayD, Axis, Slice};
use rand::RngExt;
use rand_pcg::Pcg64Mcg;

/// Which views are shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Augmentation {
    /// Axes of height and width, of inputs that are pictures.
    pub(super) axes: Option<[usize; 2]>,
    pub(super) mirror: bool,
    /// Largest shift as a share of the side.
    pub(super) shift: f32,
    /// Share of images that are mixed with another.
    pub(super) mix: f32,
}

impl Augmentation {
    /// Mirrors and shifts; pixels beyond the edge are the edge's.
    pub(super) fn apply(&self, image: &mut ArrayD<f32>, chance: &mut Pcg64Mcg) {
        let Some(axes) = self.axes else { return };
        if self.mirror && chance.random::<bool>() {
            image.invert_axis(Axis(axes[1]));
        }
        for axis in axes {
            let side = image.len_of(Axis(axis));
            let reach = (self.shift * side as f32).round() as i64;
            let by = chance.random_range(-reach..=reach);
            if by != 0 {
                *image = shifted(image, Axis(axis), by);
            }
        }
        if !image.is_standard_layout() {
            *image = image.as_standard_layout().into_owned();
        }
    }

    /// The share of another image that this one is mixed with, if it is.
    pub(super) fn mixture(&self, chance: &mut Pcg64Mcg) -> Option<f32> {
        (self.mix > 0.0 && chance.random::<f32>() < self.mix).then(|| chance.random::<f32>())
    }
}

/// `y[i] = x[i − by]`, the edge where that is outside.
fn shifted(image: &ArrayD<f32>, axis: Axis, by: i64) -> ArrayD<f32> {
    let mut shifted = image.clone();
    let side = image.len_of(axis) as i64;
    for to in 0..side {
        let from = (to - by).clamp(0, side - 1) as usize;
        let (to, from) = (Slice::from(to as usize..=to as usize), Slice::from(from..=from));
        shifted.slice_axis_mut(axis, to).assign(&image.slice_axis(axis, from));
    }
    shifted
}
