//! Faults as values: of device processes, for [`RigBuilder::fault`](crate::RigBuilder::fault), and of the dext, for
//! [`RigBuilder::dext_fault`](crate::RigBuilder::dext_fault).
//!
//! ```
//! use cordon_testkit::{connection, function};
//!
//! let kill = function().at_bar_write(3).during().kill();
//! assert_eq!(kill.to_string(), "function,request=BarWrite,nth=3,when=during,kill");
//! let stop = connection().at("MapDma", 1).before().stop();
//! assert_eq!(stop.to_string(), "connection,request=MapDma,nth=1,when=before,stop");
//! ```

use std::fmt;
use std::time::Duration;

use cordon_vmm::faults::{Fault, Point, START, Target, What};
use cordon_vmm::{IoReturn, PciAddress};

/// A fault of a function process: at its first request, before that is carried out, unless something else is said.
pub fn function() -> Strike {
    Strike::new(Target::Function)
}

/// A fault of a connection process, which the guest sees as a surprise removal and return.
pub fn connection() -> Strike {
    Strike::new(Target::Connection)
}

/// Where a fault strikes; what goes wrong there makes a [`Fault`] of it.
#[derive(Clone, Debug)]
#[must_use]
pub struct Strike(Fault);

impl Strike {
    fn new(process: Target) -> Self {
        Self(Fault {
            process,
            device: None,
            request: None,
            nth: 1,
            when: Point::Before,
            after_ms: 0,
            what: What::Kill,
        })
    }

    /// Of this function only; otherwise of whichever is the first to get there.
    pub fn of(mut self, device: PciAddress) -> Self {
        self.0.device = Some(device);
        self
    }

    /// At the `nth` request of this name, from 1, counted over all processes that serve in turn: one of
    /// [`FUNCTION_REQUESTS`](cordon_vmm::faults::FUNCTION_REQUESTS) or
    /// [`CONNECTION_REQUESTS`](cordon_vmm::faults::CONNECTION_REQUESTS). Another is refused when the rig is started.
    pub fn at(mut self, request: &str, nth: u64) -> Self {
        self.0.request = Some(request.to_owned());
        self.0.nth = nth;
        self
    }

    /// At the `nth` request of any name, from 1.
    pub fn at_request(mut self, nth: u64) -> Self {
        self.0.request = None;
        self.0.nth = nth;
        self
    }

    /// At the `nth` read of config space that the device is asked for.
    pub fn at_config_read(self, nth: u64) -> Self {
        self.at("ConfigRead", nth)
    }

    /// At the `nth` write of config space that reaches the device.
    pub fn at_config_write(self, nth: u64) -> Self {
        self.at("ConfigWrite", nth)
    }

    /// At the `nth` trapped read of a BAR.
    pub fn at_bar_read(self, nth: u64) -> Self {
        self.at("BarRead", nth)
    }

    /// At the `nth` trapped write of a BAR.
    pub fn at_bar_write(self, nth: u64) -> Self {
        self.at("BarWrite", nth)
    }

    /// At the `nth` reset.
    pub fn at_reset(self, nth: u64) -> Self {
        self.at("Reset", nth)
    }

    /// At the `nth` start of such a process, the first included.
    pub fn at_start(self, nth: u64) -> Self {
        self.at(START, nth)
    }

    /// Before the process gets the request.
    pub fn before(mut self) -> Self {
        self.0.when = Point::Before;
        self
    }

    /// While it is at it.
    pub fn during(mut self) -> Self {
        self.0.when = Point::During;
        self
    }

    /// When it has answered.
    pub fn after(mut self) -> Self {
        self.0.when = Point::After;
        self
    }

    /// So much later, to the millisecond; for a kill and a stop only.
    pub fn later(mut self, time: Duration) -> Self {
        self.0.after_ms = milliseconds(time);
        self
    }

    fn what(mut self, what: What) -> Fault {
        self.0.what = what;
        self.0
    }

    /// The process is killed.
    #[must_use]
    pub fn kill(self) -> Fault {
        self.what(What::Kill)
    }

    /// It is stopped, as by SIGSTOP, and never continued: found by its silence.
    #[must_use]
    pub fn stop(self) -> Fault {
        self.what(What::Stop)
    }

    /// It loops for ever: found by its silence.
    #[must_use]
    pub fn hang(self) -> Fault {
        self.what(What::Hang)
    }

    /// It answers bytes that are no message.
    #[must_use]
    pub fn garbage(self) -> Fault {
        self.what(What::Garbage)
    }

    /// It answers half a message.
    #[must_use]
    pub fn truncated(self) -> Fault {
        self.what(What::Truncated)
    }

    /// It closes its tube.
    #[must_use]
    pub fn closed(self) -> Fault {
        self.what(What::Closed)
    }

    /// The request takes so much longer, to the millisecond; the process lives.
    #[must_use]
    pub fn delay(self, time: Duration) -> Fault {
        self.what(What::Delay(milliseconds(time)))
    }

    /// Its next call of this selector of the dext's, 0 to 17, fails with this code; the process lives.
    #[must_use]
    pub fn failing_call(self, selector: u32, code: IoReturn) -> Fault {
        self.what(What::Selector { selector, code })
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Something that goes wrong in the simulated dext, for all its clients. `nth` counts from 1, over the whole run of the
/// simulator; times are taken to the millisecond, from 1 ms to 10 min.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DextFault {
    /// The `nth` call of a selector fails.
    FailingCall {
        /// 0 to 17.
        selector: u32,
        /// Which call.
        nth: u64,
        /// With this code, which is not that of success.
        code: IoReturn,
    },
    /// The `nth` call of a selector takes this long, and so do those after it, `calls` in all.
    SlowCalls {
        /// 0 to 17.
        selector: u32,
        /// Which call is the first.
        nth: u64,
        /// How many, at least 1.
        calls: u64,
        /// How long.
        time: Duration,
    },
    /// The dext dies of the `nth` call of a selector.
    Death {
        /// 0 to 17.
        selector: u32,
        /// Which call.
        nth: u64,
    },
    /// The `nth` completion of a wait for interrupts is lost.
    LostNotification {
        /// Which.
        nth: u64,
    },
    /// The `nth` DMA registration comes back in pieces.
    Fragmented {
        /// Which.
        nth: u64,
    },
    /// Cleaning up after any connection takes this long.
    SlowCleanup(Duration),
    /// MSI-X cannot be configured.
    NoMsix,
}

/// As `dext-sim --fault` takes it.
impl fmt::Display for DextFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailingCall { selector, nth, code } => {
                write!(f, "fail:selector={selector},nth={nth},code={:#x}", code.0)
            }
            Self::SlowCalls { selector, nth, calls, time } => {
                let ms = milliseconds(*time);
                write!(f, "delay:selector={selector},nth={nth},calls={calls},ms={ms}")
            }
            Self::Death { selector, nth } => write!(f, "die:selector={selector},nth={nth}"),
            Self::LostNotification { nth } => write!(f, "drop-notification:nth={nth}"),
            Self::Fragmented { nth } => write!(f, "fragment:nth={nth}"),
            Self::SlowCleanup(time) => write!(f, "cleanup-delay:ms={}", milliseconds(*time)),
            Self::NoMsix => f.write_str("no-msix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cordon_vmm::faults::{FaultPlan, Faults};

    #[test]
    fn every_place_and_every_fault_is_one_that_can_be_armed() {
        let places = [
            function(),
            function().of("01:00.1".parse().unwrap()).at_request(9).after(),
            function().at_config_read(1),
            function().at_config_write(2).during(),
            function().at_bar_read(3).before(),
            function().at_bar_write(4),
            function().at_reset(5),
            connection().at("MapDma", 6),
        ];
        for place in places {
            let faults = vec![
                place.clone().kill(),
                place.clone().later(Duration::from_millis(3)).stop(),
                place.clone().hang(),
                place.clone().garbage(),
                place.clone().truncated(),
                place.clone().closed(),
                place.clone().delay(Duration::from_millis(20)),
                place.failing_call(8, IoReturn(0xe000_02cd)),
            ];
            for fault in &faults {
                assert_eq!(fault.to_string().parse::<Fault>().unwrap(), *fault);
            }
            let armed = Faults::new(FaultPlan { faults }).unwrap();
            assert_eq!(armed.report().len(), 8);
        }
        let start = vec![function().at_start(2).kill()];
        assert!(Faults::new(FaultPlan { faults: start }).is_ok());
        let nonsense = vec![function().at("Fly", 1).kill()];
        assert!(Faults::new(FaultPlan { faults: nonsense }).is_err());
    }
}
