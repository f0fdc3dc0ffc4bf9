//! Ranks from a budget: which group is worth how many parameters.
//!
//! Each group offers a curve of error against stored parameters, one point a rank, and, last, staying whole at no
//! error. The choice walks the lower convex hulls of all curves together, steepest first, which is the optimum of the
//! Lagrangian `Σ error + λ·Σ parameters`; what the hulls' corners leave of the budget goes to the steps between them. Where
//! that still leaves much, because the next step of every group is too large, each group in turn is forced to stay whole or
//! forbidden to, the best of these choices is taken, and some ranks of one group go to another. Where convolutions can be
//! put together in several ways, the same price λ decides which.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// What one group can become: `(parameters, error)`, parameters ascending, the last point the group left whole.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) points: Vec<(u64, f64)>,
}

impl Curve {
    fn cost(&self, at: usize) -> u64 {
        self.points[at].0
    }

    fn whole(&self) -> usize {
        self.points.len() - 1
    }

    /// Error removed per parameter by going from one point to a later one.
    fn slope(&self, from: usize, to: usize) -> f64 {
        let (cost, error) = self.points[from];
        let (more, less) = self.points[to];
        (error - less) / (more - cost).max(1) as f64
    }

    /// Positions of the corners of the lower convex hull, from the cheapest point to the dearest.
    fn hull(&self, allowed: RangeInclusive<usize>) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for at in allowed {
            while let [.., before, last] = hull[..] {
                if self.slope(before, last) > self.slope(before, at) {
                    break;
                }
                hull.pop();
            }
            hull.push(at);
        }
        hull
    }

    /// The point after `from` that removes most error per parameter within `budget` more parameters.
    fn best_step(&self, from: usize, last: usize, budget: u64) -> Option<(usize, f64)> {
        let affordable = (from + 1..=last).take_while(|&to| self.cost(to) - self.cost(from) <= budget);
        let steps = affordable.map(|to| (to, self.slope(from, to))).filter(|s| s.1 > 0.0);
        steps.fold(None, |best: Option<(usize, f64)>, step| match best {
            Some(b) if b.1 >= step.1 => Some(b),
            _ => Some(step),
        })
    }
}

/// What some convolutions can become together, whatever the form.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The convolutions, ascending.
    pub(crate) members: Vec<usize>,
    /// Their curve.
    pub(crate) curve: Curve,
}

/// Steps of bisection for the price of a parameter.
const PRICES: usize = 60;
/// Prices around the right one whose partitions are tried.
const TRIED: usize = 6;

/// Which offers to take, each convolution in exactly one, and one point of each, together at most `budget` parameters: the least
/// error found. At a price λ a parameter an offer is worth its `min (error + λ·parameters)`, and the partition that is worth
/// most follows greedily; λ is what makes the sum meet the budget.
pub(crate) fn choose(offers: &[Offer], budget: u64, slack: u64) -> Option<Vec<(usize, usize)>> {
    let at_price = |price: f64| {
        let best = |curve: &Curve| {
            let values = curve.points.iter().map(|p| p.1 + price * p.0 as f64).enumerate();
            values.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
        };
        let best: Vec<(usize, f64)> = offers.iter().map(|o| best(&o.curve)).collect();
        let values: Vec<f64> = best.iter().map(|b| b.1).collect();
        let taken = cover(&offers.iter().map(|o| &o.members[..]).collect::<Vec<_>>(), &values);
        let cost: u64 = taken.iter().map(|&o| offers[o].curve.cost(best[o].0)).sum();
        (taken, cost)
    };
    let mut partitions: BTreeSet<Vec<usize>> = BTreeSet::new();
    // From where errors of one decide to where a parameter outweighs any error.
    let (mut low, mut high) = (1e-18, 1e6);
    for _ in 0..PRICES {
        let middle = f64::sqrt(low * high);
        if at_price(middle).1 <= budget { high = middle } else { low = middle }
    }
    for step in 0..TRIED {
        let away = 1.0 + 0.15 * step as f64;
        partitions.extend([at_price(low / away).0, at_price(high * away).0]);
    }
    // The cheapest of all, and nothing shared that need not be.
    let members: Vec<&[usize]> = offers.iter().map(|o| &o.members[..]).collect();
    partitions.insert(cover(&members, &offers.iter().map(|o| o.curve.cost(0) as f64).collect::<Vec<_>>()));
    partitions.insert(cover(&members, &offers.iter().map(|o| (o.members.len() as f64).powi(2)).collect::<Vec<_>>()));
    let mut least: Option<(f64, Vec<(usize, usize)>)> = None;
    for taken in partitions {
        let curves: Vec<Curve> = taken.iter().map(|&o| offers[o].curve.clone()).collect();
        let Some(points) = allocate(&curves, budget, slack) else { continue };
        let error: f64 = curves.iter().zip(&points).map(|(c, &at)| c.points[at].1).sum();
        if least.as_ref().is_none_or(|l| error < l.0) {
            least = Some((error, taken.into_iter().zip(points).collect()));
        }
    }
    least.map(|l| l.1)
}

/// A partition of all that the sets hold into some of them, of about the least total value: sets of several in the order of
/// what they are worth more than their members alone, as far as they do not overlap. Each member must also be there alone.
pub(crate) fn cover(sets: &[&[usize]], values: &[f64]) -> Vec<usize> {
    let mut alone: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, set) in sets.iter().enumerate() {
        if let [member] = set {
            alone.entry(*member).or_insert(at);
        }
    }
    let alone_value = |m: &usize| alone.get(m).map_or(0.0, |&at| values[at]);
    let gain = |at: usize| sets[at].iter().map(alone_value).sum::<f64>() - values[at];
    let mut gains: Vec<(usize, f64)> =
        (0..sets.len()).filter(|&at| sets[at].len() > 1).map(|at| (at, gain(at))).collect();
    gains.retain(|g| g.1 > 0.0);
    // Stable: of equals the first in the graph.
    gains.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut left: BTreeSet<usize> = alone.keys().copied().collect();
    let mut taken = Vec::new();
    for (at, _) in gains {
        if sets[at].iter().all(|m| left.contains(m)) {
            sets[at].iter().for_each(|m| _ = left.remove(m));
            taken.push(at);
        }
    }
    taken.extend(left.iter().filter_map(|m| alone.get(m)));
    taken.sort_unstable();
    taken
}

/// One point of each curve.
#[derive(Debug, Clone)]
struct Choice {
    points: Vec<usize>,
    error: f64,
    unspent: u64,
}

/// Rounds of forcing one curve more.
const ROUNDS: usize = 8;

/// One point of each curve, together at most `budget` parameters; none if even the cheapest exceed it. More than `slack`
/// parameters are left over only if nothing found uses them better.
fn allocate(curves: &[Curve], budget: u64, slack: u64) -> Option<Vec<usize>> {
    let mut allowed: Vec<RangeInclusive<usize>> = curves.iter().map(|c| 0..=c.whole()).collect();
    let mut now = greedy(curves, &allowed, budget)?;
    let mut best = now.clone();
    for _ in 0..ROUNDS {
        if best.unspent <= slack {
            break;
        }
        let mut next: Option<(usize, RangeInclusive<usize>, Choice)> = None;
        for (index, curve) in curves.iter().enumerate() {
            let whole = curve.whole();
            if allowed[index] != (0..=whole) || whole == 0 {
                continue;
            }
            let forced = if now.points[index] == whole { 0..=whole - 1 } else { whole..=whole };
            let free = std::mem::replace(&mut allowed[index], forced.clone());
            let found = greedy(curves, &allowed, budget);
            allowed[index] = free;
            let better = |c: &Choice| next.as_ref().is_none_or(|n| c.error < n.2.error);
            if let Some(choice) = found.filter(better) {
                next = Some((index, forced, choice));
            }
        }
        // The way to a better choice may lead through a worse one.
        let Some((index, forced, choice)) = next else { break };
        allowed[index] = forced;
        if choice.error < best.error {
            best = choice.clone();
        }
        now = choice;
    }
    exchange(curves, &mut best, slack);
    Some(best.points)
}

/// Ranks given back at most by one curve for another to use.
const GIVEN_BACK: usize = 24;

/// While more than `slack` is left over: takes back some steps of one curve where another can use them, together with what is
/// left, to remove more error.
fn exchange(curves: &[Curve], choice: &mut Choice, slack: u64) {
    while choice.unspent > slack {
        let mut best: Option<(usize, usize, usize, usize, f64)> = None;
        for (i, giver) in curves.iter().enumerate() {
            let from = choice.points[i];
            for lower in from.saturating_sub(GIVEN_BACK)..from {
                let budget = choice.unspent + giver.cost(from) - giver.cost(lower);
                let lost = giver.points[lower].1 - giver.points[from].1;
                for (j, taker) in curves.iter().enumerate().filter(|(j, _)| *j != i) {
                    let now = choice.points[j];
                    // Error falls along a curve, so the dearest point within the budget removes most.
                    let dearest = taker.points.partition_point(|p| p.0 <= taker.cost(now) + budget).saturating_sub(1);
                    let gain = taker.points[now].1 - taker.points[dearest.max(now)].1 - lost;
                    if gain > best.map_or(0.0, |b| b.4) {
                        best = Some((i, lower, j, dearest, gain));
                    }
                }
            }
        }
        let Some((i, lower, j, dearest, gain)) = best else { break };
        choice.unspent += curves[i].cost(choice.points[i]) - curves[i].cost(lower);
        choice.unspent -= curves[j].cost(dearest) - curves[j].cost(choice.points[j]);
        (choice.points[i], choice.points[j]) = (lower, dearest);
        choice.error -= gain;
    }
}

/// The walk along the hulls, each curve within the points it is allowed, and then the steps that still fit.
fn greedy(curves: &[Curve], allowed: &[RangeInclusive<usize>], budget: u64) -> Option<Choice> {
    let mut chosen: Vec<usize> = allowed.iter().map(|a| *a.start()).collect();
    let least: u64 = curves.iter().zip(&chosen).map(|(c, &at)| c.cost(at)).sum();
    let mut left = budget.checked_sub(least)?;
    let mut corners: Vec<(usize, usize, usize, f64)> = Vec::new();
    for (index, (curve, allowed)) in curves.iter().zip(allowed).enumerate() {
        let hull = curve.hull(allowed.clone());
        corners.extend(hull.windows(2).map(|w| (index, w[0], w[1], curve.slope(w[0], w[1]))));
    }
    // Stable, so that equal slopes keep the order of the graph.
    corners.sort_by(|a, b| b.3.total_cmp(&a.3));
    for (index, from, to, slope) in corners {
        let cost = curves[index].cost(to) - curves[index].cost(from);
        if chosen[index] == from && cost <= left && slope > 0.0 {
            chosen[index] = to;
            left -= cost;
        }
    }
    loop {
        let step = |(index, curve): (usize, &Curve)| {
            curve.best_step(chosen[index], *allowed[index].end(), left).map(|(to, slope)| (index, to, slope))
        };
        let best =
            curves.iter().enumerate().filter_map(step).fold(
                None,
                |best: Option<(usize, usize, f64)>, step| match best {
                    Some(b) if b.2 >= step.2 => Some(b),
                    _ => Some(step),
                },
            );
        let Some((index, to, _)) = best else { break };
        left -= curves[index].cost(to) - curves[index].cost(chosen[index]);
        chosen[index] = to;
    }
    let error = curves.iter().zip(&chosen).map(|(c, &at)| c.points[at].1).sum();
    Some(Choice { points: chosen, error, unspent: left })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometric(step: u64, decay: f64, ranks: u64, whole: u64) -> Curve {
        let points = (1..=ranks).map(|r| (r * step, decay.powi(r as i32)));
        Curve { points: points.chain([(whole, 0.0)]).collect() }
    }

    fn total(curves: &[Curve], chosen: &[usize]) -> (u64, f64) {
        let points = curves.iter().zip(chosen).map(|(c, &at)| c.points[at]);
        points.fold((0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// The least error of all choices within a budget.
    fn optimum(curves: &[Curve; 3], budget: u64) -> f64 {
        let all = ndarray::indices((curves[0].points.len(), curves[1].points.len(), curves[2].points.len()));
        let totals = all.into_iter().map(|(a, b, c)| total(curves, &[a, b, c]));
        totals.filter(|t| t.0 <= budget).map(|t| t.1).fold(f64::MAX, f64::min)
    }

    #[test]
    fn the_choice_is_as_good_as_any_that_spends_one_corner_less() {
        let curves = [geometric(3, 0.5, 6, 20), geometric(5, 0.8, 6, 33), geometric(2, 0.9, 8, 18)];
        // From rank one of the second curve straight to its whole.
        let largest_corner = 28;
        for budget in 10..=71 {
            let (cost, error) = total(&curves, &allocate(&curves, budget, 0).unwrap());
            assert!(cost <= budget);
            assert!(error <= optimum(&curves, budget.saturating_sub(largest_corner)), "{budget}");
        }
        assert_eq!(total(&curves, &allocate(&curves, 71, 0).unwrap()).1, 0.0);
    }

    #[test]
    fn a_budget_for_everything_leaves_everything_whole() {
        let curves = [geometric(3, 0.5, 6, 20), geometric(5, 0.8, 6, 33)];
        assert_eq!(allocate(&curves, 53, 0), Some(vec![6, 6]));
    }

    #[test]
    fn a_budget_below_rank_one_everywhere_is_refused() {
        let curves = [geometric(3, 0.5, 6, 20), geometric(5, 0.8, 6, 33)];
        assert_eq!(allocate(&curves, 7, 0), None);
        assert_eq!(allocate(&curves, 8, 0), Some(vec![0, 0]));
    }
}
