//! A child that breaks the rules costs one error: never a hang, a panic or a leak in the VMM.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use cordon_tests::{eventually, is_running, program};
use cordon_vmm::child::{CallError, Cause, Death, ExitStatus, FunctionProtocol, Spec};
use cordon_vmm::supervisor::Supervisor;
use ipc::wire::function::{Access, Space};

type Child = Supervisor<FunctionProtocol>;

fn start(behaviour: &str) -> Result<Child, Arc<Death>> {
    let mut spec = Spec::new(program("hostile-child"), "01:00.0");
    spec.arguments.push(format!("--behave={behaviour}").into());
    spec.deadlines.start = Duration::from_secs(2);
    // Whoever is to be answered while it floods has longer.
    let call = if behaviour == "chatter" { 3000 } else { 400 };
    spec.deadlines.call = Duration::from_millis(call);
    spec.deadlines.stop = Duration::from_millis(400);
    spec.expendable = true;
    Supervisor::start(&spec).map(|(child, _)| child)
}

fn call(child: &Child) -> Result<u64, CallError> {
    child.ask(&Access::read(Space::Bar(0), 0, 4))
}

/// The death of a child that must not even start.
fn fails(behaviour: &str) -> Arc<Death> {
    let death = start(behaviour).err().unwrap_or_else(|| panic!("{behaviour} started"));
    assert!(death.pid == 0 || !is_running(death.pid), "{behaviour} still runs");
    death
}

#[test]
fn a_child_that_does_not_start_is_one_clear_line() {
    for (behaviour, says) in [
        ("exit-at-once", "gone"),
        ("say-nothing", "did not become ready in time"),
        ("raw-garbage", "bad frame"),
        ("wrong-magic", "not a Cordon process"),
        ("wrong-version", "versions 8 to 9"),
        ("wrong-role", "Lister"),
        ("never-ready", "did not become ready in time"),
        ("ready-with-descriptors", "out of place"),
        ("reply-before-ready", "Malformed message"),
        ("refuse", "no ?[31mdevice?for you"),
    ] {
        let line = fails(behaviour).to_string();
        assert!(line.contains(says), "{behaviour}: {line}");
        assert!(line.contains("function process of 01:00.0"), "{line}");
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let spec = Spec::new("/nonexistent/device-proc", "01:00.0");
    let death = Child::start(&spec).err().unwrap();
    let line = death.to_string();
    assert!(line.contains("/nonexistent/device-proc") && line.contains("No such file"), "{line}");
}

#[test]
fn what_breaks_the_protocol_in_a_call_ends_the_child_and_answers_the_caller() {
    for behaviour in ["wrong-id", "ready-again", "garbage-in-call", "wrong-answer"] {
        let child = start(behaviour).unwrap();
        let Err(CallError::Dead(death)) = call(&child) else { panic!("{behaviour}") };
        assert!(matches!(death.cause, Cause::Broken(_)), "{behaviour}: {death}");
        assert_eq!(death.exit, ExitStatus::Signal(9));
        assert_eq!(death.last_request.as_deref(), Some("BarRead"));
        assert!(!is_running(death.pid));
        assert!(matches!(call(&child), Err(CallError::Dead(_))));
    }
}

#[test]
fn an_answer_too_many_ends_the_child_after_the_caller_has_its_own() {
    let child = start("twice").unwrap();
    assert_eq!(call(&child).unwrap(), 7);
    assert!(eventually(|| child.death().is_some()));
    assert!(matches!(child.death().unwrap().cause, Cause::Broken(_)));
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let child = start("descriptors-in-call").unwrap();
    assert_eq!(call(&child).unwrap(), 7);
}

#[test]
fn a_child_that_hangs_in_a_call_is_killed_at_the_deadline() {
    let child = start("hang-in-call").unwrap();
    let before = Instant::now();
    let Err(CallError::Dead(death)) = call(&child) else { panic!() };
    assert_eq!(death.cause, Cause::Overdue("answer"));
    assert!(before.elapsed() >= Duration::from_millis(400));
    assert!(!is_running(death.pid));
}

#[test]
fn a_child_that_exits_in_a_call_is_data() {
    let child = start("exit-in-call").unwrap();
    let Err(CallError::Dead(death)) = call(&child) else { panic!() };
    assert_eq!((&death.cause, death.exit), (&Cause::Ended, ExitStatus::Code(9)));
    assert!(death.to_string().contains("exit status 9"), "{death}");
}

#[test]
fn every_caller_that_waits_is_answered_when_the_child_dies() {
    let child = start("hang-in-call").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(matches!(call(&child), Err(CallError::Dead(_)))));
        }
    });
}

#[test]
fn a_child_that_does_not_stop_is_killed() {
    let child = start("ignore-shutdown").unwrap();
    let death = child.stop();
    assert_eq!(death.cause, Cause::Overdue("stop"));
    assert!(!is_running(death.pid));
    assert_eq!(start("serve").unwrap().stop().cause, Cause::Stopped);
}

#[test]
fn a_child_that_floods_its_standard_error_holds_nobody_up() {
    let child = start("chatter").unwrap();
    assert_eq!(call(&child).unwrap(), 7);
    assert_eq!(child.stop().cause, Cause::Stopped);
}
