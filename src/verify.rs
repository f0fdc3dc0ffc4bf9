//! Two questions, never mixed. *Rewrite error*: does the written model compute what was decided? It must, to rounding, at any
//! rank. *Approximation error*: how far is it from the original? That is reported, and a gate only if the user sets one.

use crate::error::{Error, Result};
use crate::images::Images;
use crate::onnx::{InputShape, Model};
use crate::plan::Plan;
use crate::report::{Approximation, Score, Verification};
use crate::rewrite::{Compiled, reference};
use crate::runtime::{Feed, Input, Runner, best_classes, inputs, is_scores, shapes};
use ndarray::{ArrayD, IxDyn};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

/// Largest rewrite error that rounding explains: f32 products summed in another order through a hundred layers
/// stay below 1e-4 of the largest output, a wrong pad or stride is a thousand times that.
pub const REWRITE_TOLERANCE: f64 = 5e-4;

/// How models are compared.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Inputs to draw.
    pub inputs: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// Shapes of inputs that the model leaves open.
    pub input_shapes: Vec<InputShape>,
}

impl Default for VerifyOptions {
    /// Four inputs, seed 0.
    fn default() -> Self {
        Self { inputs: 4, seed: 0, input_shapes: Vec::new() }
    }
}

/// Runs the original, its reference and the written model on seeded inputs of standard normal values.
///
/// # Errors
/// [`Error::Unavailable`] if tract cannot run one of them, [`Error::Options`] if an input's shape is open. A rewrite
/// error beyond [`REWRITE_TOLERANCE`] is [`Error::RewriteWrong`].
pub fn verify(model: &Model, plan: &Plan, compiled: &Compiled, options: &VerifyOptions) -> Result<Verification> {
    let inputs = inputs(model, &options.input_shapes)?;
    let mut rng = Pcg64Mcg::seed_from_u64(options.seed);
    let feeds: Vec<Feed> = (0..options.inputs.max(1)).map(|_| draw(&inputs, &mut rng)).collect();
    // One model at a time, so that only one is in memory.
    let outputs = |model: &Model, what| Runner::load(model, &inputs, what)?.run_all(&feeds);
    let original = outputs(model, "the model")?;
    let decided = outputs(&reference(model, plan, compiled)?, "the reference")?;
    let written = outputs(&compiled.model, "the compressed model")?;
    let rewrite_error = largest_difference(&decided, &written);
    if rewrite_error > REWRITE_TOLERANCE {
        return Err(Error::RewriteWrong { error: rewrite_error, tolerance: REWRITE_TOLERANCE });
    }
    Ok(Verification {
        inputs: feeds.len(),
        rewrite_error,
        rewrite_tolerance: REWRITE_TOLERANCE,
        approximation: compare(&original, &written),
    })
}

/// Classifies images with the original and the written model.
///
/// # Errors
/// [`Error::Unavailable`], or [`Error::Images`] if they do not fit the model's input or its output is not class scores.
pub fn score(model: &Model, compressed: &Model, images: &Images, given: &[InputShape]) -> Result<Score> {
    let inputs = inputs(model, given)?;
    let images = images.fit(model, &shapes(&inputs), None)?;
    // Images are made and dropped in portions, as thousands of large ones would not fit.
    const PORTION: usize = 64;
    let classes = |model: &Model, what| -> Result<Vec<usize>> {
        let runner = Runner::load(model, &inputs, what)?;
        let mut classes = Vec::with_capacity(images.len());
        for start in (0..images.len()).step_by(PORTION) {
            let portion = start..(start + PORTION).min(images.len());
            for outputs in runner.run_all(&images.feeds(portion)?)? {
                let scores = outputs.first().filter(|y| is_scores(y));
                classes.extend(best_classes(scores.ok_or_else(|| {
                    Error::Options("--images needs a model whose first output is class scores, [batch, classes]".into())
                })?));
            }
        }
        Ok(classes)
    };
    let (before, after) = (classes(model, "the model")?, classes(compressed, "the compressed model")?);
    let share = |right: usize| right as f64 / images.len() as f64;
    let top1 = |found: &[usize]| {
        let labels = images.labels()?;
        Some(share(found.iter().zip(labels).filter(|(f, l)| i64::try_from(**f) == Ok(**l)).count()))
    };
    Ok(Score {
        images: images.len(),
        agreement: share(before.iter().zip(&after).filter(|(a, b)| a == b).count()),
        top1_before: top1(&before),
        top1_after: top1(&after),
    })
}

fn draw(inputs: &[Input], rng: &mut Pcg64Mcg) -> Feed {
    let array = |input: &Input| {
        let values: Vec<f32> = (0..input.dims.iter().product::<usize>())
            // Integers are indices or flags more often than data, and one is nearly always a valid one.
            .map(|_| if input.is_float() { StandardNormal.sample(rng) } else { 1.0 })
            .collect();
        ArrayD::from_shape_vec(IxDyn(&input.dims), values).unwrap_or_default()
    };
    let mut array = array;
    inputs.iter().map(&mut array).collect()
}

/// The largest over the outputs of `max |a − b| / max |a|`, all inputs together.
fn largest_difference(a: &[Vec<ArrayD<f32>>], b: &[Vec<ArrayD<f32>>]) -> f64 {
    let outputs = a.first().map_or(0, Vec::len);
    let each = (0..outputs).map(|o| {
        let (mut difference, mut largest) = (0.0f64, 0.0f64);
        for (x, y) in a.iter().zip(b).map(|(x, y)| (&x[o], &y[o])) {
            if x.shape() != y.shape() {
                return f64::INFINITY;
            }
            for (&p, &q) in x.iter().zip(y) {
                // The same infinity, or no number in both, is agreement; only one of them is not.
                if p == q || (p.is_nan() && q.is_nan()) {
                    largest = if p.is_finite() { largest.max(f64::from(p).abs()) } else { largest };
                    continue;
                }
                if !p.is_finite() || !q.is_finite() {
                    return f64::INFINITY;
                }
                difference = difference.max((f64::from(p) - f64::from(q)).abs());
                largest = largest.max(f64::from(p).abs());
            }
        }
        if largest > 0.0 { difference / largest } else { difference }
    });
    each.fold(0.0, f64::max)
}

fn compare(original: &[Vec<ArrayD<f32>>], written: &[Vec<ArrayD<f32>>]) -> Approximation {
    let (mut signal, mut noise, mut inner, mut other) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (x, y) in original.iter().flatten().zip(written.iter().flatten()) {
        // Where either is no number there is nothing to compare.
        let both = x.iter().zip(y).filter(|(p, q)| p.is_finite() && q.is_finite());
        for (p, q) in both.map(|(&p, &q)| (f64::from(p), f64::from(q))) {
            signal += p * p;
            noise += (p - q) * (p - q);
            inner += p * q;
            other += q * q;
        }
    }
    let firsts = || original.iter().zip(written).filter_map(|(x, y)| Some((x.first()?, y.first()?)));
    let scores = original.iter().all(|outputs| outputs.first().is_some_and(is_scores));
    let same: usize =
        firsts().map(|(x, y)| best_classes(x).iter().zip(best_classes(y)).filter(|(a, b)| **a == *b).count()).sum();
    let answers: usize = firsts().map(|(x, _)| x.shape().first().copied().unwrap_or(0)).sum();
    Approximation {
        relative_error: if signal > 0.0 { (noise / signal).sqrt() } else { noise.sqrt() },
        snr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        cosine: if signal > 0.0 && other > 0.0 { inner / (signal * other).sqrt() } else { 0.0 },
        agreement: scores.then(|| same as f64 / answers.max(1) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(values: [f32; 3]) -> Vec<Vec<ArrayD<f32>>> {
        vec![vec![ArrayD::from_shape_vec(IxDyn(&[1, 3]), values.to_vec()).unwrap()]]
    }

    #[test]
    fn the_measures_are_those_of_their_formulas() {
        let found = compare(&outputs([3.0, 0.0, 4.0]), &outputs([3.0, 0.0, 3.0]));
        // ‖y − ŷ‖ = 1, ‖y‖ = 5, ⟨y, ŷ⟩ = 21, ‖ŷ‖ = √18; the largest score moves from the last to the first class.
        assert!((found.relative_error - 0.2).abs() < 1e-12);
        assert!((found.snr_db.unwrap() - 20.0 * 5f64.log10()).abs() < 1e-9);
        assert!((found.cosine - 21.0 / (5.0 * 18f64.sqrt())).abs() < 1e-9);
        assert_eq!(found.agreement, Some(0.0));
    }

    #[test]
    fn differences_are_relative_to_the_largest_output() {
        assert!((largest_difference(&outputs([0.0, 2.0, -8.0]), &outputs([1.0, 2.0, -8.0])) - 0.125).abs() < 1e-12);
        let infinite = [f32::INFINITY, f32::NAN, 1.0];
        assert_eq!(largest_difference(&outputs(infinite), &outputs(infinite)), 0.0);
        assert_eq!(largest_difference(&outputs([1.0, 1.0, 1.0]), &outputs(infinite)), f64::INFINITY);
    }
}
