//! Data flows one way: a file uses only what stands before it, and one file owns each heavy crate.

use std::path::Path;

/// Modules from left to right; a module may use itself and what stands before it.
const ORDER: [&str; 28] = [
    "error",
    "progress",
    "portions",
    "sealed",
    "factor",
    "onnx",
    "images",
    "group",
    "ranks",
    "plan",
    "rewrite",
    "report",
    "runtime",
    "gradient",
    "tune",
    "calibrate",
    "gates",
    "compare",
    "verify",
    "distil",
    "inspect",
    "picture",
    "options",
    "origin",
    "search",
    "make",
    "steps",
    "compile",
];

/// Crates and the only files that may use them.
const OWNERS: [(&str, &[&str]); 11] = [
    ("prost", &["src/onnx/model.rs", "src/onnx/encode.rs", "src/onnx/unknown.rs"]),
    ("faer", &["src/factor/linalg.rs", "src/tune/product.rs"]),
    ("pulp", &["src/tune/simd.rs"]),
    ("tract_onnx", &["src/runtime.rs"]),
    ("tract_core", &["src/runtime.rs"]),
    ("npyz", &["src/images/npy.rs"]),
    ("zip", &["src/images/npy.rs"]),
    ("image", &["src/images/folder.rs"]),
    ("toml", &["src/plan/file.rs", "src/plan/replay.rs", "src/cli/config.rs"]),
    ("maud", &["src/picture/chart.rs", "src/picture/diagram.rs", "src/picture/page.rs"]),
    (
        "clap",
        &[
            "src/main.rs",
            "src/cli/mod.rs",
            "src/cli/completions.rs",
            "src/cli/compress.rs",
            "src/cli/config.rs",
            "src/cli/inspect.rs",
            "src/cli/shared.rs",
            "src/cli/tune.rs",
            "src/cli/verify.rs",
            "src/cli/zoo.rs",
        ],
    ),
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.file_name() != Some("tests.rs".as_ref()) {
            let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().to_owned();
            // Tests at the end of a file may look anywhere.
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((name, text.split("#[cfg(test)]").next().unwrap().to_owned()));
        }
    }
}

fn all() -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

#[test]
fn modules_use_only_what_stands_before_them() {
    for (name, text) in all() {
        let module = name.trim_start_matches("src/").split(['/', '.']).next().unwrap();
        let Some(place) = ORDER.iter().position(|m| *m == module) else {
            // The binary's own.
            assert!(["lib", "main", "cli", "zoo"].contains(&module), "{name} has no place in the order");
            continue;
        };
        for line in text.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(other) = ORDER.iter().position(|m| *m == used) {
                    assert!(other <= place, "{name} uses {used}, which stands after it: {line}");
                }
            }
        }
    }
}

#[test]
fn one_file_owns_each_heavy_crate() {
    for (name, text) in all() {
        for (krate, owners) in OWNERS {
            let uses = text.lines().any(|l| l.contains(&format!("{krate}::")) && !l.trim_start().starts_with("//"));
            assert!(!uses || owners.contains(&name.as_str()), "{name} uses {krate}");
        }
    }
}

#[test]
fn the_mathematics_knows_nothing_of_the_file_format() {
    for (name, text) in all().iter().filter(|(n, _)| n.starts_with("src/factor/")) {
        assert!(!text.contains("crate::onnx") && !text.contains("crate::error"), "{name}");
    }
}
