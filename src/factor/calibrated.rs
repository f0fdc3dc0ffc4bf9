//! Joint decomposition in the norm that the layer sees.
//!
//! With `x` a row of the input's im2col matrix, centred, and `Σ = E[x·xᵀ]`, the error of the output is
//! `E ‖(W − Ŵ)ᵀx‖² = tr (W − Ŵ)ᵀ Σ (W − Ŵ)`, and the mean's share of it is the bias's to absorb. Where output channels
//! matter differently, `W` is first turned by `G^½` along its output (see [`OutputNorm`](super::OutputNorm)).
//!
//! The starting point are the leading singular vectors in the norm of `Σ̄`, the mean of `Σ` over the offsets of the last
//! factor (arXiv 2511.04494 uses this norm, DRONE and SVD-LLM for matrices):
//!
//! * a first factor, shared or not: of `Σ̄^½·[W₁ … Wₙ]`, with one `Σ̄` for all members;
//! * a shared last factor: of the stacked `Σ̄ᵢ^½·Wᵢ`, each member with its own, which is the optimum where one offset is all.
//!
//! Either by the Gram matrix of its smaller side: `Wᵀ·Σ̄·W` needs no square root of `Σ̄`.

use super::joint::{Cut, relative};
use super::linalg::{Basis, Positive, leading_eigenvectors, product, symmetric_roots};
use super::solve::{Term, chain, normalize, solve_first, solve_last};
use super::target::{Seen, Target};
use super::{Analysis, ChainForm, Factor, Factors, Kernels, Moment, Ownership, Side, Width, compose};
use ndarray::{Array1, Array2, Array4, Axis, concatenate, s};

/// Directions whose variance is below this share of the largest are not divided by.
const RANK_FLOOR: f64 = 1e-10;

/// A member's matrix, scaled so that its output has unit energy, and `Σ̄` of its rows.
struct Block {
    matrix: Array2<f64>,
    metric: Array2<f64>,
}

/// Spectra and starting bases in the calibrated norm.
///
/// # Errors
/// The solver's reason if an eigendecomposition does not converge.
pub fn analyse_calibrated<K: Kernels + ?Sized>(
    chains: &[ChainForm],
    kernels: &K,
    seen: &[Seen<'_>],
    keep: usize,
) -> Result<Analysis, String> {
    let mut bases = Vec::with_capacity(chains.len());
    let mut shares = Vec::with_capacity(chains.len());
    let mut cuts = Vec::with_capacity(chains.len());
    for form in chains {
        let mut outputs = Vec::new();
        let blocks = seen.iter().enumerate().map(|(i, seen)| {
            let kernel = kernels.kernel(i);
            let target = Target::of_kernel(form, kernel.view(), seen);
            if form.core.is_some() {
                outputs.push(target.output_gram(form.unfolding.unfold(seen.weigh(kernel.view()).view()).view()));
            }
            let matrix = form.unfolding.unfold(seen.weigh(kernel.view()).view()) * target.weight().sqrt();
            Block { matrix, metric: target.mean_block() }
        });
        let (found, carried) = match (form.basis_side(), form.basis()) {
            (Side::First, Ownership::Own) => {
                let each = blocks.map(|b| common(&[b], keep)).collect::<Result<Vec<_>, String>>()?;
                let (bases, shares): (Vec<Basis>, Vec<Vec<Vec<f64>>>) = each.into_iter().unzip();
                (bases, shares.into_iter().flatten().collect())
            }
            (Side::First, Ownership::Shared) if form.is_common() => {
                let blocks: Vec<Block> = blocks.collect();
                let n = blocks.len().max(1);
                let mean = |of: &dyn Fn(&Block) -> Array2<f64>| {
                    blocks.iter().map(of).reduce(|a, b| a + b).unwrap_or_default() / n as f64
                };
                let mean = Block { matrix: mean(&|b| b.matrix.clone()), metric: mean(&|b| b.metric.clone()) };
                // Of members of unit energy the mean carries this share of each, about.
                let energy = (&mean.matrix * &product(mean.metric.view(), mean.matrix.view())).sum();
                let (basis, shares) = common(&[mean], keep)?;
                let share: Vec<f64> = shares.into_iter().flatten().map(|s| s * energy).collect();
                (vec![basis], vec![share; n])
            }
            (Side::First, Ownership::Shared) => {
                let (basis, shares) = common(&blocks.collect::<Vec<_>>(), keep)?;
                (vec![basis], shares)
            }
            (Side::Last, _) => {
                let (basis, shares) = stacked(&blocks.collect::<Vec<_>>(), keep)?;
                (vec![basis], shares)
            }
        };
        bases.push(found);
        shares.push(carried);
        cuts.push(Cut::new(form, outputs.into_iter())?);
    }
    // Each member is scaled to unit energy.
    Ok(Analysis::new(chains, seen.len(), || seen.len() as f64, bases, shares, cuts))
}

/// The basis of a first factor common to all members, orthonormal in the mean of their metrics, and what share of each member's
/// energy each vector carries.
fn common(blocks: &[Block], keep: usize) -> Result<(Basis, Vec<Vec<f64>>), String> {
    let n = blocks.len().max(1) as f64;
    let metric = blocks.iter().map(|b| b.metric.clone()).reduce(|a, b| a + b).unwrap_or_default() / n;
    let views: Vec<_> = blocks.iter().map(|b| b.matrix.view()).collect();
    let all = concatenate(Axis(1), &views).map_err(|e| e.to_string())?;
    let places = blocks.iter().scan(0, |next, b| {
        let from = std::mem::replace(next, *next + b.matrix.ncols());
        Some(from..*next)
    });
    let mut shares = Vec::new();
    if all.ncols() <= all.nrows() {
        let gram = product(all.t(), product(metric.view(), all.view()).view());
        let Basis { vectors, spectrum } = leading_eigenvectors(&gram, keep)?;
        for place in places {
            let part = vectors.slice(s![place.clone(), ..]);
            let energies =
                part.columns().into_iter().zip(&spectrum).map(|(v, l)| l * v.iter().map(|x| x * x).sum::<f64>());
            shares.push(relative(&energies.collect::<Vec<_>>(), gram.diag().slice(s![place]).sum()));
        }
        let vectors = product(all.view(), vectors.view()) * &inverse_roots(&spectrum, vectors.ncols());
        return Ok((Basis { vectors, spectrum }, shares));
    }
    let (root, inverse) = symmetric_roots(&metric, RANK_FLOOR)?;
    let white = product(root.view(), all.view());
    let Basis { vectors, spectrum } = leading_eigenvectors(&product(white.view(), white.t()), keep)?;
    for place in places {
        let part = white.slice(s![.., place]);
        let energies: Vec<f64> = squares(product(vectors.t(), part).view());
        shares.push(relative(&energies, part.iter().map(|x| x * x).sum()));
    }
    Ok((Basis { vectors: product(inverse.view(), vectors.view()), spectrum }, shares))
}

/// The orthonormal basis of a last factor common to all members, and the shares as [`common`] gives them.
fn stacked(blocks: &[Block], keep: usize) -> Result<(Basis, Vec<Vec<f64>>), String> {
    let columns = blocks.first().map_or(0, |b| b.matrix.ncols());
    let rows: usize = blocks.iter().map(|b| b.matrix.nrows()).sum();
    if columns <= rows {
        let gram = |b: &Block| product(b.matrix.t(), product(b.metric.view(), b.matrix.view()).view());
        let grams: Vec<Array2<f64>> = blocks.iter().map(gram).collect();
        let sum = grams.iter().fold(Array2::zeros((columns, columns)), |sum, g| sum + g);
        let basis = leading_eigenvectors(&sum, keep)?;
        let shares = grams.iter().map(|g| {
            let energies = (&product(g.view(), basis.vectors.view()) * &basis.vectors).sum_axis(Axis(0));
            relative(&energies.to_vec(), g.diag().sum())
        });
        let shares = shares.collect();
        return Ok((basis, shares));
    }
    let white = blocks.iter().map(|b| Ok(product(symmetric_roots(&b.metric, RANK_FLOOR)?.0.view(), b.matrix.view())));
    let white = white.collect::<Result<Vec<_>, String>>()?;
    let views: Vec<_> = white.iter().map(|w| w.view()).collect();
    let all = concatenate(Axis(0), &views).map_err(|e| e.to_string())?;
    let Basis { vectors, spectrum } = leading_eigenvectors(&product(all.view(), all.t()), keep)?;
    let vectors = product(all.t(), vectors.view()) * &inverse_roots(&spectrum, vectors.ncols());
    let shares = white.iter().map(|w| {
        let energies = squares(product(w.view(), vectors.view()).t());
        relative(&energies, w.iter().map(|x| x * x).sum())
    });
    let shares = shares.collect();
    Ok((Basis { vectors, spectrum }, shares))
}

/// `λ^-½`, and zero for what is rounding noise.
fn inverse_roots(spectrum: &[f64], count: usize) -> Array1<f64> {
    let least = RANK_FLOOR * spectrum.first().copied().unwrap_or(0.0);
    spectrum.iter().take(count).map(|&l| if l > least { l.sqrt().recip() } else { 0.0 }).collect()
}

/// Squared length of each row.
fn squares(rows: ndarray::ArrayView2<'_, f64>) -> Vec<f64> {
    rows.outer_iter().map(|row| row.iter().map(|x| x * x).sum()).collect()
}

/// Factors in the calibrated norm after some turns between the two halves of each chain, and what they leave of each member's
/// output, `E‖y − ŷ‖² / E‖y‖²`.
///
/// # Errors
/// A reason if a rank exceeds what `analysis` kept, or if a system of equations is not positive.
pub fn factorize_calibrated<K: Kernels + ?Sized>(
    chains: &[ChainForm],
    kernels: &K,
    seen: &[Seen<'_>],
    ranks: &[usize],
    sweeps: usize,
    analysis: &Analysis,
) -> Result<(Factors, Vec<f64>), String> {
    let shapes = kernels.shapes();
    let mut targets: Vec<Target> =
        (0..shapes.len()).map(|i| Target::of_kernel(&chains[0], kernels.kernel(i).view(), &seen[i])).collect();
    let mut terms =
        stiffening(&mut targets, |targets| fitted(chains, kernels, seen, ranks, sweeps, analysis, targets))?;
    let errors = (0..shapes.len()).map(|i| error(&terms, i, &targets[i])).collect();
    terms.iter_mut().try_for_each(normalize)?;
    let width = kernels.width();
    let chains = terms.iter().map(|t| chain(t, &shapes, &|member, kernel| seen[member].unweigh(kernel), width));
    Ok((Factors { chains: chains.collect() }, errors))
}

/// Times that a fit is tried anew.
const STIFFER: usize = 4;

/// A fit, tried anew with a stiffer `Σ` if its equations are not positive.
fn stiffening<T>(targets: &mut [Target], fit: impl Fn(&[Target]) -> Result<T, String>) -> Result<T, String> {
    for _ in 0..STIFFER {
        if let Ok(found) = fit(targets) {
            return Ok(found);
        }
        targets.iter_mut().for_each(Target::stiffen);
    }
    fit(targets)
}

/// The chains, each from its basis and fitted to what those before leave, then in turns.
fn fitted<K: Kernels + ?Sized>(
    chains: &[ChainForm],
    kernels: &K,
    seen: &[Seen<'_>],
    ranks: &[usize],
    sweeps: usize,
    analysis: &Analysis,
    targets: &[Target],
) -> Result<Vec<Term>, String> {
    let count = seen.len();
    let mut terms: Vec<Term> = Vec::new();
    for (c, (form, &rank)) in chains.iter().zip(ranks).enumerate() {
        let bases = analysis.leading(c, rank)?;
        let (a, b) = match form.basis_side() {
            Side::First => (bases, vec![Array2::zeros((0, 0))]),
            Side::Last => {
                let b: Vec<_> = bases.iter().map(|v| v.t().to_owned()).collect();
                // Without the cross terms between offsets the best first factor is the projection.
                let matrix = |i: usize| form.unfolding.unfold(seen[i].weigh(kernels.kernel(i).view()).view());
                ((0..count).map(|i| matrix(i).dot(&bases[0])).collect(), b)
            }
        };
        terms.push(Term { form: *form, a, b, cuts: Vec::new(), rank });
        if form.basis_side() == Side::First {
            solve_last(&mut terms, c, targets, true)?;
        } else if c > 0 {
            solve_first(&mut terms, c, targets)?;
        }
    }
    for _ in 0..sweeps {
        for c in 0..terms.len() {
            solve_first(&mut terms, c, targets)?;
            solve_last(&mut terms, c, targets, true)?;
        }
    }
    Ok(terms)
}

/// What factors that are there already are fitted to: outputs, on the inputs that the moments were taken with.
#[derive(Debug)]
pub struct Refit<'s> {
    chains: Vec<ChainForm>,
    /// Positions in the group.
    members: Vec<usize>,
    shapes: Vec<[usize; 4]>,
    seen: Vec<Seen<'s>>,
    targets: Vec<Target>,
    terms: Vec<Term>,
}

impl<'s> Refit<'s> {
    /// The factors of some members of a group, each with its shape and what it sees.
    #[must_use]
    pub fn new(chains: &[ChainForm], factors: &Factors, members: &[(usize, [usize; 4], Seen<'s>)]) -> Self {
        let terms = chains.iter().zip(&factors.chains).map(|(form, chain)| {
            let first =
                |&(at, ..): &(usize, _, Seen<'s>)| form.unfolding.unfold_first(chain.factors[0].of(at).to_f64().view());
            // The last kernel as it is weighed, behind what is between it and the first.
            let weighed = |(at, _, seen): &(usize, [usize; 4], Seen<'s>), from: usize| {
                let kernels = chain.factors[from..].iter().map(|f| f.of(*at).to_f64());
                let product = kernels.reduce(|a, b| compose(a.view(), b.view())).unwrap_or_default();
                seen.weigh(product.view())
            };
            let last = |member: &(usize, [usize; 4], Seen<'s>)| form.unfolding.unfold_last(weighed(member, 1).view());
            let cut = |member: &(usize, [usize; 4], Seen<'s>)| {
                weighed(member, 2).index_axis_move(Axis(3), 0).index_axis_move(Axis(2), 0)
            };
            let count = |ownership| if ownership == Ownership::Shared { 1 } else { members.len() };
            let cuts: Vec<Array2<f64>> = match form.core {
                Some(_) => members[..count(form.last)].iter().map(cut).collect(),
                None => Vec::new(),
            };
            Term {
                form: *form,
                a: members[..count(form.first)].iter().map(first).collect(),
                b: members[..count(form.rest())].iter().map(last).collect(),
                rank: cuts.first().map_or(0, |v| v.ncols()),
                cuts,
            }
        });
        Self {
            terms: terms.collect(),
            chains: chains.to_vec(),
            members: members.iter().map(|m| m.0).collect(),
            shapes: members.iter().map(|m| m.1).collect(),
            seen: members.iter().map(|m| m.2).collect(),
            targets: members.iter().map(|(_, shape, seen)| Target::of_outputs(&chains[0], *shape, seen)).collect(),
        }
    }

    /// Fits in turns; shared factors stay as they are unless all their members are here and it is asked for.
    ///
    /// # Errors
    /// A reason if a system of equations is not positive.
    pub fn improve(&mut self, sweeps: usize, shared: bool) -> Result<(), String> {
        let Self { chains, targets, terms, .. } = self;
        let from = terms.clone();
        *terms = stiffening(targets, |targets| {
            let mut terms = from.clone();
            for _ in 0..sweeps {
                for (c, form) in chains.iter().enumerate() {
                    if form.first == Ownership::Own || shared {
                        solve_first(&mut terms, c, targets)?;
                    }
                    if form.rest() == Ownership::Own || shared {
                        solve_last(&mut terms, c, targets, shared)?;
                    }
                }
            }
            Ok(terms)
        })?;
        Ok(())
    }

    /// Gives a member other outputs to reach on the same inputs.
    pub fn retarget(&mut self, at: usize, moment: &Moment) {
        let seen = Seen { moment, output: self.seen[at].output };
        self.targets[at].set_outputs(&self.chains[0], self.shapes[at], &seen);
    }

    /// What the factors leave of each member's outputs, `E‖y − ŷ‖² / E‖y‖²`.
    #[must_use]
    pub fn errors(&self) -> Vec<f64> {
        self.targets.iter().enumerate().map(|(i, target)| error(&self.terms, i, target)).collect()
    }

    /// `Ŵ` of one member as it is now, axes `out, in, kh, kw`.
    #[must_use]
    pub fn kernel(&self, at: usize) -> Array4<f64> {
        let product = self.terms.iter().map(|term| {
            let (a, b) = term.of(at);
            let unfolding = term.form.unfolding;
            let first = unfolding.fold_first(a.view(), self.shapes[at]);
            compose(first.view(), unfolding.fold_last(b.view(), self.shapes[at]).view())
        });
        self.seen[at].unweigh(product.reduce(|x, y| x + y).unwrap_or_default().view())
    }

    /// Puts the fitted factors in their places; shared ones only if they were fitted too.
    ///
    /// # Errors
    /// A reason if an orthonormal basis cannot be found.
    pub fn store(mut self, factors: &mut Factors, shared: bool) -> Result<(), String> {
        for ((form, term), old) in self.chains.iter().zip(&mut self.terms).zip(&mut factors.chains) {
            if shared || !form.shares() {
                normalize(term)?;
            }
            let width = old.factors.first().map_or(Width::Single, Factor::width);
            let new = chain(term, &self.shapes, &|at, kernel| self.seen[at].unweigh(kernel), width);
            for (factor, fitted) in old.factors.iter_mut().zip(new.factors) {
                match (factor, fitted) {
                    (Factor::Own(own), Factor::Own(fitted)) => {
                        self.members.iter().zip(fitted).for_each(|(&member, kernel)| own[member] = kernel);
                    }
                    (Factor::Shared(old), Factor::Shared(new)) if shared => *old = new,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// `W + (Σ + ridge·mean(diag Σ)·I)⁻¹·(C − Σ·W)`: the weights `in × out` of a fully connected layer, moved to where they give the
/// outputs that the moments were taken with.
///
/// # Errors
/// A reason if the system of equations is not positive.
pub fn refit_dense(weight: &Array2<f64>, moment: &Moment, ridge: f64) -> Result<Array2<f64>, String> {
    let sigma = moment.covariance(&(0..weight.nrows()).collect::<Vec<_>>());
    let left = moment.cross_covariance() - sigma.dot(weight);
    Ok(weight + &Positive::new(&sigma, ridge)?.solve(&left))
}

fn error(terms: &[Term], member: usize, target: &Target) -> f64 {
    let chains: Vec<_> = terms.iter().map(|t| t.of(member)).collect();
    target.error(&chains)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::{Form, Scheme};

    /// Rounding has left the covariance of two channels that are nearly one a negative eigenvalue, beyond the ridge.
    #[test]
    fn equations_that_rounding_spoils_are_solved_on_a_stiffer_covariance() {
        let moment = Moment::from_stored((100.0, vec![0.0, 0.0], vec![100.0, 100.1, 100.0])).unwrap();
        let form = Form::from(Scheme::Separate).chains()[0];
        let mut targets = vec![Target::of_kernel(&form, Array4::ones((3, 2, 1, 1)).view(), &Seen::from(&moment))];
        let sound = |targets: &[Target]| Positive::new(&targets[0].mean_block(), 0.0).map(|_| ());
        assert!(sound(&targets).is_err());
        stiffening(&mut targets, sound).unwrap();
        let whole = targets[0].mean_block();
        // No stiffer than it takes: `1e-3` of the variance, of which `1e-5` was there.
        assert!(whole[[0, 0]] > 1.0 && whole[[0, 0]] < 1.02, "{whole}");
        assert!(stiffening(&mut targets, |_| Err::<(), _>("never".to_owned())).is_err());
    }
}
