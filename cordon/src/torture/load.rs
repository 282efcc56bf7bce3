//! What the guest does meanwhile: verified NVMe I/O, interrupts, trapped accesses. After a surprise removal it waits
//! for the device's return, brings it up anew as a driver does, and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cordon_vmm::{Function, PassthroughDevice as _, Presence};
use ipc::{Deadline, Window};

use super::{TIMEOUT, wait};
use crate::Failure;
use crate::rig::nvme::{Memory, Nvme};
use crate::rig::storage::{BUFFER, Corrupt, Storage};
use crate::rig::{QUEUES, RAM_BASE, alive, register_window, vectors};

/// Bytes that are written, read back and compared in one round.
const ROUND: u64 = 4 << 20;
/// How long after a failure a removal that explains it is noticed, at most.
const NOTICED: Duration = Duration::from_millis(200);

/// What went wrong, and how much went right.
#[derive(Default)]
pub(super) struct Tally {
    ended: AtomicBool,
    pub(super) bytes: AtomicU64,
    pub(super) interrupts: AtomicU64,
    /// Times that a removal ended what a driver did.
    pub(super) interruptions: AtomicU64,
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

/// The time from one return of a device to its next removal.
struct Stay<'f> {
    function: &'f Function,
    returns: u64,
}

/// It was removed.
#[derive(Debug, thiserror::Error)]
#[error("The device was removed")]
struct Removed;

impl<'f> Stay<'f> {
    /// Waits for it to begin.
    fn of(function: &'f Function) -> Result<Self, Failure> {
        let there = || matches!(function.presence(), Presence::Present);
        let waited = wait(|| there() || alive(function).is_err());
        alive(function)?;
        waited.map_err(|()| format!("{} did not come back", function.address()))?;
        Ok(Self { function, returns: function.returns() })
    }

    fn is_over(&self) -> bool {
        self.function.returns() != self.returns
            || !matches!(self.function.presence(), Presence::Present)
    }

    /// Goes on while it is there.
    fn check(&self) -> Result<(), Failure> {
        if self.is_over() { Err(Removed.into()) } else { alive(self.function) }
    }

    /// Whether a failure is the removal's.
    fn explains(&self, failure: &Failure) -> bool {
        let noticed = Deadline::after(NOTICED);
        while !failure.is::<Corrupt>() && !noticed.passed() {
            if self.is_over() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }
}

/// Has a driver drive `function` from each of its returns on, until the torture ends or something fails that no removal
/// explains.
fn drive(
    function: &Function,
    tally: &Tally,
    mut driver: impl FnMut(&Stay<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    while tally.goes_on() {
        let stay = Stay::of(function)?;
        match driver(&stay) {
            Err(failure) if stay.explains(&failure) => {
                tally.interruptions.fetch_add(1, Ordering::Relaxed);
            }
            done => done?,
        }
    }
    Ok(())
}

/// Writes, reads back and compares until the torture ends or something is wrong, which is counted.
pub(super) fn move_data(disk: &Arc<Function>, ram: &Window, tally: &Tally) -> Result<(), String> {
    let mut seed = 0;
    let moved = drive(disk, tally, |stay| rounds(stay, ram, tally, &mut seed));
    let moved = moved.map_err(|error| {
        let corrupt = error.downcast_ref::<Corrupt>().map_or(0, |corrupt| corrupt.count);
        tally.corrupt_bytes.fetch_add(corrupt as u64, Ordering::Relaxed);
        tally.io_errors.fetch_add(u64::from(corrupt == 0), Ordering::Relaxed);
        error.to_string()
    });
    tally.end();
    moved
}

fn rounds(stay: &Stay<'_>, ram: &Window, tally: &Tally, seed: &mut u64) -> Result<(), Failure> {
    let disk = stay.function;
    disk.config_write(0x04, &[0x06, 0x00])?;
    let registers = register_window(disk)?;
    let events = vectors(disk, QUEUES + 1)?;
    let mut memory = Memory::new(ram, RAM_BASE);
    let alive = || stay.check();
    let mut nvme = Nvme::start(&registers, &mut memory, &events, &alive)?;
    let storage = Storage { memory: ram, buffer: memory.take(BUFFER)? };
    while tally.goes_on() {
        *seed += 1;
        let bytes = storage.write_and_verify(&mut nvme, *seed, ROUND)?;
        tally.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    nvme.stop()
}

/// Fires one vector after the other and takes each; trapped writes and reads in between.
pub(super) fn take_interrupts(probe: &Arc<Function>, tally: &Tally) -> Result<(), String> {
    let mut number = 0;
    let taken = drive(probe, tally, |stay| fire_and_take(stay, tally, &mut number));
    let taken = taken.map_err(|error| {
        let lost = u64::from(error.is::<Lost>());
        tally.lost_interrupts.fetch_add(lost, Ordering::Relaxed);
        tally.io_errors.fetch_add(1 - lost, Ordering::Relaxed);
        error.to_string()
    });
    tally.end();
    taken
}

/// A vector was fired and did not come.
#[derive(Debug, thiserror::Error)]
#[error("Vector {0} did not come")]
struct Lost(usize);

fn fire_and_take(stay: &Stay<'_>, tally: &Tally, number: &mut u32) -> Result<(), Failure> {
    let probe = stay.function;
    probe.config_write(0x04, &[0x06, 0x00])?;
    let registers = register_window(probe)?;
    let count = usize::from(probe.vectors());
    let events = vectors(probe, count)?;
    while tally.goes_on() {
        *number = number.wrapping_add(1).max(1);
        let vector = usize::try_from(*number)? % count;
        events[vector].clear()?;
        registers.write(0x64, u32::try_from(vector)?)?;
        registers.write(0x68, 1u32)?;
        registers.store_u32(0x6c, *number)?;
        let deadline = Deadline::after(TIMEOUT);
        while !events[vector].wait(Deadline::after(Duration::from_millis(20)))? {
            stay.check()?;
            if deadline.passed() {
                return Err(Lost(vector).into());
            }
        }
        tally.interrupts.fetch_add(1, Ordering::Relaxed);
        let mut back = [0; 4];
        let written = probe.bar_write(0, 0x10, &number.to_le_bytes());
        let read = written.and_then(|()| probe.bar_read(0, 0x10, &mut back));
        if read.is_err() || back != number.to_le_bytes() {
            return Err(format!("a trapped access failed: {read:?}, {back:02x?}").into());
        }
    }
    Ok(())
}
