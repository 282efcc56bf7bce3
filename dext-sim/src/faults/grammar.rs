//! How a fault is written: KIND:FIELD=VALUE,…
//!
//! Whatever could never happen is refused here, with what could: a selector that does not exist,
//! a call number 0, a failure with the code of success, a field that the kind does not have.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipc::wire::dext::IoReturn;

use super::ending::EndingError;
use super::{Ending, Fault};
use crate::limits::MAX_MILLISECONDS;
use crate::methods::{self, METHODS};

/// A fault description that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FaultError {
    #[error("unknown fault '{0}': {kinds}", kinds = kinds())]
    Kind(String),
    #[error("fault {kind}: '{part}' is not of the form FIELD=VALUE")]
    Form { kind: &'static str, part: String },
    #[error("fault {kind} has no field '{field}': {fields}", fields = listed(fields))]
    Unknown { kind: &'static str, field: String, fields: &'static [&'static str] },
    #[error("fault {kind}: {field} is given twice")]
    Twice { kind: &'static str, field: String },
    #[error("fault {kind} needs {field}=VALUE")]
    Missing { kind: &'static str, field: &'static str },
    #[error("fault {kind}: {field}={value} is no number from {} to {}", range.start(), range.end())]
    Number { kind: &'static str, field: &'static str, value: String, range: RangeInclusive<u64> },
    #[error("fault {kind}: there is no selector {selector}, only {selectors}", selectors = selectors())]
    Selector { kind: &'static str, selector: u32 },
    #[error("fault {kind}: {error}")]
    Ending { kind: &'static str, error: EndingError },
}

/// Every kind and its fields.
const KINDS: [(&str, &[&str]); 8] = [
    ("fail", &["selector", "nth", "code"]),
    ("delay", &["selector", "nth", "calls", "ms"]),
    ("die", &["selector", "nth"]),
    ("end", &["selector", "nth", "as", "back"]),
    ("drop-notification", &["nth"]),
    ("fragment", &["nth"]),
    ("cleanup-delay", &["ms"]),
    ("no-msix", &[]),
];

fn kinds() -> String {
    KINDS.map(|(kind, _)| kind).join(", ")
}

fn listed(fields: &[&str]) -> String {
    if fields.is_empty() { "it has none".to_owned() } else { fields.join(", ") }
}

fn selectors() -> String {
    let numbered = METHODS.iter().enumerate();
    let all: Vec<_> =
        numbered.map(|(selector, method)| format!("{selector} {}", method.name)).collect();
    all.join(", ")
}

/// The fields of one description, each of them one that the kind has, and given once.
struct Fields<'t> {
    kind: &'static str,
    given: Vec<(&'t str, &'t str)>,
}

impl<'t> Fields<'t> {
    fn split(
        kind: &'static str,
        fields: &'static [&'static str],
        text: Option<&'t str>,
    ) -> Result<Self, FaultError> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        for part in text.into_iter().flat_map(|text| text.split(',')) {
            let (field, value) = part
                .split_once('=')
                .ok_or_else(|| FaultError::Form { kind, part: part.to_owned() })?;
            if !fields.contains(&field) {
                return Err(FaultError::Unknown { kind, field: field.to_owned(), fields });
            }
            if given.iter().any(|(before, _)| *before == field) {
                return Err(FaultError::Twice { kind, field: field.to_owned() });
            }
            given.push((field, value));
        }
        Ok(Self { kind, given })
    }

    fn text(&self, field: &'static str) -> Result<&'t str, FaultError> {
        let found = self.given.iter().find(|(name, _)| *name == field);
        let missing = FaultError::Missing { kind: self.kind, field };
        found.map(|(_, value)| *value).ok_or(missing)
    }

    /// Decimal, or hexadecimal after 0x.
    fn number(&self, field: &'static str, range: RangeInclusive<u64>) -> Result<u64, FaultError> {
        let value = self.text(field)?;
        let number = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        match number {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => {
                let value = value.to_owned();
                Err(FaultError::Number { kind: self.kind, field, value, range })
            }
        }
    }

    fn narrow(&self, field: &'static str, from: u64) -> Result<u32, FaultError> {
        let number = self.number(field, from..=u32::MAX.into())?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn selector(&self) -> Result<u32, FaultError> {
        let selector = self.narrow("selector", 0)?;
        let unknown = FaultError::Selector { kind: self.kind, selector };
        methods::find(selector).map(|_| selector).ok_or(unknown)
    }

    /// Which call: they are counted from 1.
    fn nth(&self) -> Result<u64, FaultError> {
        self.number("nth", 1..=u64::MAX)
    }

    /// How many calls: one unless given.
    fn calls(&self) -> Result<u64, FaultError> {
        let given = self.given.iter().any(|(name, _)| *name == "calls");
        if given { self.number("calls", 1..=u64::MAX) } else { Ok(1) }
    }

    fn time(&self, field: &'static str) -> Result<Duration, FaultError> {
        self.number(field, 1..=MAX_MILLISECONDS).map(Duration::from_millis)
    }

    /// A time that need not be given.
    fn optional_time(&self, field: &'static str) -> Result<Option<Duration>, FaultError> {
        let given = self.given.iter().any(|(name, _)| *name == field);
        given.then(|| self.time(field)).transpose()
    }

    fn ending(&self) -> Result<Ending, FaultError> {
        let parsed = self.text("as")?.parse();
        parsed.map_err(|error| FaultError::Ending { kind: self.kind, error })
    }

    /// Any code but success.
    fn code(&self) -> Result<IoReturn, FaultError> {
        self.narrow("code", 1).map(IoReturn)
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (kind, fields) = match text.split_once(':') {
            Some((kind, fields)) => (kind, Some(fields)),
            None => (text, None),
        };
        let known = KINDS.into_iter().find(|(name, _)| *name == kind);
        let (kind, has) = known.ok_or_else(|| FaultError::Kind(kind.to_owned()))?;
        let fields = Fields::split(kind, has, fields)?;
        Ok(match kind {
            "fail" => Self::Fail {
                selector: fields.selector()?,
                nth: fields.nth()?,
                code: fields.code()?,
            },
            "delay" => Self::Delay {
                selector: fields.selector()?,
                nth: fields.nth()?,
                calls: fields.calls()?,
                time: fields.time("ms")?,
            },
            "die" => Self::Die { selector: fields.selector()?, nth: fields.nth()? },
            "end" => Self::End {
                selector: fields.selector()?,
                nth: fields.nth()?,
                ending: fields.ending()?,
                back: fields.optional_time("back")?,
            },
            "drop-notification" => Self::DropNotification { nth: fields.nth()? },
            "fragment" => Self::Fragment { nth: fields.nth()? },
            "cleanup-delay" => Self::CleanupDelay { time: fields.time("ms")? },
            "no-msix" => Self::NoMsix,
            other => return Err(FaultError::Kind(other.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Fault>().unwrap_err().to_string()
    }

    #[test]
    fn every_kind_is_read() {
        let ms = Duration::from_millis;
        for (text, fault) in [
            (
                "fail:selector=17,nth=1,code=0xe00002bc",
                Fault::Fail { selector: 17, nth: 1, code: IoReturn(0xe000_02bc) },
            ),
            (
                "fail:code=5,nth=0x10,selector=0",
                Fault::Fail { selector: 0, nth: 16, code: IoReturn(5) },
            ),
            (
                "delay:selector=8,nth=2,ms=300",
                Fault::Delay { selector: 8, nth: 2, calls: 1, time: ms(300) },
            ),
            (
                "delay:selector=8,nth=2,calls=9,ms=300",
                Fault::Delay { selector: 8, nth: 2, calls: 9, time: ms(300) },
            ),
            ("die:selector=5,nth=3", Fault::Die { selector: 5, nth: 3 }),
            (
                "end:selector=8,nth=1,as=offline",
                Fault::End { selector: 8, nth: 1, ending: Ending::Offline, back: None },
            ),
            (
                "end:selector=8,nth=1,as=port-dead,back=50",
                Fault::End { selector: 8, nth: 1, ending: Ending::PortDead, back: Some(ms(50)) },
            ),
            ("drop-notification:nth=1", Fault::DropNotification { nth: 1 }),
            ("fragment:nth=2", Fault::Fragment { nth: 2 }),
            ("cleanup-delay:ms=600000", Fault::CleanupDelay { time: ms(600_000) }),
            ("no-msix", Fault::NoMsix),
        ] {
            assert_eq!(text.parse(), Ok(fault), "{text}");
        }
    }

    #[test]
    fn selectors_that_do_not_exist_are_refused_with_those_that_do() {
        for kind in ["fail:code=1,", "delay:ms=1,", "die:", "end:as=offline,"] {
            for selector in [18, 99, u32::MAX] {
                let said = refused(&format!("{kind}selector={selector},nth=1"));
                assert!(said.contains(&format!("no selector {selector}")), "{said}");
                for name in ["0 GetIdentity", "8 ConfigRead", "17 ResetDevice"] {
                    assert!(said.contains(name), "{said}");
                }
            }
        }
    }

    #[test]
    fn every_number_has_a_range() {
        for (text, says) in [
            ("fail:selector=8,nth=0,code=1", "nth=0 is no number from 1"),
            ("fail:selector=8,nth=-1,code=1", "nth=-1"),
            ("fail:selector=8,nth=18446744073709551616,code=1", "nth=18446744073709551616"),
            ("fail:selector=8,nth=1,code=0", "code=0 is no number from 1 to 4294967295"),
            ("fail:selector=8,nth=1,code=0x100000000", "code=0x100000000"),
            ("fail:selector=8,nth=1,code=0x", "code=0x"),
            ("fail:selector=0x100000000,nth=1,code=1", "selector=0x100000000"),
            ("fail:selector=,nth=1,code=1", "selector= is no number"),
            ("fail:selector=ConfigRead,nth=1,code=1", "selector=ConfigRead"),
            ("delay:selector=8,nth=1,ms=0", "ms=0 is no number from 1 to 600000"),
            ("delay:selector=8,nth=1,ms=600001", "ms=600001"),
            ("delay:selector=8,nth=1,calls=0,ms=1", "calls=0"),
            ("cleanup-delay:ms=18446744073709551615", "ms=18446744073709551615"),
            ("drop-notification:nth=0", "nth=0"),
            ("fragment:nth=0", "nth=0"),
            ("die:selector=8,nth=0", "nth=0"),
            ("end:selector=8,nth=1,as=offline,back=0", "back=0"),
        ] {
            let said = refused(text);
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn what_a_kind_does_not_have_or_lacks_is_named() {
        for (text, says) in [
            ("burn", "unknown fault 'burn': fail, delay"),
            ("", "unknown fault ''"),
            ("delay:selector=1,nth=1", "fault delay needs ms=VALUE"),
            ("fail:selector=1,code=1", "fault fail needs nth=VALUE"),
            ("die:nth=1", "fault die needs selector=VALUE"),
            ("die", "fault die needs selector=VALUE"),
            ("die:selector=1,nth=1,ms=5", "fault die has no field 'ms': selector, nth"),
            ("no-msix:nth=1", "fault no-msix has no field 'nth': it has none"),
            ("end:selector=8,nth=1", "fault end needs as=VALUE"),
            ("end:selector=8,nth=1,as=smoke", "'smoke' is no way to end: offline, no-device"),
            ("fragment:nth=1,nth=2", "nth is given twice"),
            ("fragment:nth", "'nth' is not of the form"),
            ("fragment:", "'' is not of the form"),
            ("fragment:nth=1,", "'' is not of the form"),
        ] {
            let said = refused(text);
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
