//! A companion's doorbells, from the ring in guest RAM to the registrations of the connection process
//! (`cordon_device_proc`): the guest rewrites its memory after each access, and between them a function
//! process that lies sends batches of its own.
//!
//! Asserted: the page and the requests are read once each, and what is asked for is what was read then;
//! nothing is written but the status and the responses; nothing is allocated beyond a batch; the guest
//! is told what became of each entry; what is registered lies in guest memory, and goes when its batch
//! is abandoned.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use arbitrary::Arbitrary;
use cordon_device_proc::connection::fuzzing::Served;
use cordon_device_proc::function::ring::{self, Batch, GuestMemory, status};
use cordon_ipc::wire::connection::DmaEntry;
use cordon_ipc::wire::dma::{MAX_BATCH, Outcome, Reply, Request};
use cordon_ipc::wire::function::Layout;
use cordon_ipc::{Deadline, Tube};

use crate::allocations::largest;
use crate::lists;

/// A guest, and what it does.
#[derive(Arbitrary, Debug)]
pub struct Input {
    wide: bool,
    max_entries: u16,
    content: Vec<(u16, Vec<u8>)>,
    #[arbitrary(with = lists::rest)]
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A doorbell, with what is in the page before, and what is written after each access.
    Ring { page: Option<u16>, command: Option<Command>, rewrites: Vec<(u16, Vec<u8>)>, fewer: u8 },
    /// A function process that asks by itself.
    Ask(Asked),
    /// The guest was told that the last batch failed.
    Abandon { another: Option<u8> },
}

/// A command that makes sense, mostly.
#[derive(Arbitrary, Debug)]
struct Command {
    kind: u8,
    count: u8,
    requests: u16,
    responses: u16,
    entries: Vec<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Asked {
    Map(Vec<(u8, u8)>),
    Unmap(Vec<u8>),
    /// Addresses and sizes that no guest memory has.
    Anywhere {
        key: u64,
        address: u64,
        size: u64,
    },
}

/// Guest RAM: the ring is in the first of the regions that the connection process knows.
const BASE: u64 = 0x1_0000;
const BYTES: usize = 0x4000;
const REGIONS: [(u64, u64); 2] = [(BASE, 0x1_0000), (0x4_0000, 0x8000)];

fn layout(wide: bool) -> Layout {
    if wide { Layout::Packed64 } else { Layout::Packed32 }
}

/// Guest RAM that changes after each access.
struct Ram {
    bytes: RefCell<Vec<u8>>,
    rewrites: RefCell<VecDeque<(u16, Vec<u8>)>>,
    reads: RefCell<Vec<(u64, Vec<u8>)>>,
    writes: RefCell<Vec<(u64, Vec<u8>)>>,
    asked: Cell<u32>,
}

fn range(address: u64, length: u64) -> Option<Range<usize>> {
    let start = address.checked_sub(BASE)?;
    let end = start.checked_add(length).filter(|end| *end <= BYTES as u64)?;
    Some(start as usize..end as usize)
}

impl Ram {
    fn put(&self, at: u16, bytes: &[u8]) {
        let at = usize::from(at) % BYTES;
        for (to, from) in self.bytes.borrow_mut().iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// What another processor does meanwhile.
    fn changes(&self) {
        let next = self.rewrites.borrow_mut().pop_front();
        if let Some((at, bytes)) = next {
            self.put(at, &bytes);
        }
    }
}

impl GuestMemory for Ram {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(range) = range(address, into.len() as u64) else { return false };
        into.copy_from_slice(&self.bytes.borrow()[range]);
        self.reads.borrow_mut().push((address, into.to_vec()));
        self.changes();
        true
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        let Some(range) = range(address, from.len() as u64) else { return false };
        self.bytes.borrow_mut()[range].copy_from_slice(from);
        self.writes.borrow_mut().push((address, from.to_vec()));
        self.changes();
        true
    }

    fn is_writable(&self, address: u64, length: u64) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.changes();
        range(address, length).is_some()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

struct Model {
    wide: bool,
    max_entries: u32,
    ram: Ram,
    served: Served,
    tube: Tube,
    /// Number of the last batch, and what it registered.
    batch: u64,
    of_batch: BTreeMap<u64, u64>,
    is_over: bool,
}

/// Does it.
pub fn run(input: &Input) {
    let (served, tube) = Served::new(&REGIONS).unwrap();
    let bytes = RefCell::new(vec![0; BYTES]);
    let (rewrites, reads, writes) = (RefCell::default(), RefCell::default(), RefCell::default());
    let ram = Ram { bytes, rewrites, reads, writes, asked: Cell::new(0) };
    input.content.iter().for_each(|(at, bytes)| ram.put(*at, bytes));
    // As few as a command here has entries, and as many as there may be.
    let most = if input.max_entries.is_multiple_of(4) { MAX_BATCH as u32 } else { 8 };
    let max_entries = u32::from(input.max_entries) / 4 % most + 1;
    let (wide, of_batch) = (input.wide, BTreeMap::new());
    let mut model =
        Model { wide, max_entries, ram, served, tube, batch: 0, of_batch, is_over: false };
    for step in &input.steps {
        match step {
            Step::Ring { page, command, rewrites, fewer } => {
                // Three of four are in guest RAM.
                let inside = |page: u16| if page < 0xc000 { page % BYTES as u16 } else { page };
                model.ring(page.map(inside), command.as_ref(), rewrites, *fewer);
            }
            Step::Ask(asked) => model.ask(asked),
            Step::Abandon { another } => model.abandon(*another),
        }
        if model.is_over {
            break;
        }
        model.assert_in_memory();
    }
}

impl Model {
    fn ring(
        &mut self,
        page: Option<u16>,
        command: Option<&Command>,
        rewrites: &[(u16, Vec<u8>)],
        fewer: u8,
    ) {
        if let (Some(page), Some(command)) = (page, command) {
            self.write_command(page, command);
        }
        let page = page.map(|page| BASE + u64::from(page));
        *self.ram.rewrites.borrow_mut() = rewrites.iter().cloned().collect();
        self.ram.reads.borrow_mut().clear();
        self.ram.writes.borrow_mut().clear();
        self.ram.asked.set(0);
        let layout = layout(self.wide);
        let (begun, allocated) = largest(|| ring::begin(&self.ram, layout, self.max_entries, page));
        assert!(allocated <= 32 * self.max_entries as usize + 4096, "{allocated} bytes at once");
        let wanted = self.wanted(page);
        let (batch, pending) = match begun {
            Err(code) => {
                assert_eq!((code, wanted), (status::INVALID, None));
                self.assert_written(page, None, status::INVALID);
                return;
            }
            Ok(begun) => begun,
        };
        assert_eq!(Some(&batch), wanted.as_ref(), "what was read once");
        let (outcomes, keys) = match batch {
            Batch::Map(entries) => {
                let keys: Vec<u64> = entries.iter().map(|entry| entry.key).collect();
                (
                    self.carry_out(|batch, timeout_ms| Request::Map { batch, timeout_ms, entries }),
                    keys,
                )
            }
            Batch::Unmap(keys) => {
                let asked = keys.clone();
                (
                    self.carry_out(|batch, timeout_ms| Request::Unmap { batch, timeout_ms, keys }),
                    asked,
                )
            }
        };
        let Some(mut outcomes) = outcomes else { return };
        assert_eq!(outcomes.len(), keys.len());
        // A connection process that answers less than it was asked.
        outcomes.truncate(outcomes.len().saturating_sub(usize::from(fewer % 3)));
        let done = outcomes.iter().filter(|one| !matches!(one, Outcome::Failed(_))).count();
        self.ram.writes.borrow_mut().clear();
        let finished = pending.finish(&self.ram, &outcomes);
        assert!(finished.is_told, "the responses were writable before");
        let all = if done == keys.len() { status::OK } else { status::IO_ERROR };
        assert_eq!(finished.status, all);
        self.assert_written(page, Some((&keys, &outcomes)), all);
    }

    /// Puts a command and its requests in guest RAM.
    fn write_command(&self, page: u16, command: &Command) {
        let (kind, count) = (u32::from(command.kind % 4), u32::from(command.count % 9));
        let [requests, responses] =
            [command.requests, command.responses].map(|at| BASE + u64::from(at) % BYTES as u64);
        let head = [kind, count, 0xffff_ffff, 0].map(u32::to_le_bytes).concat();
        let places = [requests, responses].map(u64::to_le_bytes).concat();
        let mut entries = Vec::new();
        for (page, pages) in &command.entries {
            let DmaEntry { address, size, .. } = entry(*page, *pages);
            entries.extend_from_slice(&address.to_le_bytes());
            if self.wide && kind == 1 {
                entries.extend_from_slice(&size.to_le_bytes());
                entries.extend_from_slice(&[0; 4]);
            } else if kind == 1 {
                entries.extend_from_slice(&(size as u32).to_le_bytes());
                entries.extend_from_slice(&[0; 4]);
            } else {
                entries.extend_from_slice(&size.to_le_bytes());
            }
        }
        self.ram.put((requests - BASE) as u16, &entries);
        self.ram.put(page, &[head, places].concat());
    }

    /// What the copies that were made come to; `None` for what makes no sense.
    fn wanted(&self, page: Option<u64>) -> Option<Batch> {
        let reads = self.ram.reads.borrow();
        assert!(reads.len() <= 2 && self.ram.asked.get() <= 1, "each is looked at once");
        let (at, command) = reads.first()?;
        assert_eq!((Some(*at), command.len()), (page, 32));
        let (kind, count) = (word(command, 0), word(command, 4));
        let is_map = kind == 1;
        if !matches!(kind, 1 | 2) || count == 0 || count > self.max_entries {
            assert!(reads.len() == 1);
            return None;
        }
        let (request, response) = match (is_map, self.wide) {
            (true, true) => (20, 28),
            (true, false) => (16, 24),
            (false, _) => (16, 16),
        };
        let (requests, responses) = (double(command, 16), double(command, 24));
        let lies = |at: u64, size: u64| range(at, u64::from(count) * size).is_some();
        if !lies(requests, request) || !lies(responses, response) {
            assert!(reads.len() == 1);
            return None;
        }
        let (at, bytes) = reads.get(1).expect("the requests are read");
        assert_eq!((*at, bytes.len() as u64), (requests, u64::from(count) * request));
        let entries = bytes.chunks(request as usize);
        Some(if is_map {
            Batch::Map(
                entries
                    .map(|one| {
                        let size = if self.wide { double(one, 8) } else { word(one, 8).into() };
                        let address = double(one, 0);
                        DmaEntry { key: address, address, size }
                    })
                    .collect(),
            )
        } else {
            Batch::Unmap(entries.map(|one| double(one, 0)).collect())
        })
    }

    /// Nothing was written but the responses, if there are any, and the status behind them.
    fn assert_written(&self, page: Option<u64>, told: Option<(&[u64], &[Outcome])>, code: u32) {
        let writes = self.ram.writes.borrow();
        let mut writes = writes.iter();
        if let Some((keys, outcomes)) = told {
            let (at, bytes) = writes.next().expect("responses");
            let reads = self.ram.reads.borrow();
            assert_eq!(*at, double(&reads[0].1, 24));
            let each = bytes.chunks(bytes.len() / keys.len());
            for (number, (one, key)) in each.zip(keys).enumerate() {
                let (outcome, is_map) = (outcomes.get(number), word(&reads[0].1, 0) == 1);
                assert_eq!(double(one, 0), *key);
                let failed = matches!(outcome, None | Some(Outcome::Failed(_)));
                let place = if is_map { one.len() - 4 } else { 8 };
                assert_eq!(word(one, place) != status::OK, failed);
                if let Some(Outcome::Mapped { bus_address, bus_length }) = outcome {
                    assert_eq!(double(one, 8), *bus_address);
                    let length = &one[16..place];
                    assert_eq!(length, &bus_length.to_le_bytes()[..length.len()]);
                }
            }
        }
        let last = writes.next();
        assert!(writes.next().is_none());
        match last {
            Some((at, bytes)) => {
                assert_eq!(
                    (Some(*at), &bytes[..]),
                    (page.map(|page| page + 8), &code.to_le_bytes()[..])
                );
            }
            None => assert!(page.is_none_or(|page| range(page, 32).is_none())),
        }
    }

    /// The connection process carries a batch out; what it answers, if it does.
    fn carry_out(&mut self, request: impl FnOnce(u64, u32) -> Request) -> Option<Vec<Outcome>> {
        let before: BTreeMap<u64, u64> = self.served.registered().into_iter().collect();
        self.batch += 1;
        let request = request(self.batch, 60_000);
        self.tube.send(1, &request, &[], Deadline::now()).unwrap();
        assert!(self.served.serve_one());
        while self.served.has_work() {
            assert!(self.served.work(Deadline::now()));
        }
        let reply = self.tube.receive::<Reply>(Deadline::now()).unwrap().message;
        let Ok(outcomes) = reply else {
            assert_eq!(before, self.served.registered().into_iter().collect());
            self.of_batch.clear();
            return None;
        };
        let after: BTreeMap<u64, u64> = self.served.registered().into_iter().collect();
        self.of_batch = after.clone();
        self.of_batch.retain(|key, _| !before.contains_key(key));
        self.judge(&request, &outcomes, &before, &after);
        Some(outcomes)
    }

    /// Whether outcomes say what was done.
    fn judge(
        &self,
        request: &Request,
        outcomes: &[Outcome],
        before: &BTreeMap<u64, u64>,
        after: &BTreeMap<u64, u64>,
    ) {
        match request {
            Request::Map { entries, .. } => {
                let mut known = before.clone();
                for (entry, outcome) in entries.iter().zip(outcomes) {
                    let is_new = !known.contains_key(&entry.key) && lies(entry);
                    let is_mapped = matches!(outcome, Outcome::Mapped { .. });
                    assert_eq!(is_mapped, is_new, "{entry:?}");
                    if is_mapped {
                        known.insert(entry.key, entry.size);
                    }
                }
                assert_eq!(&known, after);
            }
            Request::Unmap { keys, .. } => {
                let mut known = before.clone();
                for (key, outcome) in keys.iter().zip(outcomes) {
                    let was_there = known.remove(key).is_some();
                    // One that its guest believes in may be told to go although it is gone.
                    assert!(!was_there || *outcome == Outcome::Unmapped, "{key:#x}");
                }
                assert_eq!(&known, after);
            }
            Request::Abandon { .. } => {}
        }
    }

    fn ask(&mut self, asked: &Asked) {
        match asked {
            Asked::Map(entries) => {
                let entries: Vec<_> = entries.iter().map(|(at, size)| entry(*at, *size)).collect();
                self.carry_out(|batch, timeout_ms| Request::Map { batch, timeout_ms, entries });
            }
            Asked::Unmap(keys) => {
                let keys: Vec<u64> = keys.iter().map(|at| entry(*at, 0).key).collect();
                self.carry_out(|batch, timeout_ms| Request::Unmap { batch, timeout_ms, keys });
            }
            Asked::Anywhere { key, address, size } => {
                let entries = vec![DmaEntry { key: *key, address: *address, size: *size }];
                self.carry_out(|batch, timeout_ms| Request::Map { batch, timeout_ms, entries });
            }
        }
    }

    fn abandon(&mut self, another: Option<u8>) {
        let batch = another.map_or(self.batch, u64::from);
        let before: BTreeMap<u64, u64> = self.served.registered().into_iter().collect();
        self.tube.send(0, &Request::Abandon { batch }, &[], Deadline::now()).unwrap();
        assert!(self.served.serve_one());
        while self.served.has_work() {
            assert!(self.served.work(Deadline::now()));
        }
        let mut wanted = before;
        if batch == self.batch {
            wanted.retain(|key, _| !self.of_batch.contains_key(key));
        }
        assert_eq!(wanted, self.served.registered().into_iter().collect());
        self.batch = self.batch.max(batch);
        self.of_batch.clear();
    }

    /// What is registered lies in one region each.
    fn assert_in_memory(&self) {
        for (key, size) in self.served.registered() {
            let entry = DmaEntry { key, address: key, size };
            assert!(size > 0 && (lies(&entry) || key != entry.address), "{key:#x}+{size:#x}");
        }
    }
}

/// An entry near guest memory, in pages.
fn entry(page: u8, pages: u8) -> DmaEntry {
    let page = if page < 208 { 0x0e + u64::from(page) % 20 } else { (page - 208).into() };
    let address = page << 12;
    DmaEntry { key: address, address, size: u64::from(pages % 8) << 12 }
}

/// Whether a range lies in one region of guest memory.
fn lies(entry: &DmaEntry) -> bool {
    let DmaEntry { address, size, .. } = *entry;
    let end = address.checked_add(size).filter(|_| size > 0);
    REGIONS
        .iter()
        .any(|(base, length)| *base <= address && end.is_some_and(|end| end <= base + length))
}
