//! Whoever stops reading, or goes away, holds up and ends nobody else: no socket and no event waits for
//! its peer or raises a signal, by what it is and not only by the flags of a call, which macOS ignores.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(unsafe_code, reason = "setting the disposition of a signal")]

use std::os::fd::AsFd;
use std::time::Duration;

use cordon_ipc::event::Signaller;
use cordon_ipc::tube::Listener;
use cordon_ipc::{Deadline, Event, SocketFile, Tube, TubeError, rights};
use rustix::fs::OFlags;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

fn blocks(fd: &impl AsFd) -> bool {
    !rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

#[test]
fn no_end_of_a_socket_blocks() {
    let (near, far) = Tube::pair().unwrap();
    assert!(!blocks(&near) && !blocks(&far));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tubes");
    let listener = Listener::bind(&path).unwrap();
    let near = Tube::connect(&path).unwrap();
    let far = listener.accept().unwrap();
    assert!(!blocks(&near) && !blocks(&far));
    let path = folder.path().join("stream");
    let file = SocketFile::listen(&path).unwrap();
    let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(blocks(&client));
    assert!(!blocks(&file.accept().unwrap()));
    rights::prepare(&client);
    assert!(!blocks(&client));
}

#[test]
fn no_end_of_an_event_blocks() {
    let event = Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    assert!(!blocks(&event) && !blocks(&signaller));
    // Many more than a pipe has room for.
    (0..100_000).for_each(|_| signaller.signal());
    assert!(event.wait(Deadline::now()).unwrap());
    assert!(!event.clear().unwrap());
}

#[test]
fn an_event_lists_every_descriptor_that_it_holds() {
    let event = Event::new().unwrap();
    let listed: Vec<u64> =
        event.descriptors().iter().map(|fd| rustix::fs::fstat(fd).unwrap().st_ino as u64).collect();
    let pipe = cfg!(any(target_os = "macos", cordon_portable));
    assert_eq!(listed.len(), if pipe { 2 } else { 1 });
    let signaller = event.signaller().unwrap();
    let written = rustix::io::write(event.descriptors().last().unwrap(), &1u64.to_ne_bytes());
    assert!(written.is_ok() && event.clear().unwrap(), "the last is the one that is written to");
    drop(signaller);
}

/// The signal ends this process, and with it the test, if anything raises it.
#[test]
fn a_peer_that_is_gone_is_an_error_and_raises_no_signal() {
    // SAFETY: plain numbers; no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let (mut near, far) = Tube::pair().unwrap();
    drop(far);
    assert!(matches!(near.send(0, &1u32, &[], soon()), Err(TubeError::Disconnected)));
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    rights::prepare(&near);
    drop(far);
    assert!(rights::send(&near, b"x", &[]).is_err());
    // A pipe in its place raises one on Linux, where no program of ours lets it come.
    if cfg!(any(target_os = "macos", not(cordon_portable))) {
        let event = Event::new().unwrap();
        let signaller = event.signaller().unwrap();
        drop(event);
        signaller.signal();
    }
    #[cfg(target_os = "macos")]
    {
        let (read, write) = std::io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
        let signaller = Signaller::from_peer(write.into()).unwrap();
        drop(read);
        signaller.signal();
    }
    #[cfg(not(target_os = "macos"))]
    let _: Option<Signaller> = None;
}
