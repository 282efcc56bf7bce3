//! Claims, windows and registrations of one function, against the fake dext.

use super::batch::Work;
use super::*;
use dext_client::fake::Fake;
use ipc::SharedMemory;
use ipc::wire::connection::DmaEntry;
use ipc::wire::dext::{IoReturn, selector};
use ipc::wire::dma::{Outcome, Reply};
use std::time::Duration;

fn attached() -> (Fake, ClaimedFunction) {
    let (fake, client) = Fake::client();
    fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
    let mut function = ClaimedFunction::new(Box::new(client), Windows::Handed);
    function.attach().unwrap();
    fake.recover(selector::REGISTER_DMA_REGION);
    let ram = SharedMemory::create("ram", 0x10000).unwrap().into_fd();
    function.memory.add(0x10000, 0x10000, ram, 0, true).unwrap();
    (fake, function)
}

fn entry(key: u64, address: u64, size: u64) -> DmaEntry {
    DmaEntry { key, address, size }
}

#[test]
fn attaching_claims_and_exports_the_windows() {
    let (fake, client) = Fake::client();
    fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
    let mut function = ClaimedFunction::new(Box::new(client), Windows::Handed);
    let (attached, handles) = function.attach().unwrap();
    assert_eq!(fake.calls_of(selector::CLAIM).len(), 1);
    let windows: Vec<_> = attached.windows.iter().map(|w| (w.bar, w.offset, w.length)).collect();
    // Whole pages of this system, the MSI-X structures left out.
    let granule = Granule::new(rustix::param::page_size() as u64).unwrap();
    let msix = MsixCapability {
        offset: 0x40,
        vectors: 32,
        table_bar: 0,
        table_offset: 0x8000,
        pba_bar: 0,
        pba_offset: 0xc000,
    };
    let mut expected = Vec::new();
    for (bar, info) in (0u8..).zip(attached.bars) {
        let Some(info) = info else { continue };
        let placed = placement::place(bar, pci::bar(&info), info.size, granule, Some(&msix));
        expected.extend(placed.iter().map(|one| (bar, one.offset, one.length)));
    }
    assert_eq!(windows, expected);
    assert!(windows.contains(&(2, 0, 0x10000)), "{windows:x?}");
    assert_eq!(handles.len(), expected.len());
    assert_eq!(function.attach().unwrap_err().kind, FailureKind::Busy);
}

#[test]
fn p1_1_a_function_that_somebody_else_claimed_is_left_alone() {
    let (fake, client) = Fake::client();
    fake.fail(selector::REGISTER_DMA_REGION, IoReturn::BAD_ARGUMENT);
    let refused = ClaimedFunction::new(Box::new(client), Windows::Handed).attach().unwrap_err();
    assert_eq!(refused.kind, FailureKind::Busy);
    assert!(refused.message.contains("01:00.0"), "{}", refused.message);
    assert_eq!(fake.calls_of(selector::CLAIM).len(), 0);
}

#[test]
fn p7_4_a_bar_that_cannot_be_mapped_is_a_warning_with_bar_device_and_code() {
    let (fake, client) = Fake::client();
    fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
    fake.fail_map(2);
    let (attached, _) = ClaimedFunction::new(Box::new(client), Windows::Handed).attach().unwrap();
    let [warning] = &attached.warnings[..] else { panic!("{:?}", attached.warnings) };
    for part in ["BAR 2", "01:00.0", "0xe00002c2"] {
        assert!(warning.contains(part), "{warning}");
    }
}

#[test]
fn p2_4_a_range_is_registered_once_under_its_key_and_removed_by_it() {
    let (fake, mut function) = attached();
    let mapped = function.map(&entry(0x10000, 0x10000, 0x4000));
    assert_eq!(mapped.unwrap().address, 0x10000);
    let refused = function.map(&entry(0x10000, 0x10000, 0x4000)).unwrap_err();
    assert_eq!(refused.code, Some(IoReturn::STILL_OPEN.0));
    assert_eq!(function.statistics().regions, 1);
    assert_eq!(function.memory.remove(0x10000).unwrap_err().kind, FailureKind::Busy);
    function.unmap(0x10000).unwrap();
    assert_eq!(fake.registered(), []);
    assert_eq!(function.statistics().peak_bytes, 0x4000);
    function.memory.remove(0x10000).unwrap();
}

#[test]
fn only_guest_memory_can_be_registered_and_only_own_keys_removed() {
    let (fake, mut function) = attached();
    for bad in [entry(1, 0, 0x1000), entry(1, 0x1f000, 0x2000), entry(1, u64::MAX, 2)] {
        assert!(function.map(&bad).is_err(), "{bad:?}");
    }
    assert!(function.unmap(77).is_err());
    assert_eq!(fake.calls_of(selector::UNREGISTER_DMA_REGION).len(), 0);
}

#[test]
fn p1_4_releasing_removes_every_registration() {
    let (fake, mut function) = attached();
    for page in 0..4 {
        function.map(&entry(page, 0x10000 + 0x1000 * page, 0x1000)).unwrap();
    }
    assert_eq!(fake.registered().len(), 4);
    function.release_all(far());
    assert_eq!(fake.registered(), []);
    assert_eq!(function.statistics().regions, 0);
}

fn far() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

impl ClaimedFunction {
    /// A batch that is carried out in one go.
    fn batch(&mut self, number: u64, work: Work) -> Vec<Outcome> {
        self.begin_batch(number, work, 1, far()).unwrap();
        let (request, reply) = self.work(far()).unwrap();
        assert_eq!(request, 1);
        reply.unwrap()
    }

    fn map_batch(&mut self, number: u64, entries: &[DmaEntry]) -> Vec<Outcome> {
        self.batch(number, Work::Map(entries.to_vec()))
    }

    fn unmap_batch(&mut self, number: u64, keys: &[u64]) -> Vec<Outcome> {
        self.batch(number, Work::Unmap(keys.to_vec()))
    }
}

fn pages(keys: std::ops::Range<u64>) -> Vec<DmaEntry> {
    keys.map(|page| entry(0x1000 * page, 0x10000 + 0x1000 * page, 0x1000)).collect()
}

fn keys(fake: &Fake) -> Vec<u64> {
    fake.registered().into_iter().map(|(key, _)| key).collect()
}

fn mapped(outcomes: &[Outcome]) -> Vec<bool> {
    outcomes.iter().map(|one| matches!(one, Outcome::Mapped { .. })).collect()
}

#[test]
fn c5_2_a_batch_that_comes_again_is_recognised_and_a_duplicate_is_not() {
    let (fake, mut function) = attached();
    let first = function.map_batch(7, &pages(0..4));
    let calls = fake.calls_of(selector::REGISTER_DMA_REGION).len();
    assert_eq!(function.map_batch(7, &pages(0..4)), first);
    assert_eq!(fake.calls_of(selector::REGISTER_DMA_REGION).len(), calls);
    assert_eq!(function.statistics().regions, 4);
    // The same keys in another batch, or twice in one, are the guest's mistake.
    assert_eq!(mapped(&function.map_batch(8, &pages(3..5))), [false, true]);
    let twice = [pages(6..7), pages(6..7)].concat();
    assert_eq!(mapped(&function.map_batch(9, &twice)), [true, false]);
    assert_eq!(mapped(&function.map_batch(9, &twice)), [true, false]);
}

#[test]
fn c5_2_what_a_repeated_batch_does_not_ask_for_any_more_is_removed() {
    let (fake, mut function) = attached();
    function.map_batch(7, &pages(0..4));
    // The guest rewrote its ring while its doorbell was carried out.
    let mut other = pages(2..5);
    other[0].size = 0x800;
    assert_eq!(mapped(&function.map_batch(7, &other)), [true; 3]);
    assert_eq!(keys(&fake), [0x2000, 0x3000, 0x4000]);
    assert_eq!(function.unmap_batch(7, &[0x2000]), [Outcome::Failed(FailureKind::InvalidArgument)]);
    assert_eq!(fake.registered().len(), 0);
}

#[test]
fn c5_2_an_unmap_that_comes_again_has_been_done() {
    let (_, mut function) = attached();
    function.map_batch(1, &pages(0..4));
    let failed = Outcome::Failed(FailureKind::InvalidArgument);
    let keys = [0, 0x1000, 0x1000, 0x9000];
    let first = function.unmap_batch(2, &keys);
    assert_eq!(first, [Outcome::Unmapped, Outcome::Unmapped, failed, failed]);
    assert_eq!(function.unmap_batch(2, &keys), first);
    assert_eq!(function.unmap_batch(3, &keys), [failed; 4]);
    assert_eq!(function.statistics().regions, 2);
}

#[test]
fn c5_1_the_companion_and_the_vmm_remove_only_their_own() {
    let (fake, mut function) = attached();
    function.map(&entry(0x9000, 0x10000, 0x1000)).unwrap();
    function.map_batch(1, &pages(0..1));
    assert!(matches!(function.unmap_batch(2, &[0x9000])[..], [Outcome::Failed(_)]));
    assert!(function.unmap(0).is_err());
    assert!(function.release_companion(None, far()));
    assert_eq!(keys(&fake), [0x9000]);
    assert_eq!(function.remove_memory(0x10000, far()).unwrap_err().kind, FailureKind::Busy);
}

#[test]
fn c5_4_memory_that_goes_takes_the_companions_registrations_along() {
    let (fake, mut function) = attached();
    let ram = SharedMemory::create("ram", 0x10000).unwrap().into_fd();
    function.memory.add(0x40000, 0x10000, ram, 0, true).unwrap();
    function.map_batch(1, &[pages(0..2), vec![entry(0x40000, 0x40000, 0x1000)]].concat());
    assert_eq!(function.remove_memory(0x10000, far()), Ok(true));
    assert_eq!(keys(&fake), [0x40000]);
}

#[test]
fn c5_3_a_limit_fails_its_entries_and_is_counted() {
    let (fake, mut function) = attached();
    function.map_batch(1, &pages(0..1));
    fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NO_SPACE);
    assert_eq!(mapped(&function.map_batch(2, &pages(1..3))), [false, false]);
    fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_ALIGNED);
    assert_eq!(mapped(&function.map_batch(3, &pages(1..2))), [false]);
    fake.recover(selector::REGISTER_DMA_REGION);
    assert_eq!(mapped(&function.map_batch(4, &pages(1..3))), [true, true]);
    let now = function.statistics();
    assert_eq!((now.failed_bytes, now.failed_segments, now.failed_mappings), (2, 1, 0));
    assert_eq!((now.regions, now.peak_bytes), (3, 0x3000));
}

/// Slices of one entry each until a batch is answered; how many, and the answer.
fn slices(function: &mut ClaimedFunction) -> (usize, Reply) {
    for count in 1..1000 {
        if let Some((1, reply)) = function.work(Deadline::now()) {
            return (count, reply);
        }
    }
    panic!("it is never answered");
}

#[test]
fn c5_6_a_slice_is_at_least_one_entry_and_ends_with_its_time() {
    let (fake, mut function) = attached();
    assert!(!function.has_work() && function.work(far()).is_none());
    function.begin_batch(1, Work::Map(pages(0..5)), 1, far()).unwrap();
    assert!(function.has_work() && function.has_open_batch());
    assert!(function.work(Deadline::now()).is_none());
    assert_eq!(keys(&fake), [0]);
    let (count, reply) = slices(&mut function);
    assert_eq!((count, mapped(&reply.unwrap())), (4, vec![true; 5]));
    assert!(!function.has_work());
    // Removing everything goes in slices too, and says whether it is done.
    assert!(!function.release_companion(None, Deadline::now()));
    assert_eq!(function.remove_memory(0x10000, Deadline::now()), Ok(false));
    assert_eq!(keys(&fake), [0x2000, 0x3000, 0x4000]);
    assert_eq!(function.remove_memory(0x10000, far()), Ok(true));
    assert_eq!(fake.registered(), []);
}

#[test]
fn c5_6_what_was_not_begun_in_time_fails_and_the_rest_is_told() {
    let (fake, mut function) = attached();
    let soon = Deadline::after(Duration::from_millis(300));
    function.begin_batch(1, Work::Map(pages(0..5)), 1, soon).unwrap();
    for _ in 0..3 {
        assert!(function.work(Deadline::now()).is_none());
    }
    while !soon.passed() {
        std::thread::yield_now();
    }
    let outcomes = function.work(far()).unwrap().1.unwrap();
    assert_eq!(mapped(&outcomes), [true, true, true, false, false]);
    assert_eq!(outcomes[4], Outcome::Failed(FailureKind::Io));
    assert_eq!(keys(&fake), [0, 0x1000, 0x2000]);
    // One that comes too late does nothing; the same number again does the rest.
    function.begin_batch(1, Work::Map(pages(0..5)), 1, Deadline::now()).unwrap();
    let outcomes = function.work(far()).unwrap().1.unwrap();
    assert_eq!(mapped(&outcomes), [true, true, true, false, false]);
    assert_eq!(mapped(&function.map_batch(1, &pages(0..5))), [true; 5]);
}

#[test]
fn c5_7_an_abandoned_batch_leaves_nothing_mapped_and_never_comes_again() {
    let (fake, mut function) = attached();
    function.map_batch(1, &pages(7..8));
    // In the middle of it, and when it was answered.
    for (number, slices) in [(2, 2), (3, 5)] {
        function.begin_batch(number, Work::Map(pages(0..4)), 1, far()).unwrap();
        (0..slices).for_each(|_| drop(function.work(Deadline::now())));
        function.abandon_batch(number);
        function.abandon_batch(number);
        let again = function.begin_batch(number, Work::Map(pages(0..4)), 1, far());
        assert_eq!(again, Err(FailureKind::InvalidArgument));
        assert!(function.has_work() && !function.has_open_batch());
        // The next one has its turn when all of that is gone.
        assert_eq!(mapped(&function.map_batch(number + 10, &pages(1..2))), [true]);
        assert_eq!(keys(&fake), [0x1000, 0x7000]);
        assert_eq!(function.unmap_batch(number + 20, &[0x1000]), [Outcome::Unmapped]);
    }
    // One that has not come yet.
    function.abandon_batch(50);
    assert!(function.begin_batch(50, Work::Map(pages(0..1)), 1, far()).is_err());
    assert_eq!(mapped(&function.map_batch(51, &pages(0..1))), [true]);
}

#[test]
fn c5_7_a_removal_that_the_guest_was_not_told_of_succeeds_when_it_removes_again() {
    let (fake, mut function) = attached();
    function.map_batch(1, &pages(0..4));
    function.begin_batch(2, Work::Unmap(vec![0, 0x1000, 0x2000]), 1, far()).unwrap();
    (0..2).for_each(|_| drop(function.work(Deadline::now())));
    function.abandon_batch(2);
    assert_eq!(keys(&fake), [0x2000, 0x3000]);
    // Its guest believes in all four.
    let failed = Outcome::Failed(FailureKind::InvalidArgument);
    let (done, wanted) = (Outcome::Unmapped, [0, 0, 0x2000]);
    assert_eq!(function.unmap_batch(3, &wanted), [done, failed, done]);
    assert_eq!(function.unmap_batch(3, &wanted), [done, failed, done]);
    // It may also map anew what it gave up.
    assert_eq!(mapped(&function.map_batch(4, &pages(1..2))), [true]);
    assert_eq!(function.unmap_batch(5, &[0x1000, 0x1000]), [done, failed]);
    assert_eq!(keys(&fake), [0x3000]);
    // After a reset it believes in nothing.
    function.begin_batch(6, Work::Unmap(vec![0x3000]), 1, far()).unwrap();
    assert!(function.work(far()).is_some());
    function.abandon_batch(6);
    assert!(function.release_companion(None, far()));
    assert_eq!(function.unmap_batch(7, &[0x3000]), [failed]);
}

#[test]
fn c5_4_memory_that_goes_while_a_batch_is_carried_out_fails_its_entries() {
    let (fake, mut function) = attached();
    let ram = SharedMemory::create("ram", 0x10000).unwrap().into_fd();
    function.memory.add(0x40000, 0x10000, ram, 0, true).unwrap();
    let other = entry(0x40000, 0x40000, 0x1000);
    let entries = [pages(0..1), vec![other], pages(1..2)].concat();
    function.begin_batch(1, Work::Map(entries), 1, far()).unwrap();
    (0..2).for_each(|_| drop(function.work(Deadline::now())));
    assert_eq!(function.remove_memory(0x10000, far()), Ok(true));
    let (_, reply) = slices(&mut function);
    assert_eq!(mapped(&reply.unwrap()), [false, true, false]);
    assert_eq!(keys(&fake), [0x40000]);
    // A reset gives up what is open: whoever asked for it has to be answered.
    function.begin_batch(2, Work::Map(pages(0..2)), 9, far()).unwrap();
    assert_eq!(function.abandon_open(), Some(9));
    assert_eq!(function.abandon_open(), None);
}

#[test]
fn a_process_that_goes_leaves_its_batch_to_the_next_one() {
    let (fake, mut function) = attached();
    function.begin_batch(1, Work::Map(pages(0..4)), 1, far()).unwrap();
    (0..2).for_each(|_| drop(function.work(Deadline::now())));
    function.close_batch();
    assert!(!function.has_work());
    assert_eq!(keys(&fake), [0, 0x1000]);
    let calls = fake.calls_of(selector::REGISTER_DMA_REGION).len();
    assert_eq!(mapped(&function.map_batch(1, &pages(0..4))), [true; 4]);
    assert_eq!(fake.calls_of(selector::REGISTER_DMA_REGION).len(), calls + 2);
}
