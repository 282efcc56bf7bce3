//! Confinement of the processes below the VMM.
//!
//! The policy is data (`policy` on Linux: one entry for each system call, with who needs it;
//! [`seatbelt`] on macOS). [`confine`] applies every layer to the calling process, in this order, and reports what really holds:
//!
//! 1. the descriptors that are open are the expected ones;
//! 2. user and pid namespaces, which the spawning VMM side made, are there, and a control group of
//!    its own where it could make one;
//! 3. mount, network, ipc and uts namespaces;
//! 4. an empty, read-only root directory;
//! 5. no capabilities, not even in the bounding set; no new privileges; not dumpable;
//! 6. resource limits, a budget of addresses; death with the parent;
//! 7. Landlock: nothing of the file system, no network, no signals or sockets outside;
//! 8. seccomp: the allow-list, anything else kills the process, which may say before which call it was.
//!
//! In [`Mode::Strict`] a layer that cannot be had is an error and the process must not go on. In
//! [`Mode::Relaxed`] it is reported as missing. A layer that the kernel knows only in part
//! (Landlock of an older kernel) is reported as partial in both.
//!
//! Called once, by a process that has a single thread and has opened all that it needs: nothing
//! can be opened afterwards. On macOS the layers are the descriptors, resource limits and the
//! role's Seatbelt profile.

mod layer;
pub mod limits;
#[cfg(target_os = "linux")]
pub mod policy;
pub mod seatbelt;
mod sys;

pub use layer::Layer;
#[cfg(target_os = "macos")]
pub use sys::{Answer, ask};
#[cfg(target_os = "linux")]
pub use sys::{User, confine_server};
pub use sys::{confine, machine_memory};

/// Whose policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the opener connections of one device; sends BAR windows to the VMM.
    Connection,
    /// Holds one unclaimed connection and parses what a guest wrote; the tightest.
    Function,
    /// Lists what the dext offers.
    Lister,
    /// A connection process over Linux's VFIO: asks the kernel to map and unmap memory for DMA.
    VfioConnection,
    /// A connection process over Linux's VFIO that maps by an iommufd instead of a container.
    IommufdConnection,
    /// A function process over Linux's VFIO: asks the kernel for accesses of its one device, and whom to
    /// signal for its interrupts.
    VfioFunction,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Connection,
        Self::Function,
        Self::Lister,
        Self::VfioConnection,
        Self::IommufdConnection,
        Self::VfioFunction,
    ];
}

/// What to do about a layer that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Refuse to go on.
    Strict,
    /// Go on, and say so.
    Relaxed,
}

/// Whether a layer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// In force, with what there is to say of it.
    Enforced(String),
    /// In force as far as the kernel knows it, or as whoever started the process could make it; says
    /// what is lacking.
    Partial(String),
    /// Not in force; says why, and what helps.
    Missing(String),
}

/// Whose network namespace a process is in when it confines itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// That of whoever started it: it makes one of its own.
    #[default]
    Shared,
    /// An empty one that whoever started it had made for such processes: making one costs most of a
    /// millisecond of processor time, and as much again when it ends.
    Inherited,
}

/// What a process finds and will be given, as far as it matters for how it confines itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// Bytes of memory that it will be handed and map afterwards.
    pub later: u64,
    /// Its network namespace; there are none on macOS.
    pub network: Network,
}

/// What is enforced on this process from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Layers in the order of application.
    pub layers: Vec<(Layer, LayerState)>,
    /// System calls on the allow-list.
    pub syscalls: usize,
}

/// A process that must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A layer is missing in strict mode.
    #[error("Sandbox layer '{layer}' is missing: {why}, or start without it by --sandbox=relaxed")]
    Missing {
        /// Which.
        layer: Layer,
        /// Why, and what helps.
        why: String,
    },
}

/// Collects layers, and stops at the first missing one in strict mode.
pub(crate) struct Collector {
    mode: Mode,
    layers: Vec<(Layer, LayerState)>,
}

impl Collector {
    pub(crate) fn new(mode: Mode) -> Self {
        Self { mode, layers: Vec::new() }
    }

    pub(crate) fn add(&mut self, layer: Layer, state: LayerState) -> Result<(), ConfineError> {
        match state {
            LayerState::Missing(why) if self.mode == Mode::Strict => {
                Err(ConfineError::Missing { layer, why })
            }
            state => {
                self.layers.push((layer, state));
                Ok(())
            }
        }
    }

    pub(crate) fn report(self, syscalls: usize) -> Report {
        Report { layers: self.layers, syscalls }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_refuses_what_relaxed_reports() {
        let missing = || LayerState::Missing("no such kernel".to_owned());
        assert!(Collector::new(Mode::Strict).add(Layer::Landlock, missing()).is_err());
        let mut relaxed = Collector::new(Mode::Relaxed);
        relaxed.add(Layer::Landlock, missing()).unwrap();
        assert_eq!(relaxed.report(0).layers, vec![(Layer::Landlock, missing())]);
    }
}
