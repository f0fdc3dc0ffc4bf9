//! Joint decomposition: the best factors of a scheme for the kernels of a group, in the Frobenius norm.
//!
//! With `Wᵢ` the matrix of member i, a chain whose first factor is shared solves
//! `min Σᵢ ‖Wᵢ − A·Bᵢ‖²`: `A` spans the leading left singular space of `[W₁ … Wₙ]` and `Bᵢ = Aᵀ·Wᵢ` (Eckart–Young; the
//! paper's LJSVD). A shared last factor is the same problem transposed (RJSVD), and an own pair is the
//! problem of one member (SVD).
//!
//! A sum of several chains (Bi-JSVD) is solved in turns, each chain on what the others leave: one step of orthogonal
//! iteration `Q ← orth(Σ Rᵢ·Rᵢᵀ·Q)`, then the projection. Both halves are exact least squares for the other, so the error
//! never rises. All chains of a scheme use one unfolding.

use super::linalg::{Basis, leading_basis, orthonormal};
use super::{Chain, ChainForm, Factor, Factors, Ownership, Side};
use ndarray::{Array2, Array4, ArrayView2};

/// Orthogonal iterations that bring a chain from the basis of the whole to that of what the chains before it
/// leave, before the turns begin.
const WARM_UP: usize = 4;

/// Spectra and leading bases of a group under a scheme: enough to predict the error at any rank and to
/// factorize at any rank that was kept.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// For each chain one basis, or one a member if neither factor is shared.
    bases: Vec<Vec<Basis>>,
    /// `Σ ‖Wᵢ‖²`.
    energy: f64,
}

impl Analysis {
    /// `Σ ‖Wᵢ‖²` of the group.
    #[must_use]
    pub fn energy(&self) -> f64 {
        self.energy
    }

    /// Squared error `Σ ‖Wᵢ − Ŵᵢ‖²` to expect at these ranks: `Σ σ²` beyond the rank, exact for one chain. For
    /// several, the shares that each would leave on its own are multiplied, as if they were independent.
    #[must_use]
    pub fn error(&self, ranks: &[usize]) -> f64 {
        if self.energy <= 0.0 {
            return 0.0;
        }
        let left_over = self.bases.iter().zip(ranks).map(|(bases, &rank)| {
            let tails = bases.iter().map(|b| b.spectrum.iter().skip(rank).sum::<f64>());
            (tails.sum::<f64>() / self.energy).clamp(0.0, 1.0)
        });
        self.energy * left_over.product::<f64>()
    }
}

/// Decomposes the matrices of a group once for every rank up to `keep`.
///
/// # Errors
/// The solver's reason if an eigendecomposition does not converge.
pub fn analyse(chains: &[ChainForm], kernels: &[Array4<f64>], keep: usize) -> Result<Analysis, String> {
    let energy = kernels.iter().flatten().map(|x| x * x).sum();
    let bases = chains.iter().map(|chain| {
        let matrices = matrices(chain, kernels);
        if chain.first == Ownership::Own && chain.last == Ownership::Own {
            matrices.iter().map(|m| leading_basis(std::slice::from_ref(m), keep)).collect()
        } else {
            leading_basis(&matrices, keep).map(|b| vec![b])
        }
    });
    Ok(Analysis { bases: bases.collect::<Result<_, String>>()?, energy })
}

/// The factors of a group at the given ranks, one rank a chain. `iterations` counts the turns between several
/// chains; a single chain needs none.
///
/// # Errors
/// A reason if a rank exceeds what `analysis` kept.
pub fn factorize(
    chains: &[ChainForm],
    kernels: &[Array4<f64>],
    ranks: &[usize],
    iterations: usize,
    analysis: &Analysis,
) -> Result<Factors, String> {
    let mut terms = Vec::with_capacity(chains.len());
    for ((chain, bases), &rank) in chains.iter().zip(&analysis.bases).zip(ranks) {
        let bases = bases.iter().map(|b| leading(b, rank)).collect::<Result<Vec<_>, String>>()?;
        terms.push(Term { matrices: matrices(chain, kernels), bases, coefficients: Vec::new() });
    }
    if let [term] = &mut terms[..] {
        term.coefficients =
            (0..kernels.len()).map(|i| term.bases[i.min(term.bases.len() - 1)].t().dot(&term.matrices[i])).collect();
    } else {
        for at in 0..terms.len() {
            for _ in 0..WARM_UP {
                improve(chains, &mut terms, at, kernels);
            }
        }
        for _ in 0..iterations {
            for at in 0..terms.len() {
                improve(chains, &mut terms, at, kernels);
            }
        }
    }
    Ok(Factors { chains: chains.iter().zip(&terms).map(|(chain, term)| term.chain(chain, kernels)).collect() })
}

/// The matrices of a group with the side that carries the basis as rows.
fn matrices(chain: &ChainForm, kernels: &[Array4<f64>]) -> Vec<Array2<f64>> {
    let unfolded = kernels.iter().map(|k| chain.unfolding.unfold(k.view()));
    match chain.basis_side() {
        Side::First => unfolded.collect(),
        Side::Last => unfolded.map(|m| m.reversed_axes().as_standard_layout().into_owned()).collect(),
    }
}

fn leading(basis: &Basis, rank: usize) -> Result<Array2<f64>, String> {
    if rank == 0 || rank > basis.vectors.ncols() {
        return Err(format!("rank {rank} of {} analysed", basis.vectors.ncols()));
    }
    Ok(basis.vectors.slice(ndarray::s![.., ..rank]).to_owned())
}

/// One chain while it is being solved: `Q·Cᵢ` with `Q` a basis and `Cᵢ = Qᵀ·Rᵢ`.
struct Term {
    matrices: Vec<Array2<f64>>,
    bases: Vec<Array2<f64>>,
    coefficients: Vec<Array2<f64>>,
}

impl Term {
    fn basis(&self, member: usize) -> &Array2<f64> {
        &self.bases[member.min(self.bases.len() - 1)]
    }

    /// The chain's kernels: the basis on its side, the coefficients on the other.
    fn chain(&self, form: &ChainForm, kernels: &[Array4<f64>]) -> Chain {
        let shape = |i: usize| -> [usize; 4] { kernels[i].dim().into() };
        let place = |side: Side, matrix: ArrayView2<'_, f64>, i: usize| {
            // The basis side is stored as rows; on the last side both matrices stand transposed.
            let first = match form.basis_side() {
                Side::First => matrix,
                Side::Last => matrix.reversed_axes(),
            };
            let kernel = match side {
                Side::First => form.unfolding.fold_first(first, shape(i)),
                Side::Last => form.unfolding.fold_last(first, shape(i)),
            };
            kernel.mapv(|x| x as f32)
        };
        let members = 0..kernels.len();
        let side = form.basis_side();
        let other = if side == Side::First { Side::Last } else { Side::First };
        let basis = match self.bases.len() {
            1 if kernels.len() > 1 || form.first == Ownership::Shared || form.last == Ownership::Shared => {
                Factor::Shared(place(side, self.bases[0].view(), 0))
            }
            _ => Factor::Own(members.clone().map(|i| place(side, self.basis(i).view(), i)).collect()),
        };
        let coefficients = Factor::Own(members.map(|i| place(other, self.coefficients[i].view(), i)).collect());
        let factors = if side == Side::First { vec![basis, coefficients] } else { vec![coefficients, basis] };
        Chain { factors }
    }
}

/// One turn of the chain at `at` on what the other chains leave of the kernels.
fn improve(chains: &[ChainForm], terms: &mut [Term], at: usize, kernels: &[Array4<f64>]) {
    let side = chains[at].basis_side();
    let others: Vec<Vec<(Array2<f64>, Array2<f64>)>> = (0..kernels.len())
        .map(|i| {
            let solved = terms.iter().enumerate().filter(|(t, term)| *t != at && !term.coefficients.is_empty());
            solved.map(|(t, term)| oriented(term, i, chains[t].basis_side() == side)).collect()
        })
        .collect();
    let term = &mut terms[at];
    let residual = |i: usize| Residual { matrix: &term.matrices[i], minus: &others[i] };
    let step = |members: std::ops::Range<usize>, q: &Array2<f64>| {
        let sum = members.map(|i| residual(i).dot(&residual(i).transposed_dot(q))).reduce(|a, b| a + b);
        sum.map_or_else(|| q.clone(), |y| orthonormal(y.view()))
    };
    let n = kernels.len();
    let bases: Vec<Array2<f64>> = match term.bases.len() {
        1 => vec![step(0..n, &term.bases[0])],
        _ => term.bases.iter().enumerate().map(|(i, q)| step(i..i + 1, q)).collect(),
    };
    let coefficients =
        (0..n).map(|i| residual(i).transposed_dot(&bases[i.min(bases.len() - 1)]).reversed_axes()).collect();
    term.bases = bases;
    term.coefficients = coefficients;
}

/// A chain's `left·right` in the orientation of another chain of the same unfolding.
fn oriented(term: &Term, member: usize, same_side: bool) -> (Array2<f64>, Array2<f64>) {
    let (basis, coefficients) = (term.basis(member), &term.coefficients[member]);
    if same_side { (basis.clone(), coefficients.clone()) } else { (coefficients.t().to_owned(), basis.t().to_owned()) }
}

/// `R = M − Σ left·right`, never formed.
struct Residual<'a> {
    matrix: &'a Array2<f64>,
    minus: &'a [(Array2<f64>, Array2<f64>)],
}

impl Residual<'_> {
    fn dot(&self, x: &Array2<f64>) -> Array2<f64> {
        self.minus.iter().fold(self.matrix.dot(x), |y, (l, r)| y - l.dot(&r.dot(x)))
    }

    fn transposed_dot(&self, x: &Array2<f64>) -> Array2<f64> {
        self.minus.iter().fold(self.matrix.t().dot(x), |y, (l, r)| y - r.t().dot(&l.t().dot(x)))
    }
}
