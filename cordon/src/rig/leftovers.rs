//! What is left of a run: child processes, descriptors, and what the dext still has.

use std::time::{Duration, Instant};

use super::simulator::Simulator;
use crate::{Failure, sys};

/// What this process has at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Belongings {
    children: Vec<u32>,
    descriptors: Vec<String>,
}

impl Belongings {
    /// Counts.
    pub(crate) fn now() -> Result<Self, Failure> {
        Ok(Self { children: sys::children()?, descriptors: sys::descriptors()? })
    }
}

/// One line for each thing that is there now and was not at `before`, or that the dext still has.
pub(crate) fn list(before: &Belongings, simulator: &Simulator) -> Result<Vec<String>, Failure> {
    let mut left = Vec::new();
    for function in simulator.settled(Duration::from_secs(2))? {
        left.push(format!("the dext still has, of {function}"));
    }
    let end = Instant::now() + Duration::from_secs(2);
    let mut now = Belongings::now()?;
    while now != *before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
        now = Belongings::now()?;
    }
    for child in now.children.iter().filter(|child| !before.children.contains(child)) {
        left.push(format!("process {child}"));
    }
    for descriptor in now.descriptors.iter().filter(|one| !before.descriptors.contains(one)) {
        left.push(format!("descriptor {descriptor}"));
    }
    Ok(left)
}
