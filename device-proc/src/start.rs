//! The order of life of every role: take the tube, shake hands, open at the backend, confine, say
//! that it is ready (and what confines it), serve.
//!
//! What fails before confinement is told to the VMM side as one line; the process then exits.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use cordon_backend::{
    Backend, BackendError, BackendKind, HandedDevices, HandedFile, HandedGroup, Left, LeftFunction,
    Source,
};
use ipc::wire::call::Call;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::connection::{Escrowed, HandedFiles};
use ipc::wire::faults::{Misbehave, Point};
use ipc::wire::function::Handed;
use ipc::wire::handshake::Role;
use ipc::wire::sandbox::{Layer, LayerKind, LayerState, SandboxReport};
use ipc::{Deadline, Handles, Tube, TubeError};
use rustix::process::{Resource, getrlimit};
use sandbox_profiles::limits::MAX_DESCRIPTORS;
use sandbox_profiles::{ConfineError, Given, Layer as Kind, Mode, Network};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::hooks::{Hooks, Route};
use crate::options::Common;

/// How long the VMM side may take to read a message or to introduce itself.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a process ended other than in order.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The tube is not there.
    #[error("No tube at descriptor {0}")]
    NoTube(i32, #[source] std::io::Error),
    /// The VMM side is not ours.
    #[error("No VMM side")]
    Handshake(#[from] ipc::tube::HandshakeError),
    /// The VMM side is gone or out of step.
    #[error("The tube to the VMM side failed")]
    Tube(#[from] TubeError),
    /// The backend refused at the start, or is gone.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The host wants a function back that is in use.
    #[error(transparent)]
    Requested(BackendError),
    /// The backend or its device is gone, as a call of it showed.
    #[error("{0}")]
    Lost(String),
    /// The process is not confined and must not go on.
    #[error(transparent)]
    Sandbox(#[from] ConfineError),
    /// There is no timer to bound signals with.
    #[error("No timer for signals")]
    Timer(#[source] std::io::Error),
    /// Faults of memory and forbidden calls could not be reported as what they are.
    #[error("No handler for faults of memory and forbidden system calls")]
    Faults(#[source] std::io::Error),
    /// The VMM side handed on other than it said.
    #[error("The function was not handed on")]
    Handed(#[source] ipc::handles::HandleCountError),
    /// The lane cannot be served.
    #[error("Cannot join the lane")]
    Lane(#[from] ipc::lane::JoinError),
    /// The wait failed.
    #[error("Cannot wait")]
    Wait(#[source] std::io::Error),
}

/// Takes over the tube that this process inherited.
///
/// # Errors
/// [`RoleError::NoTube`].
pub fn inherited_tube(common: &Common) -> Result<Tube, RoleError> {
    tube_at(common.tube_fd)
}

/// Takes over the tube at descriptor `number`.
///
/// # Errors
/// [`RoleError::NoTube`].
pub(crate) fn tube_at(number: i32) -> Result<Tube, RoleError> {
    let fd = crate::sys::inherited(number).map_err(|error| RoleError::NoTube(number, error))?;
    Ok(Tube::from_fd(fd))
}

/// Shakes hands with the VMM side as `role`.
///
/// # Errors
/// [`RoleError::Handshake`].
pub fn greet(mut tube: Tube, role: Role) -> Result<Tube, RoleError> {
    tube.handshake(role, Role::Vmm, Deadline::after(PEER_TIMEOUT))?;
    Ok(tube)
}

/// What a function process is handed before it opens anything, where the backend hands functions on.
///
/// # Errors
/// [`RoleError`] when the VMM side hands nothing on in time, or other than it says.
pub fn handed(backend: &dyn Backend, tube: &mut Tube) -> Result<Option<Vec<OwnedFd>>, RoleError> {
    if backend.kind() != BackendKind::Vfio {
        return Ok(None);
    }
    let received = tube.receive::<Handed>(Deadline::after(PEER_TIMEOUT))?;
    received.handles.expect(received.message.descriptors.into()).map_err(RoleError::Handed)?;
    Ok(Some(received.handles.collect()))
}

/// What a connection process takes over that does not open a group: what one before it left.
///
/// # Errors
/// [`RoleError`] when the VMM side hands nothing on in time, or other than it says.
pub fn left(tube: &mut Tube) -> Result<Left, RoleError> {
    let received = tube.receive::<Escrowed>(Deadline::after(PEER_TIMEOUT))?;
    let (escrowed, mut handles) = (received.message, received.handles);
    handles.expect(escrowed.descriptors()).map_err(RoleError::Handed)?;
    let mut next = |count: u8| -> Vec<OwnedFd> { handles.by_ref().take(count.into()).collect() };
    let group = next(escrowed.group);
    let functions = escrowed.functions.into_iter().map(|one| LeftFunction {
        address: one.address,
        descriptors: next(one.descriptors),
        request: next(one.request.into()).pop(),
    });
    Ok(Left { functions: functions.collect(), group, handed: None })
}

/// [`left`] of functions whose own files a manager opened, which come beside.
///
/// # Errors
/// [`RoleError`].
pub fn left_and_handed(tube: &mut Tube) -> Result<Left, RoleError> {
    let left = left(tube)?;
    match handed_files(tube)? {
        Source::HandedDevices(handed) => Ok(Left { handed: Some(handed), ..left }),
        _ => Ok(left),
    }
}

/// What a connection process is handed whose group, or whose functions, a manager opened.
///
/// # Errors
/// [`RoleError`] when the VMM side hands nothing on in time, or other than it says.
pub fn handed_files(tube: &mut Tube) -> Result<Source, RoleError> {
    let received = tube.receive::<HandedFiles>(Deadline::after(PEER_TIMEOUT))?;
    let (files, mut handles) = (received.message, received.handles);
    let expected = files.descriptors();
    handles.expect(expected).map_err(RoleError::Handed)?;
    let mut next = |number| {
        let none = || RoleError::Handed(ipc::handles::HandleCountError { expected, found: 0 });
        handles.next().map(|file| HandedFile { file, number }).ok_or_else(none)
    };
    Ok(match files {
        HandedFiles::Group { group, container } => Source::HandedGroup(HandedGroup {
            group: next(group)?,
            container: container.map(next).transpose()?,
        }),
        HandedFiles::Devices { devices, iommufd } => Source::HandedDevices(HandedDevices {
            devices: devices.into_iter().map(&mut next).collect::<Result<_, _>>()?,
            iommufd: next(iommufd)?,
        }),
    })
}

/// Tells the VMM side that the role is ready to serve, or why it cannot start; gives back the role's
/// state.
///
/// # Errors
/// [`RoleError`]: that of `prepared`, which the VMM side has then been told of.
pub fn announce<S, R: Serialize>(
    tube: &mut Tube,
    prepared: Result<(S, R), RoleError>,
) -> Result<S, RoleError> {
    match prepared {
        Ok((state, ready)) => {
            let started: Result<R, Failure> = Ok(ready);
            tube.send(0, &started, &[], Deadline::after(PEER_TIMEOUT))?;
            Ok(state)
        }
        Err(error) => {
            report_failure::<R>(tube, &error);
            Err(error)
        }
    }
}

/// How a role is confined once it has opened everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// It is a process, which confines itself. `guest_memory` are the bytes that one function will be
    /// handed at most; twice the machine's memory when nobody says.
    Process {
        /// What to do about a missing layer.
        mode: Mode,
        /// See above.
        guest_memory: Option<u64>,
        /// The network namespace that it was started in.
        network: Network,
    },
    /// It is a thread of its VMM's process, for tests, and cannot be confined.
    Thread(Mode),
}

/// Confines the process; `open` are all descriptors that it goes on with, `later` the bytes of memory
/// that it will be handed.
///
/// # Errors
/// [`RoleError::Sandbox`] when a layer is missing in strict mode.
pub fn confine(
    confinement: Confinement,
    role: sandbox_profiles::Role,
    open: &[BorrowedFd<'_>],
    later: u64,
) -> Result<SandboxReport, RoleError> {
    let (mode, network) = match confinement {
        Confinement::Process { mode, network, .. } => (mode, network),
        Confinement::Thread(mode) => return not_confined(mode),
    };
    crate::sys::report_faults().map_err(RoleError::Faults)?;
    let system = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    crate::memory::bound_descriptors(system.min(MAX_DESCRIPTORS));
    let keep: Vec<i32> = open.iter().map(|fd| fd.as_raw_fd()).collect();
    let report = sandbox_profiles::confine(role, mode, &keep, Given { later, network })?;
    let state = |state| match state {
        sandbox_profiles::LayerState::Enforced(said) => LayerState::Enforced(said),
        sandbox_profiles::LayerState::Partial(said) => LayerState::Partial(said),
        sandbox_profiles::LayerState::Missing(said) => LayerState::Missing(said),
    };
    let layer = |(layer, said)| Layer { kind: kind(layer), state: state(said) };
    Ok(SandboxReport {
        layers: report.layers.into_iter().map(layer).collect(),
        syscalls: u32::try_from(report.syscalls).unwrap_or(u32::MAX),
    })
}

/// What there is to say of a thread, if it may go on at all.
fn not_confined(mode: Mode) -> Result<SandboxReport, RoleError> {
    let (layer, why) = (Kind::Process, "it is a thread of its VMM's process".to_owned());
    match mode {
        Mode::Strict => Err(ConfineError::Missing { layer, why }.into()),
        Mode::Relaxed => {
            let layer = Layer { kind: kind(layer), state: LayerState::Missing(why) };
            Ok(SandboxReport { layers: vec![layer], syscalls: 0 })
        }
    }
}

/// A layer as the VMM side knows it.
fn kind(layer: Kind) -> LayerKind {
    match layer {
        Kind::Descriptors => LayerKind::Descriptors,
        Kind::UserNamespace => LayerKind::UserNamespace,
        Kind::PidNamespace => LayerKind::PidNamespace,
        Kind::ControlGroup => LayerKind::ControlGroup,
        Kind::MountNamespace => LayerKind::MountNamespace,
        Kind::NetworkNamespace => LayerKind::NetworkNamespace,
        Kind::IpcNamespace => LayerKind::IpcNamespace,
        Kind::UtsNamespace => LayerKind::UtsNamespace,
        Kind::EmptyRoot => LayerKind::EmptyRoot,
        Kind::ResourceLimits => LayerKind::ResourceLimits,
        Kind::AddressSpace => LayerKind::AddressSpace,
        Kind::Capabilities => LayerKind::Capabilities,
        Kind::NoNewPrivileges => LayerKind::NoNewPrivileges,
        Kind::NotDumpable => LayerKind::NotDumpable,
        Kind::DeathWithParent => LayerKind::DeathWithParent,
        Kind::Landlock => LayerKind::Landlock,
        Kind::Seccomp => LayerKind::Seccomp,
        Kind::Seatbelt => LayerKind::Seatbelt,
        Kind::Process => LayerKind::Process,
        Kind::UnprivilegedUser => LayerKind::UnprivilegedUser,
    }
}

/// Tells the VMM side that the process could not start.
fn report_failure<R: Serialize>(tube: &mut Tube, error: &RoleError) {
    let (kind, code) = match error {
        RoleError::Backend(error) => {
            let failure = crate::failure(error);
            (failure.kind, failure.code)
        }
        _ => (FailureKind::NoDevice, None),
    };
    let failure = Failure { kind, code, message: ipc::chain(error) };
    let started: Result<R, Failure> = Err(failure);
    let _ = tube.send(0, &started, &[], Deadline::after(PEER_TIMEOUT));
}

/// A role that carries out the requests of a conversation.
pub trait Serve {
    /// The conversation.
    type Request: DeserializeOwned;

    /// The fault that `request` asks to be arranged for, where it is one that does.
    fn fault(request: &Self::Request) -> Option<Misbehave>;

    /// Carries out and answers `request`, beside which `handles` came; `false` when it was the last.
    ///
    /// # Errors
    /// [`RoleError`], which ends the process.
    fn carry_out(
        &mut self,
        request: Self::Request,
        handles: Handles,
        answer: Answer<'_>,
    ) -> Result<bool, RoleError>;
}

/// Serves the next request, if one comes before `deadline`; `false` when it was the last, or the VMM
/// side is gone.
///
/// # Errors
/// [`RoleError`], which ends the process.
pub fn serve_one<S: Serve>(
    role: &mut S,
    tube: &mut Tube,
    deadline: Deadline,
    hooks: &mut dyn Hooks,
) -> Result<bool, RoleError> {
    let received = match tube.receive::<S::Request>(deadline) {
        Ok(received) => received,
        Err(TubeError::TimedOut) => return Ok(true),
        Err(TubeError::Disconnected) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if let Some(wrong) = S::fault(&received.message) {
        // Not itself a request that faults count.
        let armed = hooks.arm(wrong.0);
        tube.send(received.id, &armed, &[], Deadline::after(PEER_TIMEOUT))?;
        return Ok(true);
    }
    let answer = Answer::to(tube, received.id, hooks);
    role.carry_out(received.message, received.handles, answer)
}

/// The answer to one request. Each request gets exactly one, of its own type.
pub struct Answer<'t> {
    tube: &'t mut Tube,
    id: u32,
    hooks: &'t mut dyn Hooks,
}

impl<'t> Answer<'t> {
    /// To request `id`, which is about to be carried out.
    pub fn to(tube: &'t mut Tube, id: u32, hooks: &'t mut dyn Hooks) -> Self {
        hooks.at(Point::Before, Route::Tube(tube));
        Self { tube, id, hooks }
    }

    /// The answer is owed: what it says is not known yet, and other requests come in between.
    pub fn owed(self) -> Owed {
        Owed(self.id)
    }

    /// Sends what `call` answers.
    ///
    /// # Errors
    /// As [`Answer::send_with`].
    pub fn send<Q, C: Call<Q>>(
        self,
        _call: &C,
        reply: Result<C::Reply, Failure>,
    ) -> Result<(), RoleError> {
        self.reply::<Q, C>(reply)
    }

    /// [`Answer::send`], with descriptors beside it.
    ///
    /// # Errors
    /// As [`Answer::reply`].
    pub fn send_with<Q, C: Call<Q>>(
        self,
        _call: &C,
        reply: Result<C::Reply, Failure>,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(), RoleError> {
        self.reply_with::<Q, C>(reply, handles)
    }

    /// [`Answer::send`] to a request that is not there any more.
    ///
    /// # Errors
    /// [`RoleError::Tube`] when the VMM side is gone or does not read; [`RoleError::Lost`] when that is
    /// the answer: nothing hangs up where a dext is an I/O service, so a call is where its loss shows.
    pub fn reply<Q, C: Call<Q>>(self, reply: Result<C::Reply, Failure>) -> Result<(), RoleError> {
        self.reply_with::<Q, C>(reply, &[])
    }

    fn reply_with<Q, C: Call<Q>>(
        self,
        reply: Result<C::Reply, Failure>,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(), RoleError> {
        self.hooks.at(Point::During, Route::Tube(self.tube));
        self.tube.send(self.id, &reply, handles, Deadline::after(PEER_TIMEOUT))?;
        self.hooks.at(Point::After, Route::Tube(self.tube));
        goes_on(&reply)
    }
}

/// Fails if what was answered is that the backend or its device is gone.
///
/// # Errors
/// [`RoleError::Lost`], which ends the process.
pub fn goes_on<T>(reply: &Result<T, Failure>) -> Result<(), RoleError> {
    match reply {
        Err(Failure { kind: FailureKind::Lost, message, .. }) => {
            Err(RoleError::Lost(message.clone()))
        }
        _ => Ok(()),
    }
}

/// An answer that comes later than other requests; to be [paid](Owed::pay) exactly once.
#[derive(Debug)]
#[must_use = "each request gets exactly one answer"]
pub struct Owed(u32);

impl Owed {
    /// What it says is known.
    pub fn pay<'t>(self, tube: &'t mut Tube, hooks: &'t mut dyn Hooks) -> Answer<'t> {
        Answer { tube, id: self.0, hooks }
    }
}

/// Fails unless nothing came beside a request that takes nothing.
///
/// # Errors
/// [`Failure`] naming both numbers.
pub fn nothing_beside(handles: &Handles) -> Result<(), Failure> {
    handles.expect(0).map_err(|error| invalid(error.to_string()))
}

/// The one descriptor that comes beside a request.
///
/// # Errors
/// [`Failure`] naming both numbers.
pub fn one_beside(handles: Handles) -> Result<std::os::fd::OwnedFd, Failure> {
    handles.one().map_err(|error| invalid(error.to_string()))
}

/// A failure that is the caller's fault.
#[must_use]
pub fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::InvalidArgument, code: None, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_one_name_on_both_sides() {
        let layers = [
            Kind::Descriptors,
            Kind::UserNamespace,
            Kind::PidNamespace,
            Kind::ControlGroup,
            Kind::MountNamespace,
            Kind::NetworkNamespace,
            Kind::IpcNamespace,
            Kind::UtsNamespace,
            Kind::EmptyRoot,
            Kind::ResourceLimits,
            Kind::AddressSpace,
            Kind::Capabilities,
            Kind::NoNewPrivileges,
            Kind::NotDumpable,
            Kind::DeathWithParent,
            Kind::Landlock,
            Kind::Seccomp,
            Kind::Seatbelt,
            Kind::Process,
        ];
        for layer in layers {
            assert_eq!(layer.to_string(), kind(layer).to_string());
        }
    }
}
