//! What is to be done, decided and priced, with nothing done yet.

mod unit;

pub(crate) use unit::{Calibrated, Members};
use unit::{Effect, Unit, units};

use crate::error::{Error, Result};
use crate::factor::{Analysis, Moment, Scheme};
use crate::group::Grouping;
use crate::onnx::{Conv, Model};
use crate::ranks::{Curve, allocate};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How ranks are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankPolicy {
    /// The model is to have this many times fewer floating-point parameters.
    Ratio(f64),
    /// The paper's: rank `⌊rate·out⌋` for kernels larger than 1×1 and `⌊rate·min(in, out)⌋` for 1×1, and for joint
    /// schemes the rank that spends the parameters which separate decomposition would.
    Rate(f64),
}

/// What to decide by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanOptions {
    /// What the members of a group share.
    pub scheme: Scheme,
    /// How ranks are chosen.
    pub policy: RankPolicy,
    /// Turns between the two chains of [`Scheme::BothShared`].
    pub iterations: usize,
    /// Allow ranks at which a convolution costs more multiply-accumulates than before.
    pub allow_more_macs: bool,
}

impl Default for PlanOptions {
    /// [`Scheme::LeftShared`] at ratio 2, thirty turns (the paper's K), never more multiply-accumulates.
    fn default() -> Self {
        Self { scheme: Scheme::LeftShared, policy: RankPolicy::Ratio(2.0), iterations: 30, allow_more_macs: false }
    }
}

/// Convolutions that are decomposed together, and how.
#[derive(Debug, Clone)]
pub struct GroupPlan {
    /// Name of the [`Group`](crate::Group) they come from.
    pub group: String,
    /// Their common neighbourhood.
    pub role: String,
    /// Positions in [`Plan::convs`].
    pub members: Vec<usize>,
    /// The scheme used: a group of one is always [`Scheme::Separate`].
    pub scheme: Scheme,
    /// One rank a chain.
    pub ranks: Vec<usize>,
    /// Kernel weights before.
    pub parameters_before: u64,
    /// Stored elements of the factors.
    pub parameters_after: u64,
    /// Relative reconstruction error `‖W − Ŵ‖ / ‖W‖` that the spectra predict.
    pub predicted_error: f64,
    pub(crate) analysis: Analysis,
}

/// A convolution that could be decomposed and is better left whole.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The node's name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The decision for a whole model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was decided by.
    pub options: PlanOptions,
    /// The convolutions it speaks of.
    pub convs: Vec<Conv>,
    /// What is decomposed, in graph order of the first members.
    pub groups: Vec<GroupPlan>,
    /// What is left whole by choice.
    pub kept: Vec<Kept>,
    /// Floating-point parameters of the model before.
    pub parameters_before: u64,
    /// Floating-point parameters after, as far as the plan can tell.
    pub parameters_after: u64,
    /// What each convolution sees, if that was measured: then errors are measured in that norm.
    pub(crate) moments: Option<Arc<[Moment]>>,
}

impl Plan {
    /// Decides scheme, members and ranks for a model.
    ///
    /// # Errors
    /// [`Error::Options`] for a ratio or rate that makes no sense, [`Error::NothingToCompress`],
    /// [`Error::Unreachable`] (both before any decomposition), [`Error::NotFinite`] or [`Error::Numerical`].
    pub fn build(model: &Model, grouping: &Grouping, options: &PlanOptions) -> Result<Self> {
        Self::decide(model, grouping, options, None)
    }

    /// What [`Plan::build`] refuses before any decomposition, for callers with other work to do first.
    ///
    /// # Errors
    /// As there; a model with nothing to compress is none of them.
    #[cfg(feature = "verify")]
    pub(crate) fn precheck(model: &Model, grouping: &Grouping, options: &PlanOptions) -> Result<()> {
        match candidates(model, grouping, options, true) {
            Err(Error::NothingToCompress(_)) | Ok(_) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// The same, with errors measured by what each convolution of `grouping` sees.
    pub(crate) fn decide(
        model: &Model,
        grouping: &Grouping,
        options: &PlanOptions,
        calibrated: Option<Calibrated<'_>>,
    ) -> Result<Self> {
        let moments = calibrated.as_ref().map(|c| c.moments.clone());
        let convs = &grouping.convs;
        let Candidates { units, mut kept, before, fixed, budget } =
            candidates(model, grouping, options, moments.is_some())?;
        // The largest first, so that the threads end together; results come back in graph order.
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.sort_by_key(|&u| std::cmp::Reverse(units[u].whole));
        let analyses: Vec<(usize, Result<Analysis>)> =
            order.par_iter().with_max_len(1).map(|&u| (u, units[u].analyse(convs, moments.as_deref()))).collect();
        let mut analyses: BTreeMap<usize, Result<Analysis>> = analyses.into_iter().collect();
        let analyses = (0..units.len()).filter_map(|u| analyses.remove(&u)).collect::<Result<Vec<_>>>()?;

        let ranks: Vec<Option<usize>> = match options.policy {
            RankPolicy::Rate(rate) => units.iter().map(|u| u.rank_at(rate)).collect(),
            RankPolicy::Ratio(ratio) => {
                let effects = units
                    .par_iter()
                    .zip(&analyses)
                    .map(|(unit, analysis)| calibrated.as_ref().map(|c| unit.effect(convs, analysis, c)).transpose());
                let effects = effects.collect::<Result<Vec<Option<Effect>>>>()?;
                let curves = units.iter().zip(&analyses).zip(&effects).map(|((u, a), e)| u.curve(a, e.as_ref()));
                let curves: Vec<Curve> = curves.collect();
                // A ratio within one percent is promised; half of that is worth a search.
                let slack = (budget + fixed) / 200;
                let chosen = allocate(&curves, budget, slack).ok_or_else(|| unreachable(ratio, 1.0, options))?;
                let whole = |u: usize| chosen[u] + 1 == curves[u].points.len();
                (0..units.len()).map(|u| (!whole(u)).then(|| units[u].scheme.least_rank() + chosen[u])).collect()
            }
        };
        let mut groups = Vec::new();
        let mut after = before;
        for ((unit, analysis), rank) in units.into_iter().zip(analyses).zip(ranks) {
            let Some(rank) = rank else {
                let reason = match options.policy {
                    RankPolicy::Ratio(_) => "whole at this ratio: its parameters remove more error than elsewhere",
                    RankPolicy::Rate(_) => "whole at this rate: its factors would be larger",
                };
                kept.extend(unit.members.iter().map(|&m| Kept { name: convs[m].name.clone(), reason: reason.into() }));
                continue;
            };
            let parameters_after = unit.parameters(rank);
            after = (after + unit.cost(rank)).saturating_sub(unit.whole);
            groups.push(GroupPlan {
                group: unit.group.name.clone(),
                role: unit.group.role.clone(),
                predicted_error: unit.error(&analysis, rank).sqrt(),
                ranks: unit.scheme.ranks(rank),
                scheme: unit.scheme,
                parameters_before: unit.whole,
                parameters_after,
                members: unit.members,
                analysis,
            });
        }
        if groups.is_empty() {
            let all = "at these options every convolution is best left whole; ask for a larger ratio or a smaller rate";
            return Err(Error::NothingToCompress(all.into()));
        }
        Ok(Self {
            options: *options,
            convs: convs.clone(),
            groups,
            kept,
            parameters_before: before,
            parameters_after: after,
            moments,
        })
    }
}

/// What can be decomposed, and how many parameters it may take.
struct Candidates<'g> {
    units: Vec<Unit<'g>>,
    kept: Vec<Kept>,
    /// Parameters of the model.
    before: u64,
    /// Those that no decomposition changes.
    fixed: u64,
    /// Those left for the candidates; of no meaning for a rate.
    budget: u64,
}

/// Everything that shapes alone decide, refusals included.
fn candidates<'g>(
    model: &Model,
    grouping: &'g Grouping,
    options: &PlanOptions,
    calibrated: bool,
) -> Result<Candidates<'g>> {
    check(options)?;
    let convs = &grouping.convs;
    let mut kept = Vec::new();
    let (mut units, idle): (Vec<_>, Vec<_>) = units(grouping, options, calibrated).into_iter().partition(Unit::pays);
    for member in idle.iter().flat_map(|u| &u.members) {
        kept.push(Kept { name: convs[*member].name.clone(), reason: crate::onnx::SkipReason::NeverPays.to_string() });
    }
    if units.is_empty() {
        return Err(Error::NothingToCompress(nothing(grouping)));
    }
    let before = model.parameters();
    let movable: u64 = units.iter().map(|u| u.whole).sum();
    let fixed = before.saturating_sub(movable);
    let budget = match options.policy {
        RankPolicy::Rate(_) => 0,
        RankPolicy::Ratio(ratio) => {
            let target = (before as f64 / ratio).floor() as u64;
            let least = fixed + units.iter().map(Unit::least).sum::<u64>();
            if least > target {
                let largest = before as f64 / least.max(1) as f64;
                return Err(unreachable(ratio, largest, options));
            }
            for unit in &mut units {
                unit.limit(target - least);
            }
            target - fixed
        }
    };
    units.iter().flat_map(|u| &u.members).try_for_each(|&m| convs[m].check_finite())?;
    Ok(Candidates { units, kept, before, fixed, budget })
}

fn check(options: &PlanOptions) -> Result<()> {
    match options.policy {
        RankPolicy::Ratio(r) if !(r > 1.0 && r.is_finite()) => {
            return Err(Error::Options(format!("--ratio must be a number above 1, not {r}")));
        }
        RankPolicy::Rate(r) if !(r > 0.0 && r <= 1.0) => {
            return Err(Error::Options(format!("--rank-rate must be above 0 and at most 1, not {r}")));
        }
        RankPolicy::Ratio(_) | RankPolicy::Rate(_) => {}
    }
    match options.scheme {
        Scheme::BothShared { split } if !(0.0..=1.0).contains(&split) => {
            Err(Error::Options(format!("--split must be from 0 to 1, not {split}")))
        }
        _ => Ok(()),
    }
}

fn unreachable(asked: f64, largest: f64, options: &PlanOptions) -> Error {
    // What is advised must itself be accepted, so it is rounded down.
    let largest = (largest * 1000.0).floor() / 1000.0;
    let advice = if largest <= 1.0 {
        "try another --scheme".to_owned()
    } else {
        format!("ask for --ratio {largest:.3} or less")
    };
    Error::Unreachable { asked, scheme: options.scheme.name().into(), largest, advice }
}

fn nothing(grouping: &Grouping) -> String {
    match (grouping.convs.len(), grouping.skipped.len()) {
        (0, 0) => "the model has no convolutions".into(),
        (0, n) => {
            let first = &grouping.skipped[0];
            format!("none of its {n} convolutions can be decomposed (the first, '{}': {})", first.name, first.reason)
        }
        _ => "no rank makes any of its convolutions smaller".into(),
    }
}
