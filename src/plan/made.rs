//! What a plan in a file was made by, so that a model made from it says so as one made without it does.
//!
//! A table `[made]` holds hashes of the options and samples that the decisions followed from, and of the rest of the file: as long as
//! that is as it was written, a replay on the same model and samples is as good as the run that wrote it.

use super::file::PlanFile;
use crate::group::GroupOptions;
use crate::onnx::hex;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MadeEntry {
    options: String,
    samples: String,
    plan: String,
}

impl MadeEntry {
    /// As it stands in a file.
    fn text(&self) -> String {
        let Self { options, samples, plan } = self;
        format!("\n[made]\noptions = \"{options}\"\nsamples = \"{samples}\"\nplan = \"{plan}\"\n")
    }

    /// The table for the options, the samples and the rest of a file.
    pub(super) fn stamp(options: &str, samples: &str, head: &str, rest: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(head);
        hash.update(rest);
        Self { options: options.into(), samples: samples.into(), plan: hex(&hash.finalize()) }.text()
    }
}

impl PlanFile {
    /// The hash of the options that it was made by; none if it was edited, or made for another model, by other samples or by another
    /// version: those options would not decide so for certain.
    pub(crate) fn made_by(&self, model: &str, samples: &str, groups: &GroupOptions) -> Option<&str> {
        let made = self.document.made.as_ref()?;
        let rest = self.text.replacen(&made.text(), "", 1);
        let as_written = hex(&Sha256::digest(rest)) == made.plan;
        let same = self.document.model.sha256 == model && made.samples == samples;
        let now = self.document.onnx_jmd == env!("CARGO_PKG_VERSION");
        let found_alike = format!("{groups:?}") == format!("{:?}", self.group_options().ok()?);
        (as_written && same && now && found_alike).then_some(&made.options)
    }

    /// The whole file.
    pub(crate) fn as_text(&self) -> &str {
        &self.text
    }
}
