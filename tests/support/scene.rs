//! A folder in which the command runs, and what is expected of it whatever it is asked.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Where cargo puts the command; tools/fuzz, which builds models with these files, has none.
const COMMAND: Option<&str> = option_env!("CARGO_BIN_EXE_onnx-jmd");

/// A folder with `in.onnx` in it.
pub struct Scene {
    pub folder: TempDir,
}

impl Scene {
    pub fn new(model: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("in.onnx"), model).unwrap();
        Self { folder }
    }

    /// A path within, its folder made.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    /// Runs on the plain weights, which is faster, unless the arguments speak of calibration.
    pub fn run(&self, arguments: &str) -> Output {
        let other = ["--calib", "--plan ", "--help", "inspect", "verify "];
        let command = ["tune ", "completions "].iter().any(|command| arguments.starts_with(command));
        let plain = if command || other.iter().any(|o| arguments.contains(o)) { "" } else { " --calib none" };
        self.run_exactly(&format!("{arguments}{plain}"))
    }

    pub fn run_exactly(&self, arguments: &str) -> Output {
        let mut command = Command::new(COMMAND.expect("cargo test builds the command"));
        command.current_dir(self.folder.path()).args(arguments.split_whitespace()).output().unwrap()
    }

    /// Runs with `input` on standard input.
    pub fn pipes(&self, arguments: &str, input: &[u8]) -> Output {
        let mut command = Command::new(COMMAND.expect("cargo test builds the command"));
        command.current_dir(self.folder.path()).args(arguments.split_whitespace());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let input = input.to_owned();
        // A command that refuses its arguments reads none of it.
        let writer = std::thread::spawn(move || drop(pipe.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Runs and expects success; gives standard output.
    pub fn succeeds(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs and expects an exit code; gives what stderr's last line says.
    pub fn fails(&self, arguments: &str, code: i32) -> String {
        let before = std::fs::read(self.path("in.onnx")).ok();
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments}");
        assert_eq!(std::fs::read(self.path("in.onnx")).ok(), before, "the input was touched");
        assert!(!stderr.contains("panicked"), "{stderr}");
        stderr.lines().last().unwrap_or_default().to_owned()
    }

    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The path of a committed file.
pub fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).to_str().unwrap().to_owned()
}

/// An array as NumPy stores it.
pub fn npy(kind: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|d| format!("{d},")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The first of the committed images and their labels, as arrays of a scene.
pub fn few_images(scene: &Scene, count: usize) {
    let data = |name: &str, size: usize| {
        let bytes = std::fs::read(fixture(name)).unwrap();
        bytes[128..128 + count * size].to_vec()
    };
    let images = data("fashion-test-images.npy", 28 * 28);
    std::fs::write(scene.path("images.npy"), npy("|u1", &[count, 1, 28, 28], &images)).unwrap();
    std::fs::write(scene.path("labels.npy"), npy("|u1", &[count], &data("fashion-test-labels.npy", 1))).unwrap();
}
