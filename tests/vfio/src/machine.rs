//! QEMU with the machine in it: its devices, a boot, and what came of it.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::pack::{Initramfs, PackError};
use crate::script::{Ending, Function, MODULES, Report, SCRIPT, Script, Step};

/// How much memory the machine has, in MiB: its files are in it too.
const MEMORY: u32 = 1024;
/// How much of what QEMU and the machine's kernel said is shown of a failure, in lines.
const SHOWN: usize = 40;

/// A device that QEMU emulates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// An NVMe controller with a namespace of so many bytes, all zeroes at first.
    Nvme {
        /// A multiple of 512.
        bytes: u64,
    },
    /// QEMU's device for teaching: registers, DMA, INTx and MSI.
    Edu,
    /// A device whose two functions are NVMe controllers as [`Emulated::Nvme`]. They share an IOMMU group, since
    /// nothing says that they cannot reach each other.
    NvmePair {
        /// Of each; a multiple of 512.
        bytes: u64,
    },
    /// A device whose two functions are Intel 82540EM, conventional ones that the kernel can reset only together. They
    /// share an IOMMU group.
    E1000Pair,
    /// An Intel 82576 with its two functions. Each has an IOMMU group of its own, since the kernel knows that the
    /// functions of that chip cannot reach each other.
    Igb,
}

/// Why a boot says nothing about what should have run in it.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The initramfs cannot be made.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A folder, a disk or QEMU.
    #[error("{0}")]
    Start(&'static str, #[source] io::Error),
    /// The prepared folder lacks something.
    #[error("{} is missing: `cargo xtask guest --prepare` fetches it", .0.display())]
    Prepared(PathBuf),
    /// The machine found that it cannot do what it is there for.
    #[error("The machine cannot be used: {0}\n{1}")]
    Unusable(String, Said),
    /// It did not end in time.
    #[error("The machine was not done after {0:?}, the last that it reported being: {1}\n{2}")]
    Late(Duration, String, Said),
    /// It ended before it was done.
    #[error("The machine ended before it was done, the last that it reported being: {0}\n{1}")]
    Ended(String, Said),
}

/// What QEMU and the machine's kernel said last.
#[derive(Debug)]
pub struct Said {
    qemu: Vec<String>,
    kernel: Vec<String>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (who, lines) in [("QEMU", &self.qemu), ("kernel", &self.kernel)] {
            for line in lines.iter().rev().take(SHOWN).rev() {
                writeln!(f, "  {who}: {line}")?;
            }
        }
        Ok(())
    }
}

/// A machine that is being put together.
#[derive(Debug)]
pub struct Machine {
    prepared: PathBuf,
    devices: Vec<Emulated>,
    initramfs: Initramfs,
    script: Script,
}

impl Machine {
    /// One without devices, from what `cargo xtask guest --prepare` put into a folder.
    #[must_use]
    pub fn new(prepared: &Path) -> Self {
        Self {
            prepared: prepared.to_owned(),
            devices: Vec::new(),
            initramfs: Initramfs::default(),
            script: Script::default(),
        }
    }

    /// Adds a device behind a root port of its own, its functions bound to `vfio-pci`: their addresses.
    pub fn add(&mut self, device: &Emulated) -> Vec<String> {
        let addresses = self.add_unbound(device);
        self.script.bind.extend(addresses.iter().cloned());
        addresses
    }

    /// Adds a device as [`Machine::add`], its functions left to the drivers that the kernel has for them.
    pub fn add_unbound(&mut self, device: &Emulated) -> Vec<String> {
        self.devices.push(device.clone());
        // The firmware numbers buses in the order of their root ports.
        let bus = self.devices.len();
        let functions = match device {
            Emulated::Nvme { .. } | Emulated::Edu => 1,
            Emulated::NvmePair { .. } | Emulated::E1000Pair | Emulated::Igb => 2,
        };
        (0..functions).map(|function| format!("0000:{bus:02x}:00.{function}")).collect()
    }

    /// Binds a function of a device to `vfio-pci` that [`Machine::add_unbound`] added.
    pub fn bind(&mut self, address: &str) {
        self.script.bind.push(address.to_owned());
    }

    /// Packs a program as `/bin/NAME`, with its libraries.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn program(&mut self, program: &Path) -> Result<(), PackError> {
        let name = program.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| PackError::Name(program.to_owned()))?;
        self.initramfs.program(program, &format!("/bin/{name}"))
    }

    /// Packs a file.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn file(&mut self, to: &str, content: Vec<u8>) -> Result<(), PackError> {
        self.initramfs.file(to, content)
    }

    /// Adds what is run next.
    pub fn step(&mut self, step: Step) {
        self.script.steps.push(step);
    }

    /// Boots it with a program of [`crate`] as its init, and waits until every step has ended and it is off. `seen` is
    /// told of each report as it comes.
    ///
    /// # Errors
    /// When it does not start, is not done `within` that time, or ends without having done all.
    pub fn run(
        mut self,
        init: &Path,
        within: Duration,
        mut seen: impl FnMut(&Report),
    ) -> Result<Ran, MachineError> {
        let began = Instant::now();
        let folder = tempfile::tempdir();
        let folder = folder.map_err(|error| MachineError::Start("A temporary folder", error))?;
        self.pack(init, &folder.path().join("initramfs"))?;
        let mut running = self.start(folder.path())?;
        let mut ran = Ran::default();
        let mut last = String::from("nothing");
        let end = loop {
            let left = within.saturating_sub(began.elapsed());
            match running.reports.recv_timeout(left) {
                Ok(Ok(report)) => {
                    seen(&report);
                    last = format!("{report:?}");
                    match report {
                        Report::Done => break Ok(()),
                        Report::Failed { reason } => break Err(Failure::Unusable(reason)),
                        other => ran.take(other),
                    }
                }
                // The firmware's, before the kernel has the port.
                Ok(Err(_)) => {}
                Err(RecvTimeoutError::Timeout) => break Err(Failure::Late),
                Err(RecvTimeoutError::Disconnected) => break Err(Failure::Ended),
            }
        };
        let off = end.is_err() || running.ends(within.saturating_sub(began.elapsed()));
        let end = if off { end } else { Err(Failure::Late) };
        drop(running);
        let said = Said { qemu: lines(&folder, QEMU), kernel: lines(&folder, KERNEL) };
        ran.took = began.elapsed();
        match end {
            Ok(()) => {
                ran.kernel = said.kernel;
                Ok(ran)
            }
            Err(Failure::Unusable(reason)) => Err(MachineError::Unusable(reason, said)),
            Err(Failure::Late) => Err(MachineError::Late(within, last, said)),
            Err(Failure::Ended) => Err(MachineError::Ended(last, said)),
        }
    }

    /// Writes the initramfs.
    fn pack(&mut self, init: &Path, to: &Path) -> Result<(), MachineError> {
        self.initramfs.program(init, "/init")?;
        let modules = self.existing("modules")?;
        let names = std::fs::read_dir(&modules);
        for entry in names.map_err(|error| PackError::Read(modules.clone(), error))?.flatten() {
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| PackError::Name(entry.path()))?;
            self.initramfs.copy(&entry.path(), &format!("{MODULES}/{name}"))?;
        }
        let script =
            serde_json::to_vec(&self.script).map_err(|error| PackError::Write(error.into()))?;
        self.initramfs.file(SCRIPT, script)?;
        let file = File::create(to).map_err(PackError::Write)?;
        Ok(self.initramfs.write(BufWriter::new(file))?)
    }

    /// Something of the prepared folder.
    fn existing(&self, name: &str) -> Result<PathBuf, MachineError> {
        let path = self.prepared.join(name);
        if path.exists() { Ok(path) } else { Err(MachineError::Prepared(path)) }
    }

    /// QEMU, without devices of ours.
    fn qemu(&self, folder: &Path) -> Result<Command, MachineError> {
        let qemu = self.existing("qemu/usr")?;
        let mut command = Command::new(qemu.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(qemu.join("lib/x86_64-linux-gnu"));
        command.arg(qemu.join("bin/qemu-system-x86_64"));
        for data in ["share/qemu", "share/seabios"] {
            command.arg("-L").arg(qemu.join(data));
        }
        let mut kernel_output = std::ffi::OsString::from("file:");
        kernel_output.push(folder.join(KERNEL));
        command
            // An IOMMU that also sees what its guest's own mappings change, and remaps messages: without the latter
            // the kernel lets nobody pass a device on.
            .args(["-accel", "tcg", "-M", "q35,kernel-irqchip=split"])
            .args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
            .args(["-m", &MEMORY.to_string(), "-smp", "2", "-no-reboot"])
            .args(["-nodefaults", "-display", "none"])
            .arg("-serial")
            .arg(kernel_output)
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(self.existing("vmlinuz")?)
            .arg("-initrd")
            .arg(folder.join("initramfs"))
            // The emulated timers are late on a busy machine, which their check takes for broken.
            .args(["-append", "console=ttyS0 quiet panic=-1 intel_iommu=on no_timer_check"]);
        Ok(command)
    }

    fn start(&self, folder: &Path) -> Result<Running, MachineError> {
        let failed = |what| move |error| MachineError::Start(what, error);
        let mut command = self.qemu(folder)?;
        for (number, device) in self.devices.iter().enumerate() {
            let port = format!("port{number}");
            let slot =
                format!("pcie-root-port,id={port},chassis={},addr={:#x}", number + 1, number + 2);
            command.args(["-device", &slot]);
            let two = |kind: &str| {
                // Below a port that knows ARI the next function is the one that the first names.
                let first = ",multifunction=on,x-pcie-ari-nextfn-1=on";
                [(0, first), (1, "")]
                    .map(|(function, more)| format!("{kind},bus={port},addr=0.{function}{more}"))
            };
            match device {
                Emulated::Nvme { bytes } => {
                    let nvme = format!("nvme,bus={port}");
                    add_nvme(&mut command, &nvme, &format!("disk{number}"), *bytes, folder)?;
                }
                Emulated::NvmePair { bytes } => {
                    for (function, nvme) in two("nvme").iter().enumerate() {
                        let disk = format!("disk{number}-{function}");
                        add_nvme(&mut command, nvme, &disk, *bytes, folder)?;
                    }
                }
                Emulated::Edu => drop(command.args(["-device", &format!("edu,bus={port}")])),
                Emulated::E1000Pair => {
                    for e1000 in two("e1000") {
                        // Its ROM is not among what is prepared.
                        command.args(["-device", &format!("{e1000},romfile=")]);
                    }
                }
                Emulated::Igb => {
                    for igb in two("igb") {
                        command.args(["-device", &igb]);
                    }
                }
            }
        }
        let errors = File::create(folder.join(QEMU)).map_err(failed("A temporary file"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(failed("QEMU cannot be started"))?;
        let (sender, reports) = channel();
        if let Some(output) = child.stdout.take() {
            // Ends with QEMU, whose output it is.
            std::thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    if sender.send(serde_json::from_slice(&line)).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Running { child, reports })
    }
}

/// Adds an NVMe controller with a disk of its own, whose name is its serial number too.
fn add_nvme(
    qemu: &mut Command,
    device: &str,
    disk: &str,
    bytes: u64,
    folder: &Path,
) -> Result<(), MachineError> {
    let image = folder.join(disk);
    let made = File::create(&image).and_then(|file| file.set_len(bytes));
    made.map_err(|error| MachineError::Start("A disk of the machine", error))?;
    let node = serde_json::json!({ "driver": "file", "node-name": disk, "filename": image });
    qemu.arg("-blockdev").arg(node.to_string());
    qemu.args(["-device", &format!("{device},serial={disk},drive={disk}")]);
    Ok(())
}

/// What a machine's kernel and QEMU print goes into files of these names.
const KERNEL: &str = "kernel";
const QEMU: &str = "qemu";

fn lines(folder: &tempfile::TempDir, name: &str) -> Vec<String> {
    let bytes = std::fs::read(folder.path().join(name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

enum Failure {
    Unusable(String),
    Late,
    Ended,
}

/// A running QEMU. Dropping it ends it.
struct Running {
    child: Child,
    reports: Receiver<serde_json::Result<Report>>,
}

impl Running {
    /// Whether it ends by itself within this time: its output does with it.
    fn ends(&mut self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of a boot.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// The PCI functions of the machine.
    pub functions: Vec<Function>,
    /// The steps that ended, in their order.
    pub steps: Vec<RanStep>,
    /// What the machine's kernel said on its console: warnings and errors.
    pub kernel: Vec<String>,
    /// How long it took, from packing to power-off.
    pub took: Duration,
}

/// What came of a step.
#[derive(Clone, Debug)]
pub struct RanStep {
    /// Its name.
    pub name: String,
    /// What it printed on standard output.
    pub output: Vec<String>,
    /// What it printed on standard error.
    pub errors: Vec<String>,
    /// How it ended; nothing while it has not.
    pub ending: Option<Ending>,
    /// How long it took.
    pub took: Duration,
    /// Processes that it left running.
    pub left: Vec<String>,
}

impl RanStep {
    /// Whether it exited with 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.ending == Some(Ending::Exited(0))
    }
}

impl Ran {
    /// A step by its name.
    #[must_use]
    pub fn step(&self, name: &str) -> Option<&RanStep> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// A function by its address.
    #[must_use]
    pub fn function(&self, address: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.address == address)
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Ready { functions } => self.functions = functions,
            Report::Started { step } => self.steps.push(RanStep {
                name: step,
                output: Vec::new(),
                errors: Vec::new(),
                ending: None,
                took: Duration::ZERO,
                left: Vec::new(),
            }),
            Report::Line { step, error, text } => {
                if let Some(ran) = self.steps.iter_mut().find(|ran| ran.name == step) {
                    if error { &mut ran.errors } else { &mut ran.output }.push(text);
                }
            }
            Report::Ended { step, how, took, left } => {
                if let Some(ran) = self.steps.iter_mut().find(|ran| ran.name == step) {
                    (ran.ending, ran.took, ran.left) = (Some(how), took, left);
                }
            }
            Report::Failed { .. } | Report::Done => {}
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{}: {:?} after {:?}", step.name, step.ending, step.took)?;
            let output = step.output.iter().map(|line| ("out", line));
            let errors = step.errors.iter().map(|line| ("err", line));
            let left = step.left.iter().map(|line| ("left", line));
            for (what, line) in output.chain(errors).chain(left) {
                writeln!(f, "  {what}: {line}")?;
            }
        }
        self.kernel.iter().try_for_each(|line| writeln!(f, "  kernel: {line}"))
    }
}
