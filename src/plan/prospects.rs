//! What could be done with a model: every unit with all that was found out about it, before anything is chosen.

use super::profile::{Calibrated, Effect, Profile, Sight};
use super::unit::{Unit, too_many_bases, units};
use super::{Alternative, Kept, LEAST_RATIO, Plan, PlanOptions, RankPolicy, SchemeChoice, check, nothing, unreachable};
use crate::error::{Error, Result};
use crate::factor::Scheme;
use crate::group::Grouping;
use crate::onnx::{Conv, Model, SkipReason};
use crate::portions::{in_portions, room};
use crate::ranks::{Curve, Offer, choose, cover};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Ranks at which a unit is compared with its members alone.
const COMPARED: usize = 9;
/// Ranks at which one that promises more is fitted and measured.
const FITTED: usize = 3;
/// How far from its fair share of the parameters a unit is looked at, as a factor.
const AROUND: f64 = 3.0;
/// What fitting may make of the damage that spectra predict, at best.
const HOPE: f64 = 0.7;

/// Powers of ten to both sides among which the price of a multiply-accumulate is looked for, and steps of that.
const PRICE_POWERS: f64 = 4.0;
const MAC_PRICES: usize = 10;

/// All that is known of the units before anything is chosen.
pub(crate) struct Prospects {
    options: PlanOptions,
    convs: Vec<Conv>,
    candidates: Candidates,
    sights: Option<Arc<[Sight]>>,
    /// None only while they are being found out.
    profiles: Vec<Option<Profile>>,
    /// The effect of each convolution; empty if nothing was measured.
    effects: BTreeMap<usize, Effect>,
}

impl Prospects {
    /// Spectra of every unit and, calibrated, what fitted factors and the network itself say. Of the forms that
    /// [`SchemeChoice::Auto`] offers those that promise less than the members alone are not measured, and never chosen.
    ///
    /// # Errors
    /// Those of [`Plan::build`].
    pub(crate) fn new(
        model: &Model,
        grouping: &Grouping,
        options: &PlanOptions,
        calibrated: Option<&Calibrated<'_>>,
    ) -> Result<Self> {
        let candidates = candidates(model, grouping, options, calibrated.is_some())?;
        let mut found = Self {
            options: *options,
            convs: grouping.convs.clone(),
            sights: calibrated.map(|c| c.sights.clone()),
            profiles: vec![None; candidates.units.len()],
            effects: BTreeMap::new(),
            candidates,
        };
        let (units, convs) = (&found.candidates.units, &found.convs);
        // The largest first, so that the threads end together; results come back in graph order.
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.sort_by_key(|&u| std::cmp::Reverse(units[u].whole));
        let lean = too_many_bases(units);
        let room = room(found.candidates.before);
        let left = |profile: Profile| if lean { profile.lean() } else { profile };
        let workspace = |u: &usize| units[*u].workspace();
        let Some(calibrated) = calibrated else {
            let plain = |&u: &usize| Ok((u, left(Profile::plain(&units[u], convs)?)));
            for (u, profile) in in_portions(&order, room, workspace, plain)? {
                found.profiles[u] = Some(profile);
            }
            return Ok(found);
        };
        let members: BTreeSet<usize> = units.iter().flat_map(|u| u.members.iter().copied()).collect();
        let mut members: Vec<usize> = members.into_iter().collect();
        members.sort_by_key(|&m| std::cmp::Reverse(convs[m].weights()));
        let probe = |m: usize| Unit::probe(m, convs, options);
        let probed = |&m: &usize| {
            let unit = probe(m);
            let mut profile = Profile::calibrated(&unit, convs, &calibrated.sights)?;
            let trial = profile.trial(&unit, convs, calibrated, profile.probe_ranks(&unit), &|_| true)?;
            Ok((unit, left(profile), Effect::new(&trial)))
        };
        for (probe, profile, effect) in in_portions(&members, room, |&m| probe(m).workspace(), probed)? {
            found.effects.insert(probe.members[0], effect);
            // The probe is the same decomposition as one of the units.
            let same = |u: &&usize| units[**u].members == probe.members && units[**u].form == probe.form;
            if let Some(&u) = order.iter().find(same) {
                found.profiles[u] = Some(profile);
            }
        }
        let (units, convs) = (&found.candidates.units, &found.convs);
        order.retain(|&u| found.profiles[u].is_none());
        let workspace = |u: &usize| units[*u].workspace();
        let measured = |&u: &usize| {
            let mut profile = Profile::calibrated(&units[u], convs, &calibrated.sights)?;
            let hopeless = |profile: &Profile, hope: f64| {
                options.scheme == SchemeChoice::Auto && !found.promises(u, profile, hope)
            };
            if hopeless(&profile, HOPE) {
                profile.drop();
                return Ok((u, left(profile)));
            }
            let promising = |profile: &Profile| !hopeless(profile, 1.0);
            let trial = profile.trial(&units[u], convs, calibrated, found.tried(u, FITTED), &promising)?;
            match trial.moved {
                Some(_) => profile.interact(&units[u], &trial, &found.effects),
                None => profile.drop(),
            }
            Ok((u, left(profile)))
        };
        for (u, profile) in in_portions(&order, room, workspace, measured)? {
            found.profiles[u] = Some(profile);
        }
        Ok(found)
    }

    /// The plan for a ratio or a rate; a ratio at least as large as that of the options.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or [`Error::NothingToCompress`] where all is best left whole.
    pub(crate) fn plan(&self, policy: RankPolicy) -> Result<Plan> {
        let Candidates { units, kept, before, fixed, least } = &self.candidates;
        let mut kept = kept.clone();
        let chosen = match policy {
            RankPolicy::Rate(rate) => {
                let each = units.iter().enumerate();
                each.map(|(u, unit)| (unit.members.clone(), unit.rank_at(rate).map(|r| (u, r)))).collect()
            }
            RankPolicy::Ratio(ratio) => {
                let target = (*before as f64 / ratio).floor() as u64;
                if fixed + least > target {
                    return Err(unreachable(ratio, *before as f64 / (fixed + least).max(1) as f64, &self.options));
                }
                self.within_budgets(target - fixed, target / 200)
                    .ok_or_else(|| unreachable(ratio, 1.0, &self.options))?
            }
        };
        let mut groups = Vec::new();
        let mut after = *before;
        for (members, point) in chosen {
            let Some((u, rank)) = point else {
                let reason = match policy {
                    RankPolicy::Ratio(_) => "whole at this ratio: its parameters remove more error than elsewhere",
                    RankPolicy::Rate(_) => "whole at this rate: its factors would be larger",
                };
                kept.extend(members.iter().map(|&m| Kept { name: self.convs[m].name.clone(), reason: reason.into() }));
                continue;
            };
            let Some(profile) = &self.profiles[u] else { continue };
            let unit = &units[u];
            after = (after + unit.cost(rank)).saturating_sub(unit.whole);
            let alternatives = match self.options.scheme {
                SchemeChoice::Auto => self.alternatives(u, rank),
                SchemeChoice::Only(_) => Vec::new(),
            };
            groups.push(unit.planned(rank, profile, alternatives));
        }
        if groups.is_empty() {
            let all = "at these options every convolution is best left whole; ask for a larger ratio or a smaller rate";
            return Err(Error::NothingToCompress(all.into()));
        }
        Ok(Plan {
            options: PlanOptions { policy, ..self.options },
            convs: self.convs.clone(),
            groups,
            kept,
            parameters_before: *before,
            parameters_after: after,
            sights: self.sights.clone(),
        })
    }

    /// The least damage at `budget` parameters, more than `slack` of them unspent only if need be, and at most the
    /// multiply-accumulates of the original: these have a price, zero if that is enough. Where no price spends the budget, none of
    /// the units may take more than its members do as they are. Sets of members in graph order, with what each becomes.
    fn within_budgets(&self, budget: u64, slack: u64) -> Option<Vec<(Vec<usize>, Point)>> {
        let convs: Vec<usize> = (0..self.convs.len()).collect();
        let most = Conv::total_macs(self.convs.iter());
        let movable: BTreeSet<usize> = self.candidates.units.iter().flat_map(|u| u.members.iter().copied()).collect();
        let others: Vec<usize> = convs.into_iter().filter(|m| !movable.contains(m)).collect();
        let others = self.whole_macs(&others);
        let at_price = |price: f64, limited: bool| {
            let (offers, points): (Vec<Offer>, Vec<Vec<Point>>) = self.offers(price, limited).into_iter().unzip();
            let chosen = choose(&offers, budget, slack)?;
            let cost: u64 = chosen.iter().map(|&(o, at)| offers[o].curve.points[at].0).sum();
            let named = chosen.into_iter().map(|(o, at)| (offers[o].members.clone(), points[o][at]));
            let mut named: Vec<(Vec<usize>, Point)> = named.collect();
            named.sort_by(|a, b| a.0.cmp(&b.0));
            let macs =
                named.iter().map(|(members, point)| self.macs(members, *point)).fold(others, u64::saturating_add);
            Some(Found { damage: named.iter().map(|n| self.damage_of(n.1)).sum(), unspent: budget - cost, macs, named })
        };
        let free = at_price(0.0, false)?;
        if self.options.allow_more_macs || free.macs <= most {
            return Some(free.named);
        }
        // The price at which all multiply-accumulates of the original weigh as much as the damage done by leaving them free, and
        // some powers of ten around it.
        let unit = (free.damage / most.max(1) as f64).max(f64::MIN_POSITIVE);
        let (mut low, mut high) = (-PRICE_POWERS, PRICE_POWERS);
        let mut found = Vec::new();
        for _ in 0..MAC_PRICES {
            let middle = f64::midpoint(low, high);
            match at_price(unit * 10f64.powf(middle), false).filter(|f| f.macs <= most) {
                Some(fits) => {
                    high = middle;
                    found.push(fits);
                }
                None => low = middle,
            }
        }
        if found.iter().all(|f| f.unspent > slack) {
            found.extend(at_price(0.0, true));
        }
        let best = found
            .into_iter()
            .min_by(|a, b| (a.unspent > 2 * slack).cmp(&(b.unspent > 2 * slack)).then(a.damage.total_cmp(&b.damage)));
        best.map(|b| b.named)
    }

    /// What a point does to the network.
    fn damage_of(&self, point: Point) -> f64 {
        point.and_then(|(u, rank)| Some(self.damage(u, self.profiles[u].as_ref()?, rank))).unwrap_or(0.0)
    }

    /// Multiply-accumulates of some members as what they become.
    fn macs(&self, members: &[usize], point: Point) -> u64 {
        match point {
            Some((u, rank)) => self.candidates.units[u].macs(rank, &self.convs),
            None => self.whole_macs(members),
        }
    }

    /// Multiply-accumulates of some convolutions as they are.
    fn whole_macs(&self, members: &[usize]) -> u64 {
        Conv::total_macs(members.iter().map(|&m| &self.convs[m]))
    }

    /// The largest ratio in reach.
    pub(crate) fn largest_ratio(&self) -> f64 {
        self.candidates.largest_ratio()
    }

    /// What a unit at a rank does to the network: the sum of its members' effects and what they do together or, of plain weights,
    /// the sum of their relative errors.
    fn damage(&self, u: usize, profile: &Profile, rank: usize) -> f64 {
        let unit = &self.candidates.units[u];
        if self.effects.is_empty() && self.options.scheme != SchemeChoice::Auto {
            return unit.members.len() as f64 * profile.group_error(unit, rank);
        }
        let each = unit.members.iter().enumerate().map(|(at, member)| {
            let error = profile.member_error(unit, at, rank);
            self.effects.get(member).map_or(error, |effect| effect.at(error))
        });
        each.sum::<f64>() * profile.interaction(rank)
    }

    /// Parameters and damage of a unit's members each alone, in the paper's unfolding, with their shares of a budget.
    fn alone(&self, u: usize, budget: u64) -> Option<(u64, f64)> {
        let units = &self.candidates.units;
        let each = units[u].members.iter().map(|&m| {
            let form = Scheme::Separate.into();
            let single = units.iter().position(|o| o.members == [m] && o.form == form)?;
            let share = u128::from(budget) * u128::from(units[single].whole) / u128::from(units[u].whole.max(1));
            let rank = self.within(single, share as u64)?;
            Some((units[single].cost(rank), self.damage(single, self.profiles[single].as_ref()?, rank)))
        });
        let each = each.collect::<Option<Vec<_>>>()?;
        each.into_iter().reduce(|sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// The largest rank of a unit within a budget.
    fn within(&self, u: usize, budget: u64) -> Option<usize> {
        let unit = &self.candidates.units[u];
        unit.ranks().take_while(|&r| unit.cost(r) <= budget).last()
    }

    /// Some of a unit's ranks around those that the ratio asked for would give it if all were treated alike.
    fn tried(&self, u: usize, count: usize) -> BTreeSet<usize> {
        let unit = &self.candidates.units[u];
        let fair = match self.options.policy {
            RankPolicy::Ratio(ratio) => unit.whole as f64 / ratio,
            RankPolicy::Rate(_) => unit.whole as f64,
        };
        let near = |&r: &usize| (fair / AROUND..=fair * AROUND).contains(&(unit.cost(r) as f64));
        let mut ranks: Vec<usize> = unit.ranks().filter(near).collect();
        if ranks.is_empty() {
            ranks = unit.ranks().collect();
        }
        (0..count).filter_map(|i| ranks.get((2 * i + 1) * ranks.len() / (2 * count)).copied()).collect()
    }

    /// Whether a unit is better than its members alone at any rank that is tried, if its damage is `hope` times what is known.
    fn promises(&self, u: usize, profile: &Profile, hope: f64) -> bool {
        let unit = &self.candidates.units[u];
        self.tried(u, COMPARED).into_iter().any(|rank| {
            let alone = self.alone(u, unit.cost(rank));
            alone.is_none_or(|a| hope * self.damage(u, profile, rank) < a.1)
        })
    }

    /// The other forms for the members of a unit at the parameters of a rank, and that of each member alone.
    fn alternatives(&self, chosen: usize, rank: usize) -> Vec<Alternative> {
        let units = &self.candidates.units;
        let budget = units[chosen].cost(rank);
        let damage = |u: usize, rank| self.profiles[u].as_ref().map(|profile| self.damage(u, profile, rank));
        let error = damage(chosen, rank).unwrap_or(0.0).max(f64::MIN_POSITIVE);
        let mut found = Vec::new();
        for (u, other) in units.iter().enumerate().filter(|(u, o)| *u != chosen && o.members == units[chosen].members) {
            if let Some((r, damage)) = self.within(u, budget).and_then(|r| Some((r, damage(u, r)?))) {
                let relative_error = damage / error;
                found.push(Alternative { form: other.form.to_string(), parameters: other.cost(r), relative_error });
            }
        }
        if units[chosen].members.len() > 1
            && let Some((parameters, damage)) = self.alone(chosen, budget)
        {
            let form = Scheme::Separate.to_string();
            found.push(Alternative { form, parameters, relative_error: damage / error });
        }
        found.sort_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
        found
    }

    /// Error against parameters for each set of members: at each cost the best form, last all of it whole. Multiply-accumulates
    /// have a price in errors; `limited`, no point takes more of them than its members as they are.
    fn offers(&self, price: f64, limited: bool) -> Vec<(Offer, Vec<Point>)> {
        let units = &self.candidates.units;
        let mut sets: BTreeMap<Vec<usize>, Vec<(usize, &Profile)>> = BTreeMap::new();
        for (u, unit) in units.iter().enumerate() {
            // One that has several partners to choose from may stay whole while they do without it.
            unit.members.iter().for_each(|&m| _ = sets.entry(vec![m]).or_default());
            if let Some(profile) = self.profiles[u].as_ref().filter(|p| !p.dropped()) {
                sets.entry(unit.members.clone()).or_default().push((u, profile));
            }
        }
        let offers = sets.into_iter().map(|(members, of)| {
            let whole = members.iter().map(|&m| self.convs[m].weights()).sum();
            let whole_macs = self.whole_macs(&members);
            let mut points: Vec<(u64, f64, Point)> = Vec::new();
            for (u, profile) in of {
                let macs = |rank| units[u].macs(rank, &self.convs) as f64;
                let error = |rank| self.damage(u, profile, rank) + if price > 0.0 { price * macs(rank) } else { 0.0 };
                let point = |rank| (units[u].cost(rank), error(rank), Some((u, rank)));
                let fits = |rank: &usize| !limited || units[u].macs(*rank, &self.convs) <= whole_macs;
                points.extend(units[u].ranks().filter(fits).map(point).filter(|p| p.0 < whole));
            }
            points.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            let mut least = f64::INFINITY;
            points.retain(|p| {
                let better = p.1 < least;
                least = least.min(p.1);
                better
            });
            points.push((whole, price * whole_macs as f64, None));
            let curve = Curve { points: points.iter().map(|p| (p.0, p.1)).collect() };
            (Offer { members, curve }, points.into_iter().map(|p| p.2).collect())
        });
        offers.collect()
    }
}

/// A point of an offer's curve: a unit and its rank, or none where the members stay whole.
type Point = Option<(usize, usize)>;

/// A choice for all convolutions.
struct Found {
    /// Sets of members in graph order, with what each becomes.
    named: Vec<(Vec<usize>, Point)>,
    damage: f64,
    /// Parameters left of the budget.
    unspent: u64,
    macs: u64,
}

/// What can be decomposed, by shapes alone.
pub(super) struct Candidates {
    units: Vec<Unit>,
    kept: Vec<Kept>,
    /// Parameters of the model.
    before: u64,
    /// Those that no decomposition changes.
    fixed: u64,
    /// The fewest that the others can become.
    least: u64,
}

impl Candidates {
    /// The ratio at which every rank is one.
    pub(super) fn largest_ratio(&self) -> f64 {
        self.before as f64 / (self.fixed + self.least).max(1) as f64
    }
}

/// Everything that shapes alone decide, refusals included.
pub(super) fn candidates(
    model: &Model,
    grouping: &Grouping,
    options: &PlanOptions,
    calibrated: bool,
) -> Result<Candidates> {
    check(options)?;
    let convs = &grouping.convs;
    let (mut units, idle): (Vec<_>, Vec<_>) = units(grouping, options, calibrated).into_iter().partition(Unit::pays);
    let dense = |u: &Unit| u.members.iter().any(|&m| convs[m].kind.is_dense());
    let by_rate = matches!(options.policy, RankPolicy::Rate(_));
    let dense: BTreeSet<usize> = units.extract_if(.., |u| by_rate && dense(u)).flat_map(|u| u.members).collect();
    let busy: BTreeSet<usize> = units.iter().flat_map(|u| u.members.iter().copied()).collect();
    let idle: BTreeSet<usize> = idle.iter().flat_map(|u| u.members.iter().copied()).collect();
    let kept = |&member: &usize| Kept { name: convs[member].name.clone(), reason: SkipReason::NeverPays.to_string() };
    let mut kept: Vec<Kept> = idle.difference(&busy).map(kept).collect();
    kept.extend(dense.iter().map(|&member| Kept {
        name: convs[member].name.clone(),
        reason: "fully connected: a rank rate is for convolutions".into(),
    }));
    if units.is_empty() {
        return Err(Error::NothingToCompress(nothing(grouping)));
    }
    let before = model.parameters();
    let movable: u64 = busy.iter().map(|&m| convs[m].weights()).sum();
    let fixed = before.saturating_sub(movable);
    let least = least(&units, &busy, convs);
    if let RankPolicy::Ratio(ratio) = options.policy {
        let target = (before as f64 / ratio).floor() as u64;
        if fixed + least > target {
            let largest = before as f64 / (fixed + least).max(1) as f64;
            if options.scheme == SchemeChoice::Auto && largest < LEAST_RATIO {
                let share = 100.0 * movable as f64 / before.max(1) as f64;
                return Err(Error::NothingToCompress(format!(
                    "what can be decomposed holds {share:.1} % of the parameters: the largest ratio is {largest:.3}"
                )));
            }
            return Err(unreachable(ratio, largest, options));
        }
        for unit in &mut units {
            unit.limit(match options.scheme {
                // Beyond what the others leave at their least, no rank is affordable.
                SchemeChoice::Only(_) => unit.least() + (target - fixed - least),
                SchemeChoice::Auto => target - fixed,
            });
        }
    }
    busy.iter().try_for_each(|&m| convs[m].check_finite())?;
    Ok(Candidates { units, kept, before, fixed, least })
}

/// Parameters of the units at their lowest ranks, each convolution in one.
fn least(units: &[Unit], busy: &BTreeSet<usize>, convs: &[Conv]) -> u64 {
    // A convolution may also stay whole.
    let whole: Vec<(Vec<usize>, u64)> = busy.iter().map(|&m| (vec![m], convs[m].weights())).collect();
    let all = units.iter().map(|u| (&u.members[..], u.least())).chain(whole.iter().map(|w| (&w.0[..], w.1)));
    let mut all: Vec<(&[usize], u64)> = all.collect();
    // Of the forms of one set the cheapest stands first.
    all.sort_by_key(|a| a.1);
    let (sets, costs): (Vec<&[usize]>, Vec<u64>) = all.into_iter().unzip();
    cover(&sets, &costs.iter().map(|&c| c as f64).collect::<Vec<_>>()).iter().map(|&at| costs[at]).sum()
}
