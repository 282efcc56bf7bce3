//! Chained fixups: pointers in the image that are slid, and pointers to what it imports.

use super::Image;
use super::commands::Fields;

const IMPORT: u32 = 1;
const IMPORT_ADDEND: u32 = 2;
/// Targets are addresses.
const POINTER_64: u16 = 2;
/// Targets are offsets from the header.
const POINTER_64_OFFSET: u16 = 6;
/// A page without fixups.
const NONE: u16 = 0xffff;

/// One symbol that the image imports.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) name: String,
    /// It may be missing: its address is then null.
    pub(crate) weak: bool,
    addend: i32,
}

/// What the image imports, in the order of its table.
pub(crate) fn imports(image: &Image, file: &[u8]) -> Result<Vec<Import>, String> {
    let chains = Fields(&file[image.fixups.clone()]);
    let (table, names) = (chains.size(8)?, chains.size(12)?);
    let format = chains.u32(20)?;
    let size = match format {
        IMPORT => 4,
        IMPORT_ADDEND => 8,
        other => return Err(format!("its imports have format {other}")),
    };
    if chains.u32(24)? != 0 {
        return Err("the names of its imports are compressed".to_owned());
    }
    (0..chains.size(16)?)
        .map(|index| {
            let at = table + size * index;
            let word = chains.u32(at)?;
            let addend = if size == 8 { chains.u32(at + 4)? as i32 } else { 0 };
            let name = chains.text(names + (word >> 9) as usize)?.to_owned();
            Ok(Import { name, weak: word & 0x100 != 0, addend })
        })
        .collect()
}

/// Applies every fixup of an image that was mapped writable; how many there were.
///
/// `targets` are the addresses of its imports, in the order of [`imports`].
pub(crate) fn apply(
    image: &Image,
    file: &[u8],
    slide: usize,
    imports: &[Import],
    targets: &[usize],
) -> Result<usize, String> {
    let chains = Fields(&file[image.fixups.clone()]);
    let starts = chains.size(4)?;
    let base = image.text.wrapping_add(slide);
    let mut count = 0;
    for segment in 0..chains.size(starts)? {
        let offset = chains.size(starts + 4 + 4 * segment)?;
        if offset == 0 {
            continue;
        }
        let at = starts + offset;
        let (page_size, format) = (usize::from(chains.u16(at + 4)?), chains.u16(at + 6)?);
        let segment = chains.address(at + 8)?;
        let bias = match format {
            POINTER_64 => slide,
            POINTER_64_OFFSET => base,
            other => return Err(format!("its pointers have format {other}")),
        };
        for page in 0..usize::from(chains.u16(at + 20)?) {
            let start = chains.u16(at + 22 + 2 * page)?;
            if start == NONE {
                continue;
            }
            let mut place = base + segment + page * page_size + usize::from(start);
            loop {
                inside(image, slide, place)?;
                let place_of = place as *mut u64;
                // SAFETY: inside a segment, which is mapped and writable; alignment is not asked for.
                let raw = unsafe { place_of.read_unaligned() };
                let value = resolve(raw, bias, imports, targets)?;
                // SAFETY: as above.
                unsafe { place_of.write_unaligned(value) };
                count += 1;
                let next = (raw >> 51 & 0xfff) as usize;
                if next == 0 {
                    break;
                }
                place += 4 * next;
            }
        }
    }
    Ok(count)
}

/// Refuses a fixup that is not in the image.
fn inside(image: &Image, slide: usize, place: usize) -> Result<(), String> {
    let holds = image.segments.iter().any(|segment| {
        let start = segment.address.wrapping_add(slide);
        (start..start + segment.size - 7).contains(&place)
    });
    if holds { Ok(()) } else { Err(format!("a fixup at {place:#x} is not in the image")) }
}

/// What a pointer becomes.
fn resolve(raw: u64, bias: usize, imports: &[Import], targets: &[usize]) -> Result<u64, String> {
    if raw >> 63 == 0 {
        let (target, high) = (raw & 0xf_ffff_ffff, raw >> 36 & 0xff);
        return Ok((target as usize).wrapping_add(bias) as u64 | high << 56);
    }
    let ordinal = (raw & 0xff_ffff) as usize;
    let (Some(import), Some(target)) = (imports.get(ordinal), targets.get(ordinal)) else {
        return Err(format!("a fixup names import {ordinal}, which is not there"));
    };
    if *target == 0 {
        return Ok(0);
    }
    let addend = (raw >> 24 & 0xff) as i64 + i64::from(import.addend);
    Ok((*target as u64).wrapping_add_signed(addend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_slid_and_bound() {
        let import = |weak| Import { name: "_x".to_owned(), weak, addend: 0 };
        let imports = [import(false), import(true)];
        let targets = [0x5000, 0];
        let resolve = |raw| resolve(raw, 0x1000, &imports, &targets);
        assert_eq!(resolve(0x234), Ok(0x1234));
        assert_eq!(resolve(0xab << 36 | 0x10), Ok(0xab << 56 | 0x1010));
        assert_eq!(resolve(1 << 63 | 8 << 24), Ok(0x5008));
        // A weak import that is missing is null, whatever is added.
        assert_eq!(resolve(1 << 63 | 8 << 24 | 1), Ok(0));
        assert!(resolve(1 << 63 | 2).is_err());
    }
}
