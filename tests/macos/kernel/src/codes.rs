//! Numbers of Mach's, as the headers of xnu-11417.101.15 have them.

/// A `kern_return_t` or `mach_msg_return_t`.
pub(crate) type Code = i32;
/// A `mach_port_name_t`.
pub(crate) type Name = u32;

/// The page size of Apple silicon.
pub(crate) const PAGE: u64 = 16 * 1024;

/// No port.
pub(crate) const NULL: Name = 0;
/// A right whose port was dead when it came.
pub(crate) const DEAD: Name = !0;

/// osfmk/mach/kern_return.h.
pub(crate) mod kern {
    use super::Code;
    pub(crate) const SUCCESS: Code = 0;
    pub(crate) const INVALID_ADDRESS: Code = 1;
    pub(crate) const PROTECTION_FAILURE: Code = 2;
    pub(crate) const NO_SPACE: Code = 3;
    pub(crate) const INVALID_ARGUMENT: Code = 4;
    pub(crate) const RESOURCE_SHORTAGE: Code = 6;
    pub(crate) const NOT_IN_SET: Code = 12;
    pub(crate) const NAME_EXISTS: Code = 13;
    pub(crate) const INVALID_NAME: Code = 15;
    pub(crate) const INVALID_RIGHT: Code = 17;
    pub(crate) const INVALID_VALUE: Code = 18;
    pub(crate) const UREFS_OVERFLOW: Code = 19;
    pub(crate) const INVALID_CAPABILITY: Code = 20;
    pub(crate) const DENIED: Code = 53;
}

/// osfmk/mach/message.h: what sending and receiving return.
pub(crate) mod msg {
    use super::Code;
    pub(crate) const SEND_INVALID_DEST: Code = 0x1000_0003;
    pub(crate) const SEND_TIMED_OUT: Code = 0x1000_0004;
    pub(crate) const SEND_MSG_TOO_SMALL: Code = 0x1000_0008;
    pub(crate) const SEND_INVALID_REPLY: Code = 0x1000_0009;
    pub(crate) const SEND_INVALID_RIGHT: Code = 0x1000_000a;
    pub(crate) const SEND_TOO_LARGE: Code = 0x1000_000e;
    pub(crate) const SEND_INVALID_TYPE: Code = 0x1000_000f;
    pub(crate) const SEND_INVALID_HEADER: Code = 0x1000_0010;
    pub(crate) const RCV_INVALID_NAME: Code = 0x1000_4002;
    pub(crate) const RCV_TIMED_OUT: Code = 0x1000_4003;
    pub(crate) const RCV_TOO_LARGE: Code = 0x1000_4004;
    pub(crate) const RCV_PORT_CHANGED: Code = 0x1000_4006;
    pub(crate) const RCV_PORT_DIED: Code = 0x1000_4009;
}

/// osfmk/mach/message.h: options of `mach_msg`.
pub(crate) mod option {
    pub(crate) const SEND: i32 = 0x1;
    pub(crate) const RCV: i32 = 0x2;
    pub(crate) const RCV_LARGE: i32 = 0x4;
    pub(crate) const SEND_TIMEOUT: i32 = 0x10;
    pub(crate) const SEND_INTERRUPT: i32 = 0x40;
    pub(crate) const RCV_TIMEOUT: i32 = 0x100;
    pub(crate) const RCV_INTERRUPT: i32 = 0x400;
    /// Trailer type (bits 28 to 31) and elements (bits 24 to 27).
    pub(crate) const TRAILER: i32 = 0x7f00_0000;
    pub(crate) const KNOWN: i32 = SEND
        | RCV
        | RCV_LARGE
        | SEND_TIMEOUT
        | SEND_INTERRUPT
        | RCV_TIMEOUT
        | RCV_INTERRUPT
        | TRAILER;
}

/// osfmk/mach/message.h: what becomes of a right in a message.
pub(crate) mod disposition {
    pub(crate) const MOVE_RECEIVE: u32 = 16;
    pub(crate) const MOVE_SEND: u32 = 17;
    pub(crate) const MOVE_SEND_ONCE: u32 = 18;
    pub(crate) const COPY_SEND: u32 = 19;
    pub(crate) const MAKE_SEND: u32 = 20;
    pub(crate) const MAKE_SEND_ONCE: u32 = 21;
}

/// osfmk/mach/port.h: `mach_port_right_t`.
pub(crate) mod right {
    pub(crate) const SEND: u32 = 0;
    pub(crate) const RECEIVE: u32 = 1;
    pub(crate) const SEND_ONCE: u32 = 2;
    pub(crate) const PORT_SET: u32 = 3;
    pub(crate) const DEAD_NAME: u32 = 4;
}

/// osfmk/mach/notify.h.
pub(crate) mod notify {
    pub(crate) const NO_SENDERS: i32 = 70;
    pub(crate) const SEND_ONCE: i32 = 71;
    pub(crate) const DEAD_NAME: i32 = 72;
}

/// MACH_MSGH_BITS_COMPLEX.
pub(crate) const COMPLEX: u32 = 0x8000_0000;
/// Bytes of `mach_msg_header_t`.
pub(crate) const HEADER: usize = 24;
/// Bytes of `mach_msg_port_descriptor_t`.
pub(crate) const PORT_DESCRIPTOR: usize = 12;
/// Most bytes of a message here: more than anything of ours.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;
/// MACH_PORT_QLIMIT_DEFAULT (osfmk/mach/port.h): MACH_PORT_QLIMIT_BASIC.
pub(crate) const QUEUE_LIMIT: usize = 5;
/// TASK_PORT_REGISTER_MAX (osfmk/mach/mach_param.h).
pub(crate) const REGISTERED: usize = 3;
/// Most user references of a right: MACH_PORT_UREFS_MAX (osfmk/ipc/ipc_entry.h has 16 bits for them).
pub(crate) const MAX_REFERENCES: u32 = 0xffff;
