//! What the command logs, and how: options, variables, and what each command does without.

use clap::{Args, ValueEnum};
use console::log::{Filter, Format};
use tracing::Level;

use crate::{Command, Failure};

/// Which variables say what is logged, the first that is there.
const VARIABLES: [&str; 2] = ["CORDON_LOG", "RUST_LOG"];

/// What is logged.
#[derive(Debug, Args)]
pub(crate) struct LogOptions {
    /// What is logged on standard error: a level (off, error, warn, info, debug, trace), or
    /// several TARGET=LEVEL with commas between. By default what CORDON_LOG or RUST_LOG says, or
    /// warnings.
    #[arg(long = "log", value_name = "FILTER", global = true, help_heading = "Logging")]
    filter: Option<String>,
    /// How log lines look.
    #[arg(
        long = "log-format",
        value_name = "FORMAT",
        global = true,
        value_enum,
        default_value_t = LogFormat::Text,
        help_heading = "Logging"
    )]
    format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Time, level and text.
    Text,
    /// JSON objects.
    Json,
}

impl LogOptions {
    /// What `command` logs.
    ///
    /// # Errors
    /// A filter that makes no sense, with where it is from.
    pub(crate) fn filter(&self, command: &Command) -> Result<Filter, Failure> {
        let of_variable = |name: &&'static str| {
            let text = std::env::var_os(name).filter(|text| !text.is_empty())?;
            Some((*name, text.to_string_lossy().into_owned()))
        };
        let said = self.filter.clone().map(|text| ("--log", text));
        match said.or_else(|| VARIABLES.iter().find_map(of_variable)) {
            Some((from, text)) => {
                Filter::parse(&text).map_err(|error| format!("{from}: {error}").into())
            }
            // Each death that these cause is a warning, and they tell them themselves.
            None if matches!(command, Command::Torture(_) | Command::Demo(_)) => {
                Ok(Filter::of(Level::ERROR))
            }
            None => Ok(Filter::of(Level::WARN)),
        }
    }

    /// How it looks.
    pub(crate) fn format(&self) -> Format {
        match self.format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        }
    }
}
