//! The documents are true where they name code, tests and files: every rule of docs/rules.md has its code
//! and its test in ARCHITECTURE.md's table, and every row of docs/regressions.md and of
//! docs/threat-model.md has tests, all of which are there.
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

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

/// Panics unless there is a test `name` in `file`.
fn assert_test(of: &str, file: &str, name: &str) {
    let text = read(file);
    let at = text.find(&format!("fn {name}("));
    let at = at.unwrap_or_else(|| panic!("{of}: there is no {name} in {file}"));
    // Comments and other attributes may stand between the two.
    let before = text[..at].lines().rev().map(str::trim);
    let mut before = before.filter(|line| !line.is_empty() && !line.starts_with("//"));
    let attribute = before.next().is_some_and(|line| line.starts_with("#["));
    assert!(attribute, "{of}: {name} in {file} is no test");
}

/// Panics unless a cell names tests, all of which are there; how many.
fn assert_tests(of: &str, cell: &str) -> usize {
    let tests = quoted(cell);
    assert!(!tests.is_empty(), "there is no test: {of}");
    for test in &tests {
        let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{of}: {test}"));
        assert_test(of, file, name);
    }
    tests.len()
}

#[test]
fn every_row_of_the_threat_model_has_tests_that_are_there() {
    let text = read("docs/threat-model.md");
    let (mut rows, mut tests) = (BTreeSet::new(), 0);
    for section in text.split("\n## ").skip(1) {
        for row in section.lines().filter(|line| line.starts_with("| ")).skip(2) {
            let [what, stopped, tried] = cells(row)[..] else { panic!("{row}") };
            assert!(!stopped.is_empty(), "nothing stops: {what}");
            tests += assert_tests(what, tried);
            assert!(rows.insert(row), "{what} is there twice");
        }
    }
    assert!(rows.len() > 25, "{}", rows.len());
    announce(&format!("threat model: {} rows have their {tests} tests", rows.len()));
}

/// Crates that have limits.
const LIMITED: [&str; 12] = [
    "ipc",
    "pci",
    "sandbox-profiles",
    "dext-client",
    "vfio-client",
    "device-proc",
    "vmm-side",
    "vfio-user",
    "console",
    "cordon",
    "dext-sim",
    "testkit",
];

/// Names and values of the constants of a source file.
fn constants(text: &str) -> Vec<(String, String)> {
    let statements = text.split(';').filter_map(|one| one.rsplit_once("const "));
    let parts = statements.filter_map(|(_, one)| {
        let (name, rest) = one.split_once(": ")?;
        let (_, value) = rest.split_once('=')?;
        Some((name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
    });
    let is_name = |name: &str| name.chars().all(|one| one.is_ascii_uppercase() || one == '_');
    parts.filter(|(name, _)| is_name(name)).collect()
}

#[test]
fn every_limit_is_in_the_document_with_its_value_and_tests_that_are_there() {
    let mut there = BTreeSet::new();
    for name in LIMITED {
        let of_it = constants(&read(&format!("{name}/src/limits.rs")));
        there.extend(of_it.into_iter().map(|(limit, value)| (name.to_owned(), limit, value)));
    }
    let text = read("docs/limits.md");
    let (mut listed, mut tried) = (BTreeSet::new(), 0);
    for section in text.split("\n## ").skip(1) {
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let [name, limit, value, why, last] = cells(row)[..] else { panic!("{row}") };
            assert!(why.len() > 15 && last.len() > 10, "{row}");
            let of = |cell: &str| quoted(cell)[0].to_owned();
            assert!(listed.insert((of(name), of(limit), of(value))), "{limit} is there twice");
            if section.starts_with("With a test") {
                tried += 1;
                assert_tests(limit, last);
            }
        }
    }
    let differ: Vec<_> = there.symmetric_difference(&listed).collect();
    assert!(differ.is_empty(), "in one and not in the other: {differ:?}");
    assert!(tried > 38, "{tried}");
    announce(&format!("limits: {} are in one place, {tried} have a test beyond", there.len()));
}

#[test]
fn no_limit_is_anywhere_else() {
    // Layouts, the system's own, and devices that are simulated or driven; see docs/limits.md.
    let elsewhere = [
        "/sys/",
        "/sys.rs",
        "lane/protocol.rs",
        "wire/dext.rs",
        "iokit.rs",
        "dext-sim/src/device/",
        "cordon/src/rig/",
        "limits.rs",
        "vmm-side/src/companion.rs",
    ];
    for name in LIMITED {
        for path in sources(root().join(name).join("src")) {
            let is_left_out = |part: &str| path.to_string_lossy().contains(part);
            if elsewhere.iter().any(|part| is_left_out(part)) || path.extension().is_none() {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let limit = constants(&text).into_iter().find(|(name, _)| name.starts_with("MAX_"));
            assert!(limit.is_none(), "{}: {limit:?} is not in limits.rs", path.display());
        }
    }
}

#[test]
fn every_regression_has_tests_that_are_there() {
    let text = read("docs/regressions.md");
    let (mut rows, mut tests) = (BTreeSet::new(), 0);
    for row in text.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let [what, held] = cells(row)[..] else { panic!("{row}") };
        if what.starts_with("---") {
            continue;
        }
        tests += assert_tests(what, held);
        assert!(rows.insert(what), "{what} is there twice");
    }
    assert!(rows.len() > 20, "{}", rows.len());
    announce(&format!("regressions: {} rows have their {tests} tests", rows.len()));
}

#[test]
fn every_rule_has_its_code_and_its_test() {
    let text = read("ARCHITECTURE.md");
    let table = text.split("\n## Rules").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut found = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| P") || line.starts_with("| C")) {
        let [rule, code, test] = cells(line)[..] else { panic!("{line}") };
        let (code, test) = (quoted(code), quoted(test));
        assert!(root().join(code[0]).is_file(), "{rule}: there is no {}", code[0]);
        let [file, name] = test[..] else { panic!("{line}") };
        assert_test(rule, file, name);
        assert!(found.insert(rule.to_owned(), name.to_owned()).is_none(), "{rule} is there twice");
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
    let documents = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs/rules.md",
        "docs/config-table.md",
        "docs/control.md",
        "docs/metrics.md",
        "docs/limits.md",
        "docs/macos.md",
        "docs/regressions.md",
        "vmm-side/crosvm/README.md",
    ];
    for document in documents {
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

/// Entries of the lists of calls that are not derived from this repository's code, in any profile.
fn unproven() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for role in ["function", "connection", "lister"] {
        let text = read(&format!("sandbox-profiles/profiles/{role}.sb"));
        let entries = text.lines().filter(|line| line.contains("; library: "));
        all.extend(entries.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())));
    }
    all
}

#[test]
fn what_no_mac_has_confirmed_of_the_lists_of_calls_is_what_the_document_says() {
    let text = read("docs/macos.md");
    let (_, table) = text.split_once("| list | entries that no Mac has confirmed |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let listed: BTreeSet<String> = table
        .lines()
        .filter_map(|row| row.split('|').nth(2))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    let unproven = unproven();
    let differ: Vec<_> = unproven.symmetric_difference(&listed).collect();
    assert!(differ.is_empty(), "in one and not in the other: {differ:?}");
    assert!(unproven.len() > 40);
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
