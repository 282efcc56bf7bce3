//! `cordon serve` as a service: its config file, sockets that a manager passes on, and what the manager is
//! told. The launcher is a shell, which makes of a stream the descriptor that a manager would pass.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cordon_cli::event::Event;
use cordon_tests::serve::Serve;
use cordon_tests::vfio_user::Client;
use cordon_tests::{Simulator, eventually, program, signal};
use rustix::process::Signal;

/// Of config space.
const CONFIG: u32 = 7;
/// Vendor and device of the simulated functions.
const IDS: usize = 4;
/// How long a manager that is told something may wait for it on a busy machine.
const LONG: Duration = Duration::from_secs(30);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Has a shell pass sockets on to `command` from descriptor 3, as a manager does, under these names.
fn activate(command: &mut Command, names: &str, sockets: Vec<UnixListener>, pid: &str) {
    let inner = std::mem::replace(command, Command::new("sh"));
    let count = sockets.len();
    let mut sockets = sockets.into_iter().map(Stdio::from_listener);
    let streams = if count == 2 { "3<&0 4<&2 2>/dev/null" } else { "3<&0" };
    command.args(["-c", &format!("LISTEN_PID={pid} exec \"$@\" {streams} </dev/null"), "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.env("LISTEN_FDS", count.to_string()).env("LISTEN_FDNAMES", names);
    command.stdin(sockets.next().unwrap());
    if let Some(second) = sockets.next() {
        command.stderr(second);
    }
}

/// A listener as a stream of a child.
trait FromListener {
    fn from_listener(listener: UnixListener) -> Self;
}

impl FromListener for Stdio {
    fn from_listener(listener: UnixListener) -> Self {
        Self::from(std::os::fd::OwnedFd::from(listener))
    }
}

fn serve(simulator: &Simulator, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("cordon"));
    command.args(["serve", "--dext", &simulator.endpoint()]).args(arguments);
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// What is served at a path: vendor and device.
fn ids(path: &Path) -> Vec<u8> {
    let mut client = Client::negotiated(path);
    let mut ids = Vec::new();
    // A busy machine may not have the answer in time, which reads as ones.
    let known = eventually(|| {
        ids = client.read(CONFIG, 0, u32::try_from(IDS).unwrap());
        ids != [0xff; IDS]
    });
    assert!(known, "{} reads as ones", path.display());
    ids
}

#[test]
fn sockets_of_a_manager_are_matched_by_name_and_otherwise_in_order() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let listeners = ["a", "b"].map(|name| UnixListener::bind(at(name)).unwrap());
    let start = |names: &str, arguments: &[&str], used: &[usize]| {
        let sockets = used.iter().map(|number| listeners[*number].try_clone().unwrap()).collect();
        let mut serve = Serve::start_with(&simulator, &[], |command| {
            command.args(arguments);
            activate(command, names, sockets, "$$");
        });
        let seen = used.iter().map(|number| ids(&at(["a", "b"][*number]))).collect::<Vec<_>>();
        assert!(serve.end(Signal::TERM).0.success());
        seen
    };
    // By themselves: in order, whatever a manager calls them that was told no names.
    let in_order = start("cordon.socket:cordon.socket", &["--device=01:00"], &[0, 1]);
    assert_ne!(in_order[0], in_order[1], "both are one function");
    let (disk, probe) = (&in_order[0], &in_order[1]);
    let named = start("01-00.1:01-00.0", &["--device=01:00"], &[0, 1]);
    assert_eq!((&named[0], &named[1]), (probe, disk));
    // One is named, the other is what is left.
    let mixed = start("rest:01-00.0", &["--device=01:00.0", "--device=01:00.1"], &[0, 1]);
    assert_eq!((&mixed[0], &mixed[1]), (probe, disk));
    // As the config file calls them.
    let file = at("serve.toml");
    let text = "[[device]]\naddress = '01:00.1'\nfd-name = 'mine'\n";
    std::fs::write(&file, text).unwrap();
    let config = format!("--config={}", file.display());
    assert_eq!(start("mine", &[&config], &[0]), std::slice::from_ref(probe));
    for name in ["a", "b"] {
        assert!(at(name).exists(), "a manager's socket is its own");
    }

    let refused = |names: &str, arguments: &[&str], pid: &str| {
        let mut command = serve(&simulator, arguments);
        activate(&mut command, names, vec![listeners[0].try_clone().unwrap()], pid);
        let (status, _, errors) = said(&command.output().unwrap());
        (status, errors)
    };
    for (names, arguments, says) in [
        ("x", &["--device=01:00"][..], "2 functions have no socket, and of those"),
        ("x", &["--device=01:00.0", "--socket=/x"], "'x' is nobody's"),
        ("x", &[&config], "no socket 'mine' was passed on, which is to be that of 01:00.1"),
        ("x:y", &["--device=01:00.0"], "the sockets that were passed on are not told"),
        (
            "x",
            &["--device=01:00.0", "--dma=companion", "--companion-guest=00:05.0"],
            "none was passed on as '01-00.0-companion'",
        ),
    ] {
        let (status, errors) = refused(names, arguments, "$$");
        assert_eq!(status, Some(1), "{errors}");
        assert!(errors.contains(says), "{arguments:?} does not say {says:?}: {errors}");
    }
    // Those of another process are none of its own.
    let (status, errors) = refused("x", &["--device=01:00.0"], "1");
    assert!(status == Some(2) && errors.contains("--socket-dir <DIR> is missing"), "{errors}");
    simulator.assert_released("01:00.0");
}

/// The next message of a manager's socket.
fn next(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let came = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..came].to_vec()).unwrap()
}

#[test]
fn a_manager_is_told_when_it_is_ready_how_it_is_and_that_it_stops() {
    let mut simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let name = format!("cordon-test-{}", std::process::id());
    let unnamed = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
    for (socket, address) in [
        (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
        (UnixDatagram::bind_addr(&unnamed).unwrap(), format!("@{name}")),
    ] {
        socket.set_read_timeout(Some(LONG)).unwrap();
        let mut serve = Serve::start_with(&simulator, &["01:00.0"], |command| {
            command.env("NOTIFY_SOCKET", address);
        });
        assert_eq!(next(&socket), "READY=1\nSTATUS=serving 1\n");
        simulator.kill();
        assert_eq!(next(&socket), "STATUS=serving 0 of 1\n");
        simulator.restart();
        assert_eq!(next(&socket), "STATUS=serving 1\n");
        assert!(serve.end(Signal::TERM).0.success());
        assert_eq!(next(&socket), "STOPPING=1\nSTATUS=stopping\n");
    }
    for (address, says) in [
        ("/nonexistent/notify", "/nonexistent/notify: No such file"),
        ("vsock:2:1234", "vsock:2:1234: a path or @NAME is expected"),
    ] {
        let mut command = self::serve(&simulator, &["--device=01:00.0", "--socket=/tmp/never"]);
        let (status, _, errors) = said(&command.env("NOTIFY_SOCKET", address).output().unwrap());
        assert!(status == Some(1) && errors.contains(says), "{errors}");
    }
}

#[test]
fn a_server_that_is_stopped_gives_no_sign_of_life_and_one_whose_processes_die_does() {
    const WAITS: Duration = Duration::from_millis(1500);
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let mut serve = Serve::start_with(&simulator, &["01:00.0"], |command| {
        command.env("NOTIFY_SOCKET", folder.path().join("notify"));
        command.env("WATCHDOG_USEC", WAITS.as_micros().to_string());
    });
    assert_eq!(next(&socket), "READY=1\nSTATUS=serving 1\n");
    let listening = serve.has_seen(|event| matches!(event, Event::Listening { .. }));
    let Event::Listening { function_process, .. } = listening else { unreachable!() };
    let alive = || assert_eq!(next(&socket), "WATCHDOG=1\n");
    (0..3).for_each(|_| alive());
    signal(function_process, Signal::KILL);
    assert_ne!(ids(&serve.socket("01:00.0")), [0xff; IDS]);
    (0..3).for_each(|_| alive());
    signal(serve.pid(), Signal::STOP);
    // What was sent before is read first; then none comes in all the time that a manager waits.
    socket.set_read_timeout(Some(WAITS)).unwrap();
    let silence = loop {
        match socket.recv(&mut [0; 64]) {
            Ok(_) => {}
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(silence, ErrorKind::WouldBlock);
    signal(serve.pid(), Signal::CONT);
    socket.set_read_timeout(Some(LONG)).unwrap();
    (0..3).for_each(|_| alive());
    assert!(serve.end(Signal::TERM).0.success());
}

#[test]
fn a_config_file_is_served_and_the_command_line_goes_before_it() {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = format!(
        "dext = 'sim:/nonexistent'\nsocket-dir = '{0}'\nsocket-mode = '640'\nwindows = 'trapped'\n\
         [[device]]\naddress = '01:00'\n",
        folder.path().display(),
    );
    std::fs::write(at("c.toml"), text).unwrap();
    let mut serve = Serve::start_with(&simulator, &[], |command| {
        // The suite's command names the simulator, which goes before the file's.
        command.arg("--config").arg(at("c.toml")).arg("--device=02:00.0");
    });
    for name in ["01:00.0.sock", "02:00.0.sock"] {
        ids(&at(name));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o777, 0o640);
    }
    assert!(serve.end(Signal::TERM).0.success());
    let mut serve = Serve::start_with(&simulator, &[], |command| {
        command.arg("--config").arg(at("c.toml")).arg("--socket-mode=600");
    });
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(at("01:00.0.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(serve.end(Signal::TERM).0.success());
}

#[test]
fn the_example_is_right_and_documented_and_checking_starts_nothing() {
    let check = |config: &Path, more: &[&str]| {
        let mut command = Command::new(program("cordon"));
        command.args(["serve", "--check", "--config"]).arg(config).args(more);
        said(&command.env_remove("CORDON_DEXT").output().unwrap())
    };
    // No dext listens where it says: nobody is asked.
    let device_proc = format!("--device-proc={}", program("device-proc").display());
    let (status, text, errors) = check(&root().join("packaging/serve.toml"), &[&device_proc]);
    assert_eq!(status, Some(0), "{errors}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "01:00.0 at /run/cordon/nvme",
            "02:00 in /run/cordon",
            "03:00.0 in /run/cordon, its companion for 00:05.0 at /run/cordon/companion",
            "04:00.0 by the socket 'probe' of a service manager",
        ]
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let bad = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let (status, _, errors) = check(&file, &[&[&device_proc[..]], more].concat());
        assert!(matches!(status, Some(1 | 2)), "{text:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        errors.replace(&format!("{}/", folder.path().display()), "")
    };
    let device = "dext = 'sim:/x'\n[[device]]\naddress = '01:00.0'\n";
    for (text, says) in [
        ("", "a function to serve: --device <BB:DD[.F]>, or [[device]] in the file, is missing"),
        ("[[device]]\naddress = '01:00.0'\n", "--dext <DEXT> is missing"),
        (
            &format!("{device}socket = '/x'\nfd-name = 'x'\n"),
            "c.toml:2: socket and fd-name exclude",
        ),
        (&format!("{device}{}", &device[15..]), "01:00.0: it is named twice"),
        (
            &format!("{device}[device.companion]\nguest = '00:05.0'\n"),
            "c.toml:2: 01:00.0: its companion (--companion-socket) needs --dma companion",
        ),
        (
            "[[device]]\naddress = '01:00'\nsocket = '/x'\n",
            "c.toml:1: 01:00 is a whole device, each of whose functions",
        ),
        ("dext = 'usb:7'\n[[device]]\naddress = '01:00'\n", "usb:7"),
    ] {
        let errors = bad(text, &[]);
        assert!(errors.contains(says), "{text:?} does not say {says:?}: {errors}");
    }
    // Every key that there is, as the errors of unknown ones tell, is a row of the document.
    let document = std::fs::read_to_string(root().join("docs/config.md")).unwrap();
    let mut keys = 0;
    for text in
        ["x = 1\n", "[[device]]\nx = 1\n", "[[device]]\naddress = '01:00.0'\ncompanion.x = 1\n"]
    {
        let errors = bad(text, &[]);
        let (_, expected) = errors.split_once("expected one of ").unwrap();
        for key in expected.split('`').skip(1).step_by(2) {
            assert!(document.contains(&format!("| `{key}` |")), "{key} is not documented");
            keys += 1;
        }
    }
    assert_eq!(keys, 15 + 5 + 5);
}
