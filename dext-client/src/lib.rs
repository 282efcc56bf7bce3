//! The dext's interface, as a client sees it.
//!
//! [`UserClient`] is one `io_connect_t` and as thin as that: scalars in and out, memory types,
//! one kind of asynchronous completion. [`client::Client`] gives it types. [`Registry`] finds and
//! opens. Behind both is the simulated dext ([`sim`]) or IOKit. [`Dext`] is all of it as a
//! [`cordon_backend::Backend`], which is how the confined processes use it.
//!
//! When the dext or its device is gone, every call is [`DextError::Lost`]; the process reports and
//! exits. The simulated dext's end closes the socket. On a Mac nothing closes: it shows as one of
//! several codes, which one depends on what went first, and [`Client`] knows them.

mod backend;
pub mod client;
mod endpoint;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[cfg(target_os = "macos")]
pub mod iokit;
mod limits;
pub mod sim;

use std::os::fd::BorrowedFd;

use ipc::wire::dext::{IoReturn, Service};
use ipc::{Event, PciAddress, RootBridge, SharedMemory, TubeError, Window};

pub use backend::Dext;
pub use client::Client;
/// The memory that an address of this process means. IOKit looks at the task itself; the simulated
/// dext is told.
pub use cordon_backend::Behind;
pub use endpoint::{Endpoint, EndpointError};

/// Why the dext did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DextError {
    /// The dext said no.
    #[error("{subject}: {operation} failed: {code}")]
    Refused {
        /// The function, or "dext" before it is known.
        subject: String,
        /// What was asked.
        operation: &'static str,
        /// The dext's code.
        code: IoReturn,
    },
    /// The dext, its device, or the way to it, is gone.
    #[error("{subject}: {operation} failed: the dext is gone{}", said(*code))]
    Lost {
        /// The function, or "dext" before it is known.
        subject: String,
        /// What was asked.
        operation: &'static str,
        /// The code that showed it; `None` when the connection was closed.
        code: Option<IoReturn>,
    },
    /// The dext did not answer, or answered something else.
    #[error("{subject}: {operation} failed")]
    Broken {
        /// The function, or "dext" before it is known.
        subject: String,
        /// What was asked.
        operation: &'static str,
        /// Why.
        #[source]
        source: TubeError,
    },
    /// There is no dext where it was looked for.
    #[error("No dext at {place}: {why}")]
    NoDext {
        /// Where.
        place: String,
        /// Why.
        why: String,
    },
    /// The dext has no such function.
    #[error("No such device: the dext has no function {0}")]
    NoSuchDevice(PciAddress),
    /// The dext has several functions at an address.
    #[error("Function {address}: Open failed: {}", ambiguous(root_bridges))]
    Ambiguous {
        /// The address.
        address: PciAddress,
        /// The root bridges above them; empty if the host names none.
        root_bridges: Vec<RootBridge>,
    },
    /// The dext and its memory disagree.
    #[error("{subject}: {operation} failed: {why}")]
    Invalid {
        /// The function.
        subject: String,
        /// What was asked.
        operation: &'static str,
        /// What is wrong.
        why: String,
    },
}

impl DextError {
    /// The code, when one came back.
    #[must_use]
    pub fn code(&self) -> Option<IoReturn> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Lost { code, .. } => *code,
            _ => None,
        }
    }

    /// Whether the dext or its device is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// Whether the one service that was asked is gone; others of the same registry may well be
    /// there.
    #[must_use]
    pub fn is_service_gone(&self) -> bool {
        matches!(self, Self::Lost { code: Some(_), .. })
    }

    /// Whether the dext is gone or out of step, so that there is no point in going on.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Broken { .. })
    }
}

/// Why an address is not enough, and what is.
fn ambiguous(root_bridges: &[RootBridge]) -> String {
    let Some(first) = root_bridges.first() else {
        return "several devices have this address, and the host names no root bridges".to_owned();
    };
    let names: Vec<&str> = root_bridges.iter().map(RootBridge::as_str).collect();
    format!(
        "several devices have this address, beneath the root bridges {}: name one, as in \
         --dext=iokit@{first}",
        names.join(", ")
    )
}

fn said(code: Option<IoReturn>) -> String {
    code.map_or_else(String::new, |code| format!(": {code}"))
}

/// What a call came back with; the typed client adds who and what.
#[derive(Debug)]
pub enum SelectorError {
    /// A code other than success.
    Code(IoReturn),
    /// No answer.
    Tube(TubeError),
    /// An answer that cannot be.
    Invalid(String),
}

impl SelectorError {
    /// A method that fills less than it must gave an answer that cannot be.
    pub(crate) fn unless_filled(given: usize, wanted: usize) -> Result<(), Self> {
        if given >= wanted {
            return Ok(());
        }
        Err(Self::Invalid(format!("{given} scalars came back, expected {wanted}")))
    }
}

/// Memory of the dext, mapped here.
#[derive(Debug)]
pub struct Mapped {
    /// The mapping.
    pub window: Window,
    /// The memory behind it, where it has a descriptor.
    pub memory: Option<SharedMemory>,
}

/// One connection to one service: an `io_connect_t`.
pub trait UserClient: Send {
    /// IOConnectCallMethod with scalars. `outputs` is filled as far as the dext fills it; a method
    /// that fills less than it must is [`SelectorError::Invalid`].
    ///
    /// # Errors
    /// [`SelectorError`].
    fn call(
        &mut self,
        selector: u32,
        inputs: &[u64],
        outputs: &mut [u64],
        behind: Option<Behind<'_>>,
    ) -> Result<(), SelectorError>;

    /// IOConnectCallAsyncScalarMethod; the completion signals [`UserClient::completion`].
    ///
    /// # Errors
    /// [`SelectorError`]; no completion comes then.
    fn call_async(&mut self, selector: u32, inputs: &[u64]) -> Result<(), SelectorError>;

    /// IOConnectMapMemory64 into this process.
    ///
    /// # Errors
    /// [`SelectorError`].
    fn map(&mut self, kind: u32) -> Result<Mapped, SelectorError>;

    /// Signalled by asynchronous completions.
    fn completion(&self) -> &Event;

    /// Hangs up when the dext dies, where that can be waited for.
    fn liveness(&self) -> Option<BorrowedFd<'_>>;

    /// Descriptors that must stay open for the connection to work.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;
}

/// The I/O registry: what can be opened.
pub trait Registry: Send + Sync {
    /// Services whose `IOUserClass` is the dext's.
    ///
    /// # Errors
    /// [`DextError::NoDext`] when the registry cannot be reached.
    fn services(&self) -> Result<Vec<Service>, DextError>;

    /// IOServiceOpen with client type `kind`.
    ///
    /// # Errors
    /// [`DextError`].
    fn open(&self, service: u64, kind: u32) -> Result<Box<dyn UserClient>, DextError>;
}

/// The registry at `endpoint`.
///
/// # Errors
/// [`DextError::NoDext`] when this build cannot talk to it.
pub fn registry(endpoint: &Endpoint) -> Result<Box<dyn Registry>, DextError> {
    match endpoint {
        Endpoint::Beneath(root_bridge, endpoint) => {
            let (root_bridge, whole) = (root_bridge.clone(), registry(endpoint)?);
            Ok(Box::new(Beneath { root_bridge, whole }))
        }
        Endpoint::Vfio => Err(DextError::NoDext {
            place: "vfio".to_owned(),
            why: "VFIO is no dext: functions of it are opened by no client of a dext".to_owned(),
        }),
        Endpoint::Simulated(path) => Ok(Box::new(sim::SimulatedRegistry::new(path))),
        #[cfg(target_os = "macos")]
        Endpoint::IoKit => Ok(Box::new(iokit::IoKitRegistry)),
        #[cfg(not(target_os = "macos"))]
        Endpoint::IoKit => Err(DextError::NoDext {
            place: "iokit".to_owned(),
            why: "this build has no IOKit backend; use sim:PATH with a running dext-sim, or vfio"
                .to_owned(),
        }),
    }
}

/// What a registry has beneath one root bridge.
struct Beneath {
    root_bridge: RootBridge,
    whole: Box<dyn Registry>,
}

impl Registry for Beneath {
    fn services(&self) -> Result<Vec<Service>, DextError> {
        let mut services = self.whole.services()?;
        services.retain(|service| service.root_bridge.as_ref() == Some(&self.root_bridge));
        Ok(services)
    }

    fn open(&self, service: u64, kind: u32) -> Result<Box<dyn UserClient>, DextError> {
        self.whole.open(service, kind)
    }
}

/// A function that is open, and the root bridge above it.
type Found = (Client, Option<RootBridge>);

/// Opens every service that is ours and keeps those that `wanted` picks by identity; beside them why
/// a service could not be opened, if one could not.
///
/// Only an open service says which function it is. So one that cannot be opened, since it is gone or
/// at its limit of clients, is passed over: it is no reason to refuse the others.
fn open_matching(
    registry: &dyn Registry,
    wanted: impl Fn(PciAddress) -> bool,
) -> Result<(Vec<Found>, Option<DextError>), DextError> {
    use ipc::wire::dext::{CLIENT_TYPE, SERVICE_CLASS};
    let (mut found, mut passed_over) = (Vec::new(), None);
    for service in registry.services()? {
        if service.class != SERVICE_CLASS {
            continue;
        }
        match registry.open(service.id, CLIENT_TYPE).and_then(Client::new) {
            Ok(mut client) if wanted(client.address()) => {
                client.service = Some(service.id);
                found.push((client, service.root_bridge));
            }
            Ok(_) => {}
            Err(error) if error.is_service_gone() => {}
            Err(error) => passed_over = passed_over.or(Some(error)),
        }
    }
    found.sort_by_key(|(client, _)| client.address());
    Ok((found, passed_over))
}

/// Keeps the functions beneath the root bridge of the one at `address`.
fn of_one_device(
    (mut found, passed_over): (Vec<Found>, Option<DextError>),
    address: PciAddress,
) -> Result<Vec<Client>, DextError> {
    let at = found.iter().filter(|(client, _)| client.address() == address);
    let roots: Vec<Option<RootBridge>> = at.map(|(_, root_bridge)| root_bridge.clone()).collect();
    match &roots[..] {
        [] => Err(passed_over.unwrap_or(DextError::NoSuchDevice(address))),
        [root_bridge] => {
            found.retain(|(_, of)| of == root_bridge);
            Ok(found.into_iter().map(|(client, _)| client).collect())
        }
        _ => {
            let mut root_bridges: Vec<RootBridge> = roots.into_iter().flatten().collect();
            root_bridges.sort_unstable();
            Err(DextError::Ambiguous { address, root_bridges })
        }
    }
}

/// Opens the one function at `address`.
///
/// # Errors
/// [`DextError::NoSuchDevice`] when the dext does not have it, [`DextError::Ambiguous`] when it has
/// several; what became of a service that could not be opened, since that may be the one.
pub fn open_function(registry: &dyn Registry, address: PciAddress) -> Result<Client, DextError> {
    let found = open_matching(registry, |found| found == address)?;
    let mut clients = of_one_device(found, address)?;
    clients.pop().ok_or(DextError::NoSuchDevice(address))
}

/// As [`open_function`], and looks first at the service `place`, where another process of the function found
/// it: the number of a service means no other one for as long as its registry lives.
///
/// # Errors
/// As [`open_function`].
pub fn open_function_at(
    registry: &dyn Registry,
    address: PciAddress,
    place: u64,
) -> Result<Client, DextError> {
    match registry.open(place, ipc::wire::dext::CLIENT_TYPE).and_then(Client::new) {
        Ok(mut client) if client.address() == address => {
            client.service = Some(place);
            Ok(client)
        }
        _ => open_function(registry, address),
    }
}

/// Opens the function at `address` and the others of its device that can be opened.
///
/// # Errors
/// As [`open_function`].
pub fn open_device(registry: &dyn Registry, address: PciAddress) -> Result<Vec<Client>, DextError> {
    of_one_device(open_matching(registry, |found| found.same_device(address))?, address)
}

/// Opens every function that can be opened.
///
/// # Errors
/// [`DextError`] when the registry cannot be read, or no function can be opened.
pub fn open_all(registry: &dyn Registry) -> Result<Vec<Client>, DextError> {
    let (found, passed_over) = open_matching(registry, |_| true)?;
    match passed_over {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found.into_iter().map(|(client, _)| client).collect()),
    }
}
