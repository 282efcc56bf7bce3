//! `vfio-kept ADDRESS`, run by `cordon keep`: a VMM with an NVMe controller that is killed with commands in flight, again
//! and again. Each instance finds the controller as it was, with guest memory, queues and what was in flight, and drives
//! it on without setting it up. The last one detaches it, and prints what came of all as one JSON object.

mod nvme;

use std::process::ExitCode;
use std::sync::Arc;

use console::{complain, say};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::kept::Store;
use cordon_vmm::{
    Container, DmaMode, Event, Function, GuestRegion, Host, HostConfig, InterruptIndex,
    PassthroughDevice as _, PciAddress, SharedMemory, Window,
};
use serde_json::{Value, json};

use self::nvme::{AT_ONCE, BASE, Nvme, SIZE, Word};

type Failure = Box<dyn std::error::Error>;

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
    let address: PciAddress = std::env::args().nth(1).unwrap_or_default().parse()?;
    let store = Store::from_environment()?.map(Arc::new).ok_or("there is no keeper")?;
    if let Some((address, why)) = store.unusable().first() {
        return Err(format!("what was kept of {address} cannot be used: {why}").into());
    }
    let mut left = store.left();
    let is_first = left.is_empty();
    let region = match left.pop() {
        Some(function) => {
            let count = function.regions.len();
            let [region] = <[GuestRegion; 1]>::try_from(function.regions)
                .map_err(|_| format!("{count} regions were kept"))?;
            region
        }
        None => {
            let memory = Arc::new(SharedMemory::create("guest", SIZE)?);
            GuestRegion { iova: BASE, size: SIZE, memory, offset: 0, writable: true }
        }
    };
    let memory = Arc::clone(&region.memory);
    let window = memory.map(0, usize::try_from(SIZE)?, cordon_vmm::MemoryAccess::ReadWrite)?;
    let config = HostConfig::new("/bin/device-proc", "vfio").with_store(Some(Arc::clone(&store)));
    let host = Host::new(config);
    if !is_first {
        refused_elsewhere(&host, address)?;
    }
    let container = Arc::new(Container::new(DmaMode::Direct));
    container.map(region)?;
    let function = host.attach(address, &container, None)?;
    if function.was_kept() == is_first {
        return Err("the first instance goes on, or a later one begins anew".into());
    }
    store.keeps(address)?;
    let done = drive(&function, &window, is_first)?;
    let command = command(&function)?;
    host.detach(&function);
    let is_empty = store.left().is_empty() && store.keeps(address).is_err();
    // Somebody who still had it would keep the kernel from opening it anew.
    let again = host.attach(address, &container, None)?;
    let was_kept = again.was_kept();
    host.detach(&again);
    Ok(json!({
        "kills": done.0,
        "in_flight": done.1,
        "bytes_verified": done.2,
        "interrupts": done.3,
        "command": command,
        "empty": is_empty && !was_kept,
    }))
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
fn drive(
    function: &Function,
    memory: &Window,
    is_first: bool,
) -> Result<(u64, u64, u64, u64), Failure> {
    let windows = function.map_windows()?;
    let registers = windows.iter().find(|window| (window.bar, window.offset) == (0, 0));
    let registers = registers.ok_or("there is no window to the registers")?.window();
    let events = [Event::new()?, Event::new()?];
    let nvme = Nvme { registers, memory, events: &events };
    if !is_first {
        let (cc, csts) = nvme.state()?;
        if cc & 1 == 0 || csts & 0b11 != 1 {
            return Err(
                format!("the controller is as after a reset: CC {cc:#x}, CSTS {csts:#x}").into()
            );
        }
        let command = command(function)?;
        if command & ON != ON {
            return Err(format!("it was switched off: COMMAND {command:#x}").into());
        }
        nvme.found(AT_ONCE)?;
        nvme.verify()?;
    }
    let signallers = events.iter().map(|event| event.signaller().map(Some));
    let signallers = signallers.collect::<Result<_, _>>()?;
    let setup = InterruptSetup::Assign { start: 0, signallers };
    function.set_interrupts(InterruptIndex::Msix, setup)?;
    for event in &events {
        // One may have come while nobody was there.
        if event.wait(cordon_vmm::Deadline::after(std::time::Duration::from_secs(
            5 * u64::from(!is_first),
        )))? == is_first
        {
            return Err(
                "a vector was signalled that had no reason, or was not that may have one".into()
            );
        }
    }
    if is_first {
        nvme.start()?;
    }
    let kills = nvme.word(Word::Kills)?;
    nvme.write(kills + 1)?;
    nvme.read()?;
    nvme.verify()?;
    if kills < KILLS {
        nvme.read_and_die()?;
    }
    let [in_flight, verified, interrupts] =
        [Word::InFlight, Word::Verified, Word::Interrupts].map(|word| nvme.word(word));
    Ok((kills, in_flight?, verified?, interrupts?))
}
