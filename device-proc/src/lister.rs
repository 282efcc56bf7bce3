//! The lister process: what the dext offers, for people who ask.
//!
//! It opens every function without claiming any, confines itself, and only then reads what the
//! dext and the devices say. It changes nothing. It exits when the VMM side is gone.

use ipc::wire::common::Failure;
use ipc::wire::dext::{CLIENT_TYPE, Client as Peer, SERVICE_CLASS};
use ipc::wire::handshake::Role;
use ipc::wire::listing::{Function, MAX_FUNCTIONS, Ready, Request};
use ipc::{Deadline, Tube, TubeError};

use crate::dext::{self, Client, DextError};
use crate::function::config;
use crate::misbehave::Misbehave;
use crate::options::Common;
use crate::start::{self, Answer, RoleError, nothing_beside};
use crate::{capabilities, failure};

struct Entry {
    client: Client,
    peers: Vec<Peer>,
}

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(common: &Common) -> Result<(), RoleError> {
    start::run(
        common,
        Role::Lister,
        |tube| prepare(common, tube),
        |tube, mut entries| serve(tube, &mut entries),
    )
}

fn prepare(common: &Common, tube: &Tube) -> Result<(Vec<Entry>, Ready), RoleError> {
    let registry = dext::registry(&common.dext)?;
    let mut entries = Vec::new();
    for service in registry.services()? {
        if service.class != SERVICE_CLASS || entries.len() == MAX_FUNCTIONS {
            continue;
        }
        match registry.open(service.id, CLIENT_TYPE).and_then(Client::new) {
            Ok(client) => entries.push(Entry { client, peers: service.clients }),
            Err(error) if error.is_service_gone() => {}
            // The others are listed all the same.
            Err(error) => tracing::warn!("a function cannot be listed: {error}"),
        }
    }
    entries.sort_by_key(|entry| entry.client.address());
    let mut open = vec![std::os::fd::AsFd::as_fd(tube)];
    open.extend(entries.iter().flat_map(|entry| entry.client.descriptors()));
    let sandbox = start::confine(common, sandbox_profiles::Role::Lister, &open)?;
    let functions = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    Ok((entries, Ready { functions, sandbox }))
}

fn serve(tube: &mut Tube, entries: &mut [Entry]) -> Result<(), RoleError> {
    let mut misbehave = Misbehave::new(false);
    loop {
        let forever = Deadline::after(std::time::Duration::MAX);
        let received = match tube.receive::<Request>(forever) {
            Ok(received) => received,
            Err(TubeError::Disconnected) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let alone = nothing_beside(&received.handles);
        if let Request::Misbehave(wrong) = received.message {
            start::arrange(tube, received.id, &mut misbehave, &wrong)?;
            continue;
        }
        let answer = Answer::to(tube, received.id, &mut misbehave);
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
                    let read = config::read(&mut entry.client, 0, &mut bytes);
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

fn entry(entries: &mut [Entry], number: u32) -> Result<&mut Entry, Failure> {
    let entry = usize::try_from(number).ok().and_then(|number| entries.get_mut(number));
    entry.ok_or_else(|| start::invalid(format!("There is no function number {number}")))
}

fn describe(entry: &mut Entry) -> Result<Function, DextError> {
    let client = &mut entry.client;
    Ok(Function {
        identity: client.identity(),
        bars: client.bars()?,
        msi_vectors: capabilities::msi_vectors(client)?,
        msix: capabilities::msix(client)?,
        claimed: client.is_claimed()?,
        clients: entry.peers.clone(),
    })
}
