//! `onnx-jmd IN.onnx OUT.onnx`: the command without a name.

use super::config::Settings;
use super::shared::{Accuracy, Matching, Output, Pixels, Verification};
use super::tune::{Lessons, Tuning, budget};
use clap::{Args, ValueEnum};
use onnx_jmd::{
    Budget, CalibrationInputs, Error, Images, Model, Options, PlanFile, PlanOptions, PlannedCalibration, Preprocessing,
    RankPolicy, Replay, Result, Scheme, SchemeChoice, Unfolding,
};
use std::ffi::OsString;
use std::path::PathBuf;

/// What a plan from a file has decided already.
const PLANNED: [&str; 19] = [
    "ratio",
    "rank_rate",
    "max_drop",
    "scheme",
    "unfolding",
    "align",
    "split",
    "iterations",
    "group_by",
    "include",
    "exclude",
    "keep_bn",
    "protocol",
    "allow_more_macs",
    "unshare",
    "calib_samples",
    "no_mirror",
    "no_repair",
    "curve",
];

/// Ratios of the curve in a report, relative to the one asked for.
const AROUND: [f64; 4] = [0.5, 0.7, 1.4, 2.0];

#[derive(Debug, Args)]
pub(super) struct Compress {
    /// The ONNX model to compress, from standard input with '-'; it is never changed
    #[arg(value_name = "IN.onnx", required = true)]
    input: Option<PathBuf>,

    /// Where to write the smaller model, to standard output with '-' (whole, once all is verified; tables then go to standard
    /// error); needed unless --dry-run
    #[arg(value_name = "OUT.onnx", required_unless_present = "dry_run")]
    model_output: Option<PathBuf>,

    /// How many times fewer floating-point parameters the model is to have
    #[arg(long, value_name = "R", required_unless_present_any = ["rank_rate", "max_drop", "plan"], allow_negative_numbers = true, help_heading = "What to do")]
    ratio: Option<f64>,

    /// The paper's ranks instead: ⌊RATE·out⌋ for kernels larger than 1×1, ⌊RATE·min(in, out)⌋ for 1×1, and for joint
    /// schemes the rank of equal parameters
    #[arg(
        long,
        value_name = "RATE",
        conflicts_with = "ratio",
        allow_negative_numbers = true,
        help_heading = "What to do"
    )]
    rank_rate: Option<f64>,

    /// The largest ratio instead at which what the original does is kept but for P percent, on held-out calibration samples: equal
    /// top-1 classes or, of other outputs, the energy that is not error
    #[arg(long, value_name = "P", value_parser = percent, conflicts_with_all = ["ratio", "rank_rate"], allow_negative_numbers = true, help_heading = "What to do")]
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

    /// Allow more multiply-accumulates than the input has (with --rank-rate: than each group has)
    #[arg(long, help_heading = "What to do")]
    allow_more_macs: bool,
    /// Store a factor that several convolutions share once for each of them, for targets that keep weights a layer; the ratio
    /// then counts every copy
    #[arg(long, help_heading = "What to do")]
    unshare: bool,

    /// Print the plan and write no model
    #[arg(long, help_heading = "What to do")]
    dry_run: bool,

    /// Write nothing and compute nothing: is OUT still what this input, these options and this version give? It says itself what it
    /// was made from; exit code 12 and what differs if it is not
    #[arg(long, conflicts_with = "dry_run", help_heading = "What to do")]
    check: bool,

    /// Write every decision to this file, to be kept, compared, edited and replayed
    #[arg(long, value_name = "FILE.toml", help_heading = "Plans")]
    plan_out: Option<PathBuf>,

    /// Do what this file says instead of deciding anew: the same model gives the same bytes. Samples that it was calibrated on
    /// have to be given again with --calib; the options that it records cannot be given beside it
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = PLANNED, help_heading = "Plans")]
    plan: Option<PathBuf>,

    /// Accept other weights than those that were planned for, as of the same network trained again
    #[arg(long, help_heading = "Plans")]
    retrained: bool,

    #[command(flatten)]
    matching: Matching,

    /// Calibrate on these inputs: errors are then measured by what each layer sees, and layers are refitted in turn on what
    /// the compressed network gives them; no labels, no training.
    ///
    /// PATH is a folder of PNG or JPEG pictures, resized and cropped to fit, a .npy of shape [count, ...], a .npz of such
    /// arrays named as the model's inputs, or an ONNX tensor input_0.pb or a folder of data sets of them. `drawn`, the
    /// default below 2 GiB unless --no-verify, draws pictures by chance, `none` decomposes the plain weights
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

    /// Then train what was decomposed to give the original's answers, on all the images that --calib names (drawn ones without) and
    /// without labels: for 10m, 90s or 1h, or for 5epochs, which gives the same result on every run. Ctrl-C ends it early and keeps
    /// the best so far
    #[arg(long, value_name = "TIME|Nepochs", value_parser = budget, help_heading = "Tuning")]
    tune: Option<Budget>,

    /// Make the model smaller in N steps, and tune it after each for its share of the time: by default 2 from --ratio 10 on;
    /// fewer where each would make it less than 1.25 times smaller
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10), help_heading = "Tuning")]
    tune_steps: Option<u32>,

    #[command(flatten)]
    tuning: Tuning,

    /// Do not run the models; the result is written without proof
    #[arg(long, help_heading = "Verification")]
    no_verify: bool,

    #[command(flatten)]
    verification: Verification,

    #[command(flatten)]
    accuracy: Accuracy,

    #[command(flatten)]
    pixels: Pixels,

    #[command(flatten)]
    pub(super) output: Output,

    /// Take options from this file instead of onnx-jmd.toml, which is looked for where the command runs: a line each, as
    /// ratio = 4 or scheme = "ljsvd", paths from the file's folder; the command line replaces them
    #[arg(long, value_name = "FILE.toml", help_heading = "The project's options")]
    config: Option<PathBuf>,

    /// Look for no such file
    #[arg(long, conflicts_with = "config", help_heading = "The project's options")]
    no_config: bool,

    #[arg(skip)]
    pub(super) settings: Option<Settings>,

    /// Write the report in pictures, a page of HTML that needs nothing else
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    report: Option<PathBuf>,

    /// Further ratios for its curve, where --images are given: a model is made and scored at each. By default half and twice the
    /// ratio asked for, and between; 'none' for none
    #[arg(long, value_name = "R,…|none", value_parser = curve, requires = "report", help_heading = "Output")]
    curve: Option<Curve>,

    /// Store tensors of 1 KiB and more in a file beside the model (external data); models of 2 GiB always are
    #[arg(long, help_heading = "Output")]
    external_data: bool,

    /// The size from which on tensors go there; 0 takes all but empty ones
    #[arg(long, value_name = "BYTES", default_value_t = Model::EXTERNAL_DATA_THRESHOLD, requires = "external_data", help_heading = "Output")]
    external_data_threshold: usize,

    /// Print how long each stage took
    #[arg(long, help_heading = "Output")]
    timings: bool,
}

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

/// `1%` or `1` as 0.01.
fn percent(text: &str) -> std::result::Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim();
    number.parse::<f64>().map(|p| p / 100.0).map_err(|_| format!("'{text}' is not a percentage such as 1%"))
}

/// Ratios beside the one asked for.
#[derive(Debug, Clone)]
struct Curve(Vec<f64>);

fn curve(text: &str) -> std::result::Result<Curve, String> {
    if text == "none" {
        return Ok(Curve(Vec::new()));
    }
    let each = text.split(',').map(|r| r.trim().parse::<f64>().ok().filter(|r| *r > 1.0 && r.is_finite()));
    each.collect::<Option<_>>()
        .map(Curve)
        .ok_or_else(|| format!("'{text}' is not a list of ratios above 1, such as 2,3,4"))
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

/// A model to compress.
#[derive(Debug)]
pub struct CompressJob {
    /// The model to read.
    pub input: PathBuf,
    /// What is read besides.
    pub read: Vec<PathBuf>,
    /// The model to write.
    pub model_output: Option<PathBuf>,
    /// Where the plan goes.
    pub plan_out: Option<PathBuf>,
    /// Where the report in pictures goes.
    pub report: Option<PathBuf>,
    /// Where the state of tuning is kept.
    pub resume: Option<PathBuf>,
    /// The size in bytes from which on tensors are stored beside the model, if they are.
    pub external_data: Option<usize>,
    /// Whether the model that is there is only looked at.
    pub check: bool,
    /// Whether the tables say how long each stage took.
    pub timings: bool,
    /// Where options came from, if from a file too.
    pub settings: Option<Settings>,
    /// What the library is asked.
    pub options: Options,
    /// Where the facts go.
    pub output: Output,
}

impl Compress {
    /// # Errors
    /// [`Error::Options`], [`Error::Images`] or [`Error::Plan`] for arguments that contradict each other or files that do not fit.
    pub(super) fn job(self) -> Result<CompressJob> {
        // Where a plan is ruled out, clap demands none.
        if self.retrained && self.plan.is_none() {
            return Err(Error::Options("--retrained needs a --plan".into()));
        }
        let file = self.plan.as_ref().map(|path| PlanFile::open(path)).transpose()?;
        let given_shapes = self.verification.shapes.input_shape.clone();
        let decided = match &file {
            Some(file) => (file.plan_options()?, file.group_options()?),
            None => {
                let more_macs = self.allow_more_macs || self.matching.protocol.is_some();
                let plan = PlanOptions {
                    scheme: self.scheme_choice()?,
                    policy: self.policy()?,
                    iterations: self.iterations,
                    allow_more_macs: more_macs,
                    unshare: self.unshare,
                    align: usize::from(self.align),
                };
                (plan, self.matching.options(Vec::new()))
            }
        };
        let (plan, mut groups) = decided;
        if !given_shapes.is_empty() {
            groups.input_shapes = given_shapes;
        }
        let around = match (self.curve, self.ratio) {
            (Some(Curve(ratios)), _) => ratios,
            (None, Some(ratio)) => AROUND.iter().map(|part| part * ratio).collect(),
            (None, None) => Vec::new(),
        };
        let preprocessing = self.pixels.preprocessing();
        let images = self.accuracy.open(&preprocessing)?;
        let samples = match &self.calib {
            Some(CalibrationSource::Path(path)) => Some(path.clone()),
            _ => None,
        };
        let shown = samples.clone();
        let settings = self.settings.as_ref().map(Settings::path);
        let read = self.accuracy.paths().chain(self.plan.clone()).chain(samples).chain(settings).collect();
        let seed = self.verification.seed;
        let tutoring = Lessons { budget: self.tune, steps: self.tune_steps, mirror: !self.no_mirror, seed };
        let tuning = self.tuning.tutoring(&tutoring, shown.as_deref(), &preprocessing)?;
        let asked = Asked {
            source: self.calib,
            samples: self.calib_samples as usize,
            mirror: !self.no_mirror,
            seed: self.verification.seed,
            verified: !self.no_verify,
            tuned: self.tune.is_some(),
        };
        let planned = file.as_ref().map(PlanFile::calibration);
        let repair = planned.as_ref().and_then(|p| p.as_ref()).map_or(!self.no_repair, |p| p.repair);
        let calibration = match planned {
            Some(planned) => asked.replayed(planned, &preprocessing)?,
            None => asked.anew(&preprocessing)?,
        };
        if self.cache.is_some() && calibration.is_none() {
            return Err(Error::Options("--cache needs calibration: leave out --calib none, or give --calib".into()));
        }
        // What judges the tuning is not calibrated on.
        let calibration = calibration.map(|c| match &tuning {
            Some(_) => CalibrationInputs { images: c.images.shown(), ..c },
            None => c,
        });
        let options = Options {
            verify: (!self.no_verify).then(|| self.verification.options(groups.input_shapes.clone())),
            groups,
            plan,
            gates: self.verification.gates(),
            calibration: calibration.map(|c| CalibrationInputs { cache: self.cache, ..c }),
            repair,
            max_drop: self.max_drop,
            tuning,
            images,
            replay: file.map(|file| Replay { file, retrained: self.retrained }),
            plan_text: self.plan_out.is_some(),
            pictures: self.report.is_some(),
            curve: if self.report.is_some() { around } else { Vec::new() },
            dry_run: self.dry_run,
        };
        Ok(CompressJob {
            // clap demands it of this command.
            input: self.input.ok_or_else(|| Error::Options("give the model to compress".into()))?,
            read,
            model_output: self.model_output.filter(|_| !self.dry_run),
            plan_out: self.plan_out,
            report: self.report,
            resume: self.tuning.resume,
            external_data: self.external_data.then_some(self.external_data_threshold),
            check: self.check,
            timings: self.timings,
            settings: self.settings,
            options,
            output: self.output,
        })
    }

    fn scheme_choice(&self) -> Result<SchemeChoice> {
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
        Ok(match self.scheme {
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
        })
    }

    fn policy(&self) -> Result<RankPolicy> {
        match (self.ratio, self.rank_rate, self.max_drop) {
            (_, Some(rate), _) => Ok(RankPolicy::Rate(rate)),
            (Some(ratio), None, _) => Ok(RankPolicy::Ratio(ratio)),
            (None, None, Some(_)) => Ok(PlanOptions::default().policy),
            (None, None, None) => Err(Error::Options("give --ratio, --max-drop, --rank-rate or --plan".into())),
        }
    }
}

/// What the arguments say of calibration.
struct Asked {
    source: Option<CalibrationSource>,
    samples: usize,
    mirror: bool,
    seed: u64,
    /// Models are run, so that pictures may be drawn for them.
    verified: bool,
    /// What is calibrated on is learnt from, too.
    tuned: bool,
}

impl Asked {
    fn anew(self, preprocessing: &Preprocessing) -> Result<Option<CalibrationInputs>> {
        let optional = self.source.is_none();
        let unasked = if self.verified { CalibrationSource::Drawn } else { CalibrationSource::None };
        let images = match self.source.unwrap_or(unasked) {
            CalibrationSource::None => return Ok(None),
            CalibrationSource::Drawn => Images::drawn(self.seed, self.samples, preprocessing)?,
            CalibrationSource::Path(path) => Images::open(&path, None, preprocessing)?,
        };
        Ok(Some(CalibrationInputs { images, most: self.samples, mirror: self.mirror, cache: None, optional }))
    }

    /// As a plan was, on the samples given.
    fn replayed(self, planned: Option<PlannedCalibration>, given: &Preprocessing) -> Result<Option<CalibrationInputs>> {
        let Some(planned) = planned else {
            return match self.source {
                None | Some(CalibrationSource::None) => Ok(None),
                // Named for tuning.
                Some(_) if self.tuned => Ok(None),
                Some(_) => Err(Error::Options("the plan was made by the plain weights: leave out --calib".into())),
            };
        };
        let preprocessing = if *given == Preprocessing::default() { &planned.preprocessing } else { given };
        let drawn = |seed| Images::drawn(seed, planned.samples, preprocessing);
        let images = match (&self.source, planned.seed) {
            (None, Some(seed)) => drawn(seed)?,
            (None, None) => {
                return Err(Error::Options(format!(
                    "the plan was calibrated on '{}': give these samples, or others like them, with --calib",
                    planned.source
                )));
            }
            (Some(CalibrationSource::None), _) => {
                return Err(Error::Options("the plan was calibrated: leave out --calib none, or plan anew".into()));
            }
            (Some(CalibrationSource::Drawn), seed) => drawn(seed.unwrap_or(self.seed))?,
            (Some(CalibrationSource::Path(path)), _) => Images::open(path, None, preprocessing)?,
        };
        let (most, mirror) = (planned.samples, planned.mirror);
        Ok(Some(CalibrationInputs { images, most, mirror, cache: None, optional: false }))
    }
}
