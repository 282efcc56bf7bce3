//! The DMA companion from inside a guest, without a driver: its registers by the BAR's resource
//! file, its rings in huge pages, whose physical addresses are known and contiguous.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::sys::Mapping;
use crate::{Outcome, probe};

/// Registers.
const VERSION: usize = 0x00;
const MANAGED_BDF: usize = 0x04;
const MAX_ENTRIES: usize = 0x08;
const STATUS: usize = 0x0c;
const CMD_GPA_LO: usize = 0x10;
const CMD_GPA_HI: usize = 0x14;
const DOORBELL: usize = 0x18;

const HUGE: usize = 2 << 20;
/// Huge pages of data: the last 2 MiB of them are the copies' targets.
const DATA: usize = 8;
/// Where requests and responses are in the ring's huge page.
const REQUESTS: usize = 0x1_0000;
const RESPONSES: usize = 0x8_0000;
const BATCH: usize = 4096;

const OK: u32 = 0;
const IO_ERROR: u32 = 1;
const INVALID: u32 = 3;

/// Where guest memory begins: on a PC, and on the arm64 machine of the suites.
const RAM: u64 = if cfg!(target_arch = "aarch64") { 1 << 30 } else { 0 };

struct Ring {
    bar: Mapping,
    memory: Mapping,
    physical: u64,
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or_default()
}

impl Ring {
    fn ring(&self, page: u64) -> u32 {
        self.bar.write(CMD_GPA_LO, low(page));
        self.bar.write(CMD_GPA_HI, low(page >> 32));
        self.bar.write(DOORBELL, 1);
        self.bar.read(STATUS)
    }

    fn command(&self, kind: u32, count: usize, requests: u64, responses: u64) -> u32 {
        self.memory.write(0, kind);
        self.memory.write(4, u32::try_from(count).unwrap_or(u32::MAX));
        self.memory.write(8, u32::MAX);
        self.memory.write_double(16, requests);
        self.memory.write_double(24, responses);
        self.ring(self.physical)
    }

    fn batch(&self, kind: u32, count: usize) -> Result<u32, String> {
        let [requests, responses] = [REQUESTS, RESPONSES].map(|at| self.physical + at as u64);
        let status = self.command(kind, count, requests, responses);
        if self.memory.read(8) != status {
            return Err(format!("the page has status {}, not {status}", self.memory.read(8)));
        }
        Ok(status)
    }

    /// Maps ranges: status, and bus address and status of each.
    fn map(&self, ranges: &[(u64, u32)]) -> Result<(u32, Vec<(u64, u32)>), String> {
        for (number, (address, length)) in ranges.iter().enumerate() {
            self.memory.write_double(REQUESTS + 16 * number, *address);
            self.memory.write(REQUESTS + 16 * number + 8, *length);
            self.memory.write(REQUESTS + 16 * number + 12, 0);
        }
        let status = self.batch(1, ranges.len())?;
        let mut responses = Vec::new();
        for (number, (address, length)) in ranges.iter().enumerate() {
            let at = RESPONSES + 24 * number;
            let status = self.memory.read(at + 20);
            let (id, mapped) = (self.memory.read_double(at), self.memory.read(at + 16));
            if id != *address || status == OK && mapped != *length {
                return Err(format!("response {number}: id {id:#x}, {mapped:#x} bytes"));
            }
            responses.push((self.memory.read_double(at + 8), status));
        }
        Ok((status, responses))
    }

    /// Maps what must be mapped; the bus addresses.
    fn map_all(&self, ranges: &[(u64, u32)]) -> Result<Vec<u64>, String> {
        let (status, responses) = self.map(ranges)?;
        let failed = responses.iter().filter(|(_, status)| *status != OK).count();
        if status != OK || failed > 0 {
            return Err(format!("mapping {}: status {status}, {failed} failed", ranges.len()));
        }
        Ok(responses.into_iter().map(|(bus, _)| bus).collect())
    }

    /// Unmaps what must be unmapped.
    fn unmap_all(&self, ranges: &[(u64, u32)]) -> Outcome {
        for (number, (address, length)) in ranges.iter().enumerate() {
            self.memory.write_double(REQUESTS + 16 * number, *address);
            self.memory.write_double(REQUESTS + 16 * number + 8, u64::from(*length));
        }
        match self.batch(2, ranges.len())? {
            OK => Ok(()),
            status => Err(format!("unmapping {}: status {status}", ranges.len())),
        }
    }
}

/// Everything of the companion.
pub(crate) fn exercise() -> Outcome {
    fs::write("/proc/sys/vm/nr_hugepages", (DATA + 1).to_string())
        .map_err(|error| format!("huge pages: {error}"))?;
    let huge = |pages| Mapping::huge(pages * HUGE).map_err(|error| format!("huge pages: {error}"));
    let (path, device) = probe::open()?;
    let bar = probe::open_bar(&probe::find("0x1b36", "0x0015")?, 4096)?;
    let memory = huge(1)?;
    let ring = Ring { bar, memory, physical: probe::physical(memory.address())? };
    let data = huge(DATA)?;
    let pages: Vec<(u64, u32)> = (0..DATA * HUGE / 4096)
        .map(|page| Ok((probe::physical(data.address() + 4096 * page)?, 4096)))
        .collect::<Result<_, String>>()?;

    registers(&ring, &path.to_string_lossy())?;
    hundred_thousand(&ring, device, data, &pages)?;
    mappings_limit(&ring, &pages)?;
    bytes_limit(&ring)?;
    segments_limit(&ring, &pages)?;
    hostile(&ring, &pages)?;
    // The device still works, and what is mapped now goes with the guest.
    let bus = ring.map_all(&pages[..100])?;
    data.write(0, 0x600d_600d);
    let status = probe::copy_by(device, bus[0], bus[99], 4096)?;
    if status != 0 || data.read(99 * 4096) != 0x600d_600d {
        return Err(format!("the last copy: status {status}"));
    }
    Ok(())
}

fn registers(ring: &Ring, path: &str) -> Outcome {
    let address = path.rsplit('/').next().unwrap_or_default();
    // 0000:00:05.0
    let part = |range| {
        address.get(range).and_then(|text: &str| u32::from_str_radix(text, 16).ok()).unwrap_or(99)
    };
    let managed = part(5..7) << 8 | part(8..10) << 3 | part(11..12);
    let found = [VERSION, MANAGED_BDF, MAX_ENTRIES].map(|at| ring.bar.read(at));
    if found == [2, managed, 4096] {
        println!("companion: version 2 for {address}, batches of 4096");
        Ok(())
    } else {
        Err(format!("registers {found:x?}, {managed:#x} expected"))
    }
}

/// 100,000 regions in batches; of each batch some are copied from and to, and compared.
fn hundred_thousand(ring: &Ring, device: Mapping, data: Mapping, pages: &[(u64, u32)]) -> Outcome {
    let target = pages.len() - 1;
    let (mut mapped, mut copied) = (0, 0);
    let mut round = 0u32;
    while mapped < 100_000 {
        round += 1;
        let bus = ring.map_all(pages)?;
        if bus.iter().zip(pages).any(|(bus, (address, _))| bus == address) {
            return Err("a bus address is the guest's".to_owned());
        }
        for page in (0..target).step_by(512) {
            for word in 0..1024 {
                let value = round.wrapping_mul(0x9e37_79b9) ^ u32::try_from(word).unwrap_or(0);
                data.write(4096 * page + 4 * word, value);
                data.write(4096 * target + 4 * word, 0);
            }
            let status = probe::copy_by(device, bus[page], bus[target], 4096)?;
            let same = (0..1024).all(|word| {
                data.read(4096 * page + 4 * word) == data.read(4096 * target + 4 * word)
            });
            if status != 0 || !same {
                return Err(format!("copy of page {page}: status {status}, same {same}"));
            }
            copied += 4096;
        }
        if round == 1 {
            // The host looks at what is live.
            println!("GUEST-LIVE");
            std::thread::sleep(Duration::from_secs(3));
        }
        ring.unmap_all(pages)?;
        if probe::copy_by(device, bus[0], bus[1], 64)? == 0 {
            return Err("the device reaches what was unmapped".to_owned());
        }
        mapped += pages.len();
    }
    println!("companion: {mapped} regions mapped and unmapped, {copied} bytes copied and compared");
    Ok(())
}

/// The last of 65,537 fails, and there is room again after one is unmapped.
fn mappings_limit(ring: &Ring, pages: &[(u64, u32)]) -> Outcome {
    // 2 MiB are contiguous: ranges of 16 bytes each.
    let base = pages[0].0;
    let all: Vec<(u64, u32)> = (0..65_537).map(|number| (base + 16 * number, 16)).collect();
    let (all, last) = all.split_at(65_536);
    for batch in all.chunks(BATCH) {
        ring.map_all(batch)?;
    }
    let full = ring.map(last)?;
    if (full.0, full.1[0].1) != (IO_ERROR, 1) {
        return Err(format!("mapping 65,537 came to {full:?}"));
    }
    ring.unmap_all(&all[..1])?;
    ring.map_all(last)?;
    ring.unmap_all(last)?;
    for batch in all[1..].chunks(BATCH) {
        ring.unmap_all(batch)?;
    }
    println!("companion: 65,536 mappings and no more, and back");
    Ok(())
}

/// 1.5 GiB and no more: ranges that overlap have keys of their own.
fn bytes_limit(ring: &Ring) -> Outcome {
    const SIZE: u32 = 64 << 20;
    let ranges: Vec<_> = (0..25).map(|at| (RAM + (16 << 20) + 4096 * at, SIZE)).collect();
    ring.map_all(&ranges[..24])?;
    let full = ring.map(&ranges[24..])?;
    if full.0 != IO_ERROR {
        return Err(format!("mapping more than 1.5 GiB came to {full:?}"));
    }
    ring.unmap_all(&ranges[..1])?;
    ring.map_all(&ranges[24..])?;
    ring.unmap_all(&ranges[1..])?;
    println!("companion: 1.5 GiB and no more, and back");
    Ok(())
}

/// The host makes one registration come back in pieces: it fails, and the next does not.
fn segments_limit(ring: &Ring, pages: &[(u64, u32)]) -> Outcome {
    println!("GUEST-FRAGMENT");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let (status, responses) = ring.map(&pages[..2])?;
        let mapped: Vec<_> =
            pages.iter().copied().zip(&responses).filter(|(_, r)| r.1 == OK).collect();
        let mapped: Vec<(u64, u32)> = mapped.into_iter().map(|(page, _)| page).collect();
        ring.unmap_all(&mapped)?;
        match (status, mapped.len()) {
            (OK, 2) => {}
            (IO_ERROR, 1) => break,
            other => return Err(format!("two ranges came to {other:?}")),
        }
        if Instant::now() > end {
            return Err("no registration came back in pieces".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ring.map_all(&pages[..2])?;
    ring.unmap_all(&pages[..2])?;
    println!("companion: a range in pieces fails alone, and back");
    Ok(())
}

/// Rings that make no sense, and rings that another processor rewrites meanwhile.
fn hostile(ring: &Ring, pages: &[(u64, u32)]) -> Outcome {
    let [requests, responses] = [REQUESTS, RESPONSES].map(|at| ring.physical + at as u64);
    for (kind, count, requests, responses) in [
        (0, 1, requests, responses),
        (7, 1, requests, responses),
        (1, 0, requests, responses),
        (1, 4097, requests, responses),
        (1, 1, 0, responses),
        (1, 1, requests, 0),
        (1, 1, u64::MAX - 8, responses),
        (1, 1, requests, 0xffff_ffff_ffff_fff0),
        (2, 1, 0xfee0_0000, responses),
    ] {
        let status = ring.command(kind, count, requests, responses);
        if status != INVALID {
            return Err(format!("{kind} {count} {requests:#x} {responses:#x}: status {status}"));
        }
    }
    for page in [0xfee0_0000, u64::MAX, 1 << 40] {
        if ring.ring(page) != INVALID {
            return Err(format!("a page at {page:#x} is accepted"));
        }
    }
    let outside = [(0xfee0_0000, 4096), (u64::MAX - 4095, 4096), (pages[0].0, 0)];
    let (status, failed) = ring.map(&outside)?;
    if status != IO_ERROR || failed.iter().any(|(_, status)| *status != 1) {
        return Err(format!("ranges outside of memory: {failed:?}"));
    }
    let ended = AtomicBool::new(false);
    let strange = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0x9e37_79b9_7f4a_7c15u64;
            while !ended.load(Ordering::Relaxed) {
                number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let at = usize::try_from(number >> 48 & 0xff8).unwrap_or(0);
                let value = pages[usize::try_from(number >> 40 & 0xff).unwrap_or(0)].0;
                ring.memory.write_double(at % 32, number >> 60);
                ring.memory.write_double(REQUESTS + at, value);
                ring.memory.write_double(RESPONSES + at, number);
            }
        });
        let mut strange = 0;
        for round in 0..300u32 {
            // Also arrays that overlap each other and the page.
            let (requests, responses) = match round % 3 {
                0 => (requests, responses),
                1 => (requests, requests + 8),
                _ => (ring.physical, ring.physical + 8),
            };
            let status = ring.command(1 + round % 2, 64, requests, responses);
            strange += u32::from(![OK, IO_ERROR, INVALID].contains(&status));
        }
        ended.store(true, Ordering::Relaxed);
        strange
    });
    if strange > 0 {
        return Err(format!("{strange} doorbells with a strange status"));
    }
    // Some of these pages were mapped then, whichever.
    let _ = ring.unmap_all(&pages[..256]);
    println!("companion: hostile rings cost a status");
    Ok(())
}
