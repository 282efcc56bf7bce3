//! What the suites share: the programs, a simulated dext, a VMM side over it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

pub mod companion;
pub mod processes;
pub mod serve;
pub mod stopwatch;
pub mod vfio_user;

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cordon_vmm::container::GuestRegion;
use cordon_vmm::{Container, DmaMode, Host, HostConfig};
use ipc::{Access, PciAddress, SharedMemory, Window};
use serde_json::Value;

/// Where the programs are. They are built first unless `CORDON_BIN_DIR` says where they are
/// (`cargo xtask test` does): Cargo builds no program of another package for a test.
///
/// # Panics
/// When they cannot be built.
#[must_use]
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("CORDON_BIN_DIR") {
            return dir.into();
        }
        let deps = std::env::current_exe().unwrap();
        let dir = deps.parent().unwrap().parent().unwrap().to_owned();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--workspace", "--bins"]);
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the programs cannot be built");
        dir
    })
}

/// One program.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    bin_dir().join(name)
}

/// An address that is right.
///
/// # Panics
/// When it is not.
#[must_use]
pub fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// Has the probe device's DMA engine copy between bus addresses, and signal no vector.
///
/// # Panics
/// When the window is too small.
pub fn start_copy(registers: &Window, from: u64, to: u64, length: u32, number: u32) {
    for (at, value) in [(0x40, from), (0x48, to)] {
        registers.write(at, u32::try_from(value & 0xffff_ffff).unwrap()).unwrap();
        registers.write(at + 4, u32::try_from(value >> 32).unwrap()).unwrap();
    }
    registers.write(0x50, length).unwrap();
    registers.write(0x54, u32::MAX).unwrap();
    registers.store_u32(0x58, number).unwrap();
}

/// A running dext-sim. Killed on drop.
pub struct Simulator {
    child: Child,
    directory: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Simulator {
    /// Starts one with these arguments.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|one| (*one).to_owned()).collect();
        let child = Self::spawn(directory.path(), &arguments);
        Self { child, directory, arguments }
    }

    fn spawn(directory: &Path, arguments: &[String]) -> Child {
        let mut child = Command::new(program("dext-sim"))
            .arg("--socket")
            .arg(directory.join("dext"))
            .arg("--control")
            .arg(directory.join("control"))
            .arg("--exit-with-stdin")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "dext-sim said {line:?}");
        child
    }

    /// Starts it again after [`Simulator::kill`], at the same place with other devices.
    ///
    /// # Panics
    /// When it does not start.
    pub fn replace(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        self.restart();
    }

    /// Starts it again after [`Simulator::kill`], at the same place.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.child = Self::spawn(self.directory.path(), &self.arguments);
    }

    /// One with an NVMe function at 01:00.0 and a probe at 01:00.1.
    #[must_use]
    pub fn usual() -> Self {
        Self::start(&["--device=01:00.0=nvme,size=64M,queues=4", "--device=01:00.1=probe"])
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("dext")
    }

    /// Where it is, for a command line.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("sim:{}", self.socket().display())
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something and returns its answer.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn control(&self, command: &Value) -> Value {
        let mut stream = UnixStream::connect(self.directory.path().join("control")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Arms a fault.
    ///
    /// # Panics
    /// When it is no fault.
    pub fn fault(&self, fault: &str) {
        let answer = self.control(&serde_json::json!({ "fault": fault }));
        assert_eq!(answer, "done", "{fault}");
    }

    /// Ends a function for all its clients, in one of the ways of `dext-sim --help`.
    ///
    /// # Panics
    /// When there is no such function or way.
    pub fn end(&self, function: &str, ending: &str) {
        let command = serde_json::json!({ "end": { "address": function, "as": ending } });
        assert_eq!(self.control(&command), "done", "{function} {ending}");
    }

    /// Brings a function back that has ended.
    ///
    /// # Panics
    /// When it has not.
    pub fn bring_back(&self, function: &str) {
        let command = serde_json::json!({ "return": { "address": function } });
        assert_eq!(self.control(&command), "done", "{function}");
    }

    /// How often each fault happened.
    #[must_use]
    pub fn fired(&self) -> Vec<u64> {
        let state = self.control(&"state".into());
        let faults = state["state"]["faults"].as_array().cloned().unwrap_or_default();
        faults.iter().map(|fault| fault["fired"].as_u64().unwrap_or(0)).collect()
    }

    /// What is held of a function now: connections, claims, DMA regions, interrupts.
    ///
    /// # Panics
    /// When there is no such function.
    #[must_use]
    pub fn held(&self, function: &str) -> (u64, u64, u64, bool) {
        let state = self.control(&"state".into());
        let functions = state["state"]["functions"].as_array().unwrap();
        let one = functions.iter().find(|one| one["address"] == function).unwrap();
        let number = |key: &str| one[key].as_u64().unwrap();
        let interrupts = one["interrupts_held"].as_bool().unwrap();
        (number("connections"), number("claims"), number("dma_regions"), interrupts)
    }

    /// Waits until nothing of a function is held.
    ///
    /// # Panics
    /// When something still is after five seconds.
    pub fn assert_released(&self, function: &str) {
        let released = eventually(|| self.held(function) == (0, 0, 0, false));
        assert!(released, "{function}: {:?}", self.held(function));
    }

    /// Kills it, as a dext that crashes.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds, by asking again; `false` when it does not within five seconds.
/// For what happens in another process, which nothing here can wait for otherwise.
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::yield_now();
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// How the suites start processes.
#[must_use]
pub fn config(simulator: &Simulator) -> HostConfig {
    HostConfig::new(program("device-proc"), simulator.endpoint())
        .with_recovery(cordon_vmm::Recovery::OFF)
}

/// Guest RAM begins here.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Bytes of guest RAM.
pub const RAM: u64 = 4 << 20;

/// A VMM: a host, a container with guest RAM, and the VMM's own mapping of it.
pub struct Vmm {
    /// Attaches and detaches.
    pub host: Host,
    /// Guest memory.
    pub container: Arc<Container>,
    /// Guest RAM as the VMM sees it.
    pub ram: Window,
}

impl Vmm {
    /// A VMM over a simulated dext.
    ///
    /// # Panics
    /// When there is no memory.
    #[must_use]
    pub fn new(config: HostConfig, mode: DmaMode) -> Self {
        let memory = SharedMemory::create("guest-ram", RAM).unwrap();
        let ram = memory.map_all(Access::ReadWrite).unwrap();
        let container = Arc::new(Container::new(mode));
        container
            .map(GuestRegion {
                iova: RAM_BASE,
                size: RAM,
                memory: memory.into(),
                offset: 0,
                writable: true,
            })
            .unwrap();
        Self { host: Host::new(config), container, ram }
    }

    /// Attaches.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn attach(&self, function: &str) -> Arc<cordon_vmm::Function> {
        self.host.attach(address(function), &self.container, None).unwrap()
    }
}

/// Where the windows of a BAR of `size` bytes must be (P7.3, P7.7): its whole pages of this host that
/// hold nothing of `taken`, those that follow each other together. Offset and length in bytes.
#[must_use]
pub fn windows(size: u64, taken: &[Range<u64>]) -> Vec<(u64, u64)> {
    let page = rustix::param::page_size() as u64;
    let mut windows: Vec<(u64, u64)> = Vec::new();
    for at in (0..size / page).map(|number| number * page) {
        if taken.iter().any(|range| range.start < at + page && at < range.end) {
            continue;
        }
        match windows.last_mut() {
            Some((offset, length)) if *offset + *length == at => *length += page,
            _ => windows.push((at, page)),
        }
    }
    windows
}

/// MSI-X table and pending bits of the simulated probe, in its BAR 0 of 128 KiB.
pub const PROBE_MSIX: [Range<u64>; 2] = [0x8000..0x8200, 0xc000..0xc008];

/// Says something that the test runner shows also when the test passes.
pub fn announce(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Sends a signal.
///
/// # Panics
/// When the process is not there.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Whether a process is there and has not ended.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
    !matches!(state, None | Some('Z' | 'X'))
}

/// Children of every thread of a process.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let lists =
        tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let pids = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    pids.collect()
}
