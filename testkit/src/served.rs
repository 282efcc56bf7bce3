//! A simulated device and a `cordon serve` over it, for VMMs that speak vfio-user.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use cordon_vmm::faults::{Fault, Faults};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

use crate::limits::answer;
use crate::rig::{RigBuilder, TIMEOUT};
use crate::{Error, Simulator, wait};

/// How long `cordon serve` may take to stop in order before it is killed: it promises two seconds.
const GRACE: Duration = Duration::from_secs(10);

/// A running `cordon serve`, and its simulated device. Stopped in order with the value, and killed if that takes longer
/// than it may.
#[derive(Debug)]
pub struct Served {
    child: Child,
    events: Receiver<Value>,
    cordon: PathBuf,
    folder: tempfile::TempDir,
    simulator: Simulator,
}

/// What the server says of a function.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// "present", "away" or "gone".
    pub presence: String,
    /// Process id.
    pub function_process: u32,
    /// Process id.
    pub connection_process: u32,
    /// Function processes that were replaced.
    pub replacements: u64,
    /// Times that the device went away and came back.
    pub returns: u64,
}

#[derive(Deserialize)]
struct Inspection {
    served: Status,
}

/// A fault, and what became of it in a server that stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Which.
    pub fault: Fault,
    /// The process that it struck; `None` if it never struck.
    pub process: Option<u32>,
}

impl Served {
    pub(crate) fn start(rig: &RigBuilder, functions: &[&str]) -> Result<Self, Error> {
        Faults::new(rig.plan.clone())?;
        let cordon = rig.programs.find("cordon")?;
        let device_proc = rig.programs.find("device-proc")?;
        let simulator = rig.simulator()?;
        let folder = tempfile::Builder::new().prefix("cordon-testkit-").tempdir();
        let folder = folder.map_err(Error::system("No folder for the server's sockets"))?;
        let mut command = Command::new(&cordon);
        command.arg("serve").arg("--json").arg("--dext").arg(simulator.endpoint());
        command.arg("--device-proc").arg(device_proc);
        command.arg("--control").arg(folder.path().join("control"));
        if !rig.strict {
            command.arg("--sandbox=relaxed");
        }
        if rig.recovery.standby {
            command.arg("--standby");
        }
        for fault in &rig.plan.faults {
            command.arg("--fault").arg(fault.to_string());
        }
        for function in functions {
            command.arg("--device").arg(function);
            command.arg("--socket").arg(folder.path().join(function));
        }
        let run = |error| Error::Run { program: cordon.clone(), error };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(run)?;
        let (sender, events) = channel();
        let output = child.stdout.take();
        std::thread::spawn(move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
            for event in lines.map_while(Result::ok).map(|line| serde_json::from_str(&line)) {
                // What is no event of a kind that is known is nobody's here.
                let _ = event.map(|event| sender.send(event));
            }
        });
        let served = Self { child, events, cordon, folder, simulator };
        served.until("ready")?;
        Ok(served)
    }

    /// Where a function is served: what the VMM under test connects to.
    #[must_use]
    pub fn socket(&self, function: &str) -> PathBuf {
        self.folder.path().join(function)
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    /// Process id of the server.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The dext.
    #[must_use]
    pub fn simulator(&self) -> &Simulator {
        &self.simulator
    }

    /// The dext, to be killed and started again.
    pub fn simulator_mut(&mut self) -> &mut Simulator {
        &mut self.simulator
    }

    /// Waits for the next event of this name, such as `attach` or `back`, which is then taken with all before it.
    ///
    /// # Errors
    /// [`Error::Overdue`] after 40 s, [`Error::NotReady`] when the server ended.
    pub fn until(&self, event: &str) -> Result<Value, Error> {
        let end = Instant::now() + TIMEOUT;
        let mut last = String::new();
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(found) if found["event"] == event => return Ok(found),
                Ok(other) => last = other.to_string(),
                Err(RecvTimeoutError::Timeout) => {
                    let what = format!("No event '{event}' came, the last was {last}");
                    return Err(Error::Overdue { what, time: TIMEOUT });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::NotReady { program: self.cordon.clone(), said: last });
                }
            }
        }
    }

    /// What the server says of a function now, as `cordon inspect --control` shows it.
    ///
    /// # Errors
    /// [`Error::Run`], and [`Error::Refused`] with what `cordon inspect` has to say.
    pub fn status(&self, function: &str) -> Result<Status, Error> {
        let run = |error| Error::Run { program: self.cordon.clone(), error };
        let mut inspect = Command::new(&self.cordon);
        inspect.args(["inspect", function, "--json", "--control"]).arg(self.control());
        inspect.arg("--dext").arg(self.simulator.endpoint()).stdin(Stdio::null());
        let mut child =
            inspect.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(run)?;
        let text = child.stdout.take().map_or(Ok(String::new()), answer);
        let complaint = child.stderr.take().map_or(Ok(String::new()), answer);
        child.wait().map_err(run)?;
        let (text, complaint) = (text.map_err(run)?, complaint.map_err(run)?);
        let inspection: Result<Inspection, _> = serde_json::from_str(&text);
        inspection.map(|inspection| inspection.served).map_err(|error| {
            let why = if complaint.is_empty() { error.to_string() } else { complaint };
            Error::Refused { what: format!("inspect {function}"), why: why.trim().to_owned() }
        })
    }

    /// Waits until the server says of a function what `wanted` picks: that its function process was replaced
    /// (`|status| status.replacements == 1`), or that the device went away and came back.
    ///
    /// # Errors
    /// [`Error::Overdue`] after 40 s, with what it said last.
    pub fn until_status(
        &self,
        function: &str,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status, Error> {
        let mut last = None;
        let found = wait::until_some(TIMEOUT, || {
            last = Some(self.status(function));
            last.as_ref().and_then(|status| status.as_ref().ok()).filter(|one| wanted(one)).cloned()
        });
        found.ok_or_else(|| {
            let what = format!("{function} did not come to what was waited for: {last:?}");
            Error::Overdue { what, time: TIMEOUT }
        })
    }

    /// Stops the server in order, and says what became of each fault, in the order in which they were given.
    ///
    /// # Errors
    /// [`Error::Overdue`] when it did not stop within 10 s, [`Error::Left`] when the dext then still has anything of
    /// it, [`Error::Refused`] when its exit status is not that of an orderly end.
    pub fn stop(mut self) -> Result<Vec<Outcome>, Error> {
        let ended = self.end()?;
        if !ended.success() {
            let what = format!("{} serve", self.cordon.display());
            return Err(Error::Refused { what, why: ended.to_string() });
        }
        let mut outcomes = Vec::new();
        while let Ok(event) = self.events.recv() {
            if event["event"] == "fault" {
                let fault = event["fault"].as_str().unwrap_or_default().parse()?;
                let process = event["process"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                outcomes.push(Outcome { fault, process });
            }
        }
        let left = self.simulator.settled(GRACE)?;
        if left.is_empty() { Ok(outcomes) } else { Err(Error::Left(left)) }
    }

    fn end(&mut self) -> Result<std::process::ExitStatus, Error> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = wait::until_some(GRACE, || self.child.try_wait().transpose());
        let overdue =
            || Error::Overdue { what: "cordon serve did not stop".to_owned(), time: GRACE };
        ended.ok_or_else(overdue)?.map_err(Error::system("cordon serve cannot be waited for"))
    }

    /// The folder of its sockets.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.end().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
