//! Functions of single elements, and normalisations.

use super::{flat, flat3, place, summed_to};
use crate::gradient::rule::Unary;
use ndarray::{Array3, ArrayD, Axis, Zip, s};

pub(super) fn elementwise(g: &ArrayD<f32>, at: &ArrayD<f32>, derivative: impl Fn(f32) -> f32) -> Option<ArrayD<f32>> {
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
pub(super) fn derivative(unary: Unary, at: f32) -> f32 {
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
pub(super) fn with(g: &ArrayD<f32>, b: &ArrayD<f32>, f: impl Fn(f32, f32) -> f32) -> Option<ArrayD<f32>> {
    let b = b.broadcast(g.raw_dim())?;
    Some(Zip::from(g).and(b).map_collect(|&g, &b| f(g, b)))
}

pub(super) fn prelu(g: &ArrayD<f32>, x: &ArrayD<f32>, slope: &ArrayD<f32>) -> Option<ArrayD<f32>> {
    let (x, slope) = (x.broadcast(g.raw_dim())?, slope.broadcast(g.raw_dim())?);
    Some(Zip::from(g).and(x).and(slope).map_collect(|&g, &x, &slope| if x > 0.0 { g } else { slope * g }))
}

/// Of `a/b`: `g/b` and `−g·a/b²`.
pub(super) fn div(g: &ArrayD<f32>, a: &ArrayD<f32>, b: &ArrayD<f32>, position: usize) -> Option<ArrayD<f32>> {
    if position == 0 {
        return summed_to(with(g, b, |g, b| g / b)?, a.shape());
    }
    summed_to(with(&with(g, a, |g, a| g * a)?, b, |ga, b| -ga / (b * b))?, b.shape())
}

/// Of `xᵉ`: `g·e·xᵉ⁻¹`.
pub(super) fn pow(g: &ArrayD<f32>, x: &ArrayD<f32>, exponent: &ArrayD<f32>) -> Option<ArrayD<f32>> {
    let (wide, e) = (x.broadcast(g.raw_dim())?, exponent.broadcast(g.raw_dim())?);
    let slope = |&g: &f32, &x: &f32, &e: &f32| match e {
        2.0 => g * 2.0 * x,
        _ => g * e * x.powf(e - 1.0),
    };
    summed_to(Zip::from(g).and(wide).and(e).map_collect(slope), x.shape())
}

/// `g·γ/√(variance + ε)`, per channel.
pub(super) fn batch_norm(
    g: &ArrayD<f32>,
    gamma: &ArrayD<f32>,
    variance: &ArrayD<f32>,
    epsilon: f32,
) -> Option<ArrayD<f32>> {
    let scale = with(gamma, variance, |gamma, v| gamma / (v + epsilon).sqrt())?;
    let mut result = g.clone();
    if g.ndim() < 2 || scale.len() != g.len_of(Axis(1)) {
        return None;
    }
    result.axis_iter_mut(Axis(1)).zip(&scale).for_each(|(mut channel, s)| channel *= *s);
    Some(result)
}

/// `γ/σ·(g − mean(g) − x̂·mean(g·x̂))` with `x̂ = (x − μ)/σ`, over the plane of each channel.
pub(super) fn instance_norm(
    g: &ArrayD<f32>,
    x: &ArrayD<f32>,
    gamma: &ArrayD<f32>,
    epsilon: f32,
) -> Option<ArrayD<f32>> {
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
pub(super) fn lrn(g: &ArrayD<f32>, x: &ArrayD<f32>, size: usize, [alpha, beta, bias]: [f32; 3]) -> Option<ArrayD<f32>> {
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
pub(super) fn softmax(g: &ArrayD<f32>, y: &ArrayD<f32>, axis: i64, joined: bool, log: bool) -> Option<ArrayD<f32>> {
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
