//! The config space of one simulated function: bytes, what of them can be written, capabilities.

/// Size in bytes.
pub(crate) const SIZE: usize = 4096;

/// COMMAND and its bits.
pub(crate) const COMMAND: usize = 0x04;
pub(crate) const MEMORY_SPACE: u16 = 1 << 1;
pub(crate) const BUS_MASTER: u16 = 1 << 2;

/// STATUS, and its Interrupt Status: whether the function asserts its pin, or would.
const STATUS: u64 = 0x06;
const STATUS_INTERRUPT: u32 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 0x10;
const FIRST_BAR: usize = 0x10;
const LAST_BAR: usize = 0x24;

/// Where this builder puts the capabilities.
const PM: usize = 0x40;
const MSI: usize = 0x50;
const PCIE: usize = 0x70;
const MSIX: usize = 0xb0;

/// What a write made happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// Initiate Function Level Reset was set.
    FunctionLevelReset,
}

/// A BAR as the header shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BarShape {
    pub(crate) number: usize,
    pub(crate) size: u64,
    pub(crate) kind: u8,
}

/// MSI-X as the capability shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MsixShape {
    pub(crate) vectors: u16,
    pub(crate) bar: u8,
    pub(crate) table: u32,
    pub(crate) pba: u32,
}

/// What a function's config space is made from.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) class: u32,
    pub(crate) multi_function: bool,
    pub(crate) bars: Vec<BarShape>,
    /// `None` for a function that has MSI only.
    pub(crate) msix: Option<MsixShape>,

    /// log2 of the MSI vectors it is capable of.
    pub(crate) msi_log2: u8,
    pub(crate) serial: u64,
}

/// Config space of one function.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    at_reset: Box<[u8; SIZE]>,
    bar_types: [u8; 6],
}

impl ConfigSpace {
    pub(crate) fn new(shape: &Shape) -> Self {
        let mut space = Self {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            at_reset: Box::new([0; SIZE]),
            bar_types: [0; 6],
        };
        space.header(shape);
        space.power_management();
        space.msi(shape.msi_log2);
        space.pcie(shape.msix.is_some());
        if let Some(msix) = &shape.msix {
            space.msix(msix);
        }
        space.serial_number(shape.serial);
        space.at_reset = space.bytes.clone();
        space
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    fn header(&mut self, shape: &Shape) {
        self.put(0x00, &shape.vendor.to_le_bytes());
        self.put(0x02, &shape.device.to_le_bytes());
        self.put(0x06, &[STATUS_CAPABILITIES, 0]);
        self.put(0x08, &[0x01]);
        self.put(0x09, &shape.class.to_le_bytes()[..3]);
        self.put(0x0e, &[u8::from(shape.multi_function) << 7]);
        self.put(0x2c, &shape.vendor.to_le_bytes());
        self.put(0x2e, &shape.device.to_le_bytes());
        let first_capability = u8::try_from(PM).unwrap_or_default();
        self.put(0x34, &[first_capability]);
        self.put(0x3d, &[1]);
        self.allow(COMMAND, &[0x47, 0x05]);
        self.allow(0x0c, &[0xff]);
        self.allow(0x3c, &[0xff]);
        // Addresses that a host would have given; nobody decodes them.
        let mut address = 0x8000_0000u32;
        for bar in &shape.bars {
            self.bar_types[bar.number] = bar.kind;
            let size = u32::try_from(bar.size).unwrap_or(1 << 31);
            address = address.next_multiple_of(size);
            self.put(FIRST_BAR + 4 * bar.number, &(address | u32::from(bar.kind)).to_le_bytes());
            address += size;
        }
    }

    fn power_management(&mut self) {
        self.put(PM, &[0x01, MSI.to_le_bytes()[0], 0x03, 0x00, 0x08, 0x00]);
        self.allow(PM + 4, &[0x03]);
    }

    fn msi(&mut self, log2: u8) {
        // 64-bit capable, no per-vector masking.
        self.put(MSI, &[0x05, PCIE.to_le_bytes()[0], 0x80 | (log2 << 1), 0x00]);
        self.allow(MSI + 2, &[0x71, 0x00]);
        self.allow(MSI + 4, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }

    fn pcie(&mut self, more: bool) {
        // Version 2 endpoint, Function Level Reset capable.
        let next = if more { MSIX.to_le_bytes()[0] } else { 0 };
        self.put(PCIE, &[0x10, next, 0x02, 0x00]);
        self.put(PCIE + 4, &0x1000_8000u32.to_le_bytes());
        // DevCtl as after power-on: relaxed ordering, no snoop, read requests of 512 bytes.
        self.put(PCIE + 8, &0x2810u16.to_le_bytes());
        self.put(PCIE + 0x0c, &0x0000_0043u32.to_le_bytes());
        self.put(PCIE + 0x12, &0x0043u16.to_le_bytes());
        self.allow(PCIE + 8, &[0xff, 0x7f]);
    }

    fn msix(&mut self, shape: &MsixShape) {
        let control = shape.vectors - 1;
        self.put(MSIX, &[0x11, 0x00]);
        self.put(MSIX + 2, &control.to_le_bytes());
        self.put(MSIX + 4, &(shape.table | u32::from(shape.bar)).to_le_bytes());
        self.put(MSIX + 8, &(shape.pba | u32::from(shape.bar)).to_le_bytes());
        self.allow(MSIX + 3, &[0xc0]);
    }

    fn serial_number(&mut self, serial: u64) {
        self.put(0x100, &[0x03, 0x00, 0x01, 0x00]);
        self.put(0x104, &serial.to_le_bytes());
    }

    /// What a read of these bytes has in the place of Interrupt Status, which only the device knows; 0
    /// where they are others.
    pub(crate) fn interrupt_status(offset: u64, width: usize) -> u32 {
        let into = (offset..offset.saturating_add(width as u64)).position(|at| at == STATUS);
        into.map_or(0, |byte| STATUS_INTERRUPT << (8 * byte))
    }

    /// `None` past the end. Interrupt Status reads as 0.
    pub(crate) fn read(&self, offset: u64, width: usize) -> Option<u32> {
        let offset = usize::try_from(offset).ok()?;
        if width == 4 && offset.is_multiple_of(4) && (FIRST_BAR..=LAST_BAR).contains(&offset) {
            return Some(self.bar_types[(offset - FIRST_BAR) / 4].into());
        }
        let bytes = self.bytes.get(offset..offset.checked_add(width)?)?;
        let mut value = [0; 4];
        value[..width].copy_from_slice(bytes);
        Some(u32::from_le_bytes(value))
    }

    /// `None` past the end.
    pub(crate) fn write(&mut self, offset: u64, width: usize, value: u32) -> Option<Effect> {
        let start = usize::try_from(offset).ok()?;
        let range = start..start.checked_add(width)?;
        self.bytes.get(range.clone())?;
        for (at, byte) in range.clone().zip(value.to_le_bytes()) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (byte & mask);
        }
        let control_high = PCIE + 9;
        let reset =
            range.contains(&control_high) && value.to_le_bytes()[control_high - start] & 0x80 != 0;
        Some(if reset { Effect::FunctionLevelReset } else { Effect::None })
    }

    pub(crate) fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    pub(crate) fn set_command(&mut self, set: u16, clear: u16) {
        let command = (self.command() | set) & !clear;
        self.put(COMMAND, &command.to_le_bytes());
    }

    /// Everything a reset clears, but what the host restores: COMMAND and the message setup.
    pub(crate) fn reset(&mut self) {
        let keep: Vec<(usize, Vec<u8>)> = [(COMMAND, 2), (MSI + 2, 14), (MSIX + 2, 2)]
            .map(|(at, length)| (at, self.bytes[at..at + length].to_vec()))
            .into();
        self.bytes.copy_from_slice(self.at_reset.as_slice());
        for (at, bytes) in keep {
            self.put(at, &bytes);
        }
    }

    fn has_msix(&self) -> bool {
        self.bytes[MSIX] == 0x11
    }

    /// Entries of the MSI-X table, if there is one.
    pub(crate) fn msix_vectors(&self) -> Option<u16> {
        let entries =
            (u16::from_le_bytes([self.bytes[MSIX + 2], self.bytes[MSIX + 3]]) & 0x7ff) + 1;
        self.has_msix().then_some(entries)
    }

    pub(crate) fn msi_vectors(&self) -> u16 {
        1 << ((self.bytes[MSI + 2] >> 1) & 0x7).min(5)
    }

    pub(crate) fn enable_msix(&mut self, on: bool) {
        if !self.has_msix() {
            return;
        }
        self.bytes[MSIX + 3] = (self.bytes[MSIX + 3] & 0x3f) | if on { 0x80 } else { 0 };
    }

    pub(crate) fn enable_msi(&mut self, on: bool) {
        self.bytes[MSI + 2] = (self.bytes[MSI + 2] & !1) | u8::from(on);
    }

    /// Whether messages leave the device: MSI-X enabled and not masked as a whole, or MSI enabled;
    /// and bus mastering, since a message is a memory write.
    pub(crate) fn messages_enabled(&self) -> bool {
        let msix = self.bytes[MSIX + 3] & 0xc0 == 0x80;
        let msi = self.bytes[MSI + 2] & 1 != 0;
        (msix || msi) && self.command() & BUS_MASTER != 0
    }
}
