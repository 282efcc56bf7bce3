//! A guest's disk in stock QEMU under TCG: our NVMe function through `cordon serve`, beside QEMU's own
//! NVMe device in the same guest.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cordon_tests::Simulator;
use cordon_tests::machine::{Guest, TIMEOUT};
use cordon_tests::serve::Serve;

use super::{Bar, Failure, Report, Row};
use crate::measure::{Meter, Pair, Samples};

/// What is measured, as rows are called and as the guest calls it.
const ROWS: [(&str, &str); 2] =
    [("guest-nvme-random-read-4k", "read"), ("guest-nvme-sequential-write-4k", "write")];
const BASELINE: &str = "QEMU's own nvme over a file in memory, same guest";
/// The vendor of QEMU's own device.
const THEIRS: &str = "0x1b36";
/// Requests of one turn of one disk.
const REQUESTS: u64 = 200;
/// Bytes of a disk.
const SIZE: u64 = 64 << 20;

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let (reads, writes) = match prepared().and_then(|()| in_guest(meter)) {
        Ok([reads, writes]) => (Ok(reads), Ok(writes)),
        Err(error) => (Err(error.to_string()), Err(error.to_string())),
    };
    for ((name, _), figures) in ROWS.into_iter().zip([reads, writes]) {
        row(match figures {
            Ok(pair) => Row::new(name, pair, BASELINE, Bar::ratio(1.0)),
            Err(why) => Row::missing(name, BASELINE, Bar::ratio(1.0), why),
        })?;
    }
    Ok(())
}

/// Whether there are QEMU and a guest, which `cargo xtask bench` sees to.
fn prepared() -> Result<(), Failure> {
    if std::env::var_os("CORDON_GUEST_DIR").is_some_and(|folder| Path::new(&folder).is_dir()) {
        return Ok(());
    }
    Err(match std::env::var("CORDON_GUEST_MISSING") {
        Ok(why) => format!("QEMU and a guest cannot be prepared: {why}"),
        Err(_) => "QEMU and a guest are prepared by cargo xtask bench".to_owned(),
    }
    .into())
}

/// Boots a guest with both disks and has it measure them; reads and writes.
fn in_guest(meter: &Meter) -> Result<[Pair; 2], Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let folder = folder()?;
    let disk: PathBuf = folder.path().join("disk");
    std::fs::File::create(&disk)?.set_len(SIZE)?;
    let disk = disk.to_str().ok_or("QEMU takes no path that is not text: see TMPDIR")?;
    let drive = format!("file={disk},if=none,id=theirs,format=raw,cache=writeback");
    // A turn of each disk takes some tenths of a second.
    let turns = (meter.time.as_millis() / 250).clamp(1, 40);
    let kernel = format!("cordon.turns={turns} cordon.requests={REQUESTS}");
    let more =
        ["-no-reboot", "-smp", "2", "-drive", &drive, "-device", "nvme,serial=theirs,drive=theirs"];
    let sockets = [serve.socket("01:00.0")];
    let mut guest = Guest::boot_with("measure", &kernel, "q35", &sockets, &more);
    let mut figures = ROWS.map(|_| (Samples::new(), Samples::new()));
    let end = Instant::now() + TIMEOUT + meter.time * 4;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let Some(line) = guest.line(left) else {
            return Err("the guest ended, or says nothing any more".into());
        };
        if line.contains("GUEST-OK") {
            break;
        }
        if line.contains("GUEST-FAIL") {
            return Err(line.into());
        }
        take(&line, &mut figures)?;
    }
    guest.ends();
    let counts = figures.iter().all(|(ours, theirs)| !ours.is_empty() && !theirs.is_empty());
    if counts { Ok(figures) } else { Err("the guest has not measured both disks".into()) }
}

/// Memory where there is a folder for that.
fn folder() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// Takes the figures of one line of the guest's, if it has some.
fn take(line: &str, figures: &mut [Pair; 2]) -> Result<(), Failure> {
    let Some((_, rest)) = line.split_once("DISK ") else { return Ok(()) };
    let mut words = rest.split_whitespace();
    let (vendor, what) = (words.next(), words.next());
    let row = ROWS.iter().position(|(_, name)| Some(*name) == what);
    let (ours, theirs) = &mut figures[row.ok_or_else(|| format!("the guest says {line}"))?];
    let samples = if vendor == Some(THEIRS) { theirs } else { ours };
    for word in words {
        samples.add(word.parse()?);
    }
    Ok(())
}
