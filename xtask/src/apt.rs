//! Debian packages without root: fetched by apt into a folder of the project's, with state and cache
//! of their own, and unpacked. Nothing is installed. The mirrors are those that the machine's own
//! apt sources name.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Result, process};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages of one suite that are unpacked.
pub(crate) struct Bundle {
    pub(crate) name: &'static str,
    pub(crate) suites: &'static [&'static str],
    /// Suite to prefer.
    pub(crate) prefer: &'static str,
    /// Architecture of its packages, beside this machine's own.
    pub(crate) foreign: Option<&'static str>,
}

impl Bundle {
    /// Its suites of one mirror.
    pub(crate) fn sources(&self, mirror: &str) -> Vec<(String, &'static str)> {
        self.suites.iter().map(|suite| (mirror.to_owned(), *suite)).collect()
    }
}

/// What is needed is there: apt, dpkg and Debian's keys.
fn check_tools() -> Result {
    for (tool, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg")] {
        let there = Command::new(tool).arg("--version").stdout(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            let why = format!("{tool} is needed to fetch packages (package {package}, Debian)");
            return Err(why.into());
        }
    }
    if Path::new(KEYRING).is_file() {
        Ok(())
    } else {
        Err(format!("{KEYRING} is needed (package debian-archive-keyring)").into())
    }
}

/// The Debian mirror of this machine's apt sources: of the entry for its own release, or with
/// `archive` "-security" for that release's.
pub(crate) fn mirror(archive: &str) -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.unwrap_or("bookworm").trim_matches('"').to_owned() + archive;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = std::fs::read_dir("/etc/apt/sources.list.d");
    files.extend(parts.into_iter().flatten().flatten().map(|entry| entry.path()));
    files.sort();
    files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text, &codename))
        .ok_or_else(|| {
            format!("no apt source of this machine names a Debian mirror of {codename}").into()
        })
}

/// A mirror of `codename` in a sources file of either form.
fn mirror_in(text: &str, codename: &str) -> Option<String> {
    let one_line = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "deb").skip(1);
        let mut words =
            words.by_ref().skip_while(|word| word.starts_with('[') || word.ends_with(']'));
        let (uri, suite) = (words.next()?, words.next()?);
        (suite == codename && words.any(|word| word == "main")).then(|| uri.to_owned())
    });
    let stanzas = text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
        let suites = field("Suites:")?;
        let components = field("Components:")?;
        let fits = suites.split_whitespace().any(|suite| suite == codename)
            && components.split_whitespace().any(|component| component == "main");
        fits.then(|| field("URIs:")?.split_whitespace().next().map(str::to_owned)).flatten()
    });
    one_line.or(stanzas).map(|uri| uri.trim_end_matches('/').to_owned())
}

/// Debian's name of this machine's architecture.
pub(crate) fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// apt with state, cache and sources in a folder of its own.
pub(crate) struct Apt {
    folder: PathBuf,
    prefer: &'static str,
    foreign: Option<&'static str>,
    status: PathBuf,
}

impl Apt {
    /// Suites of mirrors. Without a `status` nothing counts as installed, so that everything that a
    /// package depends on is fetched too.
    pub(crate) fn new(
        folder: &Path,
        bundle: &Bundle,
        sources: &[(String, &str)],
        status: Option<&Path>,
    ) -> Result<Self> {
        check_tools()?;
        let folder = folder.join(format!("apt-{}", bundle.name));
        for part in ["state/lists/partial", "cache/archives/partial", "etc"] {
            make(&folder.join(part))?;
        }
        write(&folder.join("state/status"), "")?;
        let sources: String = sources
            .iter()
            .map(|(mirror, suite)| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        write(&folder.join("etc/sources.list"), &sources)?;
        let status = status.map_or_else(|| folder.join("state/status"), Path::to_owned);
        let apt = Self { folder, prefer: bundle.prefer, foreign: bundle.foreign, status };
        apt.run("apt-get", &["-q", "update"])?;
        Ok(apt)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let at = |part: &str| self.folder.join(part).display().to_string();
        let mut command = Command::new(program);
        for (name, value) in [
            ("Dir::State", at("state")),
            ("Dir::State::status", self.status.display().to_string()),
            ("Dir::Cache", at("cache")),
            ("Dir::Etc::sourcelist", at("etc/sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::Etc::preferences", "/dev/null".to_owned()),
            ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
            ("APT::Default-Release", self.prefer.to_owned()),
            ("APT::Install-Recommends", "false".to_owned()),
            ("APT::Sandbox::User", String::new()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::Retries", "3".to_owned()),
            ("Debug::NoLocking", "true".to_owned()),
        ] {
            command.arg("-o").arg(format!("{name}={value}"));
        }
        for architecture in [native()].into_iter().chain(self.foreign) {
            command.arg("-o").arg(format!("APT::Architectures::={architecture}"));
        }
        command.args(arguments).current_dir(self.folder.join("cache/archives"));
        command
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let said = format!("{program} {}", arguments.join(" "));
        let output = process::output(&said, &mut self.command(program, arguments))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("{said}: {}: {}", output.status, errors.trim()).into())
    }

    /// Unpacks every package that was fetched, and throws the packages away.
    pub(crate) fn unpack(self, into: &Path) -> Result {
        let archives = self.folder.join("cache/archives");
        let entries = std::fs::read_dir(&archives)?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("-x").arg(&path).arg(into);
                process::quiet(&format!("unpacking {}", path.display()), &mut unpack)?;
            }
        }
        Ok(std::fs::remove_dir_all(&self.folder)?)
    }
}

pub(crate) fn write(path: &Path, text: &str) -> Result {
    Ok(std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?)
}

pub(crate) fn make(folder: &Path) -> Result {
    let made = std::fs::create_dir_all(folder);
    Ok(made.map_err(|error| format!("{}: {error}", folder.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_found_in_both_forms_of_sources() {
        let old = "# x\ndeb [signed-by=/k] http://mirror/debian/ bookworm main\n";
        assert_eq!(mirror_in(old, "bookworm").as_deref(), Some("http://mirror/debian"));
        assert_eq!(mirror_in(old, "trixie"), None);
        let new = "Types: deb\nURIs: http://other/x\nSuites: stable\nComponents: main\n\n\
                   Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
                   Components: main\n";
        assert_eq!(mirror_in(new, "bookworm").as_deref(), Some("http://mirror/debian"));
    }
}
