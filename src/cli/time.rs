//! A bound on time: a model of a kilobyte can ask for a loop of years, and tract runs what it is asked to.

use onnx_jmd::writing;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Exit code of a run that would take longer.
const EXIT_CODE: i32 = 15;

static IN_TIME: AtomicBool = AtomicBool::new(false);

/// Said with [`writing`] held, before the outputs are written: the run has met its bound, and ends by itself.
pub fn in_time() {
    IN_TIME.store(true, SeqCst);
}

/// Sets the bound, if one is given.
pub(super) fn bound(given: Option<Duration>) {
    let Some(limit) = given else { return };
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        // What is being written is finished first, and then it was in time.
        let _whole = writing();
        if !IN_TIME.load(SeqCst) {
            let _ = writeln!(
                std::io::stderr(),
                "onnx-jmd: this takes longer than {} s, nothing was written: give a larger --max-time if this model is to be trusted; to \
                 compress takes less with fewer --calib-samples, a smaller --input-shape (of what the model leaves open) or --no-verify",
                limit.as_secs_f64()
            );
            #[allow(clippy::exit, reason = "what runs has no other way to end")]
            std::process::exit(EXIT_CODE);
        }
    });
}

/// `90s`, `10m` or `1.5h`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time such as 90s, 10m or 1.5h");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.trim().parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite()).ok_or_else(wrong)?;
    let factor = match unit.trim() {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}
