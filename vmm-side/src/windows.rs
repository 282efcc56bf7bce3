//! The windows of one function, and where its VMM has them mapped.
//!
//! A VMM maps a window once and gives its address to its hypervisor. When the device goes away,
//! memory of all ones comes under that address, as on a bus where nobody answers; when it comes
//! back, the device's memory does.

use std::sync::{Arc, OnceLock, Weak};

use ipc::{Access, DeviceMemory, SharedMemory, Window};
use parking_lot::{Mutex, MutexGuard};

use crate::device::BarMemory;
use crate::error::DeviceError;

/// A part of a BAR, mapped at an address that stays the same for as long as the value lives.
#[derive(Debug)]
pub struct GuestWindow {
    /// BAR number.
    pub bar: u8,
    /// Where in the BAR it begins; a multiple of the host's page size (P7.7).
    pub offset: u64,
    window: Window,
}

impl GuestWindow {
    /// The mapping: its address and length are what a hypervisor is told. While the device is
    /// away it reads all ones, and what is stored goes nowhere.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }
}

/// Bytes of all ones that are put under windows, again and again.
const ONES: usize = 2 << 20;

/// All ones. Made before the first window is handed out: when a device goes away nothing may be
/// missing for it.
fn ones() -> Result<&'static SharedMemory, DeviceError> {
    static MEMORY: OnceLock<SharedMemory> = OnceLock::new();
    let no_memory = |error: &dyn std::fmt::Display| {
        DeviceError::no_space(format!(
            "no memory for the windows of a device that is away: {error}"
        ))
    };
    if let Some(memory) = MEMORY.get() {
        return Ok(memory);
    }
    let memory = SharedMemory::create("cordon-all-ones", ONES as u64);
    let memory = memory.map_err(|error| no_memory(&error))?;
    let window = memory.map_all(Access::ReadWrite).map_err(|error| no_memory(&error))?;
    window.copy_in(0, &vec![0xff; ONES]).map_err(|error| no_memory(&error))?;
    Ok(MEMORY.get_or_init(|| memory))
}

#[derive(Debug, Default)]
struct WindowsState {
    memory: Vec<BarMemory>,
    mapped: Vec<Weak<GuestWindow>>,
    away: bool,
    generation: u64,
}

/// All windows of a function.
#[derive(Debug)]
pub(crate) struct Windows(Mutex<WindowsState>);

impl Windows {
    /// As the connection process exported them, and [`crate::window_check`] found good.
    pub(crate) fn new(memory: Vec<BarMemory>) -> Self {
        Self(Mutex::new(WindowsState { memory, ..WindowsState::default() }))
    }

    fn state(&self) -> MutexGuard<'_, WindowsState> {
        self.0.lock()
    }

    /// Whether a BAR has any.
    pub(crate) fn has(&self, bar: u8) -> bool {
        self.state().memory.iter().any(|window| window.bar == bar)
    }

    /// How often the device came back with other memory.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Handles for the memory of each.
    pub(crate) fn memory(&self) -> Result<Vec<BarMemory>, DeviceError> {
        let clone = |window: &BarMemory| {
            let memory = window.memory.try_clone();
            memory.map(|memory| BarMemory { memory, ..*window })
        };
        let all: Result<_, _> = self.state().memory.iter().map(clone).collect();
        all.map_err(|error| DeviceError::no_space(error.to_string()))
    }

    /// Maps each, to be kept up to date from here on.
    pub(crate) fn map(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError> {
        let ones = ones()?;
        let mut state = self.state();
        let failed = |error: ipc::WindowError| DeviceError::no_space(ipc::chain(&error));
        let mut all = Vec::new();
        for memory in &state.memory {
            let window = memory.map().map_err(failed)?;
            if state.away {
                window.replace_with_copies(ones).map_err(failed)?;
            }
            all.push(Arc::new(GuestWindow { bar: memory.bar, offset: memory.offset, window }));
        }
        state.mapped.retain(|one| one.strong_count() > 0);
        state.mapped.extend(all.iter().map(Arc::downgrade));
        Ok(all)
    }

    /// The device is away: all ones under every mapping.
    pub(crate) fn withdraw(&self) {
        let mut state = self.state();
        state.away = true;
        for one in state.mapped.iter().filter_map(Weak::upgrade) {
            let replaced = ones().map(|ones| one.window.replace_with_copies(ones));
            if !matches!(replaced, Ok(Ok(()))) {
                tracing::error!("a window of BAR {} cannot be withdrawn: {replaced:?}", one.bar);
            }
        }
    }

    /// The device is back, with the same windows: what was checked of the first holds for these.
    pub(crate) fn restore(&self, memory: Vec<BarMemory>) -> Result<(), DeviceError> {
        let mut state = self.state();
        let shape = |all: &[BarMemory]| -> Vec<_> {
            all.iter().map(|one| (one.bar, one.offset, one.length)).collect()
        };
        if shape(&memory) != shape(&state.memory) {
            return Err(DeviceError::no_device("it came back with other windows"));
        }
        for one in state.mapped.iter().filter_map(Weak::upgrade) {
            let of_it = memory.iter().find(|new| (new.bar, new.offset) == (one.bar, one.offset));
            if let Some(new) = of_it {
                let replaced = new.memory.put_under(&one.window, new.memory_offset);
                replaced.map_err(|error| DeviceError::no_space(ipc::chain(&error)))?;
            }
        }
        let pairs = state.memory.iter().zip(&memory);
        let gone: Vec<&BarMemory> =
            pairs.filter(|(old, new)| !old.is_same_memory(new)).map(|(old, _)| old).collect();
        if !gone.is_empty() {
            fill_with_ones(&gone);
            state.generation += 1;
        }
        state.memory = memory;
        state.away = false;
        Ok(())
    }
}

/// Bytes that are filled at most, of all windows of a function: a few milliseconds' worth.
const MAX_FILL: u64 = 64 << 20;
/// Written parts that are looked at, of one window.
const MAX_EXTENTS: usize = 1024;

/// Whoever still maps memory that no device serves any more reads ones there too, as far as that can
/// be done. That is so only of memory files: the simulated dext keeps one for each BAR for as long as it
/// lives, so another file means that it died. Everything else may be a device that lives, which
/// has other names for the same memory (a Mac gives new ones to each connection), and is never
/// written to. What was never written takes no memory and stays as it is; it reads zero.
fn fill_with_ones(gone: &[&BarMemory]) {
    let mut left = MAX_FILL;
    for memory in gone {
        let filled = match &memory.memory {
            DeviceMemory::Descriptor(file) => fill_file(memory, file, &mut left),
            DeviceMemory::Entry(_) | DeviceMemory::Own(_) => continue,
        };
        match filled {
            Ok(true) => {}
            Ok(false) => tracing::info!(
                "BAR {}: of the memory that is gone {MAX_FILL} bytes read ones, the rest as it was",
                memory.bar
            ),
            Err(error) => tracing::info!(
                "BAR {}: the memory that is gone is left as it was: {error}",
                memory.bar
            ),
        }
    }
}

/// Whether all of the window that was ever written could be filled.
fn fill_file(memory: &BarMemory, file: &SharedMemory, left: &mut u64) -> std::io::Result<bool> {
    let extents = file.written_extents(MAX_EXTENTS)?;
    let window = memory.map().map_err(std::io::Error::other)?;
    let ones = vec![0xff; ONES];
    let (begin, end) = (memory.memory_offset, memory.memory_offset + memory.length);
    for (offset, length) in extents {
        let from = offset.max(begin);
        let to = offset.saturating_add(length).min(end);
        let mut at = from;
        while at < to {
            let now = (to - at).min(ONES as u64).min(*left);
            if now == 0 {
                return Ok(false);
            }
            let bytes = &ones[..usize::try_from(now).unwrap_or(ONES)];
            window.copy_in(at - begin, bytes).map_err(std::io::Error::other)?;
            *left -= now;
            at += now;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BAR whose first 16 KiB have this value.
    fn memory(value: u8, length: u64) -> BarMemory {
        let memory = SharedMemory::create("bar", length).unwrap();
        let window = memory.map_all(Access::ReadWrite).unwrap();
        window.copy_in(0, &[value; 0x4000]).unwrap();
        BarMemory { bar: 0, offset: 0, length, memory: memory.into(), memory_offset: 0 }
    }

    #[test]
    fn a_window_keeps_its_address_through_going_and_coming() {
        let windows = Windows::new(vec![memory(1, 0x4000)]);
        let mapped = windows.map().unwrap().pop().unwrap();
        let address = mapped.window().address();
        windows.withdraw();
        assert_eq!(mapped.window().read::<u64>(0x3ff8).unwrap(), u64::MAX);
        mapped.window().write(0, 0u32).unwrap();
        let late = windows.map().unwrap().pop().unwrap();
        assert_eq!(late.window().read::<u64>(0).unwrap(), u64::MAX);
        let stale = windows.memory().unwrap().pop().unwrap().map().unwrap();
        assert_eq!(stale.read::<u8>(0).unwrap(), 1);
        windows.restore(vec![memory(2, 0x4000)]).unwrap();
        for window in [&mapped, &late] {
            assert_eq!(window.window().read::<u8>(0).unwrap(), 2);
        }
        assert_eq!(mapped.window().address(), address);
        // What a client still maps of the memory that is gone.
        assert_eq!(stale.read::<u64>(0).unwrap(), u64::MAX);
        assert_eq!(windows.generation(), 1);
    }

    #[test]
    fn memory_that_stayed_is_left_as_it_is() {
        let windows = Windows::new(vec![memory(1, 0x4000)]);
        let same = windows.memory().unwrap();
        windows.withdraw();
        windows.restore(same).unwrap();
        assert_eq!(windows.generation(), 0);
        let window = windows.map().unwrap().pop().unwrap();
        assert_eq!(window.window().read::<u8>(0).unwrap(), 1);
    }

    #[test]
    fn a_large_sparse_bar_that_is_gone_stays_sparse() {
        const SIZE: u64 = 4 << 30;
        let file = SharedMemory::create("bar", SIZE).unwrap();
        let window = file.map_all(Access::ReadWrite).unwrap();
        window.write(SIZE - 8, 7u64).unwrap();
        let bar = BarMemory {
            bar: 0,
            offset: 0,
            length: SIZE,
            memory: file.try_clone().unwrap().into(),
            memory_offset: 0,
        };
        let windows = Windows::new(vec![bar]);
        windows.withdraw();
        windows.restore(vec![memory(2, SIZE)]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(window.read::<u64>(SIZE - 8).unwrap(), u64::MAX);
        let written: u64 = file.written_extents(64).unwrap().iter().map(|one| one.1).sum();
        assert!(written <= 2 << 20, "{written} bytes became real");
    }

    #[test]
    fn other_windows_are_another_device() {
        let windows = Windows::new(vec![memory(1, 0x4000)]);
        windows.withdraw();
        assert_eq!(windows.restore(vec![memory(1, 0x8000)]).unwrap_err().errno(), libc::ENODEV);
        let window = windows.map().unwrap().pop().unwrap();
        assert_eq!(window.window().read::<u8>(0).unwrap(), 0xff);
    }
}
