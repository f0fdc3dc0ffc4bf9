//! The conductor: one line a stage.

use crate::calibrate::Calibration;
use crate::error::{Error, Result};
use crate::group::{GroupOptions, find_groups};
use crate::images::Images;
use crate::onnx::Model;
use crate::plan::{Calibrated, Plan, PlanOptions, Prospects};
use crate::report::Report;
use crate::rewrite::apply;
use crate::runtime::{inputs as fixed, shapes as named};
use crate::verify::{VerifyOptions, score, verify};
use ndarray::Array4;

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
    /// Images to calibrate on, and how many of them; none decomposes the plain weights.
    pub calibration: Option<(Images, usize)>,
    /// Refit layer by layer after a calibrated decomposition.
    pub repair: bool,
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
            calibration: None,
            repair: true,
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
    /// Why there was nothing to compress, if so: the model is then the input itself.
    pub unchanged: Option<String>,
}

/// Finds groups, plans, decomposes, rewrites, verifies and scores. `progress` hears of each stage.
///
/// # Errors
/// Those of [`Plan::build`], [`apply`], [`verify`] and [`score`], and [`Error::Gate`].
pub fn compile(model: &Model, options: &Options, progress: &dyn Fn(&str)) -> Result<Compilation> {
    options.gates.validate(options)?;
    let inputs = model.inputs();
    for name in options.groups.input_shapes.iter().filter_map(|s| s.name.as_ref()) {
        if inputs.iter().all(|i| i.0 != *name) {
            let known: Vec<&str> = inputs.iter().map(|i| i.0.as_str()).collect();
            return Err(Error::Options(format!(
                "--input-shape names '{name}', but the inputs are: {}",
                known.join(", ")
            )));
        }
    }
    progress("finding repeated convolutions");
    let grouping = find_groups(model, &options.groups)?;
    progress(&format!(
        "planning: {} convolutions in {} groups, {} skipped",
        grouping.convs.len(),
        grouping.groups.len(),
        grouping.skipped.len()
    ));
    let shapes = &options.groups.input_shapes;
    let calibration = options.calibration.as_ref().map(|(images, n)| Calibration::new(model, images, *n, shapes));
    let calibration = calibration.transpose()?;
    calibration.iter().filter_map(Calibration::assumed).for_each(progress);
    let scored = match &options.images {
        // Before any work, as they may not fit.
        Some(images) => Some((images, images.fit(model, &named(&fixed(model, shapes)?), None)?)),
        None => None,
    };
    scored.iter().filter_map(|(_, samples)| samples.assumed()).for_each(progress);
    if calibration.is_some() {
        Plan::precheck(model, &grouping, &options.plan)?;
        progress("measuring what each convolution sees");
    }
    let observed = calibration.as_ref().map(|c| c.observe(model, &grouping.convs)).transpose()?;
    let watch = match (&calibration, &observed) {
        (Some(calibration), Some(observed)) => {
            progress("planning: how much each group moves the network's output");
            Some(calibration.watch(model, &grouping.convs, observed.sights.clone())?)
        }
        _ => None,
    };
    let sensitivity =
        |members: &[usize], kernels: &[Array4<f64>]| watch.as_ref().map_or(Ok(0.0), |w| w.moved(members, kernels));
    let calibrated = observed.as_ref().map(|o| Calibrated { sights: o.sights.clone(), sensitivity: &sensitivity });
    let plan = match Prospects::new(model, &grouping, &options.plan, calibrated.as_ref())
        .and_then(|p| p.plan(options.plan.policy))
    {
        Err(Error::NothingToCompress(reason)) => {
            let report = Report::untouched(model, &grouping, &options.plan);
            return Ok(Compilation { model: Some(model.clone()), report, unchanged: Some(reason) });
        }
        other => other?,
    };
    if options.dry_run {
        return Ok(Compilation { model: None, report: Report::new(model, &grouping, &plan, None), unchanged: None });
    }
    progress(&format!("decomposing {} groups", plan.groups.len()));
    let mut compiled = apply(model, &plan)?;
    if let (Some(calibration), Some(observed), true) = (&calibration, &observed, options.repair) {
        compiled = calibration.repair(model, &plan, observed, compiled, progress)?;
    }
    let mut report = Report::new(model, &grouping, &plan, Some(&compiled));
    report.calibration_images = calibration.as_ref().map(Calibration::len);
    if let Some(how) = &options.verify {
        progress("verifying with tract");
        report.verification = Some(verify(model, &plan, &compiled, how)?);
    }
    if let Some((images, samples)) = &scored {
        progress(&format!("classifying {} images, before and after", samples.len()));
        report.score = Some(score(model, &compiled.model, images, shapes)?);
    }
    if !model.round_trips() {
        let note = "the input holds fields that this version of the format does not have; they are not in the output";
        report.notes.push(note.into());
    }
    if let Some(asked) = report.ratio.filter(|asked| report.totals.parameters.ratio > 1.01 * asked) {
        report.notes.push(format!(
            "the ratio is {:.2}, more than the {asked} asked for: the next larger step of any group would be too large",
            report.totals.parameters.ratio
        ));
    }
    if let Some(change) = report.totals.file_bytes.filter(|c| c.after > c.before) {
        report.notes.push(format!("the file grew by {} bytes of node names", change.after - change.before));
    }
    options.gates.check(&report)?;
    Ok(Compilation { model: Some(compiled.model), report, unchanged: None })
}

impl Gates {
    /// Refuses, before any work, bounds that make no sense or that nothing will measure.
    fn validate(&self, options: &Options) -> Result<()> {
        if self.min_snr.is_some_and(f64::is_nan) {
            return Err(Error::Options("--min-snr must be a number".into()));
        }
        if self.min_agreement.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(Error::Options("--min-agreement must be from 0 to 1".into()));
        }
        if self.min_snr.is_some() && options.verify.is_none() {
            return Err(Error::Options("--min-snr needs verification: leave out --no-verify".into()));
        }
        if self.min_agreement.is_some() && options.verify.is_none() && options.images.is_none() {
            return Err(Error::Options("--min-agreement needs verification or --images".into()));
        }
        Ok(())
    }

    fn check(&self, report: &Report) -> Result<()> {
        let approximation = report.verification.as_ref().map(|v| v.approximation);
        if let Some(least) = self.min_snr {
            let snr = approximation.map_or(f64::INFINITY, |a| a.snr_db.unwrap_or(f64::INFINITY));
            if snr < least {
                return Err(gate("the signal-to-noise ratio", format!("{snr:.2} dB"), format!("{least} dB")));
            }
        }
        if let Some(least) = self.min_agreement {
            let noise = || approximation.and_then(|a| a.agreement);
            let missing = || Error::Options("--min-agreement needs a model whose first output is class scores".into());
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
