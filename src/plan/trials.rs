//! What was found out by trying: kept, so that nothing is tried twice, in this run or, where it is stored, in a later one.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// What fitted factors at some ranks, ascending, gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// What each rank leaves of each member's output, `E‖y − ŷ‖² / E‖y‖²`.
    pub(crate) errors: Vec<Vec<f64>>,
    /// How far the network's output moves at each rank, if that was measured.
    pub(crate) moved: Option<Vec<f64>>,
}

/// Trials of one model on some images, by text that names members, form and ranks.
#[derive(Debug, Default)]
pub(crate) struct Trials(Mutex<BTreeMap<String, Trial>>);

impl Trials {
    pub(crate) fn new(known: BTreeMap<String, Trial>) -> Self {
        Self(Mutex::new(known))
    }

    pub(crate) fn get(&self, key: &str) -> Option<Trial> {
        self.all().get(key).cloned()
    }

    pub(crate) fn keep(&self, key: String, trial: &Trial) {
        self.all().insert(key, trial.clone());
    }

    /// All of them.
    pub(crate) fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Trial>> {
        // Nothing panics while it holds the lock half-way through a change.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
