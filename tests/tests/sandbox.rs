//! The sandbox, from inside and from outside: forbidden things are refused, a running function
//! process holds what it should and nothing else, a missing layer stops it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::Command;

use cordon_cli::selftest::{self, Outcome};
use cordon_tests::{Simulator, Vmm, address, announce, bin_dir, config, program};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use ipc::Event;
use ipc::wire::function::InterruptIndex;

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
    let killed = attempts.iter().filter(|one| one.outcome == Outcome::Killed).count();
    assert!(killed + 1 >= attempts.len(), "the filter's answer is death, not an error");
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
    // 0 and 1 lead nowhere, 2 is the VMM side's pipe; tube and dext; completion and four vectors.
    assert_eq!(count(&open, "/dev/null"), 2, "{open:?}");
    assert_eq!(count(&open, "pipe:"), 1, "{open:?}");
    assert_eq!(count(&open, "socket:"), 2, "{open:?}");
    assert_eq!(count(&open, "anon_inode:[eventfd]"), 1 + 4, "{open:?}");
    assert_eq!(open.len(), 10, "{open:?}");
    // Three BARs and the interrupt page; no guest memory.
    let shared = |name: &str| maps.iter().filter(|map| map.contains(name)).count();
    assert_eq!(shared("/memfd:bar"), 3, "{maps:#?}");
    assert_eq!(shared("/memfd:dext-interrupts"), 1);
    assert_eq!(shared("guest-ram"), 0);
    assert_no_executable_memory_of_its_own(&maps);

    probe.set_interrupts(InterruptIndex::Msix, InterruptSetup::Disable).unwrap();
    assert_eq!(inventory(function).0.len(), 6, "signallers that were taken back are closed");

    let (open, maps) = inventory(connection);
    // One dext connection for each function of the device; guest RAM.
    assert_eq!(count(&open, "socket:"), 3, "{open:?}");
    assert_eq!(count(&open, "anon_inode:[eventfd]"), 2, "{open:?}");
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
        let names: Vec<&str> = report.layers.iter().map(|layer| layer.name.as_str()).collect();
        for layer in ["user namespace", "pid namespace", "empty root", "landlock", "seccomp"] {
            assert!(names.contains(&layer), "{names:?}");
        }
    }
    assert!(probe.sandbox().syscalls <= 24);
}
