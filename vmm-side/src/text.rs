//! Text that came from a distrusted process, on its way to people.

/// Characters that have no picture of their own, or change how others are shown: sorted ranges.
/// They are the characters of Unicode's general category Cf and of its properties Bidi_Control and
/// Default_Ignorable_Code_Point (with the code points that are reserved for them), and
/// blank symbols that are no white space.
const INVISIBLE: [(char, char); 26] = [
    ('\u{ad}', '\u{ad}'),       // soft hyphen
    ('\u{34f}', '\u{34f}'),     // combining grapheme joiner
    ('\u{600}', '\u{605}'),     // Arabic number signs
    ('\u{61c}', '\u{61c}'),     // Arabic letter mark (Bidi_Control)
    ('\u{6dd}', '\u{6dd}'),     // Arabic end of ayah
    ('\u{70f}', '\u{70f}'),     // Syriac abbreviation mark
    ('\u{890}', '\u{891}'),     // Arabic pound and piastre marks
    ('\u{8e2}', '\u{8e2}'),     // Arabic disputed end of ayah
    ('\u{115f}', '\u{1160}'),   // Hangul fillers
    ('\u{17b4}', '\u{17b5}'),   // Khmer inherent vowels
    ('\u{180b}', '\u{180f}'),   // Mongolian variation selectors, vowel separator
    ('\u{200b}', '\u{200f}'),   // zero width spaces and joiners, LRM, RLM (Bidi_Control)
    ('\u{202a}', '\u{202e}'),   // embeddings and overrides (Bidi_Control)
    ('\u{2060}', '\u{206f}'),   // word joiner, invisible operators, isolates (Bidi_Control)
    ('\u{2800}', '\u{2800}'),   // blank Braille pattern
    ('\u{3164}', '\u{3164}'),   // Hangul filler
    ('\u{fe00}', '\u{fe0f}'),   // variation selectors
    ('\u{feff}', '\u{feff}'),   // zero width no-break space, byte order mark
    ('\u{ffa0}', '\u{ffa0}'),   // halfwidth Hangul filler
    ('\u{fff0}', '\u{fffb}'),   // reserved, interlinear annotation
    ('\u{110bd}', '\u{110bd}'), // Kaithi number sign
    ('\u{110cd}', '\u{110cd}'), // Kaithi number sign above
    ('\u{13430}', '\u{1343f}'), // Egyptian hieroglyph format controls
    ('\u{1bca0}', '\u{1bca3}'), // shorthand format controls
    ('\u{1d173}', '\u{1d17a}'), // musical format controls
    ('\u{e0000}', '\u{e0fff}'), // tags, variation selectors, reserved
];

/// Whether a character is shown as itself and changes nothing beside it.
fn is_harmless(c: char) -> bool {
    // White space other than the space is a control character, a line or paragraph separator, or
    // a space that cannot be told from another one.
    let blank = c.is_whitespace() && c != ' ';
    let at = INVISIBLE.partition_point(|(_, last)| *last < c);
    let invisible = INVISIBLE.get(at).is_some_and(|(first, _)| *first <= c);
    !c.is_control() && !blank && !invisible
}

/// A distrusted process's text, fit for a terminal and a log: one line, at most 500 characters. A
/// question mark stands for each control character, line or paragraph separator, and for each
/// character that is invisible or changes the direction of others.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if is_harmless(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex_syntax::hir::{Class, HirKind};

    /// What Unicode's own tables say may not pass.
    const FORBIDDEN: &str = r"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Bidi_Control}\p{Default_Ignorable_Code_Point}[\p{White_Space}--\x20]]";

    fn forbidden() -> Vec<(char, char)> {
        let parsed = regex_syntax::parse(FORBIDDEN).unwrap();
        let HirKind::Class(Class::Unicode(class)) = parsed.kind() else { panic!("{parsed:?}") };
        class.ranges().iter().map(|range| (range.start(), range.end())).collect()
    }

    #[test]
    fn text_from_below_is_one_harmless_line() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a?[2Jb?c");
        assert_eq!(printable("level\u{202e}txt.exe\u{2069}\u{2028}x"), "level?txt.exe??x");
        assert_eq!(printable(&"x".repeat(9999)).len(), 500);
    }

    #[test]
    fn the_ranges_are_sorted_and_apart() {
        assert!(INVISIBLE.iter().all(|(first, last)| first <= last));
        assert!(INVISIBLE.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }

    #[test]
    fn no_character_passes_that_unicode_calls_invisible_or_a_control() {
        let mut count = 0;
        for c in forbidden().into_iter().flat_map(|(first, last)| first..=last) {
            assert_eq!(printable(&c.to_string()), "?", "{:?}", c.escape_unicode());
            count += 1;
        }
        // Default_Ignorable_Code_Point alone has more than 4000.
        assert!(count > 4000, "{count}");
    }

    proptest! {
        #[test]
        fn what_passes_is_what_came_and_nothing_forbidden(
            text in r"(\PC|\p{Cf}|\p{Bidi_C}|[\u{2028}\u{2029}\x00-\x1f]){0,600}"
        ) {
            let forbidden = forbidden();
            let printed = printable(&text);
            prop_assert_eq!(printed.chars().count(), text.chars().count().min(500));
            for (came, shown) in text.chars().zip(printed.chars()) {
                let bad = forbidden.iter().any(|(first, last)| (*first..=*last).contains(&came));
                prop_assert!(shown == came || shown == '?');
                prop_assert!(!bad || shown == '?', "{}", came.escape_unicode());
                prop_assert!(came.is_alphanumeric() <= (shown == came || bad));
            }
        }
    }
}
