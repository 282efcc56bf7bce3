//! Errors of starting a child: each names the step and the cure, once, and nothing is left.
//!
//! Each test makes the system lack one thing, as an ordinary user can: in namespaces of its own, under
//! a limit or a filter. `unshare`, `prlimit`, `setpriv` are part of Debian's base system (util-linux).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cordon_tests::{Simulator, copy_program, program, write_script};

/// A simulated dext, and what `cordon` says over it.
struct Fixture {
    simulator: Simulator,
    /// Copies of the programs that every user may run, and room for more.
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { simulator: Simulator::usual(), folder: tempfile::tempdir().unwrap() };
        let may = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        may(fixture.folder.path(), 0o755);
        may(fixture.simulator.socket().parent().unwrap(), 0o755);
        may(&fixture.simulator.socket(), 0o666);
        for name in ["cordon", "device-proc"] {
            copy_program(name, &fixture.at(name));
        }
        fixture
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `cordon devices`, and more arguments, run by the words before it. Whether it did well, and
    /// what it said.
    fn devices(&self, before: &[&str], more: &[&str]) -> (bool, String) {
        let cordon = self.at("cordon").display().to_string();
        let device_proc = self.at("device-proc").display().to_string();
        let (dext, words) = (self.simulator.endpoint(), ["devices", "--dext"]);
        let line = before.iter().copied().chain([cordon.as_str()]).chain(words).chain([&*dext]);
        let line: Vec<&str> = line.chain(more.iter().copied()).collect();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env("CORDON_DEVICE_PROC", device_proc).env_remove("RUST_LOG");
        let output = command.output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&all).into_owned())
    }

    /// The one line that it must say where this script was run before it, in namespaces of its own.
    fn refused_after(&self, script: &str) -> String {
        let script = format!("set -e; {script}; exec \"$@\"");
        let namespaces = ["unshare", "--user", "--map-root-user", "--mount"];
        self.refused(&[&namespaces[..], &["sh", "-c", &script, "sh"]].concat(), &[])
    }

    /// The one line that it must say when it is run so.
    fn refused(&self, before: &[&str], more: &[&str]) -> String {
        let (ok, text) = self.devices(before, more);
        assert!(!ok, "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1, "said once: {text}");
        assert!(lines[0].starts_with("cordon: The lister process of the dext"), "{text}");
        self.simulator.assert_released("01:00.0");
        text
    }
}

/// All of these are in the text.
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

#[test]
fn namespaces_at_their_limit() {
    let fixture = Fixture::new();
    for limit in ["user", "pid"] {
        let zero = format!("echo 0 > /proc/sys/user/max_{limit}_namespaces");
        let text = fixture.refused_after(&zero);
        let zero = format!("user.max_{limit}_namespaces (it is 0)");
        assert_says(&text, &["Cannot make user and pid namespaces", &zero, "--sandbox=relaxed"]);
    }
    for (limit, layer) in [("mnt", "mount"), ("net", "network"), ("ipc", "ipc"), ("uts", "uts")] {
        let zero = format!("echo 0 > /proc/sys/user/max_{limit}_namespaces");
        let text = fixture.refused_after(&zero);
        let (layer, cure) =
            (format!("'{layer} namespace'"), format!("raise user.max_{limit}_namespaces"));
        assert_says(&text, &[&layer, &cure, "--sandbox=relaxed"]);
    }
}

#[test]
fn no_proc_and_no_null_device() {
    let fixture = Fixture::new();
    let text = fixture.refused_after("mount -t tmpfs none /proc");
    assert_says(&text, &["/proc/self/uid_map", "No such file", "mount /proc"]);
    let text = fixture.refused_after("mount -t tmpfs none /dev");
    assert_says(&text, &["Cannot open /dev/null", "No such file", "mount a /dev"]);
    // A file in its place would collect what is thrown away.
    let text = fixture.refused_after("mount -t tmpfs none /dev; touch /dev/null");
    assert_says(&text, &["Cannot open /dev/null", "no device", "mount a /dev"]);
}

#[test]
fn a_chroot() {
    let fixture = Fixture::new();
    let root = fixture.at("root");
    let folders = [fixture.folder.path(), fixture.simulator.socket().parent().unwrap()]
        .map(|folder| folder.display().to_string());
    // What runs in there is where it was; the root itself is a plain directory.
    let mut script = String::new();
    for folder in ["/usr", "/dev", "/proc", &folders[0], &folders[1]] {
        let at = format!("{}{folder}", root.display());
        script += &format!("mkdir -p {at}; mount --rbind {folder} {at}; ");
    }
    for link in ["/lib", "/lib64", "/bin"] {
        script += &format!("if [ -L {link} ]; then cp -a {link} {}; fi; ", root.display());
    }
    let text = fixture.refused_after(&format!("{script} set -- chroot {} \"$@\"", root.display()));
    assert_says(&text, &["user and pid namespaces", "in a chroot", "use pivot_root"]);
}

#[test]
fn a_filter_that_is_over_it_already() {
    let fixture = Fixture::new();
    let filtered = program("filtered").display().to_string();
    for (call, parts) in [
        ("user-namespace", &["user and pid namespaces", "seccomp filter", "CLONE_NEWUSER"][..]),
        ("close_range", &["Cannot close the descriptors", "close_range"]),
        ("unshare", &["'mount namespace'", "seccomp filter"]),
        ("mount", &["'empty root'", "cannot make the mounts its own", "seccomp filter"]),
        ("pivot_root", &["'empty root'", "cannot make it the root directory"]),
        ("capset", &["'capabilities'", "not permitted", "seccomp filter"]),
        ("landlock", &["'landlock'", "a seccomp filter hides it", "Linux 5.13"]),
        ("seccomp", &["'seccomp'", "not permitted", "no filter over this process"]),
    ] {
        assert_says(&fixture.refused(&[&filtered, call, "--"], &[]), parts);
    }
}

#[test]
fn a_program_that_cannot_be_run() {
    let fixture = Fixture::new();
    let other = |name: &str, content: &str| {
        let path = fixture.at(name);
        write_script(&path, content);
        format!("--device-proc={}", path.display())
    };
    let text = fixture.refused(&["env"], &[&other("text", "hello")]);
    assert_says(&text, &["Cannot run ", "Exec format error", "no program for this machine"]);
    let text = fixture.refused(&["env"], &[&other("script", "#!/no/such/interpreter")]);
    assert_says(&text, &["Cannot run ", "No such file", "loader or interpreter"]);
    // One that its loader ends says why by itself, which is what is told.
    let loader = "#!/bin/sh\necho 'cannot open libmissing.so' >&2; exit 127";
    let text = fixture.refused(&["env"], &[&other("unloadable", loader)]);
    assert_says(&text, &["it said: cannot open libmissing.so (exit status 127)"]);
    // So does one that has too little memory to begin.
    let hungry =
        format!("#!/bin/sh\nulimit -v 3000; exec {} \"$@\"", fixture.at("device-proc").display());
    let text = fixture.refused(&["env"], &[&other("hungry", &hungry)]);
    assert_says(&text, &["device-proc", "(exit status 127)"]);
}

#[test]
fn limits_of_descriptors_and_processes() {
    let fixture = Fixture::new();
    for limit in 7..16 {
        let text = fixture.refused(&["prlimit", &format!("--nofile={limit}")], &[]);
        assert_says(&text, &["Cannot ", "Too many open files", "ulimit -n"]);
    }
    // The limit is not for root, and counts all processes of a user: of one that has no other.
    if rustix::process::geteuid().is_root() {
        for limit in 1..3 {
            let before = ["prlimit", &format!("--nproc={limit}"), "setpriv"];
            let user = ["--reuid=61234", "--regid=61234", "--clear-groups"];
            let text = fixture.refused(&[before, user].concat(), &[]);
            assert_says(&text, &["Cannot make ", "ulimit -u"]);
            assert!(!text.contains("relaxed"), "that would not help: {text}");
        }
    }
}

#[test]
fn an_ordinary_user_needs_nothing_else() {
    let fixture = Fixture::new();
    let setpriv = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
    let root = rustix::process::geteuid().is_root();
    let (ok, text) = fixture.devices(if root { &setpriv } else { &["env"] }, &[]);
    assert!(ok && text.contains("01:00.0"), "{text}");
}
