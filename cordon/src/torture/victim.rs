//! Whose processes are struck, and by what.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use cordon_vmm::faults::What;

use super::Random;

/// A process that is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// A function process: the guest sees a pause.
    Function,
    /// The connection process: the guest sees a surprise removal and return.
    Connection,
    /// The simulated dext, which is started again: the same.
    Dext,
}

impl Victim {
    const ALL: [(&str, Self); 3] =
        [("function", Self::Function), ("connection", Self::Connection), ("dext", Self::Dext)];
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, victim)| victim == self);
        f.write_str(name.map_or("?", |(name, _)| name))
    }
}

/// A victim, and how often it is struck beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) victim: Victim,
    weight: u64,
}

/// No victim.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "function, connection or dext, each with a weight from 1 to 1000 if others are struck too, as in function=20"
)]
pub(super) struct ShareError;

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let (name, weight) = match text.split_once('=') {
            Some((name, weight)) => (name, weight.parse().map_err(|_| ShareError)?),
            None => (text, 1),
        };
        let victim = Victim::ALL.iter().find(|(known, _)| *known == name);
        let (_, victim) = victim.filter(|_| (1..=1000).contains(&weight)).ok_or(ShareError)?;
        Ok(Self { victim: *victim, weight })
    }
}

/// One of the victims, by their weights.
pub(super) fn pick(shares: &[Share], random: &mut Random) -> Victim {
    let all: u64 = shares.iter().map(|share| share.weight).sum();
    let mut at = if shares.len() > 1 { random.next() % all.max(1) } else { 0 };
    for share in shares {
        if at < share.weight {
            return share.victim;
        }
        at -= share.weight;
    }
    Victim::Function
}

/// What strikes a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FaultKind {
    /// kill -9, at any moment.
    Kill,
    /// kill -STOP, at any moment: only that it is silent shows it.
    Freeze,
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

impl FaultKind {
    /// What a process does wrong at a request; `None` for what comes from outside at any moment.
    pub(super) fn at_a_request(self) -> Option<What> {
        match self {
            Self::Kill | Self::Freeze => None,
            Self::Stop => Some(What::Stop),
            Self::Hang => Some(What::Hang),
            Self::Garbage => Some(What::Garbage),
            Self::Truncated => Some(What::Truncated),
            Self::Closed => Some(What::Closed),
        }
    }

    /// Whether only a deadline finds it.
    pub(super) fn is_silent(self) -> bool {
        matches!(self, Self::Freeze | Self::Stop | Self::Hang | Self::Truncated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(text: &str) -> Vec<Share> {
        text.split(',').map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn victims_are_picked_by_their_weights() {
        let shares = shares("function=20,connection=2,dext");
        let mut random = Random(7);
        let mut counts = [0; 3];
        for _ in 0..23_000 {
            match pick(&shares, &mut random) {
                Victim::Function => counts[0] += 1,
                Victim::Connection => counts[1] += 1,
                Victim::Dext => counts[2] += 1,
            }
        }
        let near = |count: i32, about: i32| (count - about).abs() < about / 5;
        assert!(near(counts[0], 20_000) && near(counts[1], 2000) && near(counts[2], 1000));
        assert_eq!(counts.iter().sum::<i32>(), 23_000);
    }

    #[test]
    fn one_alone_is_picked_without_a_choice() {
        let mut random = Random(7);
        assert_eq!(pick(&shares("dext"), &mut random), Victim::Dext);
        assert_eq!(random.next(), Random(7).next());
    }

    #[test]
    fn nonsense_is_no_victim() {
        for text in ["", "vmm", "function=0", "function=1001", "dext=", "dext=-1", "dext=x", "=1"] {
            assert_eq!(text.parse::<Share>(), Err(ShareError), "{text}");
        }
        assert_eq!("dext=3".parse::<Share>().unwrap().victim.to_string(), "dext");
    }
}
