//! Where crash reports are written to: files that are made before this process confines itself, the oldest
//! report's first. However many processes die, there are so many of that size.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use cordon_cli::confinement::Layer;
use cordon_cli::crash::{CrashReport, Request, TYPE, VERSION};
use cordon_cli::event::{ProcessDeath, ProcessKind};
use cordon_vmm::{Happening, LayerState, observer};

use crate::Failure;
use crate::limits::{MAX_REPORT, MAX_REPORTS};

/// Files for reports, in the order in which they are written.
pub(super) struct Reports {
    files: Vec<File>,
    next: usize,
    /// Reports that could not be written were told of.
    complained: bool,
}

impl Reports {
    /// Opens them all, in a folder that is made if it is not there, for its owner alone; not those above it, which
    /// would be made for a wrong path too.
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                let name = folder.display();
                return Err(format!("--crash-reports {name}: it cannot be made: {error}").into());
            }
            _ => {}
        }
        let mut found = Vec::new();
        for number in 0..MAX_REPORTS {
            let path = folder.join(format!("crash-{number:02}.json"));
            let failed = |error| format!("--crash-reports {}: {error}", path.display());
            let mut options = File::options();
            // A link or a FIFO in its place is not followed and not waited for.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let options = options.append(true).create(true).mode(0o600).custom_flags(flags);
            let file = options.open(&path).map_err(failed)?;
            let about = file.metadata().map_err(failed)?;
            if !about.is_file() {
                return Err(failed(io::Error::other("it is no regular file")).into());
            }
            // Those that are free come first.
            let when = (about.len() > 0).then(|| about.modified().ok()).flatten();
            found.push((when.unwrap_or(SystemTime::UNIX_EPOCH), number, file));
        }
        found.sort_by_key(|(when, number, _)| (*when, *number));
        let files = found.into_iter().map(|(.., file)| file).collect();
        Ok(Self { files, next: 0, complained: false })
    }

    /// What is to stay open.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.files.iter().map(|file| file.as_raw_fd())
    }

    /// Writes a report of what happened, if a process died.
    pub(super) fn write(&mut self, happening: &Happening) {
        let Some(report) = report(happening) else { return };
        let Ok(mut text) = serde_json::to_string_pretty(&report) else { return };
        text.push('\n');
        if text.len() > MAX_REPORT {
            tracing::warn!("a crash report of {} bytes is not written", text.len());
            return;
        }
        let at = self.next % self.files.len().max(1);
        let Some(file) = self.files.get_mut(at) else { return };
        self.next += 1;
        let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        if let Err(error) = written
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!("crash reports cannot be written: {error}");
        }
    }
}

/// The report of a death.
fn report(happening: &Happening) -> Option<CrashReport> {
    let Happening::Died { address, kind, death, generation, sandbox } = happening else {
        return None;
    };
    let requests = death.requests.iter().map(|one| Request {
        name: one.name.to_owned(),
        bar: one.bar,
        offset: one.offset,
        bytes: one.bytes,
        microseconds_ago: u64::try_from(one.ago.as_micros()).unwrap_or(u64::MAX),
    });
    let layers = sandbox.layers.iter().map(|layer| {
        let (state, detail) = match &layer.state {
            LayerState::Enforced(detail) => ("enforced", detail),
            LayerState::Partial(detail) => ("partial", detail),
            LayerState::Missing(detail) => ("MISSING", detail),
        };
        let detail = cordon_vmm::text::printable(detail);
        Layer { name: layer.kind.to_string(), state: state.to_owned(), detail }
    });
    let mut report = CrashReport {
        kind: TYPE.to_owned(),
        version: VERSION,
        cordon: env!("CARGO_PKG_VERSION").to_owned(),
        time: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
        device: address.to_string(),
        of: match kind {
            observer::ProcessKind::Connection => ProcessKind::Connection,
            _ => ProcessKind::Function,
        },
        generation: *generation,
        death: ProcessDeath::of(death),
        requests: requests.collect(),
        sandbox: layers.collect(),
        syscalls: sandbox.syscalls,
    };
    report.cut();
    Some(report)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn free_places_come_first_and_then_the_oldest_report_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: usize| folder.path().join(format!("crash-{number:02}.json"));
        drop(Reports::open(folder.path()).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), MAX_REPORTS);
        // All full but one, the last the oldest.
        for number in (0..MAX_REPORTS).rev().filter(|number| *number != 5) {
            std::fs::write(path(number), b"full").unwrap();
            // Longer than what the system's times of files are rounded to.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let reports = Reports::open(folder.path()).unwrap();
        let sizes: Vec<u64> =
            reports.files.iter().map(|file| file.metadata().unwrap().len()).collect();
        assert_eq!((sizes[0], sizes[1]), (0, 4));
        let modified = |file: &File| file.metadata().unwrap().modified().unwrap();
        let times: Vec<_> = reports.files.iter().skip(1).map(modified).collect();
        assert!(times.is_sorted() && times.len() == MAX_REPORTS - 1);
        drop(reports);
        std::fs::remove_file(path(3)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path(3)).unwrap();
        let error = Reports::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("crash-03.json"), "{error}");
        let made = folder.path().join("made");
        assert!(Reports::open(&made).is_ok() && Reports::open(&made).is_ok());
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let none = Reports::open(Path::new("/no/such/folder")).err().unwrap().to_string();
        assert!(none.contains("--crash-reports /no/such/folder: it cannot be made"), "{none}");
    }
}
