//! Reads the event stream of a `cordon serve` as strictly as it is documented.

use std::collections::BTreeMap;
use std::path::Path;

use cordon_cli::event::{Event, Record, SCHEMA};
use serde_json::Value;

/// The schema that is documented.
const DOCUMENTED: &str = include_str!("../../docs/events.schema.json");

/// Names of the kinds that the documented schema has.
///
/// # Panics
/// When it is no such schema.
#[must_use]
pub fn documented_kinds() -> Vec<String> {
    let schema: Value = serde_json::from_str(DOCUMENTED).unwrap();
    let kinds = schema["oneOf"].as_array().unwrap().iter();
    kinds.map(|kind| kind["properties"]["event"]["const"].as_str().unwrap().to_owned()).collect()
}

/// What a stream had, by kind.
pub type Counts = BTreeMap<String, u64>;

/// Reads a line: a record of the documented schema, and nothing else.
///
/// # Panics
/// When it is none: a field is missing, of another type, or not known.
#[must_use]
pub fn record(line: &str) -> Record {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let record = serde_json::from_value::<Record>(value.clone());
    let record = record.unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(record.schema, SCHEMA, "{line}");
    // A field that the types do not know would be lost on the way.
    assert_eq!(serde_json::to_value(&record).unwrap(), value, "{line}");
    assert!(documented_kinds().iter().any(|kind| kind == record.event.name()), "{line}");
    assert_eq!(record.time.len(), "2026-01-02T03:04:05.678901Z".len(), "{line}");
    record
}

/// Checks the stream in a file; what it had. `complete` is one that ended in order: then what is missing is what
/// was counted.
///
/// # Panics
/// When it is not as documented.
#[must_use]
pub fn check(path: &Path, complete: bool) -> Counts {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // A server that was killed may have been writing.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    assert!(!complete || whole.len() + 1 == text.len(), "the last line is cut");
    let mut counts = Counts::new();
    let (mut sequence, mut clock, mut missing, mut counted) = (0, 0, 0, 0);
    for line in whole.lines() {
        let record = record(line);
        assert!(record.sequence > sequence, "{line} after number {sequence}");
        assert!(record.monotonic_us >= clock, "{line} before {clock}");
        missing += record.sequence - sequence - 1;
        (sequence, clock) = (record.sequence, record.monotonic_us);
        if let Event::LeftOut { count, .. } | Event::Unread { count } = &record.event {
            counted += count;
        }
        *counts.entry(record.event.name().to_owned()).or_default() += 1;
    }
    if complete {
        assert_eq!(missing, counted, "gaps, and what was counted");
    }
    counts
}
