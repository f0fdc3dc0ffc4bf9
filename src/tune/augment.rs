//! Other views of an image: mirrored, shifted, cropped and resized, mixed with another.

use ndarray::{ArrayD, Axis};
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
    /// Largest share of the side that is cropped away, before what is left is resized to the whole.
    pub(super) zoom: f32,
    /// Share of images that are mixed with another.
    pub(super) mix: f32,
}

impl Augmentation {
    /// Mirrors, crops and shifts; pixels beyond the edge are the edge's.
    pub(super) fn apply(&self, image: &mut ArrayD<f32>, chance: &mut Pcg64Mcg) {
        let Some(axes) = self.axes else { return };
        if self.mirror && chance.random::<bool>() {
            image.invert_axis(Axis(axes[1]));
        }
        let scale = if self.zoom > 0.0 { 1.0 - self.zoom * chance.random::<f32>() } else { 1.0 };
        for axis in axes {
            let side = image.len_of(Axis(axis));
            let reach = (self.shift * side as f32).round() as i64;
            let shift = chance.random_range(-reach..=reach) as f32;
            let room = side.saturating_sub(1) as f32 * (1.0 - scale);
            let corner = if room > 0.0 { room * chance.random::<f32>() } else { 0.0 };
            if (corner - shift, scale) != (0.0, 1.0) {
                *image = resampled(image, Axis(axis), corner - shift, scale);
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

/// `y[i] = x(start + scale·i)`, between two pixels in proportion, the edge where that is outside.
fn resampled(image: &ArrayD<f32>, axis: Axis, start: f32, scale: f32) -> ArrayD<f32> {
    let mut made = image.clone();
    let last = image.len_of(axis).saturating_sub(1);
    for to in 0..=last {
        let from = (start + scale * to as f32).clamp(0.0, last as f32);
        let (low, part) = (from.floor() as usize, from.fract());
        let mut place = made.index_axis_mut(axis, to);
        place.assign(&image.index_axis(axis, low));
        if part > 0.0 {
            let next = image.index_axis(axis, (low + 1).min(last));
            place.zip_mut_with(&next, |y, x| *y += part * (x - *y));
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr1;

    #[test]
    fn pixels_come_from_between_their_neighbours_and_from_the_edge() {
        let image = arr1(&[1.0, 2.0, 4.0, 8.0]).into_dyn();
        let at = |start, scale| resampled(&image, Axis(0), start, scale).into_raw_vec_and_offset().0;
        assert_eq!(at(-1.0, 1.0), [1.0, 1.0, 2.0, 4.0]);
        assert_eq!(at(2.0, 1.0), [4.0, 8.0, 8.0, 8.0]);
        assert_eq!(at(0.5, 0.5), [1.5, 2.0, 3.0, 4.0]);
    }
}
