//! Faults on purpose, as data: for people who test by killing.
//!
//! A [`FaultPlan`] says which process does what wrong at which event. It is read from JSON, or put
//! together from [`Fault`]s on a command line or in a test, armed as [`Faults`] and given to
//! [`HostConfig::faults`](crate::HostConfig::faults). Every fault fires once and says so in
//! [`Faults::report`].
//!
//! ```json
//! { "faults": [
//!   { "process": "function", "device": "01:00.1", "request": "BarWrite", "nth": 3,
//!     "when": "during", "what": "kill" },
//!   { "process": "connection", "request": "MapDma", "when": "before", "what": { "delay": 20 } }
//! ] }
//! ```
//!
//! The same on a command line: `function,device=01:00.1,request=BarWrite,nth=3,when=during,kill`. [`GRAMMAR`] says all
//! that can be written so.

mod text;

use std::sync::Arc;

use ipc::PciAddress;
use ipc::wire::dext::IoReturn;
pub use ipc::wire::faults::Point;
use ipc::wire::handshake::Role;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

pub use text::{FaultError, GRAMMAR};

/// The requests of a function process, by name.
pub const FUNCTION_REQUESTS: [&str; 12] = [
    "ConfigRead",
    "ConfigWrite",
    "BarRead",
    "BarWrite",
    "Interrupts",
    "Reset",
    "Statistics",
    "TakeOver",
    "Companion",
    "AddMemory",
    "RemoveMemory",
    "Doorbell",
];
/// The requests of a connection process, by name.
pub const CONNECTION_REQUESTS: [&str; 11] = [
    "Attach",
    "Detach",
    "AddMemory",
    "RemoveMemory",
    "MapDma",
    "UnmapDma",
    "Statistics",
    "Reset",
    "Companion",
    "ReleaseDma",
    "AbandonBatch",
];
/// The start of a process, which is no request: before is right after the spawn, after is when it
/// is ready.
pub const START: &str = "Start";

/// Which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A function process.
    Function,
    /// A connection process.
    Connection,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The process is killed.
    Kill,
    /// It is stopped, and never continued.
    Stop,
    /// It loops forever.
    Hang,
    /// It sends bytes that are no message.
    Garbage,
    /// It sends half a message.
    Truncated,
    /// It closes its end of the tube.
    Closed,
    /// The request or its reply takes this many milliseconds longer.
    Delay(u64),
    /// Its next call of this selector of the dext's fails with this code.
    Selector {
        /// 0..=17.
        selector: u32,
        /// An IOReturn.
        code: IoReturn,
    },
}

impl What {
    /// Whether the process is dead afterwards, or as good as dead.
    #[must_use]
    pub fn is_deadly(self) -> bool {
        !matches!(self, Self::Delay(_) | Self::Selector { .. })
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fault {
    /// Which process.
    pub process: Target,
    /// Of which function (a connection process: the function it was started for); any if absent.
    #[serde(default, with = "text::address", skip_serializing_if = "Option::is_none")]
    pub device: Option<PciAddress>,
    /// Which request, by name: of [`FUNCTION_REQUESTS`] or [`CONNECTION_REQUESTS`], or [`START`];
    /// any request if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// At which of these requests, counted over all processes that serve it in turn; from 1.
    #[serde(default = "first")]
    pub nth: u64,
    /// At which point of it.
    pub when: Point,
    /// How many milliseconds after that; for a kill and a stop only.
    #[serde(default)]
    pub after_ms: u64,
    /// What goes wrong.
    pub what: What,
}

fn first() -> u64 {
    1
}

/// Faults of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// In no order.
    pub faults: Vec<Fault>,
}

/// A fault and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultReport {
    /// Which.
    pub fault: Fault,
    /// How many requests it has been compared with that are of its kind.
    pub seen: u64,
    /// The process that it struck, once it fired.
    pub fired: Option<u32>,
    /// Whether it was disarmed, and fires no more.
    pub disarmed: bool,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    seen: u64,
    due: bool,
    fired: Option<u32>,
    disarmed: bool,
}

/// A fault that is due at a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    number: usize,
    pub(crate) when: Point,
    pub(crate) after_ms: u64,
    pub(crate) what: What,
}

/// Armed faults, shared by all processes of a [`Host`](crate::Host).
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<Armed>>);

impl Faults {
    /// Arms a plan.
    ///
    /// # Errors
    /// [`FaultError`] naming the fault that makes no sense.
    pub fn new(plan: FaultPlan) -> Result<Arc<Self>, FaultError> {
        let faults = Self::default();
        for fault in plan.faults {
            faults.add(fault)?;
        }
        Ok(Arc::new(faults))
    }

    /// Arms another fault, whose requests are counted from now.
    ///
    /// # Errors
    /// [`FaultError`] if it makes no sense.
    pub fn add(&self, fault: Fault) -> Result<(), FaultError> {
        fault.check()?;
        self.lock().push(Armed { fault, seen: 0, due: false, fired: None, disarmed: false });
        Ok(())
    }

    /// Has a fault fire no more, by its place in [`Faults::report`]; nothing happens without one there. What
    /// is due already, or comes some time after its request, strikes all the same.
    pub fn disarm(&self, number: usize) {
        if let Some(armed) = self.lock().get_mut(number) {
            armed.disarmed = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.0.lock()
    }

    /// Every fault and whether it fired.
    #[must_use]
    pub fn report(&self) -> Vec<FaultReport> {
        let of = |armed: &Armed| FaultReport {
            fault: armed.fault.clone(),
            seen: armed.seen,
            fired: armed.fired,
            disarmed: armed.disarmed,
        };
        self.lock().iter().map(of).collect()
    }

    /// Counts a request of a process of `subject`, and tells which faults are due at it.
    pub(crate) fn at(&self, role: Role, subject: &str, request: &str) -> Vec<Due> {
        let mut due = Vec::new();
        for (number, armed) in self.lock().iter_mut().enumerate() {
            if armed.due || armed.disarmed || !armed.fault.is_meant(role, subject, request) {
                continue;
            }
            armed.seen += 1;
            if armed.seen == armed.fault.nth {
                armed.due = true;
                let Fault { when, after_ms, what, .. } = armed.fault;
                due.push(Due { number, when, after_ms, what });
            }
        }
        due
    }

    /// A fault that was due struck a process.
    pub(crate) fn fired(&self, due: &Due, pid: u32) {
        if let Some(armed) = self.lock().get_mut(due.number) {
            tracing::info!("fault fired at process {pid}: {}", armed.fault);
            armed.fired = Some(pid);
        }
    }
}

impl Fault {
    fn is_meant(&self, role: Role, subject: &str, request: &str) -> bool {
        let process = match self.process {
            Target::Function => role == Role::Function,
            Target::Connection => role == Role::Connection,
        };
        let device = self.device.is_none_or(|device| device.to_string() == subject);
        let named = match &self.request {
            Some(name) => name == request,
            None => request != START,
        };
        process && device && named
    }

    /// Whether it makes sense: [`Faults::add`] would take it.
    ///
    /// # Errors
    /// [`FaultError`] if it makes none.
    pub fn check(&self) -> Result<(), FaultError> {
        let known: &[&str] = match self.process {
            Target::Function => &FUNCTION_REQUESTS,
            Target::Connection => &CONNECTION_REQUESTS,
        };
        let why = match &self.request {
            Some(name) if name != START && !known.contains(&name.as_str()) => {
                format!("there is no request {name}; there are {START}, {}", known.join(", "))
            }
            _ if self.nth == 0 => "requests are counted from 1".to_owned(),
            _ if self.after_ms > 0 && !matches!(self.what, What::Kill | What::Stop) => {
                "only a kill or a stop can come later".to_owned()
            }
            Some(name)
                if name == START
                    && !matches!(self.what, What::Kill | What::Stop | What::Delay(_)) =>
            {
                "a process that starts can be killed, stopped or delayed".to_owned()
            }
            _ => return Ok(()),
        };
        Err(FaultError::new(&self.to_string(), &why))
    }
}
