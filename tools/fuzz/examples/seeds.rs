//! Writes a first corpus for each target: `cargo run --example seeds -- FOLDER`.

use onnx_jmd_fuzz::Choice;
use onnx_jmd_fuzz::support::{mutate, scene::npy};
use prost::Message;
use rand::{RngExt, SeedableRng};
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "corpus".into());
    let folder = Path::new(&folder);
    let write = |target: &str, name: String, bytes: &[u8]| {
        std::fs::create_dir_all(folder.join(target))?;
        std::fs::write(folder.join(target).join(name), bytes)
    };
    let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(1);
    for at in 0..40 {
        let bytes = mutate::small(&mut |n| rng.random_range(0..n)).encode_to_vec();
        write("bytes_to_model", format!("model-{at}"), &bytes)?;
        let choice: Choice = rng.random();
        write("compile", format!("model-{at}"), &[&choice[..], &bytes].concat())?;
        let choices: Vec<u8> = (0..200).map(|_| rng.random()).collect();
        write("mutated_model", format!("choices-{at}"), &choices)?;
    }
    let array = npy("<f4", &[2, 1, 2, 2], &[0; 32]);
    let labels = npy("|u1", &[4], &[1, 2, 3, 4]);
    let tensor = mutate::small(&mut |_| 0).graph.and_then(|g| g.initializer.into_iter().next()).unwrap_or_default();
    for (at, (kind, bytes)) in [
        (0u8, PLAN.as_bytes().to_vec()),
        (1, array.clone()),
        (1, labels),
        (2, stored("image.npy", &array)),
        (3, tensor.encode_to_vec()),
        (6, b"location=data.bin\noffset=0\nlength=64\n".to_vec()),
        (6, b"location=../data.bin\nlength=-1\n".to_vec()),
    ]
    .into_iter()
    .enumerate()
    {
        write("parsers", format!("file-{at}"), &[&[kind], &bytes[..]].concat())?;
    }
    Ok(())
}

const PLAN: &str = r#"version = 1
onnx-jmd = "0.1.0"
[model]
sha256 = "00"
[options]
scheme = "ljsvd"
unfolding = "spatial"
ratio = 2.0
align = 16
allow-more-macs = false
iterations = 30
group-by = "role"
keep-bn = false
include = "a.*b"
input-shape = ["image:1,3,8,8"]
[calibration]
source = "x"
samples = 3
mirror = true
held-out = false
repair = true
preprocessing = { mean = [0.5] }
[[group]]
name = "g1"
scheme = "bi-jsvd"
unfolding = "spatial"
split = 0.5
ranks = [3]
members = [{ node = "a", kernel = [1, 2, 3, 3], weights = "00" }]
"#;

/// A zip archive of one file as it is.
fn stored(name: &str, bytes: &[u8]) -> Vec<u8> {
    let (size, length) = ((bytes.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
    let crc = !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc.to_le_bytes(), &size, &size, &length, &[0, 0]].concat();
    let local = [&b"PK\x03\x04"[..], &common, name.as_bytes(), bytes].concat();
    let central = [&b"PK\x01\x02\x14\x00"[..], &common, &[0; 14], name.as_bytes()].concat();
    let (from, long) = ((local.len() as u32).to_le_bytes(), (central.len() as u32).to_le_bytes());
    [&local[..], &central, b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &long, &from, &[0, 0]].concat()
}
