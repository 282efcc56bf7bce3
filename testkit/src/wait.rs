//! Waiting for what happens in another process, which nothing here can wait for otherwise: by asking again.

use std::time::{Duration, Instant};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Asks again until `look` gives something, for at most `time`; `None` when it never did.
pub fn until_some<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Asks again until `holds`, for at most `time`; `false` when it never did.
pub fn until(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    until_some(time, || holds().then_some(())).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_taken_at_once_and_again() {
        let mut looks = 0;
        let third = || {
            looks += 1;
            looks == 3
        };
        assert!(until(Duration::from_secs(10), third));
        assert_eq!(looks, 3);
        assert!(until(Duration::ZERO, || true));
        assert!(!until(Duration::ZERO, || false));
    }
}
