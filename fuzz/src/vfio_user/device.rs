//! The device of a session, which checks everything that reaches it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use cordon_ipc::event::Signaller;
use cordon_pci::permission::Layout;
use cordon_vmm::device::{
    BarMemory, CONFIG_REGION, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup, RegionInfo,
};
use cordon_vmm::{
    Access, BarInfo, Deadline, DeviceError, ErrorKind, Identity, InterruptIndex, MsixInfo,
    PassthroughDevice, Space,
};
use parking_lot::Mutex;

/// Sizes of its BARs: 32-bit memory, 64-bit memory, I/O.
const SIZES: [u64; 6] = [0x1000, 0, 0x4000, 0, 64, 0];
const KINDS: [u8; 6] = [0, 0, 4, 0, 1, 0];
/// MSI-X in BAR 2: 8 vectors.
pub(super) const TABLE: Range<u64> = 0x2000..0x2080;
pub(super) const PENDING: Range<u64> = 0x3000..0x3008;
const VECTORS: u16 = 8;

/// Bytes of a region; `None` for one that there is not.
pub(super) fn size(region: u32) -> Option<u64> {
    match region {
        0..6 => Some(SIZES[region as usize]),
        CONFIG_REGION => Some(4096),
        6 | 8 => Some(0),
        _ => None,
    }
}

struct State {
    config: Vec<u8>,
    bars: [Vec<u8>; 6],
    is_there: bool,
    returns: u64,
    events: BTreeMap<(u8, u16), Signaller>,
}

/// See the module.
pub(super) struct Device {
    info: DeviceInfo,
    layout: Layout,
    state: Mutex<State>,
}

/// Config space after a reset: MSI-X at 0x50, PCI Express with function-level reset at 0x70.
fn config() -> Vec<u8> {
    let mut config = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[0xd0, 0xc0, 0x02, 0x00]);
    put(0x06, &[0x10]);
    put(0x34, &[0x50]);
    put(0x3d, &[1]);
    put(0x50, &[0x11, 0x70, 7, 0, 0x02, 0x20, 0, 0, 0x02, 0x30, 0, 0]);
    put(0x70, &[0x10, 0x00, 0x02, 0x00, 0x00, 0x80, 0x00, 0x10, 0x30, 0x28]);
    config
}

impl Device {
    pub(super) fn new() -> Self {
        let config = config();
        let bar = |number: usize| BarInfo {
            memory_index: number as u8,
            size: SIZES[number],
            kind: KINDS[number],
        };
        let bars = [0, 1, 2, 3, 4, 5].map(|number| (SIZES[number] > 0).then(|| bar(number)));
        let address = "01:00.0".parse().unwrap();
        let info = DeviceInfo {
            name: "device".to_owned(),
            identity: Identity { address, vendor: 0xc0d0, device: 2, class: 0xff_00_00 },
            bars,
            msix: None::<MsixInfo>,
            resettable: true,
        };
        let memory = SIZES.map(|size| (0..size).map(|at| at as u8 ^ (at >> 8) as u8).collect());
        let layout = Layout::new(&config);
        let events = BTreeMap::new();
        let state = State { config, bars: memory, is_there: true, returns: 0, events };
        Self { info, layout, state: Mutex::new(state) }
    }

    pub(super) fn config(&self) -> Vec<u8> {
        self.state.lock().config.clone()
    }

    pub(super) fn byte(&self, bar: u32, at: u64) -> u8 {
        self.state.lock().bars[bar as usize][at as usize]
    }

    pub(super) fn is_there(&self) -> bool {
        self.state.lock().is_there
    }

    /// It goes, or comes back.
    pub(super) fn moves(&self) {
        if self.is_there() {
            self.state.lock().is_there = false;
        } else {
            self.comes_back();
        }
    }

    pub(super) fn comes_back(&self) {
        let mut state = self.state.lock();
        if !state.is_there {
            state.is_there = true;
            state.returns += 1;
            state.config = config();
        }
    }

    pub(super) fn release_events(&self) {
        self.state.lock().events.clear();
    }

    /// The state, if anybody is there.
    fn answer(&self) -> Result<parking_lot::MutexGuard<'_, State>, DeviceError> {
        let state = self.state.lock();
        if state.is_there {
            Ok(state)
        } else {
            Err(DeviceError::new(ErrorKind::Gone, "nobody is there"))
        }
    }
}

impl PassthroughDevice for Device {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn is_present(&self) -> bool {
        self.is_there()
    }

    fn returns(&self) -> u64 {
        self.state.lock().returns
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        let none = || DeviceError::new(ErrorKind::InvalidArgument, "no such region");
        let size = size(index).ok_or_else(none)?;
        Ok(RegionInfo { index, size, offset: u64::from(index) << 20, mappable: false })
    }

    fn interrupt_info(&self, index: InterruptIndex) -> InterruptInfo {
        let count = match index {
            InterruptIndex::Intx => 1,
            InterruptIndex::Msi | InterruptIndex::Msix => VECTORS.into(),
            InterruptIndex::Err | InterruptIndex::Req => 0,
        };
        InterruptInfo { index, count, eventfd: true, no_resize: false }
    }

    fn access(&self, access: Access, _: Deadline) -> Result<u64, DeviceError> {
        let Access { space, offset, width, write, value } = access;
        let mut state = self.answer()?;
        let (at, length) = (offset as usize, usize::from(width));
        // Any read of config space may be one access.
        let is_any = space == Space::Config && !write && (1..=8).contains(&width);
        let is_aligned = matches!(width, 1 | 2 | 4 | 8) && at.is_multiple_of(length);
        assert!(is_any || is_aligned, "{access:?}");
        let memory = match space {
            Space::Config => {
                assert!(
                    !write || width <= 4 && self.layout.permits(offset as u32, length),
                    "{access:?}"
                );
                &mut state.config
            }
            Space::Bar(bar) => {
                let own = |range: &Range<u64>| {
                    offset < range.end && range.start < offset + u64::from(width)
                };
                assert!(bar != 2 || !own(&TABLE) && !own(&PENDING), "{access:?}");
                &mut state.bars[usize::from(bar)]
            }
        };
        assert!(at + length <= memory.len(), "{access:?}");
        let bytes = &mut memory[at..at + length];
        if write {
            bytes.copy_from_slice(&value.to_le_bytes()[..length]);
            return Ok(0);
        }
        let mut value = [0; 8];
        value[..length].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(value))
    }

    fn read_config(&self, offset: u32, data: &mut [u8], _: Deadline) -> Result<(), DeviceError> {
        let state = self.answer()?;
        let at = offset as usize;
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
        let count = self.interrupt_info(index).count as usize;
        let mut state = self.answer()?;
        match setup {
            InterruptSetup::Assign { start, signallers } => {
                assert!(usize::from(start) + signallers.len() <= count && !signallers.is_empty());
                for (vector, signaller) in (start..).zip(signallers) {
                    match signaller {
                        Some(signaller) => state.events.insert((index as u8, vector), signaller),
                        None => state.events.remove(&(index as u8, vector)),
                    };
                }
                assert!(state.events.len() <= 6, "more events than a client may give");
            }
            InterruptSetup::Trigger { start, count: number } => {
                assert!(usize::from(start) + usize::from(number) <= count && number > 0);
            }
            InterruptSetup::Disable => state.events.retain(|(of, _), _| *of != index as u8),
            InterruptSetup::Mask | InterruptSetup::Unmask => {}
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.answer()?.config = config();
        Ok(())
    }
}
