//! VMM side and connection process.

use serde::{Deserialize, Serialize};

use crate::PciAddress;

use super::call::{Names, conversation};
use super::common::{BarInfo, Identity, Ping, Shutdown};
use super::faults::Misbehave;
use super::sandbox::SandboxReport;

/// Sent once every function of the isolation group is open (none claimed) and the process is confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The functions that can be attached.
    pub functions: Vec<Identity>,
    /// What confines the process.
    pub sandbox: SandboxReport,
}

/// A part of a BAR that may be given to a guest (P7): one descriptor travels beside each, or one
/// memory entry through the memory port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarWindow {
    /// BAR number.
    pub bar: u8,
    /// Where in the BAR the window begins: a multiple of the host's page size (P7.7).
    pub offset: u64,
    /// Bytes: a multiple of the host's page size.
    pub length: u64,
    /// Where in the memory behind the descriptor the window begins.
    pub memory_offset: u64,
}

/// How the memory of windows reaches the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    /// One descriptor for each, beside the message.
    Descriptors,
    /// One memory entry for each, through the memory port, under the function's number.
    Port,
    /// Not at all: the VMM maps the BARs by a connection of its own.
    Own,
}

/// The answer to [`Attach`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// What was claimed.
    pub identity: Identity,
    /// Its BARs.
    pub bars: [Option<BarInfo>; 6],
    /// The parts of its BARs that a guest may have, MSI-X pages left out (P7.3).
    pub windows: Vec<BarWindow>,
    /// How their memory comes.
    pub carrier: Carrier,
    /// BARs that could not be mapped and are served by traps only: one line each (P7.4).
    pub warnings: Vec<String>,
}

/// A range of guest memory to register with the dext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaEntry {
    /// The dext's key; direct mode uses the iova (P2.4).
    pub key: u64,
    /// Guest address: the range must lie in one region of the table.
    pub address: u64,
    /// Bytes, not 0.
    pub size: u64,
}

/// DMA registrations of one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaStatistics {
    /// Registered now.
    pub regions: u64,
    /// Bytes registered now.
    pub bytes: u64,
    /// Most regions at once.
    pub peak_regions: u64,
    /// Most bytes at once.
    pub peak_bytes: u64,
    /// Entries that failed since the platform maps no more bytes (about 1.5 GiB).
    pub failed_bytes: u64,
    /// Entries that failed since there are no more mappings (65,536).
    pub failed_mappings: u64,
    /// Entries that failed since the platform had no single segment for them.
    pub failed_segments: u64,
}

/// Claims a function and exports its BARs; one descriptor beside the answer for each window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
}

/// Closes the opener's connection: the dext releases the claim and all DMA of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
}

/// A region of a function's guest memory; its descriptor travels beside. Each function has a table
/// of its own: functions of one device may belong to different guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddMemory {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
    /// Guest address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Where in the memory behind the descriptor it begins.
    pub offset: u64,
    /// Whether devices may write it.
    pub writable: bool,
}

/// Removes what the function's companion registered of a region, and forgets the region. Answers whether
/// that is done: where it takes long, it is to be asked again until it is. Refused while registrations of
/// the VMM's are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveMemory {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
    /// Guest address that it was added at.
    pub base: u64,
}

/// Registers a range for a function, on behalf of the VMM (direct mode, P2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDma {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
    /// The range.
    pub entry: DmaEntry,
}

/// Where the device reaches what was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped {
    /// Bus address.
    pub bus_address: u64,
    /// Bytes.
    pub bus_length: u64,
}

/// Removes a registration that was made on behalf of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmapDma {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
    /// Its key.
    pub key: u64,
}

/// Asks for the registrations of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetStatistics {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
}

impl Names for GetStatistics {
    const NAMES: &'static [&'static str] = &["Statistics"];

    fn name(&self) -> &'static str {
        Self::NAMES[0]
    }
}

/// Resets a claimed function: it comes back after its connection process died (P8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
}

/// Serves a function's companion: the tube to its function process travels beside, and replaces the
/// one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
}

/// Gives up what a function's companion carries out, and removes everything that it registered. Answers
/// whether that is done: where it takes long, it is to be asked again until it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseDma {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
}

/// The guest is told that a doorbell failed: what was carried out of its batch is undone, and what was
/// not never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbandonBatch {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
    /// Number of the doorbell.
    pub batch: u64,
}

/// Asks for what a process that serves a claimed function is handed ([`super::function::Handed`]): that many
/// descriptors come beside the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// Which function, by its number ([`crate::numbered`]).
    pub function: u8,
}

/// Asks for what keeps the functions that are attached going if the process dies ([`Escrowed`]), as things are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escrow;

/// What keeps functions going without the process that holds their group. The descriptors travel beside: those
/// of the group first, then those of each function.
///
/// The answer to [`Escrow`], and the first message to a successor that adopts instead of opening (`--adopt`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escrowed {
    /// Descriptors of the group; 0 where nothing outlives the process.
    pub group: u8,
    /// Its functions that are attached.
    pub functions: Vec<EscrowedFunction>,
}

/// One function of [`Escrowed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowedFunction {
    /// Where it is.
    pub address: PciAddress,
    /// How many descriptors are its own.
    pub descriptors: u8,
    /// Whether another one comes after these: an event that is readable once the function is to be given back.
    pub request: bool,
}

impl Escrowed {
    /// How many descriptors travel beside it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let of = |one: &EscrowedFunction| usize::from(one.descriptors) + usize::from(one.request);
        usize::from(self.group) + self.functions.iter().map(of).sum::<usize>()
    }
}

/// The first message to a process that is started with `--handed`, or the second where it adopts too: files that a manager opened, which travel beside it in
/// the order that they are named in. Numbers are those of the descriptors in the process that they were handed to, for
/// people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandedFiles {
    /// That of its group, and that of a container.
    Group {
        /// The group's.
        group: i32,
        /// The container's; none where the process opens a container itself.
        container: Option<i32>,
    },
    /// Functions' own, and that of an iommufd.
    Devices {
        /// The functions'.
        devices: Vec<i32>,
        /// The iommufd's.
        iommufd: i32,
    },
}

impl HandedFiles {
    /// How many descriptors travel beside it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Group { container, .. } => 1 + usize::from(container.is_some()),
            Self::Devices { devices, .. } => devices.len() + 1,
        }
    }
}

/// Registers a range for an adopted function as [`MapDma`] does, unless the predecessor has registered it
/// already: whoever asks has kept account, and says that it can have registered nothing else there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptDma {
    /// Function number 0..=7.
    pub function: u8,
    /// The range.
    pub entry: DmaEntry,
}

conversation! {
    /// What the VMM side asks a connection process for.
    pub enum Request {
        /// Claim a function.
        Attach -> Box<Attached>;
        /// Close its opener.
        Detach -> ();
        /// Guest memory comes.
        AddMemory -> ();
        /// Guest memory goes.
        RemoveMemory -> bool;
        /// Register a range.
        MapDma -> Mapped;
        /// Remove a registration.
        UnmapDma -> ();
        /// Registrations of a function.
        GetStatistics -> DmaStatistics, names of GetStatistics;
        /// Reset a function.
        Reset -> ();
        /// Serve a companion.
        Companion -> ();
        /// Remove what a companion registered.
        ReleaseDma -> bool;
        /// Undo a batch of a companion's.
        AbandonBatch -> ();
        /// A sign of life.
        Ping -> ();
        /// Exit in order.
        Shutdown -> ();
        /// Do wrong at the next request.
        Misbehave -> ();
        /// Hand a function on.
        HandOver -> ();
        /// What keeps the functions going without the process.
        Escrow -> Escrowed;
        /// Register a range that a predecessor may have registered.
        AdoptDma -> Mapped;
    }
}
