//! Licences of everything in the lock file, against `licenses.allow` of deny.toml.

use serde_json::Value;
use spdx::{Expression, Licensee, ParseMode};

use crate::Result;

/// As crates write them: a few still separate alternatives by a slash.
const MODE: ParseMode = ParseMode { allow_slash_as_or_operator: true, ..ParseMode::STRICT };

/// Every package is under a licence that deny.toml allows, and comes from the registry or from here;
/// how many there are.
pub(crate) fn check(packages: &[Value], deny: &toml::Table) -> Result<usize> {
    let allowed = allowed(deny)?;
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        let licence =
            package["license"].as_str().ok_or_else(|| format!("{name} names no licence"))?;
        if !satisfied(licence, &allowed).map_err(|error| format!("{name}: {error}"))? {
            return Err(
                format!("{name} is under '{licence}', which deny.toml does not allow").into()
            );
        }
        let source = package["source"].as_str();
        if source.is_some_and(|source| !source.starts_with("registry+")) {
            return Err(format!("{name} does not come from the registry").into());
        }
    }
    Ok(packages.len())
}

/// What deny.toml allows: a licence each, perhaps with an exception.
fn allowed(deny: &toml::Table) -> Result<Vec<Licensee>> {
    let allowed = deny
        .get("licenses")
        .and_then(|table| table.get("allow")?.as_array())
        .ok_or("deny.toml has no licenses.allow")?;
    let parse = |one: &toml::Value| {
        let text = one.as_str().ok_or("deny.toml: licenses.allow: a licence is a string")?;
        Licensee::parse(text).map_err(|error| format!("deny.toml: licenses.allow: {error}"))
    };
    let parsed: std::result::Result<Vec<_>, String> = allowed.iter().map(parse).collect();
    Ok(parsed?)
}

/// Whether an SPDX expression can be satisfied by allowed licences alone. AND binds tighter than OR.
fn satisfied(expression: &str, allowed: &[Licensee]) -> Result<bool> {
    let expression = Expression::parse_mode(expression, MODE)
        .map_err(|error| format!("'{expression}' is no licence expression: {}", error.reason))?;
    Ok(expression.evaluate(|required| allowed.iter().any(|licence| licence.satisfies(required))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn satisfied_by(expression: &str, allow: &str) -> Result<bool> {
        let deny: toml::Table = format!("[licenses]\nallow = {allow}").parse().unwrap();
        satisfied(expression, &allowed(&deny)?)
    }

    #[test]
    fn operators_and_parentheses_bind_as_in_spdx() {
        let allow = r#"["MIT", "Apache-2.0", "Unicode-3.0"]"#;
        for (expression, holds) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("MIT AND GPL-3.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            // Flattened, each of these would have an alternative that is allowed by itself.
            ("(MIT OR Apache-2.0) AND GPL-3.0-only", false),
            ("GPL-3.0-only AND (MIT OR Apache-2.0)", false),
            ("MIT AND (GPL-3.0-only OR (Zlib AND Apache-2.0))", false),
            // And without parentheses AND comes first.
            ("MIT OR Apache-2.0 AND GPL-3.0-only", true),
            ("GPL-3.0-only OR MIT AND Apache-2.0", true),
            ("GPL-3.0-only AND MIT OR Zlib AND MIT", false),
            ("Unlicense/MIT", true),
        ] {
            assert_eq!(satisfied_by(expression, allow).unwrap(), holds, "{expression}");
        }
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        let with = "Apache-2.0 WITH LLVM-exception";
        assert!(satisfied_by(with, r#"["Apache-2.0 WITH LLVM-exception"]"#).unwrap());
        assert!(!satisfied_by("Apache-2.0", r#"["Apache-2.0 WITH LLVM-exception"]"#).unwrap());
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for bad in ["", "none", "MIT AND", "(MIT", "MIT Apache-2.0", "Made-Up-1.0"] {
            assert!(satisfied_by(bad, r#"["MIT"]"#).is_err(), "{bad}");
        }
        assert!(satisfied_by("MIT", r#"["Made-Up-1.0"]"#).is_err());
    }
}
