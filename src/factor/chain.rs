//! The one representation of every scheme: for each member of a group, a sum of chains of factors, each
//! factor the member's own or shared by all of them.

use super::linalg::left_inverse;
use super::stored::{Arrangement, Narrow};
use super::{ChainForm, Ownership, StoredKernel, Width};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, Axis, s};

/// Kernels at one place of a chain.
#[derive(Debug, Clone, PartialEq)]
pub enum Factor {
    /// One kernel, stored once and read by every member.
    Shared(StoredKernel),
    /// One kernel a member.
    Own(Vec<StoredKernel>),
}

impl Factor {
    /// The kernel that one member uses.
    #[must_use]
    pub fn of(&self, member: usize) -> &StoredKernel {
        match self {
            Self::Shared(kernel) => kernel,
            Self::Own(kernels) => &kernels[member],
        }
    }

    /// All of them.
    #[must_use]
    pub fn kernels(&self) -> &[StoredKernel] {
        match self {
            Self::Shared(kernel) => std::slice::from_ref(kernel),
            Self::Own(kernels) => kernels,
        }
    }

    fn kernels_mut(&mut self) -> &mut [StoredKernel] {
        match self {
            Self::Shared(kernel) => std::slice::from_mut(kernel),
            Self::Own(kernels) => kernels,
        }
    }

    /// The type of its elements.
    pub(super) fn width(&self) -> Width {
        self.kernels().first().map_or(Width::Single, StoredKernel::width)
    }

    /// Elements stored.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.kernels().iter().map(|k| k.len() as u64).sum()
    }
}

/// Convolutions applied one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// From the input to the output.
    pub factors: Vec<Factor>,
}

/// `A: rows×r` and `B: r×columns` of one member.
pub(super) type Pair<'p> = (ArrayView2<'p, f64>, ArrayView2<'p, f64>);

impl Chain {
    /// The kernels of matrices: `pair` gives those of a member, `cuts` hold `V: out×r` where the last factor is cut again, one or
    /// one a member, and `finish` gets each last kernel before it is rounded to `width`.
    pub(super) fn fold<'p>(
        form: &ChainForm,
        shapes: &[[usize; 4]],
        pair: &dyn Fn(usize) -> Pair<'p>,
        cuts: &[Array2<f64>],
        finish: &dyn Fn(usize, Array4<f64>) -> Array4<f64>,
        width: Width,
    ) -> Self {
        let factor = |ownership: Ownership, kernel: &dyn Fn(usize) -> Array4<f64>| {
            let rounded = |i: usize| StoredKernel::new(kernel(i), width);
            match ownership {
                Ownership::Shared => Factor::Shared(rounded(0)),
                Ownership::Own => Factor::Own((0..shapes.len()).map(rounded).collect()),
            }
        };
        let unfolding = form.unfolding;
        let mut factors = vec![factor(form.first, &|i| unfolding.fold_first(pair(i).0, shapes[i]))];
        match form.core {
            None => factors.push(factor(form.last, &|i| finish(i, unfolding.fold_last(pair(i).1, shapes[i])))),
            Some(core) => {
                let v = |i: usize| &cuts[i.min(cuts.len() - 1)];
                let cored = |i: usize| {
                    let [_, inputs, kh, kw] = shapes[i];
                    unfolding.fold_last(self::core(pair(i).1, v(i)).view(), [v(i).ncols(), inputs, kh, kw])
                };
                factors.push(factor(core, &cored));
                let last = |i: usize| v(i).clone().insert_axis(Axis(2)).insert_axis(Axis(3));
                factors.push(factor(form.last, &|i| finish(i, last(i))));
            }
        }
        Self { factors }
    }
}

/// The `C_l` with `C_l·Vᵀ` nearest to `B_l` for each offset l, beside each other as in `B`: `C_l = B_l·V·(VᵀV)⁻¹`.
pub(super) fn core(b: ArrayView2<'_, f64>, v: &Array2<f64>) -> Array2<f64> {
    let dual = left_inverse(v);
    let parts: Vec<Array2<f64>> = b.axis_chunks_iter(Axis(1), v.nrows()).map(|part| part.dot(&dual.t())).collect();
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    ndarray::concatenate(Axis(1), &views).unwrap_or_default()
}

/// What stands for the kernels of a group: `Ŵᵢ = Σ chains`, each chain a composition of factors.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Terms of the sum.
    pub chains: Vec<Chain>,
}

impl Factors {
    /// `Ŵ[out, in, kh, kw]` of one member, in f64: what the written convolutions compute together.
    #[must_use]
    pub fn reconstruct(&self, member: usize) -> Array4<f64> {
        let products = self.chains.iter().map(|chain| {
            let mut kernels = chain.factors.iter().map(|f| f.of(member).to_f64());
            let first = kernels.next().unwrap_or_default();
            kernels.fold(first, |product, next| compose(product.view(), next.view()))
        });
        products.reduce(|a, b| a + b).unwrap_or_default()
    }

    fn kernels_mut(&mut self) -> impl Iterator<Item = &mut StoredKernel> {
        self.chains.iter_mut().flat_map(|c| &mut c.factors).flat_map(Factor::kernels_mut)
    }

    /// Keeps elements in memory in the order in which they are stored.
    pub(crate) fn lay_out(&mut self, by: &impl Arrangement) {
        self.kernels_mut().for_each(|kernel| kernel.lay_out(by));
    }

    /// Rounds to a narrower type, and takes no more memory than it does.
    pub(crate) fn narrow_to(&mut self, narrow: Narrow) {
        self.kernels_mut().for_each(|kernel| kernel.narrow_to(narrow));
    }

    /// Whether every element is a number that its type holds.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let factors = self.chains.iter().flat_map(|c| &c.factors);
        factors.flat_map(Factor::kernels).all(StoredKernel::is_finite)
    }

    /// Elements stored, a shared factor once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.chains.iter().flat_map(|c| &c.factors).map(Factor::parameters).sum()
    }
}

/// The kernel of `second` applied after `first`, both at stride one:
/// `W[o, i, y₁+y₂, x₁+x₂] = Σₘ second[o, m, y₂, x₂] · first[m, i, y₁, x₁]`.
#[must_use]
pub fn compose(first: ArrayView4<'_, f64>, second: ArrayView4<'_, f64>) -> Array4<f64> {
    let (_, inputs, kh1, kw1) = first.dim();
    let (out, _, kh2, kw2) = second.dim();
    let mut kernel = Array4::zeros((out, inputs, kh1 + kh2 - 1, kw1 + kw2 - 1));
    for (y1, x1) in ndarray::indices((kh1, kw1)) {
        let into = first.slice(s![.., .., y1, x1]).as_standard_layout().into_owned();
        for (y2, x2) in ndarray::indices((kh2, kw2)) {
            let from = second.slice(s![.., .., y2, x2]).as_standard_layout().into_owned();
            let mut at = kernel.slice_mut(s![.., .., y1 + y2, x1 + x2]);
            at += &from.dot(&into);
        }
    }
    kernel
}
