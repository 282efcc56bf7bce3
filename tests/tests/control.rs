//! The control socket of `cordon serve` and `cordon ctl`: what is asked for is done, told and bounded, and a
//! peer that misbehaves costs nobody else anything.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cordon_cli::event::Event;
use cordon_cli::protocol::{Answer, ErrorCode, Outcome};
use cordon_tests::serve::Serve;
use cordon_tests::{Simulator, address, announce, eventually, program, signal};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Region of config space.
const CONFIG: u32 = 7;

/// What `cordon ctl` did: its status, standard output and standard error.
fn ctl(control: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program("cordon"));
    let output = command.arg("ctl").arg("--control").arg(control).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// What `cordon ctl --json` printed of something that was done.
fn done(control: &Path, arguments: &[&str]) -> Value {
    let (status, output, errors) = ctl(control, &[&["--json"], arguments].concat());
    assert_eq!(status, Some(0), "{arguments:?}: {output}{errors}");
    serde_json::from_str(&output).unwrap()
}

/// The code of what `cordon ctl --json` did not get done, and why.
fn refused(control: &Path, arguments: &[&str]) -> (String, String) {
    let (status, output, errors) = ctl(control, &[&["--json"], arguments].concat());
    assert_eq!(status, Some(1), "{arguments:?}: {output}{errors}");
    let error: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(error["type"], "error");
    let message = error["message"].as_str().unwrap().to_owned();
    assert!(errors.contains(&message) && errors.lines().count() == 1, "{errors}");
    (error["code"].as_str().unwrap().to_owned(), message)
}

/// A peer that says what it likes.
struct Peer(BufReader<UnixStream>);

impl Peer {
    fn connect(control: &Path) -> Self {
        let stream = UnixStream::connect(control).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Nothing if the connection ended.
    fn hears(&mut self) -> Option<Answer> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))),
        }
    }

    fn error(&mut self) -> ErrorCode {
        match self.hears().unwrap().outcome {
            Outcome::Error(error) => error.code,
            Outcome::Ok(value) => panic!("{value}"),
        }
    }
}

fn two() -> (Simulator, Serve) {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=1M", "--device=02:00.0=probe"]);
    let serve = Serve::start(&simulator, &["01:00.0", "02:00.0"]);
    (simulator, serve)
}

#[test]
fn a_function_is_detached_and_attached_again_and_its_neighbour_does_not_notice() {
    let (simulator, serve) = two();
    let control = serve.control();
    let mut neighbour = serve.client("02:00.0");
    let mut client = serve.client("01:00.0");
    let identity = client.read(CONFIG, 0, 4);
    for round in 0..5 {
        let gone = done(&control, &["detach", "01:00.0"]);
        assert_eq!((&gone["type"], &gone["state"]), (&"detached".into(), &"detached".into()));
        assert!(client.is_closed(), "round {round}: its client is told");
        assert!(!serve.socket("01:00.0").exists(), "round {round}: its socket is gone");
        simulator.assert_released("01:00.0");
        serve.until(|event| *event == Event::Released { device: address("01:00.0") });
        let all = done(&control, &["list"]);
        let states = [&all["functions"][0]["state"], &all["functions"][1]["state"]];
        assert_eq!(states, ["detached", "served"], "{all}");
        assert_eq!(neighbour.read(CONFIG, 0, 4).len(), 4);
        let back = done(&control, &["attach", "01:00.0"]);
        assert_eq!((&back["type"], &back["state"]), (&"attached".into(), &"served".into()));
        serve.until(|event| event.name() == "listening");
        client = serve.client("01:00.0");
        assert_eq!(client.read(CONFIG, 0, 4), identity);
        neighbour.still_works();
    }
    let text = ctl(&control, &["list"]).1;
    assert!(text.contains("01:00.0 served at ") && text.lines().count() == 2, "{text}");
}

#[test]
fn what_cannot_be_done_is_refused_with_the_object_and_the_reason() {
    let (_simulator, serve) = two();
    let control = serve.control();
    for (arguments, code, says) in [
        (&["detach", "07:00.0"][..], "no-such-device", "07:00.0 is none of the functions"),
        (&["attach", "01:00.0"], "already-attached", "01:00.0 is attached already"),
        (&["revive", "01:00.0"], "not-given-up", "01:00.0 was not given up"),
        (&["inspect", "07:00.0"], "no-such-device", "07:00.0"),
        (&["faults", "--disarm", "0"], "no-faults", "--plan or --fault"),
    ] {
        let (was, why) = refused(&control, arguments);
        assert_eq!(was, code, "{arguments:?}: {why}");
        assert!(why.contains(says), "{arguments:?}: {why}");
    }
    done(&control, &["detach", "01:00.0"]);
    for arguments in [["detach", "01:00.0"], ["inspect", "01:00.0"], ["revive", "01:00.0"]] {
        let (code, why) = refused(&control, &arguments);
        assert_eq!(code, "not-attached", "{why}");
        assert!(why.contains("01:00.0"), "{why}");
    }
    // Nobody there, another program there, and what is no address.
    let nobody = serve.socket("nobody");
    let (status, output, errors) = ctl(&nobody, &["list", "--json"]);
    assert_eq!(status, Some(69), "{errors}");
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap()["code"], "no-server");
    assert!(errors.contains("no cordon serve answers at") && errors.contains("nobody"), "{errors}");
    let (status, _, errors) = ctl(&control, &["detach", "banana"]);
    assert_eq!(status, Some(2), "{errors}");
    let mut command = Command::new(program("cordon"));
    let none = command.args(["ctl", "list"]).env_remove("CORDON_CONTROL").output().unwrap();
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn a_function_that_cannot_be_attached_stays_detached_and_can_be_later() {
    let (mut simulator, serve) = two();
    let control = serve.control();
    done(&control, &["detach", "01:00.0"]);
    simulator.kill();
    let (code, why) = refused(&control, &["attach", "01:00.0"]);
    assert_eq!(code, "failed");
    assert!(why.contains("01:00.0 stays detached: "), "{why}");
    assert_eq!(done(&control, &["list"])["functions"][0]["state"], "detached");
    simulator.restart();
    assert!(eventually(|| ctl(&control, &["attach", "01:00.0"]).0 == Some(0)));
    assert_eq!(serve.client("01:00.0").read(CONFIG, 0, 4).len(), 4);
}

#[test]
fn a_function_that_was_given_up_is_revived() {
    let (mut simulator, serve) = two();
    let control = serve.control();
    let mut client = serve.client("01:00.0");
    simulator.kill();
    // Another device in its place: it does not come back.
    simulator.replace(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    serve.until(|event| event.name() == "given-up");
    assert_eq!(done(&control, &["list"])["functions"][0]["state"], "given-up");
    assert_eq!(client.read(CONFIG, 0, 4), [0xff; 4]);
    let revived = done(&control, &["revive", "01:00.0"]);
    assert_eq!((&revived["type"], &revived["state"]), (&"revived".into(), &"served".into()));
    assert!(client.is_closed());
    assert_ne!(serve.client("01:00.0").read(CONFIG, 0, 4), [0xff; 4]);
    assert_eq!(refused(&control, &["revive", "01:00.0"]).0, "not-given-up");
}

#[test]
fn a_server_whose_functions_were_all_given_up_waits_until_they_are_revived() {
    let mut simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let mut serve = Serve::start(&simulator, &["01:00.0"]);
    let control = serve.control();
    for other in ["--device=01:00.0=nvme,size=64M", "--device=01:00.0=probe"] {
        simulator.kill();
        simulator.replace(&[other]);
        serve.until(|event| event.name() == "given-up");
        serve.until(|event| event.name() == "nothing-left");
        assert_eq!(done(&control, &["list"])["functions"][0]["state"], "given-up");
        assert_eq!(done(&control, &["revive", "01:00.0"])["state"], "served");
        assert_ne!(serve.client("01:00.0").read(CONFIG, 0, 4), [0xff; 4]);
    }
    let (status, _, events) = serve.end(Signal::TERM);
    assert!(status.success(), "{status}");
    // Each time it is told once.
    assert_eq!(events.iter().filter(|event| event.name() == "nothing-left").count(), 2);
}

#[test]
fn a_server_whose_functions_are_all_detached_waits_and_ends_in_order() {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let mut serve = Serve::start(&simulator, &["01:00.0"]);
    done(&serve.control(), &["detach", "01:00.0"]);
    serve.until(|event| event.name() == "released");
    assert_eq!(done(&serve.control(), &["list"])["functions"][0]["state"], "detached");
    let (status, taken, events) = serve.end(Signal::TERM);
    assert!(status.success() && taken < Duration::from_secs(2), "{status} {taken:?} {events:?}");
    assert!(serve.left_no_file());
}

#[test]
fn a_signal_in_the_middle_of_commands_ends_it_in_order() {
    let (simulator, mut serve) = two();
    let control = serve.control();
    std::thread::scope(|scope| {
        for device in ["01:00.0", "02:00.0"] {
            let control = &control;
            scope.spawn(move || {
                // Until nobody answers any more.
                while ctl(control, &["detach", device]).0 != Some(69)
                    && ctl(control, &["attach", device]).0 != Some(69)
                {}
            });
        }
        for _ in 0..4 {
            serve.until(|event| event.name() == "released");
        }
        let (status, taken, events) = serve.end(Signal::TERM);
        assert!(status.success(), "{status} after {taken:?}: {events:?}");
        assert_eq!(events.last(), Some(&Event::Stopped));
    });
    assert!(serve.left_no_file());
    for device in ["01:00.0", "02:00.0"] {
        simulator.assert_released(device);
    }
}

#[test]
fn faults_are_listed_armed_and_disarmed_while_it_serves() {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let planned = "function,device=01:00.0,request=BarWrite,nth=1000000,when=before,kill";
    let serve = Serve::start_with(&simulator, &["01:00.0"], |command| {
        command.args(["--fault", planned]);
    });
    let control = serve.control();
    let listed = done(&control, &["faults"]);
    assert_eq!(listed["faults"].as_array().unwrap().len(), 1);
    let at = |value: &Value, number: usize| value["faults"][number].clone();
    // One that would strike at once, and is disarmed; then one that strikes.
    let read =
        |nth: u32| format!("function,device=01:00.0,request=Statistics,nth={nth},when=before,kill");
    let armed = done(&control, &["faults", "--arm", &read(1)]);
    assert_eq!((&at(&armed, 1)["number"], &at(&armed, 1)["fired"]), (&json!(1), &Value::Null));
    let disarmed = done(&control, &["faults", "--disarm", "1"]);
    assert_eq!(at(&disarmed, 1)["disarmed"], true);
    let write = "function,device=01:00.0,request=ConfigRead,nth=1,when=before,kill";
    done(&control, &["faults", "--arm", write]);
    let before = done(&control, &["inspect", "01:00.0"])["function_process"].clone();
    let mut client = serve.client("01:00.0");
    // What the model of config space does not keep is read from the device.
    let _ = client.read(CONFIG, 0x100, 4);
    assert!(eventually(|| at(&done(&control, &["faults"]), 2)["fired"] == before));
    assert_eq!(at(&done(&control, &["faults"]), 1)["fired"], Value::Null);
    client.still_works();
    let (code, why) = refused(&control, &["faults", "--disarm", "9"]);
    assert_eq!((code.as_str(), why.contains("no fault 9")), ("bad-request", true), "{why}");
    // All or nothing.
    let mut peer = Peer::connect(&control);
    peer.say(&json!({ "command": "faults", "arm": [write, "nonsense"] }).to_string());
    peer.say("\n");
    assert_eq!(peer.error(), ErrorCode::BadRequest);
    assert_eq!(done(&control, &["faults"])["faults"].as_array().unwrap().len(), 3);
    let many = vec![planned; 500];
    let mut codes = Vec::new();
    for _ in 0..4 {
        let line = json!({ "command": "faults", "arm": many }).to_string();
        peer.say(&(line + "\n"));
        codes.push(matches!(peer.hears().unwrap().outcome, Outcome::Ok(_)));
    }
    assert_eq!(codes, [true, true, false, false], "a plan has at most 1024");
}

#[test]
fn garbage_half_a_line_and_an_answer_that_is_not_read_cost_nobody_else_anything() {
    let (_simulator, serve) = two();
    let control = serve.control();
    let mut client = serve.client("01:00.0");
    // Garbage is answered, and the connection goes on.
    let mut garbage = Peer::connect(&control);
    for text in ["\0\0\0\n", "{}\n", "[[[[\n", "{\"command\":\"\u{1b}[2J\"}\n", "\n"] {
        garbage.say(text);
        assert_ne!(garbage.error(), ErrorCode::Failed, "{text:?}");
    }
    garbage.say("{\"id\":\"x\",\"command\":\"list\"}\n");
    assert!(matches!(garbage.hears().unwrap().outcome, Outcome::Ok(_)));
    // Deep nesting is no way to its stack.
    garbage.say(&("{\"id\":".to_owned() + &"[".repeat(60_000) + "\n"));
    assert_eq!(garbage.error(), ErrorCode::BadRequest);
    // A line that never ends is too long; one that stops is waited for for a while.
    let mut long = Peer::connect(&control);
    let _ = long.0.get_mut().write_all(&vec![b'x'; 1 << 20]);
    assert_eq!(long.error(), ErrorCode::TooLong);
    assert!(long.hears().is_none());
    let mut half = Peer::connect(&control);
    half.say("{\"command\":");
    // A peer that asks and asks and never reads.
    let mut deaf = Peer::connect(&control);
    deaf.0.get_mut().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let asks = "{\"command\":\"list\"}\n".repeat(1000);
    while deaf.0.get_mut().write_all(asks.as_bytes()).is_ok() {}
    let begun = Instant::now();
    let asked = done(&control, &["list"]);
    assert_eq!(asked["functions"].as_array().unwrap().len(), 2);
    assert_eq!(client.read(CONFIG, 0, 4).len(), 4);
    announce(&format!("control: asked within {:?} beside three that misbehave", begun.elapsed()));
    assert_eq!(half.error(), ErrorCode::BadRequest);
    assert!(half.hears().is_none());
    // It is sent away in the end: nobody waits for it. What it was answered by then is there.
    let ended = || {
        let stream = deaf.0.get_ref();
        let source = [ipc::poll::Source::hangup(stream, ())];
        !ipc::poll::wait(&source, Some(ipc::Deadline::after(Duration::from_secs(20))))
            .unwrap()
            .is_empty()
    };
    assert!(ended(), "it keeps its place without reading");
    let mut rest = Vec::new();
    if let Err(error) = deaf.0.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "its connection was ended");
    }
}

#[test]
fn peers_by_the_hundred_keep_nobody_out() {
    let (_simulator, serve) = two();
    let control = serve.control();
    let threads = || std::fs::read_dir(format!("/proc/{}/task", serve.pid())).unwrap().count();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", serve.pid())).map(Iterator::count);
    let before = (threads(), open().unwrap_or(0));
    let mut crowd = Vec::new();
    let mut most = 0;
    let begun = Instant::now();
    for number in 0..300 {
        let mut peer = Peer::connect(&control);
        // Of three one says nothing, one half a line, one asks and does not read.
        match number % 3 {
            0 => {}
            1 => peer.0.get_mut().write_all(b"{").unwrap(),
            _ => peer.0.get_mut().write_all(b"{\"command\":\"list\"}\n").unwrap(),
        }
        crowd.push(peer);
        most = most.max(threads());
    }
    let asked = done(&control, &["list"]);
    let taken = begun.elapsed();
    assert_eq!(asked["functions"].as_array().unwrap().len(), 2);
    // One that gave its place up may not have ended yet.
    assert!(most <= before.0 + 40, "{most} threads, {} before", before.0);
    assert!(taken < Duration::from_secs(20), "{taken:?}");
    announce(&format!(
        "control: 300 peers that say nothing of use and one that does: {taken:?}, {most} threads \
         at most, {} before",
        before.0
    ));
    assert_eq!(serve.client("01:00.0").read(CONFIG, 0, 4).len(), 4);
    drop(crowd);
    assert!(eventually(|| threads() <= before.0 + 1 && open().unwrap_or(0) <= before.1 + 3));
}

#[test]
fn one_command_at_a_time_is_at_work_on_a_function() {
    let (simulator, serve) = two();
    let control = serve.control();
    // A process that is stopped has its detach take its time.
    let pid = done(&control, &["inspect", "01:00.0"])["connection_process"].as_u64().unwrap();
    signal(u32::try_from(pid).unwrap(), Signal::STOP);
    let codes: Vec<String> = std::thread::scope(|scope| {
        let ask = || {
            let (_, output, _) = ctl(&control, &["--json", "detach", "01:00.0"]);
            let value: Value = serde_json::from_str(&output).unwrap();
            value["code"].as_str().unwrap_or("done").to_owned()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| *code == "done").count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| ["done", "busy", "not-attached"].contains(&code.as_str())));
    assert!(eventually(|| ctl(&control, &["attach", "01:00.0"]).0 == Some(0)));
    drop(simulator);
}

#[test]
fn the_socket_is_for_whom_the_mode_says() {
    use std::os::unix::fs::PermissionsExt as _;
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let serve = Serve::start_with(&simulator, &["01:00.0"], |command| {
        command.arg("--socket-mode=660");
    });
    for (path, mode) in [(serve.control(), 0o660), (serve.socket("01:00.0"), 0o660)] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
    drop(serve);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    assert_eq!(std::fs::metadata(serve.control()).unwrap().permissions().mode() & 0o777, 0o600);
}
