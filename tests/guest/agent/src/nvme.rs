//! The kernel's own NVMe driver over passed-through functions.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{End, Outcome, busybox, sys};

/// Bytes of files that are written.
const FILES: usize = 64;
const FILE: usize = 1 << 20;
const MARKER: &[u8; 16] = b"cordon was here!";

fn context<T>(what: &str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Content of file `number`: every byte depends on where it is.
fn content(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + at / 257) ^ (number * 97)).to_le_bytes()[0]).collect()
}

/// Interrupt counts of a controller's queues: name and count over all processors.
fn interrupts(controller: &str) -> Result<Vec<(String, u64)>, String> {
    let table = context("/proc/interrupts", fs::read_to_string("/proc/interrupts"))?;
    let prefix = format!("{controller}q");
    let rows = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next_back()?;
        let counts = fields.skip(1).map_while(|field| field.parse::<u64>().ok());
        name.starts_with(&prefix).then(|| (name.to_owned(), counts.sum()))
    });
    Ok(rows.collect())
}

/// Every queue of nvme0 has a vector, and each counts when its processor does I/O.
pub(crate) fn queues() -> Outcome {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    let before = interrupts("nvme0")?;
    println!("vectors before: {before:?}");
    if before.len() != processors + 1 {
        return Err(format!("{} vectors for {processors} processors", before.len()));
    }
    let mut disk = context(
        "/dev/nvme0n1",
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open("/dev/nvme0n1"),
    )?;
    // O_DIRECT wants an aligned buffer: whole pages of a locked mapping.
    let mut buffer = vec![0u8; 8192];
    let skew = buffer.as_ptr().align_offset(4096);
    for processor in 0..processors {
        context("affinity", sys::stay_on(processor))?;
        for block in 0..64u64 {
            context("seek", disk.seek(SeekFrom::Start(block * 4096)))?;
            context("read", disk.read_exact(&mut buffer[skew..skew + 4096]))?;
        }
    }
    let after = interrupts("nvme0")?;
    println!("vectors after: {after:?}");
    for ((name, before), (_, after)) in before.iter().zip(&after).skip(1) {
        if after <= before {
            return Err(format!("{name} did not count: {before}, then {after}"));
        }
    }
    Ok(())
}

/// A disk whose first bytes are as `wanted` says of an ext superblock: the image has one.
fn disks() -> Result<(PathBuf, PathBuf), String> {
    let (mut empty, mut image) = (None, None);
    for number in 0..2 {
        let path = PathBuf::from(format!("/dev/nvme{number}n1"));
        let mut disk = context("opening a disk", File::open(&path))?;
        let mut magic = [0; 2];
        context("seek", disk.seek(SeekFrom::Start(1024 + 56)))?;
        context("read", disk.read_exact(&mut magic))?;
        if magic == [0x53, 0xef] { image = Some(path) } else { empty = Some(path) }
    }
    empty.zip(image).ok_or_else(|| "not one empty disk and one image".to_owned())
}

/// A file system is made, filled, unmounted, mounted again and compared; an image's files are
/// read and one is added.
pub(crate) fn files() -> Outcome {
    let (empty, image) = disks()?;
    let (empty, image) = (empty.display().to_string(), image.display().to_string());
    busybox(&["mke2fs", &empty])?;
    context("mkdir", fs::create_dir_all("/mnt"))?;
    context("mount", sys::mount(&empty, "/mnt", "ext4"))?;
    for number in 0..FILES {
        let mut file = context("create", File::create(format!("/mnt/file{number}")))?;
        context("write", file.write_all(&content(number, FILE)))?;
    }
    context("unmount", sys::unmount("/mnt"))?;
    // Nothing of it may come from memory.
    context("drop caches", fs::write("/proc/sys/vm/drop_caches", "3"))?;
    context("mount again", sys::mount(&empty, "/mnt", "ext4"))?;
    for number in 0..FILES {
        let found = context("read", fs::read(format!("/mnt/file{number}")))?;
        if found != content(number, FILE) {
            return Err(format!("file{number} came back different"));
        }
    }
    println!("{FILES} files of {FILE} bytes written, unmounted, mounted and compared");
    context("unmount", sys::unmount("/mnt"))?;

    context("mount the image", sys::mount(&image, "/mnt", "ext4"))?;
    let found = context("read", fs::read("/mnt/from-host"))?;
    if found != content(1000, 300_000) {
        return Err("the image's file is different".to_owned());
    }
    context("write", fs::write("/mnt/from-guest", content(2000, 300_000)))?;
    context("unmount the image", sys::unmount("/mnt"))
}

/// Writes and verifies files for 30 s, whatever happens to the processes behind the disk; the
/// kernel must have nothing to say about it.
pub(crate) fn hold() -> Outcome {
    const DISK: &str = "/dev/nvme0n1";
    busybox(&["mke2fs", DISK])?;
    context("mkdir", fs::create_dir_all("/mnt"))?;
    context("mount", sys::mount(DISK, "/mnt", "ext4"))?;
    println!("GUEST-BUSY");
    let end = Instant::now() + Duration::from_secs(30);
    let mut rounds = 0;
    while Instant::now() < end {
        rounds += 1;
        for number in 0..16 {
            let path = format!("/mnt/file{number}");
            let mut file = context("create", File::create(&path))?;
            context("write", file.write_all(&content(number + rounds, FILE)))?;
            context("sync", file.sync_all())?;
        }
        context("drop caches", fs::write("/proc/sys/vm/drop_caches", "3"))?;
        for number in 0..16 {
            let found = context("read", fs::read(format!("/mnt/file{number}")))?;
            if found != content(number + rounds, FILE) {
                return Err(format!("file{number} of round {rounds} came back different"));
            }
        }
    }
    context("unmount", sys::unmount("/mnt"))?;
    println!("{rounds} rounds of 16 files of {FILE} bytes written, synced, read and compared");
    let log = sys::kernel_log().map_err(|error| format!("kernel log: {error}"))?;
    let bad = ["timeout", "I/O error", "i/o error", "Abort", "abort", "reset controller"];
    let complaint = log.lines().find(|line| {
        (line.contains("nvme") || line.contains("EXT4")) && bad.iter().any(|bad| line.contains(bad))
    });
    complaint.map_or(Ok(()), |line| Err(format!("the kernel says: {line}")))
}

/// A controller and its disk.
struct Controller {
    name: String,
    disk: String,
}

impl Controller {
    /// Vendor and device id; all ones when nobody answers.
    fn identity(&self) -> Result<u32, String> {
        let config = format!("/sys/class/nvme/{}/device/config", self.name);
        let mut file = context(&config, File::open(&config))?;
        let mut bytes = [0; 4];
        context(&config, file.read_exact(&mut bytes))?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// The controllers, by the size of their disks: the first is larger.
fn controllers() -> Result<[Controller; 2], String> {
    let mut all = Vec::new();
    for number in 0..2 {
        let name = format!("nvme{number}");
        let sectors = context("size", fs::read_to_string(format!("/sys/block/{name}n1/size")))?;
        let size: u64 = sectors.trim().parse().map_err(|_| format!("size of {name}"))?;
        all.push((size, Controller { disk: format!("/dev/{name}n1"), name }));
    }
    all.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    all.into_iter().map(|(_, one)| one).collect::<Vec<_>>().try_into().map_err(|_| "two".to_owned())
}

/// Writes 4 MiB past the page cache and reads them back.
fn write_and_verify(disk: &str, number: usize) -> Outcome {
    let mut file = context(disk, OpenOptions::new().read(true).write(true).open(disk))?;
    context("write", file.write_all(&content(number, 4 * FILE)))?;
    context("sync", file.sync_all())?;
    context("drop caches", fs::write("/proc/sys/vm/drop_caches", "3"))?;
    verify(disk, number)
}

fn verify(disk: &str, number: usize) -> Outcome {
    let mut file = context(disk, File::open(disk))?;
    let mut found = vec![0; 4 * FILE];
    context("read", file.read_exact(&mut found))?;
    if found == content(number, 4 * FILE) {
        Ok(())
    } else {
        Err(format!("{disk} came back different"))
    }
}

/// A controller goes away and comes back while it is written to: a controller reset by the
/// kernel's driver makes it whole again, and nothing that was written is lost. The other controller
/// does not notice.
pub(crate) fn comes_back() -> Outcome {
    let [lost, other] = controllers()?;
    write_and_verify(&lost.disk, 1)?;
    write_and_verify(&other.disk, 2)?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let mut rounds = 0;
            while !ended.load(Ordering::Relaxed) {
                write_and_verify(&lost.disk, 3)?;
                rounds += 1;
            }
            Ok::<_, String>(rounds)
        });
        println!("GUEST-BUSY");
        let end = Instant::now() + Duration::from_secs(60);
        let wait = |gone: bool| -> Outcome {
            while (lost.identity()? == u32::MAX) != gone {
                if Instant::now() > end {
                    return Err(format!("{}: gone is not {gone}", lost.name));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        let seen = wait(true).and_then(|()| wait(false));
        // Until it is there again, as a person would try it.
        let reset = format!("/sys/class/nvme/{}/reset_controller", lost.name);
        let state = format!("/sys/class/nvme/{}/state", lost.name);
        let mut tries = 0;
        let live = loop {
            tries += 1;
            let done = fs::write(&reset, "1");
            let now = fs::read_to_string(&state).unwrap_or_default();
            if done.is_ok() && now.trim() == "live" {
                break Ok(());
            }
            if Instant::now() > end {
                break Err(format!("{} is {}, {done:?}", lost.name, now.trim()));
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        write_and_verify(&other.disk, 4)?;
        ended.store(true, Ordering::Relaxed);
        let rounds = writes.join().map_err(|_| "the writer panicked".to_owned())?;
        seen.and(live)?;
        println!("{} live after {tries} resets, {} rounds written across it", lost.name, rounds?);
        write_and_verify(&lost.disk, 5)
    })?;
    let log = sys::kernel_log().map_err(|error| format!("kernel log: {error}"))?;
    let other_line = log.lines().find(|line| {
        line.contains(&other.name) && (line.contains("timeout") || line.contains("error"))
    });
    other_line.map_or(Ok(()), |line| Err(format!("the kernel says: {line}")))
}

/// The first boot leaves a marker on the disk and reboots; the second finds it.
pub(crate) fn reboot() -> Result<End, String> {
    if marked()? {
        return Ok(End::PowerOff);
    }
    let mut disk = context("disk", OpenOptions::new().write(true).open("/dev/nvme0n1"))?;
    context("write", disk.write_all(MARKER))?;
    context("sync", disk.sync_all())?;
    Ok(End::Reboot)
}

/// The marker of an earlier guest is there.
pub(crate) fn marker() -> Outcome {
    if marked()? { Ok(()) } else { Err("the earlier guest's marker is gone".to_owned()) }
}

fn marked() -> Result<bool, String> {
    let mut disk = context("disk", File::open("/dev/nvme0n1"))?;
    let mut found = [0; 16];
    context("read", disk.read_exact(&mut found))?;
    Ok(found == *MARKER)
}
