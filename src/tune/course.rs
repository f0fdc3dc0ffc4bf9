//! The loop: steps on a schedule, a look at what was held out now and then, and the best of what was seen.

use super::checkpoint::Checkpoint;
use super::lesson::{Lesson, Look};
use super::optimizer::{Optimizer, cycle};
use super::{Budget, TuneOptions};
use crate::error::Result;
use crate::progress::Progress;
use crate::report::TuningRow;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Steps between two looks at most, and with a time as budget seconds.
const LOOK: (u64, Duration) = (500, Duration::from_secs(60));
/// With a time as budget, times that a look takes are let pass before the next.
const SELDOM: u32 = 9;
/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(10);
/// Times that a loss which is no number is answered by going back to the last look with a smaller rate.
const RETREATS: u32 = 4;
/// By how much the rate is smaller then.
const RETREAT: f32 = 0.25;
/// The rate for a student that says nothing, and the least: what is hardly damaged is best trained slowly.
const RATES: [f64; 2] = [0.02, 0.001];

/// What is to be done.
pub(super) struct Course<'c> {
    pub(super) lesson: &'c Lesson<'c>,
    pub(super) options: &'c TuneOptions,
    /// How many are shown.
    pub(super) images: usize,
    pub(super) checkpoint: Option<Checkpoint>,
}

/// How far it has come, at a look.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Run {
    optimizer: Optimizer,
    /// Values at the look that is kept.
    best: Vec<Vec<f32>>,
    pub(super) curve: Vec<TuningRow>,
    pub(super) kept: usize,
    steps: u64,
    seconds: f64,
    /// The highest rate.
    pub(super) rate: f32,
    /// Of the rate asked for, after retreats.
    caution: f32,
    retreats: u32,
    #[serde(skip)]
    pub(super) stopped: bool,
}

impl Course<'_> {
    fn batch(&self) -> usize {
        self.options.batch.clamp(1, self.images.max(1))
    }

    /// Steps of one pass over the images.
    fn pass(&self) -> u64 {
        (self.images / self.batch()).max(1) as u64
    }

    /// The part of the way that lies behind, 1 at the end.
    fn way(&self, steps: u64, seconds: f64) -> f64 {
        match self.options.budget {
            Budget::Epochs(epochs) => steps as f64 / (epochs * self.pass() as f64).round().max(1.0),
            Budget::Time(time) => seconds / time.as_secs_f64().max(1e-3),
        }
    }

    /// The values to keep, and how they came about.
    ///
    /// # Errors
    /// [`Error::Images`](crate::Error::Images), and those of the checkpoint.
    pub(super) fn run(&self, progress: &Progress<'_>) -> Result<(Vec<Vec<f32>>, Run)> {
        let known = match &self.checkpoint {
            Some(checkpoint) => checkpoint.read()?,
            None => None,
        };
        let mut run = match known {
            Some(run) => {
                progress.say(&format!("going on after step {}, {:.0} s of tuning", run.steps, run.seconds));
                run
            }
            None => self.start(progress)?,
        };
        let heeded = self.options.stop.heeded();
        let begun = Instant::now();
        let mut said = begun;
        let before = run.seconds;
        let seconds = || before + begun.elapsed().as_secs_f64();
        let mut safe = run.clone();
        let (mut looked, mut took) = (Instant::now(), Duration::ZERO);
        let (mut sum, mut count) = (0.0, 0u64);
        let mut parts = self.lesson.parts();
        let (mut order, mut of) = (Vec::new(), None);
        loop {
            let way = self.way(run.steps, seconds());
            run.stopped = self.options.stop.asked();
            let due = count >= self.pass().min(LOOK.0)
                || (matches!(self.options.budget, Budget::Time(_)) && looked.elapsed() > LOOK.1.max(SELDOM * took));
            if (way >= 1.0 || run.stopped || due) && count > 0 {
                let before = Instant::now();
                self.look(&mut run, seconds(), sum / count as f64, progress)?;
                (sum, count, looked, took) = (0.0, 0, Instant::now(), before.elapsed());
                safe = run.clone();
                if let Some(checkpoint) = &self.checkpoint {
                    checkpoint.write(&run)?;
                }
            }
            if way >= 1.0 || run.stopped {
                break;
            }
            let (pass, place) = (run.steps / self.pass(), (run.steps % self.pass()) as usize);
            if of != Some(pass) {
                (order, of) = (self.lesson.order(pass), Some(pass));
            }
            let batch = &order[place * self.batch()..(place + 1) * self.batch()];
            let loss = self.lesson.learn(&run.optimizer.parameters, batch, run.steps, &mut parts)?;
            let rate = run.rate * run.caution * cycle(way as f32);
            let moved = loss.is_finite() && run.optimizer.step(parts[0].gradients(), rate);
            if !moved {
                let (caution, retreats) = (run.caution * RETREAT, run.retreats + 1);
                if retreats > RETREATS {
                    progress.say("the loss is no number again and again: the best model so far is kept");
                    break;
                }
                let rate = run.rate * caution;
                progress.say(&format!("the loss is no number: back to the last look, at a rate of {rate:.1e}"));
                // What was spent is spent: the steps go on from here, by other images.
                safe.steps = run.steps + 1;
                (safe.caution, safe.retreats) = (caution, retreats);
                run = safe.clone();
                continue;
            }
            run.steps += 1;
            (sum, count) = (sum + loss, count + 1);
            if said.elapsed() > PAUSE {
                if said == begun {
                    self.warn(&run, seconds(), progress);
                }
                said = Instant::now();
                self.say(&run, sum / count as f64, seconds(), progress);
            }
        }
        drop(heeded);
        Ok((run.best.clone(), run))
    }

    /// Before the first step.
    fn start(&self, progress: &Progress<'_>) -> Result<Run> {
        let optimizer = Optimizer::new(self.lesson.initial());
        let Look { loss, agreement, damage } = self.lesson.look(&optimizer.parameters)?;
        let rate = self.options.rate.unwrap_or((RATES[0] * damage).clamp(RATES[1], RATES[0]) as f32);
        let agreed = 100.0 * agreement;
        progress
            .say(&format!("before tuning: agreement {agreed:.2} % on held-out images; the highest rate is {rate:.1e}"));
        let row = TuningRow { epoch: 0.0, step: 0, seconds: 0.0, loss: None, held_out_loss: loss, agreement };
        let best = optimizer.parameters.clone();
        let (curve, seconds) = (vec![row], 0.0);
        let (caution, retreats, stopped) = (1.0, 0, false);
        Ok(Run { optimizer, best, curve, kept: 0, steps: 0, seconds, rate, caution, retreats, stopped })
    }

    /// Takes a look at the averages, and keeps them if they are the best so far.
    fn look(&self, run: &mut Run, seconds: f64, loss: f64, progress: &Progress<'_>) -> Result<()> {
        run.seconds = seconds;
        let look = self.lesson.look(&run.optimizer.averages)?;
        let epoch = run.steps as f64 / self.pass() as f64;
        let row = TuningRow {
            epoch,
            step: run.steps,
            seconds,
            loss: Some(loss),
            held_out_loss: look.loss,
            agreement: look.agreement,
        };
        run.curve.push(row);
        if look.loss < run.curve[run.kept].held_out_loss {
            run.best.clone_from(&run.optimizer.averages);
            run.kept = run.curve.len() - 1;
        }
        self.say(run, loss, seconds, progress);
        Ok(())
    }

    /// Says, once there is something to judge by, that the time is too short.
    fn warn(&self, run: &Run, seconds: f64, progress: &Progress<'_>) {
        let passes = run.steps as f64 / self.pass() as f64 / self.way(run.steps, seconds).clamp(1e-6, 1.0);
        if matches!(self.options.budget, Budget::Time(_)) && passes < 1.0 {
            progress.say(&format!(
                "the time is too short to show every image once (about {:.0} % of them): give a longer --tune",
                100.0 * passes
            ));
        }
    }

    fn say(&self, run: &Run, loss: f64, seconds: f64, progress: &Progress<'_>) {
        let way = self.way(run.steps, seconds).clamp(1e-6, 1.0);
        let agreement = run.curve.last().map_or(0.0, |row| row.agreement);
        progress.say(&format!(
            "epoch {:.2}, step {}: loss {loss:.4}, agreement {:.2} % on held-out images at the last look, about {:.0} s left",
            run.steps as f64 / self.pass() as f64,
            run.steps,
            100.0 * agreement,
            (seconds / way - seconds).max(0.0),
        ));
    }
}
