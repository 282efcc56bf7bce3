//! `cordon report`: a crash report as text.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use console::Output;
use cordon_cli::crash::CrashReport;
use cordon_vmm::text::printable;

use crate::Failure;
use crate::limits::MAX_REPORT;

/// Prints the report in a file.
pub(crate) fn run(path: &Path) -> Result<(), Failure> {
    let failed = |why: String| format!("{}: {why}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let most = u64::try_from(MAX_REPORT).unwrap_or(u64::MAX) + 1;
    file.take(most).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if bytes.len() > MAX_REPORT {
        return Err(failed("It is longer than any crash report".to_owned()).into());
    }
    let report = CrashReport::read(&String::from_utf8_lossy(&bytes));
    let report = report.map_err(|error| failed(error.to_string()))?;
    // Whoever wrote the file may not be ours.
    let text: String = report.to_string().lines().map(|line| printable(line) + "\n").collect();
    Ok(Output::default().text(&text)?)
}
