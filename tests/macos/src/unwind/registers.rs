//! The registers that a call keeps, taken at the entry of an unwinder's function and put back at a landing pad.

use super::{backtrace, raise, resume};

/// A machine state between two instructions. The layout is that of the assembly below.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Registers {
    /// x0 to x30: the frame pointer is 29, the link register 30.
    pub(super) x: [usize; 31],
    pub(super) sp: usize,
    pub(super) pc: usize,
    /// The halves of v8 to v15 that calls keep.
    pub(super) d: [u64; 8],
}

const _: () = assert!(size_of::<Registers>() == 328);

/// Calls `$function` with its own arguments and, in `$pointer`, the state of its caller.
macro_rules! entry {
    ($name:ident, $pointer:literal, $function:path) => {
        #[unsafe(naked)]
        pub(super) unsafe extern "C" fn $name() {
            std::arch::naked_asm!(
                "sub sp, sp, #336",
                "stp x0, x1, [sp]",
                "stp x2, x3, [sp, #16]",
                "stp x19, x20, [sp, #152]",
                "stp x21, x22, [sp, #168]",
                "stp x23, x24, [sp, #184]",
                "stp x25, x26, [sp, #200]",
                "stp x27, x28, [sp, #216]",
                "stp x29, x30, [sp, #232]",
                "add x16, sp, #336",
                "stp x16, x30, [sp, #248]",
                "stp d8, d9, [sp, #264]",
                "stp d10, d11, [sp, #280]",
                "stp d12, d13, [sp, #296]",
                "stp d14, d15, [sp, #312]",
                concat!("mov ", $pointer, ", sp"),
                "bl {function}",
                "ldr x30, [sp, #240]",
                "add sp, sp, #336",
                "ret",
                function = sym $function,
            )
        }
    };
}

entry!(raise_entry, "x1", raise);
entry!(resume_entry, "x1", resume);
entry!(backtrace_entry, "x2", backtrace);

/// Goes on with a state.
///
/// # Safety
///
/// It is that of a live frame of this thread's stack, above the caller's, with a pc where it may go on.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn install(state: *const Registers) -> ! {
    std::arch::naked_asm!(
        "ldp x19, x20, [x0, #152]",
        "ldp x21, x22, [x0, #168]",
        "ldp x23, x24, [x0, #184]",
        "ldp x25, x26, [x0, #200]",
        "ldp x27, x28, [x0, #216]",
        "ldp x29, x30, [x0, #232]",
        "ldp d8, d9, [x0, #264]",
        "ldp d10, d11, [x0, #280]",
        "ldp d12, d13, [x0, #296]",
        "ldp d14, d15, [x0, #312]",
        "ldp x16, x17, [x0, #248]",
        "ldp x2, x3, [x0, #16]",
        "ldp x0, x1, [x0]",
        "mov sp, x16",
        "br x17",
    )
}
