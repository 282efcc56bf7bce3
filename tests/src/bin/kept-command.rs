//! `kept-command INSTRUCTION…`: a command for `cordon keep`, which does what its arguments say, in their order.
//!
//! | instruction | what |
//! | --- | --- |
//! | `first:…`, `again:…` | the rest only without, or with, descriptors that were passed on |
//! | `log=FILE` | appends the names of what was passed on as a line, and its own number |
//! | `store=NAME:FILE` | stores FILE, open for appending |
//! | `child-store=NAME:FILE` | has another process try that |
//! | `write=NAME:TEXT` | writes to what was passed on by that name |
//! | `many=N` | stores N files of memory |
//! | `event=NAME`, `raise` | stores an event, and signals it |
//! | `remove=NAME`, `ready` | says so |
//! | `wait=FILE` | until there is such a file |
//! | `pause=MILLISECONDS`, `kill`, `exit=N` | that |
#![allow(clippy::unwrap_used, reason = "what fails here fails its test")]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::{Event, SharedMemory};

fn main() {
    let mut state = State::default();
    for instruction in std::env::args().skip(1) {
        state.obey(&instruction);
    }
}

#[derive(Default)]
struct State {
    event: Option<Event>,
    raise: Option<Signaller>,
}

fn names() -> Vec<String> {
    let is_for_this =
        std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count = std::env::var("LISTEN_FDS").unwrap_or_default();
    let names: Vec<String> = names.split(':').filter(|_| is_for_this).map(str::to_owned).collect();
    assert!(names.is_empty() || names.len().to_string() == count, "{count} of {names:?}");
    names
}

/// What was passed on by a name, by way of the file system.
fn passed(name: &str) -> File {
    let at = names().iter().position(|one| one == name).unwrap();
    let path = format!("/proc/self/fd/{}", 3 + at);
    File::options().append(true).open(path).unwrap()
}

fn tell(text: &str, fd: Option<BorrowedFd<'_>>) {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(std::env::var_os("NOTIFY_SOCKET").unwrap()).unwrap();
    let fds: Vec<_> = fd.into_iter().collect();
    loop {
        match ipc::rights::send(&socket, text.as_bytes(), &fds) {
            Ok(_) => return,
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
}

fn store(name: &str, fd: impl AsFd) {
    tell(&format!("FDSTORE=1\nFDNAME={name}\n"), Some(fd.as_fd()));
}

impl State {
    fn obey(&mut self, instruction: &str) {
        if let Some(rest) = instruction.strip_prefix("first:") {
            return if names().is_empty() {
                self.obey(rest)
            };
        }
        if let Some(rest) = instruction.strip_prefix("again:") {
            return if !names().is_empty() {
                self.obey(rest)
            };
        }
        let (what, with) = instruction.split_once('=').unwrap_or((instruction, ""));
        let (name, rest) = with.split_once(':').unwrap_or((with, ""));
        match what {
            "log" => {
                let mut log = File::options().append(true).create(true).open(with).unwrap();
                writeln!(log, "{} {}", std::process::id(), names().join(" ")).unwrap();
            }
            "store" => {
                let file = File::options().append(true).create(true).open(rest).unwrap();
                store(name, &file);
            }
            "child-store" => {
                let own = std::env::current_exe().unwrap();
                let status = Command::new(own).arg(format!("store={with}")).status();
                assert!(status.unwrap().success());
            }
            "write" => passed(name).write_all(rest.as_bytes()).unwrap(),
            "many" => {
                for number in 0..with.parse::<u32>().unwrap() {
                    let memory: OwnedFd = SharedMemory::create("many", 4096).unwrap().into_fd();
                    store(&format!("many-{number}"), &memory);
                }
            }
            "event" => {
                let event = Event::new().unwrap();
                store(name, &event);
                self.raise = Some(event.signaller().unwrap());
                self.event = Some(event);
            }
            "raise" => self.raise.as_ref().unwrap().signal(),
            "remove" => tell(&format!("FDSTOREREMOVE=1\nFDNAME={with}\n"), None),
            "ready" => tell("READY=1\n", None),
            "wait" => {
                while !Path::new(with).exists() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            "pause" => std::thread::sleep(Duration::from_millis(with.parse().unwrap())),
            "kill" => rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            )
            .unwrap(),
            "exit" => std::process::exit(with.parse().unwrap()),
            other => panic!("no instruction {other}"),
        }
    }
}
