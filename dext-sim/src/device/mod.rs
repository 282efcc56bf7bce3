//! Device models, and the thread that polls each.
//!
//! A store to a shared BAR makes no noise, so a model looks at its registers: eagerly while there
//! is work, then with pauses of 50 us, which grow to 5 ms as time passes without any, so that many idle
//! devices leave the machine to others. What is written through the driver wakes it at once.

mod nvme;
mod probe;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::PciAddress;
use parking_lot::Mutex;

use crate::config_space::Shape;
use crate::hardware::Hardware;
use crate::options::DeviceKind;
use crate::threads;

/// Between two looks of a model that is idle: a hundredth of the time since it had something to do, and
/// no less or more than this.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// A simulated device.
pub(crate) trait Model: Send {
    /// Looks at the registers and does what they ask for; whether there was anything.
    fn poll(&mut self, hardware: &Hardware) -> bool;

    /// Whether it has something to interrupt for that its driver has not acknowledged yet: what STATUS
    /// shows, whether messages are used or the pin.
    fn asserts(&self, hardware: &Hardware) -> bool;

    /// Back to the state after power-on, registers included.
    fn reset(&mut self, hardware: &Hardware);
}

/// What the config space of a device shows.
pub(crate) fn shape(kind: &DeviceKind) -> Shape {
    match kind {
        DeviceKind::Nvme { queues, .. } => nvme::shape(*queues),
        DeviceKind::Probe { vectors } => probe::shape(*vectors),
    }
}

/// The device itself; `serial` tells it from others of its kind.
pub(crate) fn model(kind: &DeviceKind, serial: u64) -> std::io::Result<Box<dyn Model>> {
    Ok(match kind {
        DeviceKind::Nvme { size, queues, image } => {
            Box::new(nvme::Controller::new(*size, *queues, image.as_deref(), serial)?)
        }
        DeviceKind::Probe { vectors } => Box::new(probe::Probe::new(*vectors)),
    })
}

/// Starts the thread that polls the device.
pub(crate) fn start(
    address: PciAddress,
    hardware: Arc<Hardware>,
    model: Arc<Mutex<Box<dyn Model>>>,
) -> std::io::Result<()> {
    let run = move || {
        let mut last_work = Instant::now();
        loop {
            let busy = !hardware.halted() && model.lock().poll(&hardware);
            if busy {
                last_work = Instant::now();
                continue;
            }
            let idle = last_work.elapsed();
            if idle < Duration::from_micros(100) {
                std::thread::yield_now();
            } else {
                hardware.wait_for_wake((idle / 100).clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
            }
        }
    };
    threads::spawn(format!("device {address}"), run)
}
