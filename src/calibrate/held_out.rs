//! What a compressed model keeps on samples that it was not calibrated on.

use super::Calibration;
use crate::error::{Error, Result};
use crate::onnx::Model;
use crate::runtime::{Feed, Input, Runner, best_classes, is_scores};
use ndarray::ArrayD;

/// Samples held out: one in so many.
const ONE_IN: usize = 4;
/// Fewer samples than this tell nothing.
const LEAST: usize = 8;

/// Samples left out of the calibration and what the original gives for them.
pub(crate) struct HeldOut {
    feeds: Vec<Feed>,
    inputs: Vec<Input>,
    outputs: Vec<Vec<ArrayD<f32>>>,
}

impl HeldOut {
    /// Takes the last samples of a calibration away from it.
    ///
    /// # Errors
    /// [`Error::Options`] if there are too few, [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn new(model: &Model, calibration: &mut Calibration) -> Result<Self> {
        let all = calibration.samples();
        let held = all / ONE_IN;
        if held < LEAST {
            let least = LEAST * ONE_IN;
            return Err(Error::Options(format!("--max-drop needs {least} calibration samples or more, not {all}")));
        }
        // Of those held out their mirror images are not looked at.
        let each = calibration.images_each;
        calibration.count = each * (all - held);
        let feeds = calibration.samples.feeds((all - held..all).map(|i| each * i))?;
        let inputs = calibration.inputs.clone();
        let outputs = Runner::load(model, &inputs, "the model")?.run_all(&feeds)?;
        Ok(Self { feeds, inputs, outputs })
    }

    /// The share of equal top-1 classes or, of other outputs, `1 − Σ ‖y − ŷ‖² / Σ ‖y‖²`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn kept(&self, model: &Model) -> Result<f64> {
        let outputs = Runner::load(model, &self.inputs, "the compressed model")?.run_all(&self.feeds)?;
        if self.outputs.iter().all(|o| o.len() == 1 && is_scores(&o[0])) {
            let equal = |a: &ArrayD<f32>, b| {
                let (a, b) = (best_classes(a), best_classes(b));
                a == b && a.iter().all(Option::is_some)
            };
            let same = self.outputs.iter().zip(&outputs).filter(|(a, b)| equal(&a[0], &b[0])).count();
            return Ok(same as f64 / self.outputs.len().max(1) as f64);
        }
        let (mut energy, mut error) = (0.0f64, 0.0f64);
        for (a, b) in self.outputs.iter().flatten().zip(outputs.iter().flatten()) {
            for (&p, &q) in a.iter().zip(b) {
                energy += f64::from(p).powi(2);
                error += (f64::from(p) - f64::from(q)).powi(2);
            }
        }
        Ok(if energy > 0.0 { 1.0 - error / energy } else { 1.0 })
    }
}
