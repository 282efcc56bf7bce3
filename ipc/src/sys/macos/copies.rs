//! Copies on write of shared memory. POSIX shared memory is mapped shared or not at all: the kernel refuses
//! MAP_PRIVATE of it (bsd/kern/posix_shm.c, pshm_mmap). So it is mapped once and copied from there, which
//! takes memory only for what is written.
#![expect(unsafe_code, reason = "Mach is a C interface")]

use std::io;

use mach2::traps::mach_task_self;
use mach2::vm::mach_vm_remap;
use mach2::vm_inherit::VM_INHERIT_NONE;

use crate::SharedMemory;
use crate::window::{Access, Window, WindowError};

/// Flags of a mapping (mach/vm_statistics.h): at this address, over what is there.
const FIXED_OVERWRITE: i32 = 0x4000;

/// Shared memory that copies are made of.
pub(crate) struct Copies(Window);

impl Copies {
    /// Maps it, so that copies have this access.
    pub(crate) fn of(memory: &SharedMemory, access: Access) -> Result<Self, WindowError> {
        memory.map_all(access).map(Self)
    }

    /// Puts a copy of its first `length` bytes over what is mapped at `to`, in one step.
    ///
    /// # Safety
    /// Whole pages from `to` are mapped, and nobody has a reference into them.
    pub(crate) unsafe fn put(&self, to: *mut u8, length: usize) -> io::Result<()> {
        const COPY: i32 = 1;
        let (mut address, mut current, mut most) = (to as u64, 0, 0);
        // SAFETY: the source is a window that lives through the call; the caller answers for the target;
        // places for what is told.
        let code = unsafe {
            mach_vm_remap(
                mach_task_self(),
                &raw mut address,
                length as u64,
                0,
                FIXED_OVERWRITE,
                mach_task_self(),
                self.0.address() as u64,
                COPY,
                &raw mut current,
                &raw mut most,
                VM_INHERIT_NONE,
            )
        };
        if code == 0 { Ok(()) } else { Err(io::Error::other(format!("Mach says {code:#x}"))) }
    }
}
