//! Other systems, on which no functions reach the same memory (Linux's VFIO has those): nobody needs to know.

use std::os::unix::net::UnixStream;

pub(crate) fn peer(_stream: &UnixStream) -> Option<u32> {
    None
}
