//! How far two models are apart: their outputs for the same inputs, drawn by chance or the user's own.

mod score;
mod tally;

use crate::error::{Error, Result};
use crate::gates::Gates;
use crate::images::{Images, Samples};
use crate::onnx::{InputShape, Model};
use crate::progress::{Listener, Progress};
use crate::report::{Approximation, Change, json, thousands};
use crate::runtime::{Feed, Input, Runner, inputs, shapes};
use ndarray::{ArrayD, IxDyn};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;
pub(crate) use score::Scorer;
pub use score::score;
use score::{check_labels, classes, right_classes};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
pub(crate) use tally::Tally;

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
/// [`Error::NotFinite`] if a parameter of one is no number, [`Error::Unavailable`] if tract cannot run one. Bounds are not checked: see [`Comparison::check`].
pub fn compare(a: &Model, b: &Model, options: &CompareOptions, progress: &Listener<'_>) -> Result<Comparison> {
    let progress = Progress::new(progress);
    if options.max_difference.is_some_and(|most| most.is_nan() || most < 0.0) {
        return Err(Error::Options("--max-difference must be a number, 0 or more".into()));
    }
    options.gates.sound()?;
    a.check_numbers()?;
    b.check_numbers()?;
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
