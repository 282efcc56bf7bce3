//! The functions that a `cordon serve` was started for: attached at its start (`begin`), and detached, attached
//! again and revived by commands of the control socket.
//!
//! Commands run on threads of the control socket, events are told on the main one. Each function has one
//! command at a time: whoever comes meanwhile is told so and not held up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cordon_cli::confinement::Confinement;
use cordon_cli::event::{Event, Part};
use cordon_cli::protocol::{ControlError, ErrorCode};
use cordon_vfio_user::{self as vfio_user, Clients, Guest, Keeping, Server};
use cordon_vmm::faults::Faults;
use cordon_vmm::kept::Store;
use cordon_vmm::text::printable;
use cordon_vmm::{Companion, Container, DmaMode, Function, Host, PassthroughDevice};
use ipc::event::Signaller;
use ipc::{Deadline, PciAddress};
use parking_lot::{Mutex, MutexGuard};

use super::programs::Programs;
use super::settings::{Place, Settings};
use super::sink::Sink;
use super::slot::{Places, Served, Slot};
use super::stop::Stop;
use super::told::report;
use super::{LEAVE, Watched};
use crate::Failure;
use crate::sys::Confined;

/// A function that is attached and not served yet.
pub(super) struct FunctionAttached {
    pub(super) guest: Guest,
    pub(super) function: Arc<Function>,
    companion: Option<Arc<Companion>>,
}

/// Everything that is served.
pub(crate) struct Fleet {
    pub(super) how: vfio_user::Options,
    control: Option<PathBuf>,
    pub(super) host: Host,
    pub(super) sink: Sink,
    pub(super) stop: Arc<Stop>,
    pub(super) confined: Arc<Confined>,
    faults: Option<Arc<Faults>>,
    is_vfio: bool,
    /// What a keeper has of functions and clients, where there is one.
    pub(super) store: Option<Arc<Store>>,
    pub(super) programs: Programs,
    /// Signalled when a server failed.
    pub(super) failed: ipc::Event,
    /// Signalled when a function was attached or detached.
    pub(super) changed: ipc::Event,
    tell_change: Signaller,
    /// Nothing is attached any more.
    pub(super) closed: AtomicBool,
    slots: Vec<Slot>,
}

impl Fleet {
    /// Nothing is attached yet.
    pub(super) fn new(
        settings: Settings,
        config: cordon_vmm::HostConfig,
        installed: PathBuf,
        sink: &Sink,
        stop: &Arc<Stop>,
        confined: &Arc<Confined>,
    ) -> Result<Self, Failure> {
        let how = settings.how();
        let changed = ipc::Event::new()?;
        Ok(Self {
            slots: Slot::all(settings.functions),
            how,
            control: settings.control,
            faults: config.faults.clone(),
            is_vfio: config.dext == "vfio",
            store: config.store.clone(),
            programs: Programs::new(&config.device_proc, installed),
            host: Host::new(config),
            sink: sink.clone(),
            stop: Arc::clone(stop),
            confined: Arc::clone(confined),
            failed: ipc::Event::new()?,
            tell_change: changed.signaller()?,
            changed,
            closed: AtomicBool::new(false),
        })
    }

    /// Where its events go.
    pub(crate) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Where commands are taken.
    pub(super) fn control(&self) -> Option<&Path> {
        self.control.as_deref()
    }

    /// How long the threads of each function have been at one thing, the longest of each; looked at as it is asked for.
    pub(super) fn busy(&self) -> impl Iterator<Item = Duration> {
        self.slots.iter().filter_map(|slot| {
            let served = slot.served.lock();
            served.iter().flat_map(|one| &one.servers).map(Server::busy_for).max()
        })
    }

    pub(crate) fn confinement(&self) -> &Confinement {
        self.confined.confinement()
    }

    /// What is to go wrong, if the server was started for that.
    pub(crate) fn faults(&self) -> Option<&Arc<Faults>> {
        self.faults.as_ref()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The function of that name.
    pub(crate) fn slot(&self, device: &str) -> Result<&Slot, ControlError> {
        // As it may be named where the server is started.
        let plain = device.strip_prefix("vfio:").filter(|_| self.is_vfio).unwrap_or(device);
        let address = plain.parse::<PciAddress>().map_err(|error| {
            ControlError::new(ErrorCode::BadRequest, printable(&error.to_string()))
        })?;
        self.slots.iter().find(|slot| slot.address == address).ok_or_else(|| {
            let why =
                format!("{address} is none of the functions that this server was started for");
            ControlError::new(ErrorCode::NoSuchDevice, why)
        })
    }

    /// Where a function and its companion are served.
    pub(crate) fn sockets(&self, slot: &Slot) -> (String, Option<String>) {
        slot.names.clone()
    }

    /// Whether a companion is served beside a function.
    pub(crate) fn has_companion(&self, slot: &Slot) -> bool {
        slot.companion.is_some()
    }

    /// Attaches a function that was detached.
    pub(crate) fn attach(&self, slot: &Slot) -> Result<(), ControlError> {
        let mut places = self.begin(slot)?;
        if slot.watched().is_some() {
            let why = format!("{} is attached already", slot.address);
            return Err(ControlError::new(ErrorCode::AlreadyAttached, why));
        }
        self.attach_by_command(slot, &mut places)
    }

    /// Detaches a function: its client is sent away first.
    pub(crate) fn detach(&self, slot: &Slot) -> Result<(), ControlError> {
        let _places = self.begin(slot)?;
        let Some(served) = slot.served.lock().take() else {
            let why = format!("{} is not attached", slot.address);
            return Err(ControlError::new(ErrorCode::NotAttached, why));
        };
        self.release(served);
        Ok(())
    }

    /// Attaches a function anew that was given up, or whose server failed.
    pub(crate) fn revive(&self, slot: &Slot) -> Result<(), ControlError> {
        let mut places = self.begin(slot)?;
        {
            let mut served = slot.served.lock();
            match &*served {
                None => {
                    let why = format!("{} is not attached: attach it", slot.address);
                    return Err(ControlError::new(ErrorCode::NotAttached, why));
                }
                Some(one) if one.watched.is_left() => {
                    let why = format!("{} was not given up", slot.address);
                    return Err(ControlError::new(ErrorCode::NotGivenUp, why));
                }
                Some(_) => {
                    let given_up = served.take();
                    drop(served);
                    given_up.into_iter().for_each(|one| self.release(one));
                }
            }
        }
        self.attach_by_command(slot, &mut places)
    }

    /// Takes a function for a command.
    fn begin<'s>(&self, slot: &'s Slot) -> Result<MutexGuard<'s, Places>, ControlError> {
        let busy = || {
            let why = format!("another command is at work on {}", slot.address);
            ControlError::new(ErrorCode::Busy, why)
        };
        let work = slot.work.try_lock().ok_or_else(busy)?;
        if self.closed.load(Ordering::Acquire) {
            return Err(ControlError::new(ErrorCode::Stopping, "the server is about to end"));
        }
        Ok(work)
    }

    fn attach_by_command(&self, slot: &Slot, places: &mut Places) -> Result<(), ControlError> {
        self.attach_now(slot, places).map_err(|failure| {
            let why = format!("{} stays detached: {}", slot.address, ipc::chain(&*failure));
            ControlError::new(ErrorCode::Failed, why)
        })
    }

    /// Attaches a function and listens; nothing is left of it where that fails.
    fn attach_now(&self, slot: &Slot, places: &mut Places) -> Result<(), Failure> {
        let attached = self.attach_function(slot)?;
        let clients = Keeping { store: self.store.clone(), ..Keeping::default() };
        self.serve(slot, places, attached, clients)
    }

    pub(super) fn attach_function(&self, slot: &Slot) -> Result<FunctionAttached, Failure> {
        // Each client has a guest of its own, or its own view of one.
        let guest = slot.guest.clone();
        let guest = guest.unwrap_or_else(|| Arc::new(Container::new(slot.dma)).into());
        let container = guest.container();
        let (function, companion) = match slot.companion {
            None => (self.host.attach(slot.address, container, None)?, None),
            Some(config) => {
                let (host, address) = (&self.host, slot.address);
                let both = host.attach_with_companion(address, container, None, config)?;
                (both.0, Some(both.1))
            }
        };
        Ok(FunctionAttached { guest, function, companion })
    }

    /// Listens for clients of a function, with the one that it has already; it is detached where that fails.
    pub(super) fn serve(
        &self,
        slot: &Slot,
        places: &mut Places,
        attached: FunctionAttached,
        clients: Keeping,
    ) -> Result<(), Failure> {
        let FunctionAttached { guest, function, companion } = attached;
        let watched = Arc::new(Watched::new(Arc::clone(&function)));
        match self.listen(places, &watched, (guest, clients), companion) {
            Ok(servers) => {
                *slot.served.lock() = Some(Served { watched, servers, told: None });
                self.tell_change.signal();
                Ok(())
            }
            Err(failure) => {
                self.host.detach(&function);
                Err(failure)
            }
        }
    }

    fn listen(
        &self,
        places: &mut Places,
        watched: &Arc<Watched>,
        (guest, keeping): (Guest, Keeping),
        companion: Option<Arc<Companion>>,
    ) -> Result<Vec<Server>, Failure> {
        let function = &watched.function;
        let device: Arc<dyn PassthroughDevice> = Arc::clone(function) as _;
        let log = self.reporter(watched, Part::Function)?;
        let server = self.server(&mut places.function, keeping, device, guest, log)?;
        let socket = server.path().display().to_string();
        let mut servers = vec![server];
        let mut companion_socket = None;
        if let (Some(companion), Some(place)) = (companion, &mut places.companion) {
            // Its client announces the guest's memory too; the function's client gives it.
            let container = Arc::new(Container::new(DmaMode::Companion));
            let log = self.reporter(watched, Part::Companion)?;
            let none = Keeping::default();
            let beside = self.server(place, none, companion, container.into(), log)?;
            servers[0].has_beside(&beside);
            companion_socket = Some(beside.path().display().to_string());
            servers.push(beside);
        }
        self.sink.tell(&Event::Listening {
            device: function.address(),
            socket,
            companion_socket,
            function_process: function.pid(),
            connection_process: function.connection().pid(),
        });
        Ok(servers)
    }

    /// Serves a device where its clients are to come.
    fn server(
        &self,
        place: &mut Place,
        keeping: Keeping,
        device: Arc<dyn PassthroughDevice>,
        guest: Guest,
        log: impl Fn(vfio_user::Event) + Send + 'static,
    ) -> Result<Server, Failure> {
        let clients = match self.clients(place) {
            Ok(clients) => clients,
            Err(failure) => {
                keeping.abandon(&*device, &guest);
                return Err(failure);
            }
        };
        let server = Server::start_kept(clients, keeping, device, guest, self.how, log)?;
        if let Some(file) = server.file() {
            self.stop.remember(file);
        }
        Ok(server)
    }

    /// Where clients come.
    fn clients(&self, place: &mut Place) -> Result<Clients, Failure> {
        Ok(match place {
            Place::Path(path) => Clients::At(self.confined.listen(path)?),
            Place::Inherited(socket) if socket.listens() => Clients::At(socket.listener()?),
            Place::Inherited(socket) => {
                let name = socket.name().to_owned();
                Clients::One(Some(socket.take_client()?), name)
            }
        })
    }

    /// Tells what happens to a server.
    fn reporter(
        &self,
        watched: &Arc<Watched>,
        part: Part,
    ) -> Result<impl Fn(vfio_user::Event) + Send + 'static, Failure> {
        let (watched, sink) = (Arc::clone(watched), self.sink.clone());
        let failed = self.failed.signaller()?;
        Ok(move |event| report(&watched, part, &sink, &failed, event))
    }

    /// Sends the clients of a function away and detaches it.
    fn release(&self, served: Served) {
        let device = served.watched.function.address();
        self.end(served);
        self.sink.tell(&Event::Released { device });
        self.tell_change.signal();
    }

    /// Clients go first, so that what they had is taken back by requests and not by an end.
    fn end(&self, Served { watched, servers, .. }: Served) {
        let leave = Deadline::after(LEAVE);
        // All are told before any is waited for.
        for until in [Deadline::now(), leave] {
            for server in &servers {
                server.stop(until);
            }
        }
        // Whoever still waits for the device is answered now.
        self.host.detach(&watched.function);
    }

    /// Tells where each device is, if that changed.
    pub(super) fn news(&self) {
        for slot in &self.slots {
            if let Some(one) = &mut *slot.served.lock() {
                one.news(&self.sink);
            }
        }
    }

    /// Stops serving and detaches everything, all functions at once: one whose process does not answer
    /// holds up no other. A command that is under way is waited for.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let functions: Mutex<Vec<Arc<Function>>> = Mutex::default();
        let close = |slot: &Slot| {
            let _work = slot.work.lock();
            if let Some(served) = slot.served.lock().take() {
                functions.lock().push(Arc::clone(&served.watched.function));
                self.end(served);
            }
        };
        let close = &close;
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut left = Vec::new();
            for slot in &self.slots {
                let thread = std::thread::Builder::new().name(format!("stop {}", slot.address));
                match thread.spawn_scoped(scope, move || close(slot)) {
                    Ok(thread) => threads.push(thread),
                    Err(_) => left.push(slot),
                }
            }
            // There was no thread for these.
            left.into_iter().for_each(close);
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("detaching a function panicked");
                }
            }
        });
        // Those whose thread panicked; for the others there is nothing left to do.
        functions.lock().iter().for_each(|function| self.host.detach(function));
    }
}
