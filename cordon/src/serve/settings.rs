//! What is served where: all that the command line says, made sense of before anything is started.

use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cordon_vmm::{CompanionConfig, DmaMode, HostConfig, VfioGroup, WindowRoute};
use ipc::PciAddress;
use ipc::socket_file::Access;

use super::file::Read;
use super::inherited::Inherited;
use super::options::{ServeOptions, Windows};
use super::wanted::{Wanted, resolve, wanted};
use crate::failure::Usage;
use crate::faults::FaultOptions;
use crate::vfio_fds::Files;
use crate::{Common, Failure};

/// Where the clients of one server come.
#[derive(Debug)]
pub(super) enum Place {
    /// At a socket that is made here.
    Path(PathBuf),
    /// By one that was made before.
    Inherited(Inherited),
}

impl Place {
    /// For people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Inherited(socket) => socket.name().display().to_string(),
        }
    }
}

/// A function to serve.
#[derive(Debug)]
pub(super) struct FunctionSettings {
    pub(super) address: PciAddress,
    pub(super) place: Place,
    /// Who maps guest memory for it.
    pub(super) dma: DmaMode,
    /// Its IOMMU group, over VFIO: functions of one reach the same memory.
    pub(super) group: Option<u32>,
    /// Its companion, and where that is served.
    pub(super) companion: Option<(CompanionConfig, Place)>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Settings {
    common: Common,
    pub(super) functions: Vec<FunctionSettings>,
    /// IOMMU groups whose files were passed on.
    groups: Vec<Arc<VfioGroup>>,
    pub(super) control: Option<PathBuf>,
    windows: WindowRoute,
    sealed_memory: bool,
    standby: bool,
    faults: FaultOptions,
    pub(super) json: bool,
    pub(super) exit_with_stdin: bool,
    /// Whether it goes on when every function was given up: somebody may revive them.
    pub(super) stays: bool,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// Who may connect.
    pub(super) access: Access,
}

impl Settings {
    /// Of the command line and the config file that it names. Takes the sockets that were passed on, and
    /// asks the dext which functions a whole device has.
    pub(super) fn of(options: &ServeOptions) -> Result<Self, Failure> {
        let Said { read, wanted, common } = Said::of(options)?;
        let dext = common.dext.clone();
        let (functions, files) = resolve(&wanted, &common, (&options.vfio_fds, &options.iommufds))?;
        let groups = groups(files, &functions, &dext)?;
        let file = read.map(|read| read.file).unwrap_or_default();
        let windows = options.windows.or(file.windows.map(|choice| choice.0));
        let mode = options.socket_mode.or(file.socket_mode.map(|mode| mode.0.0));
        let control = options.control.clone().or(file.control);
        let exits = options.exit_when_given_up || file.exit_when_given_up;
        Ok(Self {
            common,
            functions,
            groups,
            stays: control.is_some() && !exits,
            control,
            windows: route(windows, &dext)?,
            sealed_memory: options.sealed_memory || file.sealed_memory,
            standby: options.standby || file.standby,
            faults: options.faults.clone(),
            json: options.json || file.json,
            exit_with_stdin: options.exit_with_stdin,
            uid: options.uid.or(file.uid),
            gid: options.gid.or(file.gid),
            access: Access {
                mode: mode.unwrap_or(Access::default().mode),
                group: options.socket_group.or(file.socket_group),
            },
        })
    }

    /// Says whether they are right, as far as that can be known when nothing is started: one line for
    /// each device.
    pub(super) fn check(options: &ServeOptions) -> Result<(), Failure> {
        let said = Said::of(options)?;
        // The programs, and whether the dext is named as one.
        said.common.config()?;
        for one in &said.wanted {
            console::say!("{one}")?;
        }
        Ok(())
    }

    /// How device processes are started.
    pub(super) fn config(&self) -> Result<HostConfig, Failure> {
        let mut config = self.common.config()?;
        config.recovery.standby = self.standby;
        config.windows = self.windows;
        config.vfio_groups.clone_from(&self.groups);
        config.faults = if self.faults.any() { Some(self.faults.arm()?) } else { None };
        Ok(config)
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.functions.iter().flat_map(|one| {
            let companion = one.companion.as_ref().map(|(_, place)| place);
            [Some(&one.place), companion].into_iter().flatten()
        })
    }

    /// Everything that is listened at and made here.
    pub(super) fn paths(&self) -> Vec<&Path> {
        let made = self.places().filter_map(|place| match place {
            Place::Path(path) => Some(path.as_path()),
            Place::Inherited(_) => None,
        });
        made.chain(self.control.as_deref()).collect()
    }

    /// The descriptors that it was started with and needs.
    pub(super) fn inherited(&self) -> Vec<RawFd> {
        let inherited = self.places().filter_map(|place| match place {
            Place::Path(_) => None,
            Place::Inherited(socket) => Some(socket.number()),
        });
        let of_groups = self.groups.iter().flat_map(|group| group.descriptors());
        inherited.chain(of_groups).collect()
    }

    /// How each function is served: every server, of a function or a companion, has an equal share
    /// of the descriptors that this process may have.
    pub(super) fn how(&self) -> cordon_vfio_user::Options {
        let servers = u64::try_from(self.places().count()).unwrap_or(u64::MAX);
        let share = crate::limits::descriptors() / servers.max(1);
        // Events have limits of their own here, which count them by what they are.
        let budget = cordon_vfio_user::Budget {
            reports: u32::MAX,
            ..cordon_vfio_user::Budget::within(share)
        };
        cordon_vfio_user::Options { sealed_memory: self.sealed_memory, budget }
    }
}

/// What was said, before anything is taken or asked for.
struct Said {
    read: Option<Read>,
    wanted: Vec<Wanted>,
    common: Common,
}

impl Said {
    fn of(options: &ServeOptions) -> Result<Self, Failure> {
        let read = options.config.as_deref().map(Read::of).transpose()?;
        let wanted = wanted(options, read.as_ref())?;
        let file = read.as_ref().map(|read| &read.file);
        let dext = file.and_then(|file| file.dext.clone()).map(PathBuf::into_os_string);
        let of_vfio = wanted.iter().find(|one| one.is_vfio());
        let dext = options.dext.clone().or(dext);
        let dext = dext.or_else(|| of_vfio.map(|_| "vfio".into()));
        let dext = dext.ok_or_else(|| missing("--dext <DEXT>"))?;
        one_kind(of_vfio, &dext)?;
        let mut how = options.how.clone();
        how.device_proc = how.device_proc.or_else(|| file?.device_proc.clone());
        Ok(Self { wanted, common: Common { dext, how }, read })
    }
}

/// A server's processes are all started alike, so that its functions come from one place.
fn one_kind(of_vfio: Option<&Wanted>, dext: &OsStr) -> Result<(), Failure> {
    match of_vfio {
        Some(one) if dext != "vfio" => {
            let dext = Path::new(dext).display();
            let why = format!(
                "{one} is to be of VFIO, and this server's functions are of {dext}: one server has functions of one \
                 kind, so leave --dext out or start a second one"
            );
            Err(Usage(why).into())
        }
        _ => Ok(()),
    }
}

/// The groups of files that were passed on, for functions of VFIO.
fn groups(
    files: Vec<Files>,
    functions: &[FunctionSettings],
    dext: &OsStr,
) -> Result<Vec<Arc<VfioGroup>>, Failure> {
    if !files.is_empty() && dext != "vfio" {
        let dext = Path::new(dext).display();
        let why = format!(
            "files of VFIO were passed on (--vfio-fd, or by a service manager), and this server's functions are of {dext}"
        );
        return Err(Usage(why).into());
    }
    let functions: Vec<PciAddress> = functions.iter().map(|one| one.address).collect();
    crate::sys::handed_groups(files, &functions)
}

/// How BARs become windows. Over VFIO a BAR is a part of its device's one descriptor, with which a client can do
/// whatever the device's process can: it is handed on when that is asked for, and not otherwise.
fn route(windows: Option<Windows>, dext: &OsStr) -> Result<WindowRoute, Failure> {
    match windows {
        Some(Windows::OwnConnection) if dext == "vfio" => {
            let why =
                "--windows own-connection is for a dext: this program opens nothing of VFIO's";
            Err(Usage(why.to_owned()).into())
        }
        None if dext == "vfio" => Ok(WindowRoute::Trapped),
        None | Some(Windows::Handed) => Ok(WindowRoute::Handed),
        Some(Windows::OwnConnection) => Ok(WindowRoute::OwnConnection),
        Some(Windows::Trapped) => Ok(WindowRoute::Trapped),
    }
}

/// The command line lacks something.
pub(super) fn missing(what: &str) -> Failure {
    Usage(format!("{what} is missing: see cordon serve --help")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_device_is_handed_to_no_client_unasked() {
        let route = |windows, dext: &str| route(windows, OsStr::new(dext)).ok();
        assert_eq!(route(None, "sim:/x"), Some(WindowRoute::Handed));
        assert_eq!(route(None, "vfio"), Some(WindowRoute::Trapped));
        assert_eq!(route(Some(Windows::Handed), "vfio"), Some(WindowRoute::Handed));
        assert_eq!(route(Some(Windows::Trapped), "sim:/x"), Some(WindowRoute::Trapped));
        assert_eq!(route(Some(Windows::OwnConnection), "iokit"), Some(WindowRoute::OwnConnection));
        assert_eq!(route(Some(Windows::OwnConnection), "vfio"), None);
    }
}
