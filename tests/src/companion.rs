//! A guest's driver for the companion, over any way to its registers: the suites' own, so that it
//! checks what it drives.

use cordon_vmm::PassthroughDevice;
use cordon_vmm::companion::{Layout, register};
use ipc::Window;

use crate::RAM_BASE;

/// Where the command page is.
pub const PAGE: u64 = RAM_BASE;
/// Where requests begin.
pub const REQUESTS: u64 = RAM_BASE + 0x1000;
/// Where responses begin.
pub const RESPONSES: u64 = RAM_BASE + 0x2_0000;

/// A response to a map request: bus address, bus length, status.
pub type Mapped = (u64, u64, u32);

/// A guest with a ring in its memory.
pub struct Guest<'g> {
    /// The companion.
    pub companion: &'g dyn PassthroughDevice,
    /// Guest RAM.
    pub ram: &'g Window,
    /// How the companion lays entries out.
    pub layout: Layout,
}

impl Guest<'_> {
    /// Reads a register.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn read(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.companion.bar_read(0, at, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// Writes a register.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, at: u64, value: u32) {
        self.companion.bar_write(0, at, &value.to_le_bytes()).unwrap();
    }

    /// Writes to guest memory.
    ///
    /// # Panics
    /// When it is none.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.copy_in(at - RAM_BASE, bytes).unwrap();
    }

    /// Reads guest memory.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.copy_out(at - RAM_BASE, &mut bytes).unwrap();
        bytes
    }

    /// Tells the companion where a page is and rings; the status register.
    #[must_use]
    pub fn ring(&self, page: u64) -> u32 {
        self.set_page(page);
        self.write(register::DOORBELL, 1);
        self.read(register::STATUS)
    }

    /// Tells the companion where a page is.
    ///
    /// # Panics
    /// When its registers cannot be written.
    pub fn set_page(&self, page: u64) {
        self.write(register::CMD_GPA_LO, u32::try_from(page & 0xffff_ffff).unwrap());
        self.write(register::CMD_GPA_HI, u32::try_from(page >> 32).unwrap());
    }

    /// Writes the command page.
    ///
    /// # Panics
    /// Never.
    pub fn command(&self, kind: u32, count: usize, requests: u64, responses: u64) {
        let count = u32::try_from(count).unwrap();
        let words = [kind, count, 0xffff_ffff, 0].map(u32::to_le_bytes).concat();
        self.put(PAGE, &[words, [requests, responses].map(u64::to_le_bytes).concat()].concat());
    }

    /// Writes a command that maps guest addresses and sizes, and does not ring.
    ///
    /// # Panics
    /// When a size is too large for the layout.
    pub fn write_map(&self, ranges: &[(u64, u64)]) {
        let mut requests = Vec::new();
        for (address, size) in ranges {
            requests.extend_from_slice(&address.to_le_bytes());
            match self.layout {
                Layout::Packed32 => {
                    requests.extend_from_slice(&u32::try_from(*size).unwrap().to_le_bytes());
                }
                Layout::Packed64 => requests.extend_from_slice(&size.to_le_bytes()),
            }
            requests.extend_from_slice(&0x1234_5678u32.to_le_bytes());
        }
        self.put(REQUESTS, &requests);
        self.command(1, ranges.len(), REQUESTS, RESPONSES);
        self.set_page(PAGE);
    }

    /// Maps guest addresses and sizes; status and responses, none if the command is invalid.
    ///
    /// # Panics
    /// When the companion answers nonsense.
    #[must_use]
    pub fn map(&self, ranges: &[(u64, u64)]) -> (u32, Vec<Mapped>) {
        self.write_map(ranges);
        let status = self.ring(PAGE);
        assert_eq!(self.get(PAGE + 8, 4), status.to_le_bytes());
        if status == 3 {
            return (status, Vec::new());
        }
        (status, self.mapped(ranges))
    }

    /// The responses to a command that maps.
    ///
    /// # Panics
    /// When they are those of another.
    #[must_use]
    pub fn mapped(&self, ranges: &[(u64, u64)]) -> Vec<Mapped> {
        let (size, wide) = match self.layout {
            Layout::Packed32 => (24, 4),
            Layout::Packed64 => (28, 8),
        };
        let responses = self.get(RESPONSES, size * ranges.len());
        let of = |(response, (address, _)): (&[u8], &(u64, u64))| {
            let number = |at: usize, length: usize| {
                let mut bytes = [0; 8];
                bytes[..length].copy_from_slice(&response[at..at + length]);
                u64::from_le_bytes(bytes)
            };
            assert_eq!(number(0, 8), *address);
            (number(8, 8), number(16, wide), u32::try_from(number(16 + wide, 4)).unwrap())
        };
        responses.chunks_exact(size).zip(ranges).map(of).collect()
    }

    /// Maps one range that must be mapped; its bus address.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn map_one(&self, address: u64, size: u64) -> u64 {
        let (status, responses) = self.map(&[(address, size)]);
        assert_eq!((status, responses[0].1, responses[0].2), (0, size, 0), "{address:#x}");
        responses[0].0
    }

    /// Writes a command that unmaps, and does not ring.
    ///
    /// # Panics
    /// When there is no memory for it.
    pub fn write_unmap(&self, ids: &[u64]) {
        let requests: Vec<u8> =
            ids.iter().flat_map(|id| [*id, 0x4000].map(u64::to_le_bytes).concat()).collect();
        self.put(REQUESTS, &requests);
        self.command(2, ids.len(), REQUESTS, RESPONSES);
        self.set_page(PAGE);
    }

    /// Unmaps; status and the status of each.
    ///
    /// # Panics
    /// When the companion answers nonsense.
    #[must_use]
    pub fn unmap(&self, ids: &[u64]) -> (u32, Vec<u32>) {
        self.write_unmap(ids);
        let status = self.ring(PAGE);
        let responses = self.get(RESPONSES, 16 * ids.len());
        let of = |(response, id): (&[u8], &u64)| {
            assert_eq!(response[..8], id.to_le_bytes());
            assert_eq!(response[12..], [0; 4]);
            u32::from_le_bytes(response[8..12].try_into().unwrap())
        };
        (status, responses.chunks_exact(16).zip(ids).map(of).collect())
    }
}
