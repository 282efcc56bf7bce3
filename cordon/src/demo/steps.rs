//! The steps of the demo, in order.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use cordon_cli::selftest;
use cordon_vmm::listing::Lister;
use cordon_vmm::{DmaMode, Function, Host, HostConfig, PassthroughDevice as _, Recovery};
use ipc::{Event, PciAddress, Window};
use serde_json::json;

use super::DemoOptions;
use super::summary::Summary;
use crate::output::{self, Sandbox};
use crate::rig::leftovers::{self, Belongings};
use crate::rig::nvme::{self, Memory, Nvme};
use crate::rig::probe::Probe;
use crate::rig::reporter::Reporter;
use crate::rig::storage::{BUFFER, Storage};
use crate::rig::{QUEUES, RAM, RAM_BASE, alive, memory, register_window, vectors};
use crate::{Failure, ending, programs, sys};

/// How long the demo may take to end in order once it was interrupted.
const GRACE: Duration = Duration::from_secs(2);
/// What moves while the other function's process is dead.
const WHILE_DEAD: u64 = 8 << 20;

/// Runs every step; the first that does not hold ends the demo.
pub(super) fn run(options: &DemoOptions) -> Result<(), Failure> {
    // First of all: these numbers are of what is open before this program opens anything.
    #[cfg(target_os = "linux")]
    let handed = super::vfio::handed(options)?;
    let reporter = Reporter::new(options.json, ending::within(GRACE)?);
    #[cfg(target_os = "linux")]
    let done = match options.vfio[..] {
        [] => steps(options, &reporter),
        [address] => super::vfio::run(options, address, handed, &reporter),
        [first, second] => super::group::run(options, [first, second], handed, &reporter),
        _ => Err(crate::failure::Usage("--vfio: one function or two".to_owned()).into()),
    };
    #[cfg(not(target_os = "linux"))]
    let done = steps(options, &reporter);
    if done.is_err() {
        // A signal explains whatever failed since.
        reporter.check()?;
    }
    done
}

fn steps(options: &DemoOptions, reporter: &Reporter) -> Result<(), Failure> {
    let prober = programs::find("sandbox-probe", options.sandbox_probe.as_deref())?;
    let (nvme, probe): (PciAddress, PciAddress) = ("01:00.0".parse()?, "01:00.1".parse()?);
    let mut summary = Summary::default();

    reporter.step("Starting a simulated device 01:00 with an NVMe and a probe function")?;
    let mut disk = OsString::from(format!("{nvme}=nvme,queues={QUEUES},"));
    match &options.image {
        None => disk.push("size=64M"),
        Some(path) if path.as_os_str().as_bytes().contains(&b',') => {
            return Err(format!("{}: the path of an image has no comma", path.display()).into());
        }
        Some(path) => {
            disk.push("image=");
            disk.push(path);
        }
    }
    let devices = [disk, format!("{probe}=probe").into()];
    let (simulator, config) = options.rig.start(&devices, Recovery::OFF, None)?;
    reporter.say(&format!("dext-sim runs as process {}", simulator.pid()))?;
    reporter.data("process", json!({ "process": "dext-sim", "pid": simulator.pid() }))?;
    let before = Belongings::now()?;

    drive(&config, options, [nvme, probe], reporter, &mut summary)?;

    super::companion::run(&options.rig, reporter, &mut summary)?;

    reporter.step("Trying forbidden things from inside the sandbox of each role")?;
    try_forbidden(&config, &prober, nvme, reporter, &mut summary)?;

    reporter.step("Looking for leftovers")?;
    let left = leftovers::list(&before, &simulator)?;
    for one in &left {
        reporter.say(&format!("left: {one}"))?;
    }
    if !left.is_empty() {
        return Err(format!("{} things are left", left.len()).into());
    }
    reporter
        .say("no process, descriptor, connection, claim, interrupt or DMA registration is left")?;
    let simulated = simulator.pid();
    drop(simulator);
    if sys::children()?.contains(&simulated) {
        return Err("the simulated dext did not end".into());
    }
    finish(reporter, &summary)
}

fn finish(reporter: &Reporter, summary: &Summary) -> Result<(), Failure> {
    reporter.step("Done: every step held")?;
    reporter.data(
        "summary",
        json!({
            "ok": true,
            "functions": 2,
            "connection_processes": 1,
            "bytes_verified": summary.bytes,
            "bytes_mapped_on_demand": summary.on_demand,
            "interrupts": summary.interrupts,
            "sandbox": {
                "tried": summary.tried,
                "refused": summary.refused,
                "syscalls_function": summary.syscalls,
            },
            "leftovers": 0,
        }),
    )?;
    Ok(())
}

/// Everything between attach and detach.
fn drive(
    config: &HostConfig,
    options: &DemoOptions,
    [nvme, probe]: [PciAddress; 2],
    reporter: &Reporter,
    summary: &mut Summary,
) -> Result<(), Failure> {
    reporter.step("Asking the dext what it offers")?;
    for function in Lister::start(config)?.functions()? {
        let identity = function.identity;
        reporter.say(&format!(
            "{}  {:04x}:{:04x}  {}",
            identity.address,
            identity.vendor,
            identity.device,
            crate::names::class(identity.class)
        ))?;
    }

    reporter.step("Attaching both functions")?;
    let host = Host::new(config.clone());
    let (container, window) = memory(DmaMode::Direct, RAM)?;
    let disk = host.attach(nvme, &container, None)?;
    let other = host.attach(probe, &container, None)?;
    let attached = Attached { host: &host, proxies: [&disk, &other] };
    if disk.connection().pid() != other.connection().pid() {
        return Err("the two functions do not share a connection process".into());
    }
    for (role, pid) in [
        ("connection", disk.connection().pid()),
        ("function 01:00.0", disk.pid()),
        ("function 01:00.1", other.pid()),
    ] {
        reporter.say(&format!("{role} process {pid}"))?;
        reporter.data("process", json!({ "process": role, "pid": pid }))?;
    }

    let guest = Guest::new(&window, [&disk, &other], RAM_BASE)?;
    exercise(&guest, options, reporter, summary)?;

    reporter.step("The processes and what confines them")?;
    summary.syscalls = disk.sandbox().syscalls;
    tree(&[&disk, &other], reporter)?;

    drop(guest);
    reporter.step("Detaching both functions")?;
    drop(attached);
    Ok(())
}

/// Detaches whatever is attached, also when a step failed.
struct Attached<'a> {
    host: &'a Host,
    proxies: [&'a Function; 2],
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        for proxy in self.proxies {
            self.host.detach(proxy);
        }
    }
}

/// The VMM's guest: memory, BAR windows and interrupt events.
struct Guest<'a> {
    ram: &'a Window,
    base: u64,
    disk: &'a Function,
    other: &'a Function,
    disk_registers: Window,
    other_registers: Window,
    disk_events: Vec<Event>,
    other_events: Vec<Event>,
}

impl<'a> Guest<'a> {
    fn new(ram: &'a Window, [disk, other]: [&'a Function; 2], base: u64) -> Result<Self, Failure> {
        Ok(Self {
            ram,
            base,
            disk,
            other,
            disk_registers: register_window(disk)?,
            other_registers: register_window(other)?,
            disk_events: vectors(disk, QUEUES + 1)?,
            other_events: vectors(other, other.vectors().into())?,
        })
    }
}

fn exercise(
    guest: &Guest<'_>,
    options: &DemoOptions,
    reporter: &Reporter,
    summary: &mut Summary,
) -> Result<(), Failure> {
    reporter.step("Reading config space")?;
    for proxy in [guest.disk, guest.other] {
        let mut header = [0; 64];
        proxy.config_read(0, &mut header)?;
        let identity = proxy.info().identity;
        if header[..2] != identity.vendor.to_le_bytes()
            || header[2..4] != identity.device.to_le_bytes()
        {
            return Err(format!("config space of {} is another device's", identity.address).into());
        }
        // As a guest would: memory space and bus mastering on.
        proxy.config_write(0x04, &[0x06, 0x00])?;
        reporter.say(&format!("{}: {:02x?}", proxy.info().name, &header[..16]))?;
    }

    reporter.step("Bringing the NVMe controller up through its BAR window")?;
    let mut memory = Memory::new(guest.ram, guest.base);
    let disk = guest.disk;
    let alive = move || {
        reporter.check()?;
        alive(disk)
    };
    let mut nvme = Nvme::start(&guest.disk_registers, &mut memory, &guest.disk_events, &alive)?;
    let storage = Storage { memory: guest.ram, buffer: memory.take(BUFFER)? };
    let bytes = nvme.blocks * nvme::BLOCK;
    reporter.say(&format!("{}, {}, {QUEUES} I/O queues", nvme.model, output::size(bytes)))?;

    reporter.step("Moving data by DMA in both directions, completions by MSI-X")?;
    summary.bytes += match &options.image {
        None => storage.exercise(&mut nvme, reporter)?,
        Some(path) => storage.exercise_image(&mut nvme, path, reporter)?,
    };

    reporter.step("Exercising the probe: registers, DMA engine, every vector, reset")?;
    let mut probe = Probe::new(guest.other, &guest.other_registers, &guest.other_events);
    summary.bytes += exercise_probe(&mut probe, guest, &mut memory)?;
    reporter.say(&format!(
        "12 registers, {} vectors, 4 copies of 1 MiB, reset",
        guest.other_events.len()
    ))?;

    reporter.step("Killing the probe's function process")?;
    kill(guest.other, reporter)?;
    if options.image.is_none() {
        summary.bytes += storage.write_and_verify(&mut nvme, 2, WHILE_DEAD)?;
    } else if let Some(path) = &options.image {
        summary.bytes += storage.exercise_image(&mut nvme, path, reporter)?;
    }
    reporter.say("the NVMe function did not notice: its data moved meanwhile, every byte right")?;
    nvme.stop()?;
    for (proxy, interrupts) in [(guest.disk, &nvme.interrupts), (guest.other, &probe.interrupts)] {
        if interrupts.contains(&0) {
            return Err(format!("{}: a vector never came: {interrupts:?}", proxy.address()).into());
        }
        reporter.say(&format!("{}: interrupts by vector {interrupts:?}", proxy.address()))?;
        summary.interrupts.insert(proxy.address().to_string(), json!(interrupts));
    }
    Ok(())
}

fn exercise_probe(
    probe: &mut Probe<'_>,
    guest: &Guest<'_>,
    memory: &mut Memory<'_>,
) -> Result<u64, Failure> {
    const LENGTH: u32 = 1 << 20;
    probe.scratch()?;
    let (source, target) = (memory.take(LENGTH.into())?, memory.take(LENGTH.into())?);
    let mut verified = 0;
    for round in 0..4u16 {
        let expected: Vec<u8> =
            (0..LENGTH).map(|at| (at ^ at >> 8 ^ u32::from(round)).to_le_bytes()[0]).collect();
        guest.ram.copy_in(source, &expected)?;
        probe.copy(guest.base + source, guest.base + target, LENGTH, round)?;
        let mut found = vec![0; expected.len()];
        guest.ram.copy_out(target, &mut found)?;
        if found != expected {
            return Err("the probe's DMA engine copied something else".into());
        }
        verified += u64::from(LENGTH);
    }
    probe.every_vector()?;
    probe.reset()?;
    Ok(verified)
}

/// Kills the function's process and shows what its VMM sees then.
fn kill(proxy: &Function, reporter: &Reporter) -> Result<(), Failure> {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = i32::try_from(proxy.pid()).ok().and_then(Pid::from_raw).ok_or("no process")?;
    kill_process(pid, Signal::KILL)?;
    let mut bytes = [0; 4];
    proxy.config_read_or_ones(0, &mut bytes);
    if bytes != [0xff; 4] {
        return Err(format!("a dead function reads {bytes:02x?}, not all ones").into());
    }
    proxy.bar_read_or_ones(0, 0, &mut bytes);
    if bytes != [0xff; 4] {
        return Err(format!("a dead BAR reads {bytes:02x?}, not all ones").into());
    }
    let death = proxy.death().ok_or("the death was not noticed")?;
    reporter.say(&death.to_string())?;
    reporter.say("its config space and BARs read all ones")?;
    Ok(())
}

/// The processes of functions that share a connection process, and what confines each.
pub(super) fn tree(functions: &[&Function], reporter: &Reporter) -> Result<(), Failure> {
    let connection = functions.first().map(|first| {
        let (address, connection) = (first.address().to_string(), first.connection());
        let device = address.rsplit_once('.').map_or(&*address, |(device, _)| device);
        (format!("connection {device}"), connection.pid(), connection.sandbox())
    });
    let of_functions = functions
        .iter()
        .map(|one| (format!("function {}", one.address()), one.pid(), one.sandbox()));
    reporter.say(&format!("cordon (the VMM) [{}]", std::process::id()))?;
    for (name, pid, sandbox) in connection.into_iter().chain(of_functions) {
        let sandbox = Sandbox::from(&sandbox);
        reporter.say(&format!("  {name} [{pid}]: {}", sandbox.summary()))?;
        reporter.data("process", json!({ "process": name, "pid": pid, "sandbox": sandbox }))?;
    }
    Ok(())
}

fn try_forbidden(
    config: &HostConfig,
    prober: &std::path::Path,
    address: PciAddress,
    reporter: &Reporter,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let mut holes = Vec::new();
    let attempts = selftest::run(config, prober, address, |attempt| {
        if !attempt.outcome.held() {
            holes.push(format!("{} {}: {:?}", attempt.role, attempt.name, attempt.outcome));
        }
        if reporter.check().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    reporter.check()?;
    summary.tried = attempts.len();
    summary.refused = attempts.iter().filter(|attempt| attempt.outcome.held()).count();
    let killed = attempts.iter().filter(|a| a.outcome == selftest::Outcome::Killed).count();
    reporter.say(&format!(
        "{} things tried in 2 roles, {} refused ({killed} of them by ending the process)",
        summary.tried, summary.refused
    ))?;
    if let Some(hole) = holes.first() {
        return Err(format!("the sandbox let something through: {hole}").into());
    }
    Ok(())
}
