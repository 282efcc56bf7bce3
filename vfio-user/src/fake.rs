//! A device for tests: config space in memory, and a note of everything that reached it.

use std::sync::Arc;

use cordon_vmm::device::{
    BarMemory, CONFIG_REGION, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup, RegionInfo,
};
use cordon_vmm::{
    Access, BarInfo, Deadline, DeviceError, ErrorKind, Identity, InterruptIndex, PassthroughDevice,
    Space,
};
use parking_lot::Mutex;

/// What reached the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Offset, width, value.
    ConfigWrite(u64, u8, u64),
    /// BAR, offset, width.
    BarRead(u8, u64, u8),
    /// BAR, offset, width, value.
    BarWrite(u8, u64, u8, u64),
    Reset,
    Mask(InterruptIndex),
    Unmask(InterruptIndex),
    Trigger(InterruptIndex),
    Assign(InterruptIndex),
    Disable(InterruptIndex),
}

struct FakeState {
    config: Vec<u8>,
    calls: Vec<Call>,
    /// Config reads, which are not noted one by one.
    config_reads: usize,
    is_present: bool,
    returns: u64,
    /// What the next reset answers instead.
    reset_fails: Option<ErrorKind>,
    /// What the next config write answers instead.
    write_fails: Option<ErrorKind>,
}

/// See the module.
pub(crate) struct Fake {
    info: DeviceInfo,
    state: Mutex<FakeState>,
}

impl Fake {
    pub(crate) fn new(config: Vec<u8>, bars: [Option<BarInfo>; 6]) -> Self {
        let address = "01:00.0".parse().unwrap();
        let identity = Identity { address, vendor: 0xc0d0, device: 2, class: 0xff_00_00 };
        let info =
            DeviceInfo { name: "fake".to_owned(), identity, bars, msix: None, resettable: true };
        let state = FakeState {
            config,
            calls: Vec::new(),
            config_reads: 0,
            is_present: true,
            returns: 0,
            reset_fails: None,
            write_fails: None,
        };
        Self { info, state: Mutex::new(state) }
    }

    /// What reached it since it was asked last.
    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// How often config space was read.
    pub(crate) fn config_reads(&self) -> usize {
        self.state.lock().config_reads
    }

    pub(crate) fn set_config(&self, at: usize, bytes: &[u8]) {
        self.state.lock().config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn goes_away(&self) {
        self.state.lock().is_present = false;
    }

    pub(crate) fn comes_back(&self) {
        let mut state = self.state.lock();
        state.is_present = true;
        state.returns += 1;
    }

    pub(crate) fn next_reset_fails(&self, kind: ErrorKind) {
        self.state.lock().reset_fails = Some(kind);
    }

    pub(crate) fn next_config_write_fails(&self, kind: ErrorKind) {
        self.state.lock().write_fails = Some(kind);
    }

    /// Notes a call, which nobody answers while the device is away.
    fn note(&self, call: Call, fails: Option<ErrorKind>) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        let fails = fails.or((!state.is_present).then_some(ErrorKind::Gone));
        if fails == Some(ErrorKind::Gone) {
            return Err(DeviceError::new(ErrorKind::Gone, "fake: nobody is there"));
        }
        state.calls.push(call);
        fails.map_or(Ok(()), |kind| Err(DeviceError::new(kind, "fake: it was told to fail")))
    }
}

impl PassthroughDevice for Fake {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn is_present(&self) -> bool {
        self.state.lock().is_present
    }

    fn returns(&self) -> u64 {
        self.state.lock().returns
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        let bar = self.info.bars.get(usize::try_from(index).unwrap_or(usize::MAX));
        let size = bar.copied().flatten().map_or(0, |bar| bar.size);
        let size = if index == CONFIG_REGION { 4096 } else { size };
        Ok(RegionInfo { index, size, offset: u64::from(index) << 20, mappable: false })
    }

    fn interrupt_info(&self, index: InterruptIndex) -> InterruptInfo {
        let count = if index == InterruptIndex::Intx { 1 } else { 32 };
        InterruptInfo { index, count, eventfd: true, no_resize: index != InterruptIndex::Intx }
    }

    fn access(&self, access: Access, _: Deadline) -> Result<u64, DeviceError> {
        let Access { space, offset, width, write, value } = access;
        match (space, write) {
            (Space::Config, false) => {
                let mut bytes = [0; 8];
                self.read_config(
                    u32::try_from(offset).unwrap(),
                    &mut bytes[..usize::from(width)],
                    Deadline::now(),
                )?;
                return Ok(u64::from_le_bytes(bytes));
            }
            (Space::Config, true) => {
                let fails = self.state.lock().write_fails.take();
                self.note(Call::ConfigWrite(offset, width, value), fails)?;
            }
            (Space::Bar(bar), false) => self.note(Call::BarRead(bar, offset, width), None)?,
            (Space::Bar(bar), true) => {
                self.note(Call::BarWrite(bar, offset, width, value), None)?;
            }
        }
        Ok(if write { 0 } else { u64::from_le_bytes(*b"ofdevice") })
    }

    fn read_config(&self, offset: u32, data: &mut [u8], _: Deadline) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        if !state.is_present {
            return Err(DeviceError::new(ErrorKind::Gone, "fake: nobody is there"));
        }
        state.config_reads += 1;
        let at = usize::try_from(offset).unwrap();
        data.copy_from_slice(&state.config[at..at + data.len()]);
        Ok(())
    }

    fn windows(&self) -> Result<Vec<BarMemory>, DeviceError> {
        Ok(Vec::new())
    }

    fn map_windows(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError> {
        Ok(Vec::new())
    }

    fn windows_generation(&self) -> u64 {
        0
    }

    fn set_interrupts(
        &self,
        index: InterruptIndex,
        setup: InterruptSetup,
    ) -> Result<(), DeviceError> {
        let call = match setup {
            InterruptSetup::Assign { .. } => Call::Assign(index),
            InterruptSetup::Disable => Call::Disable(index),
            InterruptSetup::Mask => Call::Mask(index),
            InterruptSetup::Unmask => Call::Unmask(index),
            InterruptSetup::Trigger { .. } => Call::Trigger(index),
        };
        self.note(call, None)
    }

    fn reset(&self) -> Result<(), DeviceError> {
        let fails = self.state.lock().reset_fails.take();
        self.note(Call::Reset, fails)
    }
}
