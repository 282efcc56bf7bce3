//! What a trapped access takes from the allocator: nothing, on either side. The role is a thread of this
//! process, so that both are counted.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(unsafe_code, reason = "counts what the allocator is asked for")]

#[path = "../in_process/launch.rs"]
#[allow(dead_code, reason = "shared with the suite in_process")]
mod launch;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cordon_tests::{Vmm, address, announce};
use cordon_vmm::{DmaMode, HostConfig, PassthroughDevice as _};
use device_proc::in_process::fake::{Fake, FakeFunction};

use self::launch::InProcess;

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator does everything; counting takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: what our caller promises is what it needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_trapped_access_takes_no_memory() {
    let host = InProcess::over(Fake::new([FakeFunction::at(address("01:00.0"))]).unwrap());
    let config = HostConfig::new("/nonexistent/device-proc", "sim:/nonexistent/dext")
        .with_strict(false)
        .with_launch(Arc::new(host));
    let vmm = Vmm::new(config, DmaMode::Direct);
    let function = vmm.attach("01:00.0");
    let accesses: [(&str, &dyn Fn()); 4] = [
        ("BAR read", &|| function.bar_read(2, 0x10, &mut [0; 4]).unwrap()),
        ("BAR write", &|| function.bar_write(2, 0x10, &[1; 4]).unwrap()),
        ("config read", &|| function.config_read(0, &mut [0; 4]).unwrap()),
        ("config write", &|| function.config_write(0x0c, &[0]).unwrap()),
    ];
    for (what, access) in accesses {
        const MANY: u64 = 20_000;
        (0..100).for_each(|_| access());
        let before = COUNT.load(Ordering::Relaxed);
        (0..MANY).for_each(|_| access());
        let taken = COUNT.load(Ordering::Relaxed) - before;
        announce(&format!("{what}: {taken} allocations in {MANY} accesses"));
        // The keeper asks for a sign of life now and then.
        assert!(taken < MANY / 100, "{what}: {taken} allocations in {MANY}");
    }
}
