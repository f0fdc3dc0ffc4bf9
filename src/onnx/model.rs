//! A model file: opened, checked, changed only by building another, written beside its target.

#[cfg(feature = "verify")]
use super::proto::StringStringEntryProto;
use super::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, tensor_proto::DataType,
    tensor_shape_proto, type_proto,
};
use super::unknown::Unknown;
use super::window::LARGEST;
use super::write::{write_whole, write_with};
use super::{Graph, Precision, encode, external, foreign, functions, inline, is_standard, tensor};
#[cfg(feature = "tune")]
use super::{initializer, read_floats};
use crate::error::{Error, Result};
use bytes::Bytes;
#[cfg(feature = "tune")]
use ndarray::ArrayD;
use prost::Message;
#[cfg(feature = "verify")]
use sha2::{Digest, Sha256};
#[cfg(feature = "tune")]
use std::collections::{BTreeMap, HashMap};
use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Element types that count as parameters.
const FLOAT_TYPES: [i32; 4] =
    [DataType::Float as i32, DataType::Float16 as i32, DataType::Bfloat16 as i32, DataType::Double as i32];

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

    /// Floating-point parameters: elements of every float tensor and of every tensor that a `DequantizeLinear` makes one of, each
    /// stored tensor counted once, those in the bodies of local functions that are called, too.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let graph = self.proto.graph.iter().map(|graph| stored_floats(tensors(graph), &graph.node, &graph.initializer));
        let bodies = functions::reached(&self.proto).into_iter().map(|function| {
            let defaults = function.attribute_proto.iter().flat_map(|a| a.t.iter().chain(&a.tensors));
            stored_floats(function.node.iter().flat_map(node_tensors).chain(defaults).collect(), &function.node, &[])
        });
        graph.chain(bodies).fold(0, u64::saturating_add)
    }

    /// Whether there are fields that this version of the format does not have, and that what was made of the model has not, with the
    /// messages that they stood in.
    #[cfg(feature = "verify")]
    pub(crate) fn loses_fields(&self, made: &Self) -> bool {
        let left =
            |model: &Self| if model.unknown.is_empty() { 0 } else { Unknown::of(&model.to_bytes().into()).bytes() };
        self.unknown.bytes() > left(made)
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

    /// Graph inputs that a caller has to feed: name, element type as ONNX names it, and dimensions, `None` where symbolic.
    #[must_use]
    pub fn inputs(&self) -> Vec<(String, String, Vec<Option<u64>>)> {
        let Some(graph) = &self.proto.graph else {
            return Vec::new();
        };
        let constant: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
        let fed = graph.input.iter().filter(|i| !constant.contains(i.name()));
        fed.map(|i| (i.name().to_owned(), element_type(i), dimensions(i))).collect()
    }

    /// Refuses shapes for inputs that there are not, and those that contradict what the model says of its input. A batch that it
    /// fixes may be another, so that it can be run on one image at a time.
    ///
    /// # Errors
    /// [`Error::Options`] naming one.
    pub(crate) fn check_shapes(&self, shapes: &[InputShape]) -> Result<()> {
        let inputs = self.inputs();
        let unknown = |name: &&String| inputs.iter().all(|i| i.0 != **name);
        if let Some(name) = shapes.iter().filter_map(|s| s.name.as_ref()).find(unknown) {
            let known: Vec<&str> = inputs.iter().map(|i| i.0.as_str()).collect();
            let known = known.join(", ");
            return Err(Error::Options(format!("--input-shape names '{name}', but the inputs are: {known}")));
        }
        if inputs.len() != 1 && shapes.iter().any(|shape| shape.name.is_none()) {
            let names: Vec<&str> = inputs.iter().map(|i| i.0.as_str()).collect();
            let names = names.join(", ");
            return Err(Error::Options(format!(
                "--input-shape names no input, and there are {}: {names}",
                inputs.len()
            )));
        }
        for shape in shapes {
            let of_name =
                |input: &&(String, String, Vec<Option<u64>>)| shape.name.as_ref().is_none_or(|name| *name == input.0);
            let Some((name, _, stated)) = inputs.iter().find(of_name) else { continue };
            // Without any dimension the rank may be open, too.
            let fits =
                shape.dims.iter().zip(stated).skip(1).all(|(&given, stated)| stated.is_none_or(|n| n == given as u64));
            if !stated.is_empty() && (shape.dims.len() != stated.len() || !fits) {
                let stated: Vec<String> = stated.iter().map(|d| d.map_or("?".into(), |n| n.to_string())).collect();
                return Err(Error::Options(format!(
                    "--input-shape says {:?} of input '{name}', but the model says [{}]: only its first dimension and open ones can be given",
                    shape.dims,
                    stated.join(", ")
                )));
            }
        }
        Ok(())
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

/// Every tensor that a graph stores: initializers, sparse ones by their values, and constants, in its subgraphs too.
pub(super) fn tensors(graph: &GraphProto) -> Vec<&TensorProto> {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    let mut found: Vec<&TensorProto> = graph.initializer.iter().chain(sparse).collect();
    found.extend(graph.node.iter().flat_map(node_tensors));
    found
}

/// Elements of tensors of floats, and of those that a `DequantizeLinear` among the nodes makes such.
fn stored_floats(tensors: Vec<&TensorProto>, nodes: &[NodeProto], initializers: &[TensorProto]) -> u64 {
    let is_float = |t: &&TensorProto| FLOAT_TYPES.contains(&t.data_type());
    let nodes = || nodes.iter().filter(|n| is_standard(n));
    let quantized = nodes().filter(|n| n.op_type() == "DequantizeLinear").filter_map(|n| n.input.first());
    let quantized: HashSet<&str> = quantized.map(String::as_str).collect();
    let stored = initializers.iter().filter(|t| quantized.contains(t.name()));
    let constants =
        nodes().filter(|n| n.op_type() == "Constant" && n.output.iter().any(|o| quantized.contains(o.as_str())));
    let constants = constants.flat_map(|n| &n.attribute).filter_map(|a| a.t.as_ref());
    let integers = stored.chain(constants).filter(|t| !is_float(t));
    tensors.into_iter().filter(is_float).chain(integers).filter_map(tensor::element_count).fold(0, u64::saturating_add)
}

/// Tensors among the attributes of a node, those in its subgraphs included.
fn node_tensors(node: &NodeProto) -> Vec<&TensorProto> {
    let mut found = Vec::new();
    for attribute in &node.attribute {
        found.extend(attribute.t.iter().chain(&attribute.tensors));
        attribute.g.iter().chain(&attribute.graphs).for_each(|g| found.extend(tensors(g)));
    }
    found
}

fn tensor_type(value: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => Some(t),
        _ => None,
    }
}

fn element_type(value: &ValueInfoProto) -> String {
    let found = tensor_type(value).and_then(|t| DataType::try_from(t.elem_type()).ok());
    found.unwrap_or(DataType::Undefined).as_str_name().to_owned()
}

/// Dimensions of a value, `None` where symbolic or unknown; empty if it has no shape.
pub(super) fn dimensions(value: &ValueInfoProto) -> Vec<Option<u64>> {
    use tensor_shape_proto::dimension::Value;
    let dims = tensor_type(value).and_then(|t| t.shape.as_ref()).map_or(&[][..], |s| &s.dim);
    dims.iter()
        .map(|d| match d.value {
            Some(Value::DimValue(n)) => u64::try_from(n).ok().filter(|&n| n > 0 && n <= LARGEST as u64),
            _ => None,
        })
        .collect()
}

/// A shape for one graph input, as in `image:1,3,224,224`; without a name it is for the only input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputShape {
    /// The input's name; none means the model's only one.
    pub name: Option<String>,
    /// Its dimensions.
    pub dims: Vec<usize>,
}

impl std::str::FromStr for InputShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names may hold colons, dimensions cannot.
        let (name, dims) = match text.rsplit_once(':') {
            Some((name, dims)) => (Some(name.to_owned()), dims),
            None => (None, text),
        };
        let dims: Option<Vec<usize>> = dims.split(',').map(|d| d.trim().parse().ok().filter(|&n| n > 0)).collect();
        let dims = dims.ok_or_else(|| format!("'{text}' is not NAME:1,3,224,224"))?;
        Ok(Self { name, dims })
    }
}
