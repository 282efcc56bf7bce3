//! `cordon serve`: functions for VMMs that Cordon is not linked into.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipc::PciAddress;
use ipc::poll::{self, Source};
use serde_json::{Value, json};
use vmm_side::vfio_user::{Event, Server};
use vmm_side::{Container, DmaMode, Host, PassthroughDevice, Presence, Proxy};

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
    /// Keep a standby for each function process, which takes over within a millisecond.
    #[arg(long)]
    standby: bool,
    #[command(flatten)]
    faults: FaultOptions,
    /// Log as JSON lines on standard output.
    #[arg(long)]
    json: bool,
}

/// Who maps guest memory for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dma {
    /// All of it is mapped as the client announces it; needs bus addresses equal to guest ones.
    Direct,
    /// Nothing is mapped by itself.
    Companion,
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
    proxy: Arc<Proxy>,
    server: Server,
    /// What was logged last.
    told: &'static str,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(options: &ServeOptions) -> Result<(), Failure> {
    if options.devices.len() != options.sockets.len() {
        let (devices, sockets) = (options.devices.len(), options.sockets.len());
        return Err(format!("{devices} --device but {sockets} --socket: one each").into());
    }
    let log = Log { json: options.json };
    let (signals, ring) = UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, ring.try_clone()?)?;
    }
    let mut config = options.common.config()?;
    config.recovery.standby = options.standby;
    config.faults = if options.faults.any() { Some(options.faults.arm()?) } else { None };
    let faults = config.faults.clone();
    let host = Host::new(config);
    let mut served = Vec::new();
    let started = start(options, &host, log, &mut served);
    if started.is_ok() {
        wait(&signals, &mut served, log);
        log.line(None, "stopping", None);
    }
    for Served { proxy, server, .. } in served {
        drop(server);
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
    started
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
    for (&address, path) in options.devices.iter().zip(&options.sockets) {
        // Each client has a guest of its own, or its own view of one.
        let container = Arc::new(Container::new(mode));
        let proxy = host.attach(address, &container, None)?;
        let device: Arc<dyn PassthroughDevice> = Arc::clone(&proxy) as _;
        let server = Server::start(path, device, container, move |event| match event {
            Event::Attached => log.line(Some(address), "attach", None),
            Event::Detached(why) => log.line(Some(address), "detach", Some(&why)),
            Event::Refused(why) => log.line(Some(address), "error", Some(&why)),
            Event::Busy => log.line(Some(address), "error", Some("another client was sent away")),
            Event::Failed(why) => log.line(Some(address), "failed", Some(&why)),
        });
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                host.detach(&proxy);
                return Err(error.into());
            }
        };
        let detail = json!({
            "socket": server.path().display().to_string(),
            "function_process": proxy.pid(),
            "connection_process": proxy.connection().pid(),
        });
        log.line(Some(address), "listening", Some(&detail.to_string()));
        served.push(Served { proxy, server, told: "present" });
    }
    log.line(None, "ready", None);
    Ok(())
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
