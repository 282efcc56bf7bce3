//! The lines of Linux: what a child needs, tried by the code that starts and confines every child, and
//! what a VMM has use for beside it.

use std::path::Path;

use cordon_vmm::diagnosis::{self, Finding, Outcome};

use super::line::Line;
use crate::sys;

/// All of them.
pub(super) fn lines(program: &Path) -> Vec<Line> {
    let mut lines: Vec<Line> = diagnosis::diagnose(program).into_iter().map(line).collect();
    lines.push(locked_memory(sys::lock_a_page()));
    lines.push(kvm(sys::make_a_kvm_machine()));
    lines
}

fn line(finding: Finding) -> Line {
    let Finding { subject, outcome, required, .. } = finding;
    let line = match outcome {
        Outcome::Present(found) => Line::ok(&subject, found),
        Outcome::Absent { cause, cure } => Line::missing(&subject, cause, cure),
        Outcome::NotTried { why, first } => Line::unknown(&subject, why, first),
    };
    if required { line } else { line.optional() }
}

/// No process of Cordon's locks memory; a VMM beside it may be told to.
fn locked_memory(tried: Result<String, std::io::Error>) -> Line {
    let check = "locked memory";
    let line = match tried {
        Ok(limit) => Line::ok(check, format!("a page was locked; {limit}")),
        Err(error) => Line::missing(
            check,
            format!("a page cannot be locked: {error}"),
            "only a VMM that locks its guest's memory needs it: raise ulimit -l (under systemd: LimitMEMLOCK=)",
        ),
    };
    line.optional()
}

/// What went wrong, and with what.
type Failed = (&'static str, std::io::Error);

/// VMMs run without it too, slowly.
fn kvm(tried: Result<i32, Failed>) -> Line {
    let check = "KVM";
    let line = match tried {
        Ok(version) => Line::ok(check, format!("a machine was made; version {version}")),
        Err((what, error)) => {
            let cure = match error.raw_os_error() {
                Some(libc::ENOENT) => {
                    "load kvm_intel or kvm_amd, and switch virtualization on in the firmware or in the \
                     hypervisor that this machine runs in"
                }
                Some(libc::EACCES | libc::EPERM) => {
                    "add this user to the group kvm (usermod -a -G kvm NAME), and log in again"
                }
                Some(libc::EBUSY) => "another hypervisor has the processor: end it",
                _ => "/dev/kvm must be the device of a kernel with KVM (mknod /dev/kvm c 10 232)",
            };
            Line::missing(check, format!("cannot {what}: {error}"), cure)
        }
    };
    line.optional()
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::super::line::State;
    use super::*;

    #[test]
    fn what_a_vmm_has_use_for_is_told_and_not_required() {
        for (errno, says) in [
            (libc::ENOENT, "kvm_intel"),
            (libc::EACCES, "group kvm"),
            (libc::EBUSY, "another hypervisor"),
            (libc::ENOTTY, "mknod"),
        ] {
            let line = kvm(Err(("open /dev/kvm", Error::from_raw_os_error(errno))));
            assert!(line.state == State::Missing && !line.required);
            assert!(line.cure.unwrap().contains(says), "{errno}");
        }
        assert_eq!(kvm(Ok(12)).state, State::Ok);
        let line = locked_memory(Err(Error::from_raw_os_error(libc::EPERM)));
        assert!(line.state == State::Missing && !line.required);
    }
}
