//! The part of the profile language that our profiles use, and what it means.

use std::collections::BTreeMap;

use super::operations::{OPERATIONS, left_open, names};
use super::reader::{Expression, ProfileError, Reader};

/// What an operation is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'t> {
    /// Nothing in particular.
    Nothing,
    /// A file.
    Path(&'t str),
    /// A service, property, variable or object with a name.
    Name(&'t str),
    /// A class of IOKit's in the kernel.
    Class(&'t str),
    /// A system call, a Mach trap, a routine of the kernel's, a command of fcntl, by its constant.
    Call(&'t str),
    /// The process itself.
    OwnProcess,
    /// Any other process.
    OtherProcess,
}

/// What an operation must be tried on for a rule to match.
#[derive(Clone, Debug)]
enum Filter {
    Literal(String),
    Subpath(String),
    Name(String),
    Class(String),
    Call(String),
    OwnProcess,
}

/// One rule.
#[derive(Clone, Debug)]
struct Rule {
    allow: bool,
    operation: String,
    /// Any of them; none means any target.
    filters: Vec<Filter>,
}

/// A profile.
#[derive(Clone, Debug)]
pub struct Profile {
    version: Version,
    deny_by_default: bool,
    rules: Vec<Rule>,
}

/// A version of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one that every release knows.
    One,
    /// The one in which lists of calls are finite: nothing is added to them by the system.
    Three,
}

/// What a profile of the system's may be imported, and what it is taken to allow: all that we know
/// of it is that it lets the loader work.
const IMPORTS: &[&str] = &["dyld-support.sb"];

impl Profile {
    /// Reads a profile with its parameters.
    ///
    /// # Errors
    /// [`ProfileError`] for what is not of the language, or not of the part that is known here.
    pub fn parse(text: &str, parameters: &[(&str, &str)]) -> Result<Self, ProfileError> {
        let parameters: BTreeMap<&str, &str> = parameters.iter().copied().collect();
        let mut profile = Self { version: Version::One, deny_by_default: false, rules: Vec::new() };
        let (mut version, mut inference) = (None, true);
        for expression in Reader::new(text).all()? {
            let Expression::List(line, list) = expression else {
                return Err(ProfileError { line: 1, why: "a word outside of a list".to_owned() });
            };
            let fail = |why: String| Err(ProfileError { line, why });
            match &list[..] {
                [Expression::Word(head), Expression::Word(number)] if head == "version" => {
                    version = Some(number.clone());
                }
                [Expression::Word(head)] if head == "disable-syscall-inference" => {
                    inference = false;
                }
                [Expression::Word(head), Expression::Word(what)]
                    if head == "deny" && what == "default" =>
                {
                    profile.deny_by_default = true;
                }
                [Expression::Word(head), Expression::Text(file)] if head == "import" => {
                    if !IMPORTS.contains(&file.as_str()) {
                        return fail(format!("'{file}' may not be imported"));
                    }
                }
                [Expression::Word(head), Expression::Word(operation), filters @ ..]
                    if head == "allow" || head == "deny" =>
                {
                    if !OPERATIONS.iter().any(|known| names(operation, known)) {
                        return fail(format!("there is no operation {operation}"));
                    }
                    let filters: Result<Vec<Vec<Filter>>, _> =
                        filters.iter().map(|one| filter(one, &parameters)).collect();
                    let filters = match filters {
                        Ok(filters) => filters.into_iter().flatten().collect(),
                        Err(why) => return fail(why),
                    };
                    let (allow, operation) = (head == "allow", operation.clone());
                    profile.rules.push(Rule { allow, operation, filters });
                }
                _ => return fail("neither version, import, allow nor deny".to_owned()),
            }
        }
        let whole = |why: &str| Err(ProfileError { line: 1, why: why.to_owned() });
        profile.version = match version.as_deref() {
            Some("1") => Version::One,
            Some("3") if inference => {
                return whole("it lets the system add calls to its lists");
            }
            Some("3") => Version::Three,
            _ => return whole("it is not of version 1 or 3"),
        };
        if profile.deny_by_default { Ok(profile) } else { whole("it does not deny by default") }
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether `operation` on `target` is allowed. Of the rules with a filter that fits the last decides;
    /// where none fits, the last rule without a filter does: as in libsandbox, such a rule replaces what
    /// the operation does by default, and overrides no rule with a filter, wherever it stands.
    ///
    /// # Errors
    /// [`ProfileError`] for an operation that is not known.
    pub fn allows(&self, operation: &str, target: &Target<'_>) -> Result<bool, ProfileError> {
        if !OPERATIONS.contains(&operation) {
            return Err(ProfileError { line: 0, why: format!("there is no {operation}") });
        }
        let named = || self.rules.iter().rev().filter(|rule| names(&rule.operation, operation));
        let fits = |rule: &&Rule| rule.filters.iter().any(|filter| filter.fits(target));
        let by_default = || named().find(|rule| rule.filters.is_empty());
        let decides = named().find(fits).or_else(by_default);
        Ok(decides.map_or_else(|| left_open(operation), |rule| rule.allow))
    }

    /// Whether a rule without a filter denies `operation`, so that nothing is left to what the system
    /// does by default.
    #[must_use]
    pub fn denies_by_name(&self, operation: &str) -> bool {
        let mut named = self.rules.iter().rev().filter(|rule| names(&rule.operation, operation));
        named.find(|rule| rule.filters.is_empty()).is_some_and(|rule| !rule.allow)
    }

    /// The calls that its rules allow for `operation`, in order.
    #[must_use]
    pub fn calls(&self, operation: &str) -> Vec<&str> {
        let rules = self.rules.iter().filter(|rule| rule.allow && rule.operation == operation);
        let calls = rules.flat_map(|rule| &rule.filters).filter_map(|filter| match filter {
            Filter::Call(call) => Some(&call[..]),
            _ => None,
        });
        calls.collect()
    }

    /// The operations of its allow rules, in order.
    #[must_use]
    pub fn allowed(&self) -> Vec<&str> {
        self.rules.iter().filter(|rule| rule.allow).map(|rule| &rule.operation[..]).collect()
    }
}

impl Filter {
    fn fits(&self, target: &Target<'_>) -> bool {
        match (self, target) {
            (Self::Literal(path), Target::Path(found)) => path == found,
            (Self::Subpath(path), Target::Path(found)) => {
                found.strip_prefix(path.as_str()).is_some_and(|rest| {
                    rest.is_empty() || rest.starts_with('/') || path.ends_with('/')
                })
            }
            (Self::Name(name), Target::Name(found)) => name == found,
            (Self::Class(class), Target::Class(found)) => class == found,
            (Self::Call(call), Target::Call(found)) => call == found,
            (Self::OwnProcess, Target::OwnProcess) => true,
            _ => false,
        }
    }
}

/// Filters whose arguments are constants of the system's.
const CALL_FILTERS: &[&str] =
    &["syscall-number", "machtrap-number", "kernel-mig-routine", "fcntl-command"];

/// The filters of one expression: several names are any of them.
fn filter(
    expression: &Expression,
    parameters: &BTreeMap<&str, &str>,
) -> Result<Vec<Filter>, String> {
    let Expression::List(_, list) = expression else {
        return Err("a filter is a list".to_owned());
    };
    let [Expression::Word(kind), arguments @ ..] = &list[..] else {
        return Err("a filter begins with a word".to_owned());
    };
    if kind == "with" {
        // How a denial is logged decides nothing.
        return Ok(Vec::new());
    }
    if kind == "target" {
        return match arguments {
            [Expression::Word(who)] if who == "self" => Ok(vec![Filter::OwnProcess]),
            _ => Err("the only target known is self".to_owned()),
        };
    }
    let mut filters = Vec::new();
    if CALL_FILTERS.contains(&kind.as_str()) {
        for argument in arguments {
            let Expression::Word(call) = argument else {
                return Err(format!("{kind} takes words"));
            };
            filters.push(Filter::Call(call.clone()));
        }
        return if filters.is_empty() { Err(format!("{kind} of nothing")) } else { Ok(filters) };
    }
    for argument in arguments {
        let text = match argument {
            Expression::Text(text) => text.clone(),
            Expression::List(_, list) => match &list[..] {
                [Expression::Word(head), Expression::Text(name)] if head == "param" => {
                    let value = parameters.get(name.as_str());
                    (*value.ok_or_else(|| format!("there is no parameter {name}"))?).to_owned()
                }
                _ => return Err("an argument is a string or a parameter".to_owned()),
            },
            Expression::Word(word) => return Err(format!("'{word}' is no string")),
        };
        filters.push(match kind.as_str() {
            "literal" => Filter::Literal(text),
            "subpath" => Filter::Subpath(text),
            "sysctl-name" | "global-name" | "iokit-property" => Filter::Name(text),
            "iokit-registry-entry-class" | "iokit-user-client-class" => Filter::Class(text),
            other => return Err(format!("there is no filter {other}")),
        });
    }
    if filters.is_empty() { Err(format!("{kind} of nothing")) } else { Ok(filters) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(text: &str, operation: &str, target: Target<'_>) -> bool {
        let text = format!("(version 1)(deny default){text}");
        Profile::parse(&text, &[("DIR", "/opt")]).unwrap().allows(operation, &target).unwrap()
    }

    #[test]
    fn the_last_rule_that_matches_wins() {
        let path = Target::Path("/a/b");
        assert!(!allows("", "file-read-data", path));
        assert!(allows("(allow file-read*)", "file-read-data", path));
        assert!(!allows("(allow file-read*)(deny file*)", "file-read-data", path));
        let both = "(allow file-read* (subpath \"/a\"))(deny file-read* (literal \"/a/b\"))";
        assert!(!allows(both, "file-read-data", path));
        assert!(allows(both, "file-read-data", Target::Path("/a/c")));
        let rules = "(deny file*)(allow file-read* (subpath \"/a\"))";
        assert!(allows(rules, "file-read-data", path));
        assert!(!allows(rules, "file-read-data", Target::Path("/ab")));
        assert!(!allows(rules, "file-write-data", path));
        assert!(allows(
            "(allow file-read* (subpath (param \"DIR\")))",
            "file-read-data",
            Target::Path("/opt/x")
        ));
    }

    #[test]
    fn a_rule_without_a_filter_is_the_default_and_overrides_none_with_one() {
        let path = Target::Path("/a/b");
        for rules in [
            "(deny file*)(allow file-read* (subpath \"/a\"))",
            "(allow file-read* (subpath \"/a\"))(deny file*)",
        ] {
            assert!(allows(rules, "file-read-data", path), "{rules}");
            assert!(!allows(rules, "file-read-data", Target::Path("/b")), "{rules}");
        }
        let rules = "(deny file-read* (subpath \"/a\"))(allow file*)";
        assert!(!allows(rules, "file-read-data", path));
        assert!(allows(rules, "file-read-data", Target::Path("/b")));
        // Of two without one the last is the default.
        assert!(allows("(deny file*)(allow file-read*)", "file-read-data", path));
        let profile = Profile::parse(
            "(version 1)(deny default)(deny file*)(allow file-read* (subpath \"/a\"))",
            &[],
        );
        let profile = profile.unwrap();
        assert!(profile.denies_by_name("file-read-data") && !profile.denies_by_name("signal"));
    }

    #[test]
    fn finite_lists_of_calls_need_version_3_without_inference() {
        let list = "(deny syscall-unix)(allow syscall-unix (syscall-number SYS_read SYS_write))";
        let text = format!("(version 3)(disable-syscall-inference)(deny default){list}");
        let profile = Profile::parse(&text, &[]).unwrap();
        assert_eq!(profile.version(), Version::Three);
        let may = |call| profile.allows("syscall-unix", &Target::Call(call)).unwrap();
        assert!(may("SYS_read") && may("SYS_write") && !may("SYS_open"));
        assert_eq!(profile.calls("syscall-unix"), ["SYS_read", "SYS_write"]);
        let open = Profile::parse("(version 1)(deny default)", &[]).unwrap();
        for operation in ["syscall-unix", "syscall-mach", "syscall-mig", "system-fcntl"] {
            assert!(open.allows(operation, &Target::Call("anything")).unwrap(), "{operation}");
        }
        let error = Profile::parse("(version 3)(deny default)", &[]).unwrap_err();
        assert!(error.to_string().contains("add calls"), "{error}");
        let error =
            Profile::parse("(version 1)(deny default)(allow syscall-unix (syscall-number))", &[]);
        assert!(error.unwrap_err().to_string().contains("of nothing"));
    }

    #[test]
    fn deny_default_leaves_some_operations_open() {
        assert!(allows("", "process-info-pidinfo", Target::OtherProcess));
        assert!(allows("", "iokit-get-properties", Target::Name("x")));
        assert!(!allows("(deny process-info*)", "process-info-pidinfo", Target::OtherProcess));
        let own = "(deny process-info*)(allow process-info-pidinfo (target self))";
        assert!(allows(own, "process-info-pidinfo", Target::OwnProcess));
        assert!(!allows(own, "process-info-pidinfo", Target::OtherProcess));
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_line() {
        for (text, why) in [
            ("(version 1)", "deny by default"),
            ("(deny default)", "version 1 or 3"),
            ("(version 2)(deny default)", "version 1 or 3"),
            ("(version 1)\n(deny default)\n(allow fly)", "Line 3: there is no operation fly"),
            ("(version 1)(deny default)(allow signal (target others))", "only target"),
            ("(version 1)(deny default)(allow file-read* (subpath (param \"X\")))", "parameter X"),
            ("(version 1)(deny default)(allow file-read* (regex \"x\"))", "no filter regex"),
            ("(version 1)(deny default)(allow file-read* (literal))", "of nothing"),
            ("(version 1)(deny default)(import \"system.sb\")", "system.sb"),
            ("(version 1", "too early"),
            (")", "too many"),
            ("(version \"1)", "no string"),
            ("(a (b (c", "too early"),
        ] {
            let error = Profile::parse(text, &[]).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = "(".repeat(100);
        assert!(Profile::parse(&deep, &[]).unwrap_err().to_string().contains("too deep"));
    }
}
