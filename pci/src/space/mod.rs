//! The config space of one function as a guest sees it: all models and the table in one.
//!
//! A front end owns one [`ConfigSpace`] for each function. It is plain data: no device is called,
//! and what a write comes to is returned as [`Effects`].

mod description;
mod effects;
mod interrupts;
mod read;
mod saved;
mod write;

pub use description::{ConfigError, Description, InterruptPolicy, Options};
pub use effects::{Delivery, Effects, InterruptChanges, InterruptMode, ResetCause};

use std::fmt;

use crate::bar::{Bar, Bars};
use crate::bytes;
use crate::command::CommandState;
use crate::intx::{Intx, LineChange};
use crate::msi::Msi;
use crate::msix::Msix;
use crate::permission::{Forwards, Layout};
use crate::power::PowerState;
use crate::registers::{
    BAR0, COMMAND, CONFIG_SPACE, HEADER_TYPE, INTERRUPT_LINE, INTERRUPT_PIN, MESSAGE_CONTROL,
    STATUS, command, status,
};

type Space = Box<[u8; CONFIG_SPACE]>;

/// The config space of one function.
#[derive(Clone)]
pub struct ConfigSpace {
    layout: Layout,
    options: Options,
    /// Bits of our own making in a read.
    shown: Space,
    /// What these bits are; the models write theirs here when they change.
    shadow: Space,
    at_reset: Space,
    is_present: bool,
    command: CommandState,
    bars: Bars,
    msi: Option<Msi>,
    msix: Option<Msix>,
    intx: Intx,
    interrupt: [u8; 2],
}

impl ConfigSpace {
    /// Config space as after a reset: nothing enabled, BARs at 0, messages off, D0.
    ///
    /// # Errors
    /// [`ConfigError`] when the description is not one of a type 0 function.
    pub fn new(described: &Description<'_>, options: Options) -> Result<Self, ConfigError> {
        let config = described.config;
        described.check()?;
        let layout = Layout::new(config);
        let (mut shown, mut shadow) = (layout.shown.clone(), Box::new([0; CONFIG_SPACE]));
        for (at, to) in shadow.iter_mut().enumerate() {
            let of_device = if options.synthetic { !layout.shown[at] } else { 0 };
            *to = bytes::byte(config, at) & (layout.kept[at] | of_device);
        }
        if options.synthetic {
            shown.fill(0xff);
        }
        shadow[HEADER_TYPE] |= u8::from(options.multi_function) << 7;
        let bars = Bars::new(&described.bars);
        let known = layout.known;
        let mut space = Self {
            options,
            shown,
            at_reset: shadow.clone(),
            shadow,
            is_present: true,
            command: CommandState::new(implemented(&bars, options)),
            bars,
            msi: known.msi.map(|msi| Msi::new(msi, described.vectors)),
            msix: known.msix.map(Msix::new),
            intx: Intx::default(),
            interrupt: [0, bytes::byte(config, INTERRUPT_PIN)],
            layout,
        };
        space.refresh();
        Ok(space)
    }

    /// What may be done to each bit, for display and tests.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// COMMAND as the guest left it.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.command.command()
    }

    /// The power state.
    #[must_use]
    pub fn power(&self) -> PowerState {
        self.command.power()
    }

    /// Whether the guest sees the windows: the device is there, COMMAND.MEM is set, and it is in D0.
    /// Otherwise reads of its memory are all ones.
    #[must_use]
    pub fn windows_visible(&self) -> bool {
        self.is_present && self.command.decodes_memory()
    }

    /// BAR `number` as the guest sees it, with its size rounded; see [`Bar::rounded`].
    #[must_use]
    pub fn bar(&self, number: usize) -> Option<Bar> {
        self.bars.get(number)
    }

    /// Where BAR `number` has been placed, whether it is decoded or not; see [`Bars::address`].
    #[must_use]
    pub fn bar_address(&self, number: usize) -> Option<u64> {
        self.bars.address(number)
    }

    /// Where BAR `number` is decoded now: `None` while COMMAND or the power state keeps the function
    /// from decoding it.
    #[must_use]
    pub fn decoded_at(&self, number: usize) -> Option<u64> {
        let is_io = self.bars.get(number)?.kind.is_io();
        let decodes = if is_io { self.command.decodes_io() } else { self.command.decodes_memory() };
        if self.is_present && decodes { self.bars.address(number) } else { None }
    }

    /// Where BAR `number` is on a bus that follows COMMAND alone, as crosvm's does: it learns of a BAR's place
    /// from the writes of COMMAND and BARs, so the BAR stays there in D3hot and while the device is away, where
    /// the caller answers with all ones ([`ConfigSpace::decoded_at`] is `None`). Such a bus compares the BARs
    /// before a write with those after it one by one, so none is left out: one that was not placed is at 0.
    #[must_use]
    pub fn on_bus_at(&self, number: usize) -> Option<u64> {
        let is_io = self.bars.get(number)?.kind.is_io();
        let bit = if is_io { command::IO } else { command::MEMORY };
        (self.command() & bit != 0).then(|| self.bars.address(number).unwrap_or(0))
    }

    /// Places a BAR as firmware would, for VMMs that allocate addresses themselves. A BAR that is
    /// not there is ignored.
    pub fn place_bar(&mut self, number: usize, address: u64) {
        self.bars.set_address(number, address);
        self.refresh();
    }

    /// Interrupt line and pin as the VMM wires them: pin 0 none, 1 INTA to 4 INTD. Without it the
    /// line is 0 and the pin the device's.
    pub fn wire_interrupt(&mut self, line: u8, pin: u8) {
        self.interrupt = [line, pin];
        self.refresh();
    }

    /// The device went, or came back after a reset. While it is gone reads are all ones and writes
    /// are dropped; when it comes back its registers are as after a reset.
    pub fn set_present(&mut self, is_present: bool) -> Effects {
        if is_present == self.is_present {
            return Effects::default();
        }
        let before = self.observe();
        let mut effects = Effects::default();
        effects.interrupts.line = self.clear();
        self.is_present = is_present;
        self.conclude(before, effects)
    }

    /// The function was reset by other means than its config space (P8).
    pub fn reset(&mut self) -> Effects {
        let before = self.observe();
        let mut effects = Effects::default();
        effects.interrupts.line = self.clear();
        self.conclude(before, effects)
    }

    /// The config writes that bring a device which was claimed or reset anew to where the guest has
    /// it: COMMAND, and D3hot if it is asleep.
    #[must_use]
    pub fn replay(&self) -> Forwards {
        let mut forwards = Forwards::default();
        if self.options.synthetic {
            return forwards;
        }
        for one in self.layout.split(COMMAND_OFFSET, &self.command().to_le_bytes()).iter() {
            forwards.push(one.offset.into(), &one.value.to_le_bytes()[..1]);
        }
        let at = self.layout.power_state().filter(|_| self.power() == PowerState::D3Hot);
        if let Some(offset) = at.and_then(|at| u32::try_from(at).ok()) {
            for one in self.layout.split(offset, &[PowerState::D3Hot.bits()]).iter() {
                forwards.push(one.offset.into(), &one.value.to_le_bytes()[..one.width.into()]);
            }
        }
        forwards
    }

    /// Everything as after a reset; what becomes of the line.
    fn clear(&mut self) -> Option<LineChange> {
        self.command.reset();
        let _ = self.bars.reset();
        if let Some(msi) = &mut self.msi {
            msi.reset();
        }
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.shadow.copy_from_slice(&self.at_reset[..]);
        let line = self.intx.clear();
        let _ = self.intx.set_disabled(false);
        self.refresh();
        line
    }

    /// Writes what the models say to where reads find it.
    fn refresh(&mut self) {
        self.refresh_header();
        self.refresh_capabilities();
    }

    fn refresh_header(&mut self) {
        let shadow = &mut self.shadow[..];
        bytes::put(shadow, COMMAND, &self.command.command().to_le_bytes());
        bytes::put(shadow, BAR0, &self.bars.image());
        bytes::put(shadow, INTERRUPT_LINE, &self.interrupt);
        self.refresh_line();
    }

    fn refresh_capabilities(&mut self) {
        let shadow = &mut self.shadow[..];
        if let Some(at) = self.layout.power_state() {
            shadow[at] = shadow[at] & !0b11 | self.command.power().bits();
        }
        if let Some(msi) = &self.msi {
            let at = usize::from(msi.capability().offset) + MESSAGE_CONTROL;
            bytes::put(shadow, at, &msi.image()[MESSAGE_CONTROL..]);
        }
        if let Some(msix) = &self.msix {
            let at = usize::from(msix.capability().offset) + MESSAGE_CONTROL;
            bytes::put(shadow, at, &msix.control().to_le_bytes());
        }
    }

    /// STATUS.InterruptStatus: the line would be active if COMMAND did not disable it.
    fn refresh_line(&mut self) {
        let [bit, _] = status::INTERRUPT.to_le_bytes();
        let is_set = self.intx.is_asserted() || self.intx.is_pending();
        let byte = &mut self.shadow[STATUS];
        *byte = *byte & !bit | if is_set { bit } else { 0 };
    }
}

/// COMMAND as the offset of an access.
const COMMAND_OFFSET: u32 = 0x04;

/// The bits of COMMAND that a guest can set.
fn implemented(bars: &Bars, options: Options) -> u16 {
    let io = if bars.has_io() { command::IO } else { 0 };
    let device = command::PARITY | command::SERR | command::INTX_DISABLE;
    let more = if options.synthetic { 0 } else { device };
    io | command::MEMORY | command::BUS_MASTER | more
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("command", &self.command())
            .field("power", &self.power())
            .field("bars", &self.bars)
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
