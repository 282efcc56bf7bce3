//! What `cordon doctor` has this program say of its own confinement: each Seatbelt profile read and
//! asked every probe, and on a Mac the system itself, from inside of a confined process.

use sandbox_profiles::seatbelt::{self, LAUNCH, PROBES, Probe, Profile};
use sandbox_profiles::{Mode, Role};

/// Roles by name.
pub const ROLES: [(&str, Role); 3] =
    [("function", Role::Function), ("connection", Role::Connection), ("lister", Role::Lister)];

/// One line, and whether it is good news.
pub type Finding = (bool, String);

/// Asks every profile every probe, as the language has it.
#[must_use]
pub fn profiles() -> Vec<Finding> {
    let own = ROLES.iter().map(|(name, role)| {
        let confined = |probe: &Probe| probe.confined;
        read(name, Profile::parse(seatbelt::profile(*role), &[]), confined)
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

/// Confines this process as `role` and asks the system what it would be allowed.
#[must_use]
pub fn confine_and_ask(name: &str, role: Role) -> Vec<Finding> {
    let report = match sandbox_profiles::confine(role, Mode::Relaxed, &[], 0) {
        Ok(report) => report,
        Err(error) => return vec![(false, format!("{name}: {error}"))],
    };
    let layer = |(layer, state): &(sandbox_profiles::Layer, sandbox_profiles::LayerState)| {
        let good = !matches!(state, sandbox_profiles::LayerState::Missing(_));
        (good, format!("{name}: {layer}: {state:?}"))
    };
    let mut findings: Vec<Finding> = report.layers.iter().map(layer).collect();
    findings.extend(ask(name));
    findings
}

#[cfg(target_os = "macos")]
fn ask(name: &str) -> Vec<Finding> {
    let own = std::process::id();
    let mut asked = 0;
    let mut findings = Vec::new();
    for probe in PROBES {
        let Some(allowed) = sandbox_profiles::allows(own, probe) else { continue };
        asked += 1;
        if allowed != probe.confined {
            let found = if allowed { "allowed" } else { "denied" };
            let text = format!("{name}: {} on {:?} is {found}", probe.operation, probe.target);
            findings.push((false, text));
        }
    }
    let whole = findings.is_empty();
    findings.push((whole, format!("{name}: the system was asked {asked} of {}", PROBES.len())));
    findings
}

#[cfg(not(target_os = "macos"))]
fn ask(name: &str) -> Vec<Finding> {
    vec![(true, format!("{name}: there is no Seatbelt on this system to ask"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_read_and_holds() {
        let findings = profiles();
        assert_eq!(findings.len(), 4);
        assert!(findings.iter().all(|(good, _)| *good), "{findings:?}");
    }
}
