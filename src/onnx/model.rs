//! A model file: opened, checked, changed only by building another, written beside its target.

use super::parameters::tensors;
use super::proto::{GraphProto, ModelProto, OperatorSetIdProto};
#[cfg(feature = "verify")]
use super::proto::{StringStringEntryProto, TensorProto, tensor_proto::DataType};
use super::unknown::Unknown;
use super::write::{write_whole, write_with};
use super::{Graph, Precision, encode, external, foreign, inline, tensor};
#[cfg(feature = "tune")]
use super::{initializer, read_floats};
use crate::error::{Error, Result};
use bytes::Bytes;
#[cfg(feature = "tune")]
use ndarray::ArrayD;
use prost::Message;
#[cfg(feature = "verify")]
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
#[cfg(feature = "tune")]
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file that every reader of protocol buffers takes.
const LARGEST_FILE: u64 = i32::MAX as u64;

/// Metadata property of a written model that says which version wrote it.
pub(crate) const VERSION_KEY: &str = "onnx_jmd.version";

/// An ONNX model whose graph is known to be sound: every tensor is as long as its dimensions say,
/// every value that is read is produced, and no node feeds itself.
///
/// Weights are slices of the file's buffer, so that a clone copies none of them.
#[derive(Clone)]
pub struct Model {
    proto: ModelProto,
    /// The bytes this model was read from, given back untouched as long as nothing changes.
    source: Option<Bytes>,
    /// Of a model that was read: which of its tensors stood in other files.
    spread: Option<external::Spread>,
    /// Of a model that was read: the local functions whose bodies stand in the place of their calls. Its bytes still have them.
    inlined: Vec<String>,
    /// Fields that no version of the format known here has.
    unknown: Arc<Unknown>,
    /// In a model of float32 that was made of another: the type of large tensors that are read as if they were.
    kept: Option<Precision>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.proto.graph.as_ref().map_or(0, |g| g.node.len());
        f.debug_struct("Model").field("nodes", &nodes).field("parameters", &self.parameters()).finish_non_exhaustive()
    }
}

impl Model {
    /// Reads a model file.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read, and [`Error::Unsound`] with the errors of [`Model::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::open_file(path).map_err(|error| error.of_file(path))
    }

    fn open_file(path: &Path) -> Result<Self> {
        let read = || {
            let file = std::fs::File::open(path)?;
            let mut bytes = Vec::with_capacity(file.metadata()?.len().min(LARGEST_FILE) as usize);
            // What is no file may have no end.
            file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| Error::Read { path: path.to_owned(), source })?;
        if bytes.len() as u64 > LARGEST_FILE {
            let reason =
                "it is larger than 2 GiB, the most that a protocol buffer takes: keep its tensors in another file";
            return Err(Error::NotOnnx { reason: reason.into() });
        }
        // Beside the file itself, wherever a link to it stands.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Self::read(bytes, path.parent().filter(|p| !p.as_os_str().is_empty()).or(Some(Path::new("."))))
    }

    /// The files that a model consists of: itself, then those that its tensors stand in (external data), as far as they are there.
    /// A file that is no model consists of itself.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read.
    pub fn files(path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let path = path.as_ref();
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let proto = ModelProto::decode(Bytes::from(std::fs::read(path).map_err(failed)?));
        let real = std::fs::canonicalize(path).map_err(failed)?;
        let mut beside = BTreeSet::new();
        if let (Ok(proto), Some(folder)) = (proto, real.parent()) {
            let bodies = proto.functions.into_iter().map(|f| GraphProto { node: f.node, ..GraphProto::default() });
            proto.graph.into_iter().chain(bodies).for_each(|graph| beside.extend(external::files(&graph, folder)));
        }
        Ok(std::iter::once(path.to_owned()).chain(beside).collect())
    }

    /// Of a model that was opened: the files beside its own that its tensors were read from (external data), links followed.
    pub fn data_files(&self) -> impl Iterator<Item = &Path> {
        self.spread.iter().flat_map(|spread| &spread.files).map(PathBuf::as_path)
    }

    /// Reads a model from memory.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::NotOnnx`], [`Error::TensorSize`], [`Error::ExternalData`],
    /// [`Error::Dangling`], [`Error::WrittenTwice`] or [`Error::Cycle`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::read(bytes, None)
    }

    fn read(bytes: Vec<u8>, folder: Option<&Path>) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::Empty);
        }
        let source = Bytes::from(bytes);
        let told = |e: prost::DecodeError| Error::NotOnnx { reason: foreign::told(&source, &e.to_string()) };
        let mut proto = ModelProto::decode(source.clone()).map_err(told)?;
        let unknown = Arc::new(Unknown::of(&source));
        let mut spread = proto.graph.as_ref().map(external::spread);
        // What was read from several files has no bytes of its own.
        let files = match (&mut proto.graph, folder) {
            (Some(graph), Some(folder)) => external::read(graph, folder)?,
            _ => BTreeSet::new(),
        };
        let mut files = files;
        for function in &mut proto.functions {
            // Bodies hold tensors as graphs do.
            let mut body = GraphProto { node: std::mem::take(&mut function.node), ..GraphProto::default() };
            if let Some(folder) = folder {
                files.extend(external::read(&mut body, folder)?);
            }
            if let Some(tensor) = tensors(&body).into_iter().find(|t| external::is_external(t)) {
                tensor::check(tensor)?;
            }
            function.node = body.node;
        }
        let joined = !files.is_empty();
        if let Some(spread) = &mut spread {
            spread.files = files;
        }
        let graph = proto.graph.as_ref().ok_or_else(|| Error::NotOnnx { reason: "it holds no graph".into() })?;
        if proto.ir_version.is_none() {
            return Err(Error::NotOnnx { reason: "it names no IR version".into() });
        }
        if graph.output.is_empty() {
            return Err(Error::NotOnnx { reason: "its graph has no output".into() });
        }
        tensors(graph).into_iter().try_for_each(tensor::check)?;
        let source = (!joined).then_some(source);
        let model = Self { proto, source, spread, inlined: Vec::new(), unknown, kept: None };
        Graph::new(&model)?;
        Ok(model.without_functions().unwrap_or(model))
    }

    /// The same without any calls of functions in the main graph, if there are any and that can be.
    #[cfg(feature = "verify")]
    pub(crate) fn without_calls(&self) -> Option<Self> {
        let model = self.derived(inline::all_inlined(&self.proto)?);
        tensors(model.proto.graph.as_ref()?).into_iter().try_for_each(tensor::check).ok()?;
        Graph::new(&model).is_ok().then_some(model)
    }

    /// The same with the bodies of functions that hold layers in the place of their calls, if there are any and that can be.
    fn without_functions(&self) -> Option<Self> {
        let (proto, inlined) = inline::inlined(&self.proto)?;
        // Tensors of bodies were not looked at before.
        tensors(proto.graph.as_ref()?).into_iter().try_for_each(tensor::check).ok()?;
        let model = Self { proto, inlined, ..self.clone() };
        Graph::new(&model).is_ok().then_some(model)
    }

    /// Names of the local functions whose bodies stand in the place of their calls, as they hold layers with a kernel; the bytes of a
    /// model that was read still have them.
    #[must_use]
    pub fn inlined(&self) -> &[String] {
        &self.inlined
    }

    /// The model as a file's bytes; the very bytes it was read from if it was not changed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.source {
            Some(bytes) => bytes.to_vec(),
            None => encode::bytes(&self.proto, &self.unknown),
        }
    }

    /// Whether the model, if its kernels and what else is of their type were float32, takes more than so many bytes.
    #[cfg(feature = "verify")]
    pub(crate) fn is_larger_in_f32(&self, than: u64) -> bool {
        let bytes = self.file_bytes();
        // Tensors of the type that is exchanged may be all of it.
        if !(than.div_ceil(2)..=than.saturating_mul(2)).contains(&bytes) {
            return bytes > than;
        }
        let Some(precision) = self.kernel_precision() else { return bytes > than };
        let tensors = self.proto.graph.as_ref().map(tensors).unwrap_or_default();
        let exchanged = tensors.into_iter().filter(|t| t.data_type() == precision.data_type() as i32);
        let elements = exchanged.filter_map(tensor::element_count).fold(0u64, u64::saturating_add);
        let in_f32 = match precision {
            Precision::Half | Precision::Brain => bytes.saturating_add(elements.saturating_mul(2)),
            Precision::Single => bytes,
            Precision::Double => bytes.saturating_sub(elements.saturating_mul(4)),
        };
        in_f32 > than
    }

    /// Size of the file in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        match &self.source {
            Some(bytes) => bytes.len() as u64,
            None => encode::size(&self.proto, &self.unknown) as u64,
        }
    }

    /// Writes the model beside `path` and renames it, so that `path` is never half written. A model of two gibibytes or more,
    /// which readers of protocol buffers refuse, is saved as by [`Model::save_external`].
    ///
    /// # Errors
    /// [`Error::Write`] with the system's reason; `path` is then as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if self.file_bytes() > LARGEST_FILE {
            return self.save_external(path, Self::EXTERNAL_DATA_THRESHOLD);
        }
        match &self.source {
            Some(bytes) => write_whole(path, bytes),
            None => write_with(path, &mut |file| encode::write(&self.proto, &self.unknown, file)),
        }
    }

    /// Writes the model's bytes to where there is no folder for data beside it.
    ///
    /// # Errors
    /// The system's, or that the model has two gibibytes or more; nothing is written then.
    pub fn write_to(&self, out: &mut dyn Write) -> std::io::Result<()> {
        if self.file_bytes() > LARGEST_FILE {
            let reason = "a model of 2 GiB or more needs data in another file beside it: name a file for it";
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason));
        }
        match &self.source {
            Some(bytes) => out.write_all(bytes),
            None => encode::write(&self.proto, &self.unknown, out),
        }
    }

    /// Bytes from which on tensors are commonly kept in another file, and are by [`Model::save`].
    pub const EXTERNAL_DATA_THRESHOLD: usize = 1024;

    /// Writes the model with its tensors of `threshold` bytes and more in a file of their own beside it, `NAME.HASH.data`; empty
    /// tensors stay. Data of a model that is replaced stays, as others may refer to it.
    ///
    /// # Errors
    /// [`Error::Write`] with the system's reason; `path` is then as it was.
    pub fn save_external(&self, path: impl AsRef<Path>, threshold: usize) -> Result<()> {
        let path = std::fs::canonicalize(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
        external::save(&self.proto, &self.unknown, &path, threshold)
    }

    /// Whether there are fields that this version of the format does not have, and that what was made of the model has not, with the
    /// messages that they stood in.
    #[cfg(feature = "verify")]
    pub(crate) fn loses_fields(&self, made: &Self) -> bool {
        let left = || Unknown::of(&encode::bytes(&encode::without_data(&made.proto), &made.unknown).into()).bytes();
        !self.unknown.is_empty() && self.unknown.bytes() > left()
    }

    /// False if encoding what was decoded gives other bytes: fields in another order, or twice.
    #[must_use]
    pub fn round_trips(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            // The graph that is worked on may be another than that of the file.
            let given = if self.inlined.is_empty() { None } else { ModelProto::decode(source.clone()).ok() };
            let mut rest = Same(source);
            let proto = given.as_ref().unwrap_or(&self.proto);
            encode::write(proto, &self.unknown, &mut rest).is_ok() && rest.0.is_empty()
        })
    }

    /// The version of ONNX's own operators that it is written in.
    pub(crate) fn opset(&self) -> i64 {
        self.proto.opset_import.iter().find(|set| is_own(set)).map_or(1, OperatorSetIdProto::version)
    }

    /// Names of the graph's outputs.
    #[must_use]
    pub fn outputs(&self) -> Vec<String> {
        self.proto.graph.iter().flat_map(|g| &g.output).map(|o| o.name().to_owned()).collect()
    }

    /// The value of a metadata property.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.proto.metadata_props.iter().find(|p| p.key() == key).map(|p| p.value())
    }

    /// A SHA-256 of its bytes.
    #[cfg(feature = "verify")]
    pub(crate) fn digest(&self) -> String {
        let mut hash = Hashed(Sha256::new());
        match &self.source {
            Some(bytes) => hash.0.update(bytes),
            // It takes whatever is written to it.
            None => drop(encode::write(&self.proto, &self.unknown, &mut hash)),
        }
        hex(&hash.0.finalize())
    }

    /// Its float32 initializers by name.
    #[cfg(feature = "tune")]
    pub(crate) fn floats(&self) -> BTreeMap<String, ArrayD<f32>> {
        let tensors = self.proto.graph.iter().flat_map(|g| &g.initializer);
        tensors.filter_map(|t| Some((t.name().to_owned(), read_floats(t)?))).collect()
    }

    /// The same model with other values in some floating-point initializers, in their own types.
    #[cfg(feature = "tune")]
    pub(crate) fn with_floats(&self, values: &HashMap<&str, &[f32]>) -> Self {
        let mut proto = self.proto.clone();
        for tensor in proto.graph.iter_mut().flat_map(|g| &mut g.initializer) {
            let (Some(values), Some(precision)) = (values.get(tensor.name()), Precision::of(tensor.data_type())) else {
                continue;
            };
            let dims: Vec<usize> = tensor.dims.iter().map(|&d| d.unsigned_abs() as usize).collect();
            let made = initializer(tensor.name().to_owned(), &dims, values.iter().copied(), precision);
            *tensor = TensorProto { doc_string: tensor.doc_string.take(), ..made };
        }
        self.derived(proto)
    }

    /// The same model with some metadata properties set.
    #[cfg(feature = "verify")]
    pub(crate) fn with_metadata(&self, values: &[(&str, &str)]) -> Self {
        let mut proto = self.proto.clone();
        for &(key, value) in values {
            let value = Some(value.to_owned());
            match proto.metadata_props.iter_mut().find(|p| p.key() == key) {
                Some(property) => property.value = value,
                None => proto.metadata_props.push(StringStringEntryProto { key: Some(key.into()), value }),
            }
        }
        self.derived(proto)
    }

    /// Of a model that was opened: whether tensors stand in other files exactly where [`Model::save_external`] with this threshold,
    /// or without one [`Model::save`], would put them there.
    #[cfg(feature = "verify")]
    pub(crate) fn is_stored(&self, threshold: Option<usize>) -> bool {
        let large = self.file_bytes() > LARGEST_FILE;
        let threshold = threshold.or(large.then_some(Self::EXTERNAL_DATA_THRESHOLD));
        self.spread.as_ref().is_some_and(|spread| spread.fits(threshold))
    }

    pub(crate) fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// A model made here from the parts of a checked one.
    pub(crate) fn from_proto(proto: ModelProto) -> Self {
        Self { proto, source: None, spread: None, inlined: Vec::new(), unknown: Arc::default(), kept: None }
    }

    /// What is made of the model, its tensors read as they are in it, with the fields that are not known.
    pub(crate) fn derived(&self, proto: ModelProto) -> Self {
        Self { kept: self.kept, unknown: self.unknown.clone(), ..Self::from_proto(proto) }
    }

    /// In a model of float32, the type of large tensors that are read as if they were, see [`Model::mostly_in_f32`].
    pub(crate) fn kept(&self) -> Option<Precision> {
        self.kept
    }

    /// The same, large tensors of a type read as float32.
    pub(super) fn keeping(self, precision: Precision) -> Self {
        Self { kept: Some(precision), ..self }
    }
}

/// Takes what is written to it into a hash.
#[cfg(feature = "verify")]
struct Hashed(Sha256);

#[cfg(feature = "verify")]
impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Takes only what stands next in it, and is what is left.
struct Same<'b>(&'b [u8]);

impl Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.strip_prefix(bytes).ok_or(std::io::ErrorKind::InvalidData)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether a set of operators is ONNX's own.
pub(super) fn is_own(set: &OperatorSetIdProto) -> bool {
    matches!(set.domain(), "" | "ai.onnx")
}

/// Dimensions and elements of a tensor file (`.pb`), or the sentence that says what is wrong with it.
#[cfg(feature = "verify")]
pub(crate) fn read_tensor(bytes: &[u8]) -> Result<(Vec<usize>, tensor::Elements), String> {
    let tensor = TensorProto::decode(bytes).map_err(|e| format!("not an ONNX tensor, or a truncated one: {e}"))?;
    if tensor.data_type() == DataType::Undefined as i32 {
        return Err("not an ONNX tensor: it has no element type".into());
    }
    tensor::check(&tensor).map_err(|e| e.to_string())?;
    tensor::read_elements(&tensor).ok_or_else(|| "its elements must be uint8, an integer or float type".into())
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
