//! What the system says of a child's confinement, asked from outside. None of it has run on a Mac yet:
//! see docs/macos.md.
#![expect(unsafe_code, reason = "sandbox_check has no binding in any library")]

use std::ffi::{CStr, c_char, c_int};

// libSystem exports it; no header declares it.
unsafe extern "C" {
    fn sandbox_check(pid: libc::pid_t, operation: *const c_char, kind: c_int, ...) -> c_int;
}

/// Kinds of what an operation is tried on.
const NOTHING: c_int = 0;
const PATH: c_int = 1;
const SERVICE: c_int = 2;
/// So that a question does not look like an attempt in the system's log.
const NO_REPORT: c_int = 0x4000_0000;

/// What no role may do, by whatever profile it is confined: whoever could would not be confined. Of
/// `process-exec` only the family can be asked.
const NEVER: [(&CStr, c_int, Option<&CStr>); 7] = [
    (c"file-read-data", PATH, Some(c"/private/etc/master.passwd")),
    (c"file-write-create", PATH, Some(c"/private/tmp/cordon-never")),
    (c"process-exec*", PATH, Some(c"/bin/sh")),
    (c"process-fork", NOTHING, None),
    (c"network-outbound", NOTHING, None),
    (c"mach-lookup", SERVICE, Some(c"com.apple.SecurityServer")),
    (c"system-socket", NOTHING, None),
];

/// Whether the system would refuse process `pid`, which is ours and not reaped, each of these.
///
/// # Errors
/// What it would allow, or does not say: a question without an answer is no refusal.
pub(super) fn check(pid: libc::pid_t) -> Result<(), String> {
    check_by(|operation, kind, target| {
        let operation = operation.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: strings that end in NUL, or no operation, which asks whether it is confined at all; a
        // filter that takes an argument is given one.
        unsafe {
            match target {
                Some(target) => sandbox_check(pid, operation, kind, target.as_ptr()),
                None => sandbox_check(pid, operation, kind),
            }
        }
    })
}

fn check_by(ask: impl Fn(Option<&CStr>, c_int, Option<&CStr>) -> c_int) -> Result<(), String> {
    match ask(None, NOTHING, None) {
        1 => {}
        0 => return Err("no profile applies to it".to_owned()),
        other => return Err(format!("whether a profile applies is answered with {other}")),
    }
    for (operation, kind, target) in NEVER {
        let what = || match target {
            Some(target) => {
                format!("{} on {}", operation.to_string_lossy(), target.to_string_lossy())
            }
            None => operation.to_string_lossy().into_owned(),
        };
        match ask(Some(operation), kind | NO_REPORT, target) {
            1 => {}
            0 => return Err(format!("{} is allowed", what())),
            other => return Err(format!("{} is answered with {other}", what())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_confined_only_if_every_question_is_answered_with_a_refusal() {
        check_by(|_, _, _| 1).unwrap();
        for (answer, says) in [(0, "allowed"), (-1, "answered with -1")] {
            for (wrong, _, _) in NEVER {
                let ask = |operation: Option<&CStr>, _: c_int, _: Option<&CStr>| {
                    if operation == Some(wrong) { answer } else { 1 }
                };
                let why = check_by(ask).unwrap_err();
                assert!(why.contains(says) && why.contains(&*wrong.to_string_lossy()), "{why}");
            }
        }
        assert!(check_by(|_, _, _| 0).unwrap_err().contains("no profile"));
        assert!(check_by(|_, _, _| -1).unwrap_err().contains("-1"));
    }

    #[test]
    fn this_process_which_is_not_confined_is_not_called_so() {
        let own = libc::pid_t::try_from(std::process::id()).unwrap();
        assert!(check(own).unwrap_err().contains("no profile"));
    }
}
