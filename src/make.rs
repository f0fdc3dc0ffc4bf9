//! From a grouping to a plan and, unless it is a dry run, to factors: calibrated or not, decided now or before.

use crate::calibrate::{Cache, Calibration, HeldOut};
use crate::compare::Scorer;
use crate::error::{Error, Result};
use crate::group::Grouping;
use crate::onnx::Model;
use crate::options::Options;
use crate::picture::CurvePoint;
use crate::plan::{Calibrated, LEAST_RATIO, Plan, PlanOptions, Prospects, RankPolicy, Trials};
use crate::progress::Progress;
use crate::report::{AgreementRow, CalibrationRow};
use crate::rewrite::{Compiled, apply};
use crate::search::{Built, largest_ratio, scored_curve};
use crate::verify::too_large;
use ndarray::Array4;

/// A plan and, unless it is a dry run, what was made of it.
pub(crate) struct Made {
    pub(crate) plan: Plan,
    pub(crate) compiled: Option<Compiled>,
    pub(crate) calibration: Option<CalibrationRow>,
    /// What ratios keep on held-out samples.
    pub(crate) kept: Vec<AgreementRow>,
    /// What other ratios keep of the images' classes.
    pub(crate) curve: Vec<CurvePoint>,
    /// Hash of given samples, if anybody asks for it.
    pub(crate) samples: Option<String>,
    /// Hash of what was calibrated on.
    pub(crate) origin: Option<String>,
}

/// Where a plan comes from.
enum Source<'h> {
    /// Decided, here or in a file, with plans for the curve of a report.
    Decided(Plan, Vec<Plan>),
    /// The largest ratio that keeps all but a share of what the original does is searched for among all that could be done.
    Open(Prospects, f64, &'h HeldOut),
}

/// Calibrates if asked to, plans and decomposes. With a `scorer`, models for the report's curve are made and scored, too.
///
/// # Errors
/// Those of [`compile`](crate::compile()).
fn make(
    model: &Model,
    grouping: &Grouping,
    options: &Options,
    scorer: Option<&Scorer<'_>>,
    progress: &Progress<'_>,
) -> Result<Made> {
    if options.spares(model) {
        let reason = format!("{} (--calib drawn does so all the same)", too_large(options.whole()));
        return Err(Error::Unavailable { what: "the model".into(), reason });
    }
    let asked = match options.max_drop {
        // Every ratio from here on may be asked for.
        Some(_) => PlanOptions { policy: RankPolicy::Ratio(LEAST_RATIO), ..options.plan },
        None => options.plan,
    };
    // Refusals that need no calibration come before it.
    let calibrated = options.calibration.is_some();
    let decided = options.replay.as_ref().map(|replay| Ok((replay, replay.decisions(grouping, calibrated)?)));
    let decided = decided.transpose()?;
    if decided.is_none() {
        Plan::precheck(model, grouping, &asked, calibrated)?;
    }
    let curve: &[f64] = if scorer.is_some() { &options.curve } else { &[] };
    let Some(calibrate_on) = &options.calibration else {
        progress.stage("planning", "planning by the plain weights");
        let (plan, others) = match &decided {
            Some((replay, decisions)) => (Plan::decided(model, grouping, replay, decisions, None)?, Vec::new()),
            None => {
                let open = |options: &PlanOptions| Prospects::new(model, grouping, options, None);
                (open(&asked)?.plan(asked.policy)?, others(curve, &asked, &open)?)
            }
        };
        let build = |plan: Plan| -> Result<Built> {
            progress.stage("decomposing", &format!("decomposing {} groups", plan.groups.len()));
            let compiled = apply(model, &plan)?;
            Ok((plan, Some(compiled)))
        };
        let curve = scored_curve(others, &build, scorer, progress)?;
        let (plan, compiled) = if options.dry_run { (plan, None) } else { build(plan)? };
        return Ok(Made { plan, compiled, calibration: None, kept: Vec::new(), curve, samples: None, origin: None });
    };
    let mut calibration = Calibration::new(model, calibrate_on, &options.groups.input_shapes)?;
    calibration.assumed().into_iter().for_each(|line| progress.say(line));
    let origin = Some(calibration.origin(calibrate_on.images.seed())?);
    let held_out = if options.holds_out() { Some(HeldOut::new(model, &mut calibration)?) } else { None };
    // Drawn ones follow from their seed.
    let hashed = (options.plan_text || options.replay.is_some()) && calibrate_on.images.seed().is_none();
    let samples = if hashed { Some(calibration.digest()?) } else { None };
    let row = CalibrationRow {
        samples: calibration.samples(),
        source: calibrate_on.images.what(),
        mirrored: calibration.is_mirrored(),
    };
    progress.stage("observing", &format!("observing what each convolution sees of {}", row.source));
    let convs = &grouping.convs;
    let cache = calibrate_on.cache.as_ref().map(|folder| Cache::new(folder, model, convs, &calibration)).transpose()?;
    let observe = || calibration.observe(model, convs, progress);
    let observed = match &cache {
        Some(cache) => cache.observations(convs, progress, observe)?,
        None => observe()?,
    };
    let source = if let Some((replay, decisions)) = decided {
        progress.stage("planning", &format!("planning as {} says", replay.file.path().display()));
        let plan = Plan::decided(model, grouping, replay, &decisions, Some(observed.sights.clone()))?;
        Source::Decided(plan, Vec::new())
    } else {
        progress.stage("planning", "planning: how much each group moves the network's output");
        let watch = calibration.watch(model, &grouping.convs, observed.sights.clone(), progress)?;
        let sensitivity = |members: &[usize], kernels: &[Array4<f64>]| watch.moved(members, kernels);
        let trials = cache.as_ref().map_or_else(Trials::default, Cache::trials);
        let calibrated = Calibrated { sights: observed.sights.clone(), sensitivity: &sensitivity, trials: &trials };
        let open = |options: &PlanOptions| Prospects::new(model, grouping, options, Some(&calibrated));
        let prospects = open(&asked)?;
        let source = match options.max_drop.zip(held_out.as_ref()) {
            Some((drop, held_out)) => Source::Open(prospects, drop, held_out),
            None => {
                let plan = prospects.plan(asked.policy)?;
                // What was not chosen is not needed any more, and takes memory.
                drop(prospects);
                Source::Decided(plan, others(curve, &asked, &open)?)
            }
        };
        cache.iter().for_each(|cache| cache.keep_trials(&trials, progress));
        source
    };
    let build = |plan: Plan| -> Result<Built> {
        if options.dry_run && options.max_drop.is_none() {
            return Ok((plan, None));
        }
        progress.stage("decomposing", &format!("decomposing {} groups", plan.groups.len()));
        let mut compiled = apply(model, &plan)?;
        if options.repair {
            progress.stage("repairing", "refitting layer by layer");
            compiled = calibration.repair(model, &plan, &observed, compiled, progress)?;
        }
        Ok((plan, Some(compiled)))
    };
    let (kept, curve, (plan, compiled)) = match source {
        Source::Open(prospects, drop, held_out) => {
            let build = |policy: RankPolicy| build(prospects.plan(policy)?);
            let (kept, built) = largest_ratio(drop, held_out, prospects.largest_ratio(), &build, progress)?;
            (kept, Vec::new(), built)
        }
        Source::Decided(plan, others) => (Vec::new(), scored_curve(others, &build, scorer, progress)?, build(plan)?),
    };
    let compiled = compiled.filter(|_| !options.dry_run);
    Ok(Made { plan, compiled, calibration: Some(row), kept, curve, samples, origin })
}

/// What [`make`] gives, by plain weights if nobody asked for the calibration that fails; why, if so.
pub(crate) fn made(
    model: &Model,
    grouping: &Grouping,
    options: &Options,
    scorer: Option<&Scorer<'_>>,
    progress: &Progress<'_>,
) -> (Result<Made>, Option<String>) {
    match make(model, grouping, options, scorer, progress) {
        Err(Error::NotDrawable { reason } | Error::Unavailable { reason, .. }) if options.gives_way() => {
            progress.say(&format!("not calibrated, the plain weights decide: {reason}"));
            let note = format!("not calibrated, the plain weights decided: {reason}");
            (make(model, grouping, &options.by_weights(), scorer, progress), Some(note))
        }
        // Whoever asked for it may take it back.
        Err(error) if options.calibration.is_some() => (Err(uncalibrated(error)), None),
        other => (other, None),
    }
}

/// What calibration failed for, and how to do without.
fn uncalibrated(error: Error) -> Error {
    let advised = |reason: String| format!("{reason} (to let the plain weights decide: --calib none)");
    match error {
        Error::NotDrawable { reason } => Error::NotDrawable { reason: advised(reason) },
        Error::Unavailable { what, reason } => Error::Unavailable { what, reason: advised(reason) },
        other => other,
    }
}

/// What would be done at other ratios, each as if it alone had been asked for; those out of reach are left out.
fn others(ratios: &[f64], asked: &PlanOptions, open: &dyn Fn(&PlanOptions) -> Result<Prospects>) -> Result<Vec<Plan>> {
    let plan = |&ratio: &f64| {
        let policy = RankPolicy::Ratio(ratio);
        match open(&PlanOptions { policy, ..*asked }).and_then(|prospects| prospects.plan(policy)) {
            Err(Error::NothingToCompress(_) | Error::Unreachable { .. }) => None,
            other => Some(other),
        }
    };
    ratios.iter().filter(|&&ratio| ratio >= LEAST_RATIO).filter_map(plan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::CalibrationInputs;
    use crate::group::{GroupOptions, find_groups};
    use crate::images::{Images, Preprocessing};
    use std::sync::Arc;

    #[test]
    fn calibrated_bases_computed_twice_give_the_same_bytes() {
        let model = Model::open("fixtures/fashion-resnet.onnx").expect("it is in the repository");
        let grouping = find_groups(&model, &GroupOptions::default()).expect("it is sound");
        let images = Images::drawn(1, 8, &Preprocessing::default()).expect("they can be drawn");
        let calibration = CalibrationInputs { images, most: 8, mirror: false, cache: None, optional: false };
        let plan = PlanOptions { policy: RankPolicy::Ratio(4.0), ..PlanOptions::default() };
        let options = Options { plan, calibration: Some(calibration), repair: false, ..Options::default() };
        let progress = Progress::new(&|_| ());
        let plan = make(&model, &grouping, &options, None, &progress).expect("the ratio is in reach").plan;
        assert!(plan.sights.is_some());
        let mut lean = plan.clone();
        for group in &mut lean.groups {
            group.analysis = Arc::new(Arc::unwrap_or_clone(group.analysis.clone()).without_vectors());
        }
        let written = |plan: &Plan| apply(&model, plan).expect("it converges").model.to_bytes();
        assert_eq!(written(&plan), written(&lean));
    }
}
