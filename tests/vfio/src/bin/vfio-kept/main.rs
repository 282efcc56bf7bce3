//! `vfio-kept ADDRESS…`, run by `cordon keep`: a VMM with NVMe controllers of one group that is killed with commands in
//! flight, again and again. Each instance finds a controller as it was, with guest memory, queues and what was in flight, and drives
//! it on without setting it up. The last one detaches them, and prints what came of all as one JSON object.

mod nvme;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use console::{complain, say};
use cordon_vmm::child::{Launch, LaunchError, Process, Processes, Start};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::kept::{LeftFunction, Store};
use cordon_vmm::{
    Container, Deadline, DmaMode, Event, Function, GuestRegion, Host, HostConfig, InterruptIndex,
    MemoryAccess, PassthroughDevice as _, PciAddress, SharedMemory, Window,
};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use self::nvme::{AT_ONCE, Nvme, SIZE, Word};

type Failure = Box<dyn std::error::Error>;

/// Where guest memory begins in the guest.
const BASE: u64 = 0x8000_0000;
/// How often it is killed.
const KILLS: u64 = 6;
/// COMMAND, and that the device decodes its memory and reaches ours.
const COMMAND: u32 = 4;
const ON: u8 = 0b110;

fn main() -> ExitCode {
    match run().and_then(|found| Ok(say!("{found}")?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vfio-kept: {error}"));
            ExitCode::from(console::exit::FAILED)
        }
    }
}

fn run() -> Result<Value, Failure> {
    let addresses = std::env::args().skip(1).map(|one| one.parse::<PciAddress>());
    let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
    let store = Store::from_environment()?.map(Arc::new).ok_or("there is no keeper")?;
    if let Some((address, why)) = store.unusable().first() {
        return Err(format!("what was kept of {address} cannot be used: {why}").into());
    }
    let left = store.left();
    let is_first = left.is_empty();
    let regions = regions(left, &addresses)?;
    let map = |region: &GuestRegion| {
        let memory = &region.memory;
        memory
            .map(region.offset, usize::try_from(SIZE)?, MemoryAccess::ReadWrite)
            .map_err(Failure::from)
    };
    let windows = regions.iter().map(map).collect::<Result<Vec<_>, _>>()?;
    let config = HostConfig::new("/bin/device-proc", "vfio").with_store(Some(Arc::clone(&store)));
    let host = Host::new(config);
    let alone = windows[0].read::<u64>(Word::Alone as u64)? != 0;
    if !is_first && !alone {
        refused_elsewhere(&host, addresses[0])?;
    }
    let container = Arc::new(Container::new(DmaMode::Direct));
    regions.into_iter().try_for_each(|region| container.map(region))?;
    if alone {
        without_the_other(&host, addresses[0], &container)?;
        return summary(&host, &store, &addresses, &container, &windows);
    }
    if !is_first {
        left_as_it_is(&store, addresses[0], &container)?;
    }
    let mut functions = Vec::new();
    for address in &addresses {
        let function = host.attach(*address, &container, None)?;
        if function.was_kept() == is_first {
            return Err("the first instance goes on, or a later one begins anew".into());
        }
        store.keeps(*address)?;
        functions.push(function);
    }
    drive(&functions, &windows, is_first)?;
    functions.iter().for_each(|function| host.detach(function));
    summary(&host, &store, &addresses, &container, &windows)
}

/// One function of a group that was left, whose other one nobody attaches: memory that the VMM takes back neither of
/// them reaches any more, so that there can be other memory in its place.
fn without_the_other(
    host: &Host,
    address: PciAddress,
    container: &Arc<Container>,
) -> Result<(), Failure> {
    let function = host.attach(address, container, None)?;
    if !function.was_kept() {
        return Err("it is not as it was left".into());
    }
    let (others, process) = (BASE + SIZE, function.connection().pid());
    container.unmap(others, SIZE)?;
    let memory = Arc::new(SharedMemory::create("new", SIZE)?);
    container.map(GuestRegion { iova: others, size: SIZE, memory, offset: 0, writable: true })?;
    container.unmap(others, SIZE)?;
    // Asked of the process that it was, which was not ended to take the memory back.
    let regions = function.connection().statistics(address)?.regions;
    if (function.connection().pid(), regions) != (process, 1) {
        return Err(format!("its connection process was ended, or has {regions} regions").into());
    }
    host.detach(&function);
    Ok(())
}

/// What came of it all, when everything is detached.
fn summary(
    host: &Host,
    store: &Store,
    addresses: &[PciAddress],
    container: &Arc<Container>,
    memory: &[Window],
) -> Result<Value, Failure> {
    let word = |at: &Window, word: Word| at.read::<u64>(word as u64);
    let mut done = Done { kills: word(&memory[0], Word::Kills)?, ..Done::default() };
    for one in memory {
        done.in_flight += word(one, Word::InFlight)?;
        done.verified += word(one, Word::Verified)?;
        done.interrupts += word(one, Word::Interrupts)?;
    }
    let is_kept = |address: &PciAddress| store.keeps(*address).is_ok();
    let is_empty = store.left().is_empty() && !addresses.iter().any(is_kept);
    // Somebody who still had it would keep the kernel from opening it anew.
    let again = host.attach(addresses[0], container, None)?;
    let was_kept = again.was_kept();
    host.detach(&again);
    Ok(json!({
        "functions": addresses.len(),
        "kills": done.kills,
        "in_flight": done.in_flight,
        "bytes_verified": done.verified,
        "interrupts": done.interrupts,
        "empty": is_empty && !was_kept,
    }))
}

/// Starts no function processes.
#[derive(Debug)]
struct WithoutFunctions;

impl Launch for WithoutFunctions {
    fn launch(&self, start: &Start<'_>) -> Result<Box<dyn Process>, LaunchError> {
        match start.arguments.first() {
            Some(role) if role == "function" => Err(LaunchError("there is none".to_owned())),
            _ => Processes.launch(start),
        }
    }

    fn prepare_thread(&self) {
        Processes.prepare_thread();
    }
}

/// An attach that fails when everything was taken over leaves it as it was.
fn left_as_it_is(
    store: &Arc<Store>,
    address: PciAddress,
    container: &Arc<Container>,
) -> Result<(), Failure> {
    let before = store.left().len();
    for (program, launch) in [
        ("/bin/device-proc", Arc::new(WithoutFunctions) as Arc<dyn Launch>),
        ("/bin/vfio-kept", Arc::new(Processes)),
    ] {
        let config = HostConfig::new(program, "vfio").with_store(Some(Arc::clone(store)));
        match Host::new(config.with_launch(launch)).attach(address, container, None) {
            Ok(_) => return Err(format!("{program} serves what it cannot").into()),
            Err(_) if store.left().len() == before => {}
            Err(error) => return Err(format!("it is lost: {error}").into()),
        }
    }
    Ok(())
}

/// Guest memory, a region for each function, all of which reach all of it: new, or as it was left.
fn regions(left: Vec<LeftFunction>, addresses: &[PciAddress]) -> Result<Vec<GuestRegion>, Failure> {
    if left.is_empty() {
        let memory = Arc::new(SharedMemory::create("guest", SIZE * addresses.len() as u64)?);
        let region = |number: u64| GuestRegion {
            iova: BASE + number * SIZE,
            size: SIZE,
            memory: Arc::clone(&memory),
            offset: number * SIZE,
            writable: true,
        };
        return Ok((0..addresses.len() as u64).map(region).collect());
    }
    let there: Vec<PciAddress> = left.iter().map(|function| function.address).collect();
    let same = |function: &LeftFunction| {
        function.group == there && function.regions.len() == addresses.len()
    };
    if there != addresses || !left.iter().all(same) {
        return Err(format!("not everything was left: {left:?}").into());
    }
    Ok(left.into_iter().next().map(|function| function.regions).unwrap_or_default())
}

fn command(function: &Function) -> Result<u8, Failure> {
    let mut low = [0];
    function.config_read(COMMAND, &mut low)?;
    Ok(low[0])
}

/// With other memory it is not attached, and nothing of it is lost.
fn refused_elsewhere(host: &Host, address: PciAddress) -> Result<(), Failure> {
    let other = Arc::new(Container::new(DmaMode::Direct));
    for (memory, says) in [(None, "nothing is there"), (Some(SIZE), "other memory is there")] {
        if let Some(size) = memory {
            let memory = Arc::new(SharedMemory::create("other", size)?);
            other.map(GuestRegion { iova: BASE, size, memory, offset: 0, writable: true })?;
        }
        match host.attach(address, &other, None) {
            Ok(_) => return Err("it was attached to other memory".into()),
            Err(error) if error.to_string().contains(says) => {}
            Err(error) => return Err(format!("{error} does not say that {says}").into()),
        }
    }
    Ok(())
}

/// What came of it all, once it was killed often enough.
#[derive(Default)]
struct Done {
    kills: u64,
    in_flight: u64,
    verified: u64,
    interrupts: u64,
}

fn drive(functions: &[Arc<Function>], memory: &[Window], is_first: bool) -> Result<(), Failure> {
    let mut parts = Vec::new();
    for function in functions {
        let windows = function.map_windows()?;
        let registers = windows.into_iter().find(|window| (window.bar, window.offset) == (0, 0));
        let registers = registers.ok_or("there is no window to the registers")?;
        parts.push((registers, [Event::new()?, Event::new()?]));
    }
    let nvme = parts.iter().zip(memory).zip(0..).map(|(((registers, events), memory), number)| {
        let (registers, base) = (registers.window(), BASE + number * SIZE);
        Nvme { registers, memory, base, events }
    });
    let nvme: Vec<_> = nvme.collect();
    for (function, nvme) in functions.iter().zip(&nvme) {
        go_on(function, nvme, is_first)?;
    }
    let kills = nvme[0].word(Word::Kills)?;
    for one in &nvme {
        one.write(kills + 1)?;
        one.read()?;
        one.verify()?;
    }
    if kills < KILLS {
        nvme.iter().try_for_each(Nvme::read_and_leave)?;
        kill_process(rustix::process::getpid(), Signal::KILL)?;
        return Err("it was not killed".into());
    }
    if functions.len() > 1 {
        nvme[0].set(Word::Alone, 1)?;
        kill_process(rustix::process::getpid(), Signal::KILL)?;
        return Err("it was not killed".into());
    }
    Ok(())
}

/// Goes on with a controller as the instance before this one left it, or brings it up.
fn go_on(function: &Function, nvme: &Nvme<'_>, is_first: bool) -> Result<(), Failure> {
    if !is_first {
        let (cc, csts) = nvme.state()?;
        if cc & 1 == 0 || csts & 0b11 != 1 {
            return Err(format!("it is as after a reset: CC {cc:#x}, CSTS {csts:#x}").into());
        }
        let command = command(function)?;
        if command & ON != ON {
            return Err(format!("it was switched off: COMMAND {command:#x}").into());
        }
        nvme.found(AT_ONCE)?;
        nvme.verify()?;
    }
    let signallers = nvme.events.iter().map(|event| event.signaller().map(Some));
    let signallers = signallers.collect::<Result<_, _>>()?;
    let setup = InterruptSetup::Assign { start: 0, signallers };
    function.set_interrupts(InterruptIndex::Msix, setup)?;
    for event in nvme.events {
        // One may have come while nobody was there.
        let until = if is_first { Duration::ZERO } else { Duration::from_secs(5) };
        if event.wait(Deadline::after(until))? == is_first {
            return Err("a vector is signalled without reason, or is not that may have one".into());
        }
    }
    if is_first { nvme.start() } else { Ok(()) }
}
