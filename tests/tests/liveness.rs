//! Nobody waits for a process that does not answer: it is noticed without any request, callers have
//! deadlines of their own, and detaching goes through with whatever is stopped.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use cordon_tests::{
    Simulator, Vmm, address, announce, config, eventually, is_running, program, signal,
};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::faults::{Fault, FaultPlan, Faults, Point, Target, What};
use cordon_vmm::{
    Access, AttachError, Container, Deadline, DmaMode, ErrorKind, Function, HostConfig,
    PassthroughDevice as _, Presence, Recovery, SharedMemory, Space,
};
use rustix::process::Signal;

fn recovering(simulator: &Simulator) -> HostConfig {
    config(simulator).with_recovery(Recovery::default())
}

/// Waits until `condition` holds, for longer than a stop takes to be noticed; how long it took.
fn within(limit: Duration, condition: impl Fn() -> bool) -> Duration {
    let before = Instant::now();
    while !condition() {
        assert!(before.elapsed() < limit, "not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    before.elapsed()
}

fn identity(function: &Function) -> [u8; 4] {
    let mut bytes = [0; 4];
    function.bar_read(0, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_stopped_function_process_is_replaced_though_nobody_asks_it_anything() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(recovering(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let stopped = probe.pid();
    signal(stopped, Signal::STOP);
    let noticed = within(Duration::from_secs(5), || probe.replacements() > 0);
    assert!(!is_running(stopped));
    assert_eq!(&identity(&probe), b"PRBE");
    announce(&format!("a stop was noticed without a request after {noticed:?}"));
}

#[test]
fn a_stopped_standby_is_replaced_before_it_is_needed() {
    let simulator = Simulator::usual();
    let recovery = Recovery::default().with_standby(true);
    let vmm = Vmm::new(config(&simulator).with_recovery(recovery), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    assert!(eventually(|| probe.has_standby()));
    let ours = |pid: u32| vmm.host.process_name(pid).is_some() && pid != probe.pid();
    let standby = cordon_tests::children(std::process::id())
        .into_iter()
        .filter(|pid| ours(*pid) && *pid != probe.connection().pid())
        .collect::<Vec<_>>();
    let [standby] = standby[..] else { panic!("{standby:?}") };
    signal(standby, Signal::STOP);
    within(Duration::from_secs(5), || !is_running(standby));
    within(Duration::from_secs(5), || probe.has_standby());
    assert_eq!(probe.replacements(), 0);
}

#[test]
fn a_stopped_connection_process_is_noticed_and_the_device_comes_back() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(recovering(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    signal(probe.connection().pid(), Signal::STOP);
    let back = || probe.returns() > 0 && matches!(probe.presence(), Presence::Present);
    within(Duration::from_secs(6), back);
    assert_eq!(&identity(&probe), b"PRBE");
}

#[test]
fn a_quiet_process_is_left_in_peace() {
    let simulator = Simulator::usual();
    let mut config = recovering(&simulator);
    config.deadlines.silence = Duration::from_millis(50);
    config.deadlines.life = Duration::from_millis(1500);
    let vmm = Vmm::new(config, DmaMode::Direct);
    let (disk, probe) = (vmm.attach("01:00.0"), vmm.attach("01:00.1"));
    let before = [disk.pid(), probe.pid(), probe.connection().pid()];
    // Some twenty signs of life of each.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(before, [disk.pid(), probe.pid(), probe.connection().pid()]);
    assert_eq!(&identity(&probe), b"PRBE");
}

#[test]
fn a_caller_gives_up_at_its_own_deadline_and_the_answer_is_thrown_away() {
    let simulator = Simulator::usual();
    let faults = Faults::new(FaultPlan::default()).unwrap();
    let config = recovering(&simulator).with_faults(Some(Arc::clone(&faults)));
    let vmm = Vmm::new(config, DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    faults.add(Fault { when: Point::Before, ..fault(1, What::Stop) }).unwrap();
    let before = Instant::now();
    let read = Access::read(Space::Bar(0), 0, 4);
    let late = probe.access(read, Deadline::after(Duration::from_millis(300))).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    // Who comes after it is answered by another process, with its own answer.
    let mut word = [0; 4];
    probe.bar_read(0, 0x08, &mut word).unwrap();
    assert_ne!(&word, b"PRBE");
    assert_eq!(&identity(&probe), b"PRBE");
    assert_eq!(probe.replacements(), 1);
}

fn fault(nth: u64, what: What) -> Fault {
    let request = Some("BarRead".to_owned());
    let (device, when) = (None, Point::During);
    Fault { process: Target::Function, device, request, nth, when, after_ms: 0, what }
}

#[test]
fn a_request_that_ends_two_processes_is_not_sent_to_a_third() {
    let simulator = Simulator::usual();
    for what in [What::Garbage, What::Truncated] {
        let faults = Faults::new(FaultPlan { faults: vec![fault(1, what), fault(2, what)] });
        let config = recovering(&simulator).with_faults(Some(faults.unwrap()));
        let vmm = Vmm::new(config, DmaMode::Direct);
        let probe = vmm.attach("01:00.1");
        let error = probe.bar_read(0, 0, &mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        let said = error.to_string();
        assert!(said.contains("BarRead ended the process") && said.contains("twice"), "{said}");
        // The next request finds a process of its own.
        assert_eq!(&identity(&probe), b"PRBE");
        assert_eq!(probe.replacements(), 2);
        vmm.host.detach(&probe);
    }
}

#[test]
fn a_kill_does_not_count_against_the_request_however_often_it_comes() {
    let simulator = Simulator::usual();
    // Before the request, so that none of them can be answered first.
    let kills = (1..=6).map(|nth| Fault {
        when: Point::Before,
        ..fault(nth, if nth % 3 == 0 { What::Stop } else { What::Kill })
    });
    let faults = Faults::new(FaultPlan { faults: kills.collect() }).unwrap();
    let mut config = recovering(&simulator).with_faults(Some(faults));
    config.deadlines.call = Duration::from_millis(300);
    let vmm = Vmm::new(config, DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    assert_eq!(&identity(&probe), b"PRBE");
    assert_eq!(probe.replacements(), 6);
}

#[test]
fn detaching_answers_whoever_waits_and_whoever_comes_later_at_once() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(recovering(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    signal(probe.pid(), Signal::STOP);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| probe.bar_read(0, 0, &mut [0; 4]).unwrap_err());
        // Until it is under way: nothing tells, and a moment later is as good.
        std::thread::sleep(Duration::from_millis(100));
        let before = Instant::now();
        vmm.host.detach(&probe);
        let error = waits.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
        assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    });
    let before = Instant::now();
    let error = probe.bar_read(0, 0, &mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert!(before.elapsed() < Duration::from_millis(100), "{:?}", before.elapsed());
}

#[test]
fn detaching_takes_at_most_a_second_whatever_is_stopped() {
    for stopped in ["nothing", "function", "connection", "both", "dext"] {
        let simulator = Simulator::usual();
        let vmm = Vmm::new(recovering(&simulator), DmaMode::Direct);
        let probe = vmm.attach("01:00.1");
        let pids = [probe.pid(), probe.connection().pid()];
        let victims = match stopped {
            "function" => vec![pids[0]],
            "connection" => vec![pids[1]],
            "both" => pids.to_vec(),
            "dext" => vec![simulator.pid()],
            _ => Vec::new(),
        };
        for victim in victims {
            signal(victim, Signal::STOP);
        }
        let before = Instant::now();
        vmm.host.detach(&probe);
        // A second more than is promised, for machines that are busy with other suites.
        assert!(before.elapsed() < Duration::from_secs(2), "{stopped}: {:?}", before.elapsed());
        assert!(pids.iter().all(|pid| !is_running(*pid)), "{stopped}");
        signal(simulator.pid(), Signal::CONT);
        simulator.assert_released("01:00.1");
    }
}

#[test]
fn attaching_waits_for_a_dext_that_still_cleans_up() {
    let simulator = Simulator::start(&["--device=01:00.1=probe", "--fault=cleanup-delay:ms=100"]);
    let vmm = Vmm::new(recovering(&simulator), DmaMode::Direct);
    for _ in 0..10 {
        let probe = vmm.attach("01:00.1");
        assert_eq!(&identity(&probe), b"PRBE");
        vmm.host.detach(&probe);
    }
}

#[test]
fn an_attach_that_gives_up_says_that_the_dext_still_cleans_up() {
    let simulator = Simulator::start(&["--device=01:00.1=probe", "--fault=cleanup-delay:ms=60000"]);
    let mut recovery = Recovery::default();
    recovery.timeout = Duration::from_millis(400);
    let vmm = Vmm::new(config(&simulator).with_recovery(recovery), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    vmm.host.detach(&probe);
    let refused = vmm.host.attach(address("01:00.1"), &vmm.container, None).err().unwrap();
    let said = refused.to_string();
    assert!(matches!(refused, AttachError::Step { step: "claiming", .. }), "{said}");
    assert!(said.contains("the dext still cleans up after one that is gone"), "{said}");
}

#[test]
fn one_guest_does_not_wait_for_the_processes_of_another() {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    let one = Vmm::new(recovering(&simulator), DmaMode::Direct);
    let other = Container::new(DmaMode::Direct);
    let other = Arc::new(other);
    let slow = one.attach("01:00.0");
    let quick = one.host.attach(address("02:00.0"), &other, None).unwrap();
    signal(slow.connection().pid(), Signal::STOP);
    let region = |iova: u64| {
        let memory = SharedMemory::create("more", 0x4000).unwrap();
        GuestRegion { iova, size: 0x4000, memory: memory.into(), offset: 0, writable: true }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| one.container.map(region(0x1000_0000)));
        std::thread::sleep(Duration::from_millis(50));
        let before = Instant::now();
        // The same host, another guest; and what the same container can answer by itself.
        other.map(region(0x1000_0000)).unwrap();
        assert_eq!(&identity(&quick), b"PRBE");
        assert_eq!(one.container.usage().0, 2);
        assert!(!one.container.discard_allowed());
        assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    });
}

#[test]
fn a_vmm_that_reaps_children_can_ask_whose_they_are() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(recovering(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let name = |pid| vmm.host.process_name(pid);
    assert_eq!(name(probe.pid()).unwrap(), "function process of 01:00.1");
    assert_eq!(name(probe.connection().pid()).unwrap(), "connection process of 01:00.1");
    assert_eq!(name(std::process::id()), None);
    assert!(program("device-proc").exists());
}
