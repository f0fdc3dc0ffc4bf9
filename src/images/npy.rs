//! Numpy's files: `.npy`, one array, and `.npz`, a zip of named ones.

use super::{Elements, Key, Stored};
use crate::error::{Error, Result};
use std::io::Read;
use std::path::Path;

/// A `.npy` array.
pub(super) fn npy(path: &Path) -> Result<Stored> {
    let bytes = std::fs::read(path).map_err(|e| wrong(path, e.to_string()))?;
    array(path, &bytes, Key::Place(0))
}

/// The arrays of a `.npz`, by name.
pub(super) fn npz(path: &Path) -> Result<Vec<Stored>> {
    let damaged = |reason: String| wrong(path, format!("not a whole .npz archive: {reason}"));
    let file = std::fs::File::open(path).map_err(|e| wrong(path, e.to_string()))?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| damaged(e.to_string()))?;
    let arrays = (0..archive.len()).map(|at| {
        let mut entry = archive.by_index(at).map_err(|e| damaged(e.to_string()))?;
        let name = entry.name().map_err(|e| damaged(e.to_string()))?;
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| damaged(e.to_string()))?;
        array(path, &bytes, Key::Name(name))
    });
    arrays.collect()
}

/// One integer an image.
pub(super) fn labels(path: &Path) -> Result<Vec<i64>> {
    let bytes = std::fs::read(path).map_err(|e| wrong(path, e.to_string()))?;
    let (npy, shape) = open(path, &bytes)?;
    let integers = match kind(&npy) {
        "u1" => npy.into_vec::<u8>().map(|v| v.into_iter().map(i64::from).collect()),
        "i4" => npy.into_vec::<i32>().map(|v| v.into_iter().map(i64::from).collect()),
        "i8" => npy.into_vec::<i64>(),
        _ => return Err(wrong(path, "labels must be uint8, int32 or int64".into())),
    };
    if shape.len() != 1 {
        return Err(wrong(path, format!("its shape is {shape:?}, but labels are one integer an image")));
    }
    integers.map_err(|e| wrong(path, e.to_string()))
}

fn wrong(path: &Path, reason: String) -> Error {
    Error::Images { path: path.to_owned(), reason }
}

fn array(path: &Path, bytes: &[u8], key: Key) -> Result<Stored> {
    let named = |reason: String| match &key {
        Key::Name(name) => wrong(path, format!("array '{name}': {reason}")),
        Key::Place(_) => wrong(path, reason),
    };
    let (npy, shape) = open(path, bytes)?;
    let values = match kind(&npy) {
        "u1" => npy.into_vec::<u8>().map(Elements::Bytes),
        "f4" => npy.into_vec::<f32>().map(Elements::Floats),
        "f8" => npy.into_vec::<f64>().map(|v| Elements::Floats(v.into_iter().map(|x| x as f32).collect())),
        "i4" => npy.into_vec::<i32>().map(|v| Elements::Integers(v.into_iter().map(|x| x as f32).collect())),
        "i8" => npy.into_vec::<i64>().map(|v| Elements::Integers(v.into_iter().map(|x| x as f32).collect())),
        _ => return Err(named("it must be uint8 or float32".into())),
    };
    Stored::new(path, key.clone(), shape, values.map_err(|e| named(e.to_string()))?)
}

/// An array whose header promises no more than its length keeps, and its shape.
fn open<'b>(path: &Path, bytes: &'b [u8]) -> Result<(npyz::NpyFile<&'b [u8]>, Vec<usize>)> {
    let npy = npyz::NpyFile::new(bytes).map_err(|e| wrong(path, format!("not a .npy array: {e}")))?;
    let shape: Option<Vec<usize>> = npy.shape().iter().map(|&d| usize::try_from(d).ok()).collect();
    let count = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
    let (Some(shape), Some(count)) = (shape, count) else {
        return Err(wrong(path, "its shape is impossibly large".into()));
    };
    let size = npy.dtype().num_bytes().unwrap_or(1);
    if count.checked_mul(size).is_none_or(|n| n > bytes.len()) {
        return Err(wrong(path, format!("it is truncated: {} bytes for shape {shape:?}", bytes.len())));
    }
    if npy.order() == npyz::Order::Fortran && shape.len() > 1 {
        return Err(wrong(path, "it is in Fortran order: save it with numpy.ascontiguousarray".into()));
    }
    Ok((npy, shape))
}

fn kind(npy: &npyz::NpyFile<&[u8]>) -> &'static str {
    let descr = npy.dtype().descr();
    ["u1", "f4", "f8", "i8", "i4", "u8", "u4", "i2", "u2", "i1"].into_iter().find(|k| descr.contains(k)).unwrap_or("")
}
