//! P6.4 on the VMM side: what it lets through to a function process, and what windows show while a device decodes no
//! memory, looked at while the device has not carried out yet what it was told.

use std::thread;
use std::time::Duration;

use cordon_tests::eventually;
use cordon_vmm::device::GuestWindow;
use cordon_vmm::{Deadline, ErrorKind, Function, PassthroughDevice as _};
use device_proc::in_process::fake::Operation;
use ipc::wire::function::{Access, Space};

use crate::{Setup, at, setup};

const COMMAND: u32 = 0x04;
const PMCSR: u32 = 0x64;

/// What is in BAR 2.
const HELD: u32 = 0x1234_5678;

fn with_power_management() -> (Setup, std::sync::Arc<GuestWindow>) {
    let s = setup(|function| function.power_management = true);
    s.function.config_write(COMMAND, &[0x06]).unwrap();
    s.function.bar_write(2, 0, &HELD.to_le_bytes()).unwrap();
    let windows = s.function.map_windows().unwrap();
    let window = windows.into_iter().find(|window| window.bar == 2).unwrap();
    assert_eq!(mapped(&window), HELD);
    (s, window)
}

fn mapped(window: &GuestWindow) -> u32 {
    window.window().read(0).unwrap()
}

fn trapped(function: &Function) -> u32 {
    let mut bytes = [0; 4];
    function.bar_read(2, 0, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// What a window shows while the device is told something, before it has done it.
fn meanwhile(
    s: &Setup,
    window: &GuestWindow,
    told: Operation,
    tell: impl Fn(&Function) + Sync,
) -> u32 {
    s.fake().stall(told);
    thread::scope(|scope| {
        scope.spawn(|| tell(&s.function));
        assert!(eventually(|| s.fake().waiting(told) == 1), "{told:?}");
        let shown = mapped(window);
        s.fake().resume(told);
        shown
    })
}

fn write(offset: u32, value: u8) -> impl Fn(&Function) + Sync {
    move |function| function.config_write(offset, &[value]).unwrap()
}

#[test]
fn p6_4_windows_are_all_ones_before_memory_goes_off_and_come_back_after_it_is_on() {
    let (s, window) = with_power_management();
    let off = meanwhile(&s, &window, Operation::ConfigWrite, write(COMMAND, 0x04));
    assert_eq!((off, mapped(&window), trapped(&s.function)), (u32::MAX, u32::MAX, u32::MAX));
    let late = s.function.map_windows().unwrap().into_iter().find(|one| one.bar == 2).unwrap();
    assert_eq!(mapped(&late), u32::MAX);
    // A store goes nowhere, by the window and by a trap.
    window.window().write(8, 1u32).unwrap();
    s.function.bar_write(2, 8, &[1; 4]).unwrap();
    let on = meanwhile(&s, &window, Operation::ConfigWrite, write(COMMAND, 0x06));
    assert_eq!((on, mapped(&window), mapped(&late)), (u32::MAX, HELD, HELD));
    assert_eq!((trapped(&s.function), window.window().read::<u32>(8).unwrap()), (HELD, 0));
    // Bits that have nothing to do with it.
    let other = meanwhile(&s, &window, Operation::ConfigWrite, write(COMMAND + 1, 0x04));
    assert_eq!((other, mapped(&window)), (HELD, HELD));
}

#[test]
fn p6_4_windows_are_all_ones_in_d3hot_and_during_a_reset() {
    let (s, window) = with_power_management();
    let asleep = meanwhile(&s, &window, Operation::ConfigWrite, write(PMCSR, 3));
    assert_eq!((asleep, mapped(&window), trapped(&s.function)), (u32::MAX, u32::MAX, u32::MAX));
    // With memory on, and still asleep.
    s.function.config_write(COMMAND, &[0x06]).unwrap();
    assert_eq!(mapped(&window), u32::MAX);
    // D1 is no state that there is: nothing happens.
    s.function.config_write(PMCSR, &[1]).unwrap();
    assert_eq!((mapped(&window), s.fake().config(at())[PMCSR as usize]), (u32::MAX, 0x0b));
    let awake = meanwhile(&s, &window, Operation::ConfigWrite, write(PMCSR, 0));
    assert_eq!((awake, mapped(&window)), (u32::MAX, HELD));
    // A reset wakes it.
    s.function.config_write(PMCSR, &[3]).unwrap();
    let reset = meanwhile(&s, &window, Operation::Reset, |function| function.reset().unwrap());
    assert_eq!((reset, mapped(&window), trapped(&s.function)), (u32::MAX, HELD, HELD));
    assert_eq!(s.fake().resets(at()), 1);
}

#[test]
fn p6_4_what_the_device_refuses_leaves_windows_as_they_were() {
    let (s, window) = with_power_management();
    s.fake().fail(at(), Operation::ConfigWrite, cordon_backend::ErrorKind::Refused);
    s.function.config_write(COMMAND, &[0]).unwrap_err();
    assert_eq!(mapped(&window), HELD);
    s.fake().recover(at(), Operation::ConfigWrite);
    s.fake().fail(at(), Operation::Reset, cordon_backend::ErrorKind::Refused);
    s.function.reset().unwrap_err();
    assert_eq!(mapped(&window), HELD);
}

/// What nobody answers in time may be done yet.
#[test]
fn p6_4_windows_stay_all_ones_when_nobody_knows_whether_memory_went_off() {
    let (s, window) = with_power_management();
    let soon = || Deadline::after(Duration::from_millis(150));
    let off = || Access::write(Space::Config, COMMAND.into(), 1, 0x04);
    s.fake().stall(Operation::ConfigWrite);
    assert_eq!(s.function.access(off(), soon()).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(mapped(&window), u32::MAX);
    s.fake().resume(Operation::ConfigWrite);
    assert!(eventually(|| s.fake().config(at())[COMMAND as usize] == 0x04), "it is done late");
    assert_eq!((mapped(&window), trapped(&s.function)), (u32::MAX, u32::MAX));
    s.function.config_write(COMMAND, &[0x06]).unwrap();
    assert_eq!((mapped(&window), trapped(&s.function)), (HELD, HELD));
}

/// The kernel may be at it still when nobody waits for it any more.
#[test]
fn p6_4_windows_stay_all_ones_after_a_reset_that_nobody_saw_end() {
    let (s, window) = with_power_management();
    s.fake().stall(Operation::Reset);
    let error = s.function.reset().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Gone), "{error}");
    assert_eq!((mapped(&window), trapped(&s.function)), (u32::MAX, u32::MAX));
    s.fake().resume(Operation::Reset);
    let is_on = || s.function.config_write(COMMAND, &[0x06]).is_ok();
    assert!(eventually(is_on) && eventually(|| mapped(&window) == HELD), "it is not shown again");
}

/// The process is replaced while memory is off, and the device goes and comes back.
#[test]
fn p6_4_a_replacement_changes_nothing_and_a_device_that_comes_back_is_shown() {
    let (s, window) = with_power_management();
    s.function.config_write(COMMAND, &[0x04]).unwrap();
    let before = s.function.replacements();
    s.kill();
    assert!(eventually(|| s.function.replacements() > before));
    assert_eq!((mapped(&window), trapped(&s.function)), (u32::MAX, u32::MAX));
    s.fake().die();
    s.fake().revive().unwrap();
    assert!(eventually(|| s.function.returns() == 1));
    assert!(eventually(|| mapped(&window) != u32::MAX), "claimed and reset, it decodes its memory");
}

/// A function process that cannot be relied on, here since it is stopped, is not even asked.
#[test]
fn p6_4_what_the_table_holds_back_never_leaves_the_vmm_side() {
    let (s, _) = with_power_management();
    s.host.child(s.function.pid()).suspend();
    let soon = || Deadline::after(Duration::from_millis(150));
    let write = |offset, width, value| {
        s.function.access(Access::write(Space::Config, offset, width, value), soon())
    };
    for offset in
        (0x10..0x28).step_by(4).chain([0x00, 0x30, 0x3c, 0x40, 0x44, 0x100, 0xffc, 0x2000])
    {
        assert_eq!(write(offset, 4, 0xffff_ffff).unwrap(), 0, "{offset:#x}");
    }
    assert_eq!(write(0x42, 2, 0xc000).unwrap(), 0, "the host enables MSI-X");
    assert_eq!(write(0x80, 3, 0).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(write(0x0c, 1, 0).unwrap_err().kind(), ErrorKind::TimedOut, "this one is sent");
}
