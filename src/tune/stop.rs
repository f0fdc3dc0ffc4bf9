//! How a run is ended early by another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A wish to end tuning early with the best model so far.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<State>);

#[derive(Debug, Default)]
struct State {
    asked: AtomicBool,
    /// Somebody would heed it.
    tuning: AtomicBool,
}

impl Stop {
    /// Ends tuning at the next step. False if there is none, or if it was asked for before.
    #[must_use]
    pub fn ask(&self) -> bool {
        self.0.tuning.load(Ordering::SeqCst) && !self.0.asked.swap(true, Ordering::SeqCst)
    }

    pub(super) fn asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Heeds wishes until the guard goes.
    pub(super) fn heeded(&self) -> Heeded<'_> {
        self.0.tuning.store(true, Ordering::SeqCst);
        Heeded(self)
    }
}

/// While this lives, a wish to stop is heeded.
pub(super) struct Heeded<'s>(&'s Stop);

impl Drop for Heeded<'_> {
    fn drop(&mut self) {
        self.0.0.tuning.store(false, Ordering::SeqCst);
        // It was heeded: a later step is another.
        self.0.0.asked.store(false, Ordering::SeqCst);
    }
}
