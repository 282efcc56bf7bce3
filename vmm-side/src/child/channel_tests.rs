//! Answers in another order than their requests, against a child that is a socket.

use std::os::fd::AsFd;

use ipc::Event;
use ipc::wire::function::{Access, Request, Reset, Space};
use ipc::wire::handshake::Role;

use super::*;
use crate::child::{ExitStatus, FunctionProtocol, Process};

/// A process that is none.
struct Nobody(Event);

impl AsFd for Nobody {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Process for Nobody {
    fn pid(&self) -> u32 {
        0
    }
    fn kill(&self) {}
    fn suspend(&self) {}
    fn is_suspended(&self) -> bool {
        false
    }
    fn reap(&self) -> ExitStatus {
        ExitStatus::Code(0)
    }
}

fn channel() -> (Channel<FunctionProtocol>, Tube, Event) {
    let (ours, theirs) = Tube::pair().unwrap();
    let wake = Event::new().unwrap();
    let process = Box::new(Nobody(Event::new().unwrap()));
    let fate = Fate::new("it".to_owned(), process, wake.signaller().unwrap(), true).unwrap();
    let hook = FaultHook::new(None, Role::Function, "01:00.0".to_owned());
    let deadlines = Deadlines { silence: Duration::ZERO, ..Deadlines::default() };
    (Channel::new(ours, Arc::new(fate), deadlines, hook), theirs, wake)
}

/// A caller gives up at once.
fn give_up(channel: &Channel<FunctionProtocol>) {
    let given_up = channel.call(&Reset, &[], Deadline::now());
    assert!(matches!(given_up, Err(Failed::TimedOut)), "{given_up:?}");
}

fn answer<R: serde::Serialize>(child: &mut Tube, id: u32, reply: R) {
    child.send(id, &Ok::<R, Failure>(reply), &[], Deadline::after(Duration::from_secs(5))).unwrap();
}

#[test]
fn answers_that_nobody_waits_for_may_come_in_any_order() {
    let (channel, mut child, _wake) = channel();
    for _ in 0..3 {
        give_up(&channel);
    }
    // The third of them, the one that is waited for, and then the others.
    answer(&mut child, 3, ());
    answer(&mut child, 4, 7u64);
    let soon = || Deadline::after(Duration::from_secs(5));
    let read = Access::read(Space::Config, 0, 4);
    assert_eq!(channel.call(&read, &[], soon()).unwrap().0, 7);
    answer(&mut child, 2, ());
    let _ = channel.check_life();
    assert_eq!(channel.line.lock().unanswered.len(), 1);
    answer(&mut child, 1, ());
    // All is answered, so it is asked for a sign of life.
    let _ = channel.check_life();
    for _ in 0..4 {
        child.receive::<Request>(soon()).unwrap();
    }
    let ping = child.receive::<Request>(soon()).unwrap();
    assert!(matches!(ping.message, Request::Ping(_)));
    assert!(!channel.fate.is_condemned());
    // Each once, and none that was not asked for.
    answer(&mut child, 1, ());
    let _ = channel.check_life();
    assert!(channel.fate.is_condemned());
}

#[test]
fn one_answer_that_is_overdue_is_enough() {
    let (channel, mut child, _wake) = channel();
    give_up(&channel);
    give_up(&channel);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    channel.line.lock().unanswered[1].1 = long_ago;
    answer(&mut child, 2, ());
    let _ = channel.check_life();
    assert!(!channel.fate.is_condemned());
    channel.line.lock().unanswered[0].1 = long_ago;
    let _ = channel.check_life();
    assert!(channel.fate.is_condemned());
}

#[test]
fn a_child_that_leaves_too_many_requests_open_gets_no_more_of_them_until_it_answers() {
    let (channel, mut child, _wake) = channel();
    for _ in 0..MAX_UNANSWERED {
        give_up(&channel);
    }
    let soon = || Deadline::after(Duration::from_secs(5));
    let read = Access::read(Space::Config, 0, 4);
    let refused = channel.call(&read, &[], soon());
    assert!(matches!(refused, Err(Failed::TimedOut)), "{refused:?}");
    // It was not sent: what the child finds are the others.
    let mut asked = 0;
    while let Ok(request) = child.receive::<Request>(Deadline::now()) {
        assert!(matches!(request.message, Request::Reset(_)), "{:?}", request.message);
        asked += 1;
    }
    assert_eq!(asked, MAX_UNANSWERED);
    answer(&mut child, 1, ());
    let _ = channel.check_life();
    assert_eq!(channel.line.lock().unanswered.len(), MAX_UNANSWERED - 1);
    let next = channel.line.lock().next;
    answer(&mut child, next, 7u64);
    assert_eq!(channel.call(&read, &[], soon()).unwrap().0, 7);
}
