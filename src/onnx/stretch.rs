//! A part of a model: the way to some values from others that are known.

use super::proto::{GraphProto, ModelProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto, type_proto};
use super::{Model, captures};
use crate::error::{Error, Result};
use crate::onnx::proto::{TensorShapeProto, TypeProto};
use std::collections::{HashMap, HashSet};

impl Model {
    /// The part of the graph that computes `wanted` values from those that are `known`, which gives their dimensions, and from
    /// the model's own inputs where nothing known is on the way. Its inputs are the model's that it still reads, in their order,
    /// and then the known values, all float32.
    ///
    /// # Errors
    /// [`Error::NotOnnx`] if there is no graph.
    pub(crate) fn stretch(&self, known: &dyn Fn(&str) -> Option<Vec<usize>>, wanted: &[&str]) -> Result<Self> {
        let proto = self.proto();
        let graph = proto.graph.as_ref().ok_or_else(|| Error::NotOnnx { reason: "it holds no graph".into() })?;
        let outputs = graph.node.iter().enumerate().flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)));
        let producer: HashMap<&str, usize> = outputs.collect();
        let mut taken = vec![false; graph.node.len()];
        let mut read: HashSet<&str> = HashSet::new();
        let mut given: Vec<(&str, Vec<usize>)> = Vec::new();
        let mut open: Vec<&str> = wanted.to_vec();
        while let Some(name) = open.pop() {
            if !read.insert(name) {
                continue;
            }
            if let Some(dims) = known(name) {
                given.push((name, dims));
            } else if let Some(&index) = producer.get(name) {
                let node = &graph.node[index];
                taken[index] = true;
                open.extend(node.input.iter().map(String::as_str).chain(captures(node)));
            }
        }
        let replaced: HashSet<&str> = given.iter().map(|g| g.0).collect();
        let own = graph.input.iter().filter(|i| read.contains(i.name()) && !replaced.contains(i.name())).cloned();
        let named = |name: &&str| ValueInfoProto { name: Some((*name).to_owned()), ..ValueInfoProto::default() };
        let part = GraphProto {
            name: graph.name.clone(),
            node: graph.node.iter().zip(&taken).filter(|(_, taken)| **taken).map(|(n, _)| n.clone()).collect(),
            initializer: graph.initializer.iter().filter(|t| read.contains(t.name())).cloned().collect(),
            sparse_initializer: graph.sparse_initializer.clone(),
            input: own.chain(given.iter().map(|(name, dims)| float_value(name, dims))).collect(),
            output: wanted.iter().map(named).collect(),
            ..GraphProto::default()
        };
        Ok(self.derived(ModelProto {
            ir_version: proto.ir_version,
            opset_import: proto.opset_import.clone(),
            functions: proto.functions.clone(),
            graph: Some(part),
            ..ModelProto::default()
        }))
    }
}

/// A float32 value of these dimensions.
pub(crate) fn float_value(name: &str, dims: &[usize]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |&d: &usize| Dimension { value: Some(Value::DimValue(d as i64)), ..Dimension::default() };
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float as i32),
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    let value = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(value), ..ValueInfoProto::default() }
}
