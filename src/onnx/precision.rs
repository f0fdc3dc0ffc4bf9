//! Models in other floating-point types than float32: they are run as a copy in float32, which holds float16 and bfloat16 exactly; what
//! is written keeps the type. Of a large model the copy shares the kernels, which are read as if they were float32. Kernels, biases and
//! batch norms in float64 are decomposed as they are stored, and so are their factors.

use super::external::each_tensor;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto::DataType, type_proto,
};
use super::tensor::{floats_of, floats_within, is_number};
use super::{Graph, Model, Storage, Use, is_layer, is_standard};
use crate::factor::{Narrow, Width};
use bytes::Bytes;
use half::{bf16, f16};
use std::collections::HashSet;

/// A floating-point type that kernels are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    Half,
    Brain,
    Single,
    Double,
}

impl Precision {
    pub(crate) fn of(data_type: i32) -> Option<Self> {
        Some(match DataType::try_from(data_type).ok()? {
            DataType::Float16 => Self::Half,
            DataType::Bfloat16 => Self::Brain,
            DataType::Float => Self::Single,
            DataType::Double => Self::Double,
            _ => return None,
        })
    }

    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::Half => DataType::Float16,
            Self::Brain => DataType::Bfloat16,
            Self::Single => DataType::Float,
            Self::Double => DataType::Double,
        }
    }

    /// The type of 32 bits or more that holds it.
    pub(crate) fn width(self) -> Width {
        if self == Self::Double { Width::Double } else { Width::Single }
    }

    /// Whether it takes fewer bits than float32.
    pub(crate) fn is_narrow(self) -> bool {
        self.narrow().is_some()
    }

    /// Which type of less than 32 bits it is.
    pub(crate) fn narrow(self) -> Option<Narrow> {
        match self {
            Self::Half => Some(Narrow::Half),
            Self::Brain => Some(Narrow::Brain),
            Self::Single | Self::Double => None,
        }
    }

    /// The nearest number that this type holds, of narrow ones that nearest to the one of float32.
    pub(crate) fn round(self, x: f64) -> f64 {
        let single = x as f32;
        match self {
            Self::Half => f16::from_f32(single).to_f64(),
            Self::Brain => bf16::from_f32(single).to_f64(),
            Self::Single => f64::from(single),
            Self::Double => x,
        }
    }

    /// A number as it is stored, rounded alike.
    pub(super) fn store(self, x: f64, into: &mut Vec<u8>) {
        let single = x as f32;
        match self {
            Self::Half => into.extend(f16::from_f32(single).to_le_bytes()),
            Self::Brain => into.extend(bf16::from_f32(single).to_le_bytes()),
            Self::Single => into.extend(single.to_le_bytes()),
            Self::Double => into.extend(x.to_le_bytes()),
        }
    }
}

impl Model {
    /// The type of all kernels that are constants, of convolutions and fully connected layers; none where there are several.
    pub(crate) fn kernel_precision(&self) -> Option<Precision> {
        if self.kept().is_some() {
            return self.kept();
        }
        let graph = Graph::new(self).ok()?;
        let layers = graph.nodes().iter().filter(|n| is_layer(&graph, n));
        let kernels = layers.filter_map(|n| {
            let kernel = n.input.get(1)?;
            let precision = Precision::of(graph.folded(kernel)?.data_type());
            // Scales are float32.
            let quantized = matches!(graph.storage(kernel), Storage::Quantized { .. });
            Some(precision.filter(|p| *p == Precision::Single || !quantized))
        });
        let mut kinds = kernels.collect::<Option<Vec<_>>>()?;
        kinds.dedup();
        match kinds[..] {
            [one] => Some(one),
            _ => None,
        }
    }

    /// The same model in float32, if its kernels are all of another floating-point type. Values of that type become float32, and
    /// so do casts to it.
    #[must_use]
    pub fn in_f32(&self) -> Option<Self> {
        let from = self.kernel_precision().filter(|p| *p != Precision::Single)?;
        Some(Self::from_proto(self.widened(from, &HashSet::new())?))
    }

    /// The same, but kernels and tables are as they were, share their memory with this model and are read as if they were float32: a
    /// copy of them would take twice the memory of a model in float16. They are initializers that nothing but layers reads, as their
    /// kernels, or `Gather`.
    #[must_use]
    pub(crate) fn mostly_in_f32(&self) -> Option<Self> {
        let from = self.kernel_precision().filter(|p| *p != Precision::Single)?;
        let graph = Graph::new(self).ok()?;
        let keeps = |node: &NodeProto, place: usize| match place {
            0 => is_standard(node) && node.op_type() == "Gather",
            1 => is_layer(&graph, node),
            _ => false,
        };
        let kept = graph.proto().initializer.iter().map(TensorProto::name).filter(|name| {
            let read = |each: &Use| matches!(*each, Use::Node(node, place) if keeps(&graph.nodes()[node], place));
            graph.constant(name).is_some() && graph.uses(name).iter().all(read)
        });
        let kept: HashSet<&str> = kept.collect();
        Some(Self::from_proto(self.widened(from, &kept)?).keeping(from))
    }

    /// The same to find layers in, whose numbers are then read in full, if its kernels are all float64: a copy in float32 has lost half
    /// of their digits.
    #[must_use]
    pub(crate) fn in_full(&self) -> Option<Self> {
        let precision = self.kernel_precision().filter(|&p| p == Precision::Double)?;
        Some(self.clone().keeping(precision))
    }

    /// The same with float32 for bfloat16, which not every runtime knows, and for what is read as if it were; none if there is neither.
    #[cfg(feature = "verify")]
    pub(crate) fn in_widest(&self) -> Option<Self> {
        let wide = self.kept().and_then(|_| self.in_f32());
        let model = wide.as_ref().unwrap_or(self);
        let brain = model.proto().graph.as_ref().is_some_and(|graph| mentions(graph, DataType::Bfloat16 as i32));
        let widest = if brain { model.widened(Precision::Brain, &HashSet::new()).map(Self::from_proto) } else { None };
        widest.or(wide)
    }

    /// Tensors, values and casts of one type as float32, but for initializers to keep.
    fn widened(&self, from: Precision, kept: &HashSet<&str>) -> Option<ModelProto> {
        let mut proto = self.proto().clone();
        let graph = proto.graph.as_mut()?;
        let data_type = from.data_type() as i32;
        // Aside, or they would be tensors of the graph.
        let keep = |tensor: &TensorProto| tensor.data_type() == data_type && kept.contains(tensor.name());
        let places = graph.initializer.iter_mut().enumerate().filter(|(_, tensor)| keep(tensor));
        let aside: Vec<(usize, TensorProto)> = places.map(|(at, tensor)| (at, std::mem::take(tensor))).collect();
        widen(graph, data_type);
        for function in &mut proto.functions {
            // Bodies hold tensors and casts as graphs do.
            let mut body = GraphProto { node: std::mem::take(&mut function.node), ..GraphProto::default() };
            widen(&mut body, data_type);
            function.node = body.node;
        }
        for (at, mut tensor) in aside {
            if tensor.raw_data.is_none() {
                // Copies of these bytes share them.
                let mut raw = Vec::new();
                floats_within::<f64>(&tensor, 0..usize::MAX).into_iter().for_each(|x| from.store(x, &mut raw));
                tensor.raw_data = Some(Bytes::from(raw));
                tensor.int32_data.clear();
                tensor.double_data.clear();
            }
            graph.initializer[at] = tensor;
        }
        Some(proto)
    }
}

/// Tensors, values and casts of one type as float32.
fn widen(graph: &mut GraphProto, from: i32) {
    let single = DataType::Float as i32;
    each_tensor(graph, &mut |tensor| {
        if tensor.data_type() == from && is_number(tensor) {
            let raw: Vec<u8> = floats_of(tensor).into_iter().flat_map(f32::to_le_bytes).collect();
            tensor.data_type = Some(single);
            tensor.raw_data = Some(Bytes::from(raw));
            tensor.int32_data.clear();
            tensor.double_data.clear();
        }
    });
    widen_values(graph, from);
}

/// Whether there is a tensor, a value or a cast of a type.
#[cfg(feature = "verify")]
fn mentions(graph: &GraphProto, data_type: i32) -> bool {
    let of_type = |value: &ValueInfoProto| match value.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor.elem_type() == data_type,
        _ => false,
    };
    let casts = |a: &AttributeProto| matches!(a.name(), "to" | "dtype") && a.i() == i64::from(data_type);
    let attributes = || graph.node.iter().flat_map(|n| &n.attribute);
    graph.input.iter().chain(&graph.output).any(of_type)
        || graph.initializer.iter().any(|tensor| tensor.data_type() == data_type)
        || attributes().any(|a| casts(a) || a.t.as_ref().is_some_and(|t| t.data_type() == data_type))
        || graph.node.iter().flat_map(super::subgraphs).any(|graph| mentions(graph, data_type))
}

/// Declared values and casts, in subgraphs too.
fn widen_values(graph: &mut GraphProto, from: i32) {
    let single = DataType::Float as i32;
    let values = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
    values.filter_map(tensor_type).filter(|t| t.elem_type() == from).for_each(|t| t.elem_type = Some(single));
    for node in &mut graph.node {
        let names_a_type = |a: &AttributeProto| {
            matches!(a.name(), "to" | "dtype") && a.r#type() == AttributeType::Int && a.i() == i64::from(from)
        };
        node.attribute.iter_mut().filter(|a| names_a_type(a)).for_each(|a| a.i = Some(i64::from(single)));
        let attributes = node.attribute.iter_mut();
        attributes.flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)).for_each(|g| widen_values(g, from));
    }
}

fn tensor_type(value: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    match value.r#type.as_mut() {
        Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), .. }) => Some(tensor),
        _ => None,
    }
}
