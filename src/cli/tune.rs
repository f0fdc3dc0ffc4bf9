//! `onnx-jmd tune`, and what it has in common with `--tune`.

use super::shared::{Accuracy, Output, Pixels, Verification};
use super::time::time;
use clap::Args;
use onnx_jmd::{Budget, Distillation, Error, Images, Preprocessing, Result, Stop, TuneOptions, Tutoring};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// How to tune.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tuning")]
pub(super) struct Tuning {
    /// Train every weight, not only what was decomposed or refitted
    #[arg(long)]
    tune_all: bool,

    /// Show N pictures drawn by chance beside the images
    #[arg(long, value_name = "N", default_value_t = 0)]
    tune_drawn: u32,

    /// Keep the state of tuning in this file after every look at held-out images, and go on from there if it holds one of the same
    /// run: after an interrupt, or with a longer time
    #[arg(long, value_name = "FILE")]
    pub(super) resume: Option<PathBuf>,

    /// Images a step
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// The highest rate of learning: a step changes each tensor by up to this share of its size [default: 0.001 to 0.02, the more
    /// the worse the untuned model is]
    #[arg(long, value_name = "RATE")]
    tune_rate: Option<f32>,

    /// Weight of what the blocks of the network give beside its outputs; 0 for the outputs alone
    #[arg(long, value_name = "W", default_value_t = TuneOptions::default().features)]
    tune_features: f32,

    /// Largest shift of an image, as a share of its side
    #[arg(long, value_name = "SHARE", default_value_t = TuneOptions::default().shift)]
    tune_shift: f32,

    /// Largest share of an image's side that is cropped away, before the rest is resized to the whole
    #[arg(long, value_name = "SHARE", default_value_t = TuneOptions::default().zoom)]
    tune_zoom: f32,

    /// Share of images that are mixed with another one [default: 1 where there are fewer than 2000, otherwise 0]
    #[arg(long, value_name = "SHARE")]
    tune_mix: Option<f32>,
}

/// What a run that compresses says of its tuning elsewhere.
pub(super) struct Lessons {
    pub(super) budget: Option<Budget>,
    pub(super) steps: Option<u32>,
    pub(super) mirror: bool,
    pub(super) seed: u64,
}

impl Tuning {
    /// How to tune a model that is compressed, on images from a path; nothing if that is not asked for.
    pub(super) fn tutoring(
        &self,
        lessons: &Lessons,
        shown: Option<&Path>,
        preprocessing: &Preprocessing,
    ) -> Result<Option<Tutoring>> {
        let &Lessons { budget, steps, mirror, seed } = lessons;
        let Some(budget) = budget else {
            self.refuse()?;
            return match steps {
                Some(_) => Err(Error::Options("--tune-steps needs --tune, which says how long".into())),
                None => Ok(None),
            };
        };
        let images = self.images(shown, seed, preprocessing)?;
        Ok(Some(Tutoring { images, options: self.options(budget, mirror, seed)?, steps }))
    }

    /// Refuses options of tuning where there is none.
    fn refuse(&self) -> Result<()> {
        let usual = TuneOptions::default();
        let given = [
            ("--tune-all", self.tune_all),
            ("--tune-drawn", self.tune_drawn > 0),
            ("--resume", self.resume.is_some()),
            ("--batch", self.batch as usize != usual.batch),
            ("--tune-rate", self.tune_rate != usual.rate),
            ("--tune-features", self.tune_features != usual.features),
            ("--tune-shift", self.tune_shift != usual.shift),
            ("--tune-zoom", self.tune_zoom != usual.zoom),
            ("--tune-mix", self.tune_mix != usual.mix),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(Error::Options(format!("{name} needs --tune, which says how long"))),
            None => Ok(()),
        }
    }

    pub(super) fn options(&self, budget: Budget, mirror: bool, seed: u64) -> Result<TuneOptions> {
        let options = TuneOptions {
            budget,
            batch: self.batch as usize,
            rate: self.tune_rate,
            features: self.tune_features,
            all: self.tune_all,
            mirror,
            shift: self.tune_shift,
            zoom: self.tune_zoom,
            mix: self.tune_mix,
            seed,
            resume: self.resume.clone(),
            stop: stop().clone(),
        };
        options.check()?;
        Ok(options)
    }

    /// What is shown: images from a path, and as many drawn ones as are asked for, or the usual number if there are no others.
    pub(super) fn images(&self, path: Option<&Path>, seed: u64, how: &Preprocessing) -> Result<Vec<Images>> {
        let mut images = Vec::new();
        if let Some(path) = path {
            images.push(Images::open(path, None, how)?);
        }
        if path.is_none() || self.tune_drawn > 0 {
            let count = if self.tune_drawn == 0 { DRAWN } else { self.tune_drawn as usize };
            images.push(Images::drawn(seed, count, how)?);
        }
        Ok(images)
    }
}

/// Pictures that are drawn where no images are given.
const DRAWN: usize = 5000;

/// The process's wish to end tuning early.
pub fn stop() -> &'static Stop {
    static STOP: OnceLock<Stop> = OnceLock::new();
    STOP.get_or_init(Stop::default)
}

/// `90s`, `10m`, `1.5h` or `5epochs`.
pub(super) fn budget(text: &str) -> std::result::Result<Budget, String> {
    let passes = text.strip_suffix("epochs").or_else(|| text.strip_suffix("epoch"));
    let number = |passes: &str| passes.trim().parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite());
    let found = match passes {
        Some(passes) => number(passes).map(Budget::Epochs),
        None => time(text).ok().map(Budget::Time),
    };
    found.ok_or_else(|| {
        format!("'{text}' is neither a time such as 90s, 10m or 1.5h nor a number of passes such as 5epochs")
    })
}

/// Train a smaller model to give the original's answers, by any images and without labels
///
/// The smaller model may be one that this tool or any other made: what it holds and its teacher does not is trained. Ctrl-C ends
/// it early and writes the best model so far.
#[derive(Debug, Args)]
pub(super) struct Tune {
    /// The model to tune; it is never changed
    #[arg(value_name = "SMALL.onnx")]
    student: PathBuf,

    /// Where to write the result
    #[arg(value_name = "OUT.onnx")]
    model_output: PathBuf,

    /// The original
    #[arg(long, value_name = "IN.onnx")]
    teacher: PathBuf,

    /// How long: a time, or a number of passes over the images, which gives the same result on every run
    #[arg(long, value_name = "TIME|Nepochs", value_parser = budget, default_value = "10m")]
    tune: Budget,

    /// What is shown: a folder of pictures, a .npy, a .npz or ONNX tensors; pictures drawn by chance with `drawn`, or if it is left
    /// out
    #[arg(long, value_name = "PATH|drawn")]
    calib: Option<PathBuf>,

    /// Do not show mirror images: for models that tell left from right, as of text or digits
    #[arg(long)]
    no_mirror: bool,

    #[command(flatten)]
    tuning: Tuning,

    #[command(flatten)]
    verification: Verification,

    #[command(flatten)]
    accuracy: Accuracy,

    #[command(flatten)]
    pixels: Pixels,

    #[command(flatten)]
    pub(super) output: Output,
}

/// A model to tune.
#[derive(Debug)]
pub struct TuneJob {
    /// The model.
    pub student: PathBuf,
    /// What it is to do.
    pub teacher: PathBuf,
    /// Where the result goes.
    pub model_output: PathBuf,
    /// What is read besides.
    pub read: Vec<PathBuf>,
    /// Where the state is kept.
    pub resume: Option<PathBuf>,
    /// How.
    pub distillation: Distillation,
    /// Where the facts go.
    pub output: Output,
}

impl Tune {
    pub(super) fn job(self) -> Result<TuneJob> {
        if self.calib.as_ref().is_some_and(|path| path.as_os_str() == "none") {
            let reason =
                "tuning learns from images: name some with --calib, or leave it out for pictures drawn by chance";
            return Err(Error::Options(reason.into()));
        }
        let calib = self.calib.filter(|path| path.as_os_str() != "drawn");
        let seed = self.verification.seed;
        let preprocessing = self.pixels.preprocessing();
        let distillation = Distillation {
            tune: self.tuning.options(self.tune, !self.no_mirror, seed)?,
            images: self.tuning.images(calib.as_deref(), seed, &preprocessing)?,
            verify: self.verification.options(self.verification.shapes.input_shape.clone()),
            scored: self.accuracy.open(&preprocessing)?,
            gates: self.verification.gates(),
        };
        let read = self.accuracy.paths().chain(calib).collect();
        let resume = self.tuning.resume;
        let Self { student, teacher, model_output, output, .. } = self;
        Ok(TuneJob { student, teacher, model_output, read, resume, distillation, output })
    }
}
