//! The command line: arguments and the help that explains them, into what the library is asked.

mod completions;
mod compress;
mod config;
mod inspect;
mod memory;
mod outputs;
mod shared;
mod signals;
pub mod streams;
mod time;
mod tune;
mod verify;
mod zoo;

pub use compress::CompressJob;
pub use inspect::InspectJob;
pub use memory::Bounded;
pub use outputs::Outputs;
pub use shared::Output;
pub use signals::on_end;
pub use time::in_time;
pub use tune::{TuneJob, stop};
pub use verify::VerifyJob;
pub use zoo::ZooJob;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use compress::Compress;
use config::Settings;
use inspect::Inspect;
use onnx_jmd::Result;
use std::ffi::OsString;
use tune::Tune;
use verify::Verify;
use zoo::ZooArguments;

/// Makes a convolutional network in an ONNX file smaller by joint matrix decomposition of its repeated blocks.
///
/// Each convolution is rewritten into two or three smaller ones, alone or together with those that play the same role in repeated
/// blocks: W_i ≈ A·B_i or A_i·B, a factor that several share stored once. The ranks are chosen so that the file has RATIO
/// times fewer floating-point parameters. The result is run with tract: against the original with its kernels replaced by
/// what the factors multiply out to (must agree to rounding, or nothing is written), and against the original itself
/// (reported).
///
/// No labels and no training: factors are fitted to what each convolution sees of some pictures. The tool draws its own;
/// pictures like those that the model is for (--calib) keep more. See what each ratio costs with --images and --labels
/// before you rely on it.
#[derive(Debug, Parser)]
#[command(
    version,
    after_long_help = AFTER,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compress: Compress,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(Inspect),
    Verify(Verify),
    Tune(Box<Tune>),
    Zoo(Box<ZooArguments>),
    /// Print completions for a shell to standard output
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page to standard output, in roff
    Man,
}

/// What the arguments ask for.
#[derive(Debug)]
pub enum Job {
    /// A smaller model.
    Compress(Box<CompressJob>),
    /// What a model is made of.
    Inspect(InspectJob),
    /// How far two models are apart.
    Verify(Box<VerifyJob>),
    /// A smaller model that does more of what the original does.
    Tune(Box<TuneJob>),
    /// Many smaller models.
    Zoo(Box<ZooJob>),
    /// A text for standard output: completions, or the manual page.
    Text(Vec<u8>),
}

impl Cli {
    /// The command line with every option's values as they are typed, minus signs too, so that what is out of range is refused by name.
    fn command() -> clap::Command {
        fn lenient(command: clap::Command) -> clap::Command {
            command
                .mut_args(|arg| {
                    let valued = !arg.is_positional() && arg.get_action().takes_values();
                    if valued { arg.allow_negative_numbers(true) } else { arg }
                })
                .mut_subcommands(lenient)
        }
        lenient(<Self as CommandFactory>::command())
    }

    /// The arguments of the command line, behind the options of the project's file if there is one. Ends the process with what clap
    /// has to say of arguments that make no sense, and after help.
    ///
    /// # Errors
    /// Those of the file, in which a line is named.
    pub fn read(mut arguments: Vec<OsString>) -> Result<Self> {
        // What is missing here may stand in the file.
        let given = Self::command().ignore_errors(true).try_get_matches_from(&arguments).unwrap_or_else(|e| e.exit());
        let settings = Settings::of(&given)?;
        let place = arguments.len().min(1);
        arguments.splice(place..place, settings.iter().flat_map(Settings::words));
        let matches = Self::command().get_matches_from(arguments);
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
        cli.compress.settings = settings;
        Ok(cli)
    }

    /// The arguments as a job.
    ///
    /// # Errors
    /// Those of arguments that contradict each other, or of files that cannot be read or do not fit.
    pub fn job(self) -> Result<Job> {
        // Before any file is read.
        let output = match &self.command {
            None => Some(&self.compress.output),
            Some(Command::Inspect(inspect)) => Some(&inspect.output),
            Some(Command::Verify(verify)) => Some(&verify.output),
            Some(Command::Tune(tune)) => Some(&tune.output),
            // The bounds are those of its processes.
            Some(Command::Zoo(_) | Command::Completions { .. } | Command::Man) => None,
        };
        memory::bound(output.and_then(|output| output.max_memory));
        time::bound(output.and_then(|output| output.max_time));
        match self.command {
            None => Ok(Job::Compress(Box::new(self.compress.job()?))),
            Some(Command::Inspect(inspect)) => Ok(Job::Inspect(inspect.job())),
            Some(Command::Verify(verify)) => Ok(Job::Verify(Box::new(verify.job()?))),
            Some(Command::Tune(tune)) => Ok(Job::Tune(Box::new(tune.job()?))),
            Some(Command::Zoo(zoo)) => Ok(Job::Zoo(Box::new(zoo.job()?))),
            Some(Command::Completions { shell }) => Ok(Job::Text(completions::script(shell, &mut Self::command()))),
            Some(Command::Man) => {
                let mut text = Vec::new();
                // Writing to memory cannot fail.
                let _ = clap_mangen::Man::new(Self::command()).render(&mut text);
                Ok(Job::Text(text))
            }
        }
    }
}

const AFTER: &str = "\
Schemes (W_i is the kernel of member i, unfolded to (kh·in) × (kw·out)):
  auto       whichever of these, and of four unfoldings, promises least error
  separate   W_i ≈ A_i·B_i           each kernel by itself (spatial SVD)
  ljsvd      W_i ≈ A·B_i             first factor shared (LJSVD)
  rjsvd-1    W_i ≈ A_i·B             last factor shared, the stage's first block included (RJSVD-1)
  rjsvd-2    W_i ≈ A_i·B             last factor shared, equal shapes only (RJSVD-2)
  bi-jsvd    W_i ≈ A·B_i + C_i·D     both, alternating (Bi-JSVD)
  pcsvd      W_i ≈ A_i·B + C_i·D_i   a last factor shared, and each kernel by itself (PCSVD)
  tt         W_i ≈ A_i·C_i·V_i       each kernel by itself, cut on both sides (TT, Tucker-2)
  nc-ctd     W_i ≈ A·C·V + A_i·C_i·V_i  one tensor train for all and one for each (NC-CTD)

Exit codes:
  0  written and verified (or as asked: planned, or written without proof)
  1  a decomposition failed, or an internal error
  2  the arguments, images or labels do not fit the model or each other;
     too few calibration samples
  3  the input cannot be read as a sound ONNX model, or the plan or the file
     of options cannot be read
  4  nothing to compress; the output is the input, byte for byte
  5  the ratio is out of reach; the message names the largest
  6  the rewritten model was wrong; nothing was written
  7  tract cannot run the model, nor any part of it, or not the whole where that
     is asked for (calibration, images, bounds); nothing was written
  8  short of --min-snr, --min-agreement or --max-drop; nothing was written
     (verify: also of --max-difference)
  9  the output cannot be written
  10 the plan is not sound or does not fit the model; the message names the line
  11 zoo: some models were refused; the summary says which and why
  12 --check: the output is not what a run would write; the message says why
  13 it would take more memory than --max-memory; nothing was written
  14 --tune, tune: it cannot be tuned; the message says why
  15 it would take longer than --max-time; nothing was written

Examples:
  onnx-jmd in.onnx out.onnx --ratio 2
  onnx-jmd in.onnx out.onnx --ratio 4 --scheme separate --calib folder-of-pictures
  onnx-jmd in.onnx out.onnx --ratio 22 --scheme bi-jsvd --split 0.3
  onnx-jmd in.onnx out.onnx --ratio 8 --calib folder-of-pictures --tune 10m
  onnx-jmd tune small.onnx tuned.onnx --teacher in.onnx --calib folder-of-pictures
  onnx-jmd in.onnx --ratio 4 --dry-run --plan-out plan.toml
  onnx-jmd in.onnx out.onnx --plan plan.toml
  onnx-jmd in.onnx out.onnx --ratio 1.5 --images test.npy --labels classes.npy --min-agreement 0.95
  onnx-jmd in.onnx out.onnx --ratio 4 --check || onnx-jmd in.onnx out.onnx --ratio 4
  export-model | onnx-jmd - - --ratio 4 > out.onnx
  onnx-jmd inspect in.onnx
  onnx-jmd verify in.onnx out.onnx --images test.npy
  onnx-jmd zoo models smaller --ratio 2 --jobs 4";
