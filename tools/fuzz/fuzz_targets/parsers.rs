//! Files beside the model: plans, arrays, tensors, archives, pictures, and data that a model says is elsewhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onnx_jmd::{Images, Model, PlanFile, Preprocessing};
use onnx_jmd_fuzz::{sentence, support};
use prost::Message;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    thread_local!(static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder"));
    FOLDER.with(|folder| read(folder.path(), *kind, bytes));
});

fn read(folder: &Path, kind: u8, bytes: &[u8]) {
    let kinds = ["plan.toml", "a.npy", "a.npz", "a.pb", "a.png", "a.jpg", "data.bin"];
    let name = kinds[usize::from(kind) % kinds.len()];
    let path = folder.join(name);
    if name != "data.bin" {
        std::fs::write(&path, bytes).expect("a file");
    }
    match name {
        "plan.toml" => match PlanFile::open(&path) {
            Ok(plan) => {
                let _ = (plan.plan_options().map_err(|e| sentence(&e)), plan.calibration());
                let _ = plan.group_options().map_err(|e| sentence(&e));
            }
            Err(error) => sentence(&error),
        },
        "data.bin" => {
            std::fs::write(&path, [7; 64]).expect("a file");
            if let Err(error) = Model::open(model(folder, bytes)) {
                sentence(&error);
            }
        }
        _ => {
            for result in [
                Images::open(&path, None, &Preprocessing::default()),
                Images::open(&path, Some(&path), &Preprocessing::default()),
            ] {
                if let Err(error) = result {
                    sentence(&error);
                }
            }
        }
    }
}

/// A model one of whose tensors is elsewhere, where lines of text say.
fn model(folder: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let text = String::from_utf8_lossy(bytes);
    let mut model = support::mutate::small(&mut |_| 0);
    if let Some(tensor) = model.graph.as_mut().and_then(|g| g.initializer.first_mut()) {
        let entry = |(key, value): (&str, &str)| support::proto::StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value.into()),
        };
        tensor.raw_data = None;
        tensor.external_data = text.lines().filter_map(|l| l.split_once('=')).map(entry).collect();
        tensor.data_location = Some(1);
    }
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).expect("a file");
    path
}
