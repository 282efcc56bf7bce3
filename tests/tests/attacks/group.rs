//! A control group for an attacker that exhausts something, where one can be made: beside what limits the process
//! itself, the kernel then counts all that it costs. The attacker enters it before it confines itself.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use cordon_tests::eventually;

/// Attacks that take memory, page tables, descriptors, threads or processors.
const EXHAUSTING: [&str; 6] = [
    "takes-all-memory",
    "takes-all-page-tables",
    "takes-descriptors",
    "makes-threads",
    "spins-while-it-serves",
    "spins-for-ever",
];
/// Bytes that a group may be charged for: as many as the VMM side gives a child where it can make groups.
const MEMORY: &str = "268435456";
/// What limits a group of version 2: memory, and a third of the usual share of the processors.
const LIMITS: [(&str, &str); 2] = [("memory.max", MEMORY), ("cpu.weight", "33")];
/// The same of version 1, where each controller has groups of its own.
const LIMITS_OF_ONE: [(&str, (&str, &str)); 2] =
    [("memory", ("memory.limit_in_bytes", MEMORY)), ("cpu", ("cpu.shares", "341"))];
/// Files that say how much memory a group was charged for at most; old kernels have none in version 2.
const PEAKS: [&str; 2] = ["memory.peak", "memory.max_usage_in_bytes"];

/// Folders that together are one group; removed on drop.
#[derive(Default)]
struct Group {
    folders: Vec<PathBuf>,
    limits: Vec<&'static str>,
}

fn read(file: impl AsRef<Path>) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// Where the file system `kind` is mounted with `option`.
fn mounted(kind: &str, option: &str) -> Option<PathBuf> {
    read("/proc/self/mounts").lines().find_map(|line| {
        let [_, at, of, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let has = options.split(',').any(|one| one == option);
        (of == kind && has).then(|| at.into())
    })
}

/// Groups beneath which one can be tried: this process's own, where it can be seen, and the root.
fn parents(controller: Option<&str>) -> Vec<PathBuf> {
    let root = match controller {
        Some(controller) => mounted("cgroup", controller),
        None => mounted("cgroup2", "rw"),
    };
    let Some(root) = root else { return Vec::new() };
    let groups = read("/proc/self/cgroup");
    let own = groups.lines().find_map(|line| {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else {
            return None;
        };
        let is_it = controllers.split(',').any(|one| one == controller.unwrap_or_default());
        is_it.then(|| root.join(path.trim_start_matches('/')))
    });
    own.into_iter().chain([root]).collect()
}

impl Group {
    /// Makes one: of version 2 where groups there are given both controllers, otherwise of what version 1 has.
    /// Why there is none.
    fn make() -> Result<Self, String> {
        let mut whys = Vec::new();
        let mut group = Self::default();
        group.add(None, &LIMITS, &mut whys);
        if group.folders.is_empty() {
            for (controller, limit) in LIMITS_OF_ONE {
                group.add(Some(controller), &[limit], &mut whys);
            }
        }
        if group.folders.is_empty() { Err(whys.join("; ")) } else { Ok(group) }
    }

    /// Adds a folder beneath the first parent where one can be made and limited.
    fn add(
        &mut self,
        controller: Option<&str>,
        limits: &[(&'static str, &str)],
        whys: &mut Vec<String>,
    ) {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let parents = parents(controller);
        if parents.is_empty() {
            whys.push(format!("{} is not mounted", controller.unwrap_or("version 2")));
        }
        for parent in parents {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let folder = parent.join(format!("cordon-attack-{}-{serial}", std::process::id()));
            // The kernel makes the files of a group: what is not there is no limit.
            let limit = |(file, value): &(&str, &str)| {
                let file = std::fs::OpenOptions::new().write(true).open(folder.join(file));
                file.and_then(|mut file| file.write_all(value.as_bytes()))
            };
            let limited =
                std::fs::create_dir(&folder).and_then(|()| limits.iter().try_for_each(limit));
            match limited {
                Ok(()) => {
                    self.folders.push(folder);
                    self.limits.extend(limits.iter().map(|(file, _)| *file));
                    return;
                }
                Err(error) => {
                    let _ = std::fs::remove_dir(&folder);
                    whys.push(format!("{}: {error}", parent.display()));
                }
            }
        }
    }

    /// The files by which a process enters it.
    fn entries(&self) -> String {
        let files = self.folders.iter().map(|folder| folder.join("cgroup.procs"));
        files.map(|file| file.display().to_string()).collect::<Vec<_>>().join(" ")
    }

    /// What it was charged for at most, in bytes, where the system says that.
    fn peak(&self) -> Option<u64> {
        let files = self.folders.iter().flat_map(|folder| PEAKS.map(|file| folder.join(file)));
        files.filter_map(|file| read(file).trim().parse().ok()).next()
    }

    /// What became of it, once nobody is in it any more.
    fn close(mut self) -> Result<String, String> {
        let peak = self.peak();
        let folders = std::mem::take(&mut self.folders);
        let removed = |folder: &PathBuf| eventually(|| std::fs::remove_dir(folder).is_ok());
        if !folders.iter().all(removed) {
            return Err("there are processes left in its control group".to_owned());
        }
        let limits = self.limits.join(", ");
        match peak {
            Some(0) => Err("it never was in its control group".to_owned()),
            Some(peak) => Ok(format!("in a control group ({limits}), {} KiB at most", peak >> 10)),
            None => Ok(format!("in a control group ({limits})")),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Makes the attack `name`; what the attacker is told is `name`, and where it is to be confined by a group which.
/// What came of it says whether there was one.
pub(crate) fn within(
    name: &str,
    attack: impl FnOnce(&str) -> Result<String, String>,
) -> Result<String, String> {
    if !EXHAUSTING.contains(&name) {
        return attack(name);
    }
    match Group::make() {
        Ok(group) => {
            let outcome = attack(&format!("{name} {}", group.entries()));
            let said = group.close();
            Ok(format!("{}, {}", outcome?, said?))
        }
        Err(why) => Ok(format!("{}, no control group can be made: {why}", attack(name)?)),
    }
}
