//! The macOS policy as data: Seatbelt profiles, and probes of what they allow.
//!
//! A profile is a file in `profiles/`, given to the system as it is: of version 3, with finite lists of
//! system calls, Mach traps and kernel routines, and for systems that do not take that, of version 1.
//! [`Profile::parse`] knows the part of the language that these files use, [`Profile::allows`] answers
//! what the system would: as libsandbox does, and (deny default) leaves some operations open. [`PROBES`]
//! are asked of each profile wherever the tests run, and of the system itself by `cordon doctor`.

mod language;
mod operations;
mod probes;
mod reader;

pub use language::{Profile, Target, Version};
pub use probes::{PROBES, Probe};
pub use reader::ProfileError;

use crate::Role;

/// A profile for a process that confines itself, of version 3.
#[must_use]
pub fn profile(role: Role) -> &'static str {
    match role {
        // There is no VFIO where there is Seatbelt: what it adds to a role is nothing.
        Role::Connection | Role::VfioConnection | Role::IommufdConnection => {
            include_str!("../../profiles/connection.sb")
        }
        Role::Function | Role::VfioFunction => include_str!("../../profiles/function.sb"),
        Role::Lister => include_str!("../../profiles/lister.sb"),
    }
}

/// The same of version 1, which bounds no system calls: for a system that does not take the other.
#[must_use]
pub fn fallback(role: Role) -> &'static str {
    match role {
        Role::Connection | Role::VfioConnection | Role::IommufdConnection => {
            include_str!("../../profiles/version-1/connection.sb")
        }
        Role::Function | Role::VfioFunction => include_str!("../../profiles/version-1/function.sb"),
        Role::Lister => include_str!("../../profiles/version-1/lister.sb"),
    }
}

/// The profile for a process that is started confined, by sandbox-exec.
pub const LAUNCH: &str = include_str!("../../profiles/launch.sb");

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 3] = [Role::Connection, Role::Function, Role::Lister];
    const CALLS: [&str; 4] = ["syscall-unix", "syscall-mach", "syscall-mig", "system-fcntl"];

    fn parsed(text: &str) -> Profile {
        let parameters = [("PROGRAM", "/opt/cordon/device-proc"), ("PROGRAM_DIR", "/opt/cordon")];
        Profile::parse(text, &parameters).unwrap()
    }

    #[test]
    fn every_probe_of_every_profile_holds() {
        let mut asked = 0;
        let mut ask = |name: &str, text: &str, expected: fn(&Probe) -> bool| {
            let profile = parsed(text);
            for probe in PROBES {
                let found = profile.allows(probe.operation, &probe.target).unwrap();
                assert_eq!(found, expected(probe), "{name}: {probe:?}");
                asked += 1;
            }
        };
        for role in ROLES {
            ask("version 3", profile(role), |probe| probe.confined);
            ask("version 1", fallback(role), |probe| probe.fallback);
        }
        ask("launch", LAUNCH, |probe| probe.launched);
        let allowed = PROBES.iter().filter(|probe| probe.launched).count();
        assert!(allowed > 8 && PROBES.len() - allowed > 30);
        // Past the runner, which keeps what passing tests print.
        let said = format!("Seatbelt: {asked} probes of 7 profiles hold");
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{said}\n"));
    }

    #[test]
    fn every_profile_denies_by_default_and_says_who_needs_what_it_allows() {
        let all = ROLES.map(profile).into_iter().chain(ROLES.map(fallback)).chain([LAUNCH]);
        for text in all {
            let entry = |line: &&str| {
                line.starts_with("(allow") || (line.starts_with("    ") && !line.contains('('))
            };
            for line in text.lines().filter(entry) {
                let why = line.split_once("; ").map_or("", |(_, why)| why);
                assert!(why.contains(": ") && why.len() > 12, "{line}");
            }
            assert!(text.contains("\n(deny default)\n"));
        }
    }

    #[test]
    fn a_profile_that_confines_itself_allows_nothing_but_what_is_its_own() {
        let own = ["signal", "process-info-pidinfo", "process-info-setcontrol", "sysctl-read"];
        for role in ROLES {
            let calls = ["system-fcntl", "syscall-unix", "syscall-mach", "syscall-mig"];
            let allowed = parsed(profile(role));
            assert_eq!(allowed.allowed(), [&own[..], &calls].concat());
            assert_eq!(parsed(fallback(role)).allowed(), [&own[..], &calls[..1]].concat());
        }
    }

    #[test]
    fn everything_that_deny_default_leaves_open_is_denied_by_name() {
        let matching = |open: &str| -> Vec<&str> {
            let known = operations::OPERATIONS.iter().copied();
            known.filter(|operation| operations::names(open, operation)).collect()
        };
        for open in operations::LEFT_OPEN.iter().flat_map(|open| matching(open)) {
            for role in ROLES {
                let three = parsed(profile(role));
                assert_eq!(three.version(), Version::Three);
                assert!(three.denies_by_name(open), "{role:?}: {open}");
                // What the older version cannot bound is what it is the fall-back for.
                let bounded = !["syscall-unix", "syscall-mach", "syscall-mig"].contains(&open);
                assert_eq!(
                    parsed(fallback(role)).denies_by_name(open),
                    bounded,
                    "{role:?}: {open}"
                );
            }
        }
    }

    #[test]
    fn the_lists_of_calls_are_finite_without_repetition_and_only_the_connection_process_sends_descriptors()
     {
        for role in ROLES {
            let profile = parsed(profile(role));
            for operation in CALLS {
                let mut calls = profile.calls(operation);
                let count = calls.len();
                assert!((1..=48).contains(&count), "{role:?}: {count} for {operation}");
                calls.sort_unstable();
                calls.dedup();
                assert_eq!(calls.len(), count, "{role:?}: one is in {operation} twice");
            }
            let sends = profile.calls("syscall-unix").contains(&"SYS_sendmsg");
            assert_eq!(sends, role == Role::Connection);
        }
    }
}
