//! One line, and all of them.

use std::fmt;

use cordon_vmm::text::printable;
use serde::Serialize;

use super::Unknown;
use crate::Failure;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it must be.
    Ok,
    /// Not as it must be; the cure says what to do.
    Missing,
    /// Not asked, or no answer; the cure says what to do to know.
    Unknown,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    /// What was asked.
    pub(super) check: String,
    /// The answer.
    pub(super) state: State,
    /// In words.
    pub(super) found: String,
    /// What to do, unless it is ok.
    pub(super) cure: Option<String>,
    /// Whether devices are refused without it.
    pub(super) required: bool,
}

impl Line {
    fn new(check: &str, state: State, found: &str, cure: Option<String>) -> Self {
        let (check, found) = (check.to_owned(), printable(found));
        Self { check, state, found, cure, required: true }
    }

    /// It is of use, and devices are served without it.
    #[cfg(target_os = "linux")]
    pub(super) fn optional(self) -> Self {
        Self { required: false, ..self }
    }

    /// As it must be.
    pub(super) fn ok(check: &str, found: impl AsRef<str>) -> Self {
        Self::new(check, State::Ok, found.as_ref(), None)
    }

    /// Not as it must be.
    pub(super) fn missing(check: &str, found: impl AsRef<str>, cure: impl Into<String>) -> Self {
        Self::new(check, State::Missing, found.as_ref(), Some(cure.into()))
    }

    /// Not asked, or without an answer.
    pub(super) fn unknown(check: &str, found: impl AsRef<str>, cure: impl Into<String>) -> Self {
        Self::new(check, State::Unknown, found.as_ref(), Some(cure.into()))
    }
}

/// All lines.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    #[serde(rename = "type")]
    kind: &'static str,
    /// In the order in which they were asked.
    pub(super) lines: Vec<Line>,
    ok: usize,
    missing: usize,
    /// Of these, how many are not required.
    optional: usize,
    unknown: usize,
}

impl Summary {
    pub(super) fn of(lines: Vec<Line>) -> Self {
        let count = |state| lines.iter().filter(|line| line.state == state).count();
        let (ok, missing) = (count(State::Ok), count(State::Missing));
        let unknown = count(State::Unknown);
        let is_optional = |line: &&Line| line.state == State::Missing && !line.required;
        let optional = lines.iter().filter(is_optional).count();
        Self { kind: "doctor", lines, ok, missing, optional, unknown }
    }

    /// Whether all is well, as the exit status has it.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        match (self.missing - self.optional, self.unknown) {
            (0, 0) if self.ok > 0 => Ok(()),
            (0, unknown) => Err(Unknown(unknown).into()),
            (1, _) => Err("1 thing is not as it must be".into()),
            (missing, _) => Err(format!("{missing} things are not as they must be").into()),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ok, {} missing", self.ok, self.missing)?;
        if self.optional > 0 {
            write!(f, " ({} of them not required)", self.optional)?;
        }
        write!(f, ", {} unknown", self.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_and_is_ok_is_well() {
        let (ok, missing) = (Line::ok("a", "b"), Line::missing("a", "b", "c"));
        let unknown = Line::unknown("a", "b", "c");
        assert!(Summary::of(vec![ok.clone()]).verdict().is_ok());
        for lines in [vec![], vec![unknown.clone()], vec![ok.clone(), unknown.clone()]] {
            let verdict = Summary::of(lines).verdict().unwrap_err();
            assert!(verdict.downcast_ref::<Unknown>().is_some(), "{verdict}");
        }
        let verdict = Summary::of(vec![ok, unknown, missing]).verdict().unwrap_err();
        assert!(verdict.downcast_ref::<Unknown>().is_none());
        assert_eq!(verdict.to_string(), "1 thing is not as it must be");
    }

    #[test]
    fn what_is_not_required_is_missing_and_no_failure() {
        let (ok, mut optional) = (Line::ok("a", "b"), Line::missing("a", "b", "c"));
        optional.required = false;
        let summary = Summary::of(vec![ok.clone(), optional.clone()]);
        assert!(summary.verdict().is_ok());
        assert_eq!(summary.to_string(), "1 ok, 1 missing (1 of them not required), 0 unknown");
        let missing = Line::missing("a", "b", "c");
        let verdict = Summary::of(vec![ok, optional, missing]).verdict().unwrap_err();
        assert_eq!(verdict.to_string(), "1 thing is not as it must be");
    }
}
