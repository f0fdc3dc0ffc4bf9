//! Files that are whole or not there: written beside their target and renamed.

use crate::error::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::NamedTempFile;

/// Held while files are written: a program that takes it before it ends on an interrupt leaves no half of one, nor a temporary file.
pub fn writing() -> MutexGuard<'static, ()> {
    static WRITING: Mutex<()> = Mutex::new(());
    // It guards nothing that a panic could leave half changed.
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a file beside `path` and renames it, so that `path` is never half written.
///
/// # Errors
/// [`Error::Write`] with the system's reason; `path` is then as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, &mut |file| file.write_all(bytes))
}

/// Refuses, before any work, a file that [`write_whole`] could not write.
///
/// # Errors
/// [`Error::Write`] with the system's reason.
pub fn check_writable(path: &Path) -> Result<()> {
    let _whole = writing();
    temporary(path).map(drop)
}

/// The same for what is written piece by piece.
pub(super) fn write_with(path: &Path, write: &mut dyn FnMut(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let (mut file, target) = temporary(path)?;
    write(&mut file).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(&target).map_err(|e| failed(e.error))?;
    Ok(())
}

/// A file beside the one to write, and where it goes in the end; it is removed unless it goes there.
fn temporary(path: &Path) -> Result<(NamedTempFile, PathBuf)> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(failed(std::io::Error::other("it is the name of a folder, which is not there")));
    }
    // A name that is too long is found out here, and not after all the work.
    if let Err(error) = std::fs::symlink_metadata(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(failed(std::io::Error::other("it is a device or a pipe, not a file")));
    }
    // A link keeps pointing to its file, and a file its permissions.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    let existing = std::fs::metadata(&target).ok().map(|m| m.permissions());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What a plain create would ask for; the process's umask applies as usual.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.prefix(".onnx-jmd-").suffix(".tmp").tempfile_in(folder).map_err(failed)?;
    if let Some(permissions) = existing {
        file.as_file().set_permissions(permissions).map_err(failed)?;
    }
    Ok((file, target))
}
