//! A simulated device and small drivers for it, as a VMM's guest would have them: what the demo
//! and the torture drive.

#[cfg(target_os = "linux")]
pub(crate) mod edu;
pub(crate) mod leftovers;
pub(crate) mod nvme;
pub(crate) mod probe;
pub(crate) mod reporter;
pub(crate) mod simulator;
pub(crate) mod storage;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::faults::Faults;
use cordon_vmm::{Function, HostConfig, PassthroughDevice as _, Recovery};
use ipc::event::Signaller;
use ipc::wire::function::InterruptIndex;
use ipc::{Event, Window};

use self::simulator::{Dart, Simulator};
use crate::{Failure, Sandbox, programs};

/// Which programs make up the rig, and how its processes are confined.
#[derive(Debug, Args)]
pub(crate) struct RigOptions {
    /// What is done where a layer of the sandbox is missing.
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        default_value_t = Sandbox::Strict,
        help_heading = "Device processes"
    )]
    sandbox: Sandbox,
    /// The device-proc program; by default the one beside this program.
    #[arg(
        long,
        env = "CORDON_DEVICE_PROC",
        value_name = "FILE",
        help_heading = "Device processes"
    )]
    device_proc: Option<PathBuf>,
    /// The dext-sim program; by default the one beside this program.
    #[arg(long, env = "CORDON_DEXT_SIM", value_name = "FILE", help_heading = "Device processes")]
    dext_sim: Option<PathBuf>,
}

impl RigOptions {
    /// Starts the simulated dext with these devices, and says how processes over it are started.
    pub(crate) fn start(
        &self,
        devices: &[OsString],
        recovery: Recovery,
        faults: Option<Arc<Faults>>,
    ) -> Result<(Simulator, HostConfig), Failure> {
        self.start_on(Dart::Identity, devices, recovery, faults)
    }

    /// How processes are started over something that is there already.
    #[cfg(target_os = "linux")]
    pub(crate) fn over(&self, dext: &str, recovery: Recovery) -> Result<HostConfig, Failure> {
        let device_proc = programs::find("device-proc", self.device_proc.as_deref())?;
        Ok(HostConfig::new(device_proc, dext)
            .with_strict(self.sandbox == Sandbox::Strict)
            .with_recovery(recovery))
    }

    /// [`RigOptions::start`] with a DART of this kind.
    pub(crate) fn start_on(
        &self,
        dart: Dart,
        devices: &[OsString],
        recovery: Recovery,
        faults: Option<Arc<Faults>>,
    ) -> Result<(Simulator, HostConfig), Failure> {
        let device_proc = programs::find("device-proc", self.device_proc.as_deref())?;
        let dext_sim = programs::find("dext-sim", self.dext_sim.as_deref())?;
        let simulator = Simulator::start(&dext_sim, dart, devices)?;
        let config = HostConfig::new(device_proc, simulator.endpoint())
            .with_strict(self.sandbox == Sandbox::Strict)
            .with_recovery(recovery)
            .with_faults(faults);
        Ok((simulator, config))
    }
}

pub(crate) use cordon_testkit::guest::{RAM_BASE, memory};

/// Guest RAM: the data buffer, queues and the probe's buffers.
pub(crate) const RAM: u64 = storage::BUFFER + (16 << 20);
/// I/O queues of the NVMe function.
pub(crate) const QUEUES: usize = 4;

/// The window at the start of BAR 0.
pub(crate) fn register_window(proxy: &Function) -> Result<Window, Failure> {
    let windows = proxy.windows()?;
    let window = windows.iter().find(|window| window.bar == 0 && window.offset == 0);
    Ok(window.ok_or("BAR 0 has no window at its start")?.map()?)
}

/// One event for each of `count` MSI-X vectors.
pub(crate) fn vectors(proxy: &Function, count: usize) -> Result<Vec<Event>, Failure> {
    let events: Vec<Event> = (0..count).map(|_| Event::new()).collect::<Result<_, _>>()?;
    let signallers: Vec<Option<Signaller>> =
        events.iter().map(|event| event.signaller().map(Some)).collect::<Result<_, _>>()?;
    proxy.set_interrupts(InterruptIndex::Msix, InterruptSetup::Assign { start: 0, signallers })?;
    Ok(events)
}

/// A dead process says more than what did not come of it.
pub(crate) fn alive(proxy: &Function) -> Result<(), Failure> {
    match proxy.death() {
        None => Ok(()),
        Some(death) => Err(death.into()),
    }
}
