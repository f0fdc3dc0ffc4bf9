//! What is shown: the images of several sources, one after the other.

use crate::error::{Error, Result};
use crate::images::{Images, Samples};
use crate::onnx::Model;
use crate::runtime::{Feed, Input, shapes};

/// Held-out images at most.
const HELD_OUT: usize = 1000;

/// Images of several sources, each fitted to one model.
pub(super) struct Views {
    parts: Vec<Samples>,
    held: Samples,
}

impl Views {
    /// # Errors
    /// [`Error::Images`](crate::Error::Images) if some do not fit the model.
    pub(super) fn new(images: &[Images], model: &Model, inputs: &[Input]) -> Result<Self> {
        let fit = |images: &Images, most| images.fit(model, &shapes(inputs), most);
        let first = images.first().ok_or_else(|| Error::Tuning("there are no images to learn from".into()))?;
        // What is drawn beside images is all shown: the images are what counts.
        let others = images[1..].iter().map(|i| fit(i, None));
        let parts = std::iter::once(fit(&first.shown(), None)).chain(others).collect::<Result<_>>()?;
        Ok(Self { parts, held: fit(&first.held_out(), Some(HELD_OUT))? })
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

    /// What is held out of the first source.
    pub(super) fn held(&self) -> &Samples {
        &self.held
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
