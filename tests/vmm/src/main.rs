//! A VMM of some hundred lines that links `cordon_vmm`, on alioth's board, vCPUs and PCI bus: KVM on Linux, and
//! compiled for Hypervisor.framework. It runs the firmware in `firmware/` with one function passed through.
//!
//! | file | what a VMM must do |
//! | --- | --- |
//! | `main.rs` | start a host, give it guest memory as it comes, attach, detach |
//! | `function.rs` | config space, BARs and windows on its own bus |
//! | `interrupts.rs` | messages into the hypervisor, pending bits, the INTx line |
//!
//! `devices.rs` and `image.rs` are of the test only.

#![expect(
    clippy::print_stderr,
    reason = "a test program's own words, for whoever reads the suite's output"
)]

#[cfg(target_arch = "x86_64")]
mod devices;
mod function;
#[cfg(target_arch = "x86_64")]
mod image;
mod interrupts;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use alioth::board::{Board, BoardConfig, CpuConfig};
use alioth::hv::Vm;
use alioth::loader::{Executable, Payload};
use alioth::mem::mapped::ArcMemPages;
use alioth::mem::{self, LayoutChanged, MemConfig};
use clap::Parser;
use cordon_vmm::{
    Container, DmaMode, Event, GuestRegion, Host, HostConfig, PciAddress, SharedMemory,
};

use crate::function::{OnBus, PassedThrough};

type Failure = Box<dyn Error + Send + Sync>;

/// Bytes of guest memory.
const RAM: u64 = 64 << 20;

/// Run firmware in a guest with one passed-through function.
#[derive(Parser)]
struct Options {
    /// Where the dext is: sim:PATH or iokit.
    #[arg(long)]
    dext: std::ffi::OsString,
    /// The device-proc program.
    #[arg(long)]
    device_proc: PathBuf,
    /// What the guest runs: on x86-64 a flat image for 1 MiB, on arm64 a Linux kernel.
    #[arg(long)]
    image: PathBuf,
    /// The function, as 01:00.0.
    function: PciAddress,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(target_os = "linux")]
fn run(options: &Options) -> Result<(), Failure> {
    use alioth::hv::{Kvm, KvmConfig};
    use alioth::mem::MemBackend;
    let mem = MemConfig {
        size: RAM,
        backend: MemBackend::Memfd,
        shared: true,
        transparent_hugepage: false,
    };
    drive(options, Board::new(&Kvm::new(KvmConfig::default())?, board_config(mem))?)
}

#[cfg(target_os = "macos")]
fn run(options: &Options) -> Result<(), Failure> {
    use alioth::hv::Hvf;
    eprintln!("test-vmm: every access is trapped: alioth maps device memory executable on macOS");
    // alioth has guest memory without a descriptor only there, so devices cannot reach it.
    let mem = MemConfig { size: RAM, shared: true, ..MemConfig::default() };
    drive(options, Board::new(&Hvf {}, board_config(mem))?)
}

fn board_config(mem: MemConfig) -> BoardConfig {
    BoardConfig { mem, cpu: CpuConfig { count: 1, ..CpuConfig::default() }, coco: None }
}

/// Attaches, runs the guest to its end, detaches.
fn drive<V: Vm + Send + Sync + 'static>(options: &Options, board: Board<V>) -> Result<(), Failure> {
    let board = Arc::new(board);
    let host = Host::new(HostConfig::new(&options.device_proc, &options.dext));
    let container = Arc::new(Container::new(DmaMode::Direct));
    board.memory.register_change_callback(Box::new(Guest(Arc::clone(&container))))?;
    let function = host.attach(options.function, &container, None)?;
    let place = board.pci_bus.reserve(None).ok_or("the bus is full")?;
    #[cfg(target_arch = "x86_64")]
    let messages = board.vm.create_msi_sender()?;
    #[cfg(target_arch = "aarch64")]
    let messages = board.vm.create_msi_sender(place.0.into())?;
    let device = PassedThrough::new(Arc::clone(&function), messages)?;
    board.pci_bus.add(place, Arc::new(OnBus(Arc::clone(&device))));
    let stop = Event::new()?;
    std::thread::scope(|scope| {
        scope.spawn(|| interrupts::serve(&device, &board.memory, &stop));
        let done = start(options, &board, &device);
        if let Ok(stop) = stop.signaller() {
            stop.signal();
        }
        done
    })?;
    host.detach(&function);
    Ok(())
}

/// Runs the guest's one vCPU to its end.
fn start<V: Vm + Send + Sync + 'static>(
    options: &Options,
    board: &Arc<Board<V>>,
    device: &Arc<PassedThrough<V::MsiSender>>,
) -> Result<(), Failure> {
    #[cfg(target_arch = "x86_64")]
    let (_open, executable) = {
        use devices::{ACTIONS, Actions, POWER, Power, SERIAL, Serial};
        let mut ports = board.io_devs.write();
        ports.push((SERIAL, Arc::new(Serial)));
        ports.push((POWER, Arc::new(Power)));
        ports.push((ACTIONS, Arc::new(Actions(Arc::clone(device)))));
        let (open, path) = image::open(&options.image)?;
        (open, Executable::Pvh(path.into()))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let executable = {
        let _ = device;
        Executable::Linux(options.image.clone().into())
    };
    let executable = Some(executable);
    let payload = Payload { firmware: None, executable, initramfs: None, cmdline: None };
    *board.payload.write() = Some(payload);
    let (sender, told) = mpsc::channel();
    let vcpu = {
        let board = Arc::clone(board);
        std::thread::spawn(move || board.run_vcpu(0, sender))
    };
    board.vcpus.write().push(vcpu);
    told.recv()?;
    board.arch_init()?;
    board.boot()?;
    // The end of the vCPU, by whatever.
    let _ = told.recv();
    for vcpu in board.vcpus.write().drain(..) {
        vcpu.join().map_err(|_| "the vCPU panicked")??;
    }
    Ok(())
}

/// Guest memory, for the devices that reach it.
#[derive(Debug)]
struct Guest(Arc<Container>);

impl LayoutChanged for Guest {
    fn ram_added(&self, address: u64, pages: &ArcMemPages) -> mem::Result<()> {
        if let Err(error) = share(&self.0, address, pages) {
            eprintln!("guest memory at {address:#x} is out of reach of devices: {error}");
        }
        Ok(())
    }

    fn ram_removed(&self, address: u64, pages: &ArcMemPages) -> mem::Result<()> {
        let _ = self.0.unmap(address, pages.size());
        Ok(())
    }
}

fn share(container: &Container, address: u64, pages: &ArcMemPages) -> Result<(), Failure> {
    let (descriptor, offset) = pages.fd().ok_or("it has no descriptor")?;
    let (descriptor, size) = (descriptor.try_clone_to_owned()?, pages.size());
    let memory = SharedMemory::from_trusted(descriptor, offset + size)?;
    let memory = Arc::new(memory);
    container.map(GuestRegion { iova: address, size, memory, offset, writable: true })?;
    Ok(())
}
