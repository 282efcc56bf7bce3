//! The probe device, as `dext-sim` documents it.

use crate::machine::{eventually, load, store};

pub const ID: u32 = 0x00;
pub const VECTORS: u32 = 0x08;
pub const RESETS: u32 = 0x0c;
pub const SCRATCH: u32 = 0x10;
/// What ID reads.
pub const PRBE: u32 = 0x4542_5250;

const DMA_SOURCE: u32 = 0x40;
const DMA_TARGET: u32 = 0x48;
const DMA_LENGTH: u32 = 0x50;
const DMA_VECTOR: u32 = 0x54;
const DMA_START: u32 = 0x58;
const DMA_DONE: u32 = 0x5c;
const DMA_STATUS: u32 = 0x60;
const IRQ_VECTOR: u32 = 0x64;
const IRQ_COUNT: u32 = 0x68;
const IRQ_START: u32 = 0x6c;
const IRQ_DONE: u32 = 0x70;
const TABLE: u32 = 0x8000;
const PENDING: u32 = 0xc000;

/// Guest memory that is copied, where to, and how many words.
const SOURCE: u32 = 0x20_0000;
const TARGET: u32 = 0x30_0000;
const WORDS: u32 = 16 << 10;

/// Where its BARs are.
pub struct Probe {
    /// BAR 0: a window, but for the pages of the MSI-X structures.
    pub registers: u32,
    /// BAR 1: memory that is trapped.
    pub memory: u32,
    /// BAR 2: memory, a window.
    pub large: u32,
}

impl Probe {
    pub fn read(&self, register: u32) -> u32 {
        load(self.registers + register)
    }

    pub fn write(&self, register: u32, value: u32) {
        store(self.registers + register, value);
    }

    /// An entry of the MSI-X table: to this processor.
    pub fn entry(&self, number: u32, vector: u8, is_masked: bool) {
        let at = TABLE + 16 * number;
        self.write(at + 12, 1);
        self.write(at, 0xfee0_0000);
        self.write(at + 4, 0);
        self.write(at + 8, vector.into());
        self.write(at + 12, is_masked.into());
    }

    /// The first pending bits, when those that were waited for are set, or after some time.
    pub fn pending(&self, wanted: u32) -> u32 {
        eventually(|| wanted == 0 || self.read(PENDING) & wanted == wanted);
        self.read(PENDING)
    }

    /// Fires vectors, and waits until the device has. `number` is one that it was not given before.
    pub fn fire(&self, first: u32, count: u32, number: u32) {
        self.write(IRQ_VECTOR, first);
        self.write(IRQ_COUNT, count);
        self.write(IRQ_START, number);
        eventually(|| self.read(IRQ_DONE) == number);
    }

    /// Has it copy, and waits; its status, or nothing if it did not end. `number` as above.
    pub fn copy(&self, number: u32) -> Option<u32> {
        for at in 0..WORDS {
            store(SOURCE + 4 * at, pattern(at, number));
            store(TARGET + 4 * at, 0);
        }
        let registers = [
            (DMA_SOURCE, SOURCE),
            (DMA_SOURCE + 4, 0),
            (DMA_TARGET, TARGET),
            (DMA_TARGET + 4, 0),
            (DMA_LENGTH, 4 * WORDS),
            (DMA_VECTOR, u32::MAX),
            (DMA_START, number),
        ];
        for (register, value) in registers {
            self.write(register, value);
        }
        eventually(|| self.read(DMA_DONE) == number).then(|| self.read(DMA_STATUS))
    }
}

/// How many words of the last copy are wrong.
pub fn wrong_words(number: u32) -> usize {
    (0..WORDS).filter(|at| load(TARGET + 4 * at) != pattern(*at, number)).count()
}

fn pattern(at: u32, number: u32) -> u32 {
    (at ^ number).wrapping_mul(2_654_435_761)
}
