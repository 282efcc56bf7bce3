//! `cordon serve` as tools and people start it: sockets that are passed on, whole devices, what it says
//! of itself.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::Read as _;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use cordon_cli::event::{Event, Part};
use cordon_tests::serve::Serve;
use cordon_tests::vfio_user::Client;
use cordon_tests::{Simulator, address, program};
use rustix::process::Signal;
use serde_json::Value;

/// Of config space.
const CONFIG: u32 = 7;

/// Has a shell run `command` with `socket` as descriptor 3, and nothing else beside the streams.
fn with_descriptor(command: &mut Command, socket: OwnedFd) {
    let inner = std::mem::replace(command, Command::new("sh"));
    command.args(["-c", "exec \"$@\" 3<&0 </dev/null", "sh"]).arg(inner.get_program());
    command.args(inner.get_args()).stdin(Stdio::from(socket));
}

/// Serves 01:00.1 by descriptor 3.
fn serve_by(simulator: &Simulator, socket: OwnedFd) -> Serve {
    Serve::start_with(simulator, &[], |command| {
        command.args(["--device=01:00.1", "--fd=3"]);
        with_descriptor(command, socket);
    })
}

/// What `cordon serve` says that refuses its command line: status and errors.
fn refused(simulator: &Simulator, arguments: &[&str], socket: OwnedFd) -> (Option<i32>, String) {
    let mut command = Command::new(program("cordon"));
    command.args(["serve", "--dext", &simulator.endpoint()]).args(arguments);
    with_descriptor(&mut command, socket);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_inherited_listener_is_served_and_its_file_left_alone() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // It waits in the queue until somebody serves.
    let early = UnixStream::connect(&path).unwrap();
    for round in 0..2 {
        let mut serve = serve_by(&simulator, listener.try_clone().unwrap().into());
        let listening = serve.has_seen(|event| matches!(event, Event::Listening { .. }));
        let Event::Listening { device, socket, .. } = listening else { unreachable!() };
        assert_eq!((device, Path::new(&socket)), (address("01:00.1"), path.as_path()));
        if round == 0 {
            Client::of(early.try_clone().unwrap()).read(CONFIG, 0, 4);
            early.shutdown(std::net::Shutdown::Both).unwrap();
        }
        Client::negotiated(&path).read(CONFIG, 0, 4);
        Client::negotiated(&path).read(CONFIG, 0, 4);
        let (status, _, events) = serve.end(Signal::TERM);
        assert!(status.success(), "{events:?}");
        assert!(path.exists(), "the file of whoever made the socket is gone");
        simulator.assert_released("01:00.1");
    }
}

#[test]
fn a_client_that_is_passed_on_is_served_and_its_end_is_the_servers() {
    let simulator = Simulator::usual();
    let (near, far) = UnixStream::pair().unwrap();
    let mut serve = serve_by(&simulator, far.into());
    let _ = serve.has_seen(
        |event| matches!(event, Event::Listening { socket, .. } if socket == "descriptor 3"),
    );
    let mut client = Client::of(near);
    let read = client.read(CONFIG, 0, 4);
    assert_ne!(read, [0xff; 4]);
    drop(client);
    let (status, events) = serve.ended();
    assert!(status.success(), "{status}: {events:?}");
    let device = address("01:00.1");
    let part = Part::Function;
    let attach = Event::Attach { device, part };
    assert!(events.contains(&attach), "{events:?}");
    let end = [
        Event::Detach { device, part, why: "end of file".to_owned() },
        Event::Stopping { signal: None },
        Event::Stopped,
    ];
    assert_eq!(events[events.len() - 3..], end);
    simulator.assert_released("01:00.1");
}

#[test]
fn a_descriptor_that_nothing_can_be_served_by_is_named() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let file = || OwnedFd::from(std::fs::File::open(folder.path()).unwrap());
    let datagrams = UnixDatagram::unbound().unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let idle = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    );
    for (number, socket, says) in [
        ("3", file(), "Descriptor 3 is no socket"),
        ("3", datagrams.into(), "Descriptor 3 is a Unix socket of another type than SOCK_STREAM"),
        ("3", tcp.into(), "Descriptor 3 is a socket of another family than AF_UNIX"),
        ("3", idle.unwrap(), "Descriptor 3 is a socket that neither listens nor is connected"),
        ("7", file(), "Descriptor 7 is not open here"),
        ("-1", file(), "Descriptor -1 is not open here"),
        ("1", file(), "Descriptor 1 is standard input, output or error"),
    ] {
        let number = format!("--fd={number}");
        let (status, errors) = refused(&simulator, &["--device=01:00.1", &number], socket);
        assert_eq!(status, Some(1), "{errors}");
        assert!(errors.contains(says), "{number} does not say {says:?}: {errors}");
    }
    let listener = || OwnedFd::from(UnixListener::bind(folder.path().join("twice")).unwrap());
    let twice = ["--device=01:00.0", "--device=01:00.1", "--fd=3", "--fd=3"];
    let (status, errors) = refused(&simulator, &twice, listener());
    assert!(status == Some(1) && errors.contains("descriptor 3 is named twice"), "{errors}");
    let (status, errors) = refused(&simulator, &twice[..3], file());
    assert!(status == Some(1) && errors.contains("2 --device but 1 --fd"), "{errors}");
    let both = ["--device=01:00.1", "--fd=3", "--socket=/x"];
    let (status, errors) = refused(&simulator, &both, file());
    assert!(status == Some(2) && errors.contains("--fd"), "{errors}");
    simulator.assert_released("01:00.1");
}

#[test]
fn a_whole_device_is_served_function_by_function_in_a_folder() {
    let simulator = Simulator::start(&[
        "--device=01:00.0=nvme,size=64M,queues=4",
        "--device=01:00.1=probe",
        "--device=02:00.0=probe",
    ]);
    let folder = tempfile::tempdir().unwrap();
    let socket = |name: &str| folder.path().join(name);
    let mut serve = Serve::start_with(&simulator, &[], |command| {
        command.args(["--device=01:00", "--socket-dir"]).arg(folder.path());
    });
    let names = ["01:00.0.sock", "01:00.1.sock"];
    for name in names {
        Client::negotiated(&socket(name)).read(CONFIG, 0, 4);
    }
    let made: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(made.len(), names.len(), "{made:?}");
    assert_eq!(simulator.held("02:00.0").1, 0, "it is another device");
    assert!(serve.end(Signal::TERM).0.success());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    // A companion is served beside its function.
    let mut serve = Serve::start_with(&simulator, &[], |command| {
        command.args(["--device=02:00.0", "--dma=companion", "--companion-guest=00:05.0"]);
        command.arg("--socket-dir").arg(folder.path());
    });
    // The companion's client leaves with the function's, which therefore stays.
    let names = ["02:00.0.sock", "02:00.0-companion.sock"];
    for client in &mut names.map(|name| Client::negotiated(&socket(name))) {
        client.read(CONFIG, 0, 4);
    }
    assert!(serve.end(Signal::TERM).0.success());

    let nothing = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let into = format!("--socket-dir={}", folder.path().display());
    for (arguments, status, says) in [
        (["--device=03:00", &into], 1, "the dext offers no function of 03:00, of sim:"),
        (["--device=01:00", "--socket=/x"], 1, "01:00 is a whole device"),
        (["--device=01:00.0", "--dma=direct"], 2, "--socket-dir <DIR> is missing"),
        (["--device=vfio:01:00.0", &into], 2, "one server has functions of one kind"),
        (["--device=0100", &into], 2, "'0100' is neither a function, BB:DD.F, nor a device, BB:DD"),
    ] {
        let (code, errors) = refused(&simulator, &arguments, nothing());
        assert_eq!(code, Some(status), "{errors}");
        assert!(errors.contains(says), "{arguments:?} does not say {says:?}: {errors}");
    }
    let twice = ["--device=01:00", "--device=01:00.1", &into];
    let (code, errors) = refused(&simulator, &twice, nothing());
    assert!(code == Some(1) && errors.contains("01:00.1: it is named twice"), "{errors}");
}

#[test]
fn what_it_can_do_is_printed_also_by_the_name_that_tools_start_it_by() {
    let folder = tempfile::tempdir().unwrap();
    let backend = folder.path().join("cordon-serve");
    std::os::unix::fs::symlink(program("cordon"), &backend).unwrap();
    let mut said = Vec::new();
    for (program, arguments) in [
        (program("cordon"), &["serve", "--print-capabilities"][..]),
        (backend, &["--print-capabilities"]),
    ] {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        said.push(String::from_utf8(output.stdout).unwrap());
    }
    assert_eq!(said[0], said[1]);
    let capabilities: Value = serde_json::from_str(&said[0]).unwrap();
    assert_eq!(capabilities["type"], "vfio-user");
    let features = capabilities["features"].as_array().unwrap();
    for feature in ["fd", "socket-path"] {
        assert!(features.contains(&feature.into()), "{capabilities}");
    }
    // The description names that program and that type.
    let mut text = String::new();
    let description = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/50-cordon.json");
    std::fs::File::open(description).unwrap().read_to_string(&mut text).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(description["type"], capabilities["type"]);
    let binary = Path::new(description["binary"].as_str().unwrap());
    assert_eq!(binary.file_name().unwrap(), "cordon-serve");
    assert!(description["description"].as_str().is_some_and(|text| !text.is_empty()));
}
