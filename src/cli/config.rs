//! `onnx-jmd.toml`: the options of a project.
//!
//! Its keys are the long names of the options of compression. What it says is put before the arguments of the command line, so that
//! clap judges both alike; what the command line says too, or contradicts, is left out.

use super::Cli;
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use onnx_jmd::{Error, Result};
use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::Value;
use toml::de::DeTable;

/// The file that is looked for where the command runs.
const NAME: &str = "onnx-jmd.toml";
/// What is asked of one run and not of a project.
const OF_ONE_RUN: [&str; 4] = ["config", "no-config", "dry-run", "check"];
/// What on the command line also replaces what in the file: options that speak of it.
const SPOKEN_OF: [(&str, &[&str]); 4] = [
    ("images", &["labels"]),
    ("scheme", &["unfolding", "split"]),
    ("preprocess", &["scale", "mean", "std"]),
    ("report", &["curve"]),
];
/// Options that say nothing without another.
const NEEDS: [(&str, &str); 4] =
    [("labels", "images"), ("curve", "report"), ("retrained", "plan"), ("external-data-threshold", "external-data")];
/// Patterns of which any may match.
const PATTERNS: [&str; 2] = ["include", "exclude"];

/// What a file says, as far as it counts.
#[derive(Debug, Clone)]
pub struct Settings {
    path: PathBuf,
    kept: Vec<Setting>,
    replaced: Vec<String>,
    unused: Vec<String>,
}

/// One option.
#[derive(Debug, Clone)]
struct Setting {
    name: String,
    line: usize,
    /// As it would stand on the command line.
    words: Vec<OsString>,
}

impl Settings {
    /// The file that arguments ask for, or that is there, without what the arguments replace; none for other commands.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Options`] with the line of what is no option or not a value for it.
    pub(super) fn of(given: &ArgMatches) -> Result<Option<Self>> {
        if given.subcommand_name().is_some() || given.get_one("no_config") == Some(&true) {
            return Ok(None);
        }
        let path = match given.get_one::<PathBuf>("config") {
            Some(path) => path.clone(),
            None if Path::new(NAME).is_file() => NAME.into(),
            None => return Ok(None),
        };
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let command = Cli::command();
        let mut all = parse(&path, &text, &command)?;
        let named = |name: &str| command.get_arguments().find(|a| a.get_long() == Some(name));
        let said = |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let said_now = |name: &str| named(name).is_some_and(&said);
        // What the samples were needed for.
        let plain = given.get_raw("calib").is_some_and(|mut values| values.any(|v| v == "none"));
        let replaces = |setting: &Setting| {
            let Some(arg) = named(&setting.name) else { return false };
            let against = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).contains(&b);
            let other = |o: &Arg| said(o) && (o == arg || against(o, arg) || against(arg, o));
            let spoken_of = |(of, by): &(&str, &[&str])| said_now(of) && by.contains(&setting.name.as_str());
            command.get_arguments().any(other) || SPOKEN_OF.iter().any(spoken_of) || (plain && setting.name == "cache")
        };
        let names = |settings: &[Setting]| settings.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
        let replaced: Vec<Setting> = all.extract_if(.., |s| replaces(s)).collect();
        let there = names(&all);
        let idle = |setting: &mut Setting| {
            let needed = NEEDS.iter().find(|(name, _)| *name == setting.name);
            needed.is_some_and(|(_, other)| !said_now(other) && !there.iter().any(|n| n == other))
        };
        let unused: Vec<Setting> = all.extract_if(.., idle).collect();
        Ok(Some(Self { path, kept: all, replaced: names(&replaced), unused: names(&unused) }))
    }

    /// What it says, as arguments.
    pub(super) fn words(&self) -> impl Iterator<Item = OsString> {
        self.kept.iter().flat_map(|s| s.words.iter().cloned())
    }

    /// The file.
    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// What was read, in one line.
    pub fn line(&self) -> String {
        let words: Vec<String> = self.words().map(|w| w.to_string_lossy().into_owned()).collect();
        let words = if words.is_empty() { "none".to_owned() } else { words.join(" ") };
        let mut line = format!("options from {}: {words}", self.path.display());
        for (what, names) in [("the command line replaces", &self.replaced), ("of no use here", &self.unused)] {
            if !names.is_empty() {
                line += &format!("; {what}: {}", names.join(", "));
            }
        }
        line
    }

    /// An error of options with the line of the file that it speaks of, if it does.
    pub fn explain(&self, error: Error) -> Error {
        let Error::Options(text) = &error else { return error };
        let speaks_of = |s: &&Setting| {
            let after = text.split(&format!("--{}", s.name)).nth(1);
            after.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-'))
        };
        match self.kept.iter().find(speaks_of) {
            Some(s) => Error::Options(format!("{text} ({}, line {})", self.path.display(), s.line)),
            None => error,
        }
    }
}

/// The options of a file, in its order.
fn parse(path: &Path, text: &str, command: &Command) -> Result<Vec<Setting>> {
    let line = |place: usize| 1 + text.bytes().take(place).filter(|b| *b == b'\n').count();
    let wrong = |line: usize, reason: String| {
        Error::Options(format!("{}, line {line}: {}", path.display(), reason.replace('\n', " ")))
    };
    let failed = |e: toml::de::Error| wrong(e.span().map_or(1, |s| line(s.start)), e.message().to_owned());
    let places = DeTable::parse(text).map_err(failed)?;
    let values: toml::Table = toml::from_str(text).map_err(failed)?;
    let mut keys: Vec<(usize, &str)> =
        places.get_ref().keys().map(|key| (key.span().start, key.get_ref().as_ref())).collect();
    keys.sort_unstable();
    let folder = path.parent().unwrap_or(Path::new(""));
    let setting = |(place, name): (usize, &str)| {
        let line = line(place);
        let wrong = |reason: String| wrong(line, reason);
        let arg = command.get_arguments().find(|a| a.get_long() == Some(name));
        let arg = arg.ok_or_else(|| wrong(unknown(name)))?;
        if OF_ONE_RUN.contains(&name) {
            return Err(wrong(format!("'{name}' is asked of one run: give it on the command line")));
        }
        let Some(value) = values.get(name) else { return Err(wrong(format!("'{name}' has no value"))) };
        let words = words(arg, name, value, folder).map_err(|kinds| {
            wrong(format!("'{name}' is {kinds}, not {} {}", article(value.type_str()), value.type_str()))
        })?;
        words.iter().try_for_each(|word| judge(name, word)).map_err(wrong)?;
        Ok(Setting { name: name.to_owned(), line, words })
    };
    keys.into_iter().map(setting).collect()
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'i']) { "an" } else { "a" }
}

/// What is said of a key that is no option, with the nearest that is one.
fn unknown(name: &str) -> String {
    let refused = Cli::command().try_get_matches_from(["onnx-jmd".to_owned(), format!("--{name}")]).err();
    let near = match refused.as_ref().and_then(|e| e.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(near)) => format!("did you mean '{}'?", near.trim_start_matches('-')),
        _ => "its keys are the long names in onnx-jmd --help".into(),
    };
    format!("there is no option '{name}': {near}")
}

/// A value as it would stand on the command line, or the kinds of values that the option takes.
fn words(arg: &Arg, name: &str, value: &Value, folder: &Path) -> Result<Vec<OsString>, &'static str> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let flag = value.as_bool().ok_or("true or false")?;
        return Ok(flag.then(|| format!("--{name}").into()).into_iter().collect());
    }
    let number = is_number(arg.get_value_parser());
    let (numbers, texts) = (number || name == "curve", !number || name == "max-drop");
    let several = matches!(arg.get_action(), ArgAction::Append) || PATTERNS.contains(&name) || name == "curve";
    let kinds = match (numbers, texts, several) {
        (true, false, false) => "a number",
        (true, true, false) => "a number or a string such as \"1%\"",
        (true, false, true) => "a number or a list of numbers",
        (true, true, true) => "a list of numbers or a string",
        (false, _, false) => "a string",
        (false, _, true) => "a string or a list of strings",
    };
    let text = |value: &Value| match value {
        Value::String(text) if texts => Some(text.clone()),
        Value::Integer(number) if numbers => Some(number.to_string()),
        Value::Float(number) if numbers => Some(number.to_string()),
        _ => None,
    };
    let texts: Vec<String> = match value {
        Value::Array(values) if several => values.iter().map(text).collect::<Option<_>>().ok_or(kinds)?,
        value => vec![text(value).ok_or(kinds)?],
    };
    let joined = |separator: &str| if texts.is_empty() { Vec::new() } else { vec![texts.join(separator)] };
    let texts = match name {
        name if PATTERNS.contains(&name) && texts.len() > 1 => {
            vec![texts.iter().map(|t| format!("(?:{t})")).collect::<Vec<_>>().join("|")]
        }
        "curve" => joined(","),
        _ if arg.get_value_delimiter().is_some() => joined(","),
        _ => texts,
    };
    let path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>() || name == "calib";
    let word = |text: String| {
        let mut word = OsString::from(format!("--{name}="));
        match path && !["-", "none", "drawn"].contains(&text.as_str()) {
            true => word.push(folder.join(text)),
            false => word.push(text),
        }
        word
    };
    Ok(texts.into_iter().map(word).collect())
}

fn is_number(parser: &ValueParser) -> bool {
    let id = parser.type_id();
    id == TypeId::of::<f64>()
        || id == TypeId::of::<f32>()
        || id == TypeId::of::<u16>()
        || id == TypeId::of::<u32>()
        || id == TypeId::of::<u64>()
        || id == TypeId::of::<usize>()
}

/// The option's own verdict on a value.
fn judge(name: &str, word: &OsString) -> Result<(), String> {
    let Err(error) = Cli::command().try_get_matches_from([&OsString::from("onnx-jmd"), word]) else {
        return Ok(());
    };
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.clone(),
        _ => String::new(),
    };
    match error.kind() {
        ErrorKind::InvalidValue => {
            let known = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(known)) => known.join(", "),
                _ => String::new(),
            };
            Err(format!("'{name}' is one of {known}, not '{value}'"))
        }
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(&error).map_or(String::new(), |e| format!(": {e}"));
            Err(format!("'{value}' is no value for '{name}'{reason}"))
        }
        // That others are missing is no matter of this one.
        _ => Ok(()),
    }
}
