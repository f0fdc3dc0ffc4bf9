//! Calibration: what every convolution sees when the model runs on images, and the layers refitted in turn on what the
//! compressed model gives them. No labels, no training.

mod activation;
mod cache;
mod gradients;
mod held_out;
mod known;
mod repair;
mod view;
mod watch;

pub(crate) use cache::Cache;
pub(crate) use held_out::HeldOut;

use crate::error::{Error, Result};
use crate::factor::Moment;
use crate::images::{Images, Samples};
use crate::onnx::{Conv, Graph, InputShape, Model, hex};
use crate::plan::Sight;
use crate::progress::Progress;
use crate::runtime::{Feed, Input, inputs, shapes};
use known::{Known, MOST_BYTES, Probe};
use ndarray::{Array2, ArrayD, ArrayView3, Axis};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Images that are run before their activations are counted and dropped.
const PORTION: usize = 16;
/// Rows that a moment needs for each of its columns; beyond that, every so many-th row is taken.
const ROWS_PER_COLUMN: usize = 64;
/// Columns of a moment for each of its rows at most: with fewer rows most directions are never seen.
const COLUMNS_PER_ROW: usize = 4;
/// Rows that are taken in any case, if there are as many.
const LEAST_ROWS: usize = 32_000;
/// Rows of one convolution at most, which bounds what its targets and, while it is refitted, its inputs take in memory.
const MOST_ROWS: usize = 40_000;

/// Values that a fully connected layer reads at most, if it is to be fitted to what it sees: their products take two gigabytes.
const WIDEST_DENSE: usize = 16_384;

/// What to calibrate on.
#[derive(Debug, Clone)]
pub struct CalibrationInputs {
    /// The images.
    pub images: Images,
    /// How many of them at most.
    pub most: usize,
    /// Take the mirror image of each as well, where the model reads one picture.
    pub mirror: bool,
    /// A folder in which what was found out is kept, and looked for.
    pub cache: Option<PathBuf>,
    /// Nobody asked for it: where the model reads no pictures, or tract cannot run it or it is too large for that, the plain weights decide.
    pub optional: bool,
}

/// Images to calibrate on.
pub(crate) struct Calibration {
    samples: Samples,
    /// Images, mirror images among them.
    count: usize,
    /// Images made of a sample: itself, and its mirror image if that is wanted.
    images_each: usize,
    inputs: Vec<Input>,
}

/// What the original model shows on the images.
pub(crate) struct Observations {
    /// What each convolution sees.
    pub(crate) sights: Arc<[Sight]>,
    /// For each convolution the outputs to reach, `rows × out`, at the pixels sampled, image after image.
    targets: Vec<Array2<f32>>,
    /// For each convolution the value that is added to its output and their sum, if only an `Add` reads it; the targets are
    /// the sums.
    addends: Vec<Option<(String, String)>>,
}

impl Calibration {
    /// The images for a model's inputs.
    ///
    /// # Errors
    /// [`Error::Images`] or [`Error::Options`] if they do not fit the model.
    pub(crate) fn new(model: &Model, on: &CalibrationInputs, given: &[InputShape]) -> Result<Self> {
        let inputs = inputs(model, given)?;
        let mut samples = on.images.fit(model, &shapes(&inputs), Some(on.most))?;
        if samples.are_blank()? {
            let reason = "each of its samples is one value throughout, of which nothing can be learnt: give inputs as the model sees them, or --calib none";
            return Err(samples.misfit(reason.into()));
        }
        let images_each = if on.mirror && samples.mirror() { 2 } else { 1 };
        Ok(Self { count: samples.len(), samples, images_each, inputs })
    }

    /// Takes all that is fed to the model into a hash, sample after sample.
    ///
    /// # Errors
    /// [`Error::Images`] if a sample cannot be decoded.
    fn hash(&self, part: &mut dyn FnMut(&[u8])) -> Result<()> {
        for input in &self.inputs {
            part(format!("{} {:?}", input.name, input.dims).as_bytes());
        }
        self.samples.hash(&(0..self.count).collect::<Vec<usize>>(), part)
    }

    /// A SHA-256 of what observations follow from, mirror images left out as they follow from the rest; of pictures drawn by a `seed`
    /// the first stands for all.
    ///
    /// # Errors
    /// [`Error::Images`] if a sample cannot be decoded.
    pub(crate) fn origin(&self, seed: Option<u64>) -> Result<String> {
        let mut hash = Sha256::new();
        let dims: Vec<_> = self.inputs.iter().map(|input| (&input.name, &input.dims)).collect();
        hash.update(format!("{dims:?} {} {} {seed:?} ", self.count, self.images_each));
        let last = if seed.is_some() { self.count.min(1) } else { self.count };
        let indices: Vec<usize> = (0..last).step_by(self.images_each).collect();
        self.samples.hash(&indices, &mut |part| hash.update(part))?;
        Ok(hex(&hash.finalize()))
    }

    /// A SHA-256 of all that is fed to the model.
    ///
    /// # Errors
    /// [`Error::Images`] if a sample cannot be decoded.
    pub(crate) fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        self.hash(&mut |bytes| hash.update(bytes))?;
        Ok(hex(&hash.finalize()))
    }

    /// The line that says which preprocessing was assumed, if none was asked for.
    pub(crate) fn assumed(&self) -> Option<&str> {
        self.samples.assumed()
    }

    /// How many samples, mirror images not counted.
    pub(crate) fn samples(&self) -> usize {
        self.count / self.images_each
    }

    /// Whether the mirror image of each sample is looked at too.
    pub(crate) fn is_mirrored(&self) -> bool {
        self.images_each > 1
    }

    /// What every `step`-th image gives at some values of a model, to `take` portion by portion, with the numbers of the images.
    fn run(&self, model: &Model, values: &[&str], step: usize, known: &Known, take: &mut Take<'_>) -> Result<()> {
        let probe = Probe::new(model, values, &self.inputs, step, known, &HashSet::new())?;
        let images: Vec<usize> = (0..self.count).step_by(step).collect();
        for portion in images.chunks(PORTION) {
            let feeds = match probe.reads_images() {
                true => self.samples.feeds(portion.iter().copied())?,
                false => vec![Feed::new(); portion.len()],
            };
            let runs = portion.par_iter().zip(&feeds).with_max_len(1);
            take(portion, runs.map(|(&image, feed)| probe.run(image, feed, known)).collect::<Result<_>>()?)?;
        }
        Ok(())
    }

    /// Runs the original model once and keeps what calibration needs of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn observe(&self, model: &Model, convs: &[Conv], progress: &Progress<'_>) -> Result<Observations> {
        let portions = progress.items("observing", self.count.div_ceil(PORTION));
        let graph = Graph::new(model)?;
        let mut addends: Vec<Option<(String, String)>> = convs.iter().map(|c| addend(&graph, &c.output)).collect();
        let mut values: Vec<&str> = Vec::new();
        let mut place = |value: &'_ str| -> usize {
            let owned = convs.iter().map(|c| c.input.as_str()).chain(convs.iter().map(|c| c.output.as_str()));
            let owned = owned.chain(addends.iter().flatten().map(|a| a.0.as_str())).find(|v| *v == value).unwrap_or("");
            values.iter().position(|v| *v == owned).unwrap_or_else(|| {
                values.push(owned);
                values.len() - 1
            })
        };
        let places: Vec<(usize, usize, Option<usize>)> = convs
            .iter()
            .zip(&addends)
            .map(|(c, addend)| (place(&c.input), place(&c.output), addend.as_ref().map(|a| place(&a.0))))
            .collect();
        let mut seen_by: Vec<Gathered> = convs.iter().map(|c| Gathered::new(c, self.is_blind(c))).collect();
        self.run(model, &values, 1, &Known::default(), &mut |images, seen| {
            if images[0] == 0 {
                let seeing = convs.iter().zip(&places).filter(|(c, _)| !self.is_blind(c));
                self.check_enough(seeing.map(|(c, place)| (c, view::pixels(c, &seen[0][place.1]))))?;
            }
            seen_by.par_iter_mut().zip(convs).zip(&places).with_max_len(1).try_for_each(|((kept, conv), place)| {
                let mut rows = vec![Vec::new(); conv.channel_groups()];
                let step = self.step(conv);
                for (image, &number) in seen.iter().zip(images).filter(|(_, number)| number.is_multiple_of(step)) {
                    let pixels = self.pixels(conv, view::pixels(conv, &image[place.1]), number);
                    let (geometry, read) = (view::geometry(conv, &image[place.0]), view::read(conv, &image[place.0])?);
                    for (part, rows) in rows.iter_mut().enumerate() {
                        rows.push(geometry.rows(view::part(conv, &read, part), &pixels));
                    }
                    let mut target = at_pixels(view::written(conv, &image[place.1])?.view(), &pixels);
                    if let Some(other) = place.2 {
                        // A value that is spread over channels or pixels is not repaired along.
                        kept.alike &= image[other].shape() == image[place.1].shape();
                        if kept.alike {
                            target += &at_pixels(view::written(conv, &image[other])?.view(), &pixels);
                        }
                    }
                    kept.targets.extend(target.iter());
                }
                for (moment, rows) in kept.moments.iter_mut().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
                    moment.add(joined(&rows).view(), None);
                }
                Ok::<(), Error>(())
            })?;
            portions.done("portions of images");
            Ok(())
        })?;
        for (kept, conv) in seen_by.iter_mut().zip(convs) {
            kept.moments.iter_mut().for_each(Moment::narrow);
            if !kept.moments.iter().all(Moment::is_finite) || !kept.targets.iter().all(|x| x.is_finite()) {
                return Err(self.samples.misfit(format!(
                    "what '{}' reads or gives on these inputs is no number, or its squares exceed float32: repair the model, or give other \
                     inputs or another --preprocess",
                    conv.name
                )));
            }
        }
        progress.say("observing: gradients of the outputs");
        let mut sights = Vec::new();
        let mut targets = Vec::new();
        let gradients = self.gradients(model, convs)?;
        for (((mut kept, conv), addend), gradient) in seen_by.into_iter().zip(convs).zip(&mut addends).zip(gradients) {
            addend.take_if(|_| !kept.alike);
            let shape = (kept.targets.len() / conv.shape[0], conv.shape[0]);
            kept.targets.shrink_to_fit();
            targets.push(Array2::from_shape_vec(shape, kept.targets).unwrap_or_default());
            sights.push(Sight::new(kept.moments, gradient).map_err(|reason| numerical(conv, reason))?);
        }
        Ok(Observations { sights: sights.into(), targets, addends })
    }

    /// Whether a fully connected layer reads more values than the samples can tell about: its plain weights are decomposed.
    fn is_blind(&self, conv: &Conv) -> bool {
        let rows = self.count.saturating_mul(conv.extents().1.iter().product());
        conv.kind.is_dense() && (columns(conv) > WIDEST_DENSE || columns(conv) > COLUMNS_PER_ROW * rows)
    }

    /// Refuses samples that leave most of what some convolution's moment must tell open; with each the pixels of its output.
    fn check_enough<'v>(&self, convs: impl Iterator<Item = (&'v Conv, usize)>) -> Result<()> {
        let needed = |(conv, pixels): (&'v Conv, usize)| {
            (columns(conv).div_ceil(COLUMNS_PER_ROW).div_ceil(self.images_each * pixels.max(1)), conv)
        };
        let most = convs.map(needed).max_by_key(|n| n.0).filter(|n| n.0 > self.samples());
        most.map_or(Ok(()), |(needed, conv)| {
            Err(Error::Options(format!(
                "{} calibration samples are too few: convolution '{}' reads {} values at a time and needs {needed} samples or more (--calib-samples)",
                self.samples(),
                conv.name,
                columns(conv),
            )))
        })
    }

    /// The output pixels of an image at which rows are taken: every so many-th, another one first for each image.
    fn pixels(&self, conv: &Conv, all: usize, image: usize) -> Vec<usize> {
        let enough = (ROWS_PER_COLUMN * columns(conv)).clamp(LEAST_ROWS, MOST_ROWS);
        let each = self.step(conv);
        let step = (all * self.count.div_ceil(each) / enough).clamp(1, all.max(1));
        (image / each * 7 % step..all).step_by(step).collect()
    }

    /// Which images a convolution is fitted on: every so many-th, so that what it reads and what is added to its output can be
    /// kept; without the mirror images first.
    fn step(&self, conv: &Conv) -> usize {
        let ([in_h, in_w], [out_h, out_w]) = conv.extents();
        let values = conv.shape[1] * conv.channel_groups() * in_h * in_w + conv.shape[0] * out_h * out_w;
        (size_of::<f32>() * values * self.count).div_ceil(MOST_BYTES).next_power_of_two()
    }
}

/// Hears what images give: their numbers, and the values of each.
type Take<'t> = dyn FnMut(&[usize], Vec<Vec<ArrayD<f32>>>) -> Result<()> + 't;

/// What is gathered of one convolution while images run.
struct Gathered {
    /// One a group of channels.
    moments: Vec<Moment>,
    targets: Vec<f32>,
    /// Whether what is added to the output has its shape.
    alike: bool,
}

impl Gathered {
    fn new(conv: &Conv, blind: bool) -> Self {
        let moment = if blind { Moment::of_means(columns(conv)) } else { Moment::new(columns(conv), 0) };
        Self { moments: vec![moment; conv.channel_groups()], targets: Vec::new(), alike: true }
    }
}

/// Values that each group of a convolution's channels reads at a time.
fn columns(conv: &Conv) -> usize {
    conv.shape[1..].iter().product()
}

/// `pixels × channels` of a value.
fn at_pixels(value: ArrayView3<'_, f32>, pixels: &[usize]) -> Array2<f32> {
    let (channels, _, width) = value.dim();
    Array2::from_shape_fn((pixels.len(), channels), |(p, c)| value[[c, pixels[p] / width, pixels[p] % width]])
}

/// Matrices on top of each other.
fn joined(parts: &[Array2<f32>]) -> Array2<f32> {
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    ndarray::concatenate(Axis(0), &views).unwrap_or_default()
}

/// The other operand of the `Add` that alone reads a value, and the sum.
fn addend(graph: &Graph<'_>, value: &str) -> Option<(String, String)> {
    let (index, position) = graph.only_reader(value)?;
    let node = &graph.nodes()[index];
    let other = node.input.get(1 - position.min(1)).filter(|o| !graph.is_constant(o))?;
    (node.op_type() == "Add" && node.input.len() == 2).then(|| (other.clone(), node.output[0].clone()))
}

fn numerical(conv: &Conv, reason: String) -> Error {
    Error::Numerical { what: conv.name.clone(), reason }
}
