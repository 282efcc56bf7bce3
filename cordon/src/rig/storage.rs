//! Moving data through the NVMe function and comparing every byte.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ipc::Window;

use super::nvme::{BLOCK, MAX_TRANSFER, Nvme, Transfer};
use super::reporter::Reporter;
use crate::{Failure, output};

/// Bytes moved in each direction, at least.
const ENOUGH: u64 = 64 << 20;
/// Bytes of an image that are compared, at most: the demo is to end in half a minute.
const MOST_OF_IMAGE: u64 = 256 << 20;
/// Bytes of guest memory that data passes through.
pub(crate) const BUFFER: u64 = 16 << 20;

/// Data in guest memory on its way.
pub(crate) struct Storage<'m> {
    pub(crate) memory: &'m Window,
    pub(crate) buffer: u64,
}

/// Content that depends on where it is, so that a byte in the wrong place is seen.
fn pattern(seed: u64, offset: u64, into: &mut [u8]) {
    for (word, bytes) in (offset / 8..).zip(into.chunks_exact_mut(8)) {
        let mut mixed = (word ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^= mixed >> 32;
        bytes.copy_from_slice(&mixed.wrapping_mul(0xd6e8_feb8_6659_fd93).to_le_bytes());
    }
}

impl Storage<'_> {
    /// Moves `bytes` between the disk from `offset` and the start of the buffer.
    fn pass(
        &self,
        nvme: &mut Nvme<'_>,
        write: bool,
        offset: u64,
        bytes: u64,
    ) -> Result<(), Failure> {
        let mut transfers = Vec::new();
        let mut at = 0;
        while at < bytes {
            let piece = MAX_TRANSFER.min(bytes - at);
            transfers.push(Transfer {
                write,
                block: (offset + at) / BLOCK,
                bytes: piece,
                memory: self.buffer + at,
            });
            at += piece;
        }
        nvme.transfer(&transfers)
    }

    /// Writes `total` bytes of pattern from the start of the disk, reads them back and compares;
    /// the bytes compared.
    pub(crate) fn write_and_verify(
        &self,
        nvme: &mut Nvme<'_>,
        seed: u64,
        total: u64,
    ) -> Result<u64, Failure> {
        let mut expected = vec![0; usize::try_from(BUFFER)?];
        for offset in (0..total).step_by(usize::try_from(BUFFER)?) {
            let bytes = BUFFER.min(total - offset);
            let part = &mut expected[..usize::try_from(bytes)?];
            pattern(seed, offset, part);
            self.memory.copy_in(self.buffer, part)?;
            self.pass(nvme, true, offset, bytes)?;
        }
        let mut found = vec![0; usize::try_from(BUFFER)?];
        for offset in (0..total).step_by(usize::try_from(BUFFER)?) {
            let bytes = BUFFER.min(total - offset);
            let length = usize::try_from(bytes)?;
            pattern(seed, offset, &mut expected[..length]);
            self.memory.copy_in(self.buffer, &vec![0; length])?;
            self.pass(nvme, false, offset, bytes)?;
            self.memory.copy_out(self.buffer, &mut found[..length])?;
            compare(&expected[..length], &found[..length], offset)?;
        }
        Ok(total)
    }

    /// 64 MiB out and back.
    pub(crate) fn exercise(
        &self,
        nvme: &mut Nvme<'_>,
        reporter: &Reporter,
    ) -> Result<u64, Failure> {
        let verified = self.write_and_verify(nvme, 1, ENOUGH)?;
        reporter.say(&format!("{} written, read back and compared", output::size(verified)))?;
        Ok(verified)
    }

    /// Reads the image through the device, compares it with the file, writes back what was read,
    /// and compares again: the file must not have changed.
    pub(crate) fn exercise_image(
        &self,
        nvme: &mut Nvme<'_>,
        path: &Path,
        reporter: &Reporter,
    ) -> Result<u64, Failure> {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let whole = file.metadata()?.len();
        let size = whole.min(MOST_OF_IMAGE);
        if nvme.blocks * BLOCK != whole {
            return Err(
                format!("the device has {} blocks, the file {whole} bytes", nvme.blocks).into()
            );
        }
        let mut verified = 0;
        let passes = ENOUGH.div_ceil(size);
        let mut expected = vec![0; usize::try_from(BUFFER.min(size))?];
        let mut found = expected.clone();
        for _ in 0..passes {
            for offset in (0..size).step_by(usize::try_from(BUFFER)?) {
                let bytes = BUFFER.min(size - offset);
                let length = usize::try_from(bytes)?;
                file.read_exact_at(&mut expected[..length], offset)?;
                self.memory.copy_in(self.buffer, &vec![0; length])?;
                self.pass(nvme, false, offset, bytes)?;
                self.memory.copy_out(self.buffer, &mut found[..length])?;
                compare(&expected[..length], &found[..length], offset)?;
                self.pass(nvme, true, offset, bytes)?;
                file.read_exact_at(&mut found[..length], offset)?;
                compare(&expected[..length], &found[..length], offset)?;
                verified += 2 * bytes;
            }
        }
        let part = if size < whole {
            format!("the first {}", output::size(size))
        } else {
            "all".to_owned()
        };
        reporter.say(&format!(
            "{part} of {} read through the device equals the file",
            path.display()
        ))?;
        reporter.say(&format!("written back {passes} times; the file did not change"))?;
        Ok(verified)
    }
}

/// Bytes that came back different.
#[derive(Debug, thiserror::Error)]
#[error(
    "{count} bytes are different, the first at {first:#x}: {found:#04x}, expected {expected:#04x}"
)]
pub(crate) struct Corrupt {
    pub(crate) count: usize,
    first: u64,
    found: u8,
    expected: u8,
}

fn compare(expected: &[u8], found: &[u8], offset: u64) -> Result<(), Failure> {
    let mut different = expected.iter().zip(found).enumerate().filter(|(_, (a, b))| a != b);
    let Some((at, (expected, found))) = different.next() else { return Ok(()) };
    let (first, count) = (offset + at as u64, 1 + different.count());
    Err(Corrupt { count, first, found: *found, expected: *expected }.into())
}
