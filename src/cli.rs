//! The command line: arguments and the help that explains them.

use clap::{Parser, ValueEnum};
use onnx_jmd::{
    CalibrationInputs, Error, Gates, GroupBy, GroupOptions, Images, InputShape, Layout, Options, PlanOptions,
    Preprocessing, Preset, Protocol, RankPolicy, Result, Scheme, SchemeChoice, Unfolding, VerifyOptions,
};
use regex::Regex;
use std::ffi::OsString;
use std::path::PathBuf;

/// Makes a convolutional network in an ONNX file smaller by joint matrix decomposition of its repeated blocks.
///
/// Each convolution is rewritten into two or three smaller ones, alone or together with those that play the same role in repeated
/// blocks: W_i ≈ A·B_i or A_i·B, a factor that several share stored once. The ranks are chosen so that the file has RATIO
/// times fewer floating-point parameters. The result is run with tract: against the original with its kernels replaced by
/// what the factors multiply out to (must agree to rounding, or nothing is written), and against the original itself
/// (reported).
///
/// No labels and no training: factors are fitted to what each convolution sees of some pictures. The tool draws its own;
/// pictures like those that the model is for (--calib) keep more. See what each ratio costs with --images and --labels
/// before you rely on it.
#[derive(Debug, Parser)]
#[command(version, after_long_help = AFTER, max_term_width = 100)]
pub struct Cli {
    /// The ONNX model to compress; it is never changed
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,

    /// Where to write the smaller model; needed unless --dry-run
    #[arg(value_name = "OUT.onnx", required_unless_present = "dry_run")]
    output: Option<PathBuf>,

    /// How many times fewer floating-point parameters the model is to have
    #[arg(long, value_name = "R", required_unless_present_any = ["rank_rate", "max_drop"], help_heading = "What to do")]
    ratio: Option<f64>,

    /// The paper's ranks instead: ⌊RATE·out⌋ for kernels larger than 1×1, ⌊RATE·min(in, out)⌋ for 1×1, and for joint
    /// schemes the rank of equal parameters
    #[arg(long, value_name = "RATE", conflicts_with = "ratio", help_heading = "What to do")]
    rank_rate: Option<f64>,

    /// The largest ratio instead at which what the original does is kept but for P percent, on held-out calibration samples: equal
    /// top-1 classes or, of other outputs, the energy that is not error
    #[arg(long, value_name = "P", value_parser = percent, conflicts_with_all = ["ratio", "rank_rate"], help_heading = "What to do")]
    max_drop: Option<f64>,

    /// What the members of a group share; auto decides for each convolution by the error to expect
    #[arg(long, value_enum, default_value_t = SchemeName::Auto, help_heading = "What to do")]
    scheme: SchemeName,

    /// Where a kernel is cut, if the scheme is not auto
    #[arg(long, value_enum, help_heading = "What to do")]
    unfolding: Option<UnfoldingName>,

    /// Round ranks beyond four times N to multiples of N, as runtimes compute channels in blocks; 1 leaves them free
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "What to do")]
    align: u16,

    /// Of two chains: share of the rank that goes to the first, 0 to 1; to the left-shared of bi-jsvd, the shared of pcsvd, nc-ctd
    #[arg(long, value_name = "P", default_value_t = 0.5, help_heading = "What to do")]
    split: f64,

    /// Of two chains: turns between them, where plain weights are decomposed
    #[arg(long, value_name = "K", default_value_t = 30, help_heading = "What to do")]
    iterations: usize,

    /// Print the plan and write nothing
    #[arg(long, help_heading = "What to do")]
    dry_run: bool,

    /// Which convolutions share: those of one role in the blocks of a stage, or all of equal shape
    #[arg(long, value_enum, default_value_t = GroupByName::Role, help_heading = "Which convolutions")]
    group_by: GroupByName,

    /// Decompose only convolutions whose node name matches
    #[arg(long, value_name = "REGEX", help_heading = "Which convolutions")]
    include: Option<Regex>,

    /// Leave convolutions whose node name matches alone
    #[arg(long, value_name = "REGEX", help_heading = "Which convolutions")]
    exclude: Option<Regex>,

    /// Leave BatchNormalization nodes in place instead of folding them into decomposed kernels (runtimes that fold them later
    /// store a shared last factor once per member again)
    #[arg(long, help_heading = "Which convolutions")]
    keep_bn: bool,

    /// Leave whole what a published comparison does; paper (arXiv 2107.04386): the stem, the first stage, the shortcuts and the
    /// classifier, and multiply-accumulates are not limited. The report's line of weights is its compression factor
    #[arg(long, value_name = "NAME", help_heading = "Which convolutions")]
    protocol: Option<ProtocolName>,

    /// Allow more multiply-accumulates than the input has (with --rank-rate: than each group has)
    #[arg(long, help_heading = "Which convolutions")]
    allow_more_macs: bool,

    /// Calibrate on these inputs: errors are then measured by what each layer sees, and layers are refitted in turn on what
    /// the compressed network gives them; no labels, no training.
    ///
    /// PATH is a folder of PNG or JPEG pictures, resized and cropped to fit, a .npy of shape [count, ...], a .npz of such
    /// arrays named as the model's inputs, or an ONNX tensor input_0.pb or a folder of data sets of them. `drawn`, the
    /// default unless --no-verify, draws pictures by chance, `none` decomposes the plain weights
    #[arg(long, value_name = "PATH|drawn|none", help_heading = "Calibration")]
    calib: Option<CalibrationSource>,

    /// Calibrate on N of them: the first, or of a folder of pictures N spread evenly
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Calibration")]
    calib_samples: u32,

    /// Do not take the mirror image of each sample as well: for models that tell left from right, as of text or digits
    #[arg(long, help_heading = "Calibration")]
    no_mirror: bool,

    /// Keep in this folder what the model shows of the images, and use what is there: another ratio then takes less time. The
    /// result is that of a run without it; files take up to gigabytes and may be deleted at any time
    #[arg(long, value_name = "DIR", help_heading = "Calibration")]
    cache: Option<PathBuf>,

    /// Do not refit layer by layer
    #[arg(long, help_heading = "Calibration")]
    no_repair: bool,

    /// Do not run the models; the result is written without proof
    #[arg(long, help_heading = "Verification")]
    no_verify: bool,

    /// Seeded random inputs to run
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "Verification")]
    verify_inputs: u16,

    /// Seed of those inputs and of drawn pictures
    #[arg(long, default_value_t = 0, help_heading = "Verification")]
    seed: u64,

    /// Shape of an input that the model leaves open, as image:1,3,224,224; may be repeated
    #[arg(long, value_name = "NAME:DIMS", help_heading = "Verification")]
    input_shape: Vec<InputShape>,

    /// Refuse the result below this signal-to-noise ratio, in dB
    #[arg(long, value_name = "DB", allow_negative_numbers = true, help_heading = "Verification")]
    min_snr: Option<f64>,

    /// Refuse the result below this share of equal top-1 classes, 0 to 1 (on --images, else on the random inputs)
    #[arg(long, value_name = "SHARE", help_heading = "Verification")]
    min_agreement: Option<f64>,

    /// Classify these images before and after: PATH as for --calib
    #[arg(long, value_name = "PATH", help_heading = "Accuracy")]
    images: Option<PathBuf>,

    /// Their classes, a .npy of integers; those of a folder in the order of sorted names
    #[arg(long, value_name = "FILE.npy", requires = "images", help_heading = "Accuracy")]
    labels: Option<PathBuf>,

    /// How pixels become what the model reads, for --calib and --images: a known combination of the options below; without
    /// any of them it is told from the model or assumed, and progress says what
    #[arg(long, value_enum, value_name = "NAME", allow_hyphen_values = true, help_heading = "Preprocessing")]
    preprocess: Option<PresetName>,

    /// Pixels are multiplied by this first; by default bytes by 1/255 and floats by 1
    #[arg(long, value_name = "S", allow_negative_numbers = true, help_heading = "Preprocessing")]
    scale: Option<f32>,

    /// Subtracted from the scaled pixels, one value or one a channel
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, help_heading = "Preprocessing")]
    mean: Vec<f32>,

    /// Then they are divided by this, one value or one a channel
    #[arg(long, value_delimiter = ',', help_heading = "Preprocessing")]
    std: Vec<f32>,

    /// Axes of the arrays given, if their shape leaves them open
    #[arg(long, value_enum, help_heading = "Preprocessing")]
    layout: Option<LayoutName>,

    /// Write the report as JSON, to standard output with '-'
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Print how long each stage took
    #[arg(long, help_heading = "Output")]
    timings: bool,

    /// Print errors only
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,

    /// Threads to use, all cores by default; the result does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Output")]
    threads: Option<u16>,
}

const AFTER: &str = "\
Schemes (W_i is the kernel of member i, unfolded to (kh·in) × (kw·out)):
  auto       whichever of these, and of four unfoldings, promises least error
  separate   W_i ≈ A_i·B_i           each kernel by itself (spatial SVD)
  ljsvd      W_i ≈ A·B_i             first factor shared (LJSVD)
  rjsvd-1    W_i ≈ A_i·B             last factor shared, the stage's first block included (RJSVD-1)
  rjsvd-2    W_i ≈ A_i·B             last factor shared, equal shapes only (RJSVD-2)
  bi-jsvd    W_i ≈ A·B_i + C_i·D     both, alternating (Bi-JSVD)
  pcsvd      W_i ≈ A_i·B + C_i·D_i   a last factor shared, and each kernel by itself (PCSVD)
  tt         W_i ≈ A_i·C_i·V_i       each kernel by itself, cut on both sides (TT, Tucker-2)
  nc-ctd     W_i ≈ A·C·V + A_i·C_i·V_i  one tensor train for all and one for each (NC-CTD)

Exit codes:
  0  written and verified (or as asked: planned, or written without proof)
  1  a decomposition did not converge, or an internal error
  2  the arguments, images or labels do not fit the model or each other;
     too few calibration samples
  3  the input cannot be read as a sound ONNX model
  4  nothing to compress; the output is the input, byte for byte
  5  the ratio is out of reach; the message names the largest
  6  the rewritten model was wrong; nothing was written
  7  tract cannot run the model; nothing was written
  8  short of --min-snr, --min-agreement or --max-drop; nothing was written
  9  the output cannot be written

Examples:
  onnx-jmd in.onnx out.onnx --ratio 2
  onnx-jmd in.onnx out.onnx --ratio 4 --scheme separate --calib folder-of-pictures
  onnx-jmd in.onnx out.onnx --ratio 22 --scheme bi-jsvd --split 0.3
  onnx-jmd in.onnx --ratio 4 --dry-run --json -
  onnx-jmd in.onnx out.onnx --ratio 1.5 --images test.npy --labels classes.npy --min-agreement 0.95";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SchemeName {
    Auto,
    Separate,
    Ljsvd,
    #[value(name = "rjsvd-1")]
    Rjsvd1,
    #[value(name = "rjsvd-2")]
    Rjsvd2,
    BiJsvd,
    Pcsvd,
    /// Tensor train, Tucker-2: separate with --unfolding tucker
    Tt,
    NcCtd,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UnfoldingName {
    /// The paper's, (kh·in) × (kw·out): kh×1 to r channels, then 1×kw
    Spatial,
    /// (kh·kw·in) × out: kh×kw to r channels, then 1×1
    FilterBank,
    /// in × (kh·kw·out): 1×1 to r channels, then kh×kw
    PointwiseFirst,
    /// Both sides: 1×1 to r channels, kh×kw to r, then 1×1; bi-jsvd shares the two outer ones
    Tucker,
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

impl PresetName {
    fn preset(self) -> Preset {
        match self {
            Self::Imagenet => Preset::ImageNet,
            Self::Cifar => Preset::Cifar,
            Self::ZeroToOne => Preset::ZeroToOne,
            Self::Bytes => Preset::Bytes,
            Self::MinusOneToOne => Preset::MinusOneToOne,
        }
    }
}

impl LayoutName {
    fn layout(self) -> Layout {
        match self {
            Self::Nchw => Layout::Nchw,
            Self::Nhwc => Layout::Nhwc,
        }
    }
}

/// `1%` or `1` as 0.01.
fn percent(text: &str) -> std::result::Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim();
    number.parse::<f64>().map(|p| p / 100.0).map_err(|_| format!("'{text}' is not a percentage such as 1%"))
}

/// What --calib asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CalibrationSource {
    /// The plain weights are decomposed.
    None,
    /// Pictures drawn by chance.
    Drawn,
    /// A file or folder.
    Path(PathBuf),
}

impl From<OsString> for CalibrationSource {
    fn from(text: OsString) -> Self {
        match text.to_str() {
            Some("none") => Self::None,
            Some("drawn") => Self::Drawn,
            _ => Self::Path(text.into()),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProtocolName {
    Paper,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GroupByName {
    Role,
    Shape,
}

/// What the binary itself does, apart from compiling.
#[derive(Debug)]
pub struct Paths {
    /// The model to read.
    pub input: PathBuf,
    /// The model to write.
    pub output: Option<PathBuf>,
    /// Where the JSON report goes.
    pub json: Option<PathBuf>,
    /// Whether progress and tables are left out.
    pub quiet: bool,
    /// Whether the tables say how long each stage took.
    pub timings: bool,
    /// Threads, if not all cores.
    pub threads: Option<usize>,
}

impl Cli {
    /// The arguments as the library's options.
    ///
    /// # Errors
    /// [`Error::Options`] or [`Error::Images`] for arguments that contradict each other or files that do not fit.
    pub fn options(self) -> Result<(Paths, Options)> {
        let unfolding = match self.unfolding {
            None | Some(UnfoldingName::Spatial) => Unfolding::SPATIAL,
            Some(UnfoldingName::FilterBank) => Unfolding::FILTER_BANK,
            Some(UnfoldingName::PointwiseFirst) => Unfolding::POINTWISE_FIRST,
            Some(UnfoldingName::Tucker) => Unfolding::TUCKER,
        };
        let only = |scheme: Scheme| SchemeChoice::Only(scheme.on(unfolding));
        let train = |scheme: Scheme| match self.unfolding {
            None | Some(UnfoldingName::Tucker) => Ok(SchemeChoice::Only(scheme.on(Unfolding::TUCKER))),
            Some(_) => Err(Error::Options("a tensor train has an unfolding of its own: leave out --unfolding".into())),
        };
        let scheme = match self.scheme {
            SchemeName::Auto if self.unfolding.is_some() => {
                return Err(Error::Options("--unfolding needs a --scheme: auto chooses both".into()));
            }
            SchemeName::Auto => SchemeChoice::Auto,
            SchemeName::Separate => only(Scheme::Separate),
            SchemeName::Ljsvd => only(Scheme::LeftShared),
            SchemeName::Rjsvd1 => only(Scheme::RightSharedWithFirst),
            SchemeName::Rjsvd2 => only(Scheme::RightShared),
            SchemeName::BiJsvd => only(Scheme::BothShared { split: self.split }),
            SchemeName::Pcsvd => only(Scheme::PartlyCoupled { split: self.split }),
            SchemeName::Tt => train(Scheme::Separate)?,
            SchemeName::NcCtd => train(Scheme::CoupledTensorTrain { split: self.split })?,
        };
        let policy = match (self.ratio, self.rank_rate, self.max_drop) {
            (_, Some(rate), _) => RankPolicy::Rate(rate),
            (Some(ratio), None, _) => RankPolicy::Ratio(ratio),
            (None, None, Some(_)) => PlanOptions::default().policy,
            (None, None, None) => return Err(Error::Options("give --ratio, --max-drop or --rank-rate".into())),
        };
        let input_shapes = self.input_shape;
        let verify = VerifyOptions {
            inputs: usize::from(self.verify_inputs),
            seed: self.seed,
            input_shapes: input_shapes.clone(),
        };
        let preprocessing = Preprocessing {
            preset: self.preprocess.map(PresetName::preset),
            scale: self.scale,
            mean: self.mean,
            std: self.std,
            layout: self.layout.map(LayoutName::layout),
        };
        let images = match &self.images {
            Some(path) => Some(Images::open(path, self.labels.as_deref(), &preprocessing)?),
            None => None,
        };
        let most = self.calib_samples as usize;
        let unasked = if self.no_verify { CalibrationSource::None } else { CalibrationSource::Drawn };
        let calibration = match self.calib.unwrap_or(unasked) {
            CalibrationSource::None => None,
            CalibrationSource::Drawn => Some(Images::drawn(self.seed, most, &preprocessing)?),
            CalibrationSource::Path(path) => Some(Images::open(&path, None, &preprocessing)?),
        };
        if self.cache.is_some() && calibration.is_none() {
            return Err(Error::Options("--cache needs calibration: leave out --calib none, or give --calib".into()));
        }
        let options = Options {
            groups: GroupOptions {
                group_by: match self.group_by {
                    GroupByName::Role => GroupBy::Role,
                    GroupByName::Shape => GroupBy::Shape,
                },
                protocol: self.protocol.map(|ProtocolName::Paper| Protocol::Paper),
                keep_batch_norm: self.keep_bn,
                include: self.include,
                exclude: self.exclude,
                input_shapes,
            },
            plan: PlanOptions {
                scheme,
                policy,
                iterations: self.iterations,
                allow_more_macs: self.allow_more_macs || self.protocol.is_some(),
                align: usize::from(self.align),
            },
            verify: (!self.no_verify).then_some(verify),
            gates: Gates { min_snr: self.min_snr, min_agreement: self.min_agreement },
            calibration: calibration.map(|images| CalibrationInputs {
                images,
                most,
                mirror: !self.no_mirror,
                cache: self.cache,
            }),
            repair: !self.no_repair,
            max_drop: self.max_drop,
            images,
            dry_run: self.dry_run,
        };
        let paths = Paths {
            input: self.input,
            output: self.output.filter(|_| !self.dry_run),
            json: self.json,
            quiet: self.quiet,
            timings: self.timings,
            threads: self.threads.map(usize::from),
        };
        Ok((paths, options))
    }
}
