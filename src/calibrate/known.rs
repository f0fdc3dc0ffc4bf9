//! Values of a model on images, kept so that only what comes after them has to run.

use crate::error::{Error, Result};
use crate::onnx::Model;
use crate::runtime::{Feed, Input, Runner};
use ndarray::ArrayD;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

/// Bytes of values that are kept at most.
pub(super) const MOST_BYTES: usize = 512 << 20;

/// Values that are known, by name and image.
#[derive(Debug, Default)]
pub(super) struct Known {
    values: BTreeMap<String, Stack>,
}

/// A value of every so many-th image, one after the other: a single piece of memory goes back to the system when it is dropped.
#[derive(Debug)]
pub(super) struct Stack {
    step: usize,
    dims: Vec<usize>,
    values: Vec<f32>,
}

impl Stack {
    pub(super) fn new(step: usize) -> Self {
        Self { step, dims: Vec::new(), values: Vec::new() }
    }

    /// Adds the value of the next image; `count` are to come in all.
    pub(super) fn push(&mut self, value: &ArrayD<f32>, count: usize) {
        if self.values.is_empty() {
            self.dims = value.shape().to_vec();
            self.values.reserve_exact(count * value.len());
        }
        self.values.extend(value.iter());
    }

    fn bytes(&self) -> usize {
        size_of::<f32>() * self.values.len()
    }

    fn image(&self, number: usize) -> Option<ArrayD<f32>> {
        let (at, size) = (number / self.step, self.dims.iter().product::<usize>());
        ArrayD::from_shape_vec(&self.dims[..], self.values.get(at * size..(at + 1) * size)?.to_vec()).ok()
    }
}

impl Known {
    /// Adds a value, whatever memory it takes.
    pub(super) fn add(&mut self, name: &str, images: Stack) {
        self.values.insert(name.to_owned(), images);
    }

    /// Drops the largest values until all are within the memory that there is: they are computed again.
    pub(super) fn limit(&mut self) {
        while self.values.values().map(Stack::bytes).sum::<usize>() > MOST_BYTES {
            let largest = self.values.iter().max_by_key(|(_, images)| images.bytes()).map(|(name, _)| name.clone());
            self.values.retain(|name, _| Some(name) != largest.as_ref());
        }
    }

    /// Drops values by name.
    pub(super) fn forget(&mut self, which: impl Fn(&str) -> bool) {
        self.values.retain(|name, _| !which(name));
    }

    /// Drops what a model does not need for the `wanted` values, each from those nearest to it.
    pub(super) fn keep_needed(&mut self, model: &Model, wanted: &[&str]) -> Result<()> {
        let stretch = model.stretch(&|name| self.dims(name, None), wanted)?;
        let needed: HashSet<String> = stretch.inputs().into_iter().map(|i| i.0).collect();
        self.forget(|name| !needed.contains(name));
        Ok(())
    }

    /// The shape of a value that is known of every `step`-th image, if that is asked for.
    fn dims(&self, name: &str, step: Option<usize>) -> Option<Vec<usize>> {
        let images = self.values.get(name).filter(|known| step.is_none_or(|step| step.is_multiple_of(known.step)))?;
        Some(images.dims.clone())
    }

    fn value(&self, name: &str, image: usize) -> Option<ArrayD<f32>> {
        self.values.get(name)?.image(image)
    }
}

/// The way of a model from its inputs, or from what is known, to some of its values.
pub(super) struct Probe {
    /// None where nothing has to be computed.
    runner: Option<Runner>,
    feeds: Vec<Source>,
    places: Vec<Source>,
}

/// Where a value comes from.
#[derive(Debug, Clone)]
enum Source {
    /// From the images: an input of the model, by position.
    Image(usize),
    /// From what is known.
    Known(String),
    /// From the runner's outputs.
    Computed(usize),
}

impl Probe {
    /// The way to `values` of every `step`-th image, from everything `known` of these that is not among the `stale`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(super) fn new(
        model: &Model,
        values: &[&str],
        inputs: &[Input],
        step: usize,
        known: &Known,
        stale: &HashSet<&str>,
    ) -> Result<Self> {
        let dims = |name: &str| if stale.contains(name) { None } else { known.dims(name, Some(step)) };
        let source = |name: &str| match (inputs.iter().position(|i| i.name == name), dims(name)) {
            (Some(at), _) => Some(Source::Image(at)),
            (None, known) => known.map(|_| Source::Known(name.to_owned())),
        };
        let mut computed: Vec<&str> = Vec::new();
        let mut places = Vec::new();
        for value in values {
            places.push(source(value).unwrap_or_else(|| {
                let at = computed.iter().position(|c| c == value).unwrap_or_else(|| {
                    computed.push(*value);
                    computed.len() - 1
                });
                Source::Computed(at)
            }));
        }
        if computed.is_empty() {
            return Ok(Self { runner: None, feeds: Vec::new(), places });
        }
        let stretch = model.stretch(&dims, &computed)?;
        let (mut feeds, mut read) = (Vec::new(), Vec::new());
        for (name, ..) in stretch.inputs() {
            let missing =
                || Error::Unavailable { what: "the model".into(), reason: format!("input '{name}' is unknown") };
            let source = source(&name).ok_or_else(missing)?;
            read.push(match &source {
                Source::Image(at) => inputs[*at].clone(),
                _ => Input::floats(name.clone(), dims(&name).unwrap_or_default()),
            });
            feeds.push(source);
        }
        Ok(Self { runner: Some(Runner::load(&stretch, &read, "the model")?), feeds, places })
    }

    /// Whether it reads the images themselves.
    pub(super) fn reads_images(&self) -> bool {
        self.feeds.iter().chain(&self.places).any(|s| matches!(s, Source::Image(_)))
    }

    /// The values for one image; `feed` may be empty if the images are not read.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with tract's reason.
    pub(super) fn run(&self, image: usize, feed: &Feed, known: &Known) -> Result<Vec<ArrayD<f32>>> {
        let given = |source: &Source| match source {
            Source::Image(at) => feed.get(*at).map(Cow::Borrowed),
            Source::Known(name) => known.value(name, image).map(Cow::Owned),
            Source::Computed(_) => None,
        };
        let missing = || Error::Unavailable { what: "the model".into(), reason: format!("image {image} is not known") };
        let outputs = match &self.runner {
            Some(runner) => {
                let feed = self.feeds.iter().map(given).collect::<Option<Vec<_>>>();
                runner.run(&feed.ok_or_else(missing)?)?
            }
            None => Vec::new(),
        };
        let value = |source: &Source| match source {
            Source::Computed(at) => outputs.get(*at).cloned(),
            source => given(source).map(Cow::into_owned),
        };
        self.places.iter().map(value).collect::<Option<Vec<_>>>().ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::{GroupOptions, find_groups};
    use crate::runtime::inputs;
    use ndarray::IxDyn;

    #[test]
    fn what_follows_from_known_values_is_what_the_whole_model_gives() {
        let model = Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/fashion-resnet.onnx")).unwrap();
        let inputs = inputs(&model, &[]).unwrap();
        let convs = find_groups(&model, &GroupOptions::default()).unwrap().convs;
        // Behind a residual sum, which both branches of the next block read.
        let (value, later) = (convs[12].input.as_str(), convs[20].output.as_str());
        let picture =
            ArrayD::from_shape_fn(IxDyn(&inputs[0].dims), |at| ((at[2] * 31 + at[3] * 17) % 29) as f32 / 29.0);
        let (nothing, none) = (Known::default(), HashSet::new());
        let whole = Probe::new(&model, &[value, later], &inputs, 1, &nothing, &none).unwrap();
        let seen = whole.run(0, &vec![picture], &nothing).unwrap();
        let mut known = Known::default();
        let stack = |step: usize, value: &ArrayD<f32>| {
            let mut images = Stack::new(step);
            images.push(value, 1);
            images
        };
        known.add(value, stack(2, &seen[0]));
        let part = Probe::new(&model, &[later], &inputs, 4, &known, &none).unwrap();
        assert!(whole.reads_images() && !part.reads_images());
        assert_eq!(part.run(0, &Feed::new(), &known).unwrap()[0], seen[1]);
        // What is stale is computed again, and what is not known of every image that is asked for.
        assert!(Probe::new(&model, &[later], &inputs, 2, &known, &HashSet::from([value])).unwrap().reads_images());
        assert!(Probe::new(&model, &[later], &inputs, 1, &known, &none).unwrap().reads_images());
        // Nothing before a known value is needed, nor anything behind the wanted one.
        known.add(convs[2].input.as_str(), stack(1, &seen[0]));
        known.keep_needed(&model, &[later]).unwrap();
        assert!(known.values.keys().eq([value]));
        known.keep_needed(&model, &[convs[2].input.as_str()]).unwrap();
        assert!(known.values.is_empty());
        let large = |n: usize| stack(1, &ArrayD::zeros(IxDyn(&[n, MOST_BYTES / 16])));
        known.add("large", large(2));
        known.add("larger", large(3));
        known.add("small", large(1));
        known.limit();
        assert!(known.values.keys().eq(["large", "small"]));
    }
}
