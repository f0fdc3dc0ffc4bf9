//! What can be decomposed together and how, and what each rank of it costs.

use super::profile::Profile;
use super::{Alternative, GroupPlan, PlanOptions, RankPolicy, SchemeChoice};
use crate::error::Error;
use crate::factor::{self, ChainForm, Factors, Form, Kernels, Ownership, Scheme, Side, Unfolding, Width};
use crate::group::Grouping;
use crate::onnx::{Conv, Storage};
use ndarray::{Array4, Axis, CowArray, Ix4};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Ranks beyond this many times the alignment are rounded to it: below, a step is too much of the whole.
const ALIGNED_FROM: usize = 4;

/// Values that a convolution reads at a time, in·kh·kw, beyond which [`SchemeChoice::Auto`] offers it no other form than the
/// paper's alone: trying each takes more time than it has been found to be worth.
const WIDEST: usize = 1152;

/// Members that may be decomposed together in one form, before ranks are chosen.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    /// The group or stream that the members come from.
    pub(super) label: String,
    pub(super) role: String,
    pub(super) members: Vec<usize>,
    pub(super) form: Form,
    pub(super) chains: Vec<ChainForm>,
    /// The chains as they are stored.
    stored: Vec<ChainForm>,
    shapes: Vec<[usize; 4]>,
    /// For each member its kernels among all.
    pub(super) parts: Vec<Range<usize>>,
    /// Parameters of the members' kernels.
    pub(super) whole: u64,
    /// Parameters that folding batch norms takes away; none while the members stay whole.
    folded: i64,
    /// The largest rank that pays; zero if none does.
    pub(super) max_rank: usize,
    align: usize,
    /// How factors are stored.
    storage: Storage,
}

impl Unit {
    fn new(
        label: (&str, &str),
        members: Vec<usize>,
        form: Form,
        convs: &[Conv],
        options: &PlanOptions,
        calibrated: bool,
    ) -> Self {
        let kernels = Members { convs, members: &members };
        let (shapes, parts) = (kernels.shapes(), kernels.parts().collect());
        let whole = members.iter().map(|&m| convs[m].weights()).sum();
        // Calibration absorbs the mean of the error in the bias, and so gives one to a convolution that has none.
        let added = |c: &Conv| if calibrated && c.gains_bias() { c.shape[0] as i64 } else { 0 };
        let gone = |c: &Conv| c.folded_parameters() - added(c) + c.storage.scales() as i64;
        let folded = members.iter().map(|&m| gone(&convs[m])).sum();
        let (label, role) = (label.0.to_owned(), label.1.to_owned());
        let chains = form.chains();
        let stored = if options.unshare { chains.iter().map(ChainForm::unshared).collect() } else { chains.clone() };
        let align = options.align;
        let (max_rank, storage) = (0, members.first().map_or(Storage::Plain, |&m| convs[m].storage));
        let mut unit =
            Self { label, role, members, form, chains, stored, shapes, parts, whole, folded, max_rank, align, storage };
        // For a ratio the limit is that of the whole model.
        let free = options.allow_more_macs || matches!(options.policy, RankPolicy::Ratio(_));
        let pays = |rank: usize| {
            unit.cost(rank) < whole
                && unit.parameters(rank) < whole
                && unit.fits(rank)
                && (free || unit.macs(rank, convs) <= Conv::total_macs(unit.members.iter().map(|&m| &convs[m])))
        };
        unit.max_rank = last(form.least_rank() - 1, 2 + whole as usize, pays);
        unit
    }

    /// The unit at which a convolution's effect on the network is measured: alone, in the paper's unfolding, any rank.
    pub(super) fn probe(member: usize, convs: &[Conv], options: &PlanOptions) -> Self {
        let mut unit =
            Self::new((&convs[member].name, ""), vec![member], Scheme::Separate.into(), convs, options, true);
        let (rows, columns) = unit.form.unfolding.matrix_shape(unit.shapes[0]);
        unit.max_rank = rows.min(columns);
        unit
    }

    /// The unit of a decision that is taken already: its bases are computed to `width` ranks.
    pub(super) fn decided(
        label: (&str, &str),
        members: Vec<usize>,
        form: Form,
        convs: &[Conv],
        width: usize,
        (options, calibrated): (&PlanOptions, bool),
    ) -> Self {
        let unit = Self::new(label, members, form, convs, options, calibrated);
        Self { max_rank: width, ..unit }
    }

    /// The largest rank that what is decomposed has, whether it pays or not.
    pub(super) fn largest_rank(&self) -> usize {
        last(self.form.least_rank() - 1, 2 + self.whole as usize, |rank| self.fits(rank))
    }

    /// What this unit is to become.
    pub(super) fn planned(&self, rank: usize, profile: &Profile, alternatives: Vec<Alternative>) -> GroupPlan {
        GroupPlan {
            group: self.label.clone(),
            role: self.role.clone(),
            members: self.members.clone(),
            form: self.form,
            ranks: self.form.ranks(rank),
            parameters_before: self.whole,
            parameters_after: self.parameters(rank),
            predicted_error: profile.group_error(self, rank).sqrt(),
            alternatives,
            analysis: profile.analysis.clone(),
        }
    }

    pub(super) fn parameters(&self, rank: usize) -> u64 {
        factor::parameters(&self.stored, &self.form.ranks(rank), &self.shapes)
    }

    /// Parameters stored at a rank, less those that folding takes away.
    pub(super) fn cost(&self, rank: usize) -> u64 {
        (self.parameters(rank) + self.scales(rank)).saturating_add_signed(-self.folded)
    }

    /// Scales stored with quantized factors, those of shared ones counted for each member: a bound.
    fn scales(&self, rank: usize) -> u64 {
        let Storage::Quantized { per_channel, .. } = self.storage else { return 0 };
        let each = self.chains.iter().zip(self.form.ranks(rank)).map(|(chain, rank)| {
            let cuts = 1 + usize::from(chain.core.is_some());
            let channels = |shape: &[usize; 4]| if per_channel { cuts * rank + shape[0] } else { cuts + 1 };
            self.shapes.iter().map(channels).sum::<usize>()
        });
        each.sum::<usize>() as u64
    }

    /// No chain has a larger rank than what it decomposes: the members' matrices, where they share a factor beside or on top of
    /// each other.
    fn fits(&self, rank: usize) -> bool {
        let most = |chain: &ChainForm| {
            let shapes = || self.shapes.iter().map(|&s| chain.unfolding.matrix_shape(s));
            let (rows, columns) = (shapes().map(|s| s.0), shapes().map(|s| s.1));
            let basis = match (chain.basis_side(), chain.basis()) {
                // One kernel for all is the nearest to their mean.
                _ if chain.is_common() => rows.zip(columns).map(|(r, c)| r.min(c)).max(),
                (_, Ownership::Own) => rows.zip(columns).map(|(r, c)| r.min(c)).min(),
                (Side::First, Ownership::Shared) => rows.max().map(|r| r.min(columns.sum())),
                (Side::Last, Ownership::Shared) => columns.max().map(|c| c.min(rows.sum())),
            };
            match chain.core {
                None => basis,
                // Each side is cut at most at its own extent, if the first reaches that.
                Some(_) => {
                    basis.filter(|b| shapes().any(|s| s.0 > *b)).or(self.shapes.iter().map(|s| s[0].max(s[1])).max())
                }
            }
        };
        self.chains.iter().zip(self.form.ranks(rank)).all(|(chain, r)| most(chain).is_some_and(|most| r <= most))
    }

    /// Multiply-accumulates of all members at a rank.
    pub(super) fn macs(&self, rank: usize, convs: &[Conv]) -> u64 {
        let ranks = self.form.ranks(rank);
        let each = self.members.iter().map(|&m| convs[m].macs_of(&self.chains, &ranks, convs[m].extents()));
        each.fold(0, u64::saturating_add)
    }

    /// Bytes of the bases, about.
    fn bases(&self) -> u64 {
        let of = |chain: &ChainForm| {
            let rows = |&shape: &[usize; 4]| match (chain.unfolding.matrix_shape(shape), chain.basis_side()) {
                ((rows, _), Side::First) => rows,
                ((_, columns), Side::Last) => columns,
            };
            match chain.basis() {
                Ownership::Own => self.shapes.iter().map(rows).sum(),
                Ownership::Shared => self.shapes.iter().map(rows).max().unwrap_or(0),
            }
        };
        let rows: usize = self.chains.iter().map(of).sum();
        (size_of::<f64>() * rows * self.max_rank) as u64
    }

    /// Bytes that its analysis takes for a while, about.
    pub(super) fn workspace(&self) -> u64 {
        factor::workspace(&self.chains, &self.shapes)
    }

    pub(super) fn pays(&self) -> bool {
        self.max_rank >= self.form.least_rank()
    }

    pub(super) fn least(&self) -> u64 {
        self.cost(self.form.least_rank()).min(self.whole)
    }

    /// Leaves out ranks that take more than this many parameters.
    pub(super) fn limit(&mut self, affordable: u64) {
        // Cost grows with the rank.
        self.max_rank = last(self.form.least_rank(), self.max_rank + 1, |rank| self.cost(rank) <= affordable);
    }

    /// Ranks to choose from, ascending: large ones multiples of the alignment.
    pub(super) fn ranks(&self) -> impl Iterator<Item = usize> {
        let (align, least) = (self.align.max(1), self.form.least_rank());
        (least..=self.max_rank).filter(move |r| align == 1 || *r <= ALIGNED_FROM * align || r.is_multiple_of(align))
    }

    /// The rank of [`RankPolicy::Rate`](super::RankPolicy::Rate); none if it does not pay.
    pub(super) fn rank_at(&self, rate: f64) -> Option<usize> {
        // What a tensor train is compared with is the paper's matrix decomposition.
        let unfolding = if self.form.unfolding.twice { Unfolding::SPATIAL } else { self.form.unfolding };
        let separate = Scheme::Separate.on(unfolding).chains();
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
        // The nearest, the smaller of two.
        let nearest = |parameters: &dyn Fn(usize) -> u64| {
            (self.form.least_rank()..=self.max_rank).min_by_key(|&r| parameters(r).abs_diff(budget))
        };
        if let (Scheme::CoupledTensorTrain { split }, 2) = (self.form.scheme, self.chains.len()) {
            let train = Scheme::Separate.on(self.form.unfolding).chains();
            let alone = nearest(&|r| factor::parameters(&train, &[r], &self.shapes))?;
            // The paper's r_shared = num/(n·num + 1)·r, and n times that for each alone.
            let (n, members) = ((1.0 - split) / split, self.shapes.len() as f64);
            let shared = (members / (n * members + 1.0) * alone as f64).round().max(1.0);
            let total = (shared + (n * shared).round().max(1.0)) as usize;
            return Some(total).filter(|&total| total <= self.max_rank);
        }
        nearest(&|r| self.parameters(r)).filter(|&r| {
            // Beyond the last rank that pays, the nearest is not what was asked for.
            r < self.max_rank || self.parameters(r) >= budget
        })
    }
}

/// Bytes of bases that are kept until it is known which of them are used.
const MOST_BASES: u64 = 2 << 30;

/// Whether the bases of all units would take too much memory: those that are used are then computed twice.
pub(super) fn too_many_bases<'u>(units: impl IntoIterator<Item = &'u Unit>) -> bool {
    units.into_iter().map(Unit::bases).sum::<u64>() > MOST_BASES
}

/// The last number from `low` on, below `high`, that still is what its predecessors are; `low` is taken to be.
fn last(mut low: usize, mut high: usize, is: impl Fn(usize) -> bool) -> usize {
    while high - low > 1 {
        let middle = low.midpoint(high);
        if is(middle) { low = middle } else { high = middle }
    }
    low
}

/// Some of the convolutions as what is decomposed together: each has one kernel, or of a grouped one each group of channels has.
#[derive(Clone, Copy)]
pub(crate) struct Members<'c> {
    pub(crate) convs: &'c [Conv],
    pub(crate) members: &'c [usize],
}

impl<'c> Members<'c> {
    /// Why they were not decomposed.
    pub(crate) fn failed(self, reason: String) -> Error {
        let names: Vec<String> = self.members.iter().map(|&m| format!("'{}'", self.convs[m].name)).collect();
        Error::Numerical { what: names.join(", "), reason }
    }

    /// For each member which of all the kernels are its own.
    pub(crate) fn parts(self) -> impl Iterator<Item = Range<usize>> + use<'c> {
        self.members.iter().scan(0, move |from, &m| {
            let own = *from..*from + self.convs[m].channel_groups();
            *from = own.end;
            Some(own)
        })
    }

    /// `Ŵ` of each member.
    pub(crate) fn reconstruct<'f>(self, factors: &'f Factors) -> impl Iterator<Item = Array4<f64>> + use<'c, 'f> {
        self.parts().map(|parts| stacked(parts.map(|part| factors.reconstruct(part))))
    }
}

/// Kernels that follow each other in one, as a grouped convolution stores them.
pub(crate) fn stacked<T: Clone + Default>(parts: impl Iterator<Item = Array4<T>>) -> Array4<T> {
    let mut parts: Vec<Array4<T>> = parts.collect();
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => {
            let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
            ndarray::concatenate(Axis(0), &views).unwrap_or_default()
        }
    }
}

impl Kernels for Members<'_> {
    fn shapes(&self) -> Vec<[usize; 4]> {
        let each = self.members.iter().map(|&m| &self.convs[m]);
        each.flat_map(|c| std::iter::repeat_n(c.part_shape(), c.channel_groups())).collect()
    }

    fn kernel(&self, member: usize) -> CowArray<'_, f64, Ix4> {
        let found = self.parts().zip(self.members).find(|(parts, _)| parts.contains(&member));
        // Nobody asks for more than there are.
        let kernel = found.map(|(parts, &m)| self.convs[m].part_kernel(member - parts.start));
        CowArray::from(kernel.unwrap_or_default())
    }

    fn width(&self) -> Width {
        let double = self.members.iter().all(|&m| self.convs[m].is_double());
        if double { Width::Double } else { Width::Single }
    }
}

/// Everything that may be decomposed: for one form a partition of the convolutions, for [`SchemeChoice::Auto`] every form of
/// every set that has a space in common.
pub(super) fn units(grouping: &Grouping, options: &PlanOptions, calibrated: bool) -> Vec<Unit> {
    let convs = &grouping.convs;
    let unit = |label: (&str, &str), members: Vec<usize>, form: Form| {
        Unit::new(label, members, form, convs, options, calibrated)
    };
    let mut units: Vec<Unit> = Vec::new();
    match options.scheme {
        SchemeChoice::Only(form) => {
            for group in &grouping.groups {
                let label = (group.name.as_str(), group.role.as_str());
                for members in parts(&group.members, form.scheme, convs) {
                    let scheme = if members.len() == 1 { Scheme::Separate } else { form.scheme };
                    let unfolding = form.unfolding.fit(convs[members[0]].part_shape());
                    units.push(unit(label, members, scheme.on(unfolding)));
                }
            }
        }
        SchemeChoice::Auto => {
            let mut sets: Vec<(&str, String, Vec<usize>, Scheme)> = Vec::new();
            for group in &grouping.groups {
                let named = |members, scheme| (group.name.as_str(), group.role.clone(), members, scheme);
                sets.extend(group.members.iter().map(|&m| named(vec![m], Scheme::Separate)));
                for scheme in [Scheme::LeftShared, Scheme::RightShared] {
                    sets.extend(parts(&group.members, scheme, convs).into_iter().map(|p| named(p, scheme)));
                }
            }
            for stream in &grouping.streams {
                let named = |role: &str, members, scheme| {
                    (stream.name.as_str(), format!("{role} {}", stream.name), members, scheme)
                };
                let equal = |members: &[usize], side: usize| {
                    let mut parts: BTreeMap<([usize; 3], String), Vec<usize>> = BTreeMap::new();
                    for &m in members.iter().filter(|&&m| convs[m].channel_groups() == 1) {
                        let shape = convs[m].shape;
                        let like = ([shape[side], shape[2], shape[3]], convs[m].family());
                        parts.entry(like).or_default().push(m);
                    }
                    parts.into_values()
                };
                sets.extend(equal(&stream.readers, 1).map(|p| named("readers of", p, Scheme::LeftShared)));
                sets.extend(equal(&stream.writers, 0).map(|p| named("writers of", p, Scheme::RightShared)));
            }
            let mut known: BTreeSet<(Vec<usize>, bool)> = BTreeSet::new();
            for (label, role, members, scheme) in sets {
                let alone = scheme == Scheme::Separate;
                if (!alone && members.len() == 1) || !known.insert((members.clone(), scheme == Scheme::LeftShared)) {
                    continue;
                }
                let wide = members.iter().any(|&m| convs[m].shape[1..].iter().product::<usize>() > WIDEST);
                if wide && !alone {
                    continue;
                }
                let forms = unfoldings(scheme, convs[members[0]].part_shape());
                let forms = forms.filter(|u| !wide || *u == Unfolding::SPATIAL);
                units.extend(forms.map(|u| unit((label, &role), members.clone(), scheme.on(u))));
            }
        }
    }
    units
}

/// Unfoldings worth trying: a shared factor should be the larger one, and those that are the same for a kernel count once.
fn unfoldings(scheme: Scheme, shape: [usize; 4]) -> impl Iterator<Item = Unfolding> {
    let all: &[Unfolding] = match scheme {
        Scheme::LeftShared => &[Unfolding::SPATIAL, Unfolding::FILTER_BANK],
        Scheme::RightShared => &[Unfolding::SPATIAL, Unfolding::POINTWISE_FIRST],
        _ => &[Unfolding::SPATIAL, Unfolding::FILTER_BANK, Unfolding::POINTWISE_FIRST, Unfolding::TUCKER],
    };
    let same = move |a: Unfolding, b: Unfolding| {
        (a.extents(shape), a.fit(shape).twice) == (b.extents(shape), b.fit(shape).twice)
    };
    let first = move |u: &Unfolding| all.iter().position(|o| same(*o, *u));
    all.iter().enumerate().filter(move |(at, u)| first(u) == Some(*at)).map(|(_, u)| *u)
}

/// Members of a group as a scheme can decompose them together.
fn parts(members: &[usize], scheme: Scheme, convs: &[Conv]) -> Vec<Vec<usize>> {
    let mut parts: BTreeMap<(bool, usize), Vec<usize>> = BTreeMap::new();
    for (at, &member) in members.iter().enumerate() {
        let part = match scheme {
            // Its groups of channels have spaces of their own, which nothing else has in common with them.
            _ if convs[member].channel_groups() > 1 => (true, at),
            Scheme::Separate => (false, at),
            scheme if scheme.needs_equal_inputs() => (false, convs[member].shape[1]),
            _ => (false, 0),
        };
        parts.entry(part).or_default().push(member);
    }
    let mut parts: Vec<Vec<usize>> = parts.into_values().collect();
    parts.sort();
    parts
}
