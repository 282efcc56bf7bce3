//! Text that came from a distrusted process, on its way to people.

/// A distrusted process's text, fit for a terminal and a log: one line, no control characters,
/// at most 500 characters.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_below_is_one_harmless_line() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a?[2Jb?c");
        assert_eq!(printable(&"x".repeat(9999)).len(), 500);
    }
}
