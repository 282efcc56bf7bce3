//! Config space and MSI-X structures as a client sees them: `cordon_pci`'s model, over the device.
//!
//! The model is made when a client first looks, from what the device shows then, and anew after the
//! device was away: it was claimed and reset meanwhile, so nothing holds that the client had written.
//! Whenever the model is as after a reset, the device is brought to where the client has it, since a
//! claim and a reset of the host's leave it able to reach memory.
//!
//! The client is a VMM with emulation of its own (QEMU, cloud-hypervisor). It keeps MSI and MSI-X
//! itself and asks for interrupts by SET_IRQS; it decodes BARs and maps windows itself, since it sees
//! what its guest writes to COMMAND and the power state before anybody else does. So of the effects of
//! a write these are carried out here: writes to the device, resets, and COMMAND's INTx disable
//! ([`Config::intx_disabled`]).

use cordon_pci::permission::Forward;
use cordon_pci::registers::{CONFIG_SPACE, command};
use cordon_pci::{ConfigError, ConfigSpace, Description, Effects, Options};

use crate::kept::ConfigRecord;
use cordon_vmm::error::{ErrorKind, answered};
use cordon_vmm::{DeviceError, InterruptIndex, PassthroughDevice};

/// Config space and MSI-X structures of one client, for a front end whose client emulates MSI and MSI-X
/// itself.
#[derive(Debug, Default)]
pub struct Config {
    space: Option<ConfigSpace>,
    /// What the device showed when it was made.
    found: Vec<u8>,
    /// How often it was made, given up or may have been written to.
    changes: u64,
    /// How often the device had come back when the model was made.
    returns: u64,
}

impl Config {
    /// The model, if the device is there.
    fn model(
        &mut self,
        device: &dyn PassthroughDevice,
    ) -> Result<Option<&mut ConfigSpace>, DeviceError> {
        if !device.is_present() {
            return Ok(None);
        }
        let returns = device.returns();
        if self.space.is_none() || self.returns != returns {
            (self.space, self.returns) = (None, returns);
            self.changes += 1;
            let Some((space, found)) = snapshot(device)? else { return Ok(None) };
            self.found = found;
            if !restore(&space, device)? {
                return Ok(None);
            }
            self.space = Some(space);
        }
        Ok(self.space.as_mut())
    }

    /// Reads any range; a device that is gone reads as all ones. The device is asked for nothing that is
    /// kept here.
    ///
    /// # Errors
    /// [`DeviceError`] of the device.
    pub fn read(
        &mut self,
        device: &dyn PassthroughDevice,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        let Some(space) = self.model(device)? else {
            data.fill(0xff);
            return Ok(());
        };
        let mut is_answered = true;
        space.read_with(offset, data, |at, inside| {
            is_answered = answered(device.config_read(at, inside))?;
            Ok::<_, DeviceError>(())
        })?;
        if !is_answered {
            data.fill(0xff);
        }
        Ok(())
    }

    /// Writes any range, as far as a guest may (P6.4); a device that is gone drops it.
    ///
    /// # Errors
    /// [`DeviceError`] of the device.
    pub fn write(
        &mut self,
        device: &dyn PassthroughDevice,
        offset: u32,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        self.changes += 1;
        let Some(space) = self.model(device)? else { return Ok(()) };
        let mut is_restored = true;
        let written = space.write_with(offset, data, |space, effects| {
            is_restored &= carry_out(space, device, effects)?;
            Ok(())
        });
        if !is_restored {
            self.space = None;
        }
        written
    }

    /// One access of 1, 2, 4 or 8 bytes to a BAR. The MSI-X table and the pending bits are the
    /// model's: the host's are never shown.
    ///
    /// # Errors
    /// [`DeviceError`] of the device.
    pub fn read_bar(
        &mut self,
        device: &dyn PassthroughDevice,
        bar: u8,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        match self.model(device)? {
            Some(space) if space.read_bar(bar, offset, data) => {}
            Some(_) if answered(device.bar_read(bar, offset, data))? => {}
            _ => data.fill(0xff),
        }
        Ok(())
    }

    /// One access of 1, 2, 4 or 8 bytes to a BAR. What is written to the MSI-X table is kept, and
    /// nothing more: the client asks for interrupts otherwise.
    ///
    /// # Errors
    /// [`DeviceError`] of the device.
    pub fn write_bar(
        &mut self,
        device: &dyn PassthroughDevice,
        bar: u8,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        let Some(space) = self.model(device)? else { return Ok(()) };
        if space.write_bar(bar, offset, data).is_none() {
            answered(device.bar_write(bar, offset, data))?;
        } else {
            self.changes += 1;
        }
        Ok(())
    }

    /// The device was reset by a command of its own.
    ///
    /// # Errors
    /// [`DeviceError`] of the device.
    pub fn reset(&mut self, device: &dyn PassthroughDevice) -> Result<(), DeviceError> {
        self.changes += 1;
        let Some(space) = &mut self.space else { return Ok(()) };
        // Of its effects, `restore` does the one that is left to do.
        let _ = space.reset();
        if !restore(space, device)? {
            self.space = None;
        }
        Ok(())
    }

    /// How often there may be something new for [`Config::record`].
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// The model, for another server to go on from.
    pub(crate) fn record(&self) -> Option<ConfigRecord> {
        let saved = self.space.as_ref()?.save();
        Some(ConfigRecord { found: self.found.clone(), saved })
    }

    /// The model as another server had it, of a device that went on meanwhile: nothing is written to it. Where it
    /// cannot be made, it is made anew when it is needed.
    pub(crate) fn of(record: ConfigRecord, device: &dyn PassthroughDevice) -> Self {
        let ConfigRecord { found, saved } = record;
        let space = model_of(&found, device).ok().filter(|_| found.len() == CONFIG_SPACE);
        let space = space.and_then(|mut space| space.load(&saved).then_some(space));
        Self { space, found, changes: 1, returns: device.returns() }
    }

    /// Whether the guest forbids INTx, by COMMAND.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.space.as_ref().is_some_and(|space| space.command() & command::INTX_DISABLE != 0)
    }
}

/// The model of what the device shows now, and that; `None` if nobody answers.
fn snapshot(device: &dyn PassthroughDevice) -> Result<Option<(ConfigSpace, Vec<u8>)>, DeviceError> {
    let mut config = vec![0; CONFIG_SPACE];
    if !answered(device.config_read(0, &mut config))? {
        return Ok(None);
    }
    match model_of(&config, device) {
        Ok(space) => Ok(Some((space, config))),
        Err(ConfigError::Absent) => Ok(None),
        Err(error) => {
            let message = format!("{}: {error}", device.info().name);
            Err(DeviceError::new(ErrorKind::NotSupported, message))
        }
    }
}

/// The model of what the device shows as this.
fn model_of(config: &[u8], device: &dyn PassthroughDevice) -> Result<ConfigSpace, ConfigError> {
    let vectors = device.interrupt_info(InterruptIndex::Msi).count;
    let described = Description {
        config,
        bars: device.info().pci_bars(),
        vectors: u16::try_from(vectors).unwrap_or(u16::MAX),
    };
    ConfigSpace::new(&described, Options::vfio_user())
}

/// What a write comes to, in the order that [`Effects`] gives; `false` if a device that was reset could
/// not be restored.
fn carry_out(
    space: &ConfigSpace,
    device: &dyn PassthroughDevice,
    effects: &Effects,
) -> Result<bool, DeviceError> {
    forward(device, &effects.forwards)?;
    if effects.reset.is_none() {
        return Ok(true);
    }
    let done = answered(device.reset());
    // Also where it failed: the guest believes the device to be as after a reset.
    let is_restored = restore(space, device)?;
    match done {
        // No bus has an answer that says so, and what comes next finds no time left either.
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            tracing::warn!("{}: a reset that its guest asked for: {error}", device.info().name);
            Ok(is_restored)
        }
        done => done.map(|_| is_restored),
    }
}

/// Brings a device that was claimed or reset anew to where the client has it; `false` if nobody
/// answered.
fn restore(space: &ConfigSpace, device: &dyn PassthroughDevice) -> Result<bool, DeviceError> {
    forward(device, &space.replay())
}

/// Writes to the device, in order; `false` if nobody answered one of them.
fn forward(device: &dyn PassthroughDevice, all: &[Forward]) -> Result<bool, DeviceError> {
    let mut is_answered = true;
    for one in all {
        let value = one.value.to_le_bytes();
        let data = value.get(..one.width.into()).unwrap_or(&value);
        is_answered &= answered(device.config_write(one.offset.into(), data))?;
    }
    Ok(is_answered)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
