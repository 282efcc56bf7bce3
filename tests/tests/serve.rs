//! `cordon serve` as a service: its events, whoever reads them or does not, and how it ends.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cordon_cli::event::{ClientView, Event, Part};
use cordon_tests::processes::{children, closes_within, full_pipe};
use cordon_tests::serve::{self, Serve};
use cordon_tests::stopwatch::Stopwatch;
use cordon_tests::vfio_user::{Client, words};
use cordon_tests::{
    SetAtEnd, Simulator, address, announce, eventually, is_running, program, signal,
};
use cordon_vfio_user::protocol::{command, flag};
use rustix::process::Signal;
use serde_json::Value;

/// In which every stop must be done.
const STOP: Duration = Duration::from_secs(2);
/// After which nothing more will come.
const LONG: Duration = Duration::from_secs(30);
/// A command that no server carries out.
const NO_COMMAND: u16 = 99;
/// Statuses, as `cordon serve --help` says.
const NOTHING_LEFT: i32 = 69;
const FORCED: i32 = 70;
const UNWRITTEN: i32 = 74;
/// Of config space.
const CONFIG: u32 = 7;

/// Has `count` commands refused.
fn flood(client: &mut Client, count: u64) {
    for _ in 0..count / 50 {
        for _ in 0..50 {
            client.send(NO_COMMAND, flag::COMMAND, &[], &[]);
        }
        for _ in 0..50 {
            assert_ne!(client.receive().1.error, 0);
        }
    }
}

#[test]
fn whoever_floods_is_told_at_a_rate_and_every_refusal_is_counted() {
    const COUNT: u64 = 100_000;
    let simulator = Simulator::usual();
    let mut serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
    let before = Instant::now();
    flood(&mut serve.client("01:00.0"), COUNT);
    let taken = before.elapsed();
    // Another function's client is not held to account for it.
    flood(&mut serve.client("01:00.1"), 50);
    let (status, _, events) = serve.end(Signal::TERM);
    assert!(status.success(), "{status}");
    let told = |of: &str| {
        let refused = |event: &&Event| matches!(event, Event::Refused { device, .. } if *device == address(of));
        events.iter().filter(refused).count() as u64
    };
    let left_out = |of: &str| -> u64 {
        let count = |event: &Event| match event {
            Event::LeftOut { device, part: Part::Function, of: name, count }
                if *device == address(of) && name == "refused" =>
            {
                *count
            }
            _ => 0,
        };
        events.iter().map(count).sum()
    };
    assert_eq!(told("01:00.0") + left_out("01:00.0"), COUNT);
    assert_eq!(told("01:00.1") + left_out("01:00.1"), 50);
    assert!(told("01:00.1") >= 20);
    let most = 20 + u64::try_from(taken.as_millis()).unwrap() / 100 + 1;
    assert!(told("01:00.0") <= most, "{} in {taken:?}", told("01:00.0"));
    announce(&format!(
        "serve: {COUNT} refusals in {taken:?} are {} lines and a count",
        told("01:00.0")
    ));
}

#[test]
fn an_unread_output_holds_up_neither_a_client_nor_the_end() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let mut serve = serve::command(&simulator, folder.path(), &["01:00.0", "01:00.1"]);
    let (unread, output) = full_pipe();
    let (_unread_errors, errors) = full_pipe();
    let mut child = serve.stdout(output).stderr(errors).spawn().unwrap();
    // Its ends of the pipes are its own.
    drop(serve);
    let control = folder.path().join("control");
    assert!(eventually(|| control.exists()), "it does not even start");
    let (floods, slowest) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Also clients that come and go, which are events too.
                flood(&mut Client::negotiated(&folder.path().join("01:00.0")), 500);
                floods.fetch_add(500, Ordering::Relaxed);
            }
        });
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            let stopwatch = Stopwatch::start();
            let mut client = Client::negotiated(&folder.path().join("01:00.1"));
            client.ok(command::GET_INFO, &words(&[16, 0, 0, 0]));
            client.read(CONFIG, 0, 4);
            let taken = u64::try_from(stopwatch.stop().as_millis()).unwrap();
            slowest.fetch_max(taken, Ordering::Relaxed);
        }
        drop(ends);
    });
    let (floods, slowest) = (floods.into_inner(), slowest.into_inner());
    announce(&format!(
        "serve, nobody reads: {floods} refusals, another client at most {slowest} ms"
    ));
    assert!(floods >= 5000, "{floods}");
    assert!(slowest < 1000, "{slowest} ms");
    let stopwatch = Stopwatch::start();
    signal(child.id(), Signal::TERM);
    assert!(closes_within(&unread, LONG));
    let taken = stopwatch.stop();
    assert!(taken < STOP, "{taken:?}");
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(UNWRITTEN), "{status}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    simulator.assert_released("01:00.0");
}

#[test]
fn a_closed_output_is_no_reason_to_stop_and_is_told_in_the_end() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let mut serve = serve::command(&simulator, folder.path(), &["01:00.1"]);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let writer = std::fs::File::from(writer);
    serve.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut serve = serve.spawn().unwrap();
    assert!(eventually(|| folder.path().join("control").exists()));
    for _ in 0..3 {
        Client::negotiated(&folder.path().join("01:00.1")).read(CONFIG, 0, 4);
    }
    signal(serve.id(), Signal::TERM);
    let status = serve.wait().unwrap();
    assert_eq!(status.code(), Some(UNWRITTEN), "{status}");
    simulator.assert_released("01:00.1");
}

#[test]
fn every_signal_stops_it_in_order_and_one_that_was_ignored_stays_ignored() {
    let simulator = Simulator::usual();
    for (with, name) in
        [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT"), (Signal::HUP, "SIGHUP")]
    {
        let mut serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
        let pids = children(serve.pid());
        // The spawner, a connection process and two function processes.
        assert_eq!(pids.len(), 4);
        let (status, taken, events) = serve.end(with);
        assert!(status.success() && taken < STOP, "{status} after {taken:?}");
        let end = [Event::Stopping { signal: Some(name.to_owned()) }, Event::Stopped];
        assert_eq!(events[events.len() - 2..], end);
        assert!(serve.left_no_file() && pids.iter().all(|pid| !is_running(*pid)));
        simulator.assert_released("01:00.0");
    }
    let mut serve = Serve::start_with(&simulator, &["01:00.0"], |command| {
        let serve = std::mem::replace(command, Command::new("sh"));
        command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(serve.get_program());
        command.args(serve.get_args()).stdout(Stdio::piped());
    });
    signal(serve.pid(), Signal::HUP);
    serve.client("01:00.0").read(CONFIG, 0, 4);
    let (status, _, events) = serve.end(Signal::TERM);
    assert!(
        status.success() && events.contains(&Event::Stopping { signal: Some("SIGTERM".into()) })
    );
}

#[test]
fn it_ends_with_a_status_of_its_own_when_everything_was_given_up() {
    everything_is_given_up(|command| {
        command.arg("--exit-when-given-up");
    });
}

#[test]
fn without_a_control_socket_to_revive_them_by_it_ends_when_everything_was_given_up() {
    everything_is_given_up(|command| {
        let mut without = Command::new(command.get_program());
        let mut arguments = command.get_args();
        while let Some(argument) = arguments.next() {
            if argument == "--control" {
                arguments.next();
            } else {
                without.arg(argument);
            }
        }
        *command = without;
    });
}

fn everything_is_given_up(change: impl FnOnce(&mut Command)) {
    let mut simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    let mut serve = Serve::start_with(&simulator, &["01:00.0", "02:00.0"], change);
    let given_up = |of: &'static str| move |event: &Event| matches!(event, Event::GivenUp { device, .. } if *device == address(of));
    // Another device in the place of one: that one does not come back, the other does.
    simulator.kill();
    simulator.replace(&["--device=01:00.0=nvme,size=64M", "--device=02:00.0=probe"]);
    serve.until(given_up("01:00.0"));
    serve.client("02:00.0").read(CONFIG, 0, 4);
    simulator.kill();
    simulator.replace(&["--device=01:00.0=probe", "--device=02:00.0=nvme,size=64M"]);
    let (status, mut events) = serve.ended();
    assert_eq!(status.code(), Some(NOTHING_LEFT), "{status}");
    // How much a busy machine had its client try in vain is told whenever it is known; and the device that was
    // given up first is there again, so that a connection process comes back to it, at any moment.
    events
        .retain(|event| !matches!(event, Event::LeftOut { .. } | Event::ConnectionReplaced { .. }));
    assert_eq!(events.iter().filter(|event| event.name() == "given-up").count(), 2);
    let end = [Event::NothingLeft, Event::Stopping { signal: None }, Event::Stopped];
    assert_eq!(events[events.len() - 3..], end, "{events:?}");
    assert!(serve.left_no_file());
}

/// What `cordon inspect --control` says of the client of a function.
fn client_by_control(simulator: &Simulator, serve: &Serve, device: &str) -> Value {
    let output = Command::new(program("cordon"))
        .args(["inspect", device, "--json", "--dext", &simulator.endpoint(), "--control"])
        .arg(serve.control())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["served"]["client"].clone()
}

#[test]
fn after_the_death_of_a_dext_it_is_told_what_clients_see() {
    for (windows, view, name) in
        [("handed", ClientView::Ones, "ones"), ("trapped", ClientView::Device, "device")]
    {
        let mut simulator = Simulator::usual();
        let mut serve = Serve::start_with(&simulator, &["01:00.1"], |command| {
            command.args(["--windows", windows]);
        });
        assert_eq!(client_by_control(&simulator, &serve, "01:00.1"), "no-client");
        let mut client = serve.client("01:00.1");
        serve.until(|event| event.name() == "attach");
        let identity = client.read(CONFIG, 0, 4);
        assert_eq!(client_by_control(&simulator, &serve, "01:00.1"), "device");
        simulator.kill();
        serve.until(|event| event.name() == "away");
        simulator.restart();
        let back = serve.until(|event| event.name() == "back");
        assert_eq!(back, Event::Back { device: address("01:00.1"), client: view });
        assert_eq!(client_by_control(&simulator, &serve, "01:00.1"), name);
        let expected = if view == ClientView::Device { identity.clone() } else { vec![0xff; 4] };
        assert_eq!(client.read(CONFIG, 0, 4), expected, "{windows}");
        drop(client);
        serve.until(|event| event.name() == "detach");
        let mut next = serve.client("01:00.1");
        serve.until(|event| event.name() == "attach");
        assert_eq!(next.read(CONFIG, 0, 4), identity, "{windows}");
        assert_eq!(client_by_control(&simulator, &serve, "01:00.1"), "device");
        assert!(serve.end(Signal::TERM).0.success());
    }
}

#[test]
fn looking_does_not_disturb_a_start() {
    let simulator = Simulator::usual();
    let (over, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&over);
        let looking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let dext = simulator.endpoint();
                let mut inspect = Command::new(program("cordon"));
                inspect.args(["inspect", "01:00.0", "--dext", &dext]).stdout(Stdio::null());
                assert!(inspect.status().unwrap().success());
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut starts = 0;
        while starts < 5 || looks.load(Ordering::Relaxed) < 10 && !looking.is_finished() {
            starts += 1;
            let mut serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
            assert!(serve.end(Signal::TERM).0.success());
            simulator.assert_released("01:00.0");
        }
        drop(ends);
    });
}

/// A process of a running `cordon serve`.
fn process(serve: u32, role: &str) -> u32 {
    let is_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
    };
    children(serve).into_iter().find(is_it).unwrap()
}

/// Stops `cordon serve` in a state that `change` brings about, and says how that went.
fn stop_in(state: &str, change: impl FnOnce(&Serve, &Simulator) -> Option<Client>) {
    let simulator = Simulator::usual();
    let mut serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
    let pids = children(serve.pid());
    let held = change(&serve, &simulator);
    let (status, taken, events) = serve.end(Signal::TERM);
    signal(simulator.pid(), Signal::CONT);
    drop(held);
    announce(&format!("serve, {state}: stopped in {taken:?}, {status}"));
    assert!(taken < STOP, "{state}: {taken:?}");
    assert_eq!(status.code(), Some(0), "{state}: {status}");
    assert!(!events.contains(&Event::Forced), "{state}: {events:?}");
    assert!(serve.left_no_file(), "{state}");
    let gone = eventually(|| pids.iter().all(|pid| !is_running(*pid)));
    assert!(gone, "{state}: {:?}", pids.iter().filter(|pid| is_running(**pid)).collect::<Vec<_>>());
    simulator.assert_released("01:00.0");
    simulator.assert_released("01:00.1");
}

#[test]
fn it_stops_in_time_while_a_client_is_in_the_middle_of_a_message() {
    stop_in("half a message", |serve, _| {
        let mut client = serve.client("01:00.0");
        serve.until(|event| event.name() == "attach");
        client.send_raw(&[1, 0, 9, 0, 16], &[]);
        // A server that waits for the rest of a message sends nobody else away meanwhile.
        let waits = eventually(|| {
            let mut other = UnixStream::connect(serve.socket("01:00.0")).unwrap();
            other.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            other.read(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        assert!(waits, "the server does not wait");
        Some(client)
    });
}

#[test]
fn it_stops_in_time_while_a_process_is_stopped() {
    for role in ["function", "connection"] {
        stop_in(&format!("{role} process stopped"), |serve, _| {
            signal(process(serve.pid(), role), Signal::STOP);
            None
        });
    }
    stop_in("every process stopped", |serve, _| {
        children(serve.pid()).iter().for_each(|pid| signal(*pid, Signal::STOP));
        None
    });
}

#[test]
fn it_stops_in_time_while_a_client_waits_for_a_stopped_process() {
    stop_in("a request to a stopped process", |serve, _| {
        let mut client = serve.client("01:00.0");
        let mut body = 0u64.to_le_bytes().to_vec();
        body.extend(words(&[CONFIG, 4]));
        for role in ["function", "connection"] {
            signal(process(serve.pid(), role), Signal::STOP);
        }
        client.send(command::REGION_READ, flag::COMMAND, &body, &[]);
        Some(client)
    });
    stop_in("a request to a stopped dext", |serve, simulator| {
        let mut client = serve.client("01:00.0");
        let mut body = 0u64.to_le_bytes().to_vec();
        body.extend(words(&[CONFIG, 4]));
        signal(simulator.pid(), Signal::STOP);
        client.send(command::REGION_READ, flag::COMMAND, &body, &[]);
        Some(client)
    });
}

#[test]
fn it_stops_in_time_while_the_dext_is_stopped() {
    stop_in("dext stopped", |_, simulator| {
        signal(simulator.pid(), Signal::STOP);
        None
    });
}

#[test]
fn it_stops_in_time_while_it_starts() {
    let simulator = Simulator::usual();
    for stopped in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        if stopped {
            signal(simulator.pid(), Signal::STOP);
        }
        let mut serve = serve::command(&simulator, folder.path(), &["01:00.0", "01:00.1"]);
        let (output, writer) = rustix::pipe::pipe().unwrap();
        let mut child = serve.stdout(std::fs::File::from(writer)).spawn().unwrap();
        drop(serve);
        assert!(eventually(|| !children(child.id()).is_empty()));
        let stopwatch = Stopwatch::start();
        signal(child.id(), Signal::TERM);
        assert!(closes_within(&output, LONG));
        let taken = stopwatch.stop();
        let status = child.wait().unwrap();
        assert!([Some(0), Some(FORCED)].contains(&status.code()), "{status}");
        signal(simulator.pid(), Signal::CONT);
        announce(&format!("serve, starting, dext stopped: {stopped}: {taken:?}, {status}"));
        assert!(taken < STOP, "{taken:?}");
        assert_nothing_in(folder.path());
        simulator.assert_released("01:00.0");
    }
}

fn assert_nothing_in(folder: &Path) {
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
