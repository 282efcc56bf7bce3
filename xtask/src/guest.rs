//! What the QEMU suites need, prepared once in `target/guest`: Debian's QEMU with its libraries, a
//! Debian kernel, busybox, and an initramfs with our agent.
//!
//! Packages are fetched by apt into a folder of the project's, with state and cache of their own,
//! and unpacked; nothing is installed, and no root is needed. The mirror is the one that the
//! machine's own apt sources name. Debian 13's backports have the QEMU that knows vfio-user.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use console::complain;

use crate::apt::{self, Apt, Bundle, make, write};
use crate::process::{self, Running};
use crate::{Result, arm64, cargo, target};

/// What was prepared.
pub(crate) struct Prepared {
    pub(crate) folder: PathBuf,
}

/// Changes when what is prepared changes.
const STAMP: &str = "2";
/// Changes when what is taken of the packages of [`SYSTEM`] changes, which are fetched again without the rest.
const SYSTEM_STAMP: &str = "1";
/// The modules of the kernel's VFIO, each after those that it uses.
const VFIO_MODULES: [&str; 6] = [
    "virt/lib/irqbypass",
    "drivers/vfio/vfio",
    "drivers/vfio/vfio_virqfd",
    "drivers/vfio/vfio_iommu_type1",
    "drivers/vfio/pci/vfio-pci-core",
    "drivers/vfio/pci/vfio-pci",
];

const QEMU: Bundle = Bundle {
    name: "qemu",
    suites: &["trixie", "trixie-backports"],
    prefer: "trixie-backports",
    foreign: None,
};
const SYSTEM: Bundle =
    Bundle { name: "system", suites: &["bookworm"], prefer: "bookworm", foreign: None };

/// Prepares everything that is not there yet.
pub(crate) fn prepare() -> Result<Prepared> {
    if std::env::consts::ARCH != "x86_64" {
        return Err("the guest suites need an x86-64 host: the guest is one".into());
    }
    let folder = target().join("guest");
    let (stamp, system_stamp) = (folder.join("stamp"), folder.join("system-stamp"));
    let is = |path: &Path, stamp| std::fs::read_to_string(path).is_ok_and(|found| found == stamp);
    let all = !is(&stamp, STAMP);
    if all || !is(&system_stamp, SYSTEM_STAMP) {
        complain(format_args!("preparing QEMU and a guest in {} (once)", folder.display()));
        let mirror = apt::mirror("")?;
        if all {
            let _ = std::fs::remove_dir_all(&folder);
            qemu(&folder, &mirror)?;
            arm64::prepare(&folder, &mirror)?;
        }
        system(&folder, &mirror)?;
        write(&system_stamp, SYSTEM_STAMP)?;
        write(&stamp, STAMP)?;
    }
    initramfs(&folder)?;
    arm64::initramfs(&folder)?;
    Ok(Prepared { folder })
}

/// QEMU, for x86-64 and arm64 guests, and every library it needs.
fn qemu(folder: &Path, mirror: &str) -> Result {
    let apt = Apt::new(folder, &QEMU, &QEMU.sources(mirror), None)?;
    apt.run(
        "apt-get",
        &["-q", "-y", "--download-only", "install", "qemu-system-x86", "qemu-system-arm"],
    )?;
    let into = folder.join("qemu");
    make(&into)?;
    apt.unpack(&into)
}

/// Kernel, the modules of its VFIO, and busybox.
fn system(folder: &Path, mirror: &str) -> Result {
    let apt = Apt::new(folder, &SYSTEM, &SYSTEM.sources(mirror), None)?;
    let depends = apt.run("apt-cache", &["depends", "linux-image-cloud-amd64"])?;
    let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = kernel.ok_or("linux-image-cloud-amd64 depends on no kernel")?;
    apt.run("apt-get", &["-q", "download", kernel, "busybox-static"])?;
    let into = folder.join("system");
    make(&into)?;
    apt.unpack(&into)?;
    let boot = std::fs::read_dir(into.join("boot")).map_err(|error| error.to_string())?;
    let kernel = boot
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")))
        .ok_or("the kernel package has no kernel")?;
    // A guest of another run may be reading the one that is replaced.
    let copy = |from: &Path, to: &str| -> Result {
        let written = folder.join(format!("{to}.new"));
        std::fs::copy(from, &written).map_err(|error| format!("{}: {error}", from.display()))?;
        Ok(std::fs::rename(&written, folder.join(to))?)
    };
    copy(&kernel, "vmlinuz")?;
    copy(&into.join("bin/busybox"), "busybox")?;
    let versions = std::fs::read_dir(into.join("lib/modules"))?.flatten();
    let version = versions.map(|entry| entry.path()).next().ok_or("the kernel has no modules")?;
    make(&folder.join("modules"))?;
    for (number, module) in VFIO_MODULES.iter().enumerate() {
        let name = module.rsplit('/').next().unwrap_or(module);
        let from = version.join("kernel").join(format!("{module}.ko"));
        // Whoever loads them does so in the order of their names.
        copy(&from, &format!("modules/{number:02}-{name}.ko"))?;
    }
    Ok(std::fs::remove_dir_all(&into)?)
}

/// The agent, linked statically, and busybox.
fn initramfs(folder: &Path) -> Result {
    let triple = "x86_64-unknown-linux-gnu";
    let build = folder.join("agent");
    let mut command = cargo(&["build", "--quiet", "--release", "--package", "guest-agent"]);
    command
        .args(["--target", triple])
        .arg("--target-dir")
        .arg(&build)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    process::quiet("building the guest's agent", &mut command)?;
    let read = |path: PathBuf| std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()));
    let agent = read(build.join(triple).join("release/guest-agent"))?;
    let busybox = read(folder.join("busybox"))?;
    pack(&folder.join("initramfs"), &agent, &busybox, &[])
}

/// A file of an initramfs: its name, and what is in it.
pub(crate) type Packed = (String, Vec<u8>);

/// Writes an initramfs of the agent, busybox, and modules that the agent loads.
pub(crate) fn pack(path: &Path, agent: &[u8], busybox: &[u8], modules: &[Packed]) -> Result {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules"] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, agent);
    archive.add("bin/busybox", 0o100_755, busybox);
    for (name, content) in modules {
        archive.add(&format!("modules/{name}"), 0o100_644, content);
    }
    let written = std::fs::write(path, archive.finish());
    Ok(written.map_err(|error| format!("{}: {error}", path.display()))?)
}

/// An archive of the form that the kernel unpacks: "newc".
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

impl Prepared {
    /// QEMU as it is started: the program, and what must come first on its command line.
    pub(crate) fn qemu(&self) -> Command {
        let qemu = self.folder.join("qemu/usr");
        let library = qemu.join("lib/x86_64-linux-gnu");
        let mut command = Command::new(qemu.join("lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(library)
            .arg(qemu.join("bin/qemu-system-x86_64"))
            .arg("-L")
            .arg(qemu.join("share/qemu"))
            .arg("-L")
            .arg(qemu.join("share/seabios"));
        command
    }
}

/// A folder for the length of a run.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("cordon-guest-{}", std::process::id()));
        make(&path)?;
        Ok(Self(path))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where the programs are: built, unless `CORDON_BIN_DIR` says where, as for the suites.
fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CORDON_BIN_DIR") {
        return Ok(folder.into());
    }
    let mut build = cargo(&["build", "--release", "--quiet", "--workspace", "--bins"]);
    process::quiet("building the programs", &mut build)?;
    Ok(target().join("release"))
}

/// Boots a guest with a prompt on this terminal, an NVMe and a probe function in it. Whatever ends
/// it, nothing is left: what is started is dropped in reverse order, and the folder last.
pub(crate) fn interactive() -> Result {
    let prepared = match std::env::var_os("CORDON_GUEST_DIR") {
        Some(folder) => Prepared { folder: folder.into() },
        None => prepare()?,
    };
    let programs = programs()?;
    let folder = Folder::new()?;
    let mut simulator = Command::new(programs.join("dext-sim"));
    simulator
        .arg("--socket")
        .arg(folder.join("dext"))
        .arg("--exit-with-stdin")
        .args(["--device=01:00.0=nvme,size=256M,queues=4", "--device=01:00.1=probe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut simulator = Running::start("dext-sim", &mut simulator)?;
    wait_for(&folder.join("dext"), &mut simulator)?;
    let mut dext = OsString::from("sim:");
    dext.push(folder.join("dext"));
    let mut server = Command::new(programs.join("cordon"));
    server.arg("serve").arg("--dext").arg(dext).stdin(Stdio::null());
    for (device, name) in [("01:00.0", "nvme"), ("01:00.1", "probe")] {
        server.args(["--device", device, "--socket"]).arg(folder.join(name));
    }
    let mut server = Running::start("cordon serve", &mut server)?;
    wait_for(&folder.join("probe"), &mut server)?;
    let mut qemu = prepared.qemu();
    qemu.args(["-accel", "tcg", "-M", "q35,memory-backend=ram", "-m", "512M", "-smp", "2"])
        .args(["-object", "memory-backend-memfd,id=ram,size=512M,share=on"])
        .args(["-nodefaults", "-nographic", "-serial", "mon:stdio"])
        .arg("-kernel")
        .arg(prepared.folder.join("vmlinuz"))
        .arg("-initrd")
        .arg(prepared.folder.join("initramfs"))
        .args(["-append", "console=ttyS0 quiet panic=-1 cordon.test=shell", "-no-reboot"]);
    for name in ["nvme", "probe"] {
        let path = folder.join(name);
        let path = path.to_str().ok_or("QEMU takes no path that is not text: see TMPDIR")?;
        let socket = serde_json::json!({ "type": "unix", "path": path });
        let device = serde_json::json!({ "driver": "vfio-user-pci", "socket": socket });
        qemu.arg("-device").arg(device.to_string());
    }
    let status = Running::start_in_foreground("QEMU", &mut qemu)?.wait()?;
    if status.success() { Ok(()) } else { Err(format!("QEMU: {status}").into()) }
}

/// Runs a command in the machine with kernel VFIO, as `vfio-run` does, with its arguments.
pub(crate) fn vfio(arguments: &[OsString]) -> Result {
    let folder = folder()?;
    // Not as released: whoever looks into a failure has lines in its traces.
    let mut build = cargo(&["build", "--quiet", "--workspace", "--bins"]);
    process::quiet("building the programs", &mut build)?;
    let mut command = Command::new(target().join("debug/vfio-run"));
    let status =
        process::status("vfio-run", command.arg("--prepared").arg(folder).args(arguments))?;
    if status.success() { Ok(()) } else { Err(format!("vfio-run: {status}").into()) }
}

/// Waits until a program has made its socket.
fn wait_for(path: &Path, program: &mut Running) -> Result {
    for _ in 0..500 {
        if path.exists() {
            return Ok(());
        }
        process::check()?;
        if !program.is_running() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Err(format!("{} did not appear", path.display()).into())
}

/// For the suites: where everything is.
pub(crate) fn folder() -> Result<PathBuf> {
    prepare().map(|prepared| prepared.folder)
}
