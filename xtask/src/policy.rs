//! What the dependencies may be: licences and bans of deny.toml, crate edges of ARCHITECTURE.md.
//!
//! `cargo deny` checks the same file and advisories too, where it is installed and can fetch
//! them. This check needs nothing but Cargo, so it runs everywhere and always.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use console::say;
use serde_json::Value;

use crate::{Result, cargo, licences};

/// Crate edges that are allowed inside the workspace, from the ground up.
const EDGES: &[(&str, &[&str])] = &[
    ("cordon-console", &[]),
    ("cordon-ipc", &[]),
    ("cordon-pci", &[]),
    ("cordon-sandbox-profiles", &[]),
    ("cordon-backend", &["cordon-ipc"]),
    ("cordon-dext-client", &["cordon-backend", "cordon-ipc"]),
    ("cordon-vfio-client", &["cordon-backend", "cordon-ipc"]),
    (
        "cordon-device-proc",
        &[
            "cordon-backend",
            "cordon-dext-client",
            "cordon-ipc",
            "cordon-pci",
            "cordon-sandbox-profiles",
            "cordon-vfio-client",
        ],
    ),
    ("cordon-vmm", &["cordon-dext-client", "cordon-ipc", "cordon-pci"]),
    ("cordon-vfio-user", &["cordon-ipc", "cordon-pci", "cordon-vmm"]),
    ("cordon-testkit", &["cordon-ipc", "cordon-vmm"]),
    (
        "cordon-cli",
        &[
            "cordon-console",
            "cordon-ipc",
            "cordon-pci",
            "cordon-sandbox-profiles",
            "cordon-testkit",
            "cordon-vfio-user",
            "cordon-vmm",
        ],
    ),
    ("cordon-dext-sim", &["cordon-console", "cordon-ipc"]),
    ("vfio-guest", &["cordon-console", "cordon-tests", "cordon-vmm"]),
    (
        "cordon-tests",
        &[
            "cordon-backend",
            "cordon-cli",
            "cordon-device-proc",
            "cordon-dext-client",
            "cordon-ipc",
            "cordon-pci",
            "cordon-sandbox-profiles",
            "cordon-testkit",
            "cordon-vfio-user",
            "cordon-vmm",
        ],
    ),
    (
        "cordon-bench",
        &[
            "cordon-backend",
            "cordon-console",
            "cordon-dext-client",
            "cordon-ipc",
            "cordon-pci",
            "cordon-tests",
            "cordon-vfio-user",
            "cordon-vmm",
        ],
    ),
    ("cordon-examples", &["cordon-vmm"]),
    ("test-vmm", &["cordon-pci", "cordon-vmm"]),
    ("darwin-rules", &[]),
    ("guest-agent", &[]),
    ("xtask", &["cordon-console"]),
];

/// Crates that only the named ones may use directly.
const RESERVED: &[(&str, &[&str])] = &[("bincode", &["cordon-ipc"])];

/// What a VMM links, which must not bring a command line, signal handlers or a log's printer along.
const LINKED: &[&str] = &["cordon-vmm", "cordon-vfio-user", "cordon-testkit"];
/// What belongs to commands.
const OF_COMMANDS: &[&str] =
    &["anstream", "clap", "clap_builder", "clap_derive", "signal-hook", "tracing-subscriber"];

/// Checks all of it, and prints the graph of our crates.
pub(crate) fn check(root: &Path) -> Result {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    let deny = std::fs::read_to_string(root.join("deny.toml"))
        .map_err(|error| format!("deny.toml: {error}"))?;
    let deny: toml::Table = deny.parse().map_err(|error| format!("deny.toml: {error}"))?;
    let licences = licences::check(packages, &deny)?;
    say!("{licences} packages have allowed licences")?;
    let graph = edges(packages)?;
    say!("the graph of our {} crates, each edge allowed:", graph.len())?;
    for (name, uses) in &graph {
        say!("  {}", line(name, uses))?;
    }
    for name in LINKED {
        say!("{}", without_commands(name)?)?;
    }
    one_file_knows_bincode(root)?;
    advisories()
}

/// What is known against dependencies, where that can be asked: cargo-deny and the database that it fetches are not
/// everywhere, and what was not asked is said.
fn advisories() -> Result {
    if !cargo(&["deny", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(say!("advisories: NOT checked, there is no cargo-deny here")?);
    }
    let checked = cargo(&["deny", "check", "advisories"]).output()?;
    let said = String::from_utf8_lossy(&checked.stderr);
    if checked.status.success() {
        Ok(say!("advisories: none against what deny.toml does not excuse")?)
    } else if ["fetch", "clone", "database"].iter().any(|word| said.contains(word)) {
        Ok(say!("advisories: NOT checked, their database cannot be had: {}", said.trim())?)
    } else {
        Err(format!("advisories: {}", said.trim()).into())
    }
}

/// Names of the packages of ours that may be published.
pub(crate) fn published() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    // `publish = false` is an empty list of registries.
    let ours = packages.iter().filter(|one| one["source"].is_null() && one["publish"].is_null());
    Ok(ours.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect())
}

fn metadata() -> Result<Value> {
    let output = output(&["metadata", "--format-version=1", "--locked"])?;
    Ok(serde_json::from_str(&output).map_err(|error| format!("cargo metadata: {error}"))?)
}

/// What Cargo prints.
fn output(arguments: &[&str]) -> Result<String> {
    let what = format!("cargo {}", arguments.join(" "));
    let output = cargo(arguments).output().map_err(|error| format!("{what}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout).map_err(|error| format!("{what}: {error}"))?)
}

/// Crates of ours and which of ours they use, in the order of [`EDGES`].
type Graph<'m> = Vec<(&'m str, Vec<&'m str>)>;

/// The graph, if each edge is allowed.
fn edges(packages: &[Value]) -> Result<Graph<'_>> {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut found = BTreeMap::new();
    for package in packages.iter().filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().unwrap_or("?");
        let may = allowed.get(name).ok_or(format!("{name} has no allowed edges: add it"))?;
        let uses = package["dependencies"].as_array().into_iter().flatten();
        let uses: Vec<&str> = uses.filter_map(|used| used["name"].as_str()).collect();
        for used in &uses {
            if allowed.contains_key(used) && !may.contains(used) {
                return Err(format!("{name} must not depend on {used}").into());
            }
            let reserved = RESERVED.iter().find(|(reserved, _)| reserved == used);
            if reserved.is_some_and(|(_, users)| !users.contains(&name)) {
                return Err(format!("{name} must not use {used} directly").into());
            }
        }
        let mut ours: Vec<&str> =
            uses.into_iter().filter(|used| allowed.contains_key(used)).collect();
        ours.sort_unstable();
        // A crate is named twice when its tests use it with other features.
        ours.dedup();
        found.insert(name, ours);
    }
    let gone = EDGES.iter().find(|(name, _)| !found.contains_key(name));
    if let Some((name, _)) = gone {
        return Err(format!("there is no crate {name}: take its edges out").into());
    }
    Ok(EDGES.iter().filter_map(|(name, _)| found.remove_entry(name)).collect())
}

fn line(name: &str, uses: &[&str]) -> String {
    if uses.is_empty() { name.to_owned() } else { format!("{name} -> {}", uses.join(", ")) }
}

/// Says that a crate brings nothing along that belongs to commands.
fn without_commands(name: &str) -> Result<String> {
    let edges = "--edges=normal,build";
    let tree =
        output(&["tree", "--package", name, edges, "--prefix=none", "--target=all", "--locked"])?;
    judge(name, &tree)
}

/// Reads a crate's tree, one crate a line, its name first.
fn judge(name: &str, tree: &str) -> Result<String> {
    let crates: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if !crates.contains(name) {
        return Err(format!("cargo tree -p {name} does not name it").into());
    }
    match OF_COMMANDS.iter().find(|one| crates.contains(*one)) {
        Some(found) => {
            Err(format!("{name} must not bring {found} along: it is for commands").into())
        }
        None => Ok(format!(
            "cargo tree -p {name}: {} crates, none of {}",
            crates.len(),
            OF_COMMANDS.join(", ")
        )),
    }
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
            return Err(format!("{} uses bincode: only codec.rs may", entry.display()).into());
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
    use serde_json::json;

    /// Packages that use others, and every crate that there must be.
    fn packages(more: &[(&str, &[&str])]) -> Vec<Value> {
        let given = |name: &str| more.iter().find(|(given, _)| *given == name);
        let package = |(name, uses): &(&str, &[&str])| {
            let uses: Vec<Value> = uses.iter().map(|used| json!({ "name": used })).collect();
            json!({ "name": name, "source": null, "dependencies": uses })
        };
        let rest = EDGES.iter().filter(|(name, _)| given(name).is_none()).map(|(name, _)| {
            let nothing: &[&str] = &[];
            package(&(name, nothing))
        });
        more.iter().map(package).chain(rest).collect()
    }

    #[test]
    fn the_graph_has_the_edges_that_there_are() {
        let packages = packages(&[("cordon-vmm", &["tracing", "cordon-ipc", "cordon-ipc"])]);
        let graph = edges(&packages).unwrap();
        assert_eq!(graph.len(), EDGES.len());
        let (name, uses) = graph.iter().find(|(name, _)| *name == "cordon-vmm").unwrap();
        assert_eq!(line(name, uses), "cordon-vmm -> cordon-ipc");
    }

    #[test]
    fn a_library_that_brings_a_command_line_along_is_refused_by_name() {
        let tree = "cordon-vmm v0.1.0 (/x)\nlibc v0.2.1\ntracing v0.1.44\nlibc v0.2.1 (*)\n";
        let said = judge("cordon-vmm", tree).unwrap();
        assert!(said.starts_with("cargo tree -p cordon-vmm: 3 crates, none of "), "{said}");
        let refused = judge("cordon-vmm", &format!("{tree}clap v4.6.9\n")).unwrap_err();
        assert_eq!(refused.to_string(), "cordon-vmm must not bring clap along: it is for commands");
        assert!(judge("cordon-vmm", "").is_err());
    }

    #[test]
    fn edges_that_are_not_allowed_are_refused_by_name() {
        for (name, uses, why) in [
            ("cordon-ipc", "cordon-vmm", "cordon-ipc must not depend on cordon-vmm"),
            (
                "cordon-vmm",
                "cordon-device-proc",
                "cordon-vmm must not depend on cordon-device-proc",
            ),
            ("cordon-vmm", "bincode", "cordon-vmm must not use bincode directly"),
            ("cordon-new", "cordon-ipc", "cordon-new has no allowed edges: add it"),
        ] {
            assert_eq!(edges(&packages(&[(name, &[uses])])).unwrap_err().to_string(), why);
        }
        let mut without = packages(&[]);
        without.retain(|package| package["name"] != "cordon-ipc");
        let refused = edges(&without).unwrap_err().to_string();
        assert_eq!(refused, "there is no crate cordon-ipc: take its edges out");
    }
}
