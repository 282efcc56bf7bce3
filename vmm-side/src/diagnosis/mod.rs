//! Whether this system lets a child be started and confined: each thing tried, by the code that does it
//! for every child, before anybody depends on it.
//!
//! Nothing is concluded from what a setting says: namespaces are made, a child confines itself as far as
//! it can and reports each layer, and then makes a forbidden call to show that the filter is in force.
//! Settings are read for the cure. What could not be tried is [`Outcome::NotTried`], never present.

mod settings;
mod trial;

use std::path::Path;

use ipc::wire::sandbox::{Layer, LayerKind, LayerState, SandboxReport};

use self::settings::Settings;
use self::trial::{Kinds, Trial};
use crate::child::ExitStatus;
use crate::sys;
use crate::text::printable;

/// One thing that a child needs of the system, or that is of use to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What: "user namespace".
    pub subject: String,
    /// What came of trying it.
    pub outcome: Outcome,
    /// Whether a child is refused without it. What is not required is reported, and children are
    /// started without it.
    pub required: bool,
}

/// What came of trying something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works; what there is to say of it.
    Present(String),
    /// It does not.
    Absent {
        /// Why.
        cause: String,
        /// What helps here.
        cure: String,
    },
    /// It could not be tried.
    NotTried {
        /// Why not.
        why: String,
        /// What to do so that it can be.
        first: String,
    },
}

impl Outcome {
    fn absent(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Absent { cause: cause.into(), cure: cure.into() }
    }

    fn not_tried(why: impl Into<String>, first: impl Into<String>) -> Self {
        Self::NotTried { why: why.into(), first: first.into() }
    }
}

fn required(subject: impl Into<String>, outcome: Outcome) -> Finding {
    Finding { subject: subject.into(), outcome, required: true }
}

fn useful(subject: impl Into<String>, outcome: Outcome) -> Finding {
    Finding { subject: subject.into(), outcome, required: false }
}

/// Tries everything that starting and confining the `device-proc` program at `program` needs, in the
/// order in which it is needed. Takes some tens of milliseconds, and at most about 15 s on a system that
/// hangs.
#[must_use]
pub fn diagnose(program: &Path) -> Vec<Finding> {
    let settings = Settings::of_this_system();
    let user = trial::namespaces(program, Kinds::User);
    let pid = if matches!(user, Outcome::Present(_)) {
        trial::namespaces(program, Kinds::UserAndPid)
    } else {
        without_user_namespace()
    };
    let mut findings = vec![
        required("/dev/null", null_device()),
        required("/proc", proc()),
        required("device-proc runs", trial::runs(program)),
        required("namespace limits", settings.limits()),
        required("namespace switches", settings.switches(&user)),
        required("user namespace", user),
        required("pid namespace", pid),
    ];
    match Trial::run(program) {
        Err(why) => findings.push(required("confinement", why)),
        Ok(Trial { report, exit }) => {
            findings.extend(layers(&report));
            findings.push(required("forbidden calls kill", forbidden_call(&report, exit)));
        }
    }
    findings.push(required("seccomp actions", settings.seccomp_actions()));
    findings
}

fn null_device() -> Outcome {
    match sys::null_device() {
        Ok(_) => Outcome::Present("opened: the null device".to_owned()),
        Err(error) => Outcome::absent(format!("Cannot open it: {error}"), sys::CURE_OF_NULL),
    }
}

fn proc() -> Outcome {
    let file = "/proc/self/status";
    match std::fs::read_to_string(file) {
        Ok(text) if text.contains("\nPid:") => Outcome::Present(format!("{file} is read")),
        Ok(_) => Outcome::absent(format!("{file} has no Pid"), "mount a proc file system at /proc"),
        Err(error) => Outcome::absent(
            format!("{file}: {error}"),
            "mount /proc where this process runs (mount -t proc proc /proc)",
        ),
    }
}

fn without_user_namespace() -> Outcome {
    Outcome::not_tried(
        "it takes a user namespace of the child's",
        "see the lines 'user namespace' and 'pid namespace' first",
    )
}

/// What a child found when it confined itself.
fn layers(report: &SandboxReport) -> Vec<Finding> {
    let is_isolated = report.layers.iter().any(|layer| {
        layer.kind == LayerKind::UserNamespace && matches!(layer.state, LayerState::Enforced(_))
    });
    let tried_before =
        |layer: &&Layer| !matches!(layer.kind, LayerKind::UserNamespace | LayerKind::PidNamespace);
    let finding = |layer: &Layer| {
        let (subject, needs_user) = (layer.kind.to_string(), needs_user_namespace(layer.kind));
        match &layer.state {
            LayerState::Enforced(said) => required(subject, Outcome::Present(printable(said))),
            LayerState::Partial(_) if layer.kind == LayerKind::ControlGroup => {
                useful(subject, control_group())
            }
            LayerState::Partial(said) => {
                let cure = "a newer kernel has all of it; children are started without";
                useful(subject, Outcome::absent(printable(said), cure))
            }
            LayerState::Missing(_) if needs_user && !is_isolated => {
                required(subject, without_user_namespace())
            }
            LayerState::Missing(said) => {
                let said = printable(said);
                // The layers say the cure after the cause.
                let (cause, cure) = said.split_once("; ").unwrap_or((&said, "see the cause"));
                required(subject, Outcome::absent(cause, cure))
            }
        }
    };
    report.layers.iter().filter(tried_before).map(finding).collect()
}

/// Layers that an ordinary user has only in a user namespace of the child's.
fn needs_user_namespace(layer: LayerKind) -> bool {
    matches!(
        layer,
        LayerKind::MountNamespace
            | LayerKind::NetworkNamespace
            | LayerKind::IpcNamespace
            | LayerKind::UtsNamespace
            | LayerKind::EmptyRoot
            | LayerKind::Capabilities
    )
}

/// Why a child has no control group of its own.
fn control_group() -> Outcome {
    match sys::control_group() {
        Ok(parent) => Outcome::absent(
            format!("one can be made in {}, and the child was not born in it", parent.display()),
            "a kernel with clone3 and CLONE_INTO_CGROUP (5.7), and no filter that forbids it",
        ),
        Err((cause, cure)) => Outcome::absent(cause, cure),
    }
}

/// The child made one after it had reported.
fn forbidden_call(report: &SandboxReport, exit: ExitStatus) -> Outcome {
    let filter = report.layers.iter().find(|layer| layer.kind == LayerKind::Seccomp);
    match (filter.map(|layer| &layer.state), exit) {
        (Some(LayerState::Enforced(_)), ExitStatus::Signal(libc::SIGSYS)) => {
            Outcome::Present("an open after confinement ended the child by SIGSYS".to_owned())
        }
        (Some(LayerState::Enforced(_)), other) => Outcome::absent(
            format!("the child opened a file after confinement, and then: {other}"),
            "whatever runs this kernel's programs (an emulator, a sandbox) takes filters and does not \
             keep to them: run on a kernel that does",
        ),
        _ => Outcome::not_tried("no filter was installed", "see the line 'seccomp' first"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kind: LayerKind, state: LayerState) -> SandboxReport {
        SandboxReport { layers: vec![Layer { kind, state }], syscalls: 1 }
    }

    #[test]
    fn what_needs_a_user_namespace_is_not_called_missing_for_the_lack_of_one() {
        let missing = || LayerState::Missing("not permitted; change its policy".to_owned());
        let mount = || Layer { kind: LayerKind::MountNamespace, state: missing() };
        let with = |state| {
            let layers = vec![Layer { kind: LayerKind::UserNamespace, state }, mount()];
            super::layers(&SandboxReport { layers, syscalls: 1 })
        };
        let found = with(missing());
        assert!(matches!(found[0].outcome, Outcome::NotTried { .. }));
        let found = with(LayerState::Enforced(String::new()));
        assert_eq!(found[0].outcome, Outcome::absent("not permitted", "change its policy"));
        let found = layers(&report(LayerKind::Seccomp, missing()));
        assert!(matches!(found[0].outcome, Outcome::Absent { .. }));
    }

    #[test]
    fn a_filter_that_does_not_kill_is_none() {
        let enforced = report(LayerKind::Seccomp, LayerState::Enforced(String::new()));
        let killed = forbidden_call(&enforced, ExitStatus::Signal(libc::SIGSYS));
        assert!(matches!(killed, Outcome::Present(_)));
        for exit in [ExitStatus::Code(0), ExitStatus::Signal(libc::SIGKILL), ExitStatus::Unknown] {
            let found = forbidden_call(&enforced, exit);
            assert!(matches!(found, Outcome::Absent { .. }), "{found:?}");
        }
        let none = report(LayerKind::Seccomp, LayerState::Missing("no".to_owned()));
        let found = forbidden_call(&none, ExitStatus::Signal(libc::SIGSYS));
        assert!(matches!(found, Outcome::NotTried { .. }));
    }

    #[test]
    fn a_layer_that_holds_in_part_is_told_and_not_required() {
        let partial = LayerState::Partial("the kernel's ABI V1 lacks some".to_owned());
        let found = layers(&report(LayerKind::Landlock, partial));
        assert!(!found[0].required && matches!(found[0].outcome, Outcome::Absent { .. }));
    }
}
