//! Whether processes can be confined: the profiles, and on a Mac the system itself, asked from outside
//! about a process that is confined.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::line::Line;
use crate::Failure;

pub(super) const CHECK: &str = "confinement";
const BUILD: &str = "build device-proc and cordon from the same sources";

/// Has the confined program say what it finds.
pub(super) fn lines(program: &Path) -> Result<Vec<Line>, Failure> {
    let mut lines = ask(program, &[])?;
    if cfg!(target_os = "macos") {
        for role in ["function", "connection", "lister"] {
            lines.extend(confined(program, role)?);
        }
    }
    Ok(lines)
}

fn cannot_run(program: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |error| format!("cannot run {}: {error}", program.display()).into()
}

/// What the program says to these arguments.
fn ask(program: &Path, arguments: &[&str]) -> Result<Vec<Line>, Failure> {
    let output = Command::new(program)
        .arg("doctor")
        .args(arguments)
        .output()
        .map_err(cannot_run(program))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Line> = text.lines().map(|text| line(text, CHECK)).collect();
    if lines.is_empty() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let errors = cordon_vmm::text::printable(errors.trim());
        return Err(format!("{} doctor: {}: {errors}", program.display(), output.status).into());
    }
    Ok(lines)
}

fn line(text: &str, check: &str) -> Line {
    match text.strip_prefix("ok   ") {
        Some(found) => Line::ok(check, found.trim()),
        None => Line::missing(check, text.trim_start_matches("WRONG").trim(), BUILD),
    }
}

/// A process that is confined and ends with its standard input.
struct Confined(Child);

impl Drop for Confined {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Confines a process as `role` and asks the system about it from outside.
fn confined(program: &Path, role: &str) -> Result<Vec<Line>, Failure> {
    let child = Command::new(program)
        .args(["doctor", "--confine", role])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(cannot_run(program))?;
    let mut child = Confined(child);
    let said = child.0.stdout.take().map(BufReader::new);
    let mut lines = Vec::new();
    // It says everything and then an empty line.
    for text in said.into_iter().flat_map(BufReader::lines) {
        let text = text.map_err(cannot_run(program))?;
        if text.is_empty() {
            break;
        }
        lines.push(line(&text, CHECK));
    }
    let pid = child.0.id().to_string();
    for mut answer in ask(program, &["--ask", &pid])? {
        answer.found = format!("{role}: {}", answer.found);
        lines.push(answer);
    }
    Ok(lines)
}
