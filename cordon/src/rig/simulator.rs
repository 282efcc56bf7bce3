//! The simulated dext that the demo starts: a child program, gone with the demo.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::Failure;
use crate::scratch::Folder;

/// Who chooses bus addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dart {
    /// Bus address == key.
    Identity,
    /// The platform, within its limits.
    Strict,
}

/// A running simulator.
pub(crate) struct Simulator {
    child: Child,
    folder: Folder,
}

/// What its clients hold, as it sees it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct FunctionState {
    pub(crate) address: String,
    pub(crate) connections: usize,
    pub(crate) claims: usize,
    pub(crate) interrupts_held: bool,
    pub(crate) dma_regions: usize,
}

#[derive(Deserialize)]
struct Answer {
    state: Running,
}

#[derive(Deserialize)]
struct Running {
    functions: Vec<FunctionState>,
}

impl std::fmt::Display for FunctionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, connections, claims, dma_regions, .. } = self;
        let interrupts = if self.interrupts_held { "held" } else { "free" };
        write!(
            f,
            "{address}: {connections} connections, {claims} claims, interrupts {interrupts}, \
             {dma_regions} DMA registrations"
        )
    }
}

impl Simulator {
    /// Starts `program` with `devices` and waits until it listens.
    pub(crate) fn start(program: &Path, dart: Dart, devices: &[OsString]) -> Result<Self, Failure> {
        // Whoever can connect to the simulator owns its devices.
        let folder = Folder::new("cordon-demo")?;
        let mut command = Command::new(program);
        command
            .arg("--socket")
            .arg(folder.path().join("dext"))
            .arg("--control")
            .arg(folder.path().join("control"))
            .arg("--exit-with-stdin")
            .arg(match dart {
                Dart::Identity => "--dart=identity",
                Dart::Strict => "--dart=strict",
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a terminal sends to the command is not sent to the dext, which ends with it.
            .process_group(0);
        for device in devices {
            command.arg("--device").arg(device);
        }
        let spawned = command.spawn();
        let child =
            spawned.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let mut simulator = Self { child, folder };
        let output = simulator.child.stdout.take().ok_or("the simulator has no output")?;
        let mut line = String::new();
        // It says one line or exits; both end this read.
        BufReader::new(output).read_line(&mut line)?;
        if line.starts_with("ready ") {
            Ok(simulator)
        } else {
            Err("the simulated dext did not start".into())
        }
    }

    /// Where it is, as processes are told.
    pub(crate) fn endpoint(&self) -> OsString {
        let mut endpoint = OsString::from("sim:");
        endpoint.push(self.folder.path().join("dext"));
        endpoint
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What clients hold.
    pub(crate) fn state(&self) -> Result<Vec<FunctionState>, Failure> {
        let gone = |error| format!("the simulated dext does not answer: {error}");
        let mut stream = UnixStream::connect(self.folder.path().join("control")).map_err(gone)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"\"state\"\n").map_err(gone)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(gone)?;
        Ok(serde_json::from_str::<Answer>(&line)?.state.functions)
    }

    /// Waits until no client holds anything; what is left after `timeout`.
    pub(crate) fn settled(&self, timeout: Duration) -> Result<Vec<FunctionState>, Failure> {
        let end = Instant::now() + timeout;
        loop {
            let mut left = self.state()?;
            left.retain(|one| {
                one.connections + one.claims + one.dma_regions > 0 || one.interrupts_held
            });
            if left.is_empty() || Instant::now() > end {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // The end of its standard input ends it; a stopped one is killed.
        drop(self.child.stdin.take());
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
