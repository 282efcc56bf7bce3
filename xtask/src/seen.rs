//! The calls that confined Mach-O processes were seen to make, beside the finite lists of their profiles.
//!
//! An entry of a list says who needs it: `program` is code of this repository, which the runner sees calling;
//! `library` is what the system's own libraries call for it, of which the runner has only those that it
//! implements by the same call. What is called and not listed is refused while the suites run. What is listed as
//! the program's and never called is told here, and fails the check.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use console::say;

use crate::{Result, root, target};

/// The profiles with finite lists.
const PROFILES: [&str; 3] = ["connection.sb", "function.sb", "lister.sb"];

/// Entries of the program's own that no run reaches, and why they are there.
const UNREACHED: [(&str, &str); 3] = [
    ("SYS_exit", "the runner ends processes by itself: there is no call to be seen"),
    (
        "SYS_sigaction",
        "the runtime's answer to a fault that is no stack overflow, which no suite has",
    ),
    (
        "SYS_sigreturn",
        "the kernel below the runner returns from handlers: there is no call to be seen",
    ),
];

/// A new file for the runner to note calls in.
pub(crate) fn file() -> Result<PathBuf> {
    let path = target().join("tmp").join("macho-seen");
    std::fs::create_dir_all(target().join("tmp"))?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(path),
    }
}

/// An entry of a list: the operation, and the constant of the call.
type Entry = (String, String);

/// Tells which entries were seen; an error when one of the program's own was not.
pub(crate) fn compare(noted: &Path) -> Result {
    let text = std::fs::read_to_string(noted).map_err(|error| {
        format!("{}: no confined process made a call: {error}", noted.display())
    })?;
    let seen: BTreeSet<Entry> = text.lines().filter_map(entry).collect();
    let (mut program, mut library) = (BTreeSet::new(), BTreeSet::new());
    for profile in PROFILES {
        let path = root().join("sandbox-profiles/profiles").join(profile);
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{profile}: {error}"))?;
        for (listed, who) in listed(&text) {
            if who == "program" { &mut program } else { &mut library }.insert(listed);
        }
    }
    let both = |list: &BTreeSet<Entry>| list.intersection(&seen).count();
    say!(
        "\ncalls of confined Mach-O processes: {} of the {} that the profiles list for the program's own code were \
         seen, and {} of the {} for libraries",
        both(&program),
        program.len(),
        both(&library),
        library.len()
    )?;
    let mut missing = Vec::new();
    for (operation, call) in program.difference(&seen) {
        match UNREACHED.iter().find(|(known, _)| known == call) {
            Some((_, why)) => say!("not reached by any run: {operation} {call}: {why}")?,
            None => missing.push(format!("{operation} {call}")),
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        let missing = missing.join(", ");
        Err(format!("listed for the program's own code and never seen: {missing}").into())
    }
}

fn entry(line: &str) -> Option<Entry> {
    line.split_once(' ').map(|(operation, call)| (operation.to_owned(), call.to_owned()))
}

/// The entries of a profile's lists, and who needs each.
fn listed(profile: &str) -> Vec<(Entry, &str)> {
    let (mut operation, mut entries) = ("", Vec::new());
    for line in profile.lines() {
        if let Some(rule) = line.strip_prefix("(allow ") {
            operation = rule.split_whitespace().next().unwrap_or_default();
        } else if let Some((call, comment)) = line.split_once(';') {
            let who = comment.trim_start().split(':').next().unwrap_or_default();
            if line.starts_with(' ') && matches!(who, "program" | "library") {
                entries.push(((operation.to_owned(), call.trim().to_owned()), who));
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_of_a_list_are_read() {
        let profile = "(deny syscall-unix)\n; program: no\n(allow signal (target self)) ; the runtime: abort()\n\
                       (allow syscall-unix (syscall-number ; the list\n    SYS_poll ; program: waits\n    \
                       SYS_getpid ; library: abort()\n))\n(allow syscall-mig (kernel-mig-routine ; list\n    \
                       io_service_close ; library: IOKit\n))\n";
        let entry = |operation: &str, call: &str| (operation.to_owned(), call.to_owned());
        let expected = vec![
            (entry("syscall-unix", "SYS_poll"), "program"),
            (entry("syscall-unix", "SYS_getpid"), "library"),
            (entry("syscall-mig", "io_service_close"), "library"),
        ];
        assert_eq!(listed(profile), expected);
        assert_eq!(super::entry("syscall-unix SYS_poll"), Some(entry("syscall-unix", "SYS_poll")));
        assert_eq!(super::entry("cut"), None);
    }

    #[test]
    fn every_profile_has_lists() {
        for profile in PROFILES {
            let path = root().join("sandbox-profiles/profiles").join(profile);
            let text = std::fs::read_to_string(path).unwrap();
            let entries = listed(&text);
            for operation in ["syscall-unix", "syscall-mach", "syscall-mig", "system-fcntl"] {
                assert!(
                    entries.iter().any(|((of, _), _)| of == operation),
                    "{profile} {operation}"
                );
            }
        }
    }
}
