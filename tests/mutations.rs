//! Some thousand damaged models, each from a seed: refused in a sentence or compressed to a sound file, never a panic.
//! tools/fuzz does the same without an end.

mod support;

use onnx_jmd::{Error, Model, Options, PlanFile, PlanOptions, Replay, compile};
use prost::Message;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use std::panic::catch_unwind;
use std::sync::mpsc;
use std::time::Duration;
use support::choose;
use support::mutate::{mutate, small};
use support::scene::Scene;

/// Longer than any of these takes, by far: whatever is not done by then hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many seeds: so many, or for more than a look ONNX_JMD_SEEDS=10000.
fn many(few: u64) -> u64 {
    std::env::var("ONNX_JMD_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(few)
}

/// Options chosen by chance.
fn options(rng: &mut Pcg64Mcg) -> Options {
    let (groups, plan) = choose::options(&mut |n| rng.random_range(0..n));
    Options { plan, groups, verify: None, plan_text: true, ..Options::default() }
}

/// Everything short of running the model.
fn through(bytes: &[u8], options: &Options) -> Result<(), Error> {
    let model = Model::from_bytes(bytes.to_vec())?;
    let done = compile(&model, options, &|_| ())?;
    let written = done.model.expect("not a dry run");
    let again = Model::from_bytes(written.to_bytes()).expect("what was written cannot be read");
    assert_eq!(again.outputs(), model.outputs());
    // A plan may say otherwise.
    let (before, after) = (model.parameters(), written.parameters());
    assert!(options.replay.is_some() || after <= before, "{before} parameters become {after}: {:?}", options.plan);
    Ok(())
}

/// Puts many damaged models through, of each a seed; how many came out sound.
fn all_through(seeds: std::ops::Range<u64>, damaged: fn(&mut Pcg64Mcg) -> Vec<u8>) -> usize {
    let mut sound = 0;
    for seed in seeds {
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = catch_unwind(|| {
                let mut rng = Pcg64Mcg::seed_from_u64(seed);
                let bytes = damaged(&mut rng);
                through(&bytes, &options(&mut rng)).map_err(|e| (e.to_string(), e.exit_code()))
            });
            let _ = tell.send(outcome);
        });
        match told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("seed {seed} hangs")) {
            Ok(Ok(())) => sound += 1,
            Ok(Err((text, code))) => assert!(text.len() > 20 && (1..=10).contains(&code), "seed {seed}: {text}"),
            Err(_) => panic!("seed {seed} panicked"),
        }
    }
    sound
}

fn whole(rng: &mut Pcg64Mcg) -> Vec<u8> {
    small(&mut |n| rng.random_range(0..n)).encode_to_vec()
}

/// Bits flipped, bytes cut out, repeated, taken from another model, or set to the lengths and tags that decoders trip on.
fn changed_bytes(rng: &mut Pcg64Mcg) -> Vec<u8> {
    let mut bytes = whole(rng);
    // Structure rather than weights: these make up most of the file.
    let reach = [64, 600, bytes.len()][rng.random_range(0..3)].min(bytes.len());
    for _ in 0..rng.random_range(1..5) {
        if bytes.len() < 2 {
            break;
        }
        let back = rng.random();
        let at = rng.random_range(0..reach.min(bytes.len()));
        let at = if back { bytes.len() - 1 - at } else { at };
        let end = (at + rng.random_range(1..40)).min(bytes.len());
        match rng.random_range(0..8) {
            0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, 0x0a, 0x12, 0x3a][rng.random_range(0..8)],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            6 => {
                let other = whole(rng);
                let from = rng.random_range(0..other.len());
                let to = (from + 60).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            // A length that goes on and on.
            _ => bytes[at..end.min(at + 9)].fill(0xff),
        }
    }
    bytes
}

/// The parts of a model changed, and encoded as they should be.
fn changed_parts(rng: &mut Pcg64Mcg) -> Vec<u8> {
    let mut pick = |n| rng.random_range(0..n);
    let mut model = small(&mut pick);
    for _ in 0..pick(5) {
        mutate(&mut model, &mut pick);
    }
    model.encode_to_vec()
}

#[test]
fn changed_bytes_panic_nowhere() {
    let sound = all_through(0..many(700), changed_bytes);
    // Otherwise little more than the decoder was tried.
    assert!(sound > 30, "{sound}");
}

#[test]
fn changed_parts_panic_nowhere() {
    let sound = all_through(0..many(700), changed_parts);
    assert!(sound > 100, "{sound}");
}

/// Numbers of a plan replaced by others, words by others of its words, lines left out or told twice.
fn changed_plan(text: &str, rng: &mut Pcg64Mcg) -> String {
    const OTHERS: [&str; 16] = [
        "0",
        "1",
        "2",
        "3",
        "16",
        "97",
        "-1",
        "0.5",
        "1e308",
        "nan",
        "18446744073709551615",
        "9223372036854775807",
        "\"tucker\"",
        "\"bi-jsvd\"",
        "[]",
        "true",
    ];
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..lines.len());
        match rng.random_range(0..8) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            _ => {
                let line = lines[at].clone();
                let is_word = |c: char| c.is_alphanumeric() || matches!(c, '"' | '-' | '.' | '/' | '_');
                let words: Vec<&str> = line.split(|c| !is_word(c)).filter(|w| !w.is_empty()).collect();
                let Some(word) = words.get(rng.random_range(0..words.len().max(1))) else { continue };
                lines[at] = line.replacen(word, OTHERS[rng.random_range(0..OTHERS.len())], 1);
            }
        }
    }
    lines.join("\n")
}

#[test]
fn changed_plans_panic_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    let (mut replayed, mut refused) = (0, 0);
    for seed in 0..many(300) {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let Ok(model) = Model::from_bytes(whole(&mut rng)) else { continue };
        let Ok(Some(text)) = compile(&model, &options(&mut rng), &|_| ()).map(|done| done.plan) else { continue };
        std::fs::write(&path, changed_plan(&text, &mut rng)).unwrap();
        let outcome = catch_unwind(|| {
            let file = PlanFile::open(&path)?;
            let (plan, groups) = (file.plan_options()?, file.group_options()?);
            let plan = PlanOptions { iterations: plan.iterations.min(9), ..plan };
            let replay = Some(Replay { file, retrained: seed % 2 == 0 });
            through(&model.to_bytes(), &Options { plan, groups, replay, verify: None, ..Options::default() })
        });
        match outcome {
            Ok(Ok(())) => replayed += 1,
            Ok(Err(error)) => {
                refused += 1;
                assert!(error.to_string().len() > 20 && (2..=10).contains(&error.exit_code()), "seed {seed}: {error}");
            }
            Err(_) => panic!("seed {seed} panicked"),
        }
    }
    assert!(replayed > 20 && refused > 20, "{replayed} {refused}");
}

#[test]
fn the_command_ends_with_a_documented_code_and_leaves_no_file_behind() {
    for seed in 0..many(36) {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let bytes = if seed % 3 == 0 { changed_bytes(&mut rng) } else { changed_parts(&mut rng) };
        let scene = Scene::new(&bytes);
        let output = scene.run("in.onnx out.onnx --ratio 1.3 --max-memory 4 --verify-inputs 1 -q");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code().unwrap_or_else(|| panic!("seed {seed}: {:?} {stderr}", output.status));
        assert!((0..=13).contains(&code) && !stderr.contains("internal error"), "seed {seed}: {code} {stderr}");
        assert_eq!(stderr.lines().count(), usize::from(code != 0), "seed {seed}: {stderr}");
        assert!(scene.read("in.onnx") == bytes, "seed {seed}: the input was touched");
        if matches!(code, 0 | 4) {
            assert_eq!(scene.files(), ["in.onnx", "out.onnx"], "seed {seed}");
            Model::open(scene.path("out.onnx")).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        } else {
            assert_eq!(scene.files(), ["in.onnx"], "seed {seed}: {stderr}");
        }
    }
}
