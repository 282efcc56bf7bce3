//! The command line. What `--help` and `--version` print is output like any other: if it cannot be
//! written the program says so by its exit status.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;

use crate::{Output, complain, exit};

/// Columns that the help takes at most; fewer on a terminal that has fewer.
const WIDTH: usize = 80;

/// Reads the command line.
///
/// # Errors
/// The exit status of a program that has nothing more to do: help or version were asked for, or the
/// command line makes no sense, which was said.
pub fn parse<P: Parser>() -> Result<P, ExitCode> {
    parse_from(std::env::args_os())
}

/// [`parse`], of a command line that is not this program's own: its name is first in it too.
///
/// # Errors
/// As [`parse`].
pub fn parse_from<P: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<P, ExitCode> {
    let mut command = P::command().max_term_width(WIDTH);
    let parsed = command.try_get_matches_from_mut(arguments);
    let parsed = parsed.and_then(|mut found| {
        P::from_arg_matches_mut(&mut found).map_err(|error| error.format(&mut command))
    });
    parsed.map_err(|error| {
        let colour = |terminal: bool| terminal && std::env::var_os("NO_COLOR").is_none();
        let text = |terminal| {
            let text = error.render();
            if colour(terminal) { text.ansi().to_string() } else { text.to_string() }
        };
        if error.use_stderr() {
            complain(text(std::io::stderr().is_terminal()).trim_end());
            return ExitCode::from(exit::USAGE);
        }
        match Output::default().text(&text(std::io::stdout().is_terminal())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(exit::UNWRITTEN),
        }
    })
}
