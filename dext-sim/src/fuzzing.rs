//! A simulated dext without a process, threads or sockets in the file system, for the fuzz targets: one
//! function, whose device moves when it is told to, and connections to it that are served one request at
//! a time.

use std::sync::Arc;

use ipc::wire::common::Identity;
use ipc::{Deadline, Tube};
use parking_lot::Mutex;

use crate::connection::Connection;
use crate::device::{self, Model};
use crate::faults::{Fault, Faults};
use crate::function::Function;
use crate::hardware::Hardware;
use crate::limits::Admissions;
use crate::memory::Budget;
use crate::methods;
use crate::options::{DartMode, DeviceKind};
use crate::server::Registry;

/// External methods: selectors are below this.
pub const METHODS: usize = methods::METHODS.len();

/// The numbers of a fault, where its kind has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultNumbers {
    /// Whose call.
    pub selector: Option<u32>,
    /// Which.
    pub nth: Option<u64>,
    /// What it fails with.
    pub code: Option<u32>,
    /// How long it takes.
    pub milliseconds: Option<u128>,
}

/// Reads a fault.
#[must_use]
pub fn fault(text: &str) -> Option<FaultNumbers> {
    let none = FaultNumbers::default();
    Some(match text.parse().ok()? {
        Fault::Fail { selector, nth, code } => {
            FaultNumbers { selector: Some(selector), nth: Some(nth), code: Some(code.0), ..none }
        }
        Fault::Delay { selector, nth, time, .. } => FaultNumbers {
            selector: Some(selector),
            nth: Some(nth),
            milliseconds: Some(time.as_millis()),
            ..none
        },
        Fault::Die { selector, nth } => {
            FaultNumbers { selector: Some(selector), nth: Some(nth), ..none }
        }
        Fault::End { selector, nth, back, .. } => FaultNumbers {
            selector: Some(selector),
            nth: Some(nth),
            milliseconds: back.map(|time| time.as_millis()),
            ..none
        },
        Fault::DropNotification { nth } | Fault::Fragment { nth } => {
            FaultNumbers { nth: Some(nth), ..none }
        }
        Fault::CleanupDelay { time } => {
            FaultNumbers { milliseconds: Some(time.as_millis()), ..none }
        }
        Fault::NoMsix => none,
    })
}

/// One function, and whoever is connected to it.
pub struct Simulated {
    registry: Registry,
    function: Arc<Function>,
    admissions: Arc<Admissions>,
    model: Arc<Mutex<Box<dyn Model>>>,
}

/// What clients hold of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Connections.
    pub clients: usize,
    /// Claims.
    pub claims: usize,
    /// Mappings of their memory, and of buffers made for them.
    pub mappings: usize,
}

impl Simulated {
    /// An NVMe controller with a small namespace, or a probe with 32 vectors.
    ///
    /// # Errors
    /// When the process is out of memory or descriptors.
    pub fn new(nvme: bool) -> Result<Self, Box<dyn std::error::Error>> {
        let kind = if nvme {
            DeviceKind::Nvme { size: 1 << 20, queues: 2, image: None }
        } else {
            DeviceKind::Probe { vectors: 32 }
        };
        let faults = Arc::new(Faults::new(&[]));
        let shape = device::shape(&kind);
        let (vendor, device, class) = (shape.vendor, shape.device, shape.class);
        let identity = Identity { address: "01:00.0".parse()?, vendor, device, class };
        let hardware = Arc::new(Hardware::new(&shape, DartMode::Identity, &faults)?);
        let mut model = device::model(&kind, 1)?;
        model.reset(&hardware);
        let model = Arc::new(Mutex::new(model));
        let memory = Budget::of_one_in(1);
        let shared = Arc::clone(&model);
        let function =
            Arc::new(Function::new(1 << 32 | 1, identity, hardware, faults, memory, shared));
        let admissions = Admissions::new(4096, 1)?;
        let registry = Registry::new(vec![Arc::clone(&function)], Arc::clone(&admissions));
        Ok(Self { registry, function, admissions, model })
    }

    /// Another connection, and the client's end of it; `None` when no more are taken.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn connect(&self) -> std::io::Result<Option<(Client<'_>, Tube)>> {
        let Ok(admission) = self.admissions.admit(Some(1)) else { return Ok(None) };
        let (ours, theirs) = Tube::pair()?;
        Ok(Some((Client(Connection::new(ours, &self.registry, None, admission)), theirs)))
    }

    /// The registry entry id of the function, if it is in the registry.
    #[must_use]
    pub fn service(&self) -> Option<u64> {
        self.function.registered().map(|(id, _)| id)
    }

    /// The device looks at its registers once.
    pub fn poll(&self) {
        let hardware = &self.function.hardware;
        if !hardware.halted() {
            self.model.lock().poll(hardware);
        }
    }

    /// What is held.
    #[must_use]
    pub fn held(&self) -> Held {
        let (clients, claims) = self.function.counts();
        let mappings = self.function.memory.mappings() + self.function.buffers.mappings();
        Held { clients, claims, mappings }
    }
}

/// A connection. Dropping it is the end of its client.
pub struct Client<'s>(Connection<'s>);

impl Client<'_> {
    /// Takes a greeting that has come; whether it is one.
    pub fn greet(&mut self) -> bool {
        self.0.greet(Deadline::now()).is_ok()
    }

    /// Serves a request that has come; `false` once the client is gone or out of step.
    pub fn serve_one(&mut self) -> bool {
        self.0.serve_one(Deadline::now()).unwrap_or(false)
    }
}
