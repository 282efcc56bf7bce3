//! Many functions at once: what a call costs, and what each function adds.

use std::collections::BTreeSet;
use std::sync::Arc;

use cordon_tests::{Simulator, Vmm, config};
use cordon_vmm::{DmaMode, Function, PassthroughDevice as _};

use super::{Bar, Failure, Report, Row};
use crate::measure::{Meter, Pair, Samples};
use crate::proc::Process;

const DEVICES: usize = 8;
/// Functions that are attached: one, one of each device, all.
const STAGES: [usize; 3] = [1, DEVICES, 8 * DEVICES];
/// In this order in each round, so that what the machine does meanwhile strikes all of them.
const ORDER: [usize; 5] = [0, 1, 2, 1, 0];
/// Calls of one function before it is the next one's turn.
const BURST: usize = 256;
/// A scratch register.
const SCRATCH: u64 = 0x10;

/// What was seen while so many functions were attached.
struct Stage {
    calls: Samples,
    threads: u64,
    /// Bytes of the VMM and of all its processes, or why nobody may see that.
    memory: Result<u64, String>,
}

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    // Function N of all: device N modulo 8, so that the first eight are of different devices.
    let addresses: Vec<String> = (0..STAGES[2])
        .map(|number| format!("{:02x}:00.{}", 1 + number % DEVICES, number / DEVICES))
        .collect();
    let devices: Vec<String> =
        addresses.iter().map(|address| format!("--device={address}=probe")).collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let simulator = Simulator::start(&devices);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let mut attached: Vec<Arc<Function>> = Vec::new();
    let mut stages = STAGES.map(|_| Stage { calls: Samples::new(), threads: 0, memory: Ok(0) });
    meter.repeat(2, &mut || {
        for at in ORDER {
            while attached.len() < STAGES[at] {
                attached.push(vmm.attach(&addresses[attached.len()]));
            }
            while attached.len() > STAGES[at] {
                attached.pop().iter().for_each(|function| vmm.host.detach(function));
            }
            stages[at].measure(meter, &attached)?;
        }
        Ok(())
    })?;
    let [one, some, all] = stages;
    let beside = "the same with one function";
    for (count, stage) in [(STAGES[1], &some), (STAGES[2], &all)] {
        let pair = (stage.calls.clone(), one.calls.clone());
        row(Row::new(format!("call-with-{count}-functions"), pair, beside, Bar::ratio(1.3)))?;
    }
    let beside = "for each of the first 8, with the connection processes";
    let pair = more([one.threads, some.threads, all.threads]);
    let bar = Bar { median: Some(2), ..Bar::default() };
    row(Row::new("threads-for-each-function", pair, beside, bar).in_unit("threads"))?;
    let memory = (|| Ok::<_, String>([one.memory?, some.memory?, all.memory?]))();
    let (name, bar) = ("memory-for-each-function", Bar::ratio(1.1));
    row(match memory {
        Ok(memory) => Row::new(name, more(memory), beside, bar),
        Err(why) => Row::missing(name, beside, bar, why),
    }
    .in_unit("bytes"))
}

impl Stage {
    fn measure(&mut self, meter: &Meter, attached: &[Arc<Function>]) -> Result<(), Failure> {
        let mut calls = 0;
        let mut read = || -> Result<(), Failure> {
            let function = &attached[calls / BURST % attached.len()];
            calls += 1;
            Ok(function.bar_read(0, SCRATCH, &mut [0; 4])?)
        };
        meter.turn(&mut || meter.once(&mut read), &mut self.calls)?;
        let processes: BTreeSet<u32> = attached
            .iter()
            .flat_map(|function| [function.pid(), function.connection().pid()])
            .chain([std::process::id()])
            .collect();
        let processes = || processes.iter().map(|pid| Process(*pid));
        self.threads = processes().map(|one| one.threads()).sum::<Result<_, _>>()?;
        let memory = processes().map(|one| one.private()).sum::<Result<_, _>>();
        self.memory = memory.map_err(|error| {
            format!("smaps_rollup, which root may read of all processes: {error}")
        });
        Ok(())
    }
}

/// What each function adds: of those beyond the first eight, and of the first eight.
fn more([one, some, all]: [u64; 3]) -> Pair {
    let each = |less: u64, more: u64, from: usize, to: usize| {
        Samples::of(more.saturating_sub(less).div_ceil((to - from) as u64))
    };
    (each(some, all, STAGES[1], STAGES[2]), each(one, some, STAGES[0], STAGES[1]))
}
