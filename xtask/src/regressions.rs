//! The table of docs/regressions.md, for people who read what `cargo xtask test` says. That its tests
//! exist is checked by a suite.

use std::path::Path;

use crate::Result;

/// Each row as "what was wrong: tests".
pub(crate) fn lines(root: &Path) -> Result<Vec<String>> {
    let path = root.join("docs/regressions.md");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(rows(&text))
}

fn rows(text: &str) -> Vec<String> {
    let rows = text.lines().filter_map(|line| {
        let (what, tests) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        // The head of the table has no tests.
        tests.contains("::").then(|| format!("{what}: {}", tests.replace('`', "")))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_with_their_tests_and_the_head_is_not() {
        let text =
            "# T\n\n| what | tests |\n| --- | --- |\n| it was bad | `a.rs::b`, `c.rs::d` |\n";
        assert_eq!(rows(text), ["it was bad: a.rs::b, c.rs::d"]);
    }
}
