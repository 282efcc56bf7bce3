//! The windows of one function, and where its VMM has them mapped.
//!
//! A VMM maps a window once and gives its address to its hypervisor. When the device goes away,
//! memory of all ones comes under that address, as on a bus where nobody answers; when it comes
//! back, the device's memory does. The same holds while the device decodes no memory (P6.4): with
//! COMMAND.MEM off, in D3hot and during a reset.

use std::sync::{Arc, OnceLock, Weak};

use ipc::{Access, DeviceMemory, SharedMemory, Window};
use parking_lot::{Mutex, MutexGuard};

use crate::device::BarMemory;
use crate::error::DeviceError;
use crate::limits::{MAX_EXTENTS, MAX_FILL};

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

/// Where a window is: its BAR, offset and length.
type Place = (u8, u64, u64);

fn places(memory: &[BarMemory]) -> Vec<Place> {
    memory.iter().map(|one| (one.bar, one.offset, one.length)).collect()
}

#[derive(Debug, Default)]
struct WindowsState {
    /// Of each window, whether or not its memory is there.
    places: Vec<Place>,
    /// Of each window; none while a device is away that its memory would keep from going.
    memory: Vec<BarMemory>,
    mapped: Vec<Weak<GuestWindow>>,
    away: bool,
    /// The device is there and decodes no memory.
    hidden: bool,
    generation: u64,
}

impl WindowsState {
    /// Puts the memory of each window under its mappings; which could not be, and why.
    fn put_under(&self, memory: &[BarMemory]) -> Vec<(u8, ipc::WindowError)> {
        let mut failed = Vec::new();
        for one in self.mapped.iter().filter_map(Weak::upgrade) {
            let of_it = memory.iter().find(|new| (new.bar, new.offset) == (one.bar, one.offset));
            let put = of_it.map(|new| new.memory.put_under(&one.window, new.memory_offset));
            failed.extend(put.and_then(Result::err).map(|error| (one.bar, error)));
        }
        failed
    }

    fn put_ones_under(&self) {
        for one in self.mapped.iter().filter_map(Weak::upgrade) {
            let replaced = ones().map(|ones| one.window.replace_with_copies(ones));
            if !matches!(replaced, Ok(Ok(()))) {
                tracing::error!("a window of BAR {} cannot be withdrawn: {replaced:?}", one.bar);
            }
        }
    }
}

/// All windows of a function.
#[derive(Debug)]
pub(crate) struct Windows(Mutex<WindowsState>);

impl Windows {
    /// As the connection process exported them, and [`crate::window_check`] found good.
    pub(crate) fn new(memory: Vec<BarMemory>) -> Self {
        let places = places(&memory);
        Self(Mutex::new(WindowsState { places, memory, ..WindowsState::default() }))
    }

    fn state(&self) -> MutexGuard<'_, WindowsState> {
        self.0.lock()
    }

    /// Whether a BAR has any.
    pub(crate) fn has(&self, bar: u8) -> bool {
        self.state().places.iter().any(|(of, ..)| *of == bar)
    }

    /// How often the device came back with other memory.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Handles for the memory of each; of a device that is away and whose memory is a part of it, none.
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
        for (number, &(bar, offset, length)) in state.places.iter().enumerate() {
            let window = match state.memory.get(number) {
                Some(memory) => memory.map().map_err(failed)?,
                None => addresses(length)?,
            };
            if state.away || state.hidden {
                window.replace_with_copies(ones).map_err(failed)?;
            }
            all.push(Arc::new(GuestWindow { bar, offset, window }));
        }
        state.mapped.retain(|one| one.strong_count() > 0);
        state.mapped.extend(all.iter().map(Arc::downgrade));
        Ok(all)
    }

    /// The device is away: all ones under every mapping.
    pub(crate) fn withdraw(&self) {
        let mut state = self.state();
        state.away = true;
        state.put_ones_under();
        // A device that somebody has open cannot go.
        if state.memory.iter().any(|one| matches!(one.memory, DeviceMemory::Device(_))) {
            state.memory.clear();
        }
    }

    /// The device is about to decode no memory: all ones under every mapping.
    pub(crate) fn hide(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.hidden, true) && !state.away {
            state.put_ones_under();
        }
    }

    /// It decodes memory again: its memory under every mapping, unless the device is away.
    pub(crate) fn show(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.hidden, false) || state.away {
            return;
        }
        for (bar, error) in state.put_under(&state.memory) {
            tracing::error!("a window of BAR {bar} stays all ones: {}", ipc::chain(&error));
        }
    }

    /// The function is detached: all ones under every mapping for good, and nothing of its memory is held.
    pub(crate) fn end(&self) {
        self.withdraw();
        let mut state = self.state();
        state.memory.clear();
        state.places.clear();
    }

    /// The device is back and decodes its memory, with the same windows: what was checked of the first holds for
    /// these.
    pub(crate) fn restore(&self, memory: Vec<BarMemory>) -> Result<(), DeviceError> {
        let mut state = self.state();
        if places(&memory) != state.places {
            return Err(DeviceError::no_device("it came back with other windows"));
        }
        if let Some((_, error)) = state.put_under(&memory).first() {
            return Err(DeviceError::no_space(ipc::chain(error)));
        }
        let pairs = state.memory.iter().zip(&memory);
        let gone: Vec<&BarMemory> =
            pairs.filter(|(old, new)| !old.is_same_memory(new)).map(|(old, _)| old).collect();
        if !gone.is_empty() || state.memory.len() < memory.len() {
            fill_with_ones(&gone);
            state.generation += 1;
        }
        state.memory = memory;
        (state.away, state.hidden) = (false, false);
        Ok(())
    }
}

/// Addresses for a window whose memory is not there.
fn addresses(length: u64) -> Result<Window, DeviceError> {
    let memory = SharedMemory::create("cordon-away", length);
    let memory = memory.map_err(|error| DeviceError::no_space(error.to_string()))?;
    memory.map_all(Access::ReadWrite).map_err(|error| DeviceError::no_space(ipc::chain(&error)))
}

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
            DeviceMemory::Device(_) | DeviceMemory::Entry(_) | DeviceMemory::Own(_) => continue,
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
        // What a client still maps of the memory that is gone; where the system does not tell which memory is
        // which it is left alone, since it may be the device's.
        let left = if cfg!(target_os = "macos") { 0x0101_0101_0101_0101 } else { u64::MAX };
        assert_eq!(stale.read::<u64>(0).unwrap(), left);
        assert_eq!(windows.generation(), 1);
    }

    #[test]
    fn windows_of_a_device_that_decodes_nothing_read_ones_and_come_back() {
        let windows = Windows::new(vec![memory(1, 0x4000)]);
        let mapped = windows.map().unwrap().pop().unwrap();
        let read = |window: &Arc<GuestWindow>| window.window().read::<u8>(0).unwrap();
        for _ in 0..2 {
            windows.hide();
            windows.hide();
            let late = windows.map().unwrap().pop().unwrap();
            assert_eq!((read(&mapped), read(&late)), (0xff, 0xff));
            windows.show();
            windows.show();
            assert_eq!((read(&mapped), read(&late)), (1, 1));
        }
        // One that went away meanwhile is not shown.
        windows.hide();
        windows.withdraw();
        windows.show();
        assert_eq!(read(&mapped), 0xff);
        windows.restore(vec![memory(2, 0x4000)]).unwrap();
        assert_eq!(read(&mapped), 2);
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

    // It is not filled on macOS.
    #[cfg(target_os = "linux")]
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

    #[cfg(target_os = "linux")]
    #[test]
    fn nothing_is_held_of_a_device_that_is_away_and_that_would_keep_it_from_going() {
        let of_device = |value| {
            let memory = memory(value, 0x4000);
            let file = memory.memory.descriptor().unwrap().try_clone_to_owned().unwrap();
            let device = DeviceMemory::of_device(file).unwrap();
            BarMemory { memory: device, ..memory }
        };
        let windows = Windows::new(vec![of_device(1)]);
        let mapped = windows.map().unwrap().pop().unwrap();
        let read = |window: &GuestWindow| window.window().read::<u8>(0).unwrap();
        assert_eq!((read(&mapped), windows.memory().unwrap().len()), (1, 1));
        windows.withdraw();
        assert_eq!((read(&mapped), windows.memory().unwrap().len()), (0xff, 0));
        assert!(windows.has(0));
        let late = windows.map().unwrap().pop().unwrap();
        assert_eq!((read(&late), late.window().length()), (0xff, 0x4000));
        windows.restore(vec![of_device(2)]).unwrap();
        assert_eq!((read(&mapped), read(&late), windows.generation()), (2, 2, 1));
        windows.end();
        assert!(!windows.has(0) && windows.map().unwrap().is_empty());
    }

    #[test]
    fn other_windows_are_another_device() {
        let windows = Windows::new(vec![memory(1, 0x4000)]);
        windows.withdraw();
        assert_eq!(windows.restore(vec![memory(1, 0x8000)]).unwrap_err().errno(), libc::ENODEV);
        let window = windows.map().unwrap().pop().unwrap();
        assert_eq!(window.window().read::<u8>(0).unwrap(), 0xff);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn of_memory_that_is_gone_so_many_bytes_and_parts_are_filled_and_no_more() {
        let read = |window: &Window, at: u64| window.read::<u64>(at).unwrap();
        let bar = |file: &SharedMemory, length: u64| BarMemory {
            bar: 0,
            offset: 0,
            length,
            memory: file.try_clone().unwrap().into(),
            memory_offset: 0,
        };
        // Written all over, and a little longer than what is filled.
        let length = MAX_FILL + 0x1_0000;
        let file = SharedMemory::create("bar", length).unwrap();
        let window = file.map_all(Access::ReadWrite).unwrap();
        for page in (0..length).step_by(0x1000) {
            window.write(page, 7u64).unwrap();
        }
        fill_with_ones(&[&bar(&file, length)]);
        assert_eq!((read(&window, MAX_FILL - 8), read(&window, MAX_FILL)), (u64::MAX, 7));
        // One written page of every two of the system's huge ones, and one part more than are looked at.
        const APART: u64 = 4 << 20;
        let parts = MAX_EXTENTS as u64 + 1;
        let file = SharedMemory::create("bar", APART * parts).unwrap();
        let window = file.map_all(Access::ReadWrite).unwrap();
        for part in 0..parts {
            window.write(APART * part, 7u64).unwrap();
        }
        fill_with_ones(&[&bar(&file, APART * parts)]);
        let last = APART * (parts - 1);
        assert_eq!((read(&window, last - APART), read(&window, last)), (u64::MAX, 7));
    }
}
