//! I/O on a disk, and accesses of its function that no window takes, for as long as whoever drives the guest from
//! outside likes: it says so on the second serial port.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{Outcome, load};

/// Registers of a function that are read from the device itself each time: STATUS, beside which the
/// controller's driver changes nothing while it does I/O.
const CONFIG: &str = "/sys/class/nvme/nvme0/device/config";
const STATUS: u64 = 6;
/// Where somebody outside says when it is over.
const PORT: &str = "/dev/ttyS1";
/// How long accesses are timed with nothing happening, to be compared with.
const QUIET: Duration = Duration::from_secs(5);

/// Accesses and the longest of them.
#[derive(Default)]
struct Timed {
    accesses: u64,
    longest: Duration,
}

/// Reads until it is told to end; each time it must be what it was at first.
fn access(ended: &AtomicBool) -> Result<Timed, String> {
    let failed = |error: std::io::Error| format!("{CONFIG}: {error}");
    let file = File::open(CONFIG).map_err(failed)?;
    let (mut first, mut timed) = (None, Timed::default());
    while !ended.load(Ordering::Relaxed) {
        let mut status = [0; 2];
        let before = Instant::now();
        file.read_exact_at(&mut status, STATUS).map_err(failed)?;
        timed.longest = timed.longest.max(before.elapsed());
        timed.accesses += 1;
        if *first.get_or_insert(status) != status {
            return Err(format!("STATUS was {first:x?} and is {status:x?}"));
        }
    }
    Ok(timed)
}

/// Accesses on a thread of their own while `what` is done.
fn accesses(what: impl FnOnce() -> Outcome) -> Result<Timed, String> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let accesses = scope.spawn(|| access(&ended));
        let done = what();
        ended.store(true, Ordering::Relaxed);
        let timed = accesses.join().map_err(|_| "the accesses panicked".to_owned())?;
        done.and(timed)
    })
}

/// Both, until the other side of the port says a line.
pub(crate) fn until_told() -> Outcome {
    let failed = |error: std::io::Error| format!("{PORT}: {error}");
    let mut port = BufReader::new(File::open(PORT).map_err(failed)?);
    let mut quiet = Timed::default();
    let mut timed = Timed::default();
    let tally = load::run("/dev/nvme0n1", |_| {
        quiet = accesses(|| {
            std::thread::sleep(QUIET);
            Ok(())
        })?;
        timed = accesses(|| {
            println!("GUEST-BUSY");
            let mut line = String::new();
            port.read_line(&mut line).map(drop).map_err(failed)
        })?;
        Ok(())
    })?;
    println!(
        "replaced: {} bytes verified, {} accesses, the longest took {} ms, {} ms before",
        tally.verified,
        timed.accesses,
        timed.longest.as_millis(),
        quiet.longest.as_millis()
    );
    match load::complaints()?.first() {
        Some(line) => Err(format!("the kernel says: {line}")),
        None => Ok(()),
    }
}
