//! The ONNX file format: everything that knows protobuf, and no mathematics.
//!
//! [`Model`] is a file, [`Graph`] a read-only index over it, [`Conv`] one validated convolution.

pub(crate) mod attributes;
mod batch_norm;
mod conv;
mod dense;
mod encode;
mod external;
mod finite;
mod folding;
mod foreign;
mod functions;
mod graph;
mod inline;
mod inputs;
#[cfg(feature = "verify")]
mod jumps;
mod kind;
#[cfg(feature = "verify")]
mod legal;
mod model;
#[cfg(feature = "verify")]
mod normalisation;
mod parameters;
mod precision;
pub(crate) mod proto;
mod shapes;
mod skip;
mod storage;
#[cfg(feature = "verify")]
mod stretch;
mod tensor;
mod unknown;
mod window;
mod write;

pub(crate) use batch_norm::BatchNorm;
pub use conv::Conv;
pub(crate) use dense::Dense;
pub(crate) use folding::{folds, shape_of};
pub(crate) use functions::Within;
pub(crate) use graph::{Graph, Namer, Use, asks_shape, captures, is_standard, label, live, subgraphs};
pub use inputs::InputShape;
pub(crate) use kind::{Kind, is_layer};
pub use model::Model;
pub(crate) use model::VERSION_KEY;
#[cfg(feature = "verify")]
pub(crate) use model::hex;
#[cfg(feature = "verify")]
pub(crate) use model::read_tensor;
#[cfg(feature = "verify")]
pub(crate) use normalisation::{PixelRange, pixel_range};
pub(crate) use precision::Precision;
pub(crate) use shapes::Resolutions;
pub use skip::SkipReason;
pub(crate) use storage::{Storage, quantized};
#[cfg(feature = "tune")]
pub(crate) use stretch::float_value;
#[cfg(feature = "verify")]
pub(crate) use tensor::{Elements, read_integers};
pub(crate) use tensor::{float_initializer, initializer, int8_initializer, kernel_initializer, read_floats};
#[cfg(feature = "verify")]
pub(crate) use window::Window;
pub use write::{check_writable, write_whole, writing};
