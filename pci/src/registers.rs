//! Offsets and bits of the type 0 header and of the capabilities that have a model here.
//!
//! Offsets are in bytes. Those of a capability's registers count from its first byte.

/// Bytes of a function's config space (P3.2).
pub const CONFIG_SPACE: usize = 4096;
/// Bytes of the header; capabilities start behind it.
pub const HEADER: usize = 0x40;
/// First byte of the extended config space.
pub const EXTENDED: usize = 0x100;

/// Vendor id, 2 bytes.
pub const VENDOR: usize = 0x00;
/// Device id, 2 bytes.
pub const DEVICE: usize = 0x02;
/// COMMAND, 2 bytes; its bits are in [`command`].
pub const COMMAND: usize = 0x04;
/// STATUS, 2 bytes; its bits are in [`status`].
pub const STATUS: usize = 0x06;
/// Revision, 1 byte; the class code is the 3 bytes behind it.
pub const REVISION: usize = 0x08;
/// Header type, 1 byte: layout in bits 6:0, multi-function in bit 7.
pub const HEADER_TYPE: usize = 0x0e;
/// The first BAR register; six of 4 bytes.
pub const BAR0: usize = 0x10;
/// One past the last BAR register.
pub const BARS_END: usize = 0x28;
/// Subsystem vendor id, 2 bytes; the subsystem id is behind it.
pub const SUBSYSTEM: usize = 0x2c;
/// Expansion ROM register, 4 bytes.
pub const ROM: usize = 0x30;
/// Offset of the first capability, 1 byte.
pub const CAPABILITY_POINTER: usize = 0x34;
/// Interrupt line, 1 byte.
pub const INTERRUPT_LINE: usize = 0x3c;
/// Interrupt pin, 1 byte: 0 none, 1 INTA to 4 INTD.
pub const INTERRUPT_PIN: usize = 0x3d;

/// Bits of COMMAND.
pub mod command {
    /// The function decodes I/O space.
    pub const IO: u16 = 1;
    /// The function decodes memory space.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may start DMA and send messages.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Parity error response.
    pub const PARITY: u16 = 1 << 6;
    /// SERR# enable.
    pub const SERR: u16 = 1 << 8;
    /// The function must not assert INTx.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of STATUS.
pub mod status {
    /// INTx is asserted.
    pub const INTERRUPT: u16 = 1 << 3;
    /// The function has a capability list.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// Ids of standard capabilities.
pub mod capability {
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// Vital product data.
    pub const VPD: u8 = 0x03;
    /// Message signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// Serial ATA index and data registers.
    pub const SATA: u8 = 0x12;
    /// Advanced Features.
    pub const ADVANCED_FEATURES: u8 = 0x13;
}

/// Ids of extended capabilities.
pub mod extended {
    /// Advanced error reporting.
    pub const AER: u16 = 0x01;
    /// Device serial number.
    pub const SERIAL_NUMBER: u16 = 0x03;
    /// Vendor specific.
    pub const VENDOR: u16 = 0x0b;
    /// Single root I/O virtualization.
    pub const SRIOV: u16 = 0x10;
}

/// Control and status register of power management.
pub(crate) const PM_CONTROL: usize = 4;
/// Device control register of PCI Express.
pub(crate) const DEVICE_CONTROL: usize = 8;
/// Control register of Advanced Features.
pub(crate) const AF_CONTROL: usize = 4;
/// Control register of MSI and of MSI-X.
pub(crate) const MESSAGE_CONTROL: usize = 2;
