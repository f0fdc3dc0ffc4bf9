//! One batch: views of images, the teacher's answers, and the gradient of how far the student is from them.

use super::augment::Augmentation;
use super::loss::{Energy, Point};
use super::optimizer::summed;
use super::tape::{Gradients, Tape, Workspace};
use super::views::Views;
use crate::error::{Error, Result};
use crate::runtime::Feed;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;
use std::sync::{Mutex, OnceLock};

/// Parts that a batch is cut into, whatever the number of threads: sums then never depend on it.
const PARTS: usize = 16;
/// Elements of all parts' gradients together, at most.
const GRADIENT_ELEMENTS: usize = 1 << 28;

/// Both networks, and where they are held against each other.
pub(super) struct Lesson<'t> {
    teacher: &'t Tape,
    student: &'t Tape,
    outputs: Vec<Point>,
    features: Vec<Point>,
    /// Weight of all features together.
    feature_weight: f32,
    views: &'t Views,
    augmentation: Augmentation,
    seed: u64,
    room: Mutex<Vec<Room>>,
    /// The teacher's outputs for each view, once they are known, where they are few numbers and nothing else is asked of it.
    answers: Option<Answers>,
    /// Its outputs for each held-out sample.
    held: Option<Answers>,
}

type Answers = Vec<OnceLock<Box<[f32]>>>;

/// Bytes that an answer takes beside its numbers.
const ANSWER: usize = size_of::<OnceLock<Box<[f32]>>>() + 16;
/// Views of each image.
const VIEWS: usize = 12;
/// Numbers of the teacher's answers that are kept at most.
const ANSWERS: usize = 1 << 26;

/// What is shown: an image and one of its views, or a mixture that is never shown again.
struct Question {
    feed: Feed,
    /// Where the answer is kept.
    place: Option<usize>,
}

/// What one thread works in.
struct Room {
    teacher: Workspace,
    student: Workspace,
    scratch: Vec<f32>,
}

/// Sums of one part of a batch.
pub(super) struct Part {
    gradients: Gradients,
    loss: f64,
}

/// What held-out samples say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Mean loss of the outputs.
    pub(super) loss: f64,
    /// Share of samples of which both give the same class, or of energy that is not error.
    pub(super) agreement: f64,
    /// The loss as a share of that of a student that says nothing.
    pub(super) damage: f64,
}

impl<'t> Lesson<'t> {
    /// # Errors
    /// [`Error::Tuning`] if the outputs do not fit each other, [`Error::Images`] if an image cannot be decoded.
    pub(super) fn new(
        (teacher, student): (&'t Tape, &'t Tape),
        feature_weight: f32,
        views: &'t Views,
        augmentation: Augmentation,
        seed: u64,
    ) -> Result<Self> {
        let (mut outputs, mut features) = points(teacher, student)?;
        if feature_weight == 0.0 {
            features.clear();
        }
        let mut workspace = teacher.workspace();
        let mut energies = vec![Energy::default(); outputs.len() + features.len()];
        let count = views.len().min(MEASURED);
        for number in 0..count {
            teacher.forward(&mut workspace, &[], &views.feed(number * views.len() / count)?);
            for (point, energy) in outputs.iter().chain(&features).zip(&mut energies) {
                energy.add(teacher.value(&workspace, &point.teacher));
            }
        }
        outputs.iter_mut().chain(&mut features).zip(&energies).for_each(|(point, energy)| point.measure(energy));
        let each: usize = outputs.iter().map(|p| teacher.dims(&p.teacher).map_or(0, |d| d.iter().product())).sum();
        let kept = features.is_empty() && augmentation.mix == 0.0 && each * VIEWS * views.len() <= ANSWERS;
        let open = |count: usize| -> Answers { (0..count).map(|_| OnceLock::new()).collect() };
        let answers = kept.then(|| open(VIEWS * views.len()));
        let held = (each * views.held().len() <= ANSWERS).then(|| open(views.held().len()));
        let room = Mutex::new(Vec::new());
        Ok(Self { teacher, student, outputs, features, feature_weight, views, augmentation, seed, room, answers, held })
    }

    /// Bytes that lessons take: buffers of each thread, and gradients.
    pub(super) fn bytes(&self) -> usize {
        let buffers = self.teacher.workspace_bytes() + self.student.workspace_bytes();
        // Beside the gradients the parameters themselves, their moments, averages, the best and the last safe ones.
        let tensors: usize = self.student.parameters().iter().map(|p| size_of::<f32>() * p.values.len()).sum();
        let answers = |kept: &Answers| kept.len() * (size_of::<f32>() * self.answer() + ANSWER);
        rayon::current_num_threads() * buffers
            + (self.count() + 11) * tensors
            + [&self.answers, &self.held].into_iter().flatten().map(answers).sum::<usize>()
    }

    /// The student's parameters before any step.
    pub(super) fn initial(&self) -> Vec<Vec<f32>> {
        self.student.initial()
    }

    /// Parts of a batch.
    fn count(&self) -> usize {
        let elements: usize = self.student.parameters().iter().map(|p| p.values.len()).sum();
        (GRADIENT_ELEMENTS / elements.max(1)).clamp(2, PARTS)
    }

    /// Gradients of the parts of a batch, to be summed up.
    pub(super) fn parts(&self) -> Vec<Part> {
        (0..self.count()).map(|_| Part { gradients: self.student.zeros(), loss: 0.0 }).collect()
    }

    fn with_room<T>(&self, action: impl FnOnce(&mut Room) -> T) -> T {
        let free = self.room.lock().ok().and_then(|mut rooms| rooms.pop());
        let mut room = free.unwrap_or_else(|| Room {
            teacher: self.teacher.workspace(),
            student: self.student.workspace(),
            scratch: Vec::new(),
        });
        let result = action(&mut room);
        if let Ok(mut rooms) = self.room.lock() {
            rooms.push(room);
        }
        result
    }

    /// Numbers of one answer.
    fn answer(&self) -> usize {
        let size = |p: &Point| self.teacher.dims(&p.teacher).map_or(0, |d| d.iter().product());
        self.outputs.iter().map(size).sum()
    }

    /// A view of an image, by chance.
    fn question(&self, image: usize, chance: &mut Pcg64Mcg) -> Result<Question> {
        let view = |image: usize, chance: &mut Pcg64Mcg| -> Result<(Feed, usize)> {
            let number = chance.random_range(0..VIEWS);
            let mut feed = self.views.feed(image)?;
            if let [picture] = &mut feed[..] {
                let mut own = Pcg64Mcg::seed_from_u64(mixed(self.seed, image as u64, number as u64));
                self.augmentation.apply(picture, &mut own);
            }
            Ok((feed, image * VIEWS + number))
        };
        let (mut feed, place) = view(image, chance)?;
        let Some(share) = self.augmentation.mixture(chance) else { return Ok(Question { feed, place: Some(place) }) };
        let (other, _) = view(chance.random_range(0..self.views.len()), chance)?;
        for (image, other) in feed.iter_mut().zip(other) {
            image.zip_mut_with(&other, |a, b| *a += share * (b - *a));
        }
        Ok(Question { feed, place: None })
    }

    /// The mean loss of a batch, and its gradient in the first of `parts`.
    pub(super) fn learn(&self, parameters: &[Vec<f32>], batch: &[usize], step: u64, parts: &mut [Part]) -> Result<f64> {
        let share = 1.0 / batch.len() as f32;
        let count = parts.len();
        let done: Vec<Result<()>> = parts
            .par_iter_mut()
            .with_max_len(1)
            .enumerate()
            .map(|(number, part)| {
                part.gradients.iter_mut().for_each(|g| g.fill(0.0));
                part.loss = 0.0;
                for (place, &sample) in batch.iter().enumerate().skip(number).step_by(count) {
                    let mut chance = Pcg64Mcg::seed_from_u64(mixed(self.seed, step, place as u64));
                    let asked = self.question(sample, &mut chance)?;
                    part.loss +=
                        self.with_room(|room| self.sample(room, parameters, &asked, share, &mut part.gradients));
                }
                Ok(())
            })
            .collect();
        done.into_iter().collect::<Result<()>>()?;
        let loss = parts.iter().map(|p| p.loss).sum::<f64>();
        let mut gradients: Vec<Gradients> = parts.iter_mut().map(|p| std::mem::take(&mut p.gradients)).collect();
        let _ = summed(&mut gradients);
        parts.iter_mut().zip(gradients).for_each(|(part, gradients)| part.gradients = gradients);
        Ok(loss / batch.len() as f64)
    }

    fn sample(
        &self,
        room: &mut Room,
        parameters: &[Vec<f32>],
        asked: &Question,
        share: f32,
        into: &mut Gradients,
    ) -> f64 {
        let Room { teacher, student, scratch } = room;
        self.student.forward(student, parameters, &asked.feed);
        let mut loss = 0.0;
        if let Some(kept) = self.answers.as_ref().zip(asked.place).map(|(answers, place)| &answers[place]) {
            let answer = kept.get_or_init(|| self.ask(teacher, &asked.feed));
            for (point, target) in self.targets(answer) {
                loss += f64::from(point.loss(target, (self.student, student), Some(share), scratch));
            }
        } else {
            self.teacher.forward(teacher, &[], &asked.feed);
            let weight = self.feature_weight / self.features.len().max(1) as f32;
            for (points, weight) in [(&self.outputs, 1.0), (&self.features, weight)] {
                for point in points {
                    let target = self.teacher.value(teacher, &point.teacher);
                    let found = point.loss(target, (self.student, student), Some(share * weight), scratch);
                    loss += f64::from(found) * f64::from(weight);
                }
            }
        }
        self.student.backward(student, parameters, into);
        loss
    }

    /// The teacher's outputs, one after the other.
    fn ask(&self, teacher: &mut Workspace, feed: &Feed) -> Box<[f32]> {
        self.teacher.forward(teacher, &[], feed);
        self.outputs.iter().flat_map(|p| self.teacher.value(teacher, &p.teacher)).copied().collect()
    }

    /// Each output with what the teacher gave for it.
    fn targets<'a>(&'a self, mut answer: &'a [f32]) -> impl Iterator<Item = (&'a Point, &'a [f32])> {
        self.outputs.iter().map(move |point| {
            let size = self.teacher.dims(&point.teacher).map_or(0, |d| d.iter().product());
            let (target, others) = answer.split_at(size);
            answer = others;
            (point, target)
        })
    }

    /// What held-out samples say of some parameters.
    pub(super) fn look(&self, parameters: &[Vec<f32>]) -> Result<Look> {
        let held = self.views.held();
        let scores = self.outputs.iter().filter(|p| p.kind.is_scores()).count();
        let each = (0..held.len()).into_par_iter().with_max_len(4).map(|sample| {
            let feed = held.feed(sample)?;
            Ok(self.with_room(|room| {
                let Room { teacher, student, scratch } = room;
                self.student.forward(student, parameters, &feed);
                let now;
                let answer = match &self.held {
                    Some(held) => held[sample].get_or_init(|| self.ask(teacher, &feed)),
                    None => {
                        now = self.ask(teacher, &feed);
                        &now
                    }
                };
                let (mut loss, mut same, mut energy) = (0.0, 0.0, [0.0; 2]);
                for (point, t) in self.targets(answer) {
                    loss += f64::from(point.loss(t, (self.student, student), None, scratch));
                    let s = self.student.value(student, &point.student);
                    if point.kind.is_scores() {
                        same += f64::from(u8::from(largest(t) == largest(s))) / scores as f64;
                    }
                    energy[0] += t.iter().zip(s).map(|(t, s)| f64::from((t - s) * (t - s))).sum::<f64>();
                    energy[1] += t.iter().map(|t| f64::from(t * t)).sum::<f64>();
                }
                (loss, same, energy)
            }))
        });
        let each: Vec<Result<(f64, f64, [f64; 2])>> = each.collect();
        let each = each.into_iter().collect::<Result<Vec<_>>>()?;
        let count = each.len().max(1) as f64;
        let energy = |i: usize| each.iter().map(|e| e.2[i]).sum::<f64>();
        let agreement = match scores > 0 {
            true => each.iter().map(|e| e.1).sum::<f64>() / count,
            false => 1.0 - energy(0) / energy(1).max(f64::MIN_POSITIVE),
        };
        let loss = each.iter().map(|e| e.0).sum::<f64>() / count;
        let elements = |p: &Point| self.teacher.dims(&p.teacher).map_or(1, |d| d.iter().product());
        let worst: f64 = self.outputs.iter().map(|p| p.worst(elements(p))).sum();
        Ok(Look { loss, agreement, damage: loss / worst })
    }

    /// The images of a pass in an order of its own.
    pub(super) fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.views.len()).collect();
        order.shuffle(&mut Pcg64Mcg::seed_from_u64(mixed(self.seed, epoch, u64::MAX)));
        order
    }
}

impl Part {
    pub(super) fn gradients(&self) -> &Gradients {
        &self.gradients
    }
}

/// Images by which the energy of values is measured.
const MEASURED: usize = 64;

/// Where the networks are held against each other: at outputs, and at values inside of the same name.
fn points(teacher: &Tape, student: &Tape) -> Result<(Vec<Point>, Vec<Point>)> {
    let mut outputs = Vec::new();
    for (ours, theirs) in student.outputs().iter().zip(teacher.outputs()) {
        let (dims, other) = (student.dims(ours), teacher.dims(theirs));
        if dims != other {
            let (dims, other) = (dims.unwrap_or_default(), other.unwrap_or_default());
            return Err(Error::Tuning(format!(
                "output '{theirs}' of the teacher is {other:?}, of the smaller model {dims:?}: is it the right teacher?"
            )));
        }
        let (ours, theirs) = (student.logits(ours), teacher.logits(theirs));
        let scores = dims.is_some_and(|d| d.len() >= 2 && d[1] > 1 && d.iter().product::<usize>() == d[1]);
        if student.learns(ours) {
            outputs.push(Point::new(theirs, ours, scores));
        }
    }
    if outputs.is_empty() {
        return Err(Error::Tuning("no output follows from what is to be trained".into()));
    }
    let both = teacher.blocks().filter(|name| student.learns(name) && student.dims(name) == teacher.dims(name));
    let inside = both.filter(|name| outputs.iter().all(|o| o.student != *name));
    let features = inside.map(|name| Point::new(name, name, false)).collect();
    Ok((outputs, features))
}

fn largest(scores: &[f32]) -> usize {
    (0..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best })
}

/// One seed of three numbers (the finaliser of SplitMix64).
fn mixed(seed: u64, a: u64, b: u64) -> u64 {
    [a, b].into_iter().fold(seed, |state, x| {
        let z = (state ^ x).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}
