//! Arguments → options → one library call → files and tables → exit code.

#![warn(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::exit)]

mod cli;

use clap::Parser;
use cli::{Cli, Paths};
use onnx_jmd::{Compilation, Error, Model, Options, Report, Result, compile, write_whole, writing};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Stages leave gaps of all sizes: with this allocator they go back to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Cli::parse();
    // A panic in a library while a foreign model runs is reported as that model's error, in one sentence.
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = std::panic::catch_unwind(|| arguments.options().and_then(|(paths, options)| run(&paths, &options)));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            say(&format!("onnx-jmd: {error}"));
            ExitCode::from(error.exit_code())
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("unknown");
            say(&format!("onnx-jmd: internal error ({text}), nothing was written: please report it"));
            ExitCode::from(1)
        }
    }
}

/// A line on standard error; if that is closed or full there is nobody to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Ends the process on Ctrl-C, after a file that is just being written.
fn heed_interrupts() {
    let ended = ctrlc::set_handler(|| {
        let _whole = writing();
        say("onnx-jmd: interrupted");
        #[allow(clippy::exit, reason = "the conventional status of an interrupted command")]
        std::process::exit(130);
    });
    // Without a handler the system's own takes effect.
    let _ = ended;
}

fn run(paths: &Paths, options: &Options) -> Result<()> {
    heed_interrupts();
    if let Some(threads) = paths.threads {
        let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        built.map_err(|e| Error::Options(format!("--threads: {e}")))?;
    }
    let start = Instant::now();
    let progress = |stage: &str| {
        if !paths.quiet {
            say(&format!("[{:6.1} s] {stage}", start.elapsed().as_secs_f64()));
        }
    };
    let json = paths.json.as_ref().filter(|p| p.as_os_str() != "-");
    for target in paths.output.iter().chain(json) {
        check_output(&paths.input, target)?;
    }
    if json.is_some() && json == paths.output.as_ref() {
        return Err(Error::Options("--json names the output model: name another file".into()));
    }
    progress(&format!("reading {}", paths.input.display()));
    let model = Model::open(&paths.input)?;
    let compilation = compile(&model, options, &progress)?;
    // A build step that asks for a file gets one, even if it is the input, byte for byte.
    let unchanged = compilation.unchanged.clone();
    write(paths, compilation)?;
    match unchanged {
        Some(reason) => Err(Error::NothingToCompress(reason)),
        None => {
            progress("done");
            Ok(())
        }
    }
}

fn write(paths: &Paths, compilation: Compilation) -> Result<()> {
    let _whole = writing();
    let report = if paths.timings { compilation.report.with_timings() } else { compilation.report };
    if let (Some(output), Some(model)) = (&paths.output, &compilation.model) {
        model.save(output)?;
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    let stdout = Path::new("standard output");
    match &paths.json {
        Some(path) if path.as_os_str() == "-" => {
            let text = report.to_json();
            std::io::stdout().write_all(text.as_bytes()).map_err(failed(stdout))
        }
        json => {
            if let Some(path) = json {
                write_whole(path, report.to_json().as_bytes())?;
            }
            if paths.quiet { Ok(()) } else { print(&report).map_err(failed(stdout)) }
        }
    }
}

/// Prints the tables, headings in bold where standard output is a terminal that shows it.
fn print(report: &Report) -> std::io::Result<()> {
    let bold = anstyle::Style::new().bold();
    let mut out = anstream::stdout().lock();
    for line in report.to_string().lines() {
        if line.is_empty() || line.starts_with(' ') {
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{bold}{line}{bold:#}")?;
        }
    }
    Ok(())
}

/// Refuses, before any work, an output that is the input or cannot be there.
fn check_output(input: &Path, output: &Path) -> Result<()> {
    if let (Ok(a), Ok(b)) = (std::fs::canonicalize(input), std::fs::canonicalize(output))
        && a == b
    {
        return Err(Error::Options(format!("the output {} is the input: name another file", output.display())));
    }
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let metadata = std::fs::metadata(folder).map_err(|source| Error::Write { path: output.to_owned(), source })?;
    if !metadata.is_dir() {
        let source = std::io::Error::from(std::io::ErrorKind::NotADirectory);
        return Err(Error::Write { path: output.to_owned(), source });
    }
    Ok(())
}
