//! External data: read as if it stood in the model, written beside it, and never looked for outside the model's folder.

mod support;

use onnx_jmd::Model;
use prost::Message;
use support::proto::{ModelProto, StringStringEntryProto, tensor_proto::DataLocation};
use support::scene::Scene;
use support::{decode, small_resnet};

/// The model with its tensors in `weights.bin`, the way exporters write it: offsets in order, nothing between.
fn split(model: &[u8]) -> (ModelProto, Vec<u8>) {
    let (mut model, mut data) = (decode(model), Vec::new());
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let raw = match tensor.raw_data.take() {
            Some(raw) => raw.to_vec(),
            None => tensor.float_data.drain(..).flat_map(f32::to_le_bytes).collect(),
        };
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        let (offset, length) = (data.len().to_string(), raw.len().to_string());
        tensor.external_data =
            vec![entry("location", "weights.bin".into()), entry("offset", offset), entry("length", length)];
        tensor.data_location = Some(DataLocation::External as i32);
        data.extend(raw);
    }
    (model, data)
}

/// A scene in which `in.onnx` has its tensors in `weights.bin`.
fn scene(change: impl Fn(&mut ModelProto)) -> Scene {
    let (mut model, data) = split(&small_resnet(3));
    change(&mut model);
    let scene = Scene::new(&model.encode_to_vec());
    std::fs::write(scene.path("weights.bin"), data).unwrap();
    scene
}

/// Sets an entry of the first tensor.
fn set(model: &mut ModelProto, key: &str, value: &str) {
    let entries = &mut model.graph.as_mut().unwrap().initializer[0].external_data;
    entries.iter_mut().find(|e| e.key() == key).unwrap().value = Some(value.into());
}

#[test]
fn data_in_another_file_is_as_good_as_in_the_model() {
    let scene = scene(|_| ());
    std::fs::write(scene.path("whole.onnx"), small_resnet(3)).unwrap();
    scene.succeeds("in.onnx out.onnx --ratio 1.6 -q");
    scene.succeeds("whole.onnx same.onnx --ratio 1.6 -q");
    assert!(scene.read("out.onnx") == scene.read("same.onnx"));
    // From another folder, through a link, and with parts that nothing reads behind the tensors.
    std::fs::write(scene.path("weights.bin"), [scene.read("weights.bin"), vec![1; 99]].concat()).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(scene.path("in.onnx"), scene.path("elsewhere/link.onnx")).unwrap();
        scene.succeeds("elsewhere/link.onnx again.onnx --ratio 1.6 -q");
        assert!(scene.read("again.onnx") == scene.read("same.onnx"));
    }
}

#[test]
fn large_tensors_are_written_beside_the_model_if_that_is_asked_for() {
    let scene = Scene::new(&small_resnet(3));
    scene.succeeds("in.onnx one.onnx --ratio 1.6 --scheme ljsvd -q");
    scene.succeeds("in.onnx two.onnx --ratio 1.6 --scheme ljsvd -q --external-data");
    let files = scene.files();
    let data = files.iter().find(|f| f.starts_with("two.onnx.") && f.ends_with(".data")).unwrap();
    assert!(files.len() == 4 && scene.read("two.onnx").len() < scene.read("one.onnx").len());
    let offsets = decode(&scene.read("two.onnx")).graph.unwrap().initializer;
    let offsets = offsets.iter().filter_map(|t| t.external_data.iter().find(|e| e.key() == "offset"));
    let offsets: Vec<u64> = offsets.map(|e| e.value().parse().unwrap()).collect();
    assert!(offsets.len() > 2 && offsets.iter().all(|o| o % 4096 == 0), "{offsets:?}");
    // The two are one model, to every command.
    scene.succeeds("verify one.onnx two.onnx --max-difference 0");
    let parameters = |name| Model::open(scene.path(name)).unwrap().parameters();
    assert_eq!(parameters("one.onnx"), parameters("two.onnx"));
    // The same again is the same file; other data gets another name, and what was there stays.
    scene.succeeds("in.onnx two.onnx --ratio 1.6 --scheme ljsvd -q --external-data");
    assert_eq!(scene.files(), files);
    scene.succeeds("in.onnx two.onnx --ratio 1.4 --scheme ljsvd -q --external-data");
    assert!(scene.files().contains(data) && scene.files().len() == 5);
}

#[test]
fn the_size_from_which_tensors_stand_beside_the_model_is_the_callers_choice() {
    let scene = Scene::new(&small_resnet(3));
    let small = "in.onnx two.onnx --ratio 1.6 --scheme ljsvd -q";
    scene.succeeds(small);
    let sizes = |outside: bool| {
        let stored = decode(&scene.read("two.onnx")).graph.unwrap().initializer.into_iter();
        let sizes = stored.filter(|t| t.external_data.is_empty() != outside).map(|t| match outside {
            true => t.external_data.iter().find(|e| e.key() == "length").unwrap().value().parse().unwrap(),
            false => t.raw_data.map_or(0, |raw| raw.len()),
        });
        sizes.collect::<Vec<usize>>()
    };
    let all = sizes(false);
    let largest = *all.iter().max().unwrap();
    for threshold in [0, 1, largest, usize::MAX] {
        scene.succeeds(&format!("{small} --external-data --external-data-threshold {threshold}"));
        assert!(
            sizes(true).iter().all(|&n| n >= threshold.max(1)) && sizes(false).iter().all(|&n| n < threshold.max(1))
        );
        assert_eq!(sizes(true).len(), all.iter().filter(|&&n| n >= threshold.max(1)).count());
        scene.succeeds(&format!("{small} --check --external-data --external-data-threshold {threshold}"));
        for (other, options) in
            [(usize::MAX, ""), (1024, " --external-data"), (2000, " --external-data --external-data-threshold 2000")]
        {
            let beside = |least: usize| all.iter().filter(|&&n| n >= least.max(1)).count();
            let code = if beside(other) == beside(threshold) { 0 } else { 12 };
            assert_eq!(
                scene.run(&format!("{small} --check{options}")).status.code(),
                Some(code),
                "{threshold}{options}"
            );
        }
    }
    let refused = scene.run(&format!("{small} --external-data-threshold 9"));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--external-data"));
    // In a project's file it is of use where the other is asked for.
    std::fs::write(scene.path("onnx-jmd.toml"), format!("external-data-threshold = {largest}\n")).unwrap();
    scene.succeeds(small);
    assert!(sizes(true).is_empty());
    scene.succeeds(&format!("{small} --external-data"));
    assert!(!sizes(true).is_empty() && sizes(true).iter().all(|&n| n == largest));
}

#[test]
fn data_that_is_read_is_not_written_to() {
    let scene = scene(|_| ());
    let data = scene.read("weights.bin");
    for arguments in [
        "in.onnx weights.bin --ratio 1.6",
        "in.onnx out.onnx --ratio 1.6 --json ./weights.bin",
        "in.onnx out.onnx --ratio 1.6 --plan-out weights.bin",
        "inspect in.onnx --json weights.bin",
        "verify in.onnx in.onnx --json weights.bin",
        "tune in.onnx weights.bin --teacher in.onnx --calib drawn",
    ] {
        let message = scene.fails(arguments, 2);
        assert!(message.contains("is an input"), "{message}");
    }
    assert!(scene.read("weights.bin") == data);
    assert_eq!(scene.files(), ["in.onnx", "weights.bin"]);
}

#[test]
fn places_outside_the_folder_or_the_file_are_refused() {
    for (key, value, reason) in [
        ("location", "../weights.bin", "within the model's folder"),
        ("location", "/etc/hostname", "within the model's folder"),
        ("location", "a/../../weights.bin", "within the model's folder"),
        ("location", "", "names no file"),
        ("location", "missing.bin", "put it beside the model"),
        ("location", ".", "not a file"),
        ("offset", "99999999", "should end at byte"),
        ("offset", "18446744073709551615", "beyond any file"),
        ("offset", "-4", "not a number"),
        ("length", "1e9", "not a number"),
        ("length", "18446744073709551615", "should end at byte"),
    ] {
        let scene = scene(|model| set(model, key, value));
        let message = scene.fails("in.onnx out.onnx --ratio 1.6", 3);
        let first = decode(&scene.read("in.onnx")).graph.unwrap().initializer[0].name().to_owned();
        assert!(message.contains(&first) && message.contains(reason), "{key} = {value}: {message}");
        assert_eq!(scene.files(), ["in.onnx", "weights.bin"]);
    }
    // As long as it says, but not as long as its dimensions.
    let scene = scene(|model| set(model, "length", "4"));
    assert!(scene.fails("in.onnx out.onnx --ratio 1.6", 3).contains("elements"));
}

#[test]
#[cfg(unix)]
fn a_link_out_of_the_folder_is_refused() {
    let scene = scene(|_| ());
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(scene.path("weights.bin"), outside.path().join("w.bin")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("w.bin"), scene.path("weights.bin")).unwrap();
    assert!(scene.fails("in.onnx out.onnx --ratio 1.6", 3).contains("leads out"));
}

#[test]
fn one_file_is_read_once_however_it_is_spelt() {
    // Otherwise a model of some kilobytes reads one large file a thousand times.
    let (mut model, data) = split(&small_resnet(3));
    for (at, tensor) in model.graph.as_mut().unwrap().initializer.iter_mut().enumerate() {
        tensor.external_data[0].value = Some("./".repeat(at) + "weights.bin");
    }
    let scene = Scene::new(&model.encode_to_vec());
    let room = 256 << 20;
    std::fs::write(scene.path("weights.bin"), data).unwrap();
    std::fs::OpenOptions::new().write(true).open(scene.path("weights.bin")).unwrap().set_len(room).unwrap();
    let last = model.graph.as_mut().unwrap().initializer.iter_mut();
    for tensor in last {
        tensor.dims = vec![room as i64 / 4];
        tensor.external_data.retain(|e| e.key() == "location");
    }
    std::fs::write(scene.path("many.onnx"), model.encode_to_vec()).unwrap();
    scene.succeeds("in.onnx out.onnx --ratio 1.6 -q --no-verify");
    scene.succeeds("inspect many.onnx -q --max-memory 0.4");
}
