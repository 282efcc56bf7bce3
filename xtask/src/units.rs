//! The systemd units of the Debian package: where they go, and that systemd understands them and finds them confined, by
//! its own `systemd-analyze verify` and `systemd-analyze security`. Where that is not installed it is fetched and unpacked, as everything is that
//! the suites need.

use std::path::{Path, PathBuf};
use std::process::Command;

use console::complain;

use crate::apt::{Apt, Bundle, make, mirror, write};
use crate::{Result, process, target};

const FOLDER: &str = "usr/lib/systemd/system";

/// Files of `packaging/`, and where they are installed.
pub(crate) const FILES: [(&str, &str); 4] = [
    ("cordon.service", FOLDER),
    ("cordon@.service", FOLDER),
    ("cordon@.socket", FOLDER),
    ("serve.toml", "usr/share/doc/cordon/examples"),
];

const SYSTEMD: Bundle =
    Bundle { name: "systemd", suites: &["bookworm"], prefer: "bookworm", foreign: None };
const STAMP: &str = "1";
/// How exposed systemd may find a service, in tenths of its scale from 0 to 10: they are at 3.9, which is what needs
/// namespaces, a control group and /proc, and has no SystemCallFilter= beside the server's own list.
const EXPOSURE: u32 = 40;
/// Where Debian has libraries of an architecture.
const LIBRARIES: &str = match std::env::consts::ARCH.as_bytes() {
    b"aarch64" => "aarch64-linux-gnu",
    _ => "x86_64-linux-gnu",
};
const LOADER: &str = match std::env::consts::ARCH.as_bytes() {
    b"aarch64" => "lib/ld-linux-aarch64.so.1",
    _ => "lib64/ld-linux-x86-64.so.2",
};

/// Has systemd look at what was installed beneath `place`; what it found.
pub(crate) fn verified(place: &Path) -> Result<String> {
    let folder = target().join("package/units");
    let _ = std::fs::remove_dir_all(&folder);
    make(&folder)?;
    let units: Vec<&str> =
        FILES.iter().filter(|(_, folder)| *folder == FOLDER).map(|(name, _)| *name).collect();
    for name in &units {
        let path = place.join(FOLDER).join(name);
        let text =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let program = place.join("usr/bin/cordon").display().to_string();
        write(&folder.join(name), &text.replace("/usr/bin/cordon", &program))?;
    }
    for name in &units {
        let said = verify(&folder.join(name))?;
        if !said.is_empty() {
            return Err(format!("{name}: {said}").into());
        }
    }
    let services = || units.iter().filter(|name| name.ends_with(".service"));
    for name in services() {
        if let Some(exposed) = exposed(&folder.join(name))? {
            return Err(format!("{name}: {exposed}").into());
        }
    }
    // It is really looked at: what is wrong is found.
    let wrong = folder.join("wrong.service");
    write(&wrong, "[Service]\nExecStart=/nonexistent/cordon\nRestrictNamespace=user\n")?;
    if exposed(&wrong)?.is_none() {
        return Err(
            "systemd-analyze security finds nothing in a unit without any protection".into()
        );
    }
    let said = verify(&wrong)?;
    for part in ["RestrictNamespace", "/nonexistent/cordon"] {
        if !said.contains(part) {
            return Err(format!("systemd-analyze verify says nothing of {part}: {said}").into());
        }
    }
    Ok(format!(
        "{} units are understood by systemd: {}; none of {} services is more exposed than {EXPOSURE} of 100",
        units.len(),
        units.join(", "),
        services().count()
    ))
}

/// What `systemd-analyze security` says of a service that is more exposed than it may be.
fn exposed(unit: &Path) -> Result<Option<String>> {
    let mut command = analyze()?;
    command.args(["security", "--offline=true", "--no-pager"]);
    command.arg(format!("--threshold={EXPOSURE}")).arg(unit);
    let output = process::output("systemd-analyze security", &mut command)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let overall = said.lines().find(|line| line.contains("Overall exposure level"));
    match (overall, output.status.success()) {
        (Some(_), true) => Ok(None),
        (Some(overall), false) => Ok(Some(overall.trim().to_owned())),
        (None, _) => {
            let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(format!("systemd-analyze security {}: {errors}", unit.display()).into())
        }
    }
}

/// What `systemd-analyze verify` says of a unit; nothing of one that is right.
fn verify(unit: &Path) -> Result<String> {
    let mut command = analyze()?;
    // The manual is not installed with it.
    command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(unit);
    let output = process::output("systemd-analyze verify", &mut command)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() || !said.is_empty() {
        return Ok(said);
    }
    Err(format!("systemd-analyze verify {}: {}", unit.display(), output.status).into())
}

/// `systemd-analyze`: this machine's, or Debian's, unpacked.
fn analyze() -> Result<Command> {
    let mut own = Command::new("systemd-analyze");
    let there = own.arg("--version").output().is_ok_and(|output| output.status.success());
    if there {
        return Ok(Command::new("systemd-analyze"));
    }
    let unpacked = unpacked()?;
    // By its own loader: its C library may be older than this machine's.
    let library = |part: &str| unpacked.join(part).join(LIBRARIES).display().to_string();
    let paths = ["lib", "usr/lib"].map(library);
    let private = ["lib/systemd", "usr/lib/systemd", "lib", "usr/lib"];
    let private = private.map(|part| unpacked.join(part).join(LIBRARIES).join("systemd"));
    let private = private.iter().map(|path| path.display().to_string());
    let all: Vec<String> = paths.into_iter().chain(private).collect();
    let mut command = Command::new(unpacked.join(LOADER));
    command.arg("--library-path").arg(all.join(":")).arg(unpacked.join("usr/bin/systemd-analyze"));
    Ok(command)
}

/// Debian's package and what it needs, fetched once.
fn unpacked() -> Result<PathBuf> {
    let folder = target().join("systemd");
    let (stamp, into) = (folder.join("stamp"), folder.join("root"));
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == STAMP) {
        return Ok(into);
    }
    complain(format_args!("fetching systemd-analyze into {} (once)", folder.display()));
    let _ = std::fs::remove_dir_all(&folder);
    let apt = Apt::new(&folder, &SYSTEMD, &SYSTEMD.sources(&mirror("")?), None)?;
    apt.run("apt-get", &["-q", "-y", "--download-only", "install", "systemd"])?;
    make(&into)?;
    apt.unpack(&into)?;
    write(&stamp, STAMP)?;
    Ok(into)
}
