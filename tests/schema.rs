//! The JSON of every command is what its schema under `tools/schema` says, and reports of earlier days can still be read.
//!
//! `tests/samples/` holds reports as they were once written. A sample is never changed: where a layout changes so that one does not
//! fit any more, its version has to grow (see `REPORT_VERSION`), with a new schema and a new sample. `BLESS=1` writes those
//! that are missing.

#[path = "support/schema.rs"]
mod json_schema;
mod support;

use json_schema::Schema;
use onnx_jmd::{Comparison, Inspection, Report, TuningReport};
use prost::Message;
use serde_json::Value;
use std::path::PathBuf;
use support::scene::{Scene, npy};
use support::{ConvSpec, ModelBuilder, ResNet, small_resnet, stepping, value};

fn schema(name: &str) -> Schema {
    let path = format!("{}/tools/schema/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
    Schema::new(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
}

/// Holds the JSON of several runs against a schema. Together they have to show every property, with a value.
fn hold(name: &str, found: &[Value]) {
    let mut schema = schema(name);
    for value in found {
        schema.check(value).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
    for (property, _) in schema.properties() {
        // Tuned models are run as a whole.
        if (name, property.as_str()) == ("tuning-1", "verification.parts") {
            continue;
        }
        assert!(schema.met.contains(&property), "{name}: no run has a value for {property}");
    }
    sample(name, &found[0]);
}

fn path(name: &str) -> PathBuf {
    format!("{}/tests/samples/{name}.json", env!("CARGO_MANIFEST_DIR")).into()
}

/// Keeps a first sample of a layout.
fn sample(name: &str, found: &Value) {
    if std::env::var_os("BLESS").is_some() && !path(name).exists() {
        std::fs::write(path(name), serde_json::to_string_pretty(found).unwrap() + "\n").unwrap();
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A scene with a small network and some images and labels for it.
fn scene() -> Scene {
    let scene = Scene::new(&small_resnet(3));
    let pixels: Vec<u8> = (0..12 * 3 * 32 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(scene.path("images.npy"), npy("|u1", &[12, 3, 32, 32], &pixels)).unwrap();
    std::fs::write(scene.path("labels.npy"), npy("|u1", &[12], &[1; 12])).unwrap();
    let mut grouped = ModelBuilder::new(&[1, 16, 9, 9], 7);
    let y = grouped.grouped_conv("image", 2, &ConvSpec::new(16, 3));
    std::fs::write(scene.path("steps.onnx"), stepping().encode_to_vec()).unwrap();
    std::fs::write(scene.path("grouped.onnx"), grouped.build(&[&y])).unwrap();
    scene
}

#[test]
fn reports_are_as_their_schema_says() {
    let scene = scene();
    let run = |arguments: &str| json(&scene.succeeds(&format!("in.onnx out.onnx {arguments} -q --json -")));
    let drawn = "--calib drawn --no-mirror";
    let nothing = scene.run("in.onnx out.onnx --ratio 2 --exclude . -q --json -");
    assert_eq!(nothing.status.code(), Some(4));
    let mut odd = ResNet { blocks: [2, 0, 0, 0], cifar: true, width: 8, ..ResNet::R18 }.builder();
    // One that tract does not know.
    odd.graph
        .node
        .iter_mut()
        .filter(|n| n.op_type() == "GlobalAveragePool")
        .for_each(|n| n.op_type = Some("Odd".into()));
    std::fs::write(scene.path("odd.onnx"), odd.build(&["scores"])).unwrap();
    let found = [
        run(&format!("--ratio 1.7 {drawn} --calib-samples 8 --images images.npy --labels labels.npy")),
        run(&format!("--max-drop 60% --scheme ljsvd --no-repair {drawn} --calib-samples 32")),
        run("--rank-rate 0.3 --scheme rjsvd-2 --no-verify --plan-out plan.toml"),
        run("--plan plan.toml --images images.npy"),
        run("--ratio 1.5 --dry-run"),
        json(&String::from_utf8(nothing.stdout).unwrap()),
        json(&scene.succeeds("odd.onnx out.onnx --ratio 1.5 -q --json -")),
        json(&scene.succeeds("steps.onnx out.onnx --rank-rate 0.2 --scheme separate --calib none -q --json -")),
        json(&scene.succeeds("grouped.onnx out.onnx --ratio 1.5 -q --json -")),
        run("--ratio 1.7 --calib drawn --calib-samples 8 --tune 1epochs --tune-drawn 40 --batch 16 --tune-steps 2"),
    ];
    hold("report-1", &found);
}

#[test]
fn tunings_are_as_their_schema_says() {
    let scene = scene();
    scene.succeeds("in.onnx small.onnx --ratio 1.7 --calib none -q");
    let tune = "tune small.onnx out.onnx --teacher in.onnx --calib drawn --tune-drawn 40 --tune 1epochs --batch 16";
    let run = |arguments: &str| json(&scene.succeeds(&format!("{tune} {arguments} -q --json -")));
    hold("tuning-1", &[run("--images images.npy --labels labels.npy"), run("")]);
}

#[test]
fn inspections_are_as_their_schema_says() {
    let scene = scene();
    scene.succeeds("in.onnx out.onnx --ratio 2 --scheme ljsvd -q");
    let found =
        ["in.onnx", "out.onnx", "grouped.onnx"].map(|m| json(&scene.succeeds(&format!("inspect {m} -q --json -"))));
    hold("inspection-1", &found);
}

#[test]
fn comparisons_are_as_their_schema_says() {
    let scene = scene();
    scene.succeeds("in.onnx out.onnx --ratio 2 --scheme ljsvd -q");
    // Of which one is infinite.
    for (name, scale) in [("finite.onnx", 1.0), ("broken.onnx", f32::INFINITY)] {
        let mut b = ModelBuilder::new(&[1, 4], 3);
        b.graph.input = vec![value("a", &[1, 4])];
        let scale = b.store("scale", &[1], vec![scale]);
        let y = b.node("Mul", &["a", &scale], "y", vec![]);
        std::fs::write(scene.path(name), b.build(&[&y])).unwrap();
    }
    let run = |arguments: &str| json(&scene.succeeds(&format!("verify {arguments} -q --json -")));
    let found = [
        run("in.onnx out.onnx --images images.npy --labels labels.npy"),
        run("finite.onnx broken.onnx"),
        run("in.onnx in.onnx"),
    ];
    assert!(found[1]["largest_difference"].is_null());
    let read: Comparison = serde_json::from_value(found[1].clone()).unwrap();
    assert_eq!(read.largest_difference, f64::INFINITY);
    hold("comparison-1", &found);
}

#[test]
fn reports_of_earlier_days_can_be_read() {
    let mut samples: Vec<PathBuf> =
        std::fs::read_dir(path("x").parent().unwrap()).unwrap().map(|e| e.unwrap().path()).collect();
    samples.sort();
    for sample in &samples {
        let name = sample.file_stem().unwrap().to_str().unwrap();
        let kept = json(&std::fs::read_to_string(sample).unwrap());
        schema(name).check(&kept).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        let again = match name {
            "report-1" => serde_json::from_value::<Report>(kept.clone()).map(|r| r.to_json()),
            "inspection-1" => serde_json::from_value::<Inspection>(kept.clone()).map(|r| r.to_json()),
            "comparison-1" => serde_json::from_value::<Comparison>(kept.clone()).map(|r| r.to_json()),
            "tuning-1" => serde_json::from_value::<TuningReport>(kept.clone()).map(|r| r.to_json()),
            // A layout that is written no more.
            _ => continue,
        };
        let again = json(&again.unwrap_or_else(|e| panic!("{name}: {e}")));
        // Fields that came later have their default.
        for (key, value) in kept.as_object().unwrap() {
            assert_eq!(&again[key], value, "{name}: {key}");
        }
    }
    let versions = [
        ("report", onnx_jmd::REPORT_VERSION),
        ("inspection", onnx_jmd::INSPECTION_VERSION),
        ("comparison", onnx_jmd::COMPARISON_VERSION),
    ];
    for (name, version) in versions {
        assert!(
            path(&format!("{name}-{version}")).exists(),
            "no sample of {name}'s version {version}: run with BLESS=1"
        );
    }
}

#[test]
fn a_schema_refuses_what_it_does_not_speak_of() {
    for name in ["report-1", "inspection-1", "comparison-1"] {
        let kept = json(&std::fs::read_to_string(path(name)).unwrap());
        let refuses = |value: &Value, what: &str| assert!(schema(name).check(value).is_err(), "{name}: {what}");
        let mut more = kept.clone();
        more["unheard-of"] = 1.into();
        refuses(&more, "more");
        for (property, demanded) in schema(name).properties().iter().filter(|p| p.0.starts_with('.')) {
            let (mut less, mut other) = (kept.clone(), kept.clone());
            less.as_object_mut().unwrap().remove(&property[1..]);
            assert_eq!(schema(name).check(&less).is_err(), *demanded, "{name}: without {property}");
            other[&property[1..]] = serde_json::json!({ "no": "such" });
            refuses(&other, property);
        }
    }
    let mut kept = json(&std::fs::read_to_string(path("report-1")).unwrap());
    kept["groups"][0]["kernels"][0] = serde_json::json!([1, 2, 3]);
    assert!(schema("report-1").check(&kept).unwrap_err().contains("minItems"));
    kept["groups"][0]["kernels"] = serde_json::json!([]);
    kept["totals"]["macs"]["before"] = serde_json::json!(-1);
    assert!(schema("report-1").check(&kept).is_err());
}
