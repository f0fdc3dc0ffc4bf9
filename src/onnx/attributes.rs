//! Node attributes by name, with ONNX's defaults left to the caller.

use super::proto::{AttributeProto, NodeProto};

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
