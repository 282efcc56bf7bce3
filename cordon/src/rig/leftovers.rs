//! What is left of a run: child processes, descriptors, and what the dext still has.

use std::time::{Duration, Instant};

use super::simulator::Simulator;
use crate::Failure;

/// What this process has at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Belongings {
    children: Vec<u32>,
    descriptors: Vec<String>,
}

impl Belongings {
    /// Counts.
    pub(crate) fn now() -> Result<Self, Failure> {
        Ok(Self { children: children()?, descriptors: descriptors()? })
    }
}

/// Children of every thread of this process.
pub(crate) fn children() -> Result<Vec<u32>, Failure> {
    let mut children = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread that ends meanwhile has no children.
        let list = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children.sort_unstable();
    Ok(children)
}

fn descriptors() -> Result<Vec<String>, Failure> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        // The listing's own descriptor.
        if !target.starts_with("/proc/") {
            let number = path.file_name().map(|name| name.to_string_lossy().into_owned());
            open.push(format!("{} {}", number.unwrap_or_default(), target.display()));
        }
    }
    open.sort();
    Ok(open)
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
