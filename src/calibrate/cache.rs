//! What calibration found out, kept in a folder: the same model and images can then be tried at another ratio without
//! observing or measuring again.
//!
//! Files are named by a SHA-256 of all that they follow from: this version, the platform, the model's bytes, its convolutions as
//! they are decomposed, and every element that the samples feed to its inputs. What is read back is what was written, bit for
//! bit. Products are rounded as the processor's instructions have it, so a folder that machines of several kinds share may change
//! last bits. A file that cannot be read, or is damaged, is as good as none, and one that cannot be written is mentioned.

use super::{Calibration, Observations};
use crate::error::Result;
use crate::factor::Moment;
use crate::onnx::{Conv, Model, hex, writing};
use crate::plan::{Sight, Trial, Trials};
use crate::progress::Progress;
use crate::sealed::{read_sealed, write_sealed};
use ndarray::Array2;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// Changes whenever what the files hold, or what it is computed by, does.
const FORMAT: &str = concat!("onnx-jmd ", env!("CARGO_PKG_VERSION"), " calibration 4");

/// A folder, and the name of one model with some samples in it.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    key: String,
}

/// The moments of a convolution's groups of channels, and rows of numbers with their length: `E[g·gᵀ]` and the targets.
type Entry = (Vec<(f64, Vec<f64>, Vec<f32>)>, Option<(usize, Vec<f64>)>, (usize, Vec<f32>), Option<(String, String)>);

impl Cache {
    /// # Errors
    /// [`Error::Images`](crate::Error::Images) if a sample cannot be decoded.
    pub(crate) fn new(folder: &Path, model: &Model, convs: &[Conv], calibration: &Calibration) -> Result<Self> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // With its length, so that no two sequences of parts are the same bytes.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(FORMAT.as_bytes());
        part(format!("{} {}", std::env::consts::ARCH, std::env::consts::OS).as_bytes());
        part(model.digest().as_bytes());
        for conv in convs {
            part(format!("{} {} {}", conv.name, conv.output, conv.batch_norm.is_some()).as_bytes());
        }
        calibration.hash(&mut part)?;
        Ok(Self { folder: folder.to_owned(), key: hex(&hash.finalize()) })
    }

    /// What the original model shows on the images, from the folder or else by `observe`.
    ///
    /// # Errors
    /// Those of `observe`.
    pub(crate) fn observations(
        &self,
        convs: &[Conv],
        progress: &Progress<'_>,
        observe: impl FnOnce() -> Result<Observations>,
    ) -> Result<Observations> {
        if let Some(known) = self.read("observed").and_then(|entries| recalled(entries, convs)) {
            progress.say("observing: known from the cache");
            return Ok(known);
        }
        let observed = observe()?;
        let each = observed.sights.iter().zip(&observed.targets).zip(&observed.addends);
        let entries = each.map(|((sight, targets), addend)| {
            // In the order of an entry; a slice is written as a vector is.
            let gradient = sight.gradient().and_then(|g| Some((g.ncols(), g.as_slice()?)));
            let moments: Vec<_> = sight.moments.iter().map(Moment::stored).collect::<Option<_>>()?;
            Some((moments, gradient, (targets.ncols(), targets.as_slice()?), addend))
        });
        let entries: Option<Vec<_>> = entries.collect();
        if let Some(entries) = entries {
            self.write("observed", &entries, progress);
        }
        Ok(observed)
    }

    /// What was tried before.
    pub(crate) fn trials(&self) -> Trials {
        Trials::new(self.read("trials").unwrap_or_default())
    }

    /// Keeps what has been tried by now.
    pub(crate) fn keep_trials(&self, trials: &Trials, progress: &Progress<'_>) {
        let all: &BTreeMap<String, Trial> = &trials.all();
        self.write("trials", all, progress);
    }

    fn path(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{}.{what}", self.key))
    }

    fn read<T: DeserializeOwned>(&self, what: &str) -> Option<T> {
        read_sealed(File::open(self.path(what)).ok()?)
    }

    /// Writes beside the target and renames, so that no reader ever sees half a file.
    fn write<T: Serialize + ?Sized>(&self, what: &str, value: &T, progress: &Progress<'_>) {
        let written = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            let _whole = writing();
            let file = tempfile::Builder::new().prefix(".onnx-jmd-").suffix(".tmp").tempfile_in(&self.folder)?;
            let mut writer = BufWriter::new(file);
            write_sealed(value, &mut writer)?;
            let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.persist(self.path(what)).map_err(|e| e.error)?;
            Ok(())
        };
        if let Err(reason) = written() {
            let folder = self.folder.display();
            progress.say(&format!("the cache folder '{folder}' cannot be written ({reason}): nothing is kept"));
        }
    }
}

/// Observations of these convolutions, if that is what the entries are.
fn recalled(entries: Vec<Entry>, convs: &[Conv]) -> Option<Observations> {
    if entries.len() != convs.len() {
        return None;
    }
    let (mut sights, mut targets, mut addends) = (Vec::new(), Vec::new(), Vec::new());
    for ((moments, gradient, target, addend), conv) in entries.into_iter().zip(convs) {
        let gradient = gradient.map(|g| table(g, conv.shape[0]));
        let fits = moments.len() == conv.channel_groups();
        if gradient.as_ref().is_some_and(Option::is_none) {
            return None;
        }
        let moments: Vec<Moment> = moments.into_iter().map(Moment::from_stored).collect::<Option<_>>()?;
        sights.push(Sight::new(moments, gradient.flatten()).ok().filter(|_| fits)?);
        targets.push(table(target, conv.shape[0])?);
        addends.push(addend);
    }
    Some(Observations { sights: sights.into(), targets, addends })
}

/// Numbers as rows of `columns`.
fn table<T>((found, values): (usize, Vec<T>), columns: usize) -> Option<Array2<T>> {
    let rows = values.len().checked_div(columns).filter(|_| found == columns)?;
    Array2::from_shape_vec((rows, columns), values).ok()
}
