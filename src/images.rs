//! Images and labels as numpy arrays, turned into what a model reads.

use crate::error::{Error, Result};
use ndarray::{ArrayD, IxDyn};
use std::path::{Path, PathBuf};

/// Images from a `.npy` file, `[count, channels, height, width]` or whatever one sample of the model's input looks like
/// after the first axis.
#[derive(Debug, Clone)]
pub struct Images {
    path: PathBuf,
    pixels: Pixels,
    sample: Vec<usize>,
    labels: Option<Vec<i64>>,
    mean: Vec<f32>,
    std: Vec<f32>,
}

#[derive(Debug, Clone)]
enum Pixels {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
}

impl Images {
    /// Reads images and, if given, one label each. Bytes are divided by 255; then, channel by channel, `mean` is subtracted
    /// and `std` divided by (none, one value, or one a channel).
    ///
    /// # Errors
    /// [`Error::Images`] naming the file and what does not fit.
    pub fn open(path: &Path, labels: Option<&Path>, mean: &[f32], std: &[f32]) -> Result<Self> {
        let (bytes, shape) = read(path)?;
        let wrong = |reason: String| Error::Images { path: path.to_owned(), reason };
        let npy = || npyz::NpyFile::new(&bytes[..]).map_err(|e| wrong(e.to_string()));
        let pixels = match kind(&npy()?) {
            "u1" => Pixels::Bytes(npy()?.into_vec().map_err(|e| wrong(e.to_string()))?),
            "f4" => Pixels::Floats(npy()?.into_vec().map_err(|e| wrong(e.to_string()))?),
            _ => return Err(wrong("images must be uint8 or float32".into())),
        };
        let [count, sample @ ..] = &shape[..] else {
            return Err(wrong("it holds a single number".into()));
        };
        if *count == 0 || sample.contains(&0) {
            return Err(wrong("it holds no images".into()));
        }
        if let Pixels::Floats(values) = &pixels
            && values.iter().any(|x| !x.is_finite())
        {
            return Err(wrong("it holds NaN or infinite pixels".into()));
        }
        let labels = labels.map(|l| read_labels(l, *count)).transpose()?;
        if std.iter().any(|&s| s == 0.0 || !s.is_finite()) || mean.iter().any(|m| !m.is_finite()) {
            return Err(Error::Options("--mean and --std must be finite and --std not zero".into()));
        }
        for (name, values) in [("--mean", mean), ("--std", std)] {
            if values.len() > 1 && sample.first() != Some(&values.len()) {
                let channels = sample.first().copied().unwrap_or(0);
                return Err(wrong(format!("{name} has {} values for {channels} channels", values.len())));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            sample: sample.to_vec(),
            pixels,
            labels,
            mean: mean.to_vec(),
            std: std.to_vec(),
        })
    }

    /// How many images.
    #[must_use]
    pub fn len(&self) -> usize {
        let all = match &self.pixels {
            Pixels::Bytes(p) => p.len(),
            Pixels::Floats(p) => p.len(),
        };
        all / self.sample.iter().product::<usize>()
    }

    /// True if there is none; [`Images::open`] refuses that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// One image as a batch of one in the model's input shape.
    ///
    /// # Errors
    /// [`Error::Images`] if the shapes differ.
    pub(crate) fn feed(&self, index: usize, dims: &[usize]) -> Result<ArrayD<f32>> {
        let size: usize = self.sample.iter().product();
        if dims.first() != Some(&1) || dims[1..] != self.sample {
            let reason = format!("one image is {:?}, but the model reads {dims:?}", self.sample);
            return Err(Error::Images { path: self.path.clone(), reason });
        }
        let at = index * size..(index + 1) * size;
        let mut values: Vec<f32> = match &self.pixels {
            Pixels::Bytes(p) => p[at].iter().map(|&b| f32::from(b) / 255.0).collect(),
            Pixels::Floats(p) => p[at].to_vec(),
        };
        let plane = size / self.sample.first().copied().unwrap_or(1);
        let of = |all: &[f32], channel: usize, none: f32| match all {
            [] => none,
            [one] => *one,
            many => many[channel],
        };
        for (channel, plane) in values.chunks_mut(plane).enumerate() {
            let (mean, std) = (of(&self.mean, channel, 0.0), of(&self.std, channel, 1.0));
            plane.iter_mut().for_each(|x| *x = (*x - mean) / std);
        }
        let shaped = ArrayD::from_shape_vec(IxDyn(dims), values);
        shaped.map_err(|e| Error::Images { path: self.path.clone(), reason: e.to_string() })
    }
}

/// A file's bytes and the shape that its header promises and its length keeps.
fn read(path: &Path) -> Result<(Vec<u8>, Vec<usize>)> {
    let wrong = |reason: String| Error::Images { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let npy = npyz::NpyFile::new(&bytes[..]).map_err(|e| wrong(format!("not a .npy array: {e}")))?;
    let shape: Option<Vec<usize>> = npy.shape().iter().map(|&d| usize::try_from(d).ok()).collect();
    let count = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
    let (Some(shape), Some(count)) = (shape, count) else {
        return Err(wrong("its shape is impossibly large".into()));
    };
    let size = npy.dtype().num_bytes().unwrap_or(1);
    if count.checked_mul(size).is_none_or(|n| n > bytes.len()) {
        return Err(wrong(format!("it is truncated: {} bytes for shape {shape:?}", bytes.len())));
    }
    if npy.order() == npyz::Order::Fortran && shape.len() > 1 {
        return Err(wrong("it is in Fortran order: save it with numpy.ascontiguousarray".into()));
    }
    drop(npy);
    Ok((bytes, shape))
}

fn kind(npy: &npyz::NpyFile<&[u8]>) -> &'static str {
    let descr = npy.dtype().descr();
    ["u1", "f4", "i8", "i4", "u8", "u4", "i2", "u2", "i1"].into_iter().find(|k| descr.contains(k)).unwrap_or("")
}

fn read_labels(path: &Path, images: usize) -> Result<Vec<i64>> {
    let (bytes, shape) = read(path)?;
    let wrong = |reason: String| Error::Images { path: path.to_owned(), reason };
    let npy = npyz::NpyFile::new(&bytes[..]).map_err(|e| wrong(e.to_string()))?;
    let integers = match kind(&npy) {
        "u1" => npy.into_vec::<u8>().map(|v| v.into_iter().map(i64::from).collect()),
        "i4" => npy.into_vec::<i32>().map(|v| v.into_iter().map(i64::from).collect()),
        "i8" => npy.into_vec::<i64>(),
        _ => return Err(wrong("labels must be uint8, int32 or int64".into())),
    };
    let labels: Vec<i64> = integers.map_err(|e| wrong(e.to_string()))?;
    if shape.len() != 1 || labels.len() != images {
        return Err(wrong(format!("its shape is {shape:?}, but there are {images} images")));
    }
    Ok(labels)
}
