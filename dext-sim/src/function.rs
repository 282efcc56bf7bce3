//! One function as its driver instance sees it: claims, openers, reset, registry properties.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::wire::common::Identity;
use ipc::wire::dext::{Client, IoReturn};
use ipc::{PciAddress, RootBridge};
use parking_lot::{Mutex, MutexGuard};

use crate::config_space::{BUS_MASTER, Effect, MEMORY_SPACE};
use crate::device::Model;
use crate::faults::{Ending, Faults};
use crate::hardware::Hardware;
use crate::interrupts::ClientId;
use crate::limits::MAX_CLIENTS;
use crate::memory::Budget;
use crate::user_client::MAX_BUFFER;

/// An open connection.
#[derive(Debug)]
struct Connected {
    peer: Client,
    /// The function ended under it: what every call answers from then on.
    ended: Option<Ending>,
}

/// Whether there is a driver instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Present,
    /// Selector Terminate.
    Terminated,
    /// It ended, and comes back at this time or when it is told to.
    Away(Option<Instant>),
}

#[derive(Debug, Default)]
struct Claims {
    clients: BTreeMap<ClientId, Connected>,
    claimed: BTreeSet<ClientId>,
    opener: Option<ClientId>,
    presence: Presence,
    /// How often it has come back: each time as another service.
    returns: u64,
}

impl Claims {
    /// What every call of a connection answers, if the function ended under it.
    fn not_ended(&self, id: ClientId) -> Result<(), IoReturn> {
        let ended = self.clients.get(&id).and_then(|client| client.ended);
        ended.map_or(Ok(()), |ending| Err(ending.code()))
    }

    /// The same, or if its driver instance was stopped.
    fn attached(&self, id: ClientId) -> Result<(), IoReturn> {
        self.not_ended(id)?;
        let terminated = self.presence == Presence::Terminated;
        if terminated { Err(IoReturn::NOT_ATTACHED) } else { Ok(()) }
    }
}

/// One function.
pub(crate) struct Function {
    /// Its first registry entry id.
    id: u64,
    pub(crate) identity: Identity,
    /// The root bridge above it, if the host names one.
    pub(crate) root_bridge: Option<RootBridge>,
    pub(crate) hardware: Arc<Hardware>,
    pub(crate) faults: Arc<Faults>,
    /// What its clients' memory may take of this process.
    pub(crate) memory: Arc<Budget>,
    /// Buffers of AllocateDMABuffer that its clients may have, all together.
    pub(crate) buffers: Arc<Budget>,
    model: Arc<Mutex<Box<dyn Model>>>,
    claims: Mutex<Claims>,
}

impl Function {
    pub(crate) fn new(
        id: u64,
        identity: Identity,
        hardware: Arc<Hardware>,
        faults: Arc<Faults>,
        memory: Arc<Budget>,
        model: Arc<Mutex<Box<dyn Model>>>,
    ) -> Self {
        let buffers = Budget::new(MAX_CLIENTS, MAX_BUFFER);
        let claims = Mutex::default();
        let root_bridge = None;
        Self { id, identity, root_bridge, hardware, faults, memory, buffers, model, claims }
    }

    /// The same, beneath a root bridge that the host names.
    pub(crate) fn beneath(mut self, root_bridge: Option<RootBridge>) -> Self {
        self.root_bridge = root_bridge;
        self
    }

    pub(crate) fn address(&self) -> PciAddress {
        self.identity.address
    }

    /// What is claimed, once it is settled whether the function has come back.
    fn claims(&self) -> MutexGuard<'_, Claims> {
        let mut claims = self.claims.lock();
        if let Presence::Away(Some(back)) = claims.presence
            && Instant::now() >= back
        {
            self.bring_back(&mut claims);
        }
        claims
    }

    /// A connection opens to the service with this registry entry id.
    pub(crate) fn connect(&self, id: ClientId, service: u64, peer: Client) -> Result<(), IoReturn> {
        let mut claims = self.claims();
        match claims.presence {
            Presence::Terminated => return Err(IoReturn::NOT_ATTACHED),
            Presence::Away(_) => return Err(IoReturn::NOT_FOUND),
            Presence::Present if service != self.service(&claims) => {
                return Err(IoReturn::NOT_FOUND);
            }
            Presence::Present => {}
        }
        if claims.clients.len() >= MAX_CLIENTS {
            return Err(IoReturn::NO_RESOURCES);
        }
        claims.clients.insert(id, Connected { peer, ended: None });
        Ok(())
    }

    /// The connection's service still exists.
    pub(crate) fn attached(&self, id: ClientId) -> Result<(), IoReturn> {
        self.claims().attached(id)
    }

    /// The function has not ended under the connection.
    pub(crate) fn not_ended(&self, id: ClientId) -> Result<(), IoReturn> {
        self.claims().not_ended(id)
    }

    /// The PCI device is open: some connection's claim holds it.
    pub(crate) fn open(&self, id: ClientId) -> Result<(), IoReturn> {
        let claims = self.claims();
        claims.attached(id)?;
        if claims.opener.is_some() { Ok(()) } else { Err(IoReturn::NOT_OPEN) }
    }

    /// Selector Claim.
    pub(crate) fn claim(&self, id: ClientId) -> Result<(), IoReturn> {
        let mut claims = self.claims();
        claims.attached(id)?;
        claims.claimed.insert(id);
        if claims.opener.is_none() {
            claims.opener = Some(id);
            self.hardware.config().set_command(MEMORY_SPACE | BUS_MASTER, 0);
        }
        Ok(())
    }

    /// A connection is gone, everything of it but the claim released. The opener takes the PCI
    /// device with it.
    pub(crate) fn disconnect(&self, id: ClientId) {
        let mut claims = self.claims();
        claims.clients.remove(&id);
        claims.claimed.remove(&id);
        if claims.opener == Some(id) {
            claims.opener = None;
            self.hardware.config().set_command(0, BUS_MASTER);
        }
    }

    /// Selector Terminate: the driver instance stops; every later call fails.
    pub(crate) fn terminate(&self) {
        let mut claims = self.claims();
        claims.presence = Presence::Terminated;
        claims.opener = None;
        self.hardware.config().set_command(0, BUS_MASTER);
    }

    /// The function ends for all its clients: their connections stay and answer a code, what they
    /// held is released, the service is in the registry no more. The BARs' memory stays as it is
    /// where it is mapped, and nothing moves behind it.
    pub(crate) fn end(&self, ending: Ending, back: Option<Duration>) {
        let mut claims = self.claims();
        for client in claims.clients.values_mut() {
            client.ended.get_or_insert(ending);
        }
        claims.claimed.clear();
        claims.opener = None;
        claims.presence = Presence::Away(back.map(|after| Instant::now() + after));
        self.hardware.halt(true);
        {
            let mut config = self.hardware.config();
            config.set_command(0, MEMORY_SPACE | BUS_MASTER);
            config.enable_msix(false);
            config.enable_msi(false);
        }
        self.hardware.interrupts.release_all();
        self.hardware.dart.clear();
    }

    /// A function that ended comes back, as after power-on; whether it was away.
    pub(crate) fn come_back(&self) -> bool {
        let mut claims = self.claims();
        let away = matches!(claims.presence, Presence::Away(_));
        if away {
            self.bring_back(&mut claims);
        }
        away
    }

    fn bring_back(&self, claims: &mut Claims) {
        claims.presence = Presence::Present;
        claims.returns += 1;
        self.function_level_reset();
        self.hardware.halt(false);
    }

    fn service(&self, claims: &Claims) -> u64 {
        self.id + (claims.returns << 32)
    }

    /// Registry entry id and clients, if the registry shows the service.
    pub(crate) fn registered(&self) -> Option<(u64, Vec<Client>)> {
        let claims = self.claims();
        let clients = claims.clients.values().filter(|client| client.ended.is_none());
        let clients = clients.map(|client| client.peer.clone()).collect();
        (claims.presence == Presence::Present).then(|| (self.service(&claims), clients))
    }

    /// Whether this is the function behind a registry entry id, now or before it ended.
    pub(crate) fn has_service(&self, service: u64) -> bool {
        service.wrapping_sub(self.id) & 0xffff_ffff == 0
    }

    /// Open connections, claims held.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let claims = self.claims();
        (claims.clients.len(), claims.claimed.len())
    }

    /// A config write and what it makes happen.
    pub(crate) fn config_write(&self, offset: u64, width: usize, value: u32) -> Option<()> {
        let effect = self.hardware.config().write(offset, width, value)?;
        if effect == Effect::FunctionLevelReset {
            self.function_level_reset();
        }
        self.hardware.wake();
        Some(())
    }

    /// Whether the device has something to interrupt for.
    pub(crate) fn asserts(&self) -> bool {
        !self.hardware.halted() && self.model.lock().asserts(&self.hardware)
    }

    /// Selector ResetDevice. Every simulated function is capable of a function-level reset, which
    /// the dext tries first, so the hot reset of the upstream port is never reached.
    pub(crate) fn function_level_reset(&self) {
        let mut model = self.model.lock();
        // PCI Express: nothing that software can read of what the function was used for may be
        // left, and that includes its memory.
        self.hardware.clear_bars();
        model.reset(&self.hardware);
        self.hardware.config().reset();
    }
}
