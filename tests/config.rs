//! `onnx-jmd.toml`: read where the command runs, replaced by the command line, refused with the line that makes no sense.

mod support;

use support::scene::{Scene, fixture};
use support::small_resnet;

const FILE: &str = "onnx-jmd.toml";

fn scene(options: &str) -> Scene {
    let scene = Scene::new(&small_resnet(3));
    std::fs::write(scene.path(FILE), options).unwrap();
    scene
}

/// What a run that succeeds writes, and what it says.
fn runs(scene: &Scene, arguments: &str) -> (Vec<u8>, String) {
    let output = scene.run_exactly(&format!("in.onnx out.onnx {arguments}"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments}: {said}");
    (scene.read("out.onnx"), said)
}

#[test]
fn options_of_the_file_are_those_of_the_command_line() {
    let options = "\
        # Of this project\n\
        ratio = 1.5\nscheme = \"ljsvd\"\ncalib = \"none\"\nkeep-bn = true\nno-mirror = false\nseed = 7\nverify-inputs = 2\n\
        exclude = ['/layer9/', \"never|ever\"]\njson = 'made/report.json'\n";
    let scene = scene(options);
    scene.path("made/x");
    let (bytes, said) = runs(&scene, "");
    let line = said.lines().find(|l| l.contains("options from onnx-jmd.toml")).unwrap();
    for word in ["--ratio=1.5", "--keep-bn", "--exclude=(?:/layer9/)|(?:never|ever)", "--json=made/report.json"] {
        assert!(line.contains(word), "{line}");
    }
    assert!(!line.contains("mirror"), "{line}");
    assert!(scene.text("made/report.json").contains("\"ratio\": 1.5"));
    let (alone, said) = runs(
        &scene,
        "--no-config --ratio 1.5 --scheme ljsvd --calib none --keep-bn --seed 7 --verify-inputs 2 \
         --exclude (?:/layer9/)|(?:never|ever)",
    );
    assert!(alone == bytes && !said.contains("onnx-jmd.toml"));
    assert!(!scene.run_exactly("in.onnx out.onnx --no-config").status.success());
    // Other commands have other options.
    assert!(scene.succeeds("inspect in.onnx").starts_with("Model"));
    scene.succeeds("verify in.onnx in.onnx");
}

#[test]
fn the_command_line_replaces_what_it_says_itself_and_what_that_contradicts() {
    for (options, arguments, alone, replaced) in [
        ("ratio = 1.5", "--ratio 2", "--ratio 2", "ratio"),
        ("ratio = 1.5\nscheme = 'ljsvd'", "--rank-rate 0.3", "--rank-rate 0.3 --scheme ljsvd", "ratio"),
        ("rank-rate = 0.3", "--ratio 2", "--ratio 2", "rank-rate"),
        ("max-drop = '1%'", "--ratio 2", "--ratio 2", "max-drop"),
        ("ratio = 2\nscheme = 'ljsvd'\nunfolding = 'tucker'", "--scheme auto", "--ratio 2", "scheme, unfolding"),
        (
            "ratio = 2\nscheme = 'ljsvd'\nunfolding = 'tucker'",
            "--scheme tt",
            "--ratio 2 --scheme tt",
            "scheme, unfolding",
        ),
        ("ratio = 2\ncache = 'folder'", "", "--ratio 2", "cache"),
        ("ratio = 2\nmean = [0.5]\nstd = 0.5", "--preprocess 0-1", "--ratio 2", "mean, std"),
        (
            "ratio = 2\ninput-shape = 'image:1,3,9,9'",
            "--input-shape image:1,3,32,32",
            "--ratio 2 --input-shape image:1,3,32,32",
            "input-shape",
        ),
        ("plan = 'none.toml'\nretrained = true", "--ratio 2", "--ratio 2", "plan; of no use here: retrained"),
    ] {
        let scene = scene(options);
        let (with, said) = runs(&scene, &format!("{arguments} --calib none"));
        assert!(said.contains(&format!("the command line replaces: {replaced}\n")), "{options}: {said}");
        assert!(with == runs(&scene, &format!("{alone} --calib none --no-config")).0, "{options}");
    }
    // A plan on the command line replaces all that it records.
    let scene = scene("ratio = 1.5\nscheme = \"ljsvd\"\nkeep-bn = true\nquiet = true\n");
    let (first, said) = runs(&scene, "--calib none --plan-out p.toml");
    assert!(said.is_empty(), "{said}");
    assert!(runs(&scene, "--plan p.toml").0 == first);
    // Labels are of images, and the file's are of others.
    let of = |name: &str| fixture(name);
    let with = format!("ratio = 2\nimages = '{}'\nlabels = 'none.npy'\n", of("fashion-test-images.npy"));
    std::fs::write(scene.path(FILE), with).unwrap();
    let both = format!("--calib none --images {} --quiet", of("fashion-calib-images.npy"));
    let refused = scene.fails(&format!("in.onnx o.onnx {both}"), 2);
    assert!(refused.contains("fashion-calib-images.npy") && !refused.contains("labels"), "{refused}");
}

#[test]
fn paths_are_those_of_the_files_folder() {
    let scene = Scene::new(&small_resnet(3));
    std::fs::write(scene.path("project/options.toml"), "ratio = 2\nplan-out = \"plan.toml\"\ncalib = \"none\"\n")
        .unwrap();
    runs(&scene, "--config project/options.toml");
    assert!(scene.text("project/plan.toml").contains("ratio = 2.0"));
    std::fs::write(scene.path("project/options.toml"), "ratio = 2\ncalib = \"pictures\"\n").unwrap();
    let said = scene.run_exactly("in.onnx o.onnx --config project/options.toml");
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("project/pictures: there is no such"), "{said}");
    assert!(scene.fails("in.onnx o.onnx --config none.toml", 3).contains("none.toml"));
    let own = scene.fails("in.onnx o.onnx --config project/options.toml --json project/options.toml", 2);
    assert!(own.contains("is an input"), "{own}");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_line() {
    let scene = scene("");
    for (options, line, words) in [
        ("ratio = 4\n\nration = 4", 3, &["'ration'", "did you mean 'ratio'?"][..]),
        ("rank_rate = 0.1", 1, &["'rank_rate'", "'rank-rate'"]),
        ("wholly-other = 1", 1, &["'wholly-other'", "--help"]),
        ("ratio = \"4\"", 1, &["'ratio' is a number, not a string"]),
        ("ratio = [4]", 1, &["'ratio' is a number, not an array"]),
        ("scheme = 3", 1, &["'scheme' is a string, not an integer"]),
        ("ratio = 2\nscheme = \"lsvd\"", 2, &["'scheme' is one of auto, separate, ljsvd", "not 'lsvd'"]),
        ("ratio = 2\nalign = 0", 2, &["'0' is no value for 'align'", "1..=256"]),
        ("ratio = 2\nseed = -1", 2, &["'-1' is no value for 'seed'"]),
        ("exclude = \"(\"", 1, &["'(' is no value for 'exclude'"]),
        ("include = [1]", 1, &["a string or a list of strings, not an array"]),
        ("keep-bn = \"yes\"", 1, &["'keep-bn' is true or false, not a string"]),
        ("max-drop = true", 1, &["'max-drop' is a number or a string such as \"1%\", not a boolean"]),
        ("dry-run = true", 1, &["command line"]),
        ("config = 'x'", 1, &["command line"]),
        ("help = true", 1, &["no option 'help'"]),
        ("[ratio]\nvalue = 4", 1, &["'ratio' is a number, not a table"]),
        ("ratio = 4\nratio = 5", 2, &["duplicate key"]),
        ("ratio = = 4", 1, &[]),
    ] {
        std::fs::write(scene.path(FILE), options).unwrap();
        let said = scene.fails("in.onnx o.onnx", 2);
        assert!(said.starts_with(&format!("onnx-jmd: onnx-jmd.toml, line {line}: ")), "{options}: {said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{options}: {said}"));
    }
    // Arguments that make no sense are told as ever.
    std::fs::write(scene.path(FILE), "ratio = 2").unwrap();
    assert!(scene.run_exactly("in.onnx o.onnx --no-such --ratio 2").stderr.starts_with(b"error: unexpected argument"));
    assert!(scene.run_exactly("--help").status.success() && scene.run_exactly("--version").status.success());
    // What is only found later names its line, too.
    std::fs::write(scene.path(FILE), "calib-samples = 9\nratio = 0.5").unwrap();
    let said = scene.fails("in.onnx o.onnx", 2);
    assert!(said.contains("--ratio") && said.ends_with("(onnx-jmd.toml, line 2)"), "{said}");
    std::fs::write(scene.path(FILE), "retrained = true\nquiet = true").unwrap();
    scene.fails("in.onnx o.onnx", 2);
    assert_eq!(scene.files(), ["in.onnx", "onnx-jmd.toml"]);
}
