//! One function as its driver instance sees it: claims, openers, reset, registry properties.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipc::PciAddress;
use ipc::wire::common::Identity;
use ipc::wire::dext::{Client, IoReturn};
use parking_lot::{Mutex, MutexGuard};

use crate::config_space::{BUS_MASTER, Effect, MEMORY_SPACE};
use crate::device::Model;
use crate::faults::Faults;
use crate::hardware::Hardware;
use crate::interrupts::ClientId;

#[derive(Debug, Default)]
struct Claims {
    clients: BTreeMap<ClientId, Client>,
    claimed: BTreeSet<ClientId>,
    opener: Option<ClientId>,
    terminated: bool,
}

/// One function.
pub(crate) struct Function {
    /// Registry entry id.
    pub(crate) id: u64,
    pub(crate) identity: Identity,
    pub(crate) hardware: Arc<Hardware>,
    pub(crate) faults: Arc<Faults>,
    model: Arc<Mutex<Box<dyn Model>>>,
    claims: Mutex<Claims>,
}

impl Function {
    pub(crate) fn new(
        id: u64,
        identity: Identity,
        hardware: Arc<Hardware>,
        faults: Arc<Faults>,
        model: Arc<Mutex<Box<dyn Model>>>,
    ) -> Self {
        Self { id, identity, hardware, faults, model, claims: Mutex::default() }
    }

    pub(crate) fn address(&self) -> PciAddress {
        self.identity.address
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock()
    }

    /// A connection opens.
    pub(crate) fn connect(&self, id: ClientId, client: Client) -> Result<(), IoReturn> {
        let mut claims = self.claims();
        if claims.terminated {
            return Err(IoReturn::NOT_ATTACHED);
        }
        claims.clients.insert(id, client);
        Ok(())
    }

    /// The connection's service still exists.
    pub(crate) fn attached(&self) -> Result<(), IoReturn> {
        if self.claims().terminated { Err(IoReturn::NOT_ATTACHED) } else { Ok(()) }
    }

    /// The PCI device is open: some connection's claim holds it.
    pub(crate) fn open(&self) -> Result<(), IoReturn> {
        if self.claims().opener.is_some() { Ok(()) } else { Err(IoReturn::NOT_OPEN) }
    }

    /// Selector Claim.
    pub(crate) fn claim(&self, id: ClientId) {
        let mut claims = self.claims();
        claims.claimed.insert(id);
        if claims.opener.is_none() {
            claims.opener = Some(id);
            self.hardware.config().set_command(MEMORY_SPACE | BUS_MASTER, 0);
        }
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
        claims.terminated = true;
        claims.opener = None;
        self.hardware.config().set_command(0, BUS_MASTER);
    }

    /// Whether the registry still shows the service.
    pub(crate) fn registered(&self) -> bool {
        !self.claims().terminated
    }

    pub(crate) fn clients(&self) -> Vec<Client> {
        self.claims().clients.values().cloned().collect()
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
        self.hardware.ring();
        Some(())
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
