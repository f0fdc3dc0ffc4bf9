//! Plans as files: replayed bit for bit, edited, and refused with the line that does not fit.

mod support;

use support::scene::{Scene, fixture};
use support::{ResNet, decode, small_resnet, without_origin};

const SCHEMES: [&str; 9] =
    ["separate", "ljsvd", "rjsvd-1", "rjsvd-2", "bi-jsvd", "pcsvd", "tt", "nc-ctd", "bi-jsvd --unfolding tucker"];

/// Plans, compresses, replays, and gives whether the bytes are the same.
fn replays(scene: &Scene, asked: &str, again: &str) -> bool {
    scene.succeeds(&format!("in.onnx a.onnx {asked} -q --no-verify --plan-out plan.toml"));
    scene.succeeds(&format!("in.onnx b.onnx --plan plan.toml -q --no-verify {again}"));
    scene.read("a.onnx") == scene.read("b.onnx")
}

#[test]
fn a_replay_gives_the_same_bytes() {
    let scene = Scene::new(&ResNet { blocks: [2, 2, 0, 0], cifar: true, width: 8, ..ResNet::R18 }.build());
    for scheme in SCHEMES {
        assert!(replays(&scene, &format!("--ratio 1.7 --scheme {scheme} --calib none"), ""), "{scheme}");
    }
    for options in [
        "--ratio 2",
        "--ratio 1.8 --group-by shape --scheme ljsvd",
        "--rank-rate 0.3 --scheme rjsvd-1",
        "--ratio 1.2 --exclude layer2 --scheme bi-jsvd --split 0",
        "--ratio 1.1 --include layer1 --scheme pcsvd --split 1 --iterations 3",
    ] {
        assert!(replays(&scene, &format!("{options} --calib none"), ""), "{options}");
    }
}

#[test]
fn a_calibrated_replay_gives_the_same_bytes() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    let calib = format!("--calib {}", fixture("fashion-calib-images.npy"));
    let few = "--calib-samples 10";
    assert!(replays(
        &scene,
        &format!("--ratio 1.5 --scheme bi-jsvd --no-mirror --include body.1[0-4]/ {few} --calib drawn --seed 3"),
        ""
    ));
    assert!(replays(
        &scene,
        &format!("--ratio 1.5 --keep-bn --scheme separate --include body.1[0-4]/ {few} {calib}"),
        &calib
    ));
    let held_out = "--max-drop 90% --scheme ljsvd --no-repair --no-mirror --calib-samples 32 --include body.1[0-4]/";
    assert!(replays(&scene, &format!("{held_out} {calib}"), &calib));
    // What is not in the file has to be given, and what is not the same is said.
    assert!(scene.fails("in.onnx b.onnx --plan plan.toml", 2).contains("--calib"));
    assert!(scene.fails("in.onnx b.onnx --plan plan.toml --calib none", 2).contains("--calib none"));
    let other = fixture("fashion-test-images.npy");
    let text = scene.succeeds(&format!("in.onnx b.onnx --plan plan.toml --calib {other}"));
    assert!(text.contains("other samples"), "{text}");
}

#[test]
fn a_dry_run_plans_for_a_later_run() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds("in.onnx --ratio 1.7 --scheme ljsvd --dry-run -q --plan-out plan.toml");
    assert_eq!(scene.files(), ["in.onnx", "plan.toml"]);
    scene.succeeds("in.onnx a.onnx --plan plan.toml -q");
    scene.succeeds("in.onnx b.onnx --ratio 1.7 --scheme ljsvd -q");
    assert!(scene.read("a.onnx") == scene.read("b.onnx"));
}

#[test]
fn an_edited_plan_is_what_is_done() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds("in.onnx --ratio 1.7 --scheme ljsvd --dry-run -q --plan-out plan.toml");
    let plan = scene.text("plan.toml");
    let (head, groups) = plan.split_at(plan.find("[[group]]").unwrap());
    let groups: Vec<&str> = groups.split("[[group]]").skip(1).collect();
    assert!(groups.len() > 1, "{plan}");
    // The second group alone, at another rank and in another scheme.
    let edited: Vec<String> = groups[1]
        .lines()
        .map(|line| match line.split(" = ").next() {
            Some("ranks") => "ranks = [3, 2]".to_owned(),
            Some("scheme") => "scheme = \"bi-jsvd\"".to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    std::fs::write(scene.path("plan.toml"), format!("{head}[[group]]{}", edited.join("\n"))).unwrap();
    let report = scene.succeeds("in.onnx out.onnx --plan plan.toml -q --json -");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let done = report["groups"].as_array().unwrap();
    assert_eq!(done.len(), 1);
    assert_eq!((&done[0]["scheme"], &done[0]["ranks"]), (&"bi-jsvd".into(), &serde_json::json!([3, 2])));
    let left = report["left_alone"].as_array().unwrap();
    assert!(left.iter().any(|l| l["reason"] == "not in the plan"), "{left:?}");
    // What the file holds is what the report says: five ranks in four factors of three members, three of them shared.
    let model = decode(&scene.read("out.onnx"));
    let graph = model.graph.unwrap();
    let shared = graph.initializer.iter().filter(|t| t.name().contains("jmd_shared")).map(|t| t.dims[..].to_vec());
    assert_eq!(shared.collect::<Vec<_>>(), [vec![3, 8, 3, 1], vec![8, 2, 1, 3]]);
}

#[test]
fn a_retrained_model_is_taken_only_if_that_is_asked_for() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds("in.onnx --ratio 1.7 --scheme ljsvd --dry-run -q --plan-out plan.toml");
    let mut other = decode(&scene.read("in.onnx"));
    for tensor in &mut other.graph.as_mut().unwrap().initializer {
        tensor.float_data.iter_mut().for_each(|x| *x *= 1.5);
        let raw = tensor.raw_data.take().unwrap_or_default();
        let raw: Vec<u8> =
            raw.chunks(4).flat_map(|x| (1.5 * f32::from_le_bytes(x.try_into().unwrap())).to_le_bytes()).collect();
        tensor.raw_data = (!raw.is_empty()).then(|| raw.into());
    }
    std::fs::write(scene.path("other.onnx"), prost::Message::encode_to_vec(&other)).unwrap();
    let refused = scene.fails("other.onnx out.onnx --plan plan.toml", 10);
    assert!(refused.contains("other weights") && refused.contains("--retrained"), "{refused}");
    let text = scene.succeeds("other.onnx out.onnx --plan plan.toml --retrained");
    assert!(text.contains("not the file that the plan was made for"), "{text}");
    // The same decisions as for the model scaled.
    scene.succeeds("other.onnx plain.onnx --ratio 1.7 --scheme ljsvd -q");
    let (replayed, decided) = (decode(&scene.read("out.onnx")), decode(&scene.read("plain.onnx")));
    assert!(without_origin(replayed.clone()) == without_origin(decided.clone()));
    // Though nothing says that they always would be.
    assert!(replayed != decided);
}

#[test]
fn what_does_not_fit_is_refused_with_its_line() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds("in.onnx --ratio 1.7 --scheme ljsvd --dry-run -q --plan-out plan.toml");
    let plan = scene.text("plan.toml");
    let line = |start: &str| 1 + plan.lines().position(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start}"));
    let kernels = || plan.lines().find(|l| l.starts_with("  { node")).unwrap();
    let (node, member) = (kernels().split('"').nth(1).unwrap(), line("  { node"));
    for (from, to, at, reason) in [
        ("version = 1", "version = 2", line("version"), "version 2"),
        ("version = 1", "", 1, "version"),
        ("version = 1", "version = = 1", line("version"), ""),
        ("align = 16", "align = -1", line("align"), ""),
        ("align = 16", "aline = 16", line("align"), "aline"),
        ("group-by = \"role\"", "group-by = \"name\"", line("group-by"), "'name'"),
        ("ratio = 1.7\n", "", line("scheme"), "ratio"),
        ("ratio = 1.7\n", "ratio = nan\n", line("ratio"), "above 1"),
        ("align = 16", "align = 0", line("align"), "1 to 256"),
        ("iterations = 30", "iterations = 9223372036854775807", line("iterations"), "too many"),
        ("\nranks = [", "\nsplit = 7.0\nranks = [", line("ranks"), "from 0 to 1"),
        (
            "scheme = \"ljsvd\"\nunfolding = \"spatial\"\nranks",
            "scheme = \"tt\"\nunfolding = \"spatial\"\nranks",
            line("name") + 2,
            "tucker",
        ),
        (
            "scheme = \"ljsvd\"\nunfolding = \"spatial\"\nranks",
            "scheme = \"lsvd\"\nunfolding = \"spatial\"\nranks",
            line("name") + 2,
            "'lsvd'",
        ),
        ("unfolding = \"spatial\"\nranks", "unfolding = \"diagonal\"\nranks", line("name") + 3, "'diagonal'"),
        ("\nranks = [", "\nranks = [1, ", line("ranks"), "one rank"),
        ("\nranks = [", "\nranks = [999", line("ranks"), "at most"),
        ("\nranks = [", "\nranks = [0] # [", line("ranks"), "1 or more"),
        (node, "no/such", member, "no convolution 'no/such'"),
        ("kernel = [8, 8, 3, 3]", "kernel = [8, 9, 3, 3]", member, "[8, 9, 3, 3]"),
        ("weights = \"", "weights = \"0", member, "other weights"),
        (kernels(), &format!("{}\n{}", kernels(), kernels()), member + 1, "twice"),
    ] {
        assert!(plan.contains(from), "{from}");
        std::fs::write(scene.path("plan.toml"), plan.replacen(from, to, 1)).unwrap();
        let message = scene.fails("in.onnx out.onnx --plan plan.toml", 10);
        assert!(message.contains(&format!("plan.toml, line {at}: ")), "{from} → {to}: {message}, not line {at}");
        assert!(message.contains(reason), "{from} → {to}: {message}");
    }
    assert_eq!(scene.files(), ["in.onnx", "plan.toml"]);
    let calibration =
        "\n[calibration]\nsource = \"x\"\nseed = 1\nsamples = 0\nmirror = true\nheld-out = false\nrepair = true\n";
    std::fs::write(scene.path("plan.toml"), format!("{plan}{calibration}")).unwrap();
    assert!(scene.fails("in.onnx out.onnx --plan plan.toml", 10).contains("samples are 1 or more"));
    let missing = scene.fails("in.onnx out.onnx --plan none.toml", 3);
    assert!(missing.contains("none.toml"), "{missing}");
}

#[test]
fn options_that_a_plan_records_are_not_given_beside_it() {
    let scene = Scene::new(&small_resnet(2));
    scene.succeeds("in.onnx --ratio 1.5 --dry-run -q --plan-out plan.toml");
    for option in ["--ratio 2", "--scheme ljsvd", "--keep-bn", "--max-drop 1%", "--no-repair", "--include a"] {
        scene.fails(&format!("in.onnx out.onnx --plan plan.toml {option}"), 2);
    }
    assert!(scene.fails("in.onnx out.onnx --plan plan.toml --plan-out plan.toml", 2).contains("is an input"));
    assert!(scene.fails("in.onnx out.onnx --plan plan.toml --calib drawn", 2).contains("--calib"));
    let head = scene.text("plan.toml").split("[[group]]").next().unwrap().to_owned();
    std::fs::write(scene.path("plan.toml"), head).unwrap();
    let output = scene.run("in.onnx out.onnx --plan plan.toml");
    assert_eq!(output.status.code(), Some(4));
    assert!(scene.read("out.onnx") == scene.read("in.onnx"));
}
