//! A line of the event stream: an event, and when and as which it was told.

use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Event;

/// The version of the schema. It rises when a kind or field is taken away or means something else; new kinds
/// and fields may come without.
pub const SCHEMA: u32 = 1;

/// A line of the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "An event of cordon serve"))]
pub struct Record {
    /// The version of the schema: 1.
    pub schema: u32,
    /// The number of the event in this run of the server, from 1. What was left out has a number too, so
    /// that gaps show it.
    pub sequence: u64,
    /// When it was told: RFC 3339, UTC, with microseconds. The clock of people, which may be set.
    pub time: String,
    /// The same by the host's monotonic clock, in microseconds: for differences.
    pub monotonic_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// `event` as number `sequence`, now.
    #[must_use]
    pub fn now(sequence: u64, event: Event) -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let microseconds = u64::try_from(now.tv_nsec).unwrap_or_default() / 1000;
        Self {
            schema: SCHEMA,
            sequence,
            time: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            monotonic_us: seconds * 1_000_000 + microseconds,
            event,
        }
    }
}
