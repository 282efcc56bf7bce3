//! A running `cordon serve` over a simulated dext, and what it says.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use cordon_tests::{Simulator, program, signal};
use rustix::process::Signal;
use serde_json::Value;

use cordon_tests::machine::{TIMEOUT, device};

/// A running `cordon serve`, and what it logs.
pub(crate) struct Serve {
    pub(crate) child: Child,
    pub(crate) log: Receiver<Value>,
    /// What it says on its standard error.
    pub(crate) errors: Arc<Mutex<Vec<String>>>,
    directory: tempfile::TempDir,
}

impl Serve {
    pub(crate) fn start(simulator: &Simulator, devices: &[&str]) -> Self {
        Self::start_with(simulator, devices, |_, _| {})
    }

    pub(crate) fn start_with(
        simulator: &Simulator,
        devices: &[&str],
        more: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("cordon"));
        command.args(["serve", "--json", "--dext", &simulator.endpoint()]);
        for device in devices {
            command.args(["--device", device, "--socket"]).arg(directory.path().join(device));
        }
        more(&mut command, directory.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (output, said) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&errors);
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let serve = Self { child, log, errors, directory };
        serve.until("ready");
        serve
    }

    /// Serves 01:00.0 to a guest that has it at 00:05.0 and maps on demand by its companion.
    pub(crate) fn start_with_companion(simulator: &Simulator) -> Self {
        Self::start_with(simulator, &["01:00.0"], |command, directory| {
            command.args(["--dma", "companion", "--companion-guest", "00:05.0"]);
            command.arg("--companion-socket").arg(directory.join("companion"));
            command.arg("--control").arg(directory.join("control"));
        })
    }

    /// Both of them as QEMU takes them.
    pub(crate) fn function_and_companion(&self) -> [String; 2] {
        [("01:00.0", "5"), ("companion", "6")].map(|(socket, slot)| {
            let mut device = device(&self.socket(socket), 0);
            device["id"] = format!("slot{slot}").into();
            device["addr"] = slot.into();
            device.to_string()
        })
    }

    pub(crate) fn socket(&self, device: &str) -> PathBuf {
        self.directory.path().join(device)
    }

    /// Waits for a line of the log; what came before it.
    pub(crate) fn until(&self, event: &str) -> Vec<Value> {
        let mut seen = Vec::new();
        loop {
            let line = self.log.recv_timeout(TIMEOUT);
            let line = line.unwrap_or_else(|_| panic!("no {event}, only {seen:?}"));
            if line["event"] == event {
                return seen;
            }
            seen.push(line);
        }
    }

    /// What `cordon inspect` shows of a function that is served with a control socket.
    pub(crate) fn inspect(&self, simulator: &Simulator, device: &str) -> Value {
        let output = Command::new(program("cordon"))
            .args(["inspect", device, "--json", "--dext", &simulator.endpoint(), "--control"])
            .arg(self.socket("control"))
            .output()
            .unwrap();
        let inspection: Value = serde_json::from_slice(&output.stdout).unwrap();
        inspection["served"].clone()
    }

    /// The guest of 01:00.0 is gone: nothing was given up for it, and nothing of it is left when this ends in order.
    pub(crate) fn stop_after_its_guest(self, simulator: &Simulator) {
        let seen = self.until("detach");
        assert!(seen.iter().all(|line| line["event"] != "given-up"), "{seen:?}");
        self.stop();
        simulator.assert_released("01:00.0");
    }

    /// SIGTERM ends it in order.
    pub(crate) fn stop(mut self) {
        signal(self.child.id(), Signal::TERM);
        self.until("stopped");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether an event is that a client was not served.
pub(crate) fn is_refusal(event: &Value) -> bool {
    event["event"] == "refused" || event["event"] == "busy"
}

/// A process among the children of `cordon serve`.
pub(crate) fn process(serve: u32, role: &str, address: &str) -> Option<u32> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{serve}/task")).ok()?.flatten() {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    let address = format!("--address={address}");
    children.into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&role.as_bytes()) && words.contains(&address.as_bytes())
    })
}
