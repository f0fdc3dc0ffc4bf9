//! Which factors a group shares, what that costs, and how many ranks each chain gets.

use super::{Side, Unfolding};

/// Whether a factor is stored once for the group or once a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// One tensor a member.
    Own,
    /// One tensor for all members.
    Shared,
}

/// One chain of two factors `A·B`, or of three `A·C·Vᵀ`, as a scheme asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainForm {
    /// How kernels become matrices.
    pub unfolding: Unfolding,
    /// Ownership of `A`, the first convolution.
    pub first: Ownership,
    /// Ownership of `C`, the core in the middle, where there are three.
    pub core: Option<Ownership>,
    /// Ownership of `B`, or of `V`: the last convolution.
    pub last: Ownership,
}

impl ChainForm {
    /// The same with every factor stored once a member.
    #[must_use]
    pub fn unshared(&self) -> Self {
        Self { first: Ownership::Own, core: self.core.map(|_| Ownership::Own), last: Ownership::Own, ..*self }
    }

    /// The side whose factor is an orthonormal basis; the other factor is the projection on it and carries
    /// the singular values. Of two factors a shared one is always the basis.
    #[must_use]
    pub fn basis_side(&self) -> Side {
        let last = self.last == Ownership::Shared && self.first == Ownership::Own && self.core.is_none();
        if last { Side::Last } else { Side::First }
    }

    /// Ownership of the factor on that side.
    #[must_use]
    pub fn basis(&self) -> Ownership {
        if self.basis_side() == Side::First { self.first } else { self.last }
    }

    /// Ownership of all that follows the first factor, taken together.
    pub(super) fn rest(&self) -> Ownership {
        if self.core == Some(Ownership::Own) { Ownership::Own } else { self.last }
    }

    /// Whether every factor is shared: then all members are given one kernel, at best the nearest to their mean.
    #[must_use]
    pub fn is_common(&self) -> bool {
        self.first == Ownership::Shared && self.rest() == Ownership::Shared
    }

    /// Whether any factor is shared.
    #[must_use]
    pub fn shares(&self) -> bool {
        [Some(self.first), self.core, Some(self.last)].contains(&Some(Ownership::Shared))
    }

    /// Ranks behind the first factor and, of three, in front of the last one for a rank of the chain: none is larger than what it
    /// cuts.
    fn cuts(&self, rank: usize, shape: [usize; 4]) -> (usize, usize) {
        match self.core {
            None => (rank, rank),
            Some(_) => (rank.min(self.unfolding.matrix_shape(shape).0), rank.min(shape[0])),
        }
    }

    /// Ownership and elements of each factor for a kernel of this shape.
    fn sizes(&self, rank: usize, shape: [usize; 4]) -> Vec<(Ownership, usize)> {
        let (rows, columns) = self.unfolding.matrix_shape(shape);
        let (first, last) = self.cuts(rank, shape);
        match self.core {
            None => vec![(self.first, rows * first), (self.last, last * columns)],
            Some(core) => {
                let offsets = columns / shape[0].max(1);
                vec![(self.first, rows * first), (core, first * offsets * last), (self.last, last * shape[0])]
            }
        }
    }
}

/// A scheme of the paper (arXiv 2107.04386), by what is shared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scheme {
    /// Each kernel by itself: `Wᵢ ≈ Aᵢ·Bᵢ` (SVD; spatial: Tai et al.).
    Separate,
    /// `Wᵢ ≈ A·Bᵢ` (LJSVD).
    LeftShared,
    /// `Wᵢ ≈ Aᵢ·B`, the stage's first convolution, which reads fewer channels, included (RJSVD-1).
    RightSharedWithFirst,
    /// `Wᵢ ≈ Aᵢ·B` over convolutions of equal shape (RJSVD-2).
    RightShared,
    /// `Wᵢ ≈ A·Bᵢ + Cᵢ·D` (Bi-JSVD).
    BothShared {
        /// Share of the rank that goes to the left-shared chain, from 0 (RJSVD-2) to 1 (LJSVD).
        split: f64,
    },
    /// `Wᵢ ≈ Aᵢ·B + Cᵢ·Dᵢ`: a right-shared chain and an own one (PCSVD).
    PartlyCoupled {
        /// Share of the rank that goes to the shared chain.
        split: f64,
    },
    /// `Wᵢ ≈ A·C·Vᵀ + Aᵢ·Cᵢ·Vᵢᵀ`: one tensor train for all and one of its own for each (NC-CTD).
    CoupledTensorTrain {
        /// Share of the rank that goes to the shared train: `1/(1+n)` where the own ranks are n times the shared one.
        split: f64,
    },
}

impl Scheme {
    /// The name on the command line and in reports, after the paper.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Separate => "separate",
            Self::LeftShared => "ljsvd",
            Self::RightSharedWithFirst => "rjsvd-1",
            Self::RightShared => "rjsvd-2",
            Self::BothShared { .. } => "bi-jsvd",
            Self::PartlyCoupled { .. } => "pcsvd",
            Self::CoupledTensorTrain { .. } => "nc-ctd",
        }
    }

    /// The scheme of a name; of two chains the first gets this share of the rank.
    #[must_use]
    pub fn named(name: &str, split: f64) -> Option<Self> {
        let all = [
            Self::Separate,
            Self::LeftShared,
            Self::RightSharedWithFirst,
            Self::RightShared,
            Self::BothShared { split },
            Self::PartlyCoupled { split },
            Self::CoupledTensorTrain { split },
        ];
        all.into_iter().find(|scheme| scheme.name() == name)
    }

    /// How the rank is dealt to two chains, where there are two: the share of the first.
    #[must_use]
    pub fn split(self) -> Option<f64> {
        match self {
            Self::BothShared { split } | Self::PartlyCoupled { split } | Self::CoupledTensorTrain { split } => {
                Some(split)
            }
            Self::Separate | Self::LeftShared | Self::RightShared | Self::RightSharedWithFirst => None,
        }
    }

    /// Whether members must have equal input channels.
    #[must_use]
    pub fn needs_equal_inputs(self) -> bool {
        self != Self::RightSharedWithFirst
    }

    /// This scheme on kernels unfolded so.
    #[must_use]
    pub fn on(self, unfolding: Unfolding) -> Form {
        Form { scheme: self, unfolding }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// All that says what a group of kernels becomes, but for its ranks: what is shared, and where a kernel is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Form {
    /// What the members share.
    pub scheme: Scheme,
    /// How kernels become matrices.
    pub unfolding: Unfolding,
}

impl Form {
    /// The sum of chains that a group becomes.
    #[must_use]
    pub fn chains(self) -> Vec<ChainForm> {
        use Ownership::{Own, Shared};
        let core = self.unfolding.twice.then_some(Own);
        let chain = |first, last| ChainForm { unfolding: self.unfolding, first, core, last };
        match self.scheme {
            Scheme::Separate => vec![chain(Own, Own)],
            Scheme::LeftShared => vec![chain(Shared, Own)],
            Scheme::RightShared | Scheme::RightSharedWithFirst => vec![chain(Own, Shared)],
            Scheme::BothShared { split } if split <= 0.0 => vec![chain(Own, Shared)],
            Scheme::BothShared { split } if split >= 1.0 => vec![chain(Shared, Own)],
            // Of three factors both outer ones can be shared at once.
            Scheme::BothShared { .. } if core.is_some() => vec![chain(Shared, Shared)],
            Scheme::BothShared { .. } => vec![chain(Shared, Own), chain(Own, Shared)],
            Scheme::PartlyCoupled { split } => dealt(split, chain(Own, Shared), chain(Own, Own)),
            Scheme::CoupledTensorTrain { split } => {
                let all = ChainForm { core: core.map(|_| Shared), ..chain(Shared, Shared) };
                dealt(split, all, chain(Own, Own))
            }
        }
    }

    /// How `total` ranks are dealt to the chains. Every chain gets at least one.
    #[must_use]
    pub fn ranks(self, total: usize) -> Vec<usize> {
        match self.scheme.split().filter(|_| self.least_rank() == 2) {
            Some(split) => {
                let left = (split * total as f64).round() as usize;
                let left = left.clamp(1, total.max(2) - 1);
                vec![left, total.max(2) - left]
            }
            None => vec![total],
        }
    }

    /// The smallest total rank: one for every chain.
    #[must_use]
    pub fn least_rank(self) -> usize {
        self.chains().len()
    }
}

/// Two chains, or the one that gets all of the rank.
fn dealt(split: f64, first: ChainForm, second: ChainForm) -> Vec<ChainForm> {
    match split {
        none if none <= 0.0 => vec![second],
        all if all >= 1.0 => vec![first],
        _ => vec![first, second],
    }
}

impl From<Scheme> for Form {
    /// The paper's unfolding.
    fn from(scheme: Scheme) -> Self {
        scheme.on(Unfolding::SPATIAL)
    }
}

impl std::fmt::Display for Form {
    /// `ljsvd`, or `ljsvd/filter-bank` where the unfolding is not the paper's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.unfolding == Unfolding::SPATIAL {
            return self.scheme.fmt(f);
        }
        f.pad(&format!("{}/{}", self.scheme.name(), self.unfolding.name()))
    }
}

/// Elements stored for kernels of these shapes: each factor once a member, a shared one once.
#[must_use]
pub fn parameters(chains: &[ChainForm], ranks: &[usize], shapes: &[[usize; 4]]) -> u64 {
    let chains = chains.iter().zip(ranks).map(|(chain, &rank)| {
        let each = shapes.iter().enumerate().flat_map(|(at, &shape)| {
            let stored = move |(ownership, _): &(Ownership, usize)| at == 0 || *ownership == Ownership::Own;
            chain.sizes(rank, shape).into_iter().filter(stored).map(|(_, size)| size)
        });
        each.sum::<usize>()
    });
    chains.sum::<usize>() as u64
}

/// Multiply-accumulates of one member's chains for an input and an output of these heights and widths. Between the factors a
/// value is as large as the input along the axes that the last factor slides over, and as the output along the others. A
/// convolution multiplies at each pixel that it writes, a `transposed` one at each that it reads.
#[must_use]
pub fn macs(
    chains: &[ChainForm],
    ranks: &[usize],
    shape: [usize; 4],
    [input, output]: [[usize; 2]; 2],
    transposed: bool,
) -> u64 {
    let chains = chains.iter().zip(ranks).map(|(chain, &rank)| {
        let (_, last) = chain.unfolding.extents(shape);
        let between = [0, 1].map(|axis| if last[axis] > 1 { input[axis] } else { output[axis] });
        let each = chain.sizes(rank, shape).into_iter().enumerate().map(|(at, (_, size))| {
            let [height, width] = match (at, transposed) {
                (0, true) => input,
                (0, false) | (1, true) => between,
                _ => output,
            };
            [height, width].iter().fold(size as u64, |n, &d| n.saturating_mul(d as u64))
        });
        each.fold(0, u64::saturating_add)
    });
    chains.fold(0, u64::saturating_add)
}
