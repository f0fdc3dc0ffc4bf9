//! Some bytes of options and a model's bytes: compressed, written, read back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onnx_jmd::Model;
use onnx_jmd_fuzz::support::choose::NUMBERS;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first_chunk::<{ NUMBERS }>() else { return };
    if let Ok(model) = Model::from_bytes(bytes.to_vec()) {
        onnx_jmd_fuzz::through(&model, *choice);
    }
});
