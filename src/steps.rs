//! Down in steps: a model that is to become much smaller is first made a little smaller and tuned, then put together again and made
//! smaller from there. What a network has learnt to do with less is nearer to what it can do with still less.

use crate::error::Result;
use crate::group::Grouping;
use crate::onnx::Model;
use crate::options::Options;
use crate::progress::Progress;
use crate::report::TuningStep;
use std::borrow::Cow;
#[cfg(feature = "tune")]
use {
    crate::group::find_groups, crate::make::made, crate::onnx::Precision, crate::onnx::Storage,
    crate::options::Tutoring, crate::plan::Plan, crate::plan::RankPolicy, crate::rewrite::undone, crate::tune::Budget,
    crate::tune::tuned, crate::verify::proved,
};

/// What the last step is made of: the model itself, or what earlier steps have made of it.
pub(crate) struct Start<'m> {
    /// With the values that it has learnt in factors, and one convolution for each chain.
    pub(crate) model: Cow<'m, Model>,
    /// Of that model.
    pub(crate) grouping: Cow<'m, Grouping>,
    /// For what is left to do.
    pub(crate) options: Cow<'m, Options>,
    /// What was done.
    pub(crate) earlier: Vec<TuningStep>,
    /// Why there is one step alone, if more were to be taken.
    pub(crate) note: Option<String>,
}

impl<'m> Start<'m> {
    fn whole(model: &'m Model, grouping: &'m Grouping, options: &'m Options) -> Self {
        let (model, grouping, options) = (Cow::Borrowed(model), Cow::Borrowed(grouping), Cow::Borrowed(options));
        Self { model, grouping, options, earlier: Vec::new(), note: None }
    }

    /// Takes all steps but the last.
    ///
    /// # Errors
    /// As of one step, those of a run that tunes.
    #[cfg(not(feature = "tune"))]
    pub(crate) fn new(
        _: &Model,
        model: &'m Model,
        grouping: &'m Grouping,
        options: &'m Options,
        _: &Progress<'_>,
    ) -> Result<Self> {
        Ok(Self::whole(model, grouping, options))
    }

    /// Takes all steps but the last: of `n` steps to the ratio `R` the k-th goes to `R^(k/n)`. `model` is `original` in float32.
    ///
    /// # Errors
    /// Those of a run that tunes.
    #[cfg(feature = "tune")]
    pub(crate) fn new(
        original: &Model,
        model: &'m Model,
        grouping: &'m Grouping,
        options: &'m Options,
        progress: &Progress<'_>,
    ) -> Result<Self> {
        let mut start = Self::whole(model, grouping, options);
        let (steps, RankPolicy::Ratio(ratio)) = (options.tuning_steps(), options.plan.policy) else { return Ok(start) };
        let Some((tuning, how)) = options.tuning.as_ref().zip(options.verify.as_ref()) else { return Ok(start) };
        let stored = grouping.convs.iter().find(|c| c.storage != Storage::Plain);
        if steps > 1 && (stored.is_some() || original.kernel_precision() != Some(Precision::Single)) {
            let reason = "made smaller in one step, as not all kernels are stored in FLOAT";
            progress.say(reason);
            start.note = Some(reason.into());
            return Ok(start);
        }
        if steps > 1 {
            // What is out of reach is refused before any work.
            Plan::precheck(model, grouping, &options.plan, options.calibration.is_some())?;
        }
        let whole = model.parameters() as f64;
        for step in 1..steps {
            let at = ratio.powf(f64::from(step) / f64::from(steps));
            progress.say(&format!("step {step} of {steps}: {at:.2} times smaller"));
            // Batch norms that were folded are not there to be counted any more.
            let counted = start.model.parameters() as f64 / whole;
            let mut lesson = tuning.of_step(step, steps);
            let begun = |tutoring: &Tutoring| tutoring.options.resume.as_ref().is_some_and(|path| path.exists());
            if begun(&lesson) && begun(&tuning.of_step(step + 1, steps)) {
                // The next step was made from what this one had come to: it goes no further, even if there is more time now.
                lesson.options.budget = Budget::Epochs(f64::MIN_POSITIVE);
            }
            let asked = options.step(at * counted, lesson.clone());
            let (made, _) = made(&start.model, &start.grouping, &asked, None, progress);
            let made = made?;
            let Some(compiled) = &made.compiled else { return Ok(start) };
            let shapes = &options.groups.input_shapes;
            progress.stage("tuning", "tuning: the original teaches what was decomposed");
            let done = tuned(model, &compiled.model, &lesson.images, shapes, &lesson.options, progress)?;
            let student = if done.tuning.kept == 0 { compiled.model.clone() } else { done.applied(&compiled.model) };
            let next = undone(&start.model, &made.plan, &compiled.factors, &compiled.amends, &student)?;
            progress.stage("verifying", "verifying with tract what the next step begins with");
            proved(&student, &next, &|feed| done.outputs(&student, feed), how)?;
            start.earlier.push(TuningStep::new(at, &done.tuning));
            start.grouping = Cow::Owned(find_groups(&next, &options.groups)?);
            start.model = Cow::Owned(next);
        }
        if steps > 1 {
            progress.say(&format!("step {steps} of {steps}: {ratio:.2} times smaller"));
            let counted = start.model.parameters() as f64 / whole;
            start.options = Cow::Owned(options.step(ratio * counted, tuning.of_step(steps, steps)));
        }
        Ok(start)
    }
}
