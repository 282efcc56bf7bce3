//! `cordon keep`: what a command stores, whom it is given to, and when it is closed.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use cordon_tests::{eventually, is_running, program, signal};
use rustix::process::Signal;

/// As many as are kept, see docs/limits.md.
const MAX_KEPT: usize = 256;

/// A folder for what a command does.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The lines of its log, without the process's number: what each instance was passed on.
    fn log(&self) -> Vec<String> {
        let log = self.text("log");
        log.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// `cordon keep` of a command that obeys; `@` in an instruction is this folder.
    fn keep(&self, options: &[&str], instructions: &[&str]) -> Command {
        let folder = format!("{}/", self.0.path().display());
        let mut command = Command::new(program("cordon"));
        command.arg("keep").args(options).arg("--").arg(program("kept-command"));
        command.args(instructions.iter().map(|one| one.replace('@', &folder)));
        command.env("TMPDIR", self.path("tmp")).stderr(Stdio::piped());
        command
    }

    fn ran(&self, options: &[&str], instructions: &[&str]) -> (Option<i32>, String) {
        let Output { status, stderr, .. } = self.keep(options, instructions).output().unwrap();
        assert!(self.is_clean(), "its folder is left");
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    }

    fn is_clean(&self) -> bool {
        std::fs::read_dir(self.path("tmp")).unwrap().next().is_none()
    }

    /// The end of a pipe with a name that sees when nobody has the other one any more.
    fn pipe(&self, name: &str) -> Pipe {
        let path = self.path(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        Pipe(OpenOptions::new().read(true).custom_flags(nonblock).open(path).unwrap())
    }
}

struct Pipe(File);

impl Pipe {
    /// Whether nobody can write to it; at first nobody has opened it.
    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 16]), Ok(0))
    }
}

fn ended(mut child: Child) -> Option<i32> {
    let mut done = || matches!(child.try_wait(), Ok(Some(_)));
    let is_done = eventually(&mut done) || eventually(&mut done);
    if !is_done {
        let _ = child.kill();
    }
    assert!(is_done, "it does not end");
    child.wait().unwrap().code()
}

fn pid_of(place: &Place) -> u32 {
    assert!(eventually(|| !place.text("log").is_empty()), "the command does not run");
    place.text("log").split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn what_a_killed_command_stored_is_there_by_name_in_the_next_one() {
    let place = Place::new();
    let (status, errors) = place.ran(
        &[],
        &[
            "log=@log",
            "first:store=one:@a",
            "first:store=other:@b",
            "first:kill",
            "write=other:to the other",
            "write=one:to one",
        ],
    );
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(place.log(), ["", "one other"]);
    assert_eq!((place.text("a"), place.text("b")), ("to one".into(), "to the other".into()));
    assert!(errors.contains("it is started again, with 2 descriptors"), "{errors}");
}

#[test]
fn what_is_removed_or_another_process_sends_is_not_kept() {
    let place = Place::new();
    let (status, errors) = place.ran(
        &[],
        &[
            "log=@log",
            "first:store=kept:@a",
            "first:store=removed:@b",
            "first:child-store=of-a-child:@c",
            "first:remove=removed",
            "first:kill",
        ],
    );
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(place.log(), ["", "kept"]);
    assert!(errors.contains("a message of another process"), "{errors}");
}

#[test]
fn so_many_descriptors_are_kept_and_one_more_is_not() {
    let place = Place::new();
    let many = format!("first:many={}", MAX_KEPT + 1);
    let (status, errors) = place.ran(&[], &["log=@log", &many, "first:kill"]);
    assert_eq!(status, Some(0), "{errors}");
    let names: Vec<String> = place.log()[1].split(' ').map(str::to_owned).collect();
    let expected: Vec<String> = (0..MAX_KEPT).map(|number| format!("many-{number}")).collect();
    assert_eq!(names, expected);
    assert!(errors.contains("256 descriptors are the limit"), "{errors}");
}

#[test]
fn what_nobody_takes_in_time_is_closed_and_what_is_taken_stays() {
    let options = ["--for=1", "--restarts=2"];
    let first = ["log=@log", "first:store=a:@a", "first:kill"];
    let place = Place::new();
    let silent = [&first[..], &["pause=2500", "kill"]].concat();
    let (status, errors) = place.ran(&options, &silent);
    assert_eq!((status, place.log()), (Some(137), vec!["".into(), "a".into(), "".into()]));
    assert!(errors.contains("nobody took what was kept within 1 s"), "{errors}");
    // One that says that it is ready has taken it.
    let place = Place::new();
    let ready = [&first[..], &["ready", "pause=2500", "kill"]].concat();
    let (status, errors) = place.ran(&options, &ready);
    assert_eq!((status, place.log()), (Some(137), vec!["".into(), "a".into(), "a".into()]));
    assert!(!errors.contains("nobody took"), "{errors}");
}

#[test]
fn status_0_closes_everything_and_a_command_that_wants_to_end_is_not_started_again() {
    for (instruction, status) in [("exit=0", 0), ("exit=7", 7)] {
        let place = Place::new();
        let (code, errors) = place.ran(&[], &["log=@log", instruction]);
        assert_eq!((code, place.log().len()), (Some(status), 1), "{errors}");
    }
    let place = Place::new();
    let mut pipe = place.pipe("pipe");
    let run =
        place.keep(&[], &["log=@log", "store=a:@pipe", "wait=@seen", "exit=0"]).spawn().unwrap();
    assert!(eventually(|| !pipe.is_closed()));
    std::fs::write(place.path("seen"), "").unwrap();
    assert_eq!(ended(run), Some(0));
    assert!(pipe.is_closed());
    // Asked to end by anybody, it is not started again either.
    let place = Place::new();
    let run = place.keep(&[], &["store=a:@a", "log=@log", "pause=60000"]).spawn().unwrap();
    signal(pid_of(&place), Signal::TERM);
    assert_eq!(ended(run), Some(143));
    assert_eq!(place.log().len(), 1);
}

#[test]
fn a_signal_to_the_keeper_ends_the_command_and_closes_everything() {
    for (number, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let place = Place::new();
        let mut pipe = place.pipe("pipe");
        let run = place.keep(&[], &["store=a:@pipe", "log=@log", "pause=60000"]).spawn().unwrap();
        let command = pid_of(&place);
        assert!(!pipe.is_closed());
        signal(run.id(), number);
        assert_eq!(ended(run), Some(status));
        assert!(!is_running(command) && pipe.is_closed() && place.is_clean());
    }
    // Killed, it takes the command along: the kernel tells that.
    let place = Place::new();
    let mut pipe = place.pipe("pipe");
    let mut run = place.keep(&[], &["store=a:@pipe", "log=@log", "pause=60000"]).spawn().unwrap();
    let command = pid_of(&place);
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(eventually(|| !is_running(command)) && eventually(|| pipe.is_closed()));
    assert!(
        eventually(|| place.is_clean()) || eventually(|| place.is_clean()),
        "its folder is left"
    );
}

#[test]
fn what_the_kernel_wants_back_is_closed_at_once_whoever_lives() {
    let place = Place::new();
    let mut pipes = ["device", "other"].map(|name| place.pipe(name));
    let group = "cordon.0000-01-00-0";
    let (device, request) =
        (format!("store={group}.group-0:@device"), format!("event={group}.0000-01-00-0.request"));
    let instructions = [
        "log=@log",
        &device,
        "store=cordon.0000-02-00-0.group-0:@other",
        &request,
        "wait=@seen",
        "raise",
        "pause=60000",
    ];
    let run = place.keep(&[], &instructions).spawn().unwrap();
    assert!(eventually(|| pipes.iter_mut().all(|pipe| !pipe.is_closed())));
    std::fs::write(place.path("seen"), "").unwrap();
    assert!(eventually(|| pipes[0].is_closed()), "the device is held");
    assert!(!pipes[1].is_closed(), "another device is not");
    signal(run.id(), Signal::TERM);
    assert_eq!(ended(run), Some(143));
}

#[test]
fn a_command_is_started_so_often_in_a_row_and_no_more() {
    let place = Place::new();
    let (status, errors) = place.ran(&["--restarts=2"], &["log=@log", "kill"]);
    assert_eq!((status, place.log().len()), (Some(137), 3), "{errors}");
    assert!(errors.contains("was started 2 times again: given up"), "{errors}");
}

#[test]
fn one_that_fails_with_something_stored_is_started_again_for_as_long_as_that_is_kept() {
    // Whether it takes what was left, and fails then, or not. Pauses of 0.1, 0.2, 0.4, 0.8 s: five starts or six, and not
    // the two that --restarts says, nor twenty.
    let first = ["log=@log", "first:store=a:@a", "first:exit=3"];
    for (takes, says) in [("ready", "times again: given up"), ("again:log=@seen", "nobody took")] {
        let place = Place::new();
        let began = std::time::Instant::now();
        let instructions = [&first[..], &[takes, "exit=3"]].concat();
        let (status, errors) = place.ran(&["--for=1", "--restarts=1"], &instructions);
        let starts = place.log().len();
        assert_eq!(status, Some(3), "{errors}");
        assert!((4..=6).contains(&starts), "{starts}: {errors}");
        assert!(errors.contains(says), "{errors}");
        let took = began.elapsed();
        assert!((1.0..5.0).contains(&took.as_secs_f64()), "{took:?}");
    }
    // One that is killed is started again at once, however often.
    let place = Place::new();
    let killed = ["log=@log", "store=a:@a", "kill"];
    let (status, errors) = place.ran(&["--for=1", "--restarts=1"], &killed);
    assert!(status == Some(137) && place.log().len() > 6, "{} {errors}", place.log().len());
}

/// Has a shell run `command` with `file` as descriptor 3.
fn with_descriptor(command: &Command, file: OwnedFd) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 3<&0 </dev/null", "sh"]).arg(command.get_program());
    shell.args(command.get_args()).stdin(Stdio::from(file)).stderr(Stdio::piped());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

#[test]
fn a_command_that_inherits_descriptors_and_stores_some_is_told_that_they_are_in_the_way() {
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    for (what, is_told) in [("store=a:@a", true), ("ready", false)] {
        let place = Place::new();
        let keep = place.keep(&[], &["log=@log", what, "exit=0"]);
        let output = with_descriptor(&keep, null()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{errors}");
        assert_eq!(errors.contains("the command inherits descriptor 3"), is_told, "{errors}");
    }
}

#[test]
fn a_server_that_was_given_something_by_number_stores_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let listener = || OwnedFd::from(UnixListener::bind(folder.path().join("socket")).unwrap());
    let serve = |arguments: &[&str], socket: OwnedFd| {
        let mut keep = Command::new(program("cordon"));
        keep.args(["keep", "--restarts=0", "--"]).arg(program("cordon")).arg("serve");
        // There is no such device here, so that it ends when it has said what it is asked about.
        keep.args(["--device=vfio:ffff:ff:1f.7", "--windows=trapped"]).args(arguments);
        let output = with_descriptor(&keep, socket).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let says = "nothing is kept for a next server";
    let path = format!("--socket={}/other", folder.path().display());
    let errors = serve(&["--fd=3"], listener());
    assert!(errors.contains(says) && errors.contains("where --fd has others"), "{errors}");
    let errors =
        serve(&[&path, "--events=FD:3"], File::create(folder.path().join("e")).unwrap().into());
    assert!(errors.contains("where --events FD:N has others"), "{errors}");
    let errors = serve(&[&path], File::open("/dev/null").unwrap().into());
    assert!(!errors.contains(says) && !errors.contains("keeper"), "{errors}");
}

#[test]
fn what_cannot_be_run_is_named() {
    let refused = |arguments: &[&str], status: i32, says: &str| {
        let output = Command::new(program("cordon")).arg("keep").args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{errors}");
        assert!(errors.contains(says), "{errors}");
    };
    refused(&["--", "/nonexistent/vmm"], 1, "/nonexistent/vmm is no program");
    refused(&["--", "no-such-program"], 1, "there is no program no-such-program in PATH");
    refused(&[], 2, "COMMAND");
    refused(&["--for=0", "--", "true"], 2, "--for");
    refused(&["--restarts=x", "--", "true"], 2, "--restarts");
}
