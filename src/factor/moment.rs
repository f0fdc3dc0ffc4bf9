//! What a convolution sees: first and second moments of the rows of its input's im2col matrix, and of those rows with
//! what the output should be.

use super::linalg::{add_gram_f32, add_product_f32, product};
use ndarray::{Array1, Array2, Array4, ArrayView2, ArrayView3, ArrayViewMut2, Axis, s};

/// Kernel size, strides, dilations and pads of a convolution: all that turns an input into rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Strides, height then width.
    pub strides: [usize; 2],
    /// Dilations, height then width.
    pub dilations: [usize; 2],
    /// Zeros added at top, left, bottom and right.
    pub pads: [usize; 4],
}

impl Geometry {
    /// Rows of the im2col matrix of one input `[in, height, width]`: one for each output pixel asked for, pixels numbered in
    /// row-major order, columns ordered `(kh, kw, in)`.
    #[must_use]
    pub fn rows(&self, input: ArrayView3<'_, f32>, pixels: &[usize]) -> Array2<f32> {
        let [kh, kw] = self.kernel;
        let mut rows = Array2::zeros((pixels.len(), kh * kw * input.dim().0));
        self.write_rows(input, pixels, rows.view_mut());
        rows
    }

    /// Puts [`Geometry::rows`] where there are zeros.
    pub fn write_rows(&self, input: ArrayView3<'_, f32>, pixels: &[usize], mut rows: ArrayViewMut2<'_, f32>) {
        let (channels, height, width) = input.dim();
        let [kh, kw] = self.kernel;
        let [_, out_w] = self.output([height, width]);
        let source = |out: usize, k: usize, axis: usize, size: usize| {
            (out * self.strides[axis] + k * self.dilations[axis]).checked_sub(self.pads[axis]).filter(|&at| at < size)
        };
        for (mut row, pixel) in rows.outer_iter_mut().zip(pixels) {
            let (oy, ox) = (pixel / out_w, pixel % out_w);
            for (ky, kx) in ndarray::indices((kh, kw)) {
                if let (Some(y), Some(x)) = (source(oy, ky, 0, height), source(ox, kx, 1, width)) {
                    let at = (ky * kw + kx) * channels;
                    row.slice_mut(s![at..at + channels]).assign(&input.slice(s![.., y, x]));
                }
            }
        }
    }

    /// Height and width of the output for an input of this size.
    #[must_use]
    pub fn output(&self, size: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| {
            let reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1;
            let room = size[axis] + self.pads[axis] + self.pads[axis + 2];
            room.checked_sub(reach).map_or(0, |left| left / self.strides[axis] + 1)
        })
    }
}

/// Rows that are centred at a time.
const PART: usize = 2048;

/// Sums over rows `x` and, where given, outputs `y` that should follow from them.
#[derive(Debug, Clone)]
pub struct Moment {
    rows: f64,
    /// What is taken from each row before it is added, about its mean: of inputs that hardly vary, the squares would leave nothing
    /// of their differences.
    centre: Array1<f64>,
    /// `Σ x`, of rows less the centre, as are all products.
    x: Array1<f64>,
    /// `Σ x·xᵀ`, lower half; empty once it is narrow.
    xx: Array2<f64>,
    /// The same in f32, row after row of the lower half, where no more rows are to come.
    narrow: Option<Vec<f32>>,
    y: Array1<f64>,
    xy: Array2<f64>,
    /// `Σ y·yᵀ`, lower half.
    yy: Array2<f64>,
}

impl Moment {
    /// No rows yet, of `inputs` columns and `outputs` outputs (none if nothing is to be fitted).
    #[must_use]
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self {
            rows: 0.0,
            centre: Array1::zeros(inputs),
            x: Array1::zeros(inputs),
            xx: Array2::zeros((inputs, inputs)),
            narrow: None,
            y: Array1::zeros(outputs),
            xy: Array2::zeros((if outputs > 0 { inputs } else { 0 }, outputs)),
            yy: Array2::zeros((outputs, outputs)),
        }
    }

    /// One that keeps the mean alone: of inputs too many for their products.
    #[must_use]
    pub fn of_means(inputs: usize) -> Self {
        Self { centre: Array1::zeros(inputs), x: Array1::zeros(inputs), ..Self::new(0, 0) }
    }

    /// Whether only the mean is known.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        !self.x.is_empty() && self.xx.is_empty() && self.narrow.as_ref().is_none_or(Vec::is_empty)
    }

    /// Whether all that is kept are numbers.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let finite = |x: &f64| x.is_finite();
        self.mean().iter().chain(&self.xx).all(finite) && self.narrow.iter().flatten().all(|x| x.is_finite())
    }

    /// Adds rows and their outputs. Products are taken in f32 and summed in f64.
    pub fn add(&mut self, x: ArrayView2<'_, f32>, y: Option<ArrayView2<'_, f32>>) {
        if self.rows == 0.0 {
            // As f32 holds it: what is taken away is what is given back.
            self.centre = x.mean_axis(Axis(0)).map_or_else(|| self.centre.clone(), |mean| mean.mapv(f64::from));
        }
        self.rows += x.nrows() as f64;
        for (at, part) in self.parts(x) {
            add_rows(&mut self.x, part.view());
            if !self.xx.is_empty() {
                add_gram_f32(&mut self.xx, part.view());
            }
            if let Some(y) = y {
                self.add_outputs(part.view(), y.slice(s![at..at + part.nrows(), ..]));
            }
        }
    }

    /// Rows less the centre, some at a time, each time with the number of the first.
    fn parts<'x>(&self, x: ArrayView2<'x, f32>) -> impl Iterator<Item = (usize, Array2<f32>)> + use<'x> {
        let centre = self.centre.mapv(|c| c as f32);
        (0..x.nrows()).step_by(PART).map(move |at| {
            let part = x.slice_move(s![at..(at + PART).min(x.nrows()), ..]);
            (at, &part - &centre)
        })
    }

    fn add_outputs(&mut self, x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>) {
        add_rows(&mut self.y, y);
        add_gram_f32(&mut self.yy, y);
        add_product_f32(&mut self.xy, x, y);
    }

    /// The same but for `Σ x·xᵀ`, which takes the most memory: for what only asks for means and for outputs.
    #[must_use]
    pub fn without_covariance(&self) -> Self {
        let (x, y) = (self.x.clone(), self.y.clone());
        let (xx, narrow) = (Array2::zeros((0, 0)), None);
        let (xy, yy) = (self.xy.clone(), self.yy.clone());
        Self { rows: self.rows, centre: self.centre.clone(), x, xx, narrow, y, xy, yy }
    }

    /// Keeps `Σ x·xᵀ` in a quarter of the memory from now on: for one that gets no more rows. What that rounds off is far below what a
    /// covariance gets as a ridge.
    pub fn narrow(&mut self) {
        let (n, mean) = (self.rows.max(1.0), &self.x / self.rows.max(1.0));
        let rows = self.xx.outer_iter().enumerate();
        let centred = rows.flat_map(|(i, row)| {
            let row = row.slice_move(s![..=i]);
            row.iter().zip(&mean).map(|(sum, m)| (sum - n * mean[i] * m) as f32).collect::<Vec<f32>>()
        });
        self.narrow = Some(centred.collect());
        self.centre += &mean;
        self.x.fill(0.0);
        self.xx = Array2::zeros((0, 0));
    }

    /// Rows, mean and the lower half of `Σ (x − E x)(x − E x)ᵀ` of one that is narrow and has no outputs.
    pub(crate) fn stored(&self) -> Option<(f64, &[f64], &[f32])> {
        let narrow = self.narrow.as_ref().filter(|_| self.y.is_empty());
        narrow.and_then(|xx| Some((self.rows, self.centre.as_slice()?, &xx[..])))
    }

    /// The same from what [`Moment::stored`] gave; none if the sizes contradict each other.
    pub(crate) fn from_stored((rows, mean, xx): (f64, Vec<f64>, Vec<f32>)) -> Option<Self> {
        let n = mean.len();
        let fits = xx.is_empty() || n.checked_mul(n + 1).is_some_and(|twice| twice / 2 == xx.len());
        if !fits {
            return None;
        }
        let mut moment = Self::new(0, 0);
        (moment.rows, moment.centre, moment.narrow) = (rows, Array1::from(mean), Some(xx));
        moment.x = Array1::zeros(n);
        Some(moment)
    }

    /// Replaces all outputs; `x` are all rows that were added.
    pub fn set_outputs(&mut self, x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>) {
        self.y.fill(0.0);
        self.yy.fill(0.0);
        self.xy.fill(0.0);
        for (at, part) in self.parts(x) {
            self.add_outputs(part.view(), y.slice(s![at..at + part.nrows(), ..]));
        }
    }

    /// How many rows were added.
    #[must_use]
    pub fn rows(&self) -> f64 {
        self.rows
    }

    /// `E[x]`.
    #[must_use]
    pub fn mean(&self) -> Array1<f64> {
        &self.centre + &self.centred_mean()
    }

    /// `E[x]` less the centre.
    fn centred_mean(&self) -> Array1<f64> {
        &self.x / self.rows.max(1.0)
    }

    /// `E[y]`.
    #[must_use]
    pub fn output_mean(&self) -> Array1<f64> {
        &self.y / self.rows.max(1.0)
    }

    /// `E[(x − E x)(x − E x)ᵀ]`, its rows and columns in this order of the columns of `x`.
    #[must_use]
    pub fn covariance(&self, order: &[usize]) -> Array2<f64> {
        let (mean, n) = (self.centred_mean(), self.rows.max(1.0));
        match &self.narrow {
            Some(sums) => centred(&|i, j| f64::from(sums[i * (i + 1) / 2 + j]), &mean, n, order),
            None => centred(&|i, j| self.xx[[i, j]], &mean, n, order),
        }
    }

    /// `E[(y − E y)(y − E y)ᵀ]`.
    #[must_use]
    pub fn output_covariance(&self) -> Array2<f64> {
        let order: Vec<usize> = (0..self.y.len()).collect();
        centred(&|i, j| self.yy[[i, j]], &self.output_mean(), self.rows.max(1.0), &order)
    }

    /// `E[(x − E x)(y − E y)ᵀ]`.
    #[must_use]
    pub fn cross_covariance(&self) -> Array2<f64> {
        let (n, x, y) = (self.rows.max(1.0), self.centred_mean(), self.output_mean());
        Array2::from_shape_fn(self.xy.dim(), |(i, j)| self.xy[[i, j]] / n - x[i] * y[j])
    }
}

/// `sum += Σ rows`, in f64.
fn add_rows(sum: &mut Array1<f64>, rows: ArrayView2<'_, f32>) {
    rows.outer_iter().for_each(|row| sum.zip_mut_with(&row, |sum, &x| *sum += f64::from(x)));
}

/// `S/n − m·mᵀ` of sums of products given by their lower half, rows and columns in this order.
fn centred(sums: &impl Fn(usize, usize) -> f64, mean: &Array1<f64>, n: f64, order: &[usize]) -> Array2<f64> {
    Array2::from_shape_fn((order.len(), order.len()), |(i, j)| {
        let (i, j) = (order[i], order[j]);
        sums(i.max(j), i.min(j)) / n - mean[i] * mean[j]
    })
}

/// What a kernel `[out, in, kh, kw]` makes of one row in im2col order.
#[must_use]
pub fn respond(kernel: &Array4<f64>, row: &Array1<f64>) -> Vec<f64> {
    let (_, inputs, _, kw) = kernel.dim();
    let each = kernel
        .outer_iter()
        .map(|filter| filter.indexed_iter().map(|((i, y, x), w)| w * row[(y * kw + x) * inputs + i]).sum());
    each.collect()
}

/// What a kernel `[out, in, kh, kw]` makes of many rows in im2col order, `rows × out`.
#[must_use]
pub fn respond_to_rows(kernel: &Array4<f64>, rows: ArrayView2<'_, f32>) -> Array2<f32> {
    let (out, inputs, kh, kw) = kernel.dim();
    // im2col order (kh, kw, in).
    let flat = kernel.view().permuted_axes([2, 3, 1, 0]).as_standard_layout().mapv(|x| x as f32);
    let flat = flat.into_shape_with_order((kh * kw * inputs, out)).unwrap_or_default();
    product(rows, flat.view())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_the_pixels_under_the_kernel() {
        // One channel, 2×3, kernel 1×2, a zero at the left, stride 2 along the width.
        let input = ndarray::array![[[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]]];
        let geometry = Geometry { kernel: [1, 2], strides: [1, 2], dilations: [1, 1], pads: [0, 1, 0, 0] };
        let all = [[0.0, 1.0], [2.0, 3.0], [0.0, 4.0], [5.0, 6.0]];
        assert_eq!(geometry.rows(input.view(), &[0, 1, 2, 3]), ndarray::arr2(&all));
        assert_eq!(geometry.rows(input.view(), &[3, 0]), ndarray::arr2(&[all[3], all[0]]));
    }

    #[test]
    fn moments_are_centred() {
        let x = ndarray::array![[1.0f32, 2.0], [3.0, 2.0], [5.0, 8.0]];
        let y = ndarray::array![[1.0f32], [0.0], [2.0]];
        let mut moment = Moment::new(2, 1);
        moment.add(x.view(), Some(y.view()));
        let third = 1.0 / 3.0;
        let expected = [[8.0 * third, 4.0], [4.0, 8.0]];
        assert!(moment.covariance(&[0, 1]).iter().zip(expected.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-12));
        let cross = [(1.0 + 10.0) * third - 3.0, (2.0 + 16.0) * third - 4.0];
        assert!(moment.cross_covariance().iter().zip(cross).all(|(a, b)| (a - b).abs() < 1e-12));
        assert!((moment.output_covariance()[[0, 0]] - (5.0 * third - 1.0)).abs() < 1e-12);
        // Far from zero the squares are beyond f32's digits, the differences are not.
        let mut far = Moment::new(2, 1);
        far.add((&x + 65536.0).view(), Some(y.view()));
        let near = |found: Array2<f64>| found.iter().zip(expected.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(far.covariance(&[0, 1])));
        assert!(far.cross_covariance().iter().zip(cross).all(|(a, b)| (a - b).abs() < 1e-6));
        assert!((far.mean()[0] - 65539.0).abs() < 1e-9);
        let mut narrow = Moment::new(2, 0);
        narrow.add((&x + 65536.0).view(), None);
        narrow.narrow();
        assert!(near(narrow.covariance(&[0, 1])) && (narrow.mean()[0] - 65539.0).abs() < 1e-9);
    }
}
