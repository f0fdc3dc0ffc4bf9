//! Kernels of factors as they are written.

use half::{bf16, f16};
use ndarray::{ArcArray, Array4, CowArray, Ix4};

/// A kernel `[out, in, kh, kw]` rounded to what is written, which shares its memory: float32, float64 where the kernel that it stands for
/// is, or, where memory is dear, a narrower type.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredKernel(Elements);

#[derive(Debug, Clone, PartialEq)]
enum Elements {
    Double(ArcArray<f64, Ix4>),
    Single(ArcArray<f32, Ix4>),
    Half(ArcArray<f16, Ix4>),
    Brain(ArcArray<bf16, Ix4>),
}

/// A type of 32 bits or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// float32
    Single,
    /// float64
    Double,
}

/// A type of less than 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Narrow {
    /// float16
    Half,
    /// bfloat16
    Brain,
}

/// How the axes of kernels are arranged in a file.
pub(crate) trait Arrangement {
    /// A kernel's axes in the order of the file; of what is in that order, `[out, in, kh, kw]`.
    fn arranged<T: Clone>(&self, kernel: ArcArray<T, Ix4>) -> ArcArray<T, Ix4>;
}

impl From<Array4<f32>> for StoredKernel {
    fn from(kernel: Array4<f32>) -> Self {
        Self(Elements::Single(kernel.into_shared()))
    }
}

/// Evaluates an expression for the array of any type.
macro_rules! each {
    ($elements:expr, $kernel:ident => $what:expr) => {
        match $elements {
            Elements::Double($kernel) => $what,
            Elements::Single($kernel) => $what,
            Elements::Half($kernel) => $what,
            Elements::Brain($kernel) => $what,
        }
    };
}

impl StoredKernel {
    /// Rounded to a type.
    #[must_use]
    pub fn new(kernel: Array4<f64>, width: Width) -> Self {
        match width {
            Width::Single => kernel.mapv(|x| x as f32).into(),
            Width::Double => Self(Elements::Double(kernel.into_shared())),
        }
    }

    /// `out, in, kh, kw`.
    #[must_use]
    pub fn dim(&self) -> (usize, usize, usize, usize) {
        each!(&self.0, kernel => kernel.dim())
    }

    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        each!(&self.0, kernel => kernel.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in float32.
    #[must_use]
    pub fn floats(&self) -> CowArray<'_, f32, Ix4> {
        match &self.0 {
            Elements::Double(kernel) => kernel.mapv(|x| x as f32).into(),
            Elements::Single(kernel) => kernel.view().into(),
            Elements::Half(kernel) => kernel.map(|x| x.to_f32()).into(),
            Elements::Brain(kernel) => kernel.map(|x| x.to_f32()).into(),
        }
    }

    /// The elements in float64.
    #[must_use]
    pub fn to_f64(&self) -> Array4<f64> {
        match &self.0 {
            Elements::Double(kernel) => kernel.to_owned(),
            Elements::Single(kernel) => kernel.map(|&x| f64::from(x)),
            Elements::Half(kernel) => kernel.map(|x| x.to_f64()),
            Elements::Brain(kernel) => kernel.map(|x| x.to_f64()),
        }
    }

    /// Whether every element is a number that its type holds.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        each!(&self.0, kernel => kernel.iter().all(|x| x.is_finite()))
    }

    /// Changes every element, and rounds it to the type.
    pub(crate) fn map(&mut self, change: impl Fn(f32) -> f32) {
        match &mut self.0 {
            Elements::Double(kernel) => kernel.mapv_inplace(|x| f64::from(change(x as f32))),
            Elements::Single(kernel) => kernel.mapv_inplace(change),
            Elements::Half(kernel) => kernel.mapv_inplace(|x| f16::from_f32(change(x.to_f32()))),
            Elements::Brain(kernel) => kernel.mapv_inplace(|x| bf16::from_f32(change(x.to_f32()))),
        }
    }

    /// Changes all elements at once, and rounds them to the type.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut ArcArray<f32, Ix4>)) {
        if let Elements::Single(kernel) = &mut self.0 {
            return change(kernel);
        }
        let mut floats = self.floats().into_owned().into_shared();
        change(&mut floats);
        let narrow = self.narrow();
        *self = Self(Elements::Single(floats));
        narrow.into_iter().for_each(|narrow| self.narrow_to(narrow));
    }

    /// Its type; float32 if it is narrower than that.
    #[must_use]
    pub fn width(&self) -> Width {
        if matches!(self.0, Elements::Double(_)) { Width::Double } else { Width::Single }
    }

    /// Its type, if it is narrower than float32.
    pub(crate) fn narrow(&self) -> Option<Narrow> {
        match &self.0 {
            Elements::Double(_) | Elements::Single(_) => None,
            Elements::Half(_) => Some(Narrow::Half),
            Elements::Brain(_) => Some(Narrow::Brain),
        }
    }

    /// Rounds to a type, in which the elements then are in memory.
    pub(crate) fn narrow_to(&mut self, narrow: Narrow) {
        if self.narrow() == Some(narrow) {
            return;
        }
        let floats = self.floats();
        self.0 = match narrow {
            Narrow::Half => Elements::Half(floats.map(|&x| f16::from_f32(x)).into_shared()),
            Narrow::Brain => Elements::Brain(floats.map(|&x| bf16::from_f32(x)).into_shared()),
        };
    }

    /// With its axes as a file has them.
    pub(crate) fn arranged(self, by: &impl Arrangement) -> Self {
        Self(match self.0 {
            Elements::Double(kernel) => Elements::Double(by.arranged(kernel)),
            Elements::Single(kernel) => Elements::Single(by.arranged(kernel)),
            Elements::Half(kernel) => Elements::Half(by.arranged(kernel)),
            Elements::Brain(kernel) => Elements::Brain(by.arranged(kernel)),
        })
    }

    /// Puts the elements in memory in the order in which a file has them.
    pub(super) fn lay_out(&mut self, by: &impl Arrangement) {
        fn laid_out<T: Clone>(kernel: &mut ArcArray<T, Ix4>, by: &impl Arrangement) {
            let arranged = by.arranged(kernel.clone());
            if !arranged.is_standard_layout() {
                *kernel = by.arranged(arranged.as_standard_layout().into_owned().into_shared());
            }
        }
        each!(&mut self.0, kernel => laid_out(kernel, by));
    }

    /// The bytes of the elements in memory, if that is their order.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        each!(&self.0, kernel => kernel.as_slice().map(bytemuck::cast_slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_kernels_round_as_numbers_do_and_share_their_bytes() {
        let kernel =
            Array4::from_shape_fn((3, 2, 2, 2), |(o, i, y, x)| 0.1 + o as f32 / 3.0 + (4 * i + 2 * y + x) as f32);
        let mut stored = StoredKernel::from(kernel.clone());
        stored.narrow_to(Narrow::Half);
        assert_eq!(stored.floats(), kernel.mapv(|x| f16::from_f32(x).to_f32()));
        assert_eq!(stored.to_f64(), kernel.mapv(|x| f16::from_f32(x).to_f64()));
        assert_eq!(stored.bytes().map(<[u8]>::len), Some(2 * kernel.len()));
        let same = stored.clone();
        stored.update(|floats| floats.mapv_inplace(|x| x + 1e-6));
        assert_eq!(stored, same);
        stored.map(|x| x * 1e5);
        assert!(!stored.is_finite() && same.is_finite());
        stored = StoredKernel::from(kernel.clone());
        stored.narrow_to(Narrow::Brain);
        assert_eq!(stored.floats(), kernel.mapv(|x| bf16::from_f32(x).to_f32()));
    }
}
