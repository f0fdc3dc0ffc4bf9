//! Arguments → options → one library call → files and tables → exit code.

#![warn(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::exit)]

mod cli;
mod zoo;

use cli::streams::{self, is_stream};
use cli::{Cli, CompressJob, InspectJob, Job, Output, Outputs, TuneJob, VerifyJob, ZooJob, in_time};
use onnx_jmd::{Compilation, Error, Result, check, compare, compile, inspect, tune, write_whole, writing};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: cli::Bounded = cli::Bounded;

fn main() -> ExitCode {
    zoo::end_with_parent();
    let arguments = std::env::args_os().collect();
    // A panic in a library while a foreign model runs is reported as that model's error, in one sentence.
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = std::panic::catch_unwind(|| match Cli::read(arguments)?.job()? {
        Job::Compress(job) => compressed(*job),
        Job::Inspect(job) => inspected(&job),
        Job::Verify(job) => verified(&job),
        Job::Tune(job) => tuned(&job),
        Job::Zoo(job) => many(&job),
        Job::Text(text) => printed(&text),
    });
    // Whoever asks the process to end now is too late.
    std::mem::forget(writing());
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
    let _ = writeln!(std::io::stderr(), "{}", harmless(line));
}

/// A line without what a terminal would obey: names come from the model.
fn harmless(line: &str) -> String {
    line.replace(char::is_control, "\u{fffd}")
}

/// Ends the process on Ctrl-C, and when the system or a scheduler asks it to end, after a file that is just being written.
fn heed_interrupts() {
    cli::on_end(|| {
        if cli::stop().ask() {
            say(
                "onnx-jmd: tuning ends with the best model so far, which is verified and written, or made smaller if this was not the last \
                 step; interrupt again to write nothing",
            );
            return;
        }
        let _whole = writing();
        say("onnx-jmd: interrupted");
        #[allow(clippy::exit, reason = "the conventional status of an interrupted command")]
        std::process::exit(130);
    });
}

/// Readies the process for work; who hears of its progress.
fn begin(output: &Output) -> Result<impl Fn(&str) + Sync + use<>> {
    heed_interrupts();
    // Before any work, as a system may refuse threads. None given are as many as it has cores.
    let threads = output.threads.map_or(0, usize::from);
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    built.map_err(|e| {
        Error::Options(format!("threads to compute with cannot be started ({e}): give fewer, as --threads 1"))
    })?;
    let (start, quiet) = (Instant::now(), output.quiet);
    Ok(move |stage: &str| {
        if !quiet {
            say(&format!("[{:6.1} s] {stage}", start.elapsed().as_secs_f64()));
        }
    })
}

/// `onnx-jmd IN.onnx OUT.onnx`.
fn compressed(job: CompressJob) -> Result<()> {
    let progress = begin(&job.output)?;
    job.settings.iter().for_each(|settings| progress(&settings.line()));
    let explained = |error| match &job.settings {
        Some(settings) => settings.explain(error),
        None => error,
    };
    if let (true, Some(output)) = (job.check, &job.model_output) {
        return checked(&job, output, &progress).map_err(explained);
    }
    if let Some(path) = &job.model_output {
        streams::check_output(path, job.output.json.as_deref(), job.external_data.is_some())?;
    }
    for (name, path) in [("--plan-out", &job.plan_out), ("--report", &job.report)] {
        if path.as_deref().is_some_and(is_stream) {
            let reason = "'-' stands for standard output of the model and of --json alone";
            return Err(Error::Options(format!("{name} needs the name of a file: {reason}")));
        }
    }
    let outputs = Outputs::new([
        ("the output", job.model_output.as_ref()),
        ("--plan-out", job.plan_out.as_ref()),
        ("--report", job.report.as_ref()),
        ("--json", job.output.json.as_ref()),
        ("--resume", job.resume.as_ref()),
    ])?;
    outputs.apart_from(std::iter::once(&job.input).chain(&job.read))?;
    outputs.check_writable()?;
    progress(&format!("reading {}", named(&job.input)));
    let model = streams::open(&job.input)?;
    outputs.apart_from(model.data_files())?;
    let done = compile(&model, &job.options, &progress);
    let compilation = done.map_err(|error| explained(error.of_file(streams::name(&job.input))))?;
    // A build step that asks for a file gets one, even if it is the input, byte for byte.
    let unchanged = compilation.unchanged.clone();
    // Last, so that it is given only if all else was written; not held against an interrupt, as its reader may never read.
    let given = compilation.model.clone().filter(|_| job.model_output.as_deref().is_some_and(is_stream));
    {
        let _whole = writing();
        in_time();
        write(&job, compilation)?;
    }
    given.as_ref().map_or(Ok(()), streams::give)?;
    match unchanged {
        Some(reason) => Err(Error::NothingToCompress(reason)),
        None => {
            progress("done");
            Ok(())
        }
    }
}

/// `onnx-jmd IN.onnx OUT.onnx --check`.
fn checked(job: &CompressJob, output: &Path, progress: &dyn Fn(&str)) -> Result<()> {
    if is_stream(output) {
        return Err(Error::Options("--check needs a file to look at: name the output instead of '-'".into()));
    }
    if std::fs::canonicalize(output).is_ok_and(|output| std::fs::canonicalize(&job.input).is_ok_and(|i| i == output)) {
        return Err(Error::Options(format!("the output {} is the input: name another file", output.display())));
    }
    progress(&format!("reading {} and {}", named(&job.input), output.display()));
    let input = streams::open(&job.input)?;
    let checked = check(&input, &job.options, output, job.external_data);
    checked.map_err(|error| error.of_file(streams::name(&job.input)))?;
    progress(&format!("{} is what this would write", output.display()));
    Ok(())
}

fn write(job: &CompressJob, compilation: Compilation) -> Result<()> {
    let report = if job.timings { compilation.report.with_timings() } else { compilation.report };
    let output = file(&job.model_output);
    if let (Some(path), Some(model)) = (output, &compilation.model) {
        match job.external_data {
            Some(threshold) => model.save_external(path, threshold),
            None => model.save(path),
        }?;
    }
    let written = output.is_some();
    if let (Some(path), Some(plan)) = (&job.plan_out, &compilation.plan) {
        beside(path, plan.as_bytes(), written)?;
    }
    if let (Some(path), Some(pictures)) = (&job.report, &compilation.pictures) {
        let name = job.input.file_name().unwrap_or(job.input.as_os_str()).to_string_lossy();
        beside(path, report.to_html(&name, pictures).as_bytes(), written)?;
    }
    let taken = job.model_output.is_some() && output.is_none();
    tell(&job.output, (taken, written), || report.to_json(), &report)
}

/// Writes a file beside a model that is `written` by now, or is none.
fn beside(path: &Path, bytes: &[u8], written: bool) -> Result<()> {
    write_whole(path, bytes).map_err(|error| match error {
        Error::Write { path, source } if written => {
            let told = format!("{source} (the model is written)");
            Error::Write { path, source: std::io::Error::new(source.kind(), told) }
        }
        other => other,
    })
}

/// `onnx-jmd inspect`.
fn inspected(job: &InspectJob) -> Result<()> {
    let progress = begin(&job.output)?;
    let outputs = Outputs::new([("--json", job.output.json.as_ref())])?;
    outputs.apart_from([&job.model])?;
    outputs.check_writable()?;
    progress(&format!("reading {}", named(&job.model)));
    let model = streams::open(&job.model)?;
    outputs.apart_from(model.data_files())?;
    let found = inspect(&model, &job.groups);
    let found = found.map_err(|error| error.of_file(streams::name(&job.model)))?;
    tell(&job.output, (false, false), || found.to_json(), &found)
}

/// `onnx-jmd verify`.
fn verified(job: &VerifyJob) -> Result<()> {
    let progress = begin(&job.output)?;
    let outputs = Outputs::new([("--json", job.output.json.as_ref())])?;
    outputs.apart_from([&job.first, &job.second].into_iter().chain(&job.read))?;
    outputs.check_writable()?;
    if is_stream(&job.first) && is_stream(&job.second) {
        return Err(Error::Options(
            "only one of two models can come from standard input: name a file for the other".into(),
        ));
    }
    progress(&format!("reading {} and {}", named(&job.first), named(&job.second)));
    let (first, second) = (streams::open(&job.first)?, streams::open(&job.second)?);
    outputs.apart_from(first.data_files().chain(second.data_files()))?;
    for (model, path) in [(&first, &job.first), (&second, &job.second)] {
        model.check_numbers().map_err(|error| error.of_file(streams::name(path)))?;
    }
    let found = compare(&first, &second, &job.options, &progress)?;
    // What was found is told whether it is near enough or not.
    tell(&job.output, (false, false), || found.to_json(), &found)?;
    found.check(&job.options)
}

/// `onnx-jmd tune`.
fn tuned(job: &TuneJob) -> Result<()> {
    let progress = begin(&job.output)?;
    streams::check_output(&job.model_output, job.output.json.as_deref(), false)?;
    let outputs = Outputs::new([
        ("the output", Some(&job.model_output)),
        ("--json", job.output.json.as_ref()),
        ("--resume", job.resume.as_ref()),
    ])?;
    outputs.apart_from([&job.student, &job.teacher].into_iter().chain(&job.read))?;
    outputs.check_writable()?;
    if is_stream(&job.student) && is_stream(&job.teacher) {
        return Err(Error::Options(
            "only one of two models can come from standard input: name a file for the other".into(),
        ));
    }
    progress(&format!("reading {} and {}", named(&job.student), named(&job.teacher)));
    let (student, teacher) = (streams::open(&job.student)?, streams::open(&job.teacher)?);
    outputs.apart_from(student.data_files().chain(teacher.data_files()))?;
    for (model, path) in [(&student, &job.student), (&teacher, &job.teacher)] {
        model.check_numbers().map_err(|error| error.of_file(streams::name(path)))?;
    }
    let (model, report) = tune(&teacher, &student, &job.distillation, &progress)?;
    {
        let _whole = writing();
        in_time();
        if !is_stream(&job.model_output) {
            model.save(&job.model_output)?;
        }
        tell(&job.output, (is_stream(&job.model_output), true), || report.to_json(), &report)?;
    }
    if is_stream(&job.model_output) {
        streams::give(&model)?;
    }
    progress("done");
    Ok(())
}

/// `onnx-jmd zoo`.
fn many(job: &ZooJob) -> Result<()> {
    let progress = begin(&job.output)?;
    let summary = job.zoo.run(&progress)?;
    if !job.output.quiet {
        print_all(&summary, true)?;
    }
    summary.check()
}

/// `onnx-jmd completions` and `onnx-jmd man`.
fn printed(text: &[u8]) -> Result<()> {
    unless_closed(std::io::stdout().write_all(text)).map_err(streams::refused)
}

/// A model's name for people.
fn named(path: &Path) -> std::path::Display<'_> {
    streams::name(path).display()
}

/// The file of an option that may name standard output.
fn file(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|p| !is_stream(p))
}

/// Facts as JSON where that is asked for, and as tables unless nobody is to read them; on standard error if a model has `taken`
/// standard output. `written` says that a model is in its file by now.
fn tell(
    output: &Output,
    (taken, written): (bool, bool),
    json: impl Fn() -> String,
    tables: &impl Display,
) -> Result<()> {
    if output.json.as_deref().is_some_and(is_stream) {
        return std::io::stdout().write_all(json().as_bytes()).map_err(streams::refused);
    }
    if let Some(path) = &output.json {
        beside(path, json().as_bytes(), written)?;
    }
    let written = written || output.json.is_some();
    match (output.quiet, taken) {
        (true, _) => Ok(()),
        (false, true) => {
            // As progress is, they are for whoever listens.
            let _ = print(&mut anstream::stderr().lock(), tables);
            Ok(())
        }
        (false, false) => print_all(tables, written),
    }
}

/// Prints tables on standard output; `written` says that files are by now.
fn print_all(tables: &impl Display, written: bool) -> Result<()> {
    let place = if written { "tables to standard output (the files are written)" } else { "standard output" };
    let printed = unless_closed(print(&mut anstream::stdout().lock(), tables));
    printed.map_err(|source| Error::Write { path: place.into(), source })
}

/// A reader of text who has seen enough has closed it.
fn unless_closed(printed: std::io::Result<()>) -> std::io::Result<()> {
    match printed {
        Err(closed) if closed.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints tables, headings in bold where a terminal shows it.
fn print(out: &mut impl Write, tables: &impl Display) -> std::io::Result<()> {
    let bold = anstyle::Style::new().bold();
    for line in tables.to_string().lines().map(harmless) {
        if line.is_empty() || line.starts_with(' ') {
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{bold}{line}{bold:#}")?;
        }
    }
    Ok(())
}
