//! `cordon doctor` on Linux: each thing is taken away from it, as an ordinary user can, and its line says so.
//!
//! What is taken away is taken away of namespaces of its own, or by a limit or a filter. `unshare`,
//! `prlimit` are part of Debian's base system (util-linux).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::Command;

use cordon_tests::{Simulator, program, write_script};
use serde_json::Value;

/// What doctor found: its exit status, its lines, and what it said on standard error.
struct Found {
    status: i32,
    said: Value,
    errors: String,
}

impl Found {
    fn line(&self, check: &str) -> &Value {
        let lines = self.said["lines"].as_array().unwrap();
        let mut found = lines.iter().filter(|line| line["check"] == check);
        let line = found.next().unwrap_or_else(|| panic!("there is no line '{check}': {self}"));
        assert!(found.next().is_none(), "'{check}' is there twice: {self}");
        line
    }

    fn state(&self, check: &str) -> &str {
        self.line(check)["state"].as_str().unwrap()
    }

    /// The line is missing, with all of these in what was found and the cure, and doctor failed for it.
    fn assert_missing(&self, check: &str, parts: &[&str]) {
        let line = self.line(check);
        assert_eq!(line["state"], "missing", "{check}: {self}");
        assert!(line["cure"].as_str().is_some_and(|cure| !cure.is_empty()), "{check}: {line}");
        let text = format!("{} {}", line["found"], line["cure"]);
        for part in parts {
            assert!(text.contains(part), "'{part}' is not in: {text}");
        }
        let is_required = line["required"] == true;
        assert!(!is_required || self.status == 1, "{check}: {self}");
        assert!(!is_required || self.errors.contains("not as "), "{}", self.errors);
    }

    /// These could not be tried, and are not called well or missing.
    fn assert_unknown(&self, checks: &[&str]) {
        for check in checks {
            assert_eq!(self.state(check), "unknown", "{check}: {self}");
            assert!(self.line(check)["cure"].is_string(), "{check}: {self}");
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}: {:#}\n{}", self.status, self.said, self.errors)
    }
}

/// Runs it by the words before it.
fn doctor(before: &[&str], more: &[&str]) -> Found {
    let cordon = program("cordon").display().to_string();
    let line = before.iter().copied().chain([cordon.as_str(), "doctor", "--json"]);
    let line: Vec<&str> = line.chain(more.iter().copied()).collect();
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).env_remove("CORDON_DEXT").env_remove("RUST_LOG");
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
    Found { status: output.status.code().unwrap(), said, errors }
}

/// Runs it after a script, in namespaces of its own.
fn doctor_after(script: &str) -> Found {
    let script = format!("set -e; {script}; exec \"$@\"");
    doctor(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"], &[])
}

/// Runs it under a filter that forbids calls.
fn filtered(calls: &[&str], script: &str) -> Found {
    let filtered = program("filtered").display().to_string();
    let script = format!("set -e; {script}; exec \"$@\"");
    let namespaces = ["unshare", "--user", "--map-root-user", "--mount"];
    let before = [&namespaces[..], &["sh", "-c", &script, "sh", &filtered], calls, &["--"]];
    doctor(&before.concat(), &[])
}

/// What a child is confined by, as doctor names it.
const LAYERS: [&str; 16] = [
    "descriptors",
    "user namespace",
    "pid namespace",
    "mount namespace",
    "network namespace",
    "ipc namespace",
    "uts namespace",
    "empty root",
    "resource limits",
    "address space",
    "capabilities",
    "no new privileges",
    "not dumpable",
    "death with parent",
    "landlock",
    "seccomp",
];
const REST: [&str; 6] = [
    "device-proc is installed",
    "/dev/null",
    "/proc",
    "namespace limits",
    "namespace switches",
    "seccomp actions",
];

#[test]
fn where_suites_run_all_that_is_required_is_there_and_was_tried() {
    let simulator = Simulator::usual();
    let found = doctor(&["env"], &["--dext", &simulator.endpoint()]);
    assert_eq!(found.status, 0, "{found}");
    for check in LAYERS.iter().chain(&REST).chain(&["forbidden calls kill", "the dext answers"]) {
        assert_eq!(found.state(check), "ok", "{check}: {found}");
    }
    assert!(found.line("landlock")["found"].as_str().unwrap().contains("ABI V"), "{found}");
    // What is of use only is there with either answer, and never unknown.
    for check in ["control group", "locked memory", "KVM"] {
        let line = found.line(check);
        assert!(line["required"] == false && line["state"] != "unknown", "{check}: {found}");
    }
    assert_eq!(found.said["type"], "doctor");
    let lines = found.said["lines"].as_array().unwrap();
    let count = |state: &str| lines.iter().filter(|line| line["state"] == state).count();
    for state in ["ok", "missing", "unknown"] {
        assert_eq!(found.said[state], count(state), "{found}");
    }
    assert_eq!(found.said["optional"], found.said["missing"], "{found}");
    // Nobody said where the dext is: that it is well is not said.
    let found = doctor(&["env"], &[]);
    assert_eq!(found.status, 3, "{found}");
    found.assert_unknown(&["the dext answers", "devices answer", "addresses are unique"]);
}

#[test]
fn namespaces_at_their_limit() {
    for (limit, check) in [
        ("pid", "pid namespace"),
        ("mnt", "mount namespace"),
        ("net", "network namespace"),
        ("ipc", "ipc namespace"),
        ("uts", "uts namespace"),
    ] {
        let found = doctor_after(&format!("echo 0 > /proc/sys/user/max_{limit}_namespaces"));
        let name = format!("user.max_{limit}_namespaces");
        found.assert_missing(check, &["No space left", &name]);
        found.assert_missing("namespace limits", &[&name, "raise it: sysctl"]);
        for other in ["user namespace", "seccomp", "landlock"] {
            assert_eq!(found.state(other), "ok", "{found}");
        }
    }
    let found = doctor_after("echo 0 > /proc/sys/user/max_user_namespaces");
    found
        .assert_missing("user namespace", &["No space left", "user.max_user_namespaces (it is 0)"]);
    found.assert_missing("namespace limits", &["user.max_user_namespaces"]);
    // It was not tried, and is not called missing.
    found.assert_unknown(&["pid namespace"]);
    assert_eq!(found.state("seccomp"), "ok", "{found}");
}

#[test]
fn switches_of_distributions_and_what_forbids_user_namespaces() {
    let switch = |name: &str, value: &str| {
        format!("mount -t tmpfs none /proc/sys/kernel; echo {value} > /proc/sys/kernel/{name}")
    };
    let (debian, ubuntu) = ("unprivileged_userns_clone", "apparmor_restrict_unprivileged_userns");
    let found = filtered(&["user-namespace"], &switch(debian, "0"));
    found.assert_missing("namespace switches", &["set kernel.unprivileged_userns_clone to 1"]);
    found.assert_missing("user namespace", &["not permitted", "unprivileged_userns_clone to 1"]);
    // What takes one was not tried with one.
    found.assert_unknown(&["pid namespace"]);
    let found = filtered(&["user-namespace"], &switch(ubuntu, "1"));
    found.assert_missing("namespace switches", &["AppArmor profile", ubuntu]);
    let found = filtered(&["user-namespace"], "true");
    found.assert_missing("user namespace", &["not permitted", "seccomp filter", "CLONE_NEWUSER"]);
    assert_eq!(found.state("namespace switches"), "ok", "they are not to blame: {found}");
    // A switch that hinders nobody is no failure.
    let found = doctor_after(&switch(debian, "0"));
    assert_eq!(found.state("namespace switches"), "ok", "{found}");
    assert_eq!(found.state("user namespace"), "ok", "{found}");
    found.assert_missing("seccomp actions", &["actions_avail", "CONFIG_SECCOMP_FILTER"]);
}

#[test]
fn no_proc_and_no_null_device() {
    let found = doctor_after("mount -t tmpfs none /proc");
    found.assert_missing("/proc", &["No such file", "mount -t proc"]);
    found.assert_missing("user namespace", &["/proc/self/uid_map", "mount /proc"]);
    found.assert_unknown(&["namespace limits", "namespace switches", "seccomp actions"]);
    let found = doctor_after("mount -t tmpfs none /dev");
    found.assert_missing("/dev/null", &["No such file", "mount a /dev"]);
    found.assert_missing("device-proc runs", &["Cannot open /dev/null", "mount a /dev"]);
    found.assert_missing("KVM", &["/dev/kvm", "load kvm_intel"]);
    found.assert_unknown(&["user namespace", "confinement"]);
    let found = doctor_after("mount -t tmpfs none /dev; touch /dev/null");
    found.assert_missing("/dev/null", &["no device", "mount a /dev"]);
}

#[test]
fn a_filter_that_is_over_it_already() {
    for (call, check, parts) in [
        ("unshare", "mount namespace", &["not permitted", "seccomp filter"][..]),
        ("mount", "empty root", &["make the mounts its own", "seccomp filter"]),
        ("pivot_root", "empty root", &["cannot make it the root directory"]),
        ("capset", "capabilities", &["not permitted", "seccomp filter"]),
        ("landlock", "landlock", &["a seccomp filter hides it", "Linux 5.13"]),
        ("seccomp", "seccomp", &["not permitted", "no filter over this process"]),
        ("close_range", "device-proc runs", &["Cannot close the descriptors", "close_range"]),
    ] {
        let found = filtered(&[call], "true");
        found.assert_missing(check, parts);
        match call {
            "seccomp" => found.assert_unknown(&["forbidden calls kill"]),
            "close_range" => found.assert_unknown(&["confinement"]),
            _ => assert_eq!(found.state("forbidden calls kill"), "ok", "{call}: {found}"),
        }
    }
}

#[test]
fn what_is_of_use_only_is_missing_and_not_a_failure() {
    let simulator = Simulator::usual();
    let dext = ["--dext", &simulator.endpoint()];
    // Without the privilege to lock more.
    let namespaces = ["prlimit", "--memlock=0", "unshare", "--user", "--map-root-user", "--mount"];
    let no_kvm = "mount --bind /dev/null /dev/kvm || exit 9; exec \"$@\"";
    let before = [&namespaces[..], &["sh", "-c"]].concat();
    let has_kvm = std::path::Path::new("/dev/kvm").exists();
    let script = if has_kvm { no_kvm } else { "exec \"$@\"" };
    let found = doctor(&[&before[..], &[script, "sh"]].concat(), &dext);
    found.assert_missing("locked memory", &["cannot be locked", "ulimit -l"]);
    found.assert_missing("KVM", &["/dev/kvm"]);
    assert_eq!(found.status, 0, "{found}");
    assert!(found.said["optional"].as_u64().unwrap() >= 2, "{found}");
}

#[test]
fn no_control_group_says_why() {
    // One that sees no group of version 2: what is mounted there is none.
    let hide = "umount -l /sys/fs/cgroup 2> /dev/null || true; umount -l /sys/fs/cgroup 2> /dev/null || true";
    let found = doctor_after(hide);
    let line = found.line("control group");
    if line["state"] == "missing" {
        assert!(line["required"] == false && line["cure"].is_string(), "{found}");
        let text = line["found"].as_str().unwrap();
        let causes = ["version 2", "to arrange", "no group can be made", "born in it"];
        assert!(causes.iter().any(|cause| text.contains(cause)), "{text}");
    } else {
        assert!(line["found"].as_str().unwrap().contains("256 MiB"), "{found}");
    }
}

#[test]
fn a_program_that_is_not_there_or_not_ours() {
    let found = doctor(&["env"], &["--device-proc=/no/such/device-proc"]);
    found.assert_missing("device-proc is installed", &["/no/such/device-proc", "--device-proc"]);
    found.assert_missing("device-proc runs", &["No such file", "install device-proc"]);
    found.assert_unknown(&["confinement", "the dext answers"]);
    assert_eq!(found.state("user namespace"), "ok", "it was made before: {found}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other");
    write_script(&path, "#!/bin/sh\necho 'cannot open libmissing.so' >&2; exit 127");
    let other = format!("--device-proc={}", path.display());
    let found = doctor(&["env"], &[&other]);
    found.assert_missing("device-proc runs", &["exit status 127", "libmissing.so", "same sources"]);
    found.assert_unknown(&["confinement"]);
    // One that answers everything and speaks no protocol of ours.
    write_script(&path, "#!/bin/sh\nexit 0");
    let found = doctor(&["env"], &[&other]);
    found.assert_unknown(&["confinement"]);
    assert_ne!(found.status, 0);
    // One that hangs is a line and not the end of doctor.
    write_script(&path, "#!/bin/sh\nexec sleep 60");
    let began = std::time::Instant::now();
    let found = doctor(&["env"], &[&other]);
    found.assert_missing("device-proc runs", &["did not end within"]);
    assert!(began.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn a_line_is_for_people_and_the_summary_comes_once() {
    let output = Command::new(program("cordon"))
        .args(["doctor", "--device-proc=/no/such"])
        .env_remove("CORDON_DEXT")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("MISSING device-proc runs: ")), "{text}");
    let summaries = text.lines().filter(|line| line.contains(" unknown") && line.contains(" ok, "));
    assert_eq!(summaries.count(), 1, "{text}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert_eq!(output.status.code(), Some(1));
}
