//! A connection process's side of a companion, without a process and over a dext in memory, for the fuzz
//! targets.

use dext_client::fake::Fake;
use ipc::wire::dext::{IoReturn, selector};
use ipc::wire::handshake::Role;
use ipc::{Deadline, SharedMemory, Tube};

use super::claimed::ClaimedFunction;
use super::companion::Companion;
use crate::options::Windows;

/// A function with a companion, and the function process's end of its tube.
pub struct Served {
    fake: Fake,
    function: ClaimedFunction,
    companion: Companion,
}

impl Served {
    /// With guest memory of these addresses and sizes, once both ends have introduced themselves.
    ///
    /// # Errors
    /// When the process is out of memory or descriptors, or the regions cannot be.
    pub fn new(regions: &[(u64, u64)]) -> Result<(Self, Tube), Box<dyn std::error::Error>> {
        let said = |failure: ipc::wire::common::Failure| failure.message;
        let (fake, client) = Fake::client();
        // Guest memory is not the device's by itself: the companion is asked for it.
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
        let mut function = ClaimedFunction::new(Box::new(client), Windows::Handed);
        function.attach().map_err(said)?;
        fake.recover(selector::REGISTER_DMA_REGION);
        for (base, size) in regions {
            let ram = SharedMemory::create("ram", *size)?.into_fd();
            function.memory.add(*base, *size, ram, 0, true).map_err(said)?;
        }
        let (ours, mut theirs) = Tube::pair()?;
        let mut companion = Companion::new(0, ours.into());
        theirs.introduce(Role::Function, Deadline::now())?;
        if !companion.serve_one(&mut function) {
            return Err("the greeting is not taken".into());
        }
        theirs.meet(Role::Function, Role::Connection, Deadline::now())?;
        Ok((Self { fake, function, companion }, theirs))
    }

    /// Takes what the function process sent; `false` when it is gone or out of step.
    pub fn serve_one(&mut self) -> bool {
        self.companion.serve_one(&mut self.function)
    }

    /// Carries out what there is to do until a deadline, and at least one entry; `false` when the answer
    /// cannot be given.
    pub fn work(&mut self, until: Deadline) -> bool {
        let done = self.function.work(until);
        done.is_none_or(|(request, reply)| self.companion.answer(request, &reply))
    }

    /// Keys and sizes of what is registered with the dext.
    #[must_use]
    pub fn registered(&self) -> Vec<(u64, u64)> {
        self.fake.registered()
    }

    /// Whether there is anything to carry out or to undo.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.function.has_work()
    }
}
