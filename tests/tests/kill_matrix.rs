//! Every request of both kinds of process, struck before, during and after its reply, by a kill, a
//! stop and garbage: whoever asks a function process never notices, and a device whose connection
//! process dies comes back.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::time::Duration;

use cordon_tests::{RAM, RAM_BASE, Simulator, Vmm, announce, config, eventually};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::faults::{FUNCTION_REQUESTS, Fault, FaultPlan, Faults, Point, Target, What};
use cordon_vmm::{DmaMode, Function, PassthroughDevice as _, Presence, Recovery};
use ipc::wire::function::InterruptIndex;
use ipc::{Event, SharedMemory};

/// Requests of a standby and of a companion, which have suites of their own.
const COMPANIONS: [&str; 5] = ["TakeOver", "Companion", "AddMemory", "RemoveMemory", "Doorbell"];

const POINTS: [Point; 3] = [Point::Before, Point::During, Point::After];

struct Setup {
    simulator: Simulator,
    faults: Arc<Faults>,
    vmm: Vmm,
}

fn setup(standby: bool) -> Setup {
    let simulator = Simulator::usual();
    let faults = Faults::new(FaultPlan::default()).unwrap();
    let recovery = Recovery::default().with_max_deaths(u32::MAX).with_standby(standby);
    let faulty = Some(Arc::clone(&faults));
    let mut config = config(&simulator).with_recovery(recovery).with_faults(faulty);
    // A stopped process counts as dead after this long.
    config.deadlines.call = Duration::from_millis(500);
    let vmm = Vmm::new(config, DmaMode::Direct);
    Setup { simulator, faults, vmm }
}

impl Setup {
    fn arm(&self, process: Target, request: &str, when: Point, what: What) {
        let request = Some(request.to_owned());
        let fault = Fault { process, device: None, request, nth: 1, when, after_ms: 0, what };
        self.faults.add(fault).unwrap();
    }

    fn has_fired(&self) -> bool {
        self.faults.report().last().unwrap().fired.is_some()
    }
}

/// One request of the kind, and whether what came back is right.
fn ask(probe: &Function, request: &str, event: &Event) {
    let mut bytes = [0; 4];
    match request {
        "ConfigRead" => {
            probe.config_read(0, &mut bytes).unwrap();
            assert_eq!(bytes, [0xd0, 0xc0, 0x02, 0x00]);
        }
        "ConfigWrite" => {
            probe.config_write(0x0c, &[0x5a]).unwrap();
            probe.config_read(0x0c, &mut bytes[..1]).unwrap();
            assert_eq!(bytes[0], 0x5a);
        }
        "BarRead" => {
            probe.bar_read(0, 0, &mut bytes).unwrap();
            assert_eq!(&bytes, b"PRBE");
        }
        "BarWrite" => {
            probe.bar_write(0, 0x10, &[1, 2, 3, 4]).unwrap();
            probe.bar_read(0, 0x10, &mut bytes).unwrap();
            assert_eq!(bytes, [1, 2, 3, 4]);
        }
        "Interrupts" => {
            let signallers = vec![Some(event.signaller().unwrap())];
            let assign = InterruptSetup::Assign { start: 0, signallers };
            probe.set_interrupts(InterruptIndex::Msix, assign).unwrap();
            event.clear().unwrap();
            let trigger = InterruptSetup::Trigger { start: 0, count: 1 };
            probe.set_interrupts(InterruptIndex::Msix, trigger).unwrap();
            let soon = ipc::Deadline::after(Duration::from_secs(5));
            assert!(event.wait(soon).unwrap());
        }
        "Reset" => {
            probe.bar_write(0, 0x10, &[1, 2, 3, 4]).unwrap();
            probe.reset().unwrap();
            probe.config_write(4, &[6, 0]).unwrap();
            probe.bar_read(0, 0x10, &mut bytes).unwrap();
            assert_eq!(bytes, [0; 4]);
        }
        "Statistics" => drop(probe.statistics().unwrap()),
        other => panic!("{other}"),
    }
}

#[test]
fn whoever_asks_a_function_process_never_notices_its_death() {
    let s = setup(false);
    let probe = s.vmm.attach("01:00.1");
    let event = Event::new().unwrap();
    let mut cases = 0;
    for request in FUNCTION_REQUESTS.into_iter().filter(|one| !COMPANIONS.contains(one)) {
        for when in POINTS {
            for what in [What::Kill, What::Stop, What::Garbage] {
                let before = probe.replacements();
                s.arm(Target::Function, request, when, what);
                ask(&probe, request, &event);
                // What happens after a reply is noticed at the next request.
                ask(&probe, request, &event);
                let case = format!("{request} {when:?} {what:?}");
                assert!(s.has_fired(), "{case}");
                assert!(eventually(|| probe.replacements() > before), "{case}");
                cases += 1;
            }
        }
    }
    assert!(probe.death().is_none());
    s.vmm.host.detach(&probe);
    s.simulator.assert_released("01:00.1");
    announce(&format!("kill matrix: {cases} of function processes, none seen by the caller"));
}

#[test]
fn what_else_a_function_process_may_do_wrong_is_not_noticed_either() {
    let s = setup(false);
    let probe = s.vmm.attach("01:00.1");
    let event = Event::new().unwrap();
    for what in [What::Hang, What::Truncated, What::Closed] {
        for when in POINTS {
            let before = probe.replacements();
            s.arm(Target::Function, "BarRead", when, what);
            ask(&probe, "BarRead", &event);
            ask(&probe, "BarRead", &event);
            assert!(s.has_fired(), "{what:?} {when:?}");
            assert!(eventually(|| probe.replacements() > before), "{what:?} {when:?}");
        }
    }
    // A reply that takes its time is no death, and a dext that refuses is the caller's to know.
    let before = probe.replacements();
    s.arm(Target::Function, "BarRead", Point::During, What::Delay(100));
    ask(&probe, "BarRead", &event);
    let code = ipc::wire::dext::IoReturn::NOT_OPEN;
    s.arm(Target::Function, "ConfigRead", Point::Before, What::Selector { selector: 8, code });
    let error = probe.config_read(0, &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("0xe00002cd"), "{error}");
    ask(&probe, "ConfigRead", &event);
    assert_eq!(probe.replacements(), before);
    assert!(s.has_fired());
}

#[test]
fn a_successor_that_dies_at_its_start_has_a_successor() {
    for standby in [false, true] {
        let s = setup(standby);
        let probe = s.vmm.attach("01:00.1");
        let event = Event::new().unwrap();
        ask(&probe, "Interrupts", &event);
        for (request, when) in [("Start", Point::Before), ("Start", Point::After)] {
            assert!(!standby || eventually(|| probe.has_standby()));
            s.arm(Target::Function, request, when, What::Kill);
            s.arm(Target::Function, "BarRead", Point::During, What::Kill);
            ask(&probe, "BarRead", &event);
            assert!(eventually(|| s.has_fired()), "{standby} {when:?}");
            ask(&probe, "Interrupts", &event);
        }
        if standby {
            for when in POINTS {
                assert!(eventually(|| probe.has_standby()));
                s.arm(Target::Function, "TakeOver", when, What::Kill);
                s.arm(Target::Function, "BarRead", Point::During, What::Kill);
                ask(&probe, "BarRead", &event);
                ask(&probe, "Interrupts", &event);
                assert!(s.has_fired(), "{when:?}");
            }
        }
        s.vmm.host.detach(&probe);
        s.simulator.assert_released("01:00.1");
    }
}

/// What makes the VMM side send the request to the connection process.
fn provoke(s: &Setup, request: &str) -> Option<Arc<Function>> {
    let memory = || SharedMemory::create("more", 0x4000).unwrap();
    let iova = RAM_BASE + RAM;
    match request {
        "AddMemory" | "MapDma" | "RemoveMemory" | "UnmapDma" => {
            let memory = memory();
            let region = GuestRegion {
                iova,
                size: 0x4000,
                memory: memory.into(),
                offset: 0,
                writable: true,
            };
            s.vmm.container.map(region).unwrap();
            s.vmm.container.unmap(iova, 0x4000).unwrap();
            None
        }
        "Attach" => {
            let other = s.vmm.host.attach("01:00.0".parse().unwrap(), &s.vmm.container, None);
            other.ok()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_device_whose_connection_process_dies_at_any_request_comes_back() {
    let s = setup(false);
    let probe = s.vmm.attach("01:00.1");
    let event = Event::new().unwrap();
    let mut cases = 0;
    for request in ["AddMemory", "MapDma", "UnmapDma", "RemoveMemory", "Attach"] {
        for when in POINTS {
            for what in [What::Kill, What::Stop, What::Garbage] {
                let case = format!("{request} {when:?} {what:?}");
                let before = probe.returns();
                s.arm(Target::Connection, request, when, what);
                let attached = provoke(&s, request);
                // What happens after a reply is noticed at the next request.
                let _ = probe.connection().statistics(probe.address());
                assert!(s.has_fired(), "{case}");
                let back =
                    || probe.returns() > before && matches!(probe.presence(), Presence::Present);
                assert!(eventually(back), "{case}: {:?}", probe.presence());
                if let Some(other) = attached {
                    s.vmm.host.detach(&other);
                }
                assert!(eventually(|| s.simulator.held("01:00.0").1 == 0), "{case}");
                // Its memory is all there, and no more.
                assert!(eventually(|| s.simulator.held("01:00.1").2 == 1), "{case}");
                ask(&probe, "Interrupts", &event);
                cases += 1;
            }
        }
    }
    // The device comes back although it dies on its way back.
    for request in ["Attach", "Reset", "AddMemory", "MapDma"] {
        let before = probe.returns();
        s.arm(Target::Connection, request, Point::During, What::Kill);
        s.arm(Target::Connection, "Statistics", Point::Before, What::Kill);
        let _ = probe.connection().statistics(probe.address());
        assert!(eventually(|| probe.returns() > before), "{request}: {:?}", probe.presence());
        ask(&probe, "Interrupts", &event);
        cases += 1;
    }
    s.arm(Target::Connection, "Detach", Point::During, What::Kill);
    s.vmm.host.detach(&probe);
    s.simulator.assert_released("01:00.1");
    announce(&format!("kill matrix: {cases} of connection processes, the device came back"));
}
