//! The conductor: one line a stage.

use crate::error::{Error, Result};
use crate::group::{GroupOptions, find_groups};
use crate::images::Images;
use crate::onnx::Model;
use crate::plan::{Plan, PlanOptions};
use crate::report::Report;
use crate::rewrite::apply;
use crate::verify::{VerifyOptions, score, verify};

/// Everything that one run is asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// How convolutions are found and grouped.
    pub groups: GroupOptions,
    /// Scheme and ranks.
    pub plan: PlanOptions,
    /// How the result is verified; none leaves it unverified.
    pub verify: Option<VerifyOptions>,
    /// Bounds on the approximation, below which the result is refused.
    pub gates: Gates,
    /// Images to classify before and after.
    pub images: Option<Images>,
    /// Stop after the plan.
    pub dry_run: bool,
}

impl Default for Options {
    /// [`PlanOptions::default`], verified, no gates.
    fn default() -> Self {
        Self {
            groups: GroupOptions::default(),
            plan: PlanOptions::default(),
            verify: Some(VerifyOptions::default()),
            gates: Gates::default(),
            images: None,
            dry_run: false,
        }
    }
}

/// Bounds on the approximation error.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Gates {
    /// Least signal-to-noise ratio in dB, on the seeded inputs.
    pub min_snr: Option<f64>,
    /// Least share of equal top-1 classes: on the images if there are any, else on the seeded inputs.
    pub min_agreement: Option<f64>,
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Compilation {
    /// The model to write; none for a dry run.
    pub model: Option<Model>,
    /// The facts.
    pub report: Report,
}

/// Finds groups, plans, decomposes, rewrites, verifies and scores. `progress` hears of each stage.
///
/// # Errors
/// Those of [`Plan::build`], [`apply`], [`verify`] and [`score`], and [`Error::Gate`].
pub fn compile(model: &Model, options: &Options, progress: &dyn Fn(&str)) -> Result<Compilation> {
    progress("finding repeated convolutions");
    let grouping = find_groups(model, &options.groups)?;
    progress(&format!(
        "planning: {} convolutions in {} groups, {} skipped",
        grouping.convs.len(),
        grouping.groups.len(),
        grouping.skipped.len()
    ));
    let plan = Plan::build(model, &grouping, &options.plan)?;
    if options.dry_run {
        return Ok(Compilation { model: None, report: Report::new(model, &grouping, &plan, None) });
    }
    progress(&format!("decomposing {} groups", plan.groups.len()));
    let compiled = apply(model, &plan)?;
    let mut report = Report::new(model, &grouping, &plan, Some(&compiled));
    if let Some(how) = &options.verify {
        progress("verifying with tract");
        report.verification = Some(verify(model, &plan, &compiled, how)?);
    }
    if let Some(images) = &options.images {
        progress(&format!("classifying {} images, before and after", images.len()));
        report.score = Some(score(model, &compiled.model, images, &options.groups.input_shapes)?);
    }
    if !model.round_trips() {
        let note = "the input holds fields that this version of the format does not have; they are not in the output";
        report.notes.push(note.into());
    }
    if let Some(change) = report.totals.file_bytes.filter(|c| c.after > c.before) {
        report.notes.push(format!("the file grew by {} bytes of node names", change.after - change.before));
    }
    options.gates.check(&report)?;
    Ok(Compilation { model: Some(compiled.model), report })
}

impl Gates {
    fn check(&self, report: &Report) -> Result<()> {
        let approximation = report.verification.as_ref().map(|v| v.approximation);
        if let Some(least) = self.min_snr {
            let missing = || Error::Options("--min-snr needs verification: leave out --no-verify".into());
            let snr = approximation.ok_or_else(missing)?.snr_db.unwrap_or(f64::INFINITY);
            // A NaN ratio is short of everything.
            if snr.is_nan() || snr < least {
                return Err(gate("the signal-to-noise ratio", format!("{snr:.2} dB"), format!("{least} dB")));
            }
        }
        if let Some(least) = self.min_agreement {
            let noise = || approximation.and_then(|a| a.agreement);
            let missing = || Error::Options("--min-agreement needs a classifier, and --images or verification".into());
            let share = report.score.map(|s| s.agreement).or_else(noise).ok_or_else(missing)?;
            if share < least {
                return Err(gate("the top-1 agreement", format!("{share:.4}"), format!("{least}")));
            }
        }
        Ok(())
    }
}

fn gate(measure: &'static str, found: String, asked: String) -> Error {
    Error::Gate { measure, found, asked }
}
