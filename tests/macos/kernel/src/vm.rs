//! `mach_vm_*` and memory entries (osfmk/vm/vm_user.c, vm_map.c, vm_memory_entry.c of xnu-11417.101.15). All of it
//! on pages of 16 KiB.

use std::os::fd::{AsFd as _, BorrowedFd};

use darwin_abi::Symbol;

use crate::client::ask_with;
use crate::codes::{Code, NULL, Name, PAGE, kern};
use crate::ports::{own_task, put};
use crate::space::{self, READ, WRITE};
use crate::state::Segment;
use crate::wire::{Part, Reply, Request};
use crate::{fail, sandbox};

pub(crate) mod copy;

pub(crate) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_mach_make_memory_entry_64" => make_memory_entry as extern "C" fn(_, _, _, _, _, _) -> _,
    "_mach_vm_map" => map as extern "C" fn(_, _, _, _, _, _, _, _, _, _) -> _,
    "_mach_vm_remap" => remap as extern "C" fn(_, _, _, _, _, _, _, _, _, _, _) -> _,
    "_mach_vm_allocate" => allocate as extern "C" fn(_, _, _, _) -> _,
    "_mach_vm_deallocate" => deallocate as extern "C" fn(_, _, _) -> _,
    "_mach_vm_protect" => protect as extern "C" fn(_, _, _, _, _) -> _,
    "_mach_vm_read_overwrite" => copy::read_overwrite as extern "C" fn(_, _, _, _, _) -> _,
    "_mach_vm_write" => copy::write as extern "C" fn(_, _, _, _) -> _,
};

/// osfmk/mach/memory_object_types.h and vm_prot.h.
const VM_SHARE: i32 = 0x40_0000;
const NAMED_CREATE: i32 = 0x2_0000;
const PROTECTIONS: i32 = 7;
/// osfmk/mach/vm_statistics.h; the top byte is a tag for accounting.
const ANYWHERE: i32 = 0x1;
const OVERWRITE: i32 = 0x4000;
const TAG: i32 = 0xff00_0000_u32.cast_signed();

/// The pages of a range; `None` if it wraps.
fn pages(address: u64, size: u64) -> Option<(u64, u64)> {
    let end = address.checked_add(size)?.checked_next_multiple_of(PAGE)?;
    Some((address / PAGE * PAGE, end))
}

/// Anonymous memory for an answer of the kernel's.
pub(crate) fn anonymous(size: u64) -> Option<u64> {
    let start = space::reserve(size)?;
    // SAFETY: the range just reserved.
    let opened =
        unsafe { libc::mprotect(start as *mut libc::c_void, space::usize_of(size), READ | WRITE) };
    (opened == 0).then_some(start)
}

/// `mach_make_memory_entry_64`: a port for a range of this task's, or for memory that is made for it.
pub(crate) extern "C" fn make_memory_entry(
    task: Name,
    size: *mut u64,
    offset: u64,
    permission: i32,
    handle: *mut Name,
    parent: Name,
) -> Code {
    own_task(task, "mach_make_memory_entry_64");
    if let Err(code) = sandbox::routine("mach_make_memory_entry_64") {
        return code;
    }
    let flags = permission & !PROTECTIONS;
    if parent != NULL {
        fail::not_simulated("mach_make_memory_entry_64 with a parent entry");
    }
    if flags & !(VM_SHARE | NAMED_CREATE) != 0 {
        fail::not_simulated(&format!("mach_make_memory_entry_64 with {flags:#x}"));
    }
    // SAFETY: the Darwin call's place for a size.
    let wanted = unsafe { size.read_unaligned() };
    if wanted == 0 && flags & NAMED_CREATE == 0 {
        // `mach_make_memory_entry_share`: nothing is no range.
        return kern::INVALID_ARGUMENT;
    }
    let protection = permission & PROTECTIONS;
    let segments = if flags & NAMED_CREATE != 0 {
        // `mach_make_memory_entry_named_create`: the address is not looked at.
        let Some((_, length)) = pages(0, wanted) else { return kern::INVALID_ARGUMENT };
        let Ok(file) = space::file(length) else { return kern::RESOURCE_SHORTAGE };
        vec![Segment { file, offset: 0, length }]
    } else {
        // `vm_map_copy_extract`: of exactly this protection, or more than there is, which fails.
        let Some((start, end)) = pages(offset, wanted) else { return kern::INVALID_ARGUMENT };
        match space::segments(start, end, protection) {
            // Without VM_SHARE an entry is of one object: it stops where that ends.
            Ok(mut found) => {
                if flags & VM_SHARE == 0 {
                    found.truncate(1);
                }
                found
            }
            Err(code) => return code,
        }
    };
    let length = segments.iter().map(|segment| segment.length).sum();
    match new_memory(&segments, protection, flags & VM_SHARE != 0) {
        Ok(name) => {
            // SAFETY: the Darwin call's places.
            unsafe {
                put(size, length);
                put(handle, name);
            }
            kern::SUCCESS
        }
        Err(code) => code,
    }
}

fn new_memory(segments: &[Segment], protection: i32, is_copy: bool) -> Result<Name, Code> {
    let files: Vec<BorrowedFd<'_>> = segments.iter().map(|segment| segment.file.as_fd()).collect();
    if files.len() > cordon_ipc::tube::MAX_HANDLES {
        fail::not_simulated("a memory entry of so many mappings");
    }
    let part = |(file, segment): (u32, &Segment)| Part {
        file,
        offset: segment.offset,
        length: segment.length,
    };
    let parts = (0..).zip(segments).map(part).collect();
    match ask_with(&Request::NewMemory { parts, protection, is_copy }, &files).0 {
        Reply::Name(name) => Ok(name),
        Reply::Code(code) => Err(code),
        other => fail::not_simulated(&format!("an answer to a memory entry: {other:?}")),
    }
}

/// Where a mapping goes: `None` is anywhere.
fn place(address: u64, length: u64, flags: i32, what: &str) -> Result<Option<u64>, Code> {
    let unknown = flags & !(ANYWHERE | OVERWRITE | TAG);
    if unknown != 0 {
        fail::not_simulated(&format!("{what} with the flags {unknown:#x}"));
    }
    if flags & ANYWHERE != 0 {
        return Ok(None);
    }
    // `vm_map_enter_mem_object`: the page of the address.
    let start = address / PAGE * PAGE;
    let end = start.checked_add(length).ok_or(kern::INVALID_ADDRESS)?;
    if flags & OVERWRITE == 0 && space::is_any_mapped(start, end) {
        return Err(kern::NO_SPACE);
    }
    Ok(Some(start))
}

/// The last three arguments are on the stack, of 4 bytes each, two of them in the first slot.
pub(crate) extern "C" fn map(
    task: Name,
    address: *mut u64,
    size: u64,
    mask: u64,
    flags: i32,
    object: Name,
    offset: u64,
    copy: u32,
    protections: u64,
    inheritance: u64,
) -> Code {
    own_task(task, "mach_vm_map");
    // libsyscall's mach_vm_map tries the trap, which maps no objects, and sends the message otherwise.
    let denied = if object == NULL {
        sandbox::trap("MSC__kernelrpc_mach_vm_map_trap")
    } else {
        sandbox::routine("mach_vm_map")
    };
    if let Err(code) = denied {
        return code;
    }
    let current = (protections & 0xffff_ffff) as i32;
    let most = (protections >> 32) as i32;
    let _ = inheritance;
    if copy != 0 || mask & !(PAGE - 1) != 0 {
        fail::not_simulated("mach_vm_map of a copy, or with a mask");
    }
    if (current | most) & !PROTECTIONS != 0 {
        fail::not_simulated(&format!(
            "mach_vm_map with the protections {current:#x} and {most:#x}"
        ));
    }
    if current & !most != 0 {
        // `vm_map_enter`: more than the most.
        return kern::PROTECTION_FAILURE;
    }
    // SAFETY: the Darwin call's place for an address.
    let at = unsafe { address.read_unaligned() };
    let mapped = if object == NULL {
        map_anonymous(at, size, flags, current, most)
    } else {
        map_entry(at, (offset, size), flags, object, current, most)
    };
    match mapped {
        Ok(at) => {
            // SAFETY: as above.
            unsafe { put(address, at) };
            kern::SUCCESS
        }
        Err(code) => code,
    }
}

fn map_anonymous(at: u64, size: u64, flags: i32, current: i32, most: i32) -> Result<u64, Code> {
    let (_, length) = pages(0, size).filter(|(_, end)| *end > 0).ok_or(kern::INVALID_ARGUMENT)?;
    let place = place(at, length, flags, "mach_vm_map")?;
    let file = space::file(length).map_err(|_| kern::RESOURCE_SHORTAGE)?;
    space::map(&[Segment { file, offset: 0, length }], place, current, most)
}

/// `vm_map_enter_mem_object`.
fn map_entry(
    at: u64,
    (offset, size): (u64, u64),
    flags: i32,
    object: Name,
    current: i32,
    most: i32,
) -> Result<u64, Code> {
    let (reply, handles) = ask_with(&Request::Memory { name: object }, &[]);
    let (parts, protection, is_copy) = match reply {
        Reply::Memory { parts, protection, is_copy } => (parts, protection, is_copy),
        Reply::Code(code) => return Err(code),
        other => fail::not_simulated(&format!("an answer to a mapping: {other:?}")),
    };
    let files: Vec<_> = handles.map(space::received).collect();
    let segment = |part: Part| {
        let file = files.get(part.file as usize).cloned()?;
        Some(Segment { file, offset: part.offset, length: part.length })
    };
    let segments: Option<Vec<Segment>> = parts.into_iter().map(segment).collect();
    let segments = segments.ok_or(kern::INVALID_ARGUMENT)?;
    let whole: u64 = segments.iter().map(|segment| segment.length).sum();
    let size = match size {
        0 if offset >= whole => return Err(kern::INVALID_RIGHT),
        0 => whole - offset,
        size => size,
    };
    if (protection & most) != most || (protection & current) != current {
        return Err(kern::INVALID_RIGHT);
    }
    let end = offset.checked_add(size).ok_or(kern::INVALID_ARGUMENT)?;
    if whole < end {
        return Err(kern::INVALID_ARGUMENT);
    }
    if is_copy {
        // "For a vm_map_copy, we can only map it whole": the size of the copy counts, and the offset is not
        // looked at. At a fixed address it lies over whatever is behind what the caller spoke of.
        let place = place(at, whole, flags, "mach_vm_map")?;
        return space::map(&segments, place, current, most);
    }
    let (start, end) = pages(offset, size).ok_or(kern::INVALID_ARGUMENT)?;
    let part = cut(&segments, start, end.min(whole));
    let place = place(at, end - start, flags, "mach_vm_map")?;
    space::map(&part, place, current, most)
}

/// The part of some segments from `start` to `end`.
fn cut(segments: &[Segment], start: u64, end: u64) -> Vec<Segment> {
    let (mut found, mut at) = (Vec::new(), 0);
    for segment in segments {
        let (from, to) = (start.max(at), end.min(at + segment.length));
        if from < to {
            let offset = segment.offset + (from - at);
            let file = std::sync::Arc::clone(&segment.file);
            found.push(Segment { file, offset, length: to - from });
        }
        at += segment.length;
    }
    found
}

/// Shared or copied, within this task: it takes offset and size, unlike the mapping of an entry that is a copy.
pub(crate) extern "C" fn remap(
    task: Name,
    address: *mut u64,
    size: u64,
    mask: u64,
    flags: i32,
    source: Name,
    from: u64,
    copy: u32,
    current: *mut i32,
    most: *mut i32,
    inheritance: u32,
) -> Code {
    own_task(task, "mach_vm_remap");
    if let Err(code) = sandbox::routine("mach_vm_remap") {
        return code;
    }
    own_task(source, "mach_vm_remap");
    let _ = inheritance;
    if mask & !(PAGE - 1) != 0 {
        fail::not_simulated("mach_vm_remap with a mask");
    }
    let Some((start, end)) = pages(from, size).filter(|_| size != 0) else {
        return kern::INVALID_ARGUMENT;
    };
    // SAFETY: the Darwin call's place for an address.
    let at = unsafe { address.read_unaligned() };
    let mapped = space::segments(start, end, READ).and_then(|segments| {
        let place = place(at, end - start, flags, "mach_vm_remap")?;
        if copy != 0 {
            return space::map_copies(&segments, place);
        }
        space::map(&segments, place, READ | WRITE, READ | WRITE)
    });
    match mapped {
        Ok(at) => {
            // SAFETY: the Darwin call's places.
            unsafe {
                put(address, at);
                put(current, READ | WRITE);
                put(most, READ | WRITE);
            }
            kern::SUCCESS
        }
        Err(code) => code,
    }
}

pub(crate) extern "C" fn allocate(task: Name, address: *mut u64, size: u64, flags: i32) -> Code {
    own_task(task, "mach_vm_allocate");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_vm_allocate_trap") {
        return code;
    }
    if size == 0 {
        // `mach_vm_allocate_kernel`: nothing is at 0.
        // SAFETY: the Darwin call's place for an address.
        unsafe { put(address, 0) };
        return kern::SUCCESS;
    }
    // SAFETY: the Darwin call's place for an address.
    let at = unsafe { address.read_unaligned() };
    match map_anonymous(at, size, flags, READ | WRITE, PROTECTIONS) {
        Ok(at) => {
            // SAFETY: as above.
            unsafe { put(address, at) };
            kern::SUCCESS
        }
        Err(code) => code,
    }
}

pub(crate) extern "C" fn deallocate(task: Name, address: u64, size: u64) -> Code {
    own_task(task, "mach_vm_deallocate");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_vm_deallocate_trap") {
        return code;
    }
    if size == 0 {
        return kern::SUCCESS;
    }
    let Some((start, end)) = pages(address, size) else { return kern::INVALID_ARGUMENT };
    // SAFETY: the program gives these pages up.
    let gone = unsafe { libc::munmap(start as *mut libc::c_void, space::usize_of(end - start)) };
    if gone != 0 {
        return kern::INVALID_ADDRESS;
    }
    space::unmapped(start, end - start);
    kern::SUCCESS
}

pub(crate) extern "C" fn protect(
    task: Name,
    address: u64,
    size: u64,
    set_most: u32,
    new: i32,
) -> Code {
    own_task(task, "mach_vm_protect");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_vm_protect_trap") {
        return code;
    }
    if set_most != 0 || new & !PROTECTIONS != 0 {
        fail::not_simulated(&format!("mach_vm_protect of the most, or with {new:#x}"));
    }
    if size == 0 {
        return kern::SUCCESS;
    }
    let Some((start, end)) = pages(address, size) else { return kern::INVALID_ARGUMENT };
    if let Err(code) = space::segments(start, end, new) {
        return code;
    }
    // SAFETY: the program's own pages, which it wants protected so.
    let done =
        unsafe { libc::mprotect(start as *mut libc::c_void, space::usize_of(end - start), new) };
    if done == 0 { kern::SUCCESS } else { kern::INVALID_ADDRESS }
}
