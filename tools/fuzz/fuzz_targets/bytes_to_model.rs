//! Bytes as a model: refused in a sentence, or read, inspected and given back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onnx_jmd::{GroupOptions, Model, inspect};

fuzz_target!(|bytes: &[u8]| {
    match Model::from_bytes(bytes.to_vec()) {
        Err(error) => onnx_jmd_fuzz::sentence(&error),
        Ok(model) => {
            assert_eq!(model.to_bytes(), bytes);
            let _ = (model.round_trips(), model.inputs(), model.outputs());
            if model.parameters() < 20_000 {
                match inspect(&model, &GroupOptions::default()) {
                    Ok(found) => assert!(found.to_json().len() + found.to_string().len() > 2),
                    Err(error) => onnx_jmd_fuzz::sentence(&error),
                }
            }
        }
    }
});
