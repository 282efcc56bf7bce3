//! BAR registers: what a read shows, the sizing protocol, and where each BAR is decoded.
//!
//! The registers belong to the front end: the host owns address decoding, so nothing written to
//! them reaches the device (P6.2, P6.4).

use crate::bytes;
use crate::registers::{BAR0, BARS_END};

/// Number of BAR registers of a type 0 header.
pub const BAR_COUNT: usize = 6;

/// Type bits of a BAR, as in the low bits of its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarKind(u8);

impl BarKind {
    /// A 32-bit memory BAR.
    pub const MEMORY_32: Self = Self(0);
    /// A 64-bit memory BAR, whose upper half is the next register.
    pub const MEMORY_64: Self = Self(0b0100);
    /// A 64-bit prefetchable memory BAR.
    pub const PREFETCHABLE_64: Self = Self(0b1100);
    /// An I/O BAR.
    pub const IO: Self = Self(0b0001);

    /// The kind that the low bits of a BAR register say: bit 0 I/O, bit 2 64-bit, bit 3
    /// prefetchable. Bits that are reserved or do not apply are dropped.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        if bits & 1 != 0 { Self::IO } else { Self(bits & 0b1100) }
    }

    /// The low bits of the register.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether it is an I/O BAR.
    #[must_use]
    pub const fn is_io(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether it is a 64-bit memory BAR.
    #[must_use]
    pub const fn is_64bit(self) -> bool {
        self.0 & 0b0100 != 0
    }

    /// Whether it is prefetchable: mapped with write-combining where the host can.
    #[must_use]
    pub const fn is_prefetchable(self) -> bool {
        self.0 & 0b1000 != 0
    }
}

/// One BAR of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Size in bytes; 0 for a BAR that is not there.
    pub size: u64,
    /// Type bits.
    pub kind: BarKind,
}

impl Bar {
    /// The BAR as its register can show it, at register `number`.
    ///
    /// The size is rounded up to a power of two, at least 16 bytes for memory and 4 for I/O. A BAR
    /// that no register can show does not exist for the guest: size 0 or above 2^63, a 32-bit or
    /// I/O BAR above 2^31, a 64-bit BAR in the last register.
    #[must_use]
    pub fn rounded(self, number: usize) -> Option<Self> {
        let least = if self.kind.is_io() { 4 } else { 16 };
        let most = if self.kind.is_64bit() { 1 << 63 } else { 1 << 31 };
        let has_room = number + usize::from(self.kind.is_64bit()) < BAR_COUNT;
        let size = self.size.checked_next_power_of_two()?.max(least);
        (self.size > 0 && size <= most && has_room).then_some(Self { size, ..self })
    }
}

/// A set of BAR numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BarSet(u8);

impl BarSet {
    /// Whether no BAR is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether BAR `number` is in it.
    #[must_use]
    pub fn contains(self, number: usize) -> bool {
        number < BAR_COUNT && self.0 >> number & 1 != 0
    }

    /// Adds BAR `number`; numbers above 5 are ignored.
    pub fn insert(&mut self, number: usize) {
        if number < BAR_COUNT {
            self.0 |= 1 << number;
        }
    }

    /// The numbers in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..BAR_COUNT).filter(move |number| self.contains(*number))
    }
}

/// The six BAR registers of one function.
#[derive(Clone, Debug)]
pub struct Bars {
    /// By the number of their (lower) register, sizes rounded.
    bars: [Option<Bar>; BAR_COUNT],
    /// As last written, all bits.
    registers: [u32; BAR_COUNT],
    writable: [u32; BAR_COUNT],
    fixed: [u32; BAR_COUNT],
    /// Where each BAR was before it was sized, if it is being sized; otherwise where it is.
    placed: [u64; BAR_COUNT],
}

impl Bars {
    /// Registers as after a reset. BARs are rounded as [`Bar::rounded`] says; one that is described
    /// at the upper half of a 64-bit BAR is ignored.
    #[must_use]
    pub fn new(described: &[Option<Bar>; BAR_COUNT]) -> Self {
        let mut bars = [None; BAR_COUNT];
        let (mut writable, mut fixed) = ([0; BAR_COUNT], [0; BAR_COUNT]);
        let mut number = 0;
        while number < BAR_COUNT {
            let bar = described[number].and_then(|bar| bar.rounded(number));
            bars[number] = bar;
            let mut registers = 1;
            if let Some(bar) = bar {
                let [low, high] = halves(!(bar.size - 1));
                fixed[number] = bar.kind.bits().into();
                writable[number] = low & if bar.kind.is_io() { !0x3 } else { !0xf };
                if bar.kind.is_64bit() {
                    writable[number + 1] = high;
                    registers = 2;
                }
            }
            number += registers;
        }
        let (registers, placed) = ([0; BAR_COUNT], [0; BAR_COUNT]);
        Self { bars, registers, writable, fixed, placed }
    }

    /// BAR `number` with its rounded size; `None` where none starts.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<Bar> {
        self.bars.get(number).copied().flatten()
    }

    /// Whether there is an I/O BAR.
    #[must_use]
    pub fn has_io(&self) -> bool {
        self.bars.iter().flatten().any(|bar| bar.kind.is_io())
    }

    /// What a read of register `number` shows: address bits, or the size mask after all ones were
    /// written, with the type bits. 0 for a register without a BAR.
    #[must_use]
    pub fn register(&self, number: usize) -> u32 {
        if number >= BAR_COUNT {
            return 0;
        }
        self.registers[number] & self.writable[number] | self.fixed[number]
    }

    /// All registers as they are in config space.
    #[must_use]
    pub fn image(&self) -> [u8; BARS_END - BAR0] {
        let mut image = [0; BARS_END - BAR0];
        for number in 0..BAR_COUNT {
            bytes::put(&mut image, 4 * number, &self.register(number).to_le_bytes());
        }
        image
    }

    /// Takes the bytes of a config write at `offset` that fall into BAR registers. The BARs whose
    /// place changed are returned; a BAR that is being sized stays where it was.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> BarSet {
        let mut touched = BarSet::default();
        for (at, value) in bytes::hits(BAR0..BARS_END, offset, data) {
            let mut register = self.registers[at / 4].to_le_bytes();
            register[at % 4] = value;
            self.registers[at / 4] = u32::from_le_bytes(register);
            touched.insert(at / 4);
        }
        let mut moved = BarSet::default();
        for register in touched.iter() {
            let Some(number) = self.owner(register) else { continue };
            let address = self.written(number);
            if !self.is_being_sized(number) && self.placed[number] != address {
                self.placed[number] = address;
                moved.insert(number);
            }
        }
        moved
    }

    /// The BAR that register `number` belongs to.
    fn owner(&self, number: usize) -> Option<usize> {
        if self.bars[number].is_some() {
            return Some(number);
        }
        let below = number.checked_sub(1)?;
        self.bars[below].is_some_and(|bar| bar.kind.is_64bit()).then_some(below)
    }

    fn written(&self, number: usize) -> u64 {
        let low = self.registers[number] & self.writable[number];
        let wide = self.bars[number].is_some_and(|bar| bar.kind.is_64bit());
        let high = if wide { self.registers[number + 1] & self.writable[number + 1] } else { 0 };
        u64::from(high) << 32 | u64::from(low)
    }

    /// Whether BAR `number` is being sized. A 64-bit BAR is while either half holds all ones; a
    /// 32-bit or I/O BAR also while all its address bits are ones, since its end would be that of
    /// the address space, where no BAR is put.
    #[must_use]
    pub fn is_being_sized(&self, number: usize) -> bool {
        let Some(bar) = self.get(number) else { return false };
        if bar.kind.is_64bit() {
            return self.registers[number] == u32::MAX || self.registers[number + 1] == u32::MAX;
        }
        self.registers[number] & self.writable[number] == self.writable[number]
    }

    /// Address of BAR `number` in guest physical memory or I/O space. `None` without such a BAR and
    /// for one that has not been placed: address 0, which is where RAM is. While a BAR is being
    /// sized this is where it was before.
    #[must_use]
    pub fn address(&self, number: usize) -> Option<u64> {
        self.get(number)?;
        Some(self.placed[number]).filter(|address| *address != 0)
    }

    /// Places BAR `number`, as firmware would: for VMMs that allocate addresses themselves. Address
    /// bits that the register does not have are dropped.
    pub fn set_address(&mut self, number: usize, address: u64) {
        let Some(bar) = self.get(number) else { return };
        let [low, high] = halves(address);
        self.registers[number] = low;
        if bar.kind.is_64bit() {
            self.registers[number + 1] = high;
        }
        self.placed[number] = self.written(number);
    }

    /// Registers as after a reset; the BARs that had a place and lost it.
    pub fn reset(&mut self) -> BarSet {
        let mut moved = BarSet::default();
        for number in 0..BAR_COUNT {
            if self.placed[number] != 0 {
                moved.insert(number);
            }
        }
        (self.registers, self.placed) = ([0; BAR_COUNT], [0; BAR_COUNT]);
        moved
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
#[path = "bar_tests.rs"]
mod tests;
