//! What became of one model: a line of the summary, and the record by which a later run knows that it is done.

use onnx_jmd::{Error, Result, write_whole, writing};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// Version of the lines' layout; it grows when a field changes its meaning or goes.
pub const ZOO_VERSION: u32 = 1;

/// Exit codes that follow from the model and the options alone: to try again would end the same.
const FINAL: [u8; 7] = [2, 3, 5, 6, 7, 8, 10];

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A smaller model was written.
    Compressed,
    /// There was nothing to compress: the output is the input.
    LeftAlone,
    /// Nothing was written.
    Refused,
}

/// One quantity before and, if there is an output, after.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Sizes {
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

/// What became of one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// [`ZOO_VERSION`].
    pub zoo_version: u32,
    /// Version of onnx-jmd.
    pub version: String,
    /// Path in the folder.
    pub model: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether that was found done.
    pub up_to_date: bool,
    /// Exit code of its process, or that of the error that kept it from being started.
    pub exit_code: Option<u8>,
    /// Why it was refused or left alone.
    pub reason: Option<String>,
    /// Ratio of parameters reached.
    pub ratio: Option<f64>,
    /// Floating-point parameters.
    pub parameters: Option<Sizes>,
    /// Bytes of all its files.
    pub file_bytes: Option<Sizes>,
    /// The report's `verification`.
    pub verification: Option<Value>,
    /// The report's `score`.
    pub score: Option<Value>,
    /// Seconds that its process took.
    pub seconds: f64,
    /// SHA-256 of all that the result follows from.
    pub key: Option<String>,
    /// SHA-256 of the input.
    pub input_sha256: Option<String>,
    /// SHA-256 of the output.
    pub output_sha256: Option<String>,
}

impl Row {
    /// A model of which nothing is known yet, refused.
    pub fn refused(model: &str, exit_code: Option<u8>, reason: String) -> Self {
        Self {
            zoo_version: ZOO_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            model: model.to_owned(),
            outcome: Outcome::Refused,
            up_to_date: false,
            exit_code,
            reason: Some(reason),
            ratio: None,
            parameters: None,
            file_bytes: None,
            verification: None,
            score: None,
            seconds: 0.0,
            key: None,
            input_sha256: None,
            output_sha256: None,
        }
    }

    /// The record of an earlier run; one that cannot be read is none.
    pub fn read(path: &Path) -> Option<Self> {
        let row: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (row.zoo_version == ZOO_VERSION).then_some(row)
    }

    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        let _whole = writing();
        write_whole(path, text.as_bytes())
    }

    /// Whether trying again would end the same: not so where a process was killed or ended, or the disk was full.
    pub fn is_final(&self) -> bool {
        self.outcome != Outcome::Refused || self.exit_code.is_some_and(|code| FINAL.contains(&code))
    }

    /// The most telling figure of how near the output is to the input, or what there is in its place.
    pub fn figure(&self) -> String {
        let number = |of: &Option<Value>, path: &str| of.as_ref()?.pointer(path)?.as_f64();
        let equal = number(&self.score, "/agreement").map(|share| format!("{:.2} % equal", 100.0 * share));
        let noise = self.verification.as_ref().map(|_| match number(&self.verification, "/approximation/snr_db") {
            Some(snr) => format!("SNR {snr:.1} dB"),
            None => "equal".to_owned(),
        });
        match (self.outcome, equal.or(noise)) {
            (Outcome::Compressed, Some(figure)) => figure,
            (Outcome::Compressed, None) => "not verified".to_owned(),
            _ => self.exit_code.map_or("no exit code".to_owned(), |code| format!("exit code {code}")),
        }
    }

    /// How it ended, in words.
    pub fn words(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Compressed => "compressed",
            Outcome::LeftAlone => "left alone",
            Outcome::Refused => "refused",
        };
        format!("{outcome}{}", if self.up_to_date { ", up to date" } else { "" })
    }
}

impl From<(&str, Error)> for Row {
    fn from((model, error): (&str, Error)) -> Self {
        Self::refused(model, Some(error.exit_code()), error.to_string())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {}", self.model, self.words(), self.figure())?;
        match (&self.reason, self.ratio) {
            (Some(reason), _) => write!(f, ": {reason}"),
            (None, Some(ratio)) => write!(f, ", ratio {ratio:.2}"),
            (None, None) => Ok(()),
        }
    }
}
