//! Joint decomposition: the best factors of a scheme for the kernels of a group, in the Frobenius norm.
//!
//! With `Wᵢ` the matrix of member i, a chain whose first factor is shared solves
//! `min Σᵢ ‖Wᵢ − A·Bᵢ‖²`: `A` spans the leading left singular space of `[W₁ … Wₙ]` and `Bᵢ = Aᵀ·Wᵢ` (Eckart–Young; the
//! paper's LJSVD). A shared last factor is the same problem transposed (RJSVD), and an own pair is the
//! problem of one member (SVD).
//!
//! A sum of several chains (Bi-JSVD, PCSVD) is solved in turns, each chain on what the others leave: one step of orthogonal
//! iteration `Q ← orth(Σ Rᵢ·Rᵢᵀ·Q)`, then the projection. Both halves are exact least squares for the other, so the error
//! never rises. All chains of a scheme use one unfolding.
//!
//! Where the last factor is cut again, `B_l = C_l·Vᵀ`, `V` spans the leading eigenvectors of `Σ_l B_lᵀ·B_l` (the higher-order SVD,
//! truncated side after side; a shared `V` of the sum over the members). A sum of such chains (NC-CTD) is solved in turns too, but its
//! error may rise a little in one: the cut is not the best for what the other chain leaves.

use super::linalg::{Basis, leading_basis, leading_eigenvectors, orthonormal};
use super::{Chain, ChainForm, Factors, Ownership, Side, Unfolding, Width};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, Axis, CowArray, Ix4, s};
use std::ops::Range;

/// Orthogonal iterations that bring a chain from the basis of the whole to that of what the chains before it
/// leave, before the turns begin.
const WARM_UP: usize = 4;

/// The kernels of a group, handed out one at a time, so that a group of large ones need not be in memory at once.
pub trait Kernels: Sync {
    /// Shapes `[out, in, kh, kw]`, one a member.
    fn shapes(&self) -> Vec<[usize; 4]>;
    /// One kernel, axes `out, in, kh, kw`.
    fn kernel(&self, member: usize) -> CowArray<'_, f64, Ix4>;
    /// The type that factors are rounded to.
    fn width(&self) -> Width {
        Width::Single
    }
}

impl Kernels for [Array4<f64>] {
    fn shapes(&self) -> Vec<[usize; 4]> {
        self.iter().map(|k| k.dim().into()).collect()
    }

    fn kernel(&self, member: usize) -> CowArray<'_, f64, Ix4> {
        CowArray::from(&self[member])
    }
}

/// Spectra and leading bases of a group under a scheme: enough to predict the error at any rank and to
/// factorize at any rank that was kept.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// For each chain one basis, or one a member if neither factor is shared.
    bases: Vec<Vec<Basis>>,
    /// `Σ ‖Wᵢ‖²`.
    energy: f64,
    /// For each chain and member, how much of the member's own energy each vector of the basis carries.
    shares: Vec<Vec<Vec<f64>>>,
    /// For each chain what its second cut leaves, where there is one.
    cuts: Vec<Option<Cut>>,
    /// For each chain how many members its spectrum stands for, where they all get one kernel: then it is that of their mean.
    common: Vec<Option<usize>>,
}

/// Spectra of outputs, by which a last factor is cut again.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    /// Of each member, or of all together.
    spectra: Vec<Vec<f64>>,
    /// How much of each member's own energy each direction carries.
    shares: Vec<Vec<f64>>,
}

impl Cut {
    /// From the `out × out` Gram matrices of the members' outputs; nothing where a chain is cut once.
    pub(super) fn new(form: &ChainForm, grams: impl Iterator<Item = Array2<f64>>) -> Result<Option<Self>, String> {
        if form.core.is_none() {
            return Ok(None);
        }
        let grams: Vec<Array2<f64>> = grams.collect();
        let bases = output_bases(form.last, &grams, usize::MAX)?;
        let shares = grams.iter().enumerate().map(|(i, gram)| {
            let vectors = &bases[i.min(bases.len() - 1)].vectors;
            let energies = (&gram.dot(vectors) * vectors).sum_axis(Axis(0));
            relative(&energies.to_vec(), gram.diag().sum())
        });
        let shares = shares.collect();
        Ok(Some(Self { spectra: bases.into_iter().map(|b| b.spectrum).collect(), shares }))
    }
}

/// `V` of a second cut, one or one a member, from the Gram matrices of what the first cut leaves of the outputs.
pub(super) fn output_bases(last: Ownership, grams: &[Array2<f64>], keep: usize) -> Result<Vec<Basis>, String> {
    match last {
        Ownership::Own => grams.iter().map(|gram| leading_eigenvectors(gram, keep)).collect(),
        Ownership::Shared => {
            let sum = grams.iter().cloned().reduce(|a, b| a + b).unwrap_or_default();
            Ok(vec![leading_eigenvectors(&sum, keep)?])
        }
    }
}

impl Analysis {
    /// `shares` are those of each chain and member; they may be left out where nobody asks for a member's error. `whole` gives
    /// `Σ ‖Wᵢ‖²` where no spectrum does.
    pub(super) fn new(
        chains: &[ChainForm],
        members: usize,
        whole: impl FnOnce() -> f64,
        bases: Vec<Vec<Basis>>,
        shares: Vec<Vec<Vec<f64>>>,
        cuts: Vec<Option<Cut>>,
    ) -> Self {
        let common: Vec<Option<usize>> = chains.iter().map(|c| c.is_common().then_some(members)).collect();
        // The spectra of every chain but a common one sum to the same whole.
        let spectra = bases.iter().zip(&common).find(|(_, common)| common.is_none());
        let energy = spectra.map_or_else(whole, |(chain, _)| chain.iter().flat_map(|b| &b.spectrum).sum());
        Self { bases, energy, shares, cuts, common }
    }

    /// Relative squared error to expect of one member at these ranks.
    pub(crate) fn member_error(&self, member: usize, ranks: &[usize]) -> f64 {
        let left_over = self.shares.iter().zip(&self.cuts).zip(ranks).map(|((chain, cut), &rank)| {
            let lost = |shares: Option<&Vec<f64>>| 1.0 - shares.map_or(0.0, |s| s.iter().take(rank).sum());
            let cut = cut.as_ref().map_or(0.0, |cut| lost(cut.shares.get(member).or(cut.shares.last())));
            (lost(chain.get(member)) + cut).clamp(0.0, 1.0)
        });
        left_over.product()
    }

    /// The mean of an error over several members that share nothing, each as much as its energy.
    pub(crate) fn mean_error(&self, members: Range<usize>, error: impl Fn(usize) -> f64) -> f64 {
        if members.len() == 1 {
            return error(members.start);
        }
        let energy = |at: usize| {
            let basis = self.bases.first().and_then(|chain| chain.get(at));
            basis.map_or(0.0, |b| b.spectrum.iter().sum::<f64>())
        };
        let each = members.map(|at| (energy(at), error(at)));
        let (whole, lost) = each.fold((0.0, 0.0), |(whole, lost), (e, error)| (whole + e, lost + e * error));
        if whole > 0.0 { lost / whole } else { 0.0 }
    }

    /// The bases of a chain at a rank.
    pub(super) fn leading(&self, chain: usize, rank: usize) -> Result<Vec<Array2<f64>>, String> {
        // Cut twice, each side has a rank of its own, at most what there is.
        let most = |b: &Basis| if self.cuts[chain].is_some() { b.vectors.ncols() } else { rank };
        self.bases[chain].iter().map(|b| leading(b, rank.min(most(b)))).collect()
    }

    /// For each chain the energies of its directions, those of bases of one rank added up; of three factors those of the first cut.
    #[must_use]
    pub fn spectra(&self) -> Vec<Vec<f64>> {
        let sum = |bases: &Vec<Basis>| {
            let longest = bases.iter().map(|b| b.spectrum.len()).max().unwrap_or(0);
            (0..longest).map(|at| bases.iter().filter_map(|b| b.spectrum.get(at)).sum()).collect()
        };
        self.bases.iter().map(sum).collect()
    }

    /// The spectra alone, without the vectors of the bases, which take as much memory as the kernels: what needs them computes them again.
    #[must_use]
    pub(crate) fn without_vectors(mut self) -> Self {
        for basis in self.bases.iter_mut().flatten() {
            basis.vectors = Array2::zeros((0, basis.vectors.ncols()));
        }
        self
    }

    /// Whether there are vectors to factorize with.
    pub(crate) fn has_vectors(&self) -> bool {
        self.bases.iter().flatten().all(|b| b.vectors.nrows() > 0)
    }

    /// How many vectors the widest of the bases has.
    #[must_use]
    pub fn width(&self) -> usize {
        self.bases.iter().flatten().map(|b| b.vectors.ncols()).max().unwrap_or(0)
    }

    /// `Σ ‖Wᵢ‖²` of the group.
    #[must_use]
    pub fn energy(&self) -> f64 {
        self.energy
    }

    /// Squared error `Σ ‖Wᵢ − Ŵᵢ‖²` to expect at these ranks: `Σ σ²` beyond the rank, exact for one chain. For
    /// several, the shares that each would leave on its own are multiplied, as if they were independent; what two cuts of one
    /// chain leave is added, which bounds it.
    #[must_use]
    pub fn error(&self, ranks: &[usize]) -> f64 {
        if self.energy <= 0.0 {
            return 0.0;
        }
        let chains = self.bases.iter().zip(&self.cuts).zip(&self.common).zip(ranks);
        let left_over = chains.map(|(((bases, cut), common), &rank)| {
            let tail = |s: &Vec<f64>| s.iter().skip(rank).sum::<f64>();
            let first: f64 = match common {
                // ‖W‖² − ‖W − M‖² is ‖M‖² on average over the members, for M on the leading vectors of their mean.
                Some(n) => {
                    self.energy - *n as f64 * bases.iter().flat_map(|b| b.spectrum.iter().take(rank)).sum::<f64>()
                }
                None => bases.iter().map(|b| tail(&b.spectrum)).sum(),
            };
            let second: f64 = cut.iter().flat_map(|cut| &cut.spectra).map(tail).sum();
            ((first + second * common.unwrap_or(1) as f64) / self.energy).clamp(0.0, 1.0)
        });
        self.energy * left_over.product::<f64>()
    }
}

/// Bytes that [`analyse`] and [`factorize`] take for a while, about, beside what they give: of the largest member a kernel in two
/// orders, and six times the Gram matrix of its smaller side; and all members' where they are beside each other in one matrix, or
/// solved in turns. What calibrated layers see is not counted.
pub(crate) fn workspace(chains: &[ChainForm], shapes: &[[usize; 4]]) -> u64 {
    let of = |chain: &ChainForm, &shape: &[usize; 4]| {
        let (rows, columns) = chain.unfolding.matrix_shape(shape);
        2 * rows * columns + 6 * rows.min(columns).pow(2)
    };
    let largest = chains.iter().flat_map(|chain| shapes.iter().map(move |shape| of(chain, shape))).max().unwrap_or(0);
    let elements = || shapes.iter().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
    let tall = |chain: &ChainForm| {
        let sizes = || shapes.iter().map(|&shape| oriented_shape(chain, shape));
        chain.basis() == Ownership::Shared && sizes().next().is_some_and(|s| s.0 > sizes().map(|s| s.1).sum())
    };
    let stacked = if chains.iter().any(tall) { 2 * elements() } else { 0 };
    let in_turns = if chains.len() > 1 { elements() } else { 0 };
    (size_of::<f64>() * (largest + stacked.max(in_turns))) as u64
}

/// Decomposes the matrices of a group once for every rank up to `keep`.
///
/// # Errors
/// The solver's reason if an eigendecomposition does not converge.
pub fn analyse<K: Kernels + ?Sized>(chains: &[ChainForm], kernels: &K, keep: usize) -> Result<Analysis, String> {
    let members = kernels.shapes().len();
    let mut bases = Vec::new();
    let mut shares = Vec::new();
    let mut cuts = Vec::new();
    for chain in chains {
        let sizes: Vec<_> = kernels.shapes().iter().map(|&s| oriented_shape(chain, s)).collect();
        let block = |i: usize| oriented(chain.basis_side(), unfolded(chain, kernels, i));
        if chain.is_common() {
            let mean = (0..members).map(block).reduce(|a, b| a + b).unwrap_or_default() / members.max(1) as f64;
            let basis = leading_basis(&sizes[..1], &|_| mean.clone(), keep)?;
            // ‖W‖² − ‖W − M‖² = 2·⟨W, M⟩ − ‖M‖², vector by vector.
            let carried = (0..members).map(|i| {
                let matrix = block(i);
                let (own, common) = (basis.vectors.t().dot(&matrix), basis.vectors.t().dot(&mean));
                let gains = (own * 2.0 - &common) * &common;
                relative(&gains.sum_axis(Axis(1)).to_vec(), matrix.iter().map(|x| x * x).sum())
            });
            shares.push(carried.collect());
            bases.push(vec![basis]);
        } else if chain.basis() == Ownership::Own {
            let each = (0..members).map(|i| leading_basis(&sizes[i..=i], &|_| block(i), keep));
            let each = each.collect::<Result<Vec<Basis>, String>>()?;
            shares.push(each.iter().map(|b| relative(&b.spectrum, b.spectrum.iter().sum())).collect());
            bases.push(each);
        } else {
            let basis = leading_basis(&sizes, &block, keep)?;
            let carried = (0..members).map(|i| {
                let matrix = block(i);
                let energies: Vec<f64> =
                    basis.vectors.t().dot(&matrix).outer_iter().map(|row| row.iter().map(|x| x * x).sum()).collect();
                relative(&energies, matrix.iter().map(|x| x * x).sum())
            });
            shares.push(carried.collect());
            bases.push(vec![basis]);
        }
        cuts.push(if chain.is_common() {
            let mean = (0..members).map(|i| kernels.kernel(i).into_owned()).reduce(|a, b| a + b).unwrap_or_default();
            Cut::new(chain, std::iter::once(output_gram((mean / members.max(1) as f64).view())))?
        } else {
            Cut::new(chain, (0..members).map(|i| output_gram(kernels.kernel(i).view())))?
        });
    }
    let whole = || (0..members).map(|i| kernels.kernel(i).iter().map(|x| x * x).sum::<f64>()).sum();
    Ok(Analysis::new(chains, members, whole, bases, shares, cuts))
}

/// `Σ w·wᵀ` of a kernel's outputs over all that they read.
fn output_gram(kernel: ArrayView4<'_, f64>) -> Array2<f64> {
    let flat = Unfolding::FILTER_BANK.unfold(kernel);
    flat.t().dot(&flat)
}

/// Energies as shares of a whole.
pub(super) fn relative(energies: &[f64], whole: f64) -> Vec<f64> {
    energies.iter().map(|e| if whole > 0.0 { e / whole } else { 0.0 }).collect()
}

/// The factors of a group at the given ranks, one rank a chain. `iterations` counts the turns between several
/// chains; a single chain needs none.
///
/// # Errors
/// A reason if a rank exceeds what `analysis` kept.
pub fn factorize<K: Kernels + ?Sized>(
    chains: &[ChainForm],
    kernels: &K,
    ranks: &[usize],
    iterations: usize,
    analysis: &Analysis,
) -> Result<Factors, String> {
    let shapes = kernels.shapes();
    let mut terms = Vec::with_capacity(chains.len());
    for (at, (form, &rank)) in chains.iter().zip(ranks).enumerate() {
        let bases = analysis.leading(at, rank)?;
        terms.push(Term { form: *form, rank, bases, coefficients: Vec::new(), cuts: Vec::new() });
    }
    if let [term] = &mut terms[..] {
        let coefficients = (0..shapes.len()).map(|i| {
            let matrix = unfolded(&term.form, kernels, i);
            Residual { matrix: &matrix, minus: Vec::new() }.project(term.form.basis_side(), term.basis(i))
        });
        term.coefficients = common(&term.form, coefficients.collect());
        term.cut(&shapes)?;
    } else {
        let matrices: Vec<Array2<f64>> = (0..shapes.len()).map(|i| unfolded(&chains[0], kernels, i)).collect();
        let warm_up = (0..terms.len()).flat_map(|at| std::iter::repeat_n(at, WARM_UP));
        let turns = (0..iterations).flat_map(|_| 0..chains.len());
        warm_up.chain(turns).try_for_each(|at| improve(&mut terms, at, &matrices, &shapes))?;
    }
    Ok(Factors { chains: terms.iter().map(|term| term.chain(&shapes, kernels.width())).collect() })
}

/// The matrix of one member.
fn unfolded<K: Kernels + ?Sized>(chain: &ChainForm, kernels: &K, member: usize) -> Array2<f64> {
    chain.unfolding.unfold(kernels.kernel(member).view())
}

/// A matrix with the side that carries the basis as rows.
fn oriented(side: Side, matrix: Array2<f64>) -> Array2<f64> {
    match side {
        Side::First => matrix,
        Side::Last => matrix.reversed_axes(),
    }
}

fn oriented_shape(chain: &ChainForm, shape: [usize; 4]) -> (usize, usize) {
    let (rows, columns) = chain.unfolding.matrix_shape(shape);
    match chain.basis_side() {
        Side::First => (rows, columns),
        Side::Last => (columns, rows),
    }
}

fn leading(basis: &Basis, rank: usize) -> Result<Array2<f64>, String> {
    if rank == 0 || rank > basis.vectors.ncols() {
        return Err(format!("rank {rank} of {} analysed", basis.vectors.ncols()));
    }
    Ok(basis.vectors.slice(s![.., ..rank]).to_owned())
}

/// One chain while it is being solved. With a basis `Q` on the first side a member's matrix is `Q·Cᵢᵀ`, on the last
/// side `Cᵢ·Qᵀ`; the coefficients `Cᵢ` are the projection of what the other chains leave.
struct Term {
    form: ChainForm,
    rank: usize,
    bases: Vec<Array2<f64>>,
    coefficients: Vec<Array2<f64>>,
    /// `V: out×r` of a second cut, one or one a member; none where the last factor stays whole.
    cuts: Vec<Array2<f64>>,
}

impl Term {
    fn basis(&self, member: usize) -> &Array2<f64> {
        &self.bases[member.min(self.bases.len() - 1)]
    }

    /// `A: rows×r` and `B: r×columns` of one member.
    fn factors(&self, member: usize) -> (ArrayView2<'_, f64>, ArrayView2<'_, f64>) {
        let (basis, coefficients) = (self.basis(member).view(), self.coefficients[member].view());
        match self.form.basis_side() {
            Side::First => (basis, coefficients.reversed_axes()),
            Side::Last => (coefficients, basis.reversed_axes()),
        }
    }

    /// Cuts the last factor again, if it is to be, and leaves of the coefficients what that keeps.
    fn cut(&mut self, shapes: &[[usize; 4]]) -> Result<(), String> {
        if self.form.core.is_none() {
            return Ok(());
        }
        // The offsets are the outermost index of a coefficient's rows.
        let stacks = self.coefficients.iter().zip(shapes).map(|(c, shape)| {
            let parts: Vec<_> = c.axis_chunks_iter(Axis(0), shape[0]).collect();
            ndarray::concatenate(Axis(1), &parts).map_err(|e| e.to_string())
        });
        let stacks = stacks.collect::<Result<Vec<_>, String>>()?;
        let grams: Vec<Array2<f64>> = stacks.iter().map(|s| s.dot(&s.t())).collect();
        self.cuts = output_bases(self.form.last, &grams, self.rank)?.into_iter().map(|b| b.vectors).collect();
        for (i, c) in self.coefficients.iter_mut().enumerate() {
            let v = &self.cuts[i.min(self.cuts.len() - 1)];
            for mut part in c.axis_chunks_iter_mut(Axis(0), v.nrows()) {
                let kept = v.dot(&v.t().dot(&part));
                part.assign(&kept);
            }
        }
        Ok(())
    }

    /// The factors as the kernels that are written.
    fn chain(&self, shapes: &[[usize; 4]], width: Width) -> Chain {
        Chain::fold(&self.form, shapes, &|i| self.factors(i), &self.cuts, &|_, kernel| kernel, width)
    }
}

/// One turn of the chain at `at` on what the other chains leave of the matrices.
fn improve(terms: &mut [Term], at: usize, matrices: &[Array2<f64>], shapes: &[[usize; 4]]) -> Result<(), String> {
    let side = terms[at].form.basis_side();
    let solved = || terms.iter().enumerate().filter(|(t, term)| *t != at && !term.coefficients.is_empty());
    let residual =
        |i: usize| Residual { matrix: &matrices[i], minus: solved().map(|(_, term)| term.factors(i)).collect() };
    let projected = |members: Range<usize>, q: &dyn Fn(usize) -> Array2<f64>| {
        common(&terms[at].form, members.map(|i| residual(i).project(side, &q(i))).collect())
    };
    let step = |members: Range<usize>, q: &Array2<f64>| {
        let coefficients = projected(members.clone(), &|_| q.clone());
        let sum = members.zip(&coefficients).map(|(i, c)| residual(i).expand(side, c)).reduce(|a, b| a + b);
        sum.map_or_else(|| q.clone(), |y| orthonormal(y.view()))
    };
    let n = matrices.len();
    let bases: Vec<Array2<f64>> = match &terms[at].bases[..] {
        [shared] => vec![step(0..n, shared)],
        own => own.iter().enumerate().map(|(i, q)| step(i..i + 1, q)).collect(),
    };
    let coefficients = projected(0..n, &|i| bases[i.min(bases.len() - 1)].clone());
    terms[at].bases = bases;
    terms[at].coefficients = coefficients;
    terms[at].cut(shapes)
}

/// The coefficients of the members, or their mean for each where all factors are shared.
fn common(form: &ChainForm, each: Vec<Array2<f64>>) -> Vec<Array2<f64>> {
    if !form.is_common() {
        return each;
    }
    let n = each.len();
    let sum = each.into_iter().reduce(|a, b| a + b).unwrap_or_default();
    vec![sum / n.max(1) as f64; n]
}

/// `R = M − Σ A·B`, never formed.
struct Residual<'a> {
    matrix: &'a Array2<f64>,
    minus: Vec<(ArrayView2<'a, f64>, ArrayView2<'a, f64>)>,
}

impl Residual<'_> {
    /// Coefficients on a basis: `Rᵀ·Q` on the first side, `R·Q` on the last.
    fn project(&self, side: Side, q: &Array2<f64>) -> Array2<f64> {
        match side {
            Side::First => self.transposed_dot(q),
            Side::Last => self.dot(q),
        }
    }

    /// The other half of a step: `R·C` on the first side, `Rᵀ·C` on the last.
    fn expand(&self, side: Side, coefficients: &Array2<f64>) -> Array2<f64> {
        match side {
            Side::First => self.dot(coefficients),
            Side::Last => self.transposed_dot(coefficients),
        }
    }

    fn dot(&self, x: &Array2<f64>) -> Array2<f64> {
        self.minus.iter().fold(self.matrix.dot(x), |y, (a, b)| y - a.dot(&b.dot(x)))
    }

    fn transposed_dot(&self, x: &Array2<f64>) -> Array2<f64> {
        self.minus.iter().fold(self.matrix.t().dot(x), |y, (a, b)| y - b.t().dot(&a.t().dot(x)))
    }
}
