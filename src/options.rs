//! What a run is asked to do.

use crate::calibrate::CalibrationInputs;
use crate::compare::VerifyOptions;
use crate::error::{Error, Result};
use crate::gates::{Gates, SMALLER};
use crate::group::GroupOptions;
use crate::images::Images;
use crate::onnx::Model;
use crate::plan::{self, PlanOptions, PlannedCalibration, Replay};
use crate::report::Report;
#[cfg(feature = "tune")]
use {
    crate::plan::RankPolicy,
    crate::tune::{Budget, TuneOptions},
};

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
    /// Train what was decomposed to do what the original does.
    #[cfg(feature = "tune")]
    pub tuning: Option<Tutoring>,
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

/// Tuning as a part of a run.
#[cfg(feature = "tune")]
#[derive(Debug, Clone)]
pub struct Tutoring {
    /// What is shown: all of them, however few are calibrated on.
    pub images: Vec<Images>,
    /// How.
    pub options: TuneOptions,
    /// In how many steps the model is made smaller, each with its share of the time; none leaves that to the ratio.
    pub steps: Option<u32>,
}

/// From this ratio on a model is made smaller in several steps, if nobody says how many, and how many these are.
#[cfg(feature = "tune")]
const STEPPED: (f64, u32) = (10.0, 2);

/// There are fewer steps where each would make the model smaller by less than this.
#[cfg(feature = "tune")]
const LEAST_STEP: f64 = 1.25;

#[cfg(feature = "tune")]
impl Tutoring {
    /// What is done in one of several steps, counted from 1.
    pub(crate) fn of_step(&self, step: u32, steps: u32) -> Self {
        let mut own = self.clone();
        own.options.budget = match self.options.budget {
            Budget::Time(time) => Budget::Time(time / steps),
            Budget::Epochs(epochs) => Budget::Epochs(epochs / f64::from(steps)),
        };
        if step < steps {
            // Each its own file, or the last would be taken for another run's.
            own.options.resume = self.options.resume.as_ref().map(|path| {
                let mut name = path.clone().into_os_string();
                name.push(format!(".{step}"));
                name.into()
            });
        }
        own
    }
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
            #[cfg(feature = "tune")]
            tuning: None,
            images: None,
            replay: None,
            plan_text: false,
            pictures: false,
            curve: Vec::new(),
            dry_run: false,
        }
    }
}

impl Options {
    /// Whether a part of the calibration samples is held out: to search by, or because a replayed plan's were.
    pub(crate) fn holds_out(&self) -> bool {
        let planned = || self.replay.as_ref()?.file.calibration();
        self.max_drop.is_some() || planned().is_some_and(|c| c.held_out)
    }

    /// Whether the plain weights decide where calibration fails.
    pub(crate) fn gives_way(&self) -> bool {
        self.max_drop.is_none() && self.calibration.as_ref().is_some_and(|c| c.optional)
    }

    /// Whether a model, in float32, is too large for a calibration that nobody asked for.
    pub(crate) fn spares(&self, model: &Model) -> bool {
        self.gives_way() && (model.kept().is_some() || self.is_large(model))
    }

    /// Size in float32, in bytes, up to which a model is run as a whole.
    pub(crate) fn whole(&self) -> u64 {
        self.verify.as_ref().map_or(VerifyOptions::WHOLE, |how| how.whole)
    }

    /// Whether a model, in float32, is too large to be run as a whole.
    pub(crate) fn is_large(&self, model: &Model) -> bool {
        model.is_larger_in_f32(self.whole())
    }

    /// Whether a model is so large that no copy is made of its kernels, and nothing is asked for that runs it as a whole.
    pub(crate) fn is_lean(&self, model: &Model) -> bool {
        #[cfg(feature = "tune")]
        let tuned = self.tuning.is_some();
        #[cfg(not(feature = "tune"))]
        let tuned = false;
        let runs = self.calibration.is_some() && !self.gives_way() || self.images.is_some() || tuned;
        !runs && self.is_large(model)
    }

    /// In how many steps the model is made smaller, and tuned after each.
    #[cfg(feature = "tune")]
    pub(crate) fn tuning_steps(&self) -> u32 {
        match (&self.tuning, self.plan.policy) {
            (Some(tuning), RankPolicy::Ratio(ratio)) if self.is_stepped() => {
                let asked = tuning.steps.unwrap_or(if ratio >= STEPPED.0 { STEPPED.1 } else { 1 });
                let worth = |&steps: &u32| ratio.powf(1.0 / f64::from(steps)) >= LEAST_STEP;
                (2..=asked).rev().find(worth).unwrap_or(1)
            }
            _ => 1,
        }
    }

    /// Whether there is a ratio to go down to.
    #[cfg(feature = "tune")]
    fn is_stepped(&self) -> bool {
        self.replay.is_none() && self.max_drop.is_none() && !self.dry_run
    }

    /// What is asked of one step.
    #[cfg(feature = "tune")]
    pub(crate) fn step(&self, ratio: f64, tuning: Tutoring) -> Self {
        let plan = PlanOptions { policy: RankPolicy::Ratio(ratio), ..self.plan };
        Self { plan, tuning: Some(tuning), ..self.clone() }
    }

    /// The same without calibration.
    pub(crate) fn by_weights(&self) -> Self {
        Self { calibration: None, ..self.clone() }
    }

    /// Holds what was measured against the bounds.
    ///
    /// # Errors
    /// [`Error::Gate`], or [`Error::Unmeasured`] where a bound on the outputs would be held against those of parts.
    pub(crate) fn gate(&self, report: &Report) -> Result<()> {
        let verification = report.verification.as_ref();
        if let Some(parts) =
            verification.and_then(|v| v.parts.as_ref()).filter(|parts| parts.whole_difference.is_none())
        {
            let unscored = self.gates.min_agreement.filter(|_| report.score.is_none());
            let bounds = [("--min-snr", self.gates.min_snr), ("--min-agreement", unscored)];
            if let Some((bound, _)) = bounds.into_iter().find(|(_, asked)| asked.is_some()) {
                return Err(Error::Unmeasured { bound, reason: parts.reason.clone() });
            }
        }
        let approximation = verification.map(|v| v.approximation);
        let agreement = report.score.map(|s| s.agreement).or(approximation.and_then(|a| a.agreement));
        self.gates.check(approximation, agreement, SMALLER)
    }

    /// What is calibrated on, as a plan records it.
    pub(crate) fn planned_calibration(&self) -> Option<PlannedCalibration> {
        let on = self.calibration.as_ref()?;
        Some(PlannedCalibration {
            seed: on.images.seed(),
            source: on.images.what(),
            samples: on.most,
            mirror: on.mirror,
            held_out: self.holds_out(),
            repair: self.repair,
            preprocessing: on.images.preprocessing().clone(),
        })
    }

    /// Refuses, before any model is read, what makes no sense for any.
    ///
    /// # Errors
    /// [`Error::Options`] naming the option.
    pub fn check(&self) -> Result<()> {
        self.gates.sound()?;
        plan::check(&self.plan)?;
        // Bounds that nothing will measure.
        if self.gates.min_snr.is_some() && self.verify.is_none() {
            return Err(Error::Options("--min-snr needs verification: leave out --no-verify".into()));
        }
        if self.gates.min_agreement.is_some() && self.verify.is_none() && self.images.is_none() {
            return Err(Error::Options("--min-agreement needs verification or --images".into()));
        }
        #[cfg(feature = "tune")]
        if let Some(tuning) = &self.tuning {
            tuning.options.check()?;
            if tuning.steps.is_some_and(|steps| steps > 1)
                && !(self.is_stepped() && matches!(self.plan.policy, RankPolicy::Ratio(_)))
            {
                return Err(Error::Options("--tune-steps go down to a --ratio: leave them out, or give one".into()));
            }
            if self.verify.is_none() {
                return Err(Error::Options("--tune needs verification: leave out --no-verify".into()));
            }
        }
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
        Ok(())
    }

    /// Refuses, before any work, what makes no sense for this model.
    pub(crate) fn validate(&self, model: &Model) -> Result<()> {
        self.check()?;
        model.check_shapes(&self.groups.input_shapes)
    }
}
