//! A vfio-user client that says exactly what it is told to, and a served function to say it to.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cordon_vfio_user::protocol::{HEADER, Header, command, flag};
use cordon_vfio_user::{Event, Options, Server};
use cordon_vmm::{Container, DmaMode, Function, Host, HostConfig, PassthroughDevice};
use ipc::SharedMemory;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::{Simulator, address, config};

/// A function behind a vfio-user socket.
pub struct Served {
    /// The dext.
    pub simulator: Simulator,
    /// The device itself, to compare with.
    pub proxy: Arc<Function>,
    /// Guest memory as the server has it.
    pub container: Arc<Container>,
    events: Mutex<Receiver<Event>>,
    path: PathBuf,
    _server: Server,
    _host: Host,
    _directory: tempfile::TempDir,
}

impl Served {
    /// Serves `function` of the usual device.
    ///
    /// # Panics
    /// When it cannot be served.
    #[must_use]
    pub fn start(function: &str) -> Self {
        Self::start_with(function, |_| {})
    }

    /// Serves a function of the usual simulator by processes started otherwise.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start_with(function: &str, change: impl FnOnce(&mut HostConfig)) -> Self {
        Self::start_as(function, change, Options::default())
    }

    /// Serves a function of the usual simulator otherwise.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start_as(
        function: &str,
        change: impl FnOnce(&mut HostConfig),
        options: Options,
    ) -> Self {
        Self::start_in(function, change, options, |_| {})
    }

    /// Serves a function of the usual simulator that was used otherwise before.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start_after(function: &str, used: impl FnOnce(&Function)) -> Self {
        Self::start_in(function, |_| {}, Options::default(), used)
    }

    fn start_in(
        function: &str,
        change: impl FnOnce(&mut HostConfig),
        options: Options,
        used: impl FnOnce(&Function),
    ) -> Self {
        let simulator = Simulator::usual();
        let mut config = config(&simulator);
        change(&mut config);
        let host = Host::new(config);
        let container = Arc::new(Container::new(DmaMode::Direct));
        let proxy = host.attach(address(function), &container, None).unwrap();
        used(&proxy);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (sender, events) = channel();
        let device: Arc<dyn PassthroughDevice> = Arc::clone(&proxy) as _;
        let log = move |event| drop(sender.send(event));
        let server = Server::start(&path, device, Arc::clone(&container), options, log).unwrap();
        Self {
            simulator,
            proxy,
            container,
            events: Mutex::new(events),
            path,
            _server: server,
            _host: host,
            _directory: directory,
        }
    }

    /// The probe function.
    #[must_use]
    pub fn probe() -> Self {
        Self::start("01:00.1")
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// A client that has said nothing yet.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(&self) -> Client {
        Client::connect(&self.path)
    }

    /// A client that has negotiated.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::negotiated(&self.path)
    }

    /// Waits until the server logs something that `wanted` picks.
    ///
    /// # Panics
    /// When it does not within ten seconds.
    pub fn until(&self, mut wanted: impl FnMut(&Event) -> bool) {
        let events = self.events.lock().unwrap();
        while !wanted(&events.recv_timeout(Duration::from_secs(10)).unwrap()) {}
    }
}

/// A reply: its error, body and descriptors.
#[derive(Debug)]
pub struct Reply {
    /// Errno; 0 for success.
    pub error: u32,
    /// What came after the header.
    pub body: Vec<u8>,
    /// What came beside it.
    pub descriptors: Vec<OwnedFd>,
}

/// Longer than anything takes that nothing happens to.
const LONG: Duration = Duration::from_millis(100);

/// A client.
pub struct Client {
    stream: UnixStream,
    next: u16,
    waits: Vec<Duration>,
}

impl Client {
    /// A client of whoever listens at `path`, that has said nothing yet.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { stream, next: 1, waits: Vec::new() }
    }

    /// How long it waits for an answer.
    ///
    /// # Panics
    /// When that cannot be set.
    pub fn waits_for(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).unwrap();
    }

    /// How long each answer took for which [`Client::ask`] waited longer than most.
    #[must_use]
    pub fn waits(&self) -> &[Duration] {
        &self.waits
    }

    /// Whether there is something that it has not asked for.
    ///
    /// # Panics
    /// When the socket fails.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.stream, &mut [0; 1], flags) {
            Ok((came, _)) => came > 0,
            Err(rustix::io::Errno::AGAIN) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// A client that is connected, and negotiated.
    ///
    /// # Panics
    /// When the server does not take it.
    #[must_use]
    pub fn of(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut client = Self { stream, next: 1, waits: Vec::new() };
        assert!(client.negotiate(), "the server does not take its client");
        assert_eq!(client.receive().1.error, 0);
        client
    }

    /// Sends the first message; whether an answer came.
    fn negotiate(&mut self) -> bool {
        const VERSION: &[u8] = b"\0\0\0\0{\"capabilities\":{}}\0";
        let size = u32::try_from(HEADER + VERSION.len()).unwrap();
        let header =
            Header { id: 0, command: command::VERSION, size, flags: flag::COMMAND, error: 0 };
        let message = [&header.to_bytes()[..], VERSION].concat();
        self.stream.write_all(&message).is_ok()
            && rustix::net::recv(&self.stream, &mut [0; 1], RecvFlags::PEEK)
                .is_ok_and(|(came, _)| came == 1)
    }

    /// Whether the server takes this client, which has said nothing yet, or sends it away.
    ///
    /// # Panics
    /// When what it answers is no success.
    pub fn is_served(&mut self) -> bool {
        let served = self.negotiate();
        if served {
            assert_eq!(self.receive().1.error, 0);
        }
        served
    }

    /// [`Client::connect`], and negotiated. Tries again while the client before it is still taken
    /// leave of, since a server sends away whoever comes meanwhile.
    ///
    /// # Panics
    /// When nobody listens, or the server goes on sending it away.
    #[must_use]
    pub fn negotiated(path: &Path) -> Self {
        let mut client = None;
        let negotiated = crate::eventually(|| {
            let mut next = Self::connect(path);
            let welcome = next.negotiate();
            client = welcome.then_some(next);
            welcome
        });
        assert!(negotiated, "the server at {} takes nobody", path.display());
        let mut client = client.unwrap();
        assert_eq!(client.receive().1.error, 0);
        client
    }

    /// Sends bytes as they are, with descriptors beside the first.
    ///
    /// # Panics
    /// When the server does not take them.
    pub fn send_raw(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let parts = [IoSlice::new(bytes)];
        let sent =
            rustix::net::sendmsg(&self.stream, &parts, &mut control, SendFlags::empty()).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// Sends a command and does not wait.
    pub fn send(
        &mut self,
        command: u16,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> u16 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let size = u32::try_from(HEADER + body.len()).unwrap();
        let header = Header { id, command, size, flags, error: 0 };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(body);
        self.send_raw(&bytes, descriptors);
        id
    }

    /// Sends a command without its last byte; what the socket does not hold the server has taken out then.
    pub fn send_most(&mut self, command: u16, body: &[u8]) {
        let size = u32::try_from(HEADER + body.len()).unwrap();
        let header = Header { id: self.next, command, size, flags: flag::COMMAND, error: 0 };
        let bytes = [&header.to_bytes()[..], body].concat();
        self.send_raw(&bytes[..bytes.len() - 1], &[]);
    }

    /// The next reply, with its header.
    ///
    /// # Panics
    /// When there is none.
    pub fn receive(&mut self) -> (Header, Reply) {
        let mut bytes = [0; HEADER];
        let mut descriptors = Vec::new();
        let mut have = 0;
        while have < HEADER {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let parts = &mut [IoSliceMut::new(&mut bytes[have..])];
            let came = rustix::net::recvmsg(&self.stream, parts, &mut control, RecvFlags::empty())
                .unwrap();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            assert!(came.bytes > 0, "end of file instead of a reply");
            have += came.bytes;
        }
        let header = Header::parse(&bytes);
        let mut body = vec![0; usize::try_from(header.size).unwrap() - HEADER];
        self.stream.read_exact(&mut body).unwrap();
        let failed = header.flags & flag::ERROR != 0;
        assert_eq!(failed, header.error != 0, "{header:?}");
        assert!(!failed || body.is_empty(), "an error reply has no body");
        (header, Reply { error: header.error, body, descriptors })
    }

    /// Sends a command and waits for its reply.
    pub fn ask(&mut self, command: u16, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Reply {
        let began = std::time::Instant::now();
        let id = self.send(command, flag::COMMAND, body, descriptors);
        let (header, reply) = self.receive();
        if began.elapsed() >= LONG {
            self.waits.push(began.elapsed());
        }
        assert_eq!((header.id, header.command), (id, command));
        assert_eq!(header.flags & flag::TYPE, flag::REPLY);
        reply
    }

    /// A command that must succeed: the body of its reply.
    pub fn ok(&mut self, command: u16, body: &[u8]) -> Vec<u8> {
        let reply = self.ask(command, body, &[]);
        assert_eq!(reply.error, 0, "command {command} failed");
        reply.body
    }

    /// A command that must fail: its errno. The connection must be usable afterwards.
    pub fn refused(&mut self, command: u16, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> i32 {
        let reply = self.ask(command, body, descriptors);
        assert_ne!(reply.error, 0, "command {command} succeeded: {:x?}", reply.body);
        assert!(reply.descriptors.is_empty());
        self.still_works();
        i32::try_from(reply.error).unwrap()
    }

    /// Asks for something harmless.
    pub fn still_works(&mut self) {
        let info = self.ok(command::GET_INFO, &words(&[16, 0, 0, 0]));
        assert_eq!(info.len(), 16);
    }

    /// Turns bus mastering on, as a driver does: without it the device reaches no memory, and no
    /// message of an interrupt leaves it.
    pub fn master_bus(&mut self) {
        self.write(7, 4, &[6, 0]);
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 64]), Ok(0) | Err(_))
    }

    /// Reads from a region.
    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        let body = self.ok(command::REGION_READ, &access(region, offset, count, &[]));
        assert_eq!(body[..16], access(region, offset, count, &[]));
        body[16..].to_vec()
    }

    /// Writes to a region.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let count = u32::try_from(data.len()).unwrap();
        let body = self.ok(command::REGION_WRITE, &access(region, offset, count, data));
        assert_eq!(body, access(region, offset, count, &[]));
    }
}

/// Little-endian words.
#[must_use]
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The body of a region access.
#[must_use]
pub fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    let mut body = offset.to_le_bytes().to_vec();
    body.extend_from_slice(&words(&[region, count]));
    body.extend_from_slice(data);
    body
}

/// The body of DMA_MAP.
#[must_use]
pub fn map(flags: u32, offset: u64, iova: u64, size: u64) -> Vec<u8> {
    let mut body = words(&[32, flags]);
    for field in [offset, iova, size] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    body
}

/// The body of DMA_UNMAP.
#[must_use]
pub fn unmap(flags: u32, iova: u64, size: u64) -> Vec<u8> {
    let mut body = words(&[24, flags]);
    for field in [iova, size] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    body
}

/// Guest memory as a client has it.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn ram(size: u64) -> SharedMemory {
    SharedMemory::create("guest-ram", size).unwrap()
}
