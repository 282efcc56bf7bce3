//! The hardware of one function, as its device model, its driver and the DART share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipc::wire::common::BarInfo;
use ipc::{Access, SharedMemory, Window};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::config_space::{BUS_MASTER, ConfigSpace, MEMORY_SPACE, Shape};
use crate::dart::{Dart, DartError};
use crate::faults::Faults;
use crate::interrupts::Interrupts;
use crate::options::DartMode;

/// A BAR and the memory behind it. I/O BARs have none that could be mapped.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) info: BarInfo,
    pub(crate) window: Window,
    pub(crate) memory: SharedMemory,
}

/// One function.
#[derive(Debug)]
pub(crate) struct Hardware {
    config: Mutex<ConfigSpace>,
    pub(crate) bars: [Option<Bar>; 6],
    pub(crate) dart: Dart,
    pub(crate) interrupts: Interrupts,
    /// Nothing moves: the device is gone.
    halted: AtomicBool,
    awake: Mutex<bool>,
    woken: Condvar,
}

impl Hardware {
    pub(crate) fn new(
        shape: &Shape,
        mode: DartMode,
        faults: &Arc<Faults>,
    ) -> std::io::Result<Self> {
        let mut bars = [const { None }; 6];
        for (index, bar) in (0u8..).zip(&shape.bars) {
            // Whole 16 KiB pages behind even the smallest BAR, as a mapping needs.
            let backing = bar.size.next_multiple_of(16 * 1024);
            let memory = SharedMemory::create(&format!("bar{}", bar.number), backing)?;
            let window = memory.map_all(Access::ReadWrite).map_err(std::io::Error::other)?;
            let info = BarInfo { memory_index: index, size: bar.size, kind: bar.kind };
            bars[bar.number] = Some(Bar { info, window, memory });
        }
        Ok(Self {
            config: Mutex::new(ConfigSpace::new(shape)),
            bars,
            dart: Dart::new(mode, shape.serial),
            interrupts: Interrupts::new(Arc::clone(faults)),
            halted: AtomicBool::new(false),
            awake: Mutex::new(false),
            woken: Condvar::new(),
        })
    }

    pub(crate) fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock()
    }

    /// The registers of a device model live in the BAR that it made itself.
    pub(crate) fn registers(&self, bar: usize) -> Option<&Window> {
        self.bars[bar].as_ref().map(|bar| &bar.window)
    }

    /// A reset: all BAR memory is zero.
    pub(crate) fn clear_bars(&self) {
        for bar in self.bars.iter().flatten() {
            if let Err(error) = bar.memory.clear() {
                tracing::error!("BAR memory cannot be cleared: {error}");
            }
        }
    }

    /// Whether the function decodes memory accesses.
    pub(crate) fn memory_enabled(&self) -> bool {
        self.config().command() & MEMORY_SPACE != 0
    }

    /// The device reads memory.
    pub(crate) fn dma_read(&self, bus: u64, into: &mut [u8]) -> Result<(), DartError> {
        self.bus_master()?;
        self.dart.read(bus, into)
    }

    /// The device writes memory.
    pub(crate) fn dma_write(&self, bus: u64, from: &[u8]) -> Result<(), DartError> {
        self.bus_master()?;
        self.dart.write(bus, from)
    }

    fn bus_master(&self) -> Result<(), DartError> {
        let on = self.config().command() & BUS_MASTER != 0;
        if on { Ok(()) } else { Err(DartError::Fault) }
    }

    /// The device fires a vector, if messages leave it at all.
    pub(crate) fn raise(&self, vector: u16) {
        let enabled = self.config().messages_enabled();
        if enabled {
            self.interrupts.raise(vector);
        }
    }

    /// Stops the device model, or lets it go on.
    pub(crate) fn halt(&self, halted: bool) {
        self.halted.store(halted, Ordering::Release);
        self.wake();
    }

    /// Whether the device is gone.
    pub(crate) fn halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// Wakes the device model: a register was written through the driver.
    pub(crate) fn wake(&self) {
        *self.awake.lock() = true;
        self.woken.notify_one();
    }

    /// The device model waits for `wake`, at most `time`: stores to shared registers wake nobody.
    pub(crate) fn wait_for_wake(&self, time: Duration) {
        let mut awake = self.awake.lock();
        self.woken.wait_while_for(&mut awake, |woken| !*woken, time);
        *awake = false;
    }
}
