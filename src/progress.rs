//! What a run says while it works: stages, items within them with the time that is left, and how long each stage took.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Who hears of it, a line at a time, from any thread.
pub(crate) type Listener<'l> = dyn Fn(&str) + Sync + 'l;

/// Least time between two lines of one stage's items.
const PAUSE: Duration = Duration::from_secs(2);

/// Stages begun so far.
pub(crate) struct Progress<'l> {
    listener: &'l Listener<'l>,
    stages: Mutex<Vec<(&'static str, Instant)>>,
}

impl<'l> Progress<'l> {
    pub(crate) fn new(listener: &'l Listener<'l>) -> Self {
        Self { listener, stages: Mutex::new(Vec::new()) }
    }

    /// A line outside any count.
    pub(crate) fn say(&self, line: &str) {
        (self.listener)(line);
    }

    /// Ends the last stage and begins another; `name` for the timings, `line` to be read.
    pub(crate) fn stage(&self, name: &'static str, line: &str) {
        self.say(line);
        if let Ok(mut stages) = self.stages.lock() {
            stages.push((name, Instant::now()));
        }
    }

    /// Counts `total` items of the stage that has begun.
    pub(crate) fn items(&self, what: &'static str, total: usize) -> Items<'_> {
        let now = Instant::now();
        Items { listener: self.listener, what, total, done: AtomicUsize::new(0), begun: now, said: Mutex::new(now) }
    }

    /// Seconds that each stage took up to now, in their order; stages that came several times are added up.
    pub(crate) fn timings(&self) -> Vec<(String, f64)> {
        let Ok(stages) = self.stages.lock() else { return Vec::new() };
        let mut found: Vec<(String, f64)> = Vec::new();
        for (at, (name, begun)) in stages.iter().enumerate() {
            let ended = stages.get(at + 1).map_or_else(Instant::now, |next| next.1);
            let seconds = (ended - *begun).as_secs_f64();
            match found.iter_mut().find(|f| f.0 == *name) {
                Some(same) => same.1 += seconds,
                None => found.push(((*name).to_owned(), seconds)),
            }
        }
        found
    }
}

/// Items of one stage.
pub(crate) struct Items<'l> {
    listener: &'l Listener<'l>,
    what: &'static str,
    total: usize,
    done: AtomicUsize,
    begun: Instant,
    said: Mutex<Instant>,
}

impl Items<'_> {
    /// One more is done; says so now and then.
    pub(crate) fn done(&self, name: &str) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let Ok(mut said) = self.said.lock() else { return };
        if said.elapsed() < PAUSE || done >= self.total {
            return;
        }
        *said = Instant::now();
        let each = self.begun.elapsed().as_secs_f64() / done as f64;
        let left = each * (self.total - done) as f64;
        (self.listener)(&format!("{}: {done} of {}, {name}, about {left:.0} s left", self.what, self.total));
    }
}
