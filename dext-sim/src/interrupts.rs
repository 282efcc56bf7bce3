//! Interrupts of one function: who registered for them, the state page, the armed notification.
//!
//! One connection at a time holds a function's interrupts, as one driver at a time holds a
//! hardware interrupt source: while a dead connection is still being cleaned up, a new one finds
//! none to register.

use std::sync::Arc;

use ipc::event::Signaller;
use ipc::wire::dext::{ENABLED_WORDS, INTERRUPT_PAGE, IoReturn};
use ipc::{Access, SharedMemory, Window};
use parking_lot::{Mutex, MutexGuard};

use crate::faults::Faults;

/// Number of a connection, unique in one run.
pub(crate) type ClientId = u64;

#[derive(Debug)]
struct Holder {
    client: ClientId,
    vectors: u16,
    page: Window,
    memory: SharedMemory,
    completion: Arc<Signaller>,
    armed: bool,
}

/// Interrupts of one function.
#[derive(Debug)]
pub(crate) struct Interrupts {
    holder: Mutex<Option<Holder>>,
    faults: Arc<Faults>,
}

impl Interrupts {
    pub(crate) fn new(faults: Arc<Faults>) -> Self {
        Self { holder: Mutex::new(None), faults }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Holder>> {
        self.holder.lock()
    }

    /// Registers `vectors` for a connection.
    pub(crate) fn set_up(
        &self,
        client: ClientId,
        vectors: u16,
        completion: Signaller,
    ) -> Result<(), IoReturn> {
        let mut holder = self.lock();
        match &*holder {
            Some(held) if held.client == client => return Err(IoReturn::STILL_OPEN),
            Some(_) => return Err(IoReturn::NOT_FOUND),
            None => {}
        }
        let memory = SharedMemory::create("dext-interrupts", INTERRUPT_PAGE as u64)
            .map_err(|_| IoReturn::NO_MEMORY)?;
        let page = memory.map_all(Access::ReadWrite).map_err(|_| IoReturn::NO_MEMORY)?;
        for word in 0..4 {
            let _ = page.store_u64(ENABLED_WORDS + 8 * word, u64::MAX);
        }
        let completion = Arc::new(completion);
        *holder = Some(Holder { client, vectors, page, memory, completion, armed: false });
        Ok(())
    }

    /// Releases what a connection registered; whether it had.
    pub(crate) fn release(&self, client: ClientId) -> bool {
        self.lock().take_if(|held| held.client == client).is_some()
    }

    /// Releases what any connection registered.
    pub(crate) fn release_all(&self) {
        *self.lock() = None;
    }

    /// Runs `then` on the holder's page, if `client` is the holder.
    fn with<R>(
        &self,
        client: ClientId,
        then: impl FnOnce(&mut Holder) -> R,
    ) -> Result<R, IoReturn> {
        match &mut *self.lock() {
            Some(held) if held.client == client => Ok(then(held)),
            _ => Err(IoReturn::NOT_READY),
        }
    }

    /// Reads and clears the pending bits, each word by one exchange.
    pub(crate) fn check(&self, client: ClientId) -> Result<[u64; 4], IoReturn> {
        self.with(client, |held| {
            [0, 8, 16, 24].map(|word| held.page.swap_u64(word, 0).unwrap_or_default())
        })
    }

    /// Arms one notification; at once when a bit is pending.
    pub(crate) fn arm(&self, client: ClientId) -> Result<(), IoReturn> {
        let completes = self.with(client, |held| {
            let pending = [0, 8, 16, 24].iter().any(|&w| held.page.load_u64(w).unwrap_or(0) != 0);
            held.armed = !pending;
            pending.then(|| Arc::clone(&held.completion))
        })?;
        self.complete(completes);
        Ok(())
    }

    /// Tells the client. With no lock held: the descriptor is the client's, and whatever a write to
    /// it does, nobody else waits for it.
    fn complete(&self, completes: Option<Arc<Signaller>>) {
        if let Some(completion) = completes
            && !self.faults.drops_notification()
        {
            completion.signal();
        }
    }

    /// Sets the enabled words.
    pub(crate) fn set_mask(&self, client: ClientId, words: [u64; 4]) -> Result<(), IoReturn> {
        self.with(client, |held| {
            for (at, word) in (0..).zip(words) {
                let _ = held.page.store_u64(ENABLED_WORDS + 8 * at, word);
            }
        })
    }

    /// The state page, to map.
    pub(crate) fn page(&self, client: ClientId) -> Result<SharedMemory, IoReturn> {
        self.with(client, |held| held.memory.try_clone().map_err(|_| IoReturn::NO_MEMORY))?
    }

    /// The device fires a vector. Not recorded at all when its enabled bit is 0.
    pub(crate) fn raise(&self, vector: u16) {
        let completes = {
            let mut holder = self.lock();
            let Some(held) = holder.as_mut().filter(|held| vector < held.vectors) else {
                return;
            };
            let (word, bit) = (u64::from(vector / 64) * 8, 1u64 << (vector % 64));
            if held.page.load_u64(ENABLED_WORDS + word).unwrap_or(0) & bit == 0 {
                return;
            }
            let _ = held.page.set_bits_u64(word, bit);
            std::mem::take(&mut held.armed).then(|| Arc::clone(&held.completion))
        };
        self.complete(completes);
    }

    /// Whether somebody holds them.
    pub(crate) fn held(&self) -> bool {
        self.lock().is_some()
    }
}
