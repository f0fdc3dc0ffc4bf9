//! Eigendecompositions and orthonormal bases in f64: the only user of faer beside the products of tuning.
//!
//! What runs on several threads is cut into the same parts whatever their number, so that results never depend on it.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side as Half};
use ndarray::{Array2, ArrayView2, Axis, LinalgScalar};
use rayon::prelude::*;

/// A basis of the leading left singular vectors of stacked matrices and their whole spectrum.
#[derive(Debug, Clone)]
pub(super) struct Basis {
    /// `rows × kept`, orthonormal columns, by descending singular value.
    pub(super) vectors: Array2<f64>,
    /// Squared singular values, descending.
    pub(super) spectrum: Vec<f64>,
}

/// The leading `keep` left singular vectors of `[M₁ … Mₙ]` and all `σ²`. `sizes` are the shapes of the `Mᵢ`, `block` makes one.
///
/// By the eigenvectors of the Gram matrix of the smaller side: `G = Σ MᵢMᵢᵀ`, or `MᵀM` and then an orthonormal
/// basis of `M·V`. That is three times faster than an SVD; singular values below `1e-8·σ₁` are rounding noise,
/// as they are in f32 weights.
pub(super) fn leading_basis(
    sizes: &[(usize, usize)],
    block: &dyn Fn(usize) -> Array2<f64>,
    keep: usize,
) -> Result<Basis, String> {
    let rows = sizes.first().map_or(0, |s| s.0);
    let columns: usize = sizes.iter().map(|s| s.1).sum();
    let keep = keep.min(rows).min(columns);
    // What stays is allocated before what goes, or it would pin the memory of the temporaries.
    let mut vectors = Array2::zeros((rows.min(columns), keep));
    let mut spectrum = vec![0.0; rows.min(columns)];
    if rows <= columns {
        let mut gram = Mat::zeros(rows, rows);
        (0..sizes.len()).for_each(|i| add_gram(&mut gram, block(i).view()));
        eigen(gram, &mut vectors, &mut spectrum)?;
        return Ok(Basis { vectors: with_fixed_signs(vectors), spectrum });
    }
    let stacked = stacked(sizes.len(), block)?;
    let mut gram = Mat::zeros(columns, columns);
    add_gram(&mut gram, stacked.t());
    eigen(gram, &mut vectors, &mut spectrum)?;
    let images = stacked.dot(&vectors);
    drop((stacked, vectors));
    Ok(Basis { vectors: orthonormal_of(images), spectrum })
}

/// `[M₁ … Mₙ]`; a single one is not copied.
fn stacked(count: usize, block: &dyn Fn(usize) -> Array2<f64>) -> Result<Array2<f64>, String> {
    if count == 1 {
        return Ok(block(0));
    }
    let blocks: Vec<Array2<f64>> = (0..count).map(block).collect();
    ndarray::concatenate(Axis(1), &blocks.iter().map(|b| b.view()).collect::<Vec<_>>()).map_err(|e| e.to_string())
}

/// The leading `keep` eigenvectors, and all eigenvalues, of a symmetric positive semidefinite matrix.
pub(super) fn leading_eigenvectors(gram: &Array2<f64>, keep: usize) -> Result<Basis, String> {
    let n = gram.nrows();
    let (mut vectors, mut spectrum) = (Array2::zeros((n, keep.min(n))), vec![0.0; n]);
    eigen(matrix(gram.view()), &mut vectors, &mut spectrum)?;
    Ok(Basis { vectors: with_fixed_signs(vectors), spectrum })
}

/// An orthonormal basis of the columns, signs fixed.
pub(super) fn orthonormal(columns: ArrayView2<'_, f64>) -> Array2<f64> {
    orthonormal_in(matrix(columns))
}

/// The same of columns that nobody needs any more.
fn orthonormal_of(columns: Array2<f64>) -> Array2<f64> {
    let copy = matrix(columns.view());
    drop(columns);
    orthonormal_in(copy)
}

fn orthonormal_in(columns: Mat<f64>) -> Array2<f64> {
    let decomposed = columns.qr();
    drop(columns);
    let q = decomposed.compute_thin_Q();
    drop(decomposed);
    with_fixed_signs(owned(q.as_ref()))
}

/// `Q·R` of the columns.
pub(super) fn orthonormal_with_rest(columns: ArrayView2<'_, f64>) -> (Array2<f64>, Array2<f64>) {
    let q = orthonormal(columns);
    let rest = product(q.t(), columns);
    (q, rest)
}

/// `(VᵀV)⁻¹·Vᵀ`; columns that depend on others get next to nothing.
pub(super) fn left_inverse(v: &Array2<f64>) -> Array2<f64> {
    let transposed = v.t().to_owned();
    Positive::new(&transposed.dot(v), INVERSE_RIDGE).map_or_else(|_| transposed.clone(), |gram| gram.solve(&transposed))
}

/// `M^½` and `M^-½` of a positive semidefinite matrix; directions of less than `floor` times the largest eigenvalue are left
/// out of both.
pub(super) fn symmetric_roots(m: &Array2<f64>, floor: f64) -> Result<(Array2<f64>, Array2<f64>), String> {
    let n = m.nrows();
    let (mut vectors, mut values) = (Array2::zeros((n, n)), vec![0.0; n]);
    eigen(matrix(m.view()), &mut vectors, &mut values)?;
    let least = floor * values.first().copied().unwrap_or(0.0);
    let scaled = |power: f64| {
        let weights = values.iter().map(|&v| if v > least { v.powf(power) } else { 0.0 });
        product((&vectors * &ndarray::Array1::from_iter(weights)).view(), vectors.t())
    };
    Ok((scaled(0.5), scaled(-0.5)))
}

/// A positive semidefinite matrix with something added to its diagonal, ready to solve with.
#[derive(Debug)]
pub(super) struct Positive(faer::linalg::solvers::Llt<f64>);

impl Positive {
    /// `ridge` times the mean diagonal of `m` is added to it; one where that is zero, as an input that is always the same
    /// decides nothing and its factor is zero.
    pub(super) fn new(m: &Array2<f64>, ridge: f64) -> Result<Self, String> {
        let n = m.nrows();
        let mean = m.diag().sum() / n.max(1) as f64;
        let mut failure = String::new();
        // Of inputs that hardly vary, rounding may leave more than the ridge.
        for more in [1.0, 1e3, 1e6] {
            let mut g = matrix(m.view());
            let added = if mean > 0.0 { more * ridge * mean } else { 1.0 };
            (0..n).for_each(|i| g[(i, i)] += added);
            match g.llt(Half::Lower) {
                Ok(solver) => return Ok(Self(solver)),
                Err(reason) => failure = format!("{reason:?}, mean {mean:e}"),
            }
        }
        Err(failure)
    }

    /// `M⁻¹·y`.
    pub(super) fn solve(&self, y: &Array2<f64>) -> Array2<f64> {
        use faer::linalg::solvers::Solve;
        owned(self.0.solve(matrix(y.view())).as_ref())
    }
}

/// Added to the diagonal of `VᵀV`, relative to its mean.
const INVERSE_RIDGE: f64 = 1e-13;

/// Rows of a product that a thread computes at a time.
const PRODUCT_ROWS: usize = 512;

/// `m·x`, rows in memory one after the other.
pub(super) fn product<T: ComplexField + LinalgScalar>(m: ArrayView2<'_, T>, x: ArrayView2<'_, T>) -> Array2<T> {
    let columns = x.ncols();
    let (mut left, mut right) = (Mat::new(), Mat::new());
    let (m, x) = (seen(m, &mut left), seen(x, &mut right));
    let mut product = Array2::zeros((m.nrows(), columns));
    let places = product.axis_chunks_iter_mut(Axis(0), PRODUCT_ROWS).enumerate().collect::<Vec<_>>();
    places.into_par_iter().with_max_len(1).for_each(|(at, mut place)| {
        let rows = place.nrows();
        // Rows of a new array are one after the other.
        let Some(place) = place.as_slice_mut() else { return };
        let place = MatMut::from_row_major_slice_mut(place, rows, columns);
        matmul(place, Accum::Replace, m.subrows(at * PRODUCT_ROWS, rows), x, T::one(), Par::Seq);
    });
    product
}

/// Rows whose product is summed in f32, and that a thread takes at a time.
const ROWS_AT_ONCE: usize = 8192;
/// Bytes of Gram matrices of parts that wait to be summed, about.
const MOST_GRAMS: usize = 128 << 20;

/// `sum += xᵀ·x`, lower half, products in f32.
pub(super) fn add_gram_f32(sum: &mut Array2<f64>, x: ArrayView2<'_, f32>) {
    let columns = x.ncols();
    let gram = |part: ArrayView2<'_, f32>| {
        let mut gram = Mat::<f32>::zeros(columns, columns);
        let mut copy = Mat::new();
        let part = seen(part, &mut copy);
        triangular_matmul(
            gram.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Replace,
            part.transpose(),
            BlockStructure::Rectangular,
            part,
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        gram
    };
    // The same parts and the same order whatever the threads.
    let parts: Vec<_> = x.axis_chunks_iter(Axis(0), ROWS_AT_ONCE).collect();
    let together = (MOST_GRAMS / (size_of::<f32>() * columns * columns).max(1)).max(2);
    for parts in parts.chunks(together) {
        for gram in parts.par_iter().with_max_len(1).map(|part| gram(*part)).collect::<Vec<_>>() {
            sum.indexed_iter_mut().filter(|((i, j), _)| i >= j).for_each(|((i, j), s)| *s += f64::from(gram[(i, j)]));
        }
    }
}

/// `sum += xᵀ·y`, products in f32.
pub(super) fn add_product_f32(sum: &mut Array2<f64>, x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>) {
    let parts = x.axis_chunks_iter(Axis(0), ROWS_AT_ONCE).zip(y.axis_chunks_iter(Axis(0), ROWS_AT_ONCE));
    let parts: Vec<_> = parts.collect();
    let product_of = |(x, y): (ArrayView2<'_, f32>, ArrayView2<'_, f32>)| {
        let (mut left, mut right) = (Mat::new(), Mat::new());
        let mut product = Array2::zeros((x.ncols(), y.ncols()));
        if let Some(place) = product.as_slice_mut() {
            let place = MatMut::from_row_major_slice_mut(place, x.ncols(), y.ncols());
            let (x, y) = (seen(x, &mut left), seen(y, &mut right));
            matmul(place, Accum::Replace, x.transpose(), y, 1.0, Par::Seq);
        }
        product
    };
    for product in parts.into_par_iter().with_max_len(1).map(product_of).collect::<Vec<Array2<f32>>>() {
        sum.zip_mut_with(&product, |s, &p| *s += f64::from(p));
    }
}

/// `gram += m·mᵀ`, lower half.
fn add_gram(gram: &mut Mat<f64>, m: ArrayView2<'_, f64>) {
    let mut copy = Mat::new();
    let m = seen(m, &mut copy);
    triangular_matmul(
        gram.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        m,
        BlockStructure::Rectangular,
        m.transpose(),
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
}

/// Leading eigenvectors and all eigenvalues, descending, of a matrix given by its lower half.
fn eigen(gram: Mat<f64>, vectors: &mut Array2<f64>, spectrum: &mut [f64]) -> Result<(), String> {
    let n = gram.nrows();
    let eigen = gram.self_adjoint_eigen(Half::Lower).map_err(|e| format!("{e:?}"))?;
    // faer sorts ascending.
    spectrum.iter_mut().enumerate().for_each(|(i, value)| *value = eigen.S()[n - 1 - i].max(0.0));
    vectors.indexed_iter_mut().for_each(|((i, j), x)| *x = eigen.U()[(i, n - 1 - j)]);
    Ok(())
}

/// Makes the entry of largest magnitude in each column positive, the first of equals.
fn with_fixed_signs(mut columns: Array2<f64>) -> Array2<f64> {
    for mut column in columns.columns_mut() {
        let largest = column.iter().fold(0.0f64, |best, &x| if x.abs() > best.abs() { x } else { best });
        if largest < 0.0 {
            column.mapv_inplace(|x| -x);
        }
    }
    columns
}

fn owned(matrix: MatRef<'_, f64>) -> Array2<f64> {
    Array2::from_shape_fn((matrix.nrows(), matrix.ncols()), |(i, j)| matrix[(i, j)])
}

/// An array as faer sees it: both memory orders as they are, anything else copied.
fn seen<'v, T: Copy>(array: ArrayView2<'v, T>, copy: &'v mut Mat<T>) -> MatRef<'v, T> {
    let (rows, columns) = array.dim();
    match (array.to_slice(), array.reversed_axes().to_slice()) {
        (Some(rows_first), _) => MatRef::from_row_major_slice(rows_first, rows, columns),
        (None, Some(columns_first)) => MatRef::from_column_major_slice(columns_first, rows, columns),
        (None, None) => {
            *copy = Mat::from_fn(rows, columns, |i, j| array[[i, j]]);
            copy.as_ref()
        }
    }
}

/// An array with its own copy of the elements.
fn matrix(array: ArrayView2<'_, f64>) -> Mat<f64> {
    Mat::from_fn(array.nrows(), array.ncols(), |i, j| array[[i, j]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 31 + j * 17 + i * j) % 23) as f64 / 7.0 - 1.5)
    }

    #[test]
    fn both_gram_sides_give_the_singular_values_of_an_svd() {
        for (rows, columns) in [(7, 12), (12, 7), (5, 5), (1, 9), (9, 1)] {
            let m = example(rows, columns);
            let basis = leading_basis(&[m.dim()], &|_| m.clone(), usize::MAX).unwrap();
            let oracle = matrix(m.view()).singular_values().unwrap();
            for (found, sigma) in basis.spectrum.iter().zip(&oracle) {
                // Squared values of a Gram matrix are exact to ε·σ₁².
                assert!((found - sigma * sigma).abs() <= 1e-12 * oracle[0] * oracle[0]);
            }
        }
    }

    #[test]
    fn the_basis_is_orthonormal_and_spans_the_stack() {
        let blocks = [example(6, 4), example(6, 9)];
        let basis = leading_basis(&[(6, 4), (6, 9)], &|i| blocks[i].clone(), 6).unwrap().vectors;
        let identity = basis.t().dot(&basis);
        let stacked = ndarray::concatenate(Axis(1), &[blocks[0].view(), blocks[1].view()]).unwrap();
        let kept = basis.dot(&basis.t().dot(&stacked));
        assert!((&identity - &Array2::<f64>::eye(6)).iter().all(|x| x.abs() < 1e-12));
        assert!((&kept - &stacked).iter().all(|x| x.abs() < 1e-11));
    }
}
