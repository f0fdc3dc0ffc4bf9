//! Calibration end to end: better than plain weights on the trained fixture, deterministic, and refused for images that do
//! not fit.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{ConvSpec, ModelBuilder};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onnx-jmd")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Share of right classes after compressing the fixture as asked.
fn top1(folder: &Path, further: &[&str]) -> f64 {
    let out = folder.join("out.onnx");
    let (model, images, labels) =
        (fixture("fashion-resnet.onnx"), fixture("fashion-test-images.npy"), fixture("fashion-test-labels.npy"));
    let mut arguments = vec![text(&model), text(&out), "--images", text(&images), "--labels", text(&labels)];
    arguments.extend(["--quiet", "--json", "-"]);
    arguments.extend(further);
    let output = run(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["verification"]["rewrite_error"].as_f64().unwrap() < 1e-4);
    let samples = report["calibration"]["samples"].as_u64();
    assert_eq!(samples, further.contains(&"--calib-samples").then_some(60));
    report["score"]["top1_after"].as_f64().unwrap()
}

#[test]
fn what_the_layers_see_keeps_a_network_alive_that_plain_weights_destroy() {
    let folder = tempfile::tempdir().unwrap();
    let calib = fixture("fashion-calib-images.npy");
    let calibrated =
        ["--calib", text(&calib), "--calib-samples", "60", "--ratio", "8", "--scheme", "separate", "--no-mirror"];
    let plain = top1(folder.path(), &["--ratio", "8", "--calib", "none"]);
    let seen = top1(folder.path(), &calibrated);
    assert!(seen > plain + 0.3 && seen > 0.8, "{plain} plain, {seen} calibrated");
}

#[test]
fn calibrated_bytes_do_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let (model, calib) = (fixture("fashion-resnet.onnx"), fixture("fashion-calib-images.npy"));
    let bytes = |threads: &str| {
        let out = folder.path().join(format!("{threads}.onnx"));
        let arguments = [text(&model), text(&out), "--ratio", "1.5", "--scheme", "ljsvd", "--calib", text(&calib)];
        let output =
            run(&[&arguments[..], &["--calib-samples", "12", "--include", "body.1[0-4]/", "--threads", threads, "-q"]]
                .concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(out).unwrap()
    };
    assert!(bytes("1") == bytes("3"));
}

#[test]
fn every_kind_of_convolution_is_seen_as_it_slides() {
    // Strides, dilations, asymmetric pads, SAME, a convolution without bias, one that reads the input itself.
    let mut b = ModelBuilder::new(&[1, 1, 28, 28], 3);
    let spec = ConvSpec { pads: [2, 0, 1, 3], strides: [2, 1], dilations: [1, 2], ..ConvSpec::new(12, 3) };
    let mut x = b.conv("image", &spec);
    x = b.relu(&x);
    for auto_pad in [None, Some("SAME_UPPER"), Some("SAME_LOWER")] {
        let y = b.conv(&x, &ConvSpec { auto_pad, ..ConvSpec::new(12, 3) });
        let y = b.relu(&y);
        let y = b.conv(&y, &ConvSpec::new(12, 3).no_bias());
        x = b.add(&y, &x);
    }
    let y = b.conv(&x, &ConvSpec { auto_pad: Some("SAME_UPPER"), ..ConvSpec::new(12, 5).stride(2) });
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("in.onnx"), folder.path().join("out.onnx"));
    std::fs::write(&model, b.build(&[&y])).unwrap();
    let calib = fixture("fashion-calib-images.npy");
    let quality = |further: &[&str]| {
        let arguments = [text(&model), text(&out), "--ratio", "1.5", "-q", "--json", "-"];
        let output = run(&[&arguments[..], further].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["totals"]["parameters"]["ratio"].as_f64().unwrap() >= 1.5);
        report["verification"]["rewrite_error"].as_f64().unwrap()
    };
    for scheme in ["auto", "separate", "ljsvd", "rjsvd-1", "rjsvd-2", "bi-jsvd"] {
        assert!(quality(&["--scheme", scheme, "--calib", text(&calib), "--calib-samples", "10"]) < 1e-4, "{scheme}");
    }
    for (scheme, unfolding) in [
        ("ljsvd", "filter-bank"),
        ("rjsvd-2", "pointwise-first"),
        ("ljsvd", "tucker"),
        ("rjsvd-1", "tucker"),
        ("bi-jsvd", "tucker"),
        ("nc-ctd", "tucker"),
    ] {
        let cut = ["--scheme", scheme, "--unfolding", unfolding];
        let calibrated = [&cut[..], &["--calib", text(&calib), "--calib-samples", "6"]].concat();
        assert!(quality(&calibrated) < 1e-4, "{scheme} {unfolding}");
        assert!(quality(&[&cut[..], &["--calib", "none"]].concat()) < 1e-4, "{scheme} {unfolding}, plain");
    }
}

#[test]
fn a_cache_changes_nothing_but_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let (model, calib, cache) =
        (fixture("fashion-resnet.onnx"), fixture("fashion-calib-images.npy"), folder.path().join("cache"));
    let made = |ratio: &str, further: &[&str]| {
        let out = folder.path().join("out.onnx");
        let arguments = [text(&model), text(&out), "--ratio", ratio, "--calib", text(&calib), "--calib-samples", "6"];
        let quick = ["--scheme", "ljsvd", "--no-repair", "--include", "body.1[0-4]/"];
        let output = run(&[&arguments[..], &quick[..], further].concat());
        let progress = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{progress}");
        (std::fs::read(out).unwrap(), progress.contains("known from the cache"))
    };
    let kept = ["--cache", text(&cache)];
    let (plain, _) = made("2", &[]);
    assert!(made("1.5", &kept) == (made("1.5", &[]).0, false));
    assert!(made("2", &kept) == (plain.clone(), true));
    let files = || std::fs::read_dir(&cache).unwrap().map(|f| f.unwrap().path());
    assert_eq!(files().count(), 2);
    // Half a file is as good as none, and other images are other names.
    files().for_each(|f| std::fs::write(&f, &std::fs::read(&f).unwrap()[..100]).unwrap());
    assert!(made("2", &kept) == (plain.clone(), false));
    // Nor is one believed in which a byte is another.
    files().for_each(|f| {
        let mut bytes = std::fs::read(&f).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 64;
        std::fs::write(&f, &bytes).unwrap();
    });
    assert!(made("2", &kept) == (plain, false));
    assert!(!made("2", &[&kept[..], &["--no-mirror"]].concat()).1);
    assert_eq!(files().count(), 4);
}

#[test]
fn calibration_images_that_do_not_fit_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("in.onnx"), folder.path().join("out.onnx"));
    std::fs::write(&model, support::small_resnet(2)).unwrap();
    let calib = fixture("fashion-calib-images.npy");
    let output = run(&[text(&model), text(&out), "--ratio", "2", "--calib", text(&calib)]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("[1, 28, 28]") && message.contains("[1, 3, 32, 32]"), "{message}");
    assert!(!out.exists());
}

#[test]
fn too_few_samples_are_refused_with_the_number_that_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("fashion-resnet.onnx"), folder.path().join("out.onnx"));
    let calib = fixture("fashion-calib-images.npy");
    let arguments = [text(&model), text(&out), "--ratio", "2", "--calib", text(&calib), "--calib-samples"];
    let few = |n: &'static str| run(&[&arguments[..], &[n]].concat());
    let output = few("2");
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("864 values") && message.contains("needs 3 samples"), "{message}");
    assert!(!out.exists());
}

#[test]
fn a_ratio_out_of_reach_is_refused_before_the_images_are_run() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("fashion-resnet.onnx"), folder.path().join("out.onnx"));
    let calib = fixture("fashion-calib-images.npy");
    let output = run(&[text(&model), text(&out), "--ratio", "1000", "--calib", text(&calib)]);
    assert_eq!(output.status.code(), Some(5));
    assert!(!String::from_utf8(output.stderr).unwrap().contains("observing"));
}
