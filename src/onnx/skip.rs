//! Why layers are left alone.

use std::fmt;

/// Why a convolution is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// Neither one, two nor three spatial axes.
    Axes {
        /// Axes of the kernel.
        axes: usize,
    },
    /// A transposed convolution in groups.
    Grouped {
        /// ONNX's attribute `group`.
        channel_groups: i64,
    },
    /// Each channel has a kernel of its own.
    Depthwise {
        /// ONNX's attribute `group`.
        channel_groups: usize,
    },
    /// The kernel is not constant.
    KernelComputed {
        /// The value that the node reads.
        value: String,
    },
    /// The kernel is a sparse tensor.
    KernelSparse {
        /// The sparse initializer.
        tensor: String,
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
    /// The kernel is stored in integers that are not read.
    KernelQuantized {
        /// The value that the node reads.
        value: String,
    },
    /// It computes in integers.
    Integers {
        /// ONNX's operator.
        operator: String,
    },
    /// Something other than layers of its kind reads the same kernel.
    KernelReused {
        /// The initializer.
        tensor: String,
        /// How many readings.
        uses: usize,
    },
    /// The constant of a product is its left side.
    KernelOnTheLeft {
        /// The constant.
        value: String,
    },
    /// The constant of a product is a stack of matrices.
    KernelStack {
        /// Its dimensions.
        dims: Vec<usize>,
    },
    /// It stands in a local function of the model.
    InFunction {
        /// The function.
        function: String,
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
    /// A transposed convolution says its output's size, and its input's is not known or too small for that.
    OpenPads,
    /// This tool wrote it.
    AlreadyFactored,
    /// Excluded by the user.
    Excluded,
    /// No output of the model follows from it.
    Unread,
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
            Self::Axes { axes } => write!(f, "its kernel has {axes} axes, not two and one to three spatial ones"),
            Self::Grouped { channel_groups } => {
                write!(
                    f,
                    "grouped transposed convolution (group = {channel_groups}): only Conv is decomposed in groups"
                )
            }
            Self::Depthwise { channel_groups } => write!(
                f,
                "depthwise convolution (group = {channel_groups}): its kernels read one channel each, so there are none to factor"
            ),
            Self::KernelComputed { value } => {
                write!(f, "its kernel '{value}' is computed in the graph")
            }
            Self::KernelSparse { tensor } => {
                write!(f, "its kernel '{tensor}' is a sparse initializer, which is not read")
            }
            Self::KernelOverridable { tensor } => {
                write!(f, "its kernel '{tensor}' is also a graph input, which callers may replace")
            }
            Self::KernelType { element_type } if matches!(&element_type[..], "FLOAT16" | "BFLOAT16" | "DOUBLE") => {
                write!(
                    f,
                    "its kernel is {element_type}, which is decomposed only where all kernels are, none of them quantized"
                )
            }
            Self::KernelType { element_type } => {
                write!(f, "its kernel is {element_type}; only FLOAT, FLOAT16, BFLOAT16 and DOUBLE are decomposed")
            }
            Self::KernelQuantized { value } => write!(
                f,
                "its kernel '{value}' is quantized, and not as INT8 or UINT8 with float32 scales: compress first, then quantize"
            ),
            Self::KernelReused { tensor, uses } => {
                write!(
                    f,
                    "its kernel '{tensor}', or the tensor behind it, is read {uses} times (an output of the model counts)"
                )
            }
            Self::KernelOnTheLeft { value } => {
                write!(f, "its constant '{value}' is the left side of the product; only a right side is decomposed")
            }
            Self::KernelStack { dims } => {
                write!(f, "its constant is a stack of matrices, {dims:?}; only a single matrix is decomposed")
            }
            Self::InFunction { function } => write!(
                f,
                "it stands in the local function '{function}', which is left as it is: it is of another operator set, is called from a subgraph, too, calls itself, is too large or could not be taken apart"
            ),
            Self::InSubgraph { node } => write!(f, "it stands in a subgraph of node '{node}'"),
            Self::ForeignDomain { domain } => write!(f, "its operator is of domain '{domain}'"),
            Self::Inconsistent { what } => write!(f, "{what}"),
            Self::Integers { operator } => write!(
                f,
                "{operator} computes in integers: a kernel is read where DequantizeLinear stands before it (the QDQ format)"
            ),
            Self::OpenPads => write!(
                f,
                "the pads that its output_shape or auto_pad stands for depend on a size that the model leaves open, or would be negative"
            ),
            Self::AlreadyFactored => write!(f, "already a factor written by onnx-jmd"),
            Self::Excluded => write!(f, "left out by --include or --exclude"),
            Self::Unread => write!(f, "no output of the model follows from it"),
            Self::Protocol { part } => write!(f, "the protocol leaves {part} whole"),
            Self::NeverPays => write!(f, "no rank makes it smaller without more multiply-accumulates"),
        }
    }
}
