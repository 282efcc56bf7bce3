//! Where an image is in memory: its segments at pages of 16 KiB, with one slide.

use super::Image;
use crate::libsystem::page;

/// Reserves room for the whole image and copies its segments there, writable: [`protect`] comes after the fixups.
/// Gives the slide.
pub(crate) fn place(image: &Image, file: &[u8]) -> Result<usize, String> {
    let (Some(first), Some(last)) = (
        image.segments.iter().map(|segment| segment.address).min(),
        image.segments.iter().map(|segment| segment.address + segment.size).max(),
    ) else {
        return Err("it has no segments".to_owned());
    };
    for segment in &image.segments {
        if segment.address % page::SIZE != 0 {
            return Err(format!("segment {} is not at a page of 16 KiB", segment.name));
        }
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let base = page::map_anywhere(last - first, protection, flags)
        .map_err(|error| format!("no room for the image: {error}"))?;
    let slide = base.wrapping_sub(first);
    for segment in &image.segments {
        let to = segment.address.wrapping_add(slide) as *mut u8;
        let content = &file[segment.file.clone()];
        // SAFETY: the segment lies in what was just mapped, and its content is not longer than it.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), to, content.len()) };
    }
    Ok(slide)
}

/// Gives the segments the protections that the image asks for.
pub(crate) fn protect(image: &Image, slide: usize) -> Result<(), String> {
    for segment in &image.segments {
        let start = segment.address.wrapping_add(slide);
        let size = page::round(segment.size);
        let protection = if segment.read_only_data {
            segment.protection & !libc::PROT_WRITE
        } else {
            segment.protection
        };
        // SAFETY: whole pages of the image; nothing of the runner lies there.
        if unsafe { libc::mprotect(start as *mut _, size, protection) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(format!("segment {} cannot be protected: {error}", segment.name));
        }
        if protection & libc::PROT_EXEC != 0 {
            synchronise(start..start + size);
        }
    }
    Ok(())
}

/// Makes what was written as data visible as instructions. Lines have at least 16 bytes.
fn synchronise(range: std::ops::Range<usize>) {
    const LINE: usize = 16;
    // SAFETY: cache maintenance of mapped addresses.
    unsafe {
        for at in range.clone().step_by(LINE) {
            std::arch::asm!("dc cvau, {at}", at = in(reg) at);
        }
        std::arch::asm!("dsb ish");
        for at in range.step_by(LINE) {
            std::arch::asm!("ic ivau, {at}", at = in(reg) at);
        }
        std::arch::asm!("dsb ish", "isb");
    }
}
