//! The sandbox, from inside and from outside: forbidden things are refused, a running function
//! process holds what it should and nothing else, a missing layer stops it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::Command;

use cordon_cli::selftest::{self, Outcome};
use cordon_tests::{Simulator, Vmm, address, announce, bin_dir, config, program, write_script};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use ipc::wire::function::InterruptIndex;
use ipc::wire::sandbox::{LayerKind, LayerState};
use ipc::{Event, SharedMemory};

#[test]
fn at_least_25_forbidden_things_are_refused_in_each_role() {
    let simulator = Simulator::usual();
    let config = config(&simulator);
    let probe = program("sandbox-probe");
    let attempts =
        selftest::run(&config, &probe, address("01:00.0"), |_| ControlFlow::Continue(())).unwrap();
    for role in ["function", "connection"] {
        let of_role: Vec<_> = attempts.iter().filter(|attempt| attempt.role == role).collect();
        let holes: Vec<_> = of_role.iter().filter(|attempt| !attempt.outcome.held()).collect();
        assert!(holes.is_empty(), "{holes:?}");
        announce(&format!("sandbox: {} things tried as {role}, all refused", of_role.len()));
        assert!(of_role.len() >= 25);
    }
    // The filter's answer is death, not an error. A limit's is an error, and a descriptor that nobody
    // asked for is the receiver's to see.
    for attempt in &attempts {
        let expected = match attempt.name.as_str() {
            name if name.starts_with("too-m") => Outcome::Refused,
            "send-descriptor" if attempt.role == "connection" => Outcome::EndedByReceiver,
            _ => Outcome::Killed,
        };
        assert_eq!(attempt.outcome, expected, "{} as {}", attempt.name, attempt.role);
    }
    simulator.assert_released("01:00.0");
}

#[test]
fn the_attempts_work_where_nothing_confines_them() {
    const SUCCEEDED: i32 = 99;
    let unconfined = |attempt: &str| {
        let victim = format!("--victim={}", std::process::id());
        let attempt = format!("--attempt={attempt}");
        let probe = program("sandbox-probe");
        Command::new(probe).args(["unconfined", &attempt, &victim]).status().unwrap().code()
    };
    for attempt in [
        "open-file",
        "open-root-directory",
        "read-proc-self",
        "second-dext-connection",
        "socket-inet",
        "socketpair",
        "fork",
        "signal-parent",
        "map-executable",
        "map-read-execute",
        "protect-executable",
        "memfd",
        "pidfd",
        "listen-for-file-changes",
        "host-name",
        "become-dumpable",
        "other-architecture",
        "map-shared-anonymous",
        "map-growing-down",
        "map-at-an-address",
        "map-over-itself",
        "map-without-reserve",
        "map-populated",
        "map-no-access",
        "map-a-private-copy",
        "map-shared-and-populated",
        "remap-to-an-address",
        "remap-and-keep",
        "remap-a-second-time",
        "too-much-private-memory",
        "too-much-heap",
        "too-much-guest-memory",
        "too-many-page-tables",
    ] {
        assert_eq!(unconfined(attempt), Some(SUCCEEDED), "{attempt}");
    }
    // Running another program succeeds by not coming back.
    assert_eq!(unconfined("exec"), Some(0));
    assert_eq!(unconfined("no-such-attempt"), Some(4));
}

/// What /proc shows of a process: descriptors by number, and mappings.
fn inventory(pid: u32) -> (BTreeMap<u32, String>, Vec<String>) {
    let mut open = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        open.insert(number, std::fs::read_link(&path).unwrap().display().to_string());
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    (open, maps.lines().map(str::to_owned).collect())
}

fn count(open: &BTreeMap<u32, String>, prefix: &str) -> usize {
    open.values().filter(|target| target.starts_with(prefix)).count()
}

/// A process that says that it is confined, and of which the system says otherwise.
struct Doubted(Box<dyn cordon_vmm::child::Process>);

impl std::os::fd::AsFd for Doubted {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl cordon_vmm::child::Process for Doubted {
    fn pid(&self) -> u32 {
        self.0.pid()
    }
    fn kill(&self) {
        self.0.kill();
    }
    fn suspend(&self) {
        self.0.suspend();
    }
    fn is_suspended(&self) -> bool {
        self.0.is_suspended()
    }
    fn confinement(&self) -> Result<(), String> {
        Err("process-fork is answered with -1".to_owned())
    }
    fn reap(&self) -> cordon_vmm::child::ExitStatus {
        self.0.reap()
    }
}

#[derive(Debug)]
struct Doubting;

impl cordon_vmm::child::Launch for Doubting {
    fn launch(
        &self,
        start: &cordon_vmm::child::Start<'_>,
    ) -> Result<Box<dyn cordon_vmm::child::Process>, cordon_vmm::child::LaunchError> {
        cordon_vmm::child::Processes.launch(start).map(|process| Box::new(Doubted(process)) as _)
    }

    fn prepare_thread(&self) {
        cordon_vmm::child::Processes.prepare_thread();
    }
}

#[test]
fn a_process_of_which_the_system_does_not_say_that_it_is_confined_is_not_trusted() {
    let simulator = Simulator::usual();
    let config =
        |strict| config(&simulator).with_strict(strict).with_launch(std::sync::Arc::new(Doubting));
    let vmm = Vmm::new(config(true), DmaMode::Direct);
    let error =
        vmm.host.attach(address("01:00.1"), &vmm.container, None).err().unwrap().to_string();
    assert!(error.contains("process-fork is answered with -1"), "{error}");
    let vmm = Vmm::new(config(false), DmaMode::Direct);
    let mut ids = [0; 2];
    vmm.attach("01:00.1").config_read_or_ones(0, &mut ids);
    assert_ne!(ids, [0xff; 2]);
}

/// Descriptors of an event whose both ends are held: a pipe has two.
const OWN_EVENT: usize = if cfg!(cordon_portable) { 2 } else { 1 };

/// Ends of events, and the pipe that standard error is.
fn events_and_pipes(open: &BTreeMap<u32, String>) -> usize {
    let pipes = count(open, "pipe:");
    assert!(cfg!(cordon_portable) || pipes == 1, "{open:?}");
    pipes + count(open, "anon_inode:[eventfd]")
}

#[test]
fn a_running_process_holds_what_it_should_and_nothing_else() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let (function, connection) = (probe.pid(), probe.connection().pid());
    // Whoever made the user namespace may look into it, root or not, though the process is not
    // dumpable; nobody else may.
    let events: Vec<Event> = (0..4).map(|_| Event::new().unwrap()).collect();
    let signallers = events.iter().map(|event| Some(event.signaller().unwrap())).collect();
    let setup = InterruptSetup::Assign { start: 0, signallers };
    probe.set_interrupts(InterruptIndex::Msix, setup).unwrap();

    let (open, maps) = inventory(function);
    // 0 and 1 lead nowhere, 2 is the VMM side's pipe; tube and dext; completion and four vectors; what the
    // lane wakes it by, and what it wakes the caller of each slot by.
    let lane = 1 + ipc::lane::SLOTS;
    assert_eq!(count(&open, "/dev/null"), 2, "{open:?}");
    assert_eq!(count(&open, "socket:"), 2, "{open:?}");
    assert_eq!(events_and_pipes(&open), 1 + OWN_EVENT + 4 + lane, "{open:?}");
    assert_eq!(open.len(), 9 + OWN_EVENT + lane, "{open:?}");
    // Three BARs, the interrupt page and the lane; no guest memory.
    let shared = |name: &str| maps.iter().filter(|map| map.contains(name)).count();
    assert_eq!(shared("/memfd:bar"), 3, "{maps:#?}");
    assert_eq!(shared("/memfd:dext-interrupts"), 1);
    assert_eq!(shared("/memfd:cordon-lane"), 1);
    assert_eq!(shared("guest-ram"), 0);
    assert_no_executable_memory_of_its_own(&maps);

    probe.set_interrupts(InterruptIndex::Msix, InterruptSetup::Disable).unwrap();
    let left = inventory(function).0.len();
    assert_eq!(left, 5 + OWN_EVENT + lane, "signallers that were taken back are closed");

    let (open, maps) = inventory(connection);
    // One dext connection for each function of the device; guest RAM.
    assert_eq!(count(&open, "socket:"), 3, "{open:?}");
    assert_eq!(events_and_pipes(&open), 1 + 2 * OWN_EVENT, "{open:?}");
    assert_eq!(count(&open, "/memfd:guest-ram"), 1, "{open:?}");
    assert_eq!(maps.iter().filter(|map| map.contains("guest-ram")).count(), 1);
    assert_no_executable_memory_of_its_own(&maps);

    for pid in [function, connection] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()));
        assert_eq!(field("Threads"), "1");
        let root = std::fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count();
        assert_eq!(root, 0, "the root directory is empty");
        for namespace in ["user", "pid", "mnt", "net", "ipc", "uts"] {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
        }
    }
}

/// Executable mappings are files of the program and its libraries, and none is writable.
fn assert_no_executable_memory_of_its_own(maps: &[String]) {
    for map in maps {
        let mut fields = map.split_whitespace();
        let protection = fields.nth(1).unwrap();
        let executable = protection.as_bytes()[2] == b'x';
        let of_a_file = map.contains(" /") && !map.contains("memfd");
        let kernels = map.contains("[vdso]") || map.contains("[vsyscall]");
        assert!(
            !executable || ((of_a_file || kernels) && protection.as_bytes()[1] == b'-'),
            "{map}"
        );
    }
}

/// Runs `cordon` where user namespaces cannot be made.
fn without_namespaces(arguments: &str) -> (bool, String) {
    let _ = bin_dir();
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && exec {} {arguments}",
        program("cordon").display()
    );
    // unshare is part of Debian's base system (util-linux).
    let output =
        Command::new("unshare").args(["--user", "--map-root-user", "sh", "-c", &script]).output();
    let output = output.expect("unshare of the package util-linux");
    let all = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&all).into_owned())
}

#[test]
fn a_missing_layer_stops_a_strict_start_and_is_reported_by_a_relaxed_one() {
    let simulator = Simulator::usual();
    let dext = simulator.endpoint();
    let (ok, text) = without_namespaces(&format!("devices --dext {dext}"));
    assert!(!ok, "{text}");
    assert!(text.contains("namespace") && text.contains("--sandbox=relaxed"), "{text}");
    let relaxed = format!("inspect 01:00.0 --attach --dext {dext} --sandbox relaxed");
    let (ok, text) = without_namespaces(&relaxed);
    assert!(ok, "{text}");
    assert!(text.contains("MISSING: pid namespace"), "{text}");
    assert!(text.contains("seccomp            enforced"), "{text}");
    simulator.assert_released("01:00.0");
}

#[test]
fn what_is_enforced_travels_up() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    for report in [probe.sandbox(), probe.connection().sandbox()] {
        let kinds: Vec<LayerKind> = report.layers.iter().map(|layer| layer.kind).collect();
        for layer in [
            LayerKind::UserNamespace,
            LayerKind::PidNamespace,
            LayerKind::EmptyRoot,
            LayerKind::AddressSpace,
            LayerKind::Landlock,
            LayerKind::Seccomp,
        ] {
            assert!(kinds.contains(&layer), "{kinds:?}");
        }
    }
    assert!(probe.sandbox().syscalls <= 24);
}

#[test]
fn limits_are_set_for_good_and_a_function_process_has_no_room_for_guest_memory() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let limits = |pid: u32| -> BTreeMap<String, [u64; 2]> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let number = |field: &str| field.trim().parse().unwrap_or(u64::MAX);
        // Columns of a fixed width: name, soft, hard.
        let line = |line: &str| {
            (line[..26].trim().to_owned(), [number(&line[26..47]), number(&line[47..68])])
        };
        text.lines().skip(1).map(line).collect()
    };
    let (function, connection) = (limits(probe.pid()), limits(probe.connection().pid()));
    for (name, most) in [("Max data size", 32 << 20), ("Max stack size", 8 << 20)] {
        assert_eq!(function[name], [most; 2], "{name}");
    }
    for name in ["Max processes", "Max file size", "Max locked memory", "Max core file size"] {
        assert_eq!((function[name], connection[name]), ([0; 2], [0; 2]), "{name}");
    }
    // What it had when it confined itself, BARs included, and 40 MiB; a few for what there was.
    let [soft, hard] = function["Max address space"];
    assert!(soft == hard && hard > 40 << 20 && hard < 64 << 20, "{soft} {hard}");
    // A connection process maps guest memory, of which there may be as much as the machine has.
    let [soft, hard] = connection["Max address space"];
    assert!(soft == hard && hard > 1 << 30 && hard < u64::MAX, "{soft} {hard}");
}

#[test]
fn guest_memory_over_the_budget_is_refused_and_hurts_nobody() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device-proc");
    let script = format!(
        "#!/bin/sh\nif [ $1 = connection ]; then set -- \"$@\" --guest-memory=8388608; fi\nexec {} \"$@\"",
        program("device-proc").display()
    );
    write_script(&path, &script);
    let mut config = config(&simulator);
    config.device_proc = path;
    let vmm = Vmm::new(config, DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let plug = |size| {
        let memory = SharedMemory::create("plugged", size).unwrap();
        let region = GuestRegion {
            iova: 0x1_0000_0000,
            size,
            memory: memory.into(),
            offset: 0,
            writable: true,
        };
        vmm.container.map(region)
    };
    let refused = plug(1 << 30).unwrap_err().to_string();
    assert!(refused.contains("more than this process was started for"), "{refused}");
    // The same process takes what it was started for, and the device goes on.
    let before = probe.connection().pid();
    plug(1 << 20).unwrap();
    probe.config_read(0, &mut [0; 4]).unwrap();
    assert_eq!(probe.connection().pid(), before);
}

#[test]
fn a_control_group_is_reported_as_it_is_and_not_left() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let report = probe.sandbox();
    let layer = report.layers.iter().find(|layer| layer.kind == LayerKind::ControlGroup).unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", probe.pid())).unwrap();
    let own = groups.lines().find(|line| line.starts_with("0::") && line.contains("/cordon-"));
    // Whether one can be made is the machine's to say; what is said of it must be so.
    match &layer.state {
        LayerState::Enforced(said) => {
            assert!(said.starts_with("256 MiB") && said.ends_with("1 process"), "{said}");
            assert!(own.is_some(), "{groups}");
        }
        LayerState::Partial(_) => assert_eq!(own, None, "{groups}"),
        LayerState::Missing(why) => panic!("it is not required: {why}"),
    }
    announce(&format!("sandbox: control group: {:?}", layer.state));
    let path = own.and_then(|own| own.strip_prefix("0::")).map(str::to_owned);
    drop(probe);
    drop(vmm);
    if let Some(path) = path {
        assert!(!std::path::Path::new("/sys/fs/cgroup").join(&path[1..]).exists(), "{path}");
    }
}

/// Namespaces of processes are links that say which one it is.
fn network_of(pid: u32) -> (std::path::PathBuf, String) {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    (link, std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap())
}

#[test]
fn no_process_is_in_a_network_whether_it_or_its_keeper_left_it() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(
        config(&simulator).with_recovery(cordon_vmm::Recovery::default()),
        DmaMode::Direct,
    );
    let function = vmm.attach("01:00.1");
    let (own, _) = network_of(std::process::id());
    let mut seen = Vec::new();
    for _ in 0..3 {
        for pid in [function.pid(), function.connection().pid()] {
            let (network, devices) = network_of(pid);
            assert_ne!(network, own);
            let devices: Vec<&str> = devices.lines().skip(2).collect();
            assert!(matches!(devices[..], [one] if one.trim().starts_with("lo:")), "{devices:?}");
            seen.push(network);
        }
        let before = function.replacements();
        cordon_tests::signal(function.pid(), rustix::process::Signal::KILL);
        assert!(cordon_tests::eventually(|| function.replacements() > before));
    }
    let mut layers = function.sandbox().layers.into_iter();
    let layer = layers.find(|layer| layer.kind == LayerKind::NetworkNamespace).unwrap();
    let LayerState::Enforced(said) = layer.state else { panic!("{layer:?}") };
    seen.sort_unstable();
    seen.dedup();
    // One for each keeper where it may make one, otherwise one for each process.
    match said.as_str() {
        "of its kind, empty" => assert_eq!(seen.len(), 2),
        "own, empty" => assert_eq!(seen.len(), 4),
        other => panic!("{other}"),
    }
}
