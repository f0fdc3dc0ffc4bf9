//! A small sound model, damaged as the input says, then everything short of running it.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use onnx_jmd::Model;
use onnx_jmd_fuzz::{pick, support::mutate, through};
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let choice = u.arbitrary().unwrap_or_default();
    let mut next = |n| pick(&mut u, n);
    let mut proto = mutate::small(&mut next);
    for _ in 0..next(12) {
        mutate::mutate(&mut proto, &mut next);
    }
    // Each copy of a graph within itself doubles it.
    if proto.encoded_len() > 1 << 20 {
        return;
    }
    match Model::from_bytes(proto.encode_to_vec()) {
        Ok(model) => through(&model, choice),
        Err(error) => onnx_jmd_fuzz::sentence(&error),
    }
});
