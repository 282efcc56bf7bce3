//! What is known of a connection process and of what it holds, shared by whoever asks and the thread that keeps it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use ipc::PciAddress;
use ipc::event::Signaller;
use ipc::wire::connection::Ready;
use ipc::wire::sandbox::SandboxReport;
use parking_lot::{Condvar, Mutex};

use super::Process;
use super::escrow::{Accounts, Escrow};
use super::guest::Guest;
use super::left::Waiting;
use crate::child::{Death, Spec};
use crate::kept::Keeping;
use crate::recovery::Recovery;
use crate::tally::Deaths;

/// Whether there is a connection process.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// One serves, and functions are claimed through it by this number; how the one before it died, if there
    /// was one. The number stays the same where claims were adopted.
    Up(u64, Arc<Death>),
    /// It died, what was claimed by this number goes on, and another one is adopting it.
    Adopting(u64, Arc<Death>),
    /// It died and is being replaced.
    Away(Arc<Death>),
    /// It died for good.
    Gone(Arc<Death>),
}

pub(super) struct ConnectionState {
    pub(super) link: Link,
    pub(super) process: Arc<Process>,
    /// What it has, and by which numbers it is asked for them.
    pub(super) functions: Vec<(u8, PciAddress)>,
    pub(super) sandbox: SandboxReport,
    /// Functions that can be attached: each once in the life of a process, since a closed dext
    /// connection cannot be opened again from inside. One of a group that is not released can.
    pub(super) free: BTreeSet<PciAddress>,
    /// Functions whose place was taken to attach them.
    pub(super) reserved: BTreeSet<PciAddress>,
    /// Nobody takes a place any more: it is about to be stopped.
    pub(super) closed: bool,
    pub(super) attached: BTreeSet<PciAddress>,
    /// Whose memory its functions reach, where what one of them is given all of them reach.
    pub(super) guest: Guest,
    pub(super) watchers: Vec<(PciAddress, Signaller)>,
    /// How many processes were replaced.
    pub(super) generation: u64,
    /// By which number functions are claimed: see [`Link::Up`].
    pub(super) claims: u64,
    /// How often what a process left was adopted.
    pub(super) adoptions: u64,
    /// What keeps functions going when the process dies, while one is attached and the backend has that.
    pub(super) escrow: Option<Escrow>,
    /// What a successor is to be told; nothing without an escrow.
    pub(super) accounts: Accounts,
    /// What a keeper has of it for a next VMM.
    pub(super) keeping: Option<Keeping>,
    /// Functions that a VMM left which is dead: claimed, for whoever attaches them.
    pub(super) waiting: Waiting,
    /// A companion has registered what nobody but the process knows.
    pub(super) companion: bool,
    /// Of its processes that served.
    pub(super) deaths: Deaths,
}

impl ConnectionState {
    pub(super) fn new(
        process: Arc<Process>,
        of: Option<PciAddress>,
        ready: Ready,
        link: Link,
    ) -> Self {
        let (attached, reserved, watchers) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let functions = numbers(&ready, of);
        let sandbox = ready.sandbox;
        let free = functions.iter().map(|(_, address)| *address).collect();
        Self {
            link,
            process,
            functions,
            sandbox,
            free,
            reserved,
            closed: false,
            attached,
            guest: Guest::default(),
            watchers,
            generation: 0,
            claims: 0,
            adoptions: 0,
            escrow: None,
            accounts: Accounts::new(),
            keeping: None,
            waiting: Waiting::new(),
            companion: false,
            deaths: Deaths::default(),
        }
    }

    /// The number of a function; of one that it has not, none that it has.
    pub(super) fn number(&self, address: PciAddress) -> u8 {
        let found = self.functions.iter().find(|(_, one)| *one == address);
        found.map_or(u8::MAX, |(number, _)| *number)
    }

    /// Another process comes in the place of the one that served.
    pub(super) fn succeed(&mut self, mut next: Self) {
        next.generation = self.generation + 1;
        next.adoptions = self.adoptions;
        next.attached = std::mem::take(&mut self.attached);
        next.reserved = std::mem::take(&mut self.reserved);
        next.closed = self.closed;
        next.guest = std::mem::take(&mut self.guest);
        next.deaths = self.deaths;
        next.watchers = std::mem::take(&mut self.watchers);
        next.keeping = self.keeping.take();
        next.waiting = std::mem::take(&mut self.waiting);
        let Self { free, attached, reserved, .. } = &mut next;
        free.retain(|one| !attached.contains(one) && !reserved.contains(one));
        *self = next;
    }

    /// Nothing is kept of the process any more: it goes with it, and the kernel can have it.
    pub(super) fn drop_escrow(&mut self) {
        self.escrow = None;
        self.accounts.clear();
        self.waiting.clear();
        self.keep();
    }

    /// Has the keeper, if there is one, know how things are.
    pub(super) fn keep(&mut self) {
        let Self { keeping: Some(keeping), escrow, accounts, attached, waiting, .. } = self else {
            return;
        };
        let keeps = |one| attached.contains(&one) || waiting.contains_key(&one);
        match escrow {
            Some(escrow) => keeping.update(escrow, accounts, keeps),
            None => keeping.void(),
        }
    }

    /// Whether what the process of this generation did is, or is going to be, another one's.
    pub(super) fn is_adopted_from(&self, generation: u64) -> bool {
        let serves = matches!(self.link, Link::Up(..)) && self.generation == generation;
        self.escrow.is_some() && !serves
    }
}

/// The functions that a process says it has, by the numbers that it is asked for them; it was started for `of`.
pub(super) fn numbers(ready: &Ready, of: Option<PciAddress>) -> Vec<(u8, PciAddress)> {
    let addresses: Vec<_> = ready.functions.iter().map(|identity| identity.address).collect();
    let of = of.or(addresses.first().copied());
    of.into_iter().flat_map(|of| ipc::numbered(of, addresses.clone())).collect()
}

/// Why a function is not attached through a connection process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotReserved {
    /// It does not have it, or not any more.
    NotThere,
    /// A function of its group, this one, is another guest's.
    OtherGuest(PciAddress),
}

/// A program of a connection process, and what stands before its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionProgram {
    pub(crate) program: PathBuf,
    pub(crate) before: Vec<OsString>,
}

impl ConnectionProgram {
    /// What to start of it.
    pub(super) fn of(&self, spec: &Spec) -> Spec {
        let Self { program, before } = self.clone();
        Spec { program, before, ..spec.clone() }
    }
}

/// Of which programs its processes are.
pub(super) struct Programs {
    /// Of the one that serves, or did.
    pub(super) now: ConnectionProgram,
    /// Of the next one, if that is another.
    pub(super) next: Option<ConnectionProgram>,
}

pub(super) struct ConnectionShared {
    pub(super) spec: Spec,
    pub(super) programs: Mutex<Programs>,
    pub(super) recovery: Recovery,
    /// The dext, if the VMM maps windows by a connection of its own.
    pub(super) own: Option<OsString>,
    pub(super) state: Mutex<ConnectionState>,
    /// With each change of the link.
    pub(super) changed: Condvar,
    pub(super) died: Signaller,
}

impl ConnectionShared {
    /// Whether its functions are handed on, as those of a group of the kernel's: the group is this process's
    /// while it lives, its functions reach the same memory, and each can be attached again.
    pub(super) fn hands_on(&self) -> bool {
        self.spec.handed.is_some()
    }

    /// Changes the state and tells everybody who holds a function through it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut ConnectionState) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state);
        state.watchers.iter().for_each(|(_, watcher)| watcher.signal());
        drop(state);
        self.changed.notify_all();
        changed
    }

    /// There is no process, and nothing of it is kept.
    pub(super) fn lose(&self, link: Link) {
        self.change(|state| {
            state.drop_escrow();
            state.link = link;
        });
    }

    /// One of this program serves.
    pub(super) fn runs(&self, program: ConnectionProgram) {
        let mut programs = self.programs.lock();
        programs.next = programs.next.take().filter(|wanted| *wanted != program);
        programs.now = program;
    }
}
