//! The command lines of a run, made before anything is started, so that `--dry-run` prints those that are
//! carried out.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use ipc::PciAddress;

use super::RunOptions;
use crate::{Failure, Sandbox};

/// A program and its arguments.
pub(super) struct Line(Vec<OsString>);

impl Line {
    /// To be run.
    pub(super) fn command(&self) -> Command {
        let (program, arguments) = self
            .0
            .split_first()
            .map_or((&[][..], &[][..]), |(program, rest)| (std::slice::from_ref(program), rest));
        let mut command = Command::new(program.first().cloned().unwrap_or_default());
        command.args(arguments);
        command
    }

    /// As a shell reads it back.
    fn quoted(&self) -> Result<OsString, Failure> {
        let mut line = Vec::new();
        for part in &self.0 {
            if !line.is_empty() {
                line.push(b' ');
            }
            line.extend_from_slice(&quoted(part.as_bytes())?);
        }
        Ok(OsString::from_vec(line))
    }
}

fn quoted(part: &[u8]) -> Result<Vec<u8>, Failure> {
    Ok(shlex::bytes::try_quote(part)
        .map_err(|error| format!("a shell cannot be told: {error}"))?
        .into_owned())
}

/// What is run.
pub(super) struct Commands {
    pub(super) serve: Line,
    pub(super) vmm: Line,
    sockets: Vec<PathBuf>,
}

impl Commands {
    /// For these functions, with sockets in `folder`.
    pub(super) fn of(
        options: &RunOptions,
        functions: &[PciAddress],
        folder: &Path,
    ) -> Result<Self, Failure> {
        let vmm = options.vmm()?;
        let sockets: Vec<PathBuf> =
            functions.iter().map(|address| folder.join(format!("{address}.sock"))).collect();
        let own = std::env::current_exe()
            .map_err(|error| format!("cannot find this program's own path: {error}"))?;
        let common = &options.common;
        let mut serve: Vec<OsString> = vec![own.into(), "serve".into(), "--json".into()];
        let mut option = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                serve.extend([name.into(), value]);
            }
        };
        option("--dext", Some(common.dext.clone()));
        option("--device-proc", common.how.device_proc.clone().map(Into::into));
        let relaxed = common.how.sandbox == Sandbox::Relaxed;
        option("--sandbox", relaxed.then(|| "relaxed".into()));
        option("--sandbox-exec", common.how.sandbox_exec.clone().map(Into::into));
        for (address, socket) in functions.iter().zip(&sockets) {
            option("--device", Some(address.to_string().into()));
            option("--socket", Some(socket.clone().into()));
        }
        let name = &options.command[0];
        let found = super::vmm::program(name, std::env::var_os("PATH").as_deref());
        // What is only shown may be for another machine.
        let shown = found.or_else(|why| options.dry_run.then(|| name.into()).ok_or(why))?;
        let mut line = vec![shown.into()];
        line.extend(options.command[1..].iter().cloned());
        line.extend(vmm.devices(&sockets)?);
        for (is, name) in [(options.standby, "--standby"), (options.trapped, "--windows=trapped")] {
            if is {
                serve.push(name.into());
            }
        }
        Ok(Self { serve: Line(serve), vmm: Line(line), sockets })
    }

    /// Lines for a shell that do the same, but for what a shell cannot: whatever is killed, the rest ends.
    pub(super) fn script(&self, folder: &Path) -> Result<Vec<OsString>, Failure> {
        let with = |before: &str, path: &Path, after: &str| -> Result<OsString, Failure> {
            let path = quoted(path.as_os_str().as_bytes())?;
            Ok(OsString::from_vec([before.as_bytes(), &path, after.as_bytes()].concat()))
        };
        let mut lines = vec![with("mkdir -m 700 ", folder, "")?];
        let mut serve = self.serve.quoted()?;
        serve.push(" >&2 & server=$!");
        lines.push(serve);
        for socket in &self.sockets {
            lines.push(with("until [ -S ", socket, " ]; do sleep 0.1; done")?);
        }
        lines.push(self.vmm.quoted()?);
        lines.push("status=$?; kill $server; wait".into());
        lines.push(with("rm -r ", folder, "; exit $status")?);
        Ok(lines)
    }
}
