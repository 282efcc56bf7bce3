//! What a running `cordon serve` says of the functions it holds: one JSON line for each connection
//! to its control socket, which `cordon inspect --control` asks.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cordon_cli::event::ClientView;
use cordon_vmm::text::printable;
use cordon_vmm::{Function, PassthroughDevice as _, Presence};
use ipc::SocketFile;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::serve::Watched;

/// How long whoever asks may be waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is taken.
const MAX_ANSWER: u64 = 1 << 20;

/// A function that is served.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) address: String,
    pub(crate) name: String,
    /// "present", "away" or "gone", and why.
    pub(crate) presence: String,
    pub(crate) why: Option<String>,
    pub(crate) function_process: u32,
    pub(crate) connection_process: u32,
    /// Function processes that were replaced.
    pub(crate) replacements: u64,
    /// Times the device went away and came back.
    pub(crate) returns: u64,
    /// Whether a standby waits.
    pub(crate) standby: bool,
    /// What its client sees while the device is there.
    pub(crate) client: ClientView,
    /// Absent while the device is away.
    pub(crate) dma: Option<Dma>,
}

/// DMA registrations of a function.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Dma {
    pub(crate) live_regions: u64,
    pub(crate) live_bytes: u64,
    pub(crate) peak_regions: u64,
    pub(crate) peak_bytes: u64,
    /// Entries that failed since the platform maps no more bytes.
    pub(crate) failed_bytes: u64,
    /// Entries that failed since there are no more mappings.
    pub(crate) failed_mappings: u64,
    /// Entries that failed since the platform had no single segment.
    pub(crate) failed_segments: u64,
}

impl Dma {
    /// As the connection process counts.
    pub(crate) fn of(proxy: &Function) -> Result<Self, cordon_vmm::DeviceError> {
        let now = proxy.connection().statistics(proxy.address())?;
        Ok(Self {
            live_regions: now.regions,
            live_bytes: now.bytes,
            peak_regions: now.peak_regions,
            peak_bytes: now.peak_bytes,
            failed_bytes: now.failed_bytes,
            failed_mappings: now.failed_mappings,
            failed_segments: now.failed_segments,
        })
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "DMA registrations: {} ({} bytes) now, {} ({} bytes) at most",
            self.live_regions, self.live_bytes, self.peak_regions, self.peak_bytes
        )];
        for (count, why) in [
            (self.failed_bytes, "the platform maps no more bytes at once (about 1.5 GiB)"),
            (self.failed_mappings, "the platform has no more mappings (65,536)"),
            (self.failed_segments, "the platform had no single segment for them"),
        ] {
            if count > 0 {
                lines.push(format!("DMA registrations that failed, since {why}: {count}"));
            }
        }
        lines
    }
}

impl Served {
    fn of(watched: &Watched) -> Self {
        let proxy = &watched.function;
        let (presence, death) = match proxy.presence() {
            Presence::Present => ("present", None),
            Presence::Away(death) => ("away", Some(death)),
            Presence::Gone(death) => ("gone", Some(death)),
        };
        Self {
            address: proxy.address().to_string(),
            name: proxy.info().name.clone(),
            presence: presence.to_owned(),
            why: death.map(|death| death.to_string()),
            function_process: proxy.pid(),
            connection_process: proxy.connection().pid(),
            replacements: proxy.replacements(),
            returns: proxy.returns(),
            standby: proxy.has_standby(),
            client: watched.client(),
            dma: Dma::of(proxy).ok(),
        }
    }
}

impl Served {
    /// What came as text.
    fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        [&mut self.address, &mut self.name, &mut self.presence].into_iter().chain(&mut self.why)
    }
}

/// A control socket. Its file is removed with the value.
pub(crate) struct Control(Arc<SocketFile>);

impl Control {
    /// Listens at `path`, by a thread of its own that ends with the program.
    pub(crate) fn start(path: &Path, served: Vec<Arc<Watched>>) -> Result<Self, Failure> {
        let file = Arc::new(SocketFile::listen(path)?);
        let listener = Arc::clone(&file);
        std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            loop {
                match listener.accept() {
                    Ok(client) => {
                        if let Err(error) = answer(client.into(), &served) {
                            tracing::debug!("control: {error}");
                        }
                    }
                    Err(error) => {
                        tracing::error!("control socket {}: {error}", listener.path().display());
                        return;
                    }
                }
            }
        })?;
        Ok(Self(file))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The thread holds the socket until the program ends.
        self.0.remove();
    }
}

fn answer(mut stream: UnixStream, served: &[Arc<Watched>]) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let all: Vec<Served> = served.iter().map(|watched| Served::of(watched)).collect();
    stream.write_all(format!("{}\n", serde_json::to_string(&all)?).as_bytes())
}

/// Asks the `cordon serve` whose control socket is at `path`.
pub(crate) fn ask(path: &Path) -> Result<Vec<Served>, Failure> {
    let failed = |error| format!("no cordon serve answers at {}: {error}", path.display());
    let stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text).map_err(failed)?;
    let nonsense = |error| format!("{} is no control socket: {error}", path.display());
    let mut all: Vec<Served> = serde_json::from_str(&text).map_err(nonsense)?;
    // Whoever listens there is not necessarily ours.
    for text in all.iter_mut().flat_map(Served::texts) {
        *text = printable(text);
    }
    Ok(all)
}
