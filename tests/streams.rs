//! Models through pipes: from standard input, to standard output whole or not at all.

mod support;

use support::scene::Scene;
use support::{ModelBuilder, small_resnet};

const PLAIN: &str = "--ratio 1.5 --calib none";

/// The last line of what a run says, which fails with a code and gives nothing.
fn refusal(scene: &Scene, arguments: &str, input: &[u8], code: i32) -> String {
    let output = scene.pipes(arguments, input);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
    assert!(output.stdout.is_empty(), "{arguments}");
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_pipe_gives_the_bytes_of_a_file() {
    let model = small_resnet(3);
    let scene = Scene::new(&model);
    scene.succeeds(&format!("in.onnx out.onnx {PLAIN} -q"));
    let bytes = scene.read("out.onnx");
    let piped = scene.pipes(&format!("- - {PLAIN}"), &model);
    assert!(piped.status.success() && piped.stdout == bytes);
    // The tables have gone where progress goes.
    let said = String::from_utf8(piped.stderr).unwrap();
    assert!(
        said.contains("reading standard input") && said.contains("Totals") && said.contains("Verification"),
        "{said}"
    );
    let quiet = scene.pipes(&format!("in.onnx - {PLAIN} -q --json r.json --plan-out p.toml"), &[]);
    assert!(quiet.stderr.is_empty() && quiet.stdout == bytes);
    assert!(scene.text("r.json").contains("\"rewrite_error\"") && scene.text("p.toml").contains("[[group]]"));
    assert!(scene.pipes(&format!("- two.onnx {PLAIN} -q"), &model).stdout.is_empty());
    assert!(scene.read("two.onnx") == bytes);
    assert_eq!(scene.files(), ["in.onnx", "out.onnx", "p.toml", "r.json", "two.onnx"]);
    // A dry run has no model to give, so that standard output is free.
    let dry = scene.pipes(&format!("- - {PLAIN} --dry-run -q --json -"), &model);
    assert!(dry.stdout.starts_with(b"{"));
}

#[test]
fn nothing_is_given_before_all_is_known_to_be_right() {
    let model = small_resnet(3);
    let scene = Scene::new(&model);
    assert!(refusal(&scene, &format!("- - {PLAIN} --min-snr 200"), &model, 8).contains("dB"));
    assert!(!refusal(&scene, "- - --ratio 1000 --calib none", &model, 5).is_empty());
    // What else is to be written comes first.
    let missing = refusal(&scene, &format!("- - {PLAIN} --plan-out no/p.toml"), &model, 9);
    assert!(missing.contains("no/p.toml"), "{missing}");
    assert_eq!(scene.files(), ["in.onnx"]);
}

#[test]
fn a_model_with_nothing_to_compress_goes_through_as_it_is() {
    let mut b = ModelBuilder::new(&[1, 3, 4, 4], 1);
    let y = b.relu("image");
    let mut model = b.build(&[&y]);
    model.extend_from_slice(&[0x08, 0x08]);
    let output = Scene::new(&[]).pipes("- - --ratio 2", &model);
    assert_eq!(output.status.code(), Some(4));
    assert!(output.stdout == model);
}

#[test]
fn what_cannot_go_through_a_pipe_is_refused() {
    let model = small_resnet(2);
    let scene = Scene::new(&model);
    for (arguments, word) in [
        (format!("- - {PLAIN} --json -"), "--json"),
        (format!("in.onnx - {PLAIN} --external-data"), "--external-data"),
        ("verify - -".into(), "only one"),
    ] {
        let said = refusal(&scene, &arguments, &model, 2);
        assert!(said.contains(word), "{said}");
    }
    assert!(refusal(&scene, "inspect -", b"", 3).contains("empty"));
    assert!(refusal(&scene, &format!("- out.onnx {PLAIN}"), &model[..3000], 3).contains("truncated"));
    // Data in another file cannot be found without a folder, wherever the command runs.
    scene.succeeds(&format!("in.onnx far.onnx {PLAIN} -q --external-data"));
    let said = refusal(&scene, "inspect -", &scene.read("far.onnx"), 3);
    assert!(said.contains("far.onnx.") && said.contains("by its path"), "{said}");
}

#[test]
fn other_commands_read_from_a_pipe_too() {
    let model = small_resnet(2);
    let scene = Scene::new(&model);
    let inspected = scene.pipes("inspect - -q --json -", &model);
    assert_eq!(String::from_utf8(inspected.stdout).unwrap(), scene.succeeds("inspect in.onnx -q --json -"));
    for arguments in ["verify - in.onnx", "verify in.onnx -"] {
        let verified = scene.pipes(&format!("{arguments} --max-difference 0"), &model);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
}
