//! Clients of a front end, each of which goes on with its function.
//!
//! What a front end knows of a client says too what that wrote into its function. So it is with the keeper for as long
//! as the function is, also when the client itself is not kept or is sent away: until the front end has taken that back.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};

use ipc::PciAddress;

use super::{Manager, ManagerState};
use crate::kept::StoreError;
use crate::kept::names::{ClientPart, Name};
use crate::limits::{MAX_KEPT_OF_CLIENT, MAX_KEPT_OF_CLIENTS};

/// What there is of the client of a function.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// With the keeper.
    names: BTreeSet<Name>,
    /// What its front end knows of it, once it has begun.
    session: Option<OwnedFd>,
    /// That this could not be stored was said.
    is_told: bool,
}

impl Manager {
    /// A client is there, of which its front end knows this: to be kept first of all, and whenever its function is.
    ///
    /// # Errors
    /// [`StoreError`]: it is not, for now.
    pub(in crate::kept) fn begin_client(
        &self,
        address: PciAddress,
        session: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        let session = session.try_clone_to_owned().map_err(StoreError::Write)?;
        let mut state = self.state.lock();
        state.clients.entry(address).or_default().session = Some(session);
        if !matches!(state.functions.get(&address), Some(Ok(()))) {
            return Err(StoreError::NotKept(address));
        }
        self.store_session_in(&mut state, address)
    }

    /// Stores what is known of the client of a function again, if there is one.
    fn store_session_in(
        &self,
        state: &mut ManagerState,
        address: PciAddress,
    ) -> Result<(), StoreError> {
        let session = state.clients.get_mut(&address).and_then(|client| client.session.take());
        let Some(session) = session else { return Ok(()) };
        let name = Name::Client(address, ClientPart::Session);
        let stored = self.store_in(state, name, std::os::fd::AsFd::as_fd(&session));
        let client = state.clients.entry(address).or_default();
        client.session = Some(session);
        if stored.is_ok() {
            client.names.insert(name);
        }
        stored
    }

    /// A function is kept: so is what is known of its client.
    pub(super) fn function_is_kept(&self, state: &mut ManagerState, address: PciAddress) {
        let name = Name::Client(address, ClientPart::Session);
        if state.clients.get(&address).is_none_or(|client| client.names.contains(&name)) {
            return;
        }
        let stored = self.store_session_in(state, address);
        let Some(client) = state.clients.get_mut(&address) else { return };
        let was_told = std::mem::replace(&mut client.is_told, stored.is_err());
        if let Err(error) = stored
            && !was_told
        {
            let why = ipc::chain(&error);
            tracing::warn!("{address}: what its client wrote is not put back after a kill: {why}");
        }
    }

    /// Gives it a part of the client of a function, in the place of what it has by that name.
    ///
    /// # Errors
    /// [`StoreError`], also when the function is not kept: a client goes on with its function alone.
    pub(in crate::kept) fn store_client(
        &self,
        address: PciAddress,
        part: ClientPart,
        fd: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if !matches!(state.functions.get(&address), Some(Ok(()))) {
            return Err(StoreError::NotKept(address));
        }
        let name = Name::Client(address, part);
        // One client must not take the room of others, or that of functions and memory.
        let all: usize = state.clients.values().map(|client| client.names.len()).sum();
        let of_client = state.clients.get(&address);
        let own = of_client.map_or(0, |client| client.names.len());
        let is_there = of_client.is_some_and(|client| client.names.contains(&name));
        if !is_there && (own >= MAX_KEPT_OF_CLIENT || all >= MAX_KEPT_OF_CLIENTS) {
            return Err(StoreError::NoRoom { own, all });
        }
        self.store_in(&mut state, name, fd)?;
        state.clients.entry(address).or_default().names.insert(name);
        Ok(())
    }

    /// Has it close a part of the client of a function, if there is one.
    pub(in crate::kept) fn remove_client(&self, address: PciAddress, part: ClientPart) {
        let (mut state, name) = (self.state.lock(), Name::Client(address, part));
        let client = state.clients.get_mut(&address);
        if client.is_some_and(|client| client.names.remove(&name)) {
            self.remove_in(&mut state, name);
        }
    }

    /// Whether there is something of a client of this function.
    pub(in crate::kept) fn has_client(&self, address: PciAddress) -> bool {
        self.state.lock().clients.contains_key(&address)
    }

    /// What the keeper has already of the client of a function.
    pub(in crate::kept) fn client_left(
        &self,
        address: PciAddress,
        names: impl Iterator<Item = Name>,
    ) {
        self.state.lock().clients.entry(address).or_default().names.extend(names);
    }

    /// The client of a function does not go on after a kill: of it there is only what is known of it.
    pub(in crate::kept) fn abandon_client(&self, address: PciAddress) {
        let mut state = self.state.lock();
        let Some(client) = state.clients.get_mut(&address) else { return };
        let session = Name::Client(address, ClientPart::Session);
        let stays = client.names.take(&session);
        let gone = std::mem::replace(&mut client.names, stays.into_iter().collect());
        gone.into_iter().for_each(|name| self.remove_in(&mut state, name));
    }

    /// Nobody cares for the client of a function any more: what is known of it stays with the keeper while the function
    /// does.
    pub(in crate::kept) fn leave_client(&self, address: PciAddress) {
        self.abandon_client(address);
        let mut state = self.state.lock();
        let Some(client) = state.clients.get_mut(&address) else { return };
        client.session = None;
        if client.names.is_empty() {
            state.clients.remove(&address);
        }
    }

    /// The client of a function is gone, and what it wrote is taken back.
    pub(in crate::kept) fn forget_client(&self, address: PciAddress) {
        let mut state = self.state.lock();
        self.function_is_not_kept(&mut state, address);
        state.clients.remove(&address);
    }

    /// Nothing is kept of a function any more, nor of its client, which has nothing to go on with.
    pub(super) fn function_is_not_kept(&self, state: &mut ManagerState, address: PciAddress) {
        let Some(client) = state.clients.get_mut(&address) else { return };
        let gone = std::mem::take(&mut client.names);
        if client.session.is_none() {
            // Nobody has begun with it.
            state.clients.remove(&address);
        }
        // What is known of it goes last.
        gone.into_iter().for_each(|name| self.remove_in(state, name));
    }
}
