//! Adam with steps relative to each tensor's size, on a one-cycle schedule, and the average of what it went through.

use super::simd::add_to;
use serde::{Deserialize, Serialize};

/// Decay of the first and of the second moment.
const DECAYS: [f32; 2] = [0.9, 0.99];
/// Of the averages.
const AVERAGE: f32 = 0.995;
const EPSILON: f32 = 1e-8;
/// Share of the way in which the rate rises.
const RISE: f32 = 0.1;
/// A gradient this many times as long as its predecessors is shortened.
const LONGEST: f32 = 3.0;

/// What is trained and how it has moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Optimizer {
    pub(super) parameters: Vec<Vec<f32>>,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
    /// Averages over the last steps.
    pub(super) averages: Vec<Vec<f32>>,
    /// Size of each tensor, to which steps are relative.
    scales: Vec<f32>,
    steps: u32,
    /// Running length of gradients.
    length: f32,
}

impl Optimizer {
    pub(super) fn new(parameters: Vec<Vec<f32>>) -> Self {
        let zeros: Vec<Vec<f32>> = parameters.iter().map(|p| vec![0.0; p.len()]).collect();
        let size = |p: &Vec<f32>| (p.iter().map(|x| x * x).sum::<f32>() / p.len().max(1) as f32).sqrt().max(1e-2);
        let scales = parameters.iter().map(size).collect();
        let averages = parameters.clone();
        Self { parameters, first: zeros.clone(), second: zeros, averages, scales, steps: 0, length: 0.0 }
    }

    /// One step down the gradients at a rate; false, and nothing moved, if they are no numbers.
    pub(super) fn step(&mut self, gradients: &[Vec<f32>], rate: f32) -> bool {
        let squares: f32 = gradients.iter().flatten().map(|g| g * g).sum();
        let length = squares.sqrt();
        if !length.is_finite() {
            return false;
        }
        if self.length == 0.0 {
            self.length = length;
        }
        let shorten = (LONGEST * self.length / length.max(f32::MIN_POSITIVE)).min(1.0);
        self.length += 0.05 * (length.min(LONGEST * self.length) - self.length);
        self.steps += 1;
        let [a, b] = DECAYS;
        let bias = |decay: f32| 1.0 - decay.powi(self.steps.min(10_000).cast_signed());
        let (bias_first, bias_second) = (bias(a), bias(b));
        // Young averages are of all steps so far.
        let keep = AVERAGE.min(self.steps as f32 / (self.steps as f32 + 9.0));
        for (at, g) in gradients.iter().enumerate() {
            let rate = rate * self.scales[at] / bias_first;
            let moments = self.first[at].iter_mut().zip(&mut self.second[at]);
            let values = self.parameters[at].iter_mut().zip(&mut self.averages[at]);
            for (((p, average), (m, v)), g) in values.zip(moments).zip(g) {
                let g = g * shorten;
                *m = a * *m + (1.0 - a) * g;
                *v = b * *v + (1.0 - b) * g * g;
                *p -= rate * *m / ((*v / bias_second).sqrt() + EPSILON);
                *average = keep * *average + (1.0 - keep) * *p;
            }
        }
        true
    }
}

/// The share of the highest rate at some part of the way: up in a line, down in half a cosine.
pub(super) fn cycle(part: f32) -> f32 {
    if part < RISE {
        return (part / RISE).max(0.02);
    }
    let down = ((part - RISE) / (1.0 - RISE)).min(1.0);
    0.5 * (1.0 + (std::f32::consts::PI * down).cos())
}

/// Sums gradients of parts in their order.
pub(super) fn summed(parts: &mut [Vec<Vec<f32>>]) -> Option<&mut Vec<Vec<f32>>> {
    let (sum, others) = parts.split_first_mut()?;
    for part in others {
        sum.iter_mut().zip(part).for_each(|(sum, part)| add_to(sum, part));
    }
    Some(sum)
}
