//! A bug in the thread of one function ends that function's service, and nothing else.

use std::os::fd::AsFd as _;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::fake::Served;
use cordon_tests::eventually;
use cordon_tests::vfio_user::{access, map, ram};
use cordon_vfio_user::Event;
use cordon_vfio_user::protocol::command::{DMA_MAP, REGION_READ};

#[test]
fn a_panic_over_one_function_is_told_and_the_others_go_on() {
    let bad = Served::start(|access, _| {
        assert_ne!(access.offset, 0x10, "register 0x10 is a bug");
        Ok(7)
    });
    let good = Served::start(|_, _| Ok(7));
    let (mut doomed, mut other) = (bad.client(), good.client());
    let memory = ram(1 << 20);
    assert_eq!(doomed.ask(DMA_MAP, &map(3, 0, 0, 1 << 20), &[memory.as_fd()]).error, 0);
    assert_eq!(bad.container.usage(), (1, 1 << 20));
    assert_eq!(doomed.read(0, 0, 4), [7, 0, 0, 0]);

    doomed.send(REGION_READ, 0, &access(0, 0x10, 4, &[]), &[]);
    bad.until(
        |event| matches!(event, Event::Failed(why) if why.contains("register 0x10 is a bug")),
    );
    assert!(doomed.is_closed());
    assert_eq!(bad.container.usage(), (0, 0), "the device still reaches the client's memory");

    assert_eq!(other.read(0, 0x10, 4), [7, 0, 0, 0]);
    drop(other);
    good.until(|event| matches!(event, Event::Detached(_)));
    assert_eq!(good.client().read(0, 0, 4), [7, 0, 0, 0]);
}

#[test]
fn a_thread_that_is_stuck_is_seen_from_outside_and_one_that_waits_or_has_ended_is_not() {
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let served = Served::start(move |access, _| {
        if access.offset == 0x10 {
            let _ = wait.lock().unwrap().recv();
        }
        assert_ne!(access.offset, 0x14, "register 0x14 is a bug");
        Ok(7)
    });
    let mut client = served.client();
    assert_eq!(client.read(0, 0, 4), [7, 0, 0, 0]);
    let idle = || served.busy_for() == Duration::ZERO;
    assert!(eventually(idle));
    client.send(REGION_READ, 0, &access(0, 0x10, 4, &[]), &[]);
    assert!(eventually(|| served.busy_for() > Duration::from_millis(100)));
    go_on.send(()).unwrap();
    assert_eq!(client.receive().1.error, 0);
    assert!(eventually(idle));
    client.send(REGION_READ, 0, &access(0, 0x14, 4, &[]), &[]);
    served.until(|event| matches!(event, Event::Failed(_)));
    assert!(eventually(idle), "what has ended is stuck in nothing");
}

#[test]
fn no_profile_ends_the_process_over_a_panic() {
    // This suite is built by one profile, and what people run by another.
    let workspace = include_str!("../../../Cargo.toml");
    assert!(!workspace.lines().any(|line| line.trim_start().starts_with("panic")));
}
