use super::*;

fn address(function: u8) -> PciAddress {
    format!("01:00.{function}").parse().unwrap()
}

fn region(base: u64, size: u64) -> RegionRecord {
    RegionRecord { base, size, file: 0, offset: 0, writable: true }
}

fn range(key: u64, address: u64, size: u64) -> (DmaEntry, Option<Mapped>) {
    (DmaEntry { key, address, size }, Some(Mapped { bus_address: key, bus_length: size }))
}

fn function(number: u8) -> FunctionRecord {
    let identity = Identity { address: address(number), vendor: 1, device: 2, class: 3 };
    let regions = vec![region(0x1000, 0x2000), region(0x8000, 0x1000)];
    let ranges = vec![range(0x1000, 0x1000, 0x2000), range(0x8000, 0x8000, 0x1000)];
    FunctionRecord { descriptors: 1, request: true, identity, bars: [None; 6], regions, ranges }
}

fn record(functions: &[FunctionRecord]) -> Record {
    Record { group: 2, functions: functions.to_vec() }
}

fn again(file: &RecordFile) -> Result<(RecordFile, Record), StoreError> {
    RecordFile::read(file.as_fd().try_clone_to_owned().unwrap())
}

#[test]
fn what_is_written_is_read_again_and_goes_on_there() {
    let mut file = RecordFile::create().unwrap();
    assert!(matches!(again(&file), Err(StoreError::Torn)), "nothing was written yet");
    for count in 1..5 {
        let written = record(&[function(0), function(count)]);
        file.write(&written).unwrap();
        let (next, read) = again(&file).unwrap();
        assert_eq!((read, next.sequence), (written, u64::from(count)));
        file = next;
    }
    file.write(&record(&[function(0), function(4)])).unwrap();
    assert_eq!(file.sequence, 4, "nothing is written twice");
}

#[test]
fn a_kill_at_any_byte_leaves_what_was_before_or_what_is_after() {
    let (before, after) = (record(&[function(0)]), record(&[function(0), function(1)]));
    for rounds in [1, 2, 3] {
        let mut file = RecordFile::create().unwrap();
        // One slot, both, and one that was used twice.
        for number in (0..rounds).rev() {
            file.write(&record(&[function(7 - number)])).unwrap();
        }
        file.write(&before).unwrap();
        let place = (file.sequence + 1) % 2 * SLOT;
        let mut old = vec![0; MAX_RECORD];
        file.file.read_exact_at(&mut old, place).unwrap();
        let bytes = slot(file.sequence + 1, &ipc::codec::encode(&after, MAX_RECORD).unwrap());
        for written in 0..=bytes.len() {
            file.file.write_all_at(&old, place).unwrap();
            file.file.write_all_at(&bytes[..written], place).unwrap();
            // Bytes that are still to come may be there by chance.
            let mut now = vec![0; bytes.len()];
            file.file.read_exact_at(&mut now, place).unwrap();
            let expected = if now == bytes { &after } else { &before };
            assert_eq!(&again(&file).unwrap().1, expected, "{written} of {}", bytes.len());
        }
    }
}

#[test]
fn any_byte_that_is_wrong_is_noticed() {
    let mut file = RecordFile::create().unwrap();
    file.write(&record(&[function(0)])).unwrap();
    let bytes = slot(1, &file.last);
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x10;
        file.file.write_all_at(&wrong, SLOT).unwrap();
        let refused = again(&file).unwrap_err();
        let is_version = (8..12).contains(&at);
        let told = matches!(refused, StoreError::Version(_)) == is_version;
        assert!(told && (is_version || matches!(refused, StoreError::Torn)), "{at}: {refused}");
    }
}

#[test]
fn another_version_is_told_and_what_is_no_record_is_refused() {
    let mut file = RecordFile::create().unwrap();
    file.write(&record(&[function(0)])).unwrap();
    file.file.write_all_at(&7u32.to_le_bytes(), SLOT + 8).unwrap();
    let told = again(&file).unwrap_err().to_string();
    assert_eq!(told, "Its record is of version 7, this program knows version 1");
    for size in [0, 1, SLOT, 2 * SLOT - 1, 2 * SLOT + 1, 4 * SLOT] {
        let other = SharedMemory::create("other", size).unwrap().into_fd();
        assert!(matches!(RecordFile::read(other), Err(StoreError::Torn)), "{size}");
    }
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let open = rustix::fs::memfd_create("unsealed", flags).unwrap();
    rustix::fs::ftruncate(&open, 2 * SLOT).unwrap();
    assert!(matches!(RecordFile::read(open), Err(StoreError::Torn)));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    type Change = fn(&mut Record);
    let changes: [(Change, &str); 12] = [
        (|one| one.functions.push(function(0)), "twice"),
        (|one| one.group = 0, "nothing keeps it open"),
        (|one| one.functions[0].descriptors = 0, "nothing keeps it open"),
        (|one| one.functions[0].regions[0].size = 0, "empty or wraps"),
        (|one| one.functions[0].regions[1].base = u64::MAX, "empty or wraps"),
        (|one| one.functions[0].regions[1].offset = u64::MAX, "empty or wraps"),
        (|one| one.functions[0].regions[1].base = 0x2fff, "out of order or overlaps"),
        (|one| one.functions[0].regions.reverse(), "out of order or overlaps"),
        (|one| one.functions[0].ranges.reverse(), "out of order or there twice"),
        (|one| one.functions[0].ranges[1].0.size = 0x1001, "lies in no region"),
        (|one| one.functions[0].ranges[1].0.size = u64::MAX, "lies in no region"),
        (|one| one.functions[0].ranges[1] = range(u64::MAX, 0x8000, 2), "wraps on the bus"),
    ];
    for (change, says) in changes {
        let mut wrong = record(&[function(0)]);
        change(&mut wrong);
        let mut file = RecordFile::create().unwrap();
        file.write(&wrong).unwrap();
        let refused = again(&file).unwrap_err().to_string();
        assert!(refused.contains(says) && refused.contains("01:00.0"), "{refused}");
    }
    // Lengths that the bytes do not hold are not allocated.
    let mut file = RecordFile::create().unwrap();
    file.file.write_all_at(&slot(1, &[2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), SLOT).unwrap();
    assert!(matches!(again(&file), Err(StoreError::Malformed(_))));
    file.write(&record(&[])).unwrap();
    file.write(&record(&[function(1)])).unwrap();
    assert_eq!(again(&file).unwrap().1, record(&[function(1)]));
}

#[test]
fn what_does_not_fit_is_an_error_and_what_was_written_before_counts() {
    let mut file = RecordFile::create().unwrap();
    let mut large = record(&[function(0)]);
    file.write(&large).unwrap();
    let many = |count: u64| (0..count).map(|at| region(at << 12, 1 << 12)).collect::<Vec<_>>();
    large.functions[0].ranges.clear();
    large.functions[0].regions = many(1024);
    file.write(&large).unwrap();
    large.functions[0].regions = many(50_000);
    let refused = file.write(&large).unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge { most, .. } if most == MAX_RECORD - HEADER));
    assert_eq!(again(&file).unwrap().1.functions[0].regions.len(), 1024);
}
