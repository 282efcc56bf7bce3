//! The kernel process: the state of all tasks of one run, one thread for each connection. The first process of a
//! run starts it by a fork, before that has any thread; it ends with the last task.
//!
//! A task lives for as long as its first connection: the end of a process, by whatever, closes that.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cordon_ipc::{Deadline, Handles, Tube, TubeError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::codes::{Code, Name, kern, msg};
use crate::state::{Answer, Confinement, Fault, Kernel, Memory, Received, Segment, TaskId};
use crate::wire::{Origin, Part, Reply, Request};

/// A listening socket without a file, and its name.
pub(crate) fn listen() -> io::Result<(OwnedFd, String)> {
    let mut random = [0; 8];
    rustix::io::read(std::fs::File::open("/dev/urandom")?, &mut random)?;
    let name = format!("mach-kernel-{}-{:x}", std::process::id(), u64::from_ne_bytes(random));
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::listen(&socket, 128)?;
    Ok((socket, name))
}

/// Connects to the kernel of that name.
pub(crate) fn connect(name: &str) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Shared {
    kernel: Mutex<Kernel>,
    /// Something changed.
    changed: Condvar,
    /// Whether there was ever a task.
    began: Mutex<bool>,
}

impl Shared {
    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until the last task is gone. `ended` is called then.
pub(crate) fn serve(listener: &OwnedFd, ended: fn()) -> io::Result<()> {
    let shared = Arc::new(Shared {
        kernel: Mutex::default(),
        changed: Condvar::new(),
        began: Mutex::new(false),
    });
    loop {
        let socket = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        let shared = Arc::clone(&shared);
        std::thread::Builder::new().spawn(move || {
            let mut connection = Connection { shared, tube: Tube::from_fd(socket), task: None };
            connection.run();
            if connection.task.is_some_and(|(_, is_first)| is_first) {
                let is_in_use = connection.shared.kernel().is_in_use();
                let began = *connection.shared.began.lock().unwrap_or_else(PoisonError::into_inner);
                if began && !is_in_use {
                    ended();
                }
            }
        })?;
    }
}

struct Connection {
    shared: Arc<Shared>,
    tube: Tube,
    /// Whose it is, and whether the task ends with it.
    task: Option<(TaskId, bool)>,
}

fn forever() -> Deadline {
    Deadline::after(Duration::MAX)
}

/// What a request is answered with, and the descriptors beside it.
type Answered = (Reply, Vec<Arc<OwnedFd>>);

impl Connection {
    fn run(&mut self) {
        while let Ok(received) = self.tube.receive::<Request>(forever()) {
            let (reply, files) = self.answer(received.message, received.handles);
            let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
            match self.tube.send(received.id, &reply, &borrowed, forever()) {
                Ok(()) => {}
                Err(TubeError::Disconnected) => break,
                Err(_) => break,
            }
        }
        if let Some((task, true)) = self.task {
            self.shared.kernel().end_task(task);
            self.shared.changed.notify_all();
        }
    }

    fn answer(&mut self, request: Request, handles: Handles) -> Answered {
        match self.begin(&request) {
            Some(reply) => (reply, Vec::new()),
            None => {
                let answered = self.carry_out(request, handles);
                self.shared.changed.notify_all();
                match answered {
                    Ok(answered) => answered,
                    Err(fault) => (Self::refused(fault), Vec::new()),
                }
            }
        }
    }

    fn refused(fault: Fault) -> Reply {
        match fault {
            Fault::Code(code) => Reply::Code(code),
            Fault::Guard(what) => Reply::Guard(what),
            Fault::NotSimulated(what) => Reply::NotSimulated(what),
        }
    }

    /// The first request of a connection.
    fn begin(&mut self, request: &Request) -> Option<Reply> {
        let gone = || Some(Reply::NotSimulated("a task that comes from nowhere".to_owned()));
        match *request {
            Request::Start { pid, ref origin } => {
                let mut kernel = self.shared.kernel();
                let task = match *origin {
                    Origin::First => Some(kernel.first_task(pid)),
                    Origin::Birth(birth) => kernel.born_task(pid, birth),
                    Origin::Fork(parent) => kernel.forked_task(pid, TaskId(parent)),
                };
                drop(kernel);
                let Some(task) = task else { return gone() };
                *self.shared.began.lock().unwrap_or_else(PoisonError::into_inner) = true;
                self.task = Some((task, true));
                Some(Reply::Number(task.0))
            }
            Request::Thread { task } => {
                self.task = Some((TaskId(task), false));
                Some(Reply::Number(task))
            }
            _ => None,
        }
    }

    fn carry_out(&mut self, request: Request, handles: Handles) -> Answer<Answered> {
        let Some((task, _)) = self.task else {
            return Err(Fault::NotSimulated("a call before a task began".to_owned()));
        };
        let plain = |reply| Ok((reply, Vec::new()));
        let shared = Arc::clone(&self.shared);
        let mut kernel = shared.kernel();
        match request {
            Request::Start { .. } | Request::Thread { .. } => plain(Reply::Code(kern::SUCCESS)),
            Request::Birth { registered } => {
                plain(Reply::Number(kernel.birth(task, registered.as_deref())?))
            }
            Request::Allocate { right } => plain(Reply::Name(kernel.allocate(task, right)?)),
            Request::Insert { name, from, how } => {
                kernel.insert(task, name, from, how)?;
                plain(Reply::Code(kern::SUCCESS))
            }
            Request::Deallocate { name } => {
                plain(Reply::Done { was_last: kernel.deallocate(task, name)? })
            }
            Request::ModRefs { name, right, delta } => {
                plain(Reply::Done { was_last: kernel.mod_refs(task, name, right, delta)? })
            }
            Request::Notification { name, what, sync, whom, how } => {
                plain(Reply::Name(kernel.request_notification(task, name, what, sync, whom, how)?))
            }
            Request::MoveMember { member, into } => {
                kernel.move_member(task, member, into)?;
                plain(Reply::Code(kern::SUCCESS))
            }
            Request::Register { names } => {
                kernel.register(task, &names)?;
                plain(Reply::Code(kern::SUCCESS))
            }
            Request::Lookup => plain(Reply::Names(kernel.lookup(task)?.to_vec())),
            Request::Send { message, timeout } => {
                plain(send(&shared, kernel, task, &message, timeout)?)
            }
            Request::Receive { name, options, room, timeout } => {
                plain(receive(&shared, kernel, task, name, options, room as usize, timeout)?)
            }
            Request::NewMemory { parts, protection, is_copy } => {
                let files: Vec<Arc<OwnedFd>> = handles.map(Arc::new).collect();
                let segment = |part: &Part| {
                    let file = files.get(part.file as usize).cloned()?;
                    Some(Segment { file, offset: part.offset, length: part.length })
                };
                let segments: Option<Vec<Segment>> = parts.iter().map(segment).collect();
                let segments = segments.ok_or(Fault::Code(kern::INVALID_ARGUMENT))?;
                let memory = Memory { segments, protection, is_copy };
                plain(Reply::Name(kernel.new_memory(task, memory)?))
            }
            Request::Memory { name } => Ok(memory(kernel.memory(task, name)?)),
            Request::NewObject { is_immovable } => {
                plain(Reply::Name(kernel.new_object(task, is_immovable)?))
            }
            Request::Hold { name } => plain(Reply::Number(kernel.hold(task, name)?)),
            Request::LetGo { held } => {
                kernel.let_go(task, held)?;
                plain(Reply::Code(kern::SUCCESS))
            }
            Request::FromKernel { held, id, body, is_last } => {
                kernel.send_from_kernel(task, held, id, body, is_last)?;
                plain(Reply::Code(kern::SUCCESS))
            }
            Request::Readable { name } => {
                use rustix::event::{EventfdFlags, eventfd};
                let make = || Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
                Ok((Reply::Readable, vec![kernel.readable(task, name, make)?]))
            }
            Request::Confine { profile, parameters } => {
                let is_first = kernel.confine(task, Confinement { profile, parameters })?;
                plain(Reply::Done { was_last: is_first })
            }
            Request::Confinement { pid } => plain(match kernel.confinement(pid) {
                Ok(found) => {
                    Reply::Confinement(found.map(|found| (found.profile, found.parameters)))
                }
                Err(()) => Reply::NoProcess,
            }),
            Request::Seen { operation, call } => {
                drop(kernel);
                plain(match seen(&operation, &call) {
                    Ok(()) => Reply::Code(kern::SUCCESS),
                    Err(error) => {
                        Reply::NotSimulated(format!("a call that is not noted ({error})"))
                    }
                })
            }
        }
    }
}

/// Notes a call of a confined process, a line each, where [`SEEN_VARIABLE`](crate::SEEN_VARIABLE) says.
fn seen(operation: &str, call: &str) -> io::Result<()> {
    use std::io::Write as _;
    let Some(path) = std::env::var_os(crate::SEEN_VARIABLE) else { return Ok(()) };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    // In one write, whoever else notes something.
    file.write_all(format!("{operation} {call}\n").as_bytes())
}

/// A memory entry as it travels: each file once.
fn memory(memory: Memory) -> Answered {
    let mut files: Vec<Arc<OwnedFd>> = Vec::new();
    let part = |segment: Segment| {
        let known = files.iter().position(|file| Arc::ptr_eq(file, &segment.file));
        let file = known.unwrap_or_else(|| {
            files.push(Arc::clone(&segment.file));
            files.len() - 1
        });
        let file = u32::try_from(file).unwrap_or(u32::MAX);
        Part { file, offset: segment.offset, length: segment.length }
    };
    let parts = memory.segments.into_iter().map(part).collect();
    let (protection, is_copy) = (memory.protection, memory.is_copy);
    (Reply::Memory { parts, protection, is_copy }, files)
}

/// When a wait of so many milliseconds ends.
fn end(timeout: Option<u32>) -> Option<Instant> {
    timeout.map(|milliseconds| Instant::now() + Duration::from_millis(milliseconds.into()))
}

/// Waits for a change, at most until `end`; `None` when that is over.
fn wait<'k>(
    shared: &'k Shared,
    kernel: MutexGuard<'k, Kernel>,
    end: Option<Instant>,
) -> Option<MutexGuard<'k, Kernel>> {
    let Some(end) = end else {
        return Some(shared.changed.wait(kernel).unwrap_or_else(PoisonError::into_inner));
    };
    let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
    let waited = shared.changed.wait_timeout(kernel, left);
    Some(waited.unwrap_or_else(PoisonError::into_inner).0)
}

fn send<'k>(
    shared: &'k Shared,
    mut kernel: MutexGuard<'k, Kernel>,
    task: TaskId,
    message: &[u8],
    timeout: Option<u32>,
) -> Answer<Reply> {
    let end = end(timeout);
    let mut pending = kernel.take_message(task, message)?;
    loop {
        match kernel.deliver(pending)? {
            Ok(()) => return Ok(Reply::Code(kern::SUCCESS)),
            Err(full) => pending = full,
        }
        match wait(shared, kernel, end) {
            Some(waited) => kernel = waited,
            None => {
                let message = shared.kernel().give_back(task, pending)?;
                let code: Code = msg::SEND_TIMED_OUT;
                return Ok(Reply::Message { code, message });
            }
        }
    }
}

fn receive<'k>(
    shared: &'k Shared,
    mut kernel: MutexGuard<'k, Kernel>,
    task: TaskId,
    name: Name,
    options: i32,
    room: usize,
    timeout: Option<u32>,
) -> Answer<Reply> {
    let end = end(timeout);
    let began_with = kernel.receives_from(task, name)?;
    loop {
        kernel.still_receives(task, name, &began_with)?;
        if let (Received::Message(message), code) = kernel.receive(task, name, options, room)? {
            return Ok(Reply::Message { code, message });
        }
        match wait(shared, kernel, end) {
            Some(waited) => kernel = waited,
            None => return Err(msg::RCV_TIMED_OUT.into()),
        }
    }
}

/// Starts the kernel process: a fork, which must have one thread. The name to connect to.
pub(crate) fn start() -> io::Result<String> {
    let (listener, name) = listen()?;
    // SAFETY: the process has a single thread, as the caller promises; the child goes its own way.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // A second fork, so that the first process has no child that it did not make.
            // SAFETY: as above.
            if unsafe { libc::fork() } == 0 {
                kernel_process(&listener);
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = 0;
            // SAFETY: a child of ours and a place for its status.
            while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
            Ok(name)
        }
    }
}

fn kernel_process(listener: &OwnedFd) -> ! {
    use std::os::fd::AsRawFd as _;
    // Of the first process nothing is kept open: a reader of its output must see the end of it.
    // SAFETY: plain calls on numbers; only the listener is used afterwards.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"mach-kernel".as_ptr());
        for fd in
            (0..1024).chain(crate::client::FIRST_RESERVED..crate::client::FIRST_RESERVED + 512)
        {
            if fd != listener.as_raw_fd() {
                libc::close(fd);
            }
        }
        for signal in 1..32 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
            // It ends with its last task.
            libc::signal(signal, libc::SIG_IGN);
        }
        // Standard descriptors, so that nothing else is taken for one.
        for _ in 0..3 {
            libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        }
    }
    let ended = || {
        // SAFETY: ends the kernel process.
        unsafe { libc::_exit(0) }
    };
    let _ = serve(listener, ended);
    // SAFETY: as above.
    unsafe { libc::_exit(1) }
}
