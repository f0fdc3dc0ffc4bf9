//! What --calib and --images take: pictures, arrays, tensors and drawn pictures, how they are preprocessed, and what is
//! refused.

mod support;

use bytes::Bytes;
use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use prost::Message;
use std::io::Write;
use std::path::Path;
use support::proto::TensorProto;
use support::scene::{Scene, npy};
use support::{ConvSpec, ModelBuilder, small_resnet, value};

/// The arguments with which each of these runs.
fn asked(arguments: &str) -> String {
    let calibrated = if arguments.contains("--calib") { "" } else { " --calib none" };
    format!("in.onnx out.onnx --ratio 1.5 --scheme separate --no-verify {arguments}{calibrated}")
}

impl Scene {
    /// The bytes written, and what was said on the way.
    fn writes(&self, arguments: &str) -> (Vec<u8>, String) {
        let output = self.run_exactly(&asked(arguments));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments}: {stderr}");
        let bytes = self.read("out.onnx");
        std::fs::remove_file(self.path("out.onnx")).unwrap();
        (bytes, stderr)
    }

    /// Expects exit code 2 and nothing written; gives the sentence.
    fn refuses(&self, arguments: &str) -> String {
        let sentence = self.fails(&asked(arguments), 2);
        assert!(!self.path("out.onnx").exists(), "{arguments}");
        sentence
    }
}

/// A colour at each pixel of each picture, so that axes cannot be mixed up unnoticed.
fn pixel(picture: usize, y: usize, x: usize, channel: usize) -> u8 {
    ((picture * 37 + y * (5 + channel) + x * (3 + 2 * channel) + channel * 61) % 251) as u8
}

/// `count` pictures of 3 channels, 32×32, channels first or last.
fn pixels(count: usize, last: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for picture in 0..count {
        for at in 0..3 * 32 * 32 {
            let (c, y, x) = if last { (at % 3, at / 96, at / 3 % 32) } else { (at / 1024, at / 32 % 32, at % 32) };
            bytes.push(pixel(picture, y, x, c));
        }
    }
    bytes
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn npz(path: &Path, arrays: &[(&str, Vec<u8>)], method: zip::CompressionMethod) {
    let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, array) in arrays {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        writer.start_file(format!("{name}.npy"), options).unwrap();
        writer.write_all(array).unwrap();
    }
    writer.finish().unwrap();
}

fn pb(data_type: i32, dims: &[i64], raw: Vec<u8>) -> Vec<u8> {
    let raw_data = Some(Bytes::from(raw));
    TensorProto { dims: dims.to_vec(), data_type: Some(data_type), raw_data, ..TensorProto::default() }.encode_to_vec()
}

/// A model with two pictures as inputs, and the same 3×3 convolutions on both.
fn two_inputs() -> Vec<u8> {
    let mut b = ModelBuilder::new(&[1, 8, 10, 10], 5);
    b.graph.input.push(value("other", &[1, 8, 10, 10]));
    let mut x = b.add("image", "other");
    for _ in 0..3 {
        let y = b.conv(&x, &ConvSpec::new(8, 3));
        let y = b.relu(&y);
        x = b.add(&y, &x);
    }
    b.build(&[&x])
}

#[test]
fn pictures_arrays_and_tensors_of_the_same_pixels_give_the_same_bytes() {
    let scene = Scene::new(&small_resnet(2));
    let mut names = Vec::new();
    for picture in 0..4 {
        let image = RgbImage::from_fn(32, 32, |x, y| Rgb([0, 1, 2].map(|c| pixel(picture, y as usize, x as usize, c))));
        // Sorted by name, sub-folders and capitals included; other files are passed over.
        let name = ["a.png", "b/c.PNG", "b/d.png", "e.png"][picture];
        image.save(scene.path(&format!("pictures/{name}"))).unwrap();
        names.push(name);
    }
    std::fs::write(scene.path("pictures/notes.txt"), "no picture").unwrap();
    std::fs::write(scene.path("first.npy"), npy("|u1", &[4, 3, 32, 32], &pixels(4, false))).unwrap();
    std::fs::write(scene.path("last.npy"), npy("|u1", &[4, 32, 32, 3], &pixels(4, true))).unwrap();
    let units = floats(pixels(4, false).into_iter().map(|b| f32::from(b) / 255.0));
    std::fs::write(scene.path("floats.npy"), npy("<f4", &[4, 3, 32, 32], &units)).unwrap();
    for (name, method) in [("stored", zip::CompressionMethod::Stored), ("deflated", zip::CompressionMethod::Deflated)] {
        let array = npy("|u1", &[4, 3, 32, 32], &pixels(4, false));
        npz(&scene.path(&format!("{name}.npz")), &[("image", array)], method);
    }
    std::fs::write(scene.path("batch.pb"), pb(1, &[4, 3, 32, 32], units.clone())).unwrap();
    for (set, sample) in pixels(4, false).chunks(3 * 32 * 32).enumerate() {
        std::fs::write(
            scene.path(&format!("sets/test_data_set_{set}/input_0.pb")),
            pb(2, &[3, 32, 32], sample.to_vec()),
        )
        .unwrap();
        std::fs::write(scene.path(&format!("sets/test_data_set_{set}/output_0.pb")), b"passed over").unwrap();
    }
    let (expected, said) = scene.writes("--calib first.npy");
    assert!(said.contains("0-1 assumed"), "{said}");
    for other in ["pictures", "last.npy", "floats.npy", "stored.npz", "deflated.npz", "batch.pb", "sets"] {
        let (bytes, _) = scene.writes(&format!("--calib {other} --preprocess 0-1"));
        assert!(bytes == expected, "{other}");
    }
    assert!(scene.writes("--calib last.npy --layout nhwc").0 == expected);
    assert!(scene.writes("--calib none").0 != expected);
    let message = scene.refuses("--calib last.npy --layout nchw");
    assert!(message.contains("last.npy") && message.contains("--layout"), "{message}");
    let (_, said) = scene.writes("--calib pictures");
    assert!(said.contains("pictures: --preprocess imagenet assumed"), "{said}");
}

#[test]
fn grey_pictures_become_colour_and_alpha_is_dropped() {
    let scene = Scene::new(&small_resnet(2));
    let grey = |x: u32, y: u32| pixel(0, y as usize, x as usize, 0);
    GrayImage::from_fn(100, 40, |x, y| Luma([grey(x, y)])).save(scene.path("grey/0.png")).unwrap();
    RgbImage::from_fn(100, 40, |x, y| Rgb([grey(x, y); 3])).save(scene.path("colour/0.png")).unwrap();
    let alpha = |x: u32, y: u32| Rgba([grey(x, y), grey(x, y), grey(x, y), (x % 7) as u8]);
    RgbaImage::from_fn(100, 40, alpha).save(scene.path("alpha/0.png")).unwrap();
    let written = |path: &str| scene.writes(&format!("--calib {path} --preprocess cifar")).0;
    let expected = written("colour");
    for other in ["grey", "alpha", "grey/0.png"] {
        assert!(written(other) == expected, "{other}");
    }
}

#[test]
fn several_inputs_are_fed_by_name_or_number() {
    let scene = Scene::new(&two_inputs());
    let values = |shift: f32| floats((0..6 * 800).map(|i| (i as f32 * 0.37 + shift).sin()));
    let arrays =
        [("other", npy("<f4", &[6, 8, 10, 10], &values(1.0))), ("image", npy("<f4", &[6, 8, 10, 10], &values(0.0)))];
    npz(&scene.path("both.npz"), &arrays, zip::CompressionMethod::Stored);
    for (number, shift) in [0.0, 1.0].into_iter().enumerate() {
        std::fs::write(scene.path(&format!("set/input_{number}.pb")), pb(1, &[6, 8, 10, 10], values(shift))).unwrap();
    }
    assert!(scene.writes("--calib both.npz").0 == scene.writes("--calib set").0);
    std::fs::write(scene.path("one.npy"), &arrays[0].1).unwrap();
    let message = scene.refuses("--calib one.npy");
    assert!(message.contains("one.npy") && message.contains("'other'") && message.contains(".npz"), "{message}");
    npz(&scene.path("half.npz"), &arrays[..1], zip::CompressionMethod::Stored);
    let message = scene.refuses("--calib half.npz");
    assert!(message.contains("half.npz") && message.contains("'image', 'other'"), "{message}");
    let fewer = [("image", npy("<f4", &[1, 8, 10, 10], &values(0.0)[..3200])), ("other", arrays[0].1.clone())];
    npz(&scene.path("fewer.npz"), &fewer, zip::CompressionMethod::Stored);
    let message = scene.refuses("--calib fewer.npz");
    assert!(message.contains("6 samples") && message.contains("'image' holds 1"), "{message}");
    std::fs::remove_file(scene.path("set/input_1.pb")).unwrap();
    assert!(scene.refuses("--calib set").contains("input_1.pb"));
}

#[test]
fn presets_are_their_numbers_and_numbers_override_them() {
    let scene = Scene::new(&small_resnet(2));
    std::fs::write(scene.path("x.npy"), npy("|u1", &[4, 3, 32, 32], &pixels(4, false))).unwrap();
    let bytes = |how: &str| scene.writes(&format!("--calib x.npy {how}")).0;
    let imagenet = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225";
    assert!(bytes("--preprocess imagenet") == bytes(imagenet));
    assert!(bytes("--preprocess cifar --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225") == bytes(imagenet));
    assert!(bytes("--preprocess -1-1") == bytes("--mean 0.5 --std 0.5"));
    assert!(bytes("--preprocess 0-255") == bytes("--scale 1"));
    assert!(bytes("--preprocess 0-1") == bytes("") && bytes("") != bytes("--scale 1"));
    for wrong in ["--std 0", "--scale 0", "--mean 1,2"] {
        let message = scene.refuses(&format!("--calib x.npy {wrong}"));
        assert!(message.contains(&wrong[..5]), "{message}");
    }
}

#[test]
fn a_model_that_normalises_itself_gets_the_pixels_that_it_reads() {
    let model = |mean: [f32; 3], scale: f32| {
        let mut b = ModelBuilder::new(&[1, 3, 16, 16], 5);
        let mean = b.store("mean", &[1, 3, 1, 1], mean.to_vec());
        let scale = b.store("scale", &[1], vec![scale]);
        b.node("Sub", &["image", &mean], "centred", vec![]);
        b.node("Mul", &["centred", &scale], "normal", vec![]);
        let weight = b.tensor("w", &[8, 3, 3, 3], 0.2);
        b.node("Conv", &["normal", &weight], "stem", vec![support::ints("kernel_shape", &[3, 3])]);
        let other = b.tensor("v", &[8, 8, 3, 3], 0.1);
        b.node("Conv", &["stem", &other], "y", vec![support::ints("kernel_shape", &[3, 3])]);
        b.build(&["y"])
    };
    for (mean, scale, preset) in
        [([123.7, 116.3, 103.5], 0.017, "0-255"), ([0.485, 0.456, 0.406], 4.4, "0-1"), ([0.0; 3], 1.0, "imagenet")]
    {
        let scene = Scene::new(&model(mean, scale));
        let (_, said) = scene.writes("--calib drawn --calib-samples 8");
        assert!(said.contains(&format!("drawn pictures: --preprocess {preset} assumed")), "{said}");
    }
}

#[test]
fn drawn_pictures_do_not_depend_on_threads_and_need_an_image_as_input() {
    let scene = Scene::new(&small_resnet(2));
    let drawn = |how: &str| scene.writes(&format!("--calib drawn --calib-samples 12 {how}")).0;
    let once = drawn("--threads 1");
    assert!(once == drawn("--threads 3") && once != drawn("--seed 1") && once != scene.writes("--calib none").0);
    let message = Scene::new(&two_inputs()).refuses("--calib drawn");
    assert!(message.contains("input 'image' of shape [1, 8, 10, 10] is not an image"), "{message}");
    assert!(message.contains("--calib FILE") && message.contains("--calib none"), "{message}");
}

#[test]
fn inputs_that_cannot_be_used_are_named_and_nothing_is_written() {
    let scene = Scene::new(&small_resnet(2));
    let whole = npy("<f4", &[2, 3, 32, 32], &floats((0..2 * 3072).map(|i| i as f32)));
    std::fs::create_dir(scene.path("empty")).unwrap();
    std::fs::write(scene.path("corrupt/bad.png"), b"\x89PNG\r\n\x1a\nnot really").unwrap();
    std::fs::write(scene.path("short.npy"), &whole[..5000]).unwrap();
    npz(&scene.path("whole.npz"), &[("image", whole.clone())], zip::CompressionMethod::Stored);
    let archive = std::fs::read(scene.path("whole.npz")).unwrap();
    std::fs::write(scene.path("short.npz"), &archive[..4000]).unwrap();
    npz(&scene.path("inner.npz"), &[("image", whole[..4000].to_vec())], zip::CompressionMethod::Stored);
    npz(&scene.path("name.npz"), &[("x", whole.clone())], zip::CompressionMethod::Stored);
    let tensor = pb(1, &[2, 3, 32, 32], vec![0; 4 * 2 * 3072]);
    std::fs::write(scene.path("short.pb"), &tensor[..3000]).unwrap();
    std::fs::write(scene.path("text.pb"), b"").unwrap();
    std::fs::write(scene.path("size.pb"), pb(1, &[2, 3, 32, 32], vec![0; 12])).unwrap();
    std::fs::write(scene.path("shape.npy"), npy("|u1", &[2, 3, 30, 32], &[0; 2 * 3 * 30 * 32])).unwrap();
    std::fs::write(scene.path("channels.npy"), npy("|u1", &[2, 1, 32, 32], &[0; 2048])).unwrap();
    std::fs::write(scene.path("none.npy"), npy("|u1", &[0, 3, 32, 32], &[])).unwrap();
    std::fs::write(scene.path("wide.npy"), npy("<i8", &[1, 3, 32, 32], &[0; 8 * 3072])).unwrap();
    for (name, wrong) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
        let data = floats((0..3072).map(|i| if i == 99 { wrong } else { 0.5 }));
        std::fs::write(scene.path(&format!("{name}.npy")), npy("<f4", &[1, 3, 32, 32], &data)).unwrap();
    }
    for (file, says) in [
        ("missing", "no such file"),
        ("missing.npz", "no such file"),
        ("empty", "no PNG or JPEG"),
        ("corrupt", "bad.png"),
        ("corrupt/bad.png", "cannot be read"),
        ("short.npy", "truncated"),
        ("short.npz", "not a whole"),
        ("inner.npz", "truncated"),
        ("name.npz", "arrays 'x', but the model reads 'image'"),
        ("short.pb", "truncated"),
        ("text.pb", "not an ONNX tensor"),
        ("size.pb", "6144"),
        ("shape.npy", "one image is [3, 30, 32]"),
        ("channels.npy", "[1, 32, 32], but the model reads [1, 3, 32, 32]"),
        ("none.npy", "no images"),
        ("wide.npy", "uint8 or float32"),
        ("nan.npy", "NaN"),
        ("inf.npy", "infinite"),
        ("in.onnx", "not a .npy"),
    ] {
        for option in ["--calib", "--images"] {
            let message = scene.refuses(&format!("{option} {file}"));
            assert!(message.contains(file) && message.contains(says), "{option} {file}: {message}");
        }
    }
    std::fs::write(scene.path("labels.npy"), npy("|u1", &[3], &[0; 3])).unwrap();
    let message = scene.refuses("--images whole.npz --labels labels.npy");
    assert!(
        message.contains("labels.npy") && message.contains("3 labels") && message.contains("2 images"),
        "{message}"
    );
}

#[test]
fn a_model_of_a_fixed_batch_is_run_on_one_image_if_that_is_said() {
    let mut b = ModelBuilder::new(&[2, 3, 32, 32], 3);
    let x = b.conv("image", &ConvSpec::new(12, 3));
    let x = b.conv(&x, &ConvSpec::new(12, 3));
    let scene = Scene::new(&b.build(&[&x]));
    std::fs::write(scene.path("x.npy"), npy("|u1", &[20, 3, 32, 32], &pixels(20, false))).unwrap();
    let message = scene.refuses("--calib x.npy");
    assert!(message.contains("reads 2 at a time, give --input-shape image:1,3,32,32"), "{message}");
    scene.writes("--calib x.npy --input-shape image:1,3,32,32");
}

#[test]
fn pixels_that_scaling_makes_no_numbers_are_refused() {
    let scene = Scene::new(&small_resnet(2));
    std::fs::write(scene.path("x.npy"), npy("|u1", &[2, 3, 32, 32], &pixels(2, false))).unwrap();
    for command in ["verify in.onnx in.onnx", "in.onnx out.onnx --ratio 1.5"] {
        let message = scene.fails(&format!("{command} --images x.npy --scale 1e38 --std 1e-38 -q"), 2);
        assert!(message.contains("x.npy: pixels of sample 0") && message.contains("--scale"), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn samples_that_show_nothing_are_refused() {
    let scene = Scene::new(&small_resnet(2));
    for (value, last) in [(0, 0), (7, 7), (0, 200)] {
        // One pixel is enough to see something.
        let mut black = vec![value; 2 * 3 * 32 * 32];
        *black.last_mut().unwrap() = last;
        std::fs::write(scene.path("black.npy"), npy("|u1", &[2, 3, 32, 32], &black)).unwrap();
        if last == value {
            let message = scene.refuses("--calib black.npy");
            assert!(message.contains("black.npy") && message.contains("one value throughout"), "{message}");
        } else {
            scene.writes("--calib black.npy");
        }
    }
}

#[test]
fn a_pipe_in_a_folder_of_pictures_is_no_picture() {
    let scene = Scene::new(&small_resnet(2));
    RgbImage::from_fn(32, 32, |x, y| Rgb([x as u8, y as u8, 9])).save(scene.path("pictures/a.png")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(scene.path("pictures/b.png")).status().unwrap();
    assert!(made.success());
    // What is in it would never come.
    scene.succeeds("in.onnx out.onnx --ratio 1.2 --images pictures -q --max-time 60s");
}

#[test]
fn inputs_that_become_no_numbers_are_refused_in_a_sentence() {
    let scene = Scene::new(&small_resnet(2));
    let pixels: Vec<u8> =
        (0..40 * 3 * 32 * 32).flat_map(|at| if at % 7 > 0 { 1e38f32 } else { 9e37 }.to_le_bytes()).collect();
    std::fs::write(scene.path("large.npy"), npy("<f4", &[40, 3, 32, 32], &pixels)).unwrap();
    let message = scene.fails("in.onnx out.onnx --ratio 1.5 --calib large.npy -q", 2);
    assert!(message.contains("large.npy: what 'Conv_") && message.contains("--preprocess"), "{message}");
    assert_eq!(scene.files(), ["in.onnx", "large.npy"]);
}
