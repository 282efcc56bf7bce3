//! The vfio-user server against clients that break every rule, one file for each command or subject: an error
//! reply with the right errno, received descriptors closed, the connection usable afterwards
//! wherever the stream is still in step.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod budgets;
mod companion_client;
mod deadlines;
mod device_reset;
mod dma_map;
mod dma_unmap;
mod events;
mod fake;
mod get_info;
mod handover;
mod irq_info;
mod neighbours;
mod panics;
mod region_info;
mod region_read;
mod region_write;
mod removal;
mod sealed_memory;
mod set_irqs;
mod shared_guest;
mod stock_client;
mod stream;
mod version;

const EINVAL: i32 = 22;
