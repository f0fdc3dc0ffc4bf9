//! Plans as files: every decision in TOML, to be kept, compared, edited and replayed.
//!
//! [`PlanFile::text`] writes one, [`PlanFile::open`] reads one, and `replay` fits it to a model. A file says what was decided (a
//! table `[[group]]` each: members, scheme, unfolding, ranks) and what the result follows from besides: how convolutions were
//! found, what was calibrated on. The same model, file and images give the same bytes as the run that wrote it.

use super::made::MadeEntry;
use super::{GroupPlan, Plan, PlanOptions, RankPolicy, SchemeChoice};
use crate::error::{Error, Result};
use crate::factor::{Scheme, Unfolding};
use crate::group::{GroupBy, GroupOptions, Protocol};
use crate::images::Preprocessing;
use crate::onnx::{Conv, InputShape, Model, hex};
use regex::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Version of the file's layout; it grows when a field changes its meaning or goes.
const VERSION: i64 = 1;
/// Larger files are no plans.
const LARGEST: u64 = 16 << 20;
/// More calibration samples, or turns between chains, than this are a slip.
const MOST_SAMPLES: usize = 10_000_000;
const MOST_TURNS: usize = 100_000;
/// Bytes of a weights' hash that are written.
const HASH_BYTES: usize = 16;

const HEADING: &str = "\
# A plan of onnx-jmd: replay it with `onnx-jmd IN.onnx OUT.onnx --plan THIS`.
# To change it: other ranks, another scheme or unfolding, members or whole groups left out. What is in no group stays whole.
# ranks: one a chain of the scheme. basis: ranks that the basis was computed to; more ranks than that raise it.
# Tables before the groups say what the decisions, and the result, followed from.

";

/// A plan as it stands in a file.
#[derive(Debug, Clone)]
pub struct PlanFile {
    path: PathBuf,
    pub(super) text: String,
    pub(super) document: Document,
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Document {
    #[serde(rename = "version")]
    _version: i64,
    pub(super) onnx_jmd: String,
    pub(super) model: ModelEntry,
    options: OptionsEntry,
    pub(super) calibration: Option<CalibrationEntry>,
    pub(super) made: Option<MadeEntry>,
    #[serde(default)]
    pub(super) group: Vec<GroupEntry>,
}

/// All that stands before the groups.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Head {
    version: i64,
    onnx_jmd: &'static str,
    model: ModelEntry,
    options: OptionsEntry,
    calibration: Option<CalibrationEntry>,
}

/// The file that was planned for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelEntry {
    pub(super) sha256: String,
}

/// What the decisions followed from, and how convolutions were found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct OptionsEntry {
    scheme: Spanned<String>,
    split: Option<Spanned<f64>>,
    unfolding: Option<Spanned<String>>,
    ratio: Option<Spanned<f64>>,
    rank_rate: Option<Spanned<f64>>,
    align: Spanned<usize>,
    allow_more_macs: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    unshare: bool,
    iterations: Spanned<usize>,
    group_by: Spanned<String>,
    protocol: Option<Spanned<String>>,
    keep_bn: bool,
    include: Option<Spanned<String>>,
    exclude: Option<Spanned<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    input_shape: Vec<Spanned<String>>,
}

/// What was calibrated on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct CalibrationEntry {
    source: String,
    /// Of drawn pictures.
    seed: Option<u64>,
    /// Of others: of what was fed to the model.
    pub(super) sha256: Option<String>,
    samples: Spanned<usize>,
    mirror: bool,
    held_out: bool,
    repair: bool,
    #[serde(default = "plain")]
    preprocessing: Spanned<Preprocessing>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn plain() -> Spanned<Preprocessing> {
    Spanned::new(0..0, Preprocessing::default())
}

/// Convolutions that are decomposed together.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct GroupEntry {
    pub(super) name: Spanned<String>,
    #[serde(default)]
    pub(super) role: String,
    pub(super) scheme: Spanned<String>,
    pub(super) unfolding: Spanned<String>,
    pub(super) split: Option<Spanned<f64>>,
    pub(super) ranks: Spanned<Vec<usize>>,
    #[serde(default)]
    pub(super) basis: usize,
    pub(super) members: Vec<Spanned<MemberEntry>>,
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemberEntry {
    pub(super) node: String,
    pub(super) kernel: [usize; 4],
    pub(super) weights: String,
}

/// What a plan was calibrated on, for whoever runs it again.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedCalibration {
    /// The seed of drawn pictures; none if samples were given.
    pub seed: Option<u64>,
    /// Where they were, to be read.
    pub source: String,
    /// How many at most.
    pub samples: usize,
    /// Whether the mirror image of each was taken too.
    pub mirror: bool,
    /// Whether a part of them was held out.
    pub held_out: bool,
    /// Whether layers were refitted.
    pub repair: bool,
    /// What pixels became.
    pub preprocessing: Preprocessing,
}

/// What a result follows from besides the decisions.
pub(crate) struct Circumstances<'c> {
    pub(crate) groups: &'c GroupOptions,
    pub(crate) calibration: Option<PlannedCalibration>,
    /// Hash of the samples as they were fed.
    pub(crate) samples: Option<String>,
    /// Hashes of the options and of what the samples are made from.
    pub(crate) made_by: [&'c str; 2],
}

impl PlanFile {
    /// Reads a plan.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Plan`] with the line and what is wrong there.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(std::io::Error::other("it is not a file")));
        }
        if metadata.len() > LARGEST {
            return Err(failed(std::io::Error::from(std::io::ErrorKind::FileTooLarge)));
        }
        Self::parse(path, std::fs::read_to_string(path).map_err(failed)?)
    }

    fn parse(path: &Path, text: String) -> Result<Self> {
        /// Read first, as other versions have other fields.
        #[derive(Deserialize)]
        struct Version {
            version: Spanned<i64>,
        }
        let failed = |e: toml::de::Error| {
            let line = e.span().map_or(1, |span| line(&text, &span));
            Error::Plan { path: path.to_owned(), line, reason: e.message().replace('\n', " ") }
        };
        let found = toml::from_str::<Version>(&text).map_err(failed)?.version;
        if *found.get_ref() != VERSION {
            let reason = format!("version {} of the layout is not known, only {VERSION} is", found.get_ref());
            return Err(Error::Plan { path: path.to_owned(), line: line(&text, &found.span()), reason });
        }
        let document = toml::from_str(&text).map_err(failed)?;
        let file = Self { path: path.to_owned(), document, text };
        file.check()?;
        Ok(file)
    }

    /// Refuses numbers that no run would have written.
    fn check(&self) -> Result<()> {
        let within = |place: Range<usize>, fits: bool, reason: &str| {
            if fits { Ok(()) } else { Err(self.wrong(place, reason.to_owned())) }
        };
        let share =
            |split: &Spanned<f64>| within(split.span(), (0.0..=1.0).contains(split.get_ref()), "split is from 0 to 1");
        let options = &self.document.options;
        let numbers = [
            (&options.ratio, 1.0, f64::MAX, "ratio is above 1"),
            (&options.rank_rate, 0.0, 1.0, "rank-rate is above 0 and at most 1"),
        ];
        for (number, low, high, reason) in numbers {
            let Some(number) = number else { continue };
            within(number.span(), *number.get_ref() > low && *number.get_ref() <= high, reason)?;
        }
        within(options.align.span(), (1..=256).contains(options.align.get_ref()), "align is from 1 to 256")?;
        within(options.iterations.span(), *options.iterations.get_ref() <= MOST_TURNS, "iterations are far too many")?;
        options.split.iter().try_for_each(share)?;
        for group in &self.document.group {
            group.split.iter().try_for_each(share)?;
            if let (Some(split), true) = (&group.split, group.ranks.get_ref().len() > 1) {
                return Err(self.wrong(split.span(), "two ranks say how they are dealt: leave split out".into()));
            }
            let readable = !group.name.get_ref().is_empty() && !group.name.get_ref().contains(char::is_control);
            within(group.name.span(), readable, "the name of a group is a word")?;
        }
        let Some(calibration) = &self.document.calibration else { return Ok(()) };
        let samples = &calibration.samples;
        within(
            samples.span(),
            (1..=MOST_SAMPLES).contains(samples.get_ref()),
            "samples are 1 or more, and not so many",
        )?;
        let preprocessing = &calibration.preprocessing;
        preprocessing.get_ref().check().map_err(|e| self.wrong(preprocessing.span(), e.to_string()))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the decisions followed from.
    ///
    /// # Errors
    /// [`Error::Plan`] with the line of a name that is not known.
    pub fn plan_options(&self) -> Result<PlanOptions> {
        let options = &self.document.options;
        let scheme = match options.scheme.get_ref().as_str() {
            "auto" => SchemeChoice::Auto,
            _ => {
                let scheme = self.scheme(&options.scheme, options.split.as_ref().map_or(0.5, |s| *s.get_ref()))?;
                let unfolding = options.unfolding.as_ref().map_or(Ok(Unfolding::SPATIAL), |u| self.unfolding(u))?;
                SchemeChoice::Only(scheme.on(unfolding))
            }
        };
        let policy = match (&options.ratio, &options.rank_rate) {
            (Some(ratio), None) => RankPolicy::Ratio(*ratio.get_ref()),
            (None, Some(rate)) => RankPolicy::Rate(*rate.get_ref()),
            _ => return Err(self.wrong(options.scheme.span(), "[options] needs either ratio or rank-rate".into())),
        };
        Ok(PlanOptions {
            scheme,
            policy,
            iterations: *options.iterations.get_ref(),
            allow_more_macs: options.allow_more_macs,
            unshare: options.unshare,
            align: *options.align.get_ref(),
        })
    }

    /// How convolutions were found and grouped.
    ///
    /// # Errors
    /// [`Error::Plan`] with the line of a name or pattern that makes no sense.
    pub fn group_options(&self) -> Result<GroupOptions> {
        let options = &self.document.options;
        let pattern = |text: &Option<Spanned<String>>| {
            let text = text.as_ref().map(|t| Regex::new(t.get_ref()).map_err(|e| self.wrong(t.span(), flat(&e))));
            text.transpose()
        };
        let shape = |text: &Spanned<String>| text.get_ref().parse().map_err(|e| self.wrong(text.span(), e));
        Ok(GroupOptions {
            group_by: match options.group_by.get_ref().as_str() {
                "role" => GroupBy::Role,
                "shape" => GroupBy::Shape,
                other => {
                    return Err(
                        self.wrong(options.group_by.span(), format!("group-by is role or shape, not '{other}'"))
                    );
                }
            },
            protocol: match &options.protocol {
                None => None,
                Some(name) if name.get_ref() == "paper" => Some(Protocol::Paper),
                Some(name) => return Err(self.wrong(name.span(), format!("no protocol '{}'", name.get_ref()))),
            },
            keep_batch_norm: options.keep_bn,
            include: pattern(&options.include)?,
            exclude: pattern(&options.exclude)?,
            input_shapes: options.input_shape.iter().map(shape).collect::<Result<_>>()?,
        })
    }

    /// What was calibrated on; none if plain weights were decomposed.
    #[must_use]
    pub fn calibration(&self) -> Option<PlannedCalibration> {
        let entry = self.document.calibration.as_ref()?;
        Some(PlannedCalibration {
            seed: entry.seed,
            source: entry.source.clone(),
            samples: *entry.samples.get_ref(),
            mirror: entry.mirror,
            held_out: entry.held_out,
            repair: entry.repair,
            preprocessing: entry.preprocessing.get_ref().clone(),
        })
    }

    /// A plan as the text of a file.
    pub(crate) fn text(model: &Model, plan: &Plan, with: &Circumstances<'_>) -> String {
        /// A value without a place in a file.
        fn unlocated<T>(value: T) -> Spanned<T> {
            Spanned::new(0..0, value)
        }
        let (ratio, rank_rate) = match plan.options.policy {
            RankPolicy::Ratio(ratio) => (Some(unlocated(ratio)), None),
            RankPolicy::Rate(rate) => (None, Some(unlocated(rate))),
        };
        let only = match plan.options.scheme {
            SchemeChoice::Auto => None,
            SchemeChoice::Only(form) => Some(form),
        };
        let pattern = |p: &Option<Regex>| p.as_ref().map(|p| unlocated(p.as_str().to_owned()));
        let options = OptionsEntry {
            scheme: unlocated(only.map_or("auto", |form| form.scheme.name()).to_owned()),
            split: only.and_then(|form| form.scheme.split()).map(unlocated),
            unfolding: only.map(|form| unlocated(form.unfolding.name().to_owned())),
            ratio,
            rank_rate,
            align: unlocated(plan.options.align),
            allow_more_macs: plan.options.allow_more_macs,
            unshare: plan.options.unshare,
            iterations: unlocated(plan.options.iterations),
            group_by: unlocated(
                match with.groups.group_by {
                    GroupBy::Role => "role",
                    GroupBy::Shape => "shape",
                }
                .to_owned(),
            ),
            protocol: with.groups.protocol.map(|Protocol::Paper| unlocated("paper".to_owned())),
            keep_bn: with.groups.keep_batch_norm,
            include: pattern(&with.groups.include),
            exclude: pattern(&with.groups.exclude),
            input_shape: with.groups.input_shapes.iter().map(|s| unlocated(s.to_string())).collect(),
        };
        let calibration = with.calibration.as_ref().map(|on| CalibrationEntry {
            source: on.source.clone(),
            seed: on.seed,
            sha256: with.samples.clone(),
            samples: unlocated(on.samples),
            mirror: on.mirror,
            held_out: on.held_out,
            repair: on.repair,
            preprocessing: unlocated(on.preprocessing.clone()),
        });
        let head = Head {
            version: VERSION,
            onnx_jmd: env!("CARGO_PKG_VERSION"),
            model: ModelEntry { sha256: model.digest() },
            options,
            calibration,
        };
        // Texts and numbers are always values of TOML.
        let head = HEADING.to_owned() + &toml::to_string(&head).unwrap_or_default();
        let mut text = String::new();
        for group in &plan.groups {
            text += &group_text(plan, group);
        }
        if !plan.kept.is_empty() {
            text += "\n# Left whole:\n";
        }
        for kept in &plan.kept {
            let _ = writeln!(text, "# {}: {}", flat(&kept.name), flat(&kept.reason));
        }
        let [options, samples] = with.made_by;
        let made = MadeEntry::stamp(options, samples, &head, &text);
        head + &made + &text
    }

    /// The scheme of a name.
    pub(super) fn scheme(&self, name: &Spanned<String>, split: f64) -> Result<Scheme> {
        let unknown = || match name.get_ref().as_str() {
            "tt" => self.wrong(name.span(), "tt is scheme \"separate\" with unfolding \"tucker\"".into()),
            other => self.wrong(name.span(), format!("no scheme '{other}'")),
        };
        Scheme::named(name.get_ref(), split).ok_or_else(unknown)
    }

    /// The unfolding of a name.
    pub(super) fn unfolding(&self, name: &Spanned<String>) -> Result<Unfolding> {
        let unknown = || self.wrong(name.span(), format!("no unfolding '{}'", name.get_ref()));
        Unfolding::named(name.get_ref()).ok_or_else(unknown)
    }

    /// What is wrong at a place of the file.
    pub(super) fn wrong(&self, place: Range<usize>, reason: String) -> Error {
        Error::Plan { path: self.path.clone(), line: line(&self.text, &place), reason }
    }
}

/// A group's table.
fn group_text(plan: &Plan, group: &GroupPlan) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut text = format!(
        "\n# {} parameters become {}; error predicted {:.4}\n[[group]]\n",
        group.parameters_before, group.parameters_after, group.predicted_error
    );
    let scheme = group.form.scheme;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "name = {}", quoted(&group.group));
    let _ = writeln!(text, "role = {}", quoted(&group.role));
    let _ = writeln!(text, "scheme = \"{}\"", scheme.name());
    let _ = writeln!(text, "unfolding = \"{}\"", group.form.unfolding.name());
    // Two ranks say how they are dealt.
    if let (Some(split), 1) = (scheme.split(), group.ranks.len()) {
        let _ = writeln!(text, "split = {}", toml::Value::from(split));
    }
    let _ = writeln!(text, "ranks = {:?}", group.ranks);
    let _ = writeln!(text, "basis = {}", group.analysis.width());
    text += "members = [\n";
    for conv in group.members.iter().map(|&m| &plan.convs[m]) {
        let (node, kernel, weights) = (quoted(&conv.name), conv.shape, weights_hash(conv));
        let _ = writeln!(text, "  {{ node = {node}, kernel = {kernel:?}, weights = \"{weights}\" }},");
    }
    text + "]\n"
}

/// A hash of what is decomposed and of the bias behind it.
pub(super) fn weights_hash(conv: &Conv) -> String {
    let mut hash = Sha256::new();
    let mut add = |values: &mut dyn Iterator<Item = f64>| {
        hash.update(values.flat_map(f64::to_le_bytes).collect::<Vec<u8>>());
    };
    add(&mut conv.kernel().iter().copied());
    add(&mut conv.effective_bias().into_iter().flatten());
    hex(&hash.finalize()[..HASH_BYTES])
}

/// The line that a place is on, counted from one.
fn line(text: &str, place: &Range<usize>) -> usize {
    1 + text.bytes().take(place.start).filter(|b| *b == b'\n').count()
}

/// Text on one line, of characters that may stand in a comment.
fn flat(text: &impl std::fmt::Display) -> String {
    let text = text.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace(char::is_control, "\u{fffd}")
}

impl std::fmt::Display for InputShape {
    /// As it is parsed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(usize::to_string).collect();
        match &self.name {
            Some(name) => write!(f, "{name}:{}", dims.join(",")),
            None => f.write_str(&dims.join(",")),
        }
    }
}
