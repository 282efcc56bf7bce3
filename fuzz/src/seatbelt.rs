//! The language of Seatbelt profiles (`sandbox_profiles::seatbelt`): any text, and rules of which a model says
//! what they allow.
//!
//! Asserted: reading never panics, and what was read can be asked anything; the answer to each question is
//! that of a model, which looks at all rules; comments and blanks change nothing. An operation that a rule
//! names is asked with every target there is: one that is near to a rule's, as `/ab` is to `/a`, is
//! then never missed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use arbitrary::Arbitrary;
use cordon_sandbox_profiles::seatbelt::{PROBES, Profile, Target, Version};

/// Text, or rules.
#[derive(Arbitrary, Debug)]
pub enum Input<'i> {
    /// Any text.
    Text(&'i str),
    /// Text behind what every profile begins with.
    Behind(&'i str),
    /// A profile of these rules.
    Rules(Rules),
}

/// Rules, how they are written, and what is asked beside what they name.
#[derive(Arbitrary, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    finite: bool,
    spread: bool,
    operation: u8,
}

/// One rule.
#[derive(Arbitrary, Debug)]
struct Rule {
    allow: bool,
    operation: u8,
    filters: Vec<Filter>,
}

/// What an operation is tried on, in a rule.
#[derive(Arbitrary, Debug)]
enum Filter {
    Literal(u8),
    Subpath(u8),
    Parameter(bool),
    Name(u8),
    Class(u8),
    Calls(u8, Vec<u8>),
    Own,
    With,
}

/// Most rules that are looked at, and most operations that are asked.
const MOST_RULES: usize = 12;
const MOST_ASKED: usize = 5;

/// Operations by their names, and patterns of them.
const OPERATIONS: [&str; 12] = [
    "file-read-data",
    "file-read-metadata",
    "file-write-data",
    "file-map-executable",
    "iokit-open-service",
    "iokit-get-properties",
    "mach-lookup",
    "process-info-pidinfo",
    "signal",
    "sysctl-read",
    "syscall-unix",
    "system-fcntl",
];
const PATTERNS: [&str; 6] = ["file-read*", "file*", "process-info*", "iokit*", "sys*", "*"];
/// Of these, the ones that nothing but a rule closes.
const LEFT_OPEN: [&str; 5] = [
    "iokit-get-properties",
    "process-info-pidinfo",
    "file-map-executable",
    "syscall-unix",
    "system-fcntl",
];

const PATHS: [&str; 8] = ["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", ""];
const WORDS: [&str; 4] = ["one", "two", "one-two", ""];
const CALLS: [&str; 5] = ["SYS_read", "SYS_readv", "SYS_write", "SYS_exit", "F_GETFL"];
const CALL_FILTERS: [&str; 4] =
    ["syscall-number", "machtrap-number", "kernel-mig-routine", "fcntl-command"];
const PARAMETERS: [(&str, &str); 2] = [("DIR", "/a"), ("FILE", "/a/b")];

fn pick<'l>(list: &[&'l str], number: u8) -> &'l str {
    list[usize::from(number) % list.len()]
}

fn operation(number: u8) -> &'static str {
    let all = OPERATIONS.len() + PATTERNS.len();
    let number = usize::from(number) % all;
    OPERATIONS.get(number).copied().unwrap_or_else(|| PATTERNS[number - OPERATIONS.len()])
}

fn names(pattern: &str, operation: &str) -> bool {
    pattern == operation
        || pattern.ends_with('*') && operation.starts_with(&pattern[..pattern.len() - 1])
}

/// Does it.
pub fn run(input: Input<'_>) {
    match input {
        Input::Text(text) => read(text),
        Input::Behind(text) => read(&format!("(version 1)(deny default){text}")),
        Input::Rules(Rules { mut rules, finite, spread, operation }) => {
            rules.truncate(MOST_RULES);
            let text = written(&rules, finite, spread);
            let profile = Profile::parse(&text, &PARAMETERS);
            let profile = profile.unwrap_or_else(|error| panic!("{error}: {text}"));
            let version = if finite { Version::Three } else { Version::One };
            assert_eq!(profile.version(), version);
            for operation in asked(&rules, operation) {
                all_targets().for_each(|target| ask(&profile, &rules, operation, &target));
            }
        }
    }
}

fn read(text: &str) {
    let Ok(profile) = Profile::parse(text, &PARAMETERS) else { return };
    for probe in PROBES {
        profile.allows(probe.operation, &probe.target).unwrap();
        let _ = (profile.denies_by_name(probe.operation), profile.calls(probe.operation));
    }
    // A blank line in front of it.
    let again = Profile::parse(&format!("\n ; (\n{text}\n"), &PARAMETERS).unwrap();
    assert_eq!(format!("{again:?}"), format!("{profile:?}"));
}

/// The profile as text.
fn written(rules: &[Rule], finite: bool, spread: bool) -> String {
    let head = if finite { "(version 3)(disable-syscall-inference)" } else { "(version 1)" };
    let mut text = format!("{head}(deny default)");
    let between = if spread { " ; (a \"comment\n\t" } else { " " };
    for rule in rules {
        let verb = if rule.allow { "allow" } else { "deny" };
        write!(text, "({verb}{between}{}", operation(rule.operation)).unwrap();
        for filter in &rule.filters {
            let filter = match filter {
                Filter::Literal(path) => format!("(literal \"{}\")", pick(&PATHS, *path)),
                Filter::Subpath(path) => format!("(subpath \"{}\")", pick(&PATHS, *path)),
                Filter::Parameter(file) => {
                    format!("(literal{between}(param \"{}\"))", PARAMETERS[usize::from(*file)].0)
                }
                Filter::Name(name) => format!("(global-name \"{}\")", pick(&WORDS, *name)),
                Filter::Class(name) => {
                    format!("(iokit-user-client-class \"{}\")", pick(&WORDS, *name))
                }
                Filter::Calls(kind, calls) => {
                    let mut all = pick(&CALLS, *kind).to_owned();
                    calls.iter().for_each(|call| {
                        all += between;
                        all += pick(&CALLS, *call);
                    });
                    format!("({} {all})", pick(&CALL_FILTERS, *kind))
                }
                Filter::Own => "(target self)".to_owned(),
                Filter::With => "(with no-log)".to_owned(),
            };
            text += between;
            text += &filter;
        }
        text.push(')');
    }
    text
}

/// Whether a filter of a rule is for that target.
fn fits(filter: &Filter, target: &Target<'_>) -> bool {
    match (filter, target) {
        (Filter::Literal(path), Target::Path(found)) => pick(&PATHS, *path) == *found,
        (Filter::Parameter(file), Target::Path(found)) => {
            PARAMETERS[usize::from(*file)].1 == *found
        }
        (Filter::Subpath(path), Target::Path(found)) => {
            let path = pick(&PATHS, *path);
            let is_folder = path.ends_with('/') && found.starts_with(path);
            found == &path || is_folder || found.starts_with(&format!("{path}/"))
        }
        (Filter::Name(name), Target::Name(found)) => pick(&WORDS, *name) == *found,
        (Filter::Class(name), Target::Class(found)) => pick(&WORDS, *name) == *found,
        (Filter::Calls(first, calls), Target::Call(found)) => {
            let mut all = std::iter::once(first).chain(calls);
            all.any(|call| pick(&CALLS, *call) == *found)
        }
        (Filter::Own, Target::OwnProcess) => true,
        _ => false,
    }
}

/// What is asked: operations that rules name, and another one.
fn asked(rules: &[Rule], another: u8) -> BTreeSet<&'static str> {
    let named = |rule: &Rule| {
        let pattern = operation(rule.operation);
        OPERATIONS.into_iter().find(|operation| names(pattern, operation))
    };
    let named = rules.iter().filter_map(named).take(MOST_ASKED - 1);
    named.chain([pick(&OPERATIONS, another)]).collect()
}

fn all_targets() -> impl Iterator<Item = Target<'static>> {
    let own = [Target::Nothing, Target::OwnProcess, Target::OtherProcess];
    own.into_iter()
        .chain(PATHS.into_iter().map(Target::Path))
        .chain(WORDS.into_iter().map(Target::Name))
        .chain(WORDS.into_iter().map(Target::Class))
        .chain(CALLS.into_iter().map(Target::Call))
}

fn ask(profile: &Profile, rules: &[Rule], asked: &str, target: &Target<'_>) {
    // From the first to the last: each that matches replaces what was known before.
    let (mut with, mut without) = (None, None);
    for rule in rules.iter().filter(|rule| names(operation(rule.operation), asked)) {
        if rule.filters.iter().any(|filter| fits(filter, target)) {
            with = Some(rule.allow);
        } else if rule.filters.iter().all(|filter| matches!(filter, Filter::With)) {
            without = Some(rule.allow);
        }
    }
    let wanted = with.or(without).unwrap_or(LEFT_OPEN.contains(&asked));
    assert_eq!(profile.allows(asked, target).unwrap(), wanted, "{asked} {target:?}");
    assert_eq!(profile.denies_by_name(asked), without == Some(false), "{asked}");
}
