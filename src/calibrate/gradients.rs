//! How much a deviation of each convolution's output moves the network's outputs, channel by channel.

use super::known::{Known, Probe};
use super::{Calibration, view};
use crate::error::Result;
use crate::gradient::Backward;
use crate::onnx::{Conv, Graph, Model};
use crate::runtime::Feed;
use ndarray::{Array2, ArrayD, IxDyn};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// Images that gradients are taken on.
const IMAGES: usize = 128;
/// Directions of the outputs drawn for each.
const DRAWS: u64 = 2;
/// Images whose gradients are in memory together.
const PORTION: usize = 8;

impl Calibration {
    /// For each convolution `E[g·gᵀ]`, `out × out`, a pixel, with `g = Jᵀ·v` the gradient at its output of the network's outputs
    /// in a direction `v ~ N(0, I)`: so `E‖J·e‖² = tr E[e·eᵀ]·E[g·gᵀ]` for errors `e` that know nothing of `g`. None where an
    /// operator behind it has no known derivative.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable) if tract cannot run the model.
    pub(super) fn gradients(&self, model: &Model, convs: &[Conv]) -> Result<Vec<Option<Array2<f64>>>> {
        let graph = Graph::new(model)?;
        let wanted: Vec<&str> = convs.iter().map(|c| c.output.as_str()).collect();
        let backward = Backward::new(&graph, &wanted);
        let outputs: Vec<&str> = graph.proto().output.iter().map(|o| o.name()).collect();
        let values: Vec<&str> = outputs.iter().copied().chain(backward.needed().iter().map(String::as_str)).collect();
        let nothing = Known::default();
        let probe = Probe::new(model, &values, &self.inputs, 1, &nothing, &HashSet::new())?;
        let count = IMAGES.min(self.count);
        let mut sums: Vec<Option<(Array2<f64>, f64)>> =
            convs.iter().map(|c| (!self.is_blind(c)).then(|| (Array2::zeros((c.shape[0], c.shape[0])), 0.0))).collect();
        for from in (0..count).step_by(PORTION) {
            let portion: Vec<usize> = (from..(from + PORTION).min(count)).collect();
            let feeds: Vec<Feed> = self.samples.feeds(portion.iter().map(|i| i * self.count / count))?;
            let each = portion.par_iter().zip(&feeds).with_max_len(1).map(|(&i, feed)| {
                let seen = probe.run(i, feed, &nothing)?;
                let seen: HashMap<String, ArrayD<f32>> = values.iter().map(|v| (*v).to_owned()).zip(seen).collect();
                let mut found: Vec<Vec<Option<Array2<f32>>>> = Vec::new();
                for draw in 0..DRAWS {
                    let mut rng = Pcg64Mcg::seed_from_u64(i as u64 * DRAWS + draw);
                    let mut direction = |name: &&str| {
                        let shape = seen.get(*name).map_or(&[][..], |y| y.shape());
                        let v = ArrayD::from_shape_simple_fn(IxDyn(shape), || StandardNormal.sample(&mut rng));
                        ((*name).to_owned(), v)
                    };
                    let directions: Vec<(String, ArrayD<f32>)> = outputs.iter().map(&mut direction).collect();
                    let cotangents = backward.cotangents(&seen, &directions);
                    found.push(cotangents.into_iter().zip(convs).map(|(g, c)| pixels(g?, c)).collect());
                }
                Ok(found)
            });
            for found in each.collect::<Result<Vec<_>>>()?.into_iter().flatten() {
                for (sum, g) in sums.iter_mut().zip(found) {
                    *sum = sum.take().zip(g).map(|((sum, n), g)| {
                        let columns = g.ncols() as f64;
                        (sum + g.dot(&g.t()).mapv(f64::from), n + columns)
                    });
                }
            }
        }
        Ok(sums.into_iter().map(|s| s.map(|(sum, n)| sum / n.max(1.0)).filter(|g| g.diag().sum() > 0.0)).collect())
    }
}

/// What a convolution writes as `out × pixels`.
fn pixels(g: ArrayD<f32>, conv: &Conv) -> Option<Array2<f32>> {
    let image = view::written(conv, &g).ok().filter(|i| i.dim().0 == conv.shape[0])?;
    let columns = g.len() / conv.shape[0];
    let flat = image.to_shape((conv.shape[0], columns)).ok()?.into_owned();
    flat.iter().all(|x| x.is_finite()).then_some(flat)
}
