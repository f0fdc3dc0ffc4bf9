//! How far the network's output moves when some convolutions change.

use super::Calibration;
use super::known::{Known, Probe, Stack};
use crate::error::Result;
use crate::onnx::{Conv, Graph, Model};
use crate::plan::Sight;
use crate::progress::{Items, Progress};
use crate::rewrite::{shifted_bias, with_kernels};
use crate::runtime::{Feed, Input};
use ndarray::{Array4, ArrayD};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashSet};
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
    graph: Graph<'c>,
    inputs: &'c [Input],
    feeds: Vec<Feed>,
    /// What the convolutions read in the original model.
    known: Known,
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
        let affordable = (WORK / (Conv::total_macs(convs.iter()).max(1) as f64 * probes as f64)) as usize;
        let count = affordable.clamp(LEAST_WATCHED, MOST_WATCHED).min(self.count);
        let feeds = self.samples.feeds((0..count).map(|i| i * self.count / count))?;
        let graph = Graph::new(model)?;
        let outputs: Vec<&str> = graph.proto().output.iter().map(|o| o.name()).collect();
        let fed = |value: &&str| self.inputs.iter().any(|i| i.name == **value);
        let read: BTreeSet<&str> = convs.iter().map(|c| c.input.as_str()).filter(|v| !fed(v)).collect();
        let values: Vec<&str> = outputs.iter().copied().chain(read.iter().copied()).collect();
        let nothing = Known::default();
        let probe = Probe::new(model, &values, &self.inputs, 1, &nothing, &HashSet::new())?;
        let runs = feeds.par_iter().with_max_len(1).map(|feed| probe.run(0, feed, &nothing));
        let mut seen: Vec<Vec<ArrayD<f32>>> = runs.collect::<Result<_>>()?;
        let mut known = Known::default();
        for value in read.iter().rev() {
            let mut images = Stack::new(1);
            seen.iter_mut().filter_map(Vec::pop).for_each(|image| images.push(&image, count));
            known.add(value, images);
        }
        known.limit();
        let outputs = seen;
        let mut variation = 0.0;
        for o in 0..outputs.first().map_or(0, Vec::len) {
            let all = || outputs.iter().map(|y| y[o].mapv(f64::from));
            let mean = all().reduce(|a, b| a + b).unwrap_or_default() / count as f64;
            variation += all().map(|y| (y - &mean).mapv(|d| d * d).sum()).sum::<f64>();
        }
        let items = progress.items("planning", probes);
        Ok(Watch { model, convs, sights, graph, inputs: &self.inputs, feeds, known, outputs, variation, items })
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
            (&self.convs[m], kernel.clone(), shifted_bias(&self.convs[m], kernel, &self.sights[m]))
        });
        let changed = with_kernels(self.model, replaced, &mut |_, _| Vec::new())?;
        let roots = members.iter().flat_map(|&m| self.convs[m].all()).flat_map(|c| &self.graph.nodes()[c.node].output);
        let stale = self.graph.descendants(roots.map(String::as_str));
        let values: Vec<&str> = self.graph.proto().output.iter().map(|o| o.name()).collect();
        let probe = Probe::new(&changed, &values, self.inputs, 1, &self.known, &stale)?;
        let runs = self.feeds.par_iter().enumerate().with_max_len(1);
        let changed = runs.map(|(image, feed)| probe.run(image, feed, &self.known)).collect::<Result<Vec<_>>>()?;
        self.items.done(members.first().map_or("", |&m| &self.convs[m].name));
        let pairs = self.outputs.iter().flatten().zip(changed.iter().flatten());
        let squares = |(a, b): (&ArrayD<f32>, &ArrayD<f32>)| -> f64 {
            a.iter().zip(b).map(|(&p, &q)| (f64::from(p) - f64::from(q)).powi(2)).sum()
        };
        let moved: f64 = pairs.map(squares).sum();
        Ok(if self.variation > 0.0 { moved / self.variation } else { 0.0 })
    }
}
