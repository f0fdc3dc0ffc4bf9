//! The two halves of fitting a chain, each exact least squares for the other: neither ever raises the error.
//!
//! Order the rows of a kernel by the offsets that the last factor slides over, `l`, then those of the first, then the input
//! channel. A chain then is `P_l = A·B_l`: one `A: rows×r` for all `l`. Its two halves are linear:
//!
//! * `B` given `A`: `(TᵀΣT)·B = TᵀC` with `T = I ⊗ A`, directly;
//! * `A` given `B`: `Σ_{l,m} Σ_lm·A·(B_m·B_lᵀ) = Σ_l C_l·B_lᵀ`, by conjugate gradients from the last `A`, preconditioned with
//!   `Σ̄⁻¹ · (Σ_l B_l·B_lᵀ)⁻¹`, which is the solution where offsets do not correlate;
//!
//! * where the last factor is cut again, `B_l = C_l·Vᵀ`, `V` spans the leading eigenvectors of `BᵀTᵀΣTB` of that `B`, which is the
//!   best of its rank (reduced-rank regression), and a shared one those of the sum over the members; `C_l = B_l·V`;
//!
//! where `C = Σ·W`, or, when a layer is refitted on inputs `x̂` that an already compressed network gives, `C = E[x̂·yᵀ]`.
//! A shared factor's equations are the sums over the members, each weighted by `1 / E‖y‖²`. Of several chains each is
//! fitted to what the others leave.

use super::chain::core;
use super::joint::output_bases;
use super::linalg::{Positive, orthonormal_with_rest, product};
use super::target::Target;
use super::{Chain, ChainForm, Ownership, Side, Width};
use ndarray::{Array2, Array4, ArrayView4, s};

/// Conjugate-gradient steps for one update of a first factor.
const GRADIENT_STEPS: usize = 5;
/// Added to the diagonal of normal equations, relative to its mean: inputs that never vary decide nothing.
const RIDGE: f64 = 1e-7;

/// A chain's matrices while they are fitted, one or one a member.
#[derive(Debug, Clone)]
pub(super) struct Term {
    pub(super) form: ChainForm,
    pub(super) a: Vec<Array2<f64>>,
    /// `B`, also where it is `C·Vᵀ`.
    pub(super) b: Vec<Array2<f64>>,
    /// `V: out×r` of a second cut, one or one a member.
    pub(super) cuts: Vec<Array2<f64>>,
    /// Its rank, at most.
    pub(super) rank: usize,
}

impl Term {
    pub(super) fn of(&self, member: usize) -> (&Array2<f64>, &Array2<f64>) {
        (&self.a[member.min(self.a.len() - 1)], &self.b[member.min(self.b.len() - 1)])
    }
}

/// What the other chains leave to be fitted: `C − Σ·P`.
fn remaining(terms: &[Term], at: usize, member: usize, target: &Target) -> Array2<f64> {
    let others = terms.iter().enumerate().filter(|(t, _)| *t != at).map(|(_, term)| term.of(member));
    others.fold(target.product.clone(), |left, (a, b)| if b.is_empty() { left } else { left - target.image(a, b) })
}

/// Last factors of a chain, directly; a shared `V` of a second cut only if it may `move`.
pub(super) fn solve_last(terms: &mut [Term], at: usize, targets: &[Target], moves: bool) -> Result<(), String> {
    let shared = terms[at].form.rest() == Ownership::Shared;
    // Each with what weighs a deviation of it, `TᵀΣT`.
    let mut solved: Vec<(Array2<f64>, Array2<f64>)> = Vec::new();
    let mut sum: Option<(Array2<f64>, Array2<f64>)> = None;
    for (i, target) in targets.iter().enumerate() {
        let a = terms[at].of(i).0;
        let (rank, offsets) = (a.ncols(), target.offsets());
        let left = remaining(terms, at, i, target);
        let images = target.metric_times(a);
        let mut gram = Array2::zeros((offsets * rank, offsets * rank));
        let mut right = Array2::zeros((offsets * rank, left.ncols()));
        for l in 0..offsets {
            let rows = l * rank..(l + 1) * rank;
            gram.slice_mut(s![rows.clone(), ..]).assign(&product(a.t(), images.slice(s![target.block(l), ..])));
            right.slice_mut(s![rows, ..]).assign(&product(a.t(), left.slice(s![target.block(l), ..])));
        }
        if shared {
            let (g, r) = (gram * target.weight(), right * target.weight());
            sum = Some(match sum {
                Some((x, y)) => (x + g, y + r),
                None => (g, r),
            });
        } else {
            solved.push((Positive::new(&gram, RIDGE)?.solve(&right), gram * target.weight()));
        }
    }
    if let Some((gram, right)) = sum {
        solved.push((Positive::new(&gram, RIDGE)?.solve(&right), gram));
    }
    let term = &mut terms[at];
    if term.form.core.is_some() {
        if term.form.last == Ownership::Own || moves {
            let grams: Vec<Array2<f64>> =
                solved.iter().map(|(b, gram)| product(b.t(), product(gram.view(), b.view()).view())).collect();
            term.cuts = output_bases(term.form.last, &grams, term.rank)?.into_iter().map(|b| b.vectors).collect();
        }
        for (i, (b, _)) in solved.iter_mut().enumerate() {
            let v = &term.cuts[i.min(term.cuts.len() - 1)];
            *b = core(b.view(), v).dot(&v.t());
        }
    }
    term.b = solved.iter().map(|(b, _)| beside(b, targets[0].offsets())).collect();
    Ok(())
}

/// `(offsets·r) × out` as `r × (offsets·out)`.
fn beside(stacked: &Array2<f64>, offsets: usize) -> Array2<f64> {
    let rank = stacked.nrows() / offsets.max(1);
    let out = stacked.ncols();
    Array2::from_shape_fn((rank, offsets * out), |(r, c)| stacked[[(c / out) * rank + r, c % out]])
}

/// First factors of a chain, by conjugate gradients from where they are.
pub(super) fn solve_first(terms: &mut [Term], at: usize, targets: &[Target]) -> Result<(), String> {
    let members: Vec<Vec<usize>> = match terms[at].form.first {
        Ownership::Shared => vec![(0..targets.len()).collect()],
        Ownership::Own => (0..targets.len()).map(|i| vec![i]).collect(),
    };
    let mut solved = Vec::new();
    for members in members {
        let rank = terms[at].of(members[0]).0.ncols();
        let mut right: Option<Array2<f64>> = None;
        // Σ_l B_l·B_lᵀ over the members.
        let mut diagonal = Array2::zeros((rank, rank));
        let mut products = Vec::new();
        for &i in &members {
            let target = &targets[i];
            let (offsets, b) = (target.offsets(), terms[at].of(i).1);
            let out = target.product.ncols();
            let part = |l: usize| b.slice(s![.., l * out..(l + 1) * out]);
            let left = remaining(terms, at, i, target);
            for l in 0..offsets {
                let term = product(left.slice(s![target.block(l), ..]), part(l).t()) * target.weight();
                right = Some(right.map_or(term.clone(), |r| r + term));
            }
            // For each l, the B_m·B_lᵀ of all m on top of each other.
            let mut pairs = Vec::with_capacity(offsets);
            for l in 0..offsets {
                let mut pair = Array2::zeros((offsets * rank, rank));
                for m in 0..offsets {
                    let product = product(part(m), part(l).t()) * target.weight();
                    pair.slice_mut(s![m * rank..(m + 1) * rank, ..]).assign(&product);
                    if l == m {
                        diagonal += &product;
                    }
                }
                pairs.push(pair);
            }
            products.push((target, pairs));
        }
        let operator = |a: &Array2<f64>| {
            let mut sum = Array2::zeros(a.dim());
            for (target, pairs) in &products {
                let images = target.metric_times(a);
                for (l, pair) in pairs.iter().enumerate() {
                    sum += &product(images.slice(s![target.block(l), ..]), pair.view());
                }
            }
            sum
        };
        let small = Positive::new(&diagonal, RIDGE)?;
        // One member's Σ̄ stands for all: they read alike, or they would not share.
        let preconditioner =
            |x: &Array2<f64>| small.solve(&products[0].0.precondition(x).t().to_owned()).reversed_axes();
        let start = terms[at].of(members[0]).0.clone();
        solved.push(conjugate_gradients(operator, preconditioner, &right.unwrap_or_default(), start));
    }
    terms[at].a = solved;
    Ok(())
}

fn conjugate_gradients(
    operator: impl Fn(&Array2<f64>) -> Array2<f64>,
    preconditioner: impl Fn(&Array2<f64>) -> Array2<f64>,
    right: &Array2<f64>,
    mut x: Array2<f64>,
) -> Array2<f64> {
    let dot = |a: &Array2<f64>, b: &Array2<f64>| (a * b).sum();
    let mut residual = right - &operator(&x);
    let mut turned = preconditioner(&residual);
    let mut direction = turned.clone();
    let mut size = dot(&residual, &turned);
    let enough = 1e-14 * dot(right, right);
    for _ in 0..GRADIENT_STEPS {
        if dot(&residual, &residual) <= enough || size <= 0.0 {
            break;
        }
        let image = operator(&direction);
        let curvature = dot(&direction, &image);
        if curvature <= 0.0 {
            break;
        }
        let step = size / curvature;
        if !step.is_finite() {
            break;
        }
        x.scaled_add(step, &direction);
        residual.scaled_add(-step, &image);
        turned = preconditioner(&residual);
        let next = dot(&residual, &turned);
        direction = &turned + &(direction * (next / size));
        size = next;
    }
    x
}

/// Makes the basis side orthonormal, its scale moved to the other factor.
pub(super) fn normalize(term: &mut Term) -> Result<(), String> {
    if term.form.basis_side() == Side::Last {
        let (q, rest) = orthonormal_with_rest(term.b[0].t());
        term.b[0] = q.reversed_axes();
        term.a.iter_mut().for_each(|a| *a = a.dot(&rest.t()));
        return Ok(());
    }
    let mut rests = Vec::new();
    for a in &mut term.a {
        let (q, rest) = orthonormal_with_rest(a.view());
        *a = q;
        rests.push(rest);
    }
    for (i, b) in term.b.iter_mut().enumerate() {
        *b = rests[i.min(rests.len() - 1)].dot(b);
    }
    Ok(())
}

/// The factors as the kernels that are written; `finish` gets each last one before it is rounded to `width`.
pub(super) fn chain(
    term: &Term,
    shapes: &[[usize; 4]],
    finish: &dyn Fn(usize, ArrayView4<'_, f64>) -> Array4<f64>,
    width: Width,
) -> Chain {
    let pair = |i: usize| {
        let (a, b) = term.of(i);
        (a.view(), b.view())
    };
    Chain::fold(&term.form, shapes, &pair, &term.cuts, &|i, kernel| finish(i, kernel.view()), width)
}
