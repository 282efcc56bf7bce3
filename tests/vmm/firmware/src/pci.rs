//! Config space by ports, as every PC has it.

use core::fmt;

use crate::machine::{inl, outl, outw};

/// COMMAND: memory is decoded.
pub const MEMORY: u16 = 1 << 1;
/// COMMAND: the function may reach memory.
pub const MASTER: u16 = 1 << 2;
/// COMMAND: INTx is held back.
pub const NO_INTX: u16 = 1 << 10;
/// Power management's capability.
pub const POWER: u8 = 0x01;
/// MSI's capability.
pub const MSI: u8 = 0x05;
/// MSI-X's capability.
pub const MSIX: u8 = 0x11;
/// MSI-X's control: in use.
pub const ENABLE: u16 = 1 << 15;
/// MSI-X's control: all vectors masked.
pub const MASKED: u16 = 1 << 14;

/// The register of a BAR.
pub const fn bar(number: u8) -> u8 {
    0x10 + 4 * number
}

/// A function of bus 0, by device and function number.
pub struct Function(u8);

impl Function {
    /// Every place that a function can be at.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).map(Self)
    }

    /// Whether somebody answers.
    pub fn is_there(&self) -> bool {
        !matches!(self.read(0), 0 | u32::MAX)
    }

    fn select(&self, register: u8) {
        outl(0xcf8, 1 << 31 | u32::from(self.0) << 8 | u32::from(register & 0xfc));
    }

    /// A dword.
    pub fn read(&self, register: u8) -> u32 {
        self.select(register);
        inl(0xcfc)
    }

    /// A dword.
    pub fn write(&self, register: u8, value: u32) {
        self.select(register);
        outl(0xcfc, value);
    }

    /// Half of one.
    pub fn write_half(&self, register: u8, value: u16) {
        self.select(register);
        outw(0xcfc + u16::from(register & 2), value);
    }

    /// COMMAND.
    pub fn command(&self, value: u16) {
        self.write_half(4, value);
    }

    /// Sizes a BAR of memory below 4 GiB, with decoding off.
    pub fn size(&self, number: u8) -> u32 {
        self.command(0);
        let before = self.read(bar(number));
        self.write(bar(number), u32::MAX);
        let mask = self.read(bar(number)) & !0xf;
        self.write(bar(number), before);
        (!mask).wrapping_add(1)
    }

    /// Where a capability is; 0 for one that is not there.
    pub fn capability(&self, id: u8) -> u8 {
        let mut at = self.read(0x34) as u8 & 0xfc;
        for _ in 0..48 {
            if at < 0x40 {
                break;
            }
            let header = self.read(at);
            if header as u8 == id {
                return at;
            }
            at = (header >> 8) as u8 & 0xfc;
        }
        0
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.0 >> 3, self.0 & 7)
    }
}
