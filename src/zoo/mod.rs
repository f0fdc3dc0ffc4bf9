//! Many models in one run, each in a process of its own: what takes a process down, a crash or the system when memory runs out,
//! takes one model, and its memory goes back when it ends.

mod child;
mod find;
mod hash;
mod one;
mod row;
mod table;

pub use child::end_with_parent;

use find::{Found, find};
use hash::Key;
use one::Worker;
use onnx_jmd::{Error, Result, write_whole, writing};
use row::{Outcome, Row};
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Folder of `OUT_DIR` with records and reports.
const FOLDER: &str = "zoo";

/// Every how manieth model a run takes, and from which on.
#[derive(Debug, Clone, Copy)]
pub struct Shard {
    /// Counted from one.
    index: usize,
    count: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (index, count) = numbers
            .filter(|(index, count)| (1..=*count).contains(index))
            .ok_or_else(|| format!("'{text}' is not I/N with I from 1 to N, such as 2/8"))?;
        Ok(Self { index, count })
    }
}

impl Shard {
    /// Neighbours in the order of names, which are often of one size, fall into different shards.
    fn takes(self, place: usize) -> bool {
        place % self.count == self.index - 1
    }
}

/// What a run over a folder is asked to do.
#[derive(Debug)]
pub struct Zoo {
    /// Where the models are.
    pub in_dir: PathBuf,
    /// Where they go.
    pub out_dir: PathBuf,
    /// What each is given to: this program.
    pub program: PathBuf,
    /// Its options.
    pub arguments: Vec<OsString>,
    /// The options on which the result depends.
    pub identity: Vec<(String, OsString)>,
    /// Files and folders that the options name.
    pub read: Vec<PathBuf>,
    /// How many models at once.
    pub jobs: usize,
    /// Threads for all of them together.
    pub threads: usize,
    /// Which part of the models.
    pub shard: Option<Shard>,
    /// Only these, by their names; empty for all.
    pub only: Vec<String>,
    /// How long one may take.
    pub timeout: Option<Duration>,
}

/// What became of the models.
#[derive(Debug)]
pub struct Summary {
    rows: Vec<Row>,
    /// Where it was written, if that was its own.
    path: Option<PathBuf>,
}

impl Zoo {
    /// Compresses what is not up to date. `progress` hears of each model.
    ///
    /// # Errors
    /// [`Error::Options`] if an output could be an input or there is no model, [`Error::Read`] and [`Error::Write`] of the folders
    /// and of the summary; what is wrong with a model is in its row.
    pub fn run(&self, progress: &(dyn Fn(&str) + Sync)) -> Result<Summary> {
        let found = find(&self.in_dir, &self.out_dir)?;
        if found.is_empty() {
            return Err(Error::Options(format!("there is no *.onnx in {}", self.in_dir.display())));
        }
        let key = Key::new(&self.identity, &self.read)?;
        let failed = |source| Error::Write { path: self.out_dir.clone(), source };
        std::fs::create_dir_all(&self.out_dir).map_err(failed)?;
        let all = found.len();
        let known: HashSet<&str> = found.iter().map(|model| model.name.as_str()).collect();
        if let Some(name) = self.only.iter().find(|name| !known.contains(name.as_str())) {
            return Err(Error::Options(format!(
                "--only names '{name}', which is no *.onnx in {}",
                self.in_dir.display()
            )));
        }
        let mine = |(place, model): &(usize, Found)| {
            let named = self.only.is_empty() || self.only.contains(&model.name);
            named && self.shard.is_none_or(|shard| shard.takes(*place))
        };
        let models: Vec<Found> = found.into_iter().enumerate().filter(mine).map(|(_, found)| found).collect();
        let jobs = self.jobs.clamp(1, models.len().max(1));
        let threads = (self.threads / jobs).max(1);
        progress(&format!("{} of {all} models, {jobs} at once, threads for each: {threads}", models.len()));
        let worker = Worker {
            program: &self.program,
            arguments: &self.arguments,
            key: &key,
            state: self.out_dir.join(FOLDER),
            threads,
            timeout: self.timeout,
        };
        let summary = Summary { rows: work(&models, jobs, &worker, progress), path: self.summary() };
        if let Some(path) = &summary.path {
            let _whole = writing();
            write_whole(path, summary.lines().as_bytes())?;
        }
        Ok(summary)
    }

    /// Where the summary goes: each shard has its own, and single models have none, so that no two runs write the same.
    fn summary(&self) -> Option<PathBuf> {
        let name = self.shard.map_or("zoo.jsonl".to_owned(), |s| format!("zoo-{}-of-{}.jsonl", s.index, s.count));
        self.only.is_empty().then(|| self.out_dir.join(name))
    }
}

/// A row a model, in their order, whoever was ready first.
fn work(models: &[Found], jobs: usize, worker: &Worker<'_>, progress: &(dyn Fn(&str) + Sync)) -> Vec<Row> {
    let (next, ready) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let take = || {
        let mut rows = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(model) = models.get(place) else { return rows };
            let row = worker.row(model);
            let count = 1 + ready.fetch_add(1, Ordering::Relaxed);
            progress(&format!("{count} of {}: {row}", models.len()));
            rows.push((place, row));
        }
    };
    let mut rows: Vec<(usize, Row)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(take)).collect();
        workers.into_iter().flat_map(|each| each.join().unwrap_or_default()).collect()
    });
    rows.sort_by_key(|(place, _)| *place);
    rows.into_iter().map(|(_, row)| row).collect()
}

impl Summary {
    /// A line of JSON a model.
    fn lines(&self) -> String {
        // Strings and numbers cannot fail to serialise.
        self.rows.iter().map(|row| serde_json::to_string(row).unwrap_or_default() + "\n").collect()
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome).count()
    }

    /// # Errors
    /// [`Error::Refused`] if any model was.
    pub fn check(&self) -> Result<()> {
        match self.rows.iter().find(|row| row.outcome == Outcome::Refused) {
            None => Ok(()),
            Some(row) => {
                let first = format!("'{}': {}", row.model, row.reason.as_deref().unwrap_or_default());
                Err(Error::Refused { refused: self.count(Outcome::Refused), models: self.rows.len(), first })
            }
        }
    }
}
