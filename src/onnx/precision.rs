//! Models in other floating-point types than float32: everything is decided, fitted and run on a copy in float32, which holds
//! float16 and bfloat16 exactly; what is written keeps the type.

use super::external::each_tensor;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, type_proto,
};
use super::tensor::{element_count, floats_of, is_number};
use super::{Graph, Model, Storage, is_layer};
use crate::factor::Narrow;
use bytes::Bytes;
use half::{bf16, f16};

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

    /// The nearest number that this type holds; of float64 that of float32.
    pub(crate) fn round(self, x: f32) -> f32 {
        match self {
            Self::Half => f16::from_f32(x).to_f32(),
            Self::Brain => bf16::from_f32(x).to_f32(),
            Self::Single | Self::Double => x,
        }
    }

    /// A number as it is stored.
    pub(super) fn store(self, x: f32, into: &mut Vec<u8>) {
        match self {
            Self::Half => into.extend(f16::from_f32(x).to_le_bytes()),
            Self::Brain => into.extend(bf16::from_f32(x).to_le_bytes()),
            Self::Single => into.extend(x.to_le_bytes()),
            Self::Double => into.extend(f64::from(x).to_le_bytes()),
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
        Some(Self::from_proto(self.widened(from, &|_| false)?))
    }

    /// The same, but large tensors are as they were, share their memory with this model and are read as if they were float32: a copy
    /// of them would take twice the memory of a model in float16.
    #[must_use]
    pub(crate) fn mostly_in_f32(&self) -> Option<Self> {
        let from = self.kernel_precision().filter(|p| *p != Precision::Single)?;
        // Of what is read otherwise, biases, scales and statistics, none has as many.
        let large = |tensor: &TensorProto| tensor.dims.len() > 1 && element_count(tensor) >= Some(LEAST_KEPT);
        Some(Self::from_proto(self.widened(from, &large)?).keeping(from))
    }

    fn widened(&self, from: Precision, keep: &dyn Fn(&TensorProto) -> bool) -> Option<ModelProto> {
        let mut proto = self.proto().clone();
        widen(proto.graph.as_mut()?, from.data_type() as i32, keep);
        Some(proto)
    }
}

/// Elements of the smallest tensor that a copy in float32 shares.
const LEAST_KEPT: u64 = 4096;

/// Tensors, values and casts of one type as float32, but for tensors to keep.
fn widen(graph: &mut GraphProto, from: i32, keep: &dyn Fn(&TensorProto) -> bool) {
    let single = DataType::Float as i32;
    each_tensor(graph, &mut |tensor| {
        if tensor.data_type() == from && is_number(tensor) && !keep(tensor) {
            let raw: Vec<u8> = floats_of(tensor).into_iter().flat_map(f32::to_le_bytes).collect();
            tensor.data_type = Some(single);
            tensor.raw_data = Some(Bytes::from(raw));
            tensor.int32_data.clear();
            tensor.double_data.clear();
        }
    });
    widen_values(graph, from);
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
