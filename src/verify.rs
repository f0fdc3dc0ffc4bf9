//! Two questions, never mixed. *Rewrite error*: does the written model compute what was decided? It must, to rounding, at any
//! rank. *Approximation error*: how far is it from the original? That is reported, and a gate only if the user sets one.

use crate::error::{Error, Result};
use crate::images::Images;
use crate::onnx::{InputShape, Model};
use crate::plan::Plan;
use crate::report::{Approximation, Score, Verification};
use crate::rewrite::{Compiled, reference};
use crate::runtime::{Feed, Input, Runner, inputs};
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
    if rewrite_error > REWRITE_TOLERANCE || rewrite_error.is_nan() {
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
pub fn score(model: &Model, compressed: &Model, images: &Images, shapes: &[InputShape]) -> Result<Score> {
    let inputs = inputs(model, shapes)?;
    let [input] = &inputs[..] else {
        return Err(Error::Options(format!("--images needs a model with one input; this one has {}", inputs.len())));
    };
    // Images are made and dropped in portions, as thousands of large ones would not fit.
    const PORTION: usize = 64;
    let classes = |model: &Model, what| -> Result<Vec<usize>> {
        let runner = Runner::load(model, &inputs, what)?;
        let mut classes = Vec::with_capacity(images.len());
        for start in (0..images.len()).step_by(PORTION) {
            let portion = start..(start + PORTION).min(images.len());
            let feeds: Vec<Feed> = portion.map(|i| Ok(vec![images.feed(i, &input.dims)?])).collect::<Result<_>>()?;
            for outputs in runner.run_all(&feeds)? {
                let scores = outputs.first().filter(|y| is_scores(y));
                classes.push(best(scores.ok_or_else(|| {
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

/// `max |a − b| / max |a|` over everything.
fn largest_difference(a: &[Vec<ArrayD<f32>>], b: &[Vec<ArrayD<f32>>]) -> f64 {
    let (mut difference, mut largest) = (0.0f64, 0.0f64);
    for (x, y) in a.iter().flatten().zip(b.iter().flatten()) {
        if x.shape() != y.shape() {
            return f64::INFINITY;
        }
        for (&p, &q) in x.iter().zip(y) {
            let d = f64::from(p) - f64::from(q);
            // NaN is no agreement.
            difference = if d.is_nan() { f64::NAN } else { difference.max(d.abs()) };
            if difference.is_nan() {
                return difference;
            }
            largest = largest.max(f64::from(p).abs());
        }
    }
    if largest > 0.0 { difference / largest } else { difference }
}

fn compare(original: &[Vec<ArrayD<f32>>], written: &[Vec<ArrayD<f32>>]) -> Approximation {
    let (mut signal, mut noise, mut inner, mut other) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (x, y) in original.iter().flatten().zip(written.iter().flatten()) {
        for (p, q) in x.iter().zip(y).map(|(&p, &q)| (f64::from(p), f64::from(q))) {
            signal += p * p;
            noise += (p - q) * (p - q);
            inner += p * q;
            other += q * q;
        }
    }
    let firsts = || original.iter().zip(written).filter_map(|(x, y)| Some((x.first()?, y.first()?)));
    let scores = original.iter().all(|outputs| outputs.first().is_some_and(is_scores));
    let same = firsts().filter(|(x, y)| best(x) == best(y)).count();
    Approximation {
        relative_error: if signal > 0.0 { (noise / signal).sqrt() } else { noise.sqrt() },
        snr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        cosine: if signal > 0.0 && other > 0.0 { inner / (signal * other).sqrt() } else { 0.0 },
        agreement: scores.then(|| same as f64 / original.len().max(1) as f64),
    }
}

/// `[1, classes]`, or with further axes of one.
fn is_scores(output: &ArrayD<f32>) -> bool {
    let shape = output.shape();
    shape.len() >= 2 && shape[0] == 1 && shape[1] > 1 && shape[2..].iter().all(|&d| d == 1)
}

fn best(scores: &ArrayD<f32>) -> usize {
    let all = scores.iter().enumerate();
    all.fold((0, f32::NEG_INFINITY), |b, (i, &s)| if s > b.1 { (i, s) } else { b }).0
}
