//! `cordon serve`: functions for VMMs that Cordon is not linked into.
//!
//! | module | what |
//! | --- | --- |
//! | `begin` | how it begins, also with what one before it left |
//! | `capabilities` | what is told to tools that ask |
//! | `file` | the config file |
//! | `fleet` | the functions that it was started for, attached and detached |
//! | `happenings` | what happens to device processes, as events |
//! | `inherited` | sockets that whoever starts this made |
//! | `keeper` | who keeps what a next server goes on with |
//! | `left` | what a server before this one left that was killed |
//! | `options` | the command line |
//! | `passed` | sockets and files of VFIO's that a service manager passed on: which is whose |
//! | `programs` | which program functions are served by |
//! | `reports` | crash reports |
//! | `settings` | what is served where, of all that was said |
//! | `sink` | where events go |
//! | `slot` | a function of these, with its place and what serves it |
//! | `stream` | where the event stream is written to |
//! | `told` | what happens to the server of a function, as an event |
//! | `stop` | signals, and the end that comes in any case |
//! | `wanted` | functions, as they were named, and where |
//! | `watchdog` | signs of life for a service manager |
//! | `watched` | a served function, as events and the control socket see it |
//!
//! The main thread waits for signals and for news of the functions; each served function has a thread
//! in the `cordon_vfio_user` crate, which reports through a closure and never waits for a reader.

mod begin;
mod capabilities;
mod file;
mod fleet;
mod happenings;
mod inherited;
mod keeper;
mod left;
mod options;
mod passed;
mod programs;
mod reports;
mod settings;
mod sink;
mod slot;
mod stop;
mod stream;
mod told;
mod wanted;
mod watchdog;
mod watched;

use std::io::Stdin;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::Signal;
use console::interrupt::Held;
use cordon_cli::event::Event;
use cordon_vmm::{HostConfig, Observer, Presence};
use ipc::PciAddress;
use ipc::poll::{self, Source};
use ipc::socket_file::Access;
use rustix::io::Errno;

use self::keeper::Keeper;
use self::reports::Reports;
use self::settings::Settings;
use self::sink::Sink;
use self::stop::Stop;
use self::watchdog::Watchdog;
use crate::Failure;
use crate::control::Control;
use crate::failure::ServeEnd;
use crate::sys::{Confined, Manager};

pub(crate) use self::fleet::Fleet;
pub(crate) use self::options::ServeOptions;
pub(crate) use self::slot::Slot;
pub(crate) use self::watched::Watched;

/// How long servers may take to send their clients away before the devices are detached under them.
const LEAVE: Duration = Duration::from_millis(200);

/// Why it is served no longer.
enum Ended {
    Signal(Signal),
    NothingLeft,
    /// Nobody needs it any more: every client that there could be has come and gone, or who started it.
    Finished,
    SpawnerLost,
}

/// What is known before anything is started.
#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "nothing is confined there, so nothing is planned")
)]
pub(crate) struct Plan<'p> {
    /// How device processes are started.
    pub(crate) config: &'p HostConfig,
    /// What is served.
    pub(crate) devices: &'p [PciAddress],
    /// What is listened at.
    pub(crate) sockets: Vec<&'p Path>,
    /// Who may connect.
    pub(crate) access: Access,
    /// Whether other programs may be given while it serves.
    pub(crate) programs: bool,
    /// Who this program is to be.
    pub(crate) uid: Option<u32>,
    /// Its group.
    pub(crate) gid: Option<u32>,
    /// What is open and stays so.
    pub(crate) keep: Vec<RawFd>,
}

/// A server that is confined and has not begun.
pub(crate) struct Prepared {
    settings: Settings,
    config: HostConfig,
    /// Where the program of device processes is, whatever folder this process is in.
    installed: PathBuf,
    confined: Arc<Confined>,
    /// Where events are written to beside standard output.
    events: Option<OwnedFd>,
    manager: Manager,
    /// Where crash reports are written to.
    reports: Option<Reports>,
    keeper: Keeper,
    /// Until they are caught, which takes a thread.
    signals: Held,
}

/// Reads what is to be read, and confines this process, which has no other thread yet, for good: nothing
/// can be opened or run afterwards but by its spawner. `None` when all that was asked for has been said.
pub(crate) fn prepare(options: &ServeOptions) -> Result<Option<Prepared>, Failure> {
    if options.print_capabilities {
        return capabilities::print().map(|()| None);
    }
    if options.check {
        return Settings::check(options).map(|()| None);
    }
    let signals = Held::begin();
    // First of all, since these numbers are of what is open before this program opens anything.
    let settings = Settings::of(options)?;
    let manager = Manager::connect()?;
    let keeper = Keeper::find(options)?;
    crate::limits::raise_descriptors();
    let config = settings.config()?;
    let keeper = keeper.of_dext(config.dext.as_os_str());
    let store = keeper.store.clone();
    let of_store = store.iter().flat_map(|store| store.descriptors()).collect::<Vec<_>>();
    let config = config.with_store(store);
    let installed = std::path::absolute(config.program_of_functions())?;
    let events = options.events.as_deref().map(stream::open).transpose()?;
    let reports = options.crash_reports.as_deref().map(Reports::open).transpose()?;
    let of_reports = reports.iter().flat_map(Reports::descriptors);
    let devices: Vec<PciAddress> = settings.functions.iter().map(|one| one.address).collect();
    let of_events = events.iter().map(AsRawFd::as_raw_fd).chain(manager.number());
    let confined = Confined::begin(&Plan {
        config: &config,
        devices: &devices,
        sockets: settings.paths(),
        access: settings.access,
        programs: settings.control.is_some(),
        uid: settings.uid,
        gid: settings.gid,
        keep: settings
            .inherited()
            .into_iter()
            .chain(of_events)
            .chain(of_reports)
            .chain(of_store)
            .collect(),
    })?;
    let (config, confined) = (confined.launch(config), Arc::new(confined));
    Ok(Some(Prepared {
        settings,
        config,
        installed,
        confined,
        events,
        manager,
        reports,
        keeper,
        signals,
    }))
}

/// Serves until a signal comes or nothing is left to serve.
pub(crate) fn run(prepared: Prepared) -> Result<(), Failure> {
    let Prepared {
        settings,
        config,
        installed,
        confined,
        events,
        manager,
        mut reports,
        keeper,
        signals,
    } = prepared;
    keeper.warn();
    let sink = Sink::start(settings.json, events)?;
    let stop = Arc::new(Stop::catch(&sink, &confined, config.store.clone())?);
    drop(signals);
    sink.tell(&Event::Confined(confined.confinement().clone()));
    let faults = config.faults.clone();
    let told = sink.clone();
    let observer = Observer::start(move |happening| {
        happenings::event(happening).iter().for_each(|event| told.tell(event));
        reports.iter_mut().for_each(|reports| reports.write(happening));
    })?;
    let config = config.with_observer(Some(observer.clone()));
    let input = settings.exit_with_stdin.then(std::io::stdin);
    let stays = settings.stays;
    let fleet = Arc::new(Fleet::new(settings, config, installed, &sink, &stop, &confined)?);
    let watchdog = Watchdog::new(manager.watchdog(), Instant::now());
    let mut serving = Serving {
        fleet: &fleet,
        stop: &stop,
        manager: &manager,
        watchdog,
        input,
        status: String::new(),
        stays,
        nothing_left: false,
    };
    let ended = serving.serve(&confined, &sink);
    // A signal explains whatever failed since.
    let ended = stop.signal().map_or(ended, |signal| Ok(Ended::Signal(signal)));
    if matches!(ended, Ok(Ended::SpawnerLost)) && fleet.is_kept() {
        fleet.end_as_if_killed();
    }
    manager.stopping();
    match &ended {
        Ok(Ended::Signal(signal)) => {
            sink.tell(&Event::Stopping { signal: Some(signal.to_string()) });
        }
        Ok(Ended::NothingLeft | Ended::Finished) => sink.tell(&Event::Stopping { signal: None }),
        Ok(Ended::SpawnerLost) => {
            let process = confined.confinement().spawner.unwrap_or_default();
            sink.tell(&Event::SpawnerLost { process });
            sink.tell(&Event::Stopping { signal: None });
        }
        Err(_) => {}
    }
    fleet.close();
    observer.flush(stop::WRITING);
    for report in faults.iter().flat_map(|faults| faults.report()) {
        let fault = report.fault.to_string();
        sink.tell(&Event::Fault { fault, process: report.fired });
    }
    if ended.is_ok() {
        sink.tell(&Event::Stopped);
    }
    confined.finish();
    let forced = stop.finish();
    let written = sink.flush(stop::WRITING);
    match ended? {
        _ if forced => Err(ServeEnd::Forced.into()),
        Ended::NothingLeft => Err(ServeEnd::NothingLeft.into()),
        Ended::SpawnerLost => Err(ServeEnd::SpawnerLost.into()),
        Ended::Signal(_) | Ended::Finished => Ok(written?),
    }
}

/// What the main thread waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Signal,
    ServerFailed,
    SpawnerLost,
    Input,
    Changed,
    News,
}

/// A run, on the main thread.
struct Serving<'s> {
    fleet: &'s Arc<Fleet>,
    stop: &'s Stop,
    manager: &'s Manager,
    watchdog: Watchdog,
    /// Closed when it is to stop.
    input: Option<Stdin>,
    /// What the manager was told last.
    status: String,
    /// Whether it goes on when every function was given up.
    stays: bool,
    /// Whether that is so, and was told.
    nothing_left: bool,
}

impl Serving<'_> {
    /// Attaches everything, listens, and waits for the end; the control socket goes with it.
    fn serve(&mut self, confined: &Confined, sink: &Sink) -> Result<Ended, Failure> {
        self.fleet.start()?;
        let control = self.fleet.control().map(|path| confined.listen(path));
        let control = control.transpose()?.map(|file| Control::start(file, Arc::clone(self.fleet)));
        let control = control.transpose()?;
        if let Some(control) = &control {
            self.stop.remember(control.file());
        }
        sink.tell(&Event::Ready);
        self.status = self.status();
        self.manager.ready(&self.status);
        Ok(self.wait(confined, sink))
    }

    /// Waits for a signal, or until nothing is left; tells of a device that goes away, comes back or is given
    /// up meanwhile.
    fn wait(&mut self, confined: &Confined, sink: &Sink) -> Ended {
        let fleet = self.fleet;
        loop {
            let attached: Vec<_> = fleet.slots().iter().filter_map(Slot::watched).collect();
            let mut sources = vec![
                Source::readable(self.stop.interrupt(), Token::Signal),
                Source::readable(&fleet.failed, Token::ServerFailed),
                Source::readable(&fleet.changed, Token::Changed),
            ];
            if let Some(lost) = confined.lost() {
                sources.push(Source::readable_fd(lost, Token::SpawnerLost));
            }
            if let Some(input) = &self.input {
                sources.push(Source::readable(input, Token::Input));
            }
            let news = attached.iter().map(|one| one.function.news());
            sources.extend(news.map(|news| Source::readable(news, Token::News)));
            let tokens = poll::wait(&sources, self.watchdog.next()).unwrap_or_else(|error| {
                tracing::error!("cannot wait for news: {error}");
                std::thread::sleep(Duration::from_millis(100));
                poll::Tokens::new()
            });
            for token in &tokens {
                match token {
                    Token::Signal | Token::SpawnerLost | Token::Input | Token::News => {}
                    Token::ServerFailed => drop(fleet.failed.clear()),
                    Token::Changed => drop(fleet.changed.clear()),
                }
            }
            if tokens.contains(&Token::News) {
                fleet.news();
            }
            self.tell_manager();
            if let Some(signal) = self.stop.signal() {
                return Ended::Signal(signal);
            }
            if tokens.contains(&Token::Input) && self.input_is_closed() {
                return Ended::Finished;
            }
            if tokens.contains(&Token::SpawnerLost) {
                return Ended::SpawnerLost;
            }
            if let Some(ended) = self.nothing_left(sink) {
                return ended;
            }
        }
    }

    /// Tells when every function is given up; the end, if that is one.
    fn nothing_left(&mut self, sink: &Sink) -> Option<Ended> {
        let slots = self.fleet.slots();
        let before = std::mem::replace(&mut self.nothing_left, !slots.iter().any(Slot::is_left));
        if !self.nothing_left {
            return None;
        }
        if slots.iter().all(Slot::is_finished) {
            return Some(Ended::Finished);
        }
        if !before {
            // Of each it is told first that it was given up.
            self.fleet.news();
            sink.tell(&Event::NothingLeft);
        }
        (!self.stays).then_some(Ended::NothingLeft)
    }

    /// Reads what came on standard input, which says nothing; whether that was its end.
    fn input_is_closed(&self) -> bool {
        match self.input.as_ref().map(|input| rustix::io::read(input, &mut [0; 64])) {
            Some(Ok(0)) => true,
            Some(Err(error)) => !matches!(error, Errno::AGAIN | Errno::INTR),
            Some(Ok(_)) | None => false,
        }
    }

    /// How much is served, for people.
    fn status(&self) -> String {
        let present = |slot: &&Slot| {
            slot.watched().is_some_and(|watched| {
                watched.is_left() && matches!(watched.function.presence(), Presence::Present)
            })
        };
        let slots = self.fleet.slots();
        let (present, all) = (slots.iter().filter(present).count(), slots.len());
        if present == all {
            format!("serving {all}")
        } else {
            format!("serving {present} of {all}")
        }
    }

    /// Tells the service manager, if there is one, what changed, and that this program gets on.
    fn tell_manager(&mut self) {
        let status = self.status();
        if status != self.status {
            self.manager.status(&status);
            self.status = status;
        }
        if self.watchdog.is_due(Instant::now(), self.fleet.busy()) {
            self.manager.alive();
        }
    }
}
