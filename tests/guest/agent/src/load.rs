//! I/O past the page cache by several threads, as fio does it with verification: every block is read
//! back and compared, and the longest time that one request took is known.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::sys;

/// Threads, each with blocks of its own.
const THREADS: usize = 4;
/// Bytes of a block.
const BLOCK: usize = 16 << 10;
/// Blocks of a thread.
const BLOCKS: usize = 128;

/// What the I/O was like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    /// The longest that one request took.
    pub(crate) longest: Duration,
    /// Bytes that were read back and found to be as they were written.
    pub(crate) verified: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.verified += other.verified;
        self.longest = self.longest.max(other.longest);
    }
}

/// What the threads share with whoever decides when they end.
#[derive(Default)]
pub(crate) struct Watch {
    ended: AtomicBool,
    /// The longest request that has ended so far, in milliseconds.
    longest: AtomicU64,
}

impl Watch {
    /// Has the threads end after the block they are at.
    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// The longest request that has ended so far.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }
}

/// One thread's blocks and what they hold.
struct Blocks {
    disk: File,
    /// The first of them, in bytes.
    start: u64,
    /// How often each was written.
    rounds: [u64; BLOCKS],
    buffer: Vec<u8>,
    /// Where in the buffer a page begins: O_DIRECT wants that.
    skew: usize,
    tally: Tally,
}

impl Blocks {
    fn open(path: &str, thread: usize) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let disk = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
        let buffer = vec![0; BLOCK + 4096];
        let skew = buffer.as_ptr().align_offset(4096);
        let start = (thread * BLOCKS * BLOCK) as u64;
        let (rounds, tally) = ([0; BLOCKS], Tally::default());
        Ok(Self { disk, start, rounds, buffer, skew, tally })
    }

    /// The 8 bytes at `word` of a block: different for each place and each time it is written.
    fn word(at: u64, round: u64, word: u64) -> u64 {
        (at + word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ round
    }

    fn at(&self, block: usize) -> u64 {
        self.start + (block * BLOCK) as u64
    }

    /// Does one request and takes its time.
    fn timed(
        &mut self,
        watch: &Watch,
        what: impl FnOnce(&File, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let before = Instant::now();
        let done = what(&self.disk, &mut self.buffer[self.skew..self.skew + BLOCK]);
        let took = before.elapsed();
        self.tally.add(Tally { requests: 1, longest: took, verified: 0 });
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        watch.longest.fetch_max(ms, Ordering::Relaxed);
        done
    }

    fn write(&mut self, block: usize, watch: &Watch) -> Outcome {
        let (at, round) = (self.at(block), self.rounds[block] + 1);
        for (number, word) in self.buffer[self.skew..self.skew + BLOCK].chunks_mut(8).enumerate() {
            word.copy_from_slice(&Self::word(at, round, number as u64).to_le_bytes());
        }
        let written = self.timed(watch, |disk, bytes| disk.write_all_at(bytes, at));
        written.map_err(|error| format!("write at {at:#x}: {error}"))?;
        self.rounds[block] = round;
        Ok(())
    }

    fn verify(&mut self, block: usize, watch: &Watch) -> Outcome {
        let (at, round) = (self.at(block), self.rounds[block]);
        if round == 0 {
            return Ok(());
        }
        let read = self.timed(watch, |disk, bytes| disk.read_exact_at(bytes, at));
        read.map_err(|error| format!("read at {at:#x}: {error}"))?;
        for (number, word) in self.buffer[self.skew..self.skew + BLOCK].chunks(8).enumerate() {
            if word != Self::word(at, round, number as u64).to_le_bytes() {
                return Err(format!("{at:#x} of round {round} differs at word {number}"));
            }
        }
        self.tally.verified += BLOCK as u64;
        Ok(())
    }

    /// Writes blocks in no order and compares others, until it is told to end; then compares all.
    fn run(mut self, watch: &Watch) -> Result<Tally, String> {
        let mut next = self.start + 1;
        let mut choose = || {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(next >> 33).unwrap_or(0) % BLOCKS
        };
        while !watch.ended.load(Ordering::Relaxed) {
            self.write(choose(), watch)?;
            self.verify(choose(), watch)?;
        }
        for block in 0..BLOCKS {
            self.verify(block, watch)?;
        }
        Ok(self.tally)
    }
}

/// Runs the load on a disk until `until` returns, which is told how it goes.
pub(crate) fn run(path: &str, until: impl FnOnce(&Watch) -> Outcome) -> Result<Tally, String> {
    let watch = Watch::default();
    let mut all = Tally::default();
    let mut blocks = Vec::new();
    for thread in 0..THREADS {
        blocks.push(Blocks::open(path, thread).map_err(|error| format!("{path}: {error}"))?);
    }
    let done = std::thread::scope(|scope| {
        let watch = &watch;
        let threads: Vec<_> =
            blocks.into_iter().map(|blocks| scope.spawn(move || blocks.run(watch))).collect();
        let done = until(watch);
        watch.end();
        for thread in threads {
            all.add(thread.join().map_err(|_| "a thread of the load panicked".to_owned())??);
        }
        done
    });
    done.map(|()| all)
}

/// What the kernel says of the disk, or of an interrupt that nobody wanted.
pub(crate) fn complaints() -> Result<Vec<String>, String> {
    const BAD: [&str; 7] =
        ["timeout", "I/O error", "i/o error", "Abort", "abort", "reset controller", "nobody cared"];
    let log = sys::kernel_log().map_err(|error| format!("kernel log: {error}"))?;
    let of_ours = |line: &&str| {
        (line.contains("nvme") || line.contains("irq ")) && !line.contains("ommand line")
    };
    let lines = log.lines().filter(of_ours).filter(|line| BAD.iter().any(|bad| line.contains(bad)));
    Ok(lines.map(str::to_owned).collect())
}

/// I/O for a while, whatever happens to the processes behind the disk; the kernel must have nothing to
/// say about it.
pub(crate) fn stalled() -> Outcome {
    const LENGTH: Duration = Duration::from_secs(25);
    let tally = run("/dev/nvme0n1", |_| {
        println!("GUEST-BUSY");
        std::thread::sleep(LENGTH);
        Ok(())
    })?;
    println!("{} requests, the longest took {} ms", tally.requests, tally.longest.as_millis());
    match complaints()?.first() {
        Some(line) => Err(format!("the kernel says: {line}")),
        None => Ok(()),
    }
}

/// I/O across a loss that the kernel's driver has to find and mend by itself; nobody here helps it.
pub(crate) fn outlived() -> Outcome {
    /// Longer than any request takes that is not lost.
    const LOST: Duration = Duration::from_secs(7);
    const LIMIT: Duration = Duration::from_secs(130);
    let end = Instant::now() + LIMIT;
    let tally = run("/dev/nvme0n1", |watch| {
        println!("GUEST-BUSY");
        while watch.longest() < LOST {
            if Instant::now() > end {
                return Err(format!("no request was lost and mended within {LIMIT:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // It goes on as before.
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    println!("{} requests, the longest took {} ms", tally.requests, tally.longest.as_millis());
    for line in complaints()? {
        println!("kernel: {line}");
    }
    Ok(())
}

/// How often the interrupt was taken that a controller shares, by its PCI function's `irq`.
fn taken(controller: &str) -> Result<u64, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let irq = read(&format!("/sys/class/nvme/{controller}/device/irq"))?;
    let table = read("/proc/interrupts")?;
    let row = table.lines().find_map(|line| {
        let (number, rest) = line.trim().split_once(':')?;
        (number == irq.trim()).then_some(rest)
    });
    let row = row.ok_or_else(|| format!("there is no interrupt {irq}"))?;
    Ok(row.split_whitespace().map_while(|field| field.parse::<u64>().ok()).sum())
}

/// The controllers: name, and the vendor of the function that they are.
pub(crate) fn controllers() -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    let entries = std::fs::read_dir("/sys/class/nvme").map_err(|error| error.to_string())?;
    for entry in entries.flatten() {
        let vendor = std::fs::read_to_string(entry.path().join("device/vendor"));
        let vendor = vendor.map_err(|error| format!("vendor: {error}"))?;
        all.push((entry.file_name().to_string_lossy().into_owned(), vendor.trim().to_owned()));
    }
    all.sort();
    Ok(all)
}

/// Bursts of I/O with pauses, by interrupts of the pin: each is taken about as often as something was
/// done, and none while nothing is.
pub(crate) fn by_pin() -> Outcome {
    const BURSTS: u32 = 6;
    const BURST: Duration = Duration::from_millis(1200);
    const PAUSE: Duration = Duration::from_secs(2);
    for (name, vendor) in controllers()? {
        let (mut requests, mut idle, before) = (0, 0, taken(&name)?);
        let mut longest = Duration::ZERO;
        for _ in 0..BURSTS {
            let tally = run(&format!("/dev/{name}n1"), |_| {
                std::thread::sleep(BURST);
                Ok(())
            })?;
            requests += tally.requests;
            longest = longest.max(tally.longest);
            let quiet = taken(&name)?;
            std::thread::sleep(PAUSE);
            idle += taken(&name)? - quiet;
        }
        let all = taken(&name)? - before;
        println!(
            "pin {vendor}: {requests} requests, {all} interrupts, {idle} of them in pauses, the \
             longest took {} ms",
            longest.as_millis()
        );
    }
    match complaints()?.first() {
        Some(line) => Err(format!("the kernel says: {line}")),
        None => Ok(()),
    }
}
