//! The part of the profile language that our profiles use, and what it means.

use std::collections::BTreeMap;

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
    /// The process itself.
    OwnProcess,
    /// Any other process.
    OtherProcess,
}

/// A profile that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Line {line}: {why}")]
pub struct ProfileError {
    line: usize,
    why: String,
}

/// An expression: a word, a string, or a list.
#[derive(Clone, Debug)]
enum Expression {
    Word(String),
    Text(String),
    List(usize, Vec<Expression>),
}

/// What an operation must be tried on for a rule to match.
#[derive(Clone, Debug)]
enum Filter {
    Literal(String),
    Subpath(String),
    Name(String),
    Class(String),
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
    deny_by_default: bool,
    rules: Vec<Rule>,
}

/// Operations of the language, those that we name.
const OPERATIONS: &[&str] = &[
    "file-map-executable",
    "file-mount",
    "file-read-data",
    "file-read-metadata",
    "file-read-xattr",
    "file-write-create",
    "file-write-data",
    "file-write-unlink",
    "hid-control",
    "iokit-get-properties",
    "iokit-open-service",
    "iokit-open-user-client",
    "iokit-set-properties",
    "ipc-posix-sem",
    "ipc-posix-shm-read-data",
    "ipc-posix-shm-write-create",
    "mach-lookup",
    "mach-priv-task-port",
    "mach-register",
    "network-bind",
    "network-inbound",
    "network-outbound",
    "nvram-get",
    "nvram-set",
    "process-exec",
    "process-exec-interpreter",
    "process-fork",
    "process-info-listpids",
    "process-info-pidfdinfo",
    "process-info-pidinfo",
    "process-info-setcontrol",
    "signal",
    "sysctl-read",
    "sysctl-write",
    "system-kext-load",
    "system-socket",
];

/// Operations that (deny default) leaves open.
const LEFT_OPEN: &[&str] =
    &["iokit-get-properties", "process-info*", "nvram*", "file-map-executable"];

/// What a profile of the system's may be imported, and what it is taken to allow: all that we know
/// of it is that it lets the loader work.
const IMPORTS: &[&str] = &["dyld-support.sb"];

/// Whether a rule's operation, which may end in a star, names `operation`.
fn names(pattern: &str, operation: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => operation.starts_with(prefix),
        None => pattern == operation,
    }
}

impl Profile {
    /// Reads a profile with its parameters.
    ///
    /// # Errors
    /// [`ProfileError`] for what is not of the language, or not of the part that is known here.
    pub fn parse(text: &str, parameters: &[(&str, &str)]) -> Result<Self, ProfileError> {
        let parameters: BTreeMap<&str, &str> = parameters.iter().copied().collect();
        let mut profile = Self { deny_by_default: false, rules: Vec::new() };
        let mut version = None;
        for expression in Reader::new(text).all()? {
            let Expression::List(line, list) = expression else {
                return Err(ProfileError { line: 1, why: "a word outside of a list".to_owned() });
            };
            let fail = |why: String| Err(ProfileError { line, why });
            match &list[..] {
                [Expression::Word(head), Expression::Word(number)] if head == "version" => {
                    version = Some(number.clone());
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
        match (version.as_deref(), profile.deny_by_default) {
            (Some("1"), true) => Ok(profile),
            (Some("1"), false) => {
                Err(ProfileError { line: 1, why: "it does not deny by default".to_owned() })
            }
            _ => Err(ProfileError { line: 1, why: "it is not of version 1".to_owned() }),
        }
    }

    /// Whether `operation` on `target` is allowed: the last rule that matches decides.
    ///
    /// # Errors
    /// [`ProfileError`] for an operation that is not known.
    pub fn allows(&self, operation: &str, target: &Target<'_>) -> Result<bool, ProfileError> {
        if !OPERATIONS.contains(&operation) {
            return Err(ProfileError { line: 0, why: format!("there is no {operation}") });
        }
        let last = self.rules.iter().rev().find(|rule| {
            names(&rule.operation, operation)
                && (rule.filters.is_empty() || rule.filters.iter().any(|one| one.fits(target)))
        });
        Ok(match last {
            Some(rule) => rule.allow,
            None => LEFT_OPEN.iter().any(|open| names(open, operation)),
        })
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
            (Self::OwnProcess, Target::OwnProcess) => true,
            _ => false,
        }
    }
}

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

/// Reads expressions.
struct Reader<'t> {
    text: std::iter::Peekable<std::str::Chars<'t>>,
    line: usize,
}

/// Deepest list that is read.
const MAX_DEPTH: usize = 16;

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Self {
        Self { text: text.chars().peekable(), line: 1 }
    }

    fn fail<T>(&self, why: &str) -> Result<T, ProfileError> {
        Err(ProfileError { line: self.line, why: why.to_owned() })
    }

    fn next(&mut self) -> Option<char> {
        let next = self.text.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// Skips blanks and comments; the character after them.
    fn skip(&mut self) -> Option<char> {
        loop {
            match self.text.peek() {
                Some(blank) if blank.is_whitespace() => drop(self.next()),
                Some(';') => while self.next().is_some_and(|character| character != '\n') {},
                other => return other.copied(),
            }
        }
    }

    fn all(mut self) -> Result<Vec<Expression>, ProfileError> {
        let mut all = Vec::new();
        while self.skip().is_some() {
            all.push(self.one(0)?);
        }
        Ok(all)
    }

    fn one(&mut self, depth: usize) -> Result<Expression, ProfileError> {
        match self.skip() {
            None => self.fail("it ends too early"),
            Some(')') => self.fail("a ) too many"),
            Some('(') if depth >= MAX_DEPTH => self.fail("lists are too deep"),
            Some('(') => {
                let line = self.line;
                self.next();
                let mut list = Vec::new();
                while self.skip() != Some(')') {
                    list.push(self.one(depth + 1)?);
                }
                self.next();
                Ok(Expression::List(line, list))
            }
            Some('"') => {
                self.next();
                let mut text = String::new();
                loop {
                    match self.next() {
                        None | Some('\n' | '\\') => return self.fail("a string that is no string"),
                        Some('"') => return Ok(Expression::Text(text)),
                        Some(other) => text.push(other),
                    }
                }
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(character) = self.text.peek().copied() {
                    if character.is_whitespace() || "();\"".contains(character) {
                        break;
                    }
                    word.push(character);
                    self.next();
                }
                Ok(Expression::Word(word))
            }
        }
    }
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
            ("(deny default)", "version 1"),
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
