//! The tube against peers that break every rule: each is a typed error, nothing is lost, nothing
//! leaks. SEQPACKET, as on Linux.
#![cfg(all(target_os = "linux", not(cordon_portable)))]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cordon_ipc::tube::frame::{FrameError, HEADER, Header};
use cordon_ipc::tube::{HandshakeError, MAX_HANDLES, MAX_MESSAGE};
use cordon_ipc::wire::handshake::{Hello, Role, VERSION};
use cordon_ipc::{Deadline, Tube, TubeError};
use proptest::prelude::*;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

/// A tube and the raw socket of a peer that does not use one.
fn against_raw() -> (Tube, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let (a, b) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Tube::from_fd(a), b)
}

fn send_raw(socket: &OwnedFd, bytes: &[u8], handles: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !handles.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(handles));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
}

fn frame(length: u32, id: u32, handles: u16, reserved: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Header { length, id, handles }.to_bytes().to_vec();
    bytes[12] = reserved;
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn messages_and_descriptors_arrive_in_order() {
    let (mut a, mut b) = Tube::pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    a.send(1, &"one".to_owned(), &[], soon()).unwrap();
    a.send(2, &"two".to_owned(), &[null.as_fd(), null.as_fd()], soon()).unwrap();
    let one = b.receive::<String>(soon()).unwrap();
    assert_eq!((one.id, one.message.as_str(), one.handles.len()), (1, "one", 0));
    let two = b.receive::<String>(soon()).unwrap();
    assert_eq!((two.id, two.message.as_str(), two.handles.len()), (2, "two", 2));
}

#[test]
fn a_silent_peer_costs_the_deadline_and_no_more() {
    let (mut _a, mut b) = Tube::pair().unwrap();
    let before = Instant::now();
    let error = b.receive::<u32>(Deadline::after(Duration::from_millis(50))).unwrap_err();
    assert!(matches!(error, TubeError::TimedOut), "{error}");
    assert!(before.elapsed() >= Duration::from_millis(50));
    // Nothing is broken by it.
    _a.send(1, &7u32, &[], soon()).unwrap();
    assert_eq!(b.receive::<u32>(soon()).unwrap().message, 7);
}

#[test]
fn a_peer_that_does_not_read_costs_the_deadline() {
    let (mut a, _b) = Tube::pair().unwrap();
    let deadline = Deadline::after(Duration::from_millis(100));
    let error = loop {
        if let Err(error) = a.send(0, &vec![0u8; 100_000], &[], deadline) {
            break error;
        }
    };
    assert!(matches!(error, TubeError::TimedOut), "{error}");
}

#[test]
fn what_is_posted_to_a_peer_that_does_not_read_is_kept_in_order_and_bounded() {
    let (mut a, mut b) = Tube::pair().unwrap();
    let text = "x".repeat(100_000);
    let mut posted = 0;
    while a.post(posted, &text).is_ok() {
        posted += 1;
        assert!(posted < 100);
    }
    assert!(a.has_unsent());
    let refused = a.send(99, &text, &[], Deadline::now());
    assert!(matches!(refused, Err(TubeError::TimedOut)), "{refused:?}");
    for id in 0..posted {
        let came = b.receive::<String>(soon()).unwrap();
        assert_eq!((came.id, came.message.len()), (id, text.len()));
        a.flush().unwrap();
    }
    assert!(!a.has_unsent());
    a.post(posted, &text).unwrap();
    a.send(posted + 1, &(), &[], soon()).unwrap();
    assert_eq!(b.receive::<String>(soon()).unwrap().id, posted);
    assert_eq!(b.receive::<()>(soon()).unwrap().id, posted + 1);
}

#[test]
fn a_dead_peer_is_a_value_on_both_paths() {
    let (mut a, mut b) = Tube::pair().unwrap();
    a.send(1, &7u32, &[], soon()).unwrap();
    drop(a);
    assert_eq!(b.receive::<u32>(soon()).unwrap().message, 7);
    assert!(matches!(b.receive::<u32>(soon()), Err(TubeError::Disconnected)));
    assert!(matches!(b.send(0, &1u32, &[], soon()), Err(TubeError::Disconnected)));
}

#[test]
fn bad_frames_poison_the_tube_and_name_the_field() {
    let (big, many) = (u32::try_from(MAX_MESSAGE).unwrap() + 1, 33);
    for (bytes, expected) in [
        (vec![1, 2, 3], FrameError::Short(3)),
        (frame(15, 0, 0, 0, &[]), FrameError::Length(15)),
        (frame(big, 0, 0, 0, &[]), FrameError::Length(big)),
        (frame(20, 0, 0, 0, &[]), FrameError::Mismatch { said: 20, came: HEADER }),
        (frame(16, 0, many, 0, &[]), FrameError::TooManyHandles(many)),
        (frame(16, 0, 2, 0, &[]), FrameError::Handles { said: 2, came: 0 }),
        (frame(16, 0, 0, 1, &[]), FrameError::Reserved),
    ] {
        let (mut tube, raw) = against_raw();
        send_raw(&raw, &bytes, &[]);
        match tube.receive::<u32>(soon()) {
            Err(TubeError::Frame(found)) => assert_eq!(found, expected),
            other => panic!("{other:?}, expected {expected}"),
        }
        assert!(matches!(tube.receive::<u32>(soon()), Err(TubeError::Poisoned)));
        assert!(matches!(tube.send(0, &0u32, &[], soon()), Err(TubeError::Poisoned)));
    }
}

#[test]
fn a_message_above_the_limit_is_not_sent_and_one_that_comes_is_refused() {
    let (mut a, _b) = Tube::pair().unwrap();
    let error = a.send(0, &vec![0u8; MAX_MESSAGE], &[], soon()).unwrap_err();
    assert!(error.to_string().contains("invalid"), "{error}");
    let (mut tube, raw) = against_raw();
    send_raw(&raw, &vec![0; MAX_MESSAGE + 100], &[]);
    let error = tube.receive::<u32>(soon()).unwrap_err();
    assert!(matches!(error, TubeError::Frame(FrameError::Truncated)), "{error}");
}

#[test]
fn too_many_descriptors_are_not_sent() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let (mut a, _b) = Tube::pair().unwrap();
    let many = vec![null.as_fd(); MAX_HANDLES + 1];
    assert!(matches!(a.send(0, &0u32, &many, soon()), Err(TubeError::TooManyHandles(33))));
}

#[test]
fn received_descriptors_close_on_exec() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let (mut a, mut b) = Tube::pair().unwrap();
    a.send(0, &0u32, &[null.as_fd()], soon()).unwrap();
    let fd = b.receive::<u32>(soon()).unwrap().handles.one().unwrap();
    assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn content_that_makes_no_sense_leaves_the_tube_usable() {
    let (mut a, mut b) = Tube::pair().unwrap();
    a.send(1, &[0xffu8; 3], &[], soon()).unwrap();
    a.send(2, &7u32, &[], soon()).unwrap();
    assert!(matches!(b.receive::<u32>(soon()), Err(TubeError::Codec(_))));
    assert_eq!(b.receive::<u32>(soon()).unwrap().message, 7);
}

/// What the other side makes of `hello`.
fn shake(hello: Hello) -> HandshakeError {
    let (mut a, mut b) = Tube::pair().unwrap();
    a.send(0, &hello, &[], soon()).unwrap();
    b.handshake(Role::Vmm, Role::Function, soon()).unwrap_err()
}

#[test]
fn a_handshake_takes_the_minimum() {
    let theirs = Hello { version: 9, max_message: 9000, ..Hello::ours(Role::Function) };
    let agreed = Hello::ours(Role::Vmm).agree(&theirs, Role::Function).unwrap();
    assert_eq!((agreed.version, agreed.max_message), (VERSION, 9000));
}

#[test]
fn a_handshake_that_fails_says_why_with_both_sides() {
    let ours = || Hello::ours(Role::Function);
    let (oldest, newest) = (VERSION + 1, VERSION + 3);
    let version = shake(Hello { version: newest, oldest, ..ours() }).to_string();
    assert!(
        version.contains(&format!("{oldest} to {newest}"))
            && version.contains(&format!("{VERSION} to {VERSION}")),
        "{version}"
    );
    assert!(matches!(
        shake(Hello { version: 0, oldest: 0, ..ours() }),
        HandshakeError::Version { .. }
    ));
    assert!(matches!(shake(Hello { magic: 1, ..ours() }), HandshakeError::Magic(1)));
    assert!(matches!(shake(Hello { max_message: 10, ..ours() }), HandshakeError::Limits { .. }));
    let role = shake(Hello { role: Role::Connection, ..ours() }).to_string();
    assert!(role.contains("Connection") && role.contains("Function"), "{role}");
}

#[test]
fn a_peer_that_closes_instead_of_a_handshake_is_a_disconnect() {
    let (a, mut b) = Tube::pair().unwrap();
    drop(a);
    let error = b.handshake(Role::Vmm, Role::Function, soon()).unwrap_err();
    assert!(matches!(error, HandshakeError::Tube(TubeError::Disconnected)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn garbage_is_never_more_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
        use cordon_ipc::wire::common::Failure;
        use cordon_ipc::wire::function::{Ready, Request};
        let (mut tube, raw) = against_raw();
        let mut framed = frame(u32::try_from(HEADER + bytes.len()).unwrap(), 1, 0, 0, &bytes);
        send_raw(&raw, &framed, &[]);
        send_raw(&raw, &framed, &[]);
        let _ = tube.receive::<Request>(soon());
        let _ = tube.receive::<Result<Ready, Failure>>(soon());
        framed[..bytes.len().min(HEADER)].copy_from_slice(&bytes[..bytes.len().min(HEADER)]);
        send_raw(&raw, &framed, &[]);
        let _ = tube.receive::<Request>(soon());
    }
}
