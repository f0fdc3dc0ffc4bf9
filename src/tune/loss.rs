//! What is minimised: how far the student's outputs, and values inside it, are from the teacher's.

use super::tape::{Tape, Workspace};

/// Temperature of the scores' distributions.
const TEMPERATURE: f32 = 2.0;

/// Weight of squares beside a divergence.
const BESIDE: f32 = 0.1;

/// One value that both networks compute.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) teacher: String,
    pub(super) student: String,
    pub(super) kind: Kind,
}

/// How two values are held against each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// `T²·Σ p·(log p − log q)` of the distributions at temperature T, and a little of the other, as there is no telling whether
    /// what looks like scores is read as such: a divergence does not see what is added to all.
    Scores { weight: f32 },
    /// `weight·‖s − t‖²`.
    Square { weight: f32 },
}

impl Kind {
    pub(super) fn is_scores(self) -> bool {
        matches!(self, Self::Scores { .. })
    }
}

/// How much a value differs, within samples and between them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Energy {
    samples: f64,
    elements: f64,
    sum: f64,
    squares: f64,
}

impl Energy {
    /// Takes the value of one more sample into account.
    pub(super) fn add(&mut self, value: &[f32]) {
        self.samples += 1.0;
        self.elements += value.len() as f64;
        for x in value.iter().copied().map(f64::from) {
            self.sum += x;
            self.squares += x * x;
        }
    }

    /// `Σ (t − E t)²` of a sample, or of a value that is the same everywhere `Σ t²`.
    fn of_a_sample(&self) -> f32 {
        let spread = self.squares - self.sum * self.sum / self.elements.max(1.0);
        let energy = if spread > 1e-9 * self.squares { spread } else { self.squares };
        (energy / self.samples.max(1.0)) as f32
    }
}

impl Point {
    pub(super) fn new(teacher: &str, student: &str, scores: bool) -> Self {
        let weight = 1.0;
        let kind = if scores { Kind::Scores { weight } } else { Kind::Square { weight } };
        Self { teacher: teacher.to_owned(), student: student.to_owned(), kind }
    }

    /// Takes differences relative to an energy.
    pub(super) fn measure(&mut self, energy: &Energy) {
        let inverse = 1.0 / energy.of_a_sample().max(1e-6);
        match &mut self.kind {
            Kind::Square { weight } => *weight = inverse,
            Kind::Scores { weight } => *weight = BESIDE * inverse,
        }
    }

    /// The loss of a student that says nothing, about: of scores the same one for each class against a teacher that is sure.
    pub(super) fn worst(&self, elements: usize) -> f64 {
        match self.kind {
            Kind::Scores { .. } => f64::from(TEMPERATURE * TEMPERATURE) * (elements.max(2) as f64).ln(),
            Kind::Square { .. } => 1.0,
        }
    }

    /// The loss of one sample, `target` being the teacher's value; its gradient, times `share` if there is one, is added to the
    /// student's cotangent.
    pub(super) fn loss(
        &self,
        target: &[f32],
        (student, workspace): (&Tape, &mut Workspace),
        share: Option<f32>,
        scratch: &mut Vec<f32>,
    ) -> f32 {
        let value = student.value(workspace, &self.student);
        scratch.clear();
        let loss = match self.kind {
            Kind::Scores { weight } => {
                let loss = divergence(target, value, scratch);
                let pairs = value.iter().zip(target);
                scratch.iter_mut().zip(pairs.clone()).for_each(|(slope, (s, t))| *slope += 2.0 * weight * (s - t));
                loss + weight * pairs.map(|(s, t)| (s - t) * (s - t)).sum::<f32>()
            }
            Kind::Square { weight } => {
                scratch.extend(value.iter().zip(target).map(|(s, t)| 2.0 * weight * (s - t)));
                weight * value.iter().zip(target).map(|(s, t)| (s - t) * (s - t)).sum::<f32>()
            }
        };
        if let Some(share) = share {
            let into = student.cotangent(workspace, &self.student);
            into.iter_mut().zip(&*scratch).for_each(|(g, d)| *g += share * d);
        }
        loss
    }
}

/// Kullback-Leibler divergence of softened scores, times T²; `slope` gets `T·(q − p)`.
fn divergence(target: &[f32], value: &[f32], slope: &mut Vec<f32>) -> f32 {
    let normaliser = |scores: &[f32]| {
        let largest = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
        largest / TEMPERATURE + scores.iter().map(|s| ((s - largest) / TEMPERATURE).exp()).sum::<f32>().ln()
    };
    let (of_target, of_value) = (normaliser(target), normaliser(value));
    let mut loss = 0.0;
    for (t, s) in target.iter().zip(value) {
        let (log_p, log_q) = (t / TEMPERATURE - of_target, s / TEMPERATURE - of_value);
        let p = log_p.exp();
        loss += p * (log_p - log_q);
        slope.push(TEMPERATURE * (log_q.exp() - p));
    }
    TEMPERATURE * TEMPERATURE * loss
}
