//! The conductor: one line a stage.

use crate::calibrate::CalibrationInputs;
use crate::compare::{Scorer, draw};
use crate::error::{Error, Result};
use crate::group::{GroupOptions, find_groups};
use crate::images::{Images, Samples};
use crate::make::make;
use crate::onnx::Model;
use crate::picture::{CurvePoint, Diagram, Pictures, Spectrum, trace};
use crate::plan::{Circumstances, PlanFile, PlanOptions, Replay};
use crate::progress::Progress;
use crate::report::{Approximation, Change, Report};
use crate::rewrite::narrowed;
use crate::runtime::{Feed, inputs as fixed, shapes as named};
use crate::verify::{VerifyOptions, verify};

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
    /// Decisions taken before, instead of new ones. The other options should be those of its file.
    pub replay: Option<Replay>,
    /// Give the plan as the text of a file, too.
    pub plan_text: bool,
    /// Gather what a report in pictures shows.
    pub pictures: bool,
    /// For its curve, other ratios to make and to classify the images at.
    pub curve: Vec<f64>,
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
            replay: None,
            plan_text: false,
            pictures: false,
            curve: Vec::new(),
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
    /// The decisions as the text of a file, if that was asked for and there were any.
    pub plan: Option<String>,
    /// What a report in pictures shows, if that was asked for; empty where nothing was done.
    pub pictures: Option<Pictures>,
    /// Why there was nothing to compress, if so: the model is then the input itself.
    pub unchanged: Option<String>,
}

/// Finds groups, calibrates, plans, decomposes, repairs, rewrites, verifies and scores. `progress` hears of each stage.
///
/// # Errors
/// Those of [`Plan::build`](crate::Plan::build), [`apply`](crate::apply), [`verify`] and [`score`](crate::score), and
/// [`Error::Gate`]; of a replay [`Error::Plan`].
pub fn compile(original: &Model, options: &Options, progress: &(dyn Fn(&str) + Sync)) -> Result<Compilation> {
    let progress = Progress::new(progress);
    options.validate(original)?;
    // Decisions, fits and runs are in float32, whatever the kernels are stored in.
    let wide = original.in_f32();
    let model = wide.as_ref().unwrap_or(original);
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
        Some(images) => Some(images.fit(model, &named(&fixed(model, shapes)?), None)?),
        None => None,
    };
    scored.iter().filter_map(|samples| samples.assumed()).for_each(|line| progress.say(line));
    let unchanged = |reason| {
        let report = Report::untouched(model, &grouping, &options.plan);
        let pictures = options.pictures.then(Pictures::default);
        Ok(Compilation { model: Some(original.clone()), report, plan: None, pictures, unchanged: Some(reason) })
    };
    let scorer = match &scored {
        Some(samples) if !options.dry_run => {
            progress.stage("classifying", &format!("classifying {} images", samples.len()));
            Some(Scorer::new(model, samples, shapes)?)
        }
        _ => None,
    };
    let made = match make(model, &grouping, options, scorer.as_ref(), &progress) {
        Err(Error::NothingToCompress(reason)) => return unchanged(reason),
        other => other?,
    };
    // The model to write and, in float32, the one that is run.
    let (written, compiled) = match (made.compiled, original.kernel_precision()) {
        (Some(compiled), Some(precision)) if wide.is_some() => {
            let (written, compiled) = narrowed(original, model, &made.plan, compiled, precision)?;
            (Some(written), Some(compiled))
        }
        (compiled, _) => (compiled.as_ref().map(|c| c.model.clone()), compiled),
    };
    let mut report = Report::new(model, &grouping, &made.plan, compiled.as_ref());
    report.totals.file_bytes = written.as_ref().map(|w| Change::new(original.file_bytes(), w.file_bytes()));
    report.calibration = made.calibration;
    report.agreement_curve = made.kept;
    if let Some(replay) = &options.replay {
        report.plan = Some(replay.file.path().display().to_string());
        report.notes = replay.notes(original, made.samples.as_deref());
    }
    if let (Some(_), Some(precision)) = (&wide, original.kernel_precision()) {
        let name = precision.data_type().as_str_name();
        report.notes.push(format!("kernels are {name}: the factors are written so, and the models were run in FLOAT"));
    }
    let plan = options.plan_text.then(|| {
        let with = Circumstances {
            groups: &options.groups,
            calibration: options.calibration.as_ref(),
            samples: made.samples,
            held_out: options.holds_out(),
            repair: options.repair,
        };
        PlanFile::text(original, &made.plan, &with)
    });
    let mut pictures = options.pictures.then(|| Pictures {
        spectra: made.plan.groups.iter().map(Spectrum::of).collect(),
        curve: made.curve,
        ..Pictures::default()
    });
    let Some(compiled) = compiled else {
        report.timings = progress.timings();
        return Ok(Compilation { model: None, report, plan, pictures, unchanged: None });
    };
    if let Some(how) = &options.verify {
        progress.stage("verifying", "verifying with tract");
        report.verification = Some(verify(model, &made.plan, &compiled, how)?);
    }
    if let Some(scorer) = &scorer {
        progress.stage("classifying", "classifying the images again");
        report.score = Some(scorer.score(&compiled.model)?);
    }
    if let Some(pictures) = &mut pictures {
        progress.stage("drawing", "following the error through the network");
        pictures.diagrams = Diagram::all(model, &grouping, &made.plan, &compiled);
        let traced = options
            .traced(model, scored.as_ref())
            .and_then(|(feeds, what)| Ok((trace(model, &made.plan, &compiled.model, &feeds, shapes)?, what)));
        match traced {
            Ok((rows, what)) => (pictures.trace, pictures.traced) = (rows, what),
            // The page is no less without it.
            Err(reason) => report.notes.push(format!("the error was not followed through the network: {reason}")),
        }
        let ratio = report.totals.parameters.ratio;
        pictures.curve.extend(report.score.map(|score| CurvePoint { ratio, score }));
        pictures.curve.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    }
    report.timings = progress.timings();
    remark(original, options, &mut report);
    let approximation = report.verification.as_ref().map(|v| v.approximation);
    let agreement = report.score.map(|s| s.agreement).or(approximation.and_then(|a| a.agreement));
    options.gates.check(approximation, agreement, SMALLER)?;
    Ok(Compilation { model: written, report, plan, pictures, unchanged: None })
}

/// What a reader of the report should know of the result.
fn remark(original: &Model, options: &Options, report: &mut Report) {
    if !original.round_trips() {
        let note = "the input holds fields that this version of the format does not have; they are not in the output";
        report.notes.push(note.into());
    }
    let larger = report.groups.iter().filter(|g| g.parameters_after > g.parameters_before);
    let larger: Vec<&str> = larger.map(|g| g.group.as_str()).collect();
    if !larger.is_empty() {
        report.notes.push(format!("by the plan, groups take more parameters than they had: {}", larger.join(", ")));
    }
    let ratio = report.totals.parameters.ratio;
    if let Some(asked) = report.ratio.filter(|asked| options.replay.is_some() && (ratio / asked - 1.0).abs() > 0.05) {
        report.notes.push(format!("by the plan the ratio is {ratio:.2}, not the {asked:.2} that its options speak of"));
    }
    let decided_now = || options.replay.is_none();
    if let Some(asked) = report.ratio.filter(|asked| report.totals.parameters.ratio > 1.01 * asked && decided_now()) {
        report.notes.push(format!(
            "the ratio is {:.2}, more than the {asked:.2} asked for: the next larger step of any group would be too large or \
             take more multiply-accumulates than the original",
            report.totals.parameters.ratio
        ));
    }
    if let Some(change) = report.totals.file_bytes.filter(|c| c.after > c.before) {
        report.notes.push(format!("the file grew by {} bytes of node names", change.after - change.before));
    }
}

/// Inputs on which the error is followed through the network.
const TRACED: usize = 8;

impl Options {
    /// Some inputs on which the error is followed, and what they are: of the images, of what was calibrated on, or drawn as for verification.
    fn traced(&self, model: &Model, images: Option<&Samples>) -> Result<(Vec<Feed>, String)> {
        let few = |samples: &Samples| samples.feeds(0..samples.len().min(TRACED));
        let inputs = fixed(model, &self.groups.input_shapes)?;
        Ok(match (images, &self.calibration) {
            (Some(images), _) => (few(images)?, "the first images".into()),
            (None, Some(on)) => {
                (few(&on.images.fit(model, &named(&inputs), Some(TRACED))?)?, "the first calibration samples".into())
            }
            (None, None) => (draw(&inputs, TRACED, self.verify.as_ref().map_or(0, |v| v.seed)), "seeded noise".into()),
        })
    }

    /// Whether a part of the calibration samples is held out: to search by, or because a replayed plan's were.
    pub(crate) fn holds_out(&self) -> bool {
        let planned = || self.replay.as_ref()?.file.calibration();
        self.max_drop.is_some() || planned().is_some_and(|c| c.held_out)
    }

    /// Refuses, before any work, what makes no sense.
    fn validate(&self, model: &Model) -> Result<()> {
        self.gates.validate(self)?;
        if self.replay.is_some() && self.max_drop.is_some() {
            return Err(Error::Options("a plan is replayed as it is: leave out --max-drop".into()));
        }
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
        model.check_shape_names(&self.groups.input_shapes)
    }
}

/// What follows from a gate that is not met.
pub(crate) const SMALLER: &str = "nothing was written; ask for a smaller ratio";

impl Gates {
    /// Refuses, before any work, bounds that are none.
    pub(crate) fn sound(&self) -> Result<()> {
        if self.min_snr.is_some_and(f64::is_nan) {
            return Err(Error::Options("--min-snr must be a number".into()));
        }
        if self.min_agreement.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(Error::Options("--min-agreement must be from 0 to 1".into()));
        }
        Ok(())
    }

    /// Refuses, before any work, bounds that make no sense or that nothing will measure.
    fn validate(&self, options: &Options) -> Result<()> {
        self.sound()?;
        if self.min_snr.is_some() && options.verify.is_none() {
            return Err(Error::Options("--min-snr needs verification: leave out --no-verify".into()));
        }
        if self.min_agreement.is_some() && options.verify.is_none() && options.images.is_none() {
            return Err(Error::Options("--min-agreement needs verification or --images".into()));
        }
        Ok(())
    }

    /// Holds what was measured against the bounds; `agreement` is the share of equal top-1 classes, where there is one.
    pub(crate) fn check(
        &self,
        approximation: Option<Approximation>,
        agreement: Option<f64>,
        advice: &'static str,
    ) -> Result<()> {
        let gate = |measure: &'static str, found: String, asked: String| Error::Gate { measure, found, asked, advice };
        if let Some(least) = self.min_snr {
            if let Some(broken) = approximation.map(|a| a.broken).filter(|broken| *broken > 0) {
                let found = format!("not defined, as {broken} values are finite in one and not in the other");
                return Err(gate("the signal-to-noise ratio", found, format!("{least} dB")));
            }
            let snr = approximation.map_or(f64::INFINITY, |a| a.snr_db.unwrap_or(f64::INFINITY));
            if snr < least {
                return Err(gate("the signal-to-noise ratio", format!("{snr:.2} dB"), format!("{least} dB")));
            }
        }
        if let Some(least) = self.min_agreement {
            let missing = || Error::Options("--min-agreement needs a model whose first output is class scores".into());
            let share = agreement.ok_or_else(missing)?;
            if share < least {
                return Err(gate("the top-1 agreement", format!("{share:.4}"), format!("{least}")));
            }
        }
        Ok(())
    }
}
