//! Which models there are, and where each goes: never to where one is read from.

use onnx_jmd::{Error, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{Error as IoError, ErrorKind};
use std::path::{Component, Path, PathBuf};
use walkdir::WalkDir;

/// A model of the folder.
#[derive(Debug)]
pub struct Found {
    /// Its path in the folder, with slashes.
    pub name: String,
    /// The same as the system has it.
    pub relative: PathBuf,
    /// Where it is.
    pub input: PathBuf,
    /// Where it goes.
    pub output: PathBuf,
}

/// Every model of a folder, in the order of their paths.
///
/// # Errors
/// [`Error::Read`] of a folder that cannot be, [`Error::Options`] if an output could be, now or in a later run, an input.
pub fn find(in_dir: &Path, out_dir: &Path) -> Result<Vec<Found>> {
    let unreadable = |source| Error::Read { path: in_dir.to_owned(), source };
    let from = std::fs::canonicalize(in_dir).map_err(unreadable)?;
    if !from.is_dir() {
        return Err(unreadable(IoError::from(ErrorKind::NotADirectory)));
    }
    let to = place(out_dir)?;
    if to.starts_with(&from) || from.starts_with(&to) {
        let (one, other) = (in_dir.display(), out_dir.display());
        let advice = "name folders of which neither is in the other";
        return Err(Error::Options(format!("models of {other} would be taken for those of {one}: {advice}")));
    }
    let mut models = Vec::new();
    for relative in paths(in_dir)? {
        let parts = relative.components().map(|c| c.as_os_str().to_string_lossy());
        let name = parts.collect::<Vec<_>>().join("/");
        models.push(Found { name, input: in_dir.join(&relative), output: out_dir.join(&relative), relative });
    }
    apart(&models, &from)?;
    Ok(models)
}

/// The models' paths within the folder. Links are followed, but for one to a folder that it stands in.
fn paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_model = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    let mut paths = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true) {
        let path = match entry {
            Ok(entry) if entry.file_type().is_file() && is_model(entry.path()) => entry.into_path(),
            Ok(_) => continue,
            Err(e) if e.loop_ancestor().is_some() => continue,
            Err(e) => match e.path().map(Path::to_owned) {
                // A link to nowhere is a model that cannot be read.
                Some(path) if is_model(&path) => path,
                path => return Err(Error::Read { path: path.unwrap_or(folder.to_owned()), source: e.into() }),
            },
        };
        paths.extend(path.strip_prefix(folder).ok().map(Path::to_owned));
    }
    paths.sort();
    Ok(paths)
}

/// Refuses outputs that links lead to an input, into the folder of the inputs or to each other.
fn apart(models: &[Found], from: &Path) -> Result<()> {
    let inputs = models.iter().filter_map(|m| Some((std::fs::canonicalize(&m.input).ok()?, &m.input)));
    let inputs: HashMap<PathBuf, &PathBuf> = inputs.collect();
    let mut outputs: HashMap<PathBuf, &PathBuf> = HashMap::new();
    for model in models {
        let place = place(&model.output)?;
        let one = |other: &Path| {
            let (output, other) = (model.output.display(), other.display());
            Err(Error::Options(format!(
                "the output {output} leads to {other}: take the link away or name another OUT_DIR"
            )))
        };
        if let Some(input) = inputs.get(&place) {
            return one(input);
        }
        if place.starts_with(from) {
            return one(&place);
        }
        if let Some(other) = outputs.insert(place, &model.output) {
            return one(other);
        }
    }
    Ok(())
}

/// Where a path leads, links followed as far as it exists.
fn place(path: &Path) -> Result<PathBuf> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let whole = std::path::absolute(path).map_err(failed)?;
    let there = whole.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let rest: Vec<Component<'_>> = whole.strip_prefix(there).unwrap_or(Path::new("")).components().collect();
    if rest.contains(&Component::ParentDir) {
        return Err(failed(IoError::from(ErrorKind::NotFound)));
    }
    let there = std::fs::canonicalize(there).map_err(failed)?;
    Ok(rest.iter().map(|c| -> &OsStr { c.as_os_str() }).fold(there, |path, part| path.join(part)))
}
