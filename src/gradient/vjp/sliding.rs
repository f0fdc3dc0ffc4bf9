//! Operators whose kernels slide: convolutions and poolings.

use crate::gradient::window::{Slide, Window, is_pointwise, runs};
use ndarray::{Array2, ArrayD, ArrayView2, CowArray, Ix3, Ix4};

/// Kernel, input and output of a convolution, `images × groups × channels` of planes.
struct Convolved<'a> {
    slides: [Slide; 2],
    /// `groups × out × in·taps`; for a transposed one `in × out·taps`.
    kernel: CowArray<'a, f32, Ix3>,
    g: CowArray<'a, f32, Ix4>,
    shape: &'a [usize],
}

impl<'a> Convolved<'a> {
    /// `transposed` swaps what slides over what.
    fn new(
        g: &'a ArrayD<f32>,
        shape: &'a [usize],
        kernel: &'a ArrayD<f32>,
        window: &Window,
        groups: usize,
        transposed: bool,
    ) -> Option<Self> {
        let (&[first, second, ref taps @ ..], &[images, outputs, ref out @ ..]) = (kernel.shape(), g.shape()) else {
            return None;
        };
        let &[same_images, inputs, ref size @ ..] = shape else { return None };
        let slides = if transposed { window.slides(taps, out, size)? } else { window.slides(taps, size, out)? };
        let (rows, columns) = if transposed { (inputs, outputs) } else { (outputs, inputs) };
        if images != same_images || rows != first || Some(columns) != second.checked_mul(groups) || rows % groups != 0 {
            return None;
        }
        let per_row = second * taps.iter().product::<usize>();
        let kernel = kernel.as_standard_layout().into_shape_with_order((groups, first / groups, per_row)).ok()?;
        let planes = (images, groups, outputs / groups, out.iter().product::<usize>());
        let g = g.as_standard_layout().into_shape_with_order(planes).ok()?;
        Some(Self { slides, kernel, g, shape })
    }

    /// For each image and group the cotangent of the input from that of the output, put together.
    fn each(&self, part: impl Fn(ArrayView2<'_, f32>, ArrayView2<'_, f32>) -> Option<Vec<f32>>) -> Option<ArrayD<f32>> {
        let mut result = Vec::with_capacity(self.shape.iter().product());
        for image in self.g.outer_iter() {
            for (g, kernel) in image.outer_iter().zip(self.kernel.outer_iter()) {
                result.extend(part(kernel, g)?);
            }
        }
        ArrayD::from_shape_vec(self.shape, result).ok()
    }
}

/// `x̄ = col2im(Wᵀ·g)`.
pub(super) fn conv(
    g: &ArrayD<f32>,
    shape: &[usize],
    kernel: &ArrayD<f32>,
    window: &Window,
    groups: usize,
) -> Option<ArrayD<f32>> {
    let conv = Convolved::new(g, shape, kernel, window, groups, false)?;
    let plane: usize = conv.slides.iter().map(|s| s.input).product();
    let taps: usize = conv.slides.iter().map(|s| s.kernel).product();
    let (pointwise, runs) = (is_pointwise(&conv.slides), runs(&conv.slides));
    conv.each(|kernel, g| {
        let columns = kernel.t().dot(&g);
        if pointwise {
            return Some(columns.iter().copied().collect());
        }
        let columns = columns.as_standard_layout();
        let columns = columns.as_slice()?;
        let mut result = vec![0.0; kernel.ncols() / taps * plane];
        for (channel, x) in result.chunks_exact_mut(plane.max(1)).enumerate() {
            for run in &runs {
                let row = (channel * taps + run.tap) * g.ncols();
                run.scatter(x, &columns[row..row + g.ncols()]);
            }
        }
        Some(result)
    })
}

/// `x̄ = W·im2col(g)`.
pub(super) fn conv_transpose(
    g: &ArrayD<f32>,
    shape: &[usize],
    kernel: &ArrayD<f32>,
    window: &Window,
    groups: usize,
) -> Option<ArrayD<f32>> {
    let conv = Convolved::new(g, shape, kernel, window, groups, true)?;
    let places: usize = conv.slides.iter().map(|s| s.output).product();
    let taps: usize = conv.slides.iter().map(|s| s.kernel).product();
    let runs = runs(&conv.slides);
    conv.each(|kernel, g| {
        let mut columns = Array2::zeros((kernel.ncols(), places));
        for (channel, plane) in g.outer_iter().enumerate() {
            for run in &runs {
                let mut row = columns.row_mut(channel * taps + run.tap);
                run.gather(plane.as_slice()?, row.as_slice_mut()?);
            }
        }
        Some(kernel.dot(&columns).iter().copied().collect())
    })
}

/// Runs a rule for one plane of a pooling over all of them: `(x, g)` to `x̄`, which starts at zero.
fn each_plane(
    g: &ArrayD<f32>,
    shape: &[usize],
    slides: &[Slide; 2],
    x: Option<&ArrayD<f32>>,
    rule: impl Fn(&[f32], &[f32], &mut [f32]),
) -> Option<ArrayD<f32>> {
    let input: usize = slides.iter().map(|s| s.input).product();
    let output: usize = slides.iter().map(|s| s.output).product();
    let planes = shape.iter().take(2).product::<usize>();
    if g.len() != planes * output || input == 0 || output == 0 {
        return None;
    }
    let g = g.as_standard_layout();
    let x = x.map(|x| x.as_standard_layout());
    let x = if let Some(x) = &x { x.as_slice()? } else { &[] };
    let mut result = vec![0.0; planes * input];
    for (plane, (g, to)) in g.as_slice()?.chunks_exact(output).zip(result.chunks_exact_mut(input)).enumerate() {
        rule(x.get(plane * input..(plane + 1) * input).unwrap_or_default(), g, to);
    }
    ArrayD::from_shape_vec(shape, result).ok()
}

pub(super) fn max_pool(g: &ArrayD<f32>, x: &ArrayD<f32>, window: &Window, kernel: &[usize]) -> Option<ArrayD<f32>> {
    let slides = window.slides(kernel, x.shape().get(2..)?, g.shape().get(2..)?)?;
    let [rows, columns] = slides;
    each_plane(g, x.shape(), &slides, Some(x), |x, g, to| {
        for (at, g) in g.iter().enumerate() {
            let (row, column) = (at / columns.output, at % columns.output);
            let mut largest: Option<usize> = None;
            for y in (0..rows.kernel).filter_map(|k| rows.source(row, k)) {
                for place in
                    (0..columns.kernel).filter_map(|k| columns.source(column, k)).map(|c| y * columns.input + c)
                {
                    if largest.is_none_or(|l| x[place] > x[l]) {
                        largest = Some(place);
                    }
                }
            }
            if let Some(place) = largest {
                to[place] += g;
            }
        }
    })
}

pub(super) fn average_pool(
    g: &ArrayD<f32>,
    shape: &[usize],
    window: &Window,
    kernel: &[usize],
    count_padding: bool,
) -> Option<ArrayD<f32>> {
    let slides = window.slides(kernel, shape.get(2..)?, g.shape().get(2..)?)?;
    let [rows, columns] = slides;
    let runs = runs(&slides);
    each_plane(g, shape, &slides, None, |_, g, to| {
        let share = |(at, g): (usize, &f32)| {
            let (row, column) = (at / columns.output, at % columns.output);
            g / (rows.met(row, count_padding) * columns.met(column, count_padding)).max(1) as f32
        };
        let shares: Vec<f32> = g.iter().enumerate().map(share).collect();
        runs.iter().for_each(|run| run.scatter(to, &shares));
    })
}

pub(super) fn global_max_pool(g: &ArrayD<f32>, x: &ArrayD<f32>) -> Option<ArrayD<f32>> {
    let planes = x.shape().iter().take(2).product::<usize>();
    let mut result = ArrayD::zeros(x.raw_dim());
    let pixels = x.len() / planes.max(1);
    if g.len() != planes || pixels == 0 {
        return None;
    }
    let x: Vec<f32> = x.iter().copied().collect();
    let to = result.as_slice_mut()?;
    for (plane, (x, g)) in x.chunks_exact(pixels).zip(g).enumerate() {
        let largest = (0..pixels).fold(0, |best, at| if x[at] > x[best] { at } else { best });
        to[plane * pixels + largest] = *g;
    }
    Some(result)
}
