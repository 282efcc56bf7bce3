//! Stock QEMU with a Debian kernel and the kernel's own NVMe driver over `cordon serve`, under TCG.
//! What is needed is prepared by `cargo xtask guest --prepare`; if it cannot be, these tests fail
//! and say why.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cordon_tests::processes::{end_by_hangup, processes_of};
use cordon_tests::{Simulator, announce, bin_dir, eventually, program, signal};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A guest under TCG on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(150);

/// Where QEMU, kernel and initramfs are.
fn prepared() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("CORDON_GUEST_DIR") {
            return dir.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["run", "--quiet", "--package", "xtask", "--", "guest", "--prepare"])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "QEMU and a guest cannot be prepared: see above");
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().into()
    })
}

/// A running `cordon serve`, and what it logs.
struct Serve {
    child: Child,
    log: Receiver<Value>,
    /// What it says on its standard error.
    errors: Arc<Mutex<Vec<String>>>,
    directory: tempfile::TempDir,
}

impl Serve {
    fn start(simulator: &Simulator, devices: &[&str]) -> Self {
        Self::start_with(simulator, devices, |_, _| {})
    }

    fn start_with(
        simulator: &Simulator,
        devices: &[&str],
        more: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("cordon"));
        command.args(["serve", "--json", "--dext", &simulator.endpoint()]);
        for device in devices {
            command.args(["--device", device, "--socket"]).arg(directory.path().join(device));
        }
        more(&mut command, directory.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (output, said) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&errors);
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let serve = Self { child, log, errors, directory };
        serve.until("ready");
        serve
    }

    fn socket(&self, device: &str) -> PathBuf {
        self.directory.path().join(device)
    }

    /// Waits for a line of the log; what came before it.
    fn until(&self, event: &str) -> Vec<Value> {
        let mut seen = Vec::new();
        loop {
            let line = self.log.recv_timeout(TIMEOUT);
            let line = line.unwrap_or_else(|_| panic!("no {event}, only {seen:?}"));
            if line["event"] == event {
                return seen;
            }
            seen.push(line);
        }
    }

    /// SIGTERM ends it in order.
    fn stop(mut self) {
        signal(self.child.id(), Signal::TERM);
        self.until("stopped");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether an event is that a client was not served.
fn is_refusal(event: &Value) -> bool {
    event["event"] == "refused" || event["event"] == "busy"
}

/// A running QEMU and what its guest says.
struct Guest {
    child: Child,
    console: Receiver<String>,
    seen: Vec<String>,
    waiting: Option<String>,
    monitor: PathBuf,
    _directory: tempfile::TempDir,
}

impl Guest {
    fn boot(test: &str, machine: &str, sockets: &[PathBuf], more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let monitor = directory.path().join("qmp");
        let prepared = prepared();
        let qemu = prepared.join("qemu/usr");
        let mut command = Command::new(qemu.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(qemu.join("lib/x86_64-linux-gnu"));
        command.arg(qemu.join("bin/qemu-system-x86_64"));
        for data in ["share/qemu", "share/seabios"] {
            command.arg("-L").arg(qemu.join(data));
        }
        command
            .args(["-accel", "tcg", "-M", &format!("{machine},memory-backend=ram")])
            .args(["-m", "256M", "-smp", "4"])
            .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .arg("-kernel")
            .arg(prepared.join("vmlinuz"))
            .arg("-initrd")
            .arg(prepared.join("initramfs"))
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 cordon.test={test}")])
            .args(more);
        for (number, socket) in sockets.iter().enumerate() {
            command.arg("-device").arg(device(socket, number).to_string());
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, console) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
        Self { child, console, seen: Vec::new(), waiting: None, monitor, _directory: directory }
    }

    /// Waits for the guest to say how its test went.
    fn passes(&mut self, test: &str) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let next = self.waiting.take().ok_or(()).or_else(|()| self.console.recv_timeout(left));
            let Ok(line) = next else {
                panic!("the guest does not say how {test} went: {:#?}", self.seen);
            };
            if line.contains(&format!("GUEST-OK {test}")) {
                return;
            }
            assert!(!line.contains("GUEST-FAIL"), "{line}: {:#?}", self.seen);
            self.seen.push(line);
        }
    }

    /// Waits for a line that contains `text`.
    fn says(&mut self, text: &str) {
        let end = Instant::now() + TIMEOUT;
        while !self.seen.last().is_some_and(|line| line.contains(text)) {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.console.recv_timeout(left);
            self.seen.push(line.unwrap_or_else(|_| panic!("no {text}: {:#?}", self.seen)));
        }
    }

    /// Whether a line with `text` has come since; what came before it is kept, it is not taken.
    fn has_said(&mut self, text: &str) -> bool {
        if self.waiting.is_none() {
            self.waiting = self.console.try_recv().ok();
        }
        match &self.waiting {
            Some(line) if line.contains(text) => true,
            Some(_) => {
                self.seen.extend(self.waiting.take());
                false
            }
            None => false,
        }
    }

    /// Waits for the guest's end.
    fn ends(&mut self) {
        let end = Instant::now() + TIMEOUT;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the guest does not end: {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn device(socket: &Path, number: usize) -> Value {
    json!({
        "driver": "vfio-user-pci",
        "id": format!("function{number}"),
        "socket": { "type": "unix", "path": socket },
    })
}

/// QEMU's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(guest: &Guest) -> Self {
        assert!(eventually(|| guest.monitor.exists()));
        let stream = UnixStream::connect(&guest.monitor).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.line();
        monitor.command(&json!({ "execute": "qmp_capabilities" }));
        monitor
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn command(&mut self, command: &Value) {
        self.0.get_mut().write_all(command.to_string().as_bytes()).unwrap();
        loop {
            let line = self.line();
            assert!(line["error"].is_null(), "{command}: {line}");
            if !line["return"].is_null() {
                return;
            }
        }
    }

    fn event(&mut self, name: &str) {
        while self.line()["event"] != name {}
    }
}

#[test]
fn the_kernels_nvme_driver_binds_and_every_queue_interrupts() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let mut guest = Guest::boot("queues", "q35", &[serve.socket("01:00.0")], &["-no-reboot"]);
    guest.passes("queues");
    guest.ends();
    let seen = serve.until("detach");
    assert!(seen.iter().all(|line| !is_refusal(line)), "{seen:?}");
    serve.stop();
    simulator.assert_released("01:00.0");
}

#[test]
fn file_systems_hold_and_an_images_files_are_read_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let (image, files) = (directory.path().join("image"), directory.path().join("files"));
    let content = |number: usize| -> Vec<u8> {
        (0..300_000)
            .map(|at: usize| ((at * 31 + at / 257) ^ (number * 97)).to_le_bytes()[0])
            .collect()
    };
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("from-host"), content(1000)).unwrap();
    std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let path = "/usr/sbin:/sbin:/usr/bin:/bin";
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-d"]).arg(&files).arg(&image).env("PATH", path);
    let made = make.status().is_ok_and(|status| status.success());
    assert!(made, "mkfs.ext4 of the package e2fsprogs");

    let disk = format!("--device=01:00.1=nvme,queues=4,image={}", image.display());
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=128M,queues=4", &disk]);
    let serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
    let sockets = [serve.socket("01:00.0"), serve.socket("01:00.1")];
    let mut guest = Guest::boot("files", "q35", &sockets, &["-no-reboot"]);
    guest.passes("files");
    guest.ends();
    serve.stop();

    // The image file on the host holds what the guest wrote.
    let back = directory.path().join("from-guest");
    let dump = format!("dump /from-guest {}", back.display());
    let dumped = Command::new("debugfs").args(["-R", &dump]).arg(&image).env("PATH", path).output();
    assert!(dumped.unwrap().status.success(), "debugfs of the package e2fsprogs");
    assert!(std::fs::read(&back).unwrap() == content(2000), "the guest's file is different");
}

#[test]
fn a_function_process_that_is_killed_every_200_ms_is_invisible_to_the_guest() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=128M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let mut guest = Guest::boot("hold", "q35", &[serve.socket("01:00.0")], &["-no-reboot"]);
    let qemu = guest.child.id();
    guest.says("GUEST-BUSY");
    let memory = shared_memory(qemu);
    assert!(memory.iter().any(|line| line.contains("memfd")), "{memory:?}");
    let mut kills = 0;
    // Until the guest says how it went.
    while !guest.has_said("GUEST-") {
        if let Some(pid) = process(serve.child.id(), "function", "01:00.0") {
            signal(pid, Signal::KILL);
            kills += 1;
        }
        // The same guest RAM and BAR windows at the same places, until QEMU ends.
        let now = shared_memory(qemu);
        assert!(now == memory || now.is_empty(), "{memory:?}, then {now:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    guest.passes("hold");
    assert_eq!(guest.child.id(), qemu);
    guest.ends();
    announce(&format!("guest: {kills} kills under its I/O, none seen"));
    assert!(kills > 50, "{kills}");
    let seen = serve.until("detach");
    assert!(seen.iter().all(|line| line["event"] != "given-up"), "{seen:?}");
    serve.stop();
    simulator.assert_released("01:00.0");
}

/// The shared memory that a process has mapped, and where.
fn shared_memory(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter(|line| line.contains("memfd:")).map(str::to_owned).collect()
}

/// A process among the children of `cordon serve`.
fn process(serve: u32, role: &str, address: &str) -> Option<u32> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{serve}/task")).ok()?.flatten() {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    let address = format!("--address={address}");
    children.into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&role.as_bytes()) && words.contains(&address.as_bytes())
    })
}

#[test]
fn a_connection_process_that_dies_is_a_controller_reset_for_the_guest() {
    let devices = ["--device=01:00.0=nvme,size=128M,queues=4", "--device=02:00.0=nvme,size=64M"];
    let simulator = Simulator::start(&devices);
    let serve = Serve::start(&simulator, &["01:00.0", "02:00.0"]);
    let sockets = [serve.socket("01:00.0"), serve.socket("02:00.0")];
    let mut guest = Guest::boot("return", "q35", &sockets, &["-no-reboot"]);
    guest.says("GUEST-BUSY");
    std::thread::sleep(Duration::from_millis(500));
    // Long enough away for the guest to see it.
    simulator.fault("cleanup-delay:ms=1000");
    signal(process(serve.child.id(), "connection", "01:00.0").unwrap(), Signal::KILL);
    guest.passes("return");
    let said = guest.seen.iter().find(|line| line.contains("live after"));
    announce(&format!("guest: {}", said.unwrap()));
    guest.ends();
    let seen = serve.until("detach");
    let of = |event: &str| -> Vec<&Value> {
        seen.iter().filter(|line| line["event"] == event).map(|line| &line["device"]).collect()
    };
    assert_eq!((of("away"), of("back")), (vec![&json!("01:00.0")], vec![&json!("01:00.0")]));
    assert!(of("given-up").is_empty() && of("refused").is_empty(), "{seen:?}");
    serve.stop();
    simulator.assert_released("01:00.0");
}

/// What `cordon inspect` shows of a served function's DMA.
fn inspect(simulator: &Simulator, serve: &Serve) -> Value {
    let output = Command::new(program("cordon"))
        .args(["inspect", "01:00.0", "--json", "--dext", &simulator.endpoint(), "--control"])
        .arg(serve.socket("control"))
        .output()
        .unwrap();
    let inspection: Value = serde_json::from_slice(&output.stdout).unwrap();
    inspection["served"]["dma"].clone()
}

#[test]
fn a_guest_maps_on_demand_through_the_companion_of_a_strict_dart() {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--dart=strict"]);
    let serve = Serve::start_with(&simulator, &["01:00.0"], |command, directory| {
        command.args(["--dma", "companion", "--companion-guest", "00:05.0"]);
        command.arg("--companion-socket").arg(directory.join("companion"));
        command.arg("--control").arg(directory.join("control"));
    });
    let at = |socket: &str, slot: &str| {
        let mut device = device(&serve.socket(socket), 0);
        device["id"] = format!("slot{slot}").into();
        device["addr"] = slot.into();
        device.to_string()
    };
    let devices = [at("01:00.0", "5"), at("companion", "6")];
    let mut guest = Guest::boot(
        "companion",
        "q35",
        &[],
        &["-no-reboot", "-device", &devices[0], "-device", &devices[1]],
    );
    guest.says("GUEST-LIVE");
    let live = inspect(&simulator, &serve);
    assert_eq!((&live["live_regions"], &live["live_bytes"]), (&4096.into(), &(16 << 20).into()));
    assert_eq!(simulator.held("01:00.0").2, 4096);
    guest.says("GUEST-FRAGMENT");
    simulator.fault("fragment:nth=1");
    guest.passes("companion");
    for line in guest.seen.iter().filter(|line| line.contains("companion: ")) {
        announce(&format!("guest: {line}"));
    }
    guest.ends();
    let (mut gone, mut seen) = (0, Vec::new());
    while gone < 2 {
        let line = serve.log.recv_timeout(TIMEOUT).unwrap();
        gone += usize::from(line["event"] == "detach");
        seen.push(line);
    }
    assert!(seen.iter().all(|line| !is_refusal(line)), "{seen:?}");
    assert!(eventually(|| simulator.held("01:00.0").2 == 0), "a guest that is gone left mappings");
    let after = inspect(&simulator, &serve);
    assert_eq!((&after["live_regions"], &after["peak_regions"]), (&0.into(), &65_536.into()));
    assert_eq!(after["peak_bytes"], 3u64 << 29);
    let said = serve.errors.lock().unwrap().join("\n");
    for limit in ["no more mappings", "no more bytes at once", "no single segment"] {
        assert!(said.contains(limit), "{limit}: {said}");
    }
    for limit in ["failed_bytes", "failed_mappings", "failed_segments"] {
        // The hostile rings ask for whatever they like, so there may be more.
        assert!(after[limit].as_u64().unwrap() >= 1, "{limit}: {after}");
    }
    serve.stop();
    simulator.assert_released("01:00.0");
}

#[test]
fn two_functions_of_one_device_in_one_guest() {
    let simulator = Simulator::usual();
    let serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
    let sockets = [serve.socket("01:00.0"), serve.socket("01:00.1")];
    let mut guest = Guest::boot("probe", "q35", &sockets, &["-no-reboot"]);
    guest.passes("probe");
    for said in ["registers: 12", "DMA engine: 65536", "interrupts: each of 32"] {
        assert!(guest.seen.iter().any(|line| line.contains(said)), "{said}: {:#?}", guest.seen);
    }
    guest.ends();
    serve.stop();
}

#[test]
fn a_guest_reboots_and_another_comes_after_it_to_the_same_server() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let sockets = [serve.socket("01:00.0")];
    let mut guest = Guest::boot("reboot", "q35", &sockets, &[]);
    guest.passes("reboot");
    // The second boot of the same QEMU, after a system reset of the guest's own.
    guest.passes("reboot");
    guest.ends();
    serve.until("detach");
    let held = eventually(|| simulator.held("01:00.0").2 == 0);
    assert!(held, "the memory of a guest that is gone is still mapped");
    let mut guest = Guest::boot("marker", "q35", &sockets, &["-no-reboot"]);
    guest.passes("marker");
    // And a system reset from outside.
    guest.ends();
    serve.until("detach");
    let mut guest = Guest::boot("stay", "q35", &sockets, &[]);
    guest.passes("stay");
    let mut monitor = Monitor::connect(&guest);
    monitor.command(&json!({ "execute": "system_reset" }));
    guest.passes("stay");
    monitor.command(&json!({ "execute": "quit" }));
    guest.ends();
    serve.until("detach");
    serve.stop();
    simulator.assert_released("01:00.0");
}

#[test]
fn a_device_is_unplugged_and_plugged_where_qemu_survives_it() {
    // QEMU 11.1 itself aborts when a function with MSI-X is unplugged; this one has MSI only.
    let simulator = Simulator::start(&["--device=01:00.0=probe,vectors=0"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let socket = serve.socket("01:00.0");
    let mut guest = Guest::boot("stay", "pc", std::slice::from_ref(&socket), &["-no-reboot"]);
    guest.passes("stay");
    let mut monitor = Monitor::connect(&guest);
    monitor.command(&json!({ "execute": "device_del", "arguments": { "id": "function0" } }));
    monitor.event("DEVICE_DELETED");
    serve.until("detach");
    assert!(eventually(|| simulator.held("01:00.0").2 == 0));
    monitor.command(&json!({ "execute": "device_add", "arguments": device(&socket, 1) }));
    serve.until("attach");
    assert!(eventually(|| simulator.held("01:00.0").2 > 0), "its memory is not mapped again");
    monitor.command(&json!({ "execute": "quit" }));
    guest.ends();
    serve.until("detach");
    serve.stop();
}

/// Starts `cargo xtask guest` with what was prepared, and a folder for temporary files of its own.
fn interactive(folder: &Path) -> Command {
    let mut command = Command::new(program("xtask"));
    command.arg("guest").env("CORDON_GUEST_DIR", prepared()).env("CORDON_BIN_DIR", bin_dir());
    // QEMU's monitor is on its standard input, which must not end.
    command.env("TMPDIR", folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    end_by_hangup(&mut command);
    command
}

#[test]
fn an_interactive_guest_that_is_interrupted_at_any_moment_leaves_nothing() {
    let moments = [0, 3, 10, 20, 40, 70, 100, 150, 250, 400, 800, 1500];
    let signals = [(Signal::TERM, 15), (Signal::HUP, 1), (Signal::INT, 2)];
    let mut started = 0;
    for (at, ms) in moments.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (with, number) = signals[at % signals.len()];
        let mut child = interactive(folder.path()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        started += usize::from(processes_of(folder.path()).len() > 3);
        signal(child.id(), with);
        let when = format!("{with:?} after {ms} ms");
        let ended = eventually(|| child.try_wait().unwrap().is_some());
        assert!(ended, "{when}: {:?}", processes_of(folder.path()));
        let status = child.wait().unwrap();
        let by_it = status.code() == Some(128 + number) || status.signal() == Some(number);
        assert!(by_it, "{when}: {status}");
        let gone = eventually(|| processes_of(folder.path()).is_empty());
        assert!(gone, "{when}: {:?}", processes_of(folder.path()));
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{when}: {left:?}");
    }
    // Some of it was while everything ran.
    assert!(started >= 2, "{started}");
}

#[test]
fn an_interactive_guest_that_ends_by_itself_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = interactive(folder.path()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = output.by_ref().map_while(Result::ok).find(|line| line.contains("PCI functions:"));
    assert!(found.is_some(), "the guest did not boot");
    child.stdin.as_mut().unwrap().write_all(b"poweroff -f\n").unwrap();
    output.map_while(Result::ok).for_each(drop);
    assert!(child.wait().unwrap().success());
    assert!(eventually(|| processes_of(folder.path()).is_empty()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
