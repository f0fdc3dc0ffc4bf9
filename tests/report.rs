//! The report in pictures: whole, self-contained, and without effect on the result.

mod support;

use support::scene::{Scene, few_images, fixture};
use support::{decode, small_resnet};

/// Tags that are opened and closed, in their order; the few that need no end are left out.
fn is_well_formed(page: &str) -> bool {
    let mut open: Vec<&str> = Vec::new();
    for part in page.split('<').skip(1) {
        let name = part.split(|c: char| c.is_whitespace() || c == '>').next().unwrap();
        match name.strip_prefix('/') {
            Some(closed) => {
                if open.pop() != Some(closed) {
                    return false;
                }
            }
            None if ["!DOCTYPE", "meta", "br"].contains(&name) => {}
            None => open.push(name),
        }
    }
    open.is_empty()
}

#[test]
fn a_page_shows_it_all_and_needs_nothing_else() {
    let mut model = decode(&small_resnet(3));
    let graph = model.graph.as_mut().unwrap();
    let conv = graph.node.iter_mut().find(|n| n.op_type() == "Conv").unwrap();
    conv.name = Some("<script>alert(1)</script>\"&".into());
    let scene = Scene::new(&prost::Message::encode_to_vec(&model));
    scene.succeeds("in.onnx out.onnx --ratio 1.7 --scheme ljsvd -q --report report.html");
    let page = scene.text("report.html");
    assert!(is_well_formed(&page) && page.starts_with("<!DOCTYPE html>"));
    for part in ["What each group became", "before and after", "Spectra", "on its way", "Left alone", "Verification"] {
        assert!(page.contains(part), "{part} is missing");
    }
    assert!(page.contains("shared by 3") && page.contains("prefers-color-scheme: dark"));
    for foreign in ["http", "<script", "src=", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let with = scene.read("out.onnx");
    scene.succeeds("in.onnx out.onnx --ratio 1.7 --scheme ljsvd -q");
    assert!(scene.read("out.onnx") == with);
    assert!(scene.fails("in.onnx out.onnx --ratio 1.7 --report out.onnx", 2).contains("--report"));
    assert!(!scene.fails("in.onnx out.onnx --ratio 1.7 --curve 2", 2).is_empty());
    assert!(!scene.fails("in.onnx out.onnx --ratio 1.7 --report r.html --curve 2,x", 2).is_empty());
}

#[test]
fn its_curve_is_what_runs_at_those_ratios_give() {
    let scene = Scene::new(&std::fs::read(fixture("fashion-resnet.onnx")).unwrap());
    few_images(&scene, 300);
    let scored = "--scheme separate -q --images images.npy --labels labels.npy";
    scene.succeeds(&format!("in.onnx out.onnx --ratio 8 {scored} --report report.html --curve 4"));
    let page = scene.text("report.html");
    let alone = scene.succeeds(&format!("in.onnx out.onnx --ratio 4 {scored} --json -"));
    let alone: serde_json::Value = serde_json::from_str(&alone).unwrap();
    let top1 = format!("{:.2} %", 100.0 * alone["score"]["top1_after"].as_f64().unwrap());
    let ratio = format!("{:.2}×", alone["totals"]["parameters"]["ratio"].as_f64().unwrap());
    assert!(page.contains(&format!("{ratio}: {top1}")), "{ratio}: {top1}");
    let before = 100.0 * alone["score"]["top1_before"].as_f64().unwrap();
    assert!(page.contains(&format!("original {before:.2}")) && before > 90.0);
}

#[test]
fn a_page_is_written_where_the_model_cannot_be_run() {
    let mut model = decode(&small_resnet(3));
    let graph = model.graph.as_mut().unwrap();
    graph.node.iter_mut().find(|n| n.op_type() == "Relu").unwrap().op_type = Some("NoSuchOperator".into());
    let scene = Scene::new(&prost::Message::encode_to_vec(&model));
    scene.succeeds("in.onnx out.onnx --ratio 1.7 --no-verify -q --report report.html");
    let page = scene.text("report.html");
    assert!(page.contains("Spectra") && page.contains("was not followed") && is_well_formed(&page));
}

#[test]
fn a_dry_run_has_spectra_and_nothing_done_has_reasons() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds("in.onnx --ratio 1.7 --dry-run -q --report report.html");
    let page = scene.text("report.html");
    assert!(page.contains("Spectra") && !page.contains("on its way") && is_well_formed(&page));
    assert_eq!(scene.run("in.onnx out.onnx --ratio 1.7 --exclude . --report left.html -q").status.code(), Some(4));
    assert!(scene.text("left.html").contains("left out by --include or --exclude"));
}
