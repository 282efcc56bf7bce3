//! The vfio-user front end: a function served to a VMM that Cordon is not linked into.
//!
//! One thread for each function owns its listening socket and, while there is one, its client. The
//! client (stock QEMU, cloud-hypervisor's crate) is a VMM: it may do with its own guest what it
//! likes, but every size, index, count and descriptor that it sends is checked; what is wrong is
//! answered with an errno, its descriptors are closed, and the connection goes on wherever the
//! stream is still in step.
//!
//! ```text
//!           accept             VERSION
//! Listening ──────▶ Connected ─────────▶ Serving ──┐ commands, in order
//!     ▲                 │                   │ ▲────┘
//!     └─────────────────┴───────────────────┘
//!       end of file, out of step, stalled: bus mastering off, interrupts and memory taken
//!       back; the device stays, and the next client may come
//! ```
//!
//! | file | commands |
//! | --- | --- |
//! | `negotiate` | VERSION |
//! | `info` | DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO |
//! | `dma` | DMA_MAP, DMA_UNMAP |
//! | `interrupts` | DEVICE_SET_IRQS |
//! | `access` | REGION_READ, REGION_WRITE |
//! | `session` | DEVICE_RESET, and the order of things |

mod access;
mod config;
mod dma;
mod info;
mod interrupts;
mod negotiate;
pub mod protocol;
mod server;
mod session;
mod socket;

pub use server::{Event, Server, ServerError};
