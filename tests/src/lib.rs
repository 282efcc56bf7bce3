//! What the suites share: the programs, a simulated dext, a VMM side over it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

pub mod companion;
#[cfg(target_os = "linux")]
pub mod dext;
pub mod machine;
pub mod processes;
pub mod records;
pub mod serve;
pub mod stopwatch;
#[cfg(target_os = "linux")]
pub mod trace;
pub mod vfio_user;

use std::ffi::OsString;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cordon_testkit as testkit;
use cordon_vmm::{Container, DmaMode, Host, HostConfig};
use ipc::{PciAddress, Window};
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

/// Copies a program to where a test wants it, to be run there.
///
/// # Panics
/// When it cannot be copied.
pub fn copy_program(name: &str, to: &Path) {
    install(&program(name), to);
}

/// Writes a script to where a test wants it, to be run there.
///
/// # Panics
/// When it cannot be written.
pub fn write_script(to: &Path, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("script");
    std::fs::write(&written, text).unwrap();
    install(&written, to);
}

/// Another process does the copying: a descriptor of this one that is open for writing is inherited
/// by whatever another thread forks in that moment, and what is open for writing cannot be run
/// (ETXTBSY).
fn install(from: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap();
    assert!(copied.success(), "install of {} to {}: {copied}", from.display(), to.display());
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

/// Has the probe device signal a vector so many times, as request `number` of its kind.
///
/// # Panics
/// When the window is too small.
pub fn fire(registers: &Window, vector: u32, count: u32, number: u32) {
    registers.write(0x64, vector).unwrap();
    registers.write(0x68, count).unwrap();
    registers.store_u32(0x6c, number).unwrap();
}

/// Where a simulated dext listens, and is controlled.
enum Place {
    /// A folder of its own.
    Own(tempfile::TempDir),
    /// The one of the dext that IOKit shows, see [`IOKIT_VARIABLE`].
    IoKit(PathBuf),
}

/// Names a folder where these suites run over IOKit: where the simulated dext listens at `dext` in it, IOKit's
/// registry shows its services, as the runner of Mach-O programs has it. There is one registry, so it shows one
/// simulator at a time; one that is started beside it is reached by its socket.
pub const IOKIT_VARIABLE: &str = "CORDON_TESTS_IOKIT";
/// Names the dext-sim that is started then: one that speaks as the runner does, which is a Linux program.
pub const IOKIT_SIMULATOR_VARIABLE: &str = "CORDON_TESTS_IOKIT_SIMULATOR";

/// Whether these suites run over IOKit.
#[must_use]
pub fn over_iokit() -> bool {
    std::env::var_os(IOKIT_VARIABLE).is_some()
}

/// A running dext-sim of the test kit's, of which a test demands that it does what it is told.
pub struct Simulator {
    kit: testkit::Simulator,
    place: Place,
}

/// Ends what runs beside a test until a flag is set: it is, when this is dropped, also by a test that fails, which
/// would wait for what runs beside it for ever.
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Whether a simulator of this process is the one that IOKit shows.
static BEHIND_IOKIT: AtomicBool = AtomicBool::new(false);

impl Place {
    fn new() -> Self {
        match std::env::var_os(IOKIT_VARIABLE) {
            Some(folder) if !BEHIND_IOKIT.swap(true, Ordering::SeqCst) => {
                Self::IoKit(folder.into())
            }
            _ => Self::Own(tempfile::tempdir().unwrap()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(folder) => folder.path(),
            Self::IoKit(folder) => folder,
        }
    }

    /// The dext-sim that listens there.
    fn simulator(&self) -> PathBuf {
        match (self, std::env::var_os(IOKIT_SIMULATOR_VARIABLE)) {
            (Self::IoKit(_), Some(simulator)) => simulator.into(),
            _ => program("dext-sim"),
        }
    }
}

impl Simulator {
    /// Starts one with these arguments.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let place = Place::new();
        let kit = testkit::Simulator::start_in(place.path(), place.simulator(), owned(arguments))
            .unwrap();
        Self { kit, place }
    }

    /// Starts it again after [`Simulator::kill`], at the same place with other devices.
    ///
    /// # Panics
    /// When it does not start.
    pub fn replace(&mut self, arguments: &[&str]) {
        self.kit.replace(owned(arguments)).unwrap();
    }

    /// Starts it again after [`Simulator::kill`], at the same place.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kit.restart().unwrap();
    }

    /// One with an NVMe function at 01:00.0 and a probe at 01:00.1.
    #[must_use]
    pub fn usual() -> Self {
        Self::start(&["--device=01:00.0=nvme,size=64M,queues=4", "--device=01:00.1=probe"])
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.kit.socket()
    }

    /// Where it is, for a command line.
    ///
    /// # Panics
    /// When that is no text.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match self.place {
            Place::Own(_) => self.kit.endpoint().into_string().unwrap(),
            Place::IoKit(_) => "iokit".to_owned(),
        }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.kit.pid()
    }

    /// Tells it something and returns its answer.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn control(&self, command: &Value) -> Value {
        self.kit.ask(command).unwrap()
    }

    /// Arms a fault.
    ///
    /// # Panics
    /// When it is no fault.
    pub fn fault(&self, fault: &str) {
        self.kit.control(&serde_json::json!({ "fault": fault })).unwrap();
    }

    /// Ends a function for all its clients, in one of the ways of `dext-sim --help`.
    ///
    /// # Panics
    /// When there is no such function or way.
    pub fn end(&self, function: &str, ending: &str) {
        self.kit.end(function, ending).unwrap();
    }

    /// Brings a function back that has ended.
    ///
    /// # Panics
    /// When it has not.
    pub fn bring_back(&self, function: &str) {
        self.kit.bring_back(function).unwrap();
    }

    /// How often each fault happened.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn fired(&self) -> Vec<u64> {
        self.kit.fired().unwrap()
    }

    /// What is held of a function now: connections, claims, DMA regions, interrupts.
    ///
    /// # Panics
    /// When there is no such function.
    #[must_use]
    pub fn held(&self, function: &str) -> (u64, u64, u64, bool) {
        let held = self.kit.held().unwrap();
        let one = held.iter().find(|one| one.address == function).unwrap();
        (one.connections, one.claims, one.dma_regions, one.interrupts_held)
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
        self.kit.kill().unwrap();
    }
}

fn owned(arguments: &[&str]) -> Vec<OsString> {
    arguments.iter().map(OsString::from).collect()
}

impl Drop for Simulator {
    fn drop(&mut self) {
        if matches!(self.place, Place::IoKit(_)) {
            // It makes room there for the next.
            let _ = self.kit.kill();
            BEHIND_IOKIT.store(false, Ordering::SeqCst);
        }
    }
}

/// Waits until `condition` holds, by asking again; `false` when it does not within five seconds, or twenty where it
/// was built for a Mac.
/// For what happens in another process, which nothing here can wait for otherwise.
pub fn eventually(condition: impl FnMut() -> bool) -> bool {
    // What is built for a Mac is run by an emulator here, a tenth as fast.
    let longest = Duration::from_secs(if cfg!(target_os = "macos") { 20 } else { 5 });
    testkit::wait::until(longest, condition)
}

/// How the suites start processes.
#[must_use]
pub fn config(simulator: &Simulator) -> HostConfig {
    HostConfig::new(program("device-proc"), simulator.endpoint())
        .with_recovery(cordon_vmm::Recovery::OFF)
}

pub use testkit::guest::RAM_BASE;
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
        let (container, ram) = testkit::guest::memory(mode, RAM).unwrap();
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

/// Says what `cargo xtask test` repeats at its end: on standard output, which it reads.
pub fn verdict(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
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
#[cfg(target_os = "linux")]
pub fn is_running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
    !matches!(state, None | Some('Z' | 'X'))
}

/// Whether a process is there and has not ended.
#[must_use]
#[cfg(target_os = "macos")]
pub fn is_running(pid: u32) -> bool {
    let listed = Command::new("/bin/ps").args(["-o", "state=", "-p", &pid.to_string()]).output();
    let state = listed.map(|output| output.stdout).unwrap_or_default();
    !matches!(state.first(), None | Some(b'Z'))
}

/// Children of every thread of a process.
///
/// # Panics
/// When there is no such process.
#[must_use]
#[cfg(target_os = "linux")]
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let lists =
        tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let pids = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    pids.collect()
}

/// Children of a process.
///
/// # Panics
/// When they cannot be listed.
#[must_use]
#[cfg(target_os = "macos")]
pub fn children(pid: u32) -> Vec<u32> {
    let listed = Command::new("/usr/bin/pgrep").args(["-P", &pid.to_string()]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
