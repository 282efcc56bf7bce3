//! The system's programs that are asked, each with a deadline.

use crate::limits::MAX_OUTPUT;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long one may take: ioreg prints some 10 MB.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the programs are on a Mac.
const PLACES: [(&str, &str); 5] = [
    ("systemextensionsctl", "/usr/bin"),
    ("ioreg", "/usr/sbin"),
    ("codesign", "/usr/bin"),
    ("system_profiler", "/usr/sbin"),
    ("ps", "/bin"),
];

/// The programs of a folder, or the system's.
pub(super) struct Tools(Option<PathBuf>);

impl Tools {
    /// `None` where there are none to ask: not a Mac, and no folder was named.
    pub(super) fn new(folder: Option<PathBuf>) -> Option<Self> {
        (folder.is_some() || cfg!(target_os = "macos")).then_some(Self(folder))
    }

    /// What a program prints.
    ///
    /// # Errors
    /// Why it printed nothing that could be used, in words.
    pub(super) fn run(&self, name: &str, arguments: &[&str]) -> Result<String, String> {
        let place = PLACES.iter().find(|(known, _)| *known == name).map_or("", |(_, place)| place);
        let program = self.0.as_deref().unwrap_or(Path::new(place)).join(name);
        run(&program, arguments, TIMEOUT)
    }
}

fn run(program: &Path, arguments: &[&str], timeout: Duration) -> Result<String, String> {
    let shown = program.display();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run {shown}: {error}"))?;
    let (done, output) = std::sync::mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        // It ends with the program's output, which ends with the program at the latest.
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stdout.take(MAX_OUTPUT).read_to_end(&mut bytes);
            let _ = done.send(read.map(|_| bytes));
        });
    }
    let began = Instant::now();
    let output = output.recv_timeout(timeout);
    let left = timeout.saturating_sub(began.elapsed());
    let ended = output.is_ok() && wait(&mut child, left);
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("{shown}: {error}"))?;
    match output {
        Ok(Ok(bytes)) if ended && status.success() => {
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Ok(Err(error)) => Err(format!("{shown}: {error}")),
        Ok(Ok(_)) if ended => Err(format!("{shown}: {status}")),
        _ => Err(format!("{shown} did not end within {} s", timeout.as_secs())),
    }
}

/// Whether it ended in time: it has closed its output, so that is soon.
fn wait(child: &mut std::process::Child, left: Duration) -> bool {
    let until = Instant::now() + left;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_fails_or_is_not_there_is_an_error_in_time() {
        let sh = |script: &str| run(Path::new("/bin/sh"), &["-c", script], Duration::from_secs(1));
        assert_eq!(sh("echo yes").unwrap(), "yes\n");
        assert!(sh("echo yes; exit 3").unwrap_err().contains("3"));
        assert!(run(Path::new("/no/such"), &[], TIMEOUT).unwrap_err().contains("cannot run"));
        let began = Instant::now();
        assert!(sh("exec sleep 60").unwrap_err().contains("did not end"));
        assert!(sh("exec >&-; exec sleep 60").unwrap_err().contains("did not end"));
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_prints_without_end_is_read_so_far_and_is_an_error() {
        let print = |bytes: u64| {
            let script = format!("head -c {bytes} /dev/zero");
            run(Path::new("/bin/sh"), &["-c", &script], Duration::from_secs(60))
        };
        assert_eq!(print(MAX_OUTPUT).unwrap().len() as u64, MAX_OUTPUT);
        // More than a pipe holds, so that it notices that nobody reads on.
        assert!(print(MAX_OUTPUT + (8 << 20)).is_err());
    }
}
