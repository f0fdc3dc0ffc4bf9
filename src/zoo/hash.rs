//! What a result follows from, and what it is, as hashes.

use onnx_jmd::{Error, Model, Result};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// Bytes of a file that are read at a time.
const PIECE: usize = 1 << 20;

/// The content of a model, in however many files.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    /// Of one file its SHA-256; of several that of the lines of theirs.
    pub sha256: String,
    /// Of all files together.
    pub bytes: u64,
}

impl Content {
    /// # Errors
    /// [`Error::Read`].
    pub fn of(model: &Path) -> Result<Self> {
        let files: Vec<(String, u64)> = Model::files(model)?.iter().map(|path| file(path)).collect::<Result<_>>()?;
        let bytes = files.iter().map(|(_, bytes)| bytes).sum();
        let sha256 = match &files[..] {
            [(only, _)] => only.clone(),
            all => digits(&all.iter().fold(Sha256::new(), |hash, (line, _)| hash.chain_update(format!("{line}\n")))),
        };
        Ok(Self { sha256, bytes })
    }
}

/// What is the same for every model of a run: the version, the options, and what they name.
#[derive(Debug)]
pub struct Key(Sha256);

impl Key {
    /// # Errors
    /// [`Error::Read`] of what the options name.
    pub fn new(identity: &[(String, OsString)], read: &[PathBuf]) -> Result<Self> {
        let mut hash = Sha256::new();
        part(&mut hash, env!("CARGO_PKG_VERSION").as_bytes());
        for (name, value) in identity {
            part(&mut hash, name.as_bytes());
            part(&mut hash, value.as_encoded_bytes());
        }
        for path in read {
            for entry in WalkDir::new(path).follow_links(true).sort_by_file_name() {
                let entry = entry.map_err(|e| Error::Read { path: path.clone(), source: e.into() })?;
                if entry.file_type().is_file() {
                    part(&mut hash, entry.path().as_os_str().as_encoded_bytes());
                    part(&mut hash, file(entry.path())?.0.as_bytes());
                }
            }
        }
        Ok(Self(hash))
    }

    /// The key of one model.
    pub fn with(&self, input: &Content) -> String {
        digits(&self.0.clone().chain_update(&input.sha256))
    }
}

/// Its length first, so that no two lists of parts read the same.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn file(path: &Path) -> Result<(String, u64)> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let (mut file, mut hash, mut bytes) = (File::open(path).map_err(failed)?, Sha256::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => return Ok((digits(&hash), bytes)),
            n => {
                hash.update(&piece[..n]);
                bytes += n as u64;
            }
        }
    }
}

fn digits(hash: &Sha256) -> String {
    hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
