//! One convolution, its attributes resolved and validated, or the reason why it is left alone.

use super::graph::{Graph, label};
use super::proto::{NodeProto, TensorProto, tensor_proto::DataType};
use super::shapes::{Extent, LARGEST, Resolutions};
use super::{BatchNorm, attributes, tensor};
use crate::error::{Error, Result};
#[cfg(feature = "verify")]
use crate::factor::Geometry;
use ndarray::{Array1, Array4, Axis};
use std::fmt;

/// A two-dimensional convolution with a constant kernel that nothing else uses, and the batch norm behind
/// it if that is to be folded in.
#[derive(Debug, Clone)]
pub struct Conv {
    /// The node's name, or its operator and output where it has none.
    pub name: String,
    /// Name of the kernel's tensor.
    pub kernel_name: String,
    /// Kernel shape `[out, in, kh, kw]`.
    pub shape: [usize; 4],
    /// Strides, height then width.
    pub strides: [usize; 2],
    /// Dilations, height then width.
    pub dilations: [usize; 2],
    /// Zeros added at top, left, bottom and right; none where `auto_pad` leaves them to an input size that is not known.
    pub pads: Option<[usize; 4]>,
    /// `SAME_UPPER` or `SAME_LOWER`, which the factors then say themselves.
    pub auto_pad: Option<String>,
    /// Height and width of the input, where known.
    pub input_extent: [Option<usize>; 2],
    /// Height and width of the output, where known.
    pub output_extent: [Option<usize>; 2],
    pub(crate) node: usize,
    pub(crate) input: String,
    /// The value that carries the result: the batch norm's output if one is folded in.
    pub(crate) output: String,
    pub(crate) bias: Option<String>,
    pub(crate) batch_norm: Option<BatchNorm>,
    /// Shares its bytes with the model.
    kernel: TensorProto,
    bias_values: Option<Vec<f64>>,
    /// Whether nothing else reads the bias.
    own_bias: bool,
}

/// Why a convolution is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// Conv1d, Conv3d or something else without two spatial axes.
    Axes {
        /// Axes of the kernel.
        axes: usize,
    },
    /// Grouped or depthwise.
    Grouped {
        /// ONNX's attribute `group`.
        channel_groups: i64,
    },
    /// The kernel is not constant.
    KernelComputed {
        /// The value that the node reads.
        value: String,
    },
    /// The kernel is an initializer that callers may replace.
    KernelOverridable {
        /// The initializer.
        tensor: String,
    },
    /// The kernel is not float32.
    KernelType {
        /// ONNX's name of the type.
        element_type: String,
    },
    /// Another node reads the same kernel.
    KernelReused {
        /// The initializer.
        tensor: String,
        /// How many readings.
        uses: usize,
    },
    /// It stands in a subgraph of `If`, `Loop` or `Scan`.
    InSubgraph {
        /// The node that owns the subgraph.
        node: String,
    },
    /// It is not ONNX's own operator.
    ForeignDomain {
        /// The operator's domain.
        domain: String,
    },
    /// The attributes contradict the kernel or the operator's definition.
    Inconsistent {
        /// What contradicts.
        what: String,
    },
    /// This tool wrote it.
    AlreadyFactored,
    /// Excluded by the user.
    Excluded,
    /// Left whole by the protocol asked for.
    Protocol {
        /// What the protocol leaves whole.
        part: &'static str,
    },
    /// No rank makes it smaller.
    NeverPays,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Axes { axes } => write!(f, "its kernel has {axes} axes; two-dimensional convolutions have 4"),
            Self::Grouped { channel_groups } => {
                write!(f, "grouped convolution (group = {channel_groups})")
            }
            Self::KernelComputed { value } => {
                write!(f, "its kernel '{value}' is computed in the graph")
            }
            Self::KernelOverridable { tensor } => {
                write!(f, "its kernel '{tensor}' is also a graph input, which callers may replace")
            }
            Self::KernelType { element_type } => {
                write!(f, "its kernel is {element_type}; only FLOAT is decomposed")
            }
            Self::KernelReused { tensor, uses } => {
                write!(f, "its kernel '{tensor}' is read {uses} times")
            }
            Self::InSubgraph { node } => write!(f, "it stands in a subgraph of node '{node}'"),
            Self::ForeignDomain { domain } => write!(f, "its operator is of domain '{domain}'"),
            Self::Inconsistent { what } => write!(f, "{what}"),
            Self::AlreadyFactored => write!(f, "already a factor written by onnx-jmd"),
            Self::Excluded => write!(f, "left out by --include or --exclude"),
            Self::Protocol { part } => write!(f, "the protocol leaves {part} whole"),
            Self::NeverPays => write!(f, "no rank makes it smaller without more multiply-accumulates"),
        }
    }
}

impl Conv {
    /// Validates one `Conv` node. `fold` says whether a batch norm behind it becomes part of it.
    pub(crate) fn new(
        graph: &Graph<'_>,
        resolutions: &Resolutions,
        index: usize,
        fold: bool,
    ) -> Result<Self, SkipReason> {
        let node = &graph.nodes()[index];
        let inconsistent = |what: String| SkipReason::Inconsistent { what };
        let (Some(input), Some(weight)) = (node.input.first(), node.input.get(1)) else {
            return Err(inconsistent("it has no kernel".into()));
        };
        let Some(tensor) = graph.constant(weight) else {
            return Err(if graph.is_overridable(weight) {
                SkipReason::KernelOverridable { tensor: weight.clone() }
            } else {
                SkipReason::KernelComputed { value: weight.clone() }
            });
        };
        let channel_groups = attributes::int(node, "group").unwrap_or(1);
        if channel_groups != 1 {
            return Err(SkipReason::Grouped { channel_groups });
        }
        let dims: Vec<usize> = tensor.dims.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
        let shape: [usize; 4] = dims[..].try_into().map_err(|_| SkipReason::Axes { axes: dims.len() })?;
        if shape.contains(&0) {
            return Err(inconsistent(format!("its kernel has an empty axis: {shape:?}")));
        }
        if tensor.data_type() != DataType::Float as i32 {
            let element_type = DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined);
            return Err(SkipReason::KernelType { element_type: element_type.as_str_name().into() });
        }
        let uses = graph.constant_uses(weight);
        if uses != 1 {
            return Err(SkipReason::KernelReused { tensor: weight.clone(), uses });
        }
        let pair = |name: &str| match attributes::ints(node, name) {
            None => Ok([1, 1]),
            Some(&[a, b]) if [a, b].iter().all(|v| (1..=LARGEST).contains(v)) => Ok([a as usize, b as usize]),
            Some(other) => Err(inconsistent(format!("its {name} are {other:?}"))),
        };
        if let Some(stated) = attributes::ints(node, "kernel_shape")
            && *stated != [shape[2] as i64, shape[3] as i64]
        {
            return Err(inconsistent(format!("its kernel_shape {stated:?} is not its kernel's {:?}", &shape[2..])));
        }
        let (strides, dilations) = (pair("strides")?, pair("dilations")?);
        let input_extent = resolutions.extent(input);
        let auto_pad = attributes::string(node, "auto_pad").filter(|a| a.starts_with("SAME")).map(str::to_owned);
        let pads = pads(node, &shape, strides, dilations, input_extent)?;
        let bias = node.input.get(2).filter(|b| !b.is_empty()).cloned();
        let bias_values = bias.as_ref().and_then(|b| tensor::read_floats(graph.constant(b)?));
        let bias_values: Option<Vec<f64>> = bias_values.map(|b| b.iter().map(|&x| f64::from(x)).collect());
        if bias_values.as_ref().is_some_and(|b| b.len() != shape[0]) {
            return Err(inconsistent(format!("its bias does not have {} elements", shape[0])));
        }
        let Some(written) = node.output.first() else {
            return Err(inconsistent("it has no output".into()));
        };
        let foldable = fold && (bias.is_none() || bias_values.is_some());
        let batch_norm = if foldable { BatchNorm::reading(graph, written, shape[0]) } else { None };
        let output = batch_norm.as_ref().map_or(written, |b| &b.output).clone();
        Ok(Self {
            name: label(node),
            kernel_name: weight.clone(),
            shape,
            strides,
            dilations,
            pads,
            auto_pad,
            input_extent,
            output_extent: resolutions.extent(&output),
            node: index,
            input: input.clone(),
            output,
            batch_norm,
            kernel: tensor.clone(),
            own_bias: bias.as_ref().is_some_and(|b| graph.constant_uses(b) == 1),
            bias,
            bias_values,
        })
    }

    /// The kernel in f64, axes `out, in, kh, kw`, with the batch norm's scale folded in.
    #[must_use]
    pub fn kernel(&self) -> Array4<f64> {
        // Type and shape were checked when the node was.
        let kernel = tensor::read_kernel(&self.kernel).unwrap_or_default();
        match &self.batch_norm {
            Some(norm) => per_output(kernel, norm.scale.iter().copied()),
            None => kernel,
        }
    }

    /// Checks that every weight is a number.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if one is NaN or infinite.
    pub(crate) fn check_finite(&self) -> Result<()> {
        if tensor::is_finite(&self.kernel) {
            return Ok(());
        }
        Err(Error::NotFinite { node: self.name.clone(), tensor: self.kernel_name.clone() })
    }

    /// The bias with the batch norm folded in, `scale·b + shift`; none where the node's own bias stays.
    pub(crate) fn folded_bias(&self) -> Option<Vec<f64>> {
        let norm = self.batch_norm.as_ref()?;
        let bias = self.bias_values.clone().unwrap_or_else(|| vec![0.0; self.shape[0]]);
        Some(bias.iter().zip(&norm.scale).zip(&norm.shift).map(|((b, s), t)| s * b + t).collect())
    }

    /// The constant that is added to the output, zero where there is no bias; none if the bias is computed.
    pub(crate) fn effective_bias(&self) -> Option<Vec<f64>> {
        match (&self.bias, &self.bias_values) {
            _ if self.batch_norm.is_some() => self.folded_bias(),
            (None, _) => Some(vec![0.0; self.shape[0]]),
            (Some(_), values) => values.clone(),
        }
    }

    /// How the kernel slides; none if its padding is not known.
    #[cfg(feature = "verify")]
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        Some(Geometry {
            kernel: [self.shape[2], self.shape[3]],
            strides: self.strides,
            dilations: self.dilations,
            pads: self.pads?,
        })
    }

    /// Stored parameters that folding the batch norm takes away, the new bias counted; negative if it adds some.
    pub(crate) fn folded_parameters(&self) -> i64 {
        let Some(norm) = &self.batch_norm else { return 0 };
        let old_bias = if self.own_bias { self.shape[0] } else { 0 };
        norm.own_parameters as i64 + old_bias as i64 - self.shape[0] as i64
    }

    /// Weights in the kernel.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Input and output sizes; where they are not known, those of a large output.
    pub(crate) fn extents(&self) -> ([usize; 2], [usize; 2]) {
        const LARGE: usize = 64;
        let output = self.output_extent.map(|n| n.unwrap_or(LARGE));
        let input = [0, 1].map(|axis| self.input_extent[axis].unwrap_or(output[axis] * self.strides[axis]));
        (input, output)
    }

    /// Multiply-accumulates for an output of this height and width.
    #[must_use]
    pub fn macs(&self, [height, width]: [usize; 2]) -> u64 {
        self.weights().saturating_mul(height as u64).saturating_mul(width as u64)
    }

    /// Multiply-accumulates of some convolutions as they are, for outputs of [`Conv::extents`].
    pub(crate) fn total_macs<'c>(convs: impl Iterator<Item = &'c Self>) -> u64 {
        convs.map(|c| c.macs(c.extents().1)).fold(0, u64::saturating_add)
    }
}

/// Multiplies each output channel of a kernel.
fn per_output(kernel: Array4<f64>, factors: impl Iterator<Item = f64>) -> Array4<f64> {
    let factors = Array1::from_iter(factors);
    kernel * factors.insert_axis(Axis(1)).insert_axis(Axis(2)).insert_axis(Axis(3))
}

/// More padding than this is taken for damage.
const LARGEST_PAD: i64 = 4096;

/// Pads `[top, left, bottom, right]`, with `auto_pad` resolved where the input's size is known (ONNX operator Conv).
fn pads(
    node: &NodeProto,
    shape: &[usize; 4],
    strides: [usize; 2],
    dilations: [usize; 2],
    extent: Extent,
) -> Result<Option<[usize; 4]>, SkipReason> {
    let upper = match attributes::string(node, "auto_pad").unwrap_or("NOTSET") {
        "VALID" => return Ok(Some([0; 4])),
        "NOTSET" | "" => {
            let fits = |pads: &[i64]| pads.len() == 4 && pads.iter().all(|p| (0..=LARGEST_PAD).contains(p));
            return match attributes::ints(node, "pads") {
                None => Ok(Some([0; 4])),
                Some(pads) if fits(pads) => Ok(Some(std::array::from_fn(|i| pads[i] as usize))),
                Some(other) => Err(SkipReason::Inconsistent { what: format!("its pads are {other:?}") }),
            };
        }
        "SAME_UPPER" => true,
        "SAME_LOWER" => false,
        other => return Err(SkipReason::Inconsistent { what: format!("its auto_pad is '{other}'") }),
    };
    let mut pads = [0; 4];
    for axis in 0..2 {
        let reach = dilations[axis] * (shape[2 + axis] - 1) + 1;
        // At stride one the padding does not depend on the input's size.
        let total = match (strides[axis], extent[axis]) {
            (1, _) => reach - 1,
            (stride, Some(n)) => (n.div_ceil(stride).saturating_sub(1) * stride + reach).saturating_sub(n),
            (_, None) => return Ok(None),
        };
        let small = total / 2;
        pads[axis] = if upper { small } else { total - small };
        pads[axis + 2] = if upper { total - small } else { small };
    }
    Ok(Some(pads))
}
