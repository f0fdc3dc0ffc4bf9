//! An array of samples, and how it is cut into what one of a model's inputs reads.

use super::preprocess::Layout;
use super::slot::{Slot, one_at_a_time};
use crate::error::{Error, Result};
use crate::onnx::Elements;
use std::path::{Path, PathBuf};

/// An array for one of the model's inputs.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) key: Key,
    pub(super) path: PathBuf,
    pub(super) shape: Vec<usize>,
    pub(super) values: Elements,
}

/// The input that an array is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Name(String),
    Place(usize),
}

/// How a stored array is cut into samples of an input.
pub(super) struct Way {
    pub(super) count: usize,
    pub(super) swapped: bool,
}

impl Stored {
    /// An array that holds something, and only numbers.
    pub(super) fn new(path: &Path, key: Key, shape: Vec<usize>, values: Elements) -> Result<Self> {
        let stored = Self { key, path: path.to_owned(), shape, values };
        if stored.shape.contains(&0) {
            return Err(stored.wrong("it holds no images".into()));
        }
        if let Elements::Floats(values) = &stored.values
            && values.iter().any(|x| !x.is_finite())
        {
            return Err(stored.wrong("it holds NaN or infinite pixels".into()));
        }
        Ok(stored)
    }

    pub(super) fn wrong(&self, reason: String) -> Error {
        let reason = match &self.key {
            Key::Name(name) => format!("array '{name}': {reason}"),
            Key::Place(_) => reason,
        };
        Error::Images { path: self.path.clone(), reason }
    }

    /// Takes the array into a hash, and what it is for.
    #[cfg(feature = "tune")]
    pub(super) fn hash(&self, part: &mut dyn FnMut(&[u8])) {
        /// Numbers that are turned into bytes at a time.
        const PORTION: usize = 1 << 12;
        part(format!("{:?} {:?} {:?}", self.key, self.shape, std::mem::discriminant(&self.values)).as_bytes());
        match &self.values {
            Elements::Bytes(values) => part(values),
            Elements::Floats(values) | Elements::Integers(values) => {
                for portion in values.chunks(PORTION) {
                    part(&portion.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
                }
            }
        }
    }

    pub(super) fn way(&self, slot: &Slot, layout: Option<Layout>) -> Result<Way> {
        let sample = slot.dims.get(1..).unwrap_or_default();
        let single = slot.dims.first() == Some(&1);
        let other = slot.picture.map(|p| match p.layout {
            Layout::Nchw => [p.height, p.width, p.channels],
            Layout::Nhwc => [p.channels, p.height, p.width],
        });
        // Where the axes are named, they must be those; else the shape tells.
        let allowed = |swapped: bool| match (layout, slot.picture) {
            (Some(layout), Some(p)) => (layout != p.layout) == swapped,
            _ => true,
        };
        for (swapped, sample) in [(false, Some(sample)), (true, other.as_ref().map(|o| &o[..]))] {
            let Some(sample) = sample.filter(|_| single && allowed(swapped)) else { continue };
            if let Some((&count, _)) = self.shape.split_first().filter(|(_, rest)| *rest == sample) {
                return Ok(Way { count, swapped });
            }
            if self.shape == sample {
                return Ok(Way { count: 1, swapped });
            }
        }
        match self.shape.split_first().filter(|_| allowed(false)) {
            Some((&count, rest)) if rest == slot.dims => return Ok(Way { count, swapped: false }),
            Some(_) if self.shape == slot.dims => return Ok(Way { count: 1, swapped: false }),
            _ => {}
        }
        let one = self.shape.get(1..).unwrap_or_default();
        let with = if layout.is_some() { " with this --layout" } else { "" };
        let advice = one_at_a_time(&slot.name, &slot.dims).map_or(String::new(), |advice| format!(": {advice}"));
        let (dims, name) = (&slot.dims, &slot.name);
        Err(self.wrong(format!("one image is {one:?}, but the model reads {dims:?} at '{name}'{with}{advice}")))
    }
}

impl Key {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Name(name) => format!("'{name}'"),
            Self::Place(place) => format!("input_{place}.pb"),
        }
    }
}
