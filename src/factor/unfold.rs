//! Kernels as matrices and back: the only place where axes are permuted.
//!
//! A kernel `W[out, in, kh, kw]` becomes a matrix whose rows carry `in` and whose columns carry `out`;
//! each spatial axis goes to one side:
//!
//! | unfolding | rows | columns | first factor | last factor |
//! |---|---|---|---|---|
//! | spatial (the paper's) | `kh·in` | `kw·out` | `kh×1` to r | `1×kw` to out |
//! | filter bank | `kh·kw·in` | `out` | `kh×kw` to r | `1×1` to out |
//! | pointwise first | `in` | `kh·kw·out` | `1×1` to r | `kh×kw` to out |
//! | Tucker | `in` | `kh·kw·out` | `1×1` to r | cut again: `kh×kw` to r, then `1×1` to out |
//!
//! With `W = A·B`, `A: rows×r` is the kernel of the first convolution and `B: r×columns` of the last. Cut twice, `B` itself is a
//! core, which carries the spatial axes, and the `1×1` kernel `Vᵀ` behind it: `B_l = C_l·Vᵀ` for each offset l (Tucker-2: Kim et
//! al., arXiv 1511.06530).

use ndarray::{Array2, Array4, ArrayView2, ArrayView4};

/// The side of the matrix, and so the factor of the chain, that carries a spatial axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Rows; the first factor.
    First,
    /// Columns; the last factor.
    Last,
}

/// Which side carries the kernel's height and which its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfolding {
    /// Side of `kh`.
    pub height: Side,
    /// Side of `kw`.
    pub width: Side,
    /// Whether the last factor is cut once more: into a core and a `1×1` kernel.
    pub twice: bool,
}

impl Unfolding {
    /// `(kh·in) × (kw·out)`: a `kh×1` convolution, then a `1×kw` one.
    pub const SPATIAL: Self = Self { height: Side::First, width: Side::Last, twice: false };
    /// `(kh·kw·in) × out`: a bank of r filters, then a `1×1` convolution.
    pub const FILTER_BANK: Self = Self { height: Side::First, width: Side::First, twice: false };
    /// `in × (kh·kw·out)`: a `1×1` convolution to r channels, then the `kh×kw` one.
    pub const POINTWISE_FIRST: Self = Self { height: Side::Last, width: Side::Last, twice: false };
    /// A `1×1` convolution to r channels, a `kh×kw` one to r, a `1×1` one.
    pub const TUCKER: Self = Self { twice: true, ..Self::POINTWISE_FIRST };

    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.height, self.width, self.twice) {
            (Side::First, Side::Last, false) => "spatial",
            (Side::Last, Side::First, false) => "spatial-transposed",
            (Side::First, Side::First, false) => "filter-bank",
            (Side::Last, Side::Last, false) => "pointwise-first",
            (Side::Last, Side::Last, true) => "tucker",
            (_, _, true) => "cut-twice",
        }
    }

    /// The unfolding of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::SPATIAL, Self::FILTER_BANK, Self::POINTWISE_FIRST, Self::TUCKER];
        all.into_iter().find(|unfolding| unfolding.name() == name)
    }

    /// This unfolding as far as it makes sense for a kernel of this shape: a core of extent `1×1` would be no use.
    #[must_use]
    pub fn fit(self, shape: [usize; 4]) -> Self {
        let (_, last) = self.extents(shape);
        Self { twice: self.twice && last != [1, 1], ..self }
    }

    /// Spatial extents `[kh, kw]` of the first factor and of the last, or of the core if it is cut twice.
    #[must_use]
    pub fn extents(self, [_, _, kh, kw]: [usize; 4]) -> ([usize; 2], [usize; 2]) {
        let on = |side: Side| [if self.height == side { kh } else { 1 }, if self.width == side { kw } else { 1 }];
        (on(Side::First), on(Side::Last))
    }

    /// Rows and columns of the matrix of a kernel of shape `[out, in, kh, kw]`.
    #[must_use]
    pub fn matrix_shape(self, shape: [usize; 4]) -> (usize, usize) {
        let (first, last) = self.extents(shape);
        (first[0] * first[1] * shape[1], last[0] * last[1] * shape[0])
    }

    /// The matrix of a kernel. Rows are ordered `(kh, kw, in)` and columns `(kh, kw, out)`, each over the
    /// spatial axes that its side carries.
    #[must_use]
    pub fn unfold(self, kernel: ArrayView4<'_, f64>) -> Array2<f64> {
        let (out, inputs, kh, kw) = kernel.dim();
        let (rows, columns) = self.matrix_shape([out, inputs, kh, kw]);
        // out, in, kh, kw → kh, kw, in | kh, kw, out with the axes that a side lacks left out.
        let axes = match (self.height, self.width) {
            (Side::First, Side::Last) => [2, 1, 3, 0],
            (Side::First, Side::First) => [2, 3, 1, 0],
            (Side::Last, Side::Last) => [1, 2, 3, 0],
            (Side::Last, Side::First) => [3, 1, 2, 0],
        };
        let ordered = kernel.permuted_axes(axes).as_standard_layout().into_owned();
        // The axes' product is the same, so the shape always fits.
        ordered.into_shape_with_order((rows, columns)).unwrap_or_default()
    }

    /// The first factor's kernel `[r, in, kh', kw']` of a matrix `A: rows×r`.
    #[must_use]
    pub fn fold_first(self, a: ArrayView2<'_, f64>, shape: [usize; 4]) -> Array4<f64> {
        let ([kh, kw], _) = self.extents(shape);
        let (rank, inputs) = (a.ncols(), shape[1]);
        Array4::from_shape_fn((rank, inputs, kh, kw), |(r, i, y, x)| a[[(y * kw + x) * inputs + i, r]])
    }

    /// The matrix `A: rows×r` of a first factor's kernel `[r, in, kh', kw']`.
    #[must_use]
    pub fn unfold_first(self, kernel: ArrayView4<'_, f64>) -> Array2<f64> {
        let (rank, inputs, kh, kw) = kernel.dim();
        Array2::from_shape_fn((kh * kw * inputs, rank), |(row, r)| {
            kernel[[r, row % inputs, row / inputs / kw, row / inputs % kw]]
        })
    }

    /// The matrix `B: r×columns` of a last factor's kernel `[out, r, kh', kw']`.
    #[must_use]
    pub fn unfold_last(self, kernel: ArrayView4<'_, f64>) -> Array2<f64> {
        let (out, rank, kh, kw) = kernel.dim();
        Array2::from_shape_fn((rank, kh * kw * out), |(r, column)| {
            kernel[[column % out, r, column / out / kw, column / out % kw]]
        })
    }

    /// The last factor's kernel `[out, r, kh', kw']` of a matrix `B: r×columns`.
    #[must_use]
    pub fn fold_last(self, b: ArrayView2<'_, f64>, shape: [usize; 4]) -> Array4<f64> {
        let (_, [kh, kw]) = self.extents(shape);
        let (rank, out) = (b.nrows(), shape[0]);
        Array4::from_shape_fn((out, rank, kh, kw), |(o, r, y, x)| b[[r, (y * kw + x) * out + o]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::compose;

    #[test]
    fn an_outer_product_of_folded_factors_unfolds_to_the_product_of_the_matrices() {
        let shape = [3, 2, 3, 5];
        for unfolding in [Unfolding::SPATIAL, Unfolding::FILTER_BANK, Unfolding::POINTWISE_FIRST] {
            let (rows, columns) = unfolding.matrix_shape(shape);
            let a = Array2::from_shape_fn((rows, 2), |(i, j)| (i * 7 + j * 3) as f64 % 5.0 - 2.0);
            let b = Array2::from_shape_fn((2, columns), |(i, j)| (i * 5 + j * 11) as f64 % 7.0 - 3.0);
            let first = unfolding.fold_first(a.view(), shape);
            let last = unfolding.fold_last(b.view(), shape);
            let kernel = compose(first.view(), last.view());
            assert_eq!(kernel.shape(), shape);
            assert_eq!(unfolding.unfold_first(first.view()), a);
            assert_eq!(unfolding.unfold_last(last.view()), b);
            assert_eq!(unfolding.unfold(kernel.view()), a.dot(&b), "{unfolding:?}");
        }
    }
}
