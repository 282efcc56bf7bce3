//! The dext's interface: the numbers of its ABI, and how a client on Linux talks to the simulated
//! one (on macOS the same numbers go through IOKit).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::root_bridge::RootBridge;

/// The property `IOUserClass` of the services that are ours.
pub const SERVICE_CLASS: &str = "VFIOUserPCIDriver";

/// The user-client type to open with; any other is refused.
pub const CLIENT_TYPE: u32 = 0;

/// Most scalars in or out of one call.
pub const MAX_SCALARS: usize = 16;

/// Size of the interrupt state page in bytes.
pub const INTERRUPT_PAGE: usize = 16 * 1024;

/// Where the four enabled words begin in the interrupt state page; the pending words begin at 0.
pub const ENABLED_WORDS: u64 = 0x20;

/// Vectors that have a pending bit.
pub const MAX_VECTORS: u16 = 256;

/// External methods.
#[expect(missing_docs, reason = "the ABI's own names; arguments are on the typed client")]
pub mod selector {
    pub const GET_IDENTITY: u32 = 0;
    pub const CLAIM: u32 = 1;
    pub const TERMINATE: u32 = 2;
    pub const ALLOCATE_DMA_BUFFER: u32 = 3;
    pub const FREE_DMA_BUFFER: u32 = 4;
    pub const REGISTER_DMA_REGION: u32 = 5;
    pub const UNREGISTER_DMA_REGION: u32 = 6;
    pub const PROBE_DMA_REGION: u32 = 7;
    pub const CONFIG_READ: u32 = 8;
    pub const CONFIG_WRITE: u32 = 9;
    pub const GET_BAR_INFO: u32 = 10;
    pub const MMIO_READ: u32 = 11;
    pub const MMIO_WRITE: u32 = 12;
    pub const SETUP_INTERRUPTS: u32 = 13;
    pub const CHECK_INTERRUPT: u32 = 14;
    pub const WAIT_INTERRUPT: u32 = 15;
    pub const SET_IRQ_MASK: u32 = 16;
    pub const RESET_DEVICE: u32 = 17;
}

/// Memory types to map.
pub mod memory {
    /// The buffer of AllocateDMABuffer.
    pub const DMA_BUFFER: u32 = 0;
    /// BAR 0; the others follow.
    pub const BAR0: u32 = 1;
    /// The interrupt state page.
    pub const INTERRUPT_STATE: u32 = 7;
}

/// A code of IOKit's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IoReturn(pub u32);

macro_rules! io_returns {
    ($($(#[$doc:meta])* $constant:ident = $value:literal, $name:literal;)*) => {
        impl IoReturn {
            $($(#[$doc])* pub const $constant: Self = Self($value);)*

            /// IOKit's name for the code, where it is one that the dext uses.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}

io_returns! {
    /// It is done.
    SUCCESS = 0, "kIOReturnSuccess";
    /// The kernel refused, before the dext was asked.
    ERROR = 0xe000_02bc, "kIOReturnError";
    /// No memory left.
    NO_MEMORY = 0xe000_02bd, "kIOReturnNoMemory";
    /// No place left for another one.
    NO_RESOURCES = 0xe000_02be, "kIOReturnNoResources";
    /// The kernel could not reach the dext.
    IPC_ERROR = 0xe000_02bf, "kIOReturnIPCError";
    /// The device is gone.
    NO_DEVICE = 0xe000_02c0, "kIOReturnNoDevice";
    /// Too few scalars, a value out of range; also whatever goes wrong with a memory map.
    BAD_ARGUMENT = 0xe000_02c2, "kIOReturnBadArgument";
    /// No such selector or client type.
    UNSUPPORTED = 0xe000_02c7, "kIOReturnUnsupported";
    /// Needs a claim.
    NOT_OPEN = 0xe000_02cd, "kIOReturnNotOpen";
    /// A region that is not one segment for the device.
    NOT_ALIGNED = 0xe000_02d0, "kIOReturnNotAligned";
    /// There already.
    STILL_OPEN = 0xe000_02d2, "kIOReturnStillOpen";
    /// The device does not answer any more.
    OFFLINE = 0xe000_02d7, "kIOReturnOffline";
    /// Not set up yet; from a call that needs no setting up: the service has stopped.
    NOT_READY = 0xe000_02d8, "kIOReturnNotReady";
    /// The service is gone.
    NOT_ATTACHED = 0xe000_02d9, "kIOReturnNotAttached";
    /// A limit is reached.
    NO_SPACE = 0xe000_02db, "kIOReturnNoSpace";
    /// The process may not open the service: its signature has no entitlement for this dext.
    NOT_PERMITTED = 0xe000_02e2, "kIOReturnNotPermitted";
    /// Past the end.
    OVERRUN = 0xe000_02e8, "kIOReturnOverrun";
    /// No such thing.
    NOT_FOUND = 0xe000_02f0, "kIOReturnNotFound";
    /// Of Mach's, not IOKit's: the connection's port is dead.
    PORT_DEAD = 0x1000_0003, "MACH_SEND_INVALID_DEST";
}

impl fmt::Display for IoReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({:#010x})", self.0),
            None => write!(f, "IOReturn {:#010x}", self.0),
        }
    }
}

impl fmt::Debug for IoReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for IoReturn {}

/// Who has a connection open, as the registry shows it (IOUserClientCreator).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Process id.
    pub pid: u32,
    /// Process name.
    pub name: String,
}

/// A service in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Registry entry id.
    pub id: u64,
    /// Property `IOUserClass`.
    pub class: String,
    /// The root bridge above it, where the registry shows one.
    pub root_bridge: Option<RootBridge>,
    /// Open user clients.
    pub clients: Vec<Client>,
}

/// Where the memory behind a client's address is: what the kernel would find in the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// Where in the memory behind the descriptor the range begins.
    pub offset: u64,
    /// Whether the task may write it.
    pub writable: bool,
}

/// What a client says to the simulated dext. One socket is one registry look-up or, after
/// `Open`, one `io_connect_t`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The services in the registry.
    Services,
    /// IOServiceOpen. The signaller for asynchronous completions travels beside it.
    Open {
        /// Registry entry id.
        service: u64,
        /// User-client type.
        kind: u32,
    },
    /// IOConnectCallMethod with scalars only. Where the kernel would look at the task's memory,
    /// that memory travels beside.
    Call {
        /// External method.
        selector: u32,
        /// Scalars in, at most [`MAX_SCALARS`].
        inputs: Vec<u64>,
        /// Scalars out that the caller has room for.
        outputs: u32,
        /// The memory that an address among the inputs means.
        backing: Option<Backing>,
    },
    /// IOConnectCallAsyncScalarMethod; the completion signals the event given at `Open`.
    CallAsync {
        /// External method.
        selector: u32,
        /// Scalars in, at most [`MAX_SCALARS`].
        inputs: Vec<u64>,
    },
    /// IOConnectMapMemory64: the memory travels beside the answer.
    Map {
        /// Memory type.
        kind: u32,
    },
}

/// What the simulated dext answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Services`.
    Services(Vec<Service>),
    /// To everything else.
    Return {
        /// The code.
        code: IoReturn,
        /// Scalars out; the size of the memory for `Map`.
        outputs: Vec<u64>,
    },
}
