//! What is minimised: how far the student's outputs, and values inside it, are from the teacher's.

use super::tape::{Tape, Workspace};

/// Temperature of the scores' distributions.
const TEMPERATURE: f32 = 2.0;

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
    /// `T²·Σ p·(log p − log q)` of the distributions at temperature T.
    Scores,
    /// `weight·‖s − t‖²`.
    Square { weight: f32 },
}

impl Point {
    pub(super) fn new(teacher: &str, student: &str, scores: bool) -> Self {
        let kind = if scores { Kind::Scores } else { Kind::Square { weight: 1.0 } };
        Self { teacher: teacher.to_owned(), student: student.to_owned(), kind }
    }

    /// `‖t − mean(t)‖²` of one sample.
    pub(super) fn energy(&self, teacher: &Tape, workspace: &Workspace) -> f32 {
        let value = teacher.value(workspace, &self.teacher);
        let mean = value.iter().sum::<f32>() / value.len().max(1) as f32;
        value.iter().map(|x| (x - mean) * (x - mean)).sum()
    }

    /// Takes differences relative to an energy.
    pub(super) fn measure(&mut self, energy: f32) {
        if let Kind::Square { weight } = &mut self.kind {
            *weight = 1.0 / energy.max(1e-6);
        }
    }

    /// The loss of a student that says nothing, about: of scores the same one for each class against a teacher that is sure.
    pub(super) fn worst(&self, elements: usize) -> f64 {
        match self.kind {
            Kind::Scores => f64::from(TEMPERATURE * TEMPERATURE) * (elements.max(2) as f64).ln(),
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
            Kind::Scores => divergence(target, value, scratch),
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
