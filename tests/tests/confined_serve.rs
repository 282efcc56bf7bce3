//! `cordon serve` confines itself: what is forbidden, tried from inside the same confinement; what its
//! spawner does not do, whoever asks; and what is left when either of them is killed.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use cordon_cli::confinement::Confinement;
use cordon_cli::event::Event;
use cordon_tests::processes::children;
use cordon_tests::serve::Serve;
use cordon_tests::{Simulator, eventually, program, signal};
use ipc::wire::handshake::Role;
use ipc::wire::spawn::{self, Grant, Reply, Request};
use ipc::{Deadline, Tube};
use rustix::process::Signal;

const DEVICE: &str = "01:00.1";

/// What a server said of what confines it.
fn confinement(serve: &Serve) -> Confinement {
    match serve.has_seen(|event| matches!(event, Event::Confined(_))) {
        Event::Confined(said) => said,
        other => unreachable!("{other}"),
    }
}

/// What `/proc` says of a process, by the names of `status`.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// The first number of a field that has four.
fn first(field: &str) -> u32 {
    field.split_whitespace().next().unwrap().parse().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The words of a process. One that is about to run its program is of that already, and has none yet.
fn command_line(pid: u32) -> String {
    let mut line = Vec::new();
    eventually(|| {
        line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        !line.is_empty()
    });
    String::from_utf8(line).unwrap().replace('\0', " ")
}

#[test]
fn at_least_25_forbidden_things_are_refused_in_the_server() {
    let probe = program("server-probe");
    let names = Command::new(&probe).arg("list").output().unwrap().stdout;
    let names = String::from_utf8(names).unwrap();
    let (mut refused, mut killed, mut free) = (0, 0, 0);
    for name in names.lines() {
        let ended = Command::new(&probe).args(["confined", name]).status().unwrap();
        match (ended.code(), ended.signal()) {
            (Some(10), None) => refused += 1,
            // The C library goes on without it.
            (Some(11), None) => assert_eq!(name, "clone3"),
            (None, Some(libc::SIGSYS)) => killed += 1,
            _ => panic!("{name} came to {ended} in the confined server"),
        }
        let unconfined = Command::new(&probe).args(["free", name]).status().unwrap();
        if unconfined.code() == Some(0) {
            free += 1;
        }
    }
    let tried = names.lines().count();
    cordon_tests::announce(&format!(
        "confined serve: {tried} tried, {refused} refused, {killed} kill; unconfined {free} work"
    ));
    assert!(tried >= 25 && killed >= 20 && refused >= 25, "{tried} {refused} {killed}");
    // So that it is the confinement and nothing else that refuses them. An ordinary user is refused
    // some of them anyhow.
    assert!(free >= if is_root() { 50 } else { 35 }, "{free}");
    let works = Command::new(&probe).args(["confined", "works"]).status().unwrap();
    assert_eq!(works.code(), Some(0), "what the server needs does not work: {works}");
}

#[test]
fn a_running_server_has_nothing_and_says_so() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let serve = Serve::start(&simulator, &[DEVICE]);
    let said = confinement(&serve);
    assert_eq!(said.process, serve.pid());
    assert!(said.layers.len() >= 14, "{said}");
    for layer in &said.layers {
        assert_ne!(layer.state, "MISSING", "{}: {}", layer.name, layer.detail);
    }
    let seen = status(serve.pid());
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&seen[set], 16).unwrap(), 0, "{set}");
    }
    assert_eq!((&*seen["NoNewPrivs"], &*seen["Seccomp"]), ("1", "2"));
    assert!(seen["Seccomp_filters"].parse::<u32>().unwrap() >= 3);
    // Whoever may look sees an empty root, and other namespaces.
    if is_root() {
        let root = std::fs::read_dir(format!("/proc/{}/root/", serve.pid())).unwrap();
        assert_eq!(root.count(), 0);
        for kind in ["user", "mnt", "net", "ipc", "uts"] {
            let link = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap();
            assert_ne!(link(&serve.pid().to_string()), link("self"), "{kind}");
        }
    }
    // All threads alike: the main one is not the only one that was confined.
    for task in std::fs::read_dir(format!("/proc/{}/task", serve.pid())).unwrap() {
        let task = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(task.contains("Seccomp:\t2"), "{task}");
    }
}

#[test]
fn what_confines_a_server_can_be_inspected() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let serve = Serve::start(&simulator, &[DEVICE]);
    let inspect = |more: &[&str]| {
        let mut command = Command::new(program("cordon"));
        command.args(["inspect", &serve.pid().to_string()]).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let control = serve.control();
    let control = control.to_str().unwrap();
    let json = inspect(&["--json", "--control", control]);
    let seen: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&seen["type"], &seen["process"]), (&"process".into(), &serve.pid().into()));
    let system = &seen["system"];
    assert_eq!(
        (&system["capabilities"], &system["no_new_privileges"]),
        (&"none".into(), &true.into())
    );
    assert!(system["filters"].as_u64().unwrap() >= 3, "{system}");
    if is_root() {
        assert_eq!(system["user"], 2_000_000_000 + serve.pid());
        assert_eq!(system["root"], "empty");
        let namespaces = system["namespaces"].as_array().unwrap();
        let own = namespaces.iter().filter(|one| one["whose"] == "its own").count();
        assert_eq!((namespaces.len(), own), (6, 5), "{system}");
    }
    let layers = seen["said"]["layers"].as_array().unwrap();
    let landlock = layers.iter().find(|layer| layer["name"] == "landlock").unwrap();
    assert_ne!(landlock["state"], "MISSING", "{landlock}");
    let text = inspect(&["--control", control]);
    assert!(text.contains("capabilities: none") && text.contains("As it says itself"), "{text}");
    assert!(inspect(&[]).contains("system calls: filtered"));
    // One that is not confined is seen as such; and a server speaks for itself only.
    let own = std::process::id().to_string();
    let mut command = Command::new(program("cordon"));
    let of_other = command.args(["inspect", &own, "--control", control]).output().unwrap();
    assert_eq!(of_other.status.code(), Some(1));
    let unconfined = Command::new(program("cordon")).args(["inspect", &own]).output().unwrap();
    let unconfined = String::from_utf8(unconfined.stdout).unwrap();
    // A container may have a filter over everything.
    let filtered = status(std::process::id())["Seccomp"] != "0";
    assert_eq!(unconfined.contains("system calls: NOT filtered"), !filtered, "{unconfined}");
}

#[test]
fn nothing_that_serves_is_root_outside() {
    if !is_root() {
        cordon_tests::announce("users of a server: 0 of 1 case tried, since this is not root");
        return;
    }
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let chosen = |command: &mut Command| {
        command.args(["--uid=2100000001", "--gid=2100000002"]);
    };
    for named in [false, true] {
        let serve = if named {
            Serve::start_with(&simulator, &[DEVICE], chosen)
        } else {
            Serve::start(&simulator, &[DEVICE])
        };
        let own = 2_000_000_000 + serve.pid();
        let expected = if named { (2_100_000_001, 2_100_000_002) } else { (own, own) };
        let said = confinement(&serve);
        let devices: Vec<u32> =
            children(serve.pid()).into_iter().filter(|pid| Some(*pid) != said.spawner).collect();
        assert_eq!(devices.len(), 2, "a function and a connection process");
        for pid in devices.into_iter().chain([serve.pid()]) {
            let status = status(pid);
            for (ids, expected) in [("Uid", expected.0), ("Gid", expected.1)] {
                let all: Vec<u32> =
                    status[ids].split_whitespace().map(|id| id.parse().unwrap()).collect();
                assert_eq!(all, [expected; 4], "{ids} of {pid}");
            }
            assert_eq!(status["Groups"], "", "{pid}");
        }
        // A client that is root, or the socket's owner, is served as ever.
        let mut client = serve.client(DEVICE);
        assert_eq!(client.read(7, 0, 2).len(), 2);
        // And a process that was killed is replaced, as the same user.
        let killed = children(serve.pid()).into_iter().filter(|pid| Some(*pid) != said.spawner);
        killed.for_each(|pid| signal(pid, Signal::KILL));
        assert!(eventually(|| {
            let now = children(serve.pid());
            let users = now.iter().filter(|pid| Some(**pid) != said.spawner);
            let users: Vec<u32> = users
                .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok())
                .filter_map(|text| Some(first(text.split_once("Uid:")?.1)))
                .collect();
            users == [expected.0; 2]
        }));
    }
    for wrong in ["--uid=0", "--gid=0"] {
        let mut command =
            cordon_tests::serve::command(&simulator, std::path::Path::new("/tmp"), &[DEVICE]);
        let refused = command.arg(wrong).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("nothing would be given up"), "{said}");
    }
    cordon_tests::announce("users of a server: 1 of 1 case tried");
}

#[test]
fn sockets_are_for_whom_they_were_said_to_be() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let mode = |serve: &Serve| {
        let file = std::fs::metadata(serve.socket(DEVICE)).unwrap();
        file.permissions().mode() & 0o777
    };
    assert_eq!(mode(&Serve::start(&simulator, &[DEVICE])), 0o600);
    let group = rustix::process::getegid().as_raw();
    let serve = Serve::start_with(&simulator, &[DEVICE], |command| {
        command.arg("--socket-mode=660").arg(format!("--socket-group={group}"));
    });
    assert_eq!(mode(&serve), 0o660);
}

#[test]
fn a_server_whose_spawner_is_killed_says_so_and_ends() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let mut serve = Serve::start(&simulator, &[DEVICE]);
    let said = confinement(&serve);
    let spawner = said.spawner.unwrap();
    let all = children(serve.pid());
    assert!(all.contains(&spawner) && all.len() == 3, "{all:?}");
    signal(spawner, Signal::KILL);
    let (ended, events) = serve.ended();
    assert_eq!(ended.code(), Some(1), "{events:?}");
    let lost = events.iter().position(|event| *event == Event::SpawnerLost { process: spawner });
    let stopped = events.iter().position(|event| *event == Event::Stopped);
    assert!(lost.is_some() && lost < stopped, "{events:?}");
    assert!(all.iter().all(|pid| is_gone(*pid)), "{all:?}");
}

#[test]
fn a_spawner_that_is_stopped_goes_on_when_it_is_needed() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let mut serve = Serve::start(&simulator, &[DEVICE]);
    let said = confinement(&serve);
    let (server, spawner) = (serve.pid(), said.spawner.unwrap());
    let function = || {
        let is_it = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"function")
        };
        children(server).into_iter().find(is_it)
    };
    for _ in 0..3 {
        let before = function().unwrap();
        signal(spawner, Signal::STOP);
        signal(before, Signal::KILL);
        assert!(eventually(|| function().is_some_and(|now| now != before)));
    }
    signal(spawner, Signal::STOP);
    let (status, taken, _) = serve.end(Signal::TERM);
    assert!(status.success() && taken < Duration::from_secs(2), "{status} after {taken:?}");
    assert!(serve.left_no_file());
}

#[test]
fn nothing_is_left_of_a_server_that_is_killed_and_signals_do_not_end_its_spawner() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let serve = Serve::start(&simulator, &[DEVICE]);
    let said = confinement(&serve);
    let spawner = said.spawner.unwrap();
    // As a service manager stops a service: all of its processes are told at once.
    for number in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal(spawner, number);
    }
    std::thread::sleep(Duration::from_millis(100));
    let all = children(serve.pid());
    assert!(all.len() == 3 && !is_gone(spawner), "{all:?}");
    // One that is stopped goes too.
    signal(spawner, Signal::STOP);
    signal(serve.pid(), Signal::KILL);
    assert!(eventually(|| all.iter().all(|pid| is_gone(*pid))), "{all:?}");
}

fn is_gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// A spawner, as a server that was taken over has it: a tube to say anything by.
struct Attacked {
    tube: Tube,
    process: std::process::Child,
    _folder: tempfile::TempDir,
}

impl Attacked {
    fn start(simulator: &Simulator) -> Self {
        Self::start_with(simulator, false)
    }

    /// One that may be given other programs, or not.
    fn start_with(simulator: &Simulator, programs: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut tube, theirs) = Tube::pair().unwrap();
        let process = Command::new(program("cordon"))
            .arg("spawner")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let deadline = Deadline::after(Duration::from_secs(20));
        tube.handshake(Role::Vmm, Role::Spawner, deadline).unwrap();
        let config = cordon_vmm::HostConfig::new(program("device-proc"), simulator.endpoint());
        let socket = folder.path().join("socket");
        let grant = Grant {
            sockets: vec![socket.into_os_string().into_encoded_bytes()],
            programs,
            ..config.grant(&[DEVICE.parse().unwrap()])
        };
        tube.send(0, &grant, &[], deadline).unwrap();
        let granted = tube.receive::<Reply>(deadline).unwrap();
        assert_eq!(granted.message, Reply::Granted);
        Self { tube, process, _folder: folder }
    }

    /// What it answers.
    fn ask(
        &mut self,
        message: &impl serde::Serialize,
        handles: &[&OwnedFd],
    ) -> (Reply, Vec<OwnedFd>) {
        let handles: Vec<_> = handles.iter().map(|fd| fd.as_fd()).collect();
        let deadline = Deadline::after(Duration::from_secs(20));
        self.tube.send(7, message, &handles, deadline).unwrap();
        let received = self.tube.receive::<Reply>(deadline).unwrap();
        assert_eq!(received.id, 7);
        (received.message, received.handles.collect())
    }

    fn refusal(&mut self, message: &impl serde::Serialize, handles: &[&OwnedFd]) -> String {
        match self.ask(message, handles) {
            (Reply::Refused(why), handles) if handles.is_empty() => why,
            (other, _) => panic!("{other:?}"),
        }
    }
}

impl Drop for Attacked {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn connection(address: &str) -> Request {
    Request::Start { address: address.parse().unwrap(), role: spawn::Role::Connection, program: 0 }
}

#[test]
fn a_spawner_starts_nothing_but_the_processes_of_its_functions() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=1M", "--device=01:00.1=probe"]);
    let mut spawner = Attacked::start(&simulator);
    let (_read, stderr) = rustix::pipe::pipe().unwrap();
    let (_ours, theirs) = Tube::pair().unwrap();
    let tube = OwnedFd::from(theirs);
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let both = [&stderr, &tube];
    // Another function, and none.
    for address in ["01:00.0", "ff:1f.7"] {
        assert!(spawner.refusal(&connection(address), &both).contains("none of the functions"));
    }
    // Descriptors that are missing, too many, or of another kind.
    for handles in
        [&[][..], &both[..1], &[&stderr, &tube, &tube], &[&tube, &stderr], &[&null, &tube]]
    {
        assert!(!spawner.refusal(&connection(DEVICE), handles).is_empty());
    }
    // Sockets that were not named, and descriptors beside what needs none.
    assert!(spawner.refusal(&Request::Listen(1), &[]).contains("none of the sockets"));
    assert!(spawner.refusal(&Request::Remove(u32::MAX), &[]).contains("none of the sockets"));
    assert!(spawner.refusal(&Request::Listen(0), &[&null]).contains("descriptors"));
    // What is no request: an unknown one, a grant, bytes, too large a number.
    for wrong in [vec![9u32], vec![u32::MAX; 3], vec![0; 1000], Vec::new()] {
        assert!(!spawner.refusal(&wrong, &[]).is_empty());
    }
    let size = Some(8);
    let role = spawn::Role::Function {
        guest_memory: true,
        known: None,
        max_read_request: size,
        standby: false,
    };
    let wrong = Request::Start { address: DEVICE.parse().unwrap(), role, program: 0 };
    assert!(spawner.refusal(&wrong, &both).contains("no maximum read request size"));
    // Nothing was started for any of that; and it still does what it is for.
    assert!(children(spawner.process.id()).is_empty());
    let before = children(std::process::id());
    let (reply, handles) = spawner.ask(&connection(DEVICE), &both);
    let Reply::Started { pid } = reply else { panic!("{reply:?}") };
    assert_eq!(handles.len(), 1);
    // The child is this process's, not the spawner's.
    assert!(!before.contains(&pid));
    assert!(status(pid)["PPid"].parse::<u32>().unwrap() == std::process::id());
    let line = command_line(pid);
    assert!(line.contains("connection --dext=sim:") && line.contains("--sandbox=strict"), "{line}");
    // It outlives the spawner, and is waited for here.
    signal(spawner.process.id(), Signal::KILL);
    spawner.process.wait().unwrap();
    assert!(!is_gone(pid));
    reap(handles);
    assert!(is_gone(pid));
}

/// Kills processes by their descriptors, and waits for them as their parent.
fn reap(handles: Vec<OwnedFd>) {
    use rustix::process::{WaitId, WaitIdOptions, pidfd_send_signal, waitid};
    for pidfd in handles {
        pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
        let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert!(ended.killed());
    }
}

#[test]
fn a_spawner_runs_no_program_that_its_user_did_not_make() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device-proc");
    cordon_tests::copy_program("device-proc", &path);
    let file = || OwnedFd::from(std::fs::File::open(&path).unwrap());
    let (_read, stderr) = rustix::pipe::pipe().unwrap();
    let (_ours, theirs) = Tube::pair().unwrap();
    let tube = OwnedFd::from(theirs);
    let start = |program| Request::Start {
        address: DEVICE.parse().unwrap(),
        role: spawn::Role::Connection,
        program,
    };
    // One whose server has no control socket takes none at all.
    let mut spawner = Attacked::start(&simulator);
    assert!(spawner.refusal(&Request::Program, &[&file()]).contains("no other program"));
    assert!(spawner.refusal(&start(1), &[&stderr, &tube]).contains("there is no program 1"));
    let mut spawner = Attacked::start_with(&simulator, true);
    // What whoever took the server over could make itself: memory. Its mode may be anything.
    let memory = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    std::io::copy(
        &mut std::fs::File::open(&path).unwrap(),
        &mut std::fs::File::from(memory.try_clone().unwrap()),
    )
    .unwrap();
    assert!(spawner.refusal(&Request::Program, &[&memory]).contains("may write it"));
    rustix::fs::fchmod(&memory, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    assert!(spawner.refusal(&Request::Program, &[&memory]).contains("in no folder"));
    assert!(spawner.refusal(&Request::Program, &[&tube]).contains("no regular file"));
    assert!(!spawner.refusal(&Request::Program, &[]).is_empty());
    if is_root() {
        let of_another = file();
        rustix::fs::fchown(&of_another, Some(rustix::process::Uid::from_raw(12_345)), None)
            .unwrap();
        assert!(spawner.refusal(&Request::Program, &[&of_another]).contains("of user 12345"));
        rustix::fs::fchown(&of_another, Some(rustix::process::Uid::ROOT), None).unwrap();
    }
    // So many at once, and none after it was let go of.
    for number in 1..=4 {
        assert_eq!(spawner.ask(&Request::Program, &[&file()]).0, Reply::Program(number));
    }
    assert!(spawner.refusal(&Request::Program, &[&file()]).contains("4 other programs"));
    assert_eq!(spawner.ask(&Request::Forget(2), &[]).0, Reply::Forgotten);
    assert!(spawner.refusal(&start(2), &[&stderr, &tube]).contains("there is no program 2"));
    // The one that it takes is run as any other: by its command line, in its namespaces.
    let (reply, handles) = spawner.ask(&start(3), &[&stderr, &tube]);
    let Reply::Started { pid } = reply else { panic!("{reply:?}") };
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/exe")).unwrap(), path);
    let line = command_line(pid);
    assert!(line.contains("connection --dext=sim:") && line.contains("--sandbox=strict"), "{line}");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<_> = open.flatten().map(|one| std::fs::read_link(one.path())).collect();
    assert!(!open.iter().flatten().any(|one| *one == path), "{open:?}");
    reap(handles);
}

#[test]
fn a_flood_of_requests_is_bounded_and_garbage_ends_the_spawner() {
    let simulator = Simulator::start(&["--device=01:00.1=probe"]);
    let mut spawner = Attacked::start(&simulator);
    let (_read, stderr) = rustix::pipe::pipe().unwrap();
    let (_ours, theirs) = Tube::pair().unwrap();
    let tube = OwnedFd::from(theirs);
    let mut started = Vec::new();
    let refused = loop {
        // They wait for a handshake that never comes.
        match spawner.ask(&connection(DEVICE), &[&stderr, &tube]) {
            (Reply::Started { .. }, handles) => started.extend(handles),
            (Reply::Refused(why), _) => break why,
            (other, _) => panic!("{other:?}"),
        }
        assert!(started.len() <= 6);
    };
    assert!(refused.contains("6 processes run already"), "{refused}");
    reap(started);
    // There is room again once they are gone.
    assert!(eventually(|| {
        let (reply, handles) = spawner.ask(&connection(DEVICE), &[&stderr, &tube]);
        reap(handles);
        matches!(reply, Reply::Started { .. })
    }));
    // What breaks the framing ends it, and harms nobody else.
    rustix::net::send(&spawner.tube, &[0xff; 64], rustix::net::SendFlags::empty()).unwrap();
    assert!(!spawner.process.wait().unwrap().success());
}
