//! `--check`: whether an output is still what its input, options and version give, told by the output itself.

mod support;

use support::scene::{Scene, few_images, fixture, npy};
use support::{ModelBuilder, decode, small_resnet};

const PLAIN: &str = "in.onnx out.onnx --ratio 1.5 --calib none";

/// Holds that a check says all is as it was, and touches nothing.
fn holds(scene: &Scene, arguments: &str) {
    let before = (scene.files(), std::fs::metadata(scene.path("out.onnx")).unwrap().modified().unwrap());
    let output = scene.run_exactly(&format!("{arguments} --check"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{arguments}: {said}");
    assert_eq!(before, (scene.files(), std::fs::metadata(scene.path("out.onnx")).unwrap().modified().unwrap()));
}

/// Holds that a check says what differs, and nothing else that could.
fn differs(scene: &Scene, arguments: &str, what: &[&str]) {
    let before = scene.files();
    let output = scene.run_exactly(&format!("{arguments} --check"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(12), "{arguments}: {said}");
    let said = said.lines().last().unwrap();
    assert!(said.starts_with("onnx-jmd: out.onnx is not what this would write: "), "{said}");
    let all = [
        "input is another",
        "options, or files",
        "was changed",
        "wrote it and this is",
        "does not say",
        "not there",
        "only a run",
        "stored otherwise",
    ];
    for one in all {
        assert_eq!(said.contains(one), what.contains(&one), "{arguments}: {one}: {said}");
    }
    assert_eq!(scene.files(), before);
}

/// The output with something in it changed, encoded as any tool would.
fn edit(scene: &Scene, change: impl FnOnce(&mut support::proto::ModelProto)) {
    let mut model = decode(&scene.read("out.onnx"));
    change(&mut model);
    std::fs::write(scene.path("out.onnx"), prost::Message::encode_to_vec(&model)).unwrap();
}

#[test]
fn an_output_holds_until_something_that_it_follows_from_changes() {
    let scene = Scene::new(&small_resnet(3));
    differs(&scene, PLAIN, &["not there"]);
    scene.succeeds(&format!("{PLAIN} -q"));
    let written = scene.read("out.onnx");
    holds(&scene, PLAIN);
    // What has no effect on the bytes.
    for more in [
        "--threads 1",
        "-q --json report.json --plan-out p.toml --report r.html",
        "--timings",
        "--verify-inputs 9 --seed 3",
    ] {
        holds(&scene, &format!("{PLAIN} {more}"));
    }
    for more in ["--scheme ljsvd", "--keep-bn", "--exclude nothing", "--align 8", "--min-snr -50", "--no-verify"] {
        differs(&scene, &format!("{PLAIN} {more}"), &["options, or files"]);
    }
    differs(&scene, "in.onnx out.onnx --ratio 1.6 --calib none", &["options, or files"]);
    differs(&scene, "in.onnx out.onnx --ratio 1.5 --calib drawn", &["options, or files"]);
    holds(&scene, "in.onnx out.onnx --ratio 1.50 --calib none");
    // The same bytes from elsewhere, and others.
    std::fs::create_dir(scene.path("far")).unwrap();
    std::fs::copy(scene.path("in.onnx"), scene.path("far/other.onnx")).unwrap();
    holds(&scene, "far/other.onnx out.onnx --ratio 1.5 --calib none");
    let piped = scene.pipes("- out.onnx --ratio 1.5 --calib none --check", &scene.read("in.onnx"));
    assert!(piped.status.success());
    std::fs::write(scene.path("in.onnx"), small_resnet(4)).unwrap();
    differs(&scene, PLAIN, &["input is another"]);
    differs(&scene, &format!("{PLAIN} --keep-bn"), &["input is another", "options, or files"]);
    assert!(scene.read("out.onnx") == written);
}

#[test]
fn what_others_changed_is_noticed() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds(&format!("{PLAIN} -q"));
    let written = scene.read("out.onnx");
    let restore = || std::fs::write(scene.path("out.onnx"), &written).unwrap();
    edit(&scene, |_| ());
    holds(&scene, PLAIN);
    edit(&scene, |model| model.graph.as_mut().unwrap().node[0].name = Some("another".into()));
    differs(&scene, PLAIN, &["was changed"]);
    restore();
    let mut bytes = written.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(scene.path("out.onnx"), &bytes).unwrap();
    differs(&scene, PLAIN, &["was changed"]);
    // A field that no version knows, and a cut.
    std::fs::write(scene.path("out.onnx"), [&written[..], &[0x98, 0x06, 0x01]].concat()).unwrap();
    differs(&scene, PLAIN, &["was changed"]);
    std::fs::write(scene.path("out.onnx"), &written[..3000]).unwrap();
    differs(&scene, PLAIN, &["was changed"]);
    restore();
    let set = |key: &str, value: &str| {
        edit(&scene, |model| {
            let property = model.metadata_props.iter_mut().find(|p| p.key() == key).unwrap();
            property.value = Some(value.into());
        });
    };
    set("onnx_jmd.version", "0.0.9");
    differs(&scene, PLAIN, &["was changed", "wrote it and this is"]);
    restore();
    edit(&scene, |model| model.metadata_props.retain(|p| p.key() != "onnx_jmd.options"));
    differs(&scene, PLAIN, &["does not say"]);
    std::fs::write(scene.path("out.onnx"), small_resnet(2)).unwrap();
    differs(&scene, PLAIN, &["does not say"]);
}

#[test]
fn samples_count_by_what_they_hold() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    few_images(&scene, 40);
    let some = "in.onnx out.onnx --ratio 1.2 --scheme separate --include body.1[2-4]/ --no-mirror --no-repair --calib-samples 8";
    scene.succeeds(&format!("{some} -q --calib images.npy"));
    holds(&scene, &format!("{some} --calib images.npy"));
    std::fs::rename(scene.path("images.npy"), scene.path("others.npy")).unwrap();
    holds(&scene, &format!("{some} --calib others.npy"));
    // Images that are only scored, and their labels, decide nothing.
    holds(&scene, &format!("{some} --calib others.npy --images others.npy --labels labels.npy"));
    differs(
        &scene,
        &format!("{some} --calib others.npy --images others.npy --min-agreement 0"),
        &["options, or files"],
    );
    differs(&scene, &format!("{some} --calib others.npy --preprocess 0-255"), &["options, or files"]);
    differs(
        &scene,
        &format!("{some} --calib others.npy --calib-samples 7").replace("--calib-samples 8", ""),
        &["options, or files"],
    );
    differs(&scene, &some.replace("--no-repair", "--calib others.npy"), &["options, or files"]);
    let mut pixels = scene.read("others.npy");
    pixels[128] ^= 1;
    std::fs::write(scene.path("others.npy"), &pixels).unwrap();
    differs(&scene, &format!("{some} --calib others.npy"), &["options, or files"]);
    // A bound holds for the images that it was measured on.
    let bound = "in.onnx out.onnx --ratio 1.2 --calib none --min-agreement 0.1 --images others.npy";
    scene.succeeds(&format!("{bound} -q"));
    holds(&scene, bound);
    holds(&scene, &format!("{bound} --labels labels.npy"));
    std::fs::write(scene.path("others.npy"), npy("|u1", &[2, 1, 28, 28], &[7; 2 * 28 * 28])).unwrap();
    differs(&scene, bound, &["options, or files"]);
}

#[test]
fn plain_weights_that_were_asked_for_are_not_those_that_calibration_gave_way_to() {
    let scene = Scene::new(&small_resnet(3));
    let quick = "in.onnx out.onnx --ratio 1.5 --scheme separate --calib-samples 40 --no-repair";
    scene.succeeds(&format!("{quick} --calib none -q"));
    holds(&scene, &format!("{quick} --calib none"));
    // A run would calibrate on drawn pictures.
    differs(&scene, quick, &["options, or files"]);
    // Of a model that reads no pictures it would not, and says so in the output.
    let mut b = ModelBuilder::new(&[1, 8, 12, 12], 1);
    let x = b.conv("image", &support::ConvSpec::new(16, 3));
    let scene = Scene::new(&b.build(&[&x]));
    let plain = "in.onnx out.onnx --ratio 1.5";
    assert!(scene.run_exactly(&format!("{plain} -q --plan-out plan.toml")).status.success());
    holds(&scene, plain);
    differs(&scene, &format!("{plain} --calib none"), &["options, or files"]);
    let made = scene.read("out.onnx");
    assert!(scene.run_exactly("in.onnx out.onnx --plan plan.toml -q").status.success());
    assert!(scene.read("out.onnx") == made);
    holds(&scene, plain);
}

#[test]
fn a_plan_stands_for_the_options_that_it_was_made_by_until_it_is_edited() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds(&format!("{PLAIN} --scheme ljsvd -q --plan-out plan.toml"));
    holds(&scene, "in.onnx out.onnx --plan plan.toml");
    scene.succeeds("in.onnx out.onnx --plan plan.toml -q");
    holds(&scene, &format!("{PLAIN} --scheme ljsvd"));
    // A comment is enough to make it another file.
    let plan = scene.text("plan.toml");
    std::fs::write(scene.path("plan.toml"), format!("{plan}# By hand.\n")).unwrap();
    differs(&scene, "in.onnx out.onnx --plan plan.toml", &["options, or files"]);
    scene.succeeds("in.onnx out.onnx --plan plan.toml -q");
    holds(&scene, "in.onnx out.onnx --plan plan.toml");
    differs(&scene, &format!("{PLAIN} --scheme ljsvd"), &["options, or files"]);
    // Without the table, as if written by hand.
    let (head, rest) = plan.split_once("\n[made]\n").unwrap();
    let bare = format!("{head}{}", rest.splitn(4, '\n').nth(3).unwrap());
    std::fs::write(scene.path("plan.toml"), bare).unwrap();
    scene.succeeds("in.onnx out.onnx --plan plan.toml -q");
    differs(&scene, &format!("{PLAIN} --scheme ljsvd"), &["options, or files"]);
    // What was decided for other weights is not what would be decided for these.
    std::fs::write(scene.path("plan.toml"), &plan).unwrap();
    let mut other = decode(&scene.read("in.onnx"));
    other.producer_name = Some("another".into());
    std::fs::write(scene.path("other.onnx"), prost::Message::encode_to_vec(&other)).unwrap();
    scene.succeeds("other.onnx out.onnx --plan plan.toml -q");
    holds(&scene, "other.onnx out.onnx --plan plan.toml");
    differs(&scene, "other.onnx out.onnx --ratio 1.5 --scheme ljsvd --calib none", &["options, or files"]);
}

#[test]
fn an_input_given_back_holds_if_there_is_nothing_to_compress() {
    let mut b = ModelBuilder::new(&[1, 3, 4, 4], 1);
    let y = b.relu("image");
    let scene = Scene::new(&b.build(&[&y]));
    let none = "in.onnx out.onnx --ratio 2";
    assert_eq!(scene.run_exactly(none).status.code(), Some(4));
    holds(&scene, none);
    assert!(scene.fails("in.onnx out.onnx --ratio 0.5 --check", 2).contains("--ratio"));
    std::fs::write(scene.path("in.onnx"), small_resnet(2)).unwrap();
    differs(&scene, none, &["does not say"]);
    std::fs::copy(scene.path("in.onnx"), scene.path("out.onnx")).unwrap();
    differs(&scene, PLAIN, &["only a run"]);
    let excluded = format!("{PLAIN} --exclude .");
    assert_eq!(scene.run_exactly(&excluded).status.code(), Some(4));
    holds(&scene, &excluded);
    // A written model has nothing left to compress; what it says of itself is not said of its copy.
    scene.succeeds(&format!("{PLAIN} -q"));
    std::fs::rename(scene.path("out.onnx"), scene.path("in.onnx")).unwrap();
    let again = "in.onnx out.onnx --ratio 1.5 --calib none --include jmd_";
    assert_eq!(scene.run_exactly(again).status.code(), Some(4));
    holds(&scene, again);
}

#[test]
fn where_tensors_stand_counts_too() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds(&format!("{PLAIN} -q --external-data"));
    holds(&scene, &format!("{PLAIN} --external-data"));
    differs(&scene, PLAIN, &["stored otherwise"]);
    let data = scene.files().into_iter().find(|f| f.ends_with(".data")).unwrap();
    let mut bytes = scene.read(&data);
    bytes[0] ^= 1;
    std::fs::write(scene.path(&data), bytes).unwrap();
    differs(&scene, &format!("{PLAIN} --external-data"), &["was changed"]);
    std::fs::remove_file(scene.path(&data)).unwrap();
    differs(&scene, &format!("{PLAIN} --external-data"), &["was changed"]);
}

#[test]
fn options_of_a_file_are_options() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds(&format!("{PLAIN} -q"));
    std::fs::write(scene.path("onnx-jmd.toml"), "ratio = 1.5\ncalib = \"none\"\nquiet = true\n").unwrap();
    holds(&scene, "in.onnx out.onnx");
    differs(&scene, "in.onnx out.onnx --ratio 2", &["options, or files"]);
    std::fs::write(scene.path("onnx-jmd.toml"), "check = true\n").unwrap();
    assert!(scene.fails(PLAIN, 2).contains("line 1: 'check' is asked of one run"));
    std::fs::remove_file(scene.path("onnx-jmd.toml")).unwrap();
    assert!(!scene.fails(&format!("{PLAIN} --check --dry-run"), 2).is_empty());
    assert!(scene.fails("in.onnx - --ratio 1.5 --calib none --check", 2).contains("name the output"));
}
