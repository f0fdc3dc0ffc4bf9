//! Joint decomposition in the norm that the layer sees.
//!
//! With `x` a row of the input's im2col matrix, centred, and `Σ = E[x·xᵀ]`, the error of the output is
//! `E ‖(W − Ŵ)ᵀx‖² = tr (W − Ŵ)ᵀ Σ (W − Ŵ)`, and the mean's share of it is the bias's to absorb.
//!
//! Order the rows of a kernel by the offsets that the last factor slides over, `l`, then those of the first, then the
//! input channel. A chain then is `P_l = A·B_l`: one `A: rows×r` for all `l`. Its two halves are linear:
//!
//! * `B` given `A`: `(TᵀΣT)·B = TᵀC` with `T = I ⊗ A`, exactly;
//! * `A` given `B`: `Σ_{l,m} Σ_lm·A·(B_m·B_lᵀ) = Σ_l C_l·B_lᵀ`, by conjugate gradients from the last `A`;
//!
//! where `C = Σ·W`, or, when a layer is refitted on inputs `x̂` that an already compressed network gives, `C = E[x̂·yᵀ]`.
//! A shared factor's equations are the sums over the members, each weighted by `1 / E‖y‖²`. Both halves only lower the
//! error, chain by chain on what the others leave (the starting point: the singular vectors of `Σ̄^½·W`,
//! `Σ̄` the mean of the `Σ_ll`; arXiv 2511.04494 uses the same norm, DRONE and SVD-LLM for matrices).

use super::linalg::{Basis, leading_basis, orthonormal_with_rest, positive_solve, symmetric_roots};
use super::{Analysis, Chain, ChainForm, Factor, Factors, Kernels, Moment, Ownership, Side};
use ndarray::{Array2, ArrayView2, Axis, s};

/// Conjugate-gradient steps for one update of a first factor.
const GRADIENT_STEPS: usize = 12;
/// Added to the diagonal of normal equations, relative to its mean: inputs that never vary decide nothing.
const RIDGE: f64 = 1e-7;
/// Directions whose variance is below this share of the largest are not divided by.
const RANK_FLOOR: f64 = 1e-9;

/// What the factors of one member are fitted to, offsets of the last factor outermost.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// `Σ`, `(offsets·rows)²`.
    metric: Array2<f64>,
    /// `C: (offsets·rows) × out`.
    product: Array2<f64>,
    /// `E ‖y‖²`, centred.
    energy: f64,
    rows: usize,
}

impl Target {
    /// The output of `kernel` itself on inputs of these moments.
    #[must_use]
    pub(super) fn of_kernel(form: &ChainForm, kernel: ndarray::ArrayView4<'_, f64>, moment: &Moment) -> Self {
        let shape: [usize; 4] = kernel.dim().into();
        let metric = reordered(form, shape, moment.covariance());
        let stacked = stacked(form.unfolding.unfold(kernel).view(), shape[0]);
        let product = metric.dot(&stacked);
        let energy = (&stacked * &product).sum();
        Self { metric, product, energy, rows: form.unfolding.matrix_shape(shape).0 }
    }

    /// The outputs that the moments were taken with.
    #[must_use]
    pub(super) fn of_outputs(form: &ChainForm, shape: [usize; 4], moment: &Moment) -> Self {
        let order = order(form, shape);
        Self {
            metric: reordered(form, shape, moment.covariance()),
            product: moment.cross_covariance().select(Axis(0), &order),
            energy: moment.output_energy(),
            rows: form.unfolding.matrix_shape(shape).0,
        }
    }

    fn offsets(&self) -> usize {
        self.metric.nrows() / self.rows
    }

    fn weight(&self) -> f64 {
        if self.energy > 0.0 { 1.0 / self.energy } else { 0.0 }
    }

    fn block(&self, l: usize) -> std::ops::Range<usize> {
        l * self.rows..(l + 1) * self.rows
    }

    /// `Σ·T(A)`: one `(offsets·rows) × r` for each offset.
    fn metric_times(&self, a: &Array2<f64>) -> Vec<Array2<f64>> {
        (0..self.offsets()).map(|l| self.metric.slice(s![.., self.block(l)]).dot(a)).collect()
    }

    /// `Σ·P` of a chain.
    fn image(&self, a: &Array2<f64>, b: &Array2<f64>) -> Array2<f64> {
        let out = b.ncols() / self.offsets();
        let terms = self.metric_times(a);
        let parts = terms.iter().enumerate().map(|(l, t)| t.dot(&b.slice(s![.., l * out..(l + 1) * out])));
        parts.reduce(|x, y| x + y).unwrap_or_default()
    }

    /// Error `E ‖y − ŷ‖²` of a sum of chains.
    fn error(&self, chains: &[(&Array2<f64>, &Array2<f64>)]) -> f64 {
        let image = chains.iter().map(|(a, b)| self.image(a, b)).reduce(|x, y| x + y).unwrap_or_default();
        let inner = |with: &Array2<f64>| -> f64 {
            let parts = chains.iter().map(|(a, b)| (&self.stack(a.dot(*b).view()) * with).sum());
            parts.sum()
        };
        self.energy - 2.0 * inner(&self.product) + inner(&image)
    }

    /// `rows × (offsets·out)` as `(offsets·rows) × out`.
    fn stack(&self, matrix: ArrayView2<'_, f64>) -> Array2<f64> {
        let out = matrix.ncols() / self.offsets();
        Array2::from_shape_fn((self.metric.nrows(), out), |(i, o)| matrix[[i % self.rows, (i / self.rows) * out + o]])
    }
}

/// Positions in im2col order `(kh, kw, in)` of the rows ordered by the last factor's offsets first.
fn order(form: &ChainForm, [_, inputs, kh, kw]: [usize; 4]) -> Vec<usize> {
    let ([fh, fw], [lh, lw]) = form.unfolding.extents([0, inputs, kh, kw]);
    let mut order = Vec::with_capacity(inputs * kh * kw);
    for (ly, lx) in ndarray::indices((lh, lw)) {
        for (fy, fx) in ndarray::indices((fh, fw)) {
            // One of each pair is the offset, the other zero.
            order.extend((0..inputs).map(|i| ((ly + fy) * kw + lx + fx) * inputs + i));
        }
    }
    order
}

fn reordered(form: &ChainForm, shape: [usize; 4], covariance: Array2<f64>) -> Array2<f64> {
    let order = order(form, shape);
    covariance.select(Axis(0), &order).select(Axis(1), &order)
}

/// An unfolded kernel with the last factor's offsets stacked.
fn stacked(matrix: ArrayView2<'_, f64>, out: usize) -> Array2<f64> {
    let rows = matrix.nrows();
    let offsets = matrix.ncols() / out.max(1);
    Array2::from_shape_fn((rows * offsets, out), |(i, o)| matrix[[i % rows, (i / rows) * out + o]])
}

/// Spectra and starting bases in the calibrated norm, one moment a member.
///
/// # Errors
/// The solver's reason if an eigendecomposition does not converge.
pub fn analyse_calibrated<K: Kernels + ?Sized>(
    chains: &[ChainForm],
    kernels: &K,
    moments: &[&Moment],
    keep: usize,
) -> Result<Analysis, String> {
    let shapes = kernels.shapes();
    let mut bases = Vec::with_capacity(chains.len());
    for form in chains {
        let mut roots = Vec::new();
        let mut blocks = Vec::new();
        for (i, moment) in moments.iter().enumerate() {
            let target = Target::of_kernel(form, kernels.kernel(i).view(), moment);
            let mean = (0..target.offsets())
                .map(|l| target.metric.slice(s![target.block(l), target.block(l)]).to_owned())
                .reduce(|a, b| a + b)
                .unwrap_or_default()
                / target.offsets().max(1) as f64;
            blocks.push((form.unfolding.unfold(kernels.kernel(i).view()), mean, target.weight().sqrt()));
        }
        if form.first == Ownership::Shared {
            // One whitening for all: the mean of the members'.
            let n = blocks.len().max(1) as f64;
            let mean = blocks.iter().map(|b| b.1.clone()).reduce(|a, b| a + b).unwrap_or_default() / n;
            let pair = symmetric_roots(&mean, RANK_FLOOR)?;
            roots.resize(blocks.len(), pair);
        } else {
            for (_, mean, _) in &blocks {
                roots.push(symmetric_roots(mean, RANK_FLOOR)?);
            }
        }
        let whitened = |i: usize| {
            let white = roots[i].0.dot(&blocks[i].0) * blocks[i].2;
            match form.basis_side() {
                Side::First => white,
                Side::Last => white.reversed_axes(),
            }
        };
        let size = |i: usize| {
            let (rows, columns) = form.unfolding.matrix_shape(shapes[i]);
            if form.basis_side() == Side::First { (rows, columns) } else { (columns, rows) }
        };
        let unwhitened = |basis: Basis, root: &(Array2<f64>, Array2<f64>)| match form.basis_side() {
            Side::First => Basis { vectors: root.1.dot(&basis.vectors), ..basis },
            Side::Last => basis,
        };
        bases.push(if form.first == Ownership::Own && form.last == Ownership::Own {
            let each = (0..blocks.len())
                .map(|i| leading_basis(&[size(i)], &|_| whitened(i), keep).map(|b| unwhitened(b, &roots[i])));
            each.collect::<Result<Vec<_>, String>>()?
        } else {
            let sizes: Vec<_> = (0..blocks.len()).map(size).collect();
            vec![unwhitened(leading_basis(&sizes, &whitened, keep)?, &roots[0])]
        });
    }
    Ok(Analysis::new(bases))
}

/// A chain's matrices while they are fitted, one or one a member.
#[derive(Debug, Clone)]
struct Term {
    form: ChainForm,
    a: Vec<Array2<f64>>,
    b: Vec<Array2<f64>>,
}

impl Term {
    fn of(&self, member: usize) -> (&Array2<f64>, &Array2<f64>) {
        (&self.a[member.min(self.a.len() - 1)], &self.b[member.min(self.b.len() - 1)])
    }
}

/// Factors in the calibrated norm and what they leave of each member's output, `E‖y − ŷ‖² / E‖y‖²`.
///
/// # Errors
/// A reason if a rank exceeds what `analysis` kept, or if a system of equations is not positive.
pub fn factorize_calibrated<K: Kernels + ?Sized>(
    chains: &[ChainForm],
    kernels: &K,
    moments: &[&Moment],
    ranks: &[usize],
    sweeps: usize,
    analysis: &Analysis,
) -> Result<(Factors, Vec<f64>), String> {
    let shapes = kernels.shapes();
    let targets: Vec<Target> =
        (0..shapes.len()).map(|i| Target::of_kernel(&chains[0], kernels.kernel(i).view(), moments[i])).collect();
    let mut terms: Vec<Term> = Vec::new();
    for (c, (form, &rank)) in chains.iter().zip(ranks).enumerate() {
        let bases = analysis.leading(c, rank)?;
        let term = match form.basis_side() {
            Side::First => Term { form: *form, a: bases, b: vec![Array2::zeros((0, 0))] },
            Side::Last => {
                let b: Vec<_> = bases.iter().map(|v| v.t().to_owned()).collect();
                // Without the cross terms between offsets the best first factor is the projection.
                let a =
                    (0..shapes.len()).map(|i| form.unfolding.unfold(kernels.kernel(i).view()).dot(&bases[0])).collect();
                Term { form: *form, a, b }
            }
        };
        terms.push(term);
        if form.basis_side() == Side::First {
            solve_last(&mut terms, c, &targets)?;
        } else if c > 0 {
            solve_first(&mut terms, c, &targets);
        }
    }
    for _ in 0..sweeps {
        for c in 0..terms.len() {
            solve_first(&mut terms, c, &targets);
            solve_last(&mut terms, c, &targets)?;
        }
    }
    let errors = (0..shapes.len()).map(|i| relative_error(&terms, i, &targets[i])).collect();
    terms.iter_mut().try_for_each(normalize)?;
    Ok((Factors { chains: terms.iter().map(|t| chain(t, &shapes)).collect() }, errors))
}

/// Refits the own factors of one member to outputs, the shared ones as they are; gives the new factors of that member
/// in place and its relative error before and after.
///
/// # Errors
/// A reason if a system of equations is not positive.
pub fn refit(
    chains: &[ChainForm],
    factors: &mut Factors,
    member: usize,
    shape: [usize; 4],
    moment: &Moment,
    sweeps: usize,
) -> Result<(f64, f64), String> {
    let target = [Target::of_outputs(&chains[0], shape, moment)];
    let mut terms: Vec<Term> = chains
        .iter()
        .zip(&factors.chains)
        .map(|(form, chain)| Term {
            form: *form,
            a: vec![form.unfolding.unfold_first(chain.factors[0].of(member).mapv(f64::from).view())],
            b: vec![form.unfolding.unfold_last(chain.factors[1].of(member).mapv(f64::from).view())],
        })
        .collect();
    let before = relative_error(&terms, 0, &target[0]);
    for _ in 0..sweeps {
        for (c, form) in chains.iter().enumerate() {
            if form.first == Ownership::Own {
                solve_first(&mut terms, c, &target);
            }
            if form.last == Ownership::Own {
                solve_last(&mut terms, c, &target)?;
            }
        }
    }
    let after = relative_error(&terms, 0, &target[0]);
    if after < before {
        for ((form, term), chain) in chains.iter().zip(&mut terms).zip(&mut factors.chains) {
            if form.first == Ownership::Own && form.last == Ownership::Own {
                normalize(term)?;
            }
            let kernels =
                [form.unfolding.fold_first(term.a[0].view(), shape), form.unfolding.fold_last(term.b[0].view(), shape)];
            for (factor, kernel) in chain.factors.iter_mut().zip(kernels) {
                if let Factor::Own(own) = factor {
                    own[member] = kernel.mapv(|x| x as f32);
                }
            }
        }
    }
    Ok((before, after.min(before)))
}

fn relative_error(terms: &[Term], member: usize, target: &Target) -> f64 {
    let chains: Vec<_> = terms.iter().map(|t| t.of(member)).collect();
    (target.error(&chains) * target.weight()).max(0.0)
}

/// What the other chains leave to be fitted: `C − Σ·P`.
fn remaining(terms: &[Term], at: usize, member: usize, target: &Target) -> Array2<f64> {
    let others = terms.iter().enumerate().filter(|(t, _)| *t != at).map(|(_, term)| term.of(member));
    others.fold(target.product.clone(), |left, (a, b)| if b.is_empty() { left } else { left - target.image(a, b) })
}

/// Last factors of a chain, exactly.
fn solve_last(terms: &mut [Term], at: usize, targets: &[Target]) -> Result<(), String> {
    let shared = terms[at].form.last == Ownership::Shared;
    let mut solved: Vec<Array2<f64>> = Vec::new();
    let mut sum: Option<(Array2<f64>, Array2<f64>)> = None;
    for (i, target) in targets.iter().enumerate() {
        let a = terms[at].of(i).0;
        let (rank, offsets) = (a.ncols(), target.offsets());
        let out = target.product.ncols();
        let left = remaining(terms, at, i, target);
        let images = target.metric_times(a);
        let mut gram = Array2::zeros((offsets * rank, offsets * rank));
        let mut right = Array2::zeros((offsets * rank, out));
        for l in 0..offsets {
            let rows = l * rank..(l + 1) * rank;
            for (m, image) in images.iter().enumerate() {
                let cell = a.t().dot(&image.slice(s![target.block(l), ..]));
                gram.slice_mut(s![rows.clone(), m * rank..(m + 1) * rank]).assign(&cell);
            }
            right.slice_mut(s![rows, ..]).assign(&a.t().dot(&left.slice(s![target.block(l), ..])));
        }
        if shared {
            let (g, r) = (gram * target.weight(), right * target.weight());
            sum = Some(match sum {
                Some((x, y)) => (x + g, y + r),
                None => (g, r),
            });
        } else {
            solved.push(beside(&positive_solve(gram, right, RIDGE)?, offsets));
        }
    }
    if let Some((gram, right)) = sum {
        let offsets = targets[0].offsets();
        solved.push(beside(&positive_solve(gram, right, RIDGE)?, offsets));
    }
    terms[at].b = solved;
    Ok(())
}

/// `(offsets·r) × out` as `r × (offsets·out)`.
fn beside(stacked: &Array2<f64>, offsets: usize) -> Array2<f64> {
    let rank = stacked.nrows() / offsets.max(1);
    let out = stacked.ncols();
    Array2::from_shape_fn((rank, offsets * out), |(r, c)| stacked[[(c / out) * rank + r, c % out]])
}

/// First factors of a chain, by conjugate gradients from where they are.
fn solve_first(terms: &mut [Term], at: usize, targets: &[Target]) {
    let members: Vec<Vec<usize>> = match terms[at].form.first {
        Ownership::Shared => vec![(0..targets.len()).collect()],
        Ownership::Own => (0..targets.len()).map(|i| vec![i]).collect(),
    };
    let solved = members.iter().map(|members| {
        let mut right: Option<Array2<f64>> = None;
        let mut products = Vec::new();
        for &i in members {
            let target = &targets[i];
            let b = terms[at].of(i).1;
            let out = target.product.ncols();
            let part = |l: usize| b.slice(s![.., l * out..(l + 1) * out]);
            let left = remaining(terms, at, i, target);
            for l in 0..target.offsets() {
                let term = left.slice(s![target.block(l), ..]).dot(&part(l).t()) * target.weight();
                right = Some(right.map_or(term.clone(), |r| r + term));
            }
            // B_m·B_lᵀ for every pair of offsets.
            let pairs: Vec<Vec<Array2<f64>>> = (0..target.offsets())
                .map(|m| (0..target.offsets()).map(|l| part(m).dot(&part(l).t()) * target.weight()).collect())
                .collect();
            products.push((i, pairs));
        }
        let operator = |a: &Array2<f64>| {
            let mut sum = Array2::zeros(a.dim());
            for (i, pairs) in &products {
                let target = &targets[*i];
                for (m, image) in target.metric_times(a).iter().enumerate() {
                    for (l, pair) in pairs[m].iter().enumerate() {
                        sum += &image.slice(s![target.block(l), ..]).dot(pair);
                    }
                }
            }
            sum
        };
        let start = terms[at].of(members[0]).0.clone();
        conjugate_gradients(operator, &right.unwrap_or_default(), start)
    });
    terms[at].a = solved.collect();
}

fn conjugate_gradients(
    operator: impl Fn(&Array2<f64>) -> Array2<f64>,
    right: &Array2<f64>,
    mut x: Array2<f64>,
) -> Array2<f64> {
    let dot = |a: &Array2<f64>, b: &Array2<f64>| (a * b).sum();
    let mut residual = right - &operator(&x);
    let mut direction = residual.clone();
    let mut size = dot(&residual, &residual);
    let enough = 1e-16 * dot(right, right);
    for _ in 0..GRADIENT_STEPS {
        if size <= enough {
            break;
        }
        let image = operator(&direction);
        let curvature = dot(&direction, &image);
        if curvature <= 0.0 {
            break;
        }
        let step = size / curvature;
        x.scaled_add(step, &direction);
        residual.scaled_add(-step, &image);
        let next = dot(&residual, &residual);
        direction = &residual + &(direction * (next / size));
        size = next;
    }
    x
}

/// Makes the basis side orthonormal, its scale moved to the other factor.
fn normalize(term: &mut Term) -> Result<(), String> {
    if term.form.last == Ownership::Shared {
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

fn chain(term: &Term, shapes: &[[usize; 4]]) -> Chain {
    let members = 0..shapes.len();
    let first = |i: usize| term.form.unfolding.fold_first(term.of(i).0.view(), shapes[i]).mapv(|x| x as f32);
    let last = |i: usize| term.form.unfolding.fold_last(term.of(i).1.view(), shapes[i]).mapv(|x| x as f32);
    let factor = |ownership: Ownership, make: &dyn Fn(usize) -> ndarray::Array4<f32>| match ownership {
        Ownership::Shared => Factor::Shared(make(0)),
        Ownership::Own => Factor::Own(members.clone().map(make).collect()),
    };
    Chain { factors: vec![factor(term.form.first, &first), factor(term.form.last, &last)] }
}
