//! `__eh_frame`: for functions whose rule has no compact form.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, FrameDescriptionEntry, NativeEndian, Pointer, RegisterRule,
    UnwindContext, UnwindSection as _,
};

use super::registers::Registers;
use crate::image::Loaded;

type Reader = gimli::EndianSlice<'static, NativeEndian>;
type Entry = FrameDescriptionEntry<Reader>;

/// What the entry at an offset says of its function.
pub(super) struct Described {
    pub(super) start: usize,
    pub(super) lsda: usize,
    pub(super) personality: usize,
}

/// The section, where it is, and the entry at an offset of it.
fn entry(loaded: &Loaded, offset: usize) -> Option<(EhFrame<Reader>, BaseAddresses, Entry)> {
    let at = loaded.section("__TEXT", "__eh_frame")?.start;
    let frames = EhFrame::new(loaded.bytes("__TEXT", "__eh_frame")?, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame(at as u64).set_text(loaded.base() as u64);
    let entry = frames.fde_from_offset(&bases, offset.into(), EhFrame::cie_from_offset).ok()?;
    Some((frames, bases, entry))
}

fn follow(pointer: Pointer) -> usize {
    match pointer {
        Pointer::Direct(address) => address as usize,
        // SAFETY: the image says that a pointer is there, in its mapped data.
        Pointer::Indirect(address) => unsafe { (address as *const usize).read() },
    }
}

pub(super) fn describe(loaded: &Loaded, offset: usize) -> Option<Described> {
    let (_, _, entry) = entry(loaded, offset)?;
    Some(Described {
        start: entry.initial_address() as usize,
        lsda: entry.lsda().map_or(0, follow),
        personality: entry.personality().map_or(0, follow),
    })
}

/// The caller's registers.
pub(super) fn step(loaded: &Loaded, from: &Registers, offset: usize) -> Option<Registers> {
    const LINK: u16 = 30;
    const FLOATS: u16 = 72;
    let (frames, bases, entry) = entry(loaded, offset)?;
    let mut context = UnwindContext::new();
    let address = from.pc.wrapping_sub(1) as u64;
    let row = entry.unwind_info_for_address(&frames, &bases, &mut context, address).ok()?;
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let register = match register.0 {
                31 => from.sp,
                other => *from.x.get(usize::from(other))?,
            };
            register.wrapping_add_signed(isize::try_from(*offset).ok()?)
        }
        CfaRule::Expression(_) => return None,
    };
    let mut to = *from;
    to.sp = cfa;
    for (register, rule) in row.registers() {
        let value = match rule {
            RegisterRule::Offset(offset) => {
                let at = cfa.wrapping_add_signed(isize::try_from(*offset).ok()?);
                // SAFETY: in a live frame of this thread's stack, where a register was saved.
                unsafe { (at as *const usize).read() }
            }
            RegisterRule::ValOffset(offset) => {
                cfa.wrapping_add_signed(isize::try_from(*offset).ok()?)
            }
            RegisterRule::Register(other) => *from.x.get(usize::from(other.0))?,
            RegisterRule::SameValue | RegisterRule::Undefined => continue,
            _ => return None,
        };
        match register.0 {
            number @ 0..=LINK => to.x[usize::from(number)] = value,
            number @ FLOATS..80 => to.d[usize::from(number - FLOATS)] = value as u64,
            _ => {}
        }
    }
    to.pc = to.x[usize::from(LINK)];
    Some(to)
}
