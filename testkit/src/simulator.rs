//! A running `dext-sim`: the dext and its devices, in a process of their own as the real one is.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::faults::DextFault;
use crate::limits::{MAX_ANSWER, taken};
use crate::{Error, wait};

/// How long it may take to answer at its control socket.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to end in order before it is killed.
const GRACE: Duration = Duration::from_secs(1);

/// Who chooses bus addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dart {
    /// A bus address is the key that memory was registered under, without limits: for stock guests.
    Identity,
    /// The platform, within its limits, as on hardware: guests map on demand through a companion.
    Strict,
}

impl Dart {
    /// As `dext-sim` takes it.
    #[must_use]
    pub fn argument(self) -> &'static str {
        match self {
            Self::Identity => "--dart=identity",
            Self::Strict => "--dart=strict",
        }
    }
}

/// A running simulator. Ends with the value, and with the process that started it.
#[derive(Debug)]
pub struct Simulator {
    child: Child,
    program: PathBuf,
    folder: PathBuf,
    arguments: Vec<OsString>,
    /// The same folder when it is the simulator's own, which is removed with it.
    own: Option<tempfile::TempDir>,
}

/// What its clients hold of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Held {
    /// The function.
    pub address: String,
    /// Open connections.
    pub connections: u64,
    /// Of these, how many have claimed it: 0 or 1.
    pub claims: u64,
    /// Whether one of them has its interrupts.
    pub interrupts_held: bool,
    /// DMA registrations.
    pub dma_regions: u64,
}

impl Held {
    /// Whether it is nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.connections + self.claims + self.dma_regions == 0 && !self.interrupts_held
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, connections, claims, dma_regions, .. } = self;
        let interrupts = if self.interrupts_held { "held" } else { "free" };
        write!(
            f,
            "{address}: {connections} connections, {claims} claims, interrupts {interrupts}, \
             {dma_regions} DMA registrations"
        )
    }
}

#[derive(Deserialize)]
struct Answer {
    state: State,
}

#[derive(Deserialize)]
struct State {
    functions: Vec<Held>,
    faults: Vec<Fired>,
}

#[derive(Deserialize)]
struct Fired {
    fired: u64,
}

impl Simulator {
    /// Starts `program` with the arguments that its `--help` lists, but for its sockets, which are in a folder of its
    /// own. Returns when it listens.
    ///
    /// # Errors
    /// [`Error::Run`] and [`Error::NotReady`].
    pub fn start(program: impl Into<PathBuf>, arguments: Vec<OsString>) -> Result<Self, Error> {
        let own = tempfile::Builder::new().prefix("cordon-testkit-").tempdir();
        let own = own.map_err(Error::system("No folder for a simulator's sockets"))?;
        let folder = own.path().to_owned();
        let mut simulator = Self::start_in(folder, program, arguments)?;
        simulator.own = Some(own);
        Ok(simulator)
    }

    /// [`Simulator::start`] with its sockets in a folder that is there, and is left.
    ///
    /// # Errors
    /// [`Error::Run`] and [`Error::NotReady`].
    pub fn start_in(
        folder: impl Into<PathBuf>,
        program: impl Into<PathBuf>,
        arguments: Vec<OsString>,
    ) -> Result<Self, Error> {
        let (folder, program) = (folder.into(), program.into());
        let child = spawn(&program, &folder, &arguments)?;
        Ok(Self { child, program, folder, arguments, own: None })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("dext")
    }

    /// Where it is, as [`HostConfig::dext`](cordon_vmm::HostConfig::dext) and `--dext` take it.
    #[must_use]
    pub fn endpoint(&self) -> OsString {
        let mut endpoint = OsString::from("sim:");
        endpoint.push(self.socket());
        endpoint
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something, as the `--control` of its `--help` says, and returns its answer.
    ///
    /// # Errors
    /// [`Error::Silent`] when it does not answer within 10 s, [`Error::Refused`] when it answers with an error.
    pub fn control(&self, command: &Value) -> Result<Value, Error> {
        let answer = self.ask(command)?;
        match answer.get("error") {
            Some(why) => {
                let why = why.as_str().unwrap_or("?").to_owned();
                Err(Error::Refused { what: command.to_string(), why })
            }
            None => Ok(answer),
        }
    }

    /// [`Simulator::control`] whose answer may be an error, as an object with that name.
    ///
    /// # Errors
    /// [`Error::Silent`] when it does not answer within 10 s.
    pub fn ask(&self, command: &Value) -> Result<Value, Error> {
        let silent = |error| Error::Silent { what: "dext-sim".to_owned(), error };
        self.converse(command).map_err(silent)
    }

    fn converse(&self, command: &Value) -> io::Result<Value> {
        let mut stream = UnixStream::connect(self.folder.join("control"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_ANSWER + 1)).read_line(&mut line)?;
        Ok(serde_json::from_str(&taken(line)?)?)
    }

    /// Has something go wrong from now on.
    ///
    /// # Errors
    /// Those of [`Simulator::control`].
    pub fn fault(&self, fault: &DextFault) -> Result<(), Error> {
        self.control(&json!({ "fault": fault.to_string() })).map(drop)
    }

    /// Fires an interrupt vector of a function.
    ///
    /// # Errors
    /// Those of [`Simulator::control`].
    pub fn raise(&self, function: &str, vector: u16) -> Result<(), Error> {
        self.control(&json!({ "raise": { "address": function, "vector": vector } })).map(drop)
    }

    /// Ends a function for all its clients, in one of the ways of `dext-sim --help`.
    ///
    /// # Errors
    /// Those of [`Simulator::control`].
    pub fn end(&self, function: &str, ending: &str) -> Result<(), Error> {
        self.control(&json!({ "end": { "address": function, "as": ending } })).map(drop)
    }

    /// Brings a function back that has ended.
    ///
    /// # Errors
    /// Those of [`Simulator::control`].
    pub fn bring_back(&self, function: &str) -> Result<(), Error> {
        self.control(&json!({ "return": { "address": function } })).map(drop)
    }

    fn state(&self) -> Result<State, Error> {
        let answer = self.control(&"state".into())?;
        let answer: Result<Answer, _> = serde_json::from_value(answer);
        let nonsense = |error| Error::Silent { what: "dext-sim".to_owned(), error };
        answer.map(|answer| answer.state).map_err(io::Error::from).map_err(nonsense)
    }

    /// What clients hold of each function.
    ///
    /// # Errors
    /// Those of [`Simulator::control`].
    pub fn held(&self) -> Result<Vec<Held>, Error> {
        Ok(self.state()?.functions)
    }

    /// How often each fault happened, in the order in which they were given.
    ///
    /// # Errors
    /// Those of [`Simulator::control`].
    pub fn fired(&self) -> Result<Vec<u64>, Error> {
        Ok(self.state()?.faults.iter().map(|fault| fault.fired).collect())
    }

    /// Waits until no client holds anything; what is still held after `time`.
    ///
    /// # Errors
    /// Those of [`Simulator::control`].
    pub fn settled(&self, time: Duration) -> Result<Vec<Held>, Error> {
        let mut held = self.held()?;
        wait::until(time, || {
            held.iter().all(Held::is_nothing)
                || self.held().is_ok_and(|now| {
                    held = now;
                    held.iter().all(Held::is_nothing)
                })
        });
        held.retain(|one| !one.is_nothing());
        Ok(held)
    }

    /// Kills it, as a dext that crashes.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn kill(&mut self) -> Result<(), Error> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).map_err(Error::system("The simulated dext cannot be killed"))
    }

    /// Starts it again after [`Simulator::kill`], at the same place with the same devices and faults.
    ///
    /// # Errors
    /// Those of [`Simulator::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        self.child = spawn(&self.program, &self.folder, &self.arguments)?;
        Ok(())
    }

    /// [`Simulator::restart`] with other arguments.
    ///
    /// # Errors
    /// Those of [`Simulator::start`].
    pub fn replace(&mut self, arguments: Vec<OsString>) -> Result<(), Error> {
        self.arguments = arguments;
        self.restart()
    }
}

fn spawn(program: &Path, folder: &Path, arguments: &[OsString]) -> Result<Child, Error> {
    let option = |name: &str, path: &Path| {
        let mut option = OsString::from(name);
        option.push(path);
        option
    };
    let mut command = Command::new(program);
    command
        .arg(option("--socket=", &folder.join("dext")))
        .arg(option("--control=", &folder.join("control")))
        .arg(OsStr::new("--exit-with-stdin"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // What a terminal sends to the test is not sent to the dext, which ends with it.
        .process_group(0);
    let mut child =
        command.spawn().map_err(|error| Error::Run { program: program.to_owned(), error })?;
    let mut said = String::new();
    // It says one line or exits; both end this read.
    let read = child.stdout.take().map(|output| BufReader::new(output).read_line(&mut said));
    if read.is_some_and(|read| read.is_ok()) && said.starts_with("ready ") {
        return Ok(child);
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(Error::NotReady { program: program.to_owned(), said: said.trim().to_owned() })
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // The end of its standard input ends it; a stopped one is killed.
        drop(self.child.stdin.take());
        wait::until(GRACE, || matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
