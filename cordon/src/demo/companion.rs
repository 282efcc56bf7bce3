//! The step on a strict DART, as on hardware: the platform chooses bus addresses, and a guest maps
//! on demand through the companion.

use cordon_vmm::companion::register;
use cordon_vmm::{Companion, CompanionConfig, DmaMode, Host, PassthroughDevice as _, Recovery};
use ipc::{PciAddress, Window};
use serde_json::json;

use super::summary::Summary;
use crate::Failure;
use crate::rig::leftovers::{self, Belongings};
use crate::rig::probe::Probe;
use crate::rig::reporter::Reporter;
use crate::rig::simulator::Dart;
use crate::rig::{RAM, RAM_BASE, RigOptions, memory, register_window, vectors};

const PAGE: usize = 16 << 10;
const PAGES: usize = 64;
/// Where the command page, requests, responses and data are in guest RAM.
const COMMAND: u64 = 0;
const REQUESTS: u64 = 0x1_0000;
const RESPONSES: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;

/// A guest's driver for the companion.
struct Ring<'r> {
    companion: &'r Companion,
    ram: &'r Window,
}

impl Ring<'_> {
    fn batch(&self, kind: u32, count: usize) -> Result<(), Failure> {
        let count = u32::try_from(count)?;
        self.ram.write(COMMAND, kind)?;
        self.ram.write(COMMAND + 4, count)?;
        self.ram.write(COMMAND + 16, RAM_BASE + REQUESTS)?;
        self.ram.write(COMMAND + 24, RAM_BASE + RESPONSES)?;
        let page = RAM_BASE + COMMAND;
        let halves = [u32::try_from(page & 0xffff_ffff)?, u32::try_from(page >> 32)?];
        self.companion.bar_write(0, register::CMD_GPA_LO, &halves[0].to_le_bytes())?;
        self.companion.bar_write(0, register::CMD_GPA_HI, &halves[1].to_le_bytes())?;
        self.companion.bar_write(0, register::DOORBELL, &[1, 0, 0, 0])?;
        let mut status = [0; 4];
        self.companion.bar_read(0, register::STATUS, &mut status)?;
        if status == [0; 4] {
            Ok(())
        } else {
            Err(format!("a batch of {count} ended with status {}", status[0]).into())
        }
    }

    /// Maps pages of guest memory; their bus addresses.
    fn map(&self, pages: &[u64]) -> Result<Vec<u64>, Failure> {
        for (at, page) in (REQUESTS..).step_by(16).zip(pages) {
            self.ram.write(at, *page)?;
            self.ram.write(at + 8, u32::try_from(PAGE)?)?;
            self.ram.write(at + 12, 0u32)?;
        }
        self.batch(1, pages.len())?;
        let bus = |(at, _)| Ok(self.ram.read::<u64>(at + 8)?);
        (RESPONSES..).step_by(24).zip(pages).map(bus).collect()
    }

    fn unmap(&self, pages: &[u64]) -> Result<(), Failure> {
        for (at, page) in (REQUESTS..).step_by(16).zip(pages) {
            self.ram.write(at, *page)?;
            self.ram.write(at + 8, PAGE as u64)?;
        }
        self.batch(2, pages.len())
    }
}

/// Runs the step.
pub(super) fn run(
    rig: &RigOptions,
    reporter: &Reporter,
    summary: &mut Summary,
) -> Result<(), Failure> {
    reporter.step("Mapping on demand through the companion, on a strict DART")?;
    let probe: PciAddress = "03:00.0".parse()?;
    let devices = [format!("{probe}=probe").into()];
    let (simulator, config) = rig.start_on(Dart::Strict, &devices, Recovery::OFF, None)?;
    reporter.data("process", json!({ "process": "strict dext-sim", "pid": simulator.pid() }))?;
    let before = Belongings::now()?;
    {
        let host = Host::new(config);
        let (container, ram) = memory(DmaMode::Companion, RAM)?;
        let guest = CompanionConfig::new("00:05.0".parse()?);
        let (proxy, companion) = host.attach_with_companion(probe, &container, None, guest)?;
        let moved = (|| {
            let registers = register_window(&proxy)?;
            let events = vectors(&proxy, proxy.vectors().into())?;
            proxy.config_write(0x04, &[0x06, 0x00])?;
            let mut device = Probe::new(&proxy, &registers, &events);
            move_data(&Ring { companion: &companion, ram: &ram }, &mut device, reporter)
        })();
        host.detach(&proxy);
        summary.on_demand = moved?;
        summary.bytes += summary.on_demand;
    }
    let left = leftovers::list(&before, &simulator)?;
    if !left.is_empty() {
        return Err(format!("after the strict step is left: {}", left.join(", ")).into());
    }
    Ok(())
}

fn move_data(ring: &Ring<'_>, device: &mut Probe<'_>, reporter: &Reporter) -> Result<u64, Failure> {
    let page = |number: usize| RAM_BASE + DATA + (number * PAGE) as u64;
    let pages: Vec<u64> = (0..2 * PAGES).map(page).collect();
    if device.copy(page(0), page(1), 64, 0).is_ok() {
        return Err("the device reaches memory that nobody mapped".into());
    }
    let bus = ring.map(&pages)?;
    reporter.say(&format!(
        "{} pages of 16 KiB mapped: guest address {:#x} is bus address {:#x}",
        pages.len(),
        pages[0],
        bus[0]
    ))?;
    let mut verified = 0;
    for number in 0..PAGES {
        let content: Vec<u8> =
            (0..PAGE).map(|at| (at * 31 + at / 253 + number * 7).to_le_bytes()[0]).collect();
        ring.ram.copy_in(pages[number] - RAM_BASE, &content)?;
        device.copy(bus[number], bus[PAGES + number], u32::try_from(PAGE)?, 0)?;
        let mut found = vec![0; PAGE];
        ring.ram.copy_out(pages[PAGES + number] - RAM_BASE, &mut found)?;
        if found != content {
            return Err(format!("page {number} came back different").into());
        }
        verified += PAGE as u64;
    }
    ring.unmap(&pages)?;
    if device.copy(bus[0], bus[1], 64, 0).is_ok() {
        return Err("the device reaches memory that was unmapped".into());
    }
    reporter.say(&format!(
        "{verified} bytes moved by bus addresses and compared; all unmapped again"
    ))?;
    Ok(verified)
}
