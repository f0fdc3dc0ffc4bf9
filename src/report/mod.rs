//! What was decided, saved and measured: one value, printed as tables or as JSON.

mod text;
mod tuning;

pub use tuning::{Tuning, TuningRow, TuningStep};

pub(crate) use text::percent;
pub(crate) use text::{blocks, channels, left_alone, table, thousands};
#[cfg(feature = "verify")]
pub(crate) use text::{kernels, ranks};

use crate::group::{Grouping, RepeatedBlock, Skipped};
use crate::onnx::{Conv, Graph, Model, SkipReason};
use crate::plan::{Alternative, Kept, Plan, PlanOptions, RankPolicy};
use crate::rewrite::{Compiled, shares};
use serde::{Deserialize, Serialize};

/// Version of the JSON layout, that of `tools/schema/report-1.schema.json`.
///
/// It grows, and with it comes a schema beside the old one, when a field goes, changes its meaning or its type, or takes values that it
/// could not take before. A new field is no new version: it is `#[serde(default)]` here, and not `required` in the schema, as
/// earlier reports of the version lack it. `tests/schema.rs` holds both to reports kept from earlier days.
pub const REPORT_VERSION: u32 = 1;

/// The facts of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub report_version: u32,
    /// Version of onnx-jmd.
    pub version: String,
    /// Scheme asked for.
    pub scheme: String,
    /// Ratio asked for.
    pub ratio: Option<f64>,
    /// Rank rate asked for.
    pub rank_rate: Option<f64>,
    /// The plan that was replayed.
    pub plan: Option<String>,
    /// What was calibrated on; none if the plain weights were decomposed.
    pub calibration: Option<CalibrationRow>,
    /// What ratios keep on held-out calibration samples, where a largest one was searched for.
    pub agreement_curve: Vec<AgreementRow>,
    /// True if nothing was done beyond the plan.
    pub dry_run: bool,
    /// Repeated blocks found.
    pub blocks: Vec<BlockRow>,
    /// What is decomposed.
    pub groups: Vec<GroupRow>,
    /// Sizes before and after.
    pub totals: Totals,
    /// Convolutions left alone.
    pub left_alone: Vec<LeftRow>,
    /// What was not decomposed and yet given other parameters: convolutions their bias, fully connected layers at the outputs all.
    pub refitted: Vec<String>,
    /// Rewrite and approximation errors.
    pub verification: Option<Verification>,
    /// Top-1 on the user's images.
    pub score: Option<Score>,
    /// What tuning did, where it was asked for.
    #[serde(default)]
    pub tuning: Option<Tuning>,
    /// Things to know that stop nothing.
    pub notes: Vec<String>,
    /// Seconds that each stage took; left out of the tables unless [`Report::with_timings`].
    pub timings: Vec<(String, f64)>,
    #[serde(skip)]
    show_timings: bool,
}

/// What was calibrated on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CalibrationRow {
    /// How many samples.
    pub samples: usize,
    /// Where they come from.
    pub source: String,
    /// Whether the mirror image of each was taken too.
    pub mirrored: bool,
}

/// What one ratio keeps on samples that it was not calibrated on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AgreementRow {
    /// The ratio asked for.
    pub ratio: f64,
    /// Share of equal top-1 classes or, of other outputs, of their energy that is not error.
    pub kept: f64,
}

/// A repeated block.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlockRow {
    /// Its operators.
    pub structure: String,
    /// The nodes of each occurrence.
    pub occurrences: Vec<Vec<String>>,
}

/// Convolutions decomposed together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupRow {
    /// Name of the group.
    pub group: String,
    /// The neighbourhood that defines it.
    pub role: String,
    /// Node names.
    pub members: Vec<String>,
    /// Kernel shapes `[out, in, kh, kw]`, one a member.
    pub kernels: Vec<[usize; 4]>,
    /// One a member, ONNX's attribute `group`; left out where no member is a grouped convolution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channel_groups: Vec<usize>,
    /// Scheme used.
    pub scheme: String,
    /// Whether a factor is stored once for all members.
    pub shared: bool,
    /// One rank a chain.
    pub ranks: Vec<usize>,
    /// Kernel weights before.
    pub parameters_before: u64,
    /// Factor elements after.
    pub parameters_after: u64,
    /// Multiply-accumulates before, where sizes are known.
    pub macs_before: Option<u64>,
    /// Multiply-accumulates after.
    pub macs_after: Option<u64>,
    /// `‖W − Ŵ‖ / ‖W‖` predicted from the spectra.
    pub predicted_error: f64,
    /// `‖W − Ŵ‖ / ‖W‖` of the written factors.
    pub reconstruction_error: Option<f64>,
    /// Other forms for the same members at no more parameters, least effect first.
    pub alternatives: Vec<Alternative>,
}

impl GroupRow {
    /// The number of its group, by which rows are sorted; those of residual streams and of names given by hand come last.
    pub(crate) fn number(&self) -> usize {
        number(&self.group)
    }
}

/// Facts as JSON, ending in a newline.
pub(crate) fn json(facts: &impl Serialize) -> String {
    // Strings, numbers and lists cannot fail to serialise.
    serde_json::to_string_pretty(facts).unwrap_or_default() + "\n"
}

/// Of each convolution how many it is beside each other; nothing if each is one.
pub(crate) fn channel_groups<'c>(convs: impl Iterator<Item = &'c Conv>) -> Vec<usize> {
    let each: Vec<usize> = convs.map(Conv::channel_groups).collect();
    if each.iter().all(|&g| g == 1) { Vec::new() } else { each }
}

/// The number in a group's name.
pub(crate) fn number(group: &str) -> usize {
    group.trim_start_matches('g').parse().unwrap_or(usize::MAX)
}

/// One quantity before and after.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Change {
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
    /// Before ÷ after.
    pub ratio: f64,
}

impl Change {
    pub(crate) fn new(before: u64, after: u64) -> Self {
        let ratio = if before == after { 1.0 } else { before as f64 / after.max(1) as f64 };
        Self { before, after, ratio }
    }
}

/// Sizes of the whole model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Totals {
    /// Floating-point parameters, each stored tensor once.
    pub parameters: Change,
    /// Weights of convolutions and fully connected layers, with the latter's biases: the paper's compression factor, in which
    /// batch norms do not count.
    pub weights: Change,
    /// Multiply-accumulates of the convolutions; none if a size is unknown.
    pub macs: Option<Change>,
    /// Bytes of the file; none for a dry run.
    pub file_bytes: Option<Change>,
}

/// A convolution left alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeftRow {
    /// Node name.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl BlockRow {
    pub(crate) fn all(grouping: &Grouping) -> Vec<Self> {
        let row = |b: &RepeatedBlock| Self { structure: b.structure.clone(), occurrences: b.occurrences.clone() };
        grouping.blocks.iter().map(row).collect()
    }
}

impl LeftRow {
    pub(crate) fn skipped(skipped: &Skipped) -> Self {
        Self { name: skipped.name.clone(), reason: skipped.reason.to_string() }
    }
}

/// What running the models showed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verification {
    /// Seeded inputs drawn.
    pub inputs: usize,
    /// What was judged; none for the models as a whole.
    pub parts: Option<Parts>,
    /// Written model against the original with kernels replaced by their reconstruction: largest difference over
    /// the largest output.
    pub rewrite_error: f64,
    /// Bound that the rewrite error had to meet.
    pub rewrite_tolerance: f64,
    /// Written model against the original: their outputs or, where they were not run as a whole, those of each convolution by itself
    /// (see [`Parts::whole_difference`]).
    pub approximation: Approximation,
}

/// What was judged of models that tract cannot run as a whole, or that round what they compute: each decomposed convolution by
/// itself, on inputs of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// Convolutions that were run.
    pub checked: usize,
    /// Those that were not.
    pub unchecked: Vec<String>,
    /// Why it was not the models as a whole.
    pub reason: String,
    /// Where they were run as a whole all the same: how far the written model is from the original with kernels replaced by their
    /// reconstruction, over the largest output. Then the approximation is theirs, and `rewrite_error` also tells how far they are apart
    /// before the first operators that round. Infinite is none in JSON.
    #[serde(default)]
    pub whole_difference: Option<f64>,
}

/// How far the written model is from the original, over all inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Approximation {
    /// `‖y − ŷ‖ / ‖y‖`.
    pub relative_error: f64,
    /// `20·log₁₀(‖y‖ / ‖y − ŷ‖)`; none if the outputs are equal.
    pub snr_db: Option<f64>,
    /// `⟨y, ŷ⟩ / (‖y‖·‖ŷ‖)`.
    pub cosine: f64,
    /// Share of inputs with the same largest class score, where the output looks like class scores.
    pub agreement: Option<f64>,
    /// Values that are finite in one and not in the other; the measures above leave them out.
    pub broken: u64,
}

/// Classification of the user's images by the original and the written model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Images.
    pub images: usize,
    /// Share of equal top-1 classes.
    pub agreement: f64,
    /// Share of right classes, original; none without labels.
    pub top1_before: Option<f64>,
    /// Share of right classes, written model.
    pub top1_after: Option<f64>,
}

/// Multiply-accumulates of a convolution, by its input's and output's sizes.
type Macs<'f> = dyn Fn(&Conv, ([usize; 2], [usize; 2])) -> u64 + 'f;

/// The sum of numbers that a file may make as large as it likes; none if one is unknown.
pub(crate) fn total(mut each: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    each.try_fold(0u64, |sum, n| Some(sum.saturating_add(n?)))
}

impl Report {
    /// Collects what a plan, and what was made from it, says. Without `compiled` it is a dry run.
    #[must_use]
    pub fn new(model: &Model, grouping: &Grouping, plan: &Plan, compiled: Option<&Compiled>) -> Self {
        let mut groups = Vec::new();
        for (index, group) in plan.groups.iter().enumerate() {
            let convs = || group.members.iter().map(|&m| &plan.convs[m]);
            let chains = group.form.chains();
            let macs = |f: &Macs<'_>| {
                let known = |e: [Option<usize>; 2]| Some([e[0]?, e[1]?]);
                let each = convs().map(|c| Some(f(c, (known(c.input_extent)?, known(c.output_extent)?))));
                total(each)
            };
            groups.push(GroupRow {
                group: group.group.clone(),
                role: group.role.clone(),
                members: convs().map(|c| c.name.clone()).collect(),
                kernels: convs().map(|c| c.shape).collect(),
                channel_groups: channel_groups(convs()),
                scheme: group.form.to_string(),
                shared: shares(group),
                ranks: group.ranks.clone(),
                parameters_before: group.parameters_before,
                parameters_after: group.parameters_after,
                macs_before: macs(&Conv::macs),
                macs_after: macs(&|c, sizes| c.macs_of(&chains, &group.ranks, sizes)),
                predicted_error: group.predicted_error,
                reconstruction_error: compiled.map(|c| c.errors[index]),
                alternatives: group.alternatives.clone(),
            });
        }
        let whole = total(grouping.convs.iter().map(Conv::known_macs));
        let skipped = total(grouping.skipped.iter().map(|s| s.macs));
        let removed = total(groups.iter().map(|g| g.macs_before));
        let added = total(groups.iter().map(|g| g.macs_after));
        let macs = || {
            let before = whole?.saturating_add(skipped?);
            Some(Change::new(before, before.saturating_sub(removed?).saturating_add(added?)))
        };
        let skipped = grouping.skipped.iter().map(LeftRow::skipped);
        let kept = plan.kept.iter().map(|k| LeftRow { name: k.name.clone(), reason: k.reason.clone() });
        let (ratio, rank_rate) = match plan.options.policy {
            RankPolicy::Ratio(r) => (Some(r), None),
            RankPolicy::Rate(r) => (None, Some(r)),
        };
        let weights = Graph::new(model).map_or(0, |graph| graph.layer_weights());
        let (weights_removed, weights_added) =
            groups.iter().fold((0, 0), |sum, g| (sum.0 + g.parameters_before, sum.1 + g.parameters_after));
        let parameters_after = compiled.map_or(plan.parameters_after, |c| c.model.parameters());
        Self {
            report_version: REPORT_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            scheme: plan.options.scheme.to_string(),
            ratio,
            rank_rate,
            plan: None,
            calibration: None,
            agreement_curve: Vec::new(),
            dry_run: compiled.is_none(),
            blocks: BlockRow::all(grouping),
            groups,
            totals: Totals {
                parameters: Change::new(plan.parameters_before, parameters_after),
                weights: Change::new(weights, (weights + weights_added).saturating_sub(weights_removed)),
                macs: macs(),
                file_bytes: compiled.map(|c| Change::new(model.file_bytes(), c.model.file_bytes())),
            },
            left_alone: skipped.chain(kept).collect(),
            refitted: compiled.map_or(Vec::new(), |c| c.refitted(plan)),
            verification: None,
            score: None,
            tuning: None,
            notes: Vec::new(),
            timings: Vec::new(),
            show_timings: false,
        }
    }

    /// What is known of a model in which there is nothing to compress.
    #[must_use]
    pub fn untouched(model: &Model, grouping: &Grouping, options: &PlanOptions) -> Self {
        let kept =
            grouping.convs.iter().map(|c| Kept { name: c.name.clone(), reason: SkipReason::NeverPays.to_string() });
        let parameters = model.parameters();
        let plan = Plan {
            options: *options,
            convs: grouping.convs.clone(),
            groups: Vec::new(),
            kept: kept.collect(),
            parameters_before: parameters,
            parameters_after: parameters,
            sights: None,
        };
        Self::new(model, grouping, &plan, None)
    }

    /// The same, with how long each stage took in its tables.
    #[must_use]
    pub fn with_timings(self) -> Self {
        Self { show_timings: true, ..self }
    }

    /// The report as JSON, ending in a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        json(self)
    }
}
