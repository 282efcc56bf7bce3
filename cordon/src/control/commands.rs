//! What a peer of the control socket asks for, carried out on its own thread.

use std::os::fd::OwnedFd;

use cordon_cli::protocol::{
    Command, ControlError, Dma, ErrorCode, Listed, PlannedFault, Request, Served, ServerInfo, State,
};
use cordon_vmm::faults::{Fault, FaultReport};
use cordon_vmm::{PassthroughDevice as _, Presence};
use serde::Serialize;
use serde_json::Value;

use super::metrics;
use crate::limits::MAX_CONTROL_FAULTS;
use crate::serve::{Fleet, Slot, Watched};

type Done = Result<Value, ControlError>;

/// Carries a request out; `beside` is the descriptor that came with it.
pub(super) fn carry_out(fleet: &Fleet, request: Request, beside: Option<OwnedFd>) -> Done {
    if beside.is_some() && !matches!(request.command, Command::Upgrade { .. }) {
        let why = "a descriptor came with a command that takes none";
        return Err(ControlError::new(ErrorCode::BadRequest, why));
    }
    match request.command {
        Command::List {} => {
            let functions: Vec<Listed> =
                fleet.slots().iter().map(|slot| listed(fleet, slot)).collect();
            Ok(serde_json::json!({ "type": "functions", "functions": functions }))
        }
        Command::Inspect { device: None } => {
            let server = ServerInfo {
                cordon: env!("CARGO_PKG_VERSION").to_owned(),
                confinement: fleet.confinement().clone(),
                device_proc: fleet.installed().map(|path| path.display().to_string()),
            };
            typed("server", &server)
        }
        Command::Inspect { device: Some(device) } => {
            let slot = fleet.slot(&device)?;
            let watched = slot.watched().ok_or_else(|| not_attached(slot))?;
            typed("function", &served(fleet, &watched))
        }
        Command::Detach { device } => {
            let slot = fleet.slot(&device)?;
            fleet.detach(slot)?;
            typed("detached", &listed(fleet, slot))
        }
        Command::Attach { device } => {
            let slot = fleet.slot(&device)?;
            fleet.attach(slot)?;
            typed("attached", &listed(fleet, slot))
        }
        Command::Revive { device } => {
            let slot = fleet.slot(&device)?;
            fleet.revive(slot)?;
            typed("revived", &listed(fleet, slot))
        }
        Command::Faults { arm, disarm } => faults(fleet, &arm, &disarm),
        Command::Metrics {} => {
            let text = metrics::text(fleet);
            Ok(serde_json::json!({ "type": "metrics", "text": text }))
        }
        Command::Upgrade { connections } => typed("upgraded", &fleet.upgrade(beside, connections)?),
    }
}

/// An object that says what it is.
fn typed(kind: &str, value: &impl Serialize) -> Done {
    let failed = |error: serde_json::Error| ControlError::new(ErrorCode::Failed, error.to_string());
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if let Value::Object(object) = &mut value {
        object.insert("type".to_owned(), kind.into());
    }
    Ok(value)
}

fn not_attached(slot: &Slot) -> ControlError {
    let why = format!("{} is not attached: attach it first", slot.address());
    ControlError::new(ErrorCode::NotAttached, why)
}

fn listed(fleet: &Fleet, slot: &Slot) -> Listed {
    let watched = slot.watched();
    let state = watched.as_ref().map_or(State::Detached, |watched| state(watched));
    let (socket, companion_socket) = fleet.sockets(slot);
    Listed {
        address: slot.address().to_string(),
        state,
        socket,
        companion_socket,
        client: watched.map(|watched| watched.client()),
    }
}

/// Where a function is that is attached.
pub(super) fn state(watched: &Watched) -> State {
    match watched.function.presence() {
        Presence::Gone(_) => State::GivenUp,
        _ if watched.has_failed() => State::Failed,
        Presence::Away(_) => State::Away,
        Presence::Present => State::Served,
    }
}

/// What is known of a function that is attached. Its connection process is asked, which may take its time.
fn served(fleet: &Fleet, watched: &Watched) -> Served {
    let function = &watched.function;
    let (presence, death) = match function.presence() {
        Presence::Present => ("present", None),
        Presence::Away(death) => ("away", Some(death)),
        Presence::Gone(death) => ("gone", Some(death)),
    };
    let programs = fleet.programs_of(watched);
    Served {
        address: function.address().to_string(),
        name: function.info().name.clone(),
        presence: presence.to_owned(),
        why: death.map(|death| death.to_string()),
        function_process: function.pid(),
        connection_process: function.connection().pid(),
        replacements: function.replacements(),
        upgrades: function.upgrades(),
        program: programs.function,
        connection_program: programs.connection,
        next_connection_program: programs.next_connection,
        returns: function.returns(),
        standby: function.has_standby(),
        client: watched.client(),
        dma: function.connection().statistics(function.address()).ok().map(Dma::from),
    }
}

/// All of it or nothing: what cannot be disarmed or armed is found before anything is.
fn faults(fleet: &Fleet, arm: &[String], disarm: &[usize]) -> Done {
    let bad = |why: String| ControlError::new(ErrorCode::BadRequest, why);
    let Some(faults) = fleet.faults() else {
        if arm.is_empty() && disarm.is_empty() {
            return Ok(listing(&[]));
        }
        let why = "this cordon serve was not started with --plan or --fault, so its device processes \
                   are of a program that can do nothing wrong on purpose";
        return Err(ControlError::new(ErrorCode::NoFaults, why));
    };
    let parsed: Result<Vec<Fault>, _> = arm.iter().map(|text| text.parse::<Fault>()).collect();
    let parsed = parsed.map_err(|error| bad(error.to_string()))?;
    for fault in &parsed {
        fault.check().map_err(|error| bad(error.to_string()))?;
    }
    let there = faults.report().len();
    if let Some(number) = disarm.iter().find(|number| **number >= there) {
        return Err(bad(format!(
            "there is no fault {number}: they are numbered from 0, {there} in all"
        )));
    }
    if there + parsed.len() > MAX_CONTROL_FAULTS {
        return Err(bad(format!(
            "a plan has at most {MAX_CONTROL_FAULTS} faults, this one has {there}"
        )));
    }
    disarm.iter().for_each(|number| faults.disarm(*number));
    for fault in parsed {
        faults.add(fault).map_err(|error| bad(error.to_string()))?;
    }
    Ok(listing(&faults.report()))
}

fn listing(reports: &[FaultReport]) -> Value {
    let of = |(number, report): (usize, &FaultReport)| PlannedFault {
        number,
        fault: report.fault.to_string(),
        seen: report.seen,
        fired: report.fired,
        disarmed: report.disarmed,
    };
    let all: Vec<PlannedFault> = reports.iter().enumerate().map(of).collect();
    serde_json::json!({ "type": "faults", "faults": all })
}
