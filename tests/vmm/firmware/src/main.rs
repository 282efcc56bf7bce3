//! Bare firmware for the test VMM: it does with the probe function what a guest does, has the VMM kill and stop
//! the processes behind it meanwhile, and reports each thing on the serial port as `ok` or `FAILED`.
//!
//! 32-bit code without paging, entered as a PVH kernel: flat segments, interrupts off. Interrupts are seen in the
//! local APIC's request register and not taken, so each thing is looked at when its turn comes.

#![no_std]
#![no_main]

mod apic;
mod machine;
mod pci;
mod probe;
mod report;

use machine::{Act, act};
use pci::Function;
use probe::Probe;
use report::Report;

core::arch::global_asm!(
    ".pushsection .start, \"ax\"",
    ".globl start",
    "start:",
    // Flat segments of its own: those that a loader leaves need not reach all of the bus.
    "lgdt 2f",
    "ljmp $8, $1f",
    "1: mov $16, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    "mov $0x80000, %esp",
    "call firmware",
    ".balign 8",
    "3: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff",
    "2: .word 23",
    ".long 3b",
    ".popsection",
    options(att_syntax)
);

/// Where BARs are put, and put a second time: nothing else is there.
const PLACE: u32 = 0xd000_0000;
const ELSEWHERE: u32 = 0xd800_0000;
/// Vendor and device of the simulated probe.
const PROBE: u32 = 0x0002_c0d0;

#[unsafe(no_mangle)]
extern "C" fn firmware() -> ! {
    let mut report = Report::default();
    match enumerate(&mut report) {
        Some(function) => drive(&mut report, &function),
        None => report.check("a probe function is on the bus", false, true),
    }
    report.close();
    machine::shut_down();
}

/// Walks bus 0; the probe.
fn enumerate(report: &mut Report) -> Option<Function> {
    let mut found = None;
    for function in Function::all().filter(Function::is_there) {
        let id = function.read(0);
        report.say(format_args!(
            "{function}: {:04x}:{:04x}, class {:06x}",
            id & 0xffff,
            id >> 16,
            function.read(8) >> 8
        ));
        if id == PROBE {
            found = Some(function);
        }
    }
    found
}

fn drive(report: &mut Report, function: &Function) {
    let sizes = [(0, 128 << 10), (1, 4 << 10), (2, 1 << 20)];
    for (number, size) in sizes {
        report.check(format_args!("BAR {number} has its size"), function.size(number), size);
    }
    report.check("config space names capabilities", function.read(4) >> 20 & 1, 1);
    let probe = place(function, PLACE);
    identify(report, &probe, "the window");
    move_bar(report, function, &probe);
    decode_off(report, function, &probe);
    copy(report, &probe, 1);
    messages(report, function, &probe);
    line(report, function, &probe);
    over_memory(report, function, &probe);
    let probe = nonsense(report, function);
    function_processes(report, function, &probe);
    connection_process(report, function);
}

/// Puts the BARs of memory at `base` and enables the function.
fn place(function: &Function, base: u32) -> Probe {
    function.command(0);
    function.write(pci::bar(0), base);
    function.write(pci::bar(1), base + 0x10_0000);
    function.write(pci::bar(2), base + 0x20_0000);
    function.write(pci::bar(3), 0);
    function.command(pci::MEMORY | pci::MASTER);
    Probe { registers: base, memory: base + 0x10_0000, large: base + 0x20_0000 }
}

fn identify(report: &mut Report, probe: &Probe, what: &str) {
    report.check(format_args!("{what}: ID"), probe.read(probe::ID), probe::PRBE);
    probe.write(probe::SCRATCH, 0x1234_5678);
    report.check(
        format_args!("{what}: what is stored is loaded"),
        probe.read(probe::SCRATCH),
        0x1234_5678,
    );
    machine::store(probe.memory + 0x40, 0xcafe_0001);
    report.check("a trapped store is loaded", machine::load(probe.memory + 0x40), 0xcafe_0001);
    machine::store(probe.large + 0x8_0000, 0xbeef_0002);
    report.check(
        "a 64-bit BAR works below 4 GiB",
        machine::load(probe.large + 0x8_0000),
        0xbeef_0002,
    );
}

fn move_bar(report: &mut Report, function: &Function, probe: &Probe) {
    function.command(0);
    function.write(pci::bar(0), ELSEWHERE);
    function.command(pci::MEMORY | pci::MASTER);
    report.check(
        "a BAR that moved answers at its new place",
        machine::load(ELSEWHERE),
        probe::PRBE,
    );
    report.check("and not at the old one", probe.read(probe::ID), u32::MAX);
    // As a system does that sizes without switching decoding off.
    function.write(pci::bar(0), u32::MAX);
    let mask = function.read(pci::bar(0));
    function.write(pci::bar(0), probe.registers);
    report.check("a BAR is sized while it is decoded", !(mask & !0xf) + 1, 128 << 10);
    report.check("and is back where it was", probe.read(probe::SCRATCH), 0x1234_5678);
}

fn decode_off(report: &mut Report, function: &Function, probe: &Probe) {
    function.command(pci::MASTER);
    report.check("without decoding the window reads ones", probe.read(probe::ID), u32::MAX);
    report.check("and so does trapped memory", machine::load(probe.memory + 0x40), u32::MAX);
    function.command(pci::MEMORY | pci::MASTER);
    report.check("with decoding it is there again", probe.read(probe::SCRATCH), 0x1234_5678);
}

/// The device copies 64 KiB of guest memory.
fn copy(report: &mut Report, probe: &Probe, number: u32) {
    report.check("DMA: the copy ends well", probe.copy(number), Some(0));
    report.check("DMA: every word is right", probe::wrong_words(number), 0);
}

/// MSI-X: a vector that is masked is pending, and delivered when it is unmasked.
fn messages(report: &mut Report, function: &Function, probe: &Probe) {
    const VECTORS: [u8; 2] = [0x51, 0x52];
    apic::enable();
    let capability = function.capability(pci::MSIX);
    report.check("MSI-X: there is a capability", capability != 0, true);
    probe.entry(0, VECTORS[0], false);
    probe.entry(1, VECTORS[1], true);
    let control = function.read(capability) >> 16;
    report.check("MSI-X: so many vectors", (control & 0x7ff) + 1, probe.read(probe::VECTORS));
    function.write_half(capability + 2, pci::ENABLE);
    probe.fire(0, 2, 1);
    report.check("MSI-X: a vector is delivered", apic::wait(VECTORS[0]), true);
    report.check("MSI-X: one that is masked is not", apic::is_requested(VECTORS[1]), false);
    report.check("MSI-X: but pending", probe.pending(2), 0b10);
    probe.entry(1, VECTORS[1], false);
    report.check("MSI-X: it is delivered when it is unmasked", apic::wait(VECTORS[1]), true);
    report.check("MSI-X: and pending no more", probe.pending(0), 0);
    // The whole function masked, and unmasked.
    probe.entry(0, VECTORS[0] + 2, false);
    function.write_half(capability + 2, pci::ENABLE | pci::MASKED);
    probe.fire(0, 1, 2);
    report.check("MSI-X: masked as a whole it is pending", probe.pending(1), 0b01);
    function.write_half(capability + 2, pci::ENABLE);
    report.check("MSI-X: and delivered with its new message", apic::wait(VECTORS[0] + 2), true);
    function.write_half(capability + 2, 0);
}

/// INTx: a level that is asserted again for what comes before its end of interrupt.
fn line(report: &mut Report, function: &Function, probe: &Probe) {
    let line = function.read(0x3c);
    report.check("INTx: there is a pin", line >> 8 & 0xff, 1);
    report.check("INTx: the line is low", machine::line(), (false, 0));
    probe.fire(0, 1, 3);
    report.check("INTx: the line is asserted", machine::wait_for_line(1), (true, 1));
    report.check("INTx: STATUS says so", function.read(4) >> 19 & 1, 1);
    probe.fire(0, 1, 4);
    probe.fire(0, 1, 5);
    report.check("INTx: a second event waits for the end of the first", machine::line(), (true, 1));
    act(Act::EndOfInterrupt);
    report.check("INTx: and asserts the line again", machine::wait_for_line(2), (true, 2));
    act(Act::EndOfInterrupt);
    report.check("INTx: and then it is low", machine::line().0, false);
    function.command(pci::MEMORY | pci::MASTER | pci::NO_INTX);
    probe.fire(0, 1, 6);
    machine::pause();
    report.check("INTx: COMMAND holds it back", machine::line().0, false);
    function.command(pci::MEMORY | pci::MASTER);
    report.check("INTx: and lets it through", machine::wait_for_line(3), (true, 3));
    act(Act::EndOfInterrupt);
}

/// A BAR over guest memory, and two BARs at one place: nothing is lost that was there, and nothing of the device is hurt.
fn over_memory(report: &mut Report, function: &Function, probe: &Probe) {
    const MEMORY: u32 = 0x40_0000;
    machine::store(MEMORY, 0x600d_0001);
    function.command(0);
    function.write(pci::bar(0), MEMORY);
    function.write(pci::bar(1), probe.large);
    function.command(pci::MEMORY | pci::MASTER);
    report.check("a BAR over memory: it is still memory", machine::load(MEMORY), 0x600d_0001);
    machine::store(MEMORY, 0x600d_0002);
    report.check(
        "a BAR over memory: which keeps what is stored",
        machine::load(MEMORY),
        0x600d_0002,
    );
    place(function, PLACE);
    report.check("and back: the window is the device's", probe.read(probe::ID), probe::PRBE);
    report.check("and back: so is trapped memory", machine::load(probe.memory + 0x40), 0xcafe_0001);
}

/// Every register of config space written with what a driver would not: afterwards the device is brought up as after
/// any accident, and is as good as before.
fn nonsense(report: &mut Report, function: &Function) -> Probe {
    let mut number = 0x9e37_79b9u32;
    for round in 0..8 {
        for register in (0..=0xfc).step_by(4) {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            function.write(register, if round == 0 { u32::MAX } else { number });
        }
    }
    // To D0, and messages off.
    for (id, at) in [(pci::POWER, 4), (pci::MSI, 2), (pci::MSIX, 2)] {
        let capability = function.capability(id);
        if capability != 0 {
            function.write_half(capability + at, 0);
        }
    }
    report.check("nonsense: it is still itself", function.read(0), PROBE);
    let probe = place(function, PLACE);
    identify(report, &probe, "after nonsense: the window");
    copy(report, &probe, 0x300);
    probe
}

/// kill -9 and a stop of the function process: nothing of either is seen.
fn function_processes(report: &mut Report, function: &Function, probe: &Probe) {
    let capability = function.capability(pci::MSIX);
    let resets = probe.read(probe::RESETS);
    for (round, what) in (0..).zip([Act::KillFunction, Act::StopFunction, Act::KillFunction]) {
        let number = 0x100 + round;
        let vector = 0x61 + round as u8;
        machine::store(probe.memory + 0x44, number);
        act(what);
        report.check(
            format_args!("{what:?}: a trapped load is right"),
            machine::load(probe.memory + 0x44),
            number,
        );
        report.check(
            format_args!("{what:?}: the window is the same"),
            probe.read(probe::SCRATCH),
            0x1234_5678,
        );
        report.check(format_args!("{what:?}: config space is the same"), function.read(0), PROBE);
        copy(report, probe, number);
        probe.entry(0, vector, false);
        function.write_half(capability + 2, pci::ENABLE);
        probe.fire(0, 1, number);
        report.check(format_args!("{what:?}: a vector is delivered"), apic::wait(vector), true);
        function.write_half(capability + 2, 0);
    }
    report.check("each was replaced once", machine::replacements(), 3);
    report.check("and the device was not reset", probe.read(probe::RESETS), resets);
}

/// The death of the connection process is a surprise removal: all ones, then a device as after power-on.
fn connection_process(report: &mut Report, function: &Function) {
    let probe = Probe { registers: PLACE, memory: PLACE + 0x10_0000, large: PLACE + 0x20_0000 };
    act(Act::KillConnection);
    let mut saw_ones = false;
    let is_back = machine::eventually(|| {
        let id = function.read(0);
        saw_ones |= id == u32::MAX && probe.read(probe::ID) == u32::MAX;
        saw_ones && id == PROBE
    });
    report.check(
        "KillConnection: all ones, and then it is back",
        (saw_ones, is_back),
        (true, true),
    );
    report.check(
        "KillConnection: its BARs are as after power-on",
        function.read(pci::bar(0)) & !0xf,
        0,
    );
    let probe = place(function, PLACE);
    report.check("KillConnection: its registers are, too", probe.read(probe::SCRATCH), 0);
    identify(report, &probe, "the window at the same place");
    copy(report, &probe, 0x200);
    let capability = function.capability(pci::MSIX);
    probe.entry(0, 0x71, false);
    function.write_half(capability + 2, pci::ENABLE);
    probe.fire(0, 1, 0x201);
    report.check("KillConnection: a vector is delivered", apic::wait(0x71), true);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let mut report = Report::default();
    report.say(format_args!("FAILED firmware: {info}"));
    machine::shut_down();
}
