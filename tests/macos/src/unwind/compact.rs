//! `__unwind_info`: which function an address is in, and the compact form of its rule for arm64
//! (libunwind-201, `mach-o/compact_unwind_encoding.h`).

use super::registers::Registers;
use super::{Function, Rule, dwarf};
use crate::image::Loaded;
use crate::image::commands::Fields;

const HAS_LSDA: u32 = 0x4000_0000;
const PERSONALITY: u32 = 0x3000_0000;
const MODE: u32 = 0x0f00_0000;
const FRAMELESS: u32 = 0x0200_0000;
const DWARF: u32 = 0x0300_0000;
const FRAME: u32 = 0x0400_0000;
const FRAMELESS_SIZE: u32 = 0x00ff_f000;
const DWARF_OFFSET: u32 = 0x00ff_ffff;

/// The function that an address of the image is in.
pub(super) fn find(loaded: &Loaded, address: usize) -> Option<Function> {
    let info = Fields(loaded.bytes("__TEXT", "__unwind_info")?);
    let base = loaded.base();
    let target = u32::try_from(address.checked_sub(base)?).ok()?;
    let (start, encoding, first) = entry(info, target).ok()??;
    let mut function = Function {
        start: base + start as usize,
        lsda: 0,
        personality: personality(info, encoding, base),
        rule: Rule::Compact(encoding),
    };
    if encoding & MODE == DWARF {
        let offset = (encoding & DWARF_OFFSET) as usize;
        function.rule = Rule::Dwarf(offset);
        let described = dwarf::describe(loaded, offset)?;
        function.start = described.start;
        function.lsda = described.lsda;
        function.personality = described.personality;
    } else if encoding & HAS_LSDA != 0 {
        function.lsda = base + lsda(info, first, start).ok()?? as usize;
    }
    Some(function)
}

/// Start and encoding of the function that an offset is in, and the first-level entry that led there.
fn entry(info: Fields<'_>, target: u32) -> Result<Option<(u32, u32, usize)>, String> {
    const REGULAR: u32 = 2;
    const COMPRESSED: u32 = 3;
    let (index, count) = (info.size(20)?, info.size(24)?);
    // The last entry only says where the code ends.
    let first = last_where(count.saturating_sub(1), |at| Ok(info.u32(index + 12 * at)? <= target))?;
    let Some(first) = first.map(|at| index + 12 * at) else { return Ok(None) };
    let (start, page) = (info.u32(first)?, info.size(first + 4)?);
    if page == 0 {
        return Ok(None);
    }
    let (entries, count) = (page + usize::from(info.u16(page + 4)?), info.u16(page + 6)?);
    match info.u32(page)? {
        REGULAR => {
            let found = last_where(count.into(), |at| Ok(info.u32(entries + 8 * at)? <= target))?;
            let Some(at) = found.map(|at| entries + 8 * at) else { return Ok(None) };
            Ok(Some((info.u32(at)?, info.u32(at + 4)?, first)))
        }
        COMPRESSED => {
            let offset = |word: u32| start + (word & 0xff_ffff);
            let found =
                last_where(count.into(), |at| Ok(offset(info.u32(entries + 4 * at)?) <= target))?;
            let Some(at) = found else { return Ok(None) };
            let word = info.u32(entries + 4 * at)?;
            let which = (word >> 24) as usize;
            let (common, commons) = (info.size(4)?, info.size(8)?);
            let encoding = if which < commons {
                info.u32(common + 4 * which)?
            } else {
                let own = page + usize::from(info.u16(page + 8)?);
                info.u32(own + 4 * (which - commons))?
            };
            Ok(Some((offset(word), encoding, first)))
        }
        other => Err(format!("a page of kind {other}")),
    }
}

/// The last of `count` sorted entries that `holds` is true of.
fn last_where(
    count: usize,
    holds: impl Fn(usize) -> Result<bool, String>,
) -> Result<Option<usize>, String> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = (low + high) / 2;
        if holds(middle)? { low = middle + 1 } else { high = middle }
    }
    Ok(low.checked_sub(1))
}

/// Offset of a function's language-specific data.
fn lsda(info: Fields<'_>, first: usize, start: u32) -> Result<Option<u32>, String> {
    // The next first-level entry says where its part of the table ends.
    let (table, end) = (info.size(first + 8)?, info.size(first + 12 + 8)?);
    let count = end.saturating_sub(table) / 8;
    let found = last_where(count, |at| Ok(info.u32(table + 8 * at)? <= start))?;
    let Some(at) = found.map(|at| table + 8 * at) else { return Ok(None) };
    if info.u32(at)? == start { info.u32(at + 4).map(Some) } else { Ok(None) }
}

/// The address of the personality that an encoding names, or 0.
fn personality(info: Fields<'_>, encoding: u32, base: usize) -> usize {
    let index = ((encoding & PERSONALITY) >> 28) as usize;
    let read = || -> Result<usize, String> {
        let pointer = base + info.size(info.size(12)? + 4 * (index - 1))?;
        // SAFETY: the image says that a pointer to its personality is there, in its mapped data.
        Ok(unsafe { (pointer as *const usize).read() })
    };
    if index == 0 { 0 } else { read().unwrap_or(0) }
}

/// The caller's registers.
pub(super) fn step(from: &Registers, encoding: u32) -> Option<Registers> {
    let mut to = *from;
    match encoding & MODE {
        FRAME => {
            let fp = from.x[29];
            restore_pairs(&mut to, encoding, fp.checked_sub(8)?);
            to.x[29] = word(fp);
            to.x[30] = word(fp + 8);
            to.sp = fp + 16;
        }
        FRAMELESS => {
            let size = 16 * ((encoding & FRAMELESS_SIZE) >> 12) as usize;
            to.sp = from.sp + size;
            let first = to.sp - 8;
            restore_pairs(&mut to, encoding, first);
        }
        _ => return None,
    }
    to.pc = to.x[30];
    Some(to)
}

/// Pairs of saved registers, each at the place below the one before it.
fn restore_pairs(to: &mut Registers, encoding: u32, mut at: usize) {
    for pair in 0..9 {
        // Bits 0 to 4 are of x19 to x28, bits 8 to 11 of d8 to d15.
        let bit = if pair < 5 { pair } else { pair + 3 };
        if encoding >> bit & 1 == 0 {
            continue;
        }
        for half in 0..2 {
            if pair < 5 {
                to.x[19 + 2 * pair + half] = word(at);
            } else {
                to.d[2 * (pair - 5) + half] = word(at) as u64;
            }
            at -= 8;
        }
    }
}

fn word(at: usize) -> usize {
    // SAFETY: in a live frame of this thread's stack, where its unwind information says that a register was saved.
    unsafe { (at as *const usize).read() }
}
