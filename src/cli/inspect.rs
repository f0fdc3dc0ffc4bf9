//! `onnx-jmd inspect`.

use super::shared::{Matching, Output, Shapes};
use clap::Args;
use onnx_jmd::GroupOptions;
use std::path::PathBuf;

/// Show what a model is made of: repeated blocks, groups, spectra, reachable ratios, and what would be left alone; writes no model
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The ONNX model, from standard input with '-'
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,

    #[command(flatten)]
    matching: Matching,

    #[command(flatten)]
    shapes: Shapes,

    #[command(flatten)]
    pub(super) output: Output,
}

/// A model to look at.
#[derive(Debug)]
pub struct InspectJob {
    /// The model.
    pub model: PathBuf,
    /// How convolutions are found.
    pub groups: GroupOptions,
    /// Where the facts go.
    pub output: Output,
}

impl Inspect {
    pub(super) fn job(self) -> InspectJob {
        let groups = self.matching.options(self.shapes.input_shape);
        InspectJob { model: self.model, groups, output: self.output }
    }
}
