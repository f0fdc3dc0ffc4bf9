//! What can go wrong, in sentences that name the file, node or tensor and the next step.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be read, compressed, verified or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The input has no bytes.
    #[error("the model is empty (0 bytes): export it again")]
    Empty,
    /// The bytes are not an ONNX model.
    #[error("not an ONNX model, or a truncated one: {reason}")]
    NotOnnx {
        /// What the decoder or the first checks met.
        reason: String,
    },
    /// A tensor's stored size contradicts its dimensions.
    #[error("tensor '{tensor}' says {expected} elements by its dims {dims:?} but stores {found}: the file is damaged")]
    TensorSize {
        /// The initializer or constant.
        tensor: String,
        /// Its stored dimensions.
        dims: Vec<i64>,
        /// Elements by its dimensions.
        expected: String,
        /// Elements in the file.
        found: String,
    },
    /// A tensor is kept in another file.
    #[error("the data of tensor '{tensor}' is in another file, '{file}' (external data): {reason}")]
    ExternalData {
        /// The initializer.
        tensor: String,
        /// The file, as the model names it.
        file: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// A node reads a value that nothing produces.
    #[error("node '{node}' reads '{value}', which no node, input or initializer provides: the graph is damaged")]
    Dangling {
        /// The reading node.
        node: String,
        /// The missing value.
        value: String,
    },
    /// Two nodes write one value.
    #[error("value '{value}' is written twice, the second time by node '{node}': the graph is damaged")]
    WrittenTwice {
        /// The value.
        value: String,
        /// The second writer.
        node: String,
    },
    /// The nodes feed each other in a circle.
    #[error("the graph has a cycle through node '{node}': ONNX graphs are acyclic, export the model again")]
    Cycle {
        /// One node of the cycle.
        node: String,
    },
    /// A parameter has a NaN or an infinity.
    #[error("tensor '{tensor}', a weight of node '{node}', holds a NaN or an infinity: repair the model first")]
    NotFinite {
        /// The layer or normalisation.
        node: String,
        /// Its kernel, bias, scale or the like.
        tensor: String,
    },
    /// A parameter with which products exceed float32.
    #[error(
        "tensor '{tensor}', a weight of node '{node}', holds {value:.1e}, which no network learns: repair the model first, as it may be damaged"
    )]
    Extreme {
        /// The layer or batch norm.
        node: String,
        /// Its kernel, bias or scale.
        tensor: String,
        /// The largest of its numbers, without its sign.
        value: f64,
    },
    /// A file's model is not sound.
    #[error("{path}: {source}")]
    Unsound {
        /// The model's file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// The options contradict each other or the model.
    #[error("{0}")]
    Options(String),
    /// No pictures can be drawn for the model.
    #[error("{reason}")]
    NotDrawable {
        /// What its inputs are instead, and what to do.
        reason: String,
    },
    /// There is nothing to decompose.
    #[error("nothing to compress: {0}")]
    NothingToCompress(String),
    /// No choice of ranks gives so small a model.
    #[error("ratio {asked} is out of reach: the largest for this model with scheme {scheme} is {largest:.3}; {advice}")]
    Unreachable {
        /// The ratio asked for.
        asked: f64,
        /// The scheme's name.
        scheme: String,
        /// The largest reachable ratio, every rank one.
        largest: f64,
        /// What to try.
        advice: String,
    },
    /// The written model does not compute what was decided.
    #[error(
        "the rewritten model differs from its reference by {error:.2e} of the largest output (tolerance {tolerance:.0e}): this is a bug in onnx-jmd, nothing was written; please report it with the model"
    )]
    RewriteWrong {
        /// Largest difference, relative to the largest output.
        error: f64,
        /// What rounding explains.
        tolerance: f64,
    },
    /// tract does not run the model.
    #[error("tract cannot run {what}: {reason}; nothing was written")]
    Unavailable {
        /// Which model.
        what: String,
        /// tract's own reason.
        reason: String,
    },
    /// A bound is on outputs of the whole model, and tract runs its parts alone.
    #[error(
        "{bound} was not measured, as tract runs only parts of the model and not the whole: {reason}; nothing was written"
    )]
    Unmeasured {
        /// The option.
        bound: &'static str,
        /// tract's own reason.
        reason: String,
    },
    /// A gate set by the user was not met.
    #[error("{measure} is {found}, and {asked} was asked for: {advice}")]
    Gate {
        /// What was measured.
        measure: &'static str,
        /// Its value.
        found: String,
        /// The user's bound.
        asked: String,
        /// What follows from it.
        advice: &'static str,
    },
    /// Images or labels do not fit the model or each other.
    #[error("{path}: {reason}")]
    Images {
        /// The array file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A plan cannot be read or does not fit the model.
    #[error("{path}, line {line}: {reason}")]
    Plan {
        /// The plan's file.
        path: PathBuf,
        /// The line, counted from one.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A file is not what a run would write.
    #[error("{path} is not what this would write: {reason}; run without --check to write it")]
    Stale {
        /// The output.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A decomposition failed numerically.
    #[error("the decomposition of {what} failed: {reason} (to leave it alone: --exclude)")]
    Numerical {
        /// The convolution, or the convolutions of a group.
        what: String,
        /// The solver's reason.
        reason: String,
    },
    /// A model cannot be tuned, or not so.
    #[error("cannot tune: {0}")]
    Tuning(String),
    /// Some of many models were refused.
    #[error("{refused} of {models} models refused, the first {first}")]
    Refused {
        /// How many.
        refused: usize,
        /// Of how many.
        models: usize,
        /// The name of the first, and why.
        first: String,
    },
    /// The output cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file asked for.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// The same, naming the file that the model was read from, if it says that the model is not sound.
    #[must_use]
    pub fn of_file(self, path: &Path) -> Self {
        match self {
            Self::Empty
            | Self::NotOnnx { .. }
            | Self::TensorSize { .. }
            | Self::ExternalData { .. }
            | Self::Dangling { .. }
            | Self::WrittenTwice { .. }
            | Self::Cycle { .. }
            | Self::NotFinite { .. }
            | Self::Extreme { .. } => Self::Unsound { path: path.to_owned(), source: Box::new(self) },
            other => other,
        }
    }

    /// The process exit code of this error, as listed in the README and `--help`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Numerical { .. } => 1,
            Self::Options(_) | Self::NotDrawable { .. } | Self::Images { .. } => 2,
            Self::Read { .. }
            | Self::Empty
            | Self::NotOnnx { .. }
            | Self::TensorSize { .. }
            | Self::ExternalData { .. }
            | Self::Dangling { .. }
            | Self::WrittenTwice { .. }
            | Self::Cycle { .. }
            | Self::NotFinite { .. }
            | Self::Extreme { .. } => 3,
            Self::Unsound { source, .. } => source.exit_code(),
            Self::NothingToCompress(_) => 4,
            Self::Unreachable { .. } => 5,
            Self::RewriteWrong { .. } => 6,
            Self::Unavailable { .. } | Self::Unmeasured { .. } => 7,
            Self::Gate { .. } => 8,
            Self::Write { .. } => 9,
            Self::Plan { .. } => 10,
            Self::Refused { .. } => 11,
            Self::Stale { .. } => 12,
            Self::Tuning(_) => 14,
        }
    }
}
