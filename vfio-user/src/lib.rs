//! The vfio-user front end: a function served to a VMM that Cordon is not linked into.
//!
//! One thread for each function owns its listening socket and, while there is one, its client. The
//! client (stock QEMU, cloud-hypervisor's crate) is a VMM: it may do with its own guest what it
//! likes, but every size, index, count and descriptor that it sends is checked; what is wrong is
//! answered with an errno, its descriptors are closed, and the connection goes on wherever the
//! stream is still in step.
//!
//! ```text
//!            cleaned            accept             VERSION
//! Cleaning ──────────▶ Listening ──────▶ Connected ─────────▶ Serving ──┐ commands, in order
//!   ▲ ▲──┐ not yet                           │                   │ ▲────┘
//!   │ └──┘                                   │                   │
//!   └────────────────────────────────────────┴───────────────────┘
//!     end of file, out of step, stalled: bus mastering off, interrupts and memory taken back
//! ```
//!
//! Cleaning is a reset and everything else that leaves nothing of one client for the next. A
//! function that cannot be cleaned is handed to nobody, and it is tried again.
//!
//! What a client can have the server hold has a [`Budget`] that is the client's own. A panic ends
//! the service of its function only.
//!
//! | file | commands |
//! | --- | --- |
//! | `negotiate` | VERSION |
//! | `info` | DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO |
//! | `dma` | DMA_MAP, DMA_UNMAP |
//! | `interrupts` | DEVICE_SET_IRQS |
//! | `access` | REGION_READ, REGION_WRITE |
//! | `session` | DEVICE_RESET, and the order of things |
//! | `timed` | the one deadline of each |
//!
//! With a keeper ([`cordon_vmm::kept`]) a server that is killed is followed by one that goes on with its client:
//! [`kept`].

mod access;
pub mod config;
mod dma;
mod entrance;
#[cfg(test)]
mod fake;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod handover;
mod info;
mod interrupts;
pub mod kept;
pub mod limits;
mod negotiate;
mod options;
mod progress;
pub mod protocol;
mod reports;
mod seat;
mod server;
mod service;
mod session;
mod socket;
mod sys;
mod timed;

pub use guest::Guest;
pub use options::{AtBudget, Budget, BudgetKind, Options};
pub use server::{Clients, Event, Keeping, Server, ServerError};
