//! What the factors of one member are fitted to, and in which norm.

use super::linalg::{Positive, product, symmetric_roots};
use super::{ChainForm, Moment};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, Axis, s};
use std::sync::OnceLock;

/// Directions in which the output weighs less than this share of the most are not divided by.
const OUTPUT_FLOOR: f64 = 1e-9;
/// Added to the diagonal of a covariance, relative to its mean.
const METRIC_RIDGE: f64 = 1e-5;
/// The most that is added.
const MOST_RIDGE: f64 = 0.1;
/// Added to the diagonal of the approximate inverse that conjugate gradients start each step from, relative to its mean.
const PRECONDITIONER_RIDGE: f64 = 1e-4;

/// How much a deviation of a convolution's output, channel by channel, matters: `G^½` and `G^-½` of the norm `eᵀ·G·e`.
#[derive(Debug, Clone)]
pub struct OutputNorm {
    root: Array2<f64>,
    inverse: Array2<f64>,
}

impl OutputNorm {
    /// The norm `eᵀ·(G + damping·mean(diag G)·I)·e` of a positive semidefinite `G: out × out`.
    ///
    /// # Errors
    /// The solver's reason if the eigendecomposition does not converge.
    pub fn new(g: &Array2<f64>, damping: f64) -> Result<Self, String> {
        let mean = g.diag().mean().unwrap_or(0.0);
        let damped = g + &(Array2::<f64>::eye(g.nrows()) * (damping * mean).max(f64::MIN_POSITIVE));
        let (root, inverse) = symmetric_roots(&damped, OUTPUT_FLOOR)?;
        Ok(Self { root, inverse })
    }
}

/// What one member of a group sees, and how its output is judged; without a norm all output channels count alike.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'s> {
    /// Moments of the rows that it reads.
    pub moment: &'s Moment,
    /// How its output is judged. Members that share their last factor must share this too.
    pub output: Option<&'s OutputNorm>,
}

impl<'s> From<&'s Moment> for Seen<'s> {
    fn from(moment: &'s Moment) -> Self {
        Self { moment, output: None }
    }
}

impl Seen<'_> {
    /// A kernel `[out, in, kh, kw]` with its output turned so that plain squares are the norm.
    pub(super) fn weigh(&self, kernel: ArrayView4<'_, f64>) -> Array4<f64> {
        mix(kernel, self.output.map(|o| &o.root))
    }

    /// Undoes [`Seen::weigh`].
    pub(super) fn unweigh(&self, kernel: ArrayView4<'_, f64>) -> Array4<f64> {
        mix(kernel, self.output.map(|o| &o.inverse))
    }
}

/// `matrix · kernel` along the output axis.
fn mix(kernel: ArrayView4<'_, f64>, matrix: Option<&Array2<f64>>) -> Array4<f64> {
    let Some(matrix) = matrix else { return kernel.to_owned() };
    let (out, inputs, kh, kw) = kernel.dim();
    let flat = kernel.as_standard_layout().into_owned().into_shape_with_order((out, inputs * kh * kw));
    let mixed = product(matrix.view(), flat.unwrap_or_default().view());
    // The product has the same shape.
    mixed.into_shape_with_order((out, inputs, kh, kw)).unwrap_or_default()
}

/// `Σ`, `C` and `E‖y‖²` of one member, offsets of the last factor outermost.
#[derive(Debug)]
pub(super) struct Target {
    /// `Σ`, `(offsets·rows)²`.
    metric: Array2<f64>,
    /// `C: (offsets·rows) × out`.
    pub(super) product: Array2<f64>,
    /// What was added to its diagonal.
    ridge: f64,
    /// `E ‖y‖²`, centred.
    energy: f64,
    rows: usize,
    preconditioner: OnceLock<Option<Positive>>,
}

impl Target {
    /// The output of `kernel` itself on inputs of these moments.
    pub(super) fn of_kernel(form: &ChainForm, kernel: ArrayView4<'_, f64>, seen: &Seen<'_>) -> Self {
        let kernel = seen.weigh(kernel);
        let shape: [usize; 4] = kernel.dim().into();
        let metric = regular(seen.moment, &order(form, shape));
        let stacked = stacked(form.unfolding.unfold(kernel.view()).view(), shape[0]);
        let product = product(metric.0.view(), stacked.view());
        let energy = (&stacked * &product).sum();
        Self::new(form, shape, metric, product, energy)
    }

    /// The outputs that the moments were taken with.
    pub(super) fn of_outputs(form: &ChainForm, shape: [usize; 4], seen: &Seen<'_>) -> Self {
        let metric = regular(seen.moment, &order(form, shape));
        let mut target = Self::new(form, shape, metric, Array2::zeros((0, 0)), 0.0);
        target.set_outputs(form, shape, seen);
        target
    }

    /// Other outputs on the same inputs.
    pub(super) fn set_outputs(&mut self, form: &ChainForm, shape: [usize; 4], seen: &Seen<'_>) {
        let cross = seen.moment.cross_covariance().select(Axis(0), &order(form, shape));
        (self.product, self.energy) = match seen.output {
            None => (cross, seen.moment.output_covariance().diag().sum()),
            Some(norm) => {
                // tr G^½·E[y·yᵀ]·G^½
                let energy = (&product(norm.root.view(), seen.moment.output_covariance().view()) * &norm.root).sum();
                (product(cross.view(), norm.root.view()), energy)
            }
        };
    }

    fn new(
        form: &ChainForm,
        shape: [usize; 4],
        (metric, ridge): (Array2<f64>, f64),
        product: Array2<f64>,
        energy: f64,
    ) -> Self {
        let rows = form.unfolding.matrix_shape(shape).0;
        Self { metric, product, ridge, energy, rows, preconditioner: OnceLock::new() }
    }

    /// Ten times as much on the diagonal of `Σ`: where inputs hardly vary, rounding may leave more there than the ridge, and
    /// factors that grow in such directions leave equations that are not positive. What is fitted to stays, so that factors are
    /// drawn a little towards zero.
    pub(super) fn stiffen(&mut self) {
        self.metric.diag_mut().mapv_inplace(|d| d + 9.0 * self.ridge);
        self.ridge *= 10.0;
        self.preconditioner = OnceLock::new();
    }

    pub(super) fn offsets(&self) -> usize {
        self.metric.nrows() / self.rows
    }

    /// `Wᵀ·Σ·W / E‖y‖²`, `out × out`, of the kernel's matrix as the first form unfolds it.
    pub(super) fn output_gram(&self, matrix: ArrayView2<'_, f64>) -> Array2<f64> {
        product(self.stack(matrix).t(), self.product.view()) * self.weight()
    }

    /// `1 / E‖y‖²`; an output that never varies weighs nothing.
    pub(super) fn weight(&self) -> f64 {
        if self.energy > 0.0 { 1.0 / self.energy } else { 0.0 }
    }

    pub(super) fn block(&self, l: usize) -> std::ops::Range<usize> {
        l * self.rows..(l + 1) * self.rows
    }

    /// `Σ̄`, the mean of the `Σ_ll`.
    pub(super) fn mean_block(&self) -> Array2<f64> {
        let blocks = (0..self.offsets()).map(|l| self.metric.slice(s![self.block(l), self.block(l)]).to_owned());
        blocks.reduce(|a, b| a + b).unwrap_or_default() / self.offsets().max(1) as f64
    }

    /// `Σ̄⁻¹·x`, near enough.
    pub(super) fn precondition(&self, x: &Array2<f64>) -> Array2<f64> {
        let solver = self.preconditioner.get_or_init(|| Positive::new(&self.mean_block(), PRECONDITIONER_RIDGE).ok());
        solver.as_ref().map_or_else(|| x.clone(), |s| s.solve(x))
    }

    /// `Σ·T(A)`, `(offsets·rows) × (offsets·r)`, the columns of one offset after those of another.
    pub(super) fn metric_times(&self, a: &Array2<f64>) -> Array2<f64> {
        let (all, offsets) = (self.metric.nrows(), self.offsets());
        // A row of Σ holds the offsets one after the other, so it is as many rows for A.
        let flat = self.metric.view().into_shape_with_order((all * offsets, self.rows));
        let image = flat.map(|m| product(m, a.view())).unwrap_or_default();
        image.into_shape_with_order((all, offsets * a.ncols())).unwrap_or_default()
    }

    /// `Σ·P` of a chain.
    pub(super) fn image(&self, a: &Array2<f64>, b: &Array2<f64>) -> Array2<f64> {
        let (rank, out) = (a.ncols(), b.ncols() / self.offsets());
        let terms = self.metric_times(a);
        let part =
            |l: usize| product(terms.slice(s![.., l * rank..(l + 1) * rank]), b.slice(s![.., l * out..(l + 1) * out]));
        (0..self.offsets()).map(part).reduce(|x, y| x + y).unwrap_or_default()
    }

    /// Error `E ‖y − ŷ‖² / E ‖y‖²` of a sum of chains.
    pub(super) fn error(&self, chains: &[(&Array2<f64>, &Array2<f64>)]) -> f64 {
        let image = chains.iter().map(|(a, b)| self.image(a, b)).reduce(|x, y| x + y).unwrap_or_default();
        let inner = |with: &Array2<f64>| -> f64 {
            let parts = chains.iter().map(|(a, b)| (&self.stack(a.dot(*b).view()) * with).sum());
            parts.sum()
        };
        ((self.energy - 2.0 * inner(&self.product) + inner(&image)) * self.weight()).max(0.0)
    }

    /// `rows × (offsets·out)` as `(offsets·rows) × out`.
    fn stack(&self, matrix: ArrayView2<'_, f64>) -> Array2<f64> {
        stacked(matrix, matrix.ncols() / self.offsets())
    }
}

/// `Σ + ridge·mean(diag Σ)·I`: what inputs never do decides next to nothing, and nothing is divided by zero. Of rows hardly more
/// than columns, rounding may leave more than the ridge: then it grows. With what was added.
fn regular(moment: &Moment, order: &[usize]) -> (Array2<f64>, f64) {
    let mut metric = moment.covariance(order);
    let mean = metric.diag().mean().unwrap_or(0.0);
    let mut ridge = METRIC_RIDGE;
    metric.diag_mut().mapv_inplace(|d| d + ridge * mean);
    let few = moment.rows() < 2.0 * order.len() as f64;
    while few && mean > 0.0 && ridge < MOST_RIDGE && Positive::new(&metric, 0.0).is_err() {
        metric.diag_mut().mapv_inplace(|d| d + 9.0 * ridge * mean);
        ridge *= 10.0;
    }
    (metric, ridge * mean)
}

/// Positions in im2col order `(kh, kw, in)` of the rows ordered by the last factor's offsets first.
fn order(form: &ChainForm, [_, inputs, kh, kw]: [usize; 4]) -> Vec<usize> {
    let ([fh, fw], [lh, lw]) = form.unfolding.extents([0, inputs, kh, kw]);
    let mut order = Vec::with_capacity(inputs * kh * kw);
    for (ly, lx) in ndarray::indices((lh, lw)) {
        for (fy, fx) in ndarray::indices((fh, fw)) {
            // One of each pair is the offset, the other zero.
            order.extend((0..inputs).map(|i| ((ly + fy) * kw + lx + fx) * inputs + i));
        }
    }
    order
}

/// An unfolded kernel with the last factor's offsets stacked.
fn stacked(matrix: ArrayView2<'_, f64>, out: usize) -> Array2<f64> {
    let rows = matrix.nrows();
    let offsets = matrix.ncols() / out.max(1);
    Array2::from_shape_fn((rows * offsets, out), |(i, o)| matrix[[i % rows, (i / rows) * out + o]])
}
