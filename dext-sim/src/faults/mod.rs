//! Faults as data: what goes wrong at which call, and whether it did.
//!
//! A fault counts its calls from the start of the program and fires once, except a `delay` of more
//! calls than one, and `cleanup-delay` and `no-msix`, which hold throughout. [`Faults::report`] says which fired, so
//! that a test can show that its fault happened.

mod ending;
mod grammar;

use std::time::Duration;

use ipc::wire::dext::IoReturn;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

pub(crate) use self::ending::Ending;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The `nth` call of a selector fails.
    Fail { selector: u32, nth: u64, code: IoReturn },
    /// The `nth` call of a selector takes this long, and so do those after it, `calls` in all.
    Delay { selector: u32, nth: u64, calls: u64, time: Duration },
    /// The program dies at the `nth` call of a selector.
    Die { selector: u32, nth: u64 },
    /// The function that gets the `nth` call of a selector ends for all its clients, and comes back
    /// after a time, if one is given.
    End { selector: u32, nth: u64, ending: Ending, back: Option<Duration> },
    /// The `nth` completion of WaitInterrupt is lost.
    DropNotification { nth: u64 },
    /// The `nth` DMA registration comes back in pieces.
    Fragment { nth: u64 },
    /// Cleaning up after a dead connection takes this long.
    CleanupDelay { time: Duration },
    /// MSI-X cannot be configured.
    NoMsix,
}

/// What a call must do because of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    Fail(IoReturn),
    Delay(Duration),
    Die,
    End(Ending, Option<Duration>),
}

/// A fault and whether it happened.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FaultReport {
    pub(crate) fault: String,
    pub(crate) fired: u64,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    seen: u64,
    fired: u64,
}

/// The faults of one run.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Armed>>);

impl Faults {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let all = Self::default();
        for fault in faults {
            all.add(*fault);
        }
        all
    }

    /// Arms another fault; its calls count from now.
    pub(crate) fn add(&self, fault: Fault) {
        self.lock().push(Armed { fault, seen: 0, fired: 0 });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.0.lock()
    }

    /// Counts one call against the faults that `matches` picks, by the first call that is struck; the
    /// first whose turn it is.
    fn count(&self, matches: impl Fn(&Fault) -> Option<u64>) -> Option<Fault> {
        let mut fires = None;
        for armed in self.lock().iter_mut() {
            if let Some(nth) = matches(&armed.fault) {
                armed.seen += 1;
                let calls = if let Fault::Delay { calls, .. } = armed.fault { calls } else { 1 };
                if armed.seen >= nth && armed.seen - nth < calls {
                    armed.fired += 1;
                    fires = fires.or(Some(armed.fault));
                }
            }
        }
        fires
    }

    /// A call of `called` begins.
    pub(crate) fn at_call(&self, called: u32) -> Verdict {
        let fires = self.count(|fault| match *fault {
            Fault::Fail { selector, nth, .. }
            | Fault::Delay { selector, nth, .. }
            | Fault::Die { selector, nth }
            | Fault::End { selector, nth, .. }
                if selector == called =>
            {
                Some(nth)
            }
            _ => None,
        });
        match fires {
            Some(Fault::Fail { code, .. }) => Verdict::Fail(code),
            Some(Fault::Delay { time, .. }) => Verdict::Delay(time),
            Some(Fault::Die { .. }) => Verdict::Die,
            Some(Fault::End { ending, back, .. }) => Verdict::End(ending, back),
            _ => Verdict::Proceed,
        }
    }

    /// A completion is about to be delivered; whether it is lost.
    pub(crate) fn drops_notification(&self) -> bool {
        self.count(|fault| match *fault {
            Fault::DropNotification { nth } => Some(nth),
            _ => None,
        })
        .is_some()
    }

    /// A DMA region is about to be registered; whether it comes back in pieces.
    pub(crate) fn fragments(&self) -> bool {
        self.count(|fault| match *fault {
            Fault::Fragment { nth } => Some(nth),
            _ => None,
        })
        .is_some()
    }

    /// How long cleaning up after a connection takes.
    pub(crate) fn cleanup_delay(&self) -> Option<Duration> {
        self.lock().iter_mut().find_map(|armed| match armed.fault {
            Fault::CleanupDelay { time } => {
                armed.fired += 1;
                Some(time)
            }
            _ => None,
        })
    }

    /// Whether MSI-X cannot be configured.
    pub(crate) fn no_msix(&self) -> bool {
        self.lock().iter_mut().any(|armed| {
            let hit = armed.fault == Fault::NoMsix;
            armed.fired += u64::from(hit);
            hit
        })
    }

    /// Every fault and how often it happened.
    pub(crate) fn report(&self) -> Vec<FaultReport> {
        let describe =
            |armed: &Armed| FaultReport { fault: format!("{:?}", armed.fault), fired: armed.fired };
        self.lock().iter().map(describe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_fires_once_at_its_call() {
        let fault = "fail:selector=5,nth=2,code=0xe00002db".parse().unwrap();
        let faults = Faults::new(&[fault]);
        assert_eq!(faults.at_call(5), Verdict::Proceed);
        assert_eq!(faults.at_call(6), Verdict::Proceed);
        assert_eq!(faults.at_call(5), Verdict::Fail(IoReturn::NO_SPACE));
        assert_eq!(faults.at_call(5), Verdict::Proceed);
        assert_eq!(faults.report()[0].fired, 1);
    }

    #[test]
    fn a_delay_strikes_as_many_calls_as_it_says() {
        let faults = Faults::new(&["delay:selector=6,nth=2,calls=3,ms=1".parse().unwrap()]);
        let verdicts: Vec<_> = (0..6).map(|_| faults.at_call(6) == Verdict::Proceed).collect();
        assert_eq!(verdicts, [true, false, false, false, true, true]);
        assert_eq!(faults.report()[0].fired, 3);
    }
}
