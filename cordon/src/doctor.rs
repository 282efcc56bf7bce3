//! `cordon doctor`: whether processes can be confined here, and what there is to try on a Mac.

use std::process::Command;

use clap::Args;
use console::say;
use cordon_vmm::listing::Lister;

use crate::output::Sandbox;
use crate::{Common, Failure, programs};

/// What is looked at.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// Print what must be tried first on a Mac, in order, as commands.
    #[arg(long)]
    mac_bringup: bool,
    /// Where the dext is: sim:PATH or iokit. Without one nothing is opened.
    #[arg(long, env = "CORDON_DEXT")]
    dext: Option<std::ffi::OsString>,
    /// The device-proc program; by default the one beside this program.
    #[arg(long, env = "CORDON_DEVICE_PROC")]
    device_proc: Option<std::path::PathBuf>,
}

/// The questions that reading could not settle (docs/macos.md), and the command for each.
const BRINGUP: [(&str, &str); 6] = [
    (
        "a process that opened, claimed and mapped goes on working once it is confined, and cannot \
         open again",
        "cordon inspect BB:DD.F --attach, then sandbox-probe function --attempt=second-dext-connection",
    ),
    (
        "a memory entry of a mapped BAR can be mapped by the VMM and by its hypervisor",
        "cordon inspect BB:DD.F --attach lists windows that came; cordon serve --windows trapped does without",
    ),
    (
        "the death of a process, or of the dext, while device memory is mapped hurts nobody",
        "cordon torture on dext-sim; then kill -9 of each process under cordon serve",
    ),
    (
        "DMA reaches guest RAM that the connection process mapped from a descriptor",
        "cordon serve --dma companion --companion-socket … with the guest's own driver",
    ),
    ("an io_connect_t that is sent ends its sender", "(nothing here sends one)"),
    (
        "messages with descriptors after confinement, and the profiles' probes, on each macOS",
        "cordon doctor; cordon demo",
    ),
];

/// Looks, and says what it finds; an error when something is wrong.
pub(crate) fn run(options: &DoctorOptions) -> Result<(), Failure> {
    if options.mac_bringup {
        say!("None of this has run on a Mac yet. To be tried in this order (docs/macos.md):")?;
        for (number, (question, command)) in (1..).zip(BRINGUP) {
            say!("{number}. whether {question}\n   {command}")?;
        }
        return Ok(());
    }
    let program = programs::find("device-proc", options.device_proc.as_deref())?;
    let mut wrong = ask(&program, &[])?;
    for role in ["function", "connection", "lister"] {
        if cfg!(target_os = "macos") {
            wrong += ask(&program, &["--confine", role])?;
        }
    }
    match &options.dext {
        None => say!("no dext was named (--dext): nothing was opened")?,
        Some(dext) => {
            let common = Common::named(dext, options.device_proc.clone());
            let lister = Lister::start(&common.config()?)?;
            say!("a confined process lists {} functions", lister.functions()?.len())?;
            say!("it is confined by: {}", Sandbox::from(lister.sandbox()).summary())?;
        }
    }
    if wrong > 0 { Err(format!("{wrong} things are not as they must be").into()) } else { Ok(()) }
}

/// Has the confined program say what it finds; how much of it is wrong.
fn ask(program: &std::path::Path, arguments: &[&str]) -> Result<usize, Failure> {
    let output = Command::new(program)
        .arg("doctor")
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut wrong = 0;
    for line in text.lines() {
        say!("{}", cordon_vmm::text::printable(line))?;
        wrong += usize::from(line.starts_with("WRONG"));
    }
    if wrong == 0 && !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let errors = cordon_vmm::text::printable(errors.trim());
        return Err(format!("{} doctor: {}: {errors}", program.display(), output.status).into());
    }
    Ok(wrong)
}
