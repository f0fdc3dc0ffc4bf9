//! What can be decomposed together, what each rank of it costs, and what its error does.

use super::PlanOptions;
use crate::error::{Error, Result};
use crate::factor::{self, Analysis, ChainForm, Kernels, Moment, Scheme};
use crate::group::{Group, Grouping};
use crate::onnx::Conv;
use crate::ranks::Curve;
use ndarray::{Array4, CowArray, Ix4};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
pub(super) struct Effect {
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
pub(super) struct Unit<'g> {
    pub(super) group: &'g Group,
    pub(super) members: Vec<usize>,
    pub(super) scheme: Scheme,
    pub(super) chains: Vec<ChainForm>,
    pub(super) shapes: Vec<[usize; 4]>,
    pub(super) whole: u64,
    /// Parameters that folding batch norms takes away; none while the members stay whole.
    pub(super) folded: i64,
    pub(super) max_rank: usize,
}

impl<'g> Unit<'g> {
    pub(super) fn new(
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

    pub(super) fn parameters(&self, rank: usize) -> u64 {
        factor::parameters(&self.chains, &self.scheme.ranks(rank), &self.shapes)
    }

    /// Parameters stored at a rank, less those that folding takes away.
    pub(super) fn cost(&self, rank: usize) -> u64 {
        self.parameters(rank).saturating_add_signed(-self.folded)
    }

    /// No chain has a larger rank than its matrices.
    pub(super) fn fits(&self, rank: usize) -> bool {
        let sizes = |chain: &ChainForm| {
            let shapes = self.shapes.iter().map(|&s| chain.unfolding.matrix_shape(s));
            shapes.map(|(rows, columns)| rows.min(columns)).max().unwrap_or(0)
        };
        self.chains.iter().zip(self.scheme.ranks(rank)).all(|(chain, r)| r <= sizes(chain))
    }

    pub(super) fn macs_fit(&self, rank: usize, convs: &[Conv]) -> bool {
        let ranks = self.scheme.ranks(rank);
        self.members.iter().map(|&m| &convs[m]).all(|conv| {
            let (input, output) = conv.extents();
            let before = conv.macs(output);
            factor::macs(&self.chains, &ranks, conv.shape, input, output) <= before
        })
    }

    pub(super) fn pays(&self) -> bool {
        self.max_rank >= self.scheme.least_rank()
    }

    pub(super) fn least(&self) -> u64 {
        self.cost(self.scheme.least_rank()).min(self.whole)
    }

    /// Leaves out ranks that more than `spare` parameters beyond the least would be needed for.
    pub(super) fn limit(&mut self, spare: u64) {
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

    pub(super) fn analyse(&self, convs: &[Conv], moments: Option<&[Moment]>) -> Result<Analysis> {
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
    pub(super) fn error(&self, analysis: &Analysis, rank: usize) -> f64 {
        if analysis.energy() > 0.0 { analysis.error(&self.scheme.ranks(rank)) / analysis.energy() } else { 0.0 }
    }

    /// Measures how the members' error moves the network's output.
    pub(super) fn effect(&self, convs: &[Conv], analysis: &Analysis, calibrated: &Calibrated<'_>) -> Result<Effect> {
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
    pub(super) fn curve(&self, analysis: &Analysis, effect: Option<&Effect>) -> Curve {
        let n = self.members.len() as f64;
        let damage = |error: f64| effect.map_or(n * error, |e| e.at(error));
        let ranks = self.scheme.least_rank()..=self.max_rank;
        let points = ranks.map(|r| (self.cost(r), damage(self.error(analysis, r))));
        let mut points: Vec<(u64, f64)> = points.filter(|p| p.0 < self.whole).collect();
        points.push((self.whole, 0.0));
        Curve { points }
    }

    /// The rank of [`RankPolicy::Rate`]; none if it does not pay.
    pub(super) fn rank_at(&self, rate: f64) -> Option<usize> {
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
pub(super) fn units<'g>(grouping: &'g Grouping, options: &PlanOptions, calibrated: bool) -> Vec<Unit<'g>> {
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
