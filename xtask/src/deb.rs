//! `cargo xtask package`: what people install. A Debian package, built, installed in a root of its own, run
//! there and removed again; and the Homebrew formula with the source archive that it names.
//!
//! The same sources, compiler and machine give the same bytes: times are the last commit's, owners root's,
//! names are sorted, and no program says when or where it was built.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use console::say;

use crate::apt::{self, make, write};
use crate::{Result, process, released, root, target, times, units};

const NAME: &str = "cordon";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What people start, and what that starts.
const PROGRAMS: [(&str, &str); 5] = [
    ("cordon", "usr/bin"),
    ("device-proc", LIBEXEC),
    ("faulty-device-proc", LIBEXEC),
    ("dext-sim", LIBEXEC),
    ("sandbox-probe", LIBEXEC),
];
/// Where `cordon` looks for the others: see cordon/src/programs.rs.
const LIBEXEC: &str = "usr/libexec/cordon";
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE-APACHE",
    "LICENSE-BSD-3-Clause",
];

/// Builds all of it and tries it.
pub(crate) fn check() -> Result {
    if cfg!(target_os = "linux") {
        let package = build()?;
        try_out(&package)?;
    } else {
        say!("\nleft out on a Mac: the Debian package")?;
    }
    formula()
}

/// The programs as they are released: built, unless `CORDON_BIN_DIR` says where they are.
fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CORDON_BIN_DIR") {
        return Ok(folder.into());
    }
    released()
}

/// Builds the Debian package; where it is.
fn build() -> Result<PathBuf> {
    let programs = programs()?;
    times::heading("Debian package")?;
    let folder = target().join("package");
    let tree = folder.join("deb");
    let _ = std::fs::remove_dir_all(&tree);
    let mut needs = BTreeSet::new();
    for (name, place) in PROGRAMS {
        let bytes = read(&programs.join(name))?;
        if !is_stripped(&bytes).ok_or_else(|| format!("{name} is no 64-bit ELF program"))? {
            return Err(format!("{name} is not stripped").into());
        }
        needs.extend(glibc_versions(&bytes));
        put(&tree.join(place).join(name), &bytes, 0o755)?;
    }
    pages_and_completions(&programs.join(NAME), &folder, &tree)?;
    documents(&tree)?;
    backend(&tree)?;
    for (name, folder) in units::FILES {
        let unit = read(&root().join("packaging").join(name))?;
        put(&tree.join(folder).join(name), &unit, 0o644)?;
    }
    let control = control(&tree, &needs)?;
    put(&tree.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    let package = folder.join(format!("{NAME}_{VERSION}_{}.deb", apt::native()));
    let mut deb = Command::new("dpkg-deb");
    deb.args(["--root-owner-group", "-Zgzip", "--build"]).arg(&tree).arg(&package);
    deb.env("SOURCE_DATE_EPOCH", committed()).stdout(Stdio::null());
    succeed("dpkg-deb", &mut deb)?;
    let bytes = std::fs::metadata(&package)?.len();
    say!("{}: {} KiB", package.display(), bytes.div_ceil(1024))?;
    Ok(package)
}

/// Seconds since 1970 at the last commit; 0 where this is no checkout.
fn committed() -> String {
    let output =
        Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let text = text.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "0".to_owned())
}

/// Has `cordon` write them, and puts them where the system looks.
fn pages_and_completions(cordon: &Path, folder: &Path, tree: &Path) -> Result {
    let generated = folder.join("generated");
    let _ = std::fs::remove_dir_all(&generated);
    succeed("cordon generate", Command::new(cordon).arg("generate").arg(&generated))?;
    rendered(&generated)?;
    for entry in std::fs::read_dir(&generated)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = match name.as_str() {
            "cordon.bash" => "usr/share/bash-completion/completions/cordon".to_owned(),
            "_cordon" => "usr/share/zsh/vendor-completions/_cordon".to_owned(),
            "cordon.fish" => "usr/share/fish/vendor_completions.d/cordon.fish".to_owned(),
            page if page.ends_with(".1") => format!("usr/share/man/man1/{page}"),
            other => {
                return Err(format!("cordon generate wrote {other}, which has no place").into());
            }
        };
        put(&tree.join(&to), &read(&path)?, 0o644)?;
        if name.ends_with(".1") {
            // Without a name or a time in it.
            succeed("gzip", Command::new("gzip").args(["-9nf"]).arg(tree.join(&to)))?;
        }
    }
    Ok(())
}

/// What was generated is understood by what reads it, as far as that is here.
fn rendered(generated: &Path) -> Result {
    let pages = files(generated)?.into_iter().filter(|name| name.ends_with(".1"));
    let pages: Vec<PathBuf> = pages.map(|name| generated.join(name)).collect();
    let checks: [(&str, &[&str], &[PathBuf]); 2] = [
        // All warnings but of lines that cannot be filled, since a word is as long as an option is.
        ("groff", &["-man", "-Tutf8", "-ww", "-Wbreak", "-z"], &pages),
        ("bash", &["-n"], &[generated.join("cordon.bash")]),
    ];
    for (program, arguments, files) in checks {
        match Command::new(program).args(arguments).args(files).output() {
            Ok(output) if output.status.success() && output.stderr.is_empty() => {
                say!("{} generated files are understood by {program}", files.len())?;
            }
            Ok(output) => {
                let errors = String::from_utf8_lossy(&output.stderr);
                return Err(format!("{program}: {}: {}", output.status, errors.trim()).into());
            }
            Err(_) => say!("NOT checked by {program}, which is not here: {}", files.len())?,
        }
    }
    Ok(())
}

fn documents(tree: &Path) -> Result {
    let place = tree.join("usr/share/doc/cordon");
    for name in DOCUMENTS {
        put(&place.join(name), &read(&root().join(name))?, 0o644)?;
    }
    put_all(&root().join("docs"), &place.join("docs"))?;
    put(&place.join("copyright"), &read(&root().join("packaging/debian/copyright"))?, 0o644)?;
    let changelog = place.join("changelog");
    put(&changelog, &read(&root().join("CHANGELOG.md"))?, 0o644)?;
    succeed("gzip", Command::new("gzip").args(["-9nf"]).arg(changelog))
}

/// Every file of a folder, and of those in it.
fn put_all(from: &Path, to: &Path) -> Result {
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let into = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            put_all(&path, &into)?;
        } else {
            put(&into, &read(&path)?, 0o644)?;
        }
    }
    Ok(())
}

/// What tools that start backends of devices find: a description, and the program that it names.
const DESCRIPTION: &str = "usr/share/qemu/vfio-user/50-cordon.json";

fn backend(tree: &Path) -> Result {
    let link = tree.join(LIBEXEC).join("cordon-serve");
    std::os::unix::fs::symlink("../../bin/cordon", &link)
        .map_err(|error| format!("{}: {error}", link.display()))?;
    put(&tree.join(DESCRIPTION), &read(&root().join("packaging/50-cordon.json"))?, 0o644)
}

/// Runs the program that the installed description names, as a tool would.
fn described(place: &Path) -> Result<String> {
    let description: serde_json::Value = serde_json::from_slice(&read(&place.join(DESCRIPTION))?)
        .map_err(|error| format!("{DESCRIPTION}: {error}"))?;
    let binary = description["binary"].as_str().unwrap_or_default();
    let installed = place.join(binary.trim_start_matches('/'));
    let mut command = Command::new(installed);
    command.arg("--print-capabilities").env_clear();
    let output = process::output(binary, &mut command)?;
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{binary} --print-capabilities: {}: {error}", output.status))?;
    if !output.status.success() || said["type"] != description["type"] {
        return Err(format!("{binary} --print-capabilities: {}: {said}", output.status).into());
    }
    Ok(format!("{binary}, installed: its type is {}", said["type"]))
}

fn control(tree: &Path, needs: &BTreeSet<(u32, u32)>) -> Result<String> {
    let (major, minor) = needs.last().ok_or("no program names the C library")?;
    let bytes: u64 = files(tree)?
        .iter()
        .map(|path| std::fs::metadata(tree.join(path)).map_or(0, |file| file.len()))
        .sum();
    Ok(format!(
        "Package: {NAME}\n\
         Version: {VERSION}\n\
         Architecture: {}\n\
         Maintainer: The Cordon contributors\n\
         Depends: libc6 (>= {major}.{minor}), libgcc-s1\n\
         Section: admin\n\
         Priority: optional\n\
         Installed-Size: {}\n\
         Description: PCI passthrough with every function in a sandboxed process\n \
         Serves passed-through PCI functions to VMMs over vfio-user. Each function is\n \
         served by a sandboxed process of its own, which is replaced when it dies.\n",
        apt::native(),
        bytes.div_ceil(1024)
    ))
}

/// Installs the package in an empty root, runs what came, and removes it: nothing is left.
fn try_out(package: &Path) -> Result {
    let place = target().join("package/root");
    let _ = std::fs::remove_dir_all(&place);
    let admin = place.join("var/lib/dpkg");
    for part in ["info", "updates", "triggers"] {
        make(&admin.join(part))?;
    }
    for part in ["status", "available"] {
        write(&admin.join(part), "")?;
    }
    let before = files(&place)?;
    dpkg(&place, &["--install", &package.display().to_string()])?;
    let installed: Vec<String> = program_files(&files(&place)?, &before);
    for (name, folder) in PROGRAMS {
        if !installed.iter().any(|path| path == &format!("{folder}/{name}")) {
            return Err(format!("{name} was not installed").into());
        }
    }
    for line in ran(&place)? {
        say!("{line}")?;
    }
    say!("{}", units::verified(&place)?)?;
    dpkg(&place, &["--purge", NAME])?;
    let mut left = program_files(&files(&place)?, &before);
    if place.join("usr").exists() {
        left.push("usr".to_owned());
    }
    if !left.is_empty() {
        return Err(format!("left by the removal of the package: {}", left.join(", ")).into());
    }
    say!("package: installed, {} files, ran, removed", installed.len())?;
    Ok(())
}

/// Files that are not dpkg's own, and were not there before.
fn program_files(now: &[String], before: &[String]) -> Vec<String> {
    let is_new = |path: &&String| !path.starts_with("var/lib/dpkg/") && !before.contains(path);
    now.iter().filter(is_new).cloned().collect()
}

/// Runs what was installed, without anything that this build put elsewhere.
fn ran(place: &Path) -> Result<Vec<String>> {
    let cordon = place.join("usr/bin/cordon");
    let ask = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(&cordon);
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
        let output = process::output(&format!("cordon {}", arguments.join(" ")), &mut command)?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    };
    let (status, version) = ask(&["--version"])?;
    if status != Some(0) || version != format!("cordon {VERSION}") {
        return Err(format!("cordon --version: status {status:?}, '{version}'").into());
    }
    // Nobody says where a dext is, so the best that it can say is that this is unknown: 3.
    let (status, said) = ask(&["doctor", "--json"])?;
    let doctor: serde_json::Value = serde_json::from_str(&said)
        .map_err(|error| format!("cordon doctor --json: status {status:?}: {error}"))?;
    if status != Some(3) || doctor["missing"] != doctor["optional"] {
        return Err(format!("cordon doctor: status {status:?}: {doctor:#}").into());
    }
    // It starts every program of the package.
    let (status, said) = ask(&["demo", "--json"])?;
    if status != Some(0) {
        return Err(format!("cordon demo: status {status:?}: {said}").into());
    }
    let described = described(place)?;
    let found = format!("cordon doctor, installed: {} ok, none required missing", doctor["ok"]);
    Ok(vec![version, described, found, "cordon demo, installed: every step held".to_owned()])
}

/// dpkg over an installation beneath `place`.
fn dpkg(place: &Path, arguments: &[&str]) -> Result {
    let mut dpkg = Command::new("dpkg");
    // The C library and the tools that dpkg looks for are the machine's own, and no user is another one's.
    dpkg.arg(format!("--root={}", place.display()))
        // Not the machine's.
        .arg(format!("--log={}", place.join("var/lib/dpkg/log").display()))
        .args(["--force-depends", "--force-not-root", "--force-bad-path", "--no-triggers"])
        .args(arguments);
    let output = process::output("dpkg", &mut dpkg)?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("dpkg {}: {}: {}", arguments.join(" "), output.status, errors.trim()).into())
}

/// The formula, with the archive of the sources that it builds.
fn formula() -> Result {
    times::heading("Homebrew formula")?;
    let template = root().join("packaging/homebrew/cordon.rb");
    let folder = target().join("package");
    make(&folder)?;
    let archive = folder.join(format!("{NAME}-{VERSION}.tar.gz"));
    let mut git = Command::new("git");
    git.args(["archive", "--format=tar.gz", &format!("--prefix={NAME}-{VERSION}/"), "--output"])
        .arg(&archive)
        .arg("HEAD")
        .current_dir(root())
        .stderr(Stdio::null());
    if !git.status().is_ok_and(|status| status.success()) {
        return Ok(say!("formula: NOT written, this is no git checkout to make an archive of")?);
    }
    let hash = sha256(&archive)?;
    let text = String::from_utf8(read(&template)?)?;
    let filled = text
        .replace("@URL@", &format!("file://{}", archive.display()))
        .replace("@VERSION@", VERSION)
        .replace("@SHA256@", &hash);
    if filled.contains('@') {
        return Err(format!("{} has a place that nothing is put in", template.display()).into());
    }
    let path = folder.join("cordon.rb");
    write(&path, &filled)?;
    match Command::new("ruby").arg("-c").arg(&path).output() {
        Ok(output) if output.status.success() => {
            say!("formula: {}, its syntax is Ruby's", path.display())?;
        }
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("the formula is no Ruby: {}", errors.trim()).into());
        }
        Err(_) => say!("formula: {}, NOT checked: there is no ruby here", path.display())?,
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    for (program, first) in [("sha256sum", &[][..]), ("shasum", &["-a", "256"])] {
        if let Ok(output) = Command::new(program).args(first).arg(path).output() {
            let text = String::from_utf8_lossy(&output.stdout);
            if let Some(hash) = text.split_whitespace().next().filter(|hash| hash.len() == 64) {
                return Ok(hash.to_owned());
            }
        }
    }
    Err("there is no sha256sum and no shasum".into())
}

fn succeed(what: &str, command: &mut Command) -> Result {
    process::quiet(what, command)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?)
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result {
    // Folders of a package are for everybody, whatever this user's are.
    for folder in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
        if !folder.exists() {
            make(folder)?;
            std::fs::set_permissions(folder, Permissions::from_mode(0o755))?;
        }
    }
    std::fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(std::fs::set_permissions(path, Permissions::from_mode(mode))?)
}

/// Every file beneath a folder, by its path there.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        let entries = std::fs::read_dir(&next).map_err(|e| format!("{}: {e}", next.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                left.push(path);
            } else {
                found.push(path.strip_prefix(folder)?.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether an ELF program has no table of symbols; `None` if it is none.
fn is_stripped(bytes: &[u8]) -> Option<bool> {
    /// The type of a section that is the table of symbols.
    const SYMTAB: u32 = 2;
    let number = |at: usize, length: usize| -> Option<usize> {
        let mut word = [0; 8];
        word[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
        usize::try_from(u64::from_le_bytes(word)).ok()
    };
    // 64 bits, little endian.
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
    for section in 0..count {
        let kind = number(table.checked_add(section * size)?.checked_add(4)?, 4)?;
        if kind == SYMTAB as usize {
            return Some(false);
        }
    }
    Some(true)
}

/// The versions of the C library's interface that a program names.
fn glibc_versions(bytes: &[u8]) -> Vec<(u32, u32)> {
    let strings = bytes.split(|byte| *byte == 0);
    let version = |string: &[u8]| {
        let text = std::str::from_utf8(string).ok()?.strip_prefix("GLIBC_")?;
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    };
    strings.filter_map(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_what_it_needs_and_whether_it_is_stripped() {
        // This one is not.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(is_stripped(&own), Some(false));
            assert!(glibc_versions(&own).iter().max().unwrap() >= &(2, 17));
        }
        assert_eq!(is_stripped(b"#!/bin/sh\n"), None);
        let names = b"\0GLIBC_2.34\0GLIBC_2.2.5\0GLIBC_PRIVATE\0GLIBC_x\0";
        assert_eq!(glibc_versions(names), [(2, 34), (2, 2)]);
    }

    #[test]
    fn a_removal_leaves_nothing_but_what_is_dpkgs() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let now = list(&["etc/old", "usr/bin/cordon", "var/lib/dpkg/status-old"]);
        assert_eq!(program_files(&now, &list(&["etc/old"])), ["usr/bin/cordon"]);
    }

    #[test]
    fn what_is_packaged_is_there() {
        for name in DOCUMENTS {
            assert!(root().join(name).is_file(), "{name}");
        }
        let formula = std::fs::read_to_string(root().join("packaging/homebrew/cordon.rb")).unwrap();
        for place in ["@URL@", "@VERSION@", "@SHA256@"] {
            assert_eq!(formula.matches(place).count(), 1, "{place}");
        }
        // It installs what the package does.
        for (name, _) in PROGRAMS {
            assert!(formula.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}
