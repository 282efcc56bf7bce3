//! A Mach-O image: its load commands ([`commands`]), its place in memory ([`map`]), its fixups
//! ([`fixups`]).
//!
//! Layouts and numbers are those of `mach-o/loader.h` and `mach-o/fixup-chains.h` (xnu-11417.101.15,
//! dyld-1284.13).

pub(crate) mod commands;
pub(crate) mod fixups;
pub(crate) mod map;

use std::sync::OnceLock;

pub(crate) use commands::{Image, Section};

/// The one image of this process.
static IMAGE: OnceLock<Loaded> = OnceLock::new();

/// An image in memory.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What its load commands say.
    pub(crate) image: Image,
    /// Added to every address in the image.
    pub(crate) slide: usize,
    /// Its path, absolute.
    pub(crate) path: std::ffi::CString,
}

impl Loaded {
    /// The image of this process, once it was loaded.
    pub(crate) fn get() -> Option<&'static Self> {
        IMAGE.get()
    }

    /// Makes it the image of this process.
    pub(crate) fn publish(self) -> &'static Self {
        IMAGE.get_or_init(|| self)
    }

    /// Where the header is.
    pub(crate) fn base(&self) -> usize {
        self.image.text.wrapping_add(self.slide)
    }

    /// Whether an address is in its code.
    pub(crate) fn has_code(&self, address: usize) -> bool {
        self.section("__TEXT", "__text").is_some_and(|text| text.contains(&address))
    }

    /// Where a section is.
    pub(crate) fn section(&self, segment: &str, name: &str) -> Option<std::ops::Range<usize>> {
        let found = |one: &&Section| one.segment == segment && one.name == name;
        let section = self.image.sections.iter().find(found)?;
        let start = section.address.wrapping_add(self.slide);
        Some(start..start + section.size)
    }

    /// The bytes of a section, as they are in memory.
    pub(crate) fn bytes(&self, segment: &str, name: &str) -> Option<&'static [u8]> {
        let range = self.section(segment, name)?;
        // SAFETY: sections lie in segments that were mapped and stay so for the life of the process; those that
        // are asked for are never written.
        Some(unsafe { std::slice::from_raw_parts(range.start as *const u8, range.len()) })
    }
}
