//! The order of life of every role: take the tube, shake hands, open at the dext, confine, say
//! that it is ready (and what confines it), serve.
//!
//! What fails before confinement is told to the VMM side as one line; the process then exits.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use ipc::wire::call::Call;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::Point;
use ipc::wire::handshake::Role;
use ipc::wire::sandbox::{Layer, LayerState, SandboxReport};
use ipc::{Deadline, Handles, Tube, TubeError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dext::DextError;
use crate::misbehave::Misbehave;
use crate::options::Common;

/// How long the VMM side may take to read a message or to introduce itself.
pub const PATIENCE: Duration = Duration::from_secs(5);

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
    /// The dext refused at the start, or is gone.
    #[error(transparent)]
    Dext(#[from] DextError),
    /// The process is not confined and must not go on.
    #[error(transparent)]
    Sandbox(#[from] sandbox_profiles::ConfineError),
    /// There is no timer to bound signals with.
    #[error("No timer for signals")]
    Timer(#[source] std::io::Error),
    /// The wait failed.
    #[error("Cannot wait")]
    Wait(#[source] std::io::Error),
}

/// A role's life. `prepare` opens and confines, and gives the role's state and what the VMM side is
/// told of it; `serve` goes on until the VMM side ends it.
///
/// # Errors
/// [`RoleError`]; the VMM side has been told of one from `prepare`.
pub fn run<S, R: Serialize>(
    common: &Common,
    role: Role,
    prepare: impl FnOnce(&Tube) -> Result<(S, R), RoleError>,
    serve: impl FnOnce(&mut Tube, S) -> Result<(), RoleError>,
) -> Result<(), RoleError> {
    let mut tube = tube(common, role)?;
    let (state, ready) = match prepare(&tube) {
        Ok(prepared) => prepared,
        Err(error) => {
            report_failure::<R>(&mut tube, &error);
            return Err(error);
        }
    };
    let started: Result<R, Failure> = Ok(ready);
    tube.send(0, &started, &[], Deadline::after(PATIENCE))?;
    serve(&mut tube, state)
}

/// Takes over the inherited tube and shakes hands on it.
fn tube(common: &Common, role: Role) -> Result<Tube, RoleError> {
    let number = common.tube_fd;
    let fd = crate::sys::inherited(number).map_err(|error| RoleError::NoTube(number, error))?;
    let mut tube = Tube::from_fd(fd);
    tube.handshake(role, Role::Vmm, Deadline::after(PATIENCE))?;
    Ok(tube)
}

/// Confines the process; `open` are all descriptors that it goes on with.
///
/// # Errors
/// [`RoleError::Sandbox`] when a layer is missing in strict mode.
pub fn confine(
    common: &Common,
    role: sandbox_profiles::Role,
    open: &[BorrowedFd<'_>],
) -> Result<SandboxReport, RoleError> {
    let keep: Vec<i32> = open.iter().map(|fd| fd.as_raw_fd()).collect();
    let report = sandbox_profiles::confine(role, common.sandbox.into(), &keep)?;
    let state = |state| match state {
        sandbox_profiles::State::Enforced(said) => LayerState::Enforced(said),
        sandbox_profiles::State::Partial(said) => LayerState::Partial(said),
        sandbox_profiles::State::Missing(said) => LayerState::Missing(said),
    };
    let layer = |(name, said): (&str, _)| Layer { name: name.to_owned(), state: state(said) };
    Ok(SandboxReport {
        layers: report.layers.into_iter().map(layer).collect(),
        syscalls: u32::try_from(report.syscalls).unwrap_or(u32::MAX),
    })
}

/// Tells the VMM side that the process could not start.
fn report_failure<R: Serialize>(tube: &mut Tube, error: &RoleError) {
    let (kind, code) = match error {
        RoleError::Dext(error) => {
            let failure = crate::failure(error);
            (failure.kind, failure.code)
        }
        _ => (FailureKind::NoDevice, None),
    };
    let failure = Failure { kind, code, message: ipc::chain(error) };
    let started: Result<R, Failure> = Err(failure);
    let _ = tube.send(0, &started, &[], Deadline::after(PATIENCE));
}

/// A request and what came beside it.
pub struct Incoming<Q> {
    /// The request.
    pub request: Q,
    /// Its number, which the answer repeats.
    pub id: u32,
    /// What came beside it.
    pub handles: Handles,
}

/// The next request, if one is there; `Ok(None)` when none is, [`TubeError::Disconnected`] when the
/// VMM side is gone.
///
/// # Errors
/// [`TubeError`].
pub fn next_request<Q: DeserializeOwned>(
    tube: &mut Tube,
) -> Result<Option<Incoming<Q>>, TubeError> {
    match tube.receive::<Q>(Deadline::now()) {
        Ok(received) => Ok(Some(Incoming {
            request: received.message,
            id: received.id,
            handles: received.handles,
        })),
        Err(TubeError::TimedOut) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The answer to one request. Each request gets exactly one, of its own type.
pub struct Answer<'t> {
    tube: &'t mut Tube,
    id: u32,
    misbehave: &'t mut Misbehave,
}

impl<'t> Answer<'t> {
    /// To request `id`, which is about to be carried out.
    pub fn to(tube: &'t mut Tube, id: u32, misbehave: &'t mut Misbehave) -> Self {
        misbehave.at(Point::Before, tube);
        Self { tube, id, misbehave }
    }

    /// Sends what `call` answers.
    ///
    /// # Errors
    /// [`RoleError::Tube`] when the VMM side is gone or does not read.
    pub fn send<Q, C: Call<Q>>(
        self,
        call: &C,
        reply: Result<C::Reply, Failure>,
    ) -> Result<(), RoleError> {
        self.send_with(call, reply, &[])
    }

    /// [`Answer::send`], with descriptors beside it.
    ///
    /// # Errors
    /// [`RoleError::Tube`] when the VMM side is gone or does not read.
    pub fn send_with<Q, C: Call<Q>>(
        self,
        _call: &C,
        reply: Result<C::Reply, Failure>,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(), RoleError> {
        self.misbehave.at(Point::During, self.tube);
        self.tube.send(self.id, &reply, handles, Deadline::after(PATIENCE))?;
        self.misbehave.at(Point::After, self.tube);
        Ok(())
    }
}

/// Arranges for a fault, or refuses; the answer is not itself a request that faults count.
///
/// # Errors
/// [`RoleError::Tube`] when the VMM side is gone or does not read.
pub fn arrange(
    tube: &mut Tube,
    id: u32,
    misbehave: &mut Misbehave,
    wrong: &ipc::wire::faults::Misbehave,
) -> Result<(), RoleError> {
    let armed = misbehave.arm(wrong.0);
    Ok(tube.send(id, &armed, &[], Deadline::after(PATIENCE))?)
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
