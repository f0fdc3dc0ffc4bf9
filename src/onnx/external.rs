//! Tensors whose data stands in another file beside the model (external data; onnx.proto, `TensorProto.external_data`).
//!
//! Locations are paths relative to the model's folder and never lead out of it. What is read becomes slices of one buffer a file;
//! what is written goes to one file, each tensor at a multiple of a page.

use super::encode;
use super::parameters::tensors;
use super::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use super::tensor::{element_bits, element_count};
use super::unknown::Unknown;
use super::write::write_with;
use crate::error::{Error, Result};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Tensors start at multiples of this, so that readers can map them.
const ALIGNMENT: u64 = 4096;
/// Hexadecimal digits of the data's hash in the name of its file.
const DIGITS: usize = 16;

/// Whether a tensor's data is in another file.
pub(super) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location() == DataLocation::External || !tensor.external_data.is_empty()
}

/// What the system says of a file that cannot be read.
fn unreadable(e: std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::NotFound => "there is no such file: put it beside the model".into(),
        _ => format!("it cannot be read: {e}"),
    }
}

/// Where the data of a tensor is.
struct Place {
    location: String,
    offset: u64,
    length: u64,
}

impl Place {
    fn of(tensor: &TensorProto) -> Result<Self, String> {
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
        let number = |key: &str| {
            let parsed = |text: &str| text.parse::<u64>().map_err(|_| format!("its {key} '{text}' is not a number"));
            entry(key).map(parsed).transpose()
        };
        let location = entry("location").filter(|l| !l.is_empty()).ok_or("it names no file")?;
        let bits = element_count(tensor).zip(element_bits(tensor.data_type()));
        let promised = bits.and_then(|(count, bits)| Some(count.checked_mul(bits)?.div_ceil(8)));
        let length = number("length")?.or(promised).ok_or("nothing says how long it is")?;
        Ok(Self { location: location.to_owned(), offset: number("offset")?.unwrap_or(0), length })
    }

    fn end(&self) -> Result<u64, String> {
        self.offset.checked_add(self.length).ok_or_else(|| "it would end beyond any file".to_owned())
    }

    /// The file, if it is within the model's folder.
    fn file(&self, folder: &Path) -> Result<PathBuf, String> {
        let path = Path::new(&self.location);
        if !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err("the location must be a path within the model's folder: put the file there, and save the model with that path".into());
        }
        let (file, folder) =
            (folder.join(path).canonicalize().map_err(unreadable)?, folder.canonicalize().map_err(unreadable)?);
        if !file.starts_with(folder) {
            return Err("a link leads out of the model's folder: put the file itself there".into());
        }
        if std::fs::metadata(&file).map_err(unreadable)?.is_file() { Ok(file) } else { Err("it is not a file".into()) }
    }
}

/// How an opened model's data is dealt out between its own file and others, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Spread {
    /// The others, links followed.
    pub(super) files: BTreeSet<PathBuf>,
    /// The smallest tensor in another file; none if every tensor stands in the model's.
    outside: Option<usize>,
    /// The largest that could stand in another file and does not.
    inside: usize,
}

impl Spread {
    /// Whether tensors of `least` bytes and more, and only these, stand in other files; without it, none.
    pub(super) fn fits(&self, least: Option<usize>) -> bool {
        match least {
            None => self.outside.is_none(),
            Some(least) => self.inside < least.max(1) && self.outside.is_none_or(|smallest| smallest >= least.max(1)),
        }
    }
}

/// How a model's data is dealt out as it is written in a graph, before [`read`], which knows the files.
pub(super) fn spread(graph: &GraphProto) -> Spread {
    let (outside, inside): (Vec<&TensorProto>, Vec<_>) = tensors(graph).into_iter().partition(|t| is_external(t));
    // What is longer than memory is refused by whoever reads it.
    let length =
        |tensor: &TensorProto| Place::of(tensor).map_or(0, |p| usize::try_from(p.length).unwrap_or(usize::MAX));
    Spread {
        files: BTreeSet::new(),
        outside: outside.into_iter().map(length).min(),
        inside: inside.iter().filter_map(|t| t.raw_data.as_ref()).map(Bytes::len).max().unwrap_or(0),
    }
}

/// Gives every tensor of a graph its data, files found from the model's folder; gives these files.
///
/// # Errors
/// [`Error::ExternalData`] naming the tensor, the file and what is wrong with it.
pub(super) fn read(graph: &mut GraphProto, folder: &Path) -> Result<BTreeSet<PathBuf>> {
    // By file and not by location, as one file may be spelt in many ways.
    let mut needed: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for tensor in tensors(graph).into_iter().filter(|t| is_external(t)) {
        let end = Place::of(tensor).and_then(|place| Ok((place.end()?, place.file(folder)?)));
        let (end, file) = end.map_err(|reason| refused(tensor, reason))?;
        let most = needed.entry(file).or_default();
        *most = end.max(*most);
    }
    if needed.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut files: HashMap<PathBuf, Bytes> = HashMap::new();
    let mut failure = None;
    each_tensor(graph, &mut |tensor| {
        if failure.is_none() && is_external(tensor) {
            failure = attach(tensor, folder, &needed, &mut files).err().map(|reason| refused(tensor, reason));
        }
    });
    failure.map_or_else(|| Ok(needed.into_keys().collect()), Err)
}

/// The files that the tensors of a graph stand in, as far as they are there and within the model's folder.
pub(super) fn files(graph: &GraphProto, folder: &Path) -> BTreeSet<PathBuf> {
    let external = tensors(graph).into_iter().filter(|t| is_external(t));
    external.filter_map(|tensor| Place::of(tensor).ok()?.file(folder).ok()).collect()
}

/// Gives one tensor its data; of each file what any tensor needs is read once.
fn attach(
    tensor: &mut TensorProto,
    folder: &Path,
    needed: &BTreeMap<PathBuf, u64>,
    files: &mut HashMap<PathBuf, Bytes>,
) -> Result<(), String> {
    let place = Place::of(tensor)?;
    let path = place.file(folder)?;
    let size = std::fs::metadata(&path).map_err(unreadable)?.len();
    if place.end()? > size {
        let pointer = || std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(b"version https://git-lfs"));
        if size < 1024 && pointer() {
            return Err("it is a pointer of Git LFS to a file that was not fetched: run git lfs pull".into());
        }
        let end = place.end()?;
        return Err(format!("the tensor should end at byte {end}, but the file has {size}: copy it again, whole"));
    }
    if !files.contains_key(&path) {
        let wanted = needed.get(&path).copied().unwrap_or(0).min(size);
        let mut bytes = Vec::with_capacity(usize::try_from(wanted).map_err(|e| e.to_string())?);
        std::fs::File::open(&path).and_then(|f| f.take(wanted).read_to_end(&mut bytes)).map_err(unreadable)?;
        files.insert(path.clone(), Bytes::from(bytes));
    }
    let bytes = files.get(&path).map_or_else(Bytes::new, Bytes::clone);
    // The file may have shrunk meanwhile.
    let (from, to) = (place.offset as usize, place.end()? as usize);
    if to > bytes.len() {
        return Err("it changed while it was read".into());
    }
    tensor.raw_data = Some(bytes.slice(from..to));
    tensor.data_location = None;
    tensor.external_data.clear();
    Ok(())
}

pub(super) fn refused(tensor: &TensorProto, reason: String) -> Error {
    let location = tensor.external_data.iter().find(|e| e.key() == "location").map_or("", |e| e.value());
    Error::ExternalData { tensor: tensor.name().to_owned(), file: location.to_owned(), reason }
}

/// Writes a model with its tensors of `least` bytes and more, but for empty ones, in a file of their own beside it. That is named by its content, so that a model and the
/// data of another are never taken together, and a run that is interrupted between the two files leaves the old pair whole.
///
/// # Errors
/// [`Error::Write`] with the system's reason; `path` is then as it was.
pub(super) fn save(proto: &ModelProto, unknown: &Unknown, path: &Path, least: usize) -> Result<()> {
    let least = least.max(1);
    let mut proto = proto.clone();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut parts: Vec<Bytes> = Vec::new();
    let mut hash = Sha256::new();
    if let Some(graph) = &mut proto.graph {
        each_tensor(graph, &mut |tensor| {
            if let Some(raw) = tensor.raw_data.as_ref().filter(|raw| raw.len() >= least) {
                hash.update(raw);
                parts.push(raw.clone());
            }
        });
    }
    if parts.is_empty() {
        return write_with(path, &mut |file| encode::write(&proto, unknown, file));
    }
    let digest = super::model::hex(&hash.finalize());
    let location = format!("{name}.{}.data", &digest[..DIGITS]);
    let mut offset = 0u64;
    if let Some(graph) = &mut proto.graph {
        each_tensor(graph, &mut |tensor| {
            let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= least) else { return };
            let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            tensor.external_data = vec![
                entry("location", location.clone()),
                entry("offset", offset.to_string()),
                entry("length", raw.len().to_string()),
            ];
            tensor.data_location = Some(DataLocation::External as i32);
            offset = (offset + raw.len() as u64).next_multiple_of(ALIGNMENT);
        });
    }
    let beside = path.with_file_name(&location);
    write_with(&beside, &mut |file| {
        let mut written = 0u64;
        for part in &parts {
            let gap = written.next_multiple_of(ALIGNMENT) - written;
            file.write_all(&vec![0; gap as usize])?;
            file.write_all(part)?;
            written += gap + part.len() as u64;
        }
        Ok(())
    })?;
    write_with(path, &mut |file| encode::write(&proto, unknown, file))
}

/// Every tensor that a graph stores, to be changed: those of [`tensors`].
pub(super) fn each_tensor(graph: &mut GraphProto, change: &mut dyn FnMut(&mut TensorProto)) {
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|s| s.values.as_mut());
    graph.initializer.iter_mut().chain(sparse).for_each(&mut *change);
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(&mut *change);
        attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|g| each_tensor(g, change));
    }
}
