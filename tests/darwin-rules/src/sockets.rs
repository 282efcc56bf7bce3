//! Sockets of the local domain.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::calls::{errno, fill, pair, set_nonblocking};

/// `bsd/kern/uipc_proto.c`: the local domain registers SOCK_STREAM and SOCK_DGRAM.
#[test]
fn there_are_no_sequenced_packets() {
    let mut ends = [0; 2];
    // SAFETY: two places.
    let done =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()) };
    assert_eq!((done, errno()), (-1, libc::EPROTONOSUPPORT));
}

/// `bsd/kern/uipc_socket.c`, sosendcheck: the socket's own state says whether a send waits, and no flag.
#[test]
fn a_send_waits_whatever_its_flags_say() {
    let (a, b) = pair();
    fill(&a);
    let sender = std::thread::spawn(move || {
        let bytes = [1u8; 64];
        // SAFETY: a buffer of this thread's own.
        let sent =
            unsafe { libc::send(a.as_raw_fd(), bytes.as_ptr().cast(), 64, libc::MSG_DONTWAIT) };
        (sent, a)
    });
    // It would have come back by now if the flag counted.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!sender.is_finished(), "MSG_DONTWAIT was heeded");
    drain(&b);
    assert_eq!(sender.join().unwrap().0, 64);
}

/// Reads everything that is there.
fn drain(fd: &OwnedFd) {
    set_nonblocking(fd, true);
    let mut buffer = [0u8; 4096];
    // SAFETY: a buffer of this function's own.
    while unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) } > 0 {}
}

/// `bsd/kern/uipc_socket.c`, soreceive: on a receive it does.
#[test]
fn a_receive_does_not_wait_if_its_flags_say_so() {
    let (a, _b) = pair();
    let mut buffer = [0u8; 8];
    // SAFETY: a buffer of this test's own.
    let came =
        unsafe { libc::recv(a.as_raw_fd(), buffer.as_mut_ptr().cast(), 8, libc::MSG_DONTWAIT) };
    assert_eq!((came, errno()), (-1, libc::EAGAIN));
}

/// Sends a byte with control data as it is given.
fn send_control(fd: &OwnedFd, control: &mut [u8]) -> (isize, i32) {
    let mut byte = [7u8];
    let mut buffer = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: a header whose parts are this function's own.
    let sent = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut buffer;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = u32::try_from(control.len()).unwrap();
        libc::sendmsg(fd.as_raw_fd(), &raw const header, 0)
    };
    (sent, if sent < 0 { errno() } else { 0 })
}

/// A header of 12 bytes and descriptors, and `padding` behind them.
fn rights(descriptors: &[RawFd], length: usize, padding: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(length).unwrap().to_ne_bytes());
    bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
    bytes.extend(libc::SCM_RIGHTS.to_ne_bytes());
    descriptors.iter().for_each(|fd| bytes.extend(fd.to_ne_bytes()));
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

/// `bsd/kern/uipc_socket.c`, sosendcheck, with the limit that `uipc_send` lowers by what was not read: control data
/// that does not fit is an error, also where the socket waits.
#[test]
fn a_descriptor_that_finds_the_buffer_full_is_too_long_a_message() {
    let (a, b) = pair();
    fill(&a);
    let control = rights(&[b.as_raw_fd()], 16, 0);
    assert_eq!(send_control(&a, &mut control.clone()), (-1, libc::EMSGSIZE));
    drain(&b);
    assert_eq!(send_control(&a, &mut control.clone()), (1, 0));
}

/// `bsd/sys/socket.h`, CMSG_ALIGN, and `bsd/kern/uipc_usrreq.c`, unp_internalize: the header's length is all of the
/// control data, and that of one descriptor has 16 bytes.
#[test]
fn control_data_is_aligned_to_four_bytes() {
    let (a, b) = pair();
    let fd = b.as_raw_fd();
    assert_eq!(send_control(&a, &mut rights(&[fd], 16, 0)), (1, 0));
    // As with an alignment of 8: 16 bytes of header, 24 in all.
    assert_eq!(send_control(&a, &mut rights(&[fd], 16, 8)), (-1, libc::EINVAL));
    let mut byte = [0u8];
    let mut room = [0u8; 64];
    let mut buffer = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: a header whose parts are this test's own.
    let (came, length) = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut buffer;
        header.msg_iovlen = 1;
        header.msg_control = room.as_mut_ptr().cast();
        header.msg_controllen = 64;
        (libc::recvmsg(b.as_raw_fd(), &raw mut header, 0), header.msg_controllen)
    };
    assert_eq!((came, length), (1, 16));
    assert_eq!(room[..4], 16u32.to_ne_bytes());
    let received = RawFd::from_ne_bytes(room[12..16].try_into().unwrap());
    // SAFETY: plain numbers. A received descriptor is not closed by exec, since no flag asks for it.
    assert_eq!(unsafe { libc::fcntl(received, libc::F_GETFD) }, 0);
    // SAFETY: the descriptor that was received.
    unsafe { libc::close(received) };
}

/// `bsd/kern/kern_descrip.c`, file_issendable: a kernel queue is none of the kinds that are.
#[test]
fn a_kernel_queue_cannot_be_sent() {
    let (a, _b) = pair();
    // SAFETY: nothing is passed; the descriptor is closed below.
    let queue = unsafe { libc::kqueue() };
    assert_eq!(send_control(&a, &mut rights(&[queue], 16, 0)), (-1, libc::EINVAL));
    // SAFETY: made above.
    unsafe { libc::close(queue) };
}

static PIPES: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_pipe(_signal: i32) {
    PIPES.fetch_add(1, Ordering::SeqCst);
}

/// `bsd/kern/uipc_socket.c`, sosend: EPIPE raises SIGPIPE unless the socket has SO_NOSIGPIPE.
#[test]
fn a_send_to_nobody_raises_a_signal_unless_the_socket_says_otherwise() {
    let handler = count_pipe as extern "C" fn(i32) as *const () as usize;
    // SAFETY: a handler that only counts.
    let before = unsafe { libc::signal(libc::SIGPIPE, handler) };
    let send = |fd: &OwnedFd| {
        // SAFETY: a buffer of one byte.
        let sent = unsafe { libc::send(fd.as_raw_fd(), [1u8].as_ptr().cast(), 1, 0) };
        assert_eq!((sent, errno()), (-1, libc::EPIPE));
    };
    let (a, b) = pair();
    drop(b);
    send(&a);
    assert_eq!(PIPES.load(Ordering::SeqCst), 1);
    let on = 1i32;
    // SAFETY: a number of this test's own.
    let set = unsafe {
        let value = (&raw const on).cast();
        libc::setsockopt(a.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NOSIGPIPE, value, 4)
    };
    assert_eq!(set, 0);
    send(&a);
    // The option is the socket's, and not the descriptor's.
    send(&a.as_fd().try_clone_to_owned().unwrap());
    // SAFETY: as above; the same for a write.
    let written = unsafe { libc::write(a.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
    assert_eq!((written, errno()), (-1, libc::EPIPE));
    assert_eq!(PIPES.load(Ordering::SeqCst), 1);
    // SAFETY: what was there before.
    unsafe { libc::signal(libc::SIGPIPE, before) };
}
