//! Decoding and encoding changes no byte of real files.

mod support;

use onnx_jmd::{Model, Options, PlanOptions, RankPolicy, VerifyOptions, compile};
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
    // A second version of the format, which counts.
    bytes.extend_from_slice(&[0x08, 0x08]);
    let model = Model::from_bytes(bytes.clone()).unwrap();
    assert!(!model.round_trips());
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path().join("copy.onnx")).unwrap();
    assert!(std::fs::read(folder.path().join("copy.onnx")).unwrap() == bytes);
}

/// What is said of the model, of a node in fields that only a later version has, stays; what is said of a kernel goes with it.
#[test]
fn fields_of_later_versions_stay_where_they_were() {
    let later = |text: &str| [&[0xca, 0x06, text.len() as u8][..], text.as_bytes()].concat();
    let mut proto = decode(&support::small_resnet(3));
    let graph = proto.graph.take().unwrap();
    let field = |number: u8, body: &[u8]| {
        let mut bytes = vec![number << 3 | 2];
        prost::encode_length_delimiter(body.len(), &mut bytes).unwrap();
        [bytes, body.to_vec()].concat()
    };
    let (conv, relu) = ("of a convolution", "of a rectifier");
    let mut body = Vec::new();
    for node in &graph.node {
        let said = match node.op_type() {
            "Conv" => later(conv),
            "Relu" => later(relu),
            _ => Vec::new(),
        };
        body.extend(field(1, &[node.encode_to_vec(), said].concat()));
    }
    let kernel = graph.node.iter().rfind(|n| n.op_type() == "Conv").unwrap().input[1].clone();
    for tensor in &graph.initializer {
        let said = if tensor.name() == kernel { later("of a kernel") } else { Vec::new() };
        body.extend(field(5, &[tensor.encode_to_vec(), said].concat()));
    }
    let convs = graph.node.iter().filter(|n| n.op_type() == "Conv").count();
    let relus = graph.node.iter().filter(|n| n.op_type() == "Relu").count();
    let rest = support::proto::GraphProto { node: Vec::new(), initializer: Vec::new(), ..graph };
    body.extend(rest.encode_to_vec());
    let bytes = [proto.encode_to_vec(), field(7, &body), later("of the model")].concat();
    let model = Model::from_bytes(bytes).unwrap();
    let plan = PlanOptions { policy: RankPolicy::Ratio(3.0), ..PlanOptions::default() };
    let options = Options { plan, verify: None::<VerifyOptions>, ..Options::default() };
    let done = compile(&model, &options, &|_| ()).unwrap();
    assert!(done.report.notes.iter().any(|n| n.contains("those in what was replaced")), "{:?}", done.report.notes);
    let written = done.model.unwrap();
    let bytes = written.to_bytes();
    assert_eq!(bytes.len() as u64, written.file_bytes());
    let count = |text: &str| bytes.windows(text.len()).filter(|w| *w == text.as_bytes()).count();
    let counts = [conv, relu, "of the model", "of a kernel"].map(count);
    assert_eq!(counts, [convs, relus, 1, 0]);
    // Read again, nothing is lost any more.
    let again = Model::from_bytes(bytes.clone()).unwrap();
    assert!(again.round_trips() && again.to_bytes() == bytes);
    let folder = tempfile::tempdir().unwrap();
    written.save_external(folder.path().join("spread.onnx"), 64).unwrap();
    let spread = std::fs::read(folder.path().join("spread.onnx")).unwrap();
    assert!(
        spread.windows(conv.len()).filter(|w| *w == conv.as_bytes()).count() == convs && spread.len() < bytes.len()
    );
}
