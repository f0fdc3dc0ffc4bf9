//! The operators that compute a convolution over two axes, and how each stores a kernel.
//!
//! | operator | as a convolution `[out, in, kh, kw]` |
//! |---|---|
//! | `Conv` over one axis | height one |
//! | `Conv` over two | itself |
//! | `Conv` over three | the last two axes are one, `kw = k₂·k₃` |
//! | `Conv` with `group = g` | g convolutions beside each other, each of `in` channels to `out/g`, their kernels on top of each other |
//! | `ConvTranspose` | over the input with zeros between and around its pixels, at stride one, the kernel turned by 180° |
//! | `Gemm`, `MatMul` | `1×1`, the rows of the left matrix its pixels |

use super::Graph;
use super::graph::is_standard;
use super::proto::NodeProto;
use super::window::Window;
use crate::factor::Arrangement;
use ndarray::{ArcArray, Array4, ArrayBase, ArrayView4, Axis, Ix4, RawData};
use std::ops::Range;

/// An operator with all that its attributes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `Conv` over one to three spatial axes.
    Conv(Window),
    /// `ConvTranspose` over one to three.
    ConvTranspose(Window),
    /// `x·W + b`; `transposed`, the file stores `Wᵀ`.
    Gemm { transposed: bool },
    /// `x·W`, along the last axis of `x`.
    MatMul,
}

/// Whether a node is one of these operators with weights of its own: a `MatMul` of two computed values is none.
pub(crate) fn is_layer(graph: &Graph<'_>, node: &NodeProto) -> bool {
    let weights = || node.input.get(1).is_some_and(|w| graph.is_constant(w));
    is_standard(node)
        && match node.op_type() {
            "Conv" | "ConvTranspose" => true,
            "Gemm" | "MatMul" => weights(),
            _ => false,
        }
}

/// How many spatial axes there are, and of three what they are: of those that are one in a shape, each may be another.
fn axes(window: &Window) -> String {
    match window.kernel[..] {
        [a, b, c] => format!("3 {a}×{b}×{c}"),
        _ => window.kernel.len().to_string(),
    }
}

/// The spatial axes of a kernel that are the first, and the second, of two.
fn halves(axes: usize) -> [Range<usize>; 2] {
    if axes == 1 { [0..0, 0..1] } else { [0..1, 1..axes] }
}

impl Kind {
    pub(crate) fn op_type(&self) -> &'static str {
        match self {
            Self::Conv(_) => "Conv",
            Self::ConvTranspose(_) => "ConvTranspose",
            Self::Gemm { .. } => "Gemm",
            Self::MatMul => "MatMul",
        }
    }

    /// What convolutions have in common that store kernels alike, so that they can share one.
    pub(crate) fn family(&self) -> String {
        match self {
            Self::Conv(window) if window.groups > 1 => format!("Conv{}/{}", axes(window), window.groups),
            Self::Conv(window) if window.kernel.len() == 2 => String::new(),
            Self::Conv(window) | Self::ConvTranspose(window) => format!("{}{}", self.op_type(), axes(window)),
            Self::Gemm { transposed: true } => "Gemm'".into(),
            Self::Gemm { .. } | Self::MatMul => self.op_type().into(),
        }
    }

    pub(crate) fn window(&self) -> Option<&Window> {
        match self {
            Self::Conv(window) | Self::ConvTranspose(window) => Some(window),
            Self::Gemm { .. } | Self::MatMul => None,
        }
    }

    pub(crate) fn is_transposed(&self) -> bool {
        matches!(self, Self::ConvTranspose(_))
    }

    /// Groups of channels, each with kernels of its own; one where all channels are read together.
    pub(crate) fn groups(&self) -> usize {
        self.window().map_or(1, |w| w.groups)
    }

    /// Whether it is a fully connected layer.
    pub(crate) fn is_dense(&self) -> bool {
        self.window().is_none()
    }

    /// Where a stored kernel has its channels of the output.
    pub(crate) fn output_axis(&self) -> usize {
        match self {
            Self::Conv(_) | Self::Gemm { transposed: true } => 0,
            Self::ConvTranspose(_) | Self::Gemm { .. } | Self::MatMul => 1,
        }
    }

    /// Strides along the two axes.
    pub(crate) fn strides(&self) -> [usize; 2] {
        let Some(window) = self.window() else { return [1; 2] };
        self.axes().map(|axes| window.strides[axes].iter().product())
    }

    /// The shape `[out, in, kh, kw]` of a kernel stored in these dimensions.
    pub(super) fn shape(&self, dims: &[usize]) -> Option<[usize; 4]> {
        let (&[a, b], spatial) = dims.split_first_chunk::<2>()?;
        let (out, inputs) = match self {
            Self::Conv(_) | Self::Gemm { transposed: true } => (a, b),
            Self::ConvTranspose(_) | Self::Gemm { .. } | Self::MatMul => (b, a),
        };
        let halves = if self.is_dense() { [0..0, 0..0] } else { halves(spatial.len()) };
        let [kh, kw] = halves.map(|axes| spatial.get(axes).map(|s| s.iter().product()));
        Some([out, inputs, kh?, kw?])
    }

    /// Height and width of a value that it reads or writes, of a shape as far as that is known.
    pub(super) fn extent(&self, shape: Option<&[Option<usize>]>) -> [Option<usize>; 2] {
        let Some(shape) = shape else { return [None; 2] };
        let count = |dims: &[Option<usize>]| dims.iter().try_fold(1usize, |n, d| n.checked_mul((*d)?));
        match (self.window(), shape) {
            // An open batch is one.
            (None, [batch, rows @ .., _]) => [Some(1), count(rows).and_then(|n| n.checked_mul(batch.unwrap_or(1)))],
            (Some(window), [_, _, spatial @ ..]) if spatial.len() == window.kernel.len() => {
                self.axes().map(|axes| count(&spatial[axes]))
            }
            _ => [None; 2],
        }
    }

    /// The spatial axes that the first, and the second, axis of a kernel stands for.
    pub(crate) fn axes(&self) -> [Range<usize>; 2] {
        halves(self.window().map_or(2, |w| w.kernel.len()))
    }

    /// The kernel `[out, in, kh, kw]` of stored elements; none if their shape is another.
    pub(crate) fn read(&self, dims: &[usize], elements: Vec<f64>) -> Option<Array4<f64>> {
        let [out, inputs, kh, kw] = self.shape(dims)?;
        match self {
            Self::Conv(_) | Self::Gemm { transposed: true } => {
                Array4::from_shape_vec([out, inputs, kh, kw], elements).ok()
            }
            Self::ConvTranspose(_) | Self::Gemm { .. } | Self::MatMul => {
                let stored = Array4::from_shape_vec([inputs, out, kh, kw], elements).ok()?;
                Some(turned(stored.view()).as_standard_layout().into_owned())
            }
        }
    }

    /// Dimensions and elements of a kernel `[out, in, kh, kw]` as the operator stores it; each axis has the extent of the whole
    /// kernel or one.
    pub(crate) fn store(&self, kernel: ArrayView4<'_, f32>) -> (Vec<usize>, Vec<f32>) {
        (self.dims(kernel.dim()), self.ordered(kernel).iter().copied().collect())
    }

    /// Dimensions of a kernel of shape `(out, in, kh, kw)` as the operator stores it.
    pub(crate) fn dims(&self, (out, inputs, kh, kw): (usize, usize, usize, usize)) -> Vec<usize> {
        let channels = if self.keeps_order() { vec![out, inputs] } else { vec![inputs, out] };
        [channels, self.spatial([kh, kw])].concat()
    }

    /// A kernel `[out, in, kh, kw]` with the axes as the operator stores them, or one of these with the axes of a kernel.
    pub(crate) fn ordered<S: RawData>(&self, kernel: ArrayBase<S, Ix4>) -> ArrayBase<S, Ix4> {
        if self.keeps_order() { kernel } else { turned(kernel) }
    }

    /// Whether the operator stores a kernel `[out, in, kh, kw]` in this order.
    fn keeps_order(&self) -> bool {
        matches!(self, Self::Conv(_) | Self::Gemm { transposed: true })
    }

    /// The spatial extents, as the operator counts its axes, of a kernel that has each of two extents or one instead.
    pub(crate) fn spatial(&self, extents: [usize; 2]) -> Vec<usize> {
        let Some(window) = self.window() else { return Vec::new() };
        let each = self
            .axes()
            .into_iter()
            .zip(extents)
            .flat_map(|(axes, extent)| axes.map(move |axis| if extent == 1 { 1 } else { window.kernel[axis] }));
        each.collect()
    }
}

impl Arrangement for Kind {
    fn arranged<T: Clone>(&self, kernel: ArcArray<T, Ix4>) -> ArcArray<T, Ix4> {
        self.ordered(kernel)
    }
}

/// The first two axes exchanged, and the kernel turned by 180°.
fn turned<S: RawData>(kernel: ArrayBase<S, Ix4>) -> ArrayBase<S, Ix4> {
    let mut kernel = kernel.permuted_axes([1, 0, 2, 3]);
    kernel.invert_axis(Axis(2));
    kernel.invert_axis(Axis(3));
    kernel
}
