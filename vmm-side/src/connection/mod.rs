//! The VMM side of a connection process: claims, windows, guest memory and DMA of one isolation group, which
//! is a physical device or what an IOMMU cannot tell apart. Shared by the functions of it that are attached.
//!
//! What a process held that dies is lost, or, where the backend has devices go on, adopted by the next one
//! (`adopt`) from what this side keeps of it (`escrow`). What this side kept that died itself, and a keeper holds, is
//! taken over by `left`.

mod adopt;
mod attach;
mod escrow;
mod guest;
mod keep;
mod lasting;
mod left;
mod own;
mod state;

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use ipc::event::Signaller;
use ipc::wire::call::Call;
use ipc::wire::common::Ping;
use ipc::wire::connection::{AbandonBatch, Companion, ReleaseDma, Request};
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, Event, Handles, PciAddress, Tube};
use parking_lot::Mutex;

use self::state::{ConnectionShared, ConnectionState, Programs, numbers};
use crate::child::{Cause, Child, ConnectionProtocol, Death, Spec};
use crate::container::Container;
use crate::error::{DeviceError, ErrorKind};
use crate::keeper::KeeperThread;
use crate::kept::KeptGroup;
use crate::recovery::Recovery;
use crate::tally::Deaths;

pub use attach::Claimed;
pub(crate) use escrow::{Account, Accounts, Escrow, HeldFunction};
pub(crate) use left::NotTakenOver;
pub(crate) use state::{ConnectionProgram, Link, NotReserved};

type Process = Child<ConnectionProtocol>;

/// The connection to a physical device: a connection process, replaced when it dies or when its
/// dext did. What it held is lost with it, so those who hold functions through it watch the link
/// and claim them anew; or it is adopted by the next one, and those who ask wait for that.
pub struct Connection {
    shared: Arc<ConnectionShared>,
    thread: KeeperThread,
    died: Event,
}

impl Connection {
    /// Starts a connection process for the device of `spec`. `own` names the dext if the VMM is to
    /// map windows by a connection of its own.
    ///
    /// # Errors
    /// The [`Death`] of a process that did not become ready.
    pub fn start(
        spec: &Spec,
        recovery: Recovery,
        own: Option<OsString>,
    ) -> Result<Self, Arc<Death>> {
        Self::start_with(spec, recovery, own, &Arc::default())
    }

    /// Starts it to take over what is `left`, if anything is; that is taken out if it did.
    fn start_with(
        spec: &Spec,
        recovery: Recovery,
        own: Option<OsString>,
        left: &Arc<Mutex<Option<KeptGroup>>>,
    ) -> Result<Self, Arc<Death>> {
        let failed = |why: &str| {
            let cause = Cause::StartFailed(why.to_owned());
            Arc::new(Death::of_connection(&spec.subject, cause))
        };
        let no_room = |error: std::io::Error| {
            Arc::new(Death::of_connection(&spec.subject, Cause::no_room(error)))
        };
        let died = Event::new().map_err(no_room)?;
        let tell_death = died.signaller().map_err(no_room)?;
        let (sender, started) = sync_channel(1);
        let name = format!("connection {}", spec.subject);
        let (own_spec, left) = (spec.clone(), Arc::clone(left));
        let launch = Arc::clone(&spec.launch);
        let thread = KeeperThread::spawn(name, launch, move |parts| {
            keep::run((own_spec, &left), recovery, own, tell_death, parts, &sender);
        });
        let thread = thread.map_err(no_room)?;
        let started = started.recv().unwrap_or_else(|_| Err(failed("its keeper ended")));
        Ok(Self { shared: started?, thread, died })
    }

    /// Why connection processes of this device died that served it.
    #[must_use]
    pub fn deaths(&self) -> Deaths {
        self.shared.state.lock().deaths
    }

    /// How often another process took over what one that died had left, without anybody who holds a function
    /// noticing (Linux's VFIO).
    #[must_use]
    pub fn adoptions(&self) -> u64 {
        self.shared.state.lock().adoptions
    }

    /// The program of the process that serves, and of the one that comes after it.
    #[must_use]
    pub fn programs(&self) -> (PathBuf, Option<PathBuf>) {
        let programs = self.shared.programs.lock();
        (programs.now.program.clone(), programs.next.as_ref().map(|next| next.program.clone()))
    }

    /// Has the process that comes after this one, when it dies, be of that program.
    pub(crate) fn succeed_by(&self, program: ConnectionProgram) {
        let mut programs = self.shared.programs.lock();
        programs.next = (programs.now != program).then_some(program);
    }

    /// Ends the process if another program is to serve; whether it is. Its functions are away until that
    /// does, unless it adopts them.
    pub(crate) fn give_way(&self) -> bool {
        let wanted = self.shared.programs.lock().next.is_some();
        if wanted && matches!(self.link(), Link::Up(..)) {
            let process = Arc::clone(&self.shared.state.lock().process);
            process.fate.condemn(Cause::Upgraded);
            process.fate.wait_for_death();
        }
        wanted
    }

    /// Whether there is a process.
    pub(crate) fn link(&self) -> Link {
        self.shared.state.lock().link.clone()
    }

    /// Signals `watcher` whenever the [`Link`] changes, on behalf of a function; the number by which it
    /// is claimed.
    pub(crate) fn watch(&self, address: PciAddress, watcher: Signaller) -> u64 {
        let mut state = self.shared.state.lock();
        state.watchers.push((address, watcher));
        state.claims
    }

    /// The function is not attached any more.
    pub(crate) fn unwatch(&self, address: PciAddress) {
        let mut state = self.shared.state.lock();
        state.watchers.retain(|(function, _)| *function != address);
    }

    /// Process id of the one that serves now.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.state.lock().process.pid()
    }

    /// What confines the process.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.shared.state.lock().sandbox.clone()
    }

    /// Readable once it is dead for good.
    #[must_use]
    pub fn died(&self) -> &Event {
        &self.died
    }

    /// Its death, once it is dead for good.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        let state = self.shared.state.lock();
        match &state.link {
            Link::Gone(death) => Some(Arc::clone(death)),
            // Nobody will replace it: dead as soon as the process is.
            Link::Up(..) if !self.shared.recovery.is_on() => state.process.death(),
            Link::Up(..) | Link::Adopting(..) | Link::Away(_) => None,
        }
    }

    /// Takes the place of `address` to attach it through this process, for the guest whose memory `container`
    /// is.
    pub(crate) fn reserve(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
    ) -> Result<(), NotReserved> {
        let mut state = self.shared.state.lock();
        let up = matches!(state.link, Link::Up(..)) && !state.process.fate.is_condemned();
        if !up || state.closed || !state.free.contains(&address) {
            return Err(NotReserved::NotThere);
        }
        if self.shared.hands_on() {
            let in_use = state.attached.iter().chain(&state.reserved).next().copied();
            state.guest.admit(container, in_use)?;
        }
        state.free.remove(&address);
        state.reserved.insert(address);
        Ok(())
    }

    /// The death of the process that was asked for a place, if that is why there was none.
    pub(crate) fn lost(&self) -> Option<Arc<Death>> {
        let process = {
            let state = self.shared.state.lock();
            match &state.link {
                Link::Adopting(_, death) | Link::Away(death) | Link::Gone(death) => {
                    return Some(Arc::clone(death));
                }
                Link::Up(..) => Arc::clone(&state.process),
            }
        };
        process.fate.is_condemned().then(|| process.fate.wait_for_death())
    }

    /// Gives a place back that was reserved and not used.
    pub(crate) fn unreserve(&self, address: PciAddress) {
        let mut state = self.shared.state.lock();
        // One that was attached meanwhile cannot be opened again by this process.
        if state.reserved.remove(&address) {
            state.free.insert(address);
        }
    }

    /// The process that serves, or will when it has adopted what one before it left, and by which number it has
    /// a function.
    fn process(
        &self,
        address: PciAddress,
        deadline: Deadline,
    ) -> Result<(Arc<Process>, u8), DeviceError> {
        let state = self.settled(deadline)?;
        Ok((Arc::clone(&state.process), state.number(address)))
    }

    /// Makes the call that `call` is for a function of this number.
    fn call<C: Call<Request>>(
        &self,
        address: PciAddress,
        call: impl FnOnce(u8) -> C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(C::Reply, Handles), DeviceError> {
        let (process, number) = self.process(address, deadline)?;
        Ok(process.call(&call(number), handles, deadline)?)
    }

    fn ask<C: Call<Request>>(
        &self,
        address: PciAddress,
        call: impl FnOnce(u8) -> C,
        deadline: Deadline,
    ) -> Result<C::Reply, DeviceError> {
        Ok(self.call(address, call, &[], deadline)?.0)
    }

    /// Until when a caller without a deadline of its own waits.
    fn usual(&self) -> Deadline {
        Deadline::after(self.shared.recovery.timeout)
    }

    /// Closes a function's opener: the dext releases what is left of it, guest memory included. Whatever
    /// cannot be released in order by `deadline` is released with the process. `true` when no function
    /// is attached any more.
    ///
    /// # Errors
    /// [`DeviceError`]; the function is detached all the same.
    pub fn detach(&self, address: PciAddress, deadline: Deadline) -> Result<bool, DeviceError> {
        let (none_left, process) = {
            let mut state = self.shared.state.lock();
            state.attached.remove(&address);
            let none_left = state.attached.is_empty();
            if none_left {
                state.drop_escrow();
            } else {
                // First: what is given back is not there for a next VMM.
                state.keep();
            }
            let is_up = matches!(state.link, Link::Up(..));
            (none_left, is_up.then(|| Arc::clone(&state.process)))
        };
        if process.is_some_and(|process| process.fate.is_suspended()) {
            // It does not answer, and would hold whoever detaches up until the deadline.
            self.condemn(Cause::Overdue("give a function back"));
            return Ok(none_left);
        }
        match self.ask_to_detach(address, deadline) {
            Ok(()) => {
                if self.shared.hands_on() {
                    // The process keeps its group, and no other could have it.
                    self.shared.state.lock().free.insert(address);
                }
                Ok(none_left)
            }
            Err(error) if error.is_absent() => Ok(none_left),
            Err(error) => {
                self.end_process(&format!("function {address} was not detached: {error}"));
                Err(error)
            }
        }
    }

    /// Closes it for further functions if none is attached or about to be; whether that is so.
    pub(crate) fn close_if_idle(&self) -> bool {
        let mut state = self.shared.state.lock();
        let idle = state.attached.is_empty() && state.reserved.is_empty();
        state.closed |= idle;
        idle
    }

    /// Has the process look whether its functions are still there; it ends if they are not. The answer
    /// is its end.
    pub(crate) fn look(&self, address: PciAddress, deadline: Deadline) {
        let _ = self.ask(address, |_| Ping, deadline);
    }

    /// Serves a function's companion over `tube`, whose other end is its function process's.
    pub(crate) fn serve_companion(
        &self,
        address: PciAddress,
        tube: Tube,
    ) -> Result<(), DeviceError> {
        let call = |function| Companion { function };
        {
            // What it registers is known to the process alone, so no other one can adopt it.
            let mut state = self.shared.state.lock();
            state.companion = true;
            state.drop_escrow();
        }
        self.call(address, call, &[tube.as_fd()], self.usual()).map(drop)
    }

    /// Removes everything that a function's companion registered. What a dead process had
    /// registered is gone with it.
    pub(crate) fn release_dma(&self, address: PciAddress) -> Result<(), DeviceError> {
        match self.ask_until_done(address, |function| ReleaseDma { function }, self.usual()) {
            Err(error) if error.kind() == ErrorKind::Gone => Ok(()),
            released => released,
        }
    }

    /// Has a batch of a function's companion undone, whether it is still to come or was carried out. What
    /// a dead process had registered is gone with it.
    pub(crate) fn abandon_batch(
        &self,
        address: PciAddress,
        batch: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        match self.ask(address, |function| AbandonBatch { function, batch }, deadline) {
            Err(error) if error.kind() == ErrorKind::Gone => Ok(()),
            abandoned => abandoned,
        }
    }

    /// Asks again and again until it is done. The process answers after each slice of its work: it
    /// serves other guests too.
    fn ask_until_done<C: Call<Request, Reply = bool>>(
        &self,
        address: PciAddress,
        call: impl Fn(u8) -> C,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        loop {
            if self.ask(address, &call, deadline)? {
                return Ok(());
            }
            if deadline.passed() {
                return Err(still_left(call(u8::MAX).name()));
            }
        }
    }

    /// Ends the process, which is the one way to take everything from it; it counts as its death, and nobody
    /// adopts what it leaves. Returns once it is dead.
    pub(crate) fn end_process(&self, why: &str) {
        self.condemn(Cause::Broken(why.to_owned()));
    }

    fn condemn(&self, cause: Cause) {
        let process = {
            let mut state = self.shared.state.lock();
            state.drop_escrow();
            Arc::clone(&state.process)
        };
        process.fate.condemn(cause);
        process.fate.wait_for_death();
    }

    /// Stops the process in order; it is not replaced. How it ended.
    pub fn stop(&self) -> Arc<Death> {
        self.thread.stop();
        match &self.shared.state.lock().link {
            Link::Gone(death)
            | Link::Away(death)
            | Link::Adopting(_, death)
            | Link::Up(_, death) => Arc::clone(death),
        }
    }
}

/// Work that is not done at its deadline.
fn still_left(what: &str) -> DeviceError {
    let message = format!("{what}: registrations are left at the deadline");
    DeviceError::new(ErrorKind::TimedOut, message)
}
