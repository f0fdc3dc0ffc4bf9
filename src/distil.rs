//! The conductor of tuning: a teacher and a student in, a better student and what it is worth out.

use crate::compare::{Scorer, VerifyOptions};
use crate::error::{Error, Result};
use crate::gates::{Gates, LONGER};
use crate::images::Images;
use crate::onnx::Model;
use crate::progress::{Listener, Progress};
use crate::report::{Score, Tuning, Verification, json};
use crate::runtime::{inputs, shapes};
use crate::tune::{TuneOptions, Tuned, tuned};
use crate::verify::proved;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of the JSON layout, that of `tools/schema/tuning-1.schema.json`; it grows as
/// [`REPORT_VERSION`](crate::REPORT_VERSION) does.
pub const TUNING_VERSION: u32 = 1;

/// What the command `tune` found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TuningReport {
    /// [`TUNING_VERSION`].
    pub tuning_version: u32,
    /// Version of onnx-jmd.
    pub version: String,
    /// What was done.
    pub tuning: Tuning,
    /// The result against what the trainable view computes, and against the teacher.
    pub verification: Verification,
    /// The teacher and the model as it was, on the user's images.
    pub score_before: Option<Score>,
    /// The teacher and the result, on the user's images.
    pub score: Option<Score>,
}

/// How a model is tuned and judged.
#[derive(Debug, Clone)]
pub struct Distillation {
    /// What is shown.
    pub images: Vec<Images>,
    /// How.
    pub tune: TuneOptions,
    /// On what the result is verified.
    pub verify: VerifyOptions,
    /// Images to classify before and after.
    pub scored: Option<Images>,
    /// Bounds below which the result is refused.
    pub gates: Gates,
}

/// Trains `student` to do what `teacher` does, and verifies the result. If tuning does not help, it is the student, bit for bit.
///
/// # Errors
/// [`Error::Tuning`] if it cannot be done, [`Error::Images`] or [`Error::Options`] if images or options do not fit,
/// [`Error::Unavailable`] if tract cannot run a model, [`Error::RewriteWrong`] if the result does not compute what was trained.
pub fn tune(
    teacher: &Model,
    student: &Model,
    how: &Distillation,
    listener: &Listener<'_>,
) -> Result<(Model, TuningReport)> {
    let progress = Progress::new(listener);
    how.tune.check()?;
    how.gates.sound()?;
    let given = &how.verify.input_shapes;
    teacher.check_shapes(given)?;
    let wide = (teacher.in_f32(), student.in_f32());
    let (t, s) = (wide.0.as_ref().unwrap_or(teacher), wide.1.as_ref().unwrap_or(student));
    let fed = inputs(t, given)?;
    let scored = how.scored.as_ref().map(|images| images.fit(t, &shapes(&fed), None)).transpose()?;
    let scorer = scored.as_ref().map(|samples| Scorer::new(t, samples, given)).transpose()?;
    let score_before = scorer.as_ref().map(|scorer| scorer.score(s)).transpose()?;
    let done = tuned(t, s, &how.images, given, &how.tune, &progress)?;
    progress.say("verifying with tract");
    let result = Taught::new(student, t, &done, &how.verify)?;
    let score = scorer.as_ref().map(|scorer| scorer.score(&result.wide)).transpose()?;
    let approximation = result.verification.approximation;
    how.gates.check(Some(approximation), score.map(|s| s.agreement).or(approximation.agreement), LONGER)?;
    let report = TuningReport {
        tuning_version: TUNING_VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        tuning: done.tuning,
        verification: result.verification,
        score_before,
        score,
    };
    Ok((result.written, report))
}

/// A tuned model, verified.
pub(crate) struct Taught {
    /// In its own types.
    pub(crate) written: Model,
    /// In float32.
    pub(crate) wide: Model,
    pub(crate) verification: Verification,
}

impl Taught {
    /// The tuned values in `student`, in its own types, against the teacher.
    ///
    /// # Errors
    /// Those of [`proved`], and [`Error::Tuning`] if a value exceeds the student's type.
    pub(crate) fn new(student: &Model, teacher: &Model, done: &Tuned, verify: &VerifyOptions) -> Result<Self> {
        let written = if done.tuning.kept == 0 { student.clone() } else { done.applied(student) };
        let wide = written.in_f32().unwrap_or_else(|| written.clone());
        if let Some(tensor) = done.overflow(&wide) {
            let reason = format!("the values of '{tensor}' exceed its type: leave out --tune, or give a float32 model");
            return Err(Error::Tuning(reason));
        }
        let verification = proved(teacher, &wide, &|feed| done.outputs(&wide, feed), verify)?;
        Ok(Self { written, wide, verification })
    }
}

impl TuningReport {
    /// The facts as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        json(self)
    }
}

impl fmt::Display for TuningReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tuning)?;
        write!(f, "\n{}", self.verification)?;
        if let Some((before, after)) = self.score_before.zip(self.score) {
            let percent = |share: f64| 100.0 * share;
            writeln!(f, "\nOn {} images", after.images)?;
            if let [Some(teacher), Some(before), Some(after)] = [after.top1_before, before.top1_after, after.top1_after]
            {
                let (teacher, before, after) = (percent(teacher), percent(before), percent(after));
                writeln!(f, "  top-1                {before:.2} % → {after:.2} %, the teacher {teacher:.2} %")?;
            }
            let (before, after) = (percent(before.agreement), percent(after.agreement));
            writeln!(f, "  same class           {before:.2} % → {after:.2} %")?;
        }
        Ok(())
    }
}
