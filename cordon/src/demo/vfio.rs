//! `cordon demo --vfio`: a real function, which Linux has bound to vfio-pci, driven as a VMM would. What is
//! on an NVMe function's disk is overwritten.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cordon_vmm::device::GuestWindow;
use cordon_vmm::listing::Lister;
use cordon_vmm::{
    DmaMode, Function, Host, HostConfig, Identity, PassthroughDevice as _, Recovery, VfioGroup,
};
use ipc::{PciAddress, Window};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{DemoOptions, steps};
use crate::rig::edu::Edu;
use crate::rig::leftovers::{self, Belongings};
use crate::rig::nvme::{self, Memory, Nvme};
use crate::rig::reporter::Reporter;
use crate::rig::storage::{BUFFER, Storage};
use crate::rig::{QUEUES, RAM, RAM_BASE, alive, memory, vectors};
use crate::{Failure, output, vfio_fds};

/// Class of NVMe controllers.
const NVME: u32 = 0x01_0802;
/// Ids of QEMU's device for education, which has pin interrupts.
const EDU: (u16, u16) = (0x1234, 0x11e8);
/// COMMAND, and what of it lets a device decode memory and be a master.
pub(super) const COMMAND: u32 = 0x04;
pub(super) const MEMORY: u16 = 0b010;
pub(super) const MASTER: u16 = 0b100;
/// Version, among the registers of an NVMe controller.
const VS: u64 = 0x08;
/// What moves in one round while processes are killed.
const ROUND: u64 = 8 << 20;
/// How long a process may take to be replaced, one that is stopped and must be found so included.
const REPLACED: Duration = Duration::from_secs(20);
/// For so many kills of function processes a connection process is killed once.
const PER_CONNECTION: u32 = 10;
/// Between two kills.
const PAUSE: Duration = Duration::from_millis(20);

/// IOMMU groups whose files this program was started with.
pub(super) type Handed = Vec<Arc<VfioGroup>>;

/// Those of the command line.
pub(super) fn handed(options: &DemoOptions) -> Result<Handed, Failure> {
    let files = vfio_fds::take(&options.vfio_fds, &[], &mut BTreeSet::new())?;
    crate::sys::handed_groups(files, &options.vfio)
}

/// Runs every step on the function at `address`.
pub(super) fn run(
    options: &DemoOptions,
    address: PciAddress,
    handed: Handed,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let mut config = options.rig.over("vfio", Recovery::default().with_max_deaths(u32::MAX))?;
    config.vfio_groups = handed;
    leaving_nothing(reporter, || {
        let done = drive(&config, options.kills, address, reporter)?;
        Ok(json!({
            "ok": true,
            "backend": "vfio",
            "function": address.to_string(),
            "bytes_verified": done.bytes,
            "interrupts": done.interrupts,
            "kills": done.kills,
            "connection_kills": done.connection_kills,
            "stops": done.stops,
            "away": done.away,
        }))
    })
}

/// Runs the steps, looks whether anything of this process is left, and tells the summary that they come to.
pub(super) fn leaving_nothing(
    reporter: &Reporter,
    steps: impl FnOnce() -> Result<Value, Failure>,
) -> Result<(), Failure> {
    let before = Belongings::now()?;
    let mut summary = steps()?;
    reporter.step("Looking for leftovers")?;
    let left = leftovers::of_this_process(&before)?;
    for one in &left {
        reporter.say(&format!("left: {one}"))?;
    }
    if !left.is_empty() {
        return Err(format!("{} things are left", left.len()).into());
    }
    reporter.say("no process and no descriptor is left")?;
    reporter.step("Done: every step held")?;
    summary["leftovers"] = 0.into();
    reporter.data("summary", summary)?;
    Ok(())
}

/// What was done.
#[derive(Default)]
struct Done {
    bytes: u64,
    interrupts: Vec<u64>,
    kills: u32,
    connection_kills: u32,
    stops: u32,
    /// How often the device was away.
    away: u64,
}

fn drive(
    config: &HostConfig,
    kills: u32,
    address: PciAddress,
    reporter: &Reporter,
) -> Result<Done, Failure> {
    reporter.step("Asking VFIO what there is")?;
    for function in Lister::start(config)?.functions()? {
        let Identity { address, vendor, device, class } = function.identity;
        let class = crate::names::class(class);
        reporter.say(&format!("{address}  {vendor:04x}:{device:04x}  {class}"))?;
    }

    reporter.step(&format!("Attaching {address}"))?;
    let host = Host::new(config.clone());
    let (container, ram) = memory(DmaMode::Direct, RAM)?;
    let function = host.attach(address, &container, None)?;
    let attached = Attached { host: &host, function: &function };
    for (role, pid) in [("connection", function.connection().pid()), ("function", function.pid())] {
        reporter.say(&format!("{role} process {pid}"))?;
        reporter.data("process", json!({ "process": role, "pid": pid }))?;
    }
    let windows = function.map_windows()?;
    for one in &windows {
        let (bar, from, length) = (one.bar, one.offset, one.window().length());
        reporter.say(&format!("window: BAR {bar} from {from:#x}, {length:#x} bytes"))?;
    }
    let identity = function.info().identity;
    command(&function, MEMORY | MASTER)?;
    let driven = Driven { function: &function, windows: &windows, ram: &ram, reporter };
    let mut done = if identity.class == NVME {
        driven.nvme(kills)?
    } else if (identity.vendor, identity.device) == EDU {
        driven.edu(kills)?
    } else {
        let Identity { vendor, device, class, .. } = identity;
        let what = format!("{vendor:04x}:{device:04x}, class {class:06x}");
        return Err(format!("{address} is {what}: the demo drives NVMe controllers and edu").into());
    };
    done.away = function.returns();
    reporter.step("The processes and what confines them")?;
    steps::tree(&[&function], reporter)?;
    reporter.step("Detaching it")?;
    drop(windows);
    drop(attached);
    Ok(done)
}

/// Detaches the function, also when a step failed.
struct Attached<'a> {
    host: &'a Host,
    function: &'a Function,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.host.detach(self.function);
    }
}

/// Sets COMMAND, as a guest would.
fn command(function: &Function, value: u16) -> Result<(), Failure> {
    Ok(function.config_write(COMMAND, &value.to_le_bytes())?)
}

/// A function and its guest's side.
struct Driven<'a> {
    function: &'a Function,
    windows: &'a [Arc<GuestWindow>],
    ram: &'a Window,
    reporter: &'a Reporter,
}

impl Driven<'_> {
    fn registers(&self) -> Result<&Window, Failure> {
        let first = self.windows.iter().find(|window| (window.bar, window.offset) == (0, 0));
        Ok(first.ok_or("BAR 0 has no window at its start")?.window())
    }

    /// A register by a trapped access.
    fn trapped(&self, at: u64) -> Result<u32, Failure> {
        let mut bytes = [0; 4];
        self.function.bar_read(0, at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn nvme(&self, kills: u32) -> Result<Done, Failure> {
        let Self { function, ram, reporter, .. } = *self;
        let registers = self.registers()?;
        reporter.step("Bringing the NVMe controller up through its BAR window")?;
        let events = vectors(function, QUEUES + 1)?;
        let is_alive = || {
            reporter.check()?;
            alive(function)
        };
        let mut memory = Memory::new(ram, RAM_BASE);
        let mut nvme = Nvme::start(registers, &mut memory, &events, &is_alive)?;
        let storage = Storage { memory: ram, buffer: memory.take(BUFFER)? };
        let bytes = nvme.blocks * nvme::BLOCK;
        reporter.say(&format!("{}, {}, {QUEUES} I/O queues", nvme.model, output::size(bytes)))?;

        reporter.step("Moving data by DMA in both directions, completions by MSI-X")?;
        let mut done = Done { bytes: storage.exercise(&mut nvme, reporter)?, ..Done::default() };

        reporter.step("Killing function processes under verified I/O")?;
        let meanwhile =
            |bytes| format!("{} written, read back and compared meanwhile", output::size(bytes));
        let (killed, bytes) = self.under_kills(Victim::Function, Signal::KILL, kills, |seed| {
            storage.write_and_verify(&mut nvme, seed, ROUND)
        })?;
        reporter.say(&meanwhile(bytes))?;
        (done.kills, done.bytes) = (killed, done.bytes + bytes);

        reporter.step("Killing connection processes under verified I/O: the device goes on")?;
        let kills = kills.div_ceil(PER_CONNECTION);
        let (killed, bytes) =
            self.under_kills(Victim::Connection, Signal::KILL, kills, |seed| {
                storage.write_and_verify(&mut nvme, (1 << 33) + seed, ROUND)
            })?;
        reporter.say(&meanwhile(bytes))?;
        (done.connection_kills, done.bytes) = (killed, done.bytes + bytes);

        reporter
            .step("Stopping a connection process under verified I/O: it is found, and replaced")?;
        let (stopped, bytes) = self.under_kills(Victim::Connection, Signal::STOP, 1, |seed| {
            storage.write_and_verify(&mut nvme, (1 << 34) + seed, ROUND)
        })?;
        reporter.say(&meanwhile(bytes))?;
        (done.stops, done.bytes) = (stopped, done.bytes + bytes);

        reporter.step("Switching the device's memory off and on")?;
        let version = registers.load_u32(VS)?;
        if self.trapped(VS)? != version {
            return Err("a trapped access reads another register than the window".into());
        }
        command(function, MASTER)?;
        if (registers.load_u32(VS)?, self.trapped(VS)?) != (u32::MAX, u32::MAX) {
            return Err("memory that is off does not read all ones".into());
        }
        command(function, MEMORY | MASTER)?;
        if (registers.load_u32(VS)?, self.trapped(VS)?) != (version, version) {
            return Err("memory that is on again reads something else".into());
        }
        reporter.say("all ones while it is off, in the window and in trapped accesses")?;

        reporter.step("Resetting the function and bringing it up again")?;
        nvme.stop()?;
        for (at, count) in nvme.interrupts.iter().enumerate() {
            if *count == 0 {
                return Err(format!("vector {at} never came: {:?}", nvme.interrupts).into());
            }
        }
        reporter.say(&format!("interrupts by vector {:?}", nvme.interrupts))?;
        done.interrupts.clone_from(&nvme.interrupts);
        function.reset()?;
        let mut memory = Memory::new(ram, RAM_BASE);
        let mut nvme = Nvme::start(registers, &mut memory, &events, &is_alive)?;
        let storage = Storage { memory: ram, buffer: memory.take(BUFFER)? };
        done.bytes += storage.write_and_verify(&mut nvme, 1 << 32, ROUND)?;
        nvme.stop()?;
        Ok(done)
    }

    fn edu(&self, kills: u32) -> Result<Done, Failure> {
        let Self { function, reporter, .. } = *self;
        reporter.step("Taking INTx of the edu device")?;
        let is_alive = || {
            reporter.check()?;
            alive(function)
        };
        let mut edu = Edu::start(function, self.registers()?, &is_alive)?;
        edu.liveness()?;
        for _ in 0..16 {
            edu.interrupt()?;
        }
        edu.held_back()?;
        reporter.say(&format!("{} interrupts, held back between signal and unmask", edu.taken))?;
        reporter.step("Killing function processes under interrupts")?;
        let mut load = |_| edu.interrupt().map(|()| 0);
        let (killed, _) = self.under_kills(Victim::Function, Signal::KILL, kills, &mut load)?;
        reporter.step("Killing connection processes under interrupts: the device goes on")?;
        let often = kills.div_ceil(PER_CONNECTION);
        let (connections, _) =
            self.under_kills(Victim::Connection, Signal::KILL, often, &mut load)?;
        function.reset()?;
        edu.interrupt()?;
        let interrupts = vec![edu.taken];
        Ok(Done { interrupts, kills: killed, connection_kills: connections, ..Done::default() })
    }

    /// Kills or stops the victim's process so many times while `load` is carried out again and again, each time
    /// with another number; how often, and the sum of what `load` gave. The device must not be away meanwhile,
    /// and the death of a connection process must not cost a function process.
    fn under_kills(
        &self,
        victim: Victim,
        signal: Signal,
        kills: u32,
        mut load: impl FnMut(u64) -> Result<u64, Failure>,
    ) -> Result<(u32, u64), Failure> {
        let (done, killed) = (AtomicBool::new(false), AtomicU32::new(0));
        let (mut sum, mut seed) = (0, 2);
        let serves = (self.function.pid(), self.function.returns());
        let (struck, loaded) = std::thread::scope(|scope| {
            let striker = scope.spawn(|| {
                let strikes = (victim, signal, kills);
                let struck = strike(self.function, strikes, &killed, &done);
                done.store(true, Ordering::Relaxed);
                struck
            });
            let loaded = loop {
                match load(seed) {
                    Ok(more) => sum += more,
                    Err(error) => break Err(error),
                }
                seed += 1;
                if done.load(Ordering::Relaxed) {
                    break Ok(());
                }
            };
            done.store(true, Ordering::Relaxed);
            (striker.join(), loaded)
        });
        loaded?;
        struck.map_err(|_| "the thread that kills panicked")??;
        let killed = killed.into_inner();
        if self.function.returns() != serves.1 {
            return Err("the device was away meanwhile".into());
        }
        if victim == Victim::Connection {
            if self.function.pid() != serves.0 {
                return Err("its function process was replaced meanwhile".into());
            }
            let times = self.function.connection().adoptions();
            let what = if signal == Signal::KILL { "killed" } else { "stopped" };
            self.reporter.say(&format!(
                "{killed} {what}, {times} adopted so far: never away, and served by the same process"
            ))?;
            return Ok((killed, sum));
        }
        let mut took = self.function.recoveries();
        took.sort_unstable();
        let median = took.get(took.len() / 2).copied().unwrap_or_default();
        let worst = took.last().copied().unwrap_or_default();
        self.reporter.say(&format!(
            "{killed} killed, {} replaced: median {median:.1?}, longest {worst:.1?}",
            self.function.replacements()
        ))?;
        Ok((killed, sum))
    }
}

/// Whose process is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Function,
    Connection,
}

impl Victim {
    /// Its process, and how many were replaced before it.
    fn of(self, function: &Function) -> (u32, u64) {
        match self {
            Self::Function => (function.pid(), function.replacements()),
            Self::Connection => (function.connection().pid(), function.connection().adoptions()),
        }
    }
}

/// Kills or stops the victim's process so many times, each one once it serves; ends early once it is `done`.
pub(super) fn strike(
    function: &Function,
    (victim, signal, kills): (Victim, Signal, u32),
    killed: &AtomicU32,
    done: &AtomicBool,
) -> Result<(), String> {
    while killed.load(Ordering::Relaxed) < kills && !done.load(Ordering::Relaxed) {
        let (pid, before) = victim.of(function);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no process")?;
        kill_process(pid, signal).map_err(|error| format!("killing {pid:?}: {error}"))?;
        killed.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + REPLACED;
        while victim.of(function).1 == before {
            if function.returns() > 0 {
                return Err("the device was away".to_owned());
            }
            if Instant::now() >= until {
                return Err(format!("process {pid:?} was not replaced within {REPLACED:?}"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
