//! What the guest does meanwhile: verified NVMe I/O, interrupts, trapped accesses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cordon_vmm::{Function, PassthroughDevice as _};
use ipc::{Deadline, Window};

use super::TIMEOUT;
use crate::Failure;
use crate::rig::nvme::{Memory, Nvme};
use crate::rig::storage::{BUFFER, Corrupt, Storage};
use crate::rig::{QUEUES, RAM_BASE, alive, register_window, vectors};

/// Bytes that are written, read back and compared in one round.
const ROUND: u64 = 4 << 20;

/// What went wrong, and how much went right.
#[derive(Default)]
pub(super) struct Tally {
    ended: AtomicBool,
    pub(super) bytes: AtomicU64,
    pub(super) interrupts: AtomicU64,
    pub(super) corrupt_bytes: AtomicU64,
    pub(super) io_errors: AtomicU64,
    pub(super) lost_interrupts: AtomicU64,
}

impl Tally {
    pub(super) fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn trouble(&self) -> u64 {
        let all = [&self.corrupt_bytes, &self.io_errors, &self.lost_interrupts];
        all.iter().map(|one| one.load(Ordering::Relaxed)).sum()
    }
}

/// Writes, reads back and compares until the torture ends or something is wrong, which is counted.
pub(super) fn move_data(disk: &Arc<Function>, ram: &Window, tally: &Tally) -> Result<(), String> {
    let moved = rounds(disk, ram, tally).map_err(|error| {
        let corrupt = error.downcast_ref::<Corrupt>().map_or(0, |corrupt| corrupt.count);
        tally.corrupt_bytes.fetch_add(corrupt as u64, Ordering::Relaxed);
        tally.io_errors.fetch_add(u64::from(corrupt == 0), Ordering::Relaxed);
        error.to_string()
    });
    tally.end();
    moved
}

fn rounds(disk: &Arc<Function>, ram: &Window, tally: &Tally) -> Result<(), Failure> {
    let registers = register_window(disk)?;
    let events = vectors(disk, QUEUES + 1)?;
    let mut memory = Memory::new(ram, RAM_BASE);
    let alive = || alive(disk);
    let mut nvme = Nvme::start(&registers, &mut memory, &events, &alive)?;
    let storage = Storage { memory: ram, buffer: memory.take(BUFFER)? };
    let mut seed = 0;
    while tally.goes_on() {
        seed += 1;
        let bytes = storage.write_and_verify(&mut nvme, seed, ROUND)?;
        tally.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    nvme.stop()
}

/// Fires one vector after the other and takes each; trapped writes and reads in between.
pub(super) fn take_interrupts(probe: &Arc<Function>, tally: &Tally) -> Result<(), String> {
    let taken = fire_and_take(probe, tally).map_err(|error| error.to_string());
    tally.end();
    taken
}

fn fire_and_take(probe: &Arc<Function>, tally: &Tally) -> Result<(), Failure> {
    let registers = register_window(probe)?;
    let count = usize::from(probe.vectors());
    let events = vectors(probe, count)?;
    let mut number = 0u32;
    while tally.goes_on() {
        number = number.wrapping_add(1).max(1);
        let vector = usize::try_from(number)? % count;
        events[vector].clear()?;
        registers.write(0x64, u32::try_from(vector)?)?;
        registers.write(0x68, 1u32)?;
        registers.store_u32(0x6c, number)?;
        if !events[vector].wait(Deadline::after(TIMEOUT))? {
            tally.lost_interrupts.fetch_add(1, Ordering::Relaxed);
            return Err(format!("vector {vector} did not come").into());
        }
        tally.interrupts.fetch_add(1, Ordering::Relaxed);
        let mut back = [0; 4];
        let written = probe.bar_write(0, 0x10, &number.to_le_bytes());
        let read = written.and_then(|()| probe.bar_read(0, 0x10, &mut back));
        if read.is_err() || back != number.to_le_bytes() {
            tally.io_errors.fetch_add(1, Ordering::Relaxed);
            return Err(format!("a trapped access failed: {read:?}, {back:02x?}").into());
        }
    }
    Ok(())
}
