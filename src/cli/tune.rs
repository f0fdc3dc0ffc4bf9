//! `onnx-jmd tune`, and what it has in common with `--tune`.

use super::shared::{Output, Pixels, Shapes};
use clap::Args;
use onnx_jmd::{Budget, Error, Images, Result, TuneOptions};
use std::path::PathBuf;
use std::time::Duration;

/// How to tune.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tuning")]
pub(super) struct Schooling {
    /// Images a step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// The highest rate of learning, relative to each tensor's size
    #[arg(long, value_name = "RATE", default_value_t = TuneOptions::default().rate)]
    rate: f32,

    /// Weight of the values inside the networks beside the outputs
    #[arg(long, value_name = "W", default_value_t = TuneOptions::default().features)]
    features: f32,

    /// Train every weight, not only what was rewritten
    #[arg(long)]
    tune_all: bool,

    /// Largest shift of an image, as a share of its side
    #[arg(long, value_name = "SHARE", default_value_t = TuneOptions::default().shift)]
    shift: f32,

    /// Share of images that are mixed with another
    #[arg(long, value_name = "SHARE", default_value_t = TuneOptions::default().mix)]
    mix: f32,

    /// Decay of the average of weights
    #[arg(long, value_name = "D", default_value_t = TuneOptions::default().average)]
    average: f32,
}

impl Schooling {
    pub(super) fn options(&self, budget: Budget, mirror: bool, seed: u64, shapes: &Shapes) -> TuneOptions {
        TuneOptions {
            budget,
            batch: self.batch as usize,
            rate: self.rate,
            features: self.features,
            all: self.tune_all,
            mirror,
            shift: self.shift,
            mix: self.mix,
            average: self.average,
            seed,
            input_shapes: shapes.input_shape.clone(),
        }
    }
}

/// `90s`, `10m`, `1.5h` or `5epochs`.
pub(super) fn budget(text: &str) -> std::result::Result<Budget, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let wrong =
        || format!("'{text}' is neither a time such as 90s, 10m or 1.5h nor a number of passes such as 5epochs");
    let number: f64 = number.trim().parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite()).ok_or_else(wrong)?;
    let seconds = |factor: f64| Duration::try_from_secs_f64(number * factor).map(Budget::Time).map_err(|_| wrong());
    match unit.trim() {
        "s" => seconds(1.0),
        "m" | "min" => seconds(60.0),
        "h" => seconds(3600.0),
        "epoch" | "epochs" => Ok(Budget::Epochs(number)),
        _ => Err(wrong()),
    }
}

/// Train a smaller model to do what the original does, by any images and without labels
#[derive(Debug, Args)]
pub(super) struct Tune {
    /// The model to tune
    #[arg(value_name = "SMALL.onnx")]
    student: PathBuf,

    /// Where to write the result
    #[arg(value_name = "OUT.onnx")]
    model_output: PathBuf,

    /// The original
    #[arg(long, value_name = "IN.onnx")]
    teacher: PathBuf,

    /// The images
    #[arg(long, value_name = "PATH")]
    calib: PathBuf,

    /// How long
    #[arg(long, value_name = "TIME|Nepochs", value_parser = budget, default_value = "10m")]
    tune: Budget,

    /// Do not show mirror images
    #[arg(long)]
    no_mirror: bool,

    /// Of order, views and mixtures
    #[arg(long, default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    shapes: Shapes,

    #[command(flatten)]
    schooling: Schooling,

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
    /// What is shown.
    pub images: Images,
    /// How.
    pub options: TuneOptions,
    /// Where the facts go.
    pub output: Output,
}

impl Tune {
    pub(super) fn job(self) -> Result<TuneJob> {
        let options = self.schooling.options(self.tune, !self.no_mirror, self.seed, &self.shapes);
        if !(options.rate > 0.0 && options.rate.is_finite()) {
            return Err(Error::Options("--rate must be above 0".into()));
        }
        let images = Images::open(&self.calib, None, &self.pixels.preprocessing())?;
        let Self { student, teacher, model_output, output, .. } = self;
        Ok(TuneJob { student, teacher, model_output, images, options, output })
    }
}
