//! The event stream of `cordon serve`: every kind of event that can be caused from outside is caused, and every
//! line is as docs/events.schema.json and docs/events.md have it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cordon_cli::event::{DeathCause, Event, LimitName, Successor};
use cordon_tests::processes::children;
use cordon_tests::records::{self, Counts, documented_kinds};
use cordon_tests::serve::{self, Serve};
use cordon_tests::vfio_user::{Client, words};
use cordon_tests::{Simulator, announce, eventually, program, signal, verdict};
use cordon_vfio_user::protocol::command::{RESET, SET_IRQS};
use cordon_vfio_user::protocol::flag;
use rustix::process::Signal;

const PROBE: &str = "01:00.1";
/// A command that no server carries out.
const NO_COMMAND: u16 = 99;

/// Kinds that nothing here causes, and what does.
const NOT_CAUSED: &[(&str, &str)] = &[
    ("unread", "hundreds of KiB that nobody reads: console/src/spool.rs"),
    ("delayed", "no descriptor is left: tests/tests/vfio_user/neighbours.rs, by the same reader"),
    ("failed", "a bug of the server: tests/tests/vfio_user/panics.rs"),
    ("forced", "what cannot be stopped in order"),
    ("connection-adopted", "over VFIO only: tests/vfio"),
    ("client-adopted", "over VFIO only: tests/vfio/tests/vfio_guest"),
    ("client-lost", "over VFIO only: tests/vfio/tests/vfio_guest"),
    ("requested", "over VFIO only: tests/vfio"),
    ("unobserved", "a thousand deaths at once: vmm-side/src/observer.rs"),
];

/// What all servers together told.
#[derive(Default)]
struct Tally(Counts);

impl Tally {
    /// Ends a server, and adds what it told.
    fn end(&mut self, mut serve: Serve) -> Vec<Event> {
        let (status, _, events) = serve.end(Signal::TERM);
        assert!(status.success(), "{status}: {events:?}");
        self.add(&serve);
        events
    }

    fn add(&mut self, serve: &Serve) {
        for (kind, count) in serve.records(true) {
            *self.0.entry(kind).or_default() += count;
        }
    }
}

/// Faults before, during and after a request, by a kill and by garbage: so far apart that what one leads to
/// is over when the next one strikes.
fn faults(request: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for when in ["before", "during", "after"] {
        for what in ["kill", "garbage"] {
            let nth = 4 * faults.len() + 1;
            faults.push(format!(
                "function,device={PROBE},request={request},nth={nth},when={when},{what}"
            ));
        }
    }
    faults
}

/// Every request that a client can cause is struck, and each death and each replacement is told.
fn kill_matrix(tally: &mut Tally) {
    for request in ["BarRead", "BarWrite", "Interrupts", "Reset"] {
        strike(tally, request);
    }
}

fn strike(tally: &mut Tally, request: &str) {
    let faults = faults(request);
    let simulator = Simulator::usual();
    let serve = Serve::start_with(&simulator, &[PROBE], |command| {
        for fault in &faults {
            command.args(["--fault", fault]);
        }
    });
    let mut client = serve.client(PROBE);
    client.master_bus();
    let event = ipc::Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    for round in 0..30u8 {
        client.write(0, 0x10, &[round; 4]);
        assert_eq!(client.read(0, 0x10, 4), [round; 4]);
        let install = words(&[20, 0x24, 2, 0, 1]);
        assert_eq!(client.ask(SET_IRQS, &install, &[signaller.as_fd()]).error, 0);
        client.ok(RESET, &[]);
        client.master_bus();
    }
    drop(client);
    let events = tally.end(serve);
    let fired = |event: &Event| match event {
        Event::Fault { process, .. } => *process,
        _ => None,
    };
    let struck: Vec<u32> = events.iter().filter_map(fired).collect();
    assert_eq!(struck.len(), faults.len(), "{events:?}");
    let (mut deaths, mut recovered, mut died) = (0, 0, Vec::new());
    for event in &events {
        match event {
            Event::FunctionDied { death, .. } => {
                deaths += 1;
                died.push(death.process);
                assert!(death.process > 0 && death.why.contains("function process"), "{death:?}");
                let kinds = [DeathCause::Ended, DeathCause::Broken, DeathCause::Overdue];
                assert!(kinds.contains(&death.cause), "{death:?}");
                assert!(death.signal.is_some() || death.exit_code.is_some(), "{death:?}");
                assert!(death.last_request.is_some(), "{death:?}");
            }
            Event::Recovered { generation, microseconds, by, .. } => {
                recovered += 1;
                assert_eq!(*generation, recovered);
                assert!(*microseconds > 0 && *by == Successor::Spawned);
            }
            _ => {}
        }
    }
    // On a machine that is busy with other things one may be found to be overdue besides.
    assert!(struck.iter().all(|process| died.contains(process)), "{struck:?} {died:?}");
    assert_eq!(deaths, recovered, "{events:?}");
    announce(&format!("events, {request} struck: {deaths} deaths, {recovered} recoveries"));
}

/// A process of a running server, by two words of its command line.
fn process(serve: &Serve, role: &str, standby: bool) -> Option<u32> {
    let is_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&role.as_bytes())
            && words.contains(&b"--standby".as_slice()) == standby
    };
    children(serve.pid()).into_iter().find(is_it)
}

/// Whether a standby waits, as the control socket says.
fn has_standby(serve: &Serve) -> bool {
    ctl(serve, &["inspect", PROBE])["standby"] == true
}

/// What `cordon ctl` got done.
fn ctl(serve: &Serve, arguments: &[&str]) -> serde_json::Value {
    let mut command = Command::new(program("cordon"));
    command.args(["ctl", "--json", "--control"]).arg(serve.control()).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What commands of the control socket do.
fn commands(tally: &mut Tally) {
    let simulator = Simulator::usual();
    let serve = Serve::start(&simulator, &[PROBE]);
    let device_proc = program("device-proc");
    ctl(&serve, &["upgrade", "--program", device_proc.to_str().unwrap()]);
    serve.until(|event| matches!(event, Event::Upgraded { upgrades: 1, .. }));
    ctl(&serve, &["detach", PROBE]);
    serve.until(|event| event.name() == "released");
    tally.end(serve);
}

/// Both kinds of process and a standby are killed, and a client comes, goes, and is refused.
fn deaths_and_clients(tally: &mut Tally) {
    let simulator = Simulator::usual();
    let serve = Serve::start_with(&simulator, &[PROBE], |command| {
        command.arg("--standby");
    });
    let mut client = serve.client(PROBE);
    assert!(Client::connect(&serve.socket(PROBE)).is_closed());
    serve.until(|event| event.name() == "busy");
    for _ in 0..500 {
        client.send(NO_COMMAND, flag::COMMAND, &[], &[]);
        assert_ne!(client.receive().1.error, 0);
    }
    serve.until(|event| event.name() == "refused");
    assert!(eventually(|| has_standby(&serve)), "no standby gets ready");
    let standby = process(&serve, "function", true).unwrap();
    signal(standby, Signal::KILL);
    let lost = serve.until(|event| event.name() == "standby-lost");
    let Event::StandbyLost { death, .. } = lost else { panic!("{lost}") };
    assert_eq!(death.process, standby);
    assert!(eventually(|| has_standby(&serve)), "no other standby gets ready");
    signal(process(&serve, "function", false).unwrap(), Signal::KILL);
    let died = serve.until(|event| event.name() == "function-died");
    let Event::FunctionDied { death, .. } = died else { panic!("{died}") };
    assert_eq!(death.signal.as_deref(), Some("SIGKILL"));
    assert!(death.from_outside && death.cause == DeathCause::Ended, "{death:?}");
    let by_standby = |event: &Event| {
        matches!(event, Event::Recovered { by: Successor::Standby, generation: 1, .. })
    };
    serve.until(by_standby);
    signal(process(&serve, "connection", false).unwrap(), Signal::KILL);
    serve.until_all(&["connection-died", "connection-replaced", "away", "back"]);
    // What was asked of the device before it was given up is taken back, which does not work at once.
    let mut next = client;
    assert!(eventually(|| next.read(7, 0, 4) == [0xd0, 0xc0, 0x02, 0x00]));
    next.master_bus();
    next.write(0, 0x10, b"planted!");
    for nth in 1..=8 {
        simulator.fault(&format!("fail:selector=17,nth={nth},code=0xe00002bc"));
    }
    drop(next);
    serve.until(|event| event.name() == "withheld");
    serve.until(|event| event.name() == "available");
    tally.end(serve);
}

/// A function whose process dies again and again is given up, and then there is nothing left.
fn crash_loop(tally: &mut Tally) {
    let simulator = Simulator::usual();
    let mut serve = Serve::start_with(&simulator, &[PROBE], |command| {
        command.args(["--standby", "--exit-when-given-up"]);
    });
    let mut pid = match serve.has_seen(|event| event.name() == "listening") {
        Event::Listening { function_process, .. } => function_process,
        other => panic!("{other}"),
    };
    let begun = Instant::now();
    let mut kills = 0;
    let given_up = loop {
        signal(pid, Signal::KILL);
        kills += 1;
        let next =
            serve.until(|event| matches!(event, Event::Recovered { .. } | Event::GivenUp { .. }));
        match next {
            Event::Recovered { process, .. } => pid = process,
            other => break other,
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{kills} kills");
    };
    assert!(given_up.to_string().contains("times within 10s"), "{given_up}");
    let (status, events) = serve.ended();
    assert_eq!(status.code(), Some(69), "{status}");
    let limit = events.iter().find_map(|event| match event {
        Event::Limit { limit, deaths, milliseconds, .. } => Some((*limit, *deaths, *milliseconds)),
        _ => None,
    });
    assert_eq!(limit, Some((LimitName::Deaths, Some(101), Some(10_000))));
    assert!(events.contains(&Event::NothingLeft));
    tally.add(&serve);
    announce(&format!("events, crash loop: given up after {kills} kills in {:?}", begun.elapsed()));
}

/// Without the process that starts others there is an end in order.
fn spawner_lost(tally: &mut Tally) {
    let simulator = Simulator::usual();
    let mut serve = Serve::start(&simulator, &[PROBE]);
    let spawner = match serve.has_seen(|event| event.name() == "confined") {
        Event::Confined(confinement) => confinement.spawner.unwrap(),
        other => panic!("{other}"),
    };
    signal(spawner, Signal::KILL);
    let (_, events) = serve.ended();
    assert!(events.contains(&Event::SpawnerLost { process: spawner }), "{events:?}");
    tally.add(&serve);
}

#[test]
fn every_event_is_as_documented_and_every_kind_is_caused_or_said_not_to_be() {
    let mut tally = Tally::default();
    kill_matrix(&mut tally);
    deaths_and_clients(&mut tally);
    crash_loop(&mut tally);
    spawner_lost(&mut tally);
    commands(&mut tally);
    let kinds: BTreeSet<String> = documented_kinds().into_iter().collect();
    let seen: BTreeSet<String> = tally.0.keys().cloned().collect();
    let excused: BTreeSet<String> = NOT_CAUSED.iter().map(|(kind, _)| (*kind).to_owned()).collect();
    let total: u64 = tally.0.values().sum();
    verdict(&format!("events: {total} validated, {} kinds of {}", seen.len(), kinds.len()));
    let either: BTreeSet<String> = seen.union(&excused).cloned().collect();
    assert_eq!(either, kinds, "seen {seen:?}");
    assert!(seen.is_disjoint(&excused), "caused after all: {:?}", seen.intersection(&excused));
}

#[test]
fn an_inherited_descriptor_takes_the_stream_and_what_is_too_much_is_counted() {
    let simulator = Simulator::usual();
    let (folder, stream) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = stream.path().join("stream");
    let serve = serve::command(&simulator, folder.path(), &[PROBE]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" --events FD:7 7>>\"$STREAM\""]).env("STREAM", &path);
    shell.arg(serve.get_program()).args(serve.get_args());
    let mut child = shell.stdout(Stdio::null()).spawn().unwrap();
    assert!(eventually(|| folder.path().join("control").exists()), "it does not start");
    for _ in 0..200 {
        let mut client = Client::negotiated(&folder.path().join(PROBE));
        client.send(NO_COMMAND, flag::COMMAND, &[], &[]);
        assert_ne!(client.receive().1.error, 0);
    }
    signal(child.id(), Signal::TERM);
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
    let counts = records::check(&path, true);
    assert_eq!((counts["ready"], counts["stopped"]), (1, 1));
    assert!(counts["attach"] < 200 && counts["left-out"] > 0, "{counts:?}");
}

#[test]
fn a_stream_that_cannot_be_opened_is_an_error_before_anything_starts() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    for (target, why) in [
        ("FD:77", "--events FD:77: this descriptor is not open"),
        ("FD:0", "--events FD:0: this descriptor is not open for writing"),
        ("/no/such/folder/events", "--events /no/such/folder/events: No such file"),
    ] {
        let mut serve: Command = serve::command(&simulator, folder.path(), &[PROBE]);
        let output = serve.args(["--events", target]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && said.lines().count() == 1, "{said}");
        assert!(output.stdout.is_empty());
    }
}
