//! The lister process: what the backend offers, for people who ask.
//!
//! It opens every function without claiming any, confines itself, and only then reads what the
//! backend and the devices say. It changes nothing. It exits when the VMM side is gone.

use cordon_backend::{Backend, BackendError, Listed};
use cordon_pci::MsiCapability;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::Misbehave;
use ipc::wire::handshake::Role;
use ipc::wire::listing::{Function, MAX_FUNCTIONS, Ready, Request};
use ipc::{Deadline, Handles, PciAddress, Tube};

use crate::function::config;
use crate::hooks::NoHooks;
use crate::options::Common;
use crate::start::{self, Answer, Confinement, RoleError, Serve, nothing_beside};
use crate::{backends, failure, pci};

/// Runs the role until the VMM side ends it; of the function at `address` alone, if one is named.
///
/// # Errors
/// [`RoleError`].
pub fn run(address: Option<PciAddress>, common: &Common) -> Result<(), RoleError> {
    let mut tube = start::greet(start::inherited_tube(common)?, Role::Lister)?;
    let backend = backends::open(&common.dext).map_err(RoleError::from);
    let confinement = common.confinement();
    let prepared =
        backend.and_then(|backend| prepare(backend.as_ref(), address, confinement, &tube));
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
    address: Option<PciAddress>,
    confinement: Confinement,
) -> Result<(), RoleError> {
    let mut tube = start::greet(tube, Role::Lister)?;
    let prepared = prepare(backend, address, confinement, &tube);
    let mut entries = start::announce(&mut tube, prepared)?;
    serve(&mut tube, &mut entries)
}

fn prepare(
    backend: &dyn Backend,
    address: Option<PciAddress>,
    confinement: Confinement,
    tube: &Tube,
) -> Result<(Vec<Listed>, Ready), RoleError> {
    let mut entries = backend.list(MAX_FUNCTIONS)?;
    if let Some(address) = address {
        entries.retain(|entry| entry.function.identity().address == address);
    }
    let mut open = vec![std::os::fd::AsFd::as_fd(tube)];
    open.extend(entries.iter().flat_map(|entry| entry.function.descriptors()));
    let sandbox = start::confine(confinement, sandbox_profiles::Role::Lister, &open, 0)?;
    let functions = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    Ok((entries, Ready { functions, sandbox }))
}

fn serve(tube: &mut Tube, entries: &mut [Listed]) -> Result<(), RoleError> {
    let forever = Deadline::after(std::time::Duration::MAX);
    while start::serve_one(&mut Lister(entries), tube, forever, &mut NoHooks)? {}
    Ok(())
}

struct Lister<'e>(&'e mut [Listed]);

impl Serve for Lister<'_> {
    type Request = Request;

    fn fault(request: &Request) -> Option<Misbehave> {
        if let Request::Misbehave(wrong) = request { Some(*wrong) } else { None }
    }

    fn carry_out(
        &mut self,
        request: Request,
        handles: Handles,
        answer: Answer<'_>,
    ) -> Result<bool, RoleError> {
        let alone = nothing_beside(&handles);
        match request {
            Request::GetFunction(call) => {
                let entry = alone.and_then(|()| entry(self.0, call.0));
                let described =
                    entry.and_then(|entry| describe(entry).map_err(|error| of_one(&error)));
                answer.send(&call, described.map(Box::new))?;
            }
            Request::GetConfig(call) => {
                let entry = alone.and_then(|()| entry(self.0, call.0));
                let bytes = entry.and_then(|entry| {
                    let mut bytes = vec![0; ipc::wire::function::CONFIG_SPACE];
                    let read = config::read(entry.function.as_mut(), 0, &mut bytes);
                    read.map(|()| bytes).map_err(|error| of_one(&error))
                });
                answer.send(&call, bytes)?;
            }
            Request::Ping(call) => answer.send::<Request, _>(&call, alone)?,
            Request::Shutdown(call) => {
                answer.send::<Request, _>(&call, alone)?;
                return Ok(false);
            }
            // See `fault`.
            Request::Misbehave(_) => {}
        }
        Ok(true)
    }
}

/// A failure of one function, which the others outlive.
fn of_one(error: &BackendError) -> Failure {
    let failure = failure(error);
    let is_lost = failure.kind == FailureKind::Lost;
    Failure { kind: if is_lost { FailureKind::NoDevice } else { failure.kind }, ..failure }
}

fn entry(entries: &mut [Listed], number: u32) -> Result<&mut Listed, Failure> {
    let entry = usize::try_from(number).ok().and_then(|number| entries.get_mut(number));
    entry.ok_or_else(|| start::invalid(format!("There is no function number {number}")))
}

fn describe(entry: &mut Listed) -> Result<Function, BackendError> {
    let function = entry.function.as_mut();
    let msi = MsiCapability::find(pci::reader(function))?;
    Ok(Function {
        identity: function.identity(),
        root_bridge: entry.root_bridge.clone(),
        bars: function.bars()?,
        msi_vectors: msi.map_or(0, |msi| msi.vectors),
        msix: pci::msix(function)?.map(pci::msix_info),
        claimed: function.is_claimed()?,
        clients: entry.peers.clone(),
    })
}
