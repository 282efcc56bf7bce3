use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipc::SharedMemory;

use super::*;

fn address(function: u8) -> PciAddress {
    format!("01:00.{function}").parse().unwrap()
}

fn file(size: u64) -> OwnedFd {
    SharedMemory::create("left", size).unwrap().into_fd()
}

/// Two functions, the second with an event for its request, which is readable once the other end was written to.
fn escrow() -> (Escrow, UnixStream) {
    let one = |function, request| EscrowedFunction {
        address: address(function),
        descriptors: 1,
        request,
    };
    let escrowed = Escrowed { group: 2, functions: vec![one(0, false), one(1, true)] };
    let (request, event) = UnixStream::pair().unwrap();
    let files = (1..=4).map(|pages| file(pages << 16));
    let handles: Vec<OwnedFd> = files.chain([event.into()]).collect();
    (Escrow::of(&escrowed, handles.into()).unwrap().unwrap(), request)
}

#[test]
fn what_came_goes_to_a_successor_in_the_same_order() {
    let (escrow, mut request) = escrow();
    let (mut ours, mut theirs) = Tube::pair().unwrap();
    let deadline = Deadline::after(Duration::from_secs(5));
    escrow.send(&mut ours, deadline).unwrap();
    let received = theirs.receive::<Escrowed>(deadline).unwrap();
    let requests: Vec<_> = received.message.functions.iter().map(|one| one.request).collect();
    assert_eq!((received.message.group, requests), (2, vec![false, true]));
    let mut handles: Vec<_> = received.handles.collect();
    let event = handles.pop().unwrap();
    let size = |fd: OwnedFd| std::fs::File::from(fd).metadata().unwrap().len() >> 16;
    assert_eq!(handles.into_iter().map(size).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(!ipc::poll::wait_readable(&event, Deadline::now()).unwrap());
    request.write_all(&[1]).unwrap();
    assert!(ipc::poll::wait_readable(&event, Deadline::now()).unwrap());
}

#[test]
fn that_the_kernel_wants_a_function_back_is_seen_while_no_process_lives() {
    let (mut escrow, mut request) = escrow();
    assert!(!escrow.is_requested());
    request.write_all(&[1]).unwrap();
    assert!(escrow.is_requested());
    escrow.remove(address(1));
    assert!(!escrow.is_requested(), "it was given back");
}

#[test]
fn other_than_it_says_is_refused_and_closed() {
    let escrowed = Escrowed { group: 2, functions: Vec::new() };
    let refused = Escrow::of(&escrowed, vec![file(4096)].into()).unwrap_err();
    assert_eq!((refused.expected, refused.found), (2, 1));
    assert!(Escrow::of(&Escrowed::default(), Handles::default()).unwrap().is_none());
}
