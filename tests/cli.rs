//! The command line as a user meets it: exit codes, files, streams.

mod support;

use onnx_jmd::Model;
use support::proto::{AttributeProto, attribute_proto::AttributeType};
use support::scene::{Scene, few_images, fixture, npy};
use support::{ConvSpec, ModelBuilder, ResNet, ints, small_resnet, value};

#[test]
fn a_model_is_compressed_and_the_tables_say_how() {
    let scene = Scene::new(&small_resnet(3));
    let output = scene.run("in.onnx out.onnx --ratio 1.5");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for heading in ["Repeated blocks", "Groups", "Totals", "Verification by tract"] {
        assert!(text.lines().any(|l| l.starts_with(heading)), "{heading} is missing:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "colour without a terminal");
    assert!(String::from_utf8(output.stderr).unwrap().contains("verifying"));
    assert_eq!(scene.files(), ["in.onnx", "out.onnx"]);
}

#[test]
fn quiet_prints_nothing_and_json_everything() {
    let scene = Scene::new(&small_resnet(3));
    let quiet = scene.run("in.onnx out.onnx --ratio 1.5 --quiet --json report.json");
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
    let facts = |bytes: &[u8]| {
        let mut report: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        // The only thing that differs from run to run.
        assert!(report.as_object_mut().unwrap().remove("timings").is_some());
        report
    };
    let written = facts(&std::fs::read(scene.path("report.json")).unwrap());
    let printed = scene.run("in.onnx out.onnx --ratio 1.5 -q --json -").stdout;
    assert_eq!(written, facts(&printed));
    assert_eq!(written["report_version"], 1);
    assert!(written["totals"]["parameters"]["ratio"].as_f64().unwrap() >= 1.5);
    assert!(written["groups"][0]["reconstruction_error"].as_f64().unwrap() > 0.0);
    assert!(written["verification"]["rewrite_error"].as_f64().unwrap() < 1e-5);
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let scene = Scene::new(&small_resnet(4));
    for scheme in ["separate", "ljsvd", "rjsvd-1", "rjsvd-2", "bi-jsvd"] {
        let run = |threads: usize| {
            let arguments =
                format!("in.onnx {scheme}{threads}.onnx --ratio 2 -q --scheme {scheme} --threads {threads}");
            assert!(scene.run(&arguments).status.success());
            std::fs::read(scene.path(&format!("{scheme}{threads}.onnx"))).unwrap()
        };
        let one = run(1);
        assert!(one == run(8) && one == run(1), "{scheme}");
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let scene = Scene::new(&small_resnet(3));
    let output = scene.run("in.onnx --ratio 1.5 --dry-run");
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("Plan (errors predicted)"));
    assert_eq!(scene.files(), ["in.onnx"]);
}

#[test]
fn nothing_to_compress_gives_the_input_back_byte_for_byte() {
    let mut b = ModelBuilder::new(&[1, 3, 4, 4], 1);
    let y = b.relu("image");
    let mut model = b.build(&[&y]);
    // A field written twice is no canonical encoding, and comes back as it was all the same.
    model.extend_from_slice(&[0x08, 0x08]);
    let scene = Scene::new(&model);
    let output = scene.run("in.onnx out.onnx --ratio 2 --json report.json");
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no convolutions"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(scene.path("report.json")).unwrap()).unwrap();
    assert_eq!(report["totals"]["parameters"]["ratio"], 1.0);
    assert_eq!(std::fs::read(scene.path("out.onnx")).unwrap(), model);
}

#[test]
fn arguments_that_make_no_sense_are_usage_errors() {
    let scene = Scene::new(&small_resnet(2));
    for arguments in [
        "",
        "in.onnx",
        "in.onnx out.onnx",
        "in.onnx out.onnx --ratio x",
        "in.onnx out.onnx --ratio 1",
        "in.onnx out.onnx --ratio 0.5",
        "in.onnx out.onnx --ratio NaN",
        "in.onnx out.onnx --ratio inf",
        "in.onnx out.onnx --rank-rate 0",
        "in.onnx out.onnx --ratio 2 --rank-rate 0.1",
        "in.onnx out.onnx --ratio 2 --scheme bi-jsvd --split 2",
        "in.onnx out.onnx --ratio 2 --include (",
        "in.onnx out.onnx --ratio 2 --scheme tt --unfolding spatial",
        "in.onnx out.onnx --ratio 2 --cache folder --calib none",
        "in.onnx out.onnx --ratio 2 --threads 0",
        "in.onnx out.onnx --ratio 1.5 --input-shape image:1,x",
        "in.onnx out.onnx --ratio 1.5 --input-shape other:1,3,32,32",
        "in.onnx out.onnx --ratio 1.5 --input-shape image:1,4,32,32",
        "in.onnx out.onnx --ratio 1.5 --input-shape 1,3,32",
        "in.onnx out.onnx --ratio -1",
        "in.onnx out.onnx --ratio 2 --threads 2000",
        "in.onnx out.onnx --ratio 1.5 --images missing.npy",
        "in.onnx out.onnx --ratio 1.5 --images in.onnx",
        "in.onnx out.onnx --ratio 1.5 --min-snr 3 --no-verify",
        "in.onnx out.onnx --ratio 1.5 --min-snr nan",
        "in.onnx out.onnx --ratio 1.5 --min-agreement 2",
        "in.onnx out.onnx --ratio 1.5 --input-shape image:1,3,2000000,2000000",
        "in.onnx out.onnx --ratio 1.5 --json in.onnx",
        "in.onnx out.onnx --ratio 1.5 --json out.onnx",
        "in.onnx in.onnx --ratio 2",
        "in.onnx ./in.onnx --ratio 2",
    ] {
        let message = scene.fails(arguments, 2);
        assert!(!message.is_empty(), "{arguments}");
    }
    assert_eq!(scene.files(), ["in.onnx"]);
}

#[test]
fn unreadable_input_is_named() {
    let scene = Scene::new(&small_resnet(2)[..3000]);
    assert!(scene.fails("missing.onnx out.onnx --ratio 2", 3).contains("missing.onnx"));
    assert!(scene.fails("in.onnx out.onnx --ratio 2", 3).contains("truncated"));
    assert!(scene.fails(". out.onnx --ratio 2", 3).contains("cannot read"));
    std::fs::write(scene.path("in.onnx"), b"").unwrap();
    assert!(scene.fails("in.onnx out.onnx --ratio 2", 3).contains("empty"));
    assert_eq!(scene.files(), ["in.onnx"]);
}

#[test]
fn a_ratio_out_of_reach_names_the_largest_and_writes_nothing() {
    let scene = Scene::new(&small_resnet(2));
    let message = scene.fails("in.onnx out.onnx --ratio 1000", 5);
    let largest = message.split("--ratio ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(scene.files(), ["in.onnx"]);
    assert!(scene.run(&format!("in.onnx out.onnx --ratio {largest} -q")).status.success(), "{message}");
}

#[test]
fn a_model_that_tract_cannot_run_is_proved_part_by_part() {
    let mut b = ResNet { blocks: [2, 0, 0, 0], cifar: true, width: 8, ..ResNet::R18 }.builder();
    let pooled = b.graph.node.iter_mut().find(|n| n.op_type() == "GlobalAveragePool").unwrap();
    pooled.op_type = Some("NoSuchOperator".into());
    let scene = Scene::new(&b.build(&["scores"]));
    // Calibration that nobody asked for gives way, what was asked for does not.
    let run = scene.run_exactly("in.onnx out.onnx --ratio 1.5");
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success() && text.contains("NOT as a whole") && text.contains("not calibrated"), "{text}");
    assert!(scene.run_exactly("in.onnx out.onnx --ratio 1.5 --check -q").status.success());
    let json = scene.succeeds("in.onnx o.onnx --ratio 1.5 --json - -q");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let parts = &json["verification"]["parts"];
    assert!(parts["checked"].as_u64().unwrap() > 2 && parts["unchecked"].as_array().unwrap().is_empty(), "{parts}");
    assert!(json["verification"]["rewrite_error"].as_f64().unwrap() < 1e-5, "{json}");
    for (asked, words) in [
        ("--ratio 1.5 --calib drawn --calib-samples 32", "tract cannot run"),
        ("--ratio 1.5 --min-snr 3", "--min-snr was not measured"),
        ("--ratio 1.5 --min-agreement 0.5", "--min-agreement was not measured"),
        ("--max-drop 5% --calib drawn", "tract cannot run"),
    ] {
        let message = scene.fails(&format!("in.onnx no.onnx {asked}"), 7);
        assert!(message.contains("NoSuchOperator") && message.contains(words), "{message}");
    }
    assert_eq!(scene.files(), ["in.onnx", "o.onnx", "out.onnx"]);
    assert!(scene.run("in.onnx out.onnx --ratio 1.5 --no-verify -q").status.success());
}

#[test]
fn a_model_that_reads_no_pictures_is_decomposed_by_its_weights_unless_samples_are_asked_for() {
    let mut b = ModelBuilder::new(&[1, 24], 3);
    let weight = b.tensor("w", &[24, 32], 0.2);
    b.node("MatMul", &["image", &weight], "y", vec![]);
    let scene = Scene::new(&b.build(&["y"]));
    let run = scene.run_exactly("in.onnx out.onnx --ratio 1.5");
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success() && text.contains("not calibrated") && text.contains("is not an image"), "{text}");
    assert!(scene.run_exactly("in.onnx out.onnx --ratio 1.5 --check -q").status.success());
    assert!(scene.fails("in.onnx out.onnx --ratio 1.5 --calib drawn", 2).contains("is not an image"));
}

#[test]
fn an_open_input_shape_is_asked_for() {
    let mut b = ModelBuilder::new(&[0, 8, 0, 0], 3);
    let mut x = "image".to_owned();
    for _ in 0..3 {
        let y = b.conv(&x, &ConvSpec::new(8, 3));
        x = b.add(&y, &x);
    }
    let scene = Scene::new(&b.build(&[&x]));
    assert!(scene.fails("in.onnx out.onnx --ratio 1.5", 2).contains("--input-shape image:"));
    assert!(scene.run("in.onnx out.onnx --ratio 1.5 -q --input-shape image:1,8,12,12").status.success());
}

#[test]
fn gates_that_are_not_met_write_nothing() {
    let scene = Scene::new(&small_resnet(3));
    assert!(scene.fails("in.onnx out.onnx --ratio 2 --min-snr 200", 8).contains("dB"));
    assert_eq!(scene.files(), ["in.onnx"]);
    let message = scene.fails("in.onnx out.onnx --ratio 6 --min-agreement 1 --verify-inputs 40", 8);
    assert!(message.contains("agreement"), "{message}");
    assert_eq!(scene.files(), ["in.onnx"]);
    assert!(scene.run("in.onnx out.onnx --ratio 2 -q --min-snr -100 --min-agreement 0").status.success());
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let scene = Scene::new(&small_resnet(2));
    std::fs::create_dir(scene.path("folder")).unwrap();
    let long = "long".repeat(80);
    for output in ["nowhere/out.onnx", "in.onnx/out.onnx", "folder", "new/", &long] {
        let refused = scene.run(&format!("in.onnx {output} --ratio 1.5"));
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(9), "{message}");
        // Before any work.
        assert!(message.contains(output) && message.lines().count() == 1, "{message}");
    }
    assert_eq!(scene.files(), ["folder", "in.onnx"]);
}

#[test]
fn an_existing_output_is_replaced_whole() {
    let scene = Scene::new(&small_resnet(2));
    std::fs::write(scene.path("out.onnx"), vec![7; 1_000_000]).unwrap();
    assert!(scene.run("in.onnx out.onnx --ratio 1.5 -q").status.success());
    assert!(Model::open(scene.path("out.onnx")).is_ok());
    assert_eq!(scene.files(), ["in.onnx", "out.onnx"]);
}

#[test]
fn the_trained_fixture_keeps_its_accuracy_at_a_small_ratio() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    let images = fixture("fashion-test-images.npy");
    let labels = fixture("fashion-test-labels.npy");
    let output = scene.run(&format!("in.onnx out.onnx --ratio 2 --images {images} --labels {labels} -q --json -"));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let score = &report["score"];
    // Measured once with ONNX Runtime by tools/train_fixture.py.
    assert_eq!(score["top1_before"].as_f64(), Some(0.9265));
    assert!(score["top1_after"].as_f64().unwrap() > 0.91, "{score}");
    let wrong = scene.fails(&format!("in.onnx o.onnx --ratio 2 --images {images} --labels {images}"), 2);
    assert!(wrong.contains("fashion-test-images.npy"), "{wrong}");
}

#[test]
fn the_readme_shows_what_its_first_command_prints() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let command = readme.split("cargo run --release -- ").nth(1).unwrap().split("```").next().unwrap();
    let scene = Scene::new(&[]);
    let arguments = command.replace('\\', " ").replace("fixtures/", &fixture(""));
    let output = scene.run_exactly(&arguments);
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    // Digits and what depends on them differ between processors, the lines do not.
    let shape = |line: &str| -> String {
        let bare = line.chars().filter(|c| !c.is_ascii_digit() && !" .–-+".contains(*c));
        bare.collect()
    };
    let known: Vec<String> = readme.lines().map(shape).collect();
    let (groups, others): (Vec<&str>, Vec<&str>) =
        printed.lines().partition(|l| l.starts_with("  g") || l.starts_with("    /"));
    assert!(groups.len() > 5);
    for line in others {
        assert!(known.contains(&shape(line)), "the README lacks: {line}");
    }
    let top1 = printed.lines().find(|l| l.contains("top-1") && l.contains('→')).unwrap();
    assert!(readme.contains(top1.split('→').next().unwrap()), "{top1}");
}

#[test]
fn without_images_it_draws_its_own() {
    let mut b = ModelBuilder::new(&[1, 3, 24, 24], 3);
    let mut x = b.conv("image", &ConvSpec::new(12, 3));
    for _ in 0..3 {
        let y = b.relu(&x);
        x = b.conv(&y, &ConvSpec::new(12, 3));
    }
    let scene = Scene::new(&b.build(&[&x]));
    let run = |more: &str| {
        let output = scene.run_exactly(&format!("in.onnx out.onnx --ratio 1.5 --calib-samples 12 --timings{more}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), std::fs::read(scene.path("out.onnx")).unwrap())
    };
    let (text, bytes) = run("");
    assert!(text.contains("Calibrated on 12 samples: drawn pictures") && text.contains("repairing"), "{text}");
    assert!(run(" --calib drawn --threads 1").1 == bytes);
    assert!(run(" --no-repair").1 != bytes);
}

#[test]
fn an_input_that_is_no_image_needs_samples() {
    let mut b = ModelBuilder::new(&[1, 7, 24, 24], 3);
    let x = b.conv("image", &ConvSpec::new(12, 3));
    let scene = Scene::new(&b.build(&[&x]));
    let output = scene.run_exactly("in.onnx out.onnx --ratio 1.5 --calib drawn");
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("--calib FILE") && message.contains("[1, 7, 24, 24]"), "{message}");
    assert_eq!(scene.files(), ["in.onnx"]);
}

#[test]
fn the_largest_ratio_within_a_drop_is_found_and_its_curve_told() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    let calib = fixture("fashion-calib-images.npy");
    let asked =
        format!("in.onnx out.onnx --max-drop 10% --scheme separate --no-repair --calib {calib} --calib-samples 64");
    let output = scene.run(&format!("{asked} -q --json -"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let curve = report["agreement_curve"].as_array().unwrap();
    let points: Vec<(f64, f64)> =
        curve.iter().map(|p| (p["ratio"].as_f64().unwrap(), p["kept"].as_f64().unwrap())).collect();
    let found = report["ratio"].as_f64().unwrap();
    assert!(points.len() > 2 && found > 2.0, "{points:?}");
    assert!(points.iter().any(|p| p.0 == found && p.1 >= 0.9) && points.iter().any(|p| p.1 < 0.9), "{points:?}");
    assert!(scene.fails("in.onnx o.onnx --max-drop 1% --calib none", 2).contains("--calib none"));
    assert!(scene.fails("in.onnx o.onnx --max-drop 100% --calib drawn", 2).contains("--max-drop"));
}

#[test]
fn inspect_shows_what_a_model_is_made_of_and_writes_nothing() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    let text = scene.succeeds("inspect in.onnx");
    for heading in ["Model", "Repeated blocks", "Groups", "Largest ratio"] {
        assert!(text.lines().any(|l| l.starts_with(heading)), "{heading} is missing:\n{text}");
    }
    assert_eq!(scene.files(), ["in.onnx"]);
    let json: serde_json::Value = serde_json::from_str(&scene.succeeds("inspect in.onnx --json - -q")).unwrap();
    assert_eq!((&json["inspection_version"], &json["parameters"]), (&1.into(), &799_946.into()));
    assert_eq!(json["groups"].as_array().unwrap().len(), 10);
    // A ratio that is told is one that is reached.
    let reach = json["reach"].as_array().unwrap().iter().find(|r| r["scheme"] == "ljsvd").unwrap();
    let largest = (reach["ratio"].as_f64().unwrap() * 100.0).floor() / 100.0;
    scene.succeeds(&format!("in.onnx out.onnx --ratio {largest} --scheme ljsvd --no-verify -q"));
    let (of, kernels) = ("inspect out.onnx --json - -q", "shared_kernels");
    let shared: serde_json::Value = serde_json::from_str(&scene.succeeds(of)).unwrap();
    assert!(shared[kernels]["readers"].as_u64() > shared[kernels]["kernels"].as_u64(), "{shared}");
    assert!(scene.fails("inspect missing.onnx", 3).contains("missing.onnx"));
    assert!(scene.fails("inspect in.onnx --json in.onnx", 2).contains("is an input"));
    assert!(!scene.fails("inspect in.onnx --ratio 2", 2).is_empty());
}

#[test]
fn verify_compares_any_two_models() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds("in.onnx out.onnx --ratio 1.5 -q");
    let same = scene.succeeds("verify in.onnx in.onnx --max-difference 0");
    assert!(same.contains("SNR ∞ dB") && same.contains("100.00 %"), "{same}");
    let found = scene.succeeds("verify in.onnx out.onnx -q --json - --seed 5 --verify-inputs 7");
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["inputs"], 7);
    assert!(found["parameters"]["ratio"].as_f64().unwrap() >= 1.5);
    let difference = found["largest_difference"].as_f64().unwrap();
    assert!(difference > 1e-4 && difference.is_finite(), "{found}");
    let far = scene.fails("verify in.onnx out.onnx -q --max-difference 1e-9", 8);
    assert!(far.contains("largest difference"), "{far}");
    assert!(scene.fails("verify in.onnx out.onnx -q --min-snr 200", 8).contains("dB"));
    let mut b = ModelBuilder::new(&[1, 3, 24, 24], 3);
    let x = b.conv("image", &ConvSpec::new(12, 3));
    std::fs::write(scene.path("other.onnx"), b.build(&[&x])).unwrap();
    let other = scene.fails("verify in.onnx other.onnx", 2);
    assert!(other.contains("[1, 3, 24, 24]") && other.contains("[1, 3, 32, 32]"), "{other}");
    assert!(!scene.fails("verify in.onnx", 2).is_empty());
}

#[test]
fn verify_pairs_by_name_and_sees_what_is_no_number() {
    // a + 2·b, with its inputs declared in either order; and the same times infinity.
    let model = |order: [&str; 2], scale: f32| {
        let mut b = ModelBuilder::new(&[1, 4], 3);
        b.graph.input = order.iter().map(|name| value(name, &[1, 4])).collect();
        let (two, scale) = (b.store("two", &[1], vec![2.0]), b.store("scale", &[1], vec![scale]));
        let doubled = b.node("Mul", &["b", &two], "doubled", vec![]);
        let sum = b.node("Add", &["a", &doubled], "sum", vec![]);
        let y = b.node("Mul", &[&sum, &scale], "y", vec![]);
        b.build(&[&y])
    };
    let scene = Scene::new(&model(["a", "b"], 1.0));
    std::fs::write(scene.path("other.onnx"), model(["b", "a"], 1.0)).unwrap();
    scene.succeeds("verify in.onnx other.onnx --max-difference 0");
    std::fs::write(scene.path("broken.onnx"), model(["a", "b"], f32::INFINITY)).unwrap();
    let message = scene.fails("verify in.onnx broken.onnx -q --min-snr 1", 8);
    assert!(message.contains("finite in one and not in the other"), "{message}");
    // What was found is told all the same.
    let output = scene.run("verify in.onnx broken.onnx -q --json - --max-difference 1");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &found["approximation"]["broken"]), (Some(8), &16.into()));
}

#[test]
fn verify_refuses_what_tells_nothing() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    few_images(&scene, 3);
    // Scores that are no numbers are of no class, and equal to nothing.
    let nothing = (0..3 * 28 * 28).flat_map(|_| 3e38f32.to_le_bytes()).collect::<Vec<u8>>();
    std::fs::write(scene.path("huge.npy"), npy("<f4", &[3, 1, 28, 28], &nothing)).unwrap();
    let message = scene.fails("verify in.onnx in.onnx --images huge.npy -q", 2);
    assert!(message.contains("no value is a finite number"), "{message}");
    let message = scene.fails("in.onnx out.onnx --ratio 2 --images huge.npy -q", 2);
    assert!(message.contains("of image 0") && message.contains("NaN"), "{message}");
    // Two of three images are of no class, and so not of an equal one.
    let mixed =
        (0..3 * 28 * 28).flat_map(|at| if at < 28 * 28 { 1f32 } else { 3e38 }.to_le_bytes()).collect::<Vec<u8>>();
    std::fs::write(scene.path("mixed.npy"), npy("<f4", &[3, 1, 28, 28], &mixed)).unwrap();
    let message = scene.fails("verify in.onnx in.onnx --images mixed.npy --min-agreement 0.5 -q", 8);
    assert!(message.contains("0.3333"), "{message}");
    std::fs::write(scene.path("labels.npy"), npy("|u1", &[3], &[1, 10, 2])).unwrap();
    for command in ["verify in.onnx in.onnx", "in.onnx out.onnx --ratio 2"] {
        let message = scene.fails(&format!("{command} --images images.npy --labels labels.npy -q"), 2);
        assert!(message.contains("says 10 of image 1") && message.contains("0 to 9"), "{message}");
    }
}

#[test]
fn pads_that_follow_from_the_size_are_the_same_said_aloud() {
    // tract moves the stride of the second before the first, and took the pads of the shorter rows for those of all.
    let model = |first: ConvSpec| {
        let mut b = ModelBuilder::new(&[1, 8, 12, 9], 5);
        let x = b.named_conv("image", "x", &first);
        let x = b.relu(&x);
        let y = b.named_conv(&x, "y", &ConvSpec { pads: [0; 4], ..ConvSpec::new(8, 1).stride(2) });
        b.build(&[&y])
    };
    let scene = Scene::new(&model(ConvSpec { auto_pad: Some("SAME_UPPER"), ..ConvSpec::new(8, 3) }));
    std::fs::write(scene.path("said.onnx"), model(ConvSpec { pads: [1; 4], ..ConvSpec::new(8, 3) })).unwrap();
    scene.succeeds("verify in.onnx said.onnx --max-difference 1e-6");
    // With a stride of its own they follow from the size: 12 rows become 6 and need 1 more, 9 columns become 5 and need 2.
    let strided = |auto_pad, pads| model(ConvSpec { auto_pad, pads, ..ConvSpec::new(8, 3).stride(2) });
    for (mode, pads) in [("SAME_UPPER", [0, 1, 1, 1]), ("SAME_LOWER", [1, 1, 0, 1])] {
        std::fs::write(scene.path("open.onnx"), strided(Some(mode), [0; 4])).unwrap();
        std::fs::write(scene.path("closed.onnx"), strided(None, pads)).unwrap();
        scene.succeeds("verify open.onnx closed.onnx --max-difference 1e-6");
    }
    scene.succeeds("in.onnx out.onnx --ratio 1.2 -q");
    scene.succeeds("said.onnx other.onnx --ratio 1.2 -q");
    scene.succeeds("verify out.onnx other.onnx --max-difference 1e-6");
}

#[test]
fn a_normalisation_of_what_is_no_image_is_not_run() {
    // tract reads beyond the end of such a shape.
    let mut b = ModelBuilder::new(&[1, 8, 9, 9], 5);
    let x = b.conv("image", &ConvSpec::new(16, 3));
    let y = b.batch_norm(&x);
    let z = b.relu(&y);
    let mut model = b.build_proto(&[&z]);
    let norm = model.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type() == "BatchNormalization").unwrap();
    norm.input[0] = norm.input[1].clone();
    model.graph.as_mut().unwrap().output.push(value(&x, &[1, 16, 9, 9]));
    let scene = Scene::new(&prost::Message::encode_to_vec(&model));
    let told = scene.succeeds("in.onnx out.onnx --ratio 1.3");
    assert!(told.contains("of 1 axes, which is no image"), "{told}");
}

#[test]
fn transposed_convolutions_are_run_with_the_pads_that_follow() {
    let text = |name: &str, value: &str| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(value.as_bytes().to_vec()),
        ..AttributeProto::default()
    };
    let model = |attributes: Vec<AttributeProto>, dims: &[i64]| {
        let mut b = ModelBuilder::new(dims, 5);
        // Of rank one, so that factors lose nothing.
        let wave = |at: usize| 0.3 + ((at * 7) % 5) as f32;
        let values = (0..16 * 16 * 9).map(|i| wave(i / 144) * wave(i / 9 % 16 + 1) * wave(i % 9 + 2) / 60.0).collect();
        let weight = b.store("w", &[16, 16, 3, 3], values);
        let bias = b.tensor("b", &[16], 0.5);
        let attributes = attributes.into_iter().chain([ints("strides", &[2, 2])]).collect();
        b.node("ConvTranspose", &["image", &weight, &bias], "y", attributes);
        b.build(&["y"])
    };
    let fixed = [1, 16, 7, 9];
    let (before, after) = (ints("pads", &[1, 1, 0, 0]), ints("pads", &[0, 0, 1, 1]));
    for (open, closed) in [
        (vec![text("auto_pad", "SAME_UPPER")], vec![after]),
        (vec![text("auto_pad", "SAME_LOWER")], vec![before.clone()]),
        (
            vec![text("auto_pad", "SAME_UPPER"), ints("output_padding", &[1, 1])],
            vec![ints("pads", &[1; 4]), ints("output_padding", &[1, 1])],
        ),
        (vec![ints("output_shape", &[14, 18])], vec![before]),
    ] {
        let scene = Scene::new(&model(open.clone(), &fixed));
        std::fs::write(scene.path("said.onnx"), model(closed, &fixed)).unwrap();
        scene.succeeds("verify in.onnx said.onnx --max-difference 1e-6");
        scene.succeeds("in.onnx out.onnx --ratio 1.2 -q");
        scene.succeeds("verify out.onnx said.onnx --max-difference 1e-5");
        // Pads of a size that is given for a run alone are not those of the next.
        let stated = open.iter().any(|a| a.name() == "output_shape");
        std::fs::write(scene.path("open.onnx"), model(open, &[1, 16, 0, 0])).unwrap();
        let any = "open.onnx any.onnx --ratio 1.2 --input-shape image:1,16,7,9 -q";
        if stated {
            scene.fails(any, 4);
        } else {
            scene.succeeds(any);
        }
    }
}

#[test]
fn shapes_are_held_against_both_models_and_every_input() {
    let model = |dims: &[i64]| {
        let mut b = ModelBuilder::new(dims, 3);
        let x = b.conv("image", &ConvSpec::new(12, 3));
        b.build(&[&x])
    };
    let scene = Scene::new(&model(&[1, 3, 0, 0]));
    std::fs::write(scene.path("fixed.onnx"), model(&[1, 3, 64, 64])).unwrap();
    for order in ["in.onnx fixed.onnx", "fixed.onnx in.onnx"] {
        let message = scene.fails(&format!("verify {order} --input-shape 1,3,32,32 -q"), 2);
        assert!(message.contains("the model says [1, 3, 64, 64]"), "{message}");
    }
    let mut two = ModelBuilder::new(&[1, 3, 24, 24], 3);
    two.graph.input.push(value("other", &[1, 12, 24, 24]));
    let x = two.conv("image", &ConvSpec::new(12, 3));
    let y = two.node("Add", &[&x, "other"], "y", vec![]);
    std::fs::write(scene.path("two.onnx"), two.build(&[&y])).unwrap();
    let message = scene.fails("verify two.onnx two.onnx --input-shape 1,3,24,24 -q", 2);
    assert!(message.contains("names no input") && message.contains("image, other"), "{message}");
}

#[test]
fn check_writes_nothing_and_needs_no_place_to_write() {
    let scene = Scene::new(&small_resnet(2));
    assert!(scene.fails("in.onnx nowhere/out.onnx --ratio 1.5 --check -q", 12).contains("not there"));
    let message = scene.fails("in.onnx ./in.onnx --ratio 1.5 --check -q", 2);
    assert!(message.contains("is the input"), "{message}");
}

#[test]
fn reports_go_to_files_and_not_over_standard_output() {
    let scene = Scene::new(&small_resnet(2));
    for option in ["--plan-out", "--report"] {
        let message = scene.fails(&format!("in.onnx out.onnx --ratio 1.5 {option} - -q"), 2);
        assert!(message.contains(option) && message.contains("name of a file"), "{message}");
    }
    #[cfg(target_os = "linux")]
    {
        let into = std::fs::File::create(scene.path("model.onnx")).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-jmd"));
        command.current_dir(scene.folder.path()).args(["in.onnx", "-", "--ratio", "1.5", "--calib", "none", "-q"]);
        let output = command.args(["--plan-out", "/dev/stdout"]).stdout(into).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("standard output"), "{said}");
    }
}

#[test]
fn tables_that_nobody_reads_to_the_end_are_no_failure() {
    use std::process::{Command, Stdio};
    let scene = Scene::new(&small_resnet(2));
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-jmd"));
    command.current_dir(scene.folder.path()).args(["in.onnx", "out.onnx", "--ratio", "1.5", "--calib", "none"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(Model::open(scene.path("out.onnx")).is_ok());
}

#[test]
fn nothing_that_is_read_is_written_to() {
    let scene = Scene::new(&small_resnet(2));
    let images = std::fs::read(fixture("fashion-calib-images.npy")).unwrap();
    std::fs::write(scene.path("i.npy"), &images).unwrap();
    for arguments in [
        "in.onnx out.onnx --ratio 1.5 --calib i.npy --report i.npy",
        "in.onnx out.onnx --ratio 1.5 --images i.npy --json ./i.npy",
        "in.onnx out.onnx --ratio 1.5 --images i.npy --plan-out i.npy",
        "verify in.onnx in.onnx --images i.npy --json i.npy",
        "in.onnx out.onnx --ratio 1.5 --plan-out ./out.onnx",
        "in.onnx out.onnx --ratio 1.5 --retrained",
    ] {
        scene.fails(arguments, 2);
    }
    assert_eq!(scene.files(), ["i.npy", "in.onnx"]);
    assert!(scene.read("i.npy") == images);
}

#[test]
fn verify_on_images_gives_what_scoring_gives() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    few_images(&scene, 300);
    let images = "--images images.npy --labels labels.npy";
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let scored = json(scene.succeeds(&format!("in.onnx out.onnx --ratio 8 -q --json - {images}")));
    let compared = json(scene.succeeds(&format!("verify in.onnx out.onnx -q --json - {images}")));
    assert_eq!(compared["inputs"], 300);
    assert_eq!(compared["approximation"]["agreement"], scored["score"]["agreement"]);
    assert_eq!(compared["top1"][0], scored["score"]["top1_before"]);
    assert_eq!(compared["top1"][1], scored["score"]["top1_after"]);
}

/// What one half of bash's script calls a command the other half knows, zsh offers commands where models may stand, and fish options
/// behind models.
#[test]
fn completions_find_commands_and_their_options() {
    let scene = Scene::new(&[]);
    let bash = scene.succeeds("completions bash");
    for command in ["inspect", "verify", "tune", "zoo", "completions", "man"] {
        let set = format!("cmd=\"onnx__jmd__subcmd__{command}\"");
        let case = format!("        onnx__jmd__subcmd__{command})");
        assert!(bash.contains(&set) && bash.contains(&case), "{command}");
    }
    let zsh = scene.succeeds("completions zsh");
    assert!(zsh.contains("(inspect|verify|tune|zoo|completions|man)") && zsh.contains("_onnx-jmd_first() {"));
    assert!(zsh.lines().any(|line| line.starts_with("':input -- ") && line.contains(":_onnx-jmd_first'")));
    let fish = scene.succeeds("completions fish");
    let of_program = fish.lines().find(|line| line.contains("-l ratio ")).unwrap();
    assert!(of_program.contains("not __fish_onnx_jmd_using_subcommand inspect verify"), "{of_program}");
}

#[test]
fn shells_and_the_manual_know_every_option() {
    let scene = Scene::new(&[]);
    for text in ["completions bash", "completions zsh", "completions fish", "man"] {
        let output = scene.run_exactly(text);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && ["plan", "retrained"].iter().all(|o| text.contains(o)), "{text}");
        assert!(text.contains("inspect") && text.contains("verify"));
    }
    assert!(!scene.fails("completions tcl --calib none", 2).is_empty());
}

#[test]
fn help_and_readme_list_the_exit_codes_that_there_are() {
    let read = |name: &str| std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let leading = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u8>().ok());
    // As they stand in the function, beside success.
    let source = read("src/error.rs");
    let arms = source.split("fn exit_code").nth(1).unwrap().lines();
    let mut there: Vec<u8> = arms.filter_map(|l| leading(l.split(" => ").nth(1)?)).chain([0]).collect();
    for bound in ["src/cli/memory.rs", "src/cli/time.rs"] {
        there.extend(read(bound).split("EXIT_CODE: i32 = ").nth(1).and_then(leading));
    }
    there.sort_unstable();
    there.dedup();
    let help = String::from_utf8(Scene::new(&[]).run("--help").stdout).unwrap();
    let listed = help.split("Exit codes:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let listed: Vec<u8> = listed.lines().filter_map(|l| leading(l.strip_prefix("  ")?)).collect();
    assert_eq!(listed, there);
    let readme = read("README.md");
    let table = readme.split("| exit code |").nth(1).unwrap().split("\n\n").next().unwrap();
    let table: Vec<u8> = table.lines().filter_map(|l| leading(l.strip_prefix("| ")?)).collect();
    assert_eq!(table, there);
}
