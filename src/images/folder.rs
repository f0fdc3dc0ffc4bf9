//! Folders and what is in them: PNG and JPEG pictures, and ONNX tensors (`.pb`).

use super::stored::{Key, Stored};
use crate::error::{Error, Result};
use crate::onnx::read_tensor;
use image::imageops::FilterType;
use std::path::{Path, PathBuf};

/// Bytes that decoding a picture may take.
const LARGEST_PICTURE: u64 = 512 << 20;
/// How many times longer a picture may be, for its width, than what is cut out of it: all of it is resized first.
const MOST_CUT_OFF: u64 = 64;

/// Files of a folder and its sub-folders, sorted by name; links to folders are not followed.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        let failed = |e: std::io::Error| wrong(&folder, format!("cannot be read: {e}"));
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                waiting.push(entry.path());
            } else if !std::fs::metadata(entry.path()).is_ok_and(|m| !m.is_file()) {
                // Not what may never end, as a pipe; a link that leads nowhere is refused by name.
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn is_picture(path: &Path) -> bool {
    ["png", "jpg", "jpeg"].iter().any(|e| has_extension(path, e))
}

pub(super) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// A picture resized until it just fills `height × width`, its middle cut out: rows of pixels of `channels` bytes.
pub(super) fn decode(path: &Path, height: usize, width: usize, channels: usize) -> Result<Vec<u8>> {
    let damaged = |reason: String| wrong(path, format!("cannot be read as a PNG or JPEG picture: {reason}"));
    let reader = image::ImageReader::open(path).and_then(image::ImageReader::with_guessed_format);
    let mut reader = reader.map_err(|e| damaged(e.to_string()))?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(LARGEST_PICTURE);
    reader.limits(limits);
    let picture = reader.decode().map_err(|e| damaged(e.to_string()))?;
    let too_large = |_| damaged(format!("the model reads {height}×{width} pixels, too many"));
    let (high, wide) = (u32::try_from(height).map_err(too_large)?, u32::try_from(width).map_err(too_large)?);
    let sides = [u64::from(picture.width()) * u64::from(high), u64::from(picture.height()) * u64::from(wide)];
    if sides[0].max(sides[1]) / MOST_CUT_OFF > sides[0].min(sides[1]) {
        let (w, h) = (picture.width(), picture.height());
        return Err(wrong(path, format!("a picture of {w}×{h} pixels is too narrow to be cut to {width}×{height}")));
    }
    // Colours first: where alpha is dropped, it must not weigh in the filter.
    let coloured = match channels {
        1 => image::DynamicImage::from(picture.to_luma8()),
        3 => image::DynamicImage::from(picture.to_rgb8()),
        _ => image::DynamicImage::from(picture.to_rgba8()),
    };
    if (coloured.height(), coloured.width()) == (high, wide) {
        return Ok(coloured.into_bytes());
    }
    Ok(coloured.resize_to_fill(wide, high, FilterType::CatmullRom).into_bytes())
}

/// The data sets among `.pb` files: those of one folder named `input_0.pb`, `input_1.pb` … belong together. Where none is
/// named so, each file is a data set of its own.
pub(super) fn data_sets(files: &[PathBuf]) -> Result<Vec<Vec<Stored>>> {
    let number = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("input_")?.parse::<usize>().ok();
    let mut sets: Vec<(PathBuf, Vec<Stored>)> = Vec::new();
    for (path, number) in files.iter().filter_map(|f| Some((f, number(f)?))) {
        let stored = tensor(path, Key::Place(number))?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        match sets.iter_mut().find(|(f, _)| *f == folder) {
            Some((_, set)) => set.push(stored),
            None => sets.push((folder, vec![stored])),
        }
    }
    if sets.is_empty() {
        return files.iter().map(|f| Ok(vec![tensor(f, Key::Place(0))?])).collect();
    }
    Ok(sets.into_iter().map(|(_, set)| set).collect())
}

/// An ONNX tensor file.
pub(super) fn tensor(path: &Path, key: Key) -> Result<Stored> {
    let bytes = std::fs::read(path).map_err(|e| wrong(path, e.to_string()))?;
    let (shape, values) = read_tensor(&bytes).map_err(|reason| wrong(path, reason))?;
    Stored::new(path, key, shape, values)
}

fn wrong(path: &Path, reason: String) -> Error {
    Error::Images { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    #[test]
    fn the_middle_is_cut_out_after_the_shorter_side_is_fitted() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // The middle 40 of 100 columns, and what the filter reaches beside them, are one colour.
        let colour = |x: u32| if (26..74).contains(&x) { [90, 40, 200] } else { [255; 3] };
        RgbImage::from_fn(100, 40, |x, _| Rgb(colour(x))).save(path("wide.png")).unwrap();
        RgbImage::from_fn(40, 100, |_, y| Rgb(colour(y))).save(path("high.png")).unwrap();
        let plain: Vec<u8> = (0..32 * 32).flat_map(|_| colour(50)).collect();
        assert!(decode(&path("wide.png"), 32, 32, 3).unwrap() == plain);
        assert!(decode(&path("high.png"), 32, 32, 3).unwrap() == plain);
        assert!(decode(&path("wide.png"), 40, 100, 3).unwrap().starts_with(&[255; 3]));
        // A line of pixels would be resized to a picture of gigabytes before its middle is cut out.
        for (width, height) in [(1, 60_000), (60_000, 1), (1, 65)] {
            RgbImage::new(width, height).save(path("line.png")).unwrap();
            assert!(decode(&path("line.png"), 224, 224, 3).unwrap_err().to_string().contains("too narrow"));
        }
        RgbImage::new(1, 64).save(path("line.png")).unwrap();
        decode(&path("line.png"), 8, 8, 3).unwrap();
        // A JPEG under the name of a PNG is told by its first bytes.
        RgbImage::from_pixel(50, 90, Rgb([90; 3])).save(path("grey.jpg")).unwrap();
        std::fs::rename(path("grey.jpg"), path("grey.png")).unwrap();
        assert_eq!(decode(&path("grey.png"), 8, 16, 1).unwrap(), [90; 128]);
    }
}
