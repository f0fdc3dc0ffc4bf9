//! Ranks from a budget: which group is worth how many parameters.
//!
//! Each group offers a curve of error against stored parameters, one point a rank, and, last, staying whole at no
//! error. The choice walks the lower convex hulls of all curves together, steepest first, which is the optimum of the
//! Lagrangian `Σ error + λ·Σ parameters`; what the hulls' corners leave of the budget goes to the steps between them.

/// What one group can become: `(parameters, error)`, parameters ascending, the last point the group left whole.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) points: Vec<(u64, f64)>,
}

impl Curve {
    fn cost(&self, at: usize) -> u64 {
        self.points[at].0
    }

    /// Error removed per parameter by going from one point to a later one.
    fn slope(&self, from: usize, to: usize) -> f64 {
        let (cost, error) = self.points[from];
        let (more, less) = self.points[to];
        (error - less) / (more - cost).max(1) as f64
    }

    /// Positions of the corners of the lower convex hull, from the cheapest point to the whole.
    fn hull(&self) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for at in 0..self.points.len() {
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
    fn best_step(&self, from: usize, budget: u64) -> Option<(usize, f64)> {
        let affordable = (from + 1..self.points.len()).take_while(|&to| self.cost(to) - self.cost(from) <= budget);
        let steps = affordable.map(|to| (to, self.slope(from, to))).filter(|s| s.1 > 0.0);
        steps.fold(None, |best: Option<(usize, f64)>, step| match best {
            Some(b) if b.1 >= step.1 => Some(b),
            _ => Some(step),
        })
    }
}

/// One point of each curve, together at most `budget` parameters; none if even the cheapest exceed it.
pub(crate) fn allocate(curves: &[Curve], budget: u64) -> Option<Vec<usize>> {
    let least: u64 = curves.iter().map(|c| c.cost(0)).sum();
    let mut left = budget.checked_sub(least)?;
    let mut chosen = vec![0; curves.len()];
    let mut corners: Vec<(usize, usize, usize, f64)> = Vec::new();
    for (index, curve) in curves.iter().enumerate() {
        let hull = curve.hull();
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
        let steps =
            curves.iter().enumerate().filter_map(|(i, c)| c.best_step(chosen[i], left).map(|(to, s)| (i, to, s)));
        let best = steps.fold(None, |best: Option<(usize, usize, f64)>, step| match best {
            Some(b) if b.2 >= step.2 => Some(b),
            _ => Some(step),
        });
        let Some((index, to, _)) = best else {
            return Some(chosen);
        };
        left -= curves[index].cost(to) - curves[index].cost(chosen[index]);
        chosen[index] = to;
    }
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

    #[test]
    fn no_choice_within_the_budget_is_better_than_the_chosen_one_by_more_than_a_step() {
        let curves = [geometric(3, 0.5, 6, 20), geometric(5, 0.8, 6, 33), geometric(2, 0.9, 8, 18)];
        for budget in 10..71 {
            let chosen = allocate(&curves, budget).unwrap();
            let (cost, error) = total(&curves, &chosen);
            assert!(cost <= budget);
            let mut best = f64::MAX;
            for a in 0..7 {
                for b in 0..7 {
                    for c in 0..9 {
                        let (cost, error) = total(&curves, &[a, b, c]);
                        if cost <= budget {
                            best = best.min(error);
                        }
                    }
                }
            }
            // The Lagrangian's choice is optimal up to what the last, unaffordable corner would have removed.
            assert!(error <= best + 0.55, "{budget}: {error} against {best}");
        }
    }

    #[test]
    fn a_budget_for_everything_leaves_everything_whole() {
        let curves = [geometric(3, 0.5, 6, 20), geometric(5, 0.8, 6, 33)];
        assert_eq!(allocate(&curves, 53), Some(vec![6, 6]));
    }

    #[test]
    fn a_budget_below_rank_one_everywhere_is_refused() {
        let curves = [geometric(3, 0.5, 6, 20), geometric(5, 0.8, 6, 33)];
        assert_eq!(allocate(&curves, 7), None);
        assert_eq!(allocate(&curves, 8), Some(vec![0, 0]));
    }
}
