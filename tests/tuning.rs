//! Tuning from the command line: what it keeps, what it refuses, and what an interrupt leaves behind.

mod support;

use onnx_jmd::Model;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::scene::{Scene, fixture, npy};
use support::{ConvSpec, ModelBuilder, ints, small_resnet};

/// A small network, the same at a ratio by its plain weights, and 60 images.
fn scene() -> Scene {
    let scene = Scene::new(&small_resnet(3));
    let pixels: Vec<u8> = (0..60 * 3 * 32 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(scene.path("images.npy"), npy("|u1", &[60, 3, 32, 32], &pixels)).unwrap();
    scene.succeeds("in.onnx small.onnx --ratio 2 --scheme ljsvd --calib none -q");
    scene
}

const TUNE: &str = "tune small.onnx out.onnx --teacher in.onnx --calib images.npy --preprocess 0-1";

fn report(scene: &Scene, arguments: &str) -> serde_json::Value {
    serde_json::from_str(&scene.succeeds(&format!("{arguments} -q --json -"))).unwrap()
}

#[test]
fn a_compressed_model_comes_nearer_to_its_teacher_and_stays_as_small() {
    let scene = scene();
    let before = report(&scene, "verify in.onnx small.onnx --images images.npy --preprocess 0-1");
    let found = report(&scene, &format!("{TUNE} --tune 8epochs --batch 8 --tune-rate 0.02"));
    let after = report(&scene, "verify in.onnx out.onnx --images images.npy --preprocess 0-1");
    let error = |report: &serde_json::Value| report["approximation"]["relative_error"].as_f64().unwrap();
    assert!(error(&after) < 0.5 * error(&before), "{} {}", error(&before), error(&after));
    assert!(found["tuning"]["kept"].as_u64().unwrap() > 0);
    assert!(found["verification"]["rewrite_error"].as_f64().unwrap() < 1e-4);
    // What was shared is shared still, and only what the teacher does not have has moved.
    let [teacher, small, out] = ["in.onnx", "small.onnx", "out.onnx"].map(|n| Model::open(scene.path(n)).unwrap());
    assert_eq!(out.parameters(), small.parameters());
    let tensors = |model: &Model| {
        let graph = support::decode(&model.to_bytes()).graph.unwrap();
        graph.initializer.into_iter().map(|t| (t.name().to_owned(), t)).collect::<std::collections::BTreeMap<_, _>>()
    };
    let (teacher, small, out) = (tensors(&teacher), tensors(&small), tensors(&out));
    assert!(out.keys().eq(small.keys()));
    let moved: Vec<&String> = out.iter().filter(|(name, t)| small[*name] != **t).map(|(name, _)| name).collect();
    assert!(!moved.is_empty() && moved.iter().all(|name| !teacher.contains_key(*name)), "{moved:?}");
}

#[test]
fn passes_give_the_same_bytes_on_any_number_of_threads_and_after_an_interruption() {
    let scene = scene();
    let run = |out: &str, more: &str| {
        let tune = TUNE.replace("out.onnx", out);
        scene.succeeds(&format!("{tune} --tune 3epochs --batch 8 -q {more}"));
        scene.read(out)
    };
    let once = run("a.onnx", "--threads 1");
    assert!(once == run("b.onnx", "--threads 3"));
    assert!(once != run("c.onnx", "--seed 5"));
    // The state is that after the last look: going on from it leaves nothing to do.
    assert!(once == run("d.onnx", "--resume state"));
    let said = scene.run(&format!("{TUNE} --tune 3epochs --batch 8 --resume state"));
    assert!(String::from_utf8_lossy(&said.stderr).contains("going on after step"));
    assert!(once == scene.read("out.onnx"));
    // It is of this run alone.
    let refused = scene.fails(&format!("{TUNE} --tune 3epochs --batch 4 --resume state"), 14);
    assert!(refused.contains("state") && refused.contains("another run"), "{refused}");
    let mut damaged = scene.read("state");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 64;
    for bytes in [&damaged, &b"no state".to_vec()] {
        std::fs::write(scene.path("state"), bytes).unwrap();
        let refused = scene.fails(&format!("{TUNE} --tune 3epochs --batch 8 --resume state"), 14);
        assert!(refused.contains("damaged"), "{refused}");
    }
}

#[test]
fn compression_and_tuning_in_one_run() {
    let scene = Scene::new(&small_resnet(3));
    let pixels: Vec<u8> = (0..60 * 3 * 32 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(scene.path("images.npy"), npy("|u1", &[60, 3, 32, 32], &pixels)).unwrap();
    let arguments = "in.onnx out.onnx --ratio 2 --calib images.npy --preprocess 0-1";
    let untuned = report(&scene, arguments);
    let tuned = report(&scene, &format!("{arguments} --tune 4epochs --batch 8 --report page.html"));
    assert!(scene.text("page.html").contains("<h2>Tuning</h2>"));
    assert!(untuned["tuning"].is_null());
    let curve = tuned["tuning"]["curve"].as_array().unwrap();
    let kept = &curve[tuned["tuning"]["kept"].as_u64().unwrap() as usize];
    assert!(kept["held_out_loss"].as_f64().unwrap() <= curve[0]["held_out_loss"].as_f64().unwrap());
    assert_eq!(tuned["tuning"]["held_out"], 6);
    assert_eq!(tuned["calibration"]["samples"], 54);
    assert_eq!(tuned["totals"]["parameters"]["after"], untuned["totals"]["parameters"]["after"]);
    // The output says what it was made from: tuning is a part of it.
    scene.succeeds(&format!("{arguments} --tune 4epochs --batch 8 --check -q"));
    scene.fails(&format!("{arguments} --tune 5epochs --batch 8 --check"), 12);
    scene.fails(&format!("{arguments} --check"), 12);
    // So are the images that only judged it, wherever they stand.
    let elsewhere = arguments.replace("images.npy", "others.npy");
    let mut others = pixels;
    for (changed, code) in [(false, 0), (true, 12)] {
        let last = others.last_mut().unwrap();
        *last ^= u8::from(changed);
        std::fs::write(scene.path("others.npy"), npy("|u1", &[60, 3, 32, 32], &others)).unwrap();
        let done = scene.run(&format!("{elsewhere} --tune 4epochs --batch 8 --check"));
        assert_eq!(done.status.code(), Some(code));
    }
}

#[test]
fn a_high_ratio_is_gone_down_to_in_steps() {
    let scene = Scene::new(&small_resnet(3));
    let pixels: Vec<u8> = (0..60 * 3 * 32 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(scene.path("images.npy"), npy("|u1", &[60, 3, 32, 32], &pixels)).unwrap();
    let arguments = "--ratio 3 --scheme ljsvd --calib images.npy --preprocess 0-1 --tune 2epochs --batch 8";
    let at_once = report(&scene, &format!("in.onnx once.onnx {arguments}"));
    let in_steps = report(&scene, &format!("in.onnx steps.onnx {arguments} --tune-steps 2"));
    assert!(at_once["tuning"]["earlier"].is_null());
    let earlier = in_steps["tuning"]["earlier"].as_array().unwrap();
    assert_eq!(earlier.len(), 1);
    assert!((earlier[0]["ratio"].as_f64().unwrap() - 3f64.sqrt()).abs() < 1e-12);
    assert!((earlier[0]["epochs"].as_f64().unwrap() - 1.0).abs() < 0.2, "{earlier:?}");
    assert!(in_steps["verification"]["rewrite_error"].as_f64().unwrap() < 1e-4);
    // Sizes and ratios are those of the model that was given, whose batch norms are folded on the way.
    assert_eq!(in_steps["totals"]["parameters"]["before"], at_once["totals"]["parameters"]["before"]);
    assert_eq!(in_steps["ratio"], 3.0);
    let reached = in_steps["totals"]["parameters"]["ratio"].as_f64().unwrap();
    assert!((3.0..3.4).contains(&reached), "{reached}");
    // The file is one that a single step could have written, by names and by what it says of itself.
    let [once, steps] = ["once.onnx", "steps.onnx"].map(|name| support::decode(&scene.read(name)));
    let says = |model: &support::proto::ModelProto| -> Vec<(String, String)> {
        let ours =
            model.metadata_props.iter().filter(|p| !p.key().ends_with("options") && !p.key().ends_with("output"));
        ours.map(|p| (p.key().to_owned(), p.value().to_owned())).collect()
    };
    assert_eq!(says(&once), says(&steps));
    let names = |model: &support::proto::ModelProto| -> Vec<String> {
        model.graph.iter().flat_map(|g| &g.initializer).map(|t| t.name().to_owned()).collect()
    };
    assert_eq!(names(&once), names(&steps));
    // It follows from the options, this one among them, and is the same from its checkpoints.
    scene.succeeds(&format!("in.onnx steps.onnx {arguments} --tune-steps 2 --check -q"));
    scene.fails(&format!("in.onnx steps.onnx {arguments} --check"), 12);
    for _ in 0..2 {
        scene.succeeds(&format!("in.onnx again.onnx {arguments} --tune-steps 2 --resume state -q"));
        assert!(scene.read("again.onnx") == scene.read("steps.onnx"));
    }
    assert!(scene.path("state").exists() && scene.path("state.1").exists());
    for (wrong, says) in [
        ("--ratio 3 --tune-steps 2", "--tune-steps needs --tune"),
        ("--rank-rate 0.3 --scheme ljsvd --tune 1epochs --tune-steps 2", "--ratio"),
        ("--ratio 3 --tune 1epochs --tune-steps 2 --dry-run", "--ratio"),
    ] {
        let said = scene.fails(&format!("in.onnx out.onnx {wrong} -q"), 2);
        assert!(said.contains(says), "{said}");
    }
}

/// Unnamed nodes, one bias that two convolutions read, biases that are constant nodes or one number for all, fully connected layers
/// of a version in which they need a bias, and initializers that are inputs.
#[test]
fn steps_of_models_as_old_exporters_write_them() {
    let mut net = ModelBuilder::new(&[1, 3, 16, 16], 5);
    (net.ir_version, net.opset) = (3, 9);
    let window =
        |stride: usize| vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4]), ints("strides", &[stride, stride])];
    let bias = net.tensor("bias", &[24], 0.1);
    let mut x = "image".to_owned();
    for (at, inputs) in [3, 24, 24].into_iter().enumerate() {
        let kernel = net.tensor(&format!("kernel{at}"), &[24, inputs, 3, 3], 0.1);
        let y = net.node("Conv", &[&x, &kernel, &bias], &format!("conv{at}"), window(1 + at % 2));
        x = net.node("Relu", &[&y], &format!("relu{at}"), vec![]);
    }
    let small = vec![ints("kernel_shape", &[4, 4]), ints("strides", &[4, 4])];
    let x = net.node("AveragePool", &[&x], "small", small);
    let flat = net.node("Flatten", &[&x], "flat", vec![]);
    let hidden = net.tensor("hidden", &[24 * 4, 40], 0.1);
    let one = net.tensor("one", &[1], 0.1);
    let y = net.node("Gemm", &[&flat, &hidden, &one], "fc1", vec![]);
    let y = net.node("Relu", &[&y], "relu3", vec![]);
    let last = net.tensor("last", &[40, 6], 0.2);
    let zero = net.tensor("zero", &[6], 0.1);
    let y = net.node("Gemm", &[&y, &last, &zero], "scores", vec![]);
    let mut model = net.build_proto(&[&y]);
    model.graph.iter_mut().flat_map(|g| &mut g.node).for_each(|n| n.name = None);
    let scene = Scene::new(&prost::Message::encode_to_vec(&model));
    let pixels: Vec<u8> = (0..60 * 3 * 16 * 16u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(scene.path("images.npy"), npy("|u1", &[60, 3, 16, 16], &pixels)).unwrap();
    for calib in ["images.npy", "none"] {
        let drawn = if calib == "none" { "--tune-drawn 60" } else { "" };
        let arguments = format!(
            "in.onnx out.onnx --ratio 3 --calib {calib} --preprocess 0-1 --tune 2epochs --tune-steps 2 {drawn}"
        );
        let found = report(&scene, &arguments);
        assert_eq!(found["tuning"]["earlier"].as_array().unwrap().len(), 1);
        assert!(found["verification"]["rewrite_error"].as_f64().unwrap() < 1e-4);
        let out = support::decode(&scene.read("out.onnx")).graph.unwrap();
        assert!(out.node.iter().any(|n| n.name() == "Conv(conv1)/jmd_first"), "{:?}", out.node);
        // What stands for no bias says nothing still.
        let zeros = out.initializer.iter().filter(|t| t.name().ends_with("jmd_zero"));
        assert!(zeros.clone().count() > 0 && zeros.clone().all(|t| t.raw_data().iter().all(|&b| b == 0)));
        let known: Vec<&str> = out.input.iter().map(|i| i.name()).collect();
        assert!(out.initializer.iter().all(|t| known.contains(&t.name())), "{known:?}");
    }
}

#[test]
fn what_cannot_be_tuned_is_refused_in_a_sentence() {
    let scene = scene();
    let fails = |arguments: &str, code: i32, says: &[&str]| {
        let said = scene.fails(arguments, code);
        assert!(says.iter().all(|part| said.contains(part)), "{arguments}: {said}");
        assert!(!scene.path("out.onnx").exists());
    };
    let quiet = format!("{TUNE} -q");
    // Said by clap, with usage.
    scene.fails(&format!("{quiet} --tune 0s"), 2);
    scene.fails(&format!("{quiet} --tune 5"), 2);
    fails(&format!("{quiet} --tune-rate 0"), 2, &["--tune-rate"]);
    fails(&format!("{quiet} --tune-shift 2"), 2, &["--tune-shift"]);
    fails(&quiet.replace("small.onnx", "in.onnx"), 14, &["weights", "--tune-all"]);
    // Another teacher.
    let mut other = ModelBuilder::new(&[1, 3, 32, 32], 3);
    let y = other.conv("image", &ConvSpec::new(4, 3));
    std::fs::write(scene.path("other.onnx"), other.build(&[&y])).unwrap();
    fails(&quiet.replace("--teacher in.onnx", "--teacher other.onnx"), 14, &["teacher", "is it the right teacher?"]);
    let mut other = ModelBuilder::new(&[1, 3, 16, 16], 3);
    let y = other.conv("image", &ConvSpec::new(4, 3));
    std::fs::write(scene.path("other.onnx"), other.build(&[&y])).unwrap();
    fails(&quiet.replace("--teacher in.onnx", "--teacher other.onnx"), 14, &["reads", "is it the right teacher?"]);
    // Few images.
    std::fs::write(scene.path("few.npy"), npy("|u1", &[9, 3, 32, 32], &vec![7; 9 * 3 * 32 * 32])).unwrap();
    fails(&quiet.replace("images.npy", "few.npy"), 14, &["too few", "at least 20"]);
    fails("in.onnx out.onnx --ratio 2 --batch 8 -q", 2, &["--batch needs --tune"]);
    fails("in.onnx out.onnx --ratio 2 --tune 1epochs --no-verify -q", 2, &["--no-verify"]);
}

#[test]
fn if_it_does_not_help_the_model_is_as_it_was_bit_for_bit() {
    let scene = scene();
    // At a rate at which nothing is learned.
    let said = scene.succeeds(&format!("{TUNE} --tune 2epochs --batch 8 --tune-rate 1"));
    assert!(said.contains("tuning did not help"), "{said}");
    assert!(scene.read("out.onnx") == scene.read("small.onnx"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_it_with_the_best_so_far() {
    let scene = scene();
    let mut child = Command::new(env!("CARGO_BIN_EXE_onnx-jmd"))
        .args(TUNE.split(' '))
        .args(["--tune", "3m", "--batch", "4"])
        .current_dir(scene.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Once the first look is past.
    let stderr = child.stderr.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    lines.by_ref().map_while(Result::ok).find(|line| line.contains("epoch 1.")).unwrap();
    let asked = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(asked.success());
    let begun = Instant::now();
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!(output.status.success(), "{said:?}");
    assert!(said.iter().any(|line| line.contains("the best model so far")), "{said:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("stopped early"));
    assert!(Model::open(scene.path("out.onnx")).is_ok());
}

#[test]
fn the_models_at_hand_are_computed_as_tract_does() {
    // Building the trainable view compares every value; one pass over few images shows that all of it can be trained.
    let scene = scene();
    let teacher = fixture("fashion-resnet.onnx");
    scene.succeeds(&format!("{teacher} fashion.onnx --ratio 8 --calib none -q"));
    let tune = format!(
        "tune fashion.onnx out.onnx --teacher {teacher} --calib drawn --tune-drawn 30 --tune 1epochs --tune-all"
    );
    let found = report(&scene, &tune);
    assert!(found["verification"]["rewrite_error"].as_f64().unwrap() < 1e-4);
}
