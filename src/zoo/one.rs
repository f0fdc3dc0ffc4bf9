//! One model: done already, or given to a process.

use super::child::{End, run};
use super::find::Found;
use super::hash::{Content, Key};
use super::row::{Outcome, Row, Sizes};
use onnx_jmd::{Error, Result};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What is the same for all models.
#[derive(Debug)]
pub struct Worker<'z> {
    /// What each is given to.
    pub program: &'z Path,
    /// Its options.
    pub arguments: &'z [OsString],
    /// What results follow from besides the model.
    pub key: &'z Key,
    /// Where records and reports go.
    pub state: PathBuf,
    /// Threads of a process.
    pub threads: usize,
    /// How long one may take.
    pub timeout: Option<Duration>,
}

impl Worker<'_> {
    /// What became of a model, whatever happens.
    pub fn row(&self, model: &Found) -> Row {
        match catch_unwind(AssertUnwindSafe(|| self.done(model))) {
            Ok(Ok(row)) => row,
            Ok(Err(error)) => Row::from((&*model.name, error)),
            Err(_) => Row::refused(&model.name, Some(1), "internal error, please report it".into()),
        }
    }

    fn done(&self, model: &Found) -> Result<Row> {
        let input = Content::of(&model.input)?;
        let key = self.key.with(&input);
        let (record, report) = (self.beside("records", model), self.beside("reports", model));
        let before = Row::read(&record);
        if let Some(row) = before.as_ref().filter(|row| row.key.as_ref() == Some(&key) && stands(row, &model.output)) {
            return Ok(Row { up_to_date: true, ..row.clone() });
        }
        for path in [&model.output, &record, &report] {
            let folder = path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.to_owned(), source })?;
        }
        remove(&report)?;
        let start = Instant::now();
        let (end, said) = run(&mut self.command(model, &report), self.timeout)
            .map_err(|source| Error::Read { path: self.program.to_owned(), source })?;
        let seconds = start.elapsed().as_secs_f64();
        let ended = self.ended(model, &input, &report, end, &said)?;
        let stale = ended.outcome == Outcome::Refused && before.is_some_and(|row| written(&row, &model.output));
        if stale {
            // Of other options or another model: nobody should take it for this one's.
            remove(&model.output)?;
        }
        let row = Row { seconds, key: Some(key), input_sha256: Some(input.sha256), ..ended };
        if row.is_final() {
            row.write(&record)?
        } else {
            remove(&record)?
        }
        // Said once: the record is of the model.
        let gone = |reason| {
            format!(
                "{reason}; the output of an earlier run is removed, as it is of other options, another input or another version"
            )
        };
        Ok(if stale { Row { reason: row.reason.map(gone), ..row } } else { row })
    }

    fn beside(&self, folder: &str, model: &Found) -> PathBuf {
        let mut path = self.state.join(folder).join(&model.relative).into_os_string();
        path.push(".json");
        path.into()
    }

    fn command(&self, model: &Found, report: &Path) -> Command {
        let mut command = Command::new(self.program);
        command.args(self.arguments).arg("--quiet").arg(format!("--threads={}", self.threads));
        command.args([OsStr::new("--json"), report.as_os_str()]);
        // A path that begins with a dash is no option.
        command.args([OsStr::new("--"), model.input.as_os_str(), model.output.as_os_str()]);
        command
    }

    fn ended(&self, model: &Found, input: &Content, report: &Path, end: End, said: &str) -> Result<Row> {
        // The row names the model already, and the record holds wherever it stands.
        let file = format!("{}: ", model.input.display());
        let sentence = sentence(said);
        let sentence = sentence.strip_prefix(&file).map_or(sentence.clone(), str::to_owned);
        // What is said first, before any trace of calls.
        let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        let refused = |code, reason| Ok(Row::refused(&model.name, code, reason));
        let (outcome, code, reason) = match end {
            End::Code(0) => (Outcome::Compressed, 0, None),
            End::Code(4) => (Outcome::LeftAlone, 4, Some(sentence)),
            End::Code(code) => return refused(Some(code), sentence),
            End::Broken(how) if first.is_empty() => return refused(None, how),
            End::Broken(how) => return refused(None, format!("{how}: {first}")),
            End::Late => {
                let limit = self.timeout.unwrap_or_default().as_secs_f64();
                return refused(None, format!("it took longer than --timeout {limit}"));
            }
        };
        let output = Content::of(&model.output)?;
        let facts = std::fs::read(report).map_err(|source| Error::Read { path: report.to_owned(), source })?;
        let facts: Value = serde_json::from_slice(&facts).unwrap_or_default();
        let sizes = |of: &str| {
            let number = |part: &str| facts.pointer(&format!("/totals/{of}/{part}"))?.as_u64();
            Some(Sizes { before: number("before")?, after: number("after")? })
        };
        let part = |name: &str| facts.get(name).filter(|value| !value.is_null()).cloned();
        Ok(Row {
            outcome,
            exit_code: Some(code),
            reason,
            ratio: facts.pointer("/totals/parameters/ratio").and_then(Value::as_f64),
            parameters: sizes("parameters"),
            file_bytes: Some(Sizes { before: input.bytes, after: output.bytes }),
            verification: part("verification"),
            score: part("score"),
            output_sha256: Some(output.sha256),
            ..Row::refused(&model.name, None, String::new())
        })
    }
}

/// Whether what a record says is still so.
fn stands(row: &Row, output: &Path) -> bool {
    match row.outcome {
        Outcome::Refused => row.is_final(),
        Outcome::Compressed | Outcome::LeftAlone => written(row, output),
    }
}

/// Whether the output is what the record's run wrote.
fn written(row: &Row, output: &Path) -> bool {
    row.output_sha256.is_some() && Content::of(output).ok().map(|content| content.sha256) == row.output_sha256
}

/// The last line that is the program's own, without its name.
fn sentence(said: &str) -> String {
    let own = said.lines().rev().find_map(|line| line.strip_prefix("onnx-jmd: "));
    own.or(said.lines().rev().find(|line| !line.trim().is_empty())).unwrap_or_default().trim().to_owned()
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Write { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
