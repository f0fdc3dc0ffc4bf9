//! Sequential repair: the convolutions of a compressed model refitted in graph order, each to the original's output on the
//! inputs that the model compressed so far gives it.
//!
//! * Where its output is only added to another value, a convolution is fitted to the original *sum*, so that it also repairs what
//!   that other value has lost.
//! * Where only a rectifier (`Relu`, `Clip`) reads the result, a deviation that it hides is none: with `t` the original value
//!   and `ẑ` what the factors give, the next target is `t` where the rectifier passes it, else the nearest to `ẑ` of all that it
//!   maps like `t`. Each turn lowers a bound on the error behind the rectifier that is tight but for pixels where it hides `ẑ`
//!   and passes `t` (majorise and minimise; cf. Zhang et al., arXiv 1505.06798, on the same objective).
//! * A factor that several share is fitted for all of them when the first one's turn comes, and then stays.
//! * A convolution left whole gets a bias that restores its mean, and a fully connected layer that gives an output of the model
//!   weights that restore the original's outputs as far as a ridge lets them.

use super::activation::Window;
use super::known::{Known, Stack};
use super::{Calibration, Observations, at_pixels, columns, joined, numerical, view};
use crate::error::{Error, Result};
use crate::factor::{self, Factors, Moment, Refit, Seen};
use crate::onnx::{Conv, Dense, Graph, Model};
use crate::plan::{Judged, Members, Plan};
use crate::progress::Progress;
use crate::rewrite::{Amends, Compiled, assemble, rewritten, round};
use ndarray::{Array1, Array2, Array4, Axis, s};
use rayon::prelude::*;
use std::collections::HashSet;

/// Turns between the factors of a convolution when it is refitted.
const SWEEPS: usize = 6;
/// Targets behind a rectifier, each fitted in one turn.
const WINDOWED_TURNS: usize = 4;

/// Inputs of a fully connected layer that is refitted, at most.
const WIDEST_HEAD: usize = 4096;
/// How far the weights of such a layer are held to the original ones, relative to the mean variance of its inputs: as much at
/// least, and more the fewer images there are for each input.
const HEAD_RIDGE: f64 = 0.1;
/// Images for each input at which the ridge is the least.
const RIDGE_SAMPLES: f64 = 8.0;

/// What a convolution is refitted with.
struct Data {
    rows: Array2<f32>,
    /// The original values, at the same pixels as the rows.
    targets: Array2<f32>,
    /// What is added to the output now; nothing where there is no `Add`.
    added: Option<Array2<f32>>,
    moment: Moment,
}

impl Data {
    /// What the convolution itself should give.
    fn outputs(&self, targets: &Array2<f32>) -> Array2<f32> {
        self.added.as_ref().map_or_else(|| targets.clone(), |added| targets - added)
    }
}

/// A compressed model while it is repaired.
struct Repair<'r> {
    calibration: &'r Calibration,
    model: &'r Model,
    graph: Graph<'r>,
    plan: &'r Plan,
    observed: &'r Observations,
    factors: Vec<Factors>,
    amends: Amends,
    /// The model that factors and amends make.
    small: Model,
    /// What it gives at places that no later refit changes.
    known: Known,
    /// The convolution whose turn it is.
    at: usize,
}

impl Calibration {
    /// Refits every convolution of a compressed model in graph order.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model, [`Error::Numerical`] if a system of equations fails.
    pub(crate) fn repair(
        &self,
        model: &Model,
        plan: &Plan,
        observed: &Observations,
        compiled: Compiled,
        progress: &Progress<'_>,
    ) -> Result<Compiled> {
        let mut places: Vec<Option<(usize, usize)>> = vec![None; plan.convs.len()];
        for (g, group) in plan.groups.iter().enumerate() {
            group.members.iter().enumerate().for_each(|(at, &member)| places[member] = Some((g, at)));
        }
        let mut repair = Repair {
            calibration: self,
            model,
            graph: Graph::new(model)?,
            plan,
            observed,
            factors: compiled.factors,
            amends: compiled.amends,
            small: compiled.model,
            known: Known::default(),
            at: 0,
        };
        let items = progress.items("refitting", plan.convs.len());
        let decomposed: HashSet<usize> =
            plan.groups.iter().flat_map(|g| &g.members).map(|&m| plan.convs[m].node).collect();
        let mut heads = Dense::heads(&repair.graph);
        heads.retain(|h| h.weight.nrows() <= WIDEST_HEAD && !decomposed.contains(&h.node));
        for (index, (conv, place)) in plan.convs.iter().zip(&places).enumerate() {
            let whole_without_bias = place.is_none() && conv.gains_bias();
            let blind = repair.observed.sights[index].is_blind();
            let head = heads.iter().any(|h| h.node == conv.node);
            if conv.effective_bias().is_none() || whole_without_bias || head || blind {
                continue;
            }
            repair.at = index;
            let changed = match *place {
                Some((g, at)) => repair.decomposed(index, g, at)?,
                None => repair.whole(index)?,
            };
            repair.update(&changed)?;
            items.done(&conv.name);
        }
        for head in heads {
            repair.head(head)?;
        }
        assemble(model, plan, repair.factors, repair.amends)
    }
}

impl Repair<'_> {
    /// Refits a member of a group, and with the first one what all of them share; the convolutions that are other ones now.
    fn decomposed(&mut self, index: usize, g: usize, at: usize) -> Result<Vec<usize>> {
        let (plan, observed) = (self.plan, self.observed);
        let (conv, group) = (&plan.convs[index], &plan.groups[g]);
        let failed = |reason| numerical(conv, reason);
        let chains = group.form.chains();
        let judged = Judged::new(&chains, &group.members, &observed.sights).map_err(failed)?;
        let mut changed = vec![index];
        // The groups of a grouped convolution share nothing.
        let grouped = group.members.iter().any(|&m| plan.convs[m].channel_groups() > 1);
        if at == 0 && group.members.len() > 1 && !grouped {
            let moments =
                group.members.iter().map(|&m| Ok(self.data(m, 0)?.moment)).collect::<Result<Vec<Moment>>>()?;
            let members = group
                .members
                .iter()
                .zip(&moments)
                .enumerate()
                .map(|(i, (&m, moment))| (i, plan.convs[m].shape, Seen { moment, output: judged.output(i) }));
            let members: Vec<_> = members.collect();
            let mut refit = Refit::new(&chains, &self.factors[g], &members);
            refit.improve(SWEEPS, true).map_err(failed)?;
            refit.store(&mut self.factors[g], true).map_err(failed)?;
            changed.clone_from(&group.members);
        }
        let value = observed.addends[index].as_ref().map_or(&conv.output, |(_, sum)| sum);
        let window = Window::reading(&self.graph, value);
        let parts = Members { convs: &plan.convs, members: &group.members }.parts().nth(at).unwrap_or(at..at + 1);
        let mut biases = Vec::new();
        for (part, at) in parts.enumerate() {
            let data = self.data(index, part)?;
            let seen = Seen { moment: &data.moment, output: judged.output(at) };
            let mut refit = Refit::new(&chains, &self.factors[g], &[(at, conv.part_shape(), seen)]);
            refit.improve(SWEEPS, false).map_err(failed)?;
            let mut moment = data.moment.without_covariance();
            if let Some(window) = window {
                for _ in 0..WINDOWED_TURNS {
                    let aims = aims(&data, window, &refit.kernel(0), &moment);
                    moment.set_outputs(data.rows.view(), data.outputs(&aims).view());
                    refit.retarget(0, &moment);
                    refit.improve(1, false).map_err(failed)?;
                }
            }
            refit.store(&mut self.factors[g], false).map_err(failed)?;
            round(plan, group, &mut self.factors[g])?;
            biases.extend(bias(&self.factors[g].reconstruct(at), &moment));
        }
        self.amends.biases.insert(index, biases);
        Ok(changed)
    }

    /// Gives a convolution that stays whole the bias that restores its mean.
    fn whole(&mut self, index: usize) -> Result<Vec<usize>> {
        let conv = &self.plan.convs[index];
        let mut biases = Vec::new();
        for part in 0..conv.channel_groups() {
            biases.extend(bias(&conv.part_kernel(part), &self.data(index, part)?.moment));
        }
        self.amends.biases.insert(index, biases);
        Ok(vec![index])
    }

    /// Gives a fully connected layer at an output the weights that restore it.
    fn head(&mut self, head: Dense) -> Result<()> {
        let wanted = self.calibration.rows(self.model, &head.output, &Known::default())?;
        let given = self.calibration.rows(&self.small, &head.input, &self.known)?;
        if wanted.ncols() != head.weight.ncols() || given.ncols() != head.weight.nrows() {
            return Ok(());
        }
        let mut data = Moment::new(head.weight.nrows(), head.weight.ncols());
        data.add(given.view(), Some(wanted.view()));
        let failed = |reason| Error::Numerical { what: head.name.clone(), reason };
        let samples = self.calibration.count as f64 / head.weight.nrows() as f64;
        let ridge = HEAD_RIDGE * (RIDGE_SAMPLES / samples).max(1.0);
        let weight = factor::refit_dense(&head.weight, &data, ridge).map_err(failed)?;
        let bias = data.output_mean() - weight.t().dot(&data.mean());
        self.amends.heads.push((Dense { weight, ..head }, bias.to_vec()));
        Ok(())
    }

    /// Rewrites the model with what was refitted, and forgets what that changes and what no later convolution needs.
    fn update(&mut self, changed: &[usize]) -> Result<()> {
        self.small = rewritten(self.model, self.plan, &self.factors, &self.amends)?;
        let convs = &self.plan.convs;
        let graph = Graph::new(&self.small)?;
        let stale = graph.descendants(changed.iter().map(|&m| convs[m].output.as_str()));
        self.known.forget(|name| stale.contains(name));
        self.keep_needed(self.at + 1)
    }

    /// Forgets what no convolution from this one on needs.
    fn keep_needed(&mut self, from: usize) -> Result<()> {
        let convs = &self.plan.convs;
        let graph = Graph::new(&self.small)?;
        let left = (from..convs.len()).flat_map(|i| self.observed.read(i, &convs[i]));
        let wanted: Vec<&str> = left.chain(graph.proto().output.iter().map(|o| o.name())).collect();
        self.known.keep_needed(&self.small, &wanted)
    }

    /// Inputs of a group of a convolution's channels in the compressed model with the outputs that they should give.
    fn data(&mut self, index: usize, part: usize) -> Result<Data> {
        let (conv, calibration) = (&self.plan.convs[index], self.calibration);
        let outputs = conv.output_parts().nth(part).unwrap_or(0..conv.shape[0]);
        let own = s![.., outputs.clone()];
        let values = self.observed.read(index, conv);
        // As many as there are targets, image after image.
        let targets = &self.observed.targets[index];
        let mut rows = Array2::zeros((targets.nrows(), columns(conv)));
        let mut added = Vec::new();
        let mut filled = 0;
        let step = calibration.step(conv);
        let count = calibration.count.div_ceil(step);
        let mut seen: Vec<Stack> = values.iter().map(|_| Stack::new(step)).collect();
        calibration.run(&self.small, &values, step, &self.known, &mut |images, portion| {
            let pixels = portion.iter().zip(images).map(|(image, &number)| {
                let input = view::read(conv, &image[0])?;
                let [out_h, out_w] = view::geometry(conv, &image[0]).output([input.dim().1, input.dim().2]);
                Ok(calibration.pixels(conv, out_h * out_w, number))
            });
            let pixels = pixels.collect::<Result<Vec<Vec<usize>>>>()?;
            let mut places = Vec::new();
            let mut free = rows.slice_mut(s![filled.., ..]);
            for pixels in &pixels {
                filled += pixels.len();
                let (place, rest) = free.split_at(Axis(0), pixels.len());
                places.push(place);
                free = rest;
            }
            let each = portion.par_iter().zip(&pixels).zip(places).with_max_len(1).map(|((image, pixels), place)| {
                let read = view::read(conv, &image[0])?;
                view::geometry(conv, &image[0]).write_rows(view::part(conv, &read, part), pixels, place);
                let added =
                    |value| Ok(at_pixels(view::written(conv, value)?.slice(s![outputs.clone(), .., ..]), pixels));
                values.get(1).map(|_| added(&image[1])).transpose()
            });
            added.extend(each.collect::<Result<Vec<_>>>()?.into_iter().flatten());
            for image in portion {
                seen.iter_mut().zip(&image).for_each(|(all, value)| all.push(value, count));
            }
            Ok(())
        })?;
        for (value, images) in values.iter().zip(seen) {
            self.known.add(value, images);
        }
        self.keep_needed(self.at)?;
        self.known.limit();
        let mut data = Data {
            targets: targets.slice(own).to_owned(),
            added: values.get(1).map(|_| joined(&added)),
            moment: Moment::new(columns(conv), outputs.len()),
            rows,
        };
        data.moment.add(data.rows.view(), Some(data.outputs(&data.targets).view()));
        Ok(data)
    }
}

impl Observations {
    /// What the refit of a convolution reads: its input and, if anything, what is added to its output.
    fn read<'o>(&'o self, index: usize, conv: &'o Conv) -> Vec<&'o str> {
        let addend = self.addends[index].as_ref().map(|(value, _)| value.as_str());
        std::iter::once(conv.input.as_str()).chain(addend).collect()
    }
}

impl Calibration {
    /// A value `[1, n]` of a model for each image.
    fn rows(&self, model: &Model, value: &str, known: &Known) -> Result<Array2<f32>> {
        let mut rows: Vec<f32> = Vec::new();
        self.run(model, &[value], 1, known, &mut |_, seen| {
            seen.iter().for_each(|image| rows.extend(image[0].iter()));
            Ok(())
        })?;
        let columns = rows.len() / self.count.max(1);
        Ok(Array2::from_shape_vec((self.count, columns), rows).unwrap_or_default())
    }
}

/// The values to aim at next.
fn aims(data: &Data, window: Window, kernel: &Array4<f64>, moment: &Moment) -> Array2<f32> {
    let bias: Array1<f32> = bias(kernel, moment).into_iter().map(|b| b as f32).collect();
    let mut now = factor::respond_to_rows(kernel, data.rows.view()) + &bias;
    if let Some(added) = &data.added {
        now += added;
    }
    now.zip_mut_with(&data.targets, |now, &original| *now = window.aim(original, *now));
    now
}

/// `E[y] − Ŵᵀ·E[x̂]`.
fn bias(kernel: &Array4<f64>, moment: &Moment) -> Vec<f64> {
    let given = factor::respond(kernel, &moment.mean());
    moment.output_mean().iter().zip(&given).map(|(y, w)| y - w).collect()
}
