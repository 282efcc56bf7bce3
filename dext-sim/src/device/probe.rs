//! The probe device: registers to write and read back, a DMA copy engine, interrupt triggers.
//!
//! BAR 0, 128 KiB, 32-bit little-endian registers:
//!
//! | offset | name | |
//! | --- | --- | --- |
//! | 0x00 | ID | reads 0x45425250 ("PRBE") |
//! | 0x04 | VERSION | reads 1 |
//! | 0x08 | VECTORS | vectors that it can fire: its MSI-X ones, or 32 by MSI |
//! | 0x0c | RESETS | resets since power-on |
//! | 0x10..0x3f | SCRATCH | 12 words that keep what is written; a reset clears them |
//! | 0x40, 0x48 | DMA_SOURCE, DMA_TARGET | 64-bit bus addresses |
//! | 0x50 | DMA_LENGTH | bytes, at most 1 MiB |
//! | 0x54 | DMA_VECTOR | fired when a copy ends; 0xffffffff for none |
//! | 0x58 | DMA_START | a new number starts a copy |
//! | 0x5c | DMA_DONE | the number of the last copy that ended |
//! | 0x60 | DMA_STATUS | of it: 0 copied, 1 fault, 2 length |
//! | 0x64 | IRQ_VECTOR | first vector to fire |
//! | 0x68 | IRQ_COUNT | how many |
//! | 0x6c | IRQ_START | a new number fires them |
//! | 0x70 | IRQ_DONE | the number of the last that was carried out |
//! | 0x78 | RAISED | 64-bit: when the last vector was fired, in nanoseconds of the system's monotonic clock |
//! | 0x100.. | FIRED | how often each vector was fired, one word a vector |
//!
//! Start registers take numbers, not bits: a polled device cannot miss a change of value, and a
//! guest cannot mistake an old completion for its own. MSI-X: table at 0x8000, pending bits at
//! 0xc000. BAR 1: 4 KiB of memory, too small to be given to a guest. BAR 2: 1 MiB of prefetchable
//! 64-bit memory. BAR 4: 64 bytes of I/O.

use ipc::Window;
use ipc::wire::common::BarInfo;
use rustix::time::{ClockId, clock_gettime};

use super::Model;
use crate::config_space::{BarShape, MsixShape, Shape};
use crate::hardware::Hardware;

const ID: u32 = u32::from_le_bytes(*b"PRBE");
const MAX_COPY: usize = 1 << 20;
const RAISED: u64 = 0x78;
const FIRED: u64 = 0x100;
/// Vectors of its MSI capability.
const MSI_VECTORS: u16 = 32;

/// What its config space shows.
pub(super) fn shape(vectors: u16) -> Shape {
    Shape {
        vendor: 0xc0d0,
        device: 0x0002,
        class: 0xff_00_00,
        multi_function: false,
        bars: vec![
            BarShape { number: 0, size: 128 << 10, kind: 0 },
            BarShape { number: 1, size: 4 << 10, kind: 0 },
            BarShape { number: 2, size: 1 << 20, kind: BarInfo::WIDTH_64 | BarInfo::PREFETCHABLE },
            BarShape { number: 4, size: 64, kind: BarInfo::IO },
        ],
        msix: (vectors > 0).then_some(MsixShape { vectors, bar: 0, table: 0x8000, pba: 0xc000 }),
        msi_log2: 5,
        serial: 0,
    }
}

/// The device.
pub(super) struct Probe {
    vectors: u16,
    resets: u32,
    dma_seen: u32,
    irq_seen: u32,
}

impl Probe {
    pub(super) fn new(vectors: u16) -> Self {
        let vectors = if vectors == 0 { MSI_VECTORS } else { vectors };
        Self { vectors, resets: 0, dma_seen: 0, irq_seen: 0 }
    }

    fn fire(hardware: &Hardware, registers: &Window, vector: u16) {
        let at = FIRED + 4 * u64::from(vector);
        let fired = registers.read::<u32>(at).unwrap_or_default();
        let _ = registers.store_u32(at, fired.wrapping_add(1));
        let _ = registers.write(RAISED, now());
        hardware.raise(vector);
    }

    fn copy(hardware: &Hardware, registers: &Window) -> u32 {
        let length = registers.read::<u32>(0x50).unwrap_or_default() as usize;
        let source = registers.read::<u64>(0x40).unwrap_or_default();
        let target = registers.read::<u64>(0x48).unwrap_or_default();
        if length == 0 || length > MAX_COPY {
            return 2;
        }
        let mut bytes = vec![0; length];
        let copied =
            hardware.dma_read(source, &mut bytes).and_then(|()| hardware.dma_write(target, &bytes));
        u32::from(copied.is_err())
    }
}

/// Nanoseconds of the monotonic clock, which all processes of a system share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default()
}

impl Model for Probe {
    fn poll(&mut self, hardware: &Hardware) -> bool {
        let Some(registers) = hardware.registers(0) else {
            return false;
        };
        let load = |at| registers.load_u32(at).unwrap_or_default();
        let mut busy = false;
        let start = load(0x58);
        if start != self.dma_seen {
            self.dma_seen = start;
            let status = Self::copy(hardware, registers);
            let _ = registers.write(0x60, status);
            let _ = registers.store_u32(0x5c, start);
            if let Ok(vector) = u16::try_from(load(0x54))
                && vector < self.vectors
            {
                Self::fire(hardware, registers, vector);
            }
            busy = true;
        }
        let start = load(0x6c);
        if start != self.irq_seen {
            self.irq_seen = start;
            let first = load(0x64);
            let last = first.saturating_add(load(0x68)).min(self.vectors.into());
            for vector in first..last {
                if let Ok(vector) = u16::try_from(vector) {
                    Self::fire(hardware, registers, vector);
                }
            }
            let _ = registers.store_u32(0x70, start);
            busy = true;
        }
        busy
    }

    /// It fires and forgets.
    fn asserts(&self, _: &Hardware) -> bool {
        false
    }

    fn reset(&mut self, hardware: &Hardware) {
        let Some(registers) = hardware.registers(0) else {
            return;
        };
        let _ = registers.copy_in(0, &[0; 0x800]);
        (self.dma_seen, self.irq_seen) = (0, 0);
        let fixed = [(0x00, ID), (0x04, 1), (0x08, self.vectors.into()), (0x0c, self.resets)];
        for (at, value) in fixed {
            let _ = registers.write::<u32>(at, value);
        }
        let _ = registers.write::<u32>(0x54, u32::MAX);
        self.resets = self.resets.wrapping_add(1);
    }
}
