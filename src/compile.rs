//! The conductor: one line a stage.

use crate::compare::{Scorer, draw};
#[cfg(feature = "tune")]
use crate::distil::Taught;
use crate::error::{Error, Result};
use crate::group::{Grouping, find_groups};
use crate::images::{Images, Samples};
use crate::make::made;
use crate::onnx::Model;
use crate::options::Options;
use crate::origin::{GAVE_WAY, Origin, Tuition};
use crate::picture::{CurvePoint, Diagram, Pictures, Spectrum, trace};
use crate::plan::{Circumstances, Plan, PlanFile};
use crate::progress::Progress;
use crate::report::{Change, Report, Tuning, Verification};
#[cfg(feature = "tune")]
use crate::rewrite::tuned_errors;
use crate::rewrite::{Compiled, narrowed};
use crate::runtime::{Feed, inputs as fixed, shapes as named};
use crate::steps::Start;
#[cfg(feature = "tune")]
use crate::tune::{Tuned, tuned};
use crate::verify::{too_large, verify};
use std::collections::BTreeMap;

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Compilation {
    /// The model to write; none for a dry run.
    pub model: Option<Model>,
    /// The facts.
    pub report: Report,
    /// The decisions as the text of a file, if that was asked for and there were any.
    pub plan: Option<String>,
    /// What a report in pictures shows, if that was asked for; empty where nothing was done.
    pub pictures: Option<Pictures>,
    /// Why there was nothing to compress, if so: the model is then the input itself.
    pub unchanged: Option<String>,
}

/// Finds groups, calibrates, plans, decomposes, repairs, rewrites, verifies and scores. `progress` hears of each stage.
///
/// # Errors
/// Those of [`Plan::build`], [`apply`](crate::apply), [`verify`] and [`score`](crate::score), and
/// [`Error::Gate`]; of a replay [`Error::Plan`].
pub fn compile(original: &Model, options: &Options, progress: &(dyn Fn(&str) + Sync)) -> Result<Compilation> {
    let progress = Progress::new(progress);
    options.validate(original)?;
    original.check_numbers()?;
    // Runs are in float32, whatever the kernels are stored in.
    let wide = if options.is_lean(original) { original.mostly_in_f32() } else { original.in_f32() };
    let model = wide.as_ref().unwrap_or(original);
    progress.stage("matching", "finding repeated convolutions");
    let full = original.in_full();
    let grouping = find_groups(full.as_ref().unwrap_or(model), &options.groups)?;
    let (convs, groups, skipped) = (grouping.convs.len(), grouping.groups.len(), grouping.skipped.len());
    progress.say(&format!("{convs} convolutions in {groups} groups, {skipped} skipped"));
    let shapes = &options.groups.input_shapes;
    // Before any work, as they may not fit.
    let fit = |images: &Images| images.fit(model, &named(&fixed(model, shapes)?), None);
    let scored = options.images.as_ref().map(fit).transpose()?;
    scored.iter().filter_map(|samples| samples.assumed()).for_each(|line| progress.say(line));
    let unchanged = |reason| {
        let report = Report::untouched(model, &grouping, &options.plan);
        let pictures = options.pictures.then(Pictures::default);
        Ok(Compilation { model: Some(original.clone()), report, plan: None, pictures, unchanged: Some(reason) })
    };
    let scorer = match &scored {
        Some(samples) if !options.dry_run => {
            progress.stage("classifying", &format!("classifying {} images", samples.len()));
            Some(Scorer::new(model, samples, shapes)?)
        }
        _ => None,
    };
    let tuition = Tuition::of(options)?;
    let start = match Start::new(original, model, &grouping, options, &progress) {
        Err(Error::NothingToCompress(reason)) => return unchanged(reason),
        other => other?,
    };
    let (whole, asked) = (model, options);
    let (model, grouping, options): (&Model, &Grouping, &Options) = (&start.model, &start.grouping, &start.options);
    let (made, uncalibrated) = made(model, grouping, options, scorer.as_ref(), &progress);
    let by_weights = [options.by_weights(), asked.by_weights()];
    let [options, asked] = if uncalibrated.is_some() { by_weights.each_ref() } else { [options, asked] };
    let mut made = match made {
        Err(Error::NothingToCompress(reason)) => return unchanged(reason),
        other => other?,
    };
    let stepped = !start.earlier.is_empty();
    if stepped {
        // Ratios speak of the model as it was given.
        (made.plan.parameters_before, made.plan.options.policy) = (whole.parameters(), asked.plan.policy);
    }
    let (written, compiled) = typed(original, wide.as_ref(), &made.plan, made.compiled)?;
    let verified = verification(model, &made.plan, compiled.as_ref(), options, &progress)?;
    let tuning: Option<Tuning> = None;
    #[cfg(feature = "tune")]
    let (mut verified, mut written, mut compiled, mut tuning) = (verified, written, compiled, tuning);
    #[cfg(feature = "tune")]
    if let (Some(smaller), Some(compiled)) = (&mut written, &mut compiled)
        && let Some((done, taught)) = taught(whole, smaller, &compiled.model, options, &progress)?
    {
        (*smaller, compiled.model, verified) = (taught.written, taught.wide, Some(taught.verification));
        compiled.errors = tuned_errors(model, &made.plan, compiled, &compiled.model)?;
        tuning = Some(Tuning { earlier: start.earlier, ..done.tuning });
    }
    let samples = made.origin.or_else(|| uncalibrated.as_ref().map(|_| GAVE_WAY.into()));
    let origin = Origin::of(original, asked, samples, scored.as_ref(), &tuition)?;
    let written = written.map(|written| origin.stamp(&written, &made.plan));
    let mut report = Report::new(whole, grouping, &made.plan, compiled.as_ref());
    report.totals.file_bytes = written.as_ref().map(|w| Change::new(original.file_bytes(), w.file_bytes()));
    report.calibration = made.calibration;
    report.agreement_curve = made.kept;
    if let Some(replay) = &options.replay {
        report.plan = Some(replay.file.path().display().to_string());
        report.notes = replay.notes(original, made.samples.as_deref());
    }
    report.notes.extend(stepped.then(|| STEPPED.to_owned()));
    report.notes.extend(start.note.into_iter().chain(uncalibrated).chain(circumstances(
        original,
        wide.as_ref(),
        &made.plan,
    )));
    let plan = options.plan_text.then(|| plan_text(original, options, &made.plan, made.samples, &origin));
    let mut pictures = options.pictures.then(|| Pictures {
        spectra: made.plan.groups.iter().map(Spectrum::of).collect(),
        curve: made.curve,
        ..Pictures::default()
    });
    let Some(compiled) = compiled else {
        report.timings = progress.timings();
        return Ok(Compilation { model: None, report, plan, pictures, unchanged: None });
    };
    (report.verification, report.tuning) = (verified, tuning);
    if let Some(scorer) = &scorer {
        progress.stage("classifying", "classifying the images again");
        report.score = Some(scorer.score(&compiled.model)?);
    }
    if let Some(pictures) = &mut pictures {
        progress.stage("drawing", "following the error through the network");
        illustrate(pictures, (model, grouping, &made.plan, &compiled), options, scored.as_ref(), &mut report);
    }
    report.timings = progress.timings();
    remark(original, written.as_ref(), options, &mut report);
    options.gate(&report)?;
    Ok(Compilation { model: written, report, plan, pictures, unchanged: None })
}

/// What running the models shows of the one to write, if they are to be run.
fn verification(
    model: &Model,
    plan: &Plan,
    compiled: Option<&Compiled>,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Option<Verification>> {
    let Some((compiled, how)) = compiled.zip(options.verify.as_ref()) else { return Ok(None) };
    progress.stage("verifying", "verifying with tract");
    verify(model, plan, compiled, how).map(Some).map_err(|error| match error {
        Error::Unavailable { what, reason } => {
            Error::Unavailable { what, reason: format!("{reason} (to compress without proof: --no-verify)") }
        }
        other => other,
    })
}

/// What a model that was made smaller in steps is held against.
const STEPPED: &str = "made smaller in steps: errors of kernels, and the error followed through the network, are relative to what the \
    last step began with, of which other ratios of the curve are made, too";

/// The decisions as the text of a file.
fn plan_text(original: &Model, options: &Options, plan: &Plan, samples: Option<String>, origin: &Origin) -> String {
    let with = Circumstances {
        groups: &options.groups,
        calibration: options.planned_calibration(),
        samples,
        made_by: [&origin.asked, &origin.samples],
    };
    PlanFile::text(original, plan, &with)
}

/// The model to write and, in float32, the one that is run.
fn typed(
    original: &Model,
    wide: Option<&Model>,
    plan: &Plan,
    compiled: Option<Compiled>,
) -> Result<(Option<Model>, Option<Compiled>)> {
    Ok(match (compiled, wide, original.kernel_precision()) {
        (Some(compiled), Some(wide), Some(precision)) => {
            let (written, compiled) = narrowed(original, wide, plan, compiled, precision)?;
            (Some(written), Some(compiled))
        }
        (compiled, ..) => (compiled.as_ref().map(|c| c.model.clone()), compiled),
    })
}

/// Fills in the pictures what follows from running the models.
fn illustrate(
    pictures: &mut Pictures,
    (model, grouping, plan, compiled): (&Model, &Grouping, &Plan, &Compiled),
    options: &Options,
    images: Option<&Samples>,
    report: &mut Report,
) {
    pictures.diagrams = Diagram::all(model, grouping, plan, compiled);
    let followed = traced(options, model, images).and_then(|(feeds, what)| {
        Ok((trace(model, plan, &compiled.model, &feeds, &options.groups.input_shapes)?, what))
    });
    match followed {
        Ok((rows, what)) => (pictures.trace, pictures.traced) = (rows, what),
        // The page is no less without it.
        Err(reason) => report.notes.push(format!("the error was not followed through the network: {reason}")),
    }
    let ratio = report.totals.parameters.ratio;
    pictures.curve.extend(report.score.map(|score| CurvePoint { ratio, score }));
    pictures.curve.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
}

/// The smaller model after its tuning, if that was asked for.
#[cfg(feature = "tune")]
fn taught(
    model: &Model,
    written: &Model,
    smaller: &Model,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Option<(Tuned, Taught)>> {
    let Some((tutoring, how)) = options.tuning.as_ref().zip(options.verify.as_ref()) else { return Ok(None) };
    progress.stage("tuning", "tuning: the original teaches what was decomposed");
    let shapes = &options.groups.input_shapes;
    let done = tuned(model, smaller, &tutoring.images, shapes, &tutoring.options, progress)?;
    progress.stage("verifying", "verifying with tract again");
    let taught = Taught::new(written, model, &done, how)?;
    Ok(Some((done, taught)))
}

/// Which kernels several convolutions read.
fn tied(plan: &Plan) -> Option<String> {
    let members = plan.groups.iter().flat_map(|g| &g.members).map(|&m| &plan.convs[m]).filter(|c| !c.twins.is_empty());
    let each = members.map(|c| c.all().map(|t| t.name.as_str()).collect::<Vec<_>>().join(" and "));
    let each: Vec<String> = each.collect();
    (!each.is_empty()).then(|| {
        format!("one kernel before and one chain of factors after, fitted to what the first sees: {}", each.join("; "))
    })
}

/// Which kernels are stored in fewer bits than they are read in, and so are their factors.
fn narrow(plan: &Plan) -> Option<String> {
    let mut stored: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for conv in plan.groups.iter().flat_map(|g| &g.members).map(|&m| &plan.convs[m]) {
        stored.entry(conv.storage.name().unwrap_or_default()).or_default().push(&conv.name);
    }
    let told = stored.iter().filter(|(name, _)| !name.is_empty());
    let told: Vec<String> = told.map(|(name, convs)| format!("{name} {}", convs.join(", "))).collect();
    (!told.is_empty()).then(|| {
        format!("factors are stored as their kernels were, rounded before all that is told: {}", told.join("; "))
    })
}

/// That the models were run in another type than they are stored in.
fn widened(original: &Model, wide: Option<&Model>) -> Option<String> {
    let name = wide.and_then(|_| original.kernel_precision())?.data_type().as_str_name();
    Some(format!("kernels are {name}: the factors are written so, and the models were run in FLOAT"))
}

/// Which operators were others in the models that tract ran.
fn copied(model: &Model) -> Option<String> {
    let (_, rewritten) = model.legalised(&[]).filter(|copy| !copy.1.is_empty())?;
    let names = rewritten.into_iter().collect::<Vec<_>>().join(", ");
    Some(format!("tract ran an equivalent copy of the models, with other operators for {names}"))
}

/// What a reader should know of how the result came about.
fn circumstances(original: &Model, wide: Option<&Model>, plan: &Plan) -> impl Iterator<Item = String> {
    let notes = [
        inlined(original),
        blind(plan),
        tied(plan),
        narrow(plan),
        copied(wide.unwrap_or(original)),
        widened(original, wide),
    ];
    notes.into_iter().flatten()
}

/// Which functions the output no longer has.
fn inlined(original: &Model) -> Option<String> {
    let names = original.inlined().join(", ");
    (!names.is_empty()).then(|| {
        format!("local functions stand in the place of their calls, as they hold layers or make their kernels: {names}")
    })
}

/// Which layers were decomposed by their plain weights in spite of samples.
fn blind(plan: &Plan) -> Option<String> {
    let sights = plan.sights.as_ref()?;
    let blind = plan.groups.iter().flat_map(|g| &g.members).filter(|&&m| sights[m].is_blind());
    let names: Vec<&str> = blind.map(|&m| plan.convs[m].name.as_str()).collect();
    let note =
        || format!("decomposed by plain weights, as they read more values than the samples tell: {}", names.join(", "));
    (!names.is_empty()).then(note)
}

/// What a reader of the report should know of the result.
fn remark(original: &Model, written: Option<&Model>, options: &Options, report: &mut Report) {
    if written.is_some_and(|written| original.loses_fields(written)) {
        let note = "the input holds fields that this version of the format does not have; those in what was replaced are not in the output";
        report.notes.push(note.into());
    }
    let larger = report.groups.iter().filter(|g| g.parameters_after > g.parameters_before);
    let larger: Vec<&str> = larger.map(|g| g.group.as_str()).collect();
    if !larger.is_empty() {
        report.notes.push(format!("by the plan, groups take more parameters than they had: {}", larger.join(", ")));
    }
    let ratio = report.totals.parameters.ratio;
    if let Some(asked) = report.ratio.filter(|asked| options.replay.is_some() && (ratio / asked - 1.0).abs() > 0.05) {
        report.notes.push(format!("by the plan the ratio is {ratio:.2}, not the {asked:.2} that its options speak of"));
    }
    let decided_now = || options.replay.is_none();
    if let Some(asked) = report.ratio.filter(|asked| report.totals.parameters.ratio > 1.01 * asked && decided_now()) {
        report.notes.push(format!(
            "the ratio is {:.2}, more than the {asked:.2} asked for: the next larger step of any group would be too large, take \
             more multiply-accumulates than the original or remove no more error",
            report.totals.parameters.ratio
        ));
    }
    if let Some(change) = report.totals.file_bytes.filter(|c| c.after > c.before) {
        report.notes.push(format!("the file grew by {} bytes of node names", change.after - change.before));
    }
}

/// Inputs on which the error is followed through the network.
const TRACED: usize = 8;

/// Some inputs on which the error is followed, and what they are: of the images, of what was calibrated on, or drawn as for
/// verification.
fn traced(options: &Options, model: &Model, images: Option<&Samples>) -> Result<(Vec<Feed>, String)> {
    if options.is_large(model) {
        return Err(Error::Unavailable { what: "the model".into(), reason: too_large(options.whole()) });
    }
    let few = |samples: &Samples| samples.feeds(0..samples.len().min(TRACED));
    let inputs = fixed(model, &options.groups.input_shapes)?;
    Ok(match (images, &options.calibration) {
        (Some(images), _) => (few(images)?, "the first images".into()),
        (None, Some(on)) => {
            (few(&on.images.fit(model, &named(&inputs), Some(TRACED))?)?, "the first calibration samples".into())
        }
        (None, None) => (draw(&inputs, TRACED, options.verify.as_ref().map_or(0, |v| v.seed)), "seeded noise".into()),
    })
}
