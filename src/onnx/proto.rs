//! The generated message types; `tests/proto_is_current.rs` regenerates and compares them.
#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from proto/onnx.proto")]

include!("../../proto/onnx.rs");
