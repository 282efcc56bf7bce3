//! Every command is answered before its client gives up on the server, whatever it consists of and
//! whatever happens to the process that carries it out.

use std::time::{Duration, Instant};

use crate::fake;
use cordon_tests::vfio_user::Served;
use cordon_vfio_user::Event;
use cordon_vmm::faults::{Fault, FaultPlan, Faults, Point, Target, What};
use cordon_vmm::{DeviceError, ErrorKind, PassthroughDevice as _, Recovery};

/// QEMU gives up after five seconds.
const IN_TIME: Duration = Duration::from_millis(4500);

/// Has the process hang that carries out the `nth` of these requests.
fn hang(faults: &Faults, request: &str, nth: u64) {
    let request = Some(request.to_owned());
    let (process, when, what) = (Target::Function, Point::During, What::Hang);
    faults.add(Fault { process, device: None, request, nth, when, after_ms: 0, what }).unwrap();
}

/// How many faults have struck.
fn fired(faults: &Faults) -> usize {
    faults.report().iter().filter(|report| report.fired.is_some()).count()
}

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
    client.read(7, 0, 4);
    for nth in 1..=8 {
        hang(&faults, "ConfigWrite", nth);
    }
    let before = Instant::now();
    // Four pieces: COMMAND byte by byte, cache line size and latency timer, device control.
    client.write(7, 0x04, &[0; 0x78]);
    assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
    assert!(fired(&faults) > 0, "nothing hung");
    // And whatever comes after it.
    let before = Instant::now();
    client.read(7, 0, 4);
    assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
    client.still_works();
}

#[test]
fn a_config_write_that_resets_a_device_whose_processes_hang_is_answered_in_time() {
    let faults = Faults::new(FaultPlan::default()).unwrap();
    let served = Served::start_with("01:00.1", |config| {
        config.recovery = Recovery::default();
        config.faults = Some(faults.clone());
    });
    let mut client = served.client();
    client.write(7, 0x04, &[0x06, 0x00]);
    // The write itself costs one process, the reset another.
    hang(&faults, "ConfigWrite", 1);
    hang(&faults, "Reset", 1);
    let before = Instant::now();
    client.write(7, 0x78, &[0x00, 0x80]);
    assert!(before.elapsed() < IN_TIME, "{:?}", before.elapsed());
    assert_eq!(fired(&faults), 2);
    // The guest believes it to be as after a reset, and that is how it is found.
    assert_eq!(client.read(7, 0x04, 2), [0, 0]);
    let mut command = [0xff; 2];
    served.proxy.config_read(4, &mut command).unwrap();
    assert_eq!(command, [0, 0]);
}

#[test]
fn a_mebibyte_of_trapped_reads_is_answered_in_time() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
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
