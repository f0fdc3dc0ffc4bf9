//! `onnx-jmd zoo`: the options of the command without a name, for every model of a folder.

use super::compress::Compress;
use super::shared::Output;
use crate::zoo::{Shard, Zoo};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error as Usage, FromArgMatches};
use onnx_jmd::{Error, Result};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The arguments of one model that are folders here.
const FOLDERS: [&str; 2] = ["input", "model_output"];
/// Options that name the one file that they write, or write no model.
const ONE_MODEL: [&str; 10] =
    ["dry_run", "plan_out", "report", "curve", "json", "timings", "config", "no_config", "check", "resume"];
/// Options that say where and how work is done; what comes out does not depend on them.
const MEANS: [&str; 3] = ["threads", "quiet", "cache"];

/// Compress every model of a folder, each in a process of its own: what is done already is not done again, and a model that is
/// refused stops no other.
///
/// OUT_DIR gets the model at the same path as in IN_DIR, zoo.jsonl (a line of JSON a model), zoo/reports (the report of each) and
/// zoo/records. A model is up to date if its bytes, the options, what they name (samples, labels, a plan) and the version of onnx-jmd
/// are those of its record, and the output's bytes are, too. onnx-jmd.toml is not read
#[derive(Debug, Args)]
pub(super) struct ZooArguments {
    #[command(flatten)]
    passed: Passed,

    /// How many models to work on at once; threads are dealt out among them
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Models")]
    jobs: u16,

    /// Take only every N-th model, from the I-th, as for arrays of jobs: all N parts together are the whole folder. A later run
    /// without it finds them done
    #[arg(long, value_name = "I/N", help_heading = "Models")]
    shard: Option<Shard>,

    /// Take only this model, by its path in IN_DIR; may be repeated. No summary is written: for workflows with a job a model
    #[arg(long, value_name = "PATH", conflicts_with = "shard", help_heading = "Models")]
    only: Vec<String>,

    /// Give a model up after so many seconds; the next run tries it again
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Models")]
    timeout: Option<Duration>,
}

/// Models to compress.
#[derive(Debug)]
pub struct ZooJob {
    /// Which, and how.
    pub zoo: Zoo,
    /// Where the facts go.
    pub output: Output,
}

impl ZooArguments {
    /// # Errors
    /// Those of [`Compress::job`], before any model is read.
    pub(super) fn job(self) -> Result<ZooJob> {
        let Passed { compress, folders: [in_dir, out_dir], arguments, identity } = self.passed;
        let asked = compress.job()?;
        asked.options.check()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = asked.output.threads.map_or(cores, usize::from);
        let program =
            std::env::current_exe().map_err(|source| Error::Read { path: "the program itself".into(), source })?;
        let zoo = Zoo {
            in_dir,
            out_dir,
            program,
            arguments,
            identity,
            read: asked.read,
            jobs: usize::from(self.jobs),
            threads,
            shard: self.shard,
            only: self.only,
            timeout: self.timeout,
        };
        Ok(ZooJob { zoo, output: asked.output })
    }
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let number = text.parse::<f64>().ok().filter(|s| *s > 0.0);
    number
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| format!("'{text}' is not a number of seconds"))
}

/// The options of one model as they were given, to be given to a process a model.
#[derive(Debug)]
struct Passed {
    compress: Compress,
    folders: [PathBuf; 2],
    /// As arguments.
    arguments: Vec<OsString>,
    /// Name and value of each on which the result depends, defaults too.
    identity: Vec<(String, OsString)>,
}

impl Args for Passed {
    fn augment_args(command: Command) -> Command {
        Compress::augment_args(command).mut_args(|arg| match arg.get_id().as_str() {
            "input" => arg.value_name("IN_DIR").help("Where the models are: every *.onnx in it and in its folders"),
            "model_output" => arg.value_name("OUT_DIR").help("Where to write, at the same paths, the smaller models"),
            "quiet" => arg.help("Print errors only, no summary"),
            "threads" => {
                arg.help("Threads for all models together, all cores by default; the result does not depend on it")
            }
            id if ONE_MODEL.contains(&id) => arg.hide(true),
            _ => arg,
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Passed {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, Usage> {
        let mut passed = Self {
            compress: Compress::from_arg_matches(matches)?,
            folders: FOLDERS.map(|id| matches.get_raw(id).into_iter().flatten().next().unwrap_or_default().into()),
            // What a process finds in the folder is not among what its record follows from.
            arguments: vec!["--no-config".into()],
            identity: Vec::new(),
        };
        for arg in Compress::augment_args(Command::new("")).get_arguments() {
            let (id, name) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
            let given = matches.value_source(id) == Some(ValueSource::CommandLine);
            if given && ONE_MODEL.contains(&id) {
                let reason = format!(
                    "--{name} is for one model: zoo takes its options from its arguments, and writes a report a model\n"
                );
                return Err(Usage::raw(ErrorKind::ArgumentConflict, reason));
            }
            if FOLDERS.contains(&id) || ONE_MODEL.contains(&id) {
                continue;
            }
            for value in matches.get_raw(id).into_iter().flatten() {
                if !MEANS.contains(&id) {
                    passed.identity.push((id.to_owned(), value.to_owned()));
                }
                let mut argument = OsString::from(format!("--{name}"));
                if arg.get_action().takes_values() {
                    argument.push("=");
                    argument.push(value);
                }
                if given && !["threads", "quiet"].contains(&id) {
                    passed.arguments.push(argument);
                }
            }
        }
        Ok(passed)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), Usage> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
