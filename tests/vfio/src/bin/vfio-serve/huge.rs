//! Guest memory of huge pages that begins within one, as QEMU's does: a device is given it, and nobody has it afterwards.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use cordon_tests::eventually;
use cordon_tests::vfio_user::{Client, map, unmap};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde_json::{Value, json};

use crate::nvme::{BASE, SIZE};
use crate::{DMA_MAP, Failure, READ_WRITE};

const DMA_UNMAP: u16 = 3;
/// Bytes of a huge page, and how many there are.
const PAGE: u64 = 2 << 20;
const PAGES: u64 = 4;

/// How many of the machine's huge pages nobody has.
fn free() -> Result<u64, Failure> {
    let all = fs::read_to_string("/proc/meminfo")?;
    let line = all.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    Ok(line.ok_or("the kernel has no huge pages")?.trim().parse()?)
}

pub(crate) fn check(client: &mut Client) -> Result<Value, Failure> {
    fs::write("/proc/sys/vm/nr_hugepages", PAGES.to_string())?;
    let before = free()?;
    let huge: OwnedFd = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    ftruncate(&huge, PAGES * PAGE)?;
    let at = BASE + SIZE;
    let mapping = map(READ_WRITE, PAGE / 2, at, 2 * PAGE);
    let mapped = client.ask(DMA_MAP, &mapping, &[huge.as_fd()]).error;
    // What a device reaches is there.
    let meanwhile = free()?;
    let unmapped = client.ask(DMA_UNMAP, &unmap(0, at, 2 * PAGE), &[]).error;
    drop(huge);
    let given_back = eventually(|| free().is_ok_and(|free| free == before));
    Ok(json!({
        "mapped": mapped,
        "unmapped": unmapped,
        "pages": before,
        "taken": before.saturating_sub(meanwhile),
        "given_back": given_back,
    }))
}
