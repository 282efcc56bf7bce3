//! Every command is answered before its client gives up on the server, whatever it consists of and
//! whatever happens to the process that carries it out.

use std::time::{Duration, Instant};

use crate::fake;
use cordon_tests::vfio_user::Served;
use cordon_vfio_user::Event;
use cordon_vmm::faults::{Fault, FaultPlan, Faults, Point, Target, What};
use cordon_vmm::{DeviceError, ErrorKind, Recovery};

/// QEMU gives up after five seconds.
const IN_TIME: Duration = Duration::from_millis(4500);

fn is_late(event: &Event) -> bool {
    matches!(event, Event::Refused(why) if why.contains("took too long"))
}

#[test]
fn a_config_write_whose_pieces_all_find_their_process_hanging_is_answered_in_time() {
    let faults = Faults::new(FaultPlan::default()).unwrap();
    let served = Served::start_with("01:00.1", |config| {
        config.recovery = Recovery::default();
        config.faults = Some(faults.clone());
    });
    let mut client = served.client();
    for nth in 1..=8 {
        let request = Some("ConfigWrite".to_owned());
        let (process, when, what) = (Target::Function, Point::During, What::Hang);
        faults.add(Fault { process, device: None, request, nth, when, after_ms: 0, what }).unwrap();
    }
    let before = Instant::now();
    // Four pieces: dwords before and after the interrupt line, which is none.
    client.write(7, 0x38, &[0; 16]);
    assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
    assert!(faults.report().iter().any(|report| report.fired.is_some()), "nothing hung");
    // And whatever comes after it.
    let before = Instant::now();
    client.read(7, 0, 4);
    assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
    client.still_works();
}

#[test]
fn a_mebibyte_of_trapped_reads_is_answered_in_time() {
    let served = Served::probe();
    let mut client = served.client();
    let before = Instant::now();
    let read = client.read(2, 0, 1 << 20);
    assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
    // What there was no time for reads as ones, and nothing after it as anything else.
    let answered = read.iter().position(|byte| *byte != 0).unwrap_or(read.len());
    assert!(answered > 0 && read[answered..].iter().all(|byte| *byte == 0xff));
    client.still_works();
}

#[test]
fn what_there_is_no_time_for_is_as_on_a_bus_where_nobody_answers_and_is_told() {
    // Each access takes a second, or until its deadline if that comes sooner.
    let served = fake::Served::start(|_, deadline| {
        let second = ipc::Deadline::after(Duration::from_secs(1));
        let nothing: [ipc::poll::Source<'_, ()>; 0] = [];
        ipc::poll::wait(&nothing, Some(second.min(deadline))).unwrap();
        if deadline.passed() {
            return Err(DeviceError::new(ErrorKind::TimedOut, "it is slow"));
        }
        Ok(0x1111_1111_1111_1111)
    });
    let mut client = served.client();
    let before = Instant::now();
    let read = client.read(0, 0, 64);
    assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
    let answered = read.iter().take_while(|byte| **byte == 0x11).count();
    assert!((8..=32).contains(&answered), "{read:x?}");
    assert!(read[answered..].iter().all(|byte| *byte == 0xff), "{read:x?}");
    served.until(is_late);

    for (region, offset) in [(0, 0x100), (7, 0x40)] {
        let before = Instant::now();
        client.write(region, offset, &[7; 64]);
        assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
        served.until(is_late);
    }
    client.still_works();
}
