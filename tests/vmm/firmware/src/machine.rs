//! The machine: ports, memory, time, and what the test VMM does when it is asked.

use core::arch::asm;

/// Of the test VMM: a written byte is carried out before the guest goes on.
const ACTIONS: u16 = 0x5e0;
/// Of the test VMM: whether the INTx line is asserted, by bit 31, and how often it was.
const LINE: u16 = 0x5e4;
/// Of the test VMM: how often a function process was replaced.
const REPLACEMENTS: u16 = 0x5e8;

/// What the VMM does.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Act {
    /// kill -9 of the function process.
    KillFunction = 1,
    /// SIGSTOP of the function process.
    StopFunction = 2,
    /// kill -9 of the connection process.
    KillConnection = 3,
    /// The end of the INTx interrupt.
    EndOfInterrupt = 4,
}

/// Has the VMM do it, and goes on when it was done.
pub fn act(what: Act) {
    outb(ACTIONS, what as u8);
}

/// Whether the INTx line is asserted, and how often it was.
pub fn line() -> (bool, u32) {
    let value = inl(LINE);
    (value >> 31 == 1, value & 0x7fff_ffff)
}

/// Waits until the line was asserted so often.
pub fn wait_for_line(times: u32) -> (bool, u32) {
    eventually(|| line().1 >= times);
    line()
}

/// How often a function process was replaced.
pub fn replacements() -> u32 {
    inl(REPLACEMENTS)
}

/// Waits until something holds, for some ten seconds.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let end = time() + 30_000_000_000;
    while time() < end {
        if holds() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// Some ten milliseconds.
pub fn pause() {
    let end = time() + 30_000_000;
    while time() < end {
        core::hint::spin_loop();
    }
}

/// The processor's counter: some GHz.
fn time() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Ends the machine, by the keyboard controller's reset line.
pub fn shut_down() -> ! {
    outb(0x64, 0xfe);
    loop {
        // SAFETY: waits for good.
        unsafe { asm!("hlt") };
    }
}

/// A 32-bit load of the bus.
pub fn load(address: u32) -> u32 {
    // SAFETY: without paging every address is the bus's, and whatever is there answers.
    unsafe { (address as *const u32).read_volatile() }
}

/// A 32-bit store to the bus.
pub fn store(address: u32, value: u32) {
    // SAFETY: as above; the callers store to devices, and to memory that nothing else uses.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// A byte to a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: a port of a device.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// A half word to a port.
pub fn outw(port: u16, value: u16) {
    // SAFETY: a port of a device.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack)) };
}

/// A word to a port.
pub fn outl(port: u16, value: u32) {
    // SAFETY: a port of a device.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

/// A word from a port.
pub fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: a port of a device.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}
