//! What the command says: datagrams as of sd_notify(3), each with the number of the process that sent it, which the
//! kernel says.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use rustix::process::Pid;

use crate::Failure;
use crate::limits::{MAX_KEPT_AT_ONCE, MAX_KEPT_NAME, MAX_NOTIFICATION};

/// What a descriptor is called that was stored without a name, as with systemd.
const NAMELESS: &str = "stored";

/// Bytes of control data that there is room for.
const ROOM: usize =
    rustix::cmsg_space!(ScmRights(MAX_KEPT_AT_ONCE), ScmCredentials(1)).next_multiple_of(8);

/// Room for control data, whose begin and end are aligned: otherwise too many descriptors may fill it to a byte at which
/// the kernel ends without padding, and what reads it leaves such a last message out, with all that is in it.
#[repr(align(8))]
struct Space([MaybeUninit<u8>; ROOM]);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) name: String,
    /// The command is ready.
    pub(super) is_ready: bool,
    /// What is kept by that name goes.
    pub(super) is_removed: bool,
    /// To be kept by that name.
    pub(super) stored: Vec<OwnedFd>,
}

/// A socket that hears who sends.
pub(super) fn bind(path: &Path) -> Result<UnixDatagram, Failure> {
    let failed = |error: std::io::Error| format!("cannot listen at {}: {error}", path.display());
    let socket = UnixDatagram::bind(path).map_err(failed)?;
    socket.set_nonblocking(true)?;
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    Ok(socket)
}

/// What one look at the socket brought.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Message),
    /// What another process sent, or what makes no sense: it is closed.
    LeftOut,
    Nothing,
}

/// The next message, if process `from` sent it.
pub(super) fn hear(socket: &UnixDatagram, from: Pid) -> Heard {
    loop {
        let mut bytes = [0; MAX_NOTIFICATION + 1];
        let mut space = Space([MaybeUninit::uninit(); ROOM]);
        let mut control = RecvAncillaryBuffer::new(&mut space.0);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let came = match rustix::net::recvmsg(socket, parts, &mut control, flags) {
            Ok(came) => came,
            Err(Errno::INTR) => continue,
            Err(_) => return Heard::Nothing,
        };
        let (mut handles, mut sender) = (Vec::new(), None);
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(rights) => handles.extend(rights),
                RecvAncillaryMessage::ScmCredentials(who) => sender = Some(who.pid),
                _ => {}
            }
        }
        let is_whole = !came.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
            && came.bytes <= MAX_NOTIFICATION
            && handles.len() <= MAX_KEPT_AT_ONCE;
        if sender != Some(from) {
            tracing::warn!("a message of another process than the command is left out");
        } else if !is_whole {
            tracing::warn!("a message of the command is longer than one may be, and left out");
        } else if let Some(message) = read(&bytes[..came.bytes], handles) {
            return Heard::Message(message);
        }
        return Heard::LeftOut;
    }
}

/// What a message says, if that makes sense.
fn read(bytes: &[u8], handles: Vec<OwnedFd>) -> Option<Message> {
    let text = std::str::from_utf8(bytes).ok()?;
    let says = |what: &str| text.lines().any(|line| line == what);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let visible = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':');
    if name.is_some_and(|name| name.is_empty() || name.len() > MAX_KEPT_NAME || !visible(name)) {
        tracing::warn!("a name that none can be is left out, with what has it");
        return None;
    }
    let is_removed = says("FDSTOREREMOVE=1");
    let is_stored = says("FDSTORE=1") && !is_removed;
    // A descriptor with anything else, as BARRIER=1 has it, is closed: it was come to.
    let stored = if is_stored { handles } else { Vec::new() };
    let is_ready = says("READY=1");
    // Nothing is removed without a name.
    let is_removed = is_removed && name.is_some();
    let name = name.unwrap_or(NAMELESS).to_owned();
    Some(Message { name, is_ready, is_removed, stored })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, BorrowedFd};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn messages_are_read_as_those_of_systemd_are() {
        let stored = read(b"FDSTORE=1\nFDNAME=a b\n", vec![null(), null()]).unwrap();
        assert_eq!((stored.name.as_str(), stored.stored.len()), ("a b", 2));
        // Whether systemd looks at it: nothing is looked at here but what the kernel wants back.
        let unwatched = read(b"FDSTORE=1\nFDPOLL=0\nFDNAME=a\n", vec![null()]).unwrap();
        assert_eq!((unwatched.name.as_str(), unwatched.stored.len()), ("a", 1));
        let nameless = read(b"STATUS=x\nFDSTORE=1", vec![null()]).unwrap();
        assert_eq!((nameless.name.as_str(), nameless.stored.len()), (NAMELESS, 1));
        let barrier = read(b"BARRIER=1", vec![null()]).unwrap();
        assert!(barrier.stored.is_empty() && !barrier.is_ready && !barrier.is_removed);
        let removed = read(b"FDSTOREREMOVE=1\nFDNAME=a\n", Vec::new()).unwrap();
        assert!(removed.is_removed && removed.name == "a");
        assert!(!read(b"FDSTOREREMOVE=1\n", Vec::new()).unwrap().is_removed);
        assert!(read(b"READY=1\n", Vec::new()).unwrap().is_ready);
    }

    #[test]
    fn names_are_as_long_as_they_may_be_and_visible() {
        let named = |name: &str| {
            let text = format!("FDSTORE=1\nFDNAME={name}\n");
            read(text.as_bytes(), vec![null()]).is_some()
        };
        let longest = "x".repeat(MAX_KEPT_NAME);
        assert!(named("a") && named(&longest));
        for name in ["", "a:b", "\u{e4}", "a\tb", &format!("{longest}x")] {
            assert!(!named(name), "{name}");
        }
        assert!(read(b"FDSTORE=1\nFDNAME=\xff", vec![null()]).is_none());
    }

    /// The next message of this process.
    fn next(socket: &UnixDatagram, from: Pid) -> Option<Message> {
        loop {
            match hear(socket, from) {
                Heard::Message(message) => return Some(message),
                Heard::LeftOut => {}
                Heard::Nothing => return None,
            }
        }
    }

    fn send(to: &UnixDatagram, text: &[u8], handles: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(handles)));
        let parts = [std::io::IoSlice::new(text)];
        rustix::net::sendmsg(to, &parts, &mut control, SendFlags::empty()).unwrap();
    }

    /// A socket, and another one that sends to it.
    fn both() -> (UnixDatagram, UnixDatagram) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let (socket, other) = (bind(&path).unwrap(), UnixDatagram::unbound().unwrap());
        other.connect(&path).unwrap();
        (socket, other)
    }

    #[test]
    fn however_many_descriptors_come_none_is_lost_and_none_stays_open() {
        let ((socket, other), own) = (both(), rustix::process::getpid());
        for count in 1..=64 {
            let (read, write) = rustix::pipe::pipe().unwrap();
            send(&other, b"FDSTORE=1\nFDNAME=a\n", &vec![write.as_fd(); count]);
            drop(write);
            other.send(b"READY=1\n").unwrap();
            let first = next(&socket, own).unwrap();
            if count <= MAX_KEPT_AT_ONCE {
                assert_eq!((first.stored.len(), first.is_ready), (count, false));
                assert!(next(&socket, own).unwrap().is_ready);
            } else {
                assert!(first.is_ready && first.stored.is_empty(), "{count}: {first:?}");
            }
            drop(first);
            assert!(next(&socket, own).is_none());
            // The end of the pipe: nobody has the other end.
            assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0), "{count}");
        }
    }

    #[test]
    fn what_is_too_long_or_of_another_process_is_left_out() {
        let ((socket, other), own) = (both(), rustix::process::getpid());
        other.send(&vec![b'x'; MAX_NOTIFICATION + 1]).unwrap();
        other.send(b"READY=1\n").unwrap();
        assert!(next(&socket, own).unwrap().is_ready);
        assert!(next(&socket, own).is_none());
        other.send(b"READY=1\n").unwrap();
        assert!(next(&socket, Pid::INIT).is_none(), "it was not sent by that");
        assert!(next(&socket, own).is_none());
    }
}
