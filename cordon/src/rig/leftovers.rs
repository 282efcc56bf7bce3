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

/// One line for each thing that is there now and was not at `before`, or that the dext still has. A simulator that was
/// started again since, with its pipes, stands for the one before.
pub(crate) fn list(before: &Belongings, simulator: &Simulator) -> Result<Vec<String>, Failure> {
    let mut left = Vec::new();
    for function in simulator.settled(Duration::from_secs(2))? {
        left.push(format!("the dext still has, of {function}"));
    }
    left.extend(more(before, simulator.pid())?);
    Ok(left)
}

/// One line for each thing that is there now and was not at `before`, where there is no simulator. The memory that
/// is put under the windows of devices that are away is made once and stays.
#[cfg(target_os = "linux")]
pub(crate) fn of_this_process(before: &Belongings) -> Result<Vec<String>, Failure> {
    let mut more = more(before, 0)?;
    more.retain(|one| !one.contains("/memfd:cordon-all-ones"));
    Ok(more)
}

/// What is more than at `before`, and stays so for a while.
fn more(before: &Belongings, simulator: u32) -> Result<Vec<String>, Failure> {
    let end = Instant::now() + Duration::from_secs(2);
    let mut more = Belongings::now()?.since(before, simulator);
    while !more.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
        more = Belongings::now()?.since(before, simulator);
    }
    Ok(more)
}

impl Belongings {
    /// What is more than at `before`.
    fn since(&self, before: &Self, simulator: u32) -> Vec<String> {
        let new = |child: &&u32| !before.children.contains(child) && **child != simulator;
        let mut more: Vec<String> =
            self.children.iter().filter(new).map(|child| format!("process {child}")).collect();
        let mut gone: Vec<&str> = before
            .descriptors
            .iter()
            .filter(|one| !self.descriptors.contains(one))
            .map(|one| kind(one))
            .collect();
        for one in self.descriptors.iter().filter(|one| !before.descriptors.contains(one)) {
            match gone.iter().position(|gone| *gone == kind(one)) {
                // It took the place of another of its kind.
                Some(at) => drop(gone.swap_remove(at)),
                None => more.push(format!("descriptor {one}")),
            }
        }
        more
    }
}

/// What a descriptor is: `7 pipe:[1234]` is a pipe.
fn kind(descriptor: &str) -> &str {
    let target = descriptor.split_once(' ').map_or(descriptor, |(_, target)| target);
    target.split_once(":[").map_or(target, |(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belongings(children: &[u32], descriptors: &[&str]) -> Belongings {
        let descriptors = descriptors.iter().map(|one| (*one).to_owned()).collect();
        Belongings { children: children.to_vec(), descriptors }
    }

    #[test]
    fn a_simulator_that_was_started_again_is_no_leftover_and_what_is_more_is() {
        let before = belongings(&[10], &["0 /dev/null", "7 pipe:[11]", "9 anon_inode:[eventfd]"]);
        let again = belongings(&[20], &["0 /dev/null", "8 pipe:[22]", "9 anon_inode:[eventfd]"]);
        assert_eq!(before.since(&before, 10), [""; 0]);
        assert_eq!(again.since(&before, 20), [""; 0]);
        assert_eq!(again.since(&before, 10), ["process 20"]);
        let more = ["0 /dev/null", "7 pipe:[33]", "8 pipe:[22]", "9 anon_inode:[eventfd]"];
        let left = belongings(&[20, 21], &more).since(&before, 20);
        assert_eq!(left, ["process 21", "descriptor 8 pipe:[22]"]);
        let other = belongings(&[10], &["0 /dev/null", "7 socket:[11]"]).since(&before, 10);
        assert_eq!(other, ["descriptor 7 socket:[11]"]);
    }
}
