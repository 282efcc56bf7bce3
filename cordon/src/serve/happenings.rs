//! What happens to device processes, as events. Called by the observer's own thread.

use std::time::Duration;

use cordon_cli::event::{Event, LimitName, Limited, ProcessDeath};
use cordon_vmm::Happening;
use cordon_vmm::observer::{self, Limit};

/// The event of what happened; none of what is told with what clients see of it.
pub(super) fn event(happening: &Happening) -> Option<Event> {
    Some(match happening {
        Happening::Died { address, kind, death, .. } => {
            let (device, death) = (*address, ProcessDeath::of(death));
            match kind {
                observer::ProcessKind::Connection => Event::ConnectionDied { device, death },
                _ => Event::FunctionDied { device, death },
            }
        }
        Happening::StandbyLost { address, death } => {
            Event::StandbyLost { device: *address, death: ProcessDeath::of(death) }
        }
        Happening::Recovered { address, pid, generation, took, by } => Event::Recovered {
            device: *address,
            process: *pid,
            generation: *generation,
            microseconds: microseconds(*took),
            by: (*by).into(),
        },
        Happening::Upgraded { address, pid, upgrades, took } => Event::Upgraded {
            device: *address,
            process: *pid,
            upgrades: *upgrades,
            microseconds: microseconds(*took),
        },
        Happening::Reconnected { address, pid, generation, took } => Event::ConnectionReplaced {
            device: *address,
            process: *pid,
            generation: *generation,
            microseconds: microseconds(*took),
        },
        Happening::Adopted { address, pid, generation, took } => Event::ConnectionAdopted {
            device: *address,
            process: *pid,
            generation: *generation,
            microseconds: microseconds(*took),
        },
        Happening::LimitReached { address, kind, limit } => {
            let (limit, deaths, time) = match limit {
                Limit::Deaths { deaths, window } => (LimitName::Deaths, Some(*deaths), *window),
                Limit::Timeout(time) => (LimitName::Timeout, None, *time),
                Limit::Away(time) => (LimitName::Away, None, *time),
                _ => return None,
            };
            let of = match kind {
                observer::ProcessKind::Connection => Limited::Connection,
                _ => Limited::Function,
            };
            let milliseconds = Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let (device, part, most) = (*address, None, None);
            Event::Limit { device, of, part, limit, most, deaths, milliseconds }
        }
        Happening::Requested { address, death } => {
            Event::Requested { device: *address, process: death.pid, why: death.last_words.clone() }
        }
        Happening::LeftOut { count } => Event::Unobserved { count: *count },
        // The main thread tells where devices are, and what clients see.
        _ => return None,
    })
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
