//! Writes: split into what reaches the device, what is kept, and what must be done.

use super::{ConfigError, ConfigSpace, Effects, InterruptMode, InterruptPolicy, ResetCause};
use crate::bytes;
use crate::msix::MsixRegion;
use crate::permission::MAX_WRITE;
use crate::power::PowerState;
use crate::registers::{HEADER, INTERRUPT_LINE, command};

/// What edges are seen against.
pub(super) struct Observed {
    windows: bool,
    command: u16,
    power: PowerState,
    mode: InterruptMode,
}

impl ConfigSpace {
    /// Takes a write of at most 8 bytes at any offset (P6); bytes past the end are dropped.
    ///
    /// # Errors
    /// [`ConfigError::Length`] for more than 8 bytes: use [`ConfigSpace::write_with`].
    pub fn write(&mut self, offset: u32, data: &[u8]) -> Result<Effects, ConfigError> {
        if data.len() > MAX_WRITE {
            return Err(ConfigError::Length(data.len()));
        }
        Ok(self.take(offset, data))
    }

    /// Takes a write of any length, by aligned dwords. `apply` is called for each one that comes to
    /// anything.
    ///
    /// # Errors
    /// Those of `apply`, which end the write.
    pub fn write_with<E>(
        &mut self,
        offset: u32,
        data: &[u8],
        mut apply: impl FnMut(&mut Self, &Effects) -> Result<(), E>,
    ) -> Result<(), E> {
        let range = bytes::inside(offset, data.len());
        let (mut at, mut rest) = (range.start, &data[..range.len()]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(4 - at % 4));
            let effects = self.take(u32::try_from(at).unwrap_or(u32::MAX), now);
            if !effects.is_empty() {
                apply(self, &effects)?;
            }
            (at, rest) = (at + now.len(), later);
        }
        Ok(())
    }

    fn take(&mut self, offset: u32, data: &[u8]) -> Effects {
        let range = bytes::inside(offset, data.len());
        let (at, data) = (range.start, &data[..range.len()]);
        let mut effects = Effects::default();
        if !self.is_present || data.is_empty() {
            return effects;
        }
        if !self.options.synthetic {
            effects.forwards = self.layout.split(offset, data);
            if self.layout.is_plain(range.clone()) {
                return effects;
            }
        }
        let before = self.observe();
        for (at, value) in range.clone().zip(data) {
            let kept = self.layout.kept[at];
            self.shadow[at] = self.shadow[at] & !kept | value & kept;
        }
        for (_, value) in bytes::hits(INTERRUPT_LINE..INTERRUPT_LINE + 1, at, data) {
            self.interrupt[0] = value;
        }
        effects.bars = self.bars.write(at, data);
        effects.reset = self.write_power(at, data);
        self.command.write(at, data);
        self.write_messages(at, data, &mut effects);
        if self.layout.asks_for_reset(offset, data) {
            effects.reset = Some(ResetCause::FunctionLevel);
        }
        if effects.reset.is_some() {
            effects.interrupts.line = self.clear();
        } else if self.options.interrupts == InterruptPolicy::Emulated {
            let disabled = self.command.command() & command::INTX_DISABLE != 0;
            effects.interrupts.line = self.intx.set_disabled(disabled);
        }
        if range.start < HEADER {
            self.refresh_header();
        }
        if range.end > HEADER {
            self.refresh_capabilities();
        }
        self.conclude(before, effects)
    }

    /// Takes the power state; the reset that waking up amounts to, for a function that loses its
    /// state in D3hot.
    fn write_power(&mut self, at: usize, data: &[u8]) -> Option<ResetCause> {
        let register = self.layout.power_state()?;
        let (_, value) = bytes::hits(register..register + 1, at, data).next()?;
        let state = self.command.write_power(value)?;
        let loses_state = self.layout.known.power.is_some_and(|power| !power.no_soft_reset);
        (state == PowerState::D0 && loses_state).then_some(ResetCause::PowerUp)
    }

    fn write_messages(&mut self, at: usize, data: &[u8], effects: &mut Effects) {
        // A write can begin in front of a capability, whose models count from its first byte.
        let within = |offset: u16| {
            let offset = usize::from(offset);
            let skipped = offset.saturating_sub(at).min(data.len());
            (at.saturating_sub(offset), &data[skipped..])
        };
        let (mut msi_changed, mut msix_changed) = (false, false);
        if let Some(msi) = &mut self.msi {
            let (offset, data) = within(msi.capability().offset);
            msi_changed = msi.write(offset, data);
        }
        if let Some(msix) = &mut self.msix {
            let (offset, data) = within(msix.capability().offset);
            msix_changed = msix.write_control(offset, data);
        }
        effects.interrupts.vectors = match (self.mode(), &self.msi, &self.msix) {
            (InterruptMode::Msi, Some(msi), _) if msi_changed => Some((0, msi.offered())),
            (InterruptMode::Msix, _, Some(msix)) if msix_changed => {
                Some((0, msix.capability().vectors))
            }
            _ => None,
        };
    }

    /// Takes a write to the MSI-X table or pending-bit array (P7.3). `None` if the access is to
    /// neither: it is the device's.
    pub fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<Effects> {
        let msix = self.msix.as_mut()?;
        let region = msix.region(bar, offset, data.len())?;
        let mut effects = Effects::default();
        let into = offset.checked_sub(msix.capability().table_offset.into());
        if let (true, MsixRegion::Table, Some(into)) = (self.is_present, region, into) {
            let changed = msix.write_table(into, data);
            let is_ours = self.options.interrupts == InterruptPolicy::Emulated;
            if let Some(vector) = changed.filter(|_| is_ours && msix.is_enabled()) {
                effects.interrupts.vectors = Some((vector, 1));
                effects.interrupts.deliver = msix.has_deliverable();
            }
        }
        Some(effects)
    }

    pub(super) fn observe(&self) -> Observed {
        Observed {
            windows: self.windows_visible(),
            command: self.command(),
            power: self.power(),
            mode: self.mode(),
        }
    }

    /// Adds what changed since `before`.
    pub(super) fn conclude(&mut self, before: Observed, mut effects: Effects) -> Effects {
        let now = self.observe();
        effects.windows = (now.windows != before.windows).then_some(now.windows);
        effects.command = (now.command != before.command).then_some(now.command);
        effects.power = (now.power != before.power).then_some(now.power);
        if self.options.interrupts == InterruptPolicy::Client {
            effects.interrupts = Default::default();
            return effects;
        }
        let interrupts = &mut effects.interrupts;
        if now.mode != before.mode {
            interrupts.mode = Some(now.mode);
            if before.mode == InterruptMode::Intx {
                interrupts.line = self.intx.clear().or(interrupts.line);
                self.refresh_line();
            }
        }
        if !matches!(now.mode, InterruptMode::Msi | InterruptMode::Msix) {
            interrupts.vectors = None;
        }
        let may_deliver = interrupts.vectors.is_some() || interrupts.mode.is_some();
        interrupts.deliver = may_deliver && self.has_deliverable();
        effects
    }
}
