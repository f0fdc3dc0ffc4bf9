//! Numpy's files: `.npy`, one array, and `.npz`, a zip of named ones.

use super::stored::{Key, Stored};
use crate::error::{Error, Result};
use crate::onnx::Elements;
use std::io::Read;
use std::path::Path;

/// Bytes of the text that says what an array holds; numpy itself reads ten thousand at most.
const LONGEST_HEADER: usize = 1 << 16;
/// Brackets within brackets in it: a dictionary holds a list of tuples of tuples, at most.
const DEEPEST: usize = 6;
/// Bytes of all arrays of an archive, inflated. What deflates better than anything real is damage or worse.
const LARGEST_ARCHIVE: u64 = 8 << 30;

/// A `.npy` array.
pub(super) fn npy(path: &Path) -> Result<Stored> {
    let bytes = std::fs::read(path).map_err(|e| wrong(path, e.to_string()))?;
    array(path, &bytes, Key::Place(0))
}

/// The arrays of a `.npz`, by name.
pub(super) fn npz(path: &Path) -> Result<Vec<Stored>> {
    npz_within(path, LARGEST_ARCHIVE)
}

fn npz_within(path: &Path, most: u64) -> Result<Vec<Stored>> {
    let damaged = |reason: String| wrong(path, format!("not a whole .npz archive: {reason}"));
    let file = std::fs::File::open(path).map_err(|e| wrong(path, e.to_string()))?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| damaged(e.to_string()))?;
    let mut left = most;
    let arrays = (0..archive.len()).map(|at| {
        let entry = archive.by_index(at).map_err(|e| damaged(e.to_string()))?;
        let name = entry.name().map_err(|e| damaged(e.to_string()))?;
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        let mut bytes = Vec::new();
        entry.take(left + 1).read_to_end(&mut bytes).map_err(|e| damaged(e.to_string()))?;
        left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            wrong(
                path,
                format!("its arrays take more than {most} bytes inflated: give fewer samples, or one .npy array"),
            )
        })?;
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
        _ => return Err(named("it must be uint8 or float32 (array.astype(numpy.float32))".into())),
    };
    Stored::new(path, key.clone(), shape, values.map_err(|e| named(e.to_string()))?)
}

/// An array whose header promises no more than its length keeps, and its shape.
fn open<'b>(path: &Path, bytes: &'b [u8]) -> Result<(npyz::NpyFile<&'b [u8]>, Vec<usize>)> {
    if header_length(bytes).is_some_and(|n| n > LONGEST_HEADER) {
        return Err(wrong(path, format!("not a .npy array: its header is longer than {LONGEST_HEADER} bytes")));
    }
    // The parser takes twice as long for each bracket more that stands open.
    if deepest(bytes) > DEEPEST {
        return Err(wrong(
            path,
            format!("not a .npy array: its header has brackets within brackets, more than {DEEPEST} deep"),
        ));
    }
    // The parser's own words are a drawing of several lines.
    let first = |e: std::io::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
    let npy = npyz::NpyFile::new(bytes).map_err(|e| wrong(path, format!("not a .npy array: {}", first(e))))?;
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

/// How many brackets stand open at most in an array's header.
fn deepest(bytes: &[u8]) -> usize {
    let header = bytes.get(..LONGEST_HEADER.min(bytes.len())).unwrap_or_default();
    let end = header_length(bytes).map_or(header.len(), |n| (n + PREAMBLE).min(header.len()));
    let steps = header[..end].iter().scan(0usize, |open, byte| {
        *open = match byte {
            b'[' | b'(' | b'{' => *open + 1,
            b']' | b')' | b'}' => open.saturating_sub(1),
            _ => *open,
        };
        Some(*open)
    });
    steps.max().unwrap_or(0)
}

/// Bytes before a header, at most.
const PREAMBLE: usize = 12;

/// Length of an array's header as it says itself (format versions 1 and later ones).
fn header_length(bytes: &[u8]) -> Option<usize> {
    Some(match bytes.get(6)? {
        1 => usize::from(u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?)),
        _ => u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize,
    })
}

fn kind(npy: &npyz::NpyFile<&[u8]>) -> &'static str {
    let descr = npy.dtype().descr();
    ["u1", "f4", "f8", "i8", "i4", "u8", "u4", "i2", "u2", "i1"].into_iter().find(|k| descr.contains(k)).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn header(text: &str) -> Vec<u8> {
        [b"\x93NUMPY\x02\x00", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
    }

    #[test]
    fn an_archive_is_inflated_only_so_far() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let array =
            [header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000,), }"), vec![0; 1_000_000]].concat();
        for name in ["a.npy", "b.npy"] {
            archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(&array).unwrap();
        }
        archive.finish().unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 10_000);
        let size = array.len() as u64;
        assert_eq!(npz_within(&path, 2 * size).unwrap().len(), 2);
        for most in [2 * size - 1, size, 100] {
            let error = npz_within(&path, most).unwrap_err().to_string();
            assert!(error.contains("inflated"), "{error}");
        }
    }

    #[test]
    fn headers_are_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        // Taken at its word a number of so many digits is worked on for minutes; brackets are a depth.
        for text in ["9".repeat(3_000_000), "(".repeat(3_000_000), "[(".repeat(30_000), "(".repeat(65_000)] {
            std::fs::write(&path, header(&format!("{{'shape': ({text},)}}"))).unwrap();
            let error = npy(&path).unwrap_err().to_string();
            assert!(error.contains("not a .npy array") && error.len() < 300 && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn brackets_within_brackets_are_no_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        for brackets in [30, 10_000] {
            std::fs::write(&path, header(&format!("{{'descr': {}, 'shape': (1,)}}", "[(".repeat(brackets)))).unwrap();
            let message = labels(&path).unwrap_err().to_string();
            assert!(message.contains("brackets within brackets"), "{message}");
        }
    }
}
