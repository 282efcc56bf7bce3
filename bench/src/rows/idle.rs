//! What processes do while functions are attached and nobody asks them anything.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use cordon_tests::serve::Serve;
use cordon_tests::{Simulator, Vmm, config};
use cordon_vmm::DmaMode;

use super::{Bar, Failure, Report, Row};
use crate::measure::{Meter, Samples, nanoseconds};
use crate::proc::{Process, Usage};

/// 0.05 % of a processor.
const PROCESSOR: u64 = 500_000;
/// Two a second.
const WAKEUPS: u64 = 120;

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let function = vmm.attach("01:00.0");
    let serve = Serve::start(&simulator, &["02:00.0"]);
    let ticker = Ticker::start()?;
    // What is left to do after the start is done by then.
    std::thread::sleep(meter.time);
    let own = std::process::id();
    let processes = [
        ("function-process", function.pid()),
        ("connection-process", function.connection().pid()),
        ("serve", serve.pid()),
        ("vmm-threads", own),
    ];
    let look = || -> io::Result<[Usage; 5]> {
        let mut all = [ticker.usage()?; 5];
        for ((_, pid), usage) in processes.iter().zip(&mut all) {
            *usage = Process(*pid).usage()?;
        }
        // Of this process, what are the library's threads.
        all[3] = all[3].since(Usage::of_this_thread()?).since(all[4]);
        Ok(all)
    };
    let (before, began) = (look()?, Instant::now());
    std::thread::sleep(meter.time * 8);
    let (after, time) = (look()?, nanoseconds(began.elapsed()));
    let rate = |count: u64, over: u64| {
        let rate = u128::from(count) * u128::from(over) / u128::from(time.max(1));
        Samples::of(u64::try_from(rate).unwrap_or(u64::MAX))
    };
    let used = |at: usize| after[at].since(before[at]);
    let beside = "a thread that sleeps for a second at a time";
    let (second, minute) = (1_000_000_000, 60_000_000_000);
    for (at, (name, _)) in processes.iter().enumerate() {
        let pair = (rate(used(at).processor, second), rate(used(4).processor, second));
        let bar = Bar { median: Some(PROCESSOR), ..Bar::default() };
        row(Row::new(format!("idle-{name}-ns-a-second"), pair, beside, bar))?;
        let pair = (rate(used(at).wakeups, minute), rate(used(4).wakeups, minute));
        let bar = Bar { median: Some(WAKEUPS), ..Bar::default() };
        let row_of = Row::new(format!("idle-{name}-wake-ups"), pair, beside, bar);
        row(row_of.in_unit("a minute"))?;
    }
    Ok(())
}

/// A thread that sleeps for a second at a time, until it is dropped.
struct Ticker {
    /// Its folder in /proc.
    task: PathBuf,
    _end: Sender<()>,
}

impl Ticker {
    fn start() -> Result<Self, Failure> {
        let ((end, ended), (tell, told)) = (channel::<()>(), channel());
        std::thread::spawn(move || {
            let _ = tell.send(std::fs::read_link("/proc/thread-self"));
            let second = Duration::from_secs(1);
            while ended.recv_timeout(second) == Err(RecvTimeoutError::Timeout) {}
        });
        Ok(Self { task: Path::new("/proc").join(told.recv()??), _end: end })
    }

    fn usage(&self) -> io::Result<Usage> {
        Usage::of(&self.task)
    }
}
