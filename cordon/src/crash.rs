//! What is kept of the death of a device process: written by `cordon serve --crash-reports`, read by
//! `cordon report`.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::confinement::Layer;
use crate::event::{ProcessDeath, ProcessKind};

/// What a report begins with, as its `type`.
pub const TYPE: &str = "cordon-crash-report";
/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;
/// Longest text of a report, in characters.
const LONGEST: usize = 4096;

/// A request, without its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its name: "BarWrite".
    pub name: String,
    /// Of an access to a BAR, which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bar: Option<u8>,
    /// Of an access, the first byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Of an access, how many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u8>,
    /// How long before the death was told it was sent, in microseconds, to within some milliseconds.
    pub microseconds_ago: u64,
}

/// The report of one death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashReport {
    /// [`TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// [`VERSION`].
    pub version: u32,
    /// The version of the server that wrote it.
    pub cordon: String,
    /// When: RFC 3339, UTC, with microseconds.
    pub time: String,
    /// The function, or the one that a connection process was first started for.
    pub device: String,
    /// Which kind of process died.
    pub of: ProcessKind,
    /// How many processes of its kind had been replaced for it before.
    pub generation: u64,
    /// Cause, exit status or signal, last request.
    pub death: ProcessDeath,
    /// The last requests that it was sent, oldest first.
    pub requests: Vec<Request>,
    /// The layers of its sandbox.
    pub sandbox: Vec<Layer>,
    /// System calls that it may make.
    pub syscalls: u32,
}

/// Why a file is no report that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Its place is still free.
    #[error("It is empty: no process died that would be in it")]
    Empty,
    /// It ends too early.
    #[error("It is cut short: it was being written, or only a part was copied")]
    CutShort,
    /// Something else.
    #[error("It is no crash report: {0}")]
    Garbage(String),
    /// Of a newer program.
    #[error("It is of version {0}, and this program reads up to version {VERSION}")]
    Newer(u64),
}

impl CrashReport {
    /// Reads one.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn read(text: &str) -> Result<Self, ReportError> {
        // An editor may have ended what was cut with a line of its own.
        let text = text.trim();
        if text.is_empty() {
            return Err(ReportError::Empty);
        }
        let failed = |error: serde_json::Error| {
            if error.is_eof() {
                ReportError::CutShort
            } else {
                ReportError::Garbage(error.to_string())
            }
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(failed)?;
        if value["type"] != TYPE {
            return Err(ReportError::Garbage(format!("its type is not {TYPE}")));
        }
        match value["version"].as_u64() {
            Some(version) if version > u64::from(VERSION) => Err(ReportError::Newer(version)),
            Some(_) => serde_json::from_value(value).map_err(failed),
            None => Err(ReportError::Garbage("it has no version".to_owned())),
        }
    }

    /// Cuts what a process may have said at such length that the report would not fit its file.
    pub fn cut(&mut self) {
        for text in [&mut self.death.why].into_iter().chain(self.death.last_request.as_mut()) {
            if let Some((end, _)) = text.char_indices().nth(LONGEST) {
                text.truncate(end);
            }
        }
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cordon, time, device, generation, death, requests, sandbox, syscalls, .. } =
            self;
        let kind = match self.of {
            ProcessKind::Function => "function process",
            ProcessKind::Connection => "connection process",
        };
        writeln!(f, "{kind} {} of {device} died at {time} (cordon {cordon})", death.process)?;
        writeln!(f, "  why: {}", death.why)?;
        let ended = match (&death.signal, death.exit_code) {
            (Some(signal), _) => format!("by {signal}"),
            (None, Some(code)) => format!("with exit status {code}"),
            (None, None) => "nobody knows how".to_owned(),
        };
        let claimed = death.claimed_call.as_ref();
        let claimed =
            claimed.map_or_else(String::new, |call| format!(", by its own word over {call}"));
        let outside = if death.from_outside { ", from outside" } else { "" };
        writeln!(f, "  ended: {ended}{claimed}{outside}")?;
        writeln!(f, "  replaced before: {generation}")?;
        writeln!(f, "  last {} requests, oldest first:", requests.len())?;
        for one in requests {
            let mut place = String::new();
            if let Some(bar) = one.bar {
                write!(place, " BAR {bar}")?;
            }
            if let (Some(offset), Some(bytes)) = (one.offset, one.bytes) {
                write!(place, " {offset:#x}, {bytes} bytes")?;
            }
            let (ms, us) = (one.microseconds_ago / 1000, one.microseconds_ago % 1000);
            writeln!(f, "    {ms:>8}.{us:03} ms before: {}{place}", one.name)?;
        }
        writeln!(f, "  sandbox: {syscalls} system calls allowed")?;
        for layer in sandbox {
            writeln!(f, "    {}: {} ({})", layer.name, layer.state, layer.detail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DeathCause;

    fn report() -> CrashReport {
        CrashReport {
            kind: TYPE.to_owned(),
            version: VERSION,
            cordon: "1.2.3".to_owned(),
            time: "2026-01-02T03:04:05.678901Z".to_owned(),
            device: "01:00.0".to_owned(),
            of: ProcessKind::Function,
            generation: 3,
            death: ProcessDeath {
                process: 7,
                cause: DeathCause::Ended,
                exit_code: None,
                signal: Some("SIGSYS".to_owned()),
                claimed_call: Some("openat".to_owned()),
                from_outside: false,
                last_request: Some("BarWrite".to_owned()),
                why: "it died".to_owned(),
            },
            requests: vec![Request {
                name: "BarWrite".to_owned(),
                bar: Some(2),
                offset: Some(0x40),
                bytes: Some(4),
                microseconds_ago: 12_345,
            }],
            sandbox: vec![Layer {
                name: "landlock".to_owned(),
                state: "enforced".to_owned(),
                detail: "version 6".to_owned(),
            }],
            syscalls: 20,
        }
    }

    #[test]
    fn a_report_comes_back_and_is_readable() {
        let report = report();
        let text = serde_json::to_string_pretty(&report).unwrap();
        assert_eq!(CrashReport::read(&text).unwrap(), report);
        let shown = report.to_string();
        for part in [
            "function process 7 of 01:00.0 died at 2026-01-02T03:04:05.678901Z (cordon 1.2.3)",
            "ended: by SIGSYS, by its own word over openat\n",
            "replaced before: 3",
            "12.345 ms before: BarWrite BAR 2 0x40, 4 bytes",
            "landlock: enforced (version 6)",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused_by_what_is_wrong_with_it() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(CrashReport::read(""), Err(ReportError::Empty));
        for cut in 1..text.len() {
            assert_eq!(CrashReport::read(&text[..cut]), Err(ReportError::CutShort), "{cut}");
        }
        let newer = text.replace("\"version\":1", "\"version\":2");
        assert_eq!(CrashReport::read(&newer), Err(ReportError::Newer(2)));
        for garbage in ["garbage", "{}", "[1]", "\u{0}\u{1}", &text.replace("\"of\"", "\"off\"")] {
            let error = CrashReport::read(garbage).unwrap_err();
            assert!(matches!(error, ReportError::Garbage(_)), "{garbage}: {error}");
        }
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let mut long = report();
        long.death.why = "\u{e9}".repeat(100_000);
        long.cut();
        assert_eq!(long.death.why.chars().count(), LONGEST);
    }
}
