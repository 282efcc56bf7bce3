//! Where there is no seccomp.

/// Never runs anything.
pub(crate) fn run() -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}
