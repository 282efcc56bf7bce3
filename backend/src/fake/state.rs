//! The fake's functions, who holds what of them, and what is to go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ipc::event::Signaller;
use ipc::wire::common::BarInfo;
use ipc::wire::function::InterruptIndex;
use ipc::{Access, DeviceMemory, Event, PciAddress, SharedMemory, Window};

use super::Operation;
use super::description::FakeFunction;
use crate::error::ErrorKind;
use crate::group::BusRange;
use crate::interrupts::VectorSet;

/// What all handles share.
pub(super) struct FakeShared {
    state: Mutex<FakeState>,
    /// Something that a stalled call may wait for has changed.
    pub(super) changed: Condvar,
}

impl FakeShared {
    pub(super) fn new(functions: Vec<FakeFunction>) -> io::Result<Arc<Self>> {
        let state = FakeState::new(functions)?;
        Ok(Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once a process is not suspended, or is dead.
    pub(super) fn while_suspended(&self, process: u64) -> MutexGuard<'_, FakeState> {
        let mut state = self.state();
        while state.suspended.contains(&process) && !state.dead.contains(&process) {
            state = self.wait(state);
        }
        state
    }

    pub(super) fn wait<'s>(&self, state: MutexGuard<'s, FakeState>) -> MutexGuard<'s, FakeState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who holds something: a handle of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) process: u64,
    pub(super) handle: u64,
}

/// Who holds a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    By(Holder),
    /// What a dead process left to a successor.
    Left,
}

/// All of it.
pub(super) struct FakeState {
    /// Hangs up the liveness of every handle when it is dropped; `None` while the fake is dead.
    alive: Option<UnixStream>,
    /// The other end, duplicated for each handle.
    liveness: UnixStream,
    /// Counts deaths: a handle of an earlier life is lost for good.
    pub(super) life: u64,
    next: u64,
    pub(super) functions: BTreeMap<PciAddress, FunctionState>,
    pub(super) dead: BTreeSet<u64>,
    pub(super) suspended: BTreeSet<u64>,
    /// What fails, after so many calls in all.
    pub(super) failing: BTreeMap<(PciAddress, Operation), (u64, ErrorKind)>,
    pub(super) stalled: BTreeSet<Operation>,
    pub(super) waiting: BTreeMap<Operation, usize>,
    pub(super) calls: BTreeMap<(PciAddress, Operation), u64>,
}

impl FakeState {
    fn new(functions: Vec<FakeFunction>) -> io::Result<Self> {
        let (alive, liveness) = UnixStream::pair()?;
        let made = functions.into_iter().map(|function| {
            FunctionState::new(function).map(|state| (state.made.identity.address, state))
        });
        Ok(Self {
            alive: Some(alive),
            liveness,
            life: 0,
            next: 0,
            functions: made.collect::<io::Result<_>>()?,
            dead: BTreeSet::new(),
            suspended: BTreeSet::new(),
            failing: BTreeMap::new(),
            stalled: BTreeSet::new(),
            waiting: BTreeMap::new(),
            calls: BTreeMap::new(),
        })
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn is_dead(&self) -> bool {
        self.alive.is_none()
    }

    /// What hangs up at the death of the fake.
    pub(super) fn liveness(&self) -> io::Result<UnixStream> {
        self.liveness.try_clone()
    }

    /// Everything is lost that anybody holds.
    pub(super) fn die(&mut self) {
        self.alive = None;
        self.life += 1;
        for function in self.functions.values_mut() {
            (function.claim, function.notified, function.kernel) = (None, None, None);
            function.dma.clear();
        }
    }

    /// Begins anew, as after a power cycle.
    pub(super) fn revive(&mut self) -> io::Result<()> {
        let (alive, liveness) = UnixStream::pair()?;
        for function in self.functions.values_mut() {
            *function = FunctionState::new(function.made.clone())?;
        }
        (self.alive, self.liveness) = (Some(alive), liveness);
        Ok(())
    }

    /// A process is killed: what it holds is released, or left to a successor.
    pub(super) fn kill(&mut self, process: u64) {
        self.dead.insert(process);
        for function in self.functions.values_mut() {
            let left = function.made.survives;
            if left && function.claim.is_some_and(|claim| claim.is_of(process)) {
                function.claim = Some(Claim::Left);
            }
            function.release(|holder| holder.process == process);
        }
    }
}

impl Claim {
    pub(super) fn is_of(self, process: u64) -> bool {
        matches!(self, Self::By(holder) if holder.process == process)
    }
}

/// One function.
pub(super) struct FunctionState {
    pub(super) made: FakeFunction,
    pub(super) config: Vec<u8>,
    pub(super) bars: [Option<BarState>; 6],
    pub(super) claim: Option<Claim>,
    pub(super) notified: Option<Notified>,
    /// Whom the fake signals in a kernel's place.
    pub(super) kernel: Option<(InterruptIndex, Vec<Option<Signaller>>)>,
    pub(super) intx_masked: bool,
    pub(super) dma: BTreeMap<u64, Region>,
    pub(super) resets: u32,
    /// What a process shows that was handed the function, or that adopts it.
    pub(super) token: Arc<SharedMemory>,
    /// Signalled once the fake wants it back, in a kernel's place.
    pub(super) request: Arc<Event>,
}

/// The memory of a BAR.
pub(super) struct BarState {
    pub(super) memory: Arc<DeviceMemory>,
    pub(super) window: Arc<Window>,
}

/// Notified interrupts that somebody has set up.
pub(super) struct Notified {
    pub(super) holder: Holder,
    pub(super) recorded: VectorSet,
    pub(super) pending: VectorSet,
    pub(super) armed: bool,
    pub(super) signaller: Signaller,
}

impl Notified {
    /// Completes the notification if there is one to complete.
    pub(super) fn notify(&mut self) {
        if self.armed && !self.pending.is_empty() {
            self.armed = false;
            self.signaller.signal();
        }
    }
}

/// Memory that a device reaches.
pub(super) struct Region {
    pub(super) holder: Holder,
    pub(super) at: BusRange,
    pub(super) memory: SharedMemory,
    pub(super) offset: u64,
    pub(super) writable: bool,
    /// Whether it was adopted, and not asked for since.
    pub(super) adopted: bool,
}

impl FunctionState {
    fn new(made: FakeFunction) -> io::Result<Self> {
        let mut bars = [const { None }; 6];
        for (bar, info) in bars.iter_mut().zip(&made.bars) {
            let Some(info) = info.filter(|info| info.kind & BarInfo::IO == 0) else { continue };
            let memory = SharedMemory::create("fake-bar", info.size)?;
            let window = memory.map_all(Access::ReadWrite).map_err(io::Error::other)?;
            *bar = Some(BarState {
                memory: Arc::new(DeviceMemory::from(memory)),
                window: Arc::new(window),
            });
        }
        Ok(Self {
            config: made.config_space(),
            made,
            bars,
            claim: None,
            notified: None,
            kernel: None,
            intx_masked: false,
            dma: BTreeMap::new(),
            resets: 0,
            token: Arc::new(SharedMemory::create("fake-token", 4096)?),
            request: Arc::new(Event::new()?),
        })
    }

    /// Releases what some holders hold; DMA that is left to a successor stays.
    pub(super) fn release(&mut self, of: impl Fn(Holder) -> bool) {
        if self.notified.as_ref().is_some_and(|notified| of(notified.holder)) {
            self.notified = None;
        }
        if matches!(self.claim, Some(Claim::By(holder)) if of(holder)) {
            self.claim = None;
            self.kernel = None;
        }
        if self.claim != Some(Claim::Left) {
            self.dma.retain(|_, region| !of(region.holder));
        }
    }

    /// The device fires.
    pub(super) fn fire(&mut self, vectors: VectorSet) {
        if let Some((index, signallers)) = &self.kernel {
            if *index == InterruptIndex::Intx {
                if !std::mem::replace(&mut self.intx_masked, true) {
                    signallers.iter().flatten().for_each(Signaller::signal);
                }
                return;
            }
            let signaller = |vector| signallers.get(usize::from(vector))?.as_ref();
            vectors.iter().filter_map(signaller).for_each(Signaller::signal);
        }
        if let Some(notified) = &mut self.notified {
            let recorded = vectors.intersection(notified.recorded);
            notified.pending = notified.pending.iter().chain(recorded.iter()).collect();
            notified.notify();
        }
    }

    /// Where the device finds `length` bytes at a bus address: the region, and where in its memory.
    pub(super) fn reach(&self, bus: u64, length: u64) -> Option<(&Region, u64)> {
        let end = bus.checked_add(length)?;
        let holds = |region: &&Region| {
            bus >= region.at.address && end <= region.at.address + region.at.length
        };
        let region = self.dma.values().find(holds)?;
        Some((region, region.offset + (bus - region.at.address)))
    }
}
