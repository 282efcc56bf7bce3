//! What the load commands of an image say.

use std::ops::Range;

/// Of a 64-bit Mach-O file.
const MAGIC: u32 = 0xfeed_facf;
const ARM64: u32 = 0x0100_000c;
const EXECUTABLE: u32 = 2;
const HEADER: usize = 32;

const LC_SEGMENT_64: u32 = 0x19;
const LC_DYLD_INFO_ONLY: u32 = 0x8000_0022;
const LC_MAIN: u32 = 0x8000_0028;
const LC_DYLD_CHAINED_FIXUPS: u32 = 0x8000_0034;

/// Of an image: addresses are those of the file, without the slide.
#[derive(Debug)]
pub(crate) struct Image {
    /// Without those that take no memory, like `__PAGEZERO`.
    pub(crate) segments: Vec<Segment>,
    pub(crate) sections: Vec<Section>,
    /// Address of the `__TEXT` segment, which begins with the header.
    pub(crate) text: usize,
    /// Offset of `main` in `__TEXT`.
    pub(crate) main: usize,
    /// Where in the file the chained fixups are.
    pub(crate) fixups: Range<usize>,
}

/// A segment that takes memory.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) address: usize,
    pub(crate) size: usize,
    /// Where its content is in the file.
    pub(crate) file: Range<usize>,
    /// VM_PROT_READ, VM_PROT_WRITE and VM_PROT_EXECUTE, which have the numbers of PROT_*.
    pub(crate) protection: i32,
    /// To be made read-only once the fixups were applied.
    pub(crate) read_only_data: bool,
}

/// A section.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) segment: String,
    pub(crate) name: String,
    pub(crate) address: usize,
    pub(crate) size: usize,
    pub(crate) kind: u8,
}

impl Section {
    /// Pointers to initialisers.
    pub(crate) const INITIALISERS: u8 = 0x09;
    /// Content of thread-local variables.
    pub(crate) const THREAD_LOCAL: u8 = 0x11;
    /// Thread-local variables that begin as zeros.
    pub(crate) const THREAD_LOCAL_ZEROS: u8 = 0x12;
    /// 32-bit offsets of initialisers.
    pub(crate) const INITIALISER_OFFSETS: u8 = 0x16;
}

/// Little-endian fields of a file; what lies beyond its end is an error that says where.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'f>(pub(crate) &'f [u8]);

impl<'f> Fields<'f> {
    pub(crate) fn array<const N: usize>(self, at: usize) -> Result<[u8; N], String> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| format!("it ends before {at:#x}"))
    }

    pub(crate) fn u16(self, at: usize) -> Result<u16, String> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(self, at: usize) -> Result<u32, String> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// A number of 32 bits that counts or measures.
    pub(crate) fn size(self, at: usize) -> Result<usize, String> {
        self.u32(at).map(|value| value as usize)
    }

    pub(crate) fn u64(self, at: usize) -> Result<u64, String> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// A number of 64 bits that is an address or a size.
    pub(crate) fn address(self, at: usize) -> Result<usize, String> {
        self.u64(at).map(|value| value as usize)
    }

    /// A name in 16 bytes.
    fn name(self, at: usize) -> Result<String, String> {
        let bytes: [u8; 16] = self.array(at)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// A text that ends in NUL.
    pub(crate) fn text(self, at: usize) -> Result<&'f str, String> {
        let rest = self.0.get(at..).ok_or_else(|| format!("it ends before {at:#x}"))?;
        let end = rest.iter().position(|byte| *byte == 0).ok_or("a name has no end")?;
        std::str::from_utf8(&rest[..end]).map_err(|_| format!("the name at {at:#x} is no text"))
    }
}

impl Image {
    /// Reads the load commands of a file.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, String> {
        let fields = Fields(file);
        if (fields.u32(0)?, fields.u32(4)?, fields.u32(12)?) != (MAGIC, ARM64, EXECUTABLE) {
            return Err("it is no Mach-O executable for arm64".to_owned());
        }
        let mut image =
            Self { segments: Vec::new(), sections: Vec::new(), text: 0, main: 0, fixups: 0..0 };
        let mut at = HEADER;
        for _ in 0..fields.u32(16)? {
            let (command, size) = (fields.u32(at)?, fields.size(at + 4)?);
            match command {
                LC_SEGMENT_64 => image.segment(fields, at)?,
                LC_MAIN => image.main = fields.address(at + 8)?,
                LC_DYLD_CHAINED_FIXUPS => {
                    let start = fields.size(at + 8)?;
                    image.fixups = start..start + fields.size(at + 12)?;
                }
                LC_DYLD_INFO_ONLY => return Err("its fixups are not chained".to_owned()),
                _ => {}
            }
            at += size.max(8);
        }
        if image.main == 0 {
            return Err("it has no LC_MAIN".to_owned());
        }
        if image.fixups.is_empty() || file.get(image.fixups.clone()).is_none() {
            return Err("it has no chained fixups".to_owned());
        }
        Ok(image)
    }

    fn segment(&mut self, fields: Fields<'_>, at: usize) -> Result<(), String> {
        const READ_ONLY_DATA: u32 = 0x10;
        let name = fields.name(at + 8)?;
        let (address, size) = (fields.address(at + 24)?, fields.address(at + 32)?);
        let (offset, length) = (fields.address(at + 40)?, fields.address(at + 48)?);
        let protection = fields.u32(at + 60)? as i32;
        if fields.0.get(offset..offset + length).is_none() || length > size {
            return Err(format!("segment {name} is not in the file"));
        }
        if name == "__TEXT" {
            self.text = address;
        }
        for section in 0..fields.size(at + 64)? {
            let at = at + 72 + 80 * section;
            self.sections.push(Section {
                name: fields.name(at)?,
                segment: fields.name(at + 16)?,
                address: fields.address(at + 32)?,
                size: fields.address(at + 40)?,
                kind: (fields.u32(at + 64)? & 0xff) as u8,
            });
        }
        if size > 0 && protection != 0 {
            let read_only_data = fields.u32(at + 68)? & READ_ONLY_DATA != 0;
            let file = offset..offset + length;
            let segment = Segment { name, address, size, file, protection, read_only_data };
            self.segments.push(segment);
        }
        Ok(())
    }

    /// Sections of one kind, in the image's order.
    pub(crate) fn of_kind(&self, kind: u8) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }
}
