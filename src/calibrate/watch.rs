//! How far the network's output moves when some convolutions change.

use super::Calibration;
use crate::error::Result;
use crate::onnx::{Conv, Model};
use crate::plan::Sight;
use crate::progress::{Items, Progress};
use crate::rewrite::{shifted_bias, with_kernels};
use crate::runtime::{Feed, Input, Runner};
use ndarray::{Array4, ArrayD};
use std::sync::Arc;

/// Images on which the network's output is watched while one group changes: as many as this much work allows, within bounds.
const MOST_WATCHED: usize = 32;
const LEAST_WATCHED: usize = 16;
/// Multiply-accumulates that probing may take, about.
const WORK: f64 = 4e12;
/// Probes of a convolution, about.
const PROBES: usize = 4;

/// The original model's output on some images, against which changed models are held.
pub(crate) struct Watch<'c> {
    model: &'c Model,
    convs: &'c [Conv],
    sights: Arc<[Sight]>,
    inputs: &'c [Input],
    feeds: Vec<Feed>,
    outputs: Vec<Vec<ArrayD<f32>>>,
    /// `Σ ‖y − E y‖²` over all outputs.
    variation: f64,
    items: Items<'c>,
}

impl Calibration {
    /// Runs the original model on images spread over all of them.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn watch<'w>(
        &'w self,
        model: &'w Model,
        convs: &'w [Conv],
        sights: Arc<[Sight]>,
        progress: &'w Progress<'w>,
    ) -> Result<Watch<'w>> {
        // Each convolution is probed a few times.
        let probes = PROBES * convs.len().max(1);
        let macs: u64 = convs.iter().map(|c| c.macs(c.extents().1)).fold(0, u64::saturating_add);
        let affordable = (WORK / (macs.max(1) as f64 * probes as f64)) as usize;
        let count = affordable.clamp(LEAST_WATCHED, MOST_WATCHED).min(self.count);
        let feeds = self.samples.feeds((0..count).map(|i| i * self.count / count))?;
        let outputs = Runner::load(model, &self.inputs, "the model")?.run_all(&feeds)?;
        let mut variation = 0.0;
        for o in 0..outputs.first().map_or(0, Vec::len) {
            let all = || outputs.iter().map(|y| y[o].mapv(f64::from));
            let mean = all().reduce(|a, b| a + b).unwrap_or_default() / count as f64;
            variation += all().map(|y| (y - &mean).mapv(|d| d * d).sum()).sum::<f64>();
        }
        let items = progress.items("planning", probes);
        Ok(Watch { model, convs, sights, inputs: &self.inputs, feeds, outputs, variation, items })
    }
}

impl Watch<'_> {
    /// `Σ ‖y − ŷ‖² / Σ ‖y − E y‖²` of the network's output when some convolutions get other kernels, their biases keeping the
    /// mean.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn moved(&self, members: &[usize], kernels: &[Array4<f64>]) -> Result<f64> {
        let replaced = members.iter().zip(kernels).map(|(&m, kernel)| {
            (&self.convs[m], kernel.clone(), shifted_bias(&self.convs[m], kernel, &self.sights[m].moment))
        });
        let changed =
            Runner::load(&with_kernels(self.model, replaced, &mut |_, _| Vec::new())?, self.inputs, "the model")?
                .run_all(&self.feeds)?;
        self.items.done(members.first().map_or("", |&m| &self.convs[m].name));
        let pairs = self.outputs.iter().flatten().zip(changed.iter().flatten());
        let squares = |(a, b): (&ArrayD<f32>, &ArrayD<f32>)| -> f64 {
            a.iter().zip(b).map(|(&p, &q)| (f64::from(p) - f64::from(q)).powi(2)).sum()
        };
        let moved: f64 = pairs.map(squares).sum();
        Ok(if self.variation > 0.0 { moved / self.variation } else { 0.0 })
    }
}
