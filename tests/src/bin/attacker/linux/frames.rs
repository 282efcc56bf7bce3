//! Frames that lie, and messages without end, at every request that comes.

use ipc::Tube;
use ipc::wire::faults::Point;
use rustix::net::SendFlags;

use super::steps::{leave, silent};

/// Messages of one flood: as many as fit into the tube, which does not wait for its reader, and more.
const FLOOD: u32 = 2000;

fn header(length: u32, id: u32, handles: u16, reserved: [u8; 6]) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&handles.to_le_bytes());
    bytes.extend_from_slice(&reserved);
    bytes
}

/// Sends bytes as they are; `false` when there is no room for them. With the flags that its sandbox lets it
/// send with.
fn send(tube: &Tube, bytes: &[u8]) -> bool {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(tube, bytes, flags).is_ok()
}

/// Sends bytes and goes on as if nothing were.
fn say(tube: &Tube, bytes: &[u8]) {
    let _ = send(tube, bytes);
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    [header(length, id, 0, [0; 6]), body.to_vec()].concat()
}

/// `Result::<u64, Failure>::Ok(7)` as it travels, which answers a read.
fn answer(id: u32) -> Vec<u8> {
    framed(id, &[&[0; 1][..], &7u64.to_le_bytes()].concat())
}

pub(crate) type Strike = (&'static str, Point, fn(&Tube));

pub(crate) const STRIKES: &[Strike] = &[
    ("sends-half-a-header", Point::Before, |tube| say(tube, &[0x10; 7])),
    ("sends-a-length-beyond-all-limits", Point::Before, |tube| {
        say(tube, &header(u32::MAX, 1, 0, [0; 6]));
    }),
    ("sends-a-length-that-is-not-so", Point::Before, |tube| {
        say(tube, &[header(64, 1, 0, [0; 6]), vec![0; 16]].concat());
    }),
    ("sends-a-length-of-nothing", Point::Before, |tube| say(tube, &header(0, 1, 0, [0; 6]))),
    ("sends-an-oversized-frame", Point::Before, |tube| {
        let length = ipc::tube::MAX_MESSAGE + 4096;
        let mut bytes = header(u32::try_from(length).unwrap(), 1, 0, [0; 6]);
        bytes.resize(length, 0x5a);
        say(tube, &bytes);
    }),
    ("announces-descriptors-that-do-not-come", Point::Before, |tube| {
        say(tube, &header(16, 1, 32, [0; 6]));
    }),
    ("announces-65535-descriptors", Point::Before, |tube| {
        say(tube, &header(16, 1, u16::MAX, [0; 6]));
    }),
    ("sets-reserved-bytes", Point::Before, |tube| say(tube, &header(16, 1, 0, [1; 6]))),
    ("answers-with-an-unknown-type", Point::Before, |tube| {
        // Under every number that may be waited for.
        for id in 0..64 {
            say(tube, &framed(id, &[0xff; 24]));
        }
    }),
    ("answers-with-nothing", Point::Before, |tube| {
        for id in 0..64 {
            say(tube, &framed(id, &[]));
        }
    }),
    ("answers-before-it-is-asked", Point::Before, |tube| say(tube, &answer(u32::MAX / 2))),
    ("answers-what-was-answered-long-ago", Point::After, |tube| say(tube, &answer(0))),
    ("floods-replies", Point::Before, |tube| {
        for id in 0..FLOOD {
            say(tube, &answer(id));
        }
    }),
    ("floods-replies-as-long-as-may-be", Point::Before, |tube| {
        let body = vec![0x41; ipc::tube::MAX_MESSAGE - 16];
        for id in 0..FLOOD {
            say(tube, &framed(id, &body));
        }
    }),
    ("exits-before-its-first-answer", Point::Before, |_| leave()),
    ("exits-after-its-first-answer", Point::After, |_| leave()),
    ("is-silent-at-its-first-request", Point::Before, |_| silent()),
];
