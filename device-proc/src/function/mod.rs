//! The function process: config space, trapped BAR access, interrupts and reset of one function.
//!
//! It holds one dext connection, never claimed, its tube, the signallers it was given and its
//! mappings of the BARs and of the interrupt page. It distrusts the guest, whose values arrive in
//! requests, and every byte of them. One thread, one wait loop over tokens. It exits at once
//! when the VMM side or the dext is gone; nothing is lost with it but what was in flight: claim,
//! DMA and BAR windows are the connection process's.

pub mod bars;
pub mod config;
pub mod interrupts;

use std::os::fd::AsFd as _;

use ipc::poll::{self, Source};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{Ready, Reply, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, PciAddress, Tube, TubeError};

use self::bars::Bars;
use self::interrupts::Interrupts;
use crate::dext::{self, Client, DextError};
use crate::options::Common;
use crate::start::{self, RoleError};
use crate::{capabilities, failure};

/// What the main loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// A request, or the end of the VMM side.
    Tube,
    /// A notification of the dext's.
    Interrupt,
    /// The end of the dext.
    Dext,
}

/// The state of the process, owned by its one thread.
pub struct FunctionProcess {
    client: Client,
    bars: Bars,
    interrupts: Interrupts,
}

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(address: PciAddress, common: &Common) -> Result<(), RoleError> {
    start::run::<_, _, Reply>(
        common,
        Role::Function,
        |tube| prepare(address, common, tube),
        |tube, mut process| process.serve(tube),
    )
}

/// Opens, sets up and confines; public so that the escape suite confines itself the same way.
///
/// # Errors
/// [`RoleError`].
pub fn prepare(
    address: PciAddress,
    common: &Common,
    tube: &Tube,
) -> Result<(FunctionProcess, Ready), RoleError> {
    let registry = dext::registry(&common.dext)?;
    let mut client = dext::open_function(registry.as_ref(), address)?;
    let msix = capabilities::msix(&mut client)?;
    let bars = Bars::new(&mut client, msix)?;
    let entries = msix.map_or(0, |msix| msix.vectors);
    let interrupts = Interrupts::new(&mut client, entries)?;
    let (identity, infos, vectors) = (client.identity(), bars.infos(), interrupts.vectors());
    let mut open = vec![tube.as_fd()];
    open.extend(client.descriptors());
    let sandbox = start::confine(common, sandbox_profiles::Role::Function, &open)?;
    let ready = Ready { identity, bars: infos, msix, vectors, sandbox };
    Ok((FunctionProcess { client, bars, interrupts }, ready))
}

impl FunctionProcess {
    fn serve(&mut self, tube: &mut Tube) -> Result<(), RoleError> {
        loop {
            for token in self.wait(tube)? {
                match token {
                    Token::Interrupt => self.interrupts.deliver(&mut self.client)?,
                    Token::Tube => {
                        if !self.serve_one(tube)? {
                            return Ok(());
                        }
                    }
                    Token::Dext => {
                        return Err(DextError::Lost {
                            subject: format!("Function {}", self.client.address()),
                            operation: "waiting",
                        }
                        .into());
                    }
                }
            }
        }
    }

    fn wait(&self, tube: &Tube) -> Result<Vec<Token>, RoleError> {
        let liveness = self.client.liveness();
        let mut sources = vec![
            Source::readable(self.client.completion(), Token::Interrupt),
            Source::readable(tube, Token::Tube),
        ];
        if let Some(fd) = &liveness {
            sources.push(Source::hangup(fd, Token::Dext));
        }
        poll::wait(&sources, None).map_err(RoleError::Wait)
    }

    /// Serves one request; `false` when it was the last.
    fn serve_one(&mut self, tube: &mut Tube) -> Result<bool, RoleError> {
        let (id, answer, more) = match tube.receive::<Request>(Deadline::now()) {
            Ok(received) => {
                let more = received.message != Request::Shutdown;
                (received.id, self.handle(received.message, received.handles), more)
            }
            Err(TubeError::TimedOut) => return Ok(true),
            Err(TubeError::Disconnected) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        start::reply::<Ready, Reply>(tube, id, answer, &[])?;
        Ok(more)
    }

    fn handle(&mut self, request: Request, handles: Handles) -> Result<Reply, Failure> {
        let wants_handles = matches!(request, Request::Interrupts { .. });
        if !wants_handles {
            handles.expect(0).map_err(|error| start::invalid(error.to_string()))?;
        }
        match request {
            Request::ConfigRead { offset, length } => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                config::check_length(length)?;
                let bytes = config::read(&mut self.client, offset, length);
                bytes.map(Reply::Bytes).map_err(|error| failure(&error))
            }
            Request::ConfigWrite { offset, data } => {
                config::check_length(data.len())?;
                config::write(&mut self.client, offset, &data).map(|()| Reply::Done)
            }
            Request::BarRead { bar, offset, width } => {
                self.bars.read(bar, offset, width).map(Reply::Value)
            }
            Request::BarWrite { bar, offset, width, value } => {
                self.bars.write(bar, offset, width, value).map(|()| Reply::Done)
            }
            Request::Interrupts { index, action } => {
                self.interrupts.change(&mut self.client, index, action, handles)?;
                Ok(Reply::Done)
            }
            Request::Reset => self.reset(),
            Request::Statistics => Ok(Reply::Statistics(self.interrupts.statistics())),
            Request::Shutdown => Ok(Reply::Done),
        }
    }

    /// P8: reset by the dext; a failure is an I/O error.
    fn reset(&mut self) -> Result<Reply, Failure> {
        self.client.reset().map(|()| Reply::Done).map_err(|error| {
            let failure = failure(&error);
            let kind = if error.is_fatal() { FailureKind::NoDevice } else { FailureKind::Io };
            Failure { kind, ..failure }
        })
    }
}
