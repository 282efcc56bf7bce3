//! Reports, a line each, on the serial port that is theirs.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use vfio_guest::Report;
use vfio_guest::script::REPORTS;

/// Where reports go. Threads share it: a report is one line. When the last of them drops it, the port is closed, which
/// waits until everything is sent.
#[derive(Clone)]
pub(crate) struct Reporter(Arc<Mutex<File>>);

impl Reporter {
    pub(crate) fn open() -> io::Result<Self> {
        let port = File::options().write(true).open(REPORTS)?;
        Ok(Self(Arc::new(Mutex::new(port))))
    }

    pub(crate) fn report(&self, report: &Report) {
        let mut line = serde_json::to_vec(report).unwrap_or_default();
        line.push(b'\n');
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = port.write_all(&line);
    }
}
