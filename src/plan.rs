//! What is to be done, decided and priced, with nothing done yet.

use crate::error::{Error, Result};
use crate::factor::{self, Analysis, ChainForm, Kernels, Moment, Scheme};
use crate::group::{Group, Grouping};
use crate::onnx::{Conv, Model};
use crate::ranks::{Curve, allocate};
use ndarray::{Array4, CowArray, Ix4};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Name of the [`Group`] they come from.
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

/// How far the network's output moves, relative to its own variation, when some convolutions get other kernels.
pub(crate) type Sensitivity<'s> = dyn Fn(&[usize], &[Array4<f64>]) -> Result<f64> + Sync + 's;

/// What calibration adds to a decision.
pub(crate) struct Calibrated<'s> {
    /// What each convolution sees.
    pub(crate) moments: Arc<[Moment]>,
    /// Measured on the network itself.
    pub(crate) sensitivity: &'s Sensitivity<'s>,
}

/// Relative output errors of a group, about, at which its effect on the network is measured.
const PROBE_ERRORS: [f64; 4] = [0.03, 0.12, 0.35, 0.8];

/// How far the network's output moves by the error of one group: measured points, in between a power law.
struct Effect {
    /// `(relative error of a member, movement)`, both ascending.
    points: Vec<(f64, f64)>,
}

impl Effect {
    fn at(&self, error: f64) -> f64 {
        if error <= 0.0 {
            return 0.0;
        }
        let above = self.points.partition_point(|p| p.0 < error);
        match (above.checked_sub(1).map(|i| self.points[i]), self.points.get(above)) {
            (Some((e0, m0)), Some(&(e1, m1))) => {
                let share = (error / e0).ln() / (e1 / e0).ln();
                m0 * (m1 / m0).powf(share)
            }
            (None, Some(&(e, m))) | (Some((e, m)), None) => m * error / e,
            (None, None) => error,
        }
    }
}

/// Members of a group that are decomposed together, before ranks are chosen.
struct Unit<'g> {
    group: &'g Group,
    members: Vec<usize>,
    scheme: Scheme,
    chains: Vec<ChainForm>,
    shapes: Vec<[usize; 4]>,
    whole: u64,
    /// Parameters that folding batch norms takes away; none while the members stay whole.
    folded: i64,
    max_rank: usize,
}

impl<'g> Unit<'g> {
    fn new(
        group: &'g Group,
        members: Vec<usize>,
        scheme: Scheme,
        convs: &[Conv],
        options: &PlanOptions,
        calibrated: bool,
    ) -> Self {
        let chains = scheme.chains();
        let shapes: Vec<_> = members.iter().map(|&m| convs[m].shape).collect();
        let whole = members.iter().map(|&m| convs[m].weights()).sum();
        // Calibration absorbs the mean of the error in the bias, and so gives one to a convolution that has none.
        let added =
            |c: &Conv| if calibrated && c.bias.is_none() && c.batch_norm.is_none() { c.shape[0] as i64 } else { 0 };
        let folded = members.iter().map(|&m| convs[m].folded_parameters() - added(&convs[m])).sum();
        let mut unit = Self { group, members, scheme, chains, shapes, whole, folded, max_rank: 0 };
        let pays = |rank: usize| {
            unit.cost(rank) < whole
                && unit.parameters(rank) < whole
                && unit.fits(rank)
                && (options.allow_more_macs || unit.macs_fit(rank, convs))
        };
        // Cost grows with the rank, so the ranks that pay are the first ones.
        let (mut low, mut high) = (scheme.least_rank() - 1, 2 + whole as usize);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if pays(middle) { low = middle } else { high = middle }
        }
        unit.max_rank = low;
        unit
    }

    fn parameters(&self, rank: usize) -> u64 {
        factor::parameters(&self.chains, &self.scheme.ranks(rank), &self.shapes)
    }

    /// Parameters stored at a rank, less those that folding takes away.
    fn cost(&self, rank: usize) -> u64 {
        self.parameters(rank).saturating_add_signed(-self.folded)
    }

    /// No chain has a larger rank than its matrices.
    fn fits(&self, rank: usize) -> bool {
        let sizes = |chain: &ChainForm| {
            let shapes = self.shapes.iter().map(|&s| chain.unfolding.matrix_shape(s));
            shapes.map(|(rows, columns)| rows.min(columns)).max().unwrap_or(0)
        };
        self.chains.iter().zip(self.scheme.ranks(rank)).all(|(chain, r)| r <= sizes(chain))
    }

    fn macs_fit(&self, rank: usize, convs: &[Conv]) -> bool {
        let ranks = self.scheme.ranks(rank);
        self.members.iter().map(|&m| &convs[m]).all(|conv| {
            let (input, output) = conv.extents();
            let before = conv.macs(output);
            factor::macs(&self.chains, &ranks, conv.shape, input, output) <= before
        })
    }

    fn pays(&self) -> bool {
        self.max_rank >= self.scheme.least_rank()
    }

    fn least(&self) -> u64 {
        self.cost(self.scheme.least_rank()).min(self.whole)
    }

    /// Leaves out ranks that more than `spare` parameters beyond the least would be needed for.
    fn limit(&mut self, spare: u64) {
        let affordable = self.least() + spare;
        let ranks = self.scheme.least_rank()..self.max_rank + 1;
        // Cost grows with the rank.
        let (mut low, mut high) = (ranks.start, ranks.end);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.cost(middle) <= affordable { low = middle } else { high = middle }
        }
        self.max_rank = low;
    }

    fn analyse(&self, convs: &[Conv], moments: Option<&[Moment]>) -> Result<Analysis> {
        let kernels = Members { convs, members: &self.members };
        let analysis = match moments {
            None => factor::analyse(&self.chains, &kernels, self.max_rank),
            Some(moments) => {
                let moments: Vec<&Moment> = self.members.iter().map(|&m| &moments[m]).collect();
                factor::analyse_calibrated(&self.chains, &kernels, &moments, self.max_rank)
            }
        };
        analysis.map_err(|reason| Error::Numerical { what: self.group.name.clone(), reason })
    }

    /// Relative squared error at a rank.
    fn error(&self, analysis: &Analysis, rank: usize) -> f64 {
        if analysis.energy() > 0.0 { analysis.error(&self.scheme.ranks(rank)) / analysis.energy() } else { 0.0 }
    }

    /// Measures how the members' error moves the network's output.
    fn effect(&self, convs: &[Conv], analysis: &Analysis, calibrated: &Calibrated<'_>) -> Result<Effect> {
        let kernels = Members { convs, members: &self.members };
        let moments: Vec<&Moment> = self.members.iter().map(|&m| &calibrated.moments[m]).collect();
        let nearest = |wanted: f64| {
            let off = |rank: usize| (self.error(analysis, rank).max(1e-12) / wanted).ln().abs();
            (self.scheme.least_rank()..=self.max_rank).min_by(|&a, &b| off(a).total_cmp(&off(b)))
        };
        let ranks: BTreeSet<usize> = PROBE_ERRORS.iter().filter_map(|&e| nearest(e)).collect();
        let mut points: Vec<(f64, f64)> = Vec::new();
        for rank in ranks.into_iter().rev() {
            let ranks = self.scheme.ranks(rank);
            let solved = factor::factorize_calibrated(&self.chains, &kernels, &moments, &ranks, 0, analysis);
            let failed = |reason| Error::Numerical { what: self.group.name.clone(), reason };
            let kernels: Vec<_> =
                solved.map(|s| (0..self.members.len()).map(|i| s.0.reconstruct(i)).collect()).map_err(failed)?;
            let moved = (calibrated.sensitivity)(&self.members, &kernels)?.max(1e-12);
            let error = self.error(analysis, rank).max(1e-12);
            // A larger error that moves less is the luck of few images.
            if points.last().is_none_or(|p| p.0 < error && p.1 < moved) {
                points.push((error, moved));
            }
        }
        Ok(Effect { points })
    }

    /// Error against parameters: once a member, or what it does to the network where that was measured. Positions are ranks
    /// from the least on.
    fn curve(&self, analysis: &Analysis, effect: Option<&Effect>) -> Curve {
        let n = self.members.len() as f64;
        let damage = |error: f64| effect.map_or(n * error, |e| e.at(error));
        let ranks = self.scheme.least_rank()..=self.max_rank;
        let points = ranks.map(|r| (self.cost(r), damage(self.error(analysis, r))));
        let mut points: Vec<(u64, f64)> = points.filter(|p| p.0 < self.whole).collect();
        points.push((self.whole, 0.0));
        Curve { points }
    }

    /// The rank of [`RankPolicy::Rate`]; none if it does not pay.
    fn rank_at(&self, rate: f64) -> Option<usize> {
        let separate = Scheme::Separate.chains();
        let budget: u64 = self
            .shapes
            .iter()
            .map(|&shape| {
                let [out, inputs, kh, kw] = shape;
                let channels = if kh * kw > 1 { out } else { out.min(inputs) };
                let rank = ((rate * channels as f64).floor() as usize).max(1);
                factor::parameters(&separate, &[rank], &[shape])
            })
            .sum();
        let ranks = self.scheme.least_rank()..=self.max_rank;
        // The nearest, the smaller of two.
        ranks.min_by_key(|&r| self.parameters(r).abs_diff(budget)).filter(|&r| {
            // Beyond the last rank that pays, the nearest is not what was asked for.
            r < self.max_rank || self.parameters(r) >= budget
        })
    }
}

/// Some of the convolutions as what is decomposed together.
pub(crate) struct Members<'c> {
    pub(crate) convs: &'c [Conv],
    pub(crate) members: &'c [usize],
}

impl Kernels for Members<'_> {
    fn shapes(&self) -> Vec<[usize; 4]> {
        self.members.iter().map(|&m| self.convs[m].shape).collect()
    }

    fn kernel(&self, member: usize) -> CowArray<'_, f64, Ix4> {
        CowArray::from(self.convs[self.members[member]].kernel())
    }
}

/// Splits every group into what the scheme can decompose together.
fn units<'g>(grouping: &'g Grouping, options: &PlanOptions, calibrated: bool) -> Vec<Unit<'g>> {
    let convs = &grouping.convs;
    let mut units = Vec::new();
    for group in &grouping.groups {
        let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, &member) in group.members.iter().enumerate() {
            let part = match options.scheme {
                Scheme::Separate => at,
                scheme if scheme.needs_equal_inputs() => convs[member].shape[1],
                _ => 0,
            };
            parts.entry(part).or_default().push(member);
        }
        let mut parts: Vec<Vec<usize>> = parts.into_values().collect();
        parts.sort();
        for members in parts {
            let scheme = if members.len() == 1 { Scheme::Separate } else { options.scheme };
            units.push(Unit::new(group, members, scheme, convs, options, calibrated));
        }
    }
    units
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

    /// The same, with errors measured by what each convolution of `grouping` sees.
    pub(crate) fn decide(
        model: &Model,
        grouping: &Grouping,
        options: &PlanOptions,
        calibrated: Option<Calibrated<'_>>,
    ) -> Result<Self> {
        let moments = calibrated.as_ref().map(|c| c.moments.clone());
        check(options)?;
        let convs = &grouping.convs;
        let mut kept = Vec::new();
        let (mut units, idle): (Vec<_>, Vec<_>) =
            units(grouping, options, moments.is_some()).into_iter().partition(Unit::pays);
        for member in idle.iter().flat_map(|u| &u.members) {
            kept.push(Kept {
                name: convs[*member].name.clone(),
                reason: crate::onnx::SkipReason::NeverPays.to_string(),
            });
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
