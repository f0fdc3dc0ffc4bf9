//! The files that a command is to write: what is read is never among them, and that they can be written is known before any work.

use super::streams::is_stream;
use onnx_jmd::{Error, Result, check_writable};
use std::path::{Path, PathBuf};

/// Files to write, by the names that people know them by.
#[derive(Debug)]
pub struct Outputs<'p> {
    files: Vec<(&'static str, &'p Path, PathBuf)>,
}

impl<'p> Outputs<'p> {
    /// Those of the given files that are named and not streams.
    ///
    /// # Errors
    /// [`Error::Write`] if one cannot be there, [`Error::Options`] if two are one, or one is where standard output
    /// goes: a file that is put in its place is another.
    pub fn new(named: impl IntoIterator<Item = (&'static str, Option<&'p PathBuf>)>) -> Result<Self> {
        let stdout = std::fs::canonicalize("/dev/stdout").ok();
        let mut files: Vec<(&str, &Path, PathBuf)> = Vec::new();
        for (name, path) in named {
            let Some(path) = path.filter(|path| !is_stream(path)) else { continue };
            let place = place(path)?;
            if stdout.as_ref() == Some(&place) {
                let reason = "is where standard output goes, which would be lost: name another file";
                return Err(Error::Options(format!("{name}: {} {reason}", path.display())));
            }
            if let Some((other, ..)) = files.iter().find(|file| file.2 == place) {
                let path = path.display();
                return Err(Error::Options(format!("{name} and {other} are one file, {path}: name another")));
            }
            files.push((name, path, place));
        }
        Ok(Self { files })
    }

    /// Refuses files that are read.
    ///
    /// # Errors
    /// [`Error::Options`] naming one.
    pub fn apart_from<P: AsRef<Path>>(&self, inputs: impl IntoIterator<Item = P>) -> Result<()> {
        let read = inputs.into_iter().filter(|path| !is_stream(path.as_ref()));
        let read: Vec<PathBuf> = read.filter_map(|path| std::fs::canonicalize(path).ok()).collect();
        match self.files.iter().find(|file| read.contains(&file.2)) {
            Some((_, path, _)) => {
                Err(Error::Options(format!("the output {} is an input: name another file", path.display())))
            }
            None => Ok(()),
        }
    }

    /// Tries, without leaving a trace, whether they can be written.
    ///
    /// # Errors
    /// [`Error::Write`] with the system's reason.
    pub fn check_writable(&self) -> Result<()> {
        self.files.iter().try_for_each(|(_, path, _)| check_writable(path))
    }
}

/// Where a file to write really is, links followed; refused if it cannot be there.
fn place(path: &Path) -> Result<PathBuf> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    if let Ok(existing) = std::fs::canonicalize(path) {
        return Ok(existing);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::fs::canonicalize(folder).map_err(failed)?;
    if !folder.is_dir() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::NotADirectory)));
    }
    Ok(folder.join(path.file_name().unwrap_or_default()))
}
