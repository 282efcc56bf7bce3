//! `cordon serve`: functions for VMMs that Cordon is not linked into.
//!
//! | module | what |
//! | --- | --- |
//! | `options` | the command line |
//! | `sink` | where events go |
//! | `stop` | signals, and the end that comes in any case |
//! | `watched` | a served function, as events and the control socket see it |
//!
//! The main thread waits for signals and for news of the functions; each served function has a thread
//! in the `cordon_vfio_user` crate, which reports through a closure and never waits for a reader.

mod options;
mod sink;
mod stop;
mod watched;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use console::Signal;
use cordon_cli::event::{Event, Part};
use cordon_vfio_user::{self as vfio_user, Server};
use cordon_vmm::text::printable;
use cordon_vmm::{Companion, Container, DmaMode, Host, PassthroughDevice, Presence};
use ipc::Deadline;
use ipc::event::Signaller;
use ipc::poll::{self, Source};

use self::sink::Sink;
use self::stop::Stop;
use crate::Failure;
use crate::control::Control;
use crate::failure::ServeEnd;

pub(crate) use self::options::ServeOptions;
pub(crate) use self::watched::Watched;

/// How long servers may take to send their clients away before the devices are detached under them.
const LEAVE: Duration = Duration::from_millis(200);

/// One served function and what serves it.
struct Served {
    watched: Arc<Watched>,
    server: Option<Server>,
    companion: Option<Server>,
    /// Whether its last event was that it is away, or given up.
    told: Option<&'static str>,
}

/// Why it is served no longer.
enum Ended {
    Signal(Signal),
    NothingLeft,
}

/// Serves until a signal comes or nothing is left to serve.
pub(crate) fn run(options: &ServeOptions) -> Result<(), Failure> {
    options.check()?;
    crate::limits::raise_descriptors();
    let sink = Sink::start(options.json)?;
    let stop = Stop::catch(&sink)?;
    let config = options.config()?;
    let faults = config.faults.clone();
    let host = Host::new(config);
    let failed = ipc::Event::new()?;
    let mut serving = Serving {
        options,
        host: &host,
        sink: &sink,
        stop: &stop,
        failed: &failed,
        served: Vec::new(),
    };
    let ended = serving.serve();
    // A signal explains whatever failed since.
    let ended = stop.signal().map_or(ended, |signal| Ok(Ended::Signal(signal)));
    match &ended {
        Ok(Ended::Signal(signal)) => {
            sink.tell(&Event::Stopping { signal: Some(signal.to_string()) });
        }
        Ok(Ended::NothingLeft) => {
            sink.tell(&Event::NothingLeft);
            sink.tell(&Event::Stopping { signal: None });
        }
        Err(_) => {}
    }
    serving.close();
    // Whatever is still looked after ends here, while somebody looks at the time.
    drop(serving);
    drop(host);
    for report in faults.iter().flat_map(|faults| faults.report()) {
        let fault = report.fault.to_string();
        sink.tell(&Event::Fault { fault, process: report.fired });
    }
    if ended.is_ok() {
        sink.tell(&Event::Stopped);
    }
    let forced = stop.finish();
    let written = sink.flush(stop::WRITING);
    match ended? {
        _ if forced => Err(ServeEnd::Forced.into()),
        Ended::NothingLeft => Err(ServeEnd::NothingLeft.into()),
        Ended::Signal(_) => Ok(written?),
    }
}

/// What the main thread waits for.
#[derive(Clone, Copy)]
enum Token {
    Signal,
    ServerFailed,
    News(usize),
}

/// A run.
struct Serving<'s> {
    options: &'s ServeOptions,
    host: &'s Host,
    sink: &'s Sink,
    stop: &'s Stop,
    /// Signalled when a server failed.
    failed: &'s ipc::Event,
    served: Vec<Served>,
}

impl Serving<'_> {
    fn serve(&mut self) -> Result<Ended, Failure> {
        self.start()?;
        let all = self.served.iter().map(|one| Arc::clone(&one.watched)).collect();
        let control = self.options.control.as_deref();
        let _control = control.map(|path| Control::start(path, all)).transpose()?;
        if let Some(path) = control {
            self.stop.remember(path);
        }
        self.sink.tell(&Event::Ready);
        Ok(self.wait())
    }

    fn start(&mut self) -> Result<(), Failure> {
        let options = self.options;
        for (at, (&address, path)) in options.devices.iter().zip(&options.sockets).enumerate() {
            self.stop.interrupt().check()?;
            // Each client has a guest of its own, or its own view of one.
            let container = Arc::new(Container::new(options.dma_mode()));
            let (function, companion) = match options.companion(at) {
                None => (self.host.attach(address, &container, None)?, None),
                Some(config) => {
                    let both =
                        self.host.attach_with_companion(address, &container, None, config)?;
                    (both.0, Some(both.1))
                }
            };
            let watched = Arc::new(Watched::new(function));
            let mut one = Served { watched, server: None, companion: None, told: None };
            let started = self.start_servers(at, &mut one, &container, companion, path);
            // Also one that is not served whole is detached in the end.
            self.served.push(one);
            started?;
        }
        Ok(())
    }

    fn start_servers(
        &self,
        at: usize,
        one: &mut Served,
        container: &Arc<Container>,
        companion: Option<Arc<Companion>>,
        path: &Path,
    ) -> Result<(), Failure> {
        let function = &one.watched.function;
        let device: Arc<dyn PassthroughDevice> = Arc::clone(function) as _;
        let log = self.reporter(&one.watched, Part::Function)?;
        let (how, container) = (self.options.how(), Arc::clone(container));
        let server = Server::start(path, device, container, how, log)?;
        self.stop.remember(path);
        let socket = server.path().display().to_string();
        let mut companion_socket = None;
        if let (Some(companion), Some(path)) = (companion, self.options.companions.get(at)) {
            // Its client announces the guest's memory too; the function's client gives it.
            let container = Arc::new(Container::new(DmaMode::Companion));
            let log = self.reporter(&one.watched, Part::Companion)?;
            let beside = server.start_beside(path, companion, container, how, log)?;
            self.stop.remember(path);
            companion_socket = Some(beside.path().display().to_string());
            one.companion = Some(beside);
        }
        one.server = Some(server);
        self.sink.tell(&Event::Listening {
            device: function.address(),
            socket,
            companion_socket,
            function_process: function.pid(),
            connection_process: function.connection().pid(),
        });
        Ok(())
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

    /// Waits for a signal, or until nothing is left; tells of a device that goes away, comes back or
    /// is given up meanwhile.
    fn wait(&mut self) -> Ended {
        loop {
            let mut sources = vec![
                Source::readable(self.stop.interrupt(), Token::Signal),
                Source::readable(self.failed, Token::ServerFailed),
            ];
            for (at, one) in self.served.iter().enumerate() {
                sources.push(Source::readable(one.watched.function.news(), Token::News(at)));
            }
            let tokens = poll::wait(&sources, None).unwrap_or_else(|error| {
                tracing::error!("cannot wait for news: {error}");
                std::thread::sleep(Duration::from_millis(100));
                poll::Tokens::new()
            });
            for token in tokens {
                match token {
                    Token::Signal => {}
                    Token::ServerFailed => drop(self.failed.clear()),
                    Token::News(at) => self.served[at].news(self.sink),
                }
            }
            if let Some(signal) = self.stop.signal() {
                return Ended::Signal(signal);
            }
            if !self.served.iter().any(|one| one.watched.is_left()) {
                return Ended::NothingLeft;
            }
        }
    }

    /// Stops serving and detaches everything, all functions at once: one whose process does not
    /// answer holds up no other. Clients go first, so that what they had is taken back by requests and
    /// not by an end.
    fn close(&mut self) {
        let (host, leave) = (self.host, Deadline::after(LEAVE));
        let functions: Vec<_> =
            self.served.iter().map(|one| Arc::clone(&one.watched.function)).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .served
                .drain(..)
                .map(|Served { watched, server, companion, .. }| {
                    let name = format!("stop {}", watched.function.address());
                    let close = move || {
                        let servers: Vec<Server> = server.into_iter().chain(companion).collect();
                        // Both are told before either is waited for.
                        for until in [Deadline::now(), leave] {
                            for server in &servers {
                                server.stop(until);
                            }
                        }
                        // Whoever still waits for the device is answered now.
                        host.detach(&watched.function);
                    };
                    std::thread::Builder::new().name(name).spawn_scoped(scope, close)
                })
                .collect();
            for thread in threads.into_iter().flatten() {
                if thread.join().is_err() {
                    tracing::error!("detaching a function panicked");
                }
            }
        });
        // Those for which there was no thread; for the others there is nothing left to do.
        functions.iter().for_each(|function| host.detach(function));
    }
}

impl Served {
    /// Tells where the device is, if that changed.
    fn news(&mut self, sink: &Sink) {
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

/// Tells what happened to a server of a function, and remembers what its client sees.
fn report(watched: &Watched, part: Part, sink: &Sink, failed: &Signaller, event: vfio_user::Event) {
    let device = watched.function.address();
    let is_function = part == Part::Function;
    let event = match event {
        vfio_user::Event::Attached => {
            if is_function {
                watched.attached();
            }
            Event::Attach { device, part }
        }
        vfio_user::Event::Detached(why) => {
            if is_function {
                watched.detached();
            }
            Event::Detach { device, part, why: printable(&why) }
        }
        vfio_user::Event::Refused(why) => Event::Refused { device, part, why: printable(&why) },
        vfio_user::Event::Busy => Event::Busy { device, part },
        vfio_user::Event::Delayed(why) => Event::Delayed { device, part, why: printable(&why) },
        vfio_user::Event::Withheld(why) => Event::Withheld { device, part, why: printable(&why) },
        vfio_user::Event::Available => Event::Available { device, part },
        vfio_user::Event::Failed(why) => {
            if is_function {
                watched.failed();
            }
            Event::Failed { device, part, why: printable(&why) }
        }
    };
    let is_failure = matches!(event, Event::Failed { .. });
    sink.tell(&event);
    if is_failure {
        failed.signal();
    }
}
