//! The simulated dext that the demo starts: a child program, gone with the demo.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::Failure;

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
    directory: PathBuf,
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
    state: State,
}

#[derive(Deserialize)]
struct State {
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
    pub(crate) fn start(program: &Path, dart: Dart, devices: &[String]) -> Result<Self, Failure> {
        let directory = private_directory()?;
        let mut command = Command::new(program);
        command
            .arg("--socket")
            .arg(directory.join("dext"))
            .arg("--control")
            .arg(directory.join("control"))
            .arg("--exit-with-stdin")
            .arg(match dart {
                Dart::Identity => "--dart=identity",
                Dart::Strict => "--dart=strict",
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for device in devices {
            command.arg("--device").arg(device);
        }
        let spawned = command.spawn();
        let child = spawned
            .map_err(|error| format!("cannot run {}: {error}", program.display()))
            .inspect_err(|_| drop(std::fs::remove_dir_all(&directory)))?;
        let mut simulator = Self { child, directory };
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
    pub(crate) fn endpoint(&self) -> String {
        format!("sim:{}", self.directory.join("dext").display())
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What clients hold.
    pub(crate) fn state(&self) -> Result<Vec<FunctionState>, Failure> {
        let gone = |error| format!("the simulated dext does not answer: {error}");
        let mut stream = UnixStream::connect(self.directory.join("control")).map_err(gone)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"\"state\"\n").map_err(gone)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(gone)?;
        Ok(serde_json::from_str::<Answer>(&line)?.state.functions)
    }

    /// Waits until no client holds anything; what is left after `patience`.
    pub(crate) fn settled(&self, patience: Duration) -> Result<Vec<FunctionState>, Failure> {
        let end = Instant::now() + patience;
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
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A directory that only this user can enter: whoever can connect to the simulator owns its
/// devices.
fn private_directory() -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let base = std::env::temp_dir();
    for attempt in 0..100u32 {
        let path = base.join(format!("cordon-demo-{}-{attempt}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(format!("cannot make {}: {error}", path.display()).into()),
        }
    }
    Err(format!("no room for a directory in {}", base.display()).into())
}
