//! Distillation without labels: the original is the teacher, any images are the questions, and what was decomposed learns to give
//! the original's answers.
//!
//! `tape` is a graph that can be differentiated by its weights, `step` what each node becomes in it; `op`, `conv` and `pool` are its
//! operators. `loss` says how far the student is from the teacher, `lesson` sums its gradients over a batch, `optimizer` makes it
//! less, `views` and `augment` are what is shown, `course` is the loop with its looks, its best and its checkpoints.

mod augment;
mod checkpoint;
mod conv;
mod course;
mod lesson;
mod loss;
mod op;
mod optimizer;
mod pool;
mod product;
mod simd;
mod step;
mod stop;
mod tape;
mod views;

use crate::error::{Error, Result};
use crate::images::Images;
use crate::onnx::proto::NodeProto;
use crate::onnx::{Graph, InputShape, Model, Use, is_standard};
use crate::progress::Progress;
use crate::report::Tuning;
use crate::runtime::{Feed, Input, inputs};
use augment::Augmentation;
use checkpoint::Checkpoint;
use course::Course;
use lesson::Lesson;
use ndarray::ArrayD;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;
pub use stop::Stop;
use tape::Tape;
use views::Views;

/// How long to tune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// A time from the first step on; how many steps that are depends on the machine.
    Time(Duration),
    /// So many times over all images: the same result on every run.
    Epochs(f64),
}

/// How to tune.
#[derive(Debug, Clone)]
pub struct TuneOptions {
    /// How long.
    pub budget: Budget,
    /// Images a step.
    pub batch: usize,
    /// The highest rate: a step changes each tensor by up to this share of its size. None takes the more the worse the untuned
    /// model is.
    pub rate: Option<f32>,
    /// Weight of the values inside the networks beside the outputs.
    pub features: f32,
    /// Train every weight, not only what the teacher does not have.
    pub all: bool,
    /// Show mirror images too.
    pub mirror: bool,
    /// Largest shift of an image, as a share of its side.
    pub shift: f32,
    /// Largest share of an image's side that is cropped away, the rest resized.
    pub zoom: f32,
    /// Share of images that are mixed with another; none mixes all where there are few.
    pub mix: Option<f32>,
    /// Of order, views and mixtures.
    pub seed: u64,
    /// Keep the state in this file after every look, and go on from there if it holds one of the same run.
    pub resume: Option<PathBuf>,
    /// Ends it early.
    pub stop: Stop,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self {
            budget: Budget::Time(Duration::from_secs(600)),
            batch: 16,
            rate: None,
            features: 0.0,
            all: false,
            mirror: true,
            shift: 0.04,
            zoom: 0.0,
            mix: None,
            seed: 0,
            resume: None,
            stop: Stop::default(),
        }
    }
}

impl TuneOptions {
    /// Refuses, before any model is read, what makes no sense for any.
    ///
    /// # Errors
    /// [`Error::Options`] naming the option.
    pub fn check(&self) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let share = |x: f32| (0.0..=1.0).contains(&x);
        let wrong = |text: &str| Err(Error::Options(text.into()));
        match self.budget {
            Budget::Time(time) if time.is_zero() => return wrong("--tune must be longer than nothing"),
            Budget::Epochs(epochs) if !positive(epochs) => return wrong("--tune must be longer than nothing"),
            _ => {}
        }
        if self.rate.is_some_and(|rate| !positive(rate.into()) || rate > 1.0) {
            return wrong("--tune-rate must be above 0 and at most 1");
        }
        if !(self.features >= 0.0 && self.features.is_finite()) {
            return wrong("--tune-features must be 0 or more");
        }
        if !share(self.shift) || !self.mix.is_none_or(share) {
            return wrong("--tune-shift and --tune-mix are shares, from 0 to 1");
        }
        if !(0.0..1.0).contains(&self.zoom) {
            return wrong("--tune-zoom is a share, from 0 to less than 1");
        }
        if self.batch == 0 {
            return wrong("--batch must be 1 or more");
        }
        Ok(())
    }

    /// What the result follows from, but for how long it goes on.
    fn text(&self) -> String {
        let Self { batch, rate, features, all, mirror, shift, zoom, mix, seed, .. } = self;
        format!("{batch} {rate:?} {features} {all} {mirror} {shift} {zoom} {mix:?} {seed}")
    }

    /// What the result follows from.
    pub(crate) fn asked(&self) -> String {
        format!("{:?} {}", self.budget, self.text())
    }
}

/// A tuned model, as values of its parameters.
pub(crate) struct Tuned {
    pub(crate) tuning: Tuning,
    values: Vec<Vec<f32>>,
    tape: Tape,
}

impl Tuned {
    /// The model with the tuned values, in its own types.
    pub(crate) fn applied(&self, model: &Model) -> Model {
        let names = self.tape.parameters().iter().map(|p| p.name.as_str());
        model.with_floats(&names.zip(self.values.iter().map(Vec::as_slice)).collect::<HashMap<_, _>>())
    }

    /// The first tensor that was trained to what its type in a model, which is now in float32, does not hold.
    pub(crate) fn overflow(&self, model: &Model) -> Option<String> {
        let held = model.floats();
        let mut names = self.tape.parameters().iter().map(|p| &p.name);
        names.find(|n| held.get(*n).is_some_and(|h| h.iter().any(|x| !x.is_finite()))).cloned()
    }

    /// The outputs that were tuned for, as the trainable view computes them with the values that a model holds now.
    pub(crate) fn outputs(&self, model: &Model, feed: &Feed) -> Vec<ArrayD<f32>> {
        let held = model.floats();
        let parameters = self.tape.parameters().iter().zip(&self.values);
        let parameters: Vec<Vec<f32>> = parameters
            .map(|(p, tuned)| held.get(&p.name).map_or_else(|| tuned.clone(), |h| h.iter().copied().collect()))
            .collect();
        let mut workspace = self.tape.workspace();
        self.tape.forward(&mut workspace, &parameters, feed);
        let output = |name: &String| {
            let dims = self.tape.dims(name).unwrap_or_default();
            ArrayD::from_shape_vec(dims, self.tape.value(&workspace, name).to_vec())
        };
        self.tape.outputs().iter().filter_map(|name| output(name).ok()).collect()
    }
}

/// Images without which there is nothing to learn from: twenty, less those held out.
const LEAST_IMAGES: usize = 18;
/// Fewer images than this are learnt by heart, if each is shown by itself.
const FEW: usize = 2000;
/// Held-out images without which there is nothing to judge by.
const LEAST_HELD: usize = 2;
/// How the names end of what is written where an operator demands a bias.
const NO_BIAS: &str = "/jmd_zero";

/// Trains `student` to do what `teacher` does on some images. Both are in float32.
///
/// # Errors
/// [`Error::Tuning`] if it cannot be done, [`Error::Images`] if the images do not fit, [`Error::Unavailable`] if tract cannot
/// run a model.
pub(crate) fn tuned(
    teacher: &Model,
    student: &Model,
    images: &[Images],
    input_shapes: &[InputShape],
    options: &TuneOptions,
    progress: &Progress<'_>,
) -> Result<Tuned> {
    options.check()?;
    let fed = inputs(teacher, input_shapes)?;
    check_teacher(teacher, student, &fed, &inputs(student, input_shapes)?)?;
    let trained = trainable(teacher, student, options.all)?;
    if trained.is_empty() {
        let reason = "the smaller model holds no weights that its teacher does not: give --tune-all to train them all";
        return Err(Error::Tuning(reason.into()));
    }
    let views = Views::new(images, teacher, &fed)?;
    if views.len() < LEAST_IMAGES {
        let reason = format!("{} images are too few to learn from: give at least 20", views.len());
        return Err(Error::Tuning(reason));
    }
    if views.held().len() < LEAST_HELD {
        let reason =
            "one image in ten is held out to judge by, of drawn ones beside others none: give at least 20 images";
        return Err(Error::Tuning(reason.into()));
    }
    let sample = views.feed(0)?;
    let teacher_tape = Tape::new(teacher, &fed, &sample, &HashSet::new())?;
    let tape = Tape::new(student, &fed, &sample, &trained)?;
    let &TuneOptions { mirror, shift, zoom, .. } = options;
    let mix = options.mix.unwrap_or(if views.len() < FEW { 1.0 } else { 0.0 });
    let augmentation = Augmentation { axes: views.picture_axes(), mirror, shift, zoom, mix };
    let held_out = views.held().len();
    let lesson = Lesson::new((&teacher_tape, &tape), options.features, &views, augmentation, options.seed)?;
    let parameters: usize = tape.parameters().iter().map(|p| p.values.len()).sum();
    progress.say(&format!(
        "tuning {parameters} parameters in {} tensors on {} images, {held_out} held out; takes about {} MiB of memory, whatever --batch is",
        tape.parameters().len(),
        views.len(),
        lesson.bytes() >> 20,
    ));
    let checkpoint =
        options.resume.as_ref().map(|path| Checkpoint::new(path, [teacher, student], &views, &options.text()));
    let course = Course { lesson: &lesson, options, images: views.len(), checkpoint: checkpoint.transpose()? };
    let (values, run) = course.run(progress)?;
    let tuning = Tuning {
        earlier: Vec::new(),
        source: images.iter().map(Images::what).collect::<Vec<_>>().join(" and "),
        parameters: parameters as u64,
        images: views.len(),
        held_out,
        rate: Some(run.rate.into()),
        curve: run.curve,
        kept: run.kept,
        stopped: run.stopped,
    };
    Ok(Tuned { tuning, values, tape })
}

/// Refuses a teacher of other inputs or outputs.
fn check_teacher(teacher: &Model, student: &Model, fed: &[Input], own: &[Input]) -> Result<()> {
    let named =
        |inputs: &[Input]| -> Vec<String> { inputs.iter().map(|i| format!("'{}' {:?}", i.name, i.dims)).collect() };
    let (theirs, ours) = (named(fed), named(own));
    if theirs != ours {
        let (theirs, ours) = (theirs.join(", "), ours.join(", "));
        return Err(Error::Tuning(format!(
            "the teacher reads {theirs}, the smaller model {ours}: is it the right teacher?"
        )));
    }
    let (theirs, ours) = (teacher.outputs().len(), student.outputs().len());
    if theirs != ours {
        let reason = format!("the teacher has {theirs} outputs, the smaller model {ours}: is it the right teacher?");
        return Err(Error::Tuning(reason));
    }
    Ok(())
}

/// Float initializers of the student that the teacher does not have, or all, as far as every reader can be differentiated by them.
///
/// # Errors
/// Those of a damaged graph.
fn trainable(teacher: &Model, student: &Model, all: bool) -> Result<HashSet<String>> {
    let theirs = teacher.floats();
    let graph = Graph::new(student)?;
    let learns = |each: &Use| match *each {
        Use::Node(node, position) => !graph.is_live(node) || is_weight(&graph.nodes()[node], position),
        Use::Captured(_) | Use::Output => false,
    };
    let own = student.floats().into_iter();
    let wanted = own.filter(|(name, values)| {
        let uses = graph.uses(name);
        let asked = if all { values.len() > 1 } else { theirs.get(name) != Some(values) };
        // What stands for no bias stays none.
        let asked = asked && !name.ends_with(NO_BIAS);
        asked && graph.constant(name).is_some() && !uses.is_empty() && uses.iter().all(learns)
    });
    Ok(wanted.map(|(name, _)| name).collect())
}

/// Whether an input of a node is what training changes: kernels, matrices, biases, scales.
fn is_weight(node: &NodeProto, position: usize) -> bool {
    is_standard(node)
        && match node.op_type() {
            "Conv" | "ConvTranspose" | "Gemm" | "BatchNormalization" => matches!(position, 1 | 2),
            "MatMul" => position == 1,
            "Add" | "Sub" | "Mul" | "Div" => true,
            _ => false,
        }
}

#[cfg(test)]
pub(crate) mod tests;
