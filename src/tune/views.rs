//! What is shown: the images of several sources, one after the other.

use crate::error::Result;
use crate::images::{Images, Samples};
use crate::onnx::Model;
use crate::runtime::{Feed, Input, shapes};
use std::collections::HashSet;

/// Images of several sources, each fitted to one model.
pub(super) struct Views {
    parts: Vec<Samples>,
}

impl Views {
    /// # Errors
    /// [`Error::Images`](crate::Error::Images) if some do not fit the model.
    pub(super) fn new(images: &[Images], model: &Model, inputs: &[Input]) -> Result<Self> {
        let parts = images.iter().map(|i| i.fit(model, &shapes(inputs), None)).collect::<Result<_>>()?;
        Ok(Self { parts })
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(Samples::len).sum()
    }

    /// What one image feeds to the model's inputs.
    ///
    /// # Errors
    /// [`Error::Images`](crate::Error::Images) if a picture cannot be decoded.
    pub(super) fn feed(&self, index: usize) -> Result<Feed> {
        let (part, within) = self.place(index);
        self.parts[part].feed(within)
    }

    fn place(&self, mut index: usize) -> (usize, usize) {
        for (part, samples) in self.parts.iter().enumerate() {
            if index < samples.len() {
                return (part, index);
            }
            index -= samples.len();
        }
        (0, 0)
    }

    /// The axes of height and width, if the model reads one picture and nothing else.
    pub(super) fn picture_axes(&self) -> Option<[usize; 2]> {
        self.parts.first()?.picture_axes()
    }

    /// All but some of the first source, spread evenly as images may be sorted by class, which are held out.
    pub(super) fn split(&self, held_out: usize) -> (Vec<usize>, Vec<usize>) {
        let first = self.parts.first().map_or(0, Samples::len);
        let count = held_out.min(first.saturating_sub(1)).max(1);
        let held: Vec<usize> = (0..count).map(|i| i * first / count).collect();
        let taken: HashSet<usize> = held.iter().copied().collect();
        ((0..self.len()).filter(|i| !taken.contains(i)).collect(), held)
    }

    /// Takes what is shown into a hash.
    ///
    /// # Errors
    /// [`Error::Images`](crate::Error::Images) if a picture cannot be decoded.
    pub(super) fn hash(&self, part: &mut dyn FnMut(&[u8])) -> Result<()> {
        for samples in &self.parts {
            samples.hash(&(0..samples.len()).collect::<Vec<_>>(), part)?;
        }
        Ok(())
    }
}
