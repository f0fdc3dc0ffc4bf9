//! How far two models are apart: their outputs for the same inputs, drawn by chance or the user's own.

use crate::error::{Error, Result};
use crate::gates::Gates;
use crate::images::{Images, Samples};
use crate::onnx::{InputShape, Model};
use crate::progress::{Listener, Progress};
use crate::report::{Approximation, Change, Score, json, thousands};
use crate::runtime::{Feed, Input, Runner, best_classes, inputs, is_scores, shapes};
use ndarray::{ArrayD, IxDyn};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Inputs that are made, run and dropped at a time, as thousands of large ones would not fit.
const PORTION: usize = 64;
/// What follows from a bound that is not kept.
const BEYOND: &str = "the models are further apart than they may be";
/// Version of the JSON layout, that of `tools/schema/comparison-1.schema.json`; it grows as
/// [`REPORT_VERSION`](crate::REPORT_VERSION) does.
pub const COMPARISON_VERSION: u32 = 1;

/// On which drawn inputs models are run.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Inputs to draw.
    pub inputs: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// Shapes of inputs that the model leaves open.
    pub input_shapes: Vec<InputShape>,
    /// Size of a model in float32, in bytes, up to which it is run as a whole. A larger one is run part by part when it is compressed,
    /// and calibrated only if that was asked for.
    pub whole: u64,
}

impl VerifyOptions {
    /// The default of [`VerifyOptions::whole`]: what a file takes at most that every reader of protocol buffers takes, 2 GiB.
    pub const WHOLE: u64 = i32::MAX as u64;
}

impl Default for VerifyOptions {
    /// Four inputs, seed 0.
    fn default() -> Self {
        Self { inputs: 4, seed: 0, input_shapes: Vec::new(), whole: Self::WHOLE }
    }
}

/// On what two models are compared, and how near they should be.
#[derive(Debug, Clone, Default)]
pub struct CompareOptions {
    /// Inputs to draw, where there are no images, and shapes that the models leave open.
    pub inputs: VerifyOptions,
    /// Images, or other inputs, to run instead.
    pub images: Option<Images>,
    /// Bounds below which the result is refused.
    pub gates: Gates,
    /// The largest difference allowed, relative to the largest output.
    pub max_difference: Option<f64>,
}

/// What a comparison found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// [`COMPARISON_VERSION`].
    pub comparison_version: u32,
    /// Version of onnx-jmd.
    pub version: String,
    /// What was run: seeded inputs, or where the images come from.
    pub source: String,
    /// How many inputs.
    pub inputs: usize,
    /// The largest difference, relative to the largest output.
    #[serde(deserialize_with = "or_infinite")]
    pub largest_difference: f64,
    /// All outputs together.
    pub approximation: Approximation,
    /// Each output by itself.
    pub outputs: Vec<OutputRow>,
    /// Share of right classes of both, with labels.
    pub top1: Option<[f64; 2]>,
    /// Floating-point parameters of both, each stored tensor once.
    pub parameters: Change,
    /// Bytes of both files.
    pub file_bytes: Change,
}

/// One output of both models.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutputRow {
    /// Its name in the first.
    pub name: String,
    /// The largest difference, relative to its largest value.
    #[serde(deserialize_with = "or_infinite")]
    pub largest_difference: f64,
    /// `‖y − ŷ‖ / ‖y‖`.
    pub relative_error: f64,
}

/// JSON has no infinity, which is written as null.
fn or_infinite<'d, D: Deserializer<'d>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
}

/// Runs two models on the same inputs.
///
/// # Errors
/// [`Error::Options`] if inputs or outputs of the two differ in number or shape, [`Error::Images`] if images do not fit,
/// [`Error::Unavailable`] if tract cannot run one. Bounds are not checked: see [`Comparison::check`].
pub fn compare(a: &Model, b: &Model, options: &CompareOptions, progress: &Listener<'_>) -> Result<Comparison> {
    let progress = Progress::new(progress);
    if options.max_difference.is_some_and(|most| most.is_nan() || most < 0.0) {
        return Err(Error::Options("--max-difference must be a number, 0 or more".into()));
    }
    options.gates.sound()?;
    let sizes = (Change::new(a.parameters(), b.parameters()), Change::new(a.file_bytes(), b.file_bytes()));
    // tract runs other types slowly or not at all.
    let wide = (a.in_f32(), b.in_f32());
    let (a, b) = (wide.0.as_ref().unwrap_or(a), wide.1.as_ref().unwrap_or(b));
    let given = &options.inputs.input_shapes;
    a.check_shapes(given)?;
    // The names are those of the first.
    let of_second =
        |shape: &&InputShape| shape.name.as_ref().is_none_or(|name| b.inputs().iter().any(|input| input.0 == *name));
    b.check_shapes(&given.iter().filter(of_second).cloned().collect::<Vec<_>>())?;
    let (fed, others) = (inputs(a, given)?, inputs(b, given)?);
    let order = paired(&names(&fed), &names(&others));
    alike(&fed, &others, &order)?;
    let outputs_order = paired(&a.outputs(), &b.outputs());
    let samples = options.images.as_ref().map(|images| images.fit(a, &shapes(&fed), None)).transpose()?;
    samples.iter().filter_map(|s| s.assumed()).for_each(|line| progress.say(line));
    let drawn = if samples.is_none() { draw(&fed, options.inputs.inputs, options.inputs.seed) } else { Vec::new() };
    let count = samples.as_ref().map_or(drawn.len(), Samples::len);
    let first = Runner::load(a, &fed, "the first model")?;
    let second = Runner::load(b, &others, "the second model")?;
    let portions = progress.items("comparing", count.div_ceil(PORTION));
    let (mut tally, mut right) = (Tally::default(), [0usize; 2]);
    for start in (0..count).step_by(PORTION) {
        let portion = start..(start + PORTION).min(count);
        let feeds = match &samples {
            Some(samples) => samples.feeds(portion.clone())?,
            None => drawn[portion.clone()].to_vec(),
        };
        let ordered = |feed: &Feed| -> Feed { order.iter().map(|&at| feed[at].clone()).collect() };
        let theirs: Vec<Feed> = feeds.iter().map(ordered).collect();
        let mut outputs = [first.run_all(&feeds)?, second.run_all(&theirs)?];
        if outputs[1].iter().all(|each| each.len() == outputs_order.len()) {
            // In the order of the first model.
            let placed = |each: &Vec<ArrayD<f32>>| {
                let place = |at: usize| outputs_order.iter().position(|o| *o == at).unwrap_or(at);
                (0..each.len()).map(|at| each[place(at)].clone()).collect()
            };
            outputs[1] = outputs[1].iter().map(placed).collect();
        }
        if let Some(labels) = samples.as_ref().and_then(Samples::labels) {
            check_labels(&outputs[0], Some(labels))?;
            for (right, outputs) in right.iter_mut().zip(&outputs) {
                *right += right_classes(&classes(outputs, "--labels")?, &labels[portion.clone()]);
            }
        }
        tally.check(&outputs[0], &outputs[1])?;
        tally.add(&outputs[0], &outputs[1]);
        portions.done("portions of inputs");
    }
    if tally.is_blind() {
        let reason = "of what both models give on these inputs no value is a finite number, so that nothing can be compared: repair the \
             models, or give other inputs (--images)";
        return Err(Error::Options(reason.into()));
    }
    let labelled = samples.as_ref().is_some_and(|s| s.labels().is_some());
    let names = a.outputs();
    let found = Comparison {
        comparison_version: COMPARISON_VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        source: options.images.as_ref().map_or("seeded inputs".into(), Images::what),
        inputs: count,
        largest_difference: tally.largest_difference(),
        approximation: tally.approximation(),
        outputs: names.into_iter().zip(&tally.outputs).map(|(name, output)| output.row(name)).collect(),
        top1: labelled.then(|| right.map(|right| right as f64 / count.max(1) as f64)),
        parameters: sizes.0,
        file_bytes: sizes.1,
    };
    Ok(found)
}

fn names(inputs: &[Input]) -> Vec<String> {
    inputs.iter().map(|i| i.name.clone()).collect()
}

/// For each of the second names its place among the first: by name where both have the same, else by position.
fn paired(first: &[String], second: &[String]) -> Vec<usize> {
    let by_name = second.iter().map(|name| first.iter().position(|other| other == name));
    let by_name: Option<Vec<usize>> = by_name.collect();
    by_name.filter(|_| first.len() == second.len()).unwrap_or_else(|| (0..second.len()).collect())
}

/// Refuses models that cannot be fed the same.
fn alike(a: &[Input], b: &[Input], order: &[usize]) -> Result<()> {
    let told = |inputs: &[Input]| {
        let each = inputs.iter().map(|i| format!("'{}' {:?} {:?}", i.name, i.datum_type, i.dims));
        each.collect::<Vec<String>>().join(", ")
    };
    let equal = |(y, &at): (&Input, &usize)| a[at].dims == y.dims && a[at].datum_type == y.datum_type;
    if a.len() == b.len() && b.iter().zip(order).all(equal) {
        return Ok(());
    }
    let (a, b) = (told(a), told(b));
    Err(Error::Options(format!("the models read different inputs, {a} and {b}: they cannot be compared")))
}

impl Comparison {
    /// Holds what was found against the bounds that were set.
    ///
    /// # Errors
    /// [`Error::Gate`] if one is not kept, [`Error::Options`] if one is on classes and the models give none.
    pub fn check(&self, options: &CompareOptions) -> Result<()> {
        options.gates.check(Some(self.approximation), self.approximation.agreement, BEYOND)?;
        match options.max_difference {
            Some(most) if self.largest_difference > most => Err(Error::Gate {
                measure: "the largest difference",
                found: figure(self.largest_difference),
                asked: format!("{most} or less"),
                advice: BEYOND,
            }),
            _ => Ok(()),
        }
    }

    /// The comparison as JSON, ending in a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        json(self)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Compared by tract on {} inputs: {}", self.inputs, self.source)?;
        writeln!(f, "  largest difference   {} of the largest output", figure(self.largest_difference))?;
        writeln!(f, "  difference in all    {}", self.approximation)?;
        if let Some(share) = self.approximation.agreement {
            writeln!(f, "  equal top-1 classes  {:.2} %", 100.0 * share)?;
        }
        if let Some([a, b]) = self.top1 {
            let change = 100.0 * (b - a);
            writeln!(f, "  top-1                {:.2} % → {:.2} % ({change:+.2} points)", 100.0 * a, 100.0 * b)?;
        }
        if self.outputs.len() > 1 {
            writeln!(f, "\nOutputs")?;
            for row in &self.outputs {
                let (largest, error) = (figure(row.largest_difference), figure(row.relative_error));
                writeln!(f, "  {}: largest difference {largest}, relative error {error}", row.name)?;
            }
        }
        let change = |c: &Change| format!("{} → {} ({:.2}×)", thousands(c.before), thousands(c.after), c.ratio);
        writeln!(f, "\nSizes\n  parameters  {}\n  file bytes  {}", change(&self.parameters), change(&self.file_bytes))
    }
}

/// A share: small ones by their power of ten.
fn figure(share: f64) -> String {
    if share == 0.0 || share >= 1e-3 { format!("{share:.4}") } else { format!("{share:.1e}") }
}

/// Classifies images with one model, to hold others against it.
pub(crate) struct Scorer<'s> {
    samples: &'s Samples,
    inputs: Vec<Input>,
    before: Vec<Option<usize>>,
}

impl<'s> Scorer<'s> {
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Options`] if the output is not class scores.
    pub(crate) fn new(model: &Model, samples: &'s Samples, given: &[InputShape]) -> Result<Self> {
        let inputs = inputs(model, given)?;
        let before = classified(model, samples, &inputs, "the model").map_err(|error| match error {
            Error::Unavailable { what, reason } => Error::Unavailable {
                what,
                reason: format!("{reason} (to compress without classes: leave out --images)"),
            },
            other => other,
        })?;
        if let Some(at) = before.iter().position(Option::is_none) {
            return Err(Error::Options(format!(
                "of image {at} (the first is 0) the model gives scores that are no numbers (NaN), and so no class: repair the model, or \
                 give other --images or another --preprocess"
            )));
        }
        Ok(Self { samples, inputs, before })
    }

    /// # Errors
    /// As [`Scorer::new`].
    pub(crate) fn score(&self, compressed: &Model) -> Result<Score> {
        let after = classified(compressed, self.samples, &self.inputs, "the compressed model")?;
        let share = |right: usize| right as f64 / self.samples.len() as f64;
        let top1 = |found: &[Option<usize>]| Some(share(right_classes(found, self.samples.labels()?)));
        Ok(Score {
            images: self.samples.len(),
            agreement: share(self.before.iter().zip(&after).filter(|(a, b)| a == b).count()),
            top1_before: top1(&self.before),
            top1_after: top1(&after),
        })
    }
}

/// Classifies images with the original and the written model.
///
/// # Errors
/// [`Error::Unavailable`], or [`Error::Images`] if they do not fit the model's input or its output is not class scores.
pub fn score(model: &Model, compressed: &Model, images: &Images, given: &[InputShape]) -> Result<Score> {
    let samples = images.fit(model, &shapes(&inputs(model, given)?), None)?;
    Scorer::new(model, &samples, given)?.score(compressed)
}

fn classified(model: &Model, samples: &Samples, inputs: &[Input], what: &'static str) -> Result<Vec<Option<usize>>> {
    let runner = Runner::load(model, inputs, what)?;
    let mut found = Vec::with_capacity(samples.len());
    for start in (0..samples.len()).step_by(PORTION) {
        let portion = start..(start + PORTION).min(samples.len());
        let answers = runner.run_all(&samples.feeds(portion)?)?;
        check_labels(&answers, samples.labels())?;
        found.extend(classes(&answers, "--images")?);
    }
    Ok(found)
}

/// The class of the largest score of each input, none where a score is no number; `asked` is the option that needs them.
fn classes(outputs: &[Vec<ArrayD<f32>>], asked: &str) -> Result<Vec<Option<usize>>> {
    let wrong =
        || Error::Options(format!("{asked} needs a model whose first output is class scores, [batch, classes]"));
    let each = outputs.iter().map(|o| o.first().filter(|y| is_scores(y)).map(best_classes).ok_or_else(wrong));
    Ok(each.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Refuses labels that are no class of a model.
fn check_labels(outputs: &[Vec<ArrayD<f32>>], labels: Option<&[i64]>) -> Result<()> {
    let Some(scores) = outputs.first().and_then(|o| o.first()).filter(|y| is_scores(y)) else { return Ok(()) };
    let all = scores.shape()[1];
    let wrong = |label: &i64| usize::try_from(*label).map_or(true, |class| class >= all);
    let Some((at, label)) = labels.unwrap_or_default().iter().enumerate().find(|(_, label)| wrong(label)) else {
        return Ok(());
    };
    Err(Error::Options(format!(
        "--labels says {label} of image {at} (the first is 0), but the model's {all} classes are 0 to {}: give the labels of these \
         images by this model's numbers",
        all - 1
    )))
}

fn right_classes(found: &[Option<usize>], labels: &[i64]) -> usize {
    found.iter().zip(labels).filter(|(f, l)| f.is_some_and(|f| i64::try_from(f) == Ok(**l))).count()
}

/// Inputs of standard normal values.
pub(crate) fn draw(inputs: &[Input], count: usize, seed: u64) -> Vec<Feed> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut array = |input: &Input| {
        let values: Vec<f32> = (0..input.dims.iter().product::<usize>())
            // Integers are indices or flags more often than data, and one is nearly always a valid one.
            .map(|_| if input.is_float() { StandardNormal.sample(&mut rng) } else { 1.0 })
            .collect();
        ArrayD::from_shape_vec(IxDyn(&input.dims), values).unwrap_or_default()
    };
    (0..count.max(1)).map(|_| inputs.iter().map(&mut array).collect()).collect()
}

/// Sums over pairs of outputs, from which all measures follow.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    outputs: Vec<Sums>,
    /// Answers whose first output is class scores, and those of them with the same largest score.
    answers: usize,
    same: usize,
    /// Whether some first output is not class scores.
    other: bool,
}

/// Sums over one output.
#[derive(Debug, Default, Clone)]
struct Sums {
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
    fn check(&self, a: &[Vec<ArrayD<f32>>], b: &[Vec<ArrayD<f32>>]) -> Result<()> {
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
    fn is_blind(&self) -> bool {
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

    fn row(&self, name: String) -> OutputRow {
        let relative_error = if self.signal > 0.0 { (self.noise / self.signal).sqrt() } else { self.noise.sqrt() };
        OutputRow { name, largest_difference: self.largest_difference(), relative_error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
