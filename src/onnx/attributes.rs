//! Node attributes by name, with ONNX's defaults left to the caller.

use super::proto::{AttributeProto, NodeProto, attribute_proto::AttributeType};

fn find<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|a| a.name() == name)
}

pub(crate) fn int(node: &NodeProto, name: &str) -> Option<i64> {
    find(node, name)?.i
}

pub(crate) fn float(node: &NodeProto, name: &str) -> Option<f32> {
    find(node, name)?.f
}

pub(crate) fn ints<'n>(node: &'n NodeProto, name: &str) -> Option<&'n [i64]> {
    find(node, name).map(|a| a.ints.as_slice())
}

pub(crate) fn floats<'n>(node: &'n NodeProto, name: &str) -> Option<&'n [f32]> {
    find(node, name).map(|a| a.floats.as_slice())
}

pub(crate) fn string<'n>(node: &'n NodeProto, name: &str) -> Option<&'n str> {
    std::str::from_utf8(find(node, name)?.s.as_deref()?).ok()
}

/// The types of what layers are read by, where the operators that have such attributes agree (ONNX operators Conv, ConvTranspose, Gemm).
const TYPES: [(&str, AttributeType); 12] = [
    ("alpha", AttributeType::Float),
    ("auto_pad", AttributeType::String),
    ("beta", AttributeType::Float),
    ("dilations", AttributeType::Ints),
    ("group", AttributeType::Int),
    ("kernel_shape", AttributeType::Ints),
    ("output_padding", AttributeType::Ints),
    ("output_shape", AttributeType::Ints),
    ("pads", AttributeType::Ints),
    ("strides", AttributeType::Ints),
    ("transA", AttributeType::Int),
    ("transB", AttributeType::Int),
];

/// An attribute of a layer that is of another type than its operator's: its name, its type and the right one. It would be read as if
/// it was not there.
pub(super) fn mistyped(node: &NodeProto) -> Option<(&str, &'static str, &'static str)> {
    node.attribute.iter().find_map(|attribute| {
        // Files of the first versions of the format leave it out.
        let stated = AttributeType::try_from(attribute.r#type?).unwrap_or(AttributeType::Undefined);
        let (name, right) = TYPES.iter().find(|(name, _)| *name == attribute.name())?;
        (stated != *right).then(|| (*name, stated.as_str_name(), right.as_str_name()))
    })
}
