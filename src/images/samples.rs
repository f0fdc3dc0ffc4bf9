//! Samples of images that were fitted to one model, made as they are asked for.

use super::slot::Slot;
use super::{Images, Layout, Source, drawn, folder};
use crate::error::{Error, Result};
use crate::onnx::Elements;
use ndarray::{ArrayD, Axis};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Decoded or drawn pictures that are kept, in bytes; others are made anew each time.
const CACHE: usize = 512 << 20;

/// Samples for one model.
#[derive(Debug)]
pub(crate) struct Samples {
    pub(super) images: Images,
    pub(super) slots: Vec<Slot>,
    /// For each sample its set or file, and which sample of that.
    pub(super) places: Vec<(usize, usize)>,
    /// Each picture is followed by its mirror image.
    pub(super) mirrored: bool,
    /// Pictures that are decoded or drawn, input by input.
    pub(super) made: Vec<OnceLock<Vec<u8>>>,
    pub(super) assumed: Option<String>,
}

impl Samples {
    pub(crate) fn len(&self) -> usize {
        if self.mirrored { 2 * self.places.len() } else { self.places.len() }
    }

    /// Lets each picture be followed by its mirror image, left to right: as good as twice as many for a model of what has no
    /// left and right. Not for drawn pictures, nor where a model reads more than one picture. Whether it was done.
    pub(crate) fn mirror(&mut self) -> bool {
        let drawn = matches!(&*self.images.source, Source::Drawn { .. });
        self.mirrored = !drawn && matches!(&self.slots[..], [slot] if slot.picture.is_some());
        self.mirrored
    }

    /// One label a sample, if there are any.
    pub(crate) fn labels(&self) -> Option<&[i64]> {
        self.images.labels.as_ref().map(|(_, labels)| labels.as_slice())
    }

    /// The line that says which preprocessing was assumed, if none was asked for.
    pub(crate) fn assumed(&self) -> Option<&str> {
        self.assumed.as_deref()
    }

    /// What is wrong with all of them for a model.
    pub(crate) fn misfit(&self, reason: String) -> Error {
        self.images.misfit(reason)
    }

    /// Takes some of what is fed to the model into a hash, sample after sample.
    ///
    /// # Errors
    /// [`Error::Images`] if a picture cannot be decoded.
    pub(crate) fn hash(&self, indices: &[usize], part: &mut dyn FnMut(&[u8])) -> Result<()> {
        /// Samples at a time.
        const PORTION: usize = 16;
        for indices in indices.chunks(PORTION) {
            for value in self.feeds(indices.iter().copied())?.into_iter().flatten() {
                part(&value.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        Ok(())
    }

    /// What some samples feed to the model's inputs, made on several threads.
    ///
    /// # Errors
    /// [`Error::Images`] if a picture cannot be decoded.
    pub(crate) fn feeds(&self, indices: impl IntoIterator<Item = usize>) -> Result<Vec<Vec<ArrayD<f32>>>> {
        let indices: Vec<usize> = indices.into_iter().collect();
        let made: Vec<_> = indices.par_iter().with_max_len(1).map(|&i| self.feed(i)).collect();
        // The first error, whichever thread is the fastest.
        made.into_iter().collect()
    }

    /// Whether each sample is one value throughout, of which nothing can be learnt: black pictures, an array that was never filled.
    ///
    /// # Errors
    /// [`Error::Images`] if a picture cannot be decoded.
    pub(crate) fn are_blank(&self) -> Result<bool> {
        fn same<T: PartialEq>(all: &[T]) -> bool {
            all.iter().all(|x| *x == all[0])
        }
        let told = |slot: &Slot| slot.dims.iter().product::<usize>() > 1;
        for (index, (place, slot)) in
            (0..self.places.len()).flat_map(|i| self.slots.iter().enumerate().map(move |s| (i, s)))
        {
            let blank = match self.values(index, place, slot)?.0 {
                Elements::Bytes(all) => same(&all),
                Elements::Floats(all) | Elements::Integers(all) => same(&all),
            };
            if told(slot) && !blank {
                return Ok(false);
            }
        }
        Ok(self.slots.iter().any(told))
    }

    /// The axes of height and width, if the model reads one picture and nothing else.
    #[cfg(feature = "tune")]
    pub(crate) fn picture_axes(&self) -> Option<[usize; 2]> {
        match &self.slots[..] {
            [Slot { picture: Some(p), .. }] => Some(if p.layout == Layout::Nchw { [2, 3] } else { [1, 2] }),
            _ => None,
        }
    }

    /// What one sample feeds to the model's inputs.
    ///
    /// # Errors
    /// [`Error::Images`] if a picture cannot be decoded.
    pub(crate) fn feed(&self, index: usize) -> Result<Vec<ArrayD<f32>>> {
        let (index, mirrored) = if self.mirrored { (index / 2, index % 2 == 1) } else { (index, false) };
        let each = self.slots.iter().enumerate().map(|(place, slot)| {
            let (values, swapped) = self.values(index, place, slot)?;
            let misfit = || self.images.misfit(format!("sample {index} does not fill {:?}", slot.dims));
            let mut made = slot.made(values, swapped).ok_or_else(misfit)?;
            if made.iter().any(|value| !value.is_finite()) {
                return Err(self.images.misfit(format!(
                    "pixels of sample {index} (the first is 0) are no finite numbers once they are scaled: give another --scale, --mean or --std"
                )));
            }
            if let Some(picture) = slot.picture.filter(|_| mirrored) {
                made.invert_axis(Axis(if picture.layout == Layout::Nchw { 3 } else { 2 }));
                made = made.as_standard_layout().into_owned();
            }
            Ok(made)
        });
        each.collect()
    }

    /// What is stored for one input of a sample, and whether its axes have to be swapped.
    fn values(&self, index: usize, place: usize, slot: &Slot) -> Result<(Elements, bool)> {
        let (at, within) = self.places[index];
        if let Source::Arrays { sets, .. } = &*self.images.source {
            let stored = self.images.stored(&sets[at], &self.slots, place)?;
            let way = stored.way(slot, self.images.preprocessing.layout)?;
            let size: usize = slot.dims.iter().product();
            let range = within * size..(within + 1) * size;
            let values = match &stored.values {
                Elements::Bytes(all) => all.get(range).map(|v| Elements::Bytes(v.to_vec())),
                Elements::Floats(all) => all.get(range).map(|v| Elements::Floats(v.to_vec())),
                Elements::Integers(all) => all.get(range).map(|v| Elements::Integers(v.to_vec())),
            };
            let short = || stored.wrong(format!("it holds fewer elements than its shape {:?} says", stored.shape));
            return Ok((values.ok_or_else(short)?, way.swapped));
        }
        let Some(p) = slot.picture else {
            return Err(self.images.misfit(format!("input '{}' is not an image", slot.name)));
        };
        let number = index * self.slots.len() + place;
        let size = p.channels * p.height * p.width;
        // Of which part it is makes it no other picture.
        let drawn = (at * self.slots.len() + place) as u64;
        let make = || match &*self.images.source {
            Source::Drawn { seed, .. } => Ok(drawn::draw(*seed, drawn, p.height, p.width, p.channels)),
            Source::Files { files, .. } => folder::decode(&files[at], p.height, p.width, p.channels),
            Source::Arrays { .. } => Ok(Vec::new()),
        };
        let kept = &self.made[number];
        let bytes = match kept.get() {
            Some(bytes) => bytes.clone(),
            None if (number + 1) * size > CACHE => make()?,
            None => {
                let bytes = make()?;
                kept.get_or_init(|| bytes).clone()
            }
        };
        Ok((Elements::Bytes(bytes), p.layout == Layout::Nchw))
    }
}
