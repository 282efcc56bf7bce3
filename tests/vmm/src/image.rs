//! The firmware as alioth loads it: a PVH kernel, which is an ELF file with a note that names its entry.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::Failure;

/// Where the flat image goes, and begins.
const BASE: u32 = 0x10_0000;
const HEADER: u16 = 64;
const SEGMENT: u16 = 56;
/// The note: sizes of name and value, type, name, value.
const NOTE: u64 = 20;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const ENTRY: u32 = 18;

/// A file of the flat image at `path`, and its name while it is open.
pub(crate) fn open(path: &Path) -> Result<(File, PathBuf), Failure> {
    let flat = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let file = rustix::fs::memfd_create("firmware", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(&elf(&flat))?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok((file, name.into()))
}

fn elf(flat: &[u8]) -> Vec<u8> {
    let note = u64::from(HEADER + 2 * SEGMENT);
    let image = note + NOTE;
    let mut elf = Vec::new();
    // 64-bit, little-endian, version 1; an executable for x86-64.
    elf.extend([
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0,
    ]);
    for word in [u64::from(BASE), HEADER.into(), 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0; 4]);
    // Sizes and numbers of headers: this one, two segments, no sections.
    for half in [HEADER, SEGMENT, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    for (kind, flags, offset, address, size) in
        [(1u32, 7u32, image, u64::from(BASE), flat.len() as u64), (4, 4, note, 0, NOTE)]
    {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            elf.extend(word.to_le_bytes());
        }
    }
    for word in [4, 4, ENTRY, u32::from_le_bytes(*b"Xen\0"), BASE] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(flat);
    elf
}
