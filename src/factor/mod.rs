//! All the mathematics and no ONNX: kernels become sums of chains of own or shared factors.
//!
//! A kernel `W[out, in, kh, kw]` is [unfolded](Unfolding) into a matrix, the matrices of a group are
//! decomposed together as a [`Scheme`] says, and the result, [`Factors`], is the kernels of the small
//! convolutions that replace the large one.

mod calibrated;
mod chain;
mod joint;
mod linalg;
mod moment;
mod scheme;
mod solve;
mod stored;
mod target;
mod unfold;

pub use calibrated::{Refit, analyse_calibrated, factorize_calibrated, refit_dense};
pub use chain::{Chain, Factor, Factors, compose};
pub(crate) use joint::workspace;
pub use joint::{Analysis, Kernels, analyse, factorize};
pub use moment::{Geometry, Moment, respond, respond_to_rows};
pub use scheme::{ChainForm, Form, Ownership, Scheme, macs, parameters};
pub(crate) use stored::{Arrangement, Narrow};
pub use stored::{StoredKernel, Width};
pub use target::{OutputNorm, Seen};
pub use unfold::{Side, Unfolding};
