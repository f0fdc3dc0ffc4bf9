//! A bound on memory: a model of a kilobyte can ask for a constant of a terabyte, and tract makes what it is asked for. Without a
//! bound the system ends such a run, and others with it, at a moment of its choice and without a word.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Exit code of a run that would take more.
const EXIT_CODE: i32 = 13;
/// Smaller pieces are not counted, which would take time: what a number in a file asks for is in large ones.
const COUNTED: usize = 1 << 16;
const GIBIBYTE: f64 = (1u64 << 30) as f64;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Stages leave gaps of all sizes: with mimalloc they go back to the system. Large pieces are counted.
#[derive(Debug)]
pub struct Bounded;

#[allow(unsafe_code, reason = "only a global allocator sees every allocation")]
// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give(layout.size());
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        give(layout.size());
        take(size);
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }
}

fn take(size: usize) {
    if size >= COUNTED && TAKEN.fetch_add(size, Relaxed).saturating_add(size) > LIMIT.load(Relaxed) {
        refuse();
    }
}

fn give(size: usize) {
    if size >= COUNTED {
        TAKEN.fetch_sub(size, Relaxed);
    }
}

/// Ends the process in a sentence.
#[cold]
fn refuse() {
    // Whoever comes second waits for the end; the way there is free to allocate.
    let limit = LIMIT.swap(usize::MAX, Relaxed);
    if limit == usize::MAX {
        std::thread::sleep(Duration::from_secs(60));
    }
    let _ = writeln!(
        std::io::stderr(),
        "onnx-jmd: this takes more than {} of memory, nothing was written: give a larger --max-memory if this model is to be trusted; to \
         compress takes less with fewer --calib-samples, a smaller --input-shape (of what the model leaves open) or --no-verify",
        size(limit)
    );
    #[allow(clippy::exit, reason = "an allocation has no other way to refuse in a sentence")]
    std::process::exit(EXIT_CODE);
}

/// Bytes for people.
fn size(bytes: usize) -> String {
    let gibibytes = bytes as f64 / GIBIBYTE;
    if gibibytes >= 1.0 { format!("{gibibytes:.1} GiB") } else { format!("{:.1} MiB", 1024.0 * gibibytes) }
}

/// Sets the bound: the bytes given, or what the machine has, if it says so.
pub(super) fn bound(given: Option<usize>) {
    LIMIT.store(given.or_else(physical).unwrap_or(usize::MAX), Relaxed);
}

/// Memory of the machine, or of the container.
fn physical() -> Option<usize> {
    let total = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let kibibytes: usize =
            text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    let container = || std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok();
    total().into_iter().chain(container()).min()
}

/// Gibibytes as bytes.
pub(super) fn gibibytes(text: &str) -> Result<usize, String> {
    let number: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of gibibytes"))?;
    if number > 0.0 && number.is_finite() { Ok((number * GIBIBYTE) as usize) } else { Err("it is above 0".into()) }
}
