//! What an output was made from, told by the output itself: a build step then knows without running whether it still holds.
//!
//! Three metadata properties, each a SHA-256: of the input, of the options and the files that they name, and of the output with this
//! last one left empty. What has no effect on the bytes (threads, reports, paths, where images are only scored) is not among the
//! options; bounds are, as a result that was not held against them is not what they ask for, and so is proof.

use crate::calibrate::Calibration;
use crate::error::{Error, Result};
use crate::group::find_groups;
#[cfg(feature = "tune")]
use crate::images::Images;
use crate::images::Samples;
use crate::onnx::{Model, VERSION_KEY, hex};
use crate::options::Options;
use crate::plan::{LEAST_RATIO, Plan, PlanOptions, RankPolicy};
use crate::runtime::{inputs, shapes};
use sha2::{Digest, Sha256};
use std::path::Path;

const INPUT_KEY: &str = "onnx_jmd.input";
const OPTIONS_KEY: &str = "onnx_jmd.options";
/// Stands for the samples where the plain weights were asked for.
const NO_SAMPLES: &str = "none";
/// Stands for them where a calibration that nobody asked for failed.
pub(crate) const GAVE_WAY: &str = "gave way";
const OUTPUT_KEY: &str = "onnx_jmd.output";

/// What a run's output follows from, as hashes.
#[derive(Debug)]
pub(crate) struct Origin {
    input: String,
    /// What the decisions follow from, but for the samples.
    pub(crate) asked: String,
    /// What is calibrated on.
    pub(crate) samples: String,
    options: String,
}

impl Origin {
    /// `samples` is the hash of what is calibrated on, `scored` are the images that bounds are held against.
    ///
    /// # Errors
    /// [`Error::Images`] if a picture cannot be decoded.
    pub(crate) fn of(
        original: &Model,
        options: &Options,
        samples: Option<String>,
        scored: Option<&Samples>,
        tuition: &Tuition,
    ) -> Result<Self> {
        let input = original.digest();
        let mut samples = samples.unwrap_or_else(|| NO_SAMPLES.into());
        let groups = &options.groups;
        let asked = match &options.replay {
            None => hashed(&[&asked(options, &tuition.decisive)]),
            Some(replay) => {
                // What was made by the plain weights says whether that was asked for.
                let made_by = |by: &str| replay.file.made_by(&input, by, groups).map(str::to_owned);
                let gave_way = || if samples == NO_SAMPLES { made_by(GAVE_WAY) } else { None };
                match (made_by(&samples), gave_way()) {
                    (Some(asked), _) => asked,
                    (None, Some(asked)) => {
                        samples = GAVE_WAY.into();
                        asked
                    }
                    (None, None) => hashed(&["plan", replay.file.as_text(), &format!("{groups:?}")]),
                }
            }
        };
        let bounds = bounds(options, scored)?;
        let options = hashed(&[&asked, &samples, &bounds, &tuition.all]);
        Ok(Self { input, asked, samples, options })
    }

    /// The model with its origin in it, and the ratio that was asked for, which in the last of several steps is another.
    pub(crate) fn stamp(&self, written: &Model, plan: &Plan) -> Model {
        let (key, value) = plan.options.policy.metadata();
        let own = [(key, &value[..]), (INPUT_KEY, &self.input), (OPTIONS_KEY, &self.options), (OUTPUT_KEY, "")];
        let open = written.with_metadata(&own);
        let own = open.digest();
        open.with_metadata(&[(OUTPUT_KEY, &own)])
    }
}

/// A SHA-256 of texts.
fn hashed(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that no two lists are the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// The options that decisions follow from. Their debug text names every field, so that a new one counts without being named here; it
/// need only hold within one version, as that is compared, too.
fn asked(options: &Options, decisive: &str) -> String {
    let Options { plan, groups, max_drop, .. } = options;
    let repair = options.calibration.as_ref().map(|_| options.repair);
    format!("{plan:?} {groups:?} {max_drop:?} {repair:?}{decisive}")
}

/// How the factors are tuned, and on what; nothing if they are not.
#[derive(Debug, Default)]
pub(crate) struct Tuition {
    all: String,
    /// What decisions follow from: all of it where there are steps, as those of a later one follow from what was learnt before.
    decisive: String,
}

impl Tuition {
    /// Reads every image as it is stored, so before any work: afterwards they may be others.
    ///
    /// # Errors
    /// [`Error::Images`] if an image cannot be read.
    #[cfg(feature = "tune")]
    pub(crate) fn of(options: &Options) -> Result<Self> {
        let Some(tuning) = options.tuning.as_ref().filter(|_| !options.dry_run) else { return Ok(Self::default()) };
        let sources = tuning.images.iter().map(Images::told).collect::<Result<Vec<String>>>()?;
        let steps = options.tuning_steps();
        let all = format!("{} {steps} {sources:?}", tuning.options.asked());
        let decisive = if steps > 1 { format!(" {all}") } else { String::new() };
        Ok(Self { all, decisive })
    }

    #[cfg(not(feature = "tune"))]
    pub(crate) fn of(_: &Options) -> Result<Self> {
        Ok(Self::default())
    }
}

/// Bounds that the result was held against, and on what; whether it was proved.
fn bounds(options: &Options, scored: Option<&Samples>) -> Result<String> {
    let Options { gates, verify, .. } = options;
    let bounded = gates.min_snr.is_some() || gates.min_agreement.is_some();
    let drawn = verify.as_ref().filter(|_| bounded);
    let mut images = Sha256::new();
    // Which classes are equal needs no labels.
    if let Some(scored) = scored.filter(|_| gates.min_agreement.is_some()) {
        images.update((scored.len() as u64).to_le_bytes());
        scored.hash(&(0..scored.len()).collect::<Vec<usize>>(), &mut |part| images.update(part))?;
    }
    let images = hex(&images.finalize());
    Ok(hashed(&[&format!("{gates:?} {} {drawn:?}", verify.is_some()), &images]))
}

/// Whether a file is what a run would write, by what it says of itself: nothing is computed anew. `external_data` is the
/// number of bytes from which on tensors are to stand in another file, if they are.
///
/// An output that is the input, byte for byte, says nothing. It holds if there is nothing to compress by shapes and names; where only
/// a run could tell, it does not.
///
/// # Errors
/// [`Error::Stale`] with what differs, and what a run refuses before any work.
pub fn check(original: &Model, options: &Options, output: &Path, external_data: Option<usize>) -> Result<()> {
    options.validate(original)?;
    original.check_numbers()?;
    let stale = |reason: String| Err(Error::Stale { path: output.to_owned(), reason });
    if !output.exists() {
        return stale("it is not there".into());
    }
    let written = match Model::open(output) {
        Ok(written) => written,
        // The sentence names the file already.
        Err(Error::Unsound { source, .. }) => return stale(format!("it was changed after it was written ({source})")),
        Err(error) => return stale(format!("it was changed after it was written ({error})")),
    };
    let misplaced = !written.is_stored(external_data);
    if written.digest() == original.digest() && !misplaced {
        return if idle(original, options)? {
            Ok(())
        } else {
            stale("it is the input, byte for byte, and only a run can tell whether there is nothing to compress".into())
        };
    }
    // Where a calibration that nobody asked for failed, the plain weights decided.
    let by_weights = options.gives_way().then(|| options.by_weights());
    let weighed = by_weights.map(|options| now(original, &options, true)).transpose()?;
    let origin = match (now(original, options, false), weighed) {
        (_, Some(weighed)) if options.spares(original) => weighed,
        (Err(Error::NotDrawable { .. }), Some(weighed)) => weighed,
        (Ok(_), Some(weighed)) if written.metadata(OPTIONS_KEY) == Some(&weighed.options) => weighed,
        (origin, _) => origin?,
    };
    let says = |key: &str| written.metadata(key);
    let (Some(version), Some(input), Some(asked), Some(own)) =
        (says(VERSION_KEY), says(INPUT_KEY), says(OPTIONS_KEY), says(OUTPUT_KEY))
    else {
        return stale("it does not say what it was made from, as what this version writes does".into());
    };
    let intact = written.round_trips() && written.with_metadata(&[(OUTPUT_KEY, "")]).digest() == own;
    let this = env!("CARGO_PKG_VERSION");
    let another = format!("version {version} wrote it and this is {this}");
    let differences = [
        (version != this, another.as_str()),
        (input != origin.input, "the input is another"),
        (asked != origin.options, "the options, or files that they name, are others"),
        (misplaced, "its data is to be stored otherwise (--external-data, --external-data-threshold)"),
        (!intact, "it was changed after it was written"),
    ];
    let differences: Vec<&str> = differences.into_iter().filter(|d| d.0).map(|d| d.1).collect();
    if differences.is_empty() { Ok(()) } else { stale(differences.join("; ")) }
}

/// The origin of what a run would write; `weighed` says that it does so by the plain weights though nobody asked for that.
fn now(original: &Model, options: &Options, weighed: bool) -> Result<Origin> {
    let wide = original.mostly_in_f32();
    let model = wide.as_ref().unwrap_or(original);
    let given = &options.groups.input_shapes;
    let samples = options.calibration.as_ref().map(|on| {
        let calibration = Calibration::new(model, on, given)?;
        calibration.origin(on.images.seed())
    });
    let bounding = options.images.as_ref().filter(|_| options.gates.min_agreement.is_some());
    let scored = bounding.map(|images| images.fit(model, &shapes(&inputs(model, given)?), None));
    let samples = samples.transpose()?.or_else(|| weighed.then(|| GAVE_WAY.into()));
    Origin::of(original, options, samples, scored.transpose()?.as_ref(), &Tuition::of(options)?)
}

/// Whether there is nothing to compress, as far as that can be told without running the model.
fn idle(original: &Model, options: &Options) -> Result<bool> {
    let wide = original.mostly_in_f32();
    let model = wide.as_ref().unwrap_or(original);
    let full = original.in_full();
    let grouping = find_groups(full.as_ref().unwrap_or(model), &options.groups)?;
    let calibrated = options.calibration.is_some();
    let found = match &options.replay {
        Some(replay) => replay.decisions(&grouping, calibrated).map(drop),
        None => {
            let policy = options.max_drop.map_or(options.plan.policy, |_| RankPolicy::Ratio(LEAST_RATIO));
            Plan::precheck(model, &grouping, &PlanOptions { policy, ..options.plan }, calibrated)
        }
    };
    match found {
        Err(Error::NothingToCompress(_)) => Ok(true),
        other => other.map(|()| false),
    }
}
