//! The local APIC: which vectors were requested. In x2APIC mode its registers are model-specific ones.

use core::arch::asm;

use crate::machine::{eventually, load, store};

const BASE: u32 = 0xfee0_0000;
/// The register of the base address; bit 10: x2APIC mode.
const BASE_REGISTER: u32 = 0x1b;
/// Offsets of: spurious vector with software enable, requests.
const SPURIOUS: u32 = 0xf0;
const REQUESTS: u32 = 0x200;

fn is_x2() -> bool {
    read_register(BASE_REGISTER) >> 10 & 1 == 1
}

/// Switches it on.
pub fn enable() {
    if is_x2() {
        write_register(0x800 + (SPURIOUS >> 4), 0x1ff);
    } else {
        store(BASE + SPURIOUS, 0x1ff);
    }
}

/// Whether a vector is requested. None is ever taken, so it stays so.
pub fn is_requested(vector: u8) -> bool {
    let at = REQUESTS + u32::from(vector / 32) * 0x10;
    let requests = if is_x2() { read_register(0x800 + (at >> 4)) as u32 } else { load(BASE + at) };
    requests >> (vector % 32) & 1 == 1
}

/// Waits for a vector.
pub fn wait(vector: u8) -> bool {
    eventually(|| is_requested(vector))
}

fn read_register(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: a register that every processor with a local APIC has.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

fn write_register(number: u32, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("wrmsr", in("ecx") number, in("eax") value, in("edx") 0, options(nostack)) };
}
