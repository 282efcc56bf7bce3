//! What one client can have the server hold: at its budget it is refused, with the reason, and keeps
//! what it has; no other client notices.

use std::os::fd::{AsFd as _, BorrowedFd};

use cordon_tests::vfio_user::{Client, Served, map, ram, unmap, words};
use cordon_vfio_user::protocol::command::{DMA_MAP, DMA_UNMAP, SET_IRQS};
use cordon_vfio_user::{AtBudget, Budget, BudgetKind, Event, Options};
use ipc::SharedMemory;

#[cfg(target_os = "linux")]
const ENOSPC: i32 = 28;
const EMFILE: i32 = 24;
const PAGE: u64 = 4096;

fn served(budget: Budget) -> Served {
    Served::start_as("01:00.1", |_| {}, Options { budget, ..Options::default() })
}

fn take(client: &mut Client, at: u64, memory: &SharedMemory) -> u32 {
    client.ask(DMA_MAP, &map(3, at, at, PAGE), &[memory.as_fd()]).error
}

/// The budget is told before what was refused for it, and only the first time.
fn is_at(served: &Served, kind: BudgetKind, most: usize) {
    let at = Event::AtBudget(AtBudget { kind, most });
    served.until(|event| {
        assert!(!matches!(event, Event::Refused(_)), "{event:?} before {at:?}");
        *event == at
    });
}

fn is_refused(served: &Served, because: &str) {
    served.until(|event| matches!(event, Event::Refused(why) if why.contains(because)));
}

/// Descriptors of this process, in which the server runs, that stand for `name`.
#[cfg(target_os = "linux")]
fn descriptors_of(name: &str) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = all.filter_map(|one| std::fs::read_link(one.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().contains(name)).count()
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_regions_of_one_file_cost_one_descriptor_and_one_more_is_too_many() {
    let budget = Budget { regions: 1000, ..Budget::default() };
    let served = served(budget);
    let mut client = served.client();
    let memory = SharedMemory::create("of-one-file", 1001 * PAGE).unwrap();
    for region in 0..1000 {
        assert_eq!(take(&mut client, region * PAGE, &memory), 0, "{region}");
    }
    // The client's own, and the server's.
    assert_eq!(descriptors_of("of-one-file"), 2);
    let last = map(3, 1000 * PAGE, 1000 * PAGE, PAGE);
    assert_eq!(client.refused(DMA_MAP, &last, &[memory.as_fd()]), ENOSPC);
    is_at(&served, BudgetKind::Regions, 1000);
    is_refused(&served, "1000 regions");
    // Those without memory count as well, and any that goes makes room.
    assert_eq!(client.refused(DMA_MAP, &last, &[]), ENOSPC);
    client.ok(DMA_UNMAP, &unmap(0, 0, PAGE));
    assert_eq!(take(&mut client, 1000 * PAGE, &memory), 0);
    client.ok(DMA_UNMAP, &unmap(2, 0, 0));
    assert_eq!(descriptors_of("of-one-file"), 1);
}

#[test]
fn memory_files_are_counted() {
    let served = served(Budget { files: 3, ..Budget::default() });
    let mut client = served.client();
    let files: Vec<_> = (0..4).map(|_| ram(16 * PAGE)).collect();
    for (number, file) in files.iter().take(3).enumerate() {
        for region in 0..4 {
            assert_eq!(take(&mut client, (4 * number as u64 + region) * PAGE, file), 0);
        }
    }
    let more = map(3, 0, 15 * PAGE, PAGE);
    assert_eq!(client.refused(DMA_MAP, &more, &[files[3].as_fd()]), EMFILE);
    is_at(&served, BudgetKind::Files, 3);
    is_refused(&served, "3 files");
    // A file whose last region goes makes room.
    for region in 0..4 {
        client.ok(DMA_UNMAP, &unmap(0, region * PAGE, PAGE));
    }
    assert_eq!(client.ask(DMA_MAP, &more, &[files[3].as_fd()]).error, 0);
}

#[test]
fn events_are_counted() {
    let served = served(Budget { events: 4, ..Budget::default() });
    let mut client = served.client();
    let event = ipc::Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    let install = |start, count| words(&[20, 0x24, 2, start, count]);
    let three = vec![signaller.as_fd(); 3];
    let with: &[BorrowedFd<'_>] = &three;
    assert_eq!(client.ask(SET_IRQS, &install(0, 3), with).error, 0);
    assert_eq!(client.refused(SET_IRQS, &install(8, 3), with), EMFILE);
    is_at(&served, BudgetKind::Events, 4);
    is_refused(&served, "4 events");
    // The same vectors again are no more than they were.
    assert_eq!(client.ask(SET_IRQS, &install(1, 3), with).error, 0);
    assert_eq!(client.refused(SET_IRQS, &install(8, 1), &with[..1]), EMFILE);
    client.ok(SET_IRQS, &install(0, 2));
    assert_eq!(client.ask(SET_IRQS, &install(8, 1), &with[..1]).error, 0);
    client.ok(SET_IRQS, &words(&[20, 0x21, 2, 0, 0]));
    assert_eq!(client.ask(SET_IRQS, &install(8, 3), with).error, 0);
    // It was at it once more, which is told as refused alone; and the next client's is told again.
    is_refused(&served, "4 events");
    drop(client);
    served.until(|event| {
        assert!(!matches!(event, Event::AtBudget(_)), "told twice: {event:?}");
        matches!(event, Event::Detached(_))
    });
    let mut client = served.client();
    let five = vec![signaller.as_fd(); 5];
    assert_eq!(client.refused(SET_IRQS, &install(0, 5), &five), EMFILE);
    is_at(&served, BudgetKind::Events, 4);
}

#[test]
fn ten_thousand_refused_commands_are_a_few_lines_with_a_count() {
    let served = served(Budget { reports: 5, ..Budget::default() });
    let mut client = served.client();
    for _ in 0..100 {
        let ids: Vec<u16> = (0..100).map(|_| client.send(99, 0, &[], &[])).collect();
        for id in ids {
            assert_eq!(client.receive().0.id, id);
        }
    }
    drop(client);
    let (mut lines, mut counted) = (0, 0);
    served.until(|event| {
        let Event::Refused(why) = event else { return matches!(event, Event::Detached(_)) };
        lines += 1;
        let left_out = why.split_once(" more").and_then(|(before, _)| before.rsplit(' ').next());
        counted += left_out.map_or(0, |number| number.parse::<u64>().unwrap());
        counted += u64::from(why.starts_with("command"));
        false
    });
    assert_eq!(counted, 10_000);
    // Five at once, and one a second since.
    assert!(lines < 40, "{lines} lines");
}
