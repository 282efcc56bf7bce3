//! What differs from system to system.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub(crate) use linux::{Life, is_same_file, life, look_from_begin, looked_at, peer, pipe, splice};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{Life, is_same_file, life, look_from_begin, looked_at, peer, pipe, splice};
