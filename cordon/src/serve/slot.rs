//! Functions that a server was started for, each with its place and what serves it while it is attached.

use std::collections::BTreeMap;
use std::sync::Arc;

use cordon_cli::event::Event;
use cordon_vfio_user::{Guest, Server};
use cordon_vmm::{CompanionConfig, Container, DmaMode, Presence};
use ipc::PciAddress;
use parking_lot::Mutex;

use super::Watched;
use super::settings::{FunctionSettings, Place};
use super::sink::Sink;

/// One function and what serves it.
pub(super) struct Served {
    pub(super) watched: Arc<Watched>,
    pub(super) servers: Vec<Server>,
    /// Whether its last event was that it is away, or given up.
    pub(super) told: Option<&'static str>,
}

/// Where a function and its companion are served.
pub(super) struct Places {
    pub(super) function: Place,
    pub(super) companion: Option<Place>,
}

/// A function that the server was started for.
pub(crate) struct Slot {
    pub(super) address: PciAddress,
    /// Who maps guest memory for it.
    pub(super) dma: DmaMode,
    /// The guest of its IOMMU group, where it has one (VFIO): what a function is given all of the group reach.
    pub(super) guest: Option<Guest>,
    /// What its companion is configured to be, if it has one.
    pub(super) companion: Option<CompanionConfig>,
    /// Where it and its companion are served, for people.
    pub(super) names: (String, Option<String>),
    /// Held by whoever attaches or detaches it.
    pub(super) work: Mutex<Places>,
    /// Nothing while it is detached. Never held for longer than a look.
    pub(super) served: Mutex<Option<Served>>,
}

impl Slot {
    pub(crate) fn address(&self) -> PciAddress {
        self.address
    }

    /// The function, while it is attached.
    pub(crate) fn watched(&self) -> Option<Arc<Watched>> {
        self.served.lock().as_ref().map(|one| Arc::clone(&one.watched))
    }

    /// Whether it is served, or may be again by itself or by a command.
    pub(super) fn is_left(&self) -> bool {
        self.served.lock().as_ref().is_none_or(|one| one.watched.is_left())
    }

    /// Whether the one client that there was to be is gone.
    pub(super) fn is_finished(&self) -> bool {
        self.served.lock().as_ref().is_some_and(|one| one.watched.is_finished())
    }

    /// Slots of functions, those of an IOMMU group with one guest.
    pub(super) fn all(settings: Vec<FunctionSettings>) -> Vec<Self> {
        let mut guests = BTreeMap::new();
        let slots = settings.into_iter().map(|one| {
            let new = || Guest::shared(Arc::new(Container::new(one.dma)));
            let guest = one.group.map(|group| guests.entry(group).or_insert_with(new).clone());
            Self::of(one, guest)
        });
        slots.collect()
    }

    fn of(settings: FunctionSettings, guest: Option<Guest>) -> Self {
        let FunctionSettings { address, place, dma, group: _, companion } = settings;
        let (companion, beside) = companion.unzip();
        Self {
            address,
            dma,
            guest,
            companion,
            names: (place.name(), beside.as_ref().map(Place::name)),
            work: Mutex::new(Places { function: place, companion: beside }),
            served: Mutex::default(),
        }
    }
}

impl Served {
    /// Tells where the device is, if that changed.
    pub(super) fn news(&mut self, sink: &Sink) {
        let function = &self.watched.function;
        let _ = function.news().clear();
        let device = function.address();
        let event = match function.presence() {
            Presence::Present if self.told == Some("away") => {
                Event::Back { device, client: self.watched.client() }
            }
            Presence::Present => return,
            Presence::Away(death) => Event::Away { device, why: death.to_string() },
            Presence::Gone(death) => Event::GivenUp { device, why: death.to_string() },
        };
        if self.told != Some(event.name()) {
            sink.tell(&event);
            self.told = Some(event.name());
        }
    }
}
