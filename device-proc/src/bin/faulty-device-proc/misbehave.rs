//! Wrong on purpose: what the VMM side arranges for happens once, at its point of the next request.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use cordon_backend::{Backend, BackendError};
use cordon_device_proc::backends;
use cordon_device_proc::hooks::{self, Hooks, Route};
use dext_client::{Behind, Dext, DextError, Endpoint, Mapped, Registry, SelectorError, UserClient};
use ipc::Event;
use ipc::wire::common::Failure;
use ipc::wire::dext::{IoReturn, Service};
use ipc::wire::faults::{Misbehaviour, Point, Wrong};

/// What a process has been asked to do wrong.
#[derive(Default)]
pub(crate) struct Misbehave {
    armed: Option<Misbehaviour>,
    selector: Armed,
}

/// The selector whose next call fails, and its code.
type Armed = Arc<Mutex<Option<(u32, IoReturn)>>>;

impl Hooks for Misbehave {
    fn backend(&self, endpoint: &Endpoint) -> Result<Box<dyn Backend>, BackendError> {
        if *endpoint == Endpoint::Vfio {
            // It has no selectors.
            return backends::open(endpoint);
        }
        let registry = dext_client::registry(endpoint)?;
        let selector = Arc::clone(&self.selector);
        Ok(Box::new(Dext::of(Box::new(FaultyRegistry { registry, selector }))))
    }

    fn arm(&mut self, misbehaviour: Misbehaviour) -> Result<(), Failure> {
        match misbehaviour.wrong {
            Wrong::Selector { selector, code } => *lock(&self.selector) = Some((selector, code)),
            _ => self.armed = Some(misbehaviour),
        }
        Ok(())
    }

    fn at(&mut self, point: Point, route: Route<'_>) -> bool {
        let Some(misbehaviour) = self.armed.take_if(|armed| armed.point == point) else {
            return false;
        };
        match misbehaviour.wrong {
            Wrong::Hang => loop {
                std::hint::spin_loop();
            },
            Wrong::Closed => crate::sys::close_and_stay(route.tube().as_fd()),
            ref wrong => hooks::send_nonsense(wrong, point, route),
        }
    }
}

fn lock(armed: &Armed) -> std::sync::MutexGuard<'_, Option<(u32, IoReturn)>> {
    armed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands out connections that fail when they are told to.
struct FaultyRegistry {
    registry: Box<dyn Registry>,
    selector: Armed,
}

impl Registry for FaultyRegistry {
    fn services(&self) -> Result<Vec<Service>, DextError> {
        self.registry.services()
    }

    fn open(&self, service: u64, kind: u32) -> Result<Box<dyn UserClient>, DextError> {
        let client = self.registry.open(service, kind)?;
        Ok(Box::new(FaultyClient { client, selector: Arc::clone(&self.selector) }))
    }
}

struct FaultyClient {
    client: Box<dyn UserClient>,
    selector: Armed,
}

impl FaultyClient {
    fn check(&self, called: u32) -> Result<(), SelectorError> {
        match lock(&self.selector).take_if(|(selector, _)| *selector == called) {
            Some((_, code)) => Err(SelectorError::Code(code)),
            None => Ok(()),
        }
    }
}

impl UserClient for FaultyClient {
    fn call(
        &mut self,
        selector: u32,
        inputs: &[u64],
        outputs: &mut [u64],
        behind: Option<Behind<'_>>,
    ) -> Result<(), SelectorError> {
        self.check(selector)?;
        self.client.call(selector, inputs, outputs, behind)
    }

    fn call_async(&mut self, selector: u32, inputs: &[u64]) -> Result<(), SelectorError> {
        self.check(selector)?;
        self.client.call_async(selector, inputs)
    }

    fn map(&mut self, kind: u32) -> Result<Mapped, SelectorError> {
        self.client.map(kind)
    }

    fn completion(&self) -> &Event {
        self.client.completion()
    }

    fn liveness(&self) -> Option<BorrowedFd<'_>> {
        self.client.liveness()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.client.descriptors()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::Tube;

    #[test]
    fn what_is_armed_happens_at_its_point_and_once() {
        let (ours, theirs) = Tube::pair().unwrap();
        let mut ours = ours;
        let mut misbehave = Misbehave::default();
        misbehave.arm(Misbehaviour { point: Point::During, wrong: Wrong::Garbage }).unwrap();
        let route = Route::Tube(&theirs);
        assert!(!misbehave.at(Point::Before, route));
        let now = || ipc::Deadline::now();
        assert!(matches!(ours.receive::<u32>(now()), Err(ipc::TubeError::TimedOut)));
        assert!(!misbehave.at(Point::During, route));
        assert!(matches!(ours.receive::<u32>(now()), Err(ipc::TubeError::Frame(_))));
    }
}
