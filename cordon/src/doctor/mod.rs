//! `cordon doctor`: what stands between this machine and an attached device, line by line.
//!
//! Each line asks one thing and answers *ok*, *missing* with a cure, or *unknown* with what would have to
//! be done to know. A line that was not asked is unknown and never ok. What may hang is asked in another
//! process with a deadline. Which lines there are is the system's: those of Linux are in `linux`; those of
//! macOS are in `mac` and `confinement`, and they are asked elsewhere too, in place of that system's own, of
//! output that was saved on a Mac (`--tools`).

mod bringup;
mod confinement;
mod dext;
mod ioreg;
mod line;
#[cfg(target_os = "linux")]
mod linux;
mod mac;
mod tools;
#[cfg(target_os = "linux")]
mod vfio;

use std::path::PathBuf;

use clap::Args;
use console::{exit, say};

use self::line::{Line, State, Summary};
use self::tools::Tools;
use crate::{Common, Failure, output, programs};

/// For the end of `--help`.
pub(crate) const HELP: &str = "\
Exit status:
    0  every line was asked, and nothing that is required is missing
    1  something required is missing, or doctor failed; one line on standard
       error says what
    2  the command line makes no sense
    3  nothing is missing as far as is known, and some lines are unknown
   74  standard output cannot be written (closed pipe, full disk)";

/// What is looked at.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// Print what must be tried first on a Mac, in order, as commands.
    #[arg(long)]
    mac_bringup: bool,
    /// Where the dext is: sim:PATH or iokit; vfio for Linux's VFIO. Without one nothing is opened, and what
    /// needs that is unknown.
    #[arg(long, env = "CORDON_DEXT")]
    dext: Option<std::ffi::OsString>,
    /// The device-proc program; by default the one beside this program.
    #[arg(long, env = "CORDON_DEVICE_PROC")]
    device_proc: Option<PathBuf>,
    /// The dext's bundle identifier; by default that of the extension that is installed.
    #[arg(long, value_name = "IDENTIFIER")]
    dext_bundle_id: Option<String>,
    /// Run systemextensionsctl, ioreg, codesign, system_profiler and ps from this folder in place of the
    /// system's own: programs that print what was saved on a Mac.
    #[arg(long, value_name = "FOLDER")]
    tools: Option<PathBuf>,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

/// Asks every line and says what it finds; an error when something is missing or unknown.
pub(crate) fn run(options: &DoctorOptions) -> Result<(), Failure> {
    if options.mac_bringup {
        return bringup::print();
    }
    let (mut lines, program) = match programs::find("device-proc", options.device_proc.as_deref()) {
        Ok(program) => (vec![Line::ok(PROGRAM, program.display().to_string())], program),
        Err(error) => {
            let cure = "install device-proc beside cordon, or say where it is (--device-proc)";
            let missing = Line::missing(PROGRAM, error.to_string(), cure);
            (vec![missing], options.device_proc.clone().unwrap_or_else(|| "device-proc".into()))
        }
    };
    let is_there = lines.iter().all(|line| line.state == State::Ok);
    let tools = Tools::new(options.tools.clone());
    let is_vfio = options.dext.as_ref().is_some_and(|dext| dext == "vfio");
    let listing = match &options.dext {
        Some(dext) if is_there => {
            dext::list(&Common::named(dext, options.device_proc.clone()).config()?)
        }
        Some(_) => dext::Listing::NoProgram,
        None => dext::Listing::NotAsked,
    };
    match &tools {
        Some(tools) => {
            if is_there {
                lines.extend(confinement::lines(&program)?);
            } else {
                let first = "see the line about the program first";
                lines.push(Line::unknown(confinement::CHECK, "nothing was confined", first));
            }
            lines.extend(mac::lines(tools, &program, options.dext_bundle_id.as_deref()));
        }
        None => lines.extend(system(&program, is_vfio)),
    }
    lines.extend(dext::lines(&listing, is_vfio));
    let summary = Summary::of(lines);
    if options.json {
        output::json(&summary)?;
    } else {
        summary.lines.iter().try_for_each(print)?;
        say!("{summary}")?;
    }
    summary.verdict()
}

const PROGRAM: &str = "device-proc is installed";

/// The lines of this system, where it is not asked as a Mac is.
#[cfg(target_os = "linux")]
fn system(program: &std::path::Path, is_vfio: bool) -> Vec<Line> {
    let mut lines = linux::lines(program);
    lines.extend(vfio::lines(&crate::sys::vfio::Vfio::default(), is_vfio));
    lines
}

/// There are none beside those of a Mac.
#[cfg(not(target_os = "linux"))]
fn system(_: &std::path::Path, _: bool) -> Vec<Line> {
    Vec::new()
}

fn print(line: &Line) -> Result<(), Failure> {
    let word = match line.state {
        State::Ok => "ok     ",
        State::Missing if line.required => "MISSING",
        State::Missing => "missing",
        State::Unknown => "unknown",
    };
    let optional = if line.required { "" } else { " (not required)" };
    say!("{word} {}{optional}: {}", line.check, line.found)?;
    if let Some(cure) = &line.cure {
        say!("        {cure}")?;
    }
    Ok(())
}

/// Some lines are unknown, and nothing is missing as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} lines are unknown: nothing is said to be well that was not asked")]
pub(crate) struct Unknown(usize);

impl Unknown {
    /// The exit status.
    pub(crate) const STATUS: u8 = exit::UNKNOWN;
}
