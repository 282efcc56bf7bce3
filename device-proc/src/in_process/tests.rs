//! Both roles as threads over real tubes and the fake backend, driven as a VMM side drives them.

mod companion;

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::time::Duration;

use cordon_backend::BusRange;
use cordon_backend::fake::{FakeFunction, FakeInterrupts, NOT_CLAIMED, Operation};
use ipc::wire::call::{Call, Tagged};
use ipc::wire::common::{Ping, Shutdown};
use ipc::wire::connection::{self as con, DmaEntry};
use ipc::wire::faults::Misbehave;
use ipc::wire::function::{
    self as fun, Access, InterruptAction, InterruptIndex, Interrupts, Reset, Space, TakeOver,
};
use ipc::wire::handshake::Role;
use ipc::wire::sandbox::LayerState;
use ipc::{Access as Protection, Deadline, Event, Handles, PciAddress, SharedMemory, TubeError};
use serde::de::DeserializeOwned;

use super::*;

fn address() -> PciAddress {
    "01:00.0".parse().unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn fake(change: impl FnOnce(&mut FakeFunction)) -> Fake {
    let mut function = FakeFunction::at(address());
    change(&mut function);
    Fake::new([function]).unwrap()
}

/// The VMM side of one child.
struct Driven {
    child: Child,
    tube: Tube,
    stderr: UnixStream,
    next: u32,
}

impl Driven {
    fn start(fake: &Fake, line: &str) -> Self {
        let (tube, theirs) = Tube::pair().unwrap();
        let (stderr, writer) = UnixStream::pair().unwrap();
        let arguments: Vec<std::ffi::OsString> = line.split_whitespace().map(Into::into).collect();
        let child = Child::start(fake, 7, &arguments, theirs.into(), writer.into()).unwrap();
        assert_eq!(child.number(), 7);
        Self { child, tube, stderr, next: 1 }
    }

    /// A role that starts; what it says of itself.
    fn ready<R: DeserializeOwned>(fake: &Fake, role: Role, more: &str) -> (Self, R) {
        let name = if role == Role::Function { "function" } else { "connection" };
        let line = format!("{name} --address=01:00.0 --dext=sim:/unused --sandbox=relaxed {more}");
        let mut driven = Self::start(fake, &line);
        driven.tube.handshake(Role::Vmm, role, soon()).unwrap();
        let started = driven.tube.receive::<Result<R, Failure>>(soon()).unwrap();
        let ready = started.message.unwrap();
        (driven, ready)
    }

    fn connection(fake: &Fake) -> Self {
        Self::ready::<con::Ready>(fake, Role::Connection, "").0
    }

    fn function(fake: &Fake) -> Self {
        Self::ready::<fun::Ready>(fake, Role::Function, "").0
    }

    fn ask<Q, C: Call<Q>>(
        &mut self,
        call: &C,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(Result<C::Reply, Failure>, Handles), TubeError> {
        let id = self.next;
        self.next += 1;
        self.tube.send(id, &Tagged::<Q, C>::new(call), handles, soon())?;
        let received = self.tube.receive::<Result<C::Reply, Failure>>(soon())?;
        assert_eq!(received.id, id);
        Ok((received.message, received.handles))
    }

    fn con<C: Call<con::Request>>(&mut self, call: &C) -> Result<C::Reply, Failure> {
        self.ask(call, &[]).unwrap().0
    }

    fn fun<C: Call<fun::Request>>(&mut self, call: &C) -> Result<C::Reply, Failure> {
        self.ask(call, &[]).unwrap().0
    }

    /// Has a vector of MSI-X signal an event.
    fn assign(&mut self, vector: u16, event: &Event) {
        let signaller = event.signaller().unwrap();
        let action = InterruptAction::Assign { start: vector, present: vec![true], signal: false };
        let call = Interrupts { index: InterruptIndex::Msix, action };
        self.ask::<fun::Request, _>(&call, &[signaller.as_fd()]).unwrap().0.unwrap();
    }

    /// Waits for the end; how it ended, and what it said.
    fn ended(mut self) -> (Ended, String) {
        assert!(ipc::poll::wait_readable(&self.child, soon()).unwrap(), "it does not end");
        let ended = self.child.reap();
        assert_eq!(self.child.ended(), Some(ended));
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (ended, said)
    }
}

#[test]
fn a_child_can_be_looked_after_by_any_thread() {
    fn any_thread<T: Send + Sync>() {}
    any_thread::<Child>();
}

#[test]
fn both_roles_serve_over_real_tubes() {
    let fake = fake(|_| {});
    let (mut connection, ready) = Driven::ready::<con::Ready>(&fake, Role::Connection, "");
    assert_eq!(ready.functions.len(), 1);
    assert!(matches!(ready.sandbox.layers[0].state, LayerState::Missing(_)), "it is a thread");
    assert!(!fake.is_claimed(address()));

    // Claim, and the windows of the BARs with their memory.
    let attach = con::Attach { function: 0 };
    let (attached, handles) = connection.ask::<con::Request, _>(&attach, &[]).unwrap();
    let attached = attached.unwrap();
    assert!(fake.is_claimed(address()));
    let windows: Vec<_> = attached.windows.iter().map(|w| (w.bar, w.offset, w.length)).collect();
    assert_eq!(windows, [(0, 0, 0x8000), (0, 0x10000, 0x10000), (2, 0, 0x10000)]);
    let last = SharedMemory::measured(handles.last().unwrap()).unwrap();
    last.map_all(Protection::ReadWrite).unwrap().write::<u32>(0x40, 0xfeed).unwrap();
    assert_eq!(fake.bar(address(), 2).unwrap().read::<u32>(0x40).unwrap(), 0xfeed);

    // Guest memory, which the device reaches from here on.
    let ram = SharedMemory::create("ram", 0x10000).unwrap();
    let guest = ram.map_all(Protection::ReadWrite).unwrap();
    let (base, size) = (0x4000_0000, 0x10000);
    let memory = con::AddMemory { function: 0, base, size, offset: 0, writable: true };
    connection.ask::<con::Request, _>(&memory, &[ram.as_fd()]).unwrap().0.unwrap();
    let entry = DmaEntry { key: base, address: base, size };
    let mapped = connection.con(&con::MapDma { function: 0, entry }).unwrap();
    assert_eq!((mapped.bus_address, mapped.bus_length), (base, size));
    assert!(fake.dma_write(address(), base + 0x123, b"from the device"));
    let mut read = [0; 15];
    guest.copy_out(0x123, &mut read).unwrap();
    assert_eq!(&read, b"from the device");

    // The function: what it is, config space, a BAR, interrupts.
    let (mut function, ready) = Driven::ready::<fun::Ready>(&fake, Role::Function, "");
    assert_eq!((ready.identity.vendor, ready.vectors), (0xc0d0, 32));
    assert_eq!(ready.msix.unwrap().vectors, 32);
    let vendor = function.fun(&Access::read(Space::Config, 0, 2));
    assert_eq!(vendor, Ok(0xc0d0));
    function.fun(&Access::write(Space::Config, 4, 2, 0x0406)).unwrap();
    assert_eq!(fake.config(address())[4..6], [0x06, 0x04]);
    assert_eq!(function.fun(&Access::read(Space::Bar(2), 0x40, 4)), Ok(0xfeed));
    function.fun(&Access::write(Space::Bar(2), 0x48, 8, 0x0102_0304_0506_0708)).unwrap();
    let window = fake.bar(address(), 2).unwrap();
    assert_eq!(window.read::<u64>(0x48).unwrap(), 0x0102_0304_0506_0708);
    let event = Event::new().unwrap();
    function.assign(3, &event);
    fake.fire(address(), [3]);
    assert!(event.wait(soon()).unwrap());
    fake.fire(address(), [3]);
    assert!(event.wait(soon()).unwrap(), "it is armed again");
    function.fun(&Reset).unwrap();
    assert_eq!(fake.resets(address()), 1);

    // Everything taken back, in order.
    connection.con(&con::UnmapDma { function: 0, key: base }).unwrap();
    assert!(!fake.dma_write(address(), base, b"x"));
    assert_eq!(connection.con(&con::RemoveMemory { function: 0, base }), Ok(true));
    function.fun(&Shutdown).unwrap();
    connection.con(&con::Detach { function: 0 }).unwrap();
    assert!(!fake.is_claimed(address()));
    connection.con(&Shutdown).unwrap();
    assert_eq!(function.ended(), (Ended::Status(0), String::new()));
    assert_eq!(connection.ended(), (Ended::Status(0), String::new()));
}

#[test]
fn p6_4_a_device_that_does_not_answer_is_not_served_as_one_that_permits_everything() {
    let fake = fake(|function| function.identity.vendor = 0xffff);
    let line = "function --address=01:00.0 --dext=sim:/unused --sandbox=relaxed";
    let mut silent = Driven::start(&fake, line);
    silent.tube.handshake(Role::Vmm, Role::Function, soon()).unwrap();
    let started = silent.tube.receive::<Result<fun::Ready, Failure>>(soon()).unwrap();
    let failure = started.message.unwrap_err();
    assert!(failure.message.contains("01:00.0: ConfigRead failed: the device does not answer"));
}

/// A VMM side that was taken over, or has no model of config space: everything is written everywhere.
#[test]
fn p6_4_a_vmm_side_that_checks_nothing_writes_only_what_the_table_lets_through() {
    let fake = fake(|function| function.power_management = true);
    let mut connection = Driven::connection(&fake);
    connection.con(&con::Attach { function: 0 }).unwrap();
    let mut function = Driven::function(&fake);
    let before = fake.config(address());
    for value in [u32::MAX, 0, 0xa5a5_a5a5] {
        for width in [1, 2, 4] {
            for offset in (0..0x1000u64).step_by(width) {
                // Of the power states those that there are; other bytes in any case.
                let value = if offset == 0x64 { (value & !3) | ((value & 1) * 3) } else { value };
                let value = u64::from(value) & (u64::MAX >> (64 - 8 * width));
                let width = u8::try_from(width).unwrap();
                function.fun(&Access::write(Space::Config, offset, width, value)).unwrap();
            }
        }
    }
    let after = fake.config(address());
    // Header but for COMMAND, cache line size and latency timer; MSI-X; power management but for its state; the
    // extended config space.
    let kept = [0x00..0x04, 0x06..0x0c, 0x0e..0x4c, 0x60..0x64, 0x65..0x68, 0x100..0x1000];
    for range in kept {
        assert_eq!(after[range.clone()], before[range.clone()], "{range:x?}");
    }
    assert_eq!(after[0x64] & !3, 0x08);
    assert_eq!((&after[4..6], &after[0x4c..0x60]), (&[0xa5; 2][..], &[0xa5; 0x14][..]));
    assert_eq!((after[0x0c], after[0x68], after[0xff]), (0xa5, 0xa5, 0xa5));
    for width in [3, 5, 8] {
        function.fun(&Access::write(Space::Config, 0x80, width, 0)).unwrap_err();
    }
}

#[test]
fn a_backend_that_refuses_is_told_with_its_code() {
    let fake = fake(|_| {});
    let line = "function --address=01:00.0 --dext=sim:/unused --sandbox=relaxed";
    let mut unclaimed = Driven::start(&fake, line);
    unclaimed.tube.handshake(Role::Vmm, Role::Function, soon()).unwrap();
    let started = unclaimed.tube.receive::<Result<fun::Ready, Failure>>(soon()).unwrap();
    let failure = started.message.unwrap_err();
    assert_eq!((failure.kind, failure.code), (FailureKind::Io, Some(NOT_CLAIMED)));
    let (ended, said) = unclaimed.ended();
    assert_eq!(ended, Ended::Status(1));
    assert!(said.contains("Function 01:00.0: SetUpInterrupts failed: it is not claimed"), "{said}");

    let mut connection = Driven::connection(&fake);
    connection.con(&con::Attach { function: 0 }).unwrap();
    let again = connection.con(&con::Attach { function: 0 }).unwrap_err();
    assert_eq!(again.kind, FailureKind::Busy);
    let mut other = Driven::connection(&fake);
    let elsewhere = other.con(&con::Attach { function: 0 }).unwrap_err();
    assert!(elsewhere.message.contains("01:00.0 is claimed by another process"), "{elsewhere:?}");
}

#[test]
fn dma_keeps_to_the_granule_and_the_limits_of_its_space() {
    let fake = fake(|function| {
        function.dma.granule = 0x1000;
        function.dma.needs_mapping = true;
        function.max_dma_bytes = 0x4000;
    });
    let mut connection = Driven::connection(&fake);
    connection.con(&con::Attach { function: 0 }).unwrap();
    let ram = SharedMemory::create("ram", 0x10000).unwrap();
    let memory = con::AddMemory { function: 0, base: 0, size: 0x10000, offset: 0, writable: true };
    connection.ask::<con::Request, _>(&memory, &[ram.as_fd()]).unwrap().0.unwrap();
    let mut map = |key, address, size| {
        let entry = DmaEntry { key, address, size };
        connection.con(&con::MapDma { function: 0, entry })
    };
    for (key, address, size) in [(1, 0, 0x1000), (0, 0x800, 0x1000), (0, 0, 0x1800)] {
        let refused = map(key, address, size).unwrap_err();
        assert_eq!(refused.kind, FailureKind::InvalidArgument);
        assert!(refused.message.contains("0x1000"), "{}", refused.message);
    }
    map(0x1000, 0x1000, 0x1000).unwrap();
    assert_eq!(map(0x4000, 0x4000, 0x4000).unwrap_err().kind, FailureKind::NoSpace);
    let counted = connection.con(&con::GetStatistics { function: 0 }).unwrap();
    assert_eq!((counted.regions, counted.failed_bytes, counted.failed_mappings), (1, 1, 0));
    let range = BusRange { address: 0x1000, length: 0x1000 };
    assert_eq!(fake.registered(address()), [(0x1000, range)]);
}

#[test]
fn who_is_killed_holds_nothing_and_a_standby_takes_over() {
    let fake = fake(|_| {});
    let mut connection = Driven::connection(&fake);
    connection.con(&con::Attach { function: 0 }).unwrap();
    let mut function = Driven::function(&fake);
    let (mut standby, ready) = Driven::ready::<fun::Ready>(&fake, Role::Function, "--standby");
    assert_eq!(ready.vectors, 0, "it has not asked yet");
    let busy = standby.fun(&TakeOver).unwrap_err();
    assert_eq!(busy.kind, FailureKind::Busy);

    // It waits in the backend when it is killed.
    fake.stall(Operation::BarRead);
    let tagged = Access::read(Space::Bar(0), 0, 4);
    let request = Tagged::<fun::Request, _>::new(&tagged);
    function.tube.send(9, &request, &[], soon()).unwrap();
    function.child.kill();
    let gone = function.tube.receive::<Result<u64, Failure>>(soon());
    assert!(matches!(gone, Err(TubeError::Disconnected)), "{gone:?}");
    assert_eq!(function.ended(), (Ended::Killed, String::new()));
    fake.resume(Operation::BarRead);

    assert_eq!(standby.fun(&TakeOver), Ok(32));
    let event = Event::new().unwrap();
    standby.assign(0, &event);
    fake.fire(address(), [0]);
    assert!(event.wait(soon()).unwrap());
    assert!(fake.is_claimed(address()), "the claim is the connection process's");
}

#[test]
fn where_the_kernel_delivers_it_goes_on_without_the_process() {
    let fake = fake(|function| function.interrupts = FakeInterrupts::Kernel);
    let mut connection = Driven::connection(&fake);
    connection.con(&con::Attach { function: 0 }).unwrap();
    let mut function = Driven::function(&fake);
    let events: [Event; 2] = std::array::from_fn(|_| Event::new().unwrap());
    function.assign(1, &events[0]);
    function.assign(5, &events[1]);
    fake.fire(address(), [1, 5]);
    assert!(events[0].wait(soon()).unwrap() && events[1].wait(soon()).unwrap());
    function.child.kill();
    fake.fire(address(), [5]);
    assert!(events[1].wait(soon()).unwrap(), "nobody is on the way");

    let mut successor = Driven::function(&fake);
    // Another index is not in use, and taking it down is told to nobody.
    let disable = |index| Interrupts { index, action: InterruptAction::Disable };
    let told = fake.calls(address(), Operation::Connect);
    successor.fun(&disable(InterruptIndex::Msi)).unwrap();
    assert_eq!(fake.calls(address(), Operation::Connect), told);
    successor.assign(1, &events[0]);
    let trigger = InterruptAction::Trigger { start: 1, count: 1 };
    successor.fun(&Interrupts { index: InterruptIndex::Msix, action: trigger }).unwrap();
    assert!(events[0].wait(soon()).unwrap(), "signalled as if the device had fired");
    fake.fire(address(), [5]);
    assert!(!events[1].clear().unwrap(), "what the successor did not connect is off");
    successor.fun(&disable(InterruptIndex::Msix)).unwrap();
    fake.fire(address(), [1]);
    assert!(!events[0].clear().unwrap());

    // INTx is masked and let through by the kernel.
    let signaller = events[0].signaller().unwrap();
    let line = InterruptAction::Assign { start: 0, present: vec![true], signal: false };
    let line = Interrupts { index: InterruptIndex::Intx, action: line };
    successor.ask::<fun::Request, _>(&line, &[signaller.as_fd()]).unwrap().0.unwrap();
    let intx = |action| Interrupts { index: InterruptIndex::Intx, action };
    successor.fun(&intx(InterruptAction::Mask)).unwrap();
    fake.fire(address(), [0]);
    assert!(!events[0].clear().unwrap());
    successor.fun(&intx(InterruptAction::Unmask)).unwrap();
    fake.fire(address(), [0]);
    assert!(events[0].wait(soon()).unwrap());
    let statistics = successor.fun(&fun::GetStatistics).unwrap();
    assert_eq!((statistics.notifications, statistics.delivered), (0, 0));
}

#[test]
fn a_dead_backend_ends_both_roles_with_a_reason() {
    let fake = fake(|_| {});
    let mut connection = Driven::connection(&fake);
    connection.con(&con::Attach { function: 0 }).unwrap();
    let function = Driven::function(&fake);
    fake.die();
    for (mut driven, name) in [(connection, "Device of 01:00.0"), (function, "Function 01:00.0")] {
        let gone = driven.tube.receive::<Result<(), Failure>>(soon());
        assert!(matches!(gone, Err(TubeError::Disconnected)), "its end is closed: {gone:?}");

        let (ended, said) = driven.ended();
        assert_eq!(ended, Ended::Status(1));
        assert!(
            said.contains(&format!("{name}: waiting failed: the fake backend is gone")),
            "{said}"
        );
    }
    fake.revive().unwrap();
    Driven::connection(&fake).con(&con::Attach { function: 0 }).unwrap();
}

#[test]
fn a_call_that_shows_the_device_gone_is_answered_and_ends_either_role() {
    use cordon_backend::ErrorKind;
    for kind in [ErrorKind::Gone, ErrorKind::Lost] {
        let fake = fake(|_| {});
        let mut connection = Driven::connection(&fake);
        connection.con(&con::Attach { function: 0 }).unwrap();
        let mut function = Driven::function(&fake);
        // What is refused ends nobody, and nor does a function that is looked for and not attached.
        fake.fail(address(), Operation::ConfigRead, ErrorKind::Refused);
        let read = Access::read(Space::Config, 0, 2);
        assert_eq!(function.fun(&read).unwrap_err().kind, FailureKind::Io);
        connection.con(&Ping).unwrap();
        fake.fail(address(), Operation::ConfigRead, kind);
        fake.fail(address(), Operation::Reset, kind);
        let mut unattached = Driven::connection(&fake);
        unattached.con(&Ping).unwrap();
        let failure = function.fun(&Reset).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Lost, "P8: no device, and no I/O error");
        let (ended, said) = function.ended();
        assert_eq!(ended, Ended::Status(1));
        assert!(said.contains("Function 01:00.0: Reset failed: on purpose"), "{said}");
        // Nobody asks the connection process for anything but a sign of life.
        assert_eq!(connection.con(&Ping).unwrap_err().kind, FailureKind::Lost);
        let (ended, said) = connection.ended();
        assert_eq!(ended, Ended::Status(1));
        assert!(said.contains("Function 01:00.0: ConfigRead failed: on purpose"), "{said}");
    }
}

#[test]
fn a_suspended_role_answers_nothing_until_it_is_killed() {
    let fake = fake(|_| {});
    let mut connection = Driven::connection(&fake);
    connection.con(&Ping).unwrap();
    assert!(!connection.child.is_suspended());
    connection.child.suspend();
    assert!(connection.child.is_suspended());
    let request = Tagged::<con::Request, _>::new(&Ping);
    connection.tube.send(9, &request, &[], soon()).unwrap();
    let short = Deadline::after(Duration::from_millis(50));
    let silent = connection.tube.receive::<Result<(), Failure>>(short);
    assert!(matches!(silent, Err(TubeError::TimedOut)), "{silent:?}");
    assert_eq!(connection.child.ended(), None);
    connection.child.kill();
    assert!(!connection.child.is_suspended());

    assert_eq!(connection.ended().0, Ended::Killed);
}

#[test]
fn wrong_is_done_on_request_as_far_as_a_thread_can() {
    let fake = fake(|_| {});
    let misbehave = |wrong| Misbehave(Misbehaviour { point: Point::During, wrong });
    // Of a stream the other half may be yet to come.
    let is_stream = cfg!(any(target_os = "macos", cordon_portable));
    let half = if is_stream { "did not answer in time" } else { "frame" };
    for (wrong, shows) in
        [(Wrong::Garbage, "frame"), (Wrong::Truncated, half), (Wrong::Closed, "gone")]
    {
        let mut connection = Driven::connection(&fake);
        connection.con(&misbehave(wrong)).unwrap();
        let error = connection.ask::<con::Request, _>(&Ping, &[]).unwrap_err();
        assert!(error.to_string().contains(shows), "{wrong:?}: {error}");
        connection.child.kill();
        assert_eq!(connection.ended().0, Ended::Killed);
    }
    let mut connection = Driven::connection(&fake);
    let selector = Wrong::Selector { selector: 1, code: ipc::wire::dext::IoReturn::NOT_OPEN };
    let refused = connection.con(&misbehave(selector)).unwrap_err();
    assert_eq!(refused.kind, FailureKind::NotSupported);
    connection.con(&Ping).unwrap();
}

#[test]
fn what_cannot_start_says_why() {
    let fake = fake(|_| {});
    let (ended, said) = Driven::start(&fake, "function --dext=sim:/unused").ended();
    assert_eq!(ended, Ended::Status(2));
    assert!(said.contains("--address is missing"), "{said}");

    let strict = "connection --address=01:00.0 --dext=sim:/unused --sandbox=strict";
    let mut strict = Driven::start(&fake, strict);
    strict.tube.handshake(Role::Vmm, Role::Connection, soon()).unwrap();
    let started = strict.tube.receive::<Result<con::Ready, Failure>>(soon()).unwrap();
    assert!(started.message.unwrap_err().message.contains("'process' is missing"));
    assert_eq!(strict.ended().0, Ended::Status(1));
}
