//! The table of rules in ARCHITECTURE.md is whole and true: every rule of docs/rules.md has its code
//! and its test, and both are there.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cordon_tests::announce;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// "P4", "P10.3", "C2.1".
fn is_rule(text: &str) -> bool {
    let number = text.strip_prefix(['P', 'C']).unwrap_or_default();
    !number.is_empty() && number.split('.').all(|part| part.parse::<u8>().is_ok())
}

/// Rules that docs/rules.md states: rows of its tables, and sections without any.
fn stated() -> BTreeSet<String> {
    let text = read("docs/rules.md");
    let mut rules = BTreeSet::new();
    for section in text.split("\n## ").skip(1) {
        let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next());
        let rows: Vec<&str> = rows.filter(|cell| is_rule(cell)).collect();
        let whole = section.split(' ').next().filter(|title| rows.is_empty() && is_rule(title));
        rules.extend(rows.into_iter().chain(whole).map(str::to_owned));
    }
    rules
}

#[test]
fn every_rule_has_its_code_and_its_test() {
    let text = read("ARCHITECTURE.md");
    let table = text.split("\n## Rules").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut found = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| P") || line.starts_with("| C")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [rule, code, test] = cells[..] else { panic!("{line}") };
        let quoted = |cell: &str| -> Vec<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let (code, test) = (quoted(code), quoted(test));
        assert!(root().join(&code[0]).is_file(), "{rule}: there is no {}", code[0]);
        let [file, name] = &test[..] else { panic!("{line}") };
        let there = read(file).contains(&format!("fn {name}("));
        assert!(there, "{rule}: there is no test {name} in {file}");
        assert!(found.insert(rule.to_owned(), name.clone()).is_none(), "{rule} is there twice");
    }
    let stated = stated();
    let listed: BTreeSet<String> = found.into_keys().collect();
    let missing: Vec<_> = stated.symmetric_difference(&listed).collect();
    assert!(missing.is_empty(), "in one and not in the other: {missing:?}");
    // P1 to P10 and the companion, whole.
    assert!(stated.len() > 60 && stated.contains("P10.3") && stated.contains("P4"));
    announce(&format!("rules: {0} of {0} have their code and their test", stated.len()));
}

#[test]
fn every_file_that_the_documents_name_is_there() {
    let mut links = 0;
    for document in
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/rules.md", "docs/macos.md"]
    {
        let text = read(document);
        let folder = root().join(document);
        let folder = folder.parent().unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            assert!(folder.join(target).exists(), "{document}: there is no {target}");
            links += 1;
        }
    }
    assert!(links > 50, "{links} links were found");
    for row in read("docs/rules.md").lines().filter(|line| line.starts_with("| ")) {
        let code = row.rsplit('|').nth(1).unwrap_or_default();
        for file in code.split('`').skip(1).step_by(2).filter(|quoted| quoted.ends_with(".rs")) {
            assert!(root().join(file).is_file(), "docs/rules.md: there is no {file}");
        }
    }
}

/// Sources of a crate.
fn sources(directory: PathBuf) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(sources(path));
        } else {
            all.push(path);
        }
    }
    all
}

#[test]
fn p7_8_nothing_looks_at_what_device_it_is() {
    let product =
        ["device-proc/src", "vmm-side/src", "ipc/src", "pci/src", "vfio-user/src", "cordon/src"];
    for path in product.into_iter().flat_map(|part| sources(root().join(part))) {
        let text = std::fs::read_to_string(&path).unwrap();
        for quirk in ["vendor ==", "vendor !=", "match identity.vendor", "identity.device =="] {
            assert!(!text.contains(quirk), "{}: {quirk}", path.display());
        }
    }
}
