//! A child that breaks the rules, in the place of `device-proc`: the VMM side must get an error
//! and go on. What it does is its last argument, `--behave=NAME`.
#![allow(clippy::unwrap_used, reason = "a child that fails fails its test")]
#![expect(unsafe_code, reason = "takes over the inherited tube")]

use std::io::Write as _;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use ipc::wire::common::{Failure, FailureKind, Identity};
use ipc::wire::function::{Known, Ready, Request};
use ipc::wire::handshake::{Hello, Role};
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, Tube};

/// What a child says first.
type Started = Result<Ready, Failure>;
/// What it answers to an access.
type Answer = Result<u64, Failure>;

fn main() {
    let behaviour =
        std::env::args().find_map(|one| Some(one.strip_prefix("--behave=")?.to_owned()));
    let behaviour = behaviour.unwrap();
    // SAFETY: descriptor 3 is the tube that the spawner left for us, and nobody else here owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(3) };
    if behaviour == "raw-garbage" {
        rustix::net::send(&fd, &[0xff; 64], rustix::net::SendFlags::empty()).unwrap();
        std::thread::park();
    }
    let mut tube = Tube::from_fd(fd);
    let soon = Deadline::after(Duration::from_secs(5));
    let hello = Hello::ours(Role::Function);
    match behaviour.as_str() {
        "exit-at-once" => std::process::exit(7),
        "say-nothing" => loop {
            std::thread::park();
        },
        "wrong-magic" => tube.send(0, &Hello { magic: 0, ..hello }, &[], soon).unwrap(),
        "wrong-version" => {
            tube.send(0, &Hello { version: 9, oldest: 8, ..hello }, &[], soon).unwrap();
        }
        "wrong-role" => tube.send(0, &Hello { role: Role::Lister, ..hello }, &[], soon).unwrap(),
        _ => {
            tube.handshake(Role::Function, Role::Vmm, soon).unwrap();
            after_handshake(&behaviour, &mut tube, soon);
        }
    }
    loop {
        std::thread::park();
    }
}

fn ready() -> Started {
    let address = "01:00.0".parse().unwrap();
    Ok(Ready {
        identity: Identity { address, vendor: 1, device: 2, class: 3 },
        known: Known::default(),
        msix: None,
        vectors: 0,
        max_read_request: None,
        sandbox: SandboxReport { layers: Vec::new(), syscalls: 0 },
    })
}

fn after_handshake(behaviour: &str, tube: &mut Tube, soon: Deadline) {
    let null = std::fs::File::open("/dev/null").unwrap();
    match behaviour {
        "never-ready" => return,
        "refuse" => {
            let message = "no \x1b[31mdevice\nfor you".to_owned();
            let failure = Failure { kind: FailureKind::NoDevice, code: None, message };
            return tube.send(0, &Started::Err(failure), &[], soon).unwrap();
        }
        "ready-with-descriptors" => {
            return tube.send(0, &ready(), &[null.as_fd()], soon).unwrap();
        }
        "reply-before-ready" => {
            return tube.send(0, &Answer::Ok(7), &[], soon).unwrap();
        }
        _ => tube.send(0, &ready(), &[], soon).unwrap(),
    }
    if behaviour == "chatter" {
        for line in 0..100_000 {
            // The pipe is full when nobody reads as fast; that is the point.
            let _ = writeln!(std::io::stderr(), "line {line} \x1b]0;title\x07");
        }
    }
    loop {
        let request = tube.receive::<Request>(Deadline::after(Duration::MAX)).unwrap();
        let (id, answer) = (request.id, Answer::Ok(7));
        if matches!(request.message, Request::UseLane(_)) {
            // Whoever breaks the rules of a lane is in the suite of lanes; this one is silent in it.
            tube.send(id, &Result::<(), Failure>::Ok(()), &[], soon).unwrap();
            continue;
        }
        match behaviour {
            "exit-in-call" => std::process::exit(9),
            "hang-in-call" => loop {
                std::thread::park();
            },
            "wrong-id" => tube.send(id + 1, &answer, &[], soon).unwrap(),
            "twice" => {
                tube.send(id, &answer, &[], soon).unwrap();
                tube.send(id, &answer, &[], soon).unwrap();
            }
            "ready-again" => tube.send(id, &ready(), &[], soon).unwrap(),
            "garbage-in-call" => tube.send(id, &[0xffu64; 8], &[], soon).unwrap(),
            "descriptors-in-call" => {
                tube.send(id, &answer, &[null.as_fd(); 32], soon).unwrap();
            }
            "wrong-answer" => tube.send(id, &Result::<(), Failure>::Ok(()), &[], soon).unwrap(),
            _ if matches!(request.message, Request::Shutdown(_)) => {
                if behaviour == "ignore-shutdown" {
                    continue;
                }
                tube.send(id, &Result::<(), Failure>::Ok(()), &[], soon).unwrap();
                std::process::exit(0);
            }
            _ if matches!(request.message, Request::Ping(_)) => {
                tube.send(id, &Result::<(), Failure>::Ok(()), &[], soon).unwrap();
            }
            _ => tube.send(id, &answer, &[], soon).unwrap(),
        }
    }
}
