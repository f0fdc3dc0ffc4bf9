//! Outputs when things go wrong around them: a full disk, no permission, a kill, a race, a folder that goes. What is at the target
//! is then the old file or the new one, whole, and nothing else stays but temporary files of killed runs.
#![cfg(unix)]

mod support;

use onnx_jmd::Model;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::scene::Scene;
use support::small_resnet;

const OLD: &[u8] = b"what was there before";

fn command(scene: &Scene, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-jmd"));
    command.current_dir(scene.folder.path()).args(arguments.split_whitespace()).args(["--calib", "none"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn spawned(scene: &Scene, arguments: &str) -> Child {
    command(scene, arguments).spawn().unwrap()
}

/// Runs where files may not grow beyond some kibibytes, which is reported as on a full disk.
fn with_little_room(scene: &Scene, kibibytes: usize, arguments: &str) -> Output {
    // Blocks of half a kibibyte, as POSIX has it; the signal would end the process before the error is seen.
    let script = format!("trap '' XFSZ; ulimit -f {} && exec \"$0\" {arguments} --calib none", 2 * kibibytes);
    let mut sh = Command::new("sh");
    let run = sh.args(["-c", &script, env!("CARGO_BIN_EXE_onnx-jmd")]).current_dir(scene.folder.path());
    run.env("POSIXLY_CORRECT", "1").output().unwrap()
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(".onnx-jmd-") && name.ends_with(".tmp")
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let (model, wide) = (small_resnet(3), "in.onnx out.onnx --ratio 1.3 --no-verify -q");
    let scene = Scene::new(&model);
    for options in ["", " --external-data"] {
        for old in [None, Some(OLD)] {
            let _ = std::fs::remove_file(scene.path("out.onnx"));
            old.iter().for_each(|old| std::fs::write(scene.path("out.onnx"), old).unwrap());
            let before = scene.files();
            let output = with_little_room(&scene, 4, &format!("{wide}{options}"));
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(9), "{options}: {stderr}");
            assert!(stderr.contains("cannot write") && stderr.lines().count() == 1, "{stderr}");
            assert_eq!(scene.files(), before, "{options}");
            assert!(old.is_none_or(|old| scene.read("out.onnx") == old));
        }
    }
    assert!(scene.read("in.onnx") == model);
}

#[test]
fn a_disk_that_fills_up_on_the_way_leaves_whole_files() {
    // Room for the small files and not for the page, which is the last but one.
    let scene = Scene::new(&small_resnet(1));
    let arguments =
        "in.onnx out.onnx --ratio 1.2 --no-verify --plan-out plan.toml --report page.html --json facts.json -q";
    scene.succeeds(arguments);
    let (model, plan, page) = (scene.read("out.onnx"), scene.read("plan.toml"), scene.read("page.html"));
    let room = model.len().max(plan.len()).div_ceil(1024);
    assert!(page.len() > 1024 * (room + 1), "the page is no longer the largest file");
    for name in ["out.onnx", "plan.toml", "page.html", "facts.json"] {
        std::fs::write(scene.path(name), OLD).unwrap();
    }
    let output = with_little_room(&scene, room, arguments);
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(scene.read("out.onnx") == model && scene.read("plan.toml") == plan);
    assert!(scene.read("page.html") == OLD && scene.read("facts.json") == OLD);
    assert_eq!(scene.files(), ["facts.json", "in.onnx", "out.onnx", "page.html", "plan.toml"]);
}

/// Makes a folder read-only, for the superuser too; whether that could be done.
fn sealed(folder: &Path, yes: bool) -> bool {
    let flag = Command::new("chattr").arg(if yes { "+i" } else { "-i" }).arg(folder).stderr(Stdio::null()).status();
    use std::os::unix::fs::PermissionsExt;
    let mode = if yes { 0o555 } else { 0o755 };
    let set = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).is_ok();
    let tried = folder.join("tried");
    let refused = std::fs::write(&tried, "").is_err();
    let _ = std::fs::remove_file(&tried);
    !yes && set || refused || flag.is_ok_and(|f| f.success())
}

#[test]
fn a_folder_that_may_not_be_written_to_is_named() {
    let scene = Scene::new(&small_resnet(2));
    let target = scene.path("sealed/out.onnx");
    std::fs::write(&target, OLD).unwrap();
    let folder = target.parent().unwrap();
    if !sealed(folder, true) {
        println!("skipped: this user may write everywhere");
        return;
    }
    let output = spawned(&scene, "in.onnx sealed/out.onnx --ratio 1.3 --no-verify -q").wait_with_output().unwrap();
    let (code, kept, files) =
        (output.status.code(), std::fs::read(&target).unwrap(), folder.read_dir().unwrap().count());
    sealed(folder, false);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((code, files), (Some(9), 1), "{stderr}");
    assert!(kept == OLD && stderr.contains("sealed"), "{stderr}");
}

/// Waits until a temporary file appears, a moment has passed, or the run has ended.
fn wait_for_writing(scene: &Scene, child: &mut Child, most: Duration) {
    let start = Instant::now();
    while start.elapsed() < most && child.try_wait().unwrap().is_none() {
        if scene.files().iter().any(|f| is_temporary(f)) {
            return;
        }
    }
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_file_or_the_new_one() {
    // ONNX_JMD_KILLS=500 for more than a look.
    let kills = std::env::var("ONNX_JMD_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let model = small_resnet(6);
    let scene = Scene::new(&model);
    let mut rng = Pcg64Mcg::seed_from_u64(kills);
    for external in [false, true] {
        let arguments =
            format!("in.onnx out.onnx --ratio 1.5 --no-verify{}", if external { " --external-data" } else { "" });
        let start = Instant::now();
        scene.succeeds(&arguments);
        let long = start.elapsed();
        let (new, finished) = (scene.read("out.onnx"), scene.files());
        let (mut in_writing, mut replaced) = (0, 0);
        for at in 0..kills / 2 {
            std::fs::write(scene.path("out.onnx"), OLD).unwrap();
            let mut child = spawned(&scene, &arguments);
            if at % 2 == 0 {
                std::thread::sleep(long.mul_f64(rng.random_range(0.0..1.1)));
            } else {
                wait_for_writing(&scene, &mut child, 20 * long);
                std::thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let found = scene.read("out.onnx");
            assert!(found == OLD || found == new, "half a file after kill {at}");
            assert!(scene.read("in.onnx") == model);
            replaced += usize::from(found == new);
            for name in scene.files() {
                assert!(is_temporary(&name) || finished.contains(&name), "{name} stays after kill {at}");
                if is_temporary(&name) {
                    in_writing += 1;
                    std::fs::remove_file(scene.path(&name)).unwrap();
                }
            }
            if external {
                // What the new model refers to is there before it is.
                assert!(found == OLD || Model::open(scene.path("out.onnx")).is_ok());
                finished
                    .iter()
                    .filter(|f| f.ends_with(".data"))
                    .for_each(|f| drop(std::fs::remove_file(scene.path(f))));
            }
        }
        println!("{} kills: {in_writing} while writing, {replaced} after", kills / 2);
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).stderr(Stdio::null()).status();
    // It may have ended by itself.
    sent.unwrap();
}

#[test]
fn a_run_that_is_asked_to_end_leaves_no_temporary_file() {
    let model = small_resnet(6);
    let scene = Scene::new(&model);
    let arguments = "in.onnx out.onnx --ratio 1.5 --no-verify --external-data";
    let start = Instant::now();
    scene.succeeds(arguments);
    let long = start.elapsed();
    let (new, finished) = (scene.read("out.onnx"), scene.files());
    let mut rng = Pcg64Mcg::seed_from_u64(2);
    let mut interrupted = 0;
    for at in 0..12 {
        std::fs::write(scene.path("out.onnx"), OLD).unwrap();
        let mut child = spawned(&scene, arguments);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // By then it heeds signals.
        assert!(lines.next().unwrap().unwrap().contains("reading"));
        wait_for_writing(&scene, &mut child, 20 * long);
        std::thread::sleep(Duration::from_micros(rng.random_range(0..2000)));
        signal(&child, ["TERM", "INT", "HUP"][at % 3]);
        let said: Vec<String> = lines.map(|l| l.unwrap()).collect();
        let code = child.wait().unwrap().code();
        let told = said.iter().any(|line| line == "onnx-jmd: interrupted");
        assert!(code == Some(0) || code == Some(130) && told, "{at}: {code:?} {said:?}");
        interrupted += usize::from(code == Some(130));
        let found = scene.read("out.onnx");
        assert!(found == OLD || found == new, "half a file after signal {at}");
        assert!(scene.files().iter().all(|name| finished.contains(name)), "{at}: {:?}", scene.files());
        finished.iter().filter(|f| f.ends_with(".data")).for_each(|f| drop(std::fs::remove_file(scene.path(f))));
    }
    println!("{interrupted} of 12 interrupted");
}

/// A run of a shell's doing.
fn by_shell(scene: &Scene, script: &str) -> Child {
    let mut sh = Command::new("sh");
    sh.args(["-c", script, env!("CARGO_BIN_EXE_onnx-jmd")]).current_dir(scene.folder.path());
    sh.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_that_is_to_outlive_its_terminal_does() {
    let scene = Scene::new(&small_resnet(3));
    let arguments = "in.onnx out.onnx --ratio 1.5 --calib none --no-verify";
    for name in ["HUP", "TERM"] {
        let mut child = by_shell(&scene, &format!("trap '' HUP; exec \"$0\" {arguments}"));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("reading"));
        signal(&child, name);
        let said: Vec<String> = lines.map(|line| line.unwrap()).collect();
        let code = child.wait().unwrap().code();
        // What asks it to end is heard as ever, if it is not done by then.
        let told = name == "TERM" && said.iter().any(|line| line == "onnx-jmd: interrupted");
        assert!(code == Some(if told { 130 } else { 0 }), "{name}: {code:?} {said:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_limit_on_files_is_an_error_and_leaves_none() {
    let scene = Scene::new(&small_resnet(3));
    std::fs::write(scene.path("out.onnx"), OLD).unwrap();
    let before = scene.files();
    let arguments = "in.onnx out.onnx --ratio 1.5 --calib none --no-verify -q";
    let output = by_shell(&scene, &format!("ulimit -f 1; exec \"$0\" {arguments}")).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.starts_with("onnx-jmd: cannot write out.onnx: ") && said.lines().count() == 1, "{said}");
    assert!(scene.read("out.onnx") == OLD && scene.files() == before, "{:?}", scene.files());
}

/// A report without the times that its stages took.
fn facts(scene: &Scene, name: &str) -> serde_json::Value {
    let mut all: serde_json::Value = serde_json::from_str(&scene.text(name)).unwrap();
    all.as_object_mut().unwrap().remove("timings").unwrap();
    all
}

#[test]
fn of_runs_onto_one_output_one_wins_whole() {
    let scene = Scene::new(&small_resnet(3));
    let ratios = ["1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9"];
    let own = |ratio: &str| {
        scene.succeeds(&format!(
            "in.onnx own-{ratio}.onnx --ratio {ratio} --no-verify -q --json own.json --report own.html"
        ));
        (scene.read(&format!("own-{ratio}.onnx")), facts(&scene, "own.json"))
    };
    let (models, reports): (Vec<_>, Vec<_>) = ratios.iter().map(|ratio| own(ratio)).unzip();
    for options in ["", "--external-data"] {
        let arguments =
            format!("in.onnx out.onnx --no-verify -q --json facts.json --report page.html {options} --ratio");
        let runs: Vec<Child> = ratios.iter().map(|ratio| spawned(&scene, &format!("{arguments} {ratio}"))).collect();
        for run in runs {
            let output = run.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(reports.contains(&facts(&scene, "facts.json")));
        assert!(scene.text("page.html").ends_with("</html>\n") || scene.text("page.html").ends_with("</html>"));
        assert!(!scene.files().iter().any(|f| is_temporary(f)), "{:?}", scene.files());
        let written = scene.read("out.onnx");
        if options.is_empty() {
            assert!(models.contains(&written));
        } else {
            // Model and data belong together.
            let whole = Model::open(scene.path("out.onnx")).unwrap();
            let same = |m: &Vec<u8>| Model::from_bytes(m.clone()).unwrap().parameters() == whole.parameters();
            assert!(models.iter().any(same));
        }
    }
}

/// Starts a run, does something when it has begun, and gives its exit code and last words.
fn meanwhile(scene: &Scene, arguments: &str, act: impl FnOnce()) -> (Option<i32>, String) {
    let mut child = spawned(scene, arguments);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // Outputs were looked at before the first stage is told.
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("reading"), "{first}");
    act();
    let last = lines.map(|l| l.unwrap()).last().unwrap_or_default();
    (child.wait().unwrap().code(), last)
}

#[test]
fn an_output_folder_that_goes_meanwhile_is_named() {
    let scene = Scene::new(&small_resnet(6));
    let folder = scene.path("gone/out.onnx").parent().unwrap().to_owned();
    let (code, last) = meanwhile(&scene, "in.onnx gone/out.onnx --ratio 1.5", || std::fs::remove_dir(&folder).unwrap());
    assert_eq!(code, Some(9), "{last}");
    assert!(last.contains("gone/out.onnx"), "{last}");
    assert_eq!(scene.files(), ["in.onnx"]);
    // A folder in the place of the file.
    let (code, last) =
        meanwhile(&scene, "in.onnx out.onnx --ratio 1.5", || std::fs::create_dir(scene.path("out.onnx")).unwrap());
    assert_eq!(code, Some(9), "{last}");
    assert_eq!(scene.files(), ["in.onnx", "out.onnx"]);
}
