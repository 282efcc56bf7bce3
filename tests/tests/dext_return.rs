//! A device or dext that ends without hanging anything up, as on a Mac: a removal that is noticed by a
//! call, or where nobody calls by the sign of life that is asked of the connection process, and a return.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use cordon_tests::{Simulator, Vmm, announce, config, eventually};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{
    Deadline, DmaMode, ErrorKind, Event, Function, InterruptIndex, PassthroughDevice as _,
    Presence, Recovery,
};

const ENDINGS: [&str; 5] = ["offline", "no-device", "not-ready", "ipc-error", "port-dead"];
const PROBE: &str = "01:00.1";
const PROBE_IDS: [u8; 4] = [0xd0, 0xc0, 0x02, 0x00];

struct Setup {
    simulator: Simulator,
    vmm: Vmm,
    probe: Arc<Function>,
}

fn setup() -> Setup {
    let simulator = Simulator::usual();
    let config = config(&simulator).with_recovery(Recovery::default());
    let vmm = Vmm::new(config, DmaMode::Direct);
    let probe = vmm.attach(PROBE);
    Setup { simulator, vmm, probe }
}

fn is_away(function: &Function) -> bool {
    matches!(function.presence(), Presence::Away(_))
}

fn identity(function: &Function) -> [u8; 4] {
    let mut ids = [0; 4];
    function.config_read_or_ones(0, &mut ids);
    ids
}

/// It is back for the `number`th time, and its interrupts are as they were.
fn is_back(s: &Setup, number: u64, event: &Event) {
    assert!(eventually(|| s.probe.returns() == number), "{:?}", s.probe.presence());
    assert_eq!(identity(&s.probe), PROBE_IDS);
    let soon = || Deadline::after(Duration::from_secs(5));
    assert!(event.wait(soon()).unwrap(), "every vector in use is signalled once");
    // The probe fires vector 0 once.
    for (at, value) in [(0x64, 0), (0x68, 1u32), (0x6c, 1)] {
        s.probe.bar_write(0, at, &value.to_le_bytes()).unwrap();
    }
    assert!(event.wait(soon()).unwrap());
}

fn assign(function: &Function) -> Event {
    let event = Event::new().unwrap();
    let signallers = vec![Some(event.signaller().unwrap())];
    let setup = InterruptSetup::Assign { start: 0, signallers };
    function.set_interrupts(InterruptIndex::Msix, setup).unwrap();
    event
}

#[test]
fn whatever_a_call_of_a_device_that_is_gone_says_recovery_starts() {
    for ending in ENDINGS {
        let s = setup();
        let event = assign(&s.probe);
        let began = Instant::now();
        s.simulator.end(PROBE, ending);
        assert_eq!(identity(&s.probe), [0xff; 4], "{ending}");
        assert!(eventually(|| is_away(&s.probe)), "{ending}: {:?}", s.probe.presence());
        let noticed = began.elapsed();
        assert_eq!(s.probe.reset().unwrap_err().kind(), ErrorKind::Gone, "{ending}");
        s.simulator.bring_back(PROBE);
        is_back(&s, 1, &event);
        announce(&format!("{ending}: away {noticed:?} after the end of the device"));
    }
}

#[test]
fn a_device_that_ends_while_nobody_asks_it_anything_is_missed_all_the_same() {
    let s = setup();
    let disk = s.vmm.attach("01:00.0");
    let event = assign(&s.probe);
    for round in 1..=2 {
        s.simulator.end(PROBE, "offline");
        assert!(eventually(|| is_away(&s.probe)), "{:?}", s.probe.presence());
        // They share the process that holds the claims.
        assert!(eventually(|| is_away(&disk)));
        s.simulator.bring_back(PROBE);
        is_back(&s, round, &event);
        assert!(eventually(|| disk.returns() == round));
        disk.config_read(0, &mut [0; 4]).unwrap();
    }
}

#[test]
fn a_reset_of_a_device_that_is_gone_is_no_io_error() {
    let s = setup();
    s.simulator.end(PROBE, "no-device");
    let error = s.probe.reset().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Gone, 19), "{error}");
}
