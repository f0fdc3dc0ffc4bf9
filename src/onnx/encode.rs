//! A model as a file's bytes, written piece by piece: a graph's initializers go from where they are to where they are wanted, and no
//! second copy of them is made on the way. Other messages are encoded whole, nodes one by one.
//!
//! Fields stand in the order of their numbers, as [`prost`] writes them. Those that may be large (`ModelProto.graph`, `GraphProto.node`,
//! `GraphProto.initializer` and `TensorProto.raw_data`) are written between what stands before and what stands after them.

use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::unknown::Unknown;
use prost::Message;
use std::io::{BufWriter, Result, Write};

/// Raw data of fewer bytes is encoded with the rest of its tensor.
const LARGE: usize = 1 << 16;

/// Writes the bytes that `encode_to_vec` gives; where there are unknown fields with these, of a second copy.
///
/// # Errors
/// Those of `out`.
pub(super) fn write(model: &ModelProto, unknown: &Unknown, out: &mut dyn Write) -> Result<()> {
    if !unknown.is_empty() {
        return out.write_all(&bytes(model, unknown));
    }
    let mut out = BufWriter::new(out);
    pieces(model, &mut out)?;
    out.flush()
}

/// How many they are.
pub(super) fn size(model: &ModelProto, unknown: &Unknown) -> usize {
    let known = model.encoded_len();
    if unknown.is_empty() {
        return known;
    }
    if known <= COPIED {
        return bytes(model, unknown).len();
    }
    // But for a few bytes of lengths.
    let empty = without_data(model);
    known + bytes(&empty, unknown).len() - empty.encoded_len()
}

/// A model with unknown fields is copied to see how many bytes it takes up to so many.
const COPIED: usize = 1 << 26;

/// The same without the data of its initializers.
pub(super) fn without_data(model: &ModelProto) -> ModelProto {
    let mut model = model.clone();
    model.graph.iter_mut().flat_map(|graph| &mut graph.initializer).for_each(|tensor| {
        tensor.raw_data = None;
        tensor.float_data.clear();
        tensor.double_data.clear();
        tensor.int32_data.clear();
        tensor.int64_data.clear();
        tensor.uint64_data.clear();
    });
    model
}

/// Bytes that a node takes.
pub(super) fn length(node: &NodeProto) -> usize {
    node.encoded_len()
}

/// Bytes that attributes take.
pub(super) fn length_of(attributes: &[AttributeProto]) -> usize {
    attributes.iter().map(Message::encoded_len).sum()
}

/// The bytes of a model's file.
pub(super) fn bytes(model: &ModelProto, unknown: &Unknown) -> Vec<u8> {
    if !unknown.is_empty() {
        return unknown.placed_in(model.encode_to_vec());
    }
    let mut bytes = Vec::with_capacity(model.encoded_len());
    // Memory takes whatever is written to it.
    let _ = write(model, unknown, &mut bytes);
    bytes
}

fn pieces(model: &ModelProto, out: &mut dyn Write) -> Result<()> {
    // All fields are named, so that a new one cannot be forgotten.
    let ModelProto {
        ir_version,
        producer_name,
        producer_version,
        domain,
        model_version,
        doc_string,
        graph,
        opset_import,
        metadata_props,
        training_info,
        functions,
        configuration,
    } = model;
    let before = ModelProto {
        ir_version: *ir_version,
        producer_name: producer_name.clone(),
        producer_version: producer_version.clone(),
        domain: domain.clone(),
        model_version: *model_version,
        doc_string: doc_string.clone(),
        ..ModelProto::default()
    };
    let after = ModelProto {
        opset_import: opset_import.clone(),
        metadata_props: metadata_props.clone(),
        training_info: training_info.clone(),
        functions: functions.clone(),
        configuration: configuration.clone(),
        ..ModelProto::default()
    };
    whole(&before, out)?;
    if let Some(graph) = graph {
        head(7, graph.encoded_len(), out)?;
        graph_pieces(graph, out)?;
    }
    whole(&after, out)
}

fn graph_pieces(graph: &GraphProto, out: &mut dyn Write) -> Result<()> {
    let GraphProto {
        node,
        name,
        initializer,
        doc_string,
        input,
        output,
        value_info,
        quantization_annotation,
        sparse_initializer,
        metadata_props,
    } = graph;
    for node in node {
        head(1, node.encoded_len(), out)?;
        whole(node, out)?;
    }
    whole(&GraphProto { name: name.clone(), ..GraphProto::default() }, out)?;
    for tensor in initializer {
        head(5, tensor.encoded_len(), out)?;
        tensor_pieces(tensor, out)?;
    }
    let after = GraphProto {
        doc_string: doc_string.clone(),
        input: input.clone(),
        output: output.clone(),
        value_info: value_info.clone(),
        quantization_annotation: quantization_annotation.clone(),
        sparse_initializer: sparse_initializer.clone(),
        metadata_props: metadata_props.clone(),
        ..GraphProto::default()
    };
    whole(&after, out)
}

fn tensor_pieces(tensor: &TensorProto, out: &mut dyn Write) -> Result<()> {
    let TensorProto {
        dims,
        data_type,
        segment,
        float_data,
        int32_data,
        string_data,
        int64_data,
        name,
        raw_data,
        double_data,
        uint64_data,
        doc_string,
        external_data,
        data_location,
        metadata_props,
    } = tensor;
    let Some(raw) = raw_data.as_ref().filter(|raw| raw.len() >= LARGE) else { return whole(tensor, out) };
    let before = TensorProto {
        dims: dims.clone(),
        data_type: *data_type,
        segment: *segment,
        float_data: float_data.clone(),
        int32_data: int32_data.clone(),
        string_data: string_data.clone(),
        int64_data: int64_data.clone(),
        name: name.clone(),
        ..TensorProto::default()
    };
    let after = TensorProto {
        double_data: double_data.clone(),
        uint64_data: uint64_data.clone(),
        doc_string: doc_string.clone(),
        external_data: external_data.clone(),
        data_location: *data_location,
        metadata_props: metadata_props.clone(),
        ..TensorProto::default()
    };
    whole(&before, out)?;
    head(9, raw.len(), out)?;
    out.write_all(raw)?;
    whole(&after, out)
}

fn whole(message: &impl Message, out: &mut dyn Write) -> Result<()> {
    out.write_all(&message.encode_to_vec())
}

/// What stands before a field that has a length (wire type 2), numbered below 16: such a number takes one byte.
fn head(number: u8, length: usize, out: &mut dyn Write) -> Result<()> {
    let mut bytes = vec![number << 3 | 2];
    // A vector has room for it.
    let _ = prost::encode_length_delimiter(length, &mut bytes);
    out.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::super::proto::{
        AttributeProto, DeviceConfigurationProto, FunctionProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
        StringStringEntryProto, TensorAnnotation, TrainingInfoProto, ValueInfoProto, tensor_proto,
    };
    use super::*;

    #[test]
    fn pieces_are_what_a_whole_encoding_is() {
        let text = || Some("text".to_owned());
        let entries = || vec![StringStringEntryProto { key: text(), value: text() }];
        let tensor = |bytes: usize| TensorProto {
            dims: vec![1, 300],
            data_type: Some(1),
            segment: Some(tensor_proto::Segment { begin: Some(1), end: Some(2) }),
            float_data: vec![1.5],
            int32_data: vec![-1],
            string_data: vec![vec![7; 200]],
            int64_data: vec![3],
            name: text(),
            raw_data: Some((0..bytes).map(|i| i as u8).collect()),
            double_data: vec![2.5],
            uint64_data: vec![4],
            doc_string: text(),
            external_data: entries(),
            data_location: Some(0),
            metadata_props: entries(),
        };
        let value = || vec![ValueInfoProto { name: text(), ..ValueInfoProto::default() }];
        let held = AttributeProto { name: text(), t: Some(tensor(LARGE)), ..AttributeProto::default() };
        let node = NodeProto { op_type: text(), attribute: vec![held], ..NodeProto::default() };
        let graph = GraphProto {
            node: vec![node.clone(), node],
            name: text(),
            initializer: [0, 5, LARGE - 1, LARGE, 3 * LARGE].map(tensor).to_vec(),
            doc_string: text(),
            input: value(),
            output: value(),
            value_info: value(),
            quantization_annotation: vec![TensorAnnotation::default()],
            sparse_initializer: vec![SparseTensorProto { values: Some(tensor(LARGE)), ..SparseTensorProto::default() }],
            metadata_props: entries(),
        };
        let model = ModelProto {
            ir_version: Some(10),
            producer_name: text(),
            producer_version: text(),
            domain: text(),
            model_version: Some(-1),
            doc_string: text(),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto::default()],
            metadata_props: entries(),
            training_info: vec![TrainingInfoProto::default()],
            functions: vec![FunctionProto { name: text(), ..FunctionProto::default() }],
            configuration: vec![DeviceConfigurationProto { name: text(), ..DeviceConfigurationProto::default() }],
        };
        assert_eq!(bytes(&model, &Unknown::default()), model.encode_to_vec());
        let without = ModelProto { graph: None, ..model };
        assert_eq!(bytes(&without, &Unknown::default()), without.encode_to_vec());
    }
}
