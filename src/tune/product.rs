//! Products of small float32 matrices on one thread.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// A matrix in row-major order, or its transpose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Factor<'a> {
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values: &values[..rows * columns], rows, columns, transposed: false }
    }

    pub(super) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn view(&self) -> MatRef<'a, f32> {
        let stored = MatRef::from_row_major_slice(self.values, self.rows, self.columns);
        if self.transposed { stored.transpose() } else { stored }
    }
}

/// `C += A·B`, C in row-major order.
pub(super) fn add_product(c: &mut [f32], a: Factor<'_>, b: Factor<'_>) {
    run(c, Accum::Add, a, b);
}

/// `C = A·B`.
pub(super) fn product(c: &mut [f32], a: Factor<'_>, b: Factor<'_>) {
    run(c, Accum::Replace, a, b);
}

fn run(c: &mut [f32], accum: Accum, a: Factor<'_>, b: Factor<'_>) {
    let (a, b) = (a.view(), b.view());
    let c = MatMut::from_row_major_slice_mut(&mut c[..a.nrows() * b.ncols()], a.nrows(), b.ncols());
    matmul(c, accum, a, b, 1.0, Par::Seq);
}
