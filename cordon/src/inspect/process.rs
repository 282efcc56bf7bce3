//! `cordon inspect PID`: what confines a process of Cordon's, as the system has it, and what a `cordon serve`
//! says of itself. The system is asked from outside and believes nobody; what it does not show, Landlock, is
//! only in what the server says.

use std::path::Path;

use console::say;
use cordon_cli::confinement::Confinement;
use serde::Serialize;

use crate::{Failure, control, output, sys};

/// What is known of a process from outside.
#[derive(Serialize)]
#[cfg_attr(target_os = "macos", allow(dead_code, reason = "macOS says nothing, so none is made"))]
pub(crate) struct Facts {
    /// Its program's name.
    pub(crate) name: String,
    /// Its user outside.
    pub(crate) user: u32,
    /// Its group outside.
    pub(crate) group: u32,
    /// "none", or what it holds or could get.
    pub(crate) capabilities: String,
    /// Whether no program that it runs gives it any.
    pub(crate) no_new_privileges: bool,
    /// Filters over its system calls.
    pub(crate) filters: u32,
    /// Whose namespaces it is in.
    pub(crate) namespaces: Vec<Namespace>,
    /// "empty", or what there is.
    pub(crate) root: String,
}

/// One namespace.
#[derive(Serialize)]
#[cfg_attr(target_os = "macos", allow(dead_code, reason = "macOS says nothing, so none is made"))]
pub(crate) struct Namespace {
    /// "user", "mnt", "net" and so on.
    pub(crate) kind: &'static str,
    /// "its own", "shared with this program", or why that is not known.
    pub(crate) whose: String,
}

#[derive(Serialize)]
struct Inspection {
    #[serde(rename = "type")]
    kind: &'static str,
    process: u32,
    /// As the system has it.
    system: Facts,
    /// As the server says, if it was asked.
    said: Option<Confinement>,
}

/// Inspects the process `pid`; asks the server at `control` what it says of itself.
pub(crate) fn run(pid: u32, control: Option<&Path>, json: bool) -> Result<(), Failure> {
    let said = control.map(|control| said(control, pid)).transpose()?;
    let inspection = Inspection { kind: "process", process: pid, system: sys::facts(pid)?, said };
    if json {
        return output::json(&inspection);
    }
    Ok(print(&inspection)?)
}

/// What the server at `control` says, if it is that process.
fn said(control: &Path, pid: u32) -> Result<Confinement, Failure> {
    let said = control::inspect_server(control)?.confinement;
    if said.process == pid {
        return Ok(said);
    }
    let (control, other) = (control.display(), said.process);
    Err(format!("the cordon serve at {control} is process {other}, not {pid}").into())
}

fn print(inspection: &Inspection) -> Result<(), console::OutputError> {
    let Facts { name, user, group, capabilities, no_new_privileges, .. } = &inspection.system;
    let Facts { filters, namespaces, root, .. } = &inspection.system;
    say!("Process {} ({name}), as the system has it:", inspection.process)?;
    say!("    user {user}, group {group}")?;
    say!("    capabilities: {capabilities}")?;
    say!("    new privileges by exec: {}", if *no_new_privileges { "none" } else { "POSSIBLE" })?;
    match filters {
        0 => say!("    system calls: NOT filtered")?,
        count => say!("    system calls: filtered, {count} filters")?,
    }
    for namespace in namespaces {
        say!("    {} namespace: {}", namespace.kind, namespace.whose)?;
    }
    say!("    root directory: {root}")?;
    match &inspection.said {
        None => say!("    (--control PATH shows what a cordon serve says of itself)"),
        Some(said) => {
            say!("As it says itself: {said}")?;
            for layer in &said.layers {
                say!("    {:18} {:9} {}", layer.name, layer.state, layer.detail)?;
            }
            Ok(())
        }
    }
}
