//! The lister process: what the backend offers, for people who ask.
//!
//! It opens every function without claiming any, confines itself, and only then reads what the
//! backend and the devices say. It changes nothing. It exits when the VMM side is gone.

use cordon_backend::{Backend, BackendError, Listed};
use ipc::wire::common::Failure;
use ipc::wire::handshake::Role;
use ipc::wire::listing::{Function, MAX_FUNCTIONS, Ready, Request};
use ipc::{Deadline, Tube, TubeError};

use crate::function::config;
use crate::hooks::NoHooks;
use crate::options::Common;
use crate::start::{self, Answer, Confinement, RoleError, nothing_beside};
use crate::{backends, capabilities, failure};

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(common: &Common) -> Result<(), RoleError> {
    let mut tube = start::greet(start::inherited_tube(common)?, Role::Lister)?;
    let backend = backends::open(&common.dext).map_err(RoleError::from);
    let confinement = common.confinement();
    let prepared = backend.and_then(|backend| prepare(backend.as_ref(), confinement, &tube));
    let mut entries = start::announce(&mut tube, prepared)?;
    serve(&mut tube, &mut entries)
}

/// Runs the role over a tube and a backend that are there already, until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn serve_on(
    tube: Tube,
    backend: &dyn Backend,
    confinement: Confinement,
) -> Result<(), RoleError> {
    let mut tube = start::greet(tube, Role::Lister)?;
    let prepared = prepare(backend, confinement, &tube);
    let mut entries = start::announce(&mut tube, prepared)?;
    serve(&mut tube, &mut entries)
}

fn prepare(
    backend: &dyn Backend,
    confinement: Confinement,
    tube: &Tube,
) -> Result<(Vec<Listed>, Ready), RoleError> {
    let entries = backend.list(MAX_FUNCTIONS)?;
    let mut open = vec![std::os::fd::AsFd::as_fd(tube)];
    open.extend(entries.iter().flat_map(|entry| entry.function.descriptors()));
    let sandbox = start::confine(confinement, sandbox_profiles::Role::Lister, &open, 0)?;
    let functions = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    Ok((entries, Ready { functions, sandbox }))
}

fn serve(tube: &mut Tube, entries: &mut [Listed]) -> Result<(), RoleError> {
    let mut hooks = NoHooks;
    loop {
        let forever = Deadline::after(std::time::Duration::MAX);
        let received = match tube.receive::<Request>(forever) {
            Ok(received) => received,
            Err(TubeError::Disconnected) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let alone = nothing_beside(&received.handles);
        if let Request::Misbehave(wrong) = received.message {
            start::arrange(tube, received.id, &mut hooks, &wrong)?;
            continue;
        }
        let answer = Answer::to(tube, received.id, &mut hooks);
        match received.message {
            Request::GetFunction(call) => {
                let entry = alone.and_then(|()| entry(entries, call.0));
                let described =
                    entry.and_then(|entry| describe(entry).map_err(|error| failure(&error)));
                answer.send(&call, described.map(Box::new))?;
            }
            Request::GetConfig(call) => {
                let entry = alone.and_then(|()| entry(entries, call.0));
                let bytes = entry.and_then(|entry| {
                    let mut bytes = vec![0; ipc::wire::function::CONFIG_SPACE];
                    let read = config::read(entry.function.as_mut(), 0, &mut bytes);
                    read.map(|()| bytes).map_err(|error| failure(&error))
                });
                answer.send(&call, bytes)?;
            }
            Request::Ping(call) => answer.send::<Request, _>(&call, alone)?,
            Request::Shutdown(call) => return answer.send::<Request, _>(&call, alone),
            // Arranged for above.
            Request::Misbehave(_) => {}
        }
    }
}

fn entry(entries: &mut [Listed], number: u32) -> Result<&mut Listed, Failure> {
    let entry = usize::try_from(number).ok().and_then(|number| entries.get_mut(number));
    entry.ok_or_else(|| start::invalid(format!("There is no function number {number}")))
}

fn describe(entry: &mut Listed) -> Result<Function, BackendError> {
    let function = entry.function.as_mut();
    Ok(Function {
        identity: function.identity(),
        bars: function.bars()?,
        msi_vectors: capabilities::msi_vectors(function)?,
        msix: capabilities::msix(function)?,
        claimed: function.is_claimed()?,
        clients: entry.peers.clone(),
    })
}
