//! Calibration: what every convolution sees when the model runs on images, and the layers refitted in turn on what the
//! compressed model gives them. No labels, no training.

use crate::error::{Error, Result};
use crate::factor::{self, Geometry, Moment};
use crate::images::{Images, Samples};
use crate::onnx::{Conv, Graph, InputShape, Model};
use crate::plan::Plan;
use crate::rewrite::{Compiled, assemble, shifted_bias, with_kernels};
use crate::runtime::{Feed, Input, Runner, inputs, shapes};
use ndarray::{Array2, ArrayD, ArrayView3, Axis, Ix4, s};
use rayon::prelude::*;
use std::sync::Arc;

/// Images that are run before their activations are counted and dropped.
const PORTION: usize = 16;
/// Rows that a moment needs for each of its columns; beyond that, every so many-th row is taken.
const ROWS_PER_COLUMN: usize = 64;
/// Turns between the factors of a layer when it is refitted.
const REFIT_SWEEPS: usize = 6;

/// Images to calibrate on.
pub(crate) struct Calibration {
    samples: Samples,
    count: usize,
    inputs: Vec<Input>,
}

/// What the original model shows on the images.
pub(crate) struct Observations {
    /// First and second moments of what each convolution reads.
    pub(crate) moments: Arc<[Moment]>,
    /// For each convolution the outputs to reach, `rows × out`, at the pixels sampled, image after image.
    targets: Vec<Array2<f32>>,
    /// For each convolution the value that is added to its output, if only an `Add` reads it; the targets are the sums.
    addends: Vec<Option<String>>,
}

impl Calibration {
    /// At most `most` of the images, for a model's inputs.
    ///
    /// # Errors
    /// [`Error::Images`] or [`Error::Options`] if they do not fit the model.
    pub(crate) fn new(model: &Model, images: &Images, most: usize, given: &[InputShape]) -> Result<Self> {
        let inputs = inputs(model, given)?;
        let samples = images.fit(model, &shapes(&inputs), Some(most))?;
        Ok(Self { count: samples.len(), samples, inputs })
    }

    /// The line that says which preprocessing was assumed, if none was asked for.
    pub(crate) fn assumed(&self) -> Option<&str> {
        self.samples.assumed()
    }

    /// How many images.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// What the images give at some values of a model, to `take` portion by portion, with the number of the first image.
    fn run(
        &self,
        model: &Model,
        values: &[&str],
        take: &mut dyn FnMut(usize, Vec<Vec<ArrayD<f32>>>) -> Result<()>,
    ) -> Result<()> {
        let probe = Probe::new(model, values, &self.inputs)?;
        for from in (0..self.count).step_by(PORTION) {
            let portion = from..(from + PORTION).min(self.count);
            take(from, probe.run(&self.samples.feeds(portion)?)?)?;
        }
        Ok(())
    }

    /// Runs the original model once and keeps what calibration needs of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn observe(&self, model: &Model, convs: &[Conv]) -> Result<Observations> {
        let graph = Graph::new(model)?;
        let addends: Vec<Option<String>> = convs.iter().map(|c| addend(&graph, &c.output).map(str::to_owned)).collect();
        let mut values: Vec<&str> = Vec::new();
        let mut place = |value: &'_ str| -> usize {
            let owned = convs.iter().map(|c| c.input.as_str()).chain(convs.iter().map(|c| c.output.as_str()));
            let owned = owned.chain(addends.iter().flatten().map(String::as_str)).find(|v| *v == value).unwrap_or("");
            values.iter().position(|v| *v == owned).unwrap_or_else(|| {
                values.push(owned);
                values.len() - 1
            })
        };
        let places: Vec<(usize, usize, Option<usize>)> = convs
            .iter()
            .zip(&addends)
            .map(|(c, addend)| (place(&c.input), place(&c.output), addend.as_ref().map(|a| place(a))))
            .collect();
        let mut seen_by: Vec<(Moment, Vec<f32>)> =
            convs.iter().map(|c| (Moment::new(columns(c), 0), Vec::new())).collect();
        self.run(model, &values, &mut |from, seen| {
            seen_by.par_iter_mut().zip(convs).zip(&places).with_max_len(1).try_for_each(|((kept, conv), place)| {
                let mut rows = Vec::new();
                for (at, image) in seen.iter().enumerate() {
                    let pixels = self.pixels(conv, image[place.1].shape().iter().skip(2).product(), from + at);
                    rows.push(geometry(conv)?.rows(plane(&image[place.0], &conv.input)?, &pixels));
                    let mut target = at_pixels(plane(&image[place.1], &conv.output)?, &pixels);
                    if let Some(other) = place.2 {
                        target = summed(target, plane(&image[other], &conv.output)?, &pixels, 1.0);
                    }
                    kept.1.extend(target.iter());
                }
                kept.0.add(joined(&rows).view(), None);
                Ok(())
            })
        })?;
        let (moments, targets): (Vec<Moment>, Vec<Vec<f32>>) = seen_by.into_iter().unzip();
        let targets = targets.into_iter().zip(convs).map(|(values, conv)| {
            let rows = values.len() / conv.shape[0];
            Array2::from_shape_vec((rows, conv.shape[0]), values).unwrap_or_default()
        });
        Ok(Observations { moments: moments.into(), targets: targets.collect(), addends })
    }

    /// The output pixels of an image at which rows are taken: every so many-th, another one first for each image.
    fn pixels(&self, conv: &Conv, all: usize, image: usize) -> Vec<usize> {
        let enough = (ROWS_PER_COLUMN * columns(conv)).max(1);
        let step = (all * self.count / enough).clamp(1, all.max(1));
        (image * 7 % step..all).step_by(step).collect()
    }

    /// Refits the convolutions of a compiled model in graph order: each to the original's output, on the inputs that the
    /// model compressed so far gives it. Where its output is only added to another value, it is fitted to the original sum, so
    /// that it also repairs what that other value has lost.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model, [`Error::Numerical`] if a system of equations fails.
    pub(crate) fn repair(
        &self,
        model: &Model,
        plan: &Plan,
        observed: &Observations,
        compiled: Compiled,
        progress: &dyn Fn(&str),
    ) -> Result<Compiled> {
        let mut order: Vec<(usize, usize, usize)> = Vec::new();
        for (g, group) in plan.groups.iter().enumerate() {
            order.extend(group.members.iter().enumerate().map(|(at, &member)| (member, g, at)));
        }
        order.sort_unstable();
        let mut now = compiled;
        for (done, &(member, g, at)) in order.iter().enumerate() {
            let conv = &plan.convs[member];
            if conv.effective_bias().is_none() {
                continue;
            }
            progress(&format!("refitting {} ({} of {})", conv.name, done + 1, order.len()));
            let moment =
                self.refit_data(&now.model, conv, &observed.targets[member], observed.addends[member].as_deref())?;
            let chains = plan.groups[g].scheme.chains();
            let (mut factors, mut biases) = (now.factors, now.biases);
            factor::refit(&chains, &mut factors[g], at, conv.shape, &moment, REFIT_SWEEPS)
                .map_err(|reason| Error::Numerical { what: conv.name.clone(), reason })?;
            // E[y] − Ŵᵀ·E[x̂]
            let given = factor::respond(&factors[g].reconstruct(at), &moment.mean());
            let bias = moment.output_mean().iter().zip(&given).map(|(y, w)| (y - w) as f32).collect();
            biases.insert(member, bias);
            now = assemble(model, plan, factors, biases)?;
        }
        Ok(now)
    }

    /// Inputs of a convolution in the compressed model with the outputs that they should give.
    fn refit_data(&self, small: &Model, conv: &Conv, targets: &Array2<f32>, addend: Option<&str>) -> Result<Moment> {
        let values: Vec<&str> = std::iter::once(conv.input.as_str()).chain(addend).collect();
        let mut moment = Moment::new(columns(conv), conv.shape[0]);
        let mut next = 0;
        self.run(small, &values, &mut |from, seen| {
            let mut rows = Vec::new();
            let mut wanted = Vec::new();
            for (at, image) in seen.iter().enumerate() {
                let [_, h, w] = <[usize; 3]>::from(plane(&image[0], &conv.input)?.dim());
                let [out_h, out_w] = geometry(conv)?.output([h, w]);
                let pixels = self.pixels(conv, out_h * out_w, from + at);
                rows.push(geometry(conv)?.rows(plane(&image[0], &conv.input)?, &pixels));
                let target = targets.slice(s![next..next + pixels.len(), ..]).to_owned();
                next += pixels.len();
                wanted.push(match addend {
                    Some(value) => summed(target, plane(&image[1], value)?, &pixels, -1.0),
                    None => target,
                });
            }
            moment.add(joined(&rows).view(), Some(joined(&wanted).view()));
            Ok(())
        })?;
        Ok(moment)
    }
}

/// Images on which the network's output is watched while one group changes.
const WATCHED: usize = 64;

/// The original model's output on some images, against which changed models are held.
pub(crate) struct Watch<'c> {
    model: &'c Model,
    convs: &'c [Conv],
    moments: Arc<[Moment]>,
    inputs: &'c [Input],
    feeds: Vec<Feed>,
    outputs: Vec<Vec<ArrayD<f32>>>,
    /// `Σ ‖y − E y‖²` over all outputs.
    variation: f64,
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
        moments: Arc<[Moment]>,
    ) -> Result<Watch<'w>> {
        let count = WATCHED.min(self.count);
        let feeds = self.samples.feeds((0..count).map(|i| i * self.count / count))?;
        let outputs = Runner::load(model, &self.inputs, "the model")?.run_all(&feeds)?;
        let mut variation = 0.0;
        for o in 0..outputs.first().map_or(0, Vec::len) {
            let all = || outputs.iter().map(|y| y[o].mapv(f64::from));
            let mean = all().reduce(|a, b| a + b).unwrap_or_default() / count as f64;
            variation += all().map(|y| (y - &mean).mapv(|d| d * d).sum()).sum::<f64>();
        }
        Ok(Watch { model, convs, moments, inputs: &self.inputs, feeds, outputs, variation })
    }
}

impl Watch<'_> {
    /// `Σ ‖y − ŷ‖² / Σ ‖y − E y‖²` of the network's output when some convolutions get other kernels, their biases keeping the
    /// mean.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn moved(&self, members: &[usize], kernels: &[ndarray::Array4<f64>]) -> Result<f64> {
        let replaced = members.iter().zip(kernels).map(|(&m, kernel)| {
            (&self.convs[m], kernel.clone(), shifted_bias(&self.convs[m], kernel, &self.moments[m]))
        });
        let changed =
            Runner::load(&with_kernels(self.model, replaced)?, self.inputs, "the model")?.run_all(&self.feeds)?;
        let pairs = self.outputs.iter().flatten().zip(changed.iter().flatten());
        let squares = |(a, b): (&ArrayD<f32>, &ArrayD<f32>)| -> f64 {
            a.iter().zip(b).map(|(&p, &q)| (f64::from(p) - f64::from(q)).powi(2)).sum()
        };
        let moved: f64 = pairs.map(squares).sum();
        Ok(if self.variation > 0.0 { moved / self.variation } else { 0.0 })
    }
}

/// A model that gives some of its values.
struct Probe {
    runner: Runner,
    /// For each value its place among the runner's outputs; none if it is the model's input itself.
    places: Vec<Option<usize>>,
}

impl Probe {
    fn new(model: &Model, values: &[&str], inputs: &[Input]) -> Result<Self> {
        let fed = model.inputs();
        let computed: Vec<&str> = values.iter().copied().filter(|v| fed.iter().all(|i| i.0 != **v)).collect();
        let places = values.iter().map(|v| computed.iter().position(|c| c == v)).collect();
        // With nothing to compute any output will do.
        let probed = if computed.is_empty() { model.clone() } else { model.with_outputs(&computed) };
        Ok(Self { runner: Runner::load(&probed, inputs, "the model")?, places })
    }

    fn run(&self, feeds: &[Feed]) -> Result<Vec<Vec<ArrayD<f32>>>> {
        let outputs = self.runner.run_all(feeds)?;
        let each = outputs.into_iter().zip(feeds).map(|(outputs, feed)| {
            let value = |place: &Option<usize>| place.map_or_else(|| feed[0].clone(), |p| outputs[p].clone());
            self.places.iter().map(value).collect()
        });
        Ok(each.collect())
    }
}

fn geometry(conv: &Conv) -> Result<Geometry> {
    let open =
        || Error::Options(format!("the padding of '{}' depends on the input's size: give --input-shape", conv.name));
    conv.geometry().ok_or_else(open)
}

fn columns(conv: &Conv) -> usize {
    conv.shape[1..].iter().product()
}

/// `[1, channels, height, width]` without its first axis.
fn plane<'v>(value: &'v ArrayD<f32>, name: &str) -> Result<ArrayView3<'v, f32>> {
    let four = value.view().into_dimensionality::<Ix4>().ok().filter(|v| v.len_of(Axis(0)) == 1);
    let odd = || Error::Options(format!("value '{name}' is {:?}, not one image of channels", value.shape()));
    four.map(|v| v.index_axis_move(Axis(0), 0)).ok_or_else(odd)
}

/// `pixels × channels` of a value.
fn at_pixels(value: ArrayView3<'_, f32>, pixels: &[usize]) -> Array2<f32> {
    let (channels, _, width) = value.dim();
    Array2::from_shape_fn((pixels.len(), channels), |(p, c)| value[[c, pixels[p] / width, pixels[p] % width]])
}

/// `rows + sign·other`, where the other has as many channels; broadcast values are left out.
fn summed(rows: Array2<f32>, other: ArrayView3<'_, f32>, pixels: &[usize], sign: f32) -> Array2<f32> {
    let (channels, height, width) = other.dim();
    if channels != rows.ncols() || pixels.last().is_some_and(|&p| p >= height * width) {
        return rows;
    }
    rows + at_pixels(other, pixels) * sign
}

/// Matrices on top of each other.
fn joined(parts: &[Array2<f32>]) -> Array2<f32> {
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    ndarray::concatenate(Axis(0), &views).unwrap_or_default()
}

/// The other operand of the `Add` that alone reads a value.
fn addend<'g>(graph: &'g Graph<'_>, value: &str) -> Option<&'g str> {
    let (index, position) = graph.only_reader(value)?;
    let node = &graph.nodes()[index];
    let other = node.input.get(1 - position.min(1)).filter(|o| graph.constant(o).is_none())?;
    (node.op_type() == "Add" && node.input.len() == 2).then_some(other.as_str())
}
