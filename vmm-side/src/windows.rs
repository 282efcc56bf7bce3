//! The windows of one function, and where its VMM has them mapped.
//!
//! A VMM maps a window once and gives its address to its hypervisor. When the device goes away,
//! memory of all ones comes under that address, as on a bus where nobody answers; when it comes
//! back, the device's memory does.

use std::sync::{Arc, OnceLock, Weak};

use ipc::{Access, SharedMemory, Window};
use parking_lot::{Mutex, MutexGuard};

use crate::device::BarMemory;
use crate::error::DeviceError;

/// A part of a BAR, mapped at an address that stays the same for as long as the value lives.
#[derive(Debug)]
pub struct GuestWindow {
    /// BAR number.
    pub bar: u8,
    /// Where in the BAR it begins; a multiple of 16 KiB.
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
struct State {
    memory: Vec<BarMemory>,
    mapped: Vec<Weak<GuestWindow>>,
    away: bool,
    generation: u64,
}

/// All windows of a function.
#[derive(Debug)]
pub(crate) struct Windows(Mutex<State>);

impl Windows {
    /// As the connection process exported them.
    pub(crate) fn new(memory: Vec<BarMemory>) -> Self {
        Self(Mutex::new(State { memory, ..State::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
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

    /// The device is back, with the same windows.
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
        let same = state.memory.iter().zip(&memory).all(|(old, new)| old.is_same_memory(new));
        if !same {
            // Whoever still maps what nobody serves any more reads all ones there as well.
            state.memory.iter().for_each(fill_with_ones);
            state.generation += 1;
        }
        state.memory = memory;
        state.away = false;
        Ok(())
    }
}

fn fill_with_ones(memory: &BarMemory) {
    let filled = memory.map().and_then(|window| {
        let ones = vec![0xff; ONES];
        (0..window.length())
            .step_by(ONES)
            .try_for_each(|at| window.copy_in(at as u64, &ones[..ONES.min(window.length() - at)]))
    });
    if let Err(error) = filled {
        tracing::warn!("memory of BAR {} that is gone: {}", memory.bar, ipc::chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(value: u8, length: u64) -> BarMemory {
        let memory = SharedMemory::create("bar", length).unwrap();
        let window = memory.map_all(Access::ReadWrite).unwrap();
        window.copy_in(0, &vec![value; window.length()]).unwrap();
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
    fn other_windows_are_another_device() {
        let windows = Windows::new(vec![memory(1, 0x4000)]);
        windows.withdraw();
        assert_eq!(windows.restore(vec![memory(1, 0x8000)]).unwrap_err().errno(), libc::ENODEV);
        let window = windows.map().unwrap().pop().unwrap();
        assert_eq!(window.window().read::<u8>(0).unwrap(), 0xff);
    }
}
