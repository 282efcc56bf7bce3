//! What the namespace's blocks are kept in: memory, or an image file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ipc::{Access, SharedMemory, Window};

/// The blocks.
pub(super) enum Backend {
    Memory(Window),
    Image { file: File, size: u64 },
}

impl Backend {
    /// An image file when one is given, `size` bytes of zeroes in memory otherwise.
    pub(super) fn new(size: u64, image: Option<&Path>) -> io::Result<Self> {
        let Some(path) = image else {
            let memory = SharedMemory::create("nvme-namespace", size)?;
            return memory.map_all(Access::ReadWrite).map(Self::Memory).map_err(io::Error::other);
        };
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("disk image {}: {error}", path.display()))
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(named)?;
        let size = file.metadata().map_err(named)?.len();
        if size == 0 || !size.is_multiple_of(super::BLOCK) {
            let why = format!("its size of {size} bytes is not a positive multiple of 512");
            return Err(named(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        Ok(Self::Image { file, size })
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(window) => window.length() as u64,
            Self::Image { size, .. } => *size,
        }
    }

    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(window) => window.copy_out(at, into).map_err(io::Error::other),
            Self::Image { file, .. } => file.read_exact_at(into, at),
        }
    }

    pub(super) fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(window) => window.copy_in(at, from).map_err(io::Error::other),
            Self::Image { file, .. } => file.write_all_at(from, at),
        }
    }

    pub(super) fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let (mut at, mut left) = (at, length);
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROES.len());
            self.write(at, &ZEROES[..piece])?;
            at += piece as u64;
            left -= piece as u64;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Image { file, .. } => file.sync_data(),
        }
    }
}
