//! `cordon serve`, confined: its spawner takes its place outside first, and then it gives up all that it
//! does not need.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cordon_cli::confinement::{Confinement, Layer};
use cordon_vmm::spawner::{self, Grant, Spawner};
use cordon_vmm::{HostConfig, WindowRoute};
use ipc::{PciAddress, SocketFile, SocketFileError};
use sandbox_profiles::{LayerState, Mode, User, confine_server};

use crate::Failure;
use crate::serve::Plan;

/// The first of the users that nobody has, one for each process: neither people nor services nor the ranges
/// of containers are up there.
const FIRST_USER: u32 = 2_000_000_000;

/// The command that this program is run with to be a spawner.
pub(crate) const SPAWNER: &str = "spawner";

/// What is left of this program's outside.
pub(crate) struct Confined {
    spawner: Arc<Spawner>,
    confinement: Confinement,
}

impl Confined {
    /// Starts the spawner and confines this process, which has one thread and has done nothing yet.
    pub(crate) fn begin(plan: &Plan<'_>) -> Result<Self, Failure> {
        let strict = plan.config.strict;
        let opens_the_dext = plan.config.windows == WindowRoute::OwnConnection;
        if opens_the_dext && strict {
            return Err(OPENS_THE_DEXT.into());
        }
        let user = user(plan.uid, plan.gid)?;
        // Asked now and remembered, since it looks at files.
        let _ = ipc::spin::has_processors_for(1);
        // As the size of a page does, on kernels before 6.4.
        let _ = rustix::param::page_size();
        let spawner = Arc::new(Spawner::start(command(), &grant(plan, user))?);
        let (layers, syscalls) = if opens_the_dext {
            let missing = LayerState::Missing("this program opens the dext itself".to_owned());
            (vec![layer((sandbox_profiles::Layer::Landlock, missing))], 0)
        } else {
            let mode = if strict { Mode::Strict } else { Mode::Relaxed };
            let mut keep = spawner.descriptors();
            keep.extend_from_slice(&plan.keep);
            let report = confine_server(mode, &keep, user)?;
            (report.layers.into_iter().map(layer).collect(), report.syscalls)
        };
        let confinement = Confinement {
            process: std::process::id(),
            spawner: Some(spawner.pid()),
            layers,
            syscalls: u32::try_from(syscalls).unwrap_or(u32::MAX),
        };
        Ok(Self { spawner, confinement })
    }

    /// What holds.
    pub(crate) fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// Has the spawner start what `config` starts.
    pub(crate) fn launch(&self, config: HostConfig) -> HostConfig {
        config.with_launch(Arc::clone(&self.spawner) as _)
    }

    /// Listens at a path of the plan.
    pub(crate) fn listen(&self, path: &Path) -> Result<SocketFile, SocketFileError> {
        self.spawner.listen(path)
    }

    /// Has the spawner take a program by its file; the path that it is started by, `None` of the one that it has
    /// from the start. Why it is refused.
    pub(crate) fn add_program(&self, file: BorrowedFd<'_>) -> Result<Option<PathBuf>, String> {
        self.spawner.add_program(file).map_err(|error| ipc::chain(&error))
    }

    /// Whether a program can be given by its file.
    pub(crate) fn takes_programs(&self) -> bool {
        true
    }

    /// A program of [`Confined::add_program`] is started no more.
    pub(crate) fn forget_program(&self, path: &Path) {
        self.spawner.forget_program(path);
    }

    /// Readable once no process can be started any more.
    pub(crate) fn lost(&self) -> Option<BorrowedFd<'_>> {
        Some(self.spawner.as_fd())
    }

    /// Kills every child, whatever it does.
    pub(crate) fn kill_children(&self) {
        self.spawner.kill_children();
    }

    /// Ends the spawner.
    pub(crate) fn finish(&self) {
        self.spawner.end();
    }
}

/// Why a server is not confined that could be.
const OPENS_THE_DEXT: &str = "--windows own-connection has this program open the dext itself, at any time, \
     which a confined one cannot: it needs --sandbox=relaxed, and reports what is missing";

/// This program, as a spawner.
fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("cordon").arg(SPAWNER);
    // What a service manager says is for this process.
    for name in super::manager::VARIABLES {
        command.env_remove(name);
    }
    command
}

/// Has a spawner start what `config` starts for these functions, and confines nobody else.
pub(crate) fn with_spawner(
    config: HostConfig,
    devices: &[PciAddress],
) -> Result<HostConfig, Failure> {
    let spawner = Spawner::start(command(), &config.grant(devices))?;
    Ok(config.with_launch(Arc::new(spawner)))
}

/// Is the spawner, until the server is gone.
pub(crate) fn spawner() -> Result<(), Failure> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(spawner::run(socket)?)
}

/// What the spawner will do for this program, and nothing else.
fn grant(plan: &Plan<'_>, user: Option<User>) -> Grant {
    Grant {
        sockets: plan.sockets.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect(),
        socket_mode: plan.access.mode,
        socket_group: plan.access.group,
        programs: plan.programs,
        user: user.map(|User { uid, gid }| spawner::User { uid, gid }),
        ..plan.config.grant(plan.devices)
    }
}

fn layer((kind, state): (sandbox_profiles::Layer, LayerState)) -> Layer {
    let (state, detail) = match state {
        LayerState::Enforced(detail) => ("enforced", detail),
        LayerState::Partial(detail) => ("partial", detail),
        LayerState::Missing(detail) => ("MISSING", detail),
    };
    Layer { name: kind.to_string(), state: state.to_owned(), detail }
}

/// Who this program and its device processes end up as; nobody else where it is not root, or root of a
/// namespace without room for another.
fn user(uid: Option<u32>, gid: Option<u32>) -> Result<Option<User>, Failure> {
    if !rustix::process::geteuid().is_root() {
        if uid.is_some() || gid.is_some() {
            return Err("--uid and --gid need root, which this program is not started as".into());
        }
        return Ok(None);
    }
    let own = FIRST_USER + std::process::id();
    let all = User { uid: uid.unwrap_or(own), gid: gid.or(uid).unwrap_or(own) };
    if all.uid == 0 || all.gid == 0 {
        return Err("--uid and --gid 0 are root's: nothing would be given up".into());
    }
    let is_there = is_mapped("uid_map", all.uid) && is_mapped("gid_map", all.gid);
    Ok((is_there || uid.is_some() || gid.is_some()).then_some(all))
}

/// Whether this user namespace has that id.
fn is_mapped(map: &str, id: u32) -> bool {
    let map = std::fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (first, _, count) = (fields.next(), fields.next(), fields.next());
        matches!((first, count), (Some(Ok(first)), Some(Ok(count)))
            if (first..first.saturating_add(count)).contains(&u64::from(id)))
    })
}
