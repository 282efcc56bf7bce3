//! macOS: a fault of memory and a forbidden call are reported by the system, which writes a report of each crash.

/// Nothing is to be done.
///
/// # Errors
/// Never.
pub(crate) fn report_faults() -> std::io::Result<()> {
    Ok(())
}

/// Where guest memory is mapped, which nobody looks up here.
#[derive(Debug)]
pub(crate) struct Place;

impl Place {
    /// `length` bytes of guest memory from `guest` on are mapped `at` this address.
    pub(crate) fn new(_at: usize, _length: usize, _guest: u64) -> Self {
        Self
    }
}
