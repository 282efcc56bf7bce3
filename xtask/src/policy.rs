//! What the dependencies may be: licences and bans of deny.toml, crate edges of ARCHITECTURE.md.
//!
//! `cargo deny` checks the same file and advisories too, where it is installed and can fetch
//! them. This check needs nothing but Cargo, so it runs everywhere and always.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::Result;

/// Crate edges that are allowed inside the workspace. `cordon-tests` and `xtask` are no product.
const EDGES: &[(&str, &[&str])] = &[
    ("cordon-ipc", &[]),
    ("cordon-pci", &[]),
    ("cordon-sandbox-profiles", &[]),
    ("cordon-dext-client", &["cordon-ipc"]),
    ("cordon-device-proc", &["cordon-dext-client", "cordon-ipc", "cordon-sandbox-profiles"]),
    ("cordon-vmm", &["cordon-dext-client", "cordon-ipc", "cordon-pci"]),
    ("cordon-vfio-user", &["cordon-ipc", "cordon-pci", "cordon-vmm"]),
    ("cordon-cli", &["cordon-ipc", "cordon-pci", "cordon-vfio-user", "cordon-vmm"]),
    ("cordon-dext-sim", &["cordon-ipc"]),
    (
        "cordon-tests",
        &["cordon-cli", "cordon-device-proc", "cordon-ipc", "cordon-vfio-user", "cordon-vmm"],
    ),
    ("guest-agent", &[]),
    ("xtask", &[]),
];

/// Crates that only the named ones may use directly.
const RESERVED: &[(&str, &[&str])] = &[("bincode", &["cordon-ipc"])];

/// Checks all of it.
pub(crate) fn check(root: &Path) -> Result {
    let metadata = metadata(root)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    let deny = std::fs::read_to_string(root.join("deny.toml"))
        .map_err(|error| format!("deny.toml: {error}"))?;
    let deny: toml::Table = deny.parse().map_err(|error| format!("deny.toml: {error}"))?;
    let licences = licences(packages, &deny)?;
    let edges = edges(packages)?;
    one_file_knows_bincode(root)?;
    println!("{licences} packages have allowed licences; {edges} crates have allowed edges");
    Ok(())
}

fn metadata(root: &Path) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))
}

/// Every package is under a licence that deny.toml allows, and comes from the registry or here.
fn licences(packages: &[Value], deny: &toml::Table) -> Result<usize> {
    let allowed = deny
        .get("licenses")
        .and_then(|table| table.get("allow")?.as_array())
        .ok_or("deny.toml has no licenses.allow")?;
    let allowed: Vec<&str> = allowed.iter().filter_map(toml::Value::as_str).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        let licence = package["license"].as_str().unwrap_or("none");
        if !satisfied(licence, &allowed) {
            return Err(format!("{name} is under '{licence}', which deny.toml does not allow"));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|source| !source.starts_with("registry+")) {
            return Err(format!("{name} does not come from the registry"));
        }
    }
    Ok(packages.len())
}

/// An SPDX expression of OR over AND, with or without parentheses, as crates have them.
fn satisfied(expression: &str, allowed: &[&str]) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let every = |part: &str| part.split(" AND ").all(|one| allowed.contains(&one.trim()));
    plain.split(" OR ").any(every)
}

fn edges(packages: &[Value]) -> Result<usize> {
    let ours: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let local = packages.iter().filter(|package| package["source"].is_null());
    for package in local {
        let name = package["name"].as_str().unwrap_or("?");
        let allowed = ours.get(name).ok_or(format!("{name} has no allowed edges: add it"))?;
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or("?");
            if ours.contains_key(to) && !allowed.contains(&to) {
                return Err(format!("{name} must not depend on {to}"));
            }
            let reserved = RESERVED.iter().find(|(reserved, _)| *reserved == to);
            if reserved.is_some_and(|(_, users)| !users.contains(&name)) {
                return Err(format!("{name} must not use {to} directly"));
            }
        }
    }
    Ok(ours.len())
}

/// bincode is unmaintained: replacing it must stay a change of one file.
fn one_file_knows_bincode(root: &Path) -> Result {
    for entry in walk(&root.join("ipc/src"))? {
        let text = std::fs::read_to_string(&entry).map_err(|error| error.to_string())?;
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("bincode::")
        });
        if uses && !entry.ends_with("codec.rs") {
            return Err(format!("{} uses bincode: only codec.rs may", entry.display()));
        }
    }
    Ok(())
}

fn walk(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.is_dir() {
            files.extend(walk(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_understood() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"];
        for good in ["MIT", "MIT OR GPL-3.0", "(MIT OR Apache-2.0) AND Unicode-3.0", "X/MIT"] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "none", "MIT AND GPL-3.0"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }
}
