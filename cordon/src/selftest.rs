//! Forbidden things, tried from inside the sandbox.
//!
//! The `sandbox-probe` program confines itself as a role does and tries one thing. It is started
//! once for each attempt, since most end it. How it ends tells whether it was refused.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipc::{Deadline, PciAddress};

use cordon_vmm::DeviceError;
use cordon_vmm::child::{
    Cause, ConnectionProtocol, Death, ExitStatus, FunctionProtocol, Protocol, Spec,
};
use cordon_vmm::connection::Connection;
use cordon_vmm::host::HostConfig;
use cordon_vmm::recovery::Recovery;
use cordon_vmm::supervisor::Supervisor;

/// Exit status of an attempt that came back with an error.
const REFUSED: i32 = 3;

/// How long the dext may take to clean up after a process.
const CLEANING_UP: Duration = Duration::from_secs(2);

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The filter killed the process.
    Killed,
    /// The system call failed.
    Refused,
    /// The receiver saw it and ended the process.
    EndedByReceiver,
    /// It worked, or it cannot be told: a hole.
    Succeeded(String),
}

impl Outcome {
    /// Whether the sandbox held.
    #[must_use]
    pub fn held(&self) -> bool {
        !matches!(self, Self::Succeeded(_))
    }
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// "connection" or "function".
    pub role: &'static str,
    /// What was tried.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
}

/// The names of all attempts, as the probe program knows them.
///
/// # Errors
/// When the program cannot be run.
pub fn names(probe: &Path) -> std::io::Result<Vec<String>> {
    let output = std::process::Command::new(probe).arg("list").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Why the attempts could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The probe program cannot be run.
    #[error("Cannot run {}", .0.display())]
    Program(PathBuf, #[source] std::io::Error),
    /// A process did not start.
    #[error("{0}")]
    Start(Arc<Death>),
    /// The function cannot be claimed, which a function process needs.
    #[error("Cannot claim {0}: {1}")]
    Claim(PciAddress, DeviceError),
}

/// Makes every attempt from inside the sandbox of both roles, on a free function, which is claimed
/// meanwhile as a function process needs it. `progress` is told each outcome, and may break off.
///
/// # Errors
/// [`SelfTestError`]; a hole is an [`Outcome`], not an error.
pub fn run(
    config: &HostConfig,
    probe: &Path,
    address: PciAddress,
    mut progress: impl FnMut(&Attempt) -> ControlFlow<()>,
) -> Result<Vec<Attempt>, SelfTestError> {
    let names = names(probe).map_err(|error| SelfTestError::Program(probe.to_owned(), error))?;
    let claim = |error| SelfTestError::Claim(address, error);
    let connection = Connection::start(&config.spec(Some(address)), Recovery::OFF, None)
        .map_err(SelfTestError::Start)?;
    connection.attach(address).map_err(claim)?;
    let mut attempts = Vec::new();
    'names: for name in names {
        let mut spec = config.spec(Some(address));
        spec.program = probe.to_owned();
        spec.expendable = true;
        spec.arguments.push(format!("--attempt={name}").into());
        spec.arguments.push(format!("--victim={}", std::process::id()).into());
        // As without a companion; the probe brings guest memory along by itself.
        spec.arguments.push("--guest-memory=0".into());
        let both = [one::<ConnectionProtocol>(&spec, &name), one::<FunctionProtocol>(&spec, &name)];
        for attempt in both {
            let attempt = attempt.map_err(SelfTestError::Start)?;
            let next = progress(&attempt);
            attempts.push(attempt);
            if next.is_break() {
                break 'names;
            }
        }
    }
    let soon = Deadline::after(Duration::from_secs(3));
    connection.detach(address, soon).map_err(claim)?;
    connection.stop();
    Ok(attempts)
}

/// Starts a process. The dext may still be cleaning up after the attempt before it, and have no
/// interrupts to give: tried again with pauses, as a replacement is.
fn start<P: Protocol>(spec: &Spec) -> Result<Supervisor<P>, Arc<Death>> {
    let deadline = Deadline::after(CLEANING_UP);
    loop {
        match Supervisor::<P>::start(spec) {
            Ok((supervisor, _)) => return Ok(supervisor),
            Err(death) if deadline.passed() => return Err(death),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn one<P: Protocol>(spec: &Spec, name: &str) -> Result<Attempt, Arc<Death>> {
    let supervisor = start::<P>(spec)?;
    let ended = supervisor.died().wait(Deadline::after(Duration::from_secs(5)));
    let death = supervisor.stop();
    let outcome = match (ended, &death.cause, death.exit) {
        (Ok(true), Cause::Ended, ExitStatus::Signal(libc::SIGSYS)) => Outcome::Killed,
        (Ok(true), Cause::Ended, ExitStatus::Code(REFUSED)) => Outcome::Refused,
        (Ok(true), Cause::Broken(_), _) => Outcome::EndedByReceiver,
        _ => Outcome::Succeeded(death.to_string()),
    };
    Ok(Attempt { role: P::COMMAND, name: name.to_owned(), outcome })
}
