//! Written graphs and reports, kept as text beside the arguments that made them. `BLESS=1` writes them anew.
//!
//! `tests/cases/NAME/args` holds the model's name here and the command line's options; `graph.txt` the written graph without
//! its weights; `report.txt` the tables, in which numbers are rounded to what is the same everywhere.

mod support;

use std::path::Path;
use std::process::Command;
use support::{ResNet, Storage, decode, dump, small_resnet};

fn model(name: &str) -> Vec<u8> {
    let small = ResNet { blocks: [2, 3, 0, 0], cifar: true, width: 16, ..ResNet::R18 };
    match name {
        "basic" => small_resnet(3),
        "two-stages" => small.build(),
        "batch-norm" => ResNet { batch_norm: true, ..small }.build(),
        "bottleneck" => ResNet { bottleneck: true, ..small }.build(),
        "ir3" => {
            let mut b = small.builder();
            b.ir_version = 3;
            b.storage = Storage::Raw;
            b.build(&["scores"])
        }
        other => panic!("no model '{other}'"),
    }
}

/// The part of a report that does not depend on the last digits of arithmetic.
fn stable(report: &str) -> String {
    report.split("\nVerification").next().unwrap_or_default().trim_end().to_owned() + "\n"
}

#[test]
fn graphs_and_reports_are_as_they_were() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut folders: Vec<_> = std::fs::read_dir(&cases).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    for case in folders {
        let args = std::fs::read_to_string(case.join("args")).unwrap();
        let mut words = args.split_whitespace();
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("in.onnx"), model(words.next().unwrap())).unwrap();
        let run = Command::new(env!("CARGO_BIN_EXE_onnx-jmd"))
            .current_dir(temp.path())
            .args(["in.onnx", "out.onnx", "--calib", "none"])
            .args(words)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}: {}", case.display(), String::from_utf8_lossy(&run.stderr));
        let graph = dump(&decode(&std::fs::read(temp.path().join("out.onnx")).unwrap()));
        let report = stable(&String::from_utf8(run.stdout).unwrap());
        for (file, fresh) in [("graph.txt", graph), ("report.txt", report)] {
            let path = case.join(file);
            if std::env::var_os("BLESS").is_some() {
                std::fs::write(&path, &fresh).unwrap();
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(fresh == kept, "{} differs; see it with BLESS=1 and git diff:\n{fresh}", path.display());
        }
    }
}
