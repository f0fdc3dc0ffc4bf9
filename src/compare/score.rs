//! Which classes models give images, and how many of these are right.

use super::PORTION;
use crate::error::{Error, Result};
use crate::images::{Images, Samples};
use crate::onnx::{InputShape, Model};
use crate::report::Score;
use crate::runtime::{Input, Runner, best_classes, inputs, is_scores, shapes};
use ndarray::ArrayD;

/// Classifies images with one model, to hold others against it.
pub(crate) struct Scorer<'s> {
    samples: &'s Samples,
    inputs: Vec<Input>,
    before: Vec<Option<usize>>,
}

impl<'s> Scorer<'s> {
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Options`] if the output is not class scores.
    pub(crate) fn new(model: &Model, samples: &'s Samples, given: &[InputShape]) -> Result<Self> {
        let inputs = inputs(model, given)?;
        let before = classified(model, samples, &inputs, "the model").map_err(|error| match error {
            Error::Unavailable { what, reason } => Error::Unavailable {
                what,
                reason: format!("{reason} (to compress without classes: leave out --images)"),
            },
            other => other,
        })?;
        if let Some(at) = before.iter().position(Option::is_none) {
            return Err(Error::Options(format!(
                "of image {at} (the first is 0) the model gives scores that are no numbers (NaN), and so no class: repair the model, or \
                 give other --images or another --preprocess"
            )));
        }
        Ok(Self { samples, inputs, before })
    }

    /// # Errors
    /// As [`Scorer::new`].
    pub(crate) fn score(&self, compressed: &Model) -> Result<Score> {
        let after = classified(compressed, self.samples, &self.inputs, "the compressed model")?;
        let share = |right: usize| right as f64 / self.samples.len() as f64;
        let top1 = |found: &[Option<usize>]| Some(share(right_classes(found, self.samples.labels()?)));
        Ok(Score {
            images: self.samples.len(),
            agreement: share(self.before.iter().zip(&after).filter(|(a, b)| a == b).count()),
            top1_before: top1(&self.before),
            top1_after: top1(&after),
        })
    }
}

/// Classifies images with the original and the written model.
///
/// # Errors
/// [`Error::Unavailable`], or [`Error::Images`] if they do not fit the model's input or its output is not class scores.
pub fn score(model: &Model, compressed: &Model, images: &Images, given: &[InputShape]) -> Result<Score> {
    let samples = images.fit(model, &shapes(&inputs(model, given)?), None)?;
    Scorer::new(model, &samples, given)?.score(compressed)
}

fn classified(model: &Model, samples: &Samples, inputs: &[Input], what: &'static str) -> Result<Vec<Option<usize>>> {
    let runner = Runner::load(model, inputs, what)?;
    let mut found = Vec::with_capacity(samples.len());
    for start in (0..samples.len()).step_by(PORTION) {
        let portion = start..(start + PORTION).min(samples.len());
        let answers = runner.run_all(&samples.feeds(portion)?)?;
        check_labels(&answers, samples.labels())?;
        found.extend(classes(&answers, "--images")?);
    }
    Ok(found)
}

/// The class of the largest score of each input, none where a score is no number; `asked` is the option that needs them.
pub(super) fn classes(outputs: &[Vec<ArrayD<f32>>], asked: &str) -> Result<Vec<Option<usize>>> {
    let wrong =
        || Error::Options(format!("{asked} needs a model whose first output is class scores, [batch, classes]"));
    let each = outputs.iter().map(|o| o.first().filter(|y| is_scores(y)).map(best_classes).ok_or_else(wrong));
    Ok(each.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Refuses labels that are no class of a model.
pub(super) fn check_labels(outputs: &[Vec<ArrayD<f32>>], labels: Option<&[i64]>) -> Result<()> {
    let Some(scores) = outputs.first().and_then(|o| o.first()).filter(|y| is_scores(y)) else { return Ok(()) };
    let all = scores.shape()[1];
    let wrong = |label: &i64| usize::try_from(*label).map_or(true, |class| class >= all);
    let Some((at, label)) = labels.unwrap_or_default().iter().enumerate().find(|(_, label)| wrong(label)) else {
        return Ok(());
    };
    Err(Error::Options(format!(
        "--labels says {label} of image {at} (the first is 0), but the model's {all} classes are 0 to {}: give the labels of these \
         images by this model's numbers",
        all - 1
    )))
}

pub(super) fn right_classes(found: &[Option<usize>], labels: &[i64]) -> usize {
    found.iter().zip(labels).filter(|(f, l)| f.is_some_and(|f| i64::try_from(f) == Ok(**l))).count()
}
