//! The descriptors that are the program's. Those of the runner have low numbers too between the call that makes
//! them and [`crate::hide`], or for as long as it reads a file: nobody who asks what is open may meet them.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::HIDDEN;

const WORD: usize = u64::BITS as usize;

/// One bit for each number below the runner's.
static OPEN: [AtomicU64; (HIDDEN as usize).div_ceil(WORD)] =
    [const { AtomicU64::new(0) }; (HIDDEN as usize).div_ceil(WORD)];

fn bit(fd: c_int) -> Option<(&'static AtomicU64, u64)> {
    let number = usize::try_from(fd).ok()?;
    Some((OPEN.get(number / WORD)?, 1 << (number % WORD)))
}

/// What a call gave the program: its descriptor from here on, if it is one and not -1.
pub fn given(fd: c_int) -> c_int {
    if let Some((word, bit)) = bit(fd) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
    fd
}

/// The program is about to close it.
pub fn closing(fd: c_int) {
    if let Some((word, bit)) = bit(fd) {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Whether it is the program's.
pub fn is_given(fd: c_int) -> bool {
    bit(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

/// What is open already as the process begins was given by whoever started it.
pub fn inherit() {
    for fd in 0..HIDDEN {
        // SAFETY: plain numbers: only asks whether it is open.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            given(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{closing, given, is_given};
    use crate::HIDDEN;

    #[test]
    fn what_was_given_is_the_programs_until_it_closes_it() {
        assert!(!is_given(2_999));
        assert_eq!(given(2_999), 2_999);
        assert!(is_given(2_999) && !is_given(2_998));
        closing(2_999);
        assert!(!is_given(2_999));
    }

    #[test]
    fn no_number_is_none() {
        for fd in [-1, HIDDEN + 64, i32::MAX] {
            assert_eq!(given(fd), fd);
            assert!(!is_given(fd));
            closing(fd);
        }
    }
}
