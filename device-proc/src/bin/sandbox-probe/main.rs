//! `sandbox-probe`: confines itself exactly as a role of `device-proc` does, then tries one
//! forbidden thing and says how it went by its exit status: [`REFUSED`] or [`SUCCEEDED`]. Most
//! attempts never return, since the filter kills the process. `--try` is the same for the rows of the
//! system-call policy, by number, in a process that opens nothing.
//!
//! A program of its own, so that the product's program holds none of this.
#![expect(unsafe_code, reason = "it makes system calls that no library would")]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::ffi::{c_int, c_long};
use std::io::Write as _;
use std::process::ExitCode;

use cordon_device_proc::options::{Common, CommonOptions, Endpoint, Serving, UsageError, Windows};
use cordon_device_proc::start::RoleError;
use cordon_device_proc::{backends, connection, function, start};
use ipc::wire::handshake::Role;
use ipc::{MemoryPort, PciAddress};
use lexopt::{Arg, ValueExt as _};
#[cfg(target_os = "linux")]
use linux::{attempts, confine_and_try, guest_memory, list};
#[cfg(target_os = "macos")]
use macos::{attempts, confine_and_try, guest_memory, list};

/// Output cannot be written: as `console` has it.
const UNWRITTEN: c_int = 74;
/// The attempt came back with an error.
const REFUSED: c_int = 3;
/// The attempt worked.
const SUCCEEDED: c_int = 99;
/// There is no such attempt.
const UNKNOWN: c_int = 4;

/// What is printed when the command line makes no sense.
const USAGE: &str = "\
Tries one forbidden thing from inside the sandbox.

Usage: sandbox-probe connection|function --address=BB:DD.F --dext=… --attempt=NAME --victim=PID
       sandbox-probe unconfined --attempt=NAME --victim=PID
       sandbox-probe list
       sandbox-probe connection|function|lister --tries
       sandbox-probe connection|function|lister --dext=… --try=NUMBER
";

/// What to try, and as what.
#[derive(Default)]
struct Attempt {
    role: String,
    address: Option<PciAddress>,
    common: CommonOptions,
    /// What to try.
    name: Option<String>,
    /// A process to meddle with.
    victim: Option<i32>,
    /// To list what is tried of the policy.
    tries: bool,
    /// Over VFIO as a process that has an iommufd.
    iommufd: bool,
    /// One of those.
    number: Option<usize>,
}

impl Attempt {
    fn parse() -> Result<Self, UsageError> {
        let mut attempt = Self::default();
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Value(role) if attempt.role.is_empty() => attempt.role = role.string()?,
                Arg::Long("address") => attempt.address = Some(parser.value()?.parse()?),
                Arg::Long("attempt") => attempt.name = Some(parser.value()?.string()?),
                Arg::Long("victim") => attempt.victim = Some(parser.value()?.parse()?),
                Arg::Long("iommufd") => attempt.iommufd = true,
                Arg::Long("tries") => attempt.tries = true,
                Arg::Long("try") => attempt.number = Some(parser.value()?.parse()?),
                Arg::Long(name) => {
                    let name = name.to_owned();
                    if !attempt.common.take(&name, &mut parser)? {
                        return Err(Arg::Long(&name).unexpected().into());
                    }
                }
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(attempt)
    }
}

/// What an attempt works with.
struct Target {
    victim: c_long,
    tube: c_long,
}

/// An attempt: its name and what it does. Negative is an error.
type Entry = (&'static str, fn(&Target) -> c_long);

fn main() -> ExitCode {
    // On standard input, which leads nowhere otherwise: no role may have a descriptor more.
    if let Err(error) = guest_memory() {
        let _ = writeln!(std::io::stderr(), "sandbox-probe: no memory to map: {error}");
        return ExitCode::FAILURE;
    }
    match Attempt::parse().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "sandbox-probe: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(attempt: Attempt) -> Result<(), UsageError> {
    let Attempt { role, address, common, name, victim, tries, iommufd, number } = attempt;
    if role == "list" {
        attempts().for_each(|(name, _)| print(name));
        return Ok(());
    }
    if tries {
        list(policy_of(&role)?).iter().for_each(|one| print(one));
        return Ok(());
    }
    if let Some(number) = number {
        let common = common.finish()?;
        // As a role of that name does over that backend.
        let over = match common.dext {
            Endpoint::Vfio if iommufd => "iommufd-",
            Endpoint::Vfio => "vfio-",
            _ => "",
        };
        confine_and_try(policy_of(&format!("{over}{role}"))?, &common, number)
    }
    let name = name.ok_or(UsageError::Missing("--attempt"))?;
    let victim = victim.ok_or(UsageError::Missing("--victim"))?.into();
    let role = match role.as_str() {
        "unconfined" => attempt_and_exit(&name, &Target { victim, tube: -1 }),
        "connection" => Role::Connection,
        "function" => Role::Function,
        _ => return Err(UsageError::Role(role)),
    };
    let common = common.finish()?;
    let address = address.ok_or(UsageError::Missing("--address"))?;
    let target = Target { victim, tube: common.tube_fd.into() };
    confined(address, &common, role, &name, &target)
}

fn print(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        // Output that cannot be written, as every program of ours ends then.
        std::process::exit(UNWRITTEN);
    }
}

fn policy_of(role: &str) -> Result<sandbox_profiles::Role, UsageError> {
    match role {
        "connection" => Ok(sandbox_profiles::Role::Connection),
        "function" => Ok(sandbox_profiles::Role::Function),
        "lister" => Ok(sandbox_profiles::Role::Lister),
        "iommufd-connection" => Ok(sandbox_profiles::Role::IommufdConnection),
        "vfio-connection" => Ok(sandbox_profiles::Role::VfioConnection),
        "vfio-function" => Ok(sandbox_profiles::Role::VfioFunction),
        _ => Err(UsageError::Role(role.to_owned())),
    }
}

/// Starts as the role does, says that it is ready, and tries; what the role holds is held meanwhile.
fn confined(address: PciAddress, common: &Common, role: Role, name: &str, target: &Target) -> ! {
    let started = || -> Result<(), RoleError> {
        let mut tube = start::greet(start::inherited_tube(common)?, role)?;
        let backend = backends::open(&common.dext)?;
        let (backend, confinement) = (backend.as_ref(), common.confinement());
        if role == Role::Function {
            let prepared =
                function::prepare(backend, address, Serving::default(), None, confinement, &tube);
            let _held = start::announce(&mut tube, prepared)?;
            attempt_and_exit(name, target)
        }
        let (windows, port) = (Windows::Handed, MemoryPort::inherited());
        let prepared = connection::prepare(backend, address, windows, port, confinement, &tube);
        let _held = start::announce(&mut tube, prepared)?;
        attempt_and_exit(name, target)
    };
    let _ = started();
    std::process::exit(1)
}

fn attempt_and_exit(name: &str, target: &Target) -> ! {
    let Some((_, run)) = attempts().find(|(known, _)| *known == name) else {
        std::process::exit(UNKNOWN);
    };
    let code = if run(target) < 0 { REFUSED } else { SUCCEEDED };
    // No clean-up: an attempt may have left the process in any state.
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
