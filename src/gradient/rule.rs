//! Which derivative a node has.

use super::Place;
use super::window::Window;

/// How cotangents of a node's outputs become those of its inputs.
#[derive(Debug, Clone)]
pub(crate) enum Rule {
    Pass,
    Reshape,
    Unary(Unary),
    PRelu,
    /// Any number of summands.
    Add,
    Sub,
    Mul,
    Div,
    /// Of the base.
    Pow,
    Expand,
    BatchNorm {
        epsilon: f32,
    },
    InstanceNorm {
        epsilon: f32,
    },
    Lrn {
        size: usize,
        alpha: f32,
        beta: f32,
        bias: f32,
    },
    /// `flat` takes all axes from `axis` on together, as before opset 13.
    Softmax {
        axis: i64,
        flat: bool,
        log: bool,
    },
    Concat {
        axis: i64,
    },
    Split {
        axis: i64,
        sizes: Option<Vec<usize>>,
    },
    Slice(Vec<Cut>),
    /// Elements before the first, for each of some axes.
    Pad {
        before: Vec<(i64, i64)>,
        border: Border,
    },
    Resize {
        scales: Option<Vec<f32>>,
        grid: Grid,
        linear: bool,
        rounding: Rounding,
    },
    Gather {
        axis: i64,
        indices: Vec<i64>,
        scalar: bool,
    },
    Conv {
        window: Window,
        groups: usize,
    },
    ConvTranspose {
        window: Window,
        groups: usize,
    },
    MaxPool {
        window: Window,
        kernel: Vec<usize>,
    },
    AveragePool {
        window: Window,
        kernel: Vec<usize>,
        count_padding: bool,
    },
    GlobalMaxPool,
    /// Over all but the first two axes where `axes` is none, over all where it is empty.
    Reduce {
        axes: Option<Vec<i64>>,
        keep: bool,
        mean: bool,
    },
    Gemm {
        alpha: f32,
        beta: f32,
        transposed: [bool; 2],
    },
    MatMul,
    Transpose {
        order: Option<Vec<usize>>,
    },
    /// `columns_first` is ONNX's mode `CRD`.
    DepthToSpace {
        block: usize,
        columns_first: bool,
    },
    SpaceToDepth {
        block: usize,
    },
}

/// An elementwise function of one value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unary {
    Relu,
    LeakyRelu { alpha: f32 },
    Clip { low: f32, high: f32 },
    Elu { alpha: f32 },
    Celu { alpha: f32 },
    Selu { alpha: f32, gamma: f32 },
    Sigmoid,
    HardSigmoid { alpha: f32, beta: f32 },
    HardSwish,
    Tanh,
    Softplus,
    Softsign,
    Mish,
    Erf,
    Gelu,
    GeluTanh,
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
}

impl Unary {
    /// Whether the derivative is computed from the output, not the input.
    pub(crate) fn is_of_output(self) -> bool {
        matches!(self, Self::Relu | Self::Sigmoid | Self::Tanh | Self::Exp | Self::Sqrt | Self::Reciprocal)
    }
}

/// One axis of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) axis: i64,
    pub(crate) start: i64,
    pub(crate) step: i64,
}

/// What a pad is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Border {
    Constant,
    Edge,
    Reflect,
}

/// Where in the input a resized pixel lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grid {
    HalfPixel,
    /// The same, but that one pixel comes from the first.
    HalfPixelTorch,
    Asymmetric,
    AlignCorners,
}

/// Which pixel is nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
}

impl Rule {
    /// Whether cotangents of all outputs are taken, not only of the first.
    pub(super) fn has_several_outputs(&self) -> bool {
        matches!(self, Self::Split { .. })
    }

    /// Whether there is a cotangent for the input at a position.
    pub(crate) fn differentiates(&self, position: usize) -> bool {
        match self {
            Self::Add | Self::Sub | Self::Mul | Self::Div | Self::Concat { .. } | Self::Gemm { .. } | Self::MatMul => {
                true
            }
            _ => position == 0,
        }
    }

    /// What is read of the forward pass for the cotangents of some inputs.
    pub(super) fn reads(&self, inputs: usize, flowing: &[usize]) -> Vec<Place> {
        let shapes = || flowing.iter().map(|&p| Place::Input(p)).collect::<Vec<_>>();
        let first = |count: usize| (0..count).map(Place::Input).collect::<Vec<_>>();
        match self {
            Self::Pass | Self::Transpose { .. } | Self::DepthToSpace { .. } | Self::SpaceToDepth { .. } => Vec::new(),
            Self::Unary(Unary::Neg) => Vec::new(),
            Self::Unary(unary) if unary.is_of_output() => vec![Place::Output],
            Self::Add | Self::Sub => shapes(),
            Self::Mul | Self::Div | Self::Pow | Self::MatMul | Self::PRelu => first(2),
            Self::Conv { .. } | Self::ConvTranspose { .. } => first(2),
            Self::Concat { .. } => first(inputs),
            // The other factor, and the summand's shape.
            Self::Gemm { .. } => {
                let of = |&p: &usize| Place::Input(if p < 2 { 1 - p } else { p });
                let mut places: Vec<Place> = flowing.iter().map(of).collect();
                places.dedup();
                places
            }
            Self::BatchNorm { .. } => vec![Place::Input(1), Place::Input(4)],
            Self::InstanceNorm { .. } => first(2),
            Self::Softmax { .. } => vec![Place::Output],
            _ => first(1),
        }
    }
}
