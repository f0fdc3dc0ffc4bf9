//! Many models in one run: what is done stays done, one that fails takes no other along, parts make the whole.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use support::scene::{Scene, fixture};
use support::{ConvSpec, ModelBuilder, small_resnet};

/// A model in which there is nothing to compress.
fn only_relu() -> Vec<u8> {
    let mut b = ModelBuilder::new(&[1, 3, 4, 4], 1);
    let y = b.relu("image");
    b.build(&[&y])
}

/// Two convolutions, as fast as a model can be.
fn tiny(seed: u64) -> Vec<u8> {
    let mut b = ModelBuilder::new(&[1, 3, 8, 8], seed);
    let x = b.conv("image", &ConvSpec::new(12, 3));
    let x = b.relu(&x);
    let y = b.conv(&x, &ConvSpec::new(12, 3));
    b.build(&[&y])
}

fn scene(models: &[(&str, Vec<u8>)]) -> Scene {
    let scene = Scene::new(&[]);
    for (name, bytes) in models {
        std::fs::write(scene.path(&format!("models/{name}")), bytes).unwrap();
    }
    scene
}

/// A folder with some of everything.
fn mixed() -> Scene {
    scene(&[
        ("a.onnx", small_resnet(2)),
        ("deep/er/b.onnx", tiny(1)),
        ("deep/c.ONNX", tiny(2)),
        ("deep/garbage.onnx", b"no model".to_vec()),
        ("relu.onnx", only_relu()),
        ("notes.txt", b"no model either".to_vec()),
    ])
}

/// Runs, expects an exit code, and gives the lines of a summary by model.
fn run(scene: &Scene, arguments: &str, code: i32, summary: &str) -> BTreeMap<String, Value> {
    let output = scene.run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    let lines = scene.text(summary);
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["model"].as_str().unwrap().to_owned(), row)).collect()
}

fn up_to_date(rows: &BTreeMap<String, Value>) -> Vec<&str> {
    rows.iter().filter(|(_, row)| row["up_to_date"] == true).map(|(name, _)| name.as_str()).collect()
}

/// Every file below a folder but those that say how long something took.
fn outputs(scene: &Scene, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let root = scene.folder.path().join(folder);
    let mut found = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !name.starts_with("zoo") {
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn each_model_comes_out_as_alone_and_a_bad_one_stops_none() {
    let scene = mixed();
    let rows = run(&scene, "zoo models out --ratio 1.5", 11, "out/zoo.jsonl");
    let ended = |name: &str| (rows[name]["outcome"].as_str().unwrap(), rows[name]["exit_code"].as_u64().unwrap());
    assert_eq!(rows.len(), 5);
    assert_eq!(ended("a.onnx"), ("compressed", 0));
    assert_eq!(ended("relu.onnx"), ("left-alone", 4));
    assert_eq!(ended("deep/garbage.onnx"), ("refused", 3));
    assert!(rows["deep/garbage.onnx"]["reason"].as_str().unwrap().starts_with("not an ONNX model"));
    assert!(rows["a.onnx"]["ratio"].as_f64().unwrap() >= 1.5);
    assert!(rows["a.onnx"]["verification"]["approximation"]["snr_db"].is_f64());
    assert_eq!(rows["a.onnx"]["file_bytes"]["after"], scene.read("out/a.onnx").len());
    assert!(rows.values().all(|row| row["zoo_version"] == 1 && row["up_to_date"] == false));
    scene.succeeds("models/a.onnx a.onnx --ratio 1.5 -q");
    scene.succeeds("models/deep/er/b.onnx b.onnx --ratio 1.5 -q");
    let out = outputs(&scene, "out");
    assert_eq!(out.keys().collect::<Vec<_>>(), ["a.onnx", "deep/c.ONNX", "deep/er/b.onnx", "relu.onnx"]);
    assert!(out["a.onnx"] == scene.read("a.onnx") && out["deep/er/b.onnx"] == scene.read("b.onnx"));
    assert!(out["relu.onnx"] == only_relu());
    let report: Value = serde_json::from_str(&scene.text("out/zoo/reports/deep/er/b.onnx.json")).unwrap();
    assert_eq!(report["totals"]["parameters"]["ratio"], rows["deep/er/b.onnx"]["ratio"]);
}

#[test]
fn the_tables_name_every_model_and_its_reason() {
    let scene = mixed();
    let output = scene.run("zoo models out --ratio 1.5");
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["Models", "In all", "  5 models: 3 compressed, 1 left alone, 1 refused; 0 were up to date"] {
        assert!(text.lines().any(|l| l == line), "{line} is missing:\n{text}");
    }
    assert!(text.contains("  deep/garbage.onnx: not an ONNX model") && text.contains("SNR "), "{text}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.lines().last().unwrap().contains("1 of 5 models refused, the first 'deep/garbage.onnx': not"),
        "{said}"
    );
    let quiet = scene.run("zoo models out --ratio 1.5 --quiet");
    assert!(quiet.stdout.is_empty() && quiet.stderr.iter().filter(|b| **b == b'\n').count() == 1);
}

#[test]
fn what_is_done_is_not_done_again() {
    let scene = mixed();
    run(&scene, "zoo models out --ratio 1.5", 11, "out/zoo.jsonl");
    let written = |name: &str| std::fs::metadata(scene.folder.path().join(name)).unwrap().modified().unwrap();
    let before = outputs(&scene, "out");
    let times = || before.keys().map(|name| written(&format!("out/{name}"))).collect::<Vec<_>>();
    let (first, record) = (times(), written("out/zoo/records/a.onnx.json"));
    // Neither threads nor a default that is spelled out change what comes out.
    let rows = run(&scene, "zoo models out --ratio 1.5 --threads 1 --align 16", 11, "out/zoo.jsonl");
    assert_eq!(up_to_date(&rows).len(), 5);
    assert!(times() == first && written("out/zoo/records/a.onnx.json") == record);
    // What is missing, damaged or of another model is done again, and nothing else.
    std::fs::remove_file(scene.path("out/deep/er/b.onnx")).unwrap();
    std::fs::write(scene.path("out/relu.onnx"), b"damaged").unwrap();
    std::fs::write(scene.path("models/deep/c.ONNX"), tiny(3)).unwrap();
    let rows = run(&scene, "zoo models out --ratio 1.5", 11, "out/zoo.jsonl");
    assert_eq!(up_to_date(&rows), ["a.onnx", "deep/garbage.onnx"]);
    let after = outputs(&scene, "out");
    assert!(before["deep/er/b.onnx"] == after["deep/er/b.onnx"] && before["relu.onnx"] == after["relu.onnx"]);
    assert!(before["deep/c.ONNX"] != after["deep/c.ONNX"]);
    // A record that cannot be read is none.
    std::fs::write(scene.path("out/zoo/records/a.onnx.json"), b"{").unwrap();
    assert_eq!(up_to_date(&run(&scene, "zoo models out --ratio 1.5", 11, "out/zoo.jsonl")).len(), 4);
    // Another option makes other models.
    let rows = run(&scene, "zoo models out --ratio 1.5 --scheme tt", 11, "out/zoo.jsonl");
    assert!(up_to_date(&rows).is_empty());
    assert!(outputs(&scene, "out")["a.onnx"] != after["a.onnx"]);
}

#[test]
fn what_the_options_name_counts_by_its_content() {
    let scene = scene(&[("a.onnx", tiny(1))]);
    scene.succeeds("models/a.onnx --ratio 1.5 --dry-run -q --plan-out plan.toml");
    let planned = "zoo models out --plan plan.toml";
    assert!(up_to_date(&run(&scene, planned, 0, "out/zoo.jsonl")).is_empty());
    assert_eq!(up_to_date(&run(&scene, planned, 0, "out/zoo.jsonl")), ["a.onnx"]);
    std::fs::write(scene.path("plan.toml"), scene.text("plan.toml") + "\n# edited\n").unwrap();
    assert!(up_to_date(&run(&scene, planned, 0, "out/zoo.jsonl")).is_empty());
}

#[test]
fn data_beside_a_model_is_part_of_it() {
    let scene = scene(&[("a.onnx", small_resnet(2))]);
    // What is compressed already can be so once more, but by little.
    scene.succeeds("models/a.onnx models/split-a.onnx --ratio 1.5 -q --external-data");
    run(&scene, "zoo models out --ratio 1.1", 0, "out/zoo.jsonl");
    assert_eq!(up_to_date(&run(&scene, "zoo models out --ratio 1.1", 0, "out/zoo.jsonl")).len(), 2);
    let names = std::fs::read_dir(scene.path("models/x").parent().unwrap()).unwrap();
    let data = names.map(|e| e.unwrap().path()).find(|p| p.extension().unwrap() == "data").unwrap();
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    assert_eq!(up_to_date(&run(&scene, "zoo models out --ratio 1.1", 0, "out/zoo.jsonl")), ["a.onnx"]);
    // Outputs in two files are one result, too.
    let external = "zoo models out --ratio 1.1 --external-data";
    run(&scene, external, 0, "out/zoo.jsonl");
    assert_eq!(up_to_date(&run(&scene, external, 0, "out/zoo.jsonl")).len(), 2);
    let data = outputs(&scene, "out").into_keys().find(|n| n.starts_with("a.onnx.") && n.ends_with(".data")).unwrap();
    std::fs::write(scene.path(&format!("out/{data}")), b"damaged").unwrap();
    assert_eq!(up_to_date(&run(&scene, external, 0, "out/zoo.jsonl")), ["split-a.onnx"]);
}

#[test]
fn shards_together_are_the_whole_and_so_are_jobs_at_once() {
    let names: Vec<String> = (0..5).map(|i| format!("{}/{i}.onnx", i % 2)).collect();
    let models: Vec<(&str, Vec<u8>)> = (0..).zip(&names).map(|(seed, name)| (name.as_str(), tiny(seed))).collect();
    let scene = scene(&models);
    run(&scene, "zoo models whole --ratio 1.5", 0, "whole/zoo.jsonl");
    run(&scene, "zoo models both --ratio 1.5 --jobs 2", 0, "both/zoo.jsonl");
    let mut seen = Vec::new();
    for shard in 1..=3 {
        let arguments = format!("zoo models parts --ratio 1.5 --shard {shard}/3");
        let rows = run(&scene, &arguments, 0, &format!("parts/zoo-{shard}-of-3.jsonl"));
        assert!(up_to_date(&rows).is_empty());
        seen.extend(rows.into_keys());
    }
    seen.sort();
    let mut all = names.clone();
    all.sort();
    assert_eq!(seen, all);
    assert_eq!(outputs(&scene, "whole").len(), 5);
    assert!(
        outputs(&scene, "whole") == outputs(&scene, "parts") && outputs(&scene, "whole") == outputs(&scene, "both")
    );
    assert_eq!(up_to_date(&run(&scene, "zoo models parts --ratio 1.5 --jobs 2", 0, "parts/zoo.jsonl")).len(), 5);
    // There may be more shards than models.
    assert!(run(&scene, "zoo models parts --ratio 1.5 --shard 9/9", 0, "parts/zoo-9-of-9.jsonl").is_empty());
}

#[test]
fn one_model_of_many_leaves_no_summary_but_is_done_for_all() {
    let scene = mixed();
    let output = scene.succeeds("zoo models out --ratio 1.5 --only deep/er/b.onnx --only relu.onnx");
    assert!(output.contains("  2 models: 1 compressed, 1 left alone, 0 refused"), "{output}");
    assert_eq!(outputs(&scene, "out").keys().collect::<Vec<_>>(), ["deep/er/b.onnx", "relu.onnx"]);
    assert!(!scene.folder.path().join("out/zoo.jsonl").exists());
    let rows = run(&scene, "zoo models out --ratio 1.5", 11, "out/zoo.jsonl");
    assert_eq!(up_to_date(&rows), ["deep/er/b.onnx", "relu.onnx"]);
    assert!(scene.fails("zoo models out --ratio 1.5 --only b.onnx -q", 2).contains("'b.onnx'"));
}

#[test]
fn a_refusal_that_would_come_again_is_kept_and_nothing_stale_stays() {
    let scene = scene(&[("a.onnx", tiny(1))]);
    run(&scene, "zoo models out --ratio 1.5", 0, "out/zoo.jsonl");
    let far = run(&scene, "zoo models out --ratio 500", 11, "out/zoo.jsonl");
    assert_eq!(far["a.onnx"]["exit_code"], 5);
    assert!(outputs(&scene, "out").is_empty(), "an output of other options stayed");
    assert_eq!(up_to_date(&run(&scene, "zoo models out --ratio 500", 11, "out/zoo.jsonl")), ["a.onnx"]);
    // Somebody else's file is nothing stale.
    std::fs::write(scene.path("out/a.onnx"), b"mine").unwrap();
    run(&scene, "zoo models out --ratio 600", 11, "out/zoo.jsonl");
    assert_eq!(scene.read("out/a.onnx"), b"mine");
}

#[test]
fn a_model_that_takes_too_long_is_given_up_and_tried_again() {
    let scene = scene(&[("a.onnx", tiny(1))]);
    let late = run(&scene, "zoo models out --ratio 1.5 --timeout 0.001", 11, "out/zoo.jsonl");
    assert_eq!(late["a.onnx"]["exit_code"], Value::Null);
    assert!(late["a.onnx"]["reason"].as_str().unwrap().contains("--timeout 0.001"));
    assert!(outputs(&scene, "out").is_empty() && !scene.folder.path().join("out/zoo/records/a.onnx.json").exists());
    let rows = run(&scene, "zoo models out --ratio 1.5 --timeout 1000", 0, "out/zoo.jsonl");
    assert_eq!(rows["a.onnx"]["outcome"], "compressed");
}

#[test]
fn a_process_of_a_zoo_ends_with_it() {
    // Calibrated, this model takes many seconds; the end of its standard input is that of its parent.
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-jmd"));
    command.current_dir(scene.folder.path()).args(["in.onnx", "out.onnx", "--ratio", "6"]).stdin(Stdio::null());
    let status = command.env("ONNX_JMD_ENDS_WITH_STDIN", "1").stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(scene.files(), ["in.onnx"]);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_written() {
    let scene = scene(&[("a.onnx", tiny(1))]);
    for arguments in [
        "zoo models out",
        "zoo models --ratio 2",
        "zoo models out --ratio 0.5",
        "zoo models out --ratio 2 --min-snr 3 --no-verify",
        "zoo models out --ratio 2 --images missing.npy",
        "zoo models out --ratio 2 --dry-run",
        "zoo models out --ratio 2 --json out.json",
        "zoo models out --ratio 2 --plan-out plan.toml",
        "zoo models out --ratio 2 --shard 0/2",
        "zoo models out --ratio 2 --shard 3/2",
        "zoo models out --ratio 2 --jobs 0",
        "zoo models out --ratio 2 --timeout 0",
        "zoo models models --ratio 2",
        "zoo models models/out --ratio 2",
        "zoo models ./models/../models/x/y --ratio 2",
        "zoo models/ . --ratio 2",
    ] {
        assert!(!scene.fails(arguments, 2).is_empty(), "{arguments}");
    }
    scene.fails("zoo missing out --ratio 2", 3);
    scene.fails("zoo models missing/../models --ratio 2", 9);
    assert_eq!(scene.files(), ["in.onnx", "models"]);
    assert_eq!(outputs(&scene, "models").len(), 1);
    std::fs::remove_file(scene.path("models/a.onnx")).unwrap();
    assert!(scene.fails("zoo models out --ratio 2", 2).contains("no *.onnx"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_never_onto_an_input() {
    use std::os::unix::fs::symlink;
    let scene = scene(&[("a.onnx", tiny(1))]);
    std::fs::write(scene.path("elsewhere/b.onnx"), tiny(2)).unwrap();
    let at = |name: &str| scene.folder.path().join(name);
    symlink(at("elsewhere/b.onnx"), at("models/link.onnx")).unwrap();
    symlink(at("elsewhere"), at("models/folder")).unwrap();
    symlink(at("models"), at("models/loop")).unwrap();
    symlink(at("nowhere"), at("models/broken.onnx")).unwrap();
    let rows = run(&scene, "zoo models out --ratio 1.5", 11, "out/zoo.jsonl");
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["a.onnx", "broken.onnx", "folder/b.onnx", "link.onnx"]);
    assert_eq!(rows["broken.onnx"]["exit_code"], 3);
    assert!(scene.read("out/link.onnx") == scene.read("out/folder/b.onnx"));
    for (link, to) in [("out/a.onnx", "models/a.onnx"), ("out/a.onnx", "elsewhere/b.onnx"), ("out/folder", "models")] {
        let _ = std::fs::remove_dir_all(at("out"));
        std::fs::create_dir(at("out")).unwrap();
        symlink(at(to), at(link)).unwrap();
        let said = scene.fails("zoo models out --ratio 1.5", 2);
        assert!(said.contains("leads to"), "{said}");
    }
    assert!(scene.read("models/a.onnx") == tiny(1) && scene.read("elsewhere/b.onnx") == tiny(2));
}
