//! What models are run on: pictures from files, arrays, tensors or drawn here, turned into what a model reads.

mod drawn;
mod folder;
mod npy;
mod preprocess;
mod samples;
mod slot;
mod stored;

use crate::error::{Error, Result};
#[cfg(feature = "tune")]
use crate::onnx::hex;
use crate::onnx::{Elements, Graph, Model, pixel_range};
pub use preprocess::{Layout, Preprocessing, Preset};
pub(crate) use samples::Samples;
#[cfg(feature = "tune")]
use sha2::{Digest, Sha256};
use slot::{Slot, one_at_a_time, picture};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use stored::{Key, Stored};

/// Least height and width of an input that pictures are drawn for.
const LEAST_SIDE: usize = 8;

/// Images, or other inputs, and how they are turned into what a model reads.
#[derive(Debug, Clone)]
pub struct Images {
    source: Arc<Source>,
    labels: Option<(PathBuf, Vec<i64>)>,
    preprocessing: Preprocessing,
    part: Part,
}

/// Which of the images are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    /// All but those held out.
    Shown,
    Held,
}

/// One image in so many is held out.
const HELD_OUT: usize = 10;

impl Part {
    /// Spread evenly, as images may be sorted by class.
    fn takes(self, index: usize) -> bool {
        let held = index % HELD_OUT == HELD_OUT - 1;
        match self {
            Self::All => true,
            Self::Shown => !held,
            Self::Held => held,
        }
    }
}

#[derive(Debug)]
enum Source {
    /// Arrays that are fed together, set after set.
    Arrays { path: PathBuf, sets: Vec<Vec<Stored>> },
    /// Picture files.
    Files { path: PathBuf, files: Vec<PathBuf> },
    /// Pictures drawn here.
    Drawn { seed: u64, count: usize },
}

impl Images {
    /// Reads inputs and, if given, one label each. `path` is
    /// * a PNG or JPEG file, or a folder of them, sub-folders included, which are decoded when they are needed;
    /// * a `.npy` array, `[count, …]`, or a `.npz` of such arrays, named as the model's inputs;
    /// * an ONNX tensor (`.pb`), or a folder of them in which `input_K.pb` is for the model's input `K`.
    ///
    /// # Errors
    /// [`Error::Images`] naming the file and what is wrong with it, [`Error::Options`] for impossible preprocessing.
    pub fn open(path: &Path, labels: Option<&Path>, preprocessing: &Preprocessing) -> Result<Self> {
        preprocessing.check()?;
        let owned = path.to_owned();
        let wrong = |reason: &str| Error::Images { path: path.to_owned(), reason: reason.into() };
        let source = if path.is_dir() {
            let all = folder::files(path)?;
            let of = |kind: &dyn Fn(&Path) -> bool| all.iter().filter(|f| kind(f)).cloned().collect::<Vec<_>>();
            let (pictures, tensors) = (of(&folder::is_picture), of(&|f| folder::has_extension(f, "pb")));
            match (pictures.is_empty(), tensors.is_empty()) {
                (false, _) => Source::Files { path: owned, files: pictures },
                (true, false) => Source::Arrays { path: owned, sets: folder::data_sets(&tensors)? },
                (true, true) => return Err(wrong("the folder holds no PNG or JPEG pictures and no .pb tensors")),
            }
        } else if !path.exists() {
            return Err(wrong("there is no such file or folder"));
        } else if is_endless(path) {
            return Err(wrong("it is a device, not a file"));
        } else if folder::is_picture(path) {
            Source::Files { path: owned.clone(), files: vec![owned] }
        } else if folder::has_extension(path, "npz") {
            Source::Arrays { path: owned, sets: vec![npy::npz(path)?] }
        } else if folder::has_extension(path, "pb") {
            Source::Arrays { path: owned, sets: vec![vec![folder::tensor(path, Key::Place(0))?]] }
        } else {
            Source::Arrays { path: owned, sets: vec![vec![npy::npy(path)?]] }
        };
        let labels = labels.map(|l| Ok((l.to_owned(), npy::labels(l)?))).transpose()?;
        Ok(Self { source: Arc::new(source), labels, preprocessing: preprocessing.clone(), part: Part::All })
    }

    /// `count` pictures drawn by chance, for models that read pictures.
    ///
    /// # Errors
    /// [`Error::Options`] for impossible preprocessing.
    pub fn drawn(seed: u64, count: usize, preprocessing: &Preprocessing) -> Result<Self> {
        preprocessing.check()?;
        let source = Arc::new(Source::Drawn { seed, count: count.max(1) });
        Ok(Self { source, labels: None, preprocessing: preprocessing.clone(), part: Part::All })
    }

    /// The first of them (of a folder of pictures, some spread evenly) for a model whose inputs have these names and
    /// dimensions.
    ///
    /// # Errors
    /// [`Error::Images`] or [`Error::Options`] if they do not fit the model or the labels do not fit them.
    pub(crate) fn fit(&self, model: &Model, inputs: &[(&str, &[usize])], most: Option<usize>) -> Result<Samples> {
        let slots = self.slots(model, inputs)?;
        let (all, places) = match &*self.source {
            Source::Arrays { sets, .. } => {
                let counted = sets.iter().enumerate().map(|(at, set)| Ok((at, self.count(set, &slots)?)));
                let counted: Vec<(usize, usize)> = counted.collect::<Result<_>>()?;
                let places = counted.iter().flat_map(|&(at, count)| (0..count).map(move |within| (at, within)));
                let places: Vec<(usize, usize)> = places.collect();
                (places.len(), places)
            }
            Source::Files { files, .. } => (files.len(), (0..files.len()).map(|at| (at, 0)).collect()),
            Source::Drawn { count, .. } => (*count, (0..*count).map(|at| (at, 0)).collect()),
        };
        if let Some((path, labels)) = self.labels.as_ref().filter(|(_, labels)| labels.len() != all) {
            let reason = format!("it holds {} labels, but there are {all} images", labels.len());
            return Err(Error::Images { path: path.clone(), reason });
        }
        let places: Vec<(usize, usize)> =
            places.into_iter().enumerate().filter(|(i, _)| self.part.takes(*i)).map(|(_, place)| place).collect();
        let all = places.len();
        let count = most.unwrap_or(all).min(all);
        // Files are sorted by name, so that the first of them may well be of one class.
        let spread = matches!(&*self.source, Source::Files { .. });
        let places = (0..count).map(|i| places[if spread { i * all / count } else { i }]).collect();
        let assumed = slots.iter().find_map(|s| s.assumed.clone());
        let made = (0..count * slots.len()).map(|_| OnceLock::new()).collect();
        Ok(Samples { images: self.clone(), slots, places, mirrored: false, made, assumed })
    }

    /// All but a tenth of them, which is held out to judge by.
    #[cfg(feature = "tune")]
    #[must_use]
    pub fn shown(&self) -> Self {
        Self { part: Part::Shown, ..self.clone() }
    }

    /// The tenth that is held out.
    #[cfg(feature = "tune")]
    pub(crate) fn held_out(&self) -> Self {
        Self { part: Part::Held, ..self.clone() }
    }

    /// Where they come from.
    pub(crate) fn what(&self) -> String {
        match &*self.source {
            Source::Arrays { path, .. } | Source::Files { path, .. } => path.display().to_string(),
            Source::Drawn { .. } => "drawn pictures".into(),
        }
    }

    /// What they are, wherever they stand: a hash of what is stored, undecoded, and what becomes of it.
    ///
    /// # Errors
    /// [`Error::Images`] if a file cannot be read.
    #[cfg(feature = "tune")]
    pub(crate) fn told(&self) -> Result<String> {
        let Self { source, preprocessing, part, .. } = self;
        let mut hash = Sha256::new();
        let mut take = |bytes: &[u8]| {
            // With its length, so that no two sequences are the same bytes.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        match &**source {
            Source::Drawn { seed, count } => take(format!("{count} drawn by {seed}").as_bytes()),
            Source::Arrays { sets, .. } => {
                for set in sets {
                    take(&set.len().to_le_bytes());
                    set.iter().for_each(|stored| stored.hash(&mut take));
                }
            }
            Source::Files { files, .. } => {
                for path in files {
                    let unreadable =
                        |e| Error::Images { path: path.clone(), reason: format!("it cannot be read ({e})") };
                    take(&std::fs::read(path).map_err(unreadable)?);
                }
            }
        }
        Ok(format!("{} {preprocessing:?} {part:?}", hex(&hash.finalize())))
    }

    /// The seed of drawn pictures; none of others.
    pub(crate) fn seed(&self) -> Option<u64> {
        match *self.source {
            Source::Drawn { seed, .. } => Some(seed),
            Source::Arrays { .. } | Source::Files { .. } => None,
        }
    }

    /// What was asked to become of their pixels.
    pub(crate) fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// What is wrong with the source as a whole for this model.
    fn misfit(&self, reason: String) -> Error {
        match &*self.source {
            Source::Arrays { path, .. } | Source::Files { path, .. } => Error::Images { path: path.clone(), reason },
            Source::Drawn { .. } => Error::NotDrawable { reason },
        }
    }

    /// How each of the model's inputs is made.
    fn slots(&self, model: &Model, inputs: &[(&str, &[usize])]) -> Result<Vec<Slot>> {
        let graph = Graph::new(model)?;
        let types = model.inputs();
        let arrays = matches!(&*self.source, Source::Arrays { .. });
        if let (Source::Files { .. }, [_, _, ..]) = (&*self.source, inputs) {
            let names = quoted(inputs.iter().map(|i| i.0));
            return Err(
                self.misfit(format!("pictures feed one input, but the model has {names}: give a .npz of arrays"))
            );
        }
        let slots = inputs.iter().map(|&(name, dims)| {
            let picture = picture(dims);
            let element_type = types.iter().find(|t| t.0 == name).map_or("", |t| t.1.as_str());
            let drawable = picture.filter(|p| p.height.min(p.width) >= LEAST_SIDE && element_type != "BOOL");
            match &*self.source {
                Source::Drawn { .. } if drawable.is_none() => {
                    let advice = one_at_a_time(name, dims).unwrap_or_else(|| "give samples with --calib FILE".into());
                    return Err(self.misfit(format!("input '{name}' of shape {dims:?} is not an image: {advice}")));
                }
                Source::Files { .. } if picture.is_none() => {
                    let advice = one_at_a_time(name, dims).unwrap_or_else(|| "give arrays".into());
                    let reason = format!("the model's input '{name}' of shape {dims:?} is not an image: {advice}");
                    return Err(self.misfit(reason));
                }
                _ => {}
            }
            // Beside pictures a model may read flags and sizes, which are no pixels.
            let pixels = picture.is_some() || inputs.len() == 1;
            let integer = element_type.contains("INT") || element_type == "BOOL";
            let (dims, name) = (dims.to_vec(), name.to_owned());
            let mut slot = Slot { name, dims, picture, affine: None, assumed: None, integer };
            if pixels && self.preprocessing.is_open() {
                let of_pictures = picture.filter(|_| !arrays).map(|p| p.channels);
                let range = pixel_range(&graph, &slot.name);
                let (preset, why) = preprocess::assumed(range, element_type == "UINT8", of_pictures);
                let what = self.what();
                slot.assumed = Some(format!("{what}: --preprocess {} assumed, {why}", preset.name()));
                slot.affine = Some(Preprocessing { preset: Some(preset), ..Preprocessing::default() }.affine());
            } else if pixels {
                slot.affine = Some(self.preprocessing.affine());
            }
            if let Some(reason) = slot.affine.as_ref().and_then(|a| a.misfit(slot.channels())) {
                return Err(self.misfit(reason));
            }
            Ok(slot)
        });
        slots.collect()
    }

    /// How many samples a set of arrays holds, each array as many.
    fn count(&self, set: &[Stored], slots: &[Slot]) -> Result<usize> {
        let mut counts = Vec::new();
        for (place, slot) in slots.iter().enumerate() {
            let stored = self.stored(set, slots, place)?;
            let way = stored.way(slot, self.preprocessing.layout)?;
            if matches!(stored.values, Elements::Integers(_)) && slot.affine.is_some() && !slot.integer {
                return Err(stored.wrong(format!("images must be uint8 or float32, which '{}' reads", slot.name)));
            }
            counts.push((way.count, stored));
        }
        let Some(((count, first), others)) = counts.split_first() else {
            return Err(self.misfit("the model has no inputs".into()));
        };
        if let Some((other, stored)) = others.iter().find(|(other, _)| other != count) {
            let (a, b) = (first.key.text(), stored.key.text());
            return Err(stored.wrong(format!("{b} holds {other} samples, but {a} holds {count}")));
        }
        Ok(*count)
    }

    /// The array of a set that feeds an input.
    fn stored<'s>(&self, set: &'s [Stored], slots: &[Slot], place: usize) -> Result<&'s Stored> {
        let name = &slots[place].name;
        let found = set.iter().find(|s| match &s.key {
            Key::Name(own) => own == name,
            Key::Place(own) => *own == place,
        });
        found.ok_or_else(|| {
            let read = quoted(slots.iter().map(|s| s.name.as_str()));
            match set.first().map(|s| (&s.key, &s.path)) {
                Some((Key::Place(_), path)) if folder::has_extension(path, "pb") => {
                    let folder = path.parent().unwrap_or(path);
                    let reason = format!("input_{place}.pb, for the model's input '{name}', is not there");
                    Error::Images { path: folder.to_owned(), reason }
                }
                Some((Key::Place(_), _)) => {
                    self.misfit(format!("one array, but the model reads {read}: give a .npz of arrays of those names"))
                }
                _ => {
                    let held = quoted(set.iter().map(|s| match &s.key {
                        Key::Name(name) => name.as_str(),
                        Key::Place(_) => "",
                    }));
                    self.misfit(format!("it holds the arrays {held}, but the model reads {read}: name them so"))
                }
            }
        })
    }
}

/// Names in quotes, or a word for none.
fn quoted<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<String> = names.map(|n| format!("'{n}'")).collect();
    if names.is_empty() { "(none)".into() } else { names.join(", ") }
}

/// Whether a path is a device that may be read without end.
fn is_endless(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device())
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{inputs, shapes};
    use ndarray::Axis;

    #[test]
    fn each_picture_is_followed_by_its_mirror_image() {
        let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let model = Model::open(fixture("fashion-resnet.onnx")).unwrap();
        let inputs = inputs(&model, &[]).unwrap();
        let fit = |images: &Images| images.fit(&model, &shapes(&inputs), Some(3)).unwrap();
        let images = Images::open(&fixture("fashion-calib-images.npy"), None, &Preprocessing::default()).unwrap();
        let (plain, mut both) = (fit(&images), fit(&images));
        assert!(both.mirror());
        assert_eq!((plain.len(), both.len()), (3, 6));
        let (one, two) = (plain.feeds([2]).unwrap(), both.feeds([4, 5]).unwrap());
        assert_eq!(one[0], two[0]);
        let mut turned = one[0][0].clone();
        turned.invert_axis(Axis(3));
        assert_eq!(two[1][0], turned);
        assert_ne!(two[1][0], one[0][0]);
        // What is held out is not shown, of drawn ones either.
        #[cfg(feature = "tune")]
        for images in [&images, &Images::drawn(1, 20, &Preprocessing::default()).unwrap()] {
            let all = |images: Images| {
                let samples = images.fit(&model, &shapes(&inputs), None).unwrap();
                samples.feeds(0..samples.len()).unwrap()
            };
            let (shown, held) = (all(images.shown()), all(images.held_out()));
            assert!(shown.len() == 9 * held.len() && held.len() >= 2 && held.iter().all(|h| !shown.contains(h)));
        }
        // Drawn pictures are as many as are wanted.
        assert!(!fit(&Images::drawn(1, 3, &Preprocessing::default()).unwrap()).mirror());
    }
}
