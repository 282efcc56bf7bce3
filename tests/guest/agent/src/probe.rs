//! The probe device from inside a guest, without a driver: registers by the BAR's resource file,
//! DMA by physical addresses, and each MSI-X vector as what it is on the bus, a memory write, aimed
//! at this program's own memory.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::sys::Mapping;

const BAR: usize = 128 << 10;
const TABLE: usize = 0x8000;
const COPY: usize = 64 << 10;
const PAGE: usize = 4096;

/// The function with these ids, and its path in sysfs.
pub(crate) fn find(vendor: &str, device: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir("/sys/bus/pci/devices").map_err(|error| error.to_string())?;
    for entry in entries.flatten() {
        let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        if read("vendor").trim() == vendor && read("device").trim() == device {
            return Ok(entry.path());
        }
    }
    Err(format!("there is no device {vendor}:{device}"))
}

/// Switches a function on and maps its BAR 0.
pub(crate) fn open_bar(path: &Path, length: usize) -> Result<Mapping, String> {
    let open = |name: &str| {
        let opened = OpenOptions::new().read(true).write(true).open(path.join(name));
        opened.map_err(|error| format!("{name}: {error}"))
    };
    fs::write(path.join("enable"), "1").map_err(|error| format!("enable: {error}"))?;
    let config = Config(open("config")?);
    config.write(0x04, config.read(0x04)? | 0b110)?;
    Mapping::of(&open("resource0")?, length).map_err(|error| format!("BAR 0: {error}"))
}

/// The probe.
pub(crate) fn open() -> Result<(PathBuf, Mapping), String> {
    let path = find("0xc0d0", "0x0002")?;
    let bar = open_bar(&path, BAR)?;
    if bar.read(0) != u32::from_le_bytes(*b"PRBE") {
        return Err(format!("BAR 0 begins with {:#x}", bar.read(0)));
    }
    Ok((path, bar))
}

/// Has the probe copy by the addresses that it reaches memory by; its status.
pub(crate) fn copy_by(bar: Mapping, from: u64, to: u64, length: u32) -> Result<u32, String> {
    let number = bar.read(0x5c).wrapping_add(1);
    bar.write(0x54, u32::MAX);
    bar.write_double(0x40, from);
    bar.write_double(0x48, to);
    bar.write(0x50, length);
    bar.write(0x58, number);
    until("a copy", || bar.read(0x5c) == number)?;
    Ok(bar.read(0x60))
}

/// Config space by its file.
struct Config(File);

impl Config {
    fn read(&self, at: u64) -> Result<u16, String> {
        let mut bytes = [0; 2];
        self.0.read_exact_at(&mut bytes, at).map_err(|error| format!("config {at:#x}: {error}"))?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn write(&self, at: u64, value: u16) -> Outcome {
        let written = self.0.write_all_at(&value.to_le_bytes(), at);
        written.map_err(|error| format!("config {at:#x}: {error}"))
    }

    fn capability(&self, id: u8) -> Result<u64, String> {
        let mut at = self.read(0x34)?.to_le_bytes()[0];
        for _ in 0..48 {
            let [found, next] = self.read(at.into())?.to_le_bytes();
            if found == id {
                return Ok(at.into());
            }
            at = next;
        }
        Err(format!("no capability {id:#x}"))
    }
}

/// Where a page of this program is in physical memory.
pub(crate) fn physical(address: usize) -> Result<u64, String> {
    let map = File::open("/proc/self/pagemap").map_err(|error| error.to_string())?;
    let mut entry = [0; 8];
    let at = (address / PAGE * 8) as u64;
    map.read_exact_at(&mut entry, at).map_err(|error| error.to_string())?;
    let entry = u64::from_le_bytes(entry);
    if entry >> 63 == 0 {
        return Err("a page is not in memory".to_owned());
    }
    Ok((entry & ((1 << 55) - 1)) * PAGE as u64)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        if Instant::now() > end {
            return Err(format!("{what} did not happen within 10 s"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Registers, DMA engine and every vector.
pub(crate) fn exercise() -> Outcome {
    let (path, bar) = open()?;
    let config = OpenOptions::new().read(true).write(true).open(path.join("config"));
    let config = Config(config.map_err(|error| format!("config: {error}"))?);
    for word in 0..12 {
        bar.write(0x10 + 4 * word, 0x1234_0000 + u32::try_from(word).unwrap_or(0));
    }
    for word in 0..12 {
        if bar.read(0x10 + 4 * word) != 0x1234_0000 + u32::try_from(word).unwrap_or(0) {
            return Err(format!("scratch register {word} lost what was written"));
        }
    }
    println!("registers: 12 written and read back");
    copy(bar)?;
    vectors(bar, &config)
}

/// The DMA engine copies page by page: pages of a program are anywhere in physical memory.
fn copy(bar: Mapping) -> Outcome {
    let memory = Mapping::locked(2 * COPY).map_err(|error| format!("memory: {error}"))?;
    for word in 0..COPY / 4 {
        memory.write(4 * word, u32::try_from(word).unwrap_or(0).wrapping_mul(0x9e37_79b9));
    }
    for page in 0..COPY / PAGE {
        let at = memory.address() + page * PAGE;
        let status = copy_by(bar, physical(at)?, physical(at + COPY)?, 4096)?;
        if status != 0 {
            return Err(format!("copy of page {page} ended with status {status}"));
        }
    }
    for word in 0..COPY / 4 {
        if memory.read(COPY + 4 * word) != memory.read(4 * word) {
            return Err(format!("the copy differs at {:#x}", 4 * word));
        }
    }
    println!("DMA engine: {COPY} bytes copied and compared");
    Ok(())
}

/// Fires each vector; its message must arrive at its own word, with its own value.
fn vectors(bar: Mapping, config: &Config) -> Outcome {
    const ENABLE: u16 = 1 << 15;
    let page = Mapping::locked(PAGE).map_err(|error| format!("memory: {error}"))?;
    let target = physical(page.address())?;
    let capability = config.capability(0x11)?;
    let control = config.read(capability + 2)?;
    let count = (control & 0x7ff) + 1;
    for vector in 0..usize::from(count) {
        let entry = TABLE + 16 * vector;
        let address = target + 4 * vector as u64;
        bar.write(entry, u32::try_from(address & 0xffff_ffff).unwrap_or(0));
        bar.write(entry + 4, u32::try_from(address >> 32).unwrap_or(0));
        bar.write(entry + 8, 0x5000 + u32::try_from(vector).unwrap_or(0));
        bar.write(entry + 12, 0);
    }
    config.write(capability + 2, ENABLE | (control & 0x7ff))?;
    for vector in 0..u32::from(count) {
        bar.write(0x64, vector);
        bar.write(0x68, 1);
        bar.write(0x6c, vector + 1);
        let at = 4 * usize::try_from(vector).unwrap_or(0);
        until(&format!("vector {vector}"), || page.read(at) == 0x5000 + vector)?;
    }
    println!("interrupts: each of {count} vectors arrived");
    config.write(capability + 2, control & 0x7ff)
}
