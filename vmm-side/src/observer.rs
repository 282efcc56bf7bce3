//! What happens to the processes of a device, told to whoever embeds this library: deaths, replacements,
//! devices that go and come back, limits that were reached.
//!
//! Nothing here waits for the observer. What happens is put in a queue by the thread that looks after the
//! process, and a thread of the [`Observer`]'s own calls the closure, with no lock of this library held: it
//! may call anything of it, also [`Host::detach`](crate::Host::detach), and may take as long as it likes.
//! What does not fit in the queue meanwhile is left out, counted, and told as [`Happening::LeftOut`].
//!
//! ```
//! use cordon_vmm::observer::{Happening, Observer};
//! use cordon_vmm::HostConfig;
//!
//! # fn main() -> std::io::Result<()> {
//! let observer = Observer::start(|happening: &Happening| {
//!     if let Happening::Recovered { address, took, .. } = happening {
//!         eprintln!("{address}: another process serves after {took:?}");
//!     }
//! })?;
//! let config = HostConfig::new("/usr/libexec/device-proc", "iokit").with_observer(Some(observer));
//! # drop(config);
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::PciAddress;
use ipc::wire::sandbox::SandboxReport;
use parking_lot::{Condvar, Mutex};

use crate::child::Death;
use crate::limits::MAX_HAPPENINGS;

/// A kind of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessKind {
    /// Serves one function.
    Function,
    /// Holds the claims, DMA registrations and windows of one physical device.
    Connection,
}

impl fmt::Display for ProcessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function process",
            Self::Connection => "connection process",
        })
    }
}

/// Which process came in the place of one that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Successor {
    /// The standby, which had been ready.
    Standby,
    /// One that was started for it.
    Spawned,
}

/// A limit of [`Recovery`](crate::Recovery).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// More processes died within [`Recovery::window`](crate::Recovery::window) than
    /// [`Recovery::max_deaths`](crate::Recovery::max_deaths).
    Deaths {
        /// How many died, the last one among them.
        deaths: u32,
        /// Within this time.
        window: Duration,
    },
    /// No process could be had within [`Recovery::timeout`](crate::Recovery::timeout).
    Timeout(Duration),
    /// The device did not come back within [`Recovery::away`](crate::Recovery::away).
    Away(Duration),
}

/// Something that happened to the processes of a function or device.
///
/// `address` is the function, and of a connection process the function that it was first started for.
/// A process that was stopped in order, one that does not become ready, and one of a listing are not told of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Happening {
    /// A process died that served, or that was ready to and was being set up like the one before it.
    Died {
        /// Whose it was.
        address: PciAddress,
        /// Which kind.
        kind: ProcessKind,
        /// Cause, exit status, last requests.
        death: Arc<Death>,
        /// How many processes of its kind were replaced for it before: 0 of the first one.
        generation: u64,
        /// What confined it.
        sandbox: SandboxReport,
    },
    /// A standby died while it waited; another is started.
    StandbyLost {
        /// Whose it was.
        address: PciAddress,
        /// Its death.
        death: Arc<Death>,
    },
    /// Another function process serves in the place of one that died.
    Recovered {
        /// Of which function.
        address: PciAddress,
        /// Process id of the one that serves now.
        pid: u32,
        /// How many processes of this function were replaced so far, this one included: 1 after the first death.
        generation: u64,
        /// From when the death was noticed until the function was served again.
        took: Duration,
        /// Which process it is.
        by: Successor,
    },
    /// Another function process serves in the place of one that gave way to it, of another program.
    Upgraded {
        /// Of which function.
        address: PciAddress,
        /// Process id of the one that serves now.
        pid: u32,
        /// How often that was done so far, this time included.
        upgrades: u64,
        /// From when requests waited until they were served.
        took: Duration,
    },
    /// Another connection process holds the device in the place of one that died. Its functions come back
    /// one by one: see [`Happening::Back`].
    Reconnected {
        /// Of which device.
        address: PciAddress,
        /// Process id of the one that holds it now.
        pid: u32,
        /// How many connection processes were replaced so far, this one included.
        generation: u64,
        /// From when the death was noticed until the other was ready.
        took: Duration,
    },
    /// The host wants a function back that is in use: it is unplugged, or another driver is to have it. Told
    /// once for its connection process, which gives back everything that it has: its death and the absence of its
    /// functions follow.
    Requested {
        /// Of which device.
        address: PciAddress,
        /// The end of the connection process, which says which function.
        death: Arc<Death>,
    },
    /// Another connection process holds the device in the place of one that died, and has taken over what that
    /// left: its functions were served meanwhile, and their DMA went on (Linux's VFIO).
    Adopted {
        /// Which device.
        address: PciAddress,
        /// Process id of the one that holds it now.
        pid: u32,
        /// How many connection processes were replaced so far, this one included.
        generation: u64,
        /// From when the death was noticed until the other had taken everything over.
        took: Duration,
    },
    /// The device of a function is gone: reads are all ones, writes are dropped.
    Away {
        /// Which function.
        address: PciAddress,
        /// Whose death it was.
        death: Arc<Death>,
    },
    /// The device of a function that was away is back, and served.
    Back {
        /// Which function.
        address: PciAddress,
        /// Process id of its function process.
        pid: u32,
        /// How often it came back so far, this time included.
        returns: u64,
        /// From when the new connection process was noticed until the function was served.
        took: Duration,
    },
    /// A function is served no more, for good.
    GivenUp {
        /// Which function.
        address: PciAddress,
        /// Why.
        death: Arc<Death>,
    },
    /// A limit was reached; what it bounds is given up.
    LimitReached {
        /// By whom.
        address: PciAddress,
        /// By its processes of this kind.
        kind: ProcessKind,
        /// Which.
        limit: Limit,
    },
    /// The observer was too slow, and was not told of so many.
    LeftOut {
        /// How many, since this was last told.
        count: u64,
    },
}

struct Waiting {
    queue: VecDeque<Happening>,
    left_out: u64,
    /// The closure is being called.
    calling: bool,
    closed: bool,
}

struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Closes the queue when the last [`Observer`] is dropped.
struct Handle(Arc<Queue>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.waiting.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// Who is told what happens. Clones are the same observer. Its thread ends when the last of them is gone,
/// those in a [`HostConfig`](crate::HostConfig) and in what was attached with it included, and everything
/// was told.
#[derive(Clone)]
pub struct Observer(Arc<Handle>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

impl Observer {
    /// Starts a thread that calls `tell` with whatever happens, in the order in which it did for each
    /// function. A panic of `tell` is logged, and the next is told.
    ///
    /// # Errors
    /// When there are no threads left.
    pub fn start(tell: impl FnMut(&Happening) + Send + 'static) -> std::io::Result<Self> {
        let waiting =
            Waiting { queue: VecDeque::new(), left_out: 0, calling: false, closed: false };
        let queue = Arc::new(Queue { waiting: Mutex::new(waiting), changed: Condvar::new() });
        let taken = Arc::clone(&queue);
        let run = move || taken.tell(tell);
        std::thread::Builder::new().name("observer".to_owned()).spawn(run)?;
        Ok(Self(Arc::new(Handle(queue))))
    }

    /// Puts it in the queue. Waits for nobody.
    pub(crate) fn put(&self, happening: Happening) {
        let mut waiting = self.0.0.waiting.lock();
        if waiting.queue.len() < MAX_HAPPENINGS {
            waiting.queue.push_back(happening);
        } else {
            waiting.left_out += 1;
        }
        drop(waiting);
        self.0.0.changed.notify_all();
    }

    /// Waits until everything was told that happened so far, at most for `time`; whether it was. Not to be
    /// called by the observer itself.
    pub fn flush(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut waiting = self.0.0.waiting.lock();
        while waiting.calling || !waiting.queue.is_empty() || waiting.left_out > 0 {
            if self.0.0.changed.wait_until(&mut waiting, end).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Queue {
    /// The thread.
    fn tell(&self, mut tell: impl FnMut(&Happening)) {
        let mut waiting = self.waiting.lock();
        loop {
            let next = match waiting.queue.pop_front() {
                Some(happening) => happening,
                // Those that were left out came after all that were in the queue.
                None if waiting.left_out > 0 => {
                    Happening::LeftOut { count: std::mem::take(&mut waiting.left_out) }
                }
                None if waiting.closed => return,
                None => {
                    self.changed.wait(&mut waiting);
                    continue;
                }
            };
            waiting.calling = true;
            drop(waiting);
            if catch_unwind(AssertUnwindSafe(|| tell(&next))).is_err() {
                tracing::error!("the observer panicked at {next:?}");
            }
            waiting = self.waiting.lock();
            waiting.calling = false;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::Cause;
    use std::sync::mpsc::channel;

    fn happening(number: u64) -> Happening {
        let address = "01:00.0".parse().unwrap();
        let took = Duration::ZERO;
        let by = Successor::Spawned;
        Happening::Recovered { address, pid: 1, generation: number, took, by }
    }

    fn number(happening: &Happening) -> Option<u64> {
        match happening {
            Happening::Recovered { generation, .. } => Some(*generation),
            _ => None,
        }
    }

    #[test]
    fn whoever_tells_never_waits_and_what_did_not_fit_is_counted() {
        let (sender, told) = channel();
        let (release, held) = channel::<()>();
        let observer = Observer::start(move |happening| {
            // Slow until it is released: for ever, if anybody waited for it.
            let _ = held.recv();
            sender.send(happening.clone()).unwrap();
        })
        .unwrap();
        let all = MAX_HAPPENINGS as u64 + 100;
        (0..all).for_each(|number| observer.put(happening(number)));
        assert!(!observer.flush(Duration::from_millis(20)), "nothing was told yet");
        drop(release);
        assert!(observer.flush(Duration::from_secs(10)));
        drop(observer);
        let (mut numbers, mut left_out) = (Vec::new(), 0);
        for happening in told {
            match happening {
                Happening::LeftOut { count } => left_out += count,
                other => numbers.extend(number(&other)),
            }
        }
        // The one that was being told is in the queue no more.
        assert!((MAX_HAPPENINGS..=MAX_HAPPENINGS + 1).contains(&numbers.len()));
        assert_eq!(numbers.len() as u64 + left_out, all);
        assert!(numbers.is_sorted());
    }

    #[test]
    fn an_observer_that_panics_is_told_the_next_and_its_thread_ends_with_the_last_handle() {
        let (sender, told) = channel();
        let observer = Observer::start(move |happening| {
            assert_ne!(number(happening), Some(0));
            sender.send(number(happening)).unwrap();
        })
        .unwrap();
        let other = observer.clone();
        observer.put(happening(0));
        drop(observer);
        other.put(happening(1));
        let address = "01:00.0".parse().unwrap();
        let death = Arc::new(Death::of_function("01:00.0", Cause::Ended));
        other.put(Happening::GivenUp { address, death });
        drop(other);
        // The channel closes with the thread.
        assert_eq!(told.iter().collect::<Vec<_>>(), [Some(1), None]);
    }
}
