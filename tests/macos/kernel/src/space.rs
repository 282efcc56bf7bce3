//! What this process has mapped that has a memory file behind it, so that a part of it can be handed on: the
//! kernel's map of the task. The runner tells of what the program maps itself.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::MemfdFlags;

use crate::client::reserved;
use crate::codes::{Code, PAGE, kern};
use crate::state::Segment;

/// VM_PROT_READ, VM_PROT_WRITE, VM_PROT_EXECUTE (osfmk/mach/vm_prot.h): the bits of PROT_*.
pub(crate) const READ: i32 = 1;
pub(crate) const WRITE: i32 = 2;
pub(crate) const EXECUTE: i32 = 4;

#[derive(Clone, Debug)]
struct Area {
    end: u64,
    file: Arc<OwnedFd>,
    offset: u64,
    /// The most that it can be protected to.
    most: i32,
}

#[derive(Debug, Default)]
struct Space {
    areas: BTreeMap<u64, Area>,
    /// One descriptor for each file, however often it is mapped.
    files: HashMap<(u64, u64), Weak<OwnedFd>>,
}

static SPACE: Mutex<Option<Space>> = Mutex::new(None);

struct Locked(MutexGuard<'static, Option<Space>>);

impl Locked {
    fn get(&mut self) -> &mut Space {
        self.0.get_or_insert_default()
    }
}

fn lock() -> Locked {
    Locked(SPACE.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Space {
    fn forget(&mut self, start: u64, end: u64) {
        let first = self.areas.range(..start).next_back().map_or(start, |(at, _)| *at);
        let touched: Vec<u64> = self.areas.range(first..end).map(|(at, _)| *at).collect();
        for at in touched {
            let Some(area) = self.areas.remove(&at) else { continue };
            if at < start {
                let left = Area { end: area.end.min(start), ..area.clone() };
                self.areas.insert(at, left);
            }
            if area.end > end {
                let cut = end.max(at);
                let right = Area { offset: area.offset + (cut - at), ..area.clone() };
                self.areas.insert(cut, right);
            }
        }
    }

    fn add(&mut self, start: u64, length: u64, segment: (Arc<OwnedFd>, u64), most: i32) {
        let end = start + length;
        self.forget(start, end);
        self.areas.insert(start, Area { end, file: segment.0, offset: segment.1, most });
    }
}

/// The program mapped `length` bytes of a file at `address`, shared.
pub(crate) fn mapped(address: u64, length: u64, file: BorrowedFd<'_>, offset: u64, most: i32) {
    let Ok(stat) = rustix::fs::fstat(file) else { return };
    let mut space = lock();
    let space = space.get();
    let key = (stat.st_dev, stat.st_ino);
    let known = space.files.get(&key).and_then(Weak::upgrade);
    let file = match known {
        Some(file) => file,
        None => {
            let Ok(copy) = file.try_clone_to_owned() else { return };
            let file = Arc::new(reserved(copy));
            space.files.retain(|_, file| file.strong_count() > 0);
            space.files.insert(key, Arc::downgrade(&file));
            file
        }
    };
    space.add(address, length.next_multiple_of(4096), (file, offset), most);
}

/// What was mapped there is not any more, or something else is.
pub(crate) fn unmapped(address: u64, length: u64) {
    lock().get().forget(address, address.saturating_add(length.next_multiple_of(4096)));
}

/// A memory file of ours.
pub(crate) fn file(length: u64) -> io::Result<Arc<OwnedFd>> {
    let file = rustix::fs::memfd_create("mach-memory", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, length)?;
    Ok(Arc::new(reserved(file)))
}

/// Maps a part of a file; at `fixed`, or anywhere on a page of Apple silicon's. Whatever was at `fixed` is
/// gone afterwards.
pub(crate) fn map(
    segments: &[Segment],
    fixed: Option<u64>,
    protection: i32,
    most: i32,
) -> Result<u64, Code> {
    let base = put(segments, fixed, protection, libc::MAP_SHARED)?;
    let mut at = base;
    for segment in segments {
        let file = Arc::clone(&segment.file);
        lock().get().add(at, segment.length, (file, segment.offset), most);
        at += segment.length;
    }
    Ok(base)
}

/// The same, copied on write, to be read and written. What is copied must not be changed afterwards: here the copy
/// would show it until it is written itself. It is memory of the program's alone, with nothing behind it that could
/// be handed on.
pub(crate) fn map_copies(segments: &[Segment], fixed: Option<u64>) -> Result<u64, Code> {
    let base = put(segments, fixed, READ | WRITE, libc::MAP_PRIVATE)?;
    unmapped(base, segments.iter().map(|segment| segment.length).sum());
    Ok(base)
}

fn put(
    segments: &[Segment],
    fixed: Option<u64>,
    protection: i32,
    sharing: i32,
) -> Result<u64, Code> {
    let total: u64 = segments.iter().map(|segment| segment.length).sum();
    let base = match fixed {
        Some(at) => at,
        None => reserve(total).ok_or(kern::NO_SPACE)?,
    };
    let mut at = base;
    for segment in segments {
        // SAFETY: over the range just reserved, or over what the caller says that the program gives up.
        let mapped = unsafe {
            libc::mmap(
                at as *mut libc::c_void,
                usize_of(segment.length),
                protection & (READ | WRITE | EXECUTE),
                sharing | libc::MAP_FIXED,
                segment.file.as_raw_fd(),
                libc::off_t::try_from(segment.offset).unwrap_or(libc::off_t::MAX),
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(kern::RESOURCE_SHORTAGE);
        }
        at += segment.length;
    }
    Ok(base)
}

pub(crate) fn usize_of(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Addresses of the program's that nothing is at, on a page of Apple silicon's.
pub(crate) fn reserve(length: u64) -> Option<u64> {
    let length = length.checked_next_multiple_of(PAGE)?;
    let whole = length.checked_add(PAGE)?;
    // SAFETY: a fresh mapping of nothing, anywhere.
    let found = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            usize_of(whole),
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if found == libc::MAP_FAILED {
        return None;
    }
    let found = found as u64;
    let start = found.next_multiple_of(PAGE);
    // SAFETY: what is over at both ends of the mapping just made.
    unsafe {
        if start > found {
            libc::munmap(found as *mut libc::c_void, usize_of(start - found));
        }
        let (end, over) = (start + length, found + whole);
        if over > end {
            libc::munmap(end as *mut libc::c_void, usize_of(over - end));
        }
    }
    Some(start)
}

/// Whether every page of a range is mapped.
pub(crate) fn is_mapped(start: u64, end: u64) -> bool {
    // SAFETY: only asks; nothing is written for memory without a file in a file system.
    start < end
        && unsafe {
            libc::msync(start as *mut libc::c_void, usize_of(end - start), libc::MS_ASYNC) == 0
        }
}

/// Whether any page of a range is mapped.
pub(crate) fn is_any_mapped(start: u64, end: u64) -> bool {
    (start..end).step_by(4096).any(|page| is_mapped(page, page + 4096))
}

/// The files behind a range of whole pages. What has none gets one, in its place and with its content: nobody may
/// write to it meanwhile, which no caller of the kernel's could be stopped from.
///
/// # Errors
/// KERN_INVALID_ADDRESS where nothing is mapped, KERN_PROTECTION_FAILURE where less is allowed than `wanted`.
pub(crate) fn segments(start: u64, end: u64, wanted: i32) -> Result<Vec<Segment>, Code> {
    if !is_mapped(start, end) {
        return Err(kern::INVALID_ADDRESS);
    }
    let mut found: Vec<Segment> = Vec::new();
    let mut at = start;
    while at < end {
        let (area, next) = {
            let mut space = lock();
            let areas = &space.get().areas;
            let below = areas.range(..=at).next_back();
            let area = below.filter(|(_, area)| area.end > at);
            let area = area.map(|(from, area)| (*from, area.clone()));
            let next = areas.range(at + 1..).next().map_or(end, |(next, _)| *next);
            (area, next.min(end))
        };
        let (from, area) = match area {
            Some(known) => known,
            None => (at, promote(at, next)?),
        };
        if area.most & wanted != wanted {
            return Err(kern::PROTECTION_FAILURE);
        }
        let length = area.end.min(end) - at;
        let offset = area.offset + (at - from);
        match found.last_mut() {
            Some(last)
                if Arc::ptr_eq(&last.file, &area.file) && last.offset + last.length == offset =>
            {
                last.length += length;
            }
            _ => found.push(Segment { file: area.file, offset, length }),
        }
        at += length;
    }
    Ok(found)
}

/// Puts a memory file under memory that has none.
fn promote(start: u64, end: u64) -> Result<Area, Code> {
    let length = end - start;
    let file = file(length).map_err(|_| kern::RESOURCE_SHORTAGE)?;
    let mut copied = 0;
    while copied < length {
        let from = (start + copied) as *const libc::c_void;
        let place = libc::off_t::try_from(copied).unwrap_or(libc::off_t::MAX);
        // SAFETY: the kernel reads what is mapped there, and says so where it cannot.
        let wrote =
            unsafe { libc::pwrite(file.as_raw_fd(), from, usize_of(length - copied), place) };
        copied += u64::try_from(wrote).map_err(|_| kern::PROTECTION_FAILURE)?;
    }
    let segment = Segment { file: Arc::clone(&file), offset: 0, length };
    map(&[segment], Some(start), READ | WRITE, READ | WRITE | EXECUTE)?;
    Ok(Area { end, file, offset: 0, most: READ | WRITE | EXECUTE })
}

/// Descriptors that came from the kernel, out of the program's way.
pub(crate) fn received(fd: OwnedFd) -> Arc<OwnedFd> {
    Arc::new(reserved(fd))
}

/// A new descriptor of an event, out of the program's way.
pub(crate) fn event() -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor, owned from here on.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(reserved(unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    fn known(start: u64, end: u64) -> Vec<(u64, u64, u64)> {
        let mut space = lock();
        let areas = &space.get().areas;
        let there = areas.range(start..end);
        there.map(|(at, area)| (*at - start, area.end - start, area.offset)).collect()
    }

    #[test]
    fn parts_of_what_is_mapped_are_forgotten_from_either_end_and_the_middle() {
        let file = file(64 * PAGE).unwrap();
        let base = 0x7000_0000_0000;
        mapped(base, 8 * PAGE, file.as_fd(), PAGE, READ);
        unmapped(base + 2 * PAGE, PAGE);
        unmapped(base, PAGE);
        unmapped(base + 7 * PAGE, 4 * PAGE);
        assert_eq!(
            known(base, base + 16 * PAGE),
            [(PAGE, 2 * PAGE, 2 * PAGE), (3 * PAGE, 7 * PAGE, 4 * PAGE)]
        );
        unmapped(base, 16 * PAGE);
        assert!(known(base, base + 16 * PAGE).is_empty());
    }

    #[test]
    fn memory_without_a_file_gets_one_in_its_place() {
        let start = reserve(3 * PAGE).unwrap();
        assert!(start.is_multiple_of(PAGE));
        // SAFETY: the range just reserved.
        let bytes = unsafe {
            libc::mprotect(start as *mut libc::c_void, 3 * PAGE as usize, READ | WRITE);
            std::slice::from_raw_parts_mut(start as *mut u8, 3 * PAGE as usize)
        };
        bytes[PAGE as usize] = 7;
        let found = segments(start + PAGE, start + 2 * PAGE, READ | WRITE).unwrap();
        let [segment] = &found[..] else { panic!("{found:?}") };
        assert_eq!((segment.offset, segment.length), (0, PAGE));
        let again = map(&found, None, READ | WRITE, READ | WRITE).unwrap();
        // SAFETY: mapped just now.
        let other = unsafe { std::slice::from_raw_parts_mut(again as *mut u8, PAGE as usize) };
        assert_eq!(other[0], 7);
        other[1] = 8;
        assert_eq!(bytes[PAGE as usize + 1], 8);
        // SAFETY: this test's own.
        unsafe { libc::munmap(start as *mut libc::c_void, PAGE as usize) };
        assert_eq!(segments(start, start + PAGE, READ).unwrap_err(), kern::INVALID_ADDRESS);
    }
}
