//! QEMU with a guest, what the guest says, and QEMU's monitor.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::eventually;

/// How long a guest under TCG may take for anything on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(150);

/// Where QEMU, kernel and initramfs are: prepared first unless `CORDON_GUEST_DIR` says where they are.
///
/// # Panics
/// When they cannot be prepared.
#[must_use]
pub fn prepared() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("CORDON_GUEST_DIR") {
            return dir.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["run", "--quiet", "--package", "xtask", "--", "guest", "--prepare"])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "QEMU and a guest cannot be prepared: see above");
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().into()
    })
}

/// A running QEMU and what its guest says. Killed on drop.
pub struct Guest {
    /// QEMU.
    pub child: Child,
    console: Receiver<String>,
    /// What the guest has said so far.
    pub seen: Vec<String>,
    waiting: Option<String>,
    monitor: PathBuf,
    _directory: tempfile::TempDir,
}

/// What a guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// An x86-64 PC with Debian's cloud kernel.
    Pc,
    /// An arm64 machine with Debian's kernel of pages of 4 KiB.
    Arm4K,
    /// The same with one of pages of 16 KiB.
    Arm16K,
}

impl Platform {
    fn program(self) -> &'static str {
        match self {
            Self::Pc => "qemu-system-x86_64",
            Self::Arm4K | Self::Arm16K => "qemu-system-aarch64",
        }
    }

    /// What the names of kernel and initramfs end with.
    fn suffix(self) -> &'static str {
        match self {
            Self::Pc => "",
            Self::Arm4K => "-arm64-4k",
            Self::Arm16K => "-arm64-16k",
        }
    }

    fn console(self) -> &'static str {
        match self {
            Self::Pc => "ttyS0",
            Self::Arm4K | Self::Arm16K => "ttyAMA0",
        }
    }
}

impl Guest {
    /// Boots a PC that carries out `test`, with a `vfio-user-pci` device for each socket and `more`
    /// options of QEMU's.
    ///
    /// # Panics
    /// When there is no QEMU.
    #[must_use]
    pub fn boot(test: &str, machine: &str, sockets: &[PathBuf], more: &[&str]) -> Self {
        Self::boot_with(test, "", machine, sockets, more)
    }

    /// Boots with more words on the kernel's command line.
    ///
    /// # Panics
    /// When there is no QEMU.
    #[must_use]
    pub fn boot_with(
        test: &str,
        kernel: &str,
        machine: &str,
        sockets: &[PathBuf],
        more: &[&str],
    ) -> Self {
        Self::boot_on(Platform::Pc, &format!("{test} {kernel}"), machine, sockets, more)
    }

    /// Boots a guest on `platform`; `test` may be followed by more words for the kernel's command line.
    ///
    /// # Panics
    /// When there is no QEMU.
    #[must_use]
    pub fn boot_on(
        platform: Platform,
        test: &str,
        machine: &str,
        sockets: &[PathBuf],
        more: &[&str],
    ) -> Self {
        Self::boot_by(platform, test, machine, sockets, more, |qemu| qemu)
    }

    /// [`Guest::boot_on`] by the command that `by` makes of QEMU's: its process is the guest's.
    ///
    /// # Panics
    /// When there is no QEMU.
    #[must_use]
    pub fn boot_by(
        platform: Platform,
        test: &str,
        machine: &str,
        sockets: &[PathBuf],
        more: &[&str],
        by: impl FnOnce(Command) -> Command,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let monitor = directory.path().join("qmp");
        let prepared = prepared();
        let qemu = prepared.join("qemu/usr");
        let of_platform = |name: &str| prepared.join(format!("{name}{}", platform.suffix()));
        let mut command = Command::new(qemu.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(qemu.join("lib/x86_64-linux-gnu"));
        command.arg(qemu.join("bin").join(platform.program()));
        for data in ["share/qemu", "share/seabios"] {
            command.arg("-L").arg(qemu.join(data));
        }
        command
            .args(["-accel", "tcg", "-M", &format!("{machine},memory-backend=ram")])
            .args(["-m", "256M", "-smp", "4"])
            .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .arg("-kernel")
            .arg(of_platform("vmlinuz"))
            .arg("-initrd")
            .arg(of_platform("initramfs"))
            .arg("-append")
            .arg(format!("console={} quiet panic=-1 cordon.test={test}", platform.console()))
            .args(more);
        for (number, socket) in sockets.iter().enumerate() {
            command.arg("-device").arg(device(socket, number).to_string());
        }
        let mut child = by(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, console) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
        Self { child, console, seen: Vec::new(), waiting: None, monitor, _directory: directory }
    }

    /// The next line, if one comes in time.
    pub fn line(&mut self, time: Duration) -> Option<String> {
        self.waiting.take().or_else(|| self.console.recv_timeout(time).ok())
    }

    /// Waits for the guest to say how its test went.
    ///
    /// # Panics
    /// When it failed, or does not say.
    pub fn passes(&mut self, test: &str) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(line) = self.line(left) else {
                panic!("the guest does not say how {test} went: {:#?}", self.seen);
            };
            if line.contains(&format!("GUEST-OK {test}")) {
                return;
            }
            assert!(!line.contains("GUEST-FAIL"), "{line}: {:#?}", self.seen);
            self.seen.push(line);
        }
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Panics
    /// When none comes.
    pub fn says(&mut self, text: &str) {
        let end = Instant::now() + TIMEOUT;
        while !self.seen.last().is_some_and(|line| line.contains(text)) {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.console.recv_timeout(left);
            self.seen.push(line.unwrap_or_else(|_| panic!("no {text}: {:#?}", self.seen)));
        }
    }

    /// Whether a line with `text` has come since; what came before it is kept, it is not taken.
    pub fn has_said(&mut self, text: &str) -> bool {
        if self.waiting.is_none() {
            self.waiting = self.console.try_recv().ok();
        }
        match &self.waiting {
            Some(line) if line.contains(text) => true,
            Some(_) => {
                self.seen.extend(self.waiting.take());
                false
            }
            None => false,
        }
    }

    /// The longest request of its load, as it said.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn longest_request(&self) -> Duration {
        let words = |line: &String| {
            let (_, rest) = line.split_once("the longest took ")?;
            rest.split(' ').next()?.parse().ok().map(Duration::from_millis)
        };
        let found = self.seen.iter().find_map(words);
        found.unwrap_or_else(|| panic!("no longest request: {:#?}", self.seen))
    }

    /// Waits for the guest's end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn ends(&mut self) {
        let end = Instant::now() + TIMEOUT;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the guest does not end: {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `vfio-user-pci` device, as QEMU takes it.
#[must_use]
pub fn device(socket: &Path, number: usize) -> Value {
    json!({
        "driver": "vfio-user-pci",
        "id": format!("function{number}"),
        "socket": { "type": "unix", "path": socket },
    })
}

/// QEMU's monitor.
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// The monitor of a guest, ready for commands.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn connect(guest: &Guest) -> Self {
        assert!(eventually(|| guest.monitor.exists()));
        let stream = UnixStream::connect(&guest.monitor).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.line();
        monitor.command(&json!({ "execute": "qmp_capabilities" }));
        monitor
    }

    /// What it says next.
    ///
    /// # Panics
    /// When that is nothing.
    pub fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Has a command carried out.
    ///
    /// # Panics
    /// When it is refused.
    pub fn command(&mut self, command: &Value) {
        self.0.get_mut().write_all(command.to_string().as_bytes()).unwrap();
        loop {
            let line = self.line();
            assert!(line["error"].is_null(), "{command}: {line}");
            if !line["return"].is_null() {
                return;
            }
        }
    }

    /// Waits for an event.
    ///
    /// # Panics
    /// When it does not come.
    pub fn event(&mut self, name: &str) {
        while self.line()["event"] != name {}
    }
}
