//! `cordon torture`: processes are struck at random points while the NVMe function moves verified data and the probe
//! function fires interrupts. Nothing may be lost, corrupted or left.
//!
//! The death of a function process must be invisible. That of the connection process or of the dext is a surprise
//! removal and return: the load then brings its device up again, as a driver does, and must go on.

mod delay;
mod load;
mod plot;
mod size;
mod strike;
mod summary;
mod victim;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use cordon_vmm::faults::{Fault, Faults, Target, What};
use cordon_vmm::host::SpawnMeter;
use cordon_vmm::{DmaMode, Function, Host, HostConfig, Recovery};
use ipc::{Deadline, PciAddress, Window};
use serde_json::json;

use self::delay::{Delay, Stolen};
use self::load::{Tally, move_data, take_interrupts};
use self::plot::Picture;
use self::size::{Growth, Size};
use self::summary::{Deaths, Summary, Visible};
use self::victim::{FaultKind, Share, Victim};
use crate::faults::FaultOptions;
use crate::limits::SlowTold;
use crate::rig::leftovers::{self, Belongings};
use crate::rig::reporter::Reporter;
use crate::rig::simulator::Simulator;
use crate::rig::{QUEUES, RAM, RigOptions, memory};
use crate::{Failure, ending};

/// What the torture is told.
#[derive(Debug, Args)]
pub(crate) struct TortureOptions {
    /// How often a process is struck.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    kills: u64,
    /// Whose processes are struck: function, connection, dext, or several with how often each is struck beside the
    /// others, as in function=20,connection=2,dext=1. The death of the last two is a surprise removal and return.
    #[arg(
        long = "kill",
        value_name = "WHO[=WEIGHT]",
        value_delimiter = ',',
        default_value = "function"
    )]
    victims: Vec<Share>,
    /// What strikes it, chosen at random among these; a dext can only be killed.
    #[arg(long = "with", value_enum, value_delimiter = ',', default_values_t = [FaultKind::Kill])]
    kinds: Vec<FaultKind>,
    /// Which random points: the same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep a standby for each function process, and strike only while it waits.
    #[arg(long)]
    standby: bool,
    /// Linux: have a spawner start the processes, as that of `cordon serve` does.
    #[arg(long)]
    spawner: bool,
    /// Print JSON lines instead of text; the last one sums up.
    #[arg(long)]
    json: bool,
    /// Draw how long recoveries took to this file, as a picture (SVG).
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    faults: FaultOptions,
    #[command(flatten)]
    rig: RigOptions,
}

/// How long a replacement may take before the torture calls it lost.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A process that does not answer for this long is killed, where processes are stopped or hang.
const DEADLINE: Duration = Duration::from_millis(600);
/// A replacement that takes longer is told of by itself.
const SLOW: Duration = Duration::from_millis(30);
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
    simulator: &'r RefCell<Simulator>,
    /// How processes are started that the meter measures.
    config: &'r HostConfig,
    /// `None` after a death of the dext, whose connection it had.
    meter: &'r RefCell<Option<SpawnMeter>>,
    /// A function that nobody has, for the meter.
    free: PciAddress,
    tally: &'r Tally,
    reporter: &'r Reporter,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    /// How often a process was struck.
    struck: u64,
    /// Of these, how often the connection process and the dext.
    removed: [u64; 2],
    /// How long the device was away after each of those.
    removals: Vec<Duration>,
    spawns: Vec<Duration>,
    /// Of every replacement; a function itself remembers the last of them only.
    recoveries: Vec<Duration>,
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
            Some("it may strike before the load survives it: --kill connection strikes under load")
        }
    }
}

/// Runs the torture; an error unless everything but kills and recoveries is zero.
pub(crate) fn run(options: &TortureOptions) -> Result<(), Failure> {
    let faults = options.faults.arm()?;
    let dext = options.victims.iter().any(|share| share.victim == Victim::Dext);
    if let Some(kind) = options.kinds.iter().find(|kind| dext && **kind != FaultKind::Kill) {
        let name = clap::ValueEnum::to_possible_value(kind);
        let name = name.map(|value| value.get_name().to_owned()).unwrap_or_default();
        return Err(format!("A dext can only be killed, not struck --with {name}").into());
    }
    for report in faults.report() {
        if let Some(why) = unfit(&report.fault) {
            return Err(format!("The torture cannot have fault '{}': {why}", report.fault).into());
        }
    }
    let picture = options.svg.as_deref().map(Picture::new).transpose()?;
    let reporter = Reporter::new(options.json, ending::within(GRACE)?);
    match under_load(options, &faults, &reporter, picture) {
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
    let planned = faults.report();
    let mut planned = planned.iter().map(|report| report.fault.what);
    options.kinds.iter().any(|kind| kind.is_silent())
        || planned.any(|what| matches!(what, What::Stop | What::Hang | What::Truncated))
}

fn under_load(
    options: &TortureOptions,
    faults: &Arc<Faults>,
    reporter: &Reporter,
    picture: Option<Picture>,
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
    let from_outside = options.kinds.iter().all(|kind| kind.at_a_request().is_none());
    let by_kills_only = from_outside && !options.faults.any();
    let armed = (!by_kills_only).then(|| Arc::clone(faults));
    let (simulator, mut config) = options.rig.start(&devices, recovery, armed)?;
    // Nothing of the meter's is struck, and a busy machine is no reason to give it up.
    let usual = config.deadlines;
    if is_silence_expected(options, faults) {
        config.deadlines.call = DEADLINE;
    }
    if options.spawner {
        config = crate::sys::with_spawner(config, &[nvme, probe, free])?;
    }
    let before = Belongings::now()?;

    reporter.step(&format!("Striking {} times, seed {}", options.kills, options.seed))?;
    let metered = config.clone().with_deadlines(usual);
    let meter = RefCell::new(Some(SpawnMeter::start(&metered, free)?));
    let simulator = RefCell::new(simulator);
    let host = Host::new(config);
    let (container, window) = memory(DmaMode::Direct, RAM)?;
    let proxies = [host.attach(nvme, &container, None)?, host.attach(probe, &container, None)?];
    let tally = Tally::default();
    let rack = Rack {
        options,
        proxies: &proxies,
        faults,
        simulator: &simulator,
        config: &metered,
        meter: &meter,
        free,
        tally: &tally,
        reporter,
    };
    let tortured = rack.torture(&window);
    for proxy in &proxies {
        host.detach(proxy);
    }
    meter.take().map(SpawnMeter::stop).transpose()?;
    let mut outcome = tortured?;
    let [connection, dext] = outcome.removed;
    let deaths = Deaths {
        functions: outcome.struck - connection - dext,
        connection,
        dext,
        recoveries: std::mem::take(&mut outcome.recoveries),
        removals: std::mem::take(&mut outcome.removals),
        replaced: proxies.iter().map(|one| one.replacements()).sum(),
        returns: proxies.iter().map(|one| one.returns()).sum(),
    };
    drop((proxies, container));
    let simulator = simulator.into_inner();
    let left = leftovers::list(&before, &simulator)?;
    drop(simulator);
    for one in &left {
        reporter.say(&format!("left: {one}"))?;
    }
    for one in &outcome.growth {
        reporter.say(&one.to_string())?;
    }
    reporter.data("processes", json!({ "processes": outcome.growth }))?;
    let leaked = left.len() + outcome.growth.iter().filter(|one| one.is_leak()).count();
    let planned = summary::planned(faults, reporter)?;
    let summary = Summary { options, reporter, tally: &tally, planned, leaked };
    summary.tell(deaths, &mut outcome.spawns, picture)
}

impl Rack<'_> {
    /// Strikes under load.
    fn torture(&self, ram: &Window) -> Result<Outcome, Failure> {
        let ([disk, probe], tally) = (self.proxies, self.tally);
        std::thread::scope(|scope| {
            let storage = scope.spawn(|| move_data(disk, ram, tally));
            let interrupts = scope.spawn(|| take_interrupts(probe, tally));
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
        let mut outcome = Outcome::default();
        // What a run needs anyway is there after its first tenth.
        let warm = kills.div_ceil(10);
        let mut first = None;
        let mut last_word = Instant::now();
        let mut slow_told = SlowTold::default();
        while outcome.struck < kills && self.goes_on() {
            let number = outcome.struck;
            if number == warm {
                // And after the first rounds of data.
                let enough = || self.tally.bytes.load(Ordering::Relaxed) >= WARM_BYTES;
                let _ = wait(|| enough() || !self.goes_on());
                first = Some(self.watched().map(Size::of));
            }
            if number.is_multiple_of(kills.div_ceil(SPAWNS)) {
                outcome.spawns.extend(self.measure()?);
            }
            if last_word.elapsed() > Duration::from_secs(5) {
                self.reporter.say(&format!("{number} of {kills} kills"))?;
                last_word = Instant::now();
            }
            let victim = victim::pick(&self.options.victims, &mut random);
            let proxy = &self.proxies[usize::from(random.next().is_multiple_of(2))];
            if self.options.standby && victim == Victim::Function {
                wait(|| proxy.has_standby() || !self.goes_on())
                    .map_err(|()| format!("{} has no standby", proxy.address()))?;
            }
            std::thread::sleep(Duration::from_micros(random.next() % 4000));
            if !self.goes_on() {
                break;
            }
            match victim {
                Victim::Function => {
                    let before = Stolen::now();
                    let recoveries = self.strike_function(proxy, &mut random)?;
                    for slow in recoveries.iter().filter(|time| **time > SLOW) {
                        if !slow_told.one_more() {
                            break;
                        }
                        let (number, address) = (outcome.struck + 1, proxy.address());
                        let why = Delay::of(proxy.pid(), before);
                        self.reporter
                            .say(&format!("kill {number}, {address}: back in {slow:.1?}: {why}"))?;
                    }
                    outcome.recoveries.extend(recoveries);
                }
                removed => {
                    outcome.removals.push(self.remove(removed, &mut random)?);
                    outcome.removed[usize::from(removed == Victim::Dext)] += 1;
                }
            }
            outcome.struck += 1;
        }
        if let Some(first) = first {
            let names = ["cordon", "connection process", "dext-sim"];
            let sizes = first.into_iter().zip(self.watched().map(Size::of));
            let grown = |(name, (first, last))| Growth::between(name, first, last);
            outcome.growth = names.into_iter().zip(sizes).map(grown).collect();
        }
        Ok(outcome)
    }

    /// Whether there is no reason to end early.
    fn goes_on(&self) -> bool {
        self.tally.goes_on() && self.reporter.check().is_ok()
    }

    /// The processes whose size is looked at: this one, the connection process, the dext.
    fn watched(&self) -> [u32; 3] {
        let connection = self.proxies[0].connection().pid();
        [std::process::id(), connection, self.simulator.borrow().pid()]
    }

    /// What a bare spawn takes now. One that does not get a processor in time is a figure less, and no loss of the
    /// guest's: it is said, and another meter takes the next.
    fn measure(&self) -> Result<Option<Duration>, Failure> {
        let mut meter = self.meter.borrow_mut();
        let started = match meter.take() {
            Some(meter) => Ok(meter),
            None => SpawnMeter::start(self.config, self.free),
        };
        let measured = started.and_then(|meter| Ok((meter.measure()?, meter)));
        match measured {
            Ok((time, again)) => {
                *meter = Some(again);
                Ok(Some(time))
            }
            Err(error) => {
                self.reporter.say(&format!("a spawn was not measured: {error}"))?;
                Ok(None)
            }
        }
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
