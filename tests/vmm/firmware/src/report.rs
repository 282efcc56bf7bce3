//! What was tried and what came of it, on the serial port.

use core::fmt::{self, Debug, Display, Write as _};

use crate::machine::outb;

/// Counts.
#[derive(Default)]
pub struct Report {
    passed: u32,
    failed: u32,
}

/// The first serial port.
struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| outb(0x3f8, byte));
        Ok(())
    }
}

impl Report {
    /// One thing that was tried.
    pub fn check<T: PartialEq + Debug>(&mut self, what: impl Display, found: T, expected: T) {
        if found == expected {
            self.passed += 1;
            self.say(format_args!("ok {what}"));
        } else {
            self.failed += 1;
            self.say(format_args!("FAILED {what}: {found:x?}, and not {expected:x?}"));
        }
    }

    /// A line.
    pub fn say(&mut self, line: fmt::Arguments<'_>) {
        let _ = writeln!(Serial, "{line}");
    }

    /// The last line.
    pub fn close(&mut self) {
        let (passed, failed) = (self.passed, self.failed);
        self.say(format_args!("firmware: {passed} passed, {failed} failed"));
    }
}
