//! On which systems each suite of `tests/` runs: Linux, Linux in the portable flavour, a Mac. The unit suites
//! of the crates run on Linux and on a Mac, and as Mach-O programs by `cargo xtask macos`.

use console::say;

use crate::{Result, times};

/// A suite, and where it runs beside Linux.
struct Suite {
    name: &'static str,
    /// In the portable flavour: it starts programs, and what they do depends on tubes and events.
    portable: bool,
    /// On a Mac, against the simulated dext.
    mac: bool,
}

const fn suite(name: &'static str, portable: bool, mac: bool) -> Suite {
    Suite { name, portable, mac }
}

/// All of them. On Linux only are those that look into /proc, take Linux's sandbox apart, or need QEMU.
const SUITES: &[Suite] = &[
    suite("abi_conformance", false, true),
    suite("allocations", false, true),
    suite("attach", true, true),
    suite("attacks", false, false),
    suite("cli", false, true),
    suite("companion", true, true),
    suite("companion_load", false, true),
    suite("config_table", false, true),
    suite("confined_serve", false, false),
    suite("control", true, false),
    suite("crash_reports", false, false),
    suite("crosvm", false, false),
    suite("death", true, true),
    suite("demo", false, true),
    suite("describe", false, false),
    suite("descriptors", false, false),
    suite("device", true, true),
    suite("dext_end", true, true),
    suite("dext_hostile", false, false),
    suite("dext_return", true, true),
    suite("doctor", false, true),
    suite("doctor_linux", false, false),
    suite("events", false, false),
    suite("examples", false, true),
    suite("front", true, false),
    suite("guest", false, false),
    suite("hostile_child", true, true),
    suite("in_process", false, true),
    suite("keep", false, false),
    suite("kill_matrix", true, true),
    suite("lane", true, true),
    suite("limits", false, false),
    suite("live_update", true, false),
    suite("liveness", true, true),
    suite("logs", false, false),
    suite("metrics", true, false),
    suite("output", false, false),
    suite("paths", false, false),
    suite("policy", true, false),
    suite("recovery", true, true),
    suite("root_bridges", false, true),
    suite("rules", false, true),
    suite("run", true, false),
    suite("sandbox", true, false),
    suite("serve", true, false),
    suite("service", true, false),
    suite("signals", true, false),
    suite("socket_files", false, true),
    suite("start_errors", false, false),
    suite("testkit", false, true),
    suite("testkit_serve", false, false),
    suite("upgrade", true, false),
    suite("vfio_guest", false, false),
    suite("vfio_user", true, true),
    suite("vmm", false, false),
];

/// The names of those that run in the portable flavour.
pub(crate) fn portable() -> impl Iterator<Item = &'static str> {
    SUITES.iter().filter(|suite| suite.portable).map(|suite| suite.name)
}

/// Those that `cargo xtask trace --all` runs: not those that set up QEMU or KVM, or whose programs run in another
/// machine, nor those that try by intent what no row allows, or take the sandbox apart. Of those that it runs, some
/// look at what is not as usual there (which file a process runs, what its filter is), and say that they failed.
pub(crate) fn traced() -> impl Iterator<Item = &'static str> {
    SUITES.iter().map(|suite| suite.name).filter(|name| !UNTRACED.contains(name))
}

const UNTRACED: [&str; 7] =
    ["attacks", "crosvm", "guest", "policy", "sandbox", "vfio_guest", "vmm"];

/// Suites that `cargo xtask test` does not run, and the command that does.
const BY_HAND: [(&str, &str); 1] =
    [("iommufd", "cargo xtask iommufd, which builds a kernel that Debian has not")];

/// Says which runs where.
pub(crate) fn print() -> Result {
    times::heading("where each suite runs")?;
    say!("unit suites of every crate: Linux, Mac, Mach-O programs on Linux")?;
    for suite in SUITES {
        let more = [(suite.portable, ", portable flavour on Linux"), (suite.mac, ", Mac")];
        let more: String = more.iter().filter(|(is, _)| *is).map(|(_, text)| *text).collect();
        say!("{}: Linux{more}", suite.name)?;
    }
    for (name, command) in BY_HAND {
        say!("{name}: not here; Linux, by hand: {command}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::root;

    #[test]
    fn every_suite_is_listed_and_those_for_linux_say_so_themselves() {
        let mut found = BTreeSet::new();
        let folders = ["tests/tests", "tests/vfio/tests"].map(|folder| root().join(folder));
        let entries =
            folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap().flatten());
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let file = if path.is_dir() { path.join("main.rs") } else { path };
            if BY_HAND.iter().any(|(by_hand, _)| *by_hand == name) {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let listed = SUITES.iter().find(|suite| suite.name == name);
            let listed = listed.unwrap_or_else(|| panic!("{name} is not listed"));
            let only_linux = text.contains("#![cfg(target_os = \"linux\")]");
            assert_eq!(listed.mac, !only_linux, "{name}");
            found.insert(name);
        }
        assert_eq!(found.len(), SUITES.len(), "one that is listed is not there");
        assert!(portable().count() > 10);
    }
}
