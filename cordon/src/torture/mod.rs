//! `cordon torture`: function processes are struck at random points while the NVMe function moves
//! verified data and the probe function fires interrupts. Nothing may be lost, corrupted or left.

mod load;
mod size;
mod summary;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::faults::{Fault, Faults, Point, Target, What};
use cordon_vmm::host::SpawnMeter;
use cordon_vmm::{Container, DmaMode, Function, Host, PassthroughDevice as _, Recovery};
use ipc::{Access, Deadline, PciAddress, SharedMemory, Window};
use serde_json::json;

use self::load::{Tally, move_data, take_interrupts};
use self::size::{Growth, Size};
use self::summary::{Deaths, Summary, Visible};
use crate::faults::FaultOptions;
use crate::rig::leftovers::{self, Belongings};
use crate::rig::reporter::Reporter;
use crate::rig::simulator::Simulator;
use crate::rig::{QUEUES, RAM, RAM_BASE, RigOptions, alive};
use crate::{Failure, ending};

/// What the torture is told.
#[derive(Debug, Args)]
pub(crate) struct TortureOptions {
    /// How often a function process is struck.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    kills: u64,
    /// What strikes it, chosen at random among these.
    #[arg(long = "with", value_enum, value_delimiter = ',', default_values_t = [FaultKind::Kill])]
    kinds: Vec<FaultKind>,
    /// Which random points: the same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep a standby for each function process, and strike only while it waits.
    #[arg(long)]
    standby: bool,
    /// Print JSON lines instead of text; the last one sums up.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    faults: FaultOptions,
    #[command(flatten)]
    rig: RigOptions,
}

/// What strikes a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FaultKind {
    /// kill -9, at any moment.
    Kill,
    /// A stop signal at its next request.
    Stop,
    /// An endless loop at its next request.
    Hang,
    /// Bytes that are no message at its next request.
    Garbage,
    /// Half a message at its next request.
    Truncated,
    /// A closed tube at its next request.
    Closed,
}

/// How long a replacement may take before the torture calls it lost.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A process that does not answer for this long is killed, where processes are stopped or hang.
const DEADLINE: Duration = Duration::from_millis(600);
/// How long an interrupted torture may take to end in order: what was struck last comes back first.
const GRACE: Duration = Duration::from_secs(10);
/// Data moved before the first look at what processes hold.
const WARM_BYTES: u64 = 64 << 20;
/// Spawns that a recovery is compared with, spread over the run.
const SPAWNS: u64 = 50;

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What is tortured.
struct Rack<'r> {
    options: &'r TortureOptions,
    proxies: &'r [Arc<Function>; 2],
    faults: &'r Faults,
    simulator: &'r Simulator,
    meter: &'r SpawnMeter,
    tally: &'r Tally,
    reporter: &'r Reporter,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    /// How often a process was struck.
    struck: u64,
    spawns: Vec<Duration>,
    growth: Vec<Growth>,
}

/// Why the torture cannot tell a fault from a failure.
fn unfit(fault: &Fault) -> Option<&'static str> {
    let is_long = |ms: u64| Duration::from_millis(ms) >= DEADLINE;
    match (fault.process, fault.what) {
        (_, What::Selector { .. }) => Some("its driver takes a call that fails for an I/O error"),
        (_, What::Delay(ms)) if is_long(ms) => {
            Some("processes that take longer than 600 ms are killed here")
        }
        (_, What::Delay(_)) | (Target::Function, _) => None,
        (Target::Connection, _) => {
            Some("its driver survives the deaths of function processes only")
        }
    }
}

/// Runs the torture; an error unless everything but kills and recoveries is zero.
pub(crate) fn run(options: &TortureOptions) -> Result<(), Failure> {
    let faults = options.faults.arm()?;
    for report in faults.report() {
        if let Some(why) = unfit(&report.fault) {
            return Err(format!("The torture cannot have fault '{}': {why}", report.fault).into());
        }
    }
    let reporter = Reporter::new(options.json, ending::within(GRACE)?);
    match under_load(options, &faults, &reporter) {
        Err(failure) if !failure.is::<Visible>() => {
            // A signal explains whatever failed since.
            reporter.check()?;
            Err(failure)
        }
        done => done,
    }
}

/// Whether processes are struck so that they fall silent, which only a deadline ends.
fn is_silence_expected(options: &TortureOptions, faults: &Faults) -> bool {
    let silent = [FaultKind::Stop, FaultKind::Hang, FaultKind::Truncated];
    let planned = faults.report();
    let mut planned = planned.iter().map(|report| report.fault.what);
    options.kinds.iter().any(|kind| silent.contains(kind))
        || planned.any(|what| matches!(what, What::Stop | What::Hang | What::Truncated))
}

fn under_load(
    options: &TortureOptions,
    faults: &Arc<Faults>,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let (nvme, probe): (PciAddress, PciAddress) = ("01:00.0".parse()?, "01:00.1".parse()?);
    let free: PciAddress = "02:00.0".parse()?;
    let devices = [
        format!("{nvme}=nvme,queues={QUEUES},size=64M").into(),
        format!("{probe}=probe").into(),
        format!("{free}=probe").into(),
    ];
    // The deaths are ours: no number of them is a crash loop.
    let standby = options.standby;
    let recovery = Recovery::default().with_max_deaths(u32::MAX).with_standby(standby);
    let by_kills_only = options.kinds == [FaultKind::Kill] && !options.faults.any();
    let armed = (!by_kills_only).then(|| Arc::clone(faults));
    let (simulator, mut config) = options.rig.start(&devices, recovery, armed)?;
    if is_silence_expected(options, faults) {
        config.deadlines.call = DEADLINE;
    }
    let before = Belongings::now()?;

    reporter.step(&format!("Striking {} times, seed {}", options.kills, options.seed))?;
    let meter = SpawnMeter::start(&config, free)?;
    let host = Host::new(config);
    let container = Arc::new(Container::new(DmaMode::Direct));
    let ram = SharedMemory::create("guest-ram", RAM)?;
    let window = ram.map_all(Access::ReadWrite)?;
    container.map(GuestRegion {
        iova: RAM_BASE,
        size: RAM,
        memory: ram.into(),
        offset: 0,
        writable: true,
    })?;
    let proxies = [host.attach(nvme, &container, None)?, host.attach(probe, &container, None)?];
    let tally = Tally::default();
    let rack = Rack {
        options,
        proxies: &proxies,
        faults,
        simulator: &simulator,
        meter: &meter,
        tally: &tally,
        reporter,
    };
    let tortured = rack.torture(&window);
    for proxy in &proxies {
        host.detach(proxy);
    }
    meter.stop()?;
    let mut outcome = tortured?;
    let deaths = Deaths {
        struck: outcome.struck,
        recoveries: proxies.iter().flat_map(|one| one.recoveries()).collect(),
        replaced: proxies.iter().map(|one| one.replacements()).sum(),
    };
    drop((proxies, container));
    let left = leftovers::list(&before, &simulator)?;
    drop(simulator);
    for one in &left {
        reporter.say(&format!("left: {one}"))?;
    }
    for one in &outcome.growth {
        reporter.say(&one.to_string())?;
    }
    reporter.data(&json!({ "processes": outcome.growth }))?;
    let leaked = left.len() + outcome.growth.iter().filter(|one| one.is_leak()).count();
    let planned = summary::planned(faults, reporter)?;
    let summary = Summary { options, reporter, tally: &tally, planned, leaked };
    summary.tell(deaths, &mut outcome.spawns)
}

impl Rack<'_> {
    /// Strikes under load.
    fn torture(&self, ram: &Window) -> Result<Outcome, Failure> {
        let [disk, probe] = self.proxies;
        for proxy in [disk, probe] {
            proxy.config_write(0x04, &[0x06, 0x00])?;
        }
        std::thread::scope(|scope| {
            let storage = scope.spawn(|| move_data(disk, ram, self.tally));
            let interrupts = scope.spawn(|| take_interrupts(probe, self.tally));
            let struck = self.strike_all();
            self.tally.end();
            for (what, worker) in [("NVMe", storage), ("probe", interrupts)] {
                match worker.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => self.reporter.say(&format!("{what}: {error}"))?,
                    Err(_) => return Err(format!("the {what} worker panicked").into()),
                }
            }
            struck
        })
    }

    fn strike_all(&self) -> Result<Outcome, Failure> {
        let kills = self.options.kills;
        let mut random = Random(self.options.seed | 1);
        let names = ["cordon", "connection process", "dext-sim"];
        let connection = self.proxies[0].connection();
        let watched = [std::process::id(), connection.pid(), self.simulator.pid()];
        let mut outcome = Outcome::default();
        // What a run needs anyway is there after its first tenth.
        let warm = kills.div_ceil(10);
        let mut first = None;
        let mut last_word = Instant::now();
        while outcome.struck < kills && self.goes_on() {
            let number = outcome.struck;
            if number == warm {
                // And after the first rounds of data.
                let enough = || self.tally.bytes.load(Ordering::Relaxed) >= WARM_BYTES;
                let _ = wait(|| enough() || !self.goes_on());
                first = Some(watched.map(Size::of));
            }
            if number.is_multiple_of(kills.div_ceil(SPAWNS)) {
                outcome.spawns.push(self.meter.measure()?);
            }
            if last_word.elapsed() > Duration::from_secs(5) {
                self.reporter.say(&format!("{number} kills"))?;
                last_word = Instant::now();
            }
            let proxy = &self.proxies[usize::from(random.next().is_multiple_of(2))];
            if self.options.standby {
                wait(|| proxy.has_standby() || !self.goes_on())
                    .map_err(|()| format!("{} has no standby", proxy.address()))?;
            }
            std::thread::sleep(Duration::from_micros(random.next() % 4000));
            if self.goes_on() {
                self.strike_once(proxy, &mut random)?;
                outcome.struck += 1;
            }
        }
        if let Some(first) = first {
            let sizes = first.into_iter().zip(watched.map(Size::of));
            let grown = |(name, (first, last))| Growth::between(name, first, last);
            outcome.growth = names.into_iter().zip(sizes).map(grown).collect();
        }
        Ok(outcome)
    }

    /// Whether there is no reason to end early.
    fn goes_on(&self) -> bool {
        self.tally.goes_on() && self.reporter.check().is_ok()
    }

    /// Strikes, and waits until whoever was struck is replaced.
    fn strike_once(&self, proxy: &Function, random: &mut Random) -> Result<(), Failure> {
        let before = proxy.replacements();
        self.strike(proxy, random)?;
        let back = wait(|| proxy.replacements() > before || alive(proxy).is_err());
        alive(proxy)?;
        Ok(back.map_err(|()| format!("{} did not come back", proxy.address()))?)
    }

    fn strike(&self, proxy: &Function, random: &mut Random) -> Result<(), Failure> {
        use rustix::process::{Pid, Signal, kill_process};
        let kinds = &self.options.kinds;
        let pick = |random: &mut Random, count: usize| -> usize {
            usize::try_from(random.next() % count as u64).unwrap_or_default()
        };
        let what = match kinds[pick(random, kinds.len())] {
            FaultKind::Kill => {
                let pid = i32::try_from(proxy.pid()).ok().and_then(Pid::from_raw);
                return Ok(kill_process(pid.ok_or("no process")?, Signal::KILL)?);
            }
            FaultKind::Stop => What::Stop,
            FaultKind::Hang => What::Hang,
            FaultKind::Garbage => What::Garbage,
            FaultKind::Truncated => What::Truncated,
            FaultKind::Closed => What::Closed,
        };
        let when = [Point::Before, Point::During, Point::After][pick(random, 3)];
        let (process, device) = (Target::Function, Some(proxy.address()));
        self.faults.add(Fault {
            process,
            device,
            request: None,
            nth: 1,
            when,
            after_ms: 0,
            what,
        })?;
        // One request to strike at, and one to notice that a process stopped after the first.
        for _ in 0..2 {
            proxy.config_read(0, &mut [0; 4])?;
        }
        Ok(())
    }
}

/// Waits until something holds.
fn wait(holds: impl Fn() -> bool) -> Result<(), ()> {
    let deadline = Deadline::after(TIMEOUT);
    while !holds() {
        if deadline.passed() {
            return Err(());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
