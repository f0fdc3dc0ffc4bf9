//! Vector-Jacobian products, one function an operator: `x̄ = (∂y/∂x)ᵀ·ȳ`, with `g` for `ȳ`.
//!
//! All give none where the shapes of the forward values contradict the operator.

use super::Seen;
use super::rule::{Border, Cut, Grid, Rounding, Rule, Unary};
use super::window::{Slide, Window, is_pointwise, runs};
use ndarray::{Array2, Array3, ArrayD, ArrayView2, ArrayViewD, Axis, CowArray, Ix3, Ix4, IxDyn, Slice, Zip, s};

type Given<'c> = [Option<&'c ArrayD<f32>>];

/// The cotangent of the input at `position`; `given` holds those of the outputs, none for zero.
pub(super) fn vjp(rule: &Rule, seen: &Seen<'_>, given: &Given<'_>, position: usize) -> Option<ArrayD<f32>> {
    if let Rule::Split { axis, sizes } = rule {
        return split(given, seen.input(0)?.shape(), *axis, sizes.as_deref());
    }
    let g = *given.first()?.as_ref()?;
    let x = |i: usize| seen.input(i);
    match rule {
        Rule::Pass => Some(g.clone()),
        Rule::Reshape => reshaped(g, x(0)?.shape()),
        Rule::Unary(Unary::Neg) => Some(g.mapv(|g| -g)),
        Rule::Unary(unary) if unary.is_of_output() => elementwise(g, seen.output()?, |y| derivative(*unary, y)),
        Rule::Unary(unary) => elementwise(g, x(0)?, |x| derivative(*unary, x)),
        Rule::PRelu => prelu(g, x(0)?, x(1)?),
        Rule::Add | Rule::Expand => summed_to(g.clone(), x(position)?.shape()),
        Rule::Sub => summed_to(if position == 0 { g.clone() } else { g.mapv(|g| -g) }, x(position)?.shape()),
        Rule::Mul => summed_to(with(g, x(1 - position.min(1))?, |g, b| g * b)?, x(position)?.shape()),
        Rule::Div => div(g, x(0)?, x(1)?, position),
        Rule::Pow => pow(g, x(0)?, x(1)?),
        Rule::BatchNorm { epsilon } => batch_norm(g, x(1)?, x(4)?, *epsilon),
        Rule::InstanceNorm { epsilon } => instance_norm(g, x(0)?, x(1)?, *epsilon),
        Rule::Lrn { size, alpha, beta, bias } => lrn(g, x(0)?, *size, [*alpha, *beta, *bias]),
        Rule::Softmax { axis, flat, log } => softmax(g, seen.output()?, *axis, *flat, *log),
        Rule::Concat { axis } => concat(g, seen, *axis, position),
        Rule::Split { .. } => None,
        Rule::Slice(cuts) => slice(g, x(0)?.shape(), cuts),
        Rule::Pad { before, border } => pad(g, x(0)?.shape(), before, *border),
        Rule::Resize { scales, grid, linear, rounding } => {
            resize(g, x(0)?.shape(), scales.as_deref(), *grid, (!linear).then_some(*rounding))
        }
        Rule::Gather { axis, indices, scalar } => gather(g, x(0)?.shape(), *axis, indices, *scalar),
        Rule::Conv { window, groups } => conv(g, x(0)?.shape(), x(1)?, window, *groups),
        Rule::ConvTranspose { window, groups } => conv_transpose(g, x(0)?.shape(), x(1)?, window, *groups),
        Rule::MaxPool { window, kernel } => max_pool(g, x(0)?, window, kernel),
        Rule::AveragePool { window, kernel, count_padding } => {
            average_pool(g, x(0)?.shape(), window, kernel, *count_padding)
        }
        Rule::GlobalMaxPool => global_max_pool(g, x(0)?),
        Rule::Reduce { axes, keep, mean } => reduce(g, x(0)?.shape(), axes.as_deref(), *keep, *mean),
        Rule::Gemm { alpha, beta, transposed } => gemm(g, seen, [*alpha, *beta], *transposed, position),
        Rule::MatMul => mat_mul(g, x(0)?, x(1)?, position),
        Rule::Transpose { order } => transpose(g, order.as_deref()),
        Rule::DepthToSpace { block, columns_first } => depth_to_space(g, *block, *columns_first),
        Rule::SpaceToDepth { block } => space_to_depth(g, *block),
    }
}

/// The elements in row-major order under another shape.
fn reshaped(g: &ArrayD<f32>, shape: &[usize]) -> Option<ArrayD<f32>> {
    ArrayD::from_shape_vec(IxDyn(shape), g.iter().copied().collect()).ok()
}

fn elementwise(g: &ArrayD<f32>, at: &ArrayD<f32>, derivative: impl Fn(f32) -> f32) -> Option<ArrayD<f32>> {
    (g.shape() == at.shape()).then(|| Zip::from(g).and(at).map_collect(|g, &at| g * derivative(at)))
}

impl Unary {
    /// `y = f(x)`.
    pub(crate) fn value(self, x: f32) -> f32 {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        match self {
            Self::Relu => x.max(0.0),
            Self::LeakyRelu { alpha } => x * if x > 0.0 { 1.0 } else { alpha },
            Self::Clip { low, high } => x.max(low).min(high),
            Self::Elu { alpha } => x.max(0.0) + alpha * x.min(0.0).exp_m1(),
            Self::Celu { alpha } => x.max(0.0) + alpha * (x.min(0.0) / alpha).exp_m1(),
            Self::Selu { alpha, gamma } => gamma * (x.max(0.0) + alpha * x.min(0.0).exp_m1()),
            Self::Sigmoid => sigmoid(x),
            Self::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Self::Tanh => x.tanh(),
            Self::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Mish => x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
            Self::Erf => erf(x),
            Self::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Self::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Self::Neg => -x,
            Self::Abs => x.abs(),
            Self::Exp => x.exp(),
            Self::Log => x.ln(),
            Self::Sqrt => x.sqrt(),
            Self::Reciprocal => 1.0 / x,
        }
    }

    /// `∂y/∂x` at an input x, or where [`Unary::is_of_output`] at an output y.
    pub(crate) fn slope(self, at: f32) -> f32 {
        derivative(self, at)
    }
}

/// `∂y/∂x` at an input x, or for some functions (`Unary::is_of_output`) at an output y.
fn derivative(unary: Unary, at: f32) -> f32 {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let step = |inside: bool, value: f32| if inside { value } else { 0.0 };
    match unary {
        Unary::Relu => step(at > 0.0, 1.0),
        Unary::LeakyRelu { alpha } => {
            if at > 0.0 {
                1.0
            } else {
                alpha
            }
        }
        Unary::Clip { low, high } => step(at > low && at < high, 1.0),
        Unary::Elu { alpha } => {
            if at > 0.0 {
                1.0
            } else {
                alpha * at.exp()
            }
        }
        Unary::Celu { alpha } => {
            if at > 0.0 {
                1.0
            } else {
                (at / alpha).exp()
            }
        }
        Unary::Selu { alpha, gamma } => gamma * if at > 0.0 { 1.0 } else { alpha * at.exp() },
        Unary::Sigmoid => at * (1.0 - at),
        Unary::HardSigmoid { alpha, beta } => step((0.0..1.0).contains(&(alpha * at + beta)), alpha),
        Unary::HardSwish if at >= 3.0 => 1.0,
        Unary::HardSwish => step(at > -3.0, (2.0 * at + 3.0) / 6.0),
        Unary::Tanh => 1.0 - at * at,
        Unary::Softplus => sigmoid(at),
        Unary::Softsign => (1.0 + at.abs()).powi(-2),
        Unary::Mish => {
            let t = at.exp().ln_1p().tanh();
            t + at * sigmoid(at) * (1.0 - t * t)
        }
        Unary::Erf => std::f32::consts::FRAC_2_SQRT_PI * (-at * at).exp(),
        // Φ(x) + x·φ(x)
        Unary::Gelu => {
            let density = (-at * at / 2.0).exp() / (2.0 * std::f32::consts::PI).sqrt();
            0.5 * (1.0 + erf(at * std::f32::consts::FRAC_1_SQRT_2)) + at * density
        }
        Unary::GeluTanh => {
            let root = (2.0 / std::f32::consts::PI).sqrt();
            let t = (root * (at + 0.044715 * at.powi(3))).tanh();
            0.5 * (1.0 + t) + 0.5 * at * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * at * at)
        }
        Unary::Neg => -1.0,
        Unary::Abs => at.signum(),
        Unary::Exp => at,
        Unary::Log => 1.0 / at,
        Unary::Sqrt => 0.5 / at,
        Unary::Reciprocal => -at * at,
    }
}

/// The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26).
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let terms = [1.061_405_4, -1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6];
    let sum = terms.iter().fold(0.0, |sum, c| (sum + c) * t);
    (1.0 - sum * (-x * x).exp()).copysign(x)
}

/// `f(g, b)` with `b` broadcast to the shape of `g`.
fn with(g: &ArrayD<f32>, b: &ArrayD<f32>, f: impl Fn(f32, f32) -> f32) -> Option<ArrayD<f32>> {
    let b = b.broadcast(g.raw_dim())?;
    Some(Zip::from(g).and(b).map_collect(|&g, &b| f(g, b)))
}

/// Sums over the axes along which a value of this shape was broadcast.
fn summed_to(mut g: ArrayD<f32>, shape: &[usize]) -> Option<ArrayD<f32>> {
    while g.ndim() > shape.len() {
        g = g.sum_axis(Axis(0));
    }
    for (axis, &size) in shape.iter().enumerate() {
        if size == 1 && g.shape().get(axis).is_some_and(|&n| n != 1) {
            g = g.sum_axis(Axis(axis)).insert_axis(Axis(axis));
        }
    }
    (g.shape() == shape).then_some(g)
}

fn prelu(g: &ArrayD<f32>, x: &ArrayD<f32>, slope: &ArrayD<f32>) -> Option<ArrayD<f32>> {
    let (x, slope) = (x.broadcast(g.raw_dim())?, slope.broadcast(g.raw_dim())?);
    Some(Zip::from(g).and(x).and(slope).map_collect(|&g, &x, &slope| if x > 0.0 { g } else { slope * g }))
}

/// Of `a/b`: `g/b` and `−g·a/b²`.
fn div(g: &ArrayD<f32>, a: &ArrayD<f32>, b: &ArrayD<f32>, position: usize) -> Option<ArrayD<f32>> {
    if position == 0 {
        return summed_to(with(g, b, |g, b| g / b)?, a.shape());
    }
    summed_to(with(&with(g, a, |g, a| g * a)?, b, |ga, b| -ga / (b * b))?, b.shape())
}

/// Of `xᵉ`: `g·e·xᵉ⁻¹`.
fn pow(g: &ArrayD<f32>, x: &ArrayD<f32>, exponent: &ArrayD<f32>) -> Option<ArrayD<f32>> {
    let (wide, e) = (x.broadcast(g.raw_dim())?, exponent.broadcast(g.raw_dim())?);
    let slope = |&g: &f32, &x: &f32, &e: &f32| match e {
        2.0 => g * 2.0 * x,
        _ => g * e * x.powf(e - 1.0),
    };
    summed_to(Zip::from(g).and(wide).and(e).map_collect(slope), x.shape())
}

/// `g·γ/√(variance + ε)`, per channel.
fn batch_norm(g: &ArrayD<f32>, gamma: &ArrayD<f32>, variance: &ArrayD<f32>, epsilon: f32) -> Option<ArrayD<f32>> {
    let scale = with(gamma, variance, |gamma, v| gamma / (v + epsilon).sqrt())?;
    let mut result = g.clone();
    if g.ndim() < 2 || scale.len() != g.len_of(Axis(1)) {
        return None;
    }
    result.axis_iter_mut(Axis(1)).zip(&scale).for_each(|(mut channel, s)| channel *= *s);
    Some(result)
}

/// `γ/σ·(g − mean(g) − x̂·mean(g·x̂))` with `x̂ = (x − μ)/σ`, over the plane of each channel.
fn instance_norm(g: &ArrayD<f32>, x: &ArrayD<f32>, gamma: &ArrayD<f32>, epsilon: f32) -> Option<ArrayD<f32>> {
    if g.shape() != x.shape() || g.ndim() < 3 || gamma.len() != g.len_of(Axis(1)) {
        return None;
    }
    let planes = x.shape()[0] * x.shape()[1];
    let pixels = x.shape()[2..].iter().product::<usize>();
    let (g2, x2) = (flat(g, [planes, pixels])?, flat(x, [planes, pixels])?);
    let mut result = g2;
    for ((mut g, x), gamma) in result.outer_iter_mut().zip(x2.outer_iter()).zip(gamma.iter().cycle()) {
        let count = pixels as f32;
        let mean = x.sum() / count;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count;
        let deviation = (variance + epsilon).sqrt();
        let normal = x.mapv(|x| (x - mean) / deviation);
        let (along, level) = (normal.dot(&g) / count, g.sum() / count);
        g.zip_mut_with(&normal, |g, n| *g = gamma / deviation * (*g - level - n * along));
    }
    result.into_shape_with_order(x.raw_dim()).ok()
}

/// Of `y = x·s^−β`, `s = k + α/size·Σ x²` over neighbouring channels: `g·s^−β − 2αβ/size·x·Σ g·x·s^(−β−1)`.
fn lrn(g: &ArrayD<f32>, x: &ArrayD<f32>, size: usize, [alpha, beta, bias]: [f32; 3]) -> Option<ArrayD<f32>> {
    if g.shape() != x.shape() || g.ndim() < 2 {
        return None;
    }
    let (images, channels) = (x.shape()[0], x.shape()[1]);
    let shape = [images, channels, x.shape()[2..].iter().product::<usize>()];
    let (g3, x3) = (flat3(g, shape)?, flat3(x, shape)?);
    // ONNX: floor((size − 1)/2) channels before, ceil of it after.
    let near = |c: usize| c.saturating_sub((size - 1) / 2)..(c + size / 2 + 1).min(channels);
    let mut sums = Array3::from_elem(shape, bias);
    for c in 0..channels {
        for other in near(c) {
            let squares = x3.slice(s![.., other, ..]).mapv(|x| alpha / size as f32 * x * x);
            sums.slice_mut(s![.., c, ..]).zip_mut_with(&squares, |s, q| *s += q);
        }
    }
    let mut result = Zip::from(&g3).and(&sums).map_collect(|g, s| g * s.powf(-beta));
    let inner = Zip::from(&g3).and(&x3).and(&sums).map_collect(|g, x, s| g * x * s.powf(-beta - 1.0));
    for c in 0..channels {
        for other in near(c) {
            let (from, at) = (inner.slice(s![.., c, ..]), x3.slice(s![.., other, ..]));
            let fall = 2.0 * alpha * beta / size as f32;
            Zip::from(result.slice_mut(s![.., other, ..])).and(from).and(at).for_each(|r, i, x| *r -= fall * x * i);
        }
    }
    result.into_shape_with_order(x.raw_dim()).ok()
}

/// `y∘(g − Σ g·y)`, and `g − exp(y)·Σ g` for the logarithm.
fn softmax(g: &ArrayD<f32>, y: &ArrayD<f32>, axis: i64, joined: bool, log: bool) -> Option<ArrayD<f32>> {
    let dims = y.shape();
    if g.shape() != dims {
        return None;
    }
    let axis = if joined && axis == dims.len() as i64 { dims.len() } else { place(axis, dims.len())? };
    let (outer, rest) = dims.split_at(axis);
    let (along, inner) = if joined { (rest, &[][..]) } else { rest.split_at(1) };
    let shape = [outer, along, inner].map(|part| part.iter().product::<usize>());
    let (mut result, y3) = (flat3(g, shape)?, flat3(y, shape)?);
    for (mut g, y) in result.lanes_mut(Axis(1)).into_iter().zip(y3.lanes(Axis(1))) {
        if log {
            let sum = g.sum();
            g.zip_mut_with(&y, |g, y| *g -= y.exp() * sum);
        } else {
            let sum = g.dot(&y);
            g.zip_mut_with(&y, |g, y| *g = y * (*g - sum));
        }
    }
    result.into_shape_with_order(y.raw_dim()).ok()
}

/// An axis counted from either end.
fn place(axis: i64, axes: usize) -> Option<usize> {
    let count = i64::try_from(axes).ok()?;
    let axis = if axis < 0 { axis.checked_add(count)? } else { axis };
    (0..count).contains(&axis).then_some(axis as usize)
}

fn flat(a: &ArrayD<f32>, shape: [usize; 2]) -> Option<Array2<f32>> {
    Array2::from_shape_vec(shape, a.iter().copied().collect()).ok()
}

fn flat3(a: &ArrayD<f32>, shape: [usize; 3]) -> Option<Array3<f32>> {
    Array3::from_shape_vec(shape, a.iter().copied().collect()).ok()
}

fn concat(g: &ArrayD<f32>, seen: &Seen<'_>, axis: i64, position: usize) -> Option<ArrayD<f32>> {
    let axis = Axis(place(axis, g.ndim())?);
    let size = |i: usize| seen.input(i)?.shape().get(axis.0).copied();
    let sizes: Vec<usize> = (0..seen.inputs).map(size).collect::<Option<_>>()?;
    let from: usize = sizes.get(..position)?.iter().sum();
    let to = from + sizes.get(position)?;
    (to <= g.len_of(axis)).then(|| g.slice_axis(axis, Slice::from(from..to)).to_owned())
}

fn split(given: &Given<'_>, shape: &[usize], axis: i64, sizes: Option<&[usize]>) -> Option<ArrayD<f32>> {
    let axis = Axis(place(axis, shape.len())?);
    let part = shape[axis.0].div_ceil(given.len().max(1));
    let mut result = ArrayD::zeros(shape);
    let mut from = 0;
    for (output, g) in given.iter().enumerate() {
        let size = sizes.map_or(Some(part.min(shape[axis.0] - from)), |s| s.get(output).copied())?;
        let to = from.checked_add(size).filter(|&to| to <= shape[axis.0])?;
        let mut part = result.slice_axis_mut(axis, Slice::from(from..to));
        if let Some(g) = g {
            (part.shape() == g.shape()).then(|| part.assign(g))?;
        }
        from = to;
    }
    Some(result)
}

/// A linear map along one axis: `y[o] = Σ weight·x[i]` over `(o, i, weight)`.
type Taps = Vec<(usize, usize, f32)>;

/// The transposed map: `x̄[i] = Σ weight·g[o]`.
fn scattered(g: &ArrayD<f32>, axis: usize, size: usize, taps: &Taps) -> Option<ArrayD<f32>> {
    let outputs = *g.shape().get(axis)?;
    let mut shape = g.shape().to_vec();
    shape[axis] = size;
    let mut result = ArrayD::zeros(shape);
    for &(output, input, weight) in taps {
        if output >= outputs || input >= size {
            return None;
        }
        let from = g.index_axis(Axis(axis), output);
        result.index_axis_mut(Axis(axis), input).zip_mut_with(&from, |x, g| *x += weight * g);
    }
    Some(result)
}

fn slice(g: &ArrayD<f32>, shape: &[usize], cuts: &[Cut]) -> Option<ArrayD<f32>> {
    let mut result = g.clone();
    for cut in cuts {
        let axis = place(cut.axis, shape.len())?;
        let size = i64::try_from(shape[axis]).ok()?;
        let start = if cut.start < 0 { cut.start.saturating_add(size) } else { cut.start };
        let start = if cut.step > 0 { start.clamp(0, size) } else { start.clamp(0, (size - 1).max(0)) };
        let source = |o: usize| usize::try_from(cut.step.checked_mul(o as i64)?.checked_add(start)?).ok();
        let taps = (0..*g.shape().get(axis)?).map(|o| Some((o, source(o)?, 1.0)));
        result = scattered(&result, axis, shape[axis], &taps.collect::<Option<Taps>>()?)?;
    }
    Some(result)
}

fn pad(g: &ArrayD<f32>, shape: &[usize], before: &[(i64, i64)], border: Border) -> Option<ArrayD<f32>> {
    let mut result = g.clone();
    for &(axis, before) in before {
        let axis = place(axis, shape.len())?;
        let size = i64::try_from(shape[axis]).ok()?;
        let outputs = *g.shape().get(axis)?;
        if before == 0 && outputs == shape[axis] {
            continue;
        }
        let source = |o: usize| {
            let at = (o as i64).checked_sub(before)?;
            let at = match border {
                Border::Constant => at,
                Border::Edge => at.clamp(0, (size - 1).max(0)),
                Border::Reflect if at < 0 => -at,
                Border::Reflect if at >= size => 2 * (size - 1) - at,
                Border::Reflect => at,
            };
            usize::try_from(at).ok().filter(|&i| i < shape[axis])
        };
        let taps = (0..outputs).filter_map(|o| Some((o, source(o)?, 1.0))).collect();
        result = scattered(&result, axis, shape[axis], &taps)?;
    }
    Some(result)
}

fn gather(g: &ArrayD<f32>, shape: &[usize], axis: i64, indices: &[i64], scalar: bool) -> Option<ArrayD<f32>> {
    let axis = place(axis, shape.len())?;
    let size = shape[axis];
    let taps = indices.iter().enumerate().map(|(o, &i)| Some((o, place(i, size)?, 1.0))).collect::<Option<Taps>>()?;
    if scalar && axis <= g.ndim() {
        return scattered(&g.clone().insert_axis(Axis(axis)), axis, size, &taps);
    }
    scattered(g, axis, size, &taps)
}

/// By interpolation, or with a rounding from the nearest pixel.
fn resize(
    g: &ArrayD<f32>,
    shape: &[usize],
    scales: Option<&[f32]>,
    grid: Grid,
    rounding: Option<Rounding>,
) -> Option<ArrayD<f32>> {
    if g.ndim() != shape.len() || scales.is_some_and(|s| s.len() != shape.len()) {
        return None;
    }
    let mut result = g.clone();
    for (axis, &size) in shape.iter().enumerate() {
        let outputs = g.shape()[axis];
        let scale = scales.map_or(outputs as f32 / size as f32, |s| s[axis]);
        if outputs == size || size == 0 {
            continue;
        }
        let mut taps = Vec::new();
        for output in 0..outputs {
            let o = output as f32;
            let at = match grid {
                Grid::HalfPixelTorch if outputs == 1 => 0.0,
                Grid::HalfPixel | Grid::HalfPixelTorch => (o + 0.5) / scale - 0.5,
                Grid::Asymmetric => o / scale,
                Grid::AlignCorners if outputs == 1 => 0.0,
                Grid::AlignCorners => o * (size - 1) as f32 / (outputs - 1) as f32,
            };
            let last = (size - 1) as f32;
            let nearest = match rounding {
                Some(Rounding::Floor) => at.floor(),
                Some(Rounding::Ceil) => at.ceil(),
                Some(Rounding::PreferFloor) => (at - 0.5).ceil(),
                Some(Rounding::PreferCeil) => (at + 0.5).floor(),
                None => {
                    let at = at.clamp(0.0, last);
                    let share = at - at.floor();
                    taps.push((output, at.floor() as usize, 1.0 - share));
                    if share > 0.0 {
                        taps.push((output, at.floor() as usize + 1, share));
                    }
                    continue;
                }
            };
            taps.push((output, nearest.clamp(0.0, last) as usize, 1.0));
        }
        result = scattered(&result, axis, size, &taps)?;
    }
    (result.shape() == shape).then_some(result)
}

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
fn conv(g: &ArrayD<f32>, shape: &[usize], kernel: &ArrayD<f32>, window: &Window, groups: usize) -> Option<ArrayD<f32>> {
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
fn conv_transpose(
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

fn max_pool(g: &ArrayD<f32>, x: &ArrayD<f32>, window: &Window, kernel: &[usize]) -> Option<ArrayD<f32>> {
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

fn average_pool(
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

fn global_max_pool(g: &ArrayD<f32>, x: &ArrayD<f32>) -> Option<ArrayD<f32>> {
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

fn reduce(g: &ArrayD<f32>, shape: &[usize], axes: Option<&[i64]>, keep: bool, mean: bool) -> Option<ArrayD<f32>> {
    let mut axes: Vec<usize> = match axes {
        None => (2..shape.len()).collect(),
        Some([]) => (0..shape.len()).collect(),
        Some(axes) => axes.iter().map(|&a| place(a, shape.len())).collect::<Option<_>>()?,
    };
    axes.sort_unstable();
    let mut g = g.clone();
    for &axis in axes.iter().filter(|_| !keep) {
        if axis > g.ndim() {
            return None;
        }
        g.insert_axis_inplace(Axis(axis));
    }
    let count: usize = axes.iter().map(|&a| shape[a]).product();
    let share = if mean { 1.0 / count.max(1) as f32 } else { 1.0 };
    Some(g.broadcast(shape)?.mapv(|g| g * share))
}

/// Of `Y = α·A·B + β·C`, A and B as they enter the product: `Ā = α·g·Bᵀ`, `B̄ = α·Aᵀ·g`, `C̄ = β·g`.
fn gemm(
    g: &ArrayD<f32>,
    seen: &Seen<'_>,
    [alpha, beta]: [f32; 2],
    transposed: [bool; 2],
    position: usize,
) -> Option<ArrayD<f32>> {
    if position == 2 {
        return summed_to(g.mapv(|g| beta * g), seen.input(2)?.shape());
    }
    let other = 1 - position.min(1);
    let matrix = matrix(seen.input(other)?.view())?;
    let matrix = if transposed[other] { matrix.reversed_axes() } else { matrix };
    let g = self::matrix(g.view())?;
    let product = if position == 0 { product(g, matrix.t())? } else { product(matrix.t(), g)? } * alpha;
    let product = if transposed[position] { product.reversed_axes() } else { product };
    Some(product.as_standard_layout().into_owned().into_dyn())
}

fn matrix(a: ArrayViewD<'_, f32>) -> Option<ArrayView2<'_, f32>> {
    a.into_dimensionality().ok()
}

fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Option<Array2<f32>> {
    (a.ncols() == b.nrows()).then(|| a.dot(&b))
}

/// `Ā = g·Bᵀ`, `B̄ = Aᵀ·g` for each matrix of a stack, summed where one was broadcast.
fn mat_mul(g: &ArrayD<f32>, a: &ArrayD<f32>, b: &ArrayD<f32>, position: usize) -> Option<ArrayD<f32>> {
    let (mut g, mut a2, mut b2) = (g.view(), a.view(), b.view());
    // A vector is a row on the left and a column on the right.
    if b2.ndim() == 1 {
        b2.insert_axis_inplace(Axis(1));
        g.insert_axis_inplace(Axis(g.ndim()));
    }
    if a2.ndim() == 1 {
        a2.insert_axis_inplace(Axis(0));
        g.insert_axis_inplace(Axis(g.ndim().checked_sub(1)?));
    }
    let stack = g.shape().get(..g.ndim().checked_sub(2)?)?.to_vec();
    let wide = |m: &ArrayViewD<'_, f32>| -> Option<ArrayD<f32>> {
        let own = m.shape().get(m.ndim().checked_sub(2)?..)?;
        let m = m.broadcast([&stack[..], own].concat())?;
        let count = stack.iter().product::<usize>();
        ArrayD::from_shape_vec(vec![count, own[0], own[1]], m.iter().copied().collect()).ok()
    };
    let (g3, a3, b3) = (wide(&g)?, wide(&a2)?, wide(&b2)?);
    let mut flat = Vec::new();
    for ((g, a), b) in g3.outer_iter().zip(a3.outer_iter()).zip(b3.outer_iter()) {
        let (g, a, b) = (matrix(g)?, matrix(a)?, matrix(b)?);
        let part = if position == 0 { product(g, b.t())? } else { product(a.t(), g)? };
        flat.extend(part.iter().copied());
    }
    let (view, own) = if position == 0 { (&a2, a.shape()) } else { (&b2, b.shape()) };
    let shape = [&stack[..], view.shape().get(view.ndim().checked_sub(2)?..)?].concat();
    let stacked = ArrayD::from_shape_vec(shape, flat).ok()?;
    reshaped(&summed_to(stacked, view.shape())?, own)
}

fn transpose(g: &ArrayD<f32>, order: Option<&[usize]>) -> Option<ArrayD<f32>> {
    let mut back = vec![g.ndim(); g.ndim()];
    match order {
        None => back = (0..g.ndim()).rev().collect(),
        Some(order) if order.len() == g.ndim() => {
            order.iter().enumerate().try_for_each(|(to, &from)| back.get_mut(from).map(|b| *b = to))?;
        }
        Some(_) => return None,
    }
    permuted(g, &back)
}

fn permuted(g: &ArrayD<f32>, order: &[usize]) -> Option<ArrayD<f32>> {
    let valid = order.len() == g.ndim() && (0..g.ndim()).all(|axis| order.contains(&axis));
    valid.then(|| g.view().permuted_axes(IxDyn(order)).as_standard_layout().into_owned())
}

fn depth_to_space(g: &ArrayD<f32>, block: usize, columns_first: bool) -> Option<ArrayD<f32>> {
    let &[n, c, h, w] = g.shape() else { return None };
    let split = reshaped(g, &[n, c, h / block, block, w / block, block])?;
    let order = if columns_first { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
    reshaped(&permuted(&split, &order)?, &[n, c * block * block, h / block, w / block])
}

fn space_to_depth(g: &ArrayD<f32>, block: usize) -> Option<ArrayD<f32>> {
    let &[n, c, h, w] = g.shape() else { return None };
    let channels = c / (block * block);
    let split = reshaped(g, &[n, block, block, channels, h, w])?;
    reshaped(&permuted(&split, &[0, 3, 4, 1, 5, 2])?, &[n, channels, h * block, w * block])
}
