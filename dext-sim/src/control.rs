//! What tests ask and tell beside the clients: one JSON command a line, one JSON answer a line.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use ipc::{PciAddress, SocketFile};
use serde::{Deserialize, Serialize};

use crate::faults::{Ending, FaultReport, Faults};
use crate::function::Function;
use crate::limits::MAX_CONVERSATIONS;
use crate::limits::MAX_LINE;
use crate::server::Registry;
use crate::threads;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    /// What clients hold.
    State,
    /// Arm another fault.
    Fault(String),
    /// Fire a vector.
    Raise { address: String, vector: u16 },
    /// A function ends for all its clients.
    End { address: String, r#as: String },
    /// A function that ended comes back.
    Return { address: String },
}

#[derive(Serialize)]
struct FunctionState {
    address: String,
    connections: usize,
    claims: usize,
    interrupts_held: bool,
    dma_regions: usize,
    dma_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    State { functions: Vec<FunctionState>, faults: Vec<FaultReport> },
    Done,
    Error(String),
}

/// Listens at `path` in a thread of its own.
pub(crate) fn start(
    path: &Path,
    registry: Arc<Registry>,
    faults: Arc<Faults>,
) -> Result<Arc<SocketFile>, Box<dyn std::error::Error>> {
    let file = Arc::new(SocketFile::listen(path)?);
    let listener = Arc::clone(&file);
    let shared = Arc::new((registry, faults));
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        loop {
            match listener.accept() {
                Ok(client) => begin(client.into(), &shared),
                Err(error) => {
                    tracing::error!(%error, "nobody listens at the control socket any more");
                    return;
                }
            }
        }
    })?;
    Ok(file)
}

/// Starts a conversation. Each holds a reference on what is shared, so that they are counted.
fn begin(stream: UnixStream, shared: &Arc<(Arc<Registry>, Arc<Faults>)>) {
    if Arc::strong_count(shared) > MAX_CONVERSATIONS {
        return;
    }
    let shared = Arc::clone(shared);
    let run = move || {
        if let Err(error) = converse(&stream, &shared.0, &shared.1) {
            tracing::debug!(%error, "control connection ended");
        }
    };
    if let Err(error) = threads::spawn("conversation".to_owned(), run) {
        tracing::warn!("no thread for a control connection: {error}");
    }
}

fn converse(stream: &UnixStream, registry: &Registry, faults: &Faults) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let is_cut = line.len() as u64 == MAX_LINE && !line.ends_with('\n');
        let answer = match serde_json::from_str(&line) {
            _ if is_cut => Answer::Error(format!("a line has more than {MAX_LINE} bytes")),
            Ok(command) => carry_out(command, registry, faults),
            Err(error) => Answer::Error(error.to_string()),
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        (&*stream).write_all(&bytes)?;
        if is_cut {
            // Its rest would be taken for another command.
            return Ok(());
        }
    }
}

fn carry_out(command: Command, registry: &Registry, faults: &Faults) -> Answer {
    match command {
        Command::State => Answer::State {
            functions: registry.functions.iter().map(|function| state(function)).collect(),
            faults: faults.report(),
        },
        Command::Fault(text) => match text.parse() {
            Ok(fault) => {
                faults.add(fault);
                Answer::Done
            }
            Err(error) => Answer::Error(error.to_string()),
        },
        Command::Raise { address, vector } => on(registry, &address, |function| {
            function.hardware.raise(vector);
            Ok(())
        }),
        Command::End { address, r#as } => on(registry, &address, |function| {
            let ending = r#as.parse::<Ending>().map_err(|error| error.to_string())?;
            function.end(ending, None);
            Ok(())
        }),
        Command::Return { address } => on(registry, &address, |function| {
            function.come_back().then_some(()).ok_or("it is there".to_owned())
        }),
    }
}

/// Does something to the function at an address.
fn on(
    registry: &Registry,
    address: &str,
    act: impl FnOnce(&Function) -> Result<(), String>,
) -> Answer {
    let found = address.parse::<PciAddress>().ok().and_then(|address| {
        registry.functions.iter().find(|function| function.address() == address)
    });
    let function = found.ok_or_else(|| format!("no function {address:?}"));
    match function.and_then(|function| act(function)) {
        Ok(()) => Answer::Done,
        Err(why) => Answer::Error(why),
    }
}

fn state(function: &Function) -> FunctionState {
    let (connections, claims) = function.counts();
    let (dma_regions, dma_bytes) = function.hardware.dart.usage();
    FunctionState {
        address: function.address().to_string(),
        connections,
        claims,
        interrupts_held: function.hardware.interrupts.held(),
        dma_regions,
        dma_bytes,
    }
}
