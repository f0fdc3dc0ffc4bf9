//! Two questions, never mixed. *Rewrite error*: does the written model compute what was decided? It must, to rounding, at any
//! rank. *Approximation error*: how far is it from the original? That is reported, and a gate only if the user sets one.

use crate::compare::{Tally, VerifyOptions, draw};
use crate::error::{Error, Result};
use crate::onnx::Model;
use crate::plan::Plan;
use crate::report::{Approximation, Parts, Verification};
use crate::rewrite::{Compiled, reference, reference_of};
#[cfg(feature = "tune")]
use crate::runtime::Feed;
use crate::runtime::{Input, Runner, inputs};
use ndarray::ArrayD;

/// Largest rewrite error that rounding explains: f32 products summed in another order through a hundred layers
/// stay below 1e-4 of the largest output, a wrong pad or stride is a thousand times that.
pub const REWRITE_TOLERANCE: f64 = 5e-4;

/// Runs the original, its reference and the written model on seeded inputs of standard normal values.
///
/// # Errors
/// [`Error::Unavailable`] if tract cannot run one of them, [`Error::Options`] if an input's shape is open. A rewrite
/// error beyond [`REWRITE_TOLERANCE`] is [`Error::RewriteWrong`], but for what follows.
///
/// Where tract cannot run the original, or it is larger than [`VerifyOptions::whole`], each decomposed convolution is run by itself instead, and
/// [`Verification::parts`] says so. Where the models as a whole differ by more, and an operator behind a decomposed convolution rounds,
/// compares or chooses, which makes a step of the last bit, they are held against each other up to the first such operators, and each
/// convolution by itself.
pub fn verify(model: &Model, plan: &Plan, compiled: &Compiled, options: &VerifyOptions) -> Result<Verification> {
    if model.is_larger_in_f32(options.whole) {
        let reason = too_large(options.whole);
        return parts(model, plan, compiled, options, "the model".into(), reason)?.judged();
    }
    match whole(model, plan, compiled, options) {
        Err(Error::Unavailable { what, reason }) => parts(model, plan, compiled, options, what, reason)?.judged(),
        Ok(whole) if whole.rewrite_error > REWRITE_TOLERANCE => {
            stepped(model, plan, compiled, options, whole)?.judged()
        }
        other => other,
    }
}

/// Why a model beyond this size is not run as a whole.
pub(crate) fn too_large(whole: u64) -> String {
    let size = whole as f64 / f64::from(1 << 20);
    format!("it takes more than {size:.0} MiB in float32, and to run it as a whole several times that")
}

/// What is left of a difference between the models as a whole without operators that make a step of the last bit; the same if there are
/// none, or not all can be run.
fn stepped(
    model: &Model,
    plan: &Plan,
    compiled: &Compiled,
    options: &VerifyOptions,
    whole: Verification,
) -> Result<Verification> {
    let Some(steps) = model.steps_behind(&compiled.changed(plan)) else { return Ok(whole) };
    let before: Vec<&str> = steps.before.iter().map(String::as_str).collect();
    let given = inputs(model, &options.input_shapes)?;
    let feeds = draw(&given, options.inputs, options.seed);
    let outputs = |model: &Model| {
        let part = model.stretch(&|_| None, &before)?;
        let read: Vec<String> = part.inputs().into_iter().map(|input| input.0).collect();
        let of_part = |all: &Input| read.contains(&all.name);
        let inputs: Vec<Input> = given.iter().filter(|input| of_part(input)).cloned().collect();
        let feeds = feeds.iter().map(|feed| {
            let each = given.iter().zip(feed).filter(|(input, _)| of_part(input));
            each.map(|(_, array)| array.clone()).collect()
        });
        Runner::load(&part, &inputs, "the model before what rounds")?.run_all(&feeds.collect::<Vec<Vec<_>>>())
    };
    let decided = outputs(&reference(model, plan, compiled)?);
    let (Ok(decided), Ok(written)) = (decided, outputs(&compiled.model)) else { return Ok(whole) };
    let rewrite_error = tally(&decided, &written).largest_difference();
    let operator = &steps.operator;
    let reason = format!(
        "its {operator} makes a whole step of the last bit, and so its outputs differ by {:.1e} of the largest",
        whole.rewrite_error
    );
    let Ok(Verification { rewrite_error: of_parts, parts: Some(parts), .. }) =
        parts(model, plan, compiled, options, "the model".into(), reason)
    else {
        return Ok(whole);
    };
    if !parts.unchecked.is_empty() {
        return Ok(whole);
    }
    let parts = Parts { whole_difference: Some(whole.rewrite_error), ..parts };
    Ok(Verification { rewrite_error: rewrite_error.max(of_parts), parts: Some(parts), ..whole })
}

fn whole(model: &Model, plan: &Plan, compiled: &Compiled, options: &VerifyOptions) -> Result<Verification> {
    let inputs = inputs(model, &options.input_shapes)?;
    let feeds = draw(&inputs, options.inputs, options.seed);
    // One model at a time, so that only one is in memory.
    let outputs = |model: &Model, what| Runner::load(model, &inputs, what)?.run_all(&feeds);
    let original = outputs(model, "the model")?;
    let decided = outputs(&reference(model, plan, compiled)?, "the reference")?;
    let written = outputs(&compiled.model, "the compressed model")?;
    let between = tally(&original, &written);
    if between.is_silent() {
        return Err(blind());
    }
    Ok(found(feeds.len(), tally(&decided, &written).largest_difference(), between.approximation(), None))
}

/// Runs a tuned model against what the trainable view computes for it, and against the original.
///
/// # Errors
/// As [`verify`], but without parts.
#[cfg(feature = "tune")]
pub(crate) fn proved(
    original: &Model,
    tuned: &Model,
    computed: &dyn Fn(&Feed) -> Vec<ArrayD<f32>>,
    options: &VerifyOptions,
) -> Result<Verification> {
    let inputs = inputs(original, &options.input_shapes)?;
    let feeds = draw(&inputs, options.inputs, options.seed);
    let outputs = |model: &Model, what| Runner::load(model, &inputs, what)?.run_all(&feeds);
    let (original, written) = (outputs(original, "the model")?, outputs(tuned, "the tuned model")?);
    let decided: Vec<Vec<ArrayD<f32>>> = feeds.iter().map(computed).collect();
    let between = tally(&original, &written);
    if between.is_silent() {
        return Err(blind());
    }
    found(feeds.len(), tally(&decided, &written).largest_difference(), between.approximation(), None).judged()
}

/// What a model is not verified by.
fn blind() -> Error {
    let reason = "on seeded inputs it gives nothing but zeros and what is no finite number";
    Error::Unavailable { what: "the model so that it shows anything".into(), reason: reason.into() }
}

/// How far apart outputs on the same inputs are.
fn tally(a: &[Vec<ArrayD<f32>>], b: &[Vec<ArrayD<f32>>]) -> Tally {
    let mut tally = Tally::default();
    tally.add(a, b);
    tally
}

fn found(inputs: usize, rewrite_error: f64, approximation: Approximation, parts: Option<Parts>) -> Verification {
    Verification { inputs, parts, rewrite_error, rewrite_tolerance: REWRITE_TOLERANCE, approximation }
}

impl Verification {
    /// What was found, unless the rewrite was wrong.
    fn judged(self) -> Result<Self> {
        if self.rewrite_error > REWRITE_TOLERANCE {
            return Err(Error::RewriteWrong { error: self.rewrite_error, tolerance: REWRITE_TOLERANCE });
        }
        Ok(self)
    }
}

/// Each decomposed convolution by itself: of the original, of the reference, and what the written model has instead.
fn parts(
    model: &Model,
    plan: &Plan,
    compiled: &Compiled,
    options: &VerifyOptions,
    what: String,
    reason: String,
) -> Result<Verification> {
    let (mut approximation, mut largest) = (Tally::default(), 0.0f64);
    let (mut checked, mut unchecked) = (0, Vec::new());
    for &member in plan.groups.iter().flat_map(|g| &g.members) {
        // One kernel at a time, so that no second copy of all is in memory.
        let reference = reference_of(model, plan, compiled, &|m| m == member)?;
        for conv in plan.convs[member].all() {
            let dims = conv.sample_shape();
            let known = |name: &str| (name == conv.input).then(|| dims.clone());
            let input = [Input::floats(conv.input.clone(), dims.clone())];
            let feeds = draw(&input, options.inputs, options.seed);
            let run = |model: &Model| {
                Runner::load(&model.stretch(&known, &[&conv.output])?, &input, "a part of the model")?.run_all(&feeds)
            };
            match (run(model), run(&reference), run(&compiled.model)) {
                (Ok(original), Ok(decided), Ok(written)) => {
                    approximation.add(&original, &written);
                    largest = largest.max(tally(&decided, &written).largest_difference());
                    checked += 1;
                }
                _ => unchecked.push(conv.name.clone()),
            }
        }
    }
    if checked == 0 || approximation.is_silent() {
        return Err(Error::Unavailable { what, reason });
    }
    let approximation = Approximation { agreement: None, ..approximation.approximation() };
    Ok(found(
        options.inputs,
        largest,
        approximation,
        Some(Parts { checked, unchecked, reason, whole_difference: None }),
    ))
}
