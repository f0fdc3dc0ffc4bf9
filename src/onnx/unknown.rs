//! Fields that this version of the format does not have, carried from the file that was read to the one that is written.
//!
//! [`prost`] decodes what the schema names and drops the rest. So the bytes of a file are walked once more: what no schema names is kept
//! under the path of the message that holds it, and put back at the end of the message that has this path in what is written. A path
//! names nodes by operator and first output, and tensors, values, attributes and functions by their names, since positions change when a
//! graph is rewritten: what is said of a convolution is then said of that which gives its result, and what is said of a kernel goes with
//! it.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};
use std::collections::BTreeMap;

/// A message of the format, `proto/onnx.proto`.
#[derive(Debug)]
struct Schema {
    #[cfg(test)]
    name: &'static str,
    /// Numbers of its fields.
    fields: &'static [u32],
    /// The fields that tell it from others beside it.
    key: &'static [u32],
    /// Fields that are messages.
    messages: &'static [(u32, Times, &'static Schema)],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    /// Several records of the field are one message, in parts.
    Once,
    Each,
}
use Times::{Each, Once};

/// A static of the name of each message.
macro_rules! schemas {
    ($($name:ident $message:literal [$($field:literal)*] $(by $($key:literal)+)? { $($number:literal $times:ident $of:ident,)* })*) => {
        $(static $name: Schema = Schema {
            #[cfg(test)]
            name: $message,
            fields: &[$($field),*],
            key: &[$($($key),+)?],
            messages: &[$(($number, $times, &$of)),*],
        };)*
        #[cfg(test)]
        static ALL: &[&Schema] = &[$(&$name),*];
    };
}

schemas! {
    MODEL "ModelProto" [1 2 3 4 5 6 7 8 14 20 25 26] {
        7 Once GRAPH, 8 Each OPERATOR_SET, 14 Each ENTRY, 20 Each TRAINING, 25 Each FUNCTION, 26 Each DEVICE,
    }
    GRAPH "GraphProto" [1 2 5 10 11 12 13 14 15 16] {
        1 Each NODE, 5 Each TENSOR, 11 Each VALUE, 12 Each VALUE, 13 Each VALUE, 14 Each ANNOTATION, 15 Each SPARSE, 16 Each ENTRY,
    }
    NODE "NodeProto" [1 2 3 4 5 6 7 8 9 10] by 2 4 { 5 Each ATTRIBUTE, 9 Each ENTRY, 10 Each NODE_DEVICE, }
    ATTRIBUTE "AttributeProto" [1 2 3 4 5 6 7 8 9 10 11 13 14 15 20 21 22 23] by 1 {
        5 Once TENSOR, 6 Once GRAPH, 10 Each TENSOR, 11 Each GRAPH, 14 Once TYPE, 15 Each TYPE, 22 Once SPARSE, 23 Each SPARSE,
    }
    TENSOR "TensorProto" [1 2 3 4 5 6 7 8 9 10 11 12 13 14 16] by 8 { 3 Once SEGMENT, 13 Each ENTRY, 16 Each ENTRY, }
    SEGMENT "TensorProto.Segment" [1 2] {}
    SPARSE "SparseTensorProto" [1 2 3] { 1 Once TENSOR, 2 Once TENSOR, }
    VALUE "ValueInfoProto" [1 2 3 4] by 1 { 2 Once TYPE, 4 Each ENTRY, }
    TYPE "TypeProto" [1 4 5 6 7 8 9] {
        1 Once TENSOR_TYPE, 4 Once SEQUENCE_TYPE, 5 Once MAP_TYPE, 7 Once OPAQUE_TYPE, 8 Once SPARSE_TYPE, 9 Once OPTIONAL_TYPE,
    }
    TENSOR_TYPE "TypeProto.Tensor" [1 2] { 2 Once SHAPE, }
    SPARSE_TYPE "TypeProto.SparseTensor" [1 2] { 2 Once SHAPE, }
    SEQUENCE_TYPE "TypeProto.Sequence" [1] { 1 Once TYPE, }
    OPTIONAL_TYPE "TypeProto.Optional" [1] { 1 Once TYPE, }
    MAP_TYPE "TypeProto.Map" [1 2] { 2 Once TYPE, }
    OPAQUE_TYPE "TypeProto.Opaque" [1 2] {}
    SHAPE "TensorShapeProto" [1] { 1 Each DIMENSION, }
    DIMENSION "TensorShapeProto.Dimension" [1 2 3] {}
    ENTRY "StringStringEntryProto" [1 2] by 1 {}
    ANNOTATION "TensorAnnotation" [1 2] by 1 { 2 Each ENTRY, }
    OPERATOR_SET "OperatorSetIdProto" [1 2] by 1 {}
    TRAINING "TrainingInfoProto" [1 2 3 4] { 1 Once GRAPH, 2 Once GRAPH, 3 Each ENTRY, 4 Each ENTRY, }
    FUNCTION "FunctionProto" [1 4 5 6 7 8 9 10 11 12 13 14] by 1 10 13 {
        7 Each NODE, 9 Each OPERATOR_SET, 11 Each ATTRIBUTE, 12 Each VALUE, 14 Each ENTRY,
    }
    DEVICE "DeviceConfigurationProto" [1 2 3] by 1 {}
    NODE_DEVICE "NodeDeviceConfigurationProto" [1 2 3] by 1 { 2 Each SHARDING, }
    SHARDING "ShardingSpecProto" [1 2 3 4] by 1 { 3 Each DEVICE_GROUPS, 4 Each SHARDED, }
    DEVICE_GROUPS "IntIntListEntryProto" [1 2] {}
    SHARDED "ShardedDimProto" [1 2] { 2 Each SIMPLE_SHARDED, }
    SIMPLE_SHARDED "SimpleShardedDimProto" [1 2 3] {}
}

/// One message within another: the field, what the message is called, and how many of that name stand before it.
type Step = (u32, Bytes, usize);

/// The unknown fields of a message, and of those within it that have any.
#[derive(Debug, Clone, Default)]
pub(super) struct Unknown {
    own: Vec<u8>,
    within: BTreeMap<Step, Self>,
}

impl Unknown {
    /// Those of a model's bytes, which decode.
    pub(super) fn of(model: &Bytes) -> Self {
        let mut found = Self::default();
        // Whatever cannot be read was refused before.
        let _ = found.collect(model, &MODEL);
        found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.within.is_empty()
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.own.len() + self.within.values().map(Self::bytes).sum::<usize>()
    }

    fn collect(&mut self, message: &Bytes, schema: &Schema) -> Option<()> {
        for field in Fields::of(message, schema) {
            let field = field?;
            if let Some((inner, step, body)) = field.within {
                // A message may come in parts.
                let mut found = self.within.remove(&step).unwrap_or_default();
                found.collect(&body, inner)?;
                if !found.is_empty() {
                    self.within.insert(step, found);
                }
            } else if !schema.fields.contains(&field.number) {
                self.own.extend(field.bytes);
            }
        }
        Some(())
    }

    /// The bytes of a model with each of these fields where the message of its path is.
    pub(super) fn placed_in(&self, model: Vec<u8>) -> Vec<u8> {
        let model = Bytes::from(model);
        self.placed(&model, &MODEL).unwrap_or_else(|| model.to_vec())
    }

    fn placed(&self, message: &Bytes, schema: &Schema) -> Option<Vec<u8>> {
        let mut placed = Vec::with_capacity(message.len() + self.own.len());
        for field in Fields::of(message, schema) {
            let Field { number, bytes, within } = field?;
            match within.and_then(|(inner, step, body)| Some((inner, self.within.get(&step)?, body))) {
                Some((inner, unknown, body)) => {
                    let body = unknown.placed(&body, inner)?;
                    encode_key(number, WireType::LengthDelimited, &mut placed);
                    encode_varint(body.len() as u64, &mut placed);
                    placed.extend(body);
                }
                None => placed.extend(bytes),
            }
        }
        placed.extend(&self.own);
        Some(placed)
    }
}

/// A field of a message.
struct Field {
    number: u32,
    /// All of it, its number included.
    bytes: Bytes,
    /// If it is a message: of which kind, where it stands, and its own fields.
    within: Option<(&'static Schema, Step, Bytes)>,
}

/// The fields of a message in the order of its bytes; none for what cannot be read.
struct Fields<'s> {
    rest: Bytes,
    schema: &'s Schema,
    /// How many messages of a field and a name there were.
    seen: BTreeMap<(u32, Bytes), usize>,
}

impl<'s> Fields<'s> {
    fn of(message: &Bytes, schema: &'s Schema) -> Self {
        Self { rest: message.clone(), schema, seen: BTreeMap::new() }
    }

    fn field(&mut self) -> Option<Field> {
        let whole = self.rest.clone();
        let (number, wire) = decode_key(&mut self.rest).ok()?;
        let known = self.schema.messages.iter().find(|(n, ..)| *n == number && wire == WireType::LengthDelimited);
        let within = match known {
            Some(&(_, times, schema)) => {
                let body = delimited(&mut self.rest)?;
                let name = named(&body, schema.key);
                let count = self.seen.entry((number, name.clone())).or_default();
                let nth = if times == Each { std::mem::replace(count, *count + 1) } else { 0 };
                Some((schema, (number, name, nth), body))
            }
            None => {
                skip_field(wire, number, &mut self.rest, DecodeContext::default()).ok()?;
                None
            }
        };
        Some(Field { number, bytes: whole.slice(..whole.len() - self.rest.len()), within })
    }
}

impl Iterator for Fields<'_> {
    type Item = Option<Field>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rest.has_remaining().then(|| self.field())
    }
}

/// What a length stands before.
fn delimited(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

/// What a message is called: the first strings of these fields.
fn named(message: &Bytes, key: &[u32]) -> Bytes {
    match key {
        [] => Bytes::new(),
        [one] => text(message, *one).unwrap_or_default(),
        several => {
            let texts: Vec<Bytes> = several.iter().map(|&key| text(message, key).unwrap_or_default()).collect();
            texts.join(&0).into()
        }
    }
}

/// The first string that a message has as a field.
fn text(message: &Bytes, key: u32) -> Option<Bytes> {
    let mut rest = message.clone();
    loop {
        let (number, wire) = decode_key(&mut rest).ok()?;
        if number == key && wire == WireType::LengthDelimited {
            return delimited(&mut rest);
        }
        skip_field(wire, number, &mut rest, DecodeContext::default()).ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
    use super::*;
    use prost::Message;

    /// The schema says the same as the tables above.
    #[test]
    fn messages_are_those_of_the_schema() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
        let files = protox::compile([format!("{root}/onnx.proto")], [root]).expect("it is sound");
        let mut told = Vec::new();
        let mut left: Vec<_> = files.file[0].message_type.iter().map(|m| (m.name().to_owned(), m)).collect();
        while let Some((name, message)) = left.pop() {
            left.extend(message.nested_type.iter().map(|m| (format!("{name}.{}", m.name()), m)));
            let mut numbers: Vec<i32> = message.field.iter().map(|f| f.number()).collect();
            numbers.sort_unstable();
            let mut within: Vec<(i32, bool, String)> = Vec::new();
            for field in message.field.iter().filter(|f| f.type_name().starts_with(".onnx.") && f.r#type() as i32 == 11)
            {
                let once = field.label() as i32 != 3;
                within.push((field.number(), once, field.type_name().trim_start_matches(".onnx.").to_owned()));
            }
            within.sort();
            told.push((name, numbers, within));
        }
        told.sort();
        let mut known: Vec<_> = ALL
            .iter()
            .map(|schema| {
                let numbers: Vec<i32> = schema.fields.iter().map(|&n| n as i32).collect();
                let within =
                    schema.messages.iter().map(|&(n, times, of)| (n as i32, times == Once, of.name.to_owned()));
                (schema.name.to_owned(), numbers, within.collect::<Vec<_>>())
            })
            .collect();
        known.sort();
        assert_eq!(known, told);
    }

    /// A field that no version has, with a text in it.
    fn later(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::string::encode(900, &text.to_owned(), &mut bytes);
        bytes
    }

    fn within(number: u32, message: Vec<u8>) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::bytes::encode(number, &message, &mut bytes);
        bytes
    }

    #[test]
    fn unknown_fields_go_where_their_messages_go() {
        let node = |name: &str, output: &str| NodeProto {
            name: Some(name.into()),
            output: vec![output.into()],
            attribute: vec![AttributeProto { name: Some("a".into()), ..AttributeProto::default() }],
            ..NodeProto::default()
        };
        let tensor = |name: &str| TensorProto { name: Some(name.into()), ..TensorProto::default() };
        // A graph in two parts, a group, and fields in messages of several depths.
        let attribute = [
            AttributeProto { name: Some("a".into()), ..AttributeProto::default() }.encode_to_vec(),
            later("attribute"),
        ];
        let one = [
            NodeProto { attribute: Vec::new(), ..node("one", "y") }.encode_to_vec(),
            within(5, attribute.concat()),
            later("y"),
        ];
        let two = [node("two", "z").encode_to_vec(), later("z")];
        let kernel = [tensor("w").encode_to_vec(), later("w")];
        let first = [within(1, one.concat()), within(5, kernel.concat()), vec![0xbb, 0x38, 0x08, 0x01, 0xbc, 0x38]];
        let second = [within(1, two.concat()), later("graph")];
        let model = [vec![8, 9], within(7, first.concat()), within(7, second.concat()), later("model")].concat();
        let unknown = Unknown::of(&Bytes::from(model));
        let group = 6;
        let texts = ["attribute", "y", "z", "w", "graph", "model"];
        assert_eq!(unknown.bytes(), group + texts.iter().map(|text| later(text).len()).sum::<usize>());

        // Another order, new neighbours, without the kernel.
        let graph = GraphProto {
            node: vec![node("new", "n"), node("two", "z"), node("last", "y")],
            initializer: vec![tensor("v")],
            ..GraphProto::default()
        };
        let written = ModelProto { ir_version: Some(9), graph: Some(graph), ..ModelProto::default() };
        let placed = unknown.placed_in(written.encode_to_vec());
        assert_eq!(ModelProto::decode(&placed[..]).expect("it is sound"), written);
        let again = Unknown::of(&Bytes::from(placed));
        assert_eq!(again.bytes(), unknown.bytes() - later("w").len());
        let graph = &again.within[&(7, Bytes::new(), 0)];
        let node = |output: &str| &graph.within[&(1, Bytes::from(format!("{output}\0")), 0)];
        assert_eq!(node("y").own, later("y"));
        assert_eq!(node("z").own, later("z"));
        assert_eq!(node("y").within[&(5, Bytes::from("a"), 0)].own, later("attribute"));
        assert!(again.placed_in(written.encode_to_vec()) == unknown.placed_in(written.encode_to_vec()));
    }
}
