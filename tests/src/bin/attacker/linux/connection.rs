//! Attacks of a connection process: what it hands to the VMM, which maps it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cordon_backend::{OpenGroup, Source};
use device_proc::{backends, start};
use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::connection::{Attached, BarWindow, Carrier, Mapped, Ready, Request};
use ipc::{Deadline, SharedMemory, Tube};
use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::Started;
use super::peer::Outcome;
use super::steps::{greeted, leave, soon};

/// Of the probe's BAR 2, which is one window.
const BAR: u8 = 2;
const SIZE: u64 = 1 << 20;

/// What a window is said to be, and what comes with it.
struct Offer {
    windows: Vec<BarWindow>,
    descriptors: Vec<OwnedFd>,
    /// Whether every answer comes with as many descriptors as a message may have.
    always: bool,
    /// Whether it says of guest memory what cannot be, and never forgets any.
    lies: bool,
    /// Whether it says of the device what the function process does not find.
    other_bars: bool,
}

fn window(offset: u64, length: u64, memory_offset: u64) -> BarWindow {
    BarWindow { bar: BAR, offset, length, memory_offset }
}

/// A window of all of the BAR, and `descriptor` for its memory.
fn offer(descriptor: impl Into<OwnedFd>) -> Offer {
    let descriptors = vec![descriptor.into()];
    Offer {
        windows: vec![window(0, SIZE, 0)],
        descriptors,
        always: false,
        lies: false,
        other_bars: false,
    }
}

fn memory(size: u64) -> OwnedFd {
    SharedMemory::create("of-an-attacker", size).unwrap().into_fd()
}

fn lies(windows: Vec<BarWindow>) -> Offer {
    let descriptors = windows.iter().map(|_| memory(SIZE)).collect();
    Offer { windows, descriptors, always: false, lies: false, other_bars: false }
}

/// What attack `name` offers: made before the process confines itself, which can make none of it later.
fn offered(name: &str) -> Option<Offer> {
    Some(match name {
        "hands-a-socket-for-memory" => {
            let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
            Offer { descriptors: vec![socket.into(), other.into()], ..offer(memory(SIZE)) }
        }
        "hands-one-socket-for-memory" => offer(std::os::unix::net::UnixStream::pair().unwrap().0),
        "hands-a-directory-for-memory" => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            offer(rustix::fs::open("/", flags, Mode::empty()).unwrap())
        }
        "hands-a-pipe-for-memory" => offer(rustix::pipe::pipe().unwrap().0),
        "hands-an-epoll-for-memory" => {
            offer(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap())
        }
        "hands-an-event-for-memory" => {
            let flags = rustix::event::EventfdFlags::CLOEXEC;
            offer(rustix::event::eventfd(0, flags).unwrap())
        }
        "hands-a-device-for-memory" => offer(std::fs::File::open("/dev/zero").unwrap()),
        "hands-memory-that-is-too-small" => offer(memory(SIZE / 2)),
        "hands-memory-of-no-bytes" => {
            offer(rustix::fs::memfd_create("none", MemfdFlags::ALLOW_SEALING).unwrap())
        }
        "hands-memory-that-is-not-sealed" => {
            let file = rustix::fs::memfd_create("loose", MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&file, SIZE).unwrap();
            offer(file)
        }
        "hands-memory-that-cannot-be-written" => {
            let memory = memory(SIZE);
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
            offer(std::fs::File::open(path).unwrap())
        }
        "hands-no-memory" => Offer { descriptors: Vec::new(), ..offer(memory(SIZE)) },
        "hands-descriptors-with-every-answer" => {
            let all = (0..ipc::tube::MAX_HANDLES).map(|_| memory(4096)).collect();
            Offer { descriptors: all, always: true, ..lies(Vec::new()) }
        }
        "says-windows-past-their-memory" => lies(vec![window(0, SIZE, SIZE)]),
        "says-windows-past-their-bar" => lies(vec![window(SIZE, SIZE, 0)]),
        "says-windows-that-wrap" => lies(vec![window(0, SIZE, u64::MAX - 0xfff)]),
        "says-windows-that-are-not-aligned" => lies(vec![window(0x10, 0x1000, 0)]),
        "says-windows-that-overlap" => {
            lies(vec![window(0, SIZE, 0), window(SIZE / 2, SIZE / 2, 0)])
        }
        "says-a-window-without-end" => lies(vec![window(0, u64::MAX, 0)]),
        "says-windows-of-bars-that-are-not-there" => {
            lies(vec![BarWindow { bar: u8::MAX, ..window(0, SIZE, 0) }])
        }
        "says-addresses-that-cannot-be" => Offer { lies: true, ..lies(Vec::new()) },
        "says-bars-that-are-not-the-devices" => Offer { other_bars: true, ..lies(Vec::new()) },
        _ => return None,
    })
}

/// Carries `name` out, which does not come back; `false` when it is no attack of a connection process.
pub(crate) fn run(name: &str, started: &Started) -> bool {
    let Some(offer) = offered(name) else { return false };
    let Started::Connection { address, common, .. } = started else { return false };
    let mut tube = greeted(started);
    // It has the claim, so that a function process can start and what it says is believed as far as it may be.
    let backend = backends::open(&common.dext).unwrap();
    let OpenGroup { group, mut functions } = backend.open_group(*address, Source::Own).unwrap();
    let function = functions.iter_mut().find(|one| one.identity().address == *address).unwrap();
    function.claim().unwrap();
    let (identity, bars) = (function.identity(), function.bars().unwrap());
    let mut open: Vec<BorrowedFd<'_>> = group.descriptors();
    open.push(tube.as_fd());
    open.extend(offer.descriptors.iter().map(AsFd::as_fd));
    open.extend(functions.iter().flat_map(|one| one.descriptors()));
    let role = sandbox_profiles::Role::Connection;
    let sandbox = start::confine(common.confinement(), role, &open, 1 << 30).unwrap();
    let ready = Ready { functions: vec![identity], sandbox };
    start::announce(&mut tube, Ok(((), ready))).unwrap();
    loop {
        let Ok(received) = tube.receive::<Request>(Deadline::after(Duration::MAX)) else { leave() };
        let id = received.id;
        if matches!(received.message, Request::Attach(_)) {
            attach(&mut tube, id, (identity, bars), &offer);
        } else {
            answer(&mut tube, id, &received.message, &offer);
        }
    }
}

/// What the device is, as it says itself.
type Device = (Identity, [Option<BarInfo>; 6]);

/// The claim is there; its windows are what the attack says.
fn attach(tube: &mut Tube, id: u32, device: Device, offer: &Offer) {
    let (identity, mut bars) = device;
    if let (true, Some(bar)) = (offer.other_bars, &mut bars[0]) {
        bar.size *= 2;
    }
    let attached = Attached {
        identity,
        bars,
        windows: offer.windows.clone(),
        carrier: Carrier::Descriptors,
        warnings: vec!["\x1b]0;owned\x07".repeat(2000)],
    };
    let handles: Vec<_> = offer.descriptors.iter().map(AsFd::as_fd).collect();
    let _ = tube.send(id, &Outcome::Ok(Box::new(attached)), &handles, soon());
}

fn answer(tube: &mut Tube, id: u32, request: &Request, offer: &Offer) {
    let all: Vec<_> = offer.descriptors.iter().map(AsFd::as_fd).collect();
    let handles = if offer.always { &all[..] } else { &[] };
    let sent = match request {
        Request::MapDma(call) => {
            let (bus_address, bus_length) =
                if offer.lies { (u64::MAX, 0) } else { (call.entry.key, call.entry.size) };
            let mapped = Mapped { bus_address, bus_length };
            tube.send(id, &Outcome::Ok(mapped), handles, soon())
        }
        Request::RemoveMemory(_) | Request::ReleaseDma(_) => {
            tube.send(id, &Outcome::Ok(!offer.lies), handles, soon())
        }
        Request::Shutdown(_) => {
            let _ = tube.send(id, &Outcome::Ok(()), &[], soon());
            std::process::exit(0)
        }
        _ => tube.send(id, &Outcome::Ok(()), handles, soon()),
    };
    if sent.is_err() {
        leave();
    }
}
