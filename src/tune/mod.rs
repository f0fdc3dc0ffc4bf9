//! Distillation without labels: the original is the teacher, any images are the questions.
//!
//! `tape` is a graph that can be differentiated by its weights, `op`, `conv` and `pool` are its operators, `loss` says how far
//! the student is from the teacher, `optimizer` makes it less, `augment` shows other views of the images, `trainer` is the loop.

mod augment;
mod conv;
mod loss;
mod op;
mod optimizer;
mod pool;
mod product;
mod simd;
mod tape;
mod trainer;

use crate::error::{Error, Result};
use crate::images::Images;
use crate::onnx::{InputShape, Model, read_floats};
use crate::progress::Progress;
use crate::runtime::{Feed, inputs, shapes};
use augment::Augmentation;
use loss::{Kind, Point};
use optimizer::Optimizer;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tape::Tape;
use trainer::{Lesson, step};

/// How long to tune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// A time from the first step on.
    Time(Duration),
    /// So many times over all images.
    Epochs(f64),
}

/// How to tune.
#[derive(Debug, Clone)]
pub struct TuneOptions {
    /// How long.
    pub budget: Budget,
    /// Images a step.
    pub batch: usize,
    /// The highest rate, relative to each tensor's size.
    pub rate: f32,
    /// Weight of the values inside the networks beside the outputs.
    pub features: f32,
    /// Train every weight, not only what differs from the teacher's.
    pub all: bool,
    /// Show mirror images.
    pub mirror: bool,
    /// Largest shift, as a share of the side.
    pub shift: f32,
    /// Share of images mixed with another.
    pub mix: f32,
    /// Decay of the average of weights.
    pub average: f32,
    /// Of order, views and mixtures.
    pub seed: u64,
    /// Shapes of open inputs.
    pub input_shapes: Vec<InputShape>,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self {
            budget: Budget::Epochs(5.0),
            batch: 64,
            rate: 0.02,
            features: 0.0,
            all: false,
            mirror: true,
            shift: 0.08,
            mix: 0.0,
            average: 0.995,
            seed: 0,
            input_shapes: Vec::new(),
        }
    }
}

/// One look at the held-out images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TuningRow {
    /// Passes over the images so far.
    pub epoch: f64,
    /// Steps so far.
    pub step: u64,
    /// Seconds since the first step.
    pub seconds: f64,
    /// Mean loss of the steps since the last look; none before the first.
    pub loss: Option<f64>,
    /// Loss of the outputs on held-out images.
    pub held_out_loss: f64,
    /// Equal top-1 classes on held-out images or, of other outputs, the share of energy that is not error.
    pub agreement: f64,
}

/// What tuning did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tuning {
    /// Trained parameters.
    pub parameters: u64,
    /// Images that were shown, and held out.
    pub images: usize,
    /// Images that were held out.
    pub held_out: usize,
    /// Looks at the held-out images, the first before any step.
    pub curve: Vec<TuningRow>,
    /// The look that was kept, by its position in the curve; 0 is the untuned model.
    pub kept: usize,
    /// Whether it was stopped before its time.
    pub stopped: bool,
}

/// Passes over the images after which there is a look, at most.
const LOOK: f64 = 1.0;
/// Held-out images at most, and as a share.
const HELD_OUT: (usize, usize) = (1000, 10);
/// Images without which there is nothing to learn from.
const LEAST_IMAGES: usize = 20;
/// Times that a loss which is no number is answered by a smaller rate.
const RETREATS: u32 = 4;

/// Trains `student` to do what `teacher` does. `stop` ends it early, with the best so far.
///
/// # Errors
/// [`Error::Tuning`] if it cannot be done, [`Error::Images`] if the images do not fit.
pub fn tune(
    teacher: &Model,
    student: &Model,
    images: &Images,
    options: &TuneOptions,
    stop: &AtomicBool,
    listener: &(dyn Fn(&str) + Sync),
) -> Result<(Model, Tuning)> {
    let progress = Progress::new(listener);
    let fed = inputs(teacher, &options.input_shapes)?;
    let samples = images.fit(teacher, &shapes(&fed), None)?;
    let trained = trainable(teacher, student, options.all);
    if trained.is_empty() {
        return Err(Error::Tuning(
            "both models hold the same weights: there is nothing to tune, give --tune-all".into(),
        ));
    }
    if samples.len() < LEAST_IMAGES {
        return Err(Error::Tuning(format!("{} images are too few: give at least {LEAST_IMAGES}", samples.len())));
    }
    let sample: Feed = samples.feed(0)?;
    let teacher_tape = Tape::new(teacher, &fed, &sample, &HashSet::new())?;
    let student_tape = Tape::new(student, &fed, &sample, &trained)?;
    let held_count = (samples.len() / HELD_OUT.1).min(HELD_OUT.0).max(1);
    // Evenly spread, as images may be sorted by class.
    let held: Vec<usize> = (0..held_count).map(|i| i * samples.len() / held_count).collect();
    let taken: HashSet<usize> = held.iter().copied().collect();
    let shown: Vec<usize> = (0..samples.len()).filter(|i| !taken.contains(i)).collect();
    let augmentation =
        Augmentation { axes: samples.picture_axes(), mirror: options.mirror, shift: options.shift, mix: options.mix };
    let points = points(&teacher_tape, &student_tape, &samples, &shown)?;
    let tapes = (&teacher_tape, &student_tape);
    let lesson = Lesson::new(tapes, points, options.features, &samples, augmentation, options.seed);
    let parameters: usize = student_tape.parameters().iter().map(|p| p.values.len()).sum();
    progress.say(&format!(
        "tuning {parameters} parameters in {} tensors on {} images, {} held out, {} values matched inside",
        student_tape.parameters().len(),
        shown.len(),
        held.len(),
        lesson.features.len(),
    ));
    let mut parts = lesson.parts();
    let mut optimizer = Optimizer::new(student_tape.initial(), options.average);
    let batch = options.batch.min(shown.len()).max(1);
    let epoch_steps = (shown.len() / batch) as u64;
    let first = lesson.look(&optimizer.parameters, &held)?;
    let mut curve = vec![TuningRow {
        epoch: 0.0,
        step: 0,
        seconds: 0.0,
        loss: None,
        held_out_loss: first.loss,
        agreement: first.agreement,
    }];
    progress.say(&format!("before tuning: agreement {:.2} % on held-out images", 100.0 * first.agreement));
    let (mut best, mut kept) = (optimizer.parameters.clone(), 0);
    let mut safe = optimizer.clone();
    let (begun, mut steps, mut rate, mut retreats) = (Instant::now(), 0u64, options.rate, 0);
    let mut stopped = false;
    let (mut sum, mut count) = (0.0, 0u32);
    let total = match options.budget {
        Budget::Epochs(epochs) => ((epochs * epoch_steps as f64).round() as u64).max(1),
        Budget::Time(_) => u64::MAX,
    };
    let way = |steps: u64| match options.budget {
        Budget::Epochs(_) => steps as f64 / total as f64,
        Budget::Time(time) => begun.elapsed().as_secs_f64() / time.as_secs_f64().max(1e-3),
    };
    'all: for epoch in 0u64.. {
        let order = lesson.order(&shown, epoch);
        for batch in order.chunks_exact(batch) {
            let at = way(steps);
            if at >= 1.0 || stop.load(Ordering::Relaxed) {
                stopped = at < 1.0;
                break 'all;
            }
            let loss = lesson.learn(&optimizer.parameters, batch, &shown, steps, &mut parts)?;
            if !loss.is_finite() || !step(&mut optimizer, &parts[0], rate, at as f32) {
                retreats += 1;
                if retreats > RETREATS {
                    progress.say("the loss is no number again and again: the best model so far is kept");
                    break 'all;
                }
                optimizer = safe.clone();
                rate /= 4.0;
                progress.say(&format!("the loss is no number: back to the last look, at a rate of {rate:.1e}"));
            }
            (sum, count, steps) = (sum + loss, count + 1, steps + 1);
        }
        let look = lesson.look(&optimizer.averages, &held)?;
        let seconds = begun.elapsed().as_secs_f64();
        let epoch = (epoch + 1) as f64 * LOOK;
        let loss = (count > 0).then(|| sum / f64::from(count));
        curve.push(TuningRow {
            epoch,
            step: steps,
            seconds,
            loss,
            held_out_loss: look.loss,
            agreement: look.agreement,
        });
        if look.loss < curve[kept].held_out_loss {
            (best, kept) = (optimizer.averages.clone(), curve.len() - 1);
        }
        let left = seconds / way(steps).max(1e-9) - seconds;
        progress.say(&format!(
            "epoch {epoch}, step {steps}: loss {:.4}, held-out loss {:.4}, agreement {:.2} %, about {left:.0} s left",
            loss.unwrap_or(f64::NAN),
            look.loss,
            100.0 * look.agreement
        ));
        safe = optimizer.clone();
        (sum, count) = (0.0, 0);
    }
    let look = lesson.look(&optimizer.averages, &held)?;
    if look.loss < curve[kept].held_out_loss {
        let epoch = steps as f64 / epoch_steps as f64;
        let (seconds, loss) = (begun.elapsed().as_secs_f64(), (count > 0).then(|| sum / f64::from(count)));
        curve.push(TuningRow {
            epoch,
            step: steps,
            seconds,
            loss,
            held_out_loss: look.loss,
            agreement: look.agreement,
        });
        (best, kept) = (optimizer.averages.clone(), curve.len() - 1);
    }
    let names = student_tape.parameters().iter().map(|p| p.name.as_str());
    let values: HashMap<&str, &[f32]> = names.zip(best.iter().map(Vec::as_slice)).collect();
    let tuning =
        Tuning { parameters: parameters as u64, images: shown.len(), held_out: held.len(), curve, kept, stopped };
    Ok((student.with_floats(&values), tuning))
}

/// Float initializers of the student that the teacher does not have, or all.
fn trainable(teacher: &Model, student: &Model, all: bool) -> HashSet<String> {
    let tensors = |model: &Model| -> BTreeMap<String, _> {
        let graph = model.proto().graph.iter();
        graph.flat_map(|g| &g.initializer).filter_map(|t| Some((t.name().to_owned(), read_floats(t)?))).collect()
    };
    let theirs = tensors(teacher);
    let own = tensors(student).into_iter();
    own.filter(|(name, values)| all || theirs.get(name) != Some(values)).map(|(name, _)| name).collect()
}

/// Where the networks are held against each other: at outputs, and at values inside of the same name.
fn points(
    teacher: &Tape,
    student: &Tape,
    samples: &crate::images::Samples,
    shown: &[usize],
) -> Result<(Vec<Point>, Vec<Point>)> {
    let mut outputs = Vec::new();
    for (ours, theirs) in student.outputs().iter().zip(teacher.outputs()) {
        let (ours, theirs) = (student.logits(ours), teacher.logits(theirs));
        let (dims, other) = (student.dims(ours), teacher.dims(theirs));
        if dims != other {
            return Err(Error::Tuning(format!(
                "output '{theirs}' has another shape in the teacher: is it the right one?"
            )));
        }
        let scores = dims.is_some_and(|d| d.len() >= 2 && d[1] > 1 && d.iter().product::<usize>() == d[1]);
        if student.learns(ours) {
            let kind = if scores { Kind::Scores } else { Kind::Square { weight: 0.0 } };
            outputs.push(Point { teacher: theirs.to_owned(), student: ours.to_owned(), kind });
        }
    }
    let mut features: Vec<Point> = teacher
        .blocks()
        .filter(|name| student.learns(name) && student.dims(name) == teacher.dims(name))
        .map(|name| Point { teacher: name.to_owned(), student: name.to_owned(), kind: Kind::Square { weight: 0.0 } })
        .collect();
    // Each by its own energy.
    let mut workspace = teacher.workspace();
    let mut energies = vec![0.0f32; outputs.len() + features.len()];
    let count = shown.len().min(32);
    for &sample in &shown[..count] {
        teacher.forward(&mut workspace, &[], &samples.feed(sample)?);
        for (point, energy) in outputs.iter().chain(&features).zip(&mut energies) {
            let value = teacher.value(&workspace, &point.teacher);
            let mean = value.iter().sum::<f32>() / value.len().max(1) as f32;
            *energy += value.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count as f32;
        }
    }
    for (point, energy) in outputs.iter_mut().chain(&mut features).zip(energies) {
        if let Kind::Square { weight } = &mut point.kind {
            *weight = 1.0 / energy.max(1e-6);
        }
    }
    Ok((outputs, features))
}
