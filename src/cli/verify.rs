//! `onnx-jmd verify`.

use super::shared::{Accuracy, Output, Pixels, Verification};
use clap::Args;
use onnx_jmd::{CompareOptions, Result};
use std::path::PathBuf;

/// Run two models on the same inputs with tract and say how far their outputs are apart
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The model to compare with; one of the two may come from standard input with '-'
    #[arg(value_name = "A.onnx")]
    first: PathBuf,

    /// The model that is compared, of the same inputs and outputs
    #[arg(value_name = "B.onnx")]
    second: PathBuf,

    #[command(flatten)]
    verification: Verification,

    /// Refuse the result beyond this difference, relative to the largest output
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Verification")]
    max_difference: Option<f64>,

    #[command(flatten)]
    accuracy: Accuracy,

    #[command(flatten)]
    pixels: Pixels,

    #[command(flatten)]
    pub(super) output: Output,
}

/// Two models to compare.
#[derive(Debug)]
pub struct VerifyJob {
    /// The first.
    pub first: PathBuf,
    /// The other.
    pub second: PathBuf,
    /// What is read besides.
    pub read: Vec<PathBuf>,
    /// On what, and how near they should be.
    pub options: CompareOptions,
    /// Where the facts go.
    pub output: Output,
}

impl Verify {
    pub(super) fn job(self) -> Result<VerifyJob> {
        let images = self.accuracy.open(&self.pixels.preprocessing())?;
        let gates = self.verification.gates();
        let inputs = self.verification.options(self.verification.shapes.input_shape.clone());
        let options = CompareOptions { inputs, images, gates, max_difference: self.max_difference };
        let read = self.accuracy.paths().collect();
        Ok(VerifyJob { first: self.first, second: self.second, read, options, output: self.output })
    }
}
