//! `bench`: what an access, a recovery and a client's command cost, each beside a baseline that is measured in
//! the same run and in turns with it. Runs the programs of `CORDON_BIN_DIR`; asserts nothing.

mod hops;
mod measure;
mod plot;
mod proc;
mod raw;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use console::{OutputError, complain, exit, say};

use self::measure::Meter;
use self::rows::{Failure, Row, THEMES};

/// Measures Cordon beside what it is compared with.
#[derive(Parser)]
#[command(after_help = exit::HELP)]
struct Options {
    /// One JSON object a row, and a last one that sums up.
    #[arg(long)]
    json: bool,
    /// A quarter of the time for each row.
    #[arg(long)]
    quick: bool,
    /// Milliseconds for each row.
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(20..=600_000))]
    time: u64,
    /// Only the rows of this theme: access, config, window, socket, interrupts, companion, start, scale,
    /// idle, recovery or guest.
    #[arg(long)]
    only: Option<String>,
    /// Draw the distributions to this file.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Pass one event on to another: a part of what an interrupt is compared with.
    #[arg(long, hide = true)]
    forward: bool,
}

fn main() -> ExitCode {
    let options = match console::parse::<Options>() {
        Ok(options) => options,
        Err(status) => return status,
    };
    let done = if options.forward { hops::forward().map_err(Into::into) } else { run(&options) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<OutputError>() => ExitCode::from(exit::UNWRITTEN),
        Err(error) => {
            complain(format_args!("bench: {error}"));
            ExitCode::from(exit::FAILED)
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let time = Duration::from_millis(options.time) / if options.quick { 4 } else { 1 };
    let meter = Meter::new(time);
    let picked = |theme: &str| options.only.as_deref().is_none_or(|only| only == theme);
    if !THEMES.iter().any(|(theme, _)| picked(theme)) {
        let themes: Vec<&str> = THEMES.iter().map(|(theme, _)| *theme).collect();
        return Err(format!("no such theme; there are {}", themes.join(", ")).into());
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut reached = 0;
    for (theme, measure) in THEMES {
        if !picked(theme) {
            continue;
        }
        measure(&meter, &mut |row| {
            let line = row.line();
            reached += usize::from(line.ok);
            if options.json {
                say!("{}", serde_json::to_string(&line)?)?;
            } else {
                say!("{line}")?;
            }
            rows.push(row);
            Ok(())
        })?;
    }
    if let Some(path) = &options.svg {
        plot::draw(path, &rows)?;
    }
    if options.json {
        say!("{}", serde_json::json!({"type": "summary", "rows": rows.len(), "ok": reached}))?;
    } else {
        say!("{reached} of {} rows reach their bar", rows.len())?;
    }
    Ok(())
}
