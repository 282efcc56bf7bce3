//! A running `cordon serve`, and the events that it prints.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use cordon_cli::event::Event;
use rustix::process::Signal;

use crate::processes::end_by_hangup;
use crate::records::{self, Counts};
use crate::stopwatch::Stopwatch;
use crate::vfio_user::Client;
use crate::{Simulator, program, signal};

/// How long anything may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running `cordon serve`. Killed on drop.
pub struct Serve {
    child: Child,
    events: Receiver<Event>,
    seen: RefCell<Vec<Event>>,
    directory: tempfile::TempDir,
    /// Where its event stream is.
    stream: tempfile::TempDir,
    /// What became of it was seen.
    over: bool,
}

/// A command that serves `devices` at sockets of their names in `directory`, with a control socket.
#[must_use]
pub fn command(simulator: &Simulator, directory: &Path, devices: &[&str]) -> Command {
    let mut command = Command::new(program("cordon"));
    command.args(["serve", "--json", "--dext", &simulator.endpoint()]);
    command.arg("--control").arg(directory.join("control"));
    for device in devices {
        command.args(["--device", device, "--socket"]).arg(directory.join(device));
    }
    command
}

impl Serve {
    /// Serves `devices`.
    #[must_use]
    pub fn start(simulator: &Simulator, devices: &[&str]) -> Self {
        Self::start_with(simulator, devices, |_| {})
    }

    /// Serves `devices` by a command that was changed before it runs.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start_with(
        simulator: &Simulator,
        devices: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        Self::run(simulator, devices, |mut command| {
            change(&mut command);
            command
        })
    }

    /// Serves `devices` with no more than so many descriptors, soft and hard.
    #[must_use]
    pub fn start_with_descriptors(simulator: &Simulator, devices: &[&str], most: u32) -> Self {
        Self::run(simulator, devices, |command| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]);
            shell.arg(command.get_program()).args(command.get_args());
            shell
        })
    }

    fn run(
        simulator: &Simulator,
        devices: &[&str],
        change: impl FnOnce(Command) -> Command,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stream = tempfile::tempdir().unwrap();
        let mut command = command(simulator, directory.path(), devices);
        command.arg("--events").arg(stream.path().join("events"));
        let mut command = change(command);
        end_by_hangup(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line);
                let _ = sender.send(event.unwrap_or_else(|error| panic!("{line}: {error}")));
            }
        });
        let seen = RefCell::default();
        let serve = Self { child, events, seen, directory, stream, over: false };
        serve.until(|event| *event == Event::Ready);
        serve
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where a device is served.
    #[must_use]
    pub fn socket(&self, device: &str) -> PathBuf {
        self.directory.path().join(device)
    }

    /// Where it says what it serves.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.socket("control")
    }

    /// A client that has negotiated.
    #[must_use]
    pub fn client(&self, device: &str) -> Client {
        Client::negotiated(&self.socket(device))
    }

    /// Waits for another event that `wanted` picks.
    ///
    /// # Panics
    /// When it does not come.
    pub fn until(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let Ok(event) = self.events.recv_timeout(TIMEOUT) else {
                panic!("what was waited for did not come, only {:?}", self.seen.borrow());
            };
            self.seen.borrow_mut().push(event.clone());
            if wanted(&event) {
                return event;
            }
        }
    }

    /// An event that came already.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn has_seen(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        let seen = self.seen.borrow();
        let found = seen.iter().find(|event| wanted(event)).cloned();
        found.unwrap_or_else(|| panic!("it is not among {seen:?}"))
    }

    /// Tells it to end; how it ended, how long that took, and all its events. What counts is when it
    /// closed its output: reaping it is the kernel's, and takes seconds when there is much to reap.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(&mut self, with: Signal) -> (ExitStatus, Duration, Vec<Event>) {
        let stopwatch = Stopwatch::start();
        signal(self.child.id(), with);
        let events = self.rest();
        let taken = stopwatch.stop();
        (self.status(&events), taken, events)
    }

    /// Waits for it to end by itself; how it ended, and all its events.
    ///
    /// # Panics
    /// When it does not end.
    pub fn ended(&mut self) -> (ExitStatus, Vec<Event>) {
        let events = self.rest();
        (self.status(&events), events)
    }

    /// How it ended; its event stream is checked.
    fn status(&mut self, events: &[Event]) -> ExitStatus {
        let status = self.child.wait().unwrap();
        let _ = self.records(events.last() == Some(&Event::Stopped));
        self.over = true;
        status
    }

    /// What its event stream has so far, or in all if it is `complete`, by kind; every line is checked.
    ///
    /// # Panics
    /// When it is not as documented.
    #[must_use]
    pub fn records(&self, complete: bool) -> Counts {
        records::check(&self.stream.path().join("events"), complete)
    }

    /// Waits until there was another event of each of these kinds, in whatever order.
    ///
    /// # Panics
    /// When one does not come.
    pub fn until_all(&self, kinds: &[&str]) {
        let mut open: Vec<&str> = kinds.to_vec();
        while !open.is_empty() {
            let event = self.until(|event| open.contains(&event.name()));
            open.retain(|kind| *kind != event.name());
        }
    }

    /// Waits until it closes its output; all its events.
    fn rest(&self) -> Vec<Event> {
        let mut seen = self.seen.take();
        loop {
            match self.events.recv_timeout(TIMEOUT) {
                Ok(event) => seen.push(event),
                Err(RecvTimeoutError::Disconnected) => return seen,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {seen:?}"),
            }
        }
    }

    /// Whether every socket file of its is gone.
    ///
    /// # Panics
    /// When its folder cannot be read.
    #[must_use]
    pub fn left_no_file(&self) -> bool {
        std::fs::read_dir(self.directory.path()).unwrap().next().is_none()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.over && !std::thread::panicking() {
            let _ = self.records(false);
        }
    }
}
