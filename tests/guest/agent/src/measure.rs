//! What requests to disks take, of every NVMe controller in turns: for `cargo xtask bench`.
//!
//! One request at a time, past the page cache. The kernel's command line says how many turns
//! (`cordon.turns=N`) of how many requests (`cordon.requests=N`) there are. Each turn is a line:
//! `DISK VENDOR read|write NANOSECONDS…`.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::Instant;

use crate::{Outcome, load};

const BLOCK: usize = 4096;
/// Blocks that are used, each written before anything is measured.
const BLOCKS: u64 = 4096;

struct Disk {
    vendor: String,
    file: File,
    buffer: Vec<u8>,
    /// Where in the buffer a page begins: O_DIRECT wants that.
    skew: usize,
    /// The block that is written next.
    next: u64,
    random: u64,
}

impl Disk {
    fn open((name, vendor): (String, String)) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let file = options.open(format!("/dev/{name}n1"))?;
        let buffer = vec![0x5a; 2 * BLOCK];
        let skew = buffer.as_ptr().align_offset(BLOCK);
        Ok(Self { vendor, file, buffer, skew, next: 0, random: 1 })
    }

    fn write(&mut self) -> io::Result<()> {
        let at = self.next * BLOCK as u64;
        self.next = (self.next + 1) % BLOCKS;
        self.file.write_all_at(&self.buffer[self.skew..][..BLOCK], at)
    }

    fn read(&mut self) -> io::Result<()> {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (self.random >> 33) % BLOCKS * BLOCK as u64;
        self.file.read_exact_at(&mut self.buffer[self.skew..][..BLOCK], at)
    }

    /// One turn, told in a line.
    fn turn(
        &mut self,
        name: &str,
        requests: u64,
        request: fn(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut line = format!("DISK {} {name}", self.vendor);
        for number in 0..=requests {
            let began = Instant::now();
            request(self)?;
            // The first one finds the other disk's in the caches.
            if number > 0 {
                let _ = write!(line, " {}", began.elapsed().as_nanos());
            }
        }
        println!("{line}");
        Ok(())
    }
}

/// A number of the kernel's command line.
fn option(name: &str) -> Result<u64, String> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
    value.and_then(|value| value.parse().ok()).ok_or_else(|| format!("{name} is no number"))
}

/// Random reads and sequential writes of every disk in turns.
pub(crate) fn disks() -> Outcome {
    let (turns, requests) = (option("cordon.turns=")?, option("cordon.requests=")?);
    let failed = |error: io::Error| error.to_string();
    let controllers = load::controllers()?.into_iter();
    let mut disks = controllers.map(Disk::open).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    for disk in &mut disks {
        (0..BLOCKS).try_for_each(|_| disk.write()).map_err(failed)?;
    }
    for _ in 0..turns {
        for disk in &mut disks {
            disk.turn("read", requests, Disk::read).map_err(failed)?;
        }
        for disk in &mut disks {
            disk.turn("write", requests, Disk::write).map_err(failed)?;
        }
    }
    Ok(())
}
