//! What tuning did.

use super::percent;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One look at the held-out images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TuningRow {
    /// Passes over the images so far.
    pub epoch: f64,
    /// Steps so far.
    pub step: u64,
    /// Seconds since the first step.
    pub seconds: f64,
    /// Mean loss of the steps since the last look; none before the first.
    pub loss: Option<f64>,
    /// Loss of the outputs on held-out images.
    pub held_out_loss: f64,
    /// Equal top-1 classes on held-out images or, of other outputs, the share of energy that is not error.
    pub agreement: f64,
}

/// A step before the last, where a model is made smaller in several.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TuningStep {
    /// Parameters before ÷ after that it was made for.
    pub ratio: f64,
    /// Passes over the images.
    pub epochs: f64,
    /// Seconds that it was tuned.
    pub seconds: f64,
    /// Agreement on held-out images before it was tuned, and of what was kept.
    pub agreement: [f64; 2],
}

/// What tuning did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// The steps before the last, of a model that was made smaller in several; the rest is about the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<TuningStep>,
    /// Where the images come from.
    pub source: String,
    /// Trained parameters.
    pub parameters: u64,
    /// Images that were shown.
    pub images: usize,
    /// Images that were held out.
    pub held_out: usize,
    /// The highest rate of learning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Looks at the held-out images, the first before any step.
    pub curve: Vec<TuningRow>,
    /// The look that was kept, by its position in the curve; 0 is the untuned model.
    pub kept: usize,
    /// Whether somebody ended it before its time.
    pub stopped: bool,
}

#[cfg(feature = "tune")]
impl TuningStep {
    pub(crate) fn new(ratio: f64, tuning: &Tuning) -> Self {
        let ends = tuning.curve.first().zip(tuning.kept_row()).map(|(first, kept)| [first.agreement, kept.agreement]);
        let (epochs, seconds) = tuning.curve.last().map_or((0.0, 0.0), |row| (row.epoch, row.seconds));
        Self { ratio, epochs, seconds, agreement: ends.unwrap_or_default() }
    }
}

impl Tuning {
    /// Whether it ended before every image was shown once, uninterrupted.
    fn is_short(&self) -> bool {
        !self.stopped && self.curve.last().is_some_and(|row| row.epoch < 0.99)
    }

    /// The look that was kept.
    #[must_use]
    pub fn kept_row(&self) -> Option<&TuningRow> {
        self.curve.get(self.kept)
    }
}

/// Rows of the curve that are printed, at most.
const ROWS: usize = 12;

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parameters, images, held_out, source, .. } = self;
        writeln!(f, "Tuned {parameters} parameters on {images} images, {held_out} held out: {source}")?;
        for TuningStep { ratio, epochs, seconds, agreement: [before, after] } in &self.earlier {
            let (before, after) = (percent(*before), percent(*after));
            writeln!(
                f,
                "  first {ratio:.2} times smaller: {epochs:.2} epochs, {seconds:.0} s, agreement {before} → {after}"
            )?;
        }
        let every = self.curve.len().div_ceil(ROWS).max(1);
        let last = self.curve.len().saturating_sub(1);
        for (at, row) in self.curve.iter().enumerate() {
            if at % every != 0 && at != last && at != self.kept {
                continue;
            }
            let kept = if at == self.kept { "  kept" } else { "" };
            let (epoch, seconds, agreement) = (row.epoch, row.seconds, percent(row.agreement));
            writeln!(
                f,
                "  epoch {epoch:7.2} {seconds:7.0} s  loss {:8.4}  agreement {agreement}{kept}",
                row.held_out_loss
            )?;
        }
        if self.is_short() {
            writeln!(
                f,
                "  not every image was shown once: give a longer --tune, or a lower --tune-rate if the loss was no number"
            )?;
        }
        if self.kept == 0 {
            writeln!(f, "  tuning did not help: the model is as it was before")?;
        }
        if self.stopped {
            writeln!(f, "  stopped early: the best up to then")?;
        }
        Ok(())
    }
}
