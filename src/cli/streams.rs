//! Models from standard input and to standard output: what `-` in the place of a file means.

use onnx_jmd::{Error, Model, Result};
use std::io::{IsTerminal, Read, Write};
use std::path::Path;

/// The name that stands for standard input or output; a file of that name is `./-`.
const STREAM: &str = "-";

/// Whether a path means standard input or output.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == STREAM
}

/// Opens a model, from standard input if the path says so.
///
/// # Errors
/// Those of [`Model::open`], [`Error::Options`] where a person would have to type the model.
pub fn open(path: &Path) -> Result<Model> {
    if !is_stream(path) {
        return Model::open(path);
    }
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        return Err(Error::Options(
            "the model is to come from standard input, which is a terminal: name a file".into(),
        ));
    }
    let mut bytes = Vec::new();
    let read = input.read_to_end(&mut bytes);
    read.map_err(|source| Error::Read { path: name(path).to_owned(), source })?;
    Model::from_bytes(bytes).map_err(|error| error.of_file(name(path)))
}

/// A model's name for people.
pub fn name(path: &Path) -> &Path {
    if is_stream(path) { Path::new("standard input") } else { path }
}

/// Refuses, before any work, a model that cannot go to standard output: there is a terminal, or JSON, or its data must stand
/// beside it.
///
/// # Errors
/// [`Error::Options`].
pub fn check_output(model: &Path, json: Option<&Path>, external_data: bool) -> Result<()> {
    if !is_stream(model) {
        return Ok(());
    }
    let refused = |reason: &str| Err(Error::Options(reason.into()));
    if json.is_some_and(is_stream) {
        return refused("the model and --json cannot both go to standard output: name a file for one of them");
    }
    if external_data {
        return refused("--external-data needs a file to stand beside: name one for the model instead of '-'");
    }
    if std::io::stdout().is_terminal() {
        return refused("a model is no text for a terminal: name a file, or redirect standard output");
    }
    Ok(())
}

/// Gives a whole model to standard output.
///
/// # Errors
/// [`Error::Write`] if its reader is gone, or if it is too large for a single file; nothing is given then.
pub fn give(model: &Model) -> Result<()> {
    let mut output = std::io::stdout().lock();
    model.write_to(&mut output).and_then(|()| output.flush()).map_err(refused)
}

/// Standard output does not take what is written.
pub fn refused(source: std::io::Error) -> Error {
    Error::Write { path: "standard output".into(), source }
}
