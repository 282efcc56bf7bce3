//! What the kernel and the distribution say of what they permit.

use std::path::{Path, PathBuf};

use super::Outcome;

/// The kinds of namespaces that a child has, by the names of their limits.
const LIMITS: [&str; 6] = ["user", "pid", "mnt", "net", "ipc", "uts"];
/// Switches of distributions: where, and the value that forbids user namespaces to ordinary users.
const SWITCHES: [(&str, &str); 2] = [
    ("kernel.unprivileged_userns_clone", "0"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1"),
];

/// The settings beneath a folder: /proc/sys.
pub(super) struct Settings(PathBuf);

impl Settings {
    pub(super) fn of_this_system() -> Self {
        Self("/proc/sys".into())
    }

    /// The value of `kernel.name`; `None` where this kernel has no such setting.
    fn value(&self, name: &str) -> std::io::Result<Option<String>> {
        match std::fs::read_to_string(self.0.join(name.replace('.', "/"))) {
            Ok(value) => Ok(Some(value.trim().to_owned())),
            // Nothing can be said of a setting where there are none at all.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Path::new(&self.0).metadata().map(|_| None)
            }
            Err(error) => Err(error),
        }
    }

    /// How many namespaces of each kind may be made: none of them is 0.
    pub(super) fn limits(&self) -> Outcome {
        let (mut said, mut zero) = (Vec::new(), Vec::new());
        for kind in LIMITS {
            let name = format!("user.max_{kind}_namespaces");
            match self.value(&name) {
                Ok(Some(value)) if value == "0" => zero.push(name),
                Ok(Some(value)) => said.push(format!("{kind} {value}")),
                Ok(None) => return unread(&name, "this kernel has none"),
                Err(error) => return unread(&name, &error.to_string()),
            }
        }
        if zero.is_empty() {
            Outcome::Present(format!("user.max_*_namespaces: {}", said.join(", ")))
        } else {
            let cure = zero.iter().map(|name| format!("sysctl {name}=10000"));
            let cure = cure.collect::<Vec<_>>().join("; ");
            Outcome::absent(format!("{} is 0", zero.join(", ")), format!("raise it: {cure}"))
        }
    }

    /// What distributions have to forbid user namespaces by. `tried` is what came of making one: a
    /// switch that did not hinder this program is none that is missing.
    pub(super) fn switches(&self, tried: &Outcome) -> Outcome {
        let mut said = Vec::new();
        let mut forbids = None;
        for (name, forbidding) in SWITCHES {
            match self.value(name) {
                Ok(Some(value)) => {
                    if value == forbidding {
                        forbids.get_or_insert((name, value.clone()));
                    }
                    said.push(format!("{name} is {value}"));
                }
                Ok(None) => said.push(format!("there is no {name}")),
                Err(error) => return unread(name, &error.to_string()),
            }
        }
        let said = said.join(", ");
        match (forbids, tried) {
            (None, _) => Outcome::Present(said),
            (Some(_), Outcome::Present(_)) => {
                Outcome::Present(format!("{said}; a user namespace was made all the same"))
            }
            (Some((name, value)), _) if name.contains("apparmor") => Outcome::absent(
                said,
                format!(
                    "give this program an AppArmor profile that permits userns, or set {name} to 0 (it \
                     is {value})"
                ),
            ),
            (Some((name, value)), _) => {
                Outcome::absent(said, format!("set {name} to 1 (it is {value})"))
            }
        }
    }

    /// What a filter can have done to a call.
    pub(super) fn seccomp_actions(&self) -> Outcome {
        let name = "kernel.seccomp.actions_avail";
        match self.value(name) {
            Ok(Some(value)) if value.split(' ').any(|action| action == "kill_process") => {
                Outcome::Present(value)
            }
            Ok(Some(value)) => Outcome::absent(
                format!("{name} has no kill_process: {value}"),
                "Linux 4.14 or newer is needed",
            ),
            Ok(None) => Outcome::absent(
                format!("there is no {name}"),
                "a kernel with CONFIG_SECCOMP_FILTER, 4.14 or newer, is needed",
            ),
            Err(error) => unread(name, &error.to_string()),
        }
    }
}

fn unread(name: &str, why: &str) -> Outcome {
    Outcome::not_tried(format!("{name} cannot be read: {why}"), "mount /proc, and a kernel with it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(values: &[(&str, &str)]) -> (tempfile::TempDir, Settings) {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in values {
            let path = folder.path().join(name.replace('.', "/"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        let settings = Settings(folder.path().to_owned());
        (folder, settings)
    }

    fn made() -> Outcome {
        Outcome::Present(String::new())
    }

    fn refused() -> Outcome {
        Outcome::absent("no", "no")
    }

    fn cure(outcome: &Outcome) -> &str {
        match outcome {
            Outcome::Absent { cure, .. } => cure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_switch_is_blamed_only_where_the_trial_failed() {
        let (_folder, debian) = settings(&[("kernel.unprivileged_userns_clone", "0")]);
        let found = debian.switches(&refused());
        assert_eq!(cure(&found), "set kernel.unprivileged_userns_clone to 1 (it is 0)");
        assert!(matches!(debian.switches(&made()), Outcome::Present(_)));
        let (_folder, ubuntu) = settings(&[
            ("kernel.unprivileged_userns_clone", "1"),
            ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ]);
        assert!(cure(&ubuntu.switches(&refused())).contains("AppArmor profile"));
        assert!(matches!(ubuntu.switches(&made()), Outcome::Present(_)));
        // A refusal by something else is not theirs.
        let (_folder, neither) = settings(&[]);
        assert!(matches!(neither.switches(&refused()), Outcome::Present(_)));
    }

    #[test]
    fn each_limit_that_is_zero_is_named_and_what_cannot_be_read_is_not_tried() {
        let all = LIMITS.map(|kind| format!("user.max_{kind}_namespaces"));
        let mut values: Vec<(&str, &str)> = all.iter().map(|name| (name.as_str(), "7")).collect();
        let (_folder, enough) = settings(&values);
        assert!(matches!(enough.limits(), Outcome::Present(_)));
        values[2].1 = "0";
        let (_folder, none) = settings(&values);
        assert_eq!(cure(&none.limits()), "raise it: sysctl user.max_mnt_namespaces=10000");
        let (_folder, unknown) = settings(&values[..2]);
        assert!(matches!(unknown.limits(), Outcome::NotTried { .. }));
        let gone = Settings("/no/such".into());
        assert!(matches!(gone.switches(&made()), Outcome::NotTried { .. }));
    }

    #[test]
    fn a_filter_must_be_able_to_kill_a_process() {
        let name = "kernel.seccomp.actions_avail";
        let (_folder, new) = settings(&[(name, "kill_process kill_thread trap errno allow")]);
        assert!(matches!(new.seccomp_actions(), Outcome::Present(_)));
        let (_folder, old) = settings(&[(name, "kill trap errno trace allow")]);
        assert!(cure(&old.seccomp_actions()).contains("4.14"));
        let (_folder, none) = settings(&[]);
        assert!(cure(&none.seccomp_actions()).contains("CONFIG_SECCOMP_FILTER"));
    }
}
