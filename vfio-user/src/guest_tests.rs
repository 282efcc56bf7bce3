use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use cordon_vmm::DmaMode;

use super::*;

fn container() -> Arc<Container> {
    Arc::new(Container::new(DmaMode::Direct))
}

/// A process of this number, of which nobody knows more.
fn numbered(number: impl Into<Option<u32>>) -> Option<Process> {
    number.into().map(|number| Process { number, life: Life::Unknown })
}

fn admit(guest: &Guest, number: impl Into<Option<u32>>) -> Result<Stay, String> {
    guest.admit_process(numbered(number), false)
}

#[test]
fn clients_of_a_shared_guest_are_one_process_until_the_last_has_left() {
    let guest = Guest::shared(container());
    let other = guest.clone();
    let first = admit(&guest, 7).unwrap();
    let second = admit(&other, 7).unwrap();
    let refused = admit(&other, 8).unwrap_err();
    assert!(refused.contains("process 8") && refused.contains("process 7"), "{refused}");
    drop(first);
    assert!(admit(&guest, 8).is_err() && admit(&guest, None).is_err());
    drop(second);
    let _next = admit(&guest, 8).unwrap();
    assert!(admit(&other, 7).is_err());
}

#[test]
fn while_something_of_a_client_is_left_that_is_gone_nobody_is_let_in() {
    let guest = Guest::shared(container());
    let mut first = admit(&guest, 7).unwrap();
    let mut second = admit(&guest, 7).unwrap();
    first.leaves();
    first.leaves();
    // The one who is still there.
    drop(admit(&guest, 7).unwrap());
    second.leaves();
    // Its number may be another's by now.
    let refused = admit(&guest, 7).unwrap_err();
    assert!(refused.contains("not taken back yet"), "{refused}");
    drop(first);
    assert!(admit(&guest, 8).is_err());
    drop(second);
    assert!(admit(&guest, 8).is_ok());
}

#[test]
fn of_processes_that_nobody_numbers_there_is_one_client() {
    let guest = Guest::shared(container());
    let first = admit(&guest, None).unwrap();
    assert!(admit(&guest, None).is_err() && admit(&guest, 7).is_err());
    drop(first);
    assert!(admit(&guest, 7).is_ok());
}

#[test]
fn a_guest_of_one_server_asks_nobody() {
    let guest = Guest::from(container());
    let _first = admit(&guest, 7).unwrap();
    assert!(admit(&guest, 8).is_ok() && admit(&guest, None).is_ok());
}

#[test]
fn the_process_at_the_other_end_is_known_and_lives() {
    let (one, other) = UnixStream::pair().unwrap();
    assert_eq!(sys::peer(&one), Some(std::process::id()));
    assert!(!sys::life(&one).unwrap().is_over());
    drop(other);
    assert!(!sys::life(&one).unwrap().is_over(), "it lives, whatever it closes");
}

/// Set for a process that connects there, has a child inherit that, and ends when it is told to.
const CONNECTS: &str = "CORDON_TEST_CONNECTS";

#[test]
#[expect(clippy::zombie_processes, reason = "the child is to outlive its parent")]
fn nobody_is_let_in_by_the_number_of_a_process_that_has_ended() {
    if let Some(path) = std::env::var_os(CONNECTS) {
        let connection = UnixStream::connect(path).unwrap();
        // It reads until it is sent away.
        let mut child = Command::new("cat");
        child.stdin(std::os::fd::OwnedFd::from(connection)).stdout(Stdio::null());
        child.spawn().unwrap();
        let _ = std::io::read_to_string(std::io::stdin());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let connect = || {
        let name = "guest::tests::nobody_is_let_in_by_the_number_of_a_process_that_has_ended";
        let mut parent = Command::new(std::env::current_exe().unwrap());
        parent.args(["--exact", name]).env(CONNECTS, &path);
        let parent = parent.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        (parent, listener.accept().unwrap().0)
    };
    let (mut parent, stream) = connect();
    let number = sys::peer(&stream).unwrap();
    assert_eq!(number, parent.id());
    let guest = Guest::shared(container());
    let first = guest.admit(&stream).unwrap();
    // Another of its own, while it is there.
    drop(guest.admit(&stream).unwrap());
    drop(parent.stdin.take());
    parent.wait().unwrap();
    // Its child has the connection still.
    stream.set_nonblocking(true).unwrap();
    let read = std::io::Read::read(&mut &stream, &mut [0]).unwrap_err();
    assert_eq!(read.kind(), std::io::ErrorKind::WouldBlock);
    let knows = !matches!(sys::life(&stream).unwrap(), Life::Unknown);
    // Before Linux 6.5 the number is all there is.
    assert_eq!(admit(&guest, number).is_err(), knows);
    if knows {
        let refused = guest.admit(&stream).unwrap_err();
        assert!(refused.contains(&format!("process {number} has ended")), "{refused}");
    }
    // A server that goes on with both of its clients lets both in.
    drop(first);
    let first = guest.admit_again(&stream).unwrap();
    drop(guest.admit_again(&stream).unwrap());
    assert_eq!(admit(&guest, number).is_err(), knows);
    drop(first);
    drop(admit(&guest, number).unwrap());

    // One that waited to be let in, and ended, when its number is that of who is let in.
    let life = Life::Of(
        rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap(),
    );
    let other = Process { number, life };
    let _other = guest.admit_process(Some(other), false).unwrap();
    assert_eq!(guest.admit(&stream).is_err(), knows);
    let _ = stream.shutdown(std::net::Shutdown::Both);
}
