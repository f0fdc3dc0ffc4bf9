//! The state of a run in a file, to go on from after it was interrupted.

use super::course::Run;
use super::views::Views;
use crate::error::{Error, Result};
use crate::onnx::{Model, hex, write_whole};
use crate::sealed::{read_sealed, write_sealed};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Changes whenever what the file holds, or what a step does, does.
const FORMAT: &str = concat!("onnx-jmd ", env!("CARGO_PKG_VERSION"), " tuning 3");

/// A file, and what the run in it follows from.
pub(super) struct Checkpoint {
    path: PathBuf,
    key: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    run: Run,
}

impl Checkpoint {
    /// # Errors
    /// [`Error::Images`] if an image cannot be decoded.
    pub(super) fn new(path: &Path, models: [&Model; 2], views: &Views, options: &str) -> Result<Self> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(FORMAT.as_bytes());
        part(options.as_bytes());
        models.iter().for_each(|model| part(model.digest().as_bytes()));
        views.hash(&mut part)?;
        Ok(Self { path: path.to_owned(), key: hex(&hash.finalize()) })
    }

    /// The run that the file holds, if there is a file.
    ///
    /// # Errors
    /// [`Error::Tuning`] if it is of another run, or cannot be read.
    pub(super) fn read(&self) -> Result<Option<Run>> {
        let refused = |reason: &str| Error::Tuning(format!("{}: {reason}", self.path.display()));
        let bytes = match std::fs::read(&self.path) {
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| refused(&format!("it cannot be read ({error})")))?,
        };
        let damaged = "it holds no state of tuning, or a damaged one: name another file, or delete it to begin anew";
        let kept: Kept = read_sealed(Cursor::new(bytes)).ok_or_else(|| refused(damaged))?;
        if kept.key != self.key {
            return Err(refused(
                "it holds the state of another run (other models, images, options or version): name another file, or delete \
                 it to begin anew",
            ));
        }
        Ok(Some(kept.run))
    }

    /// # Errors
    /// [`Error::Write`].
    pub(super) fn write(&self, run: &Run) -> Result<()> {
        let kept = Kept { key: self.key.clone(), run: run.clone() };
        let mut bytes = Vec::new();
        write_sealed(&kept, &mut bytes).map_err(|source| Error::Write { path: self.path.clone(), source })?;
        write_whole(&self.path, &bytes)
    }
}
