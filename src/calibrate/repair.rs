//! Sequential repair: the convolutions of a compressed model refitted in graph order, each to the original's output on the
//! inputs that the model compressed so far gives it.
//!
//! * Where its output is only added to another value, a convolution is fitted to the original *sum*, so that it also repairs what
//!   that other value has lost.
//! * Where only a rectifier reads the result, a deviation that the rectifier hides is none: with `t` the original value and `ẑ`
//!   what the factors give, the next target is `t` if `t > 0`, else `min(ẑ, 0)`. Each turn lowers the error behind the
//!   rectifier wherever `ẑ > 0` (majorise and minimise; cf. Zhang et al., arXiv 1505.06798, on the same objective).
//! * A factor that several share is fitted for all of them when the first one's turn comes, and then stays.
//! * A convolution left whole gets a bias that restores its mean, and a fully connected layer that gives an output of the model
//!   weights that restore the original's outputs as far as a ridge lets them.

use super::{Calibration, Observations, at_pixels, columns, geometry, joined, numerical, plane};
use crate::error::{Error, Result};
use crate::factor::{self, Moment, Refit, Seen};
use crate::onnx::{Conv, Dense, Graph, Model};
use crate::plan::{Judged, Plan};
use crate::progress::Progress;
use crate::rewrite::{Compiled, assemble};
use ndarray::{Array1, Array2, Array4};

/// Turns between the factors of a convolution when it is refitted.
const SWEEPS: usize = 6;
/// Targets behind a rectifier, each fitted in one turn.
const RECTIFIED_TURNS: usize = 4;

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

/// The range within which an activation tells values apart.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    low: f32,
    high: f32,
}

impl Window {
    /// Of the rectifier that alone reads a value, if one does.
    fn reading(graph: &Graph<'_>, value: &str) -> Option<Self> {
        let (index, _) = graph.only_reader(value)?;
        let node = &graph.nodes()[index];
        (node.op_type() == "Relu" && crate::onnx::is_standard(node)).then_some(Self { low: 0.0, high: f32::INFINITY })
    }

    /// The value to aim at: the original's, or where the activation is flat anything that it maps alike.
    fn aim(self, original: f32, now: f32) -> f32 {
        if original <= self.low {
            now.min(self.low)
        } else if original >= self.high {
            now.max(self.high)
        } else {
            original
        }
    }
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
        let graph = Graph::new(model)?;
        let mut places: Vec<Option<(usize, usize)>> = vec![None; plan.convs.len()];
        for (g, group) in plan.groups.iter().enumerate() {
            group.members.iter().enumerate().for_each(|(at, &member)| places[member] = Some((g, at)));
        }
        let mut now = compiled;
        let items = progress.items("refitting", plan.convs.len());
        for (index, (conv, place)) in plan.convs.iter().zip(&places).enumerate() {
            let whole_without_bias = place.is_none() && conv.bias.is_none() && conv.batch_norm.is_none();
            if conv.effective_bias().is_none() || whole_without_bias {
                continue;
            }
            let (mut factors, mut amends) = (now.factors, now.amends);
            let failed = |reason| numerical(conv, reason);
            match *place {
                Some((g, at)) => {
                    let group = &plan.groups[g];
                    let chains = group.form.chains();
                    let judged = Judged::new(&chains, &group.members, &observed.sights).map_err(failed)?;
                    if at == 0 && group.members.len() > 1 {
                        let data = group.members.iter().map(|&m| self.data(&now.model, &plan.convs[m], m, observed));
                        let moments = data.map(|d| d.map(|d| d.moment)).collect::<Result<Vec<Moment>>>()?;
                        let members = group.members.iter().zip(&moments).enumerate().map(|(i, (&m, moment))| {
                            (i, plan.convs[m].shape, Seen { moment, output: judged.output(i) })
                        });
                        let members: Vec<_> = members.collect();
                        let mut refit = Refit::new(&chains, &factors[g], &members);
                        refit.improve(SWEEPS, true).map_err(failed)?;
                        refit.store(&mut factors[g], true).map_err(failed)?;
                    }
                    let data = self.data(&now.model, conv, index, observed)?;
                    let output = judged.output(at);
                    let value = observed.addends[index].as_ref().map_or(&conv.output, |(_, sum)| sum);
                    let window = Window::reading(&graph, value);
                    let seen = Seen { moment: &data.moment, output };
                    let mut refit = Refit::new(&chains, &factors[g], &[(at, conv.shape, seen)]);
                    refit.improve(SWEEPS, false).map_err(failed)?;
                    let mut moment = data.moment.clone();
                    for _ in 0..window.map_or(0, |_| RECTIFIED_TURNS) {
                        let Some(window) = window else { break };
                        let aims = aims(&data, window, &refit.kernel(0), &moment);
                        moment.set_outputs(data.rows.view(), data.outputs(&aims).view());
                        refit.retarget(0, &moment);
                        refit.improve(1, false).map_err(failed)?;
                    }
                    refit.store(&mut factors[g], false).map_err(failed)?;
                    amends.biases.insert(index, bias(&factors[g].reconstruct(at), &moment));
                }
                None => {
                    let data = self.data(&now.model, conv, index, observed)?;
                    amends.biases.insert(index, bias(&conv.kernel(), &data.moment));
                }
            }
            now = assemble(model, plan, factors, amends)?;
            items.done(&conv.name);
        }
        for head in Dense::heads(&graph) {
            if head.weight.nrows() > WIDEST_HEAD {
                continue;
            }
            let mut data = Moment::new(head.weight.nrows(), head.weight.ncols());
            let wanted = self.rows(model, &head.output)?;
            let given = self.rows(&now.model, &head.input)?;
            if wanted.ncols() != head.weight.ncols() || given.ncols() != head.weight.nrows() {
                continue;
            }
            data.add(given.view(), Some(wanted.view()));
            let failed = |reason| Error::Numerical { what: head.name.clone(), reason };
            let ridge = HEAD_RIDGE * (RIDGE_SAMPLES * head.weight.nrows() as f64 / self.count as f64).max(1.0);
            let weight = factor::refit_dense(&head.weight, &data, ridge).map_err(failed)?;
            let bias = data.output_mean() - weight.t().dot(&data.mean());
            let mut amends = now.amends;
            amends.heads.push((Dense { weight, ..head }, bias.iter().map(|&b| b as f32).collect()));
            now = assemble(model, plan, now.factors, amends)?;
        }
        Ok(now)
    }

    /// A value `[1, n]` of a model for each image.
    fn rows(&self, model: &Model, value: &str) -> Result<Array2<f32>> {
        let mut rows: Vec<f32> = Vec::new();
        self.run(model, &[value], &mut |_, seen| {
            seen.iter().for_each(|image| rows.extend(image[0].iter()));
            Ok(())
        })?;
        let columns = rows.len() / self.count.max(1);
        Ok(Array2::from_shape_vec((self.count, columns), rows).unwrap_or_default())
    }

    /// Inputs of a convolution in the compressed model with the outputs that they should give.
    fn data(&self, small: &Model, conv: &Conv, index: usize, observed: &Observations) -> Result<Data> {
        let addend = observed.addends[index].as_ref().map(|(value, _)| value.as_str());
        let values: Vec<&str> = std::iter::once(conv.input.as_str()).chain(addend).collect();
        let (mut rows, mut added) = (Vec::new(), Vec::new());
        self.run(small, &values, &mut |from, seen| {
            for (at, image) in seen.iter().enumerate() {
                let input = plane(&image[0], &conv.input)?;
                let [out_h, out_w] = geometry(conv)?.output([input.dim().1, input.dim().2]);
                let pixels = self.pixels(conv, out_h * out_w, from + at);
                rows.push(geometry(conv)?.rows(input, &pixels));
                if let Some(value) = addend {
                    added.push(at_pixels(plane(&image[1], value)?, &pixels));
                }
            }
            Ok(())
        })?;
        let rows = joined(&rows);
        let mut data = Data {
            targets: observed.targets[index].clone(),
            added: addend.map(|_| joined(&added)),
            moment: Moment::new(columns(conv), conv.shape[0]),
            rows,
        };
        data.moment.add(data.rows.view(), Some(data.outputs(&data.targets).view()));
        Ok(data)
    }
}

/// The values to aim at next.
fn aims(data: &Data, window: Window, kernel: &Array4<f64>, moment: &Moment) -> Array2<f32> {
    let (out, inputs, kh, kw) = kernel.dim();
    let bias = Array1::from(bias(kernel, moment));
    // im2col order (kh, kw, in).
    let flat = kernel.view().permuted_axes([2, 3, 1, 0]).as_standard_layout().mapv(|x| x as f32);
    let flat = flat.into_shape_with_order((kh * kw * inputs, out)).unwrap_or_default();
    let mut now = data.rows.dot(&flat) + &bias;
    if let Some(added) = &data.added {
        now += added;
    }
    now.zip_mut_with(&data.targets, |now, &original| *now = window.aim(original, *now));
    now
}

/// `E[y] − Ŵᵀ·E[x̂]`.
fn bias(kernel: &Array4<f64>, moment: &Moment) -> Vec<f32> {
    let given = factor::respond(kernel, &moment.mean());
    moment.output_mean().iter().zip(&given).map(|(y, w)| (y - w) as f32).collect()
}
