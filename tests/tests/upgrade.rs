//! Another `device-proc` for functions that are attached: callers notice nothing, and a program that is no
//! good changes nothing.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cordon_tests::{
    SetAtEnd, Simulator, Vmm, announce, children, config, copy_program, eventually, fire,
    is_running, program, signal, write_script,
};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::faults::{FaultPlan, Faults};
use cordon_vmm::{
    DmaMode, Function, HostConfig, HostUpgradeError, PassthroughDevice as _, Presence, Recovery,
    UpgradeError,
};
use ipc::wire::function::InterruptIndex;
use ipc::{Deadline, Event};
use rustix::process::Signal;

struct Setup {
    simulator: Simulator,
    folder: tempfile::TempDir,
    vmm: Vmm,
}

impl Setup {
    fn new(change: impl FnOnce(HostConfig) -> HostConfig) -> Self {
        let simulator = Simulator::usual();
        let folder = tempfile::tempdir().unwrap();
        let config = config(&simulator).with_recovery(Recovery::default());
        let setup = Self { vmm: Vmm::new(change(config), DmaMode::Direct), simulator, folder };
        for build in ["old", "new"] {
            std::fs::create_dir(setup.folder.path().join(build)).unwrap();
            for name in ["device-proc", "faulty-device-proc"] {
                copy_program(name, &setup.folder.path().join(build).join(name));
            }
        }
        setup
    }

    /// The `device-proc` of a build.
    fn build(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("device-proc")
    }

    /// A program that is no good: a script, which gets the arguments of a `device-proc`.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        write_script(&path, &format!("#!/bin/sh\n{text}\n"));
        path
    }

    /// The processes that run for it: their command lines name its dext.
    fn processes(&self) -> Vec<u32> {
        let dext = self.simulator.socket().display().to_string();
        let is_ours = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&dext)
        };
        let all = children(std::process::id()).into_iter();
        all.filter(|pid| *pid != self.simulator.pid() && is_running(*pid)).filter(is_ours).collect()
    }

    fn attach_both(&self) -> [Arc<Function>; 2] {
        ["01:00.0", "01:00.1"].map(|address| self.vmm.attach(address))
    }

    /// That an upgrade to `program` is refused for `function`; why.
    fn refused(&self, program: &Path, function: &str) -> UpgradeError {
        match self.vmm.host.upgrade(program).unwrap_err() {
            HostUpgradeError::Function { address, error } => {
                assert_eq!(address.to_string(), function, "{error}");
                error
            }
            other => panic!("{other}"),
        }
    }
}

fn deadlines(start: Duration) -> impl FnOnce(HostConfig) -> HostConfig {
    move |mut config| {
        config.deadlines.start = start;
        config
    }
}

/// The program that a process runs.
fn runs(pid: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// Writes and reads back through trapped accesses until it is told to end; how long the longest one took.
fn work(probe: &Function, ended: &AtomicBool) -> (u64, Duration) {
    let (mut number, mut longest) = (0u64, Duration::ZERO);
    while !ended.load(Ordering::Relaxed) {
        number += 1;
        let begun = Instant::now();
        let mut bytes = [0; 8];
        probe.bar_write(2, 0x100, &number.to_le_bytes()).unwrap();
        probe.bar_read(2, 0x100, &mut bytes).unwrap();
        longest = longest.max(begun.elapsed());
        assert_eq!(u64::from_le_bytes(bytes), number);
    }
    (number, longest)
}

fn comes(event: &Event) -> bool {
    event.wait(Deadline::after(Duration::from_secs(5))).unwrap()
}

#[test]
fn fifty_upgrades_between_two_builds_are_invisible_to_callers() {
    let setup = Setup::new(|config| config);
    let [nvme, probe] = setup.attach_both();
    let registers = probe.windows().unwrap()[0].map().unwrap();
    let event = Event::new().unwrap();
    let signallers = vec![Some(event.signaller().unwrap())];
    let assign = InterruptSetup::Assign { start: 0, signallers };
    probe.set_interrupts(InterruptIndex::Msix, assign).unwrap();
    let (connection, ended) = (probe.connection().pid(), AtomicBool::new(false));
    let mut took = Vec::new();
    let (accesses, longest) = std::thread::scope(|scope| {
        let ends = SetAtEnd(&ended);
        let worker = scope.spawn(|| work(&probe, &ended));
        for round in 0..50u32 {
            let build = setup.build(if round % 2 == 0 { "new" } else { "old" });
            let upgraded = setup.vmm.host.upgrade(&build).unwrap();
            assert_eq!(upgraded.len(), 2);
            took.extend(upgraded.iter().map(|one| one.took));
            for (function, one) in [(&nvme, upgraded[0]), (&probe, upgraded[1])] {
                assert_eq!((function.address(), function.pid()), (one.address, one.pid));
                assert_eq!(runs(one.pid), build);
            }
            // Each vector in use is signalled once, since one may have been lost.
            assert!(comes(&event));
            fire(&registers, 0, 1, round + 1);
            assert!(comes(&event));
        }
        drop(ends);
        worker.join().unwrap()
    });
    for function in [&nvme, &probe] {
        assert_eq!((function.upgrades(), function.replacements(), function.returns()), (50, 0, 0));
    }
    assert_eq!(probe.connection().pid(), connection);
    assert_eq!(setup.processes().len(), 3, "one connection process and two function processes");
    took.sort_unstable();
    announce(&format!(
        "upgrade: {:?} median, {:?} at most, of {} take-overs; the longest of {accesses} accesses \
         meanwhile took {longest:?}",
        took[took.len() / 2],
        took[took.len() - 1],
        took.len()
    ));
    for (function, address) in [(nvme, "01:00.0"), (probe, "01:00.1")] {
        setup.vmm.host.detach(&function);
        setup.simulator.assert_released(address);
    }
}

#[test]
fn a_program_that_is_no_good_changes_nothing() {
    let setup = Setup::new(deadlines(Duration::from_millis(1500)));
    let [nvme, probe] = setup.attach_both();
    let before = [nvme.pid(), probe.pid()];
    let hostile = program("hostile-child");
    let as_other = |name: &str| {
        let line = format!("exec {} \"$@\" --behave={name}", hostile.display());
        setup.script(name, &line)
    };
    for (path, says) in [
        (setup.folder.path().join("missing"), "No such file"),
        (setup.folder.path().to_owned(), "Cannot run"),
        (setup.script("ends", "echo 'so it is' >&2; exit 3"), "so it is"),
        (as_other("say-nothing"), "did not become ready in time"),
        (as_other("wrong-version"), "versions 8 to 9"),
        (as_other("wrong-magic"), "magic"),
        (as_other("wrong-role"), "Lister"),
        (as_other("refuse"), "for you"),
    ] {
        let error = setup.refused(&path, "01:00.0");
        assert!(matches!(error, UpgradeError::NotStarted(_)), "{error:?}");
        assert!(error.to_string().contains(says), "'{says}' is not in: {error}");
    }
    // What else would be served through it: another device.
    let other = as_other("ready");
    assert!(matches!(setup.refused(&other, "01:00.0"), UpgradeError::OtherDevice));
    assert_eq!([nvme.pid(), probe.pid()], before);
    assert_eq!([nvme.upgrades(), probe.upgrades()], [0, 0]);
    assert!(eventually(|| setup.processes().len() == 3), "{:?}", setup.processes());
    // Neither does it for whatever dies later.
    signal(probe.pid(), Signal::KILL);
    assert!(eventually(|| probe.replacements() == 1));
    assert_eq!(runs(probe.pid()), program("device-proc"));
}

#[test]
fn a_program_is_used_for_all_functions_or_for_none() {
    let setup = Setup::new(|config| config);
    let [nvme, probe] = setup.attach_both();
    let before = [nvme.pid(), probe.pid()];
    let picky = setup.script(
        "picky",
        &format!(
            "case \"$*\" in *--address=01:00.1*) exit 3;; esac; exec {} \"$@\"",
            setup.build("new").display()
        ),
    );
    assert!(matches!(setup.refused(&picky, "01:00.1"), UpgradeError::NotStarted(_)));
    assert_eq!([nvme.pid(), probe.pid()], before);
    assert!(eventually(|| setup.processes().len() == 3), "{:?}", setup.processes());
}

#[test]
fn a_death_while_a_program_hangs_is_recovered_from_by_the_former_one() {
    let setup = Setup::new(|config| config);
    let probe = setup.vmm.attach("01:00.1");
    let hangs = format!("exec {} \"$@\" --behave=say-nothing", program("hostile-child").display());
    let hangs = setup.script("hangs", &hangs);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&ended);
        let (probe, ended) = (&probe, &ended);
        let upgrade = scope.spawn(|| setup.refused(&hangs, "01:00.1"));
        let worker = scope.spawn(|| work(probe, ended));
        std::thread::sleep(Duration::from_millis(300));
        for death in 1..=5 {
            signal(probe.pid(), Signal::KILL);
            assert!(eventually(|| probe.replacements() == death));
        }
        assert!(!upgrade.is_finished(), "the program hangs for 5 s");
        assert!(matches!(upgrade.join().unwrap(), UpgradeError::NotStarted(_)));
        drop(ends);
        worker.join().unwrap();
    });
    assert_eq!(runs(probe.pid()), program("device-proc"));
}

#[test]
fn kills_at_any_moment_of_an_upgrade_are_survived() {
    let setup = Setup::new(|mut config| {
        config.recovery.max_deaths = 10_000;
        config
    });
    let probe = setup.vmm.attach("01:00.1");
    let ended = AtomicBool::new(false);
    let (mut upgraded, mut refused, mut kills) = (0, 0, 0u64);
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&ended);
        let (setup, probe, ended) = (&setup, &probe, &ended);
        let worker = scope.spawn(|| work(probe, ended));
        let killer = scope.spawn(|| {
            // All of them: the one that serves, the one that is prepared.
            let (connection, mut kills, mut pause) = (probe.connection().pid(), 0u64, 0);
            while !ended.load(Ordering::Relaxed) {
                pause = (pause + 1700) % 23_000;
                std::thread::sleep(Duration::from_micros(pause));
                for pid in setup.processes().into_iter().filter(|pid| *pid != connection) {
                    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    kills += u64::from(rustix::process::kill_process(pid, Signal::KILL).is_ok());
                }
            }
            kills
        });
        for round in 0..40 {
            let build = setup.build(if round % 2 == 0 { "new" } else { "old" });
            match setup.vmm.host.upgrade(&build) {
                Ok(_) => upgraded += 1,
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.starts_with("Function 01:00.1 cannot be served"), "{said}");
                    refused += 1;
                }
            }
            assert!(matches!(probe.presence(), Presence::Present), "{:?}", probe.death());
        }
        drop(ends);
        worker.join().unwrap();
        kills = killer.join().unwrap();
    });
    announce(&format!("upgrade: {upgraded} done and {refused} undone under {kills} kills"));
    assert!(kills > 0 && upgraded + refused == 40);
    setup.vmm.host.upgrade(&setup.build("new")).unwrap();
    assert_eq!(runs(probe.pid()), setup.build("new"));
    assert!(eventually(|| setup.processes().len() == 2), "{:?}", setup.processes());
}

#[test]
fn one_that_cannot_take_over_is_rolled_back_for_all() {
    let faults = Faults::new(FaultPlan::default()).unwrap();
    let plan = Arc::clone(&faults);
    let setup = Setup::new(|config| config.with_faults(Some(plan)));
    let [nvme, probe] = setup.attach_both();
    // The first function has taken over by then.
    faults.add("function,device=01:00.1,request=TakeOver,kill".parse().unwrap()).unwrap();
    let error = setup.refused(&setup.build("new"), "01:00.1");
    assert!(matches!(error, UpgradeError::RolledBack(_)), "{error:?}");
    let former = program("faulty-device-proc");
    for function in [&nvme, &probe] {
        assert_eq!(runs(function.pid()), former);
        let mut id = [0; 2];
        function.config_read(0, &mut id).unwrap();
        assert_ne!(id, [0xff; 2]);
    }
    assert_eq!((nvme.upgrades(), probe.upgrades(), probe.replacements()), (2, 0, 1));
    assert!(eventually(|| setup.processes().len() == 3), "{:?}", setup.processes());
}

#[test]
fn an_order_that_comes_too_late_is_not_carried_out() {
    let faults = Faults::new(FaultPlan::default()).unwrap();
    let plan = Arc::clone(&faults);
    let setup = Setup::new(|config| {
        let mut config = config.with_faults(Some(plan));
        config.recovery.timeout = Duration::from_secs(1);
        config
    });
    let [nvme, probe] = setup.attach_both();
    let (former, before) = (nvme.pid(), probe.pid());
    // The first function takes over for long enough that the other one's process can die meanwhile, and be
    // replaced for longer than an upgrade waits.
    let slow = "function,device=01:00.0,request=TakeOver,when=before,delay=300";
    faults.add(slow.parse().unwrap()).unwrap();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| setup.refused(&setup.build("new"), "01:00.1"));
        assert!(eventually(|| !is_running(former)));
        let slower = "function,device=01:00.1,request=Start,when=before,delay=4200";
        faults.add(slower.parse().unwrap()).unwrap();
        signal(before, Signal::KILL);
        let error = refused.join().unwrap();
        assert!(matches!(error, UpgradeError::Overdue), "{error:?}");
    });
    assert_eq!((nvme.upgrades(), probe.upgrades(), probe.replacements()), (2, 0, 0));
    // The thread sees the order as soon as it has replaced the process; the prepared process ends then.
    let until = Instant::now() + Duration::from_secs(30);
    while probe.replacements() == 0 || setup.processes().len() != 3 {
        assert!(Instant::now() < until, "{:?}", setup.processes());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((probe.upgrades(), probe.replacements()), (0, 1));
    for function in [&nvme, &probe] {
        assert_eq!(runs(function.pid()), program("faulty-device-proc"));
    }
    let upgraded = setup.vmm.host.upgrade(&setup.build("new")).unwrap();
    assert_eq!(upgraded.len(), 2);
}

#[test]
fn a_standby_is_of_the_program_that_serves() {
    let setup = Setup::new(|mut config| {
        config.recovery.standby = true;
        config
    });
    let probe = setup.vmm.attach("01:00.1");
    assert!(eventually(|| probe.has_standby()));
    setup.vmm.host.upgrade(&setup.build("new")).unwrap();
    assert!(eventually(|| probe.has_standby()));
    signal(probe.pid(), Signal::KILL);
    assert!(eventually(|| probe.replacements() == 1));
    assert_eq!(runs(probe.pid()), setup.build("new"));
}

#[test]
fn what_is_attached_later_is_served_by_the_other_program() {
    let setup = Setup::new(|config| config);
    let error = setup.vmm.host.upgrade(&setup.folder.path().join("missing")).unwrap_err();
    assert!(matches!(error, HostUpgradeError::NotStarted(_)), "{error}");
    assert!(setup.vmm.host.upgrade(&setup.build("new")).unwrap().is_empty());
    let probe = setup.vmm.attach("01:00.1");
    for pid in [probe.pid(), probe.connection().pid()] {
        assert_eq!(runs(pid), setup.build("new"));
    }
}

#[test]
fn nobody_is_upgraded_whose_device_is_away_or_who_is_not_recovered() {
    let setup = Setup::new(|config| config);
    let probe = setup.vmm.attach("01:00.1");
    signal(probe.connection().pid(), Signal::KILL);
    assert!(eventually(|| !matches!(probe.presence(), Presence::Present)));
    match setup.vmm.host.upgrade(&setup.build("new")) {
        // It may have been back by then.
        Ok(_) => {}
        Err(error) => assert!(error.to_string().contains("nobody serves it"), "{error}"),
    }
    assert!(eventually(|| probe.returns() == 1));
    setup.vmm.host.upgrade(&setup.build("old")).unwrap();
    assert_eq!(runs(probe.pid()), setup.build("old"));

    let setup = Setup::new(|config| config.with_recovery(Recovery::OFF));
    let probe = setup.vmm.attach("01:00.1");
    let pid = probe.pid();
    let error = setup.refused(&setup.build("new"), "01:00.1");
    assert!(matches!(error, UpgradeError::NoRecovery));
    assert_eq!(probe.pid(), pid);
}
