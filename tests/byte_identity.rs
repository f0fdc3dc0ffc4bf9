//! Decoding and encoding changes no byte of real files.

mod support;

use onnx_jmd::Model;
use prost::Message;
use support::{ResNet, decode};

#[test]
fn real_and_generated_files_survive_decoding_and_encoding() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/fashion-resnet.onnx");
    let mut files = vec![std::fs::read(fixture).unwrap()];
    files.push(ResNet { batch_norm: true, width: 8, ..ResNet::R50 }.build());
    // Further files of the reader's own choice.
    if let Some(folder) = std::env::var_os("ONNX_JMD_MODELS") {
        let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        files.extend(entries.filter(|p| p.extension().is_some_and(|e| e == "onnx")).map(|p| std::fs::read(p).unwrap()));
    }
    for bytes in files {
        assert!(decode(&bytes).encode_to_vec() == bytes);
        let model = Model::from_bytes(bytes.clone()).unwrap();
        assert!(model.round_trips());
        assert!(model.to_bytes() == bytes);
    }
}

#[test]
fn saving_an_unchanged_model_gives_its_bytes_even_if_they_are_not_canonical() {
    let mut bytes = support::small_resnet(1);
    // Field 99, a varint, that no version of the format has.
    bytes.extend_from_slice(&[0x98, 0x06, 0x01]);
    let model = Model::from_bytes(bytes.clone()).unwrap();
    assert!(!model.round_trips());
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path().join("copy.onnx")).unwrap();
    assert!(std::fs::read(folder.path().join("copy.onnx")).unwrap() == bytes);
}
