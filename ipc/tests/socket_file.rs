//! What may lie at the path of a socket, and what becomes of it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use cordon_ipc::tube::Listener;
use cordon_ipc::{SocketFile, SocketFileError, Tube, chain};

/// A directory and the path `name` in it.
fn place(name: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    (directory, path)
}

/// A socket that nobody has bound any more.
fn leave_dead_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(fs::symlink_metadata(path).unwrap().file_type().is_socket());
}

fn entries(directory: &tempfile::TempDir) -> usize {
    fs::read_dir(directory.path()).unwrap().count()
}

/// The error of listening at `path` for streams, after checking that it is the same for tubes.
fn refusal(path: &Path) -> SocketFileError {
    let error = SocketFile::listen(path).unwrap_err();
    let of_tubes = Listener::bind(path).unwrap_err();
    assert_eq!(error.to_string(), of_tubes.to_string());
    let text = chain(&error);
    assert!(text.contains(&path.display().to_string()), "{text}");
    error
}

fn kind_in(error: &SocketFileError) -> &'static str {
    match error {
        SocketFileError::NotASocket { kind, .. } => kind,
        other => panic!("{other}"),
    }
}

#[test]
fn a_free_path_is_bound_and_given_back() {
    let (directory, path) = place("socket");
    let file = SocketFile::listen(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let mut served = UnixStream::from(file.accept().unwrap());
    client.write_all(b"x").unwrap();
    served.set_nonblocking(false).unwrap();
    served.read_exact(&mut [0]).unwrap();
    drop(file);
    assert_eq!(entries(&directory), 0);
}

#[test]
fn the_file_is_for_its_owner_only() {
    let (_directory, path) = place("socket");
    let _file = SocketFile::listen(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn a_regular_file_is_left_alone() {
    let (_directory, path) = place("letter");
    fs::write(&path, "dear").unwrap();
    assert_eq!(kind_in(&refusal(&path)), "regular file");
    assert_eq!(fs::read_to_string(&path).unwrap(), "dear");
}

#[test]
fn a_directory_is_left_alone() {
    let (_directory, path) = place("folder");
    fs::create_dir(&path).unwrap();
    assert_eq!(kind_in(&refusal(&path)), "directory");
    assert!(path.is_dir());
}

#[test]
fn a_symbolic_link_is_left_alone_wherever_it_leads() {
    let (directory, path) = place("link");
    let file = directory.path().join("file");
    fs::write(&file, "dear").unwrap();
    let dead = directory.path().join("dead");
    leave_dead_socket(&dead);
    for target in [file.clone(), dead.clone(), directory.path().join("nothing")] {
        symlink(&target, &path).unwrap();
        assert_eq!(kind_in(&refusal(&path)), "symbolic link");
        assert_eq!(fs::read_link(&path).unwrap(), target);
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "dear");
    assert!(dead.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_named_pipe_is_left_alone() {
    let (_directory, path) = place("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
    assert_eq!(kind_in(&refusal(&path)), "named pipe");
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
}

#[test]
fn a_live_listener_of_ours_is_refused_and_sees_no_client() {
    let (_directory, path) = place("socket");
    let live = SocketFile::listen(&path).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    for _ in 0..100 {
        assert!(matches!(refusal(&path), SocketFileError::InUse(_)));
    }
    assert!(live.try_accept().unwrap().is_none());
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    // It goes on serving.
    let _client = UnixStream::connect(&path).unwrap();
    live.accept().unwrap();
}

#[test]
fn a_live_listener_for_tubes_is_refused_and_sees_no_client() {
    let (_directory, path) = place("socket");
    let live = Listener::bind(&path).unwrap();
    assert!(matches!(refusal(&path), SocketFileError::InUse(_)));
    assert!(live.try_accept().unwrap().is_none());
    let _client = Tube::connect(&path).unwrap();
    live.accept().unwrap();
}

#[test]
fn a_live_listener_of_another_program_is_refused_and_sees_no_client() {
    let (_directory, path) = place("socket");
    let live = UnixListener::bind(&path).unwrap();
    assert!(matches!(refusal(&path), SocketFileError::InUse(_)));
    live.set_nonblocking(true).unwrap();
    assert_eq!(live.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_socket_that_is_bound_and_does_not_listen_is_refused() {
    let (_directory, path) = place("socket");
    let live = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(refusal(&path), SocketFileError::InUse(_)));
    live.set_nonblocking(true).unwrap();
    assert_eq!(live.recv(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(live);
    fs::remove_file(&path).unwrap();

    // A stream between `bind` and `listen`: connecting to it is refused as if it were dead.
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let family = rustix::net::AddressFamily::UNIX;
    let stream = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&stream, &address).unwrap();
    let connected = UnixStream::connect(&path).unwrap_err();
    assert_eq!(connected.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(matches!(refusal(&path), SocketFileError::InUse(_)));
}

#[test]
fn a_dead_socket_is_replaced() {
    let (directory, path) = place("socket");
    leave_dead_socket(&path);
    let file = SocketFile::listen(&path).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    file.accept().unwrap();
    drop(file);
    leave_dead_socket(&path);
    let tubes = Listener::bind(&path).unwrap();
    let _client = Tube::connect(&path).unwrap();
    tubes.accept().unwrap();
    drop(tubes);
    assert_eq!(entries(&directory), 0);
}

#[test]
fn on_drop_a_file_of_somebody_else_stays() {
    let (_directory, path) = place("socket");
    let first = SocketFile::listen(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "dear").unwrap();
    drop(first);
    assert_eq!(fs::read_to_string(&path).unwrap(), "dear");

    fs::remove_file(&path).unwrap();
    let first = SocketFile::listen(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = SocketFile::listen(&path).unwrap();
    drop(first);
    let _client = UnixStream::connect(&path).unwrap();
    second.accept().unwrap();
}

/// Many starters at one path, at once, again and again: exactly one wins, and clients reach it.
fn exactly_one_wins(prepare: impl Fn(&Path)) {
    const STARTERS: usize = 6;
    let (_directory, path) = place("socket");
    for round in 0..100 {
        prepare(&path);
        let barrier = Barrier::new(STARTERS);
        let started: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                SocketFile::listen(&path)
            };
            let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(start)).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        let mut winners = Vec::new();
        for one in started {
            match one {
                Ok(file) => winners.push(file),
                Err(SocketFileError::InUse(_)) => {}
                Err(other) => panic!("round {round}: {}", chain(&other)),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        let _client = UnixStream::connect(&path).unwrap();
        winners[0].accept().unwrap();
        assert!(winners[0].try_accept().unwrap().is_none());
    }
}

#[test]
fn of_starters_at_a_free_path_one_wins() {
    exactly_one_wins(|_| {});
}

#[test]
fn of_starters_at_a_dead_socket_one_wins() {
    exactly_one_wins(leave_dead_socket);
}

#[test]
fn a_directory_that_stays_locked_is_named() {
    let (directory, path) = place("socket");
    let held = fs::File::open(directory.path()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = SocketFile::listen(&path).unwrap_err();
    assert!(matches!(error, SocketFileError::Locked(_)), "{error}");
    assert_eq!(entries(&directory), 0);
    rustix::fs::flock(&held, rustix::fs::FlockOperation::Unlock).unwrap();
    SocketFile::listen(&path).unwrap();
}

#[test]
fn paths_that_no_socket_can_have_are_named() {
    let (directory, _) = place("");
    let long = directory.path().join("x".repeat(200));
    for path in [long.as_path(), Path::new("")] {
        let error = SocketFile::listen(path).unwrap_err();
        assert!(matches!(error, SocketFileError::Length { .. }), "{error}");
    }
    let error = SocketFile::listen(&directory.path().join("missing/socket")).unwrap_err();
    assert!(chain(&error).contains("No such file"), "{}", chain(&error));
    assert_eq!(entries(&directory), 0);
}
