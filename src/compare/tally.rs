//! How far outputs are apart: sums over all that was run, and the measures that follow from them.

use super::OutputRow;
use crate::error::{Error, Result};
use crate::report::Approximation;
use crate::runtime::{best_classes, is_scores};
use ndarray::ArrayD;

/// Sums over pairs of outputs, from which all measures follow.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(super) outputs: Vec<Sums>,
    /// Answers whose first output is class scores, and those of them with the same largest score.
    answers: usize,
    same: usize,
    /// Whether some first output is not class scores.
    other: bool,
}

/// Sums over one output.
#[derive(Debug, Default, Clone)]
pub(super) struct Sums {
    difference: f64,
    largest: f64,
    signal: f64,
    noise: f64,
    inner: f64,
    energy: f64,
    /// Values that are numbers in one and none in the other.
    broken: u64,
    /// Values that are numbers in both.
    measured: u64,
    /// All values.
    seen: u64,
}

impl Tally {
    /// Refuses outputs of different shapes.
    pub(super) fn check(&self, a: &[Vec<ArrayD<f32>>], b: &[Vec<ArrayD<f32>>]) -> Result<()> {
        let (Some(a), Some(b)) = (a.first(), b.first()) else { return Ok(()) };
        let told =
            |outputs: &[ArrayD<f32>]| outputs.iter().map(|o| format!("{:?}", o.shape())).collect::<Vec<_>>().join(", ");
        if a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.shape() == y.shape()) {
            return Ok(());
        }
        let (a, b) = (told(a), told(b));
        Err(Error::Options(format!("the models give different outputs, {a} and {b}: they cannot be compared")))
    }

    /// Takes the outputs of some inputs in, each input's in the order of the model.
    pub(crate) fn add(&mut self, a: &[Vec<ArrayD<f32>>], b: &[Vec<ArrayD<f32>>]) {
        for (a, b) in a.iter().zip(b) {
            self.outputs.resize(self.outputs.len().max(a.len()), Sums::default());
            self.outputs.iter_mut().zip(a.iter().zip(b)).for_each(|(sums, (x, y))| sums.add(x, y));
            match (a.first(), b.first()) {
                (Some(x), Some(y)) if is_scores(x) => {
                    let (first, second) = (best_classes(x), best_classes(y));
                    self.answers += first.len();
                    self.same += first.iter().zip(second).filter(|(p, q)| p.is_some() && **p == *q).count();
                }
                _ => self.other = true,
            }
        }
    }

    /// Whether there were values, and none of either was a number, so that nothing is known of how far apart they are.
    pub(super) fn is_blind(&self) -> bool {
        self.outputs.iter().any(|sums| sums.seen > 0)
            && self.outputs.iter().all(|sums| sums.measured == 0 && sums.broken == 0)
    }

    /// Whether there were values, and of both none was a number other than zero: where something goes wrong on the way, too.
    pub(crate) fn is_silent(&self) -> bool {
        self.outputs.iter().any(|sums| sums.seen > 0)
            && self.outputs.iter().all(|sums| sums.signal + sums.energy == 0.0 && sums.broken == 0)
    }

    /// The largest over the outputs of `max |a − b| / max |a|`, all inputs together.
    pub(crate) fn largest_difference(&self) -> f64 {
        self.outputs.iter().map(Sums::largest_difference).fold(0.0, f64::max)
    }

    /// All outputs together.
    pub(crate) fn approximation(&self) -> Approximation {
        let sum = |of: fn(&Sums) -> f64| self.outputs.iter().map(of).sum::<f64>();
        let (signal, noise, energy) = (sum(|s| s.signal), sum(|s| s.noise), sum(|s| s.energy));
        let scores = !self.other && self.answers > 0;
        Approximation {
            broken: self.outputs.iter().map(|s| s.broken).sum(),
            relative_error: if signal > 0.0 { (noise / signal).sqrt() } else { noise.sqrt() },
            snr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
            cosine: if signal > 0.0 && energy > 0.0 { sum(|s| s.inner) / (signal * energy).sqrt() } else { 0.0 },
            agreement: scores.then(|| self.same as f64 / self.answers as f64),
        }
    }
}

impl Sums {
    fn add(&mut self, x: &ArrayD<f32>, y: &ArrayD<f32>) {
        if x.shape() != y.shape() {
            self.difference = f64::INFINITY;
            self.broken += 1;
            return;
        }
        for (p, q) in x.iter().zip(y).map(|(&p, &q)| (f64::from(p), f64::from(q))) {
            self.seen += 1;
            // Where either is no number there is nothing to measure: the same infinity, or no number in both, is agreement, only
            // one of them is not.
            if !p.is_finite() || !q.is_finite() {
                if p != q && !(p.is_nan() && q.is_nan()) {
                    self.difference = f64::INFINITY;
                    self.broken += 1;
                }
                continue;
            }
            self.measured += 1;
            self.difference = self.difference.max((p - q).abs());
            self.largest = self.largest.max(p.abs());
            self.signal += p * p;
            self.noise += (p - q) * (p - q);
            self.inner += p * q;
            self.energy += q * q;
        }
    }

    fn largest_difference(&self) -> f64 {
        if self.largest > 0.0 { self.difference / self.largest } else { self.difference }
    }

    pub(super) fn row(&self, name: String) -> OutputRow {
        let relative_error = if self.signal > 0.0 { (self.noise / self.signal).sqrt() } else { self.noise.sqrt() };
        OutputRow { name, largest_difference: self.largest_difference(), relative_error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::IxDyn;

    fn tally(a: [f32; 3], b: [f32; 3]) -> Tally {
        let outputs = |values: [f32; 3]| vec![vec![ArrayD::from_shape_vec(IxDyn(&[1, 3]), values.to_vec()).unwrap()]];
        let mut tally = Tally::default();
        tally.add(&outputs(a), &outputs(b));
        tally
    }

    #[test]
    fn the_measures_are_those_of_their_formulas() {
        let found = tally([3.0, 0.0, 4.0], [3.0, 0.0, 3.0]).approximation();
        // ‖y − ŷ‖ = 1, ‖y‖ = 5, ⟨y, ŷ⟩ = 21, ‖ŷ‖ = √18; the largest score moves from the last to the first class.
        assert!((found.relative_error - 0.2).abs() < 1e-12);
        assert!((found.snr_db.unwrap() - 20.0 * 5f64.log10()).abs() < 1e-9);
        assert!((found.cosine - 21.0 / (5.0 * 18f64.sqrt())).abs() < 1e-9);
        assert_eq!(found.agreement, Some(0.0));
    }

    #[test]
    fn differences_are_relative_to_the_largest_output() {
        assert!((tally([0.0, 2.0, -8.0], [1.0, 2.0, -8.0]).largest_difference() - 0.125).abs() < 1e-12);
        let infinite = [f32::INFINITY, f32::NAN, 1.0];
        assert_eq!(tally(infinite, infinite).largest_difference(), 0.0);
        assert_eq!(tally([1.0, 1.0, 1.0], infinite).largest_difference(), f64::INFINITY);
    }
}
