//! The unwinder that images import: `_Unwind_*` over the image's own unwind information, so that panics are
//! caught as on a Mac.
//!
//! A frame's code finds its rule in `__unwind_info` ([`compact`]), which names an entry of `__eh_frame`
//! ([`dwarf`]) where the compact form does not suffice. The stack ends, for the unwinder, where the code of the
//! image does: frames of the runner are never unwound, as those of libSystem that call into an image have no
//! landing pads. The interface is the Itanium C++ ABI's, level I; values are those of libunwind-201 `unwind.h`.

mod compact;
mod dwarf;
mod registers;

use std::ffi::{c_int, c_void};

use darwin_abi::{Symbol, symbols};

use crate::image::Loaded;
use registers::{Registers, install};

/// The symbols of this folder.
pub(crate) const SYMBOLS: &[Symbol] = symbols! {
    "__Unwind_RaiseException" => registers::raise_entry,
    "__Unwind_Resume" => registers::resume_entry,
    "__Unwind_Backtrace" => registers::backtrace_entry,
    "__Unwind_DeleteException" => delete,
    "__Unwind_GetCFA" => cfa,
    "__Unwind_GetDataRelBase" => no_base,
    "__Unwind_GetTextRelBase" => no_base,
    "__Unwind_GetIP" => ip,
    "__Unwind_GetIPInfo" => ip_info,
    "__Unwind_GetLanguageSpecificData" => lsda,
    "__Unwind_GetRegionStart" => region_start,
    "__Unwind_SetGR" => set_register,
    "__Unwind_SetIP" => set_ip,
};

const END_OF_STACK: c_int = 5;
const FATAL_PHASE_1: c_int = 3;
const HANDLER_FOUND: c_int = 6;
const INSTALL_CONTEXT: c_int = 7;
const CONTINUE: c_int = 8;

const SEARCH_PHASE: c_int = 1;
const CLEANUP_PHASE: c_int = 2;
const HANDLER_FRAME: c_int = 4;

/// The header of a thrown object, `_Unwind_Exception`.
#[repr(C)]
pub(crate) struct Exception {
    class: u64,
    cleanup: Option<unsafe extern "C" fn(c_int, *mut Exception)>,
    private: [usize; 2],
}

/// Decides about a frame, `_Unwind_Personality_Fn`.
type Personality = unsafe extern "C" fn(c_int, c_int, u64, *mut Exception, *mut Frame) -> c_int;

/// What is known of the code of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Function {
    start: usize,
    /// Its language-specific data, or 0.
    lsda: usize,
    /// Its personality, or 0.
    personality: usize,
    rule: Rule,
}

/// How the caller's registers are found.
#[derive(Clone, Copy, Debug, Default)]
enum Rule {
    /// By the encoding of `__unwind_info`.
    Compact(u32),
    /// By the entry at this offset of `__eh_frame`.
    Dwarf(usize),
    /// They cannot be: the stack ends here.
    #[default]
    None,
}

/// A frame of the stack: `_Unwind_Context`.
pub(crate) struct Frame {
    /// As they are in the frame: its pc is where the call returns to.
    registers: Registers,
    function: Function,
}

impl Frame {
    /// The frame that is at these registers, if its code is the image's.
    fn at(registers: Registers) -> Option<Self> {
        let loaded = Loaded::get()?;
        // The call, not what comes after it: that may be another function.
        let address = registers.pc.wrapping_sub(1);
        if !loaded.has_code(address) {
            return None;
        }
        let function = compact::find(loaded, address)?;
        Some(Self { registers, function })
    }

    /// The frame that called this one.
    fn caller(&self) -> Option<Self> {
        let registers = match self.function.rule {
            Rule::Compact(encoding) => compact::step(&self.registers, encoding)?,
            Rule::Dwarf(offset) => dwarf::step(Loaded::get()?, &self.registers, offset)?,
            Rule::None => return None,
        };
        Self::at(registers)
    }

    /// Asks the personality, if there is one.
    fn ask(&mut self, actions: c_int, exception: *mut Exception) -> c_int {
        if self.function.personality == 0 {
            return CONTINUE;
        }
        // SAFETY: the image's unwind information says that this is its personality function; the exception is the
        // one that was thrown, and the frame is alive through the call.
        unsafe {
            let personality: Personality = std::mem::transmute(self.function.personality);
            personality(1, actions, (*exception).class, exception, self)
        }
    }
}

/// `_Unwind_RaiseException`, with the registers of its caller.
unsafe extern "C" fn raise(exception: *mut Exception, from: &Registers) -> c_int {
    let mut frame = Frame::at(*from);
    loop {
        let Some(mut here) = frame else { return END_OF_STACK };
        match here.ask(SEARCH_PHASE, exception) {
            CONTINUE => frame = here.caller(),
            HANDLER_FOUND => {
                // SAFETY: the thrown object is the caller's; these words are the unwinder's.
                unsafe { (*exception).private = [0, here.registers.sp] };
                break;
            }
            _ => return FATAL_PHASE_1,
        }
    }
    clean_up(exception, from)
}

/// `_Unwind_Resume`, with the registers of its caller.
unsafe extern "C" fn resume(exception: *mut Exception, from: &Registers) -> c_int {
    clean_up(exception, from);
    // It does not return: what called it has nowhere to go.
    std::process::abort()
}

/// The second phase: every landing pad on the way to the handler.
fn clean_up(exception: *mut Exception, from: &Registers) -> c_int {
    const FATAL_PHASE_2: c_int = 2;
    // SAFETY: set by the first phase.
    let handler = unsafe { (*exception).private[1] };
    let mut frame = Frame::at(*from);
    while let Some(mut here) = frame {
        let is_handler = here.registers.sp == handler;
        let actions = if is_handler { CLEANUP_PHASE | HANDLER_FRAME } else { CLEANUP_PHASE };
        match here.ask(actions, exception) {
            CONTINUE if !is_handler => frame = here.caller(),
            // SAFETY: the registers of a live frame of this stack, changed as its personality wants.
            INSTALL_CONTEXT => unsafe { install(&raw const here.registers) },
            _ => break,
        }
    }
    FATAL_PHASE_2
}

/// `_Unwind_Backtrace`, with the registers of its caller.
unsafe extern "C" fn backtrace(
    visit: unsafe extern "C" fn(*mut Frame, *mut c_void) -> c_int,
    argument: *mut c_void,
    from: &Registers,
) -> c_int {
    let mut frame = Frame::at(*from);
    while let Some(mut here) = frame {
        // SAFETY: the caller's function and its own argument; the frame is alive through the call.
        if unsafe { visit(&raw mut here, argument) } != 0 {
            return FATAL_PHASE_1;
        }
        frame = here.caller();
    }
    END_OF_STACK
}

unsafe extern "C" fn delete(exception: *mut Exception) {
    const FOREIGN: c_int = 1;
    // SAFETY: the caller's own exception, which it gives up.
    if let Some(cleanup) = unsafe { (*exception).cleanup } {
        // SAFETY: as above.
        unsafe { cleanup(FOREIGN, exception) };
    }
}

extern "C" fn cfa(frame: &Frame) -> usize {
    frame.registers.sp
}

extern "C" fn no_base(_: &Frame) -> usize {
    0
}

extern "C" fn ip(frame: &Frame) -> usize {
    frame.registers.pc
}

extern "C" fn ip_info(frame: &Frame, before: &mut c_int) -> usize {
    *before = 0;
    frame.registers.pc
}

extern "C" fn lsda(frame: &Frame) -> usize {
    frame.function.lsda
}

extern "C" fn region_start(frame: &Frame) -> usize {
    frame.function.start
}

extern "C" fn set_register(frame: &mut Frame, register: c_int, value: usize) {
    if let Some(place) = usize::try_from(register).ok().and_then(|at| frame.registers.x.get_mut(at))
    {
        *place = value;
    }
}

extern "C" fn set_ip(frame: &mut Frame, value: usize) {
    frame.registers.pc = value;
}
