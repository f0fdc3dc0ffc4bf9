//! Arguments that several commands have, under the same names and with the same meaning.

use clap::{Args, ValueEnum};
use onnx_jmd::{
    Gates, GroupBy, GroupOptions, Images, InputShape, Layout, Preprocessing, Preset, Protocol, Result, VerifyOptions,
};
use regex::Regex;
use std::path::PathBuf;
use std::time::Duration;

/// Which convolutions are looked at.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which convolutions")]
pub(super) struct Matching {
    /// Which convolutions share: those of one role in the blocks of a stage, or all of equal shape
    #[arg(long, value_enum, default_value_t = GroupByName::Role)]
    group_by: GroupByName,

    /// Decompose only convolutions whose node name matches
    #[arg(long, value_name = "REGEX")]
    include: Option<Regex>,

    /// Leave convolutions whose node name matches alone
    #[arg(long, value_name = "REGEX")]
    exclude: Option<Regex>,

    /// Leave BatchNormalization nodes in place instead of folding them into decomposed kernels (runtimes that fold them later
    /// store a shared last factor once per member again)
    #[arg(long)]
    keep_bn: bool,

    /// Leave whole what a published comparison does; paper (arXiv 2107.04386): the stem, the first stage, the shortcuts and the
    /// classifier, and multiply-accumulates are not limited. The report's line of weights is its compression factor
    #[arg(long, value_name = "NAME")]
    pub(super) protocol: Option<ProtocolName>,
}

/// Shapes that a model leaves open.
#[derive(Debug, Args)]
pub(super) struct Shapes {
    /// Shape of an input that the model leaves open, or with another batch than it fixes, as image:1,3,224,224; may be repeated
    #[arg(long, value_name = "NAME:DIMS", help_heading = "Inputs")]
    pub(super) input_shape: Vec<InputShape>,
}

/// How models are run on drawn inputs, and what is demanded of the result.
#[derive(Debug, Args)]
#[command(next_help_heading = "Verification")]
pub(super) struct Verification {
    /// Seeded random inputs to run
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    verify_inputs: u16,

    /// Seed of those inputs and of drawn pictures
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,

    #[command(flatten)]
    pub(super) shapes: Shapes,

    /// Refuse the result below this signal-to-noise ratio, in dB
    #[arg(long, value_name = "DB", allow_negative_numbers = true)]
    min_snr: Option<f64>,

    /// Refuse the result below this share of equal top-1 classes, 0 to 1 (on --images, else on the random inputs)
    #[arg(long, value_name = "SHARE")]
    min_agreement: Option<f64>,
}

/// Images to see what a model is worth on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Accuracy")]
pub(super) struct Accuracy {
    /// Run both models on these images: PATH is a folder of pictures, a .npy, a .npz or ONNX .pb tensors
    #[arg(long, value_name = "PATH")]
    images: Option<PathBuf>,

    /// Their classes, a .npy of integers; those of a folder in the order of sorted names
    #[arg(long, value_name = "FILE.npy", requires = "images")]
    labels: Option<PathBuf>,
}

/// What pixels become.
#[derive(Debug, Args)]
#[command(next_help_heading = "Preprocessing")]
pub(super) struct Pixels {
    /// How pixels become what the model reads: a known combination of the options below; without any of them it is told from
    /// the model or assumed, and progress says what
    #[arg(long, value_enum, value_name = "NAME", allow_hyphen_values = true)]
    preprocess: Option<PresetName>,

    /// Pixels are multiplied by this first; by default bytes by 1/255 and floats by 1
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    scale: Option<f32>,

    /// Subtracted from the scaled pixels, one value or one a channel
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true)]
    mean: Vec<f32>,

    /// Then they are divided by this, one value or one a channel
    #[arg(long, value_delimiter = ',')]
    std: Vec<f32>,

    /// Axes of the arrays given, if their shape leaves them open
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
}

/// Where the facts go.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Write the report as JSON, to standard output with '-'
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Print errors only
    #[arg(long, short)]
    pub quiet: bool,

    /// Threads to use, all cores by default; the result does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// End in an error rather than take more memory, in gibibytes; by default what the machine has (on Linux)
    #[arg(long, value_name = "GIB", value_parser = super::memory::gibibytes)]
    pub max_memory: Option<usize>,

    /// End in an error rather than take longer: 90s, 10m or 1.5h; tuning ends by its own time
    #[arg(long, value_name = "TIME", value_parser = super::time::time)]
    pub max_time: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ProtocolName {
    Paper,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GroupByName {
    Role,
    Shape,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PresetName {
    /// 0 to 1, mean 0.485,0.456,0.406, std 0.229,0.224,0.225
    Imagenet,
    /// 0 to 1, mean 0.4914,0.4822,0.4465, std 0.2470,0.2435,0.2616
    Cifar,
    /// Pixels from 0 to 1
    #[value(name = "0-1")]
    ZeroToOne,
    /// Pixels from 0 to 255
    #[value(name = "0-255")]
    Bytes,
    /// Pixels from -1 to 1
    #[value(name = "-1-1")]
    MinusOneToOne,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayoutName {
    /// Count, channels, height, width
    Nchw,
    /// Count, height, width, channels
    Nhwc,
}

impl Matching {
    pub(super) fn options(self, input_shapes: Vec<InputShape>) -> GroupOptions {
        GroupOptions {
            group_by: match self.group_by {
                GroupByName::Role => GroupBy::Role,
                GroupByName::Shape => GroupBy::Shape,
            },
            protocol: self.protocol.map(|ProtocolName::Paper| Protocol::Paper),
            keep_batch_norm: self.keep_bn,
            include: self.include,
            exclude: self.exclude,
            input_shapes,
        }
    }
}

impl Verification {
    pub(super) fn options(&self, input_shapes: Vec<InputShape>) -> VerifyOptions {
        VerifyOptions {
            inputs: usize::from(self.verify_inputs),
            seed: self.seed,
            input_shapes,
            ..VerifyOptions::default()
        }
    }

    pub(super) fn gates(&self) -> Gates {
        Gates { min_snr: self.min_snr, min_agreement: self.min_agreement }
    }
}

impl Accuracy {
    /// What is read.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> + use<> {
        self.images.clone().into_iter().chain(self.labels.clone())
    }

    pub(super) fn open(&self, preprocessing: &Preprocessing) -> Result<Option<Images>> {
        self.images.as_ref().map(|path| Images::open(path, self.labels.as_deref(), preprocessing)).transpose()
    }
}

impl Pixels {
    pub(super) fn preprocessing(&self) -> Preprocessing {
        let preset = |name| match name {
            PresetName::Imagenet => Preset::ImageNet,
            PresetName::Cifar => Preset::Cifar,
            PresetName::ZeroToOne => Preset::ZeroToOne,
            PresetName::Bytes => Preset::Bytes,
            PresetName::MinusOneToOne => Preset::MinusOneToOne,
        };
        let layout = |name| match name {
            LayoutName::Nchw => Layout::Nchw,
            LayoutName::Nhwc => Layout::Nhwc,
        };
        Preprocessing {
            preset: self.preprocess.map(preset),
            scale: self.scale,
            mean: self.mean.clone(),
            std: self.std.clone(),
            layout: self.layout.map(layout),
        }
    }
}
