//! What /proc says of how a process is confined.

use crate::Failure;
use crate::inspect::process::{Facts, Namespace};

/// Asks of process `pid`.
pub(crate) fn facts(pid: u32) -> Result<Facts, Failure> {
    let failed = |error| format!("there is no process {pid} to be seen: {error}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(failed)?;
    let field = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap_or_default().trim()
    };
    let number = |name: &str| -> u32 {
        // Of four, the first is the real one; they are the same or `capabilities` tells.
        let first = field(name).split_whitespace().next();
        first.and_then(|number| number.parse().ok()).unwrap_or_default()
    };
    let held: Vec<String> = ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"]
        .into_iter()
        .filter(|set| field(set).bytes().any(|digit| digit != b'0'))
        .map(|set| format!("{set} {}", field(set)))
        .collect();
    let link = |of: &str, kind| std::fs::read_link(format!("/proc/{of}/ns/{kind}"));
    let namespace = |kind| {
        let whose = match (link(&pid.to_string(), kind), link("self", kind)) {
            (Ok(its), Ok(own)) if its == own => "shared with this program".to_owned(),
            (Ok(_), Ok(_)) => "its own".to_owned(),
            (Err(error), _) | (_, Err(error)) => format!("not to be seen by this user: {error}"),
        };
        Namespace { kind, whose }
    };
    let root = match std::fs::read_dir(format!("/proc/{pid}/root/")).map(Iterator::count) {
        Ok(0) => "empty".to_owned(),
        Ok(count) => format!("{count} entries"),
        Err(error) => format!("not to be seen by this user: {error}"),
    };
    Ok(Facts {
        name: cordon_vmm::text::printable(field("Name")),
        user: number("Uid"),
        group: number("Gid"),
        capabilities: if held.is_empty() { "none".to_owned() } else { held.join(", ") },
        no_new_privileges: field("NoNewPrivs") == "1",
        // A kernel before 5.9 does not count them.
        filters: number("Seccomp_filters").max(u32::from(field("Seccomp") == "2")),
        namespaces: ["user", "mnt", "net", "ipc", "uts", "pid"].map(namespace).into(),
        root,
    })
}
