//! What the machine can do at best: the baselines that are made of nothing of ours.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Two threads that pass a number to and fro in memory, each on a cache line of its own, and do not sleep while
/// they do. The other one sleeps when nothing came for a while, so that it is in nobody's way.
pub(crate) struct SpinPair {
    lines: Arc<[Line; 2]>,
    number: u64,
    other: Option<JoinHandle<()>>,
}

#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// Looks in vain until it sleeps: less than a millisecond.
const IDLE: u32 = 10_000;

/// The number that ends it.
const END: u64 = u64::MAX;

impl SpinPair {
    pub(crate) fn start() -> Self {
        let lines: Arc<[Line; 2]> = Arc::default();
        let theirs = Arc::clone(&lines);
        let other = std::thread::spawn(move || {
            let (mut seen, mut looks) = (0, 0);
            while seen != END {
                let now = theirs[0].0.load(Ordering::Acquire);
                if now == seen {
                    std::hint::spin_loop();
                    looks += 1;
                    if looks > IDLE {
                        std::thread::park();
                    }
                    continue;
                }
                (seen, looks) = (now, 0);
                theirs[1].0.store(now, Ordering::Release);
            }
        });
        Self { lines, number: 0, other: Some(other) }
    }

    /// There and back.
    pub(crate) fn round_trip(&mut self) {
        self.number += 1;
        self.lines[0].0.store(self.number, Ordering::Release);
        let mut looks = 0;
        while self.lines[1].0.load(Ordering::Acquire) != self.number {
            std::hint::spin_loop();
            looks += 1;
            if looks % IDLE == 0 {
                self.wake();
            }
        }
    }

    fn wake(&self) {
        if let Some(other) = &self.other {
            other.thread().unpark();
        }
    }
}

impl Drop for SpinPair {
    fn drop(&mut self) {
        self.lines[0].0.store(END, Ordering::Release);
        self.wake();
        self.other.take().map(JoinHandle::join);
    }
}

/// A thread behind a socket that answers `request` bytes with `reply` bytes, and sleeps in between. It ends
/// with the socket.
pub(crate) fn echo(request: usize, reply: usize) -> std::io::Result<Echo> {
    let (near, mut far) = UnixStream::pair()?;
    std::thread::spawn(move || {
        let (mut taken, given) = (vec![0; request], vec![0; reply]);
        while far.read_exact(&mut taken).is_ok() && far.write_all(&given).is_ok() {}
    });
    Ok(Echo { near, request: vec![0; request], reply: vec![0; reply] })
}

/// See [`echo`].
pub(crate) struct Echo {
    near: UnixStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Echo {
    /// There and back.
    ///
    /// # Errors
    /// When the other side is gone.
    pub(crate) fn round_trip(&mut self) -> std::io::Result<()> {
        self.near.write_all(&self.request)?;
        self.near.read_exact(&mut self.reply)
    }
}
