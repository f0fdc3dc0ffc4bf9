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
    /// The loss of one sample; its gradient, times `share`, is added to the student's cotangent if `learn`.
    pub(super) fn loss(
        &self,
        (teacher, seen): (&Tape, &Workspace),
        (student, workspace): (&Tape, &mut Workspace),
        share: Option<f32>,
        scratch: &mut Vec<f32>,
    ) -> f32 {
        let target = teacher.value(seen, &self.teacher);
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
