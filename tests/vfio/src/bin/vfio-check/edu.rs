//! DMA and INTx of QEMU's device for teaching: its DMA engine moves up to 4 KiB between its buffer and 28-bit addresses.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde_json::{Value, json};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE1v2_IOMMU, vfio_region_info,
};

use crate::kernel::{Container, Device, Group, Memory};
use crate::{Failure, outcome};

const MEMORY: usize = 2 << 20;
/// Where memory is mapped, and an address that nothing is mapped at.
const IOVA: u64 = 0x10_0000;
const NOWHERE: u64 = 0x800_0000;
/// Registers.
const STATUS_RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const START: u64 = 0x98;
/// The device's buffer, as its DMA engine has it.
const BUFFER: u64 = 0x4_0000;
/// What is moved at once.
const CHUNK: usize = 4096;
const TO_DEVICE: u64 = 1;
const FROM_DEVICE: u64 = 3;
const RUNNING: u64 = 1;
/// How long the device may take.
const LONGEST: Duration = Duration::from_secs(10);
/// How long an interrupt that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

struct Edu {
    device: Device,
    bar: vfio_region_info,
}

impl Edu {
    fn write(&self, at: u64, value: u64) -> io::Result<()> {
        self.device.write(&self.bar, at, &value.to_le_bytes())
    }

    fn write_short(&self, at: u64, value: u32) -> io::Result<()> {
        self.device.write(&self.bar, at, &value.to_le_bytes())
    }

    /// Has it move a chunk, and waits until it has tried.
    fn copy(&self, from: u64, to: u64, command: u64) -> Result<(), Failure> {
        self.write(SOURCE, from)?;
        self.write(DESTINATION, to)?;
        self.write(COUNT, CHUNK as u64)?;
        self.write(START, command)?;
        let began = Instant::now();
        while u64::from_le_bytes(self.device.read(&self.bar, START)?) & RUNNING != 0 {
            if began.elapsed() > LONGEST {
                return Err("edu does not end its DMA".into());
            }
            // It says by nothing else that it is done.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

pub(crate) fn check(address: &str) -> Result<Value, Failure> {
    let (container, group) = (Container::open()?, Group::open(address)?);
    group.enter(&container)?;
    container.set(VFIO_TYPE1v2_IOMMU)?;
    let device = group.device(address)?;
    let memory = Memory::new(MEMORY)?;
    container.map(&memory, IOVA)?;
    let (config, bar) = (device.region(7)?, device.region(0)?);
    device.write(&config, 4, &[6, 0])?;
    let edu = Edu { device, bar };
    let dma = dma(&edu, &memory)?;
    Ok(json!({ "dma": dma, "intx": intx(&edu)?, "reset": outcome(&edu.device.reset()) }))
}

/// Through the device's buffer and back, then to where nothing is mapped, then once more.
fn dma(edu: &Edu, memory: &Memory) -> Result<Value, Failure> {
    let pattern: Vec<u8> = (0..=250).cycle().take(CHUNK).collect();
    let length = CHUNK as u64;
    memory.write(0, &pattern)?;
    let there_and_back = |to: u64| -> Result<bool, Failure> {
        edu.copy(IOVA, BUFFER, TO_DEVICE)?;
        edu.copy(BUFFER, IOVA + to, FROM_DEVICE)?;
        Ok(memory.read(to, CHUNK)? == pattern)
    };
    let before = there_and_back(length)?;
    edu.copy(BUFFER, NOWHERE, FROM_DEVICE)?;
    let untouched = memory.read(2 * length, MEMORY - 2 * CHUNK)?.iter().all(|byte| *byte == 0);
    Ok(
        json!({ "whole": before, "rest_untouched": untouched, "whole_after_fault": there_and_back(2 * length)? }),
    )
}

/// How often the event is signalled: once, then not while masked, then again.
fn intx(edu: &Edu) -> Result<Value, Failure> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    edu.device.set_interrupt(0, flags, Some(std::os::fd::AsFd::as_fd(&event)))?;
    let signalled = |within: Duration| -> Result<bool, Failure> {
        let within = Timespec::try_from(within)?;
        if poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&within))? == 0 {
            return Ok(false);
        }
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count)?;
        Ok(u64::from_le_bytes(count) > 0)
    };
    edu.write_short(STATUS_RAISE, 1)?;
    let first = signalled(LONGEST)?;
    // The kernel masks the line until it is told that the cause is gone.
    edu.write_short(STATUS_RAISE, 1)?;
    let masked = signalled(SILENCE)?;
    edu.write_short(ACKNOWLEDGE, 1)?;
    edu.device.set_interrupt(0, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, None)?;
    let idle = signalled(SILENCE)?;
    edu.write_short(STATUS_RAISE, 1)?;
    let again = signalled(LONGEST)?;
    edu.write_short(ACKNOWLEDGE, 1)?;
    Ok(json!({ "first": first, "while_masked": masked, "after_unmask": idle, "again": again }))
}
