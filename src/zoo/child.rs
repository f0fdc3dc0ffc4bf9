//! A process that does one model, and ends when this one does.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Set for a process that ends when its standard input does. Its parent holds the other end, which the system closes however the
/// parent ends.
const BOUND: &str = "ONNX_JMD_ENDS_WITH_STDIN";

/// How long a process may take to end when it is told so.
const GRACE: Duration = Duration::from_secs(10);

/// How a process ended.
#[derive(Debug)]
pub enum End {
    /// By itself.
    Code(u8),
    /// By a signal or otherwise, in words.
    Broken(String),
    /// It was ended, as its time was over.
    Late,
}

/// Runs a program to its end; gives that and what it said on standard error.
///
/// # Errors
/// The system's, if it cannot be started.
pub fn run(command: &mut Command, limit: Option<Duration>) -> std::io::Result<(End, String)> {
    let mut child =
        command.env(BOUND, "1").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // Held until it has ended: waiting would close it while it is about to end by itself.
    let stdin = child.stdin.take();
    let (sender, said) = mpsc::channel();
    if let Some(mut stderr) = child.stderr.take() {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            // If nobody waits any more, nobody wants to know.
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
        });
    }
    let text = match limit {
        Some(limit) => said.recv_timeout(limit).ok(),
        None => Some(said.recv().unwrap_or_default()),
    };
    let Some(text) = text else {
        drop(stdin);
        if said.recv_timeout(GRACE).is_err() {
            child.kill()?;
        }
        child.wait()?;
        return Ok((End::Late, String::new()));
    };
    let status = child.wait()?;
    drop(stdin);
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok((code.map_or_else(|| End::Broken(words(status)), End::Code), text))
}

fn words(status: ExitStatus) -> String {
    #[cfg(unix)]
    if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) {
        return "it was killed, as by the system when memory runs out: fewer --jobs need less".into();
    }
    format!("it ended by {status}")
}

/// In a process started by [`run`]: ends it, after a file that is just being written, when its parent has ended.
pub fn end_with_parent() {
    if std::env::var_os(BOUND).is_none() {
        return;
    }
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _whole = onnx_jmd::writing();
        #[allow(clippy::exit, reason = "as by an interrupt")]
        std::process::exit(130);
    });
}
