//! Why a replacement took long: how long its process ran, how long it waited for a processor, and how much of
//! every processor's time the hypervisor below this machine took meanwhile. Known on Linux only.

use std::fmt;
use std::time::Duration;

/// Processor time that the hypervisor took from this machine since it started, all processors together.
#[derive(Clone, Copy)]
pub(super) struct Stolen(Option<u64>);

impl Stolen {
    pub(super) fn now() -> Self {
        let ticks = std::fs::read_to_string("/proc/stat").ok();
        // cpu user nice system idle iowait irq softirq steal
        Self(ticks.and_then(|text| text.lines().next()?.split_whitespace().nth(8)?.parse().ok()))
    }
}

/// What became of the time of a replacement.
pub(super) struct Delay {
    ran_and_waited: Option<(Duration, Duration)>,
    stolen: Option<Duration>,
}

impl Delay {
    /// Of the process that serves now, and of the time since `before`.
    pub(super) fn of(pid: u32, before: Stolen) -> Self {
        // In ticks of a hundredth of a second, as the kernel shows them to everybody.
        let ticks = Stolen::now().0.zip(before.0).map(|(now, before)| now.saturating_sub(before));
        let schedule = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok();
        Self {
            ran_and_waited: schedule.as_deref().and_then(ran_and_waited),
            stolen: ticks.map(|ticks| Duration::from_millis(ticks.saturating_mul(10))),
        }
    }
}

/// "NANOSECONDS-RUN NANOSECONDS-WAITED SLICES"
fn ran_and_waited(schedule: &str) -> Option<(Duration, Duration)> {
    let mut words = schedule.split_whitespace();
    let mut next = || words.next()?.parse().ok().map(Duration::from_nanos);
    Some((next()?, next()?))
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ran_and_waited {
            Some((ran, waited)) => {
                write!(f, "its process ran {ran:.1?} and waited {waited:.1?} for a processor")?;
            }
            None => f.write_str("what its process did is not known here")?,
        }
        match self.stolen {
            Some(time) => write!(f, "; the hypervisor took {} ms meanwhile", time.as_millis()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_read_and_told() {
        let times = Some((Duration::from_micros(5200), Duration::from_millis(31)));
        assert_eq!(ran_and_waited("5200000 31000000 12\n"), times);
        assert_eq!(ran_and_waited("5200000"), None);
        let delay = Delay { ran_and_waited: times, stolen: Some(Duration::from_millis(20)) };
        assert_eq!(
            delay.to_string(),
            "its process ran 5.2ms and waited 31.0ms for a processor; the hypervisor took 20 ms meanwhile"
        );
        let unknown = Delay { ran_and_waited: None, stolen: None };
        assert_eq!(unknown.to_string(), "what its process did is not known here");
    }
}
