//! The server of the simulated dext (`cordon_dext_sim`), in process, against clients that send anything: calls
//! that make sense, calls that do not, bytes that are none, and memory that they shorten.
//!
//! Asserted: every request is answered, with a code and no more scalars than there is room for; nothing
//! is done for a client that may not have it done: what needs a claim is done under one, what is
//! registered lies in its memory and overlaps nothing, what is probed was registered, what is accessed
//! lies in a BAR; when the clients are gone nothing of theirs is left.

mod known;

use std::os::fd::{AsFd as _, OwnedFd};

use arbitrary::Arbitrary;
use cordon_dext_sim::fuzzing::{Client, Held, METHODS, Simulated};
use cordon_ipc::wire::dext::{
    Backing, CLIENT_TYPE, IoReturn, MAX_SCALARS, Reply, Request, selector,
};
use cordon_ipc::wire::handshake::Role;
use cordon_ipc::{Deadline, Event, Tube};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use self::known::{Asked, Known};
use crate::lists;

/// A device, and what its clients do in turn.
#[derive(Arbitrary, Debug)]
pub struct Input {
    nvme: bool,
    #[arbitrary(with = lists::rest)]
    steps: Vec<(u8, Act)>,
}

/// A step, of which many are calls that make sense.
#[derive(Arbitrary, Debug)]
enum Act {
    Likely(Likely),
    More(Likely),
    Other(Step),
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A client comes, greets and opens the function, or does not.
    Connect {
        #[arbitrary(with = lists::rarely)]
        silent: Option<()>,
        #[arbitrary(with = lists::rarely)]
        closed: Option<()>,
    },
    /// It goes.
    Leave,
    Services,
    Open {
        service: Option<u64>,
        kind: u32,
    },
    Call {
        selector: u8,
        inputs: Vec<Scalar>,
        outputs: u32,
        memory: Option<Memory>,
    },
    CallAsync {
        selector: u8,
        inputs: Vec<Scalar>,
    },
    /// A call that makes sense, mostly.
    Likely(Likely),
    Map {
        kind: u8,
    },
    Raw {
        bytes: Vec<u8>,
        handles: u8,
    },
    /// The device looks at its registers.
    Poll,
    /// The clients' memory becomes this long.
    Resize(u16),
}

/// Calls about memory, in pages.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Likely {
    Claim,
    Register { key: u8, offset: u8, size: u8 },
    Unregister { key: u8 },
    Probe { key: u8, offset: u16 },
    Allocate { size: u8 },
    Free,
    Access { bar: u8, offset: u16, width: u8, write: bool },
}

impl Likely {
    /// Selector, scalars, and where in the clients' memory, if it says where.
    fn call(self) -> (u32, Vec<u64>, Option<u64>) {
        let page = |number: u8| u64::from(number % 20) << 12;
        let key_of = |number: u8| u64::from(number % 4 + 1) << 12;
        match self {
            Self::Claim => (selector::CLAIM, Vec::new(), None),
            Self::Register { key, offset, size } => {
                let inputs = vec![key_of(key), 1 << 20, page(size)];
                (selector::REGISTER_DMA_REGION, inputs, Some(page(offset)))
            }
            Self::Unregister { key } => (selector::UNREGISTER_DMA_REGION, vec![key_of(key)], None),
            Self::Probe { key, offset } => {
                (selector::PROBE_DMA_REGION, vec![key_of(key), offset.into()], None)
            }
            Self::Allocate { size } => (selector::ALLOCATE_DMA_BUFFER, vec![page(size), 0], None),
            Self::Free => (selector::FREE_DMA_BUFFER, Vec::new(), None),
            Self::Access { bar, offset, width, write } => {
                let inputs = vec![(bar % 6).into(), offset.into(), 1 << (width % 4), 0];
                (if write { selector::MMIO_WRITE } else { selector::MMIO_READ }, inputs, None)
            }
        }
    }
}

/// A scalar as an input names it.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Scalar {
    Small(u8),
    Page(u8),
    Any(u64),
    Last(u8),
}

impl Scalar {
    fn number(self) -> u64 {
        match self {
            Self::Small(number) => number.into(),
            Self::Page(page) => u64::from(page) << 12,
            Self::Any(number) => number,
            Self::Last(number) => u64::MAX - u64::from(number),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Memory {
    offset: Scalar,
    writable: bool,
    other: bool,
}

/// Clients at once.
const CLIENTS: usize = 3;
/// Bytes of the clients' memory at first.
const MEMORY: u64 = 64 << 10;

struct Peer<'s> {
    number: usize,
    client: Client<'s>,
    tube: Tube,
    completion: Event,
    greeted: bool,
    opened: bool,
}

/// Does it.
pub fn run(input: &Input) {
    let simulated = Simulated::new(input.nvme).unwrap();
    let ram = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&ram, MEMORY).unwrap();
    let mut peers: [Option<Peer<'_>>; CLIENTS] = [const { None }; CLIENTS];
    let mut known = Known::new(MEMORY);
    for (number, step) in &input.steps {
        // Most are the first client's, or what one registers another would remove.
        let number = usize::from(number.saturating_sub(191)) % CLIENTS;
        let slot = &mut peers[number];
        let step = match step {
            Act::Likely(likely) | Act::More(likely) => {
                if slot.is_none() {
                    *slot = connect(&simulated, number, true, true);
                }
                &Step::Likely(*likely)
            }
            Act::Other(step) => step,
        };
        match step {
            Step::Poll => simulated.poll(),
            Step::Resize(size) => {
                known.memory = u64::from(*size) * 4;
                ftruncate(&ram, known.memory).unwrap();
            }
            Step::Leave => *slot = None,
            Step::Connect { silent, closed } => {
                *slot = None;
                known.gone(number);
                *slot = connect(&simulated, number, silent.is_none(), closed.is_none());
            }
            _ => {
                let goes_on =
                    slot.as_mut().is_none_or(|peer| peer.ask(step, &simulated, &ram, &mut known));
                if !goes_on {
                    *slot = None;
                }
            }
        }
        if slot.is_none() {
            known.gone(number);
        }
        if simulated.service().is_none() {
            known.opener = None;
        }
        let opened = peers.iter().flatten().filter(|peer| peer.opened).count();
        let held = simulated.held();
        assert!(held.claims <= opened && held.clients == opened, "{held:?} of {opened}");
    }
    drop(peers);
    simulated.poll();
    assert_eq!(simulated.held(), Held::default());
}

fn connect(simulated: &Simulated, number: usize, greets: bool, opens: bool) -> Option<Peer<'_>> {
    let (client, tube) = simulated.connect().unwrap()?;
    let completion = Event::new().unwrap();
    let mut peer = Peer { number, client, tube, completion, greeted: false, opened: false };
    if greets {
        peer.tube.introduce(Role::DextClient, Deadline::now()).unwrap();
        peer.greeted = peer.client.greet();
        assert!(peer.greeted);
        peer.tube.meet(Role::DextClient, Role::Dext, Deadline::now()).unwrap();
    }
    if opens && peer.greeted {
        let service = simulated.service();
        peer.open(service.unwrap_or(0), CLIENT_TYPE);
        assert_eq!(peer.opened, service.is_some());
    }
    Some(peer)
}

impl Peer<'_> {
    /// Sends something and takes the answer; `false` when the client is served no more.
    fn ask(
        &mut self,
        step: &Step,
        simulated: &Simulated,
        ram: &OwnedFd,
        known: &mut Known,
    ) -> bool {
        if let Step::Raw { bytes, handles } = step {
            return self.raw(bytes, *handles);
        }
        if !self.greeted {
            return true;
        }
        let scalars = |all: &[Scalar]| all.iter().map(|one| one.number()).collect::<Vec<_>>();
        match step {
            Step::Services => {
                let Some(Reply::Services(services)) = self.exchange(&Request::Services, &[]) else {
                    panic!("no services")
                };
                assert_eq!(services.first().map(|one| one.id), simulated.service());
            }
            Step::Open { service, kind } => {
                let service = service.or(simulated.service()).unwrap_or(0);
                self.open(service, if *kind == 0 { CLIENT_TYPE } else { *kind });
            }
            Step::Call { selector, inputs, outputs, memory } => {
                let inputs = scalars(inputs);
                let backing = memory.map(|memory| Backing {
                    offset: memory.offset.number(),
                    writable: memory.writable,
                });
                let other = memory.is_some_and(|memory| memory.other);
                let handle =
                    if other { self.completion_handle() } else { ram.try_clone().unwrap() };
                let handles: &[_] = if memory.is_some() { &[handle.as_fd()] } else { &[] };
                let number = u32::from(*selector) % (METHODS as u32 + 2);
                let outputs = *outputs;
                let call =
                    Request::Call { selector: number, inputs: inputs.clone(), outputs, backing };
                let reply = self.exchange(&call, handles);
                let memory = backing.filter(|_| !other).map(|backing| backing.offset);
                self.judge(number, &inputs, outputs as usize, memory, reply, known);
            }
            Step::Likely(likely) => {
                let (number, inputs, memory) = likely.call();
                let backing = memory.map(|offset| Backing { offset, writable: true });
                let handles: &[_] = if memory.is_some() { &[ram.as_fd()] } else { &[] };
                let outputs = MAX_SCALARS as u32;
                let call =
                    Request::Call { selector: number, inputs: inputs.clone(), outputs, backing };
                let reply = self.exchange(&call, handles);
                self.judge(number, &inputs, MAX_SCALARS, memory, reply, known);
            }
            Step::CallAsync { selector, inputs } => {
                let inputs = scalars(inputs);
                let number = u32::from(*selector) % (METHODS as u32 + 2);
                let call = Request::CallAsync { selector: number, inputs: inputs.clone() };
                let reply = self.exchange(&call, &[]);
                self.judge(number, &inputs, 0, None, reply, known);
            }
            Step::Map { kind } => {
                let reply = self.exchange(&Request::Map { kind: (*kind).into() }, &[]);
                let Some(Reply::Return { code, outputs }) = reply else { panic!("{reply:?}") };
                let mapped = code == IoReturn::SUCCESS;
                assert!(outputs.len() == usize::from(mapped) && (self.opened || !mapped));
            }
            _ => {}
        }
        true
    }

    fn completion_handle(&self) -> OwnedFd {
        self.completion.signaller().unwrap().as_fd().try_clone_to_owned().unwrap()
    }

    fn open(&mut self, service: u64, kind: u32) {
        let handle = self.completion_handle();
        let reply = self.exchange(&Request::Open { service, kind }, &[handle.as_fd()]);
        let Some(Reply::Return { code, outputs }) = reply else { panic!("{reply:?}") };
        let opened = code == IoReturn::SUCCESS;
        assert!(outputs.is_empty() && !(opened && (self.opened || kind != CLIENT_TYPE)));
        self.opened |= opened;
    }

    /// A request that can be read, and its answer.
    fn exchange(
        &mut self,
        request: &Request,
        handles: &[std::os::fd::BorrowedFd<'_>],
    ) -> Option<Reply> {
        self.tube.send(7, request, handles, Deadline::now()).unwrap();
        assert!(self.client.serve_one(), "{request:?}");
        let received = self.tube.receive::<Reply>(Deadline::now()).unwrap();
        assert_eq!(received.id, 7);
        Some(received.message)
    }

    fn judge(
        &mut self,
        number: u32,
        inputs: &[u64],
        room: usize,
        memory: Option<u64>,
        reply: Option<Reply>,
        known: &mut Known,
    ) {
        let Some(Reply::Return { code, outputs }) = reply else { panic!("{reply:?}") };
        assert!(outputs.len() <= room.min(MAX_SCALARS), "{outputs:?} for {room}");
        let done = code == IoReturn::SUCCESS;
        let is_known = (number as usize) < METHODS;
        assert!(!done || is_known && self.opened && inputs.len() <= MAX_SCALARS);
        assert!(done || outputs.is_empty(), "{outputs:?} with {code:?}");
        if done && number == selector::CONFIG_READ {
            let width = u32::try_from(inputs[1]).unwrap();
            assert!(matches!(width, 1 | 2 | 4) && outputs[0] >> (8 * width) == 0);
        }
        if done {
            let asked = Asked { client: self.number, selector: number, inputs, memory };
            known.done(&asked);
            if matches!(number, selector::MMIO_READ | selector::MMIO_WRITE) {
                assert!(self.is_in_bar(inputs), "{inputs:?}");
            }
        }
    }

    /// Whether an access of BAR memory is aligned, and in one that there is.
    fn is_in_bar(&mut self, inputs: &[u64]) -> bool {
        let [index, offset, width] = inputs[..3] else { return false };
        let fits = |size: u64| offset.checked_add(width).is_some_and(|end| end <= size);
        matches!(width, 1 | 2 | 4 | 8)
            && offset.is_multiple_of(width)
            && (0..6).any(|bar| {
                let (selector, inputs) = (selector::GET_BAR_INFO, vec![bar]);
                let call = Request::Call { selector, inputs, outputs: 3, backing: None };
                match self.exchange(&call, &[]) {
                    Some(Reply::Return { code: IoReturn::SUCCESS, outputs }) => {
                        outputs[0] == index && fits(outputs[1])
                    }
                    _ => false,
                }
            })
    }

    /// Bytes that are no request, most of the time.
    fn raw(&mut self, bytes: &[u8], handles: u8) -> bool {
        let handle = self.completion_handle();
        let handles = vec![handle.as_fd(); usize::from(handles) % 33];
        if bytes.is_empty() || cordon_ipc::rights::send(&self.tube, bytes, &handles).is_err() {
            return true;
        }
        let before = self.greeted;
        let goes_on = if before { self.client.serve_one() } else { self.client.greet() };
        self.greeted |= goes_on;
        // Of what these bytes were nothing is known: this client is looked at no more.
        let _ = goes_on;
        false
    }
}
