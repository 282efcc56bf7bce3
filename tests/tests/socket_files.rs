//! The socket files of the programs: what may lie at the path that they are given, and what
//! becomes of it. Four programs' sockets, the same rules; `ipc/tests/socket_file.rs` has them for
//! the code behind.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use cordon_tests::{Simulator, program};

/// A program's option that names a socket.
#[derive(Clone, Copy, Debug)]
enum Socket {
    /// `cordon serve --socket`.
    VfioUser,
    /// `cordon serve --control`.
    ServeControl,
    /// `dext-sim --socket`.
    Dext,
    /// `dext-sim --control`.
    DextControl,
}

const ALL: [Socket; 4] =
    [Socket::VfioUser, Socket::ServeControl, Socket::Dext, Socket::DextControl];

/// Where the programs run: a simulated dext for `cordon serve`, and a directory.
struct Scene {
    simulator: Simulator,
    directory: tempfile::TempDir,
}

/// A program that said that it is ready. Killed on drop, and so leaves its socket.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Ends it in order; what it said since it was ready.
    fn stop(mut self, socket: Socket) -> String {
        match socket {
            Socket::VfioUser | Socket::ServeControl => {
                cordon_tests::signal(self.child.id(), rustix::process::Signal::TERM);
            }
            Socket::Dext | Socket::DextControl => drop(self.child.stdin.take()),
        }
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success());
        said
    }
}

impl Scene {
    fn new() -> Self {
        let simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
        Self { simulator, directory: tempfile::tempdir().unwrap() }
    }

    /// Where the socket is to be.
    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Starts a program with its `socket` at the path. Two starters serve different `device`s and
    /// have nothing in common but the path.
    fn spawn(&self, socket: Socket, device: u8) -> Child {
        let other = self.directory.path().join(format!("other-{device}"));
        let device = format!("{device:02}:00.0");
        let mut command = match socket {
            Socket::VfioUser | Socket::ServeControl => {
                let mut command = Command::new(program("cordon"));
                command.args(["serve", "--dext", &self.simulator.endpoint(), "--device", &device]);
                command
            }
            Socket::Dext | Socket::DextControl => {
                let mut command = Command::new(program("dext-sim"));
                command.args(["--exit-with-stdin", "--device", &format!("{device}=probe")]);
                command
            }
        };
        match socket {
            Socket::VfioUser | Socket::Dext => command.arg("--socket").arg(self.path()),
            Socket::ServeControl | Socket::DextControl => {
                command.arg("--socket").arg(other).arg("--control").arg(self.path())
            }
        };
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until the program is ready, or the error with which it ended.
    fn outcome(mut child: Child) -> Result<Running, String> {
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 {
            if line.starts_with("ready") {
                return Ok(Running { child, output });
            }
            line.clear();
        }
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{errors}");
        Err(errors)
    }

    fn start(&self, socket: Socket) -> Result<Running, String> {
        Self::outcome(self.spawn(socket, 1))
    }

    /// Starts a program that must refuse its path and say why.
    fn refused(&self, socket: Socket, why: &str) {
        let error = self.start(socket).err().unwrap();
        let path = self.path().display().to_string();
        for says in ["Cannot listen at", &path, why] {
            assert!(error.contains(says), "{socket:?}: {error}");
        }
    }

    fn leave_dead_socket(&self) {
        drop(UnixListener::bind(self.path()).unwrap());
    }
}

/// Whether a program listens at `path`. For tubes too: the type of a tube's socket is another one.
fn is_live(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::ConnectionRefused,
    }
}

#[test]
fn a_regular_file_is_not_touched() {
    for socket in ALL {
        let scene = Scene::new();
        std::fs::write(scene.path(), "dear").unwrap();
        scene.refused(socket, "regular file");
        assert_eq!(std::fs::read_to_string(scene.path()).unwrap(), "dear");
    }
}

#[test]
fn a_directory_is_not_touched() {
    for socket in ALL {
        let scene = Scene::new();
        std::fs::create_dir(scene.path()).unwrap();
        scene.refused(socket, "directory");
        assert!(scene.path().is_dir());
    }
}

#[test]
fn a_symbolic_link_is_not_touched() {
    for socket in ALL {
        let scene = Scene::new();
        let target = scene.directory.path().join("dead");
        drop(UnixListener::bind(&target).unwrap());
        symlink(&target, scene.path()).unwrap();
        scene.refused(socket, "symbolic link");
        assert_eq!(std::fs::read_link(scene.path()).unwrap(), target);
        assert!(target.exists());
    }
}

#[test]
fn a_live_listener_is_refused_and_sees_no_client() {
    for socket in ALL {
        let scene = Scene::new();
        let live = UnixListener::bind(scene.path()).unwrap();
        live.set_nonblocking(true).unwrap();
        scene.refused(socket, "another program has its socket there");
        assert_eq!(live.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "{socket:?}");
        // It is still the one that is found there.
        let _client = UnixStream::connect(scene.path()).unwrap();
        live.accept().unwrap();
    }
}

#[test]
fn a_program_that_serves_is_not_disturbed_by_a_second_one() {
    for socket in ALL {
        let scene = Scene::new();
        let first = scene.start(socket).unwrap();
        let error = Scene::outcome(scene.spawn(socket, 2)).err().unwrap();
        assert!(error.contains("another program has its socket there"), "{socket:?}: {error}");
        let lines = first.stop(socket);
        assert!(!lines.contains(": attach"), "{socket:?}: {lines}");
        assert!(!scene.path().exists(), "{socket:?}");
    }
}

#[test]
fn a_dead_socket_is_replaced_and_the_new_one_is_the_owners_and_goes_with_its_program() {
    for socket in ALL {
        let scene = Scene::new();
        scene.leave_dead_socket();
        // Killed on drop: the next one finds what this one left.
        drop(scene.start(socket).unwrap());
        assert!(!is_live(&scene.path()), "{socket:?}");
        if !scene.path().exists() {
            // A spawner that lives a moment longer than its server removes what it made.
            scene.leave_dead_socket();
        }
        scene.simulator.assert_released("01:00.0");
        let again = scene.start(socket).unwrap();
        let file = std::fs::symlink_metadata(scene.path()).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{socket:?}");
        assert!(is_live(&scene.path()), "{socket:?}");
        again.stop(socket);
        assert!(!scene.path().exists(), "{socket:?}");
    }
}

#[test]
fn a_file_that_somebody_put_there_meanwhile_stays() {
    for socket in ALL {
        let scene = Scene::new();
        let running = scene.start(socket).unwrap();
        std::fs::remove_file(scene.path()).unwrap();
        std::fs::write(scene.path(), "dear").unwrap();
        running.stop(socket);
        assert_eq!(std::fs::read_to_string(scene.path()).unwrap(), "dear", "{socket:?}");
    }
}

#[test]
fn of_two_starters_at_once_exactly_one_wins() {
    for socket in ALL {
        let scene = Scene::new();
        for round in 0..4 {
            if round % 2 == 0 {
                scene.leave_dead_socket();
            }
            let starters = [1, 2].map(|device| scene.spawn(socket, device));
            let outcomes = starters.map(Scene::outcome);
            let (mut winners, mut losers) = (Vec::new(), Vec::new());
            for outcome in outcomes {
                match outcome {
                    Ok(running) => winners.push(running),
                    Err(error) => losers.push(error),
                }
            }
            assert_eq!(winners.len(), 1, "{socket:?} {round}: {losers:?}");
            assert!(losers[0].contains("another program has its socket there"), "{losers:?}");
            assert!(is_live(&scene.path()), "{socket:?}");
            for winner in winners {
                winner.stop(socket);
            }
            assert!(!scene.path().exists(), "{socket:?}");
        }
    }
}
