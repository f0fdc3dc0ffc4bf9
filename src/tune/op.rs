//! Operators of the trainable view on flat slices, one sample at a time: what each computes, and what it adds to the
//! cotangents `x̄ += (∂y/∂x)ᵀ·ȳ` of its operands.

use super::simd::{add_to, each, pairs};
use crate::gradient::{Local, Unary};
use crate::runtime::Runner;
use ndarray::{ArrayD, ArrayViewD};

/// One operator with all shapes fixed.
pub(super) trait Op: Send + Sync {
    /// Writes every element of `y`.
    fn forward(&self, x: &[&[f32]], y: &mut [f32], scratch: &mut Vec<f32>);

    /// Adds the cotangent of the operand at `position` to `into`; `g` is that of `y`.
    fn backward(&self, position: usize, seen: &Seen<'_>, into: &mut [f32], scratch: &mut Vec<f32>);
}

/// What an operator saw and gave, and the cotangent of what it gave.
pub(super) struct Seen<'s> {
    pub(super) x: Vec<&'s [f32]>,
    pub(super) y: &'s [f32],
    pub(super) g: &'s [f32],
}

/// `y = f(x)`, element by element.
pub(super) struct Elementwise(pub(super) Unary);

impl Op for Elementwise {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        let x = x[0];
        match self.0 {
            Unary::Relu => each(y, x, |x| x.max(0.0)),
            Unary::LeakyRelu { alpha } => each(y, x, |x| if x > 0.0 { x } else { alpha * x }),
            Unary::Clip { low, high } => each(y, x, |x| x.max(low).min(high)),
            unary => each(y, x, |x| unary.value(x)),
        }
    }

    fn backward(&self, _: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        let (g, x) = (seen.g, seen.x[0]);
        match self.0 {
            Unary::Relu => pairs(into, g, seen.y, |g, y| if y > 0.0 { g } else { 0.0 }),
            Unary::LeakyRelu { alpha } => pairs(into, g, x, |g, x| if x > 0.0 { g } else { alpha * g }),
            Unary::Clip { low, high } => pairs(into, g, x, |g, x| if x > low && x < high { g } else { 0.0 }),
            unary if unary.is_of_output() => pairs(into, g, seen.y, |g, y| g * unary.slope(y)),
            unary => pairs(into, g, x, |g, x| g * unary.slope(x)),
        }
    }
}

/// Of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
}

/// `y = a ∘ b` with ONNX's broadcasting; a map gives for each element of y that of an operand of another shape.
pub(super) struct Binary {
    pub(super) arithmetic: Arithmetic,
    pub(super) maps: [Option<Vec<u32>>; 2],
}

impl Binary {
    pub(super) fn new(arithmetic: Arithmetic, shapes: [&[usize]; 2], output: &[usize]) -> Option<Self> {
        let map = |shape: &[usize]| -> Option<Option<Vec<u32>>> {
            if shape == output {
                return Some(None);
            }
            let places: Vec<u32> = (0..u32::try_from(shape.iter().product::<usize>()).ok()?).collect();
            let view = ArrayViewD::from_shape(shape, &places).ok()?;
            Some(Some(view.broadcast(output)?.iter().copied().collect()))
        };
        Some(Self { arithmetic, maps: [map(shapes[0])?, map(shapes[1])?] })
    }

    fn operand(&self, which: usize, x: &[f32], at: usize) -> f32 {
        match &self.maps[which] {
            Some(map) => x[map[at] as usize],
            None => x[at],
        }
    }
}

impl Op for Binary {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        let (a, b) = (x[0], x[1]);
        if let (Arithmetic::Add, [None, None]) = (self.arithmetic, &self.maps) {
            y.copy_from_slice(a);
            add_to(y, b);
            return;
        }
        for (at, y) in y.iter_mut().enumerate() {
            let (a, b) = (self.operand(0, a, at), self.operand(1, b, at));
            *y = match self.arithmetic {
                Arithmetic::Add => a + b,
                Arithmetic::Sub => a - b,
                Arithmetic::Mul => a * b,
                Arithmetic::Div => a / b,
            };
        }
    }

    fn backward(&self, position: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        if let (Arithmetic::Add, None) = (self.arithmetic, &self.maps[position]) {
            add_to(into, seen.g);
            return;
        }
        for (at, &g) in seen.g.iter().enumerate() {
            let operand = |which: usize| self.operand(which, seen.x[which], at);
            let slope = match (self.arithmetic, position) {
                (Arithmetic::Add, _) | (Arithmetic::Sub, 0) => g,
                (Arithmetic::Sub, _) => -g,
                (Arithmetic::Mul, _) => g * operand(1 - position),
                (Arithmetic::Div, 0) => g / operand(1),
                (Arithmetic::Div, _) => -g * operand(0) / (operand(1) * operand(1)),
            };
            into[self.maps[position].as_ref().map_or(at, |map| map[at] as usize)] += slope;
        }
    }
}

/// `y[i] = x[map[i]]`, or a constant where the map leads nowhere: slices, pads, transpositions, parts, nearest pixels.
pub(super) struct Rearranged {
    /// `u32::MAX` leads nowhere.
    pub(super) map: Vec<u32>,
    pub(super) filling: f32,
}

impl Op for Rearranged {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        for (y, &from) in y.iter_mut().zip(&self.map) {
            *y = x[0].get(from as usize).copied().unwrap_or(self.filling);
        }
    }

    fn backward(&self, _: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        for (g, &from) in seen.g.iter().zip(&self.map) {
            if let Some(into) = into.get_mut(from as usize) {
                *into += g;
            }
        }
    }
}

/// Operands one after the other along an axis.
pub(super) struct Concat {
    /// Of each operand, elements that stand together.
    pub(super) runs: Vec<usize>,
}

impl Concat {
    fn places(&self, position: usize) -> (usize, usize, usize) {
        let from: usize = self.runs[..position].iter().sum();
        (self.runs.iter().sum(), from, self.runs[position])
    }
}

impl Op for Concat {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        for (position, x) in x.iter().enumerate() {
            let (whole, from, run) = self.places(position);
            for (y, x) in y.chunks_exact_mut(whole.max(1)).zip(x.chunks_exact(run.max(1))) {
                y[from..from + run].copy_from_slice(x);
            }
        }
    }

    fn backward(&self, position: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        let (whole, from, run) = self.places(position);
        for (g, into) in seen.g.chunks_exact(whole.max(1)).zip(into.chunks_exact_mut(run.max(1))) {
            add_to(into, &g[from..from + run]);
        }
    }
}

/// `y = γ·(x − μ)/√(v + ε) + β` per channel, with statistics that stay.
pub(super) struct BatchNorm {
    pub(super) channels: usize,
    pub(super) plane: usize,
    pub(super) epsilon: f32,
}

impl BatchNorm {
    /// `1/√(v + ε)` of a plane's channel, and the channel.
    fn scale(&self, plane: usize, variance: &[f32]) -> (f32, usize) {
        let channel = plane % self.channels;
        (1.0 / (variance[channel] + self.epsilon).sqrt(), channel)
    }
}

impl Op for BatchNorm {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        let [x, gamma, beta, mean, variance] = x else { return };
        for (plane, (y, x)) in y.chunks_exact_mut(self.plane).zip(x.chunks_exact(self.plane)).enumerate() {
            let (scale, c) = self.scale(plane, variance);
            let (scale, shift) = (gamma[c] * scale, beta[c] - gamma[c] * scale * mean[c]);
            each(y, x, |x| x * scale + shift);
        }
    }

    fn backward(&self, position: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        let [x, gamma, _, mean, variance] = &seen.x[..] else { return };
        for (plane, (g, x)) in seen.g.chunks_exact(self.plane).zip(x.chunks_exact(self.plane)).enumerate() {
            let (scale, c) = self.scale(plane, variance);
            match position {
                0 => {
                    let scale = gamma[c] * scale;
                    pairs(&mut into[plane * self.plane..][..self.plane], g, x, |g, _| g * scale);
                }
                1 => into[c] += scale * g.iter().zip(x).map(|(g, x)| g * (x - mean[c])).sum::<f32>(),
                _ => into[c] += g.iter().sum::<f32>(),
            }
        }
    }
}

/// The mean or the sum of what stands together at the end.
pub(super) struct Reduced {
    pub(super) run: usize,
    pub(super) share: f32,
}

impl Op for Reduced {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        for (y, x) in y.iter_mut().zip(x[0].chunks_exact(self.run)) {
            *y = self.share * x.iter().sum::<f32>();
        }
    }

    fn backward(&self, _: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        for (g, into) in seen.g.iter().zip(into.chunks_exact_mut(self.run)) {
            let share = self.share * g;
            into.iter_mut().for_each(|x| *x += share);
        }
    }
}

/// What tract runs forward and [`Local`] backward: right, and slow.
pub(super) struct Foreign {
    pub(super) runner: Runner,
    pub(super) local: Local,
    /// Shapes of all operands, and of the output.
    pub(super) shapes: Vec<Vec<usize>>,
    pub(super) output: Vec<usize>,
    /// Operands that the runner is fed with, each name once.
    pub(super) fed: Vec<usize>,
}

impl Foreign {
    fn array(shape: &[usize], values: &[f32]) -> ArrayD<f32> {
        ArrayD::from_shape_vec(shape, values.to_vec()).unwrap_or_else(|_| ArrayD::zeros(shape))
    }
}

impl Op for Foreign {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        let feed: Vec<ArrayD<f32>> = self.fed.iter().map(|&i| Self::array(&self.shapes[i], x[i])).collect();
        // It has run before, on the same shapes; what fails all the same shows as a loss that is no number.
        match self.runner.run(&feed) {
            Ok(outputs) if outputs.len() == 1 && outputs[0].len() == y.len() => {
                y.iter_mut().zip(&outputs[0]).for_each(|(y, value)| *y = *value);
            }
            _ => y.fill(f32::NAN),
        }
    }

    fn backward(&self, position: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        let x: Vec<ArrayD<f32>> = self.shapes.iter().zip(&seen.x).map(|(s, x)| Self::array(s, x)).collect();
        let (y, g) = (Self::array(&self.output, seen.y), Self::array(&self.output, seen.g));
        match self.local.cotangent(&x, &y, &g, position) {
            Some(found) if found.len() == into.len() => into.iter_mut().zip(&found).for_each(|(x, g)| *x += g),
            _ => into.fill(f32::NAN),
        }
    }
}
