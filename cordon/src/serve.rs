//! `cordon serve`: functions for VMMs that Cordon is not linked into.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use cordon_vfio_user::{Budget, Event, Options, Server};
use cordon_vmm::companion::Layout;
use cordon_vmm::{
    Companion, CompanionConfig, Container, DmaMode, Function, Host, PassthroughDevice, Presence,
    WindowRoute,
};
use ipc::PciAddress;
use ipc::poll::{self, Source};
use serde_json::{Value, json};

use crate::control::Control;
use crate::faults::FaultOptions;
use crate::{Common, Failure};

/// What is served where.
#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    #[command(flatten)]
    common: Common,
    /// A function to serve; repeat it for several, with one --socket each, in the same order.
    #[arg(long = "device", required = true, value_name = "BB:DD.F")]
    devices: Vec<PciAddress>,
    /// Where to serve it.
    #[arg(long = "socket", required = true, value_name = "PATH")]
    sockets: Vec<PathBuf>,
    /// Who maps guest memory for the device.
    #[arg(long, value_enum, default_value_t = Dma::Direct)]
    dma: Dma,
    /// Where to serve the DMA companion of each --device, as a device of its own, in the same
    /// order; needs --dma companion.
    #[arg(long = "companion-socket", value_name = "PATH")]
    companions: Vec<PathBuf>,
    /// Where the guest of each --companion-socket has its device, as its driver looks it up.
    #[arg(long = "companion-guest", value_name = "BB:DD.F")]
    guests: Vec<PciAddress>,
    /// How guests lay out the entries of a companion's ring.
    #[arg(long, value_enum, default_value_t = CompanionLayout::Packed32)]
    companion_layout: CompanionLayout,
    /// Entries that a companion's batch may have, at most 4096; 0 means that many.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    companion_entries: u32,
    /// Where `cordon inspect --control` may ask what is served.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// How BARs become windows of the guest's.
    #[arg(long, value_enum, default_value_t = Windows::Handed)]
    windows: Windows,
    /// Refuse guest memory that its VMM could still shorten; not every VMM can seal its.
    #[arg(long)]
    sealed_memory: bool,
    /// Keep a standby for each function process, which takes over within a millisecond.
    #[arg(long)]
    standby: bool,
    #[command(flatten)]
    faults: FaultOptions,
    /// Log as JSON lines on standard output.
    #[arg(long)]
    json: bool,
}

impl ServeOptions {
    /// How each function is served: every server, of a function or a companion, has an equal share
    /// of the descriptors that this process may have.
    fn how(&self) -> Options {
        let servers = u64::try_from(self.sockets.len() + self.companions.len()).unwrap_or(u64::MAX);
        let share = crate::limits::descriptors() / servers.max(1);
        Options { sealed_memory: self.sealed_memory, budget: Budget::within(share) }
    }
}

/// Who maps guest memory for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dma {
    /// All of it is mapped as the client announces it; needs bus addresses equal to guest ones.
    Direct,
    /// Nothing is mapped by itself.
    Companion,
}

/// How BARs become windows of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Windows {
    /// The connection process hands their memory on.
    Handed,
    /// This program maps them by a connection of its own to the dext, with all its powers.
    OwnConnection,
    /// They do not: every access is trapped.
    Trapped,
}

/// How the entries of a companion's ring are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompanionLayout {
    /// 32-bit lengths, as the reference series has them.
    Packed32,
    /// 64-bit lengths.
    Packed64,
}

/// Logs one line.
#[derive(Clone, Copy)]
struct Log {
    json: bool,
}

impl Log {
    fn line(self, device: Option<PciAddress>, event: &str, detail: Option<&str>) {
        let mut output = std::io::stdout().lock();
        // A log that nobody reads any more is no reason to stop serving.
        let _ = if self.json {
            let mut line = serde_json::Map::new();
            line.insert("event".to_owned(), event.into());
            if let Some(device) = device {
                line.insert("device".to_owned(), device.to_string().into());
            }
            if let Some(detail) = detail {
                line.insert("detail".to_owned(), detail.into());
            }
            writeln!(output, "{}", Value::Object(line))
        } else {
            let device = device.map_or_else(String::new, |device| format!("{device}: "));
            let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
            writeln!(output, "{device}{event}{detail}")
        };
        let _ = output.flush();
    }
}

/// One served function.
struct Served {
    proxy: Arc<Function>,
    server: Option<Server>,
    companion: Option<Server>,
    /// What was logged last.
    told: &'static str,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(options: &ServeOptions) -> Result<(), Failure> {
    if options.devices.len() != options.sockets.len() {
        let (devices, sockets) = (options.devices.len(), options.sockets.len());
        return Err(format!("{devices} --device but {sockets} --socket: one each").into());
    }
    let (companions, guests) = (options.companions.len(), options.guests.len());
    if companions > 0 && (companions, guests) != (options.devices.len(), options.devices.len()) {
        let devices = options.devices.len();
        let said = format!(
            "{devices} --device, {companions} --companion-socket, {guests} --companion-guest: one each"
        );
        return Err(said.into());
    }
    if companions > 0 && options.dma == Dma::Direct {
        return Err("--companion-socket needs --dma companion".into());
    }
    let log = Log { json: options.json };
    crate::limits::raise_descriptors();
    let (signals, ring) = UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, ring.try_clone()?)?;
    }
    let mut config = options.common.config()?;
    config.recovery.standby = options.standby;
    config.windows = match options.windows {
        Windows::Handed => WindowRoute::Handed,
        Windows::OwnConnection => WindowRoute::OwnConnection,
        Windows::Trapped => WindowRoute::Trapped,
    };
    config.faults = if options.faults.any() { Some(options.faults.arm()?) } else { None };
    let faults = config.faults.clone();
    let host = Host::new(config);
    let mut served = Vec::new();
    let started = start(options, &host, log, &mut served).and_then(|()| {
        let proxies = served.iter().map(|one| Arc::clone(&one.proxy)).collect();
        let control = options.control.as_deref();
        let control = control.map(|path| Control::start(path, proxies)).transpose()?;
        log.line(None, "ready", None);
        Ok(control)
    });
    if started.is_ok() {
        wait(&signals, &mut served, log);
        log.line(None, "stopping", None);
    }
    for Served { proxy, server, companion, .. } in served {
        drop((server, companion));
        host.detach(&proxy);
    }
    for report in faults.iter().flat_map(|faults| faults.report()) {
        let fired = match report.fired {
            Some(pid) => format!("fired at process {pid}: {}", report.fault),
            None => format!("never fired: {}", report.fault),
        };
        log.line(None, "fault", Some(&fired));
    }
    if started.is_ok() {
        log.line(None, "stopped", None);
    }
    started.map(drop)
}

fn start(
    options: &ServeOptions,
    host: &Host,
    log: Log,
    served: &mut Vec<Served>,
) -> Result<(), Failure> {
    let mode = match options.dma {
        Dma::Direct => DmaMode::Direct,
        Dma::Companion => DmaMode::Companion,
    };
    for (at, (&address, path)) in options.devices.iter().zip(&options.sockets).enumerate() {
        // Each client has a guest of its own, or its own view of one.
        let container = Arc::new(Container::new(mode));
        let (proxy, companion) = match options.guests.get(at) {
            None => (host.attach(address, &container, None)?, None),
            Some(guest) => {
                let config = CompanionConfig {
                    guest: *guest,
                    layout: match options.companion_layout {
                        CompanionLayout::Packed32 => Layout::Packed32,
                        CompanionLayout::Packed64 => Layout::Packed64,
                    },
                    max_entries: options.companion_entries,
                };
                let both = host.attach_with_companion(address, &container, None, config)?;
                (both.0, Some(both.1))
            }
        };
        let mut one = Served { proxy, server: None, companion: None, told: "present" };
        let started = start_servers(options, at, &mut one, &container, companion, path, log);
        // Also one that is not served whole is detached in the end.
        served.push(one);
        started?;
    }
    Ok(())
}

fn start_servers(
    options: &ServeOptions,
    at: usize,
    one: &mut Served,
    container: &Arc<Container>,
    companion: Option<Arc<Companion>>,
    path: &Path,
    log: Log,
) -> Result<(), Failure> {
    let address = one.proxy.address();
    let device: Arc<dyn PassthroughDevice> = Arc::clone(&one.proxy) as _;
    let (how, container) = (options.how(), Arc::clone(container));
    let server = Server::start(path, device, container, how, logged(address, log, None))?;
    let mut detail = json!({
        "socket": server.path().display().to_string(),
        "function_process": one.proxy.pid(),
        "connection_process": one.proxy.connection().pid(),
    });
    if let (Some(companion), Some(path)) = (companion, options.companions.get(at)) {
        // Its client announces the guest's memory too; the function's client gives it.
        let container = Arc::new(Container::new(DmaMode::Companion));
        let log = logged(address, log, Some("companion"));
        let beside = server.start_beside(path, companion, container, how, log)?;
        detail["companion_socket"] = beside.path().display().to_string().into();
        one.companion = Some(beside);
    }
    one.server = Some(server);
    log.line(Some(address), "listening", Some(&detail.to_string()));
    Ok(())
}

/// Logs what happens to a server: of the function itself, or of something beside it.
fn logged(
    address: PciAddress,
    log: Log,
    beside: Option<&'static str>,
) -> impl Fn(Event) + Send + 'static {
    move |event| {
        let (event, detail) = match event {
            Event::Attached => ("attach", None),
            Event::Detached(why) => ("detach", Some(why)),
            Event::Refused(why) => ("error", Some(why)),
            Event::Busy => ("error", Some("another client was sent away".to_owned())),
            Event::Delayed(why) => ("delayed", Some(why)),
            Event::Withheld(why) => ("withheld", Some(why)),
            Event::Available => ("available", None),
            Event::Failed(why) => ("failed", Some(why)),
        };
        let event = beside.map_or_else(|| event.to_owned(), |what| format!("{what}-{event}"));
        log.line(Some(address), &event, detail.as_deref());
    }
}

/// Waits for a signal; a device that goes away, comes back or is given up meanwhile is logged, and
/// its client reads all ones while it is not there.
fn wait(signals: &UnixStream, served: &mut [Served], log: Log) {
    loop {
        let mut sources = vec![Source::readable(signals, None)];
        for (at, one) in served.iter().enumerate() {
            sources.push(Source::readable(one.proxy.news(), Some(at)));
        }
        let tokens = poll::wait(&sources, None).unwrap_or_else(|_| {
            std::thread::sleep(Duration::from_millis(100));
            Vec::new()
        });
        for token in tokens {
            let Some(at) = token else { return };
            let one = &mut served[at];
            let _ = one.proxy.news().clear();
            let (event, detail) = match one.proxy.presence() {
                Presence::Present if one.told == "away" => ("back", None),
                Presence::Present => continue,
                Presence::Away(death) => ("away", Some(death.to_string())),
                Presence::Gone(death) => ("died", Some(death.to_string())),
            };
            if one.told != event {
                log.line(Some(one.proxy.address()), event, detail.as_deref());
                one.told = event;
            }
        }
    }
}
