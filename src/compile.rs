//! The conductor: one line a stage.

use crate::calibrate::{Cache, Calibration, CalibrationInputs, HeldOut};
use crate::error::{Error, Result};
use crate::group::{GroupOptions, Grouping, find_groups};
use crate::images::Images;
use crate::onnx::Model;
use crate::plan::{Calibrated, LEAST_RATIO, Plan, PlanOptions, Prospects, RankPolicy, Trials};
use crate::progress::Progress;
use crate::report::{AgreementRow, CalibrationRow, Report};
use crate::rewrite::{Compiled, apply};
use crate::runtime::{inputs as fixed, shapes as named};
use crate::search::{Built, largest_ratio};
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
    /// What to calibrate on; none decomposes the plain weights.
    pub calibration: Option<CalibrationInputs>,
    /// Refit layer by layer after a calibrated decomposition.
    pub repair: bool,
    /// Instead of a ratio: the largest at which what is kept on held-out calibration samples falls by at most this share. Equal
    /// top-1 classes or, of other outputs, the share of their energy that is not error.
    pub max_drop: Option<f64>,
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
            max_drop: None,
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

/// Finds groups, calibrates, plans, decomposes, repairs, rewrites, verifies and scores. `progress` hears of each stage.
///
/// # Errors
/// Those of [`Plan::build`], [`apply`], [`verify`] and [`score`], and [`Error::Gate`].
pub fn compile(model: &Model, options: &Options, progress: &(dyn Fn(&str) + Sync)) -> Result<Compilation> {
    let progress = Progress::new(progress);
    options.validate(model)?;
    progress.stage("matching", "finding repeated convolutions");
    let grouping = find_groups(model, &options.groups)?;
    progress.say(&format!(
        "{} convolutions in {} groups, {} skipped",
        grouping.convs.len(),
        grouping.groups.len(),
        grouping.skipped.len()
    ));
    let shapes = &options.groups.input_shapes;
    let scored = match &options.images {
        // Before any work, as they may not fit.
        Some(images) => Some((images, images.fit(model, &named(&fixed(model, shapes)?), None)?)),
        None => None,
    };
    scored.iter().filter_map(|(_, samples)| samples.assumed()).for_each(|line| progress.say(line));
    let unchanged = |reason| {
        let report = Report::untouched(model, &grouping, &options.plan);
        Ok(Compilation { model: Some(model.clone()), report, unchanged: Some(reason) })
    };
    let made = match make(model, &grouping, options, &progress) {
        Err(Error::NothingToCompress(reason)) => return unchanged(reason),
        other => other?,
    };
    let mut report = Report::new(model, &grouping, &made.plan, made.compiled.as_ref());
    report.calibration = made.calibration;
    report.agreement_curve = made.curve;
    let Some(compiled) = made.compiled else {
        report.timings = progress.timings();
        return Ok(Compilation { model: None, report, unchanged: None });
    };
    if let Some(how) = &options.verify {
        progress.stage("verifying", "verifying with tract");
        report.verification = Some(verify(model, &made.plan, &compiled, how)?);
    }
    if let Some((images, samples)) = &scored {
        progress.stage("classifying", &format!("classifying {} images, before and after", samples.len()));
        report.score = Some(score(model, &compiled.model, images, shapes)?);
    }
    report.timings = progress.timings();
    if !model.round_trips() {
        let note = "the input holds fields that this version of the format does not have; they are not in the output";
        report.notes.push(note.into());
    }
    if let Some(asked) = report.ratio.filter(|asked| report.totals.parameters.ratio > 1.01 * asked) {
        report.notes.push(format!(
            "the ratio is {:.2}, more than the {asked:.2} asked for: the next larger step of any group would be too large or \
             take more multiply-accumulates than the original",
            report.totals.parameters.ratio
        ));
    }
    if let Some(change) = report.totals.file_bytes.filter(|c| c.after > c.before) {
        report.notes.push(format!("the file grew by {} bytes of node names", change.after - change.before));
    }
    options.gates.check(&report)?;
    Ok(Compilation { model: Some(compiled.model), report, unchanged: None })
}

/// A plan and, unless it is a dry run, what was made of it.
struct Made {
    plan: Plan,
    compiled: Option<Compiled>,
    calibration: Option<CalibrationRow>,
    curve: Vec<AgreementRow>,
}

/// Calibrates if asked to, plans and decomposes.
fn make(model: &Model, grouping: &Grouping, options: &Options, progress: &Progress<'_>) -> Result<Made> {
    let asked = match options.max_drop {
        // Every ratio from here on may be asked for.
        Some(_) => PlanOptions { policy: RankPolicy::Ratio(LEAST_RATIO), ..options.plan },
        None => options.plan,
    };
    // Refusals that need no calibration come before it.
    Plan::precheck(model, grouping, &asked, options.calibration.is_some())?;
    let Some(calibrate_on) = &options.calibration else {
        progress.stage("planning", "planning by the plain weights");
        let plan = Prospects::new(model, grouping, &asked, None)?.plan(asked.policy)?;
        let compiled = if options.dry_run {
            None
        } else {
            progress.stage("decomposing", &format!("decomposing {} groups", plan.groups.len()));
            Some(apply(model, &plan)?)
        };
        return Ok(Made { plan, compiled, calibration: None, curve: Vec::new() });
    };
    let mut calibration = Calibration::new(model, calibrate_on, &options.groups.input_shapes)?;
    calibration.assumed().into_iter().for_each(|line| progress.say(line));
    let held_out = match options.max_drop {
        Some(_) => Some(HeldOut::new(model, &mut calibration)?),
        None => None,
    };
    let row = CalibrationRow {
        samples: calibration.samples(),
        source: calibrate_on.images.what(),
        mirrored: calibration.is_mirrored(),
    };
    progress.stage("observing", &format!("observing what each convolution sees of {}", row.source));
    let convs = &grouping.convs;
    let cache = calibrate_on.cache.as_ref().map(|folder| Cache::new(folder, model, convs, &calibration)).transpose()?;
    let observe = || calibration.observe(model, convs, progress);
    let observed = match &cache {
        Some(cache) => cache.observations(convs, progress, observe)?,
        None => observe()?,
    };
    progress.stage("planning", "planning: how much each group moves the network's output");
    let prospects = {
        let watch = calibration.watch(model, &grouping.convs, observed.sights.clone(), progress)?;
        let sensitivity = |members: &[usize], kernels: &[Array4<f64>]| watch.moved(members, kernels);
        let trials = cache.as_ref().map_or_else(Trials::default, Cache::trials);
        let calibrated = Calibrated { sights: observed.sights.clone(), sensitivity: &sensitivity, trials: &trials };
        let prospects = Prospects::new(model, grouping, &asked, Some(&calibrated))?;
        cache.iter().for_each(|cache| cache.keep_trials(&trials, progress));
        prospects
    };
    let build = |plan: Plan| -> Result<Built> {
        if options.dry_run && options.max_drop.is_none() {
            return Ok((plan, None));
        }
        progress.stage("decomposing", &format!("decomposing {} groups", plan.groups.len()));
        let mut compiled = apply(model, &plan)?;
        if options.repair {
            progress.stage("repairing", "refitting layer by layer");
            compiled = calibration.repair(model, &plan, &observed, compiled, progress)?;
        }
        Ok((plan, Some(compiled)))
    };
    let (curve, (plan, compiled)) = match (options.max_drop, &held_out) {
        (Some(drop), Some(held_out)) => {
            let build = |policy: RankPolicy| build(prospects.plan(policy)?);
            largest_ratio(drop, held_out, prospects.largest_ratio(), &build, progress)?
        }
        _ => {
            let plan = prospects.plan(asked.policy)?;
            // What was not chosen is not needed any more, and takes memory.
            drop(prospects);
            (Vec::new(), build(plan)?)
        }
    };
    Ok(Made { plan, compiled: compiled.filter(|_| !options.dry_run), calibration: Some(row), curve })
}

impl Options {
    /// Refuses, before any work, what makes no sense.
    fn validate(&self, model: &Model) -> Result<()> {
        self.gates.validate(self)?;
        if let Some(drop) = self.max_drop {
            if !(drop > 0.0 && drop < 1.0) {
                return Err(Error::Options(format!(
                    "--max-drop must be above 0 and below 100 %, not {:.2} %",
                    100.0 * drop
                )));
            }
            if self.calibration.is_none() {
                return Err(Error::Options("--max-drop needs calibration: leave out --calib none".into()));
            }
        }
        let inputs = model.inputs();
        for name in self.groups.input_shapes.iter().filter_map(|s| s.name.as_ref()) {
            if inputs.iter().all(|i| i.0 != *name) {
                let known: Vec<&str> = inputs.iter().map(|i| i.0.as_str()).collect();
                let known = known.join(", ");
                return Err(Error::Options(format!("--input-shape names '{name}', but the inputs are: {known}")));
            }
        }
        Ok(())
    }
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
