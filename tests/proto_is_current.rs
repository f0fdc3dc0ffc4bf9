//! `proto/onnx.rs` is what prost makes of `proto/onnx.proto`; `BLESS=1` writes it anew.

#[test]
fn the_generated_messages_are_those_of_the_schema() {
    let root = env!("CARGO_MANIFEST_DIR");
    let folder = tempfile::tempdir().unwrap();
    let schema = protox::compile([format!("{root}/proto/onnx.proto")], [format!("{root}/proto")]).unwrap();
    prost_build::Config::new()
        .bytes([".onnx.TensorProto.raw_data"])
        .out_dir(folder.path())
        .compile_fds(schema)
        .unwrap();
    let fresh = std::fs::read_to_string(folder.path().join("onnx.rs")).unwrap();
    let committed = format!("{root}/proto/onnx.rs");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&committed, &fresh).unwrap();
    }
    assert!(fresh == std::fs::read_to_string(&committed).unwrap(), "run BLESS=1 cargo test --test proto_is_current");
}
