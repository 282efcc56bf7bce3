//! The macOS policy as data: Seatbelt profiles, and probes of what they allow.
//!
//! A profile is a file in `profiles/`, given to the system as it is. [`Profile::parse`] knows the
//! part of the language that these files use, [`Profile::allows`] answers what the system would:
//! the last rule that matches wins, and (deny default) leaves some operations open. [`PROBES`] are
//! asked of each profile wherever the tests run, and of the system itself by `cordon doctor`.

mod language;
mod probes;

pub use language::{Profile, ProfileError, Target};
pub use probes::{PROBES, Probe};

use crate::Role;

/// A profile for a process that confines itself.
#[must_use]
pub fn profile(role: Role) -> &'static str {
    match role {
        Role::Connection => include_str!("../../profiles/connection.sb"),
        Role::Function => include_str!("../../profiles/function.sb"),
        Role::Lister => include_str!("../../profiles/lister.sb"),
    }
}

/// The profile for a process that is started confined, by sandbox-exec.
pub const LAUNCH: &str = include_str!("../../profiles/launch.sb");

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 3] = [Role::Connection, Role::Function, Role::Lister];

    #[test]
    fn every_probe_of_every_profile_holds() {
        let mut asked = 0;
        for role in ROLES {
            let parsed = Profile::parse(profile(role), &[]).unwrap();
            for probe in PROBES {
                let found = parsed.allows(probe.operation, &probe.target).unwrap();
                assert_eq!(found, probe.confined, "{role:?}: {probe:?}");
                asked += 1;
            }
        }
        let parameters = [("PROGRAM", "/opt/cordon/device-proc"), ("PROGRAM_DIR", "/opt/cordon")];
        let parsed = Profile::parse(LAUNCH, &parameters).unwrap();
        for probe in PROBES {
            let found = parsed.allows(probe.operation, &probe.target).unwrap();
            assert_eq!(found, probe.launched, "launch: {probe:?}");
            asked += 1;
        }
        let allowed = PROBES.iter().filter(|probe| probe.launched).count();
        assert!(allowed > 8 && PROBES.len() - allowed > 30);
        // Past the runner, which keeps what passing tests print.
        let said = format!("Seatbelt: {asked} probes of 4 profiles hold");
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{said}\n"));
    }

    #[test]
    fn every_profile_denies_by_default_and_says_who_needs_what_it_allows() {
        for text in ROLES.map(profile).into_iter().chain([LAUNCH]) {
            for line in text.lines().filter(|line| line.starts_with("(allow")) {
                let why = line.rsplit_once("; ").map_or("", |(_, why)| why);
                assert!(why.contains(": ") && why.len() > 12, "{line}");
            }
            assert!(text.contains("\n(deny default)\n"));
        }
    }

    #[test]
    fn a_profile_that_confines_itself_allows_nothing_but_what_is_its_own() {
        for role in ROLES {
            let parsed = Profile::parse(profile(role), &[]).unwrap();
            assert_eq!(
                parsed.allowed(),
                ["signal", "process-info-pidinfo", "process-info-setcontrol", "sysctl-read"]
            );
        }
    }
}
