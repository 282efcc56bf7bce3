//! What `cordon doctor` has this program say of its own confinement: each Seatbelt profile read and
//! asked every probe, and on a Mac the system itself, from inside of a confined process.

use std::os::fd::AsFd as _;

use ipc::Deadline;
use ipc::wire::handshake;
use sandbox_profiles::seatbelt::{self, LAUNCH, PROBES, Probe, Profile};
use sandbox_profiles::{Given, Mode, Network, Role};

use crate::start::{self, Confinement, PEER_TIMEOUT, RoleError};

/// Roles by name.
pub const ROLES: [(&str, Role); 3] =
    [("function", Role::Function), ("connection", Role::Connection), ("lister", Role::Lister)];

/// One line, and whether it is good news.
pub type Finding = (bool, String);

/// Asks every profile every probe, as the language has it.
#[must_use]
pub fn profiles() -> Vec<Finding> {
    let own = ROLES.iter().flat_map(|(name, role)| {
        let confined = |probe: &Probe| probe.confined;
        let fallback = |probe: &Probe| probe.fallback;
        [
            read(name, Profile::parse(seatbelt::profile(*role), &[]), confined),
            read(
                &format!("{name} (version 1)"),
                Profile::parse(seatbelt::fallback(*role), &[]),
                fallback,
            ),
        ]
    });
    let parameters = [("PROGRAM", "/opt/cordon/device-proc"), ("PROGRAM_DIR", "/opt/cordon")];
    let launch = read("launch", Profile::parse(LAUNCH, &parameters), |probe| probe.launched);
    own.chain(std::iter::once(launch)).collect()
}

fn read(
    name: &str,
    profile: Result<Profile, seatbelt::ProfileError>,
    expected: impl Fn(&Probe) -> bool,
) -> Finding {
    let profile = match profile {
        Ok(profile) => profile,
        Err(error) => return (false, format!("profile {name}: {error}")),
    };
    let holds = |probe: &&Probe| {
        profile.allows(probe.operation, &probe.target).is_ok_and(|found| found == expected(probe))
    };
    let held = PROBES.iter().filter(holds).count();
    (held == PROBES.len(), format!("profile {name}: {held} of {} probes hold", PROBES.len()))
}

/// Confines this process as `role` and says what confines it. Whoever started it then asks the system
/// about it ([`ask`]): from inside even asking is denied.
#[must_use]
pub fn confine(name: &str, role: Role) -> Vec<Finding> {
    let report = match sandbox_profiles::confine(role, Mode::Relaxed, &[], Given::default()) {
        Ok(report) => report,
        Err(error) => return vec![(false, format!("{name}: {error}"))],
    };
    let layer = |(layer, state): &(sandbox_profiles::Layer, sandbox_profiles::LayerState)| {
        let good = !matches!(state, sandbox_profiles::LayerState::Missing(_));
        (good, format!("{name}: {layer}: {state:?}"))
    };
    report.layers.iter().map(layer).collect()
}

/// Confines this process, which the VMM side started as it starts every role, as far as that can be
/// done; sends what came of it, and makes a call that every role's filter forbids. So the VMM side
/// sees by its end whether the filter is in force.
///
/// # Errors
/// [`RoleError`] when there is no VMM side to report to.
pub fn report(name: &str) -> Result<(), RoleError> {
    let tube = start::tube_at(TUBE)?;
    let known = ROLES.iter().find(|(known, _)| *known == name).map(|(_, role)| *role);
    let role = known.unwrap_or(Role::Lister);
    let says = match role {
        Role::Connection | Role::VfioConnection | Role::IommufdConnection => {
            handshake::Role::Connection
        }
        Role::Function | Role::VfioFunction => handshake::Role::Function,
        Role::Lister => handshake::Role::Lister,
    };
    let mut tube = start::greet(tube, says)?;
    let (mode, network) = (Mode::Relaxed, Network::Shared);
    let confinement = Confinement::Process { mode, guest_memory: None, network };
    let report = start::confine(confinement, role, &[tube.as_fd()], 0)?;
    tube.send(0, &report, &[], Deadline::after(PEER_TIMEOUT))?;
    let _ = std::fs::File::open("/");
    Ok(())
}

/// Where the VMM side leaves the tube.
const TUBE: i32 = 3;

/// Asks the system what process `pid`, which is confined as a role, would be allowed. A question without
/// an answer is a failure.
#[cfg(target_os = "macos")]
#[must_use]
pub fn ask(pid: u32) -> Vec<Finding> {
    use sandbox_profiles::Answer;
    let mut asked = 0;
    let mut findings = Vec::new();
    for probe in PROBES {
        let expected = if probe.confined { Answer::Allowed } else { Answer::Denied };
        match sandbox_profiles::ask(pid, probe) {
            Answer::NotAskable => continue,
            found if found == expected => {}
            found => {
                let text = format!("{} on {:?}: {found:?}", probe.operation, probe.target);
                findings.push((false, text));
            }
        }
        asked += 1;
    }
    let whole = findings.is_empty() && asked > 0;
    findings.push((whole, format!("the system was asked {asked} of {} probes", PROBES.len())));
    findings
}

/// There is no Seatbelt on this system to ask.
#[cfg(not(target_os = "macos"))]
#[must_use]
pub fn ask(_: u32) -> Vec<Finding> {
    vec![(false, "there is no Seatbelt on this system to ask".to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_read_and_holds() {
        let findings = profiles();
        assert_eq!(findings.len(), 7);
        assert!(findings.iter().all(|(good, _)| *good), "{findings:?}");
    }
}
