//! What differs from system to system.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub(crate) use linux::peer;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::peer;
