//! Two questions, never mixed. *Rewrite error*: does the written model compute what was decided? It must, to rounding, at any
//! rank. *Approximation error*: how far is it from the original? That is reported, and a gate only if the user sets one.

use crate::compare::{Tally, VerifyOptions, draw};
use crate::error::{Error, Result};
use crate::onnx::Model;
use crate::plan::Plan;
use crate::report::Verification;
use crate::rewrite::{Compiled, reference};
use crate::runtime::{Runner, inputs};

/// Largest rewrite error that rounding explains: f32 products summed in another order through a hundred layers
/// stay below 1e-4 of the largest output, a wrong pad or stride is a thousand times that.
pub const REWRITE_TOLERANCE: f64 = 5e-4;

/// Runs the original, its reference and the written model on seeded inputs of standard normal values.
///
/// # Errors
/// [`Error::Unavailable`] if tract cannot run one of them, [`Error::Options`] if an input's shape is open. A rewrite
/// error beyond [`REWRITE_TOLERANCE`] is [`Error::RewriteWrong`].
pub fn verify(model: &Model, plan: &Plan, compiled: &Compiled, options: &VerifyOptions) -> Result<Verification> {
    let inputs = inputs(model, &options.input_shapes)?;
    let feeds = draw(&inputs, options.inputs, options.seed);
    // One model at a time, so that only one is in memory.
    let outputs = |model: &Model, what| Runner::load(model, &inputs, what)?.run_all(&feeds);
    let original = outputs(model, "the model")?;
    let decided = outputs(&reference(model, plan, compiled)?, "the reference")?;
    let written = outputs(&compiled.model, "the compressed model")?;
    let tally = |a: &[_], b: &[_]| {
        let mut tally = Tally::default();
        tally.add(a, b);
        tally
    };
    let rewrite_error = tally(&decided, &written).largest_difference();
    if rewrite_error > REWRITE_TOLERANCE {
        return Err(Error::RewriteWrong { error: rewrite_error, tolerance: REWRITE_TOLERANCE });
    }
    Ok(Verification {
        inputs: feeds.len(),
        rewrite_error,
        rewrite_tolerance: REWRITE_TOLERANCE,
        approximation: tally(&original, &written).approximation(),
    })
}
