//! Descriptors that come over a tube and are not taken are closed. A program of its own with one
//! test, since it counts the descriptors of the process. Of SEQPACKET: over STREAM a sender keeps what it
//! sent until it hears that it came.
#![cfg(all(target_os = "linux", not(cordon_portable)))]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::time::Duration;

use cordon_ipc::tube::frame::{FrameError, Header};
use cordon_ipc::{Deadline, Tube, TubeError};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn descriptors_that_nobody_takes_are_closed() {
    let soon = Deadline::after(Duration::from_secs(5));
    let null = std::fs::File::open("/dev/null").unwrap();
    let (mut a, mut b) = Tube::pair().unwrap();
    let before = open_descriptors();

    // Beside a message that is dropped.
    for _ in 0..100 {
        a.send(0, &0u32, &[null.as_fd(); 8], soon).unwrap();
        drop(b.receive::<u32>(soon).unwrap());
    }
    assert_eq!(open_descriptors(), before);

    // Beside a message that makes no sense.
    a.send(0, &0u32, &[null.as_fd(); 8], soon).unwrap();
    assert!(matches!(b.receive::<String>(soon), Err(TubeError::Codec(_))));
    assert_eq!(open_descriptors(), before);

    // Beside a message whose control data was cut: 40 where 32 have room.
    let flags = SocketFlags::CLOEXEC;
    let (end, raw) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let mut tube = Tube::from_fd(end);
    let before = open_descriptors();
    let mut bytes = Header { length: 20, id: 1, handles: 32 }.to_bytes().to_vec();
    bytes.extend_from_slice(&7u32.to_le_bytes());
    let many = [null.as_fd(); 40];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    let parts = [IoSlice::new(&bytes)];
    rustix::net::sendmsg(&raw, &parts, &mut control, SendFlags::empty()).unwrap();
    let error = tube.receive::<u32>(soon).unwrap_err();
    assert!(matches!(error, TubeError::Frame(FrameError::Truncated)), "{error}");
    assert_eq!(open_descriptors(), before);
}
