//! Both roles as threads over VFIO and a fake kernel, driven as a VMM side drives them: the connection process
//! opens the group and hands its function on, function processes serve what they are handed.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ipc::wire::call::{Call, Tagged};
use ipc::wire::common::{Failure, FailureKind, Shutdown};
use ipc::wire::connection::{self as con, DmaEntry};
use ipc::wire::function::{
    self as fun, Access, Handed, InterruptAction, InterruptIndex, Interrupts, Reset, Space,
};
use ipc::wire::handshake::Role;
use ipc::{
    Access as Protection, Deadline, DeviceMemory, Event, Handles, PciAddress, SharedMemory, Tube,
};
use sandbox_profiles::Mode;
use serde::de::DeserializeOwned;
use vfio_client::fake::{FakeDevice, FakeKernel, Machine};
use vfio_client::{Kernel as _, Vfio};

use crate::hooks::NoHooks;
use crate::options::{Holding, Opening, Serving, Windows};
use crate::start::{Confinement, RoleError};
use crate::{connection, function};

const NAME: &str = "0000:01:00.0";
const THREAD: Confinement = Confinement::Thread(Mode::Relaxed);

fn address() -> PciAddress {
    NAME.parse().unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// A function of another device, in the same group.
const OTHER: &str = "0000:02:00.0";
/// Its number: the first of those that are not of the device that a connection process is started for.
const OTHERS_NUMBER: u8 = 8;

/// A machine with one function, or two of a group, and what its kernel is asked.
struct Host {
    machine: Machine,
    kernel: FakeKernel,
    vfio: Arc<Vfio>,
}

impl Host {
    fn new() -> Self {
        let (machine, kernel) = (Machine::new(), FakeKernel::default());
        machine.function(NAME, 7, Some("vfio-pci"));
        kernel.add(NAME, FakeDevice::new(0x1b36, 0x10));
        let vfio = Vfio::over(Arc::new(kernel.clone()), machine.places());
        Self { machine, kernel, vfio: Arc::new(vfio) }
    }

    fn with_two() -> Self {
        let host = Self::new();
        host.machine.function(OTHER, 7, Some("vfio-pci"));
        host.kernel.add(OTHER, FakeDevice::new(0x1b36, 0x10));
        host
    }

    fn connection(&self) -> Driven {
        let vfio = Arc::clone(&self.vfio);
        Driven::start(move |tube| {
            let windows = Windows::Handed;
            connection::serve_on(tube, vfio.as_ref(), address(), windows, THREAD, &mut NoHooks)
        })
        .met::<con::Ready>(Role::Connection, &[])
        .unwrap()
    }

    /// A connection process that adopts what one before it left.
    fn adopter(
        &self,
        escrowed: &con::Escrowed,
        handed: &[BorrowedFd<'_>],
    ) -> Result<Driven, Failure> {
        self.opened(Opening::Adopt, escrowed, handed)
    }

    /// A connection process that is told first how it comes by its group.
    fn opened<M: serde::Serialize>(
        &self,
        opening: Opening,
        message: &M,
        handed: &[BorrowedFd<'_>],
    ) -> Result<Driven, Failure> {
        let vfio = Arc::clone(&self.vfio);
        let mut driven = Driven::start(move |tube| {
            let holding = Holding { windows: Windows::Handed, opening };
            connection::serve_on(tube, vfio.as_ref(), address(), holding, THREAD, &mut NoHooks)
        });
        driven.tube.introduce(Role::Vmm, soon()).unwrap();
        driven.tube.send(0, message, handed, soon()).unwrap();
        driven.tube.meet(Role::Vmm, Role::Connection, soon()).unwrap();
        let ready = driven.tube.receive::<Result<con::Ready, Failure>>(soon()).unwrap();
        ready.message.map(|_| driven)
    }

    fn function(&self, handed: &[OwnedFd]) -> Result<Driven, Failure> {
        let vfio = Arc::clone(&self.vfio);
        let handed: Vec<_> = handed.iter().map(|fd| fd.as_fd()).collect();
        let driven = Driven::start(move |tube| {
            let serving = Serving::default();
            function::serve_on(tube, vfio.as_ref(), address(), serving, THREAD, &mut NoHooks)
        });
        driven.met::<fun::Ready>(Role::Function, &handed)
    }
}

/// The VMM side of one role.
struct Driven {
    tube: Tube,
    role: JoinHandle<Result<(), RoleError>>,
}

impl Driven {
    fn start(role: impl FnOnce(Tube) -> Result<(), RoleError> + Send + 'static) -> Self {
        let (tube, theirs) = Tube::pair().unwrap();
        Self { tube, role: std::thread::spawn(move || role(theirs)) }
    }

    /// Shakes hands, hands on, and waits until it is ready.
    fn met<R: DeserializeOwned>(
        mut self,
        role: Role,
        handed: &[BorrowedFd<'_>],
    ) -> Result<Self, Failure> {
        self.tube.introduce(Role::Vmm, soon()).unwrap();
        if role == Role::Function {
            let message = Handed { descriptors: u8::try_from(handed.len()).unwrap() };
            self.tube.send(0, &message, handed, soon()).unwrap();
        }
        self.tube.meet(Role::Vmm, role, soon()).unwrap();
        let ready = self.tube.receive::<Result<R, Failure>>(soon()).unwrap();
        ready.message.map(|_| self)
    }

    fn ask<Q, C: Call<Q>>(
        &mut self,
        call: &C,
        handles: &[BorrowedFd<'_>],
    ) -> (Result<C::Reply, Failure>, Handles) {
        self.tube.send(1, &Tagged::<Q, C>::new(call), handles, soon()).unwrap();
        let received = self.tube.receive::<Result<C::Reply, Failure>>(soon()).unwrap();
        (received.message, received.handles)
    }

    fn con<C: Call<con::Request>>(&mut self, call: &C) -> Result<C::Reply, Failure> {
        self.ask(call, &[]).0
    }

    fn fun<C: Call<fun::Request>>(&mut self, call: &C) -> Result<C::Reply, Failure> {
        self.ask(call, &[]).0
    }

    /// Claims the function, and takes what its processes are handed.
    fn attach(&mut self) -> (con::Attached, Vec<OwnedFd>, Vec<OwnedFd>) {
        let call = con::HandOver { function: 0 };
        let early = self.con(&call).unwrap_err();
        assert!(early.message.contains("is not attached"), "{}", early.message);
        let (attached, windows) = self.ask::<con::Request, _>(&con::Attach { function: 0 }, &[]);
        let (done, handed) = self.ask::<con::Request, _>(&call, &[]);
        done.unwrap();
        (*attached.unwrap(), windows.collect(), handed.collect())
    }

    fn end(mut self) {
        self.tube.send(9, &Tagged::<fun::Request, _>::new(&Shutdown), &[], soon()).ok();
        drop(self.tube);
        self.role.join().unwrap().ok();
    }
}

#[test]
fn a_function_is_handed_on_to_each_process_that_serves_it() {
    let host = Host::new();
    let mut connection = host.connection();
    let (attached, windows, handed) = connection.attach();
    assert_eq!((attached.identity.vendor, attached.windows.len(), handed.len()), (0x1b36, 1, 1));
    // The window is a part of the device's descriptor.
    let one = attached.windows[0];
    assert_eq!((one.bar, one.offset, one.length), (0, 0, 0x4000));
    let memory = DeviceMemory::of_device(windows.into_iter().next().unwrap()).unwrap();
    let window = memory.map(one.memory_offset, 0x4000).unwrap();
    window.write(0x100, 0xfeed_u32).unwrap();

    let mut processes = Vec::new();
    for round in 0..2u64 {
        // The second comes while the first one's descriptors are still open.
        let mut process = host.function(&handed).unwrap();
        let read = |at| Access::read(Space::Bar(0), at, 4);
        assert_eq!(process.fun(&read(0x100)).unwrap(), 0xfeed + round);
        process.fun(&Access::write(Space::Bar(0), 0x100, 4, 0xfeee)).unwrap();
        assert_eq!(window.read::<u32>(0x100).unwrap(), 0xfeee);
        let ids = process.fun(&Access::read(Space::Config, 0, 4)).unwrap();
        assert_eq!(ids, 0x0010_1b36);
        processes.push(process);
    }
    for mut process in processes {
        process.fun(&Reset).unwrap();
        process.end();
    }
    assert_eq!(host.kernel.device_of(NAME, |device| device.resets()), 2);
    connection.end();
}

#[test]
fn interrupts_go_on_without_the_process_that_set_them_up() {
    let host = Host::new();
    // A capability that says where the table is: 8 vectors in the second half of BAR 0.
    host.kernel.device_of(NAME, |device| {
        device.set(7, 0x06, &[0x10]);
        device.set(7, 0x34, &[0x40]);
        device.set(7, 0x40, &[0x11, 0, 7, 0]);
        device.set(7, 0x44, &0x2000u32.to_le_bytes());
        device.set(7, 0x48, &0x3000u32.to_le_bytes());
    });
    let mut connection = host.connection();
    let (attached, _, handed) = connection.attach();
    let places: Vec<_> = attached.windows.iter().map(|one| (one.offset, one.length)).collect();
    assert_eq!(places, [(0, 0x2000)], "no guest has the table");
    let event = Event::new().unwrap();
    let mut first = host.function(&handed).unwrap();
    let assign = |process: &mut Driven, vectors: usize| {
        let present = (0..vectors).map(|vector| vector == 3).collect();
        let action = InterruptAction::Assign { start: 0, present, signal: false };
        let call = Interrupts { index: InterruptIndex::Msix, action };
        let signaller = event.signaller().unwrap();
        process.ask::<fun::Request, _>(&call, &[signaller.as_fd()]).0.unwrap();
    };
    assign(&mut first, 4);
    let fire = || host.kernel.device_of(NAME, |device| device.fire(2, 3));
    let is_signalled = || {
        let signalled = ipc::poll::wait_readable(&event, Deadline::now()).unwrap();
        event.clear().unwrap();
        signalled
    };
    assert!(fire() && is_signalled());
    first.end();
    assert!(fire() && is_signalled(), "there is no process, and the kernel signals");
    let mut second = host.function(&handed).unwrap();
    assign(&mut second, 8);
    assert!(fire() && is_signalled());
    second.end();
    connection.end();
}

#[test]
fn a_process_that_is_handed_nothing_or_nonsense_says_so_and_ends() {
    let host = Host::new();
    let none = host.function(&[]).err().unwrap();
    assert!(none.message.contains("0 descriptors were handed on instead of 1"), "{none:?}");
    let other = SharedMemory::create("x", 4096).unwrap().into_fd();
    let other = host.function(&[other]).err().unwrap();
    assert!(other.message.contains("the kernel refused"), "{other:?}");
    assert_eq!(other.code, u32::try_from(libc::ENOTTY).ok());
}

#[test]
fn guest_memory_is_mapped_at_its_guest_address_until_the_function_goes() {
    let host = Host::new();
    let mut connection = host.connection();
    connection.attach();
    let ram = SharedMemory::create("ram", 0x10000).unwrap();
    ram.map_all(Protection::ReadWrite).unwrap();
    let base = 0x8000_0000;
    let add = con::AddMemory { function: 0, base, size: 0x10000, offset: 0, writable: true };
    connection.ask::<con::Request, _>(&add, &[ram.as_fd()]).0.unwrap();
    let map = |key, size| con::MapDma { function: 0, entry: DmaEntry { key, address: key, size } };
    let mapped = connection.con(&map(base, 0x10000)).unwrap();
    assert_eq!((mapped.bus_address, mapped.bus_length), (base, 0x10000));
    assert_eq!(host.kernel.mappings()[&base].1, 0x10000);
    for (key, size) in [(base + 0x800, 0x1000), (base, 0x800)] {
        let unaligned = connection.con(&map(key, size)).unwrap_err();
        assert!(unaligned.message.contains("multiples of 0x1000"), "{}", unaligned.message);
    }
    connection.con(&con::Detach { function: 0 }).unwrap();
    assert!(host.kernel.mappings().is_empty());
    connection.end();
}

#[test]
fn a_connection_process_adopts_what_another_one_left() {
    let host = Host::new();
    let mut first = host.connection();
    first.attach();
    let ram = SharedMemory::create("ram", 0x10000).unwrap();
    ram.map_all(Protection::ReadWrite).unwrap();
    let base = 0x8000_0000;
    let add = con::AddMemory { function: 0, base, size: 0x10000, offset: 0, writable: true };
    let entry = DmaEntry { key: base, address: base, size: 0x10000 };
    first.ask::<con::Request, _>(&add, &[ram.as_fd()]).0.unwrap();
    first.con(&con::MapDma { function: 0, entry }).unwrap();
    let own = first.con(&con::AdoptDma { function: 0, entry }).unwrap_err();
    assert!(own.message.contains("01:00.0"), "{}", own.message);
    let (escrowed, left) = first.ask::<con::Request, _>(&con::Escrow, &[]);
    let (escrowed, left): (_, Vec<_>) = (escrowed.unwrap(), left.collect());
    assert_eq!((left.len(), escrowed.descriptors()), (4, 4));
    let one = escrowed.functions[0];
    assert_eq!((one.address, one.request), (address(), true));
    let left: Vec<_> = left.iter().map(|fd| fd.as_fd()).collect();

    // The first one hangs: nothing of it is closed.
    let mappings = host.kernel.mappings();
    let mut second = host.adopter(&escrowed, &left).unwrap();
    let (attached, _) = second.ask::<con::Request, _>(&con::Attach { function: 0 }, &[]);
    assert_eq!(attached.unwrap().identity.vendor, 0x1b36);
    second.ask::<con::Request, _>(&add, &[ram.as_fd()]).0.unwrap();
    let other = second.con(&con::MapDma { function: 0, entry }).unwrap_err();
    assert_eq!(other.kind, FailureKind::Busy, "the kernel has it: {}", other.message);
    let mapped = second.con(&con::AdoptDma { function: 0, entry }).unwrap();
    assert_eq!((mapped.bus_address, mapped.bus_length), (base, 0x10000));
    assert_eq!(
        (host.kernel.mappings(), host.kernel.device_of(NAME, |one| one.resets())),
        (mappings, 0)
    );
    let outside = DmaEntry { key: base, address: base + 0x10000, size: 0x1000 };
    assert!(second.con(&con::AdoptDma { function: 0, entry: outside }).is_err());
    second.con(&con::UnmapDma { function: 0, key: base }).unwrap();
    assert!(host.kernel.mappings().is_empty());
    // What the kernel signals is seen by whoever has adopted.
    host.kernel.device_of(NAME, |device| device.ask_for());
    let ended = second.role.join().unwrap().unwrap_err().to_string();
    assert!(ended.contains("the kernel wants it back"), "{ended}");
    first.role.join().unwrap().unwrap_err();
}

#[test]
fn a_connection_process_that_is_to_adopt_nothing_says_so_and_ends() {
    let host = Host::new();
    let none = host.adopter(&con::Escrowed::default(), &[]).err().unwrap();
    assert!(none.message.contains("0 descriptors of a group were left"), "{none:?}");
}

#[test]
fn the_connection_process_ends_when_the_kernel_wants_the_device_back() {
    let host = Host::new();
    let mut connection = host.connection();
    connection.attach();
    host.kernel.device_of(NAME, |device| device.ask_for());
    let ended = connection.role.join().unwrap().unwrap_err();
    assert_eq!(crate::program::status(&ended), ipc::wire::common::REQUESTED);
    let ended = ended.to_string();
    assert!(ended.contains("01:00.0") && ended.contains("the kernel wants it back"), "{ended}");
    assert!(connection.tube.receive::<()>(soon()).is_err(), "its VMM side sees that");
    // Nothing of it is left open: another process can have the group.
    host.connection().end();
}

/// COMMAND of a function.
fn command(host: &Host, name: &str) -> Vec<u8> {
    host.kernel.device_of(name, |device| device.get(7, 4, 2))
}

#[test]
fn functions_of_two_devices_of_a_group_are_served_by_one_process() {
    let host = Host::with_two();
    let mut connection = host.connection();
    connection.attach();
    let ram = SharedMemory::create("ram", 0x10000).unwrap();
    ram.map_all(Protection::ReadWrite).unwrap();
    let base = 0x8000_0000;
    let give = |connection: &mut Driven, function| {
        let add = con::AddMemory { function, base, size: 0x10000, offset: 0, writable: true };
        connection.ask::<con::Request, _>(&add, &[ram.as_fd()]).0.unwrap();
        let entry = DmaEntry { key: base, address: base, size: 0x10000 };
        connection.con(&con::MapDma { function, entry }).unwrap();
    };
    give(&mut connection, 0);
    for _ in 0..2 {
        let attached = connection.con(&con::Attach { function: OTHERS_NUMBER }).unwrap();
        assert_eq!(attached.identity.address, OTHER.parse().unwrap());
        give(&mut connection, OTHERS_NUMBER);
        assert_eq!(command(&host, OTHER), [6, 0]);
        connection.con(&con::Detach { function: OTHERS_NUMBER }).unwrap();
        assert_eq!(command(&host, OTHER), [2, 4], "it is quiet");
        assert_eq!(command(&host, NAME), [6, 0], "and the other goes on");
        assert_eq!(host.kernel.mappings()[&base].1, 0x10000, "with its memory");
    }
    let resets = |name: &str| host.kernel.device_of(name, |device| device.resets());
    assert_eq!((resets(OTHER), resets(NAME)), (2, 0));
    let none = connection.con(&con::Attach { function: OTHERS_NUMBER + 1 }).unwrap_err();
    assert!(none.message.contains("number 9"), "{}", none.message);
    connection.end();
}

#[test]
fn a_function_of_the_group_that_nobody_uses_is_let_go_without_the_others() {
    let host = Host::with_two();
    let mut connection = host.connection();
    connection.attach();
    host.kernel.device_of(OTHER, |device| device.ask_for());
    let until = soon();
    let gone = loop {
        match connection.con(&con::GetStatistics { function: OTHERS_NUMBER }) {
            Err(gone) => break gone,
            Ok(_) => assert!(!until.passed()),
        }
    };
    assert!(gone.message.contains("not open"), "{}", gone.message);
    assert_eq!(command(&host, NAME), [6, 0], "the other goes on");
    connection.con(&con::Detach { function: 0 }).unwrap();
    connection.end();
}

#[test]
fn a_connection_process_uses_the_files_that_a_manager_opened_again_and_again() {
    let host = Host::new();
    let [group, container] = ["7", "vfio"].map(|name| host.kernel.open(name.as_ref()).unwrap());
    let message = con::HandedFiles::Group { group: 5, container: Some(6) };
    let files = [group.as_fd(), container.as_fd()];
    for _ in 0..2 {
        // Nothing can be opened by a path.
        host.kernel.fail("open", libc::EACCES);
        let mut process = host.opened(Opening::Handed, &message, &files).unwrap();
        let (attached, ..) = process.attach();
        assert_eq!(attached.identity.vendor, 0x1b36);
        process.end();
        assert!(host.kernel.open("vfio".as_ref()).is_err(), "the error was used up");
    }
    let other = host.opened(Opening::Handed, &message, &[container.as_fd(), group.as_fd()]);
    let other = other.err().unwrap();
    assert!(other.message.contains("descriptor 5 is a container"), "{other:?}");
    let few = host.opened(Opening::Handed, &message, &files[..1]).err().unwrap();
    assert!(few.message.contains("1 descriptors, expected 2"), "{few:?}");
}

#[test]
fn a_connection_process_that_has_an_iommufd_maps_no_guest_memory() {
    let host = Host::new();
    host.machine.cdev(NAME, 20);
    host.kernel.add_cdev(NAME, 20);
    let [device, iommufd] =
        ["devices/vfio20", "iommu"].map(|name| host.kernel.open(name.as_ref()).unwrap());
    let message = con::HandedFiles::Devices { devices: vec![5], iommufd: 6 };
    let files = [device.as_fd(), iommufd.as_fd()];
    let mut process = host.opened(Opening::Handed, &message, &files).unwrap();
    process.attach();
    // More than there is room for in an address space, if it were mapped.
    let size = 1 << 46;
    let memory = SharedMemory::create("guest", size).unwrap();
    let region = con::AddMemory { function: 0, base: 0, size, offset: 0, writable: true };
    process.ask::<con::Request, _>(&region, &[memory.as_fd()]).0.unwrap();
    let entry = con::DmaEntry { key: 0x1000, address: 0x1000, size: 0x2000 };
    process.con(&con::MapDma { function: 0, entry }).unwrap();
    let mapped = host.kernel.mappings();
    assert_eq!(mapped.into_iter().collect::<Vec<_>>(), [(0x1000, (0x1000, 0x2000, 7))]);
    process.con(&con::UnmapDma { function: 0, key: 0x1000 }).unwrap();
    assert!(host.kernel.mappings().is_empty());

    // Nor does a device write what the descriptor that was given does not allow to be written, or nobody may write.
    let add =
        |base, writable| con::AddMemory { function: 0, base, size: 0x1000, offset: 0, writable };
    let memory = SharedMemory::create("readable", 0x1000).unwrap();
    let own = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
    let readable = std::fs::File::open(own).unwrap();
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let sealed = rustix::fs::memfd_create("sealed", flags).unwrap();
    rustix::fs::ftruncate(&sealed, 0x1000).unwrap();
    rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::WRITE).unwrap();
    for (at, file) in [(1 << 47, readable.as_fd()), ((1 << 47) + 0x1000, sealed.as_fd())] {
        let refused = process.ask::<con::Request, _>(&add(at, true), &[file]).0.unwrap_err();
        assert!(refused.message.contains("cannot be mapped"), "{refused:?}");
        process.ask::<con::Request, _>(&add(at, false), &[file]).0.unwrap();
    }
    process.end();
    let other = host.opened(Opening::Handed, &message, &[iommufd.as_fd(), device.as_fd()]);
    let other = other.err().unwrap();
    assert!(other.message.contains("descriptor 5 is an iommufd"), "{other:?}");
    let few = host.opened(Opening::Handed, &message, &files[..1]).err().unwrap();
    assert!(few.message.contains("1 descriptors, expected 2"), "{few:?}");
}
