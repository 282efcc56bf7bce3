//! Running a step, and ending whatever it leaves.

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, kill_process, kill_process_group,
    pidfd_open, setrlimit,
};

use crate::launch;
use crate::reporter::Reporter;
use vfio_guest::script::{Ending, Report, Step};

/// How long what a step started may outlive it: processes that see its end and end themselves.
const GRACE: Duration = Duration::from_secs(3);

/// Runs a step to its end.
pub(crate) fn run(step: &Step, reporter: &Reporter) {
    reporter.report(&Report::Started { step: step.name.clone() });
    let began = Instant::now();
    let how = match start(step) {
        Err(error) => Ending::NotStarted(format!("{}: {error}", step.program)),
        Ok(mut child) => {
            let read = read(&mut child, step, reporter);
            let how = wait(&mut child, step.timeout);
            // Everything that it printed, unless something that it left keeps its output open.
            let end = Instant::now() + GRACE;
            while !matches!(
                read.recv_timeout(end.saturating_duration_since(Instant::now())),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)
            ) {}
            how.unwrap_or_else(|error| Ending::NotStarted(format!("waiting for it: {error}")))
        }
    };
    let took = began.elapsed();
    let left = clean_up();
    reporter.report(&Report::Ended { step: step.name.clone(), how, took, left });
}

fn start(step: &Step) -> io::Result<Child> {
    let limit = Rlimit { current: Some(step.locked_memory), maximum: Some(step.locked_memory) };
    // This process's own limits are what children inherit; it locks nothing itself.
    setrlimit(Resource::Memlock, limit)?;
    let mut command = launch::command(step)?;
    command
        .env_clear()
        .envs([("PATH", "/bin"), ("TMPDIR", "/tmp"), ("HOME", "/tmp")])
        .envs(&step.environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if step.user != 0 && step.descriptors.is_empty() {
        command.uid(step.user).gid(step.user);
    }
    command.spawn()
}

/// Reports what it prints; the channel is closed when it has closed its output.
fn read(child: &mut Child, step: &Step, reporter: &Reporter) -> std::sync::mpsc::Receiver<()> {
    let (sender, receiver) = channel();
    if let Some(output) = child.stdout.take() {
        read_one(output, false, step, reporter, sender.clone());
    }
    if let Some(errors) = child.stderr.take() {
        read_one(errors, true, step, reporter, sender);
    }
    receiver
}

fn read_one(
    from: impl Read + Send + 'static,
    error: bool,
    step: &Step,
    reporter: &Reporter,
    done: Sender<()>,
) {
    let (step, reporter) = (step.name.clone(), reporter.clone());
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).into_owned();
            reporter.report(&Report::Line { step: step.clone(), error, text });
        }
        drop(done);
    });
}

/// Waits for its end, or ends it and its group.
fn wait(child: &mut Child, within: Duration) -> io::Result<Ending> {
    let pid = Pid::from_child(child);
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + within;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&left)) {
            Ok(0) => {
                let _ = kill_process_group(pid, Signal::KILL);
                child.wait()?;
                return Ok(Ending::TimedOut);
            }
            Ok(_) => return child.wait().map(ended),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn ended(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, signal) => Ending::Signalled(signal.unwrap_or_default()),
    }
}

/// Waits for what the step has left to end, then kills the rest: what that was.
fn clean_up() -> Vec<String> {
    let end = Instant::now() + GRACE;
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        let left = processes();
        if left.is_empty() {
            return Vec::new();
        }
        if Instant::now() >= end {
            for (pid, _) in &left {
                let _ = kill_process(*pid, Signal::KILL);
            }
            while let Ok(Some(_)) = rustix::process::wait(WaitOptions::empty()) {}
            return left.into_iter().map(|(_, line)| line).collect();
        }
        // Who ends elsewhere becomes a child of this process: nothing tells it of those that are not yet.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every process but this one and the kernel's own threads, which have no command line; ended ones have none either.
fn processes() -> Vec<(Pid, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid| *pid != 1).filter_map(Pid::from_raw);
    others
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (!line.trim().is_empty()).then(|| (pid, line.trim().to_owned()))
        })
        .collect()
}
