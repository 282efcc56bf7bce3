//! The companion's ring: a command page and two arrays in guest RAM (C2, C3).
//!
//! The guest, and its other processors, change this memory at any moment. So every field is copied
//! out once and only the copy is looked at; every sum and product is checked; nothing is allocated
//! by more than the entries that a batch may have. What the guest lets overlap is its own affair.

use ipc::wire::connection::DmaEntry;
use ipc::wire::dma::Outcome;
use ipc::wire::function::Layout;

/// Guest RAM as the ring sees it.
pub trait GuestMemory {
    /// Copies out what lies in RAM; `false` and nothing if it does not.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
    /// Copies into RAM that may be written; `false` and nothing if it may not.
    fn write(&self, address: u64, from: &[u8]) -> bool;
    /// Whether a range lies in RAM that may be written.
    fn is_writable(&self, address: u64, length: u64) -> bool;
}

/// Results of a doorbell (C2.2).
pub mod status {
    /// All of it is done.
    pub const OK: u32 = 0;
    /// At least one entry failed.
    pub const IO_ERROR: u32 = 1;
    /// The command makes no sense.
    pub const INVALID: u32 = 3;
}

/// Bytes of the command page that are used.
const COMMAND: usize = 32;
/// Where the status is written back.
const STATUS: u64 = 8;

/// What a batch asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Register these.
    Map(Vec<DmaEntry>),
    /// Remove these keys.
    Unmap(Vec<u64>),
}

/// Begins one batch: reads the command page at `page` and its requests. What is asked for, and what is
/// to be finished once that is done; or the status of a command that makes no sense, which is the
/// register's too.
///
/// # Errors
/// [`status::INVALID`].
pub fn begin(
    memory: &impl GuestMemory,
    layout: Layout,
    max_entries: u32,
    page: Option<u64>,
) -> Result<(Batch, Pending), u32> {
    let mut command = [0; COMMAND];
    let page = page.filter(|page| memory.read(*page, &mut command)).ok_or(status::INVALID)?;
    let command = Command::parse(&command, layout, max_entries);
    let begun = command.and_then(|command| command.begin(memory, layout, page));
    begun.ok_or_else(|| {
        tell(memory, page, status::INVALID);
        status::INVALID
    })
}

/// Writes a status to the command page. One that cannot be written has none; the register does.
fn tell(memory: &impl GuestMemory, page: u64, status: u32) {
    memory.write(page.wrapping_add(STATUS), &status.to_le_bytes());
}

/// A batch that is being carried out: all of it that is still needed is here, and nothing that was
/// read is read again.
#[derive(Debug)]
pub struct Pending {
    command: Command,
    layout: Layout,
    page: u64,
    keys: Vec<u64>,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The status, which is the register's too.
    pub status: u32,
    /// Whether the guest knows what became of each entry. It does not where its responses lie in
    /// memory that went meanwhile: all it sees is that the batch failed.
    pub is_told: bool,
}

impl Pending {
    /// Writes what became of each entry, and the status. Entries without an outcome failed.
    pub fn finish(self, memory: &impl GuestMemory, outcomes: &[Outcome]) -> Finished {
        let Self { command, layout, page, keys } = self;
        let mut failed = false;
        let mut responses = Vec::with_capacity(keys.len() * command.response(layout));
        for (number, key) in keys.into_iter().enumerate() {
            let outcome = outcomes.get(number).copied();
            failed |= !command.respond(layout, key, outcome, &mut responses);
        }
        let is_told = memory.write(command.responses, &responses);
        let status = if is_told && !failed { status::OK } else { status::IO_ERROR };
        tell(memory, page, status);
        Finished { status, is_told }
    }
}

/// A command page that makes sense so far.
#[derive(Debug)]
struct Command {
    map: bool,
    count: usize,
    requests: u64,
    responses: u64,
}

impl Command {
    fn parse(bytes: &[u8; COMMAND], layout: Layout, max_entries: u32) -> Option<Self> {
        let count = word(bytes, 4);
        let map = match word(bytes, 0) {
            1 => true,
            2 => false,
            _ => return None,
        };
        if count == 0 || count > max_entries {
            return None;
        }
        let (requests, responses) = (double(bytes, 16), double(bytes, 24));
        let count = usize::try_from(count).ok()?;
        let command = Self { map, count, requests, responses };
        let lies = |address: u64, size: usize| {
            let length = u64::try_from(count.checked_mul(size)?).ok()?;
            address.checked_add(length).filter(|_| address != 0)
        };
        lies(requests, command.request(layout))?;
        lies(responses, command.response(layout))?;
        Some(command)
    }

    /// Bytes of a request (C3).
    fn request(&self, layout: Layout) -> usize {
        match (self.map, layout) {
            (true, Layout::Packed32) => 16,
            (true, Layout::Packed64) => 20,
            (false, _) => 16,
        }
    }

    /// Bytes of a response (C3).
    fn response(&self, layout: Layout) -> usize {
        match (self.map, layout) {
            (true, Layout::Packed32) => 24,
            (true, Layout::Packed64) => 28,
            (false, _) => 16,
        }
    }

    fn begin(
        self,
        memory: &impl GuestMemory,
        layout: Layout,
        page: u64,
    ) -> Option<(Batch, Pending)> {
        let answers = self.count * self.response(layout);
        if !memory.is_writable(self.responses, answers as u64) {
            return None;
        }
        let mut requests = vec![0; self.count * self.request(layout)];
        if !memory.read(self.requests, &mut requests) {
            return None;
        }
        let entries = requests.chunks_exact(self.request(layout));
        let (batch, keys) = if self.map {
            let entries: Vec<_> = entries.map(|entry| map_entry(entry, layout)).collect();
            let keys: Vec<u64> = entries.iter().map(|entry| entry.key).collect();
            (Batch::Map(entries), keys)
        } else {
            let keys: Vec<u64> = entries.map(|entry| double(entry, 0)).collect();
            (Batch::Unmap(keys.clone()), keys)
        };
        Some((batch, Pending { command: self, layout, page, keys }))
    }

    /// One response (C3.3, C3.4); whether its entry succeeded.
    fn respond(
        &self,
        layout: Layout,
        key: u64,
        outcome: Option<Outcome>,
        responses: &mut Vec<u8>,
    ) -> bool {
        let (bus, length, done) = match outcome {
            Some(Outcome::Mapped { bus_address, bus_length }) if self.map => {
                (bus_address, bus_length, true)
            }
            Some(Outcome::Unmapped) if !self.map => (0, 0, true),
            _ => (0, 0, false),
        };
        let status = if done { status::OK } else { status::IO_ERROR };
        responses.extend_from_slice(&key.to_le_bytes());
        if self.map {
            responses.extend_from_slice(&bus.to_le_bytes());
            let length = length.to_le_bytes();
            responses.extend_from_slice(match layout {
                Layout::Packed32 => &length[..4],
                Layout::Packed64 => &length[..],
            });
        }
        responses.extend_from_slice(&status.to_le_bytes());
        if !self.map {
            responses.extend_from_slice(&[0; 4]);
        }
        done
    }
}

/// A map request; its flags are ignored (C3.1).
fn map_entry(entry: &[u8], layout: Layout) -> DmaEntry {
    let address = double(entry, 0);
    let size = match layout {
        Layout::Packed32 => word(entry, 8).into(),
        Layout::Packed64 => double(entry, 8),
    };
    DmaEntry { key: address, address, size }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn double(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::wire::common::FailureKind;
    use proptest::prelude::*;
    use std::cell::RefCell;

    const BASE: u64 = 0x1000;
    const MAX: u32 = 64;

    /// RAM from [`BASE`], in which another processor rewrites what was just read.
    struct Ram {
        bytes: RefCell<Vec<u8>>,
        reads: RefCell<Vec<(u64, usize)>>,
        hostile: bool,
    }

    impl Ram {
        fn new(size: usize) -> Self {
            let (bytes, reads) = (RefCell::new(vec![0; size]), RefCell::default());
            Self { bytes, reads, hostile: false }
        }

        fn range(&self, address: u64, length: usize) -> Option<std::ops::Range<usize>> {
            let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
            let end = start.checked_add(length)?;
            (end <= self.bytes.borrow().len()).then_some(start..end)
        }

        fn put(&self, address: u64, bytes: &[u8]) {
            assert!(self.write(address, bytes));
        }

        fn command(&self, kind: u32, count: u32, requests: u64, responses: u64) {
            self.put(BASE, &[kind.to_le_bytes(), count.to_le_bytes()].concat());
            self.put(BASE + 16, &[requests.to_le_bytes(), responses.to_le_bytes()].concat());
        }

        fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
            let range = self.range(address, length).unwrap();
            self.bytes.borrow()[range].to_vec()
        }
    }

    impl GuestMemory for Ram {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            let Some(range) = self.range(address, into.len()) else { return false };
            into.copy_from_slice(&self.bytes.borrow()[range.clone()]);
            self.reads.borrow_mut().push((address, into.len()));
            if self.hostile {
                self.bytes.borrow_mut()[range].fill(0xff);
            }
            true
        }

        fn write(&self, address: u64, from: &[u8]) -> bool {
            let Some(range) = self.range(address, from.len()) else { return false };
            self.bytes.borrow_mut()[range].copy_from_slice(from);
            true
        }

        fn is_writable(&self, address: u64, length: u64) -> bool {
            usize::try_from(length).is_ok_and(|length| self.range(address, length).is_some())
        }
    }

    /// Bus address = address + 1, bus length = size; refuses what has no size.
    fn register(batch: Batch) -> Vec<Outcome> {
        match batch {
            Batch::Map(entries) => entries
                .iter()
                .map(|entry| match entry.size {
                    0 => Outcome::Failed(FailureKind::InvalidArgument),
                    bus_length => {
                        Outcome::Mapped { bus_address: entry.address.wrapping_add(1), bus_length }
                    }
                })
                .collect(),
            Batch::Unmap(keys) => keys.iter().map(|_| Outcome::Unmapped).collect(),
        }
    }

    /// A batch that is carried out at once.
    fn carry_out(
        ram: &Ram,
        layout: Layout,
        max_entries: u32,
        page: Option<u64>,
        register: impl FnOnce(Batch) -> Vec<Outcome>,
    ) -> u32 {
        match begin(ram, layout, max_entries, page) {
            Ok((batch, pending)) => pending.finish(ram, &register(batch)).status,
            Err(status) => status,
        }
    }

    fn ring(ram: &Ram, layout: Layout) -> u32 {
        carry_out(ram, layout, MAX, Some(BASE), register)
    }

    #[test]
    fn c3_1_c3_3_map_in_both_layouts() {
        let ram = Ram::new(0x1000);
        ram.put(BASE + 0x100, &[&0x4000u64.to_le_bytes()[..], &[0, 2, 0, 0, 9, 9, 9, 9]].concat());
        ram.command(1, 1, BASE + 0x100, BASE + 0x200);
        assert_eq!(ring(&ram, Layout::Packed32), status::OK);
        let expected = [
            &0x4000u64.to_le_bytes()[..],
            &0x4001u64.to_le_bytes(),
            &0x200u32.to_le_bytes(),
            &0u32.to_le_bytes(),
        ];
        assert_eq!(ram.bytes(BASE + 0x200, 24), expected.concat());
        let wide = 0x1_0000_0000u64;
        let entry = [&0x4000u64.to_le_bytes()[..], &wide.to_le_bytes(), &[9; 4]].concat();
        ram.put(BASE + 0x100, &entry);
        assert_eq!(ring(&ram, Layout::Packed64), status::OK);
        let expected = [
            &0x4000u64.to_le_bytes()[..],
            &0x4001u64.to_le_bytes(),
            &wide.to_le_bytes(),
            &0u32.to_le_bytes(),
        ];
        assert_eq!(ram.bytes(BASE + 0x200, 28), expected.concat());
    }

    #[test]
    fn c3_2_c3_4_unmap_is_the_same_in_both_layouts() {
        for layout in [Layout::Packed32, Layout::Packed64] {
            let ram = Ram::new(0x1000);
            ram.put(BASE + 0x100, &[0x4000u64.to_le_bytes(), 7u64.to_le_bytes()].concat());
            ram.command(2, 1, BASE + 0x100, BASE + 0x200);
            ram.put(BASE + 0x200, &[0xff; 16]);
            assert_eq!(ring(&ram, layout), status::OK);
            let expected = [0x4000u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
            assert_eq!(ram.bytes(BASE + 0x200, 16), expected);
        }
    }

    #[test]
    fn c2_2_a_failed_entry_does_not_stop_the_others() {
        let ram = Ram::new(0x1000);
        let entry = |address: u64, size: u32| {
            [&address.to_le_bytes()[..], &size.to_le_bytes(), &[0; 4]].concat()
        };
        ram.put(BASE + 0x100, &[entry(0x4000, 16), entry(0x5000, 0), entry(0x6000, 16)].concat());
        ram.command(1, 3, BASE + 0x100, BASE + 0x200);
        assert_eq!(ring(&ram, Layout::Packed32), status::IO_ERROR);
        let response = |number: u64| ram.bytes(BASE + 0x200 + 24 * number, 24);
        assert_eq!(response(1)[..8], 0x5000u64.to_le_bytes());
        assert_eq!(response(1)[8..], [&[0; 12][..], &1u32.to_le_bytes()].concat());
        assert_eq!(response(2)[8..16], 0x6001u64.to_le_bytes());
        assert_eq!(ram.bytes(BASE + 8, 4), status::IO_ERROR.to_le_bytes());
    }

    #[test]
    fn c2_3_commands_that_make_no_sense_are_invalid() {
        let (requests, responses) = (BASE + 0x100, BASE + 0x200);
        for (kind, count, requests, responses) in [
            (0, 1, requests, responses),
            (3, 1, requests, responses),
            (1, 0, requests, responses),
            (1, MAX + 1, requests, responses),
            (1, u32::MAX, requests, responses),
            (1, 1, 0, responses),
            (1, 1, requests, 0),
            (1, 1, 0x10, responses),
            (1, 1, requests, 0x10),
            (1, 1, u64::MAX, responses),
            (1, 1, requests, u64::MAX - 7),
            (2, 1, BASE + 0x1000 - 15, responses),
            (2, 1, requests, BASE + 0x1000 - 15),
        ] {
            let ram = Ram::new(0x1000);
            ram.command(kind, count, requests, responses);
            let none = |_| -> Vec<Outcome> { panic!("{kind} {count} {requests:#x}") };
            let status = carry_out(&ram, Layout::Packed32, MAX, Some(BASE), none);
            assert_eq!(status, status::INVALID, "{kind} {count} {requests:#x} {responses:#x}");
            assert_eq!(ram.bytes(BASE + 8, 4), status::INVALID.to_le_bytes());
        }
        let ram = Ram::new(0x1000);
        for page in [None, Some(0), Some(BASE - 1), Some(BASE + 0x1000 - 31), Some(u64::MAX)] {
            let none = |_| -> Vec<Outcome> { panic!("{page:?}") };
            assert_eq!(carry_out(&ram, Layout::Packed32, MAX, page, none), status::INVALID);
        }
    }

    proptest! {
        #[test]
        fn c4_1_every_byte_is_read_once_whatever_the_guest_does_meanwhile(
            kind in 0u32..4, count in 0u32..80, requests in 0u64..0x1400, responses in 0u64..0x1400,
            page in 0u64..0x1400, wide: bool, content in proptest::collection::vec(any::<u8>(), 0x1000),
        ) {
            let mut ram = Ram::new(0x1000);
            ram.bytes.borrow_mut().copy_from_slice(&content);
            let at = BASE - 0x200 + page;
            ram.write(at, &[kind.to_le_bytes(), count.to_le_bytes()].concat());
            let arrays = [BASE - 0x200 + requests, BASE - 0x200 + responses];
            ram.write(at.wrapping_add(16), &arrays.map(u64::to_le_bytes).concat());
            ram.hostile = true;
            let layout = if wide { Layout::Packed64 } else { Layout::Packed32 };
            let mut asked = 0;
            let status = carry_out(&ram, layout, MAX, Some(at), |batch| {
                asked = match &batch {
                    Batch::Map(entries) => entries.len(),
                    Batch::Unmap(keys) => keys.len(),
                };
                register(batch)
            });
            prop_assert!([status::OK, status::IO_ERROR, status::INVALID].contains(&status));
            prop_assert!(asked <= MAX as usize);
            // One look at the command page, one at the requests.
            prop_assert!(ram.reads.borrow().len() <= 2);
            prop_assert_eq!(asked > 0, status != status::INVALID);
        }

        #[test]
        fn c4_2_any_page_in_any_memory_is_a_status(
            content in proptest::collection::vec(any::<u8>(), 0..0x400), page: u64, near: bool,
            fewer in 0usize..4,
        ) {
            let ram = Ram::new(content.len());
            ram.bytes.borrow_mut().copy_from_slice(&content);
            let page = if near { BASE + page % 0x400 } else { page };
            // A connection process that answers less than it was asked.
            let status = carry_out(&ram, Layout::Packed64, 4096, Some(page), |batch| {
                let mut outcomes = register(batch);
                outcomes.truncate(outcomes.len().saturating_sub(fewer));
                outcomes
            });
            prop_assert!([status::OK, status::IO_ERROR, status::INVALID].contains(&status));
        }
    }
}
