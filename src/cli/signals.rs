//! What the system tells the process: to end, and that a file may not grow.

/// Does this whenever the process is asked to end: by Ctrl-C, by `kill`, by a scheduler, or as its terminal is closed, unless it was
/// started to survive that. A file beyond the limit of the process is an error of its writer, not the end of the process.
#[cfg(unix)]
pub fn on_end(end: impl Fn() + Send + 'static) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

    // What cannot be installed leaves what the system does.
    let _ = signal_hook::flag::register(SIGXFSZ, std::sync::Arc::default());
    let asked = [SIGINT, SIGTERM].into_iter().chain(heeds_its_terminal().then_some(SIGHUP));
    if let Ok(mut signals) = signal_hook::iterator::Signals::new(asked) {
        let _ = std::thread::Builder::new().spawn(move || signals.forever().for_each(|_| end()));
    }
}

/// Does this whenever the process is asked to end.
#[cfg(not(unix))]
pub fn on_end(end: impl Fn() + Send + 'static) {
    // What cannot be installed leaves what the system does.
    let _ = ctrlc::set_handler(end);
}

/// Whether the process was not started to ignore that its terminal is closed, as by nohup, where the system tells.
#[cfg(unix)]
fn heeds_its_terminal() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is the first of signals.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 0)
}
