//! `vfio-run`: runs one command in the machine of `vfio_guest`, for `cargo xtask guest --vfio`. What it prints is passed
//! on as it comes, and its exit status is this program's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use console::{complain, say};
use lexopt::{Arg, ValueExt as _};
use vfio_guest::script::Ending;
use vfio_guest::{Emulated, Machine, Report, Step};

const USAGE: &str = "\
Runs a command in a Linux machine with kernel VFIO, inside of QEMU.

Usage: vfio-run --prepared=FOLDER [OPTION]… COMMAND [ARGUMENT]…

  --prepared=FOLDER  what `cargo xtask guest --prepare` has fetched
  --emulate=LIST     nvme, nvme-pair, edu, e1000-pair, igb, by commas; without it nvme.
                     The first is 0000:01:00.0, or that and 0000:01:00.1
  --with=PROGRAM     pack one more program, of these or by its path
  --variable=N=V     a variable of the command's
  --user=NUMBER      whom it runs as; without it root
  --locked=BYTES     how much it may lock
  --seconds=NUMBER   when it is given up; without it 120
";
/// What is packed whatever the command: those of them that are built.
const ALWAYS: [&str; 4] = ["cordon", "device-proc", "dext-sim", "sandbox-probe"];
/// Bytes of the NVMe's namespace.
const DISK: u64 = 256 << 20;

type Failure = Box<dyn std::error::Error>;

struct Options {
    prepared: PathBuf,
    devices: Vec<Emulated>,
    with: Vec<PathBuf>,
    step: Step,
    within: Duration,
}

fn main() -> ExitCode {
    match options(lexopt::Parser::from_env()).and_then(run) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(format_args!("vfio-run: {error}"));
            ExitCode::from(console::exit::FAILED)
        }
    }
}

fn options(mut parser: lexopt::Parser) -> Result<Options, Failure> {
    let (mut prepared, mut devices, mut with) = (None, Vec::new(), Vec::new());
    let mut step = Step::new("command", "");
    let mut within = Duration::from_secs(120);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("prepared") => prepared = Some(PathBuf::from(parser.value()?)),
            Arg::Long("emulate") => devices = emulated(&parser.value()?.string()?)?,
            Arg::Long("with") => with.push(PathBuf::from(parser.value()?)),
            Arg::Long("variable") => {
                let variable = parser.value()?.string()?;
                let (name, value) = variable.split_once('=').ok_or(USAGE)?;
                step = step.variable(name, value);
            }
            Arg::Long("user") => step = step.user(parser.value()?.parse()?),
            Arg::Long("locked") => step = step.locked_memory(parser.value()?.parse()?),
            Arg::Long("seconds") => within = Duration::from_secs(parser.value()?.parse()?),
            Arg::Value(command) => {
                let name = Path::new(&command).file_name().ok_or(USAGE)?.to_str().ok_or(USAGE)?;
                step.program = format!("/bin/{name}");
                with.push(command.into());
                let rest: Result<Vec<String>, OsString> =
                    parser.raw_args()?.map(OsString::into_string).collect();
                step.arguments = rest.map_err(|word| format!("{} is no text", word.display()))?;
            }
            _ => return Err(USAGE.into()),
        }
    }
    if step.program.is_empty() {
        return Err(USAGE.into());
    }
    if devices.is_empty() {
        devices.push(Emulated::Nvme { bytes: DISK });
    }
    let step = step.timeout(within);
    Ok(Options { prepared: prepared.ok_or(USAGE)?, devices, with, step, within })
}

fn emulated(list: &str) -> Result<Vec<Emulated>, Failure> {
    let one = |name| match name {
        "nvme" => Ok(Emulated::Nvme { bytes: DISK }),
        "nvme-pair" => Ok(Emulated::NvmePair { bytes: DISK }),
        "edu" => Ok(Emulated::Edu),
        "e1000-pair" => Ok(Emulated::E1000Pair),
        "igb" => Ok(Emulated::Igb),
        other => Err(format!("{other} is none of nvme, nvme-pair, edu, e1000-pair, igb").into()),
    };
    list.split(',').map(one).collect()
}

/// Boots, runs, and passes on; the command's exit status.
fn run(options: Options) -> Result<u8, Failure> {
    let programs = std::env::current_exe()?;
    let programs = programs.parent().ok_or("this program has no folder")?;
    let mut machine = Machine::new(&options.prepared);
    for device in &options.devices {
        let addresses = machine.add(device).join(" and ");
        complain(format_args!("vfio-run: {device:?} at {addresses}"));
    }
    for name in ALWAYS {
        let program = programs.join(name);
        if program.is_file() {
            machine.program(&program)?;
        }
    }
    for program in &options.with {
        // A name is one of these programs; a path is itself.
        let ours = programs.join(program);
        machine.program(if program.components().count() == 1 { &ours } else { program })?;
    }
    machine.step(options.step);
    // A machine takes some seconds before and after.
    let within = options.within + Duration::from_secs(60);
    let ran = machine.run(&programs.join("vfio-init"), within, |report| match report {
        Report::Line { error: false, text, .. } => drop(say!("{text}")),
        Report::Line { text, .. } => complain(format_args!("{text}")),
        Report::Ready { functions } => {
            for one in functions {
                let group = one.group.map_or("none".to_owned(), |group| group.to_string());
                let driver = one.driver.as_deref().unwrap_or("none");
                complain(format_args!(
                    "vfio-run: {} {} class {} group {group} driver {driver}",
                    one.address, one.ids, one.class
                ));
            }
        }
        _ => {}
    })?;
    for line in &ran.kernel {
        complain(format_args!("kernel: {line}"));
    }
    let step = ran.step("command").ok_or("nothing ran")?;
    complain(format_args!(
        "vfio-run: {:?} after {:.1?}, {:.1?} in all",
        step.ending, step.took, ran.took
    ));
    for line in &step.left {
        complain(format_args!("vfio-run: it left running: {line}"));
    }
    match step.ending {
        Some(Ending::Exited(status)) => Ok(u8::try_from(status)?),
        _ => Err("it did not exit by itself".into()),
    }
}
