//! Memory entries and the port that carries them. None of it has run on a Mac yet: see
//! docs/macos.md.
//!
//! Device memory that IOKit mapped has no descriptor. A memory entry is a port that stands for a part
//! of a mapping; who has a send right to it can map the same memory. A child finds a send right to
//! its parent's inbox registered with its task, and sends entries there; nothing comes back that way.
//!
//! The kernel maps such an entry whole, whatever size and offset it is asked for: a receiver that
//! believed its sender and mapped a part over a window would overwrite what lies behind with as much as
//! the sender made the entry of. So an entry that came is first mapped where nothing is, its true size is
//! compared with what was said, and parts are cut out of that mapping.
#![expect(unsafe_code, reason = "Mach is a C interface")]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use mach2::kern_return::{KERN_NO_SPACE, KERN_RESOURCE_SHORTAGE, kern_return_t};
use mach2::mach_port::{
    mach_port_allocate, mach_port_deallocate, mach_port_insert_right, mach_port_mod_refs,
};
use mach2::message::{
    MACH_MSG_PORT_DESCRIPTOR, MACH_MSG_TYPE_COPY_SEND, MACH_MSG_TYPE_MAKE_SEND,
    MACH_MSG_TYPE_MOVE_SEND, MACH_MSGH_BITS, MACH_MSGH_BITS_COMPLEX, MACH_RCV_MSG,
    MACH_RCV_TIMED_OUT, MACH_RCV_TIMEOUT, MACH_SEND_MSG, MACH_SEND_TIMEOUT, mach_msg,
    mach_msg_body_t, mach_msg_destroy, mach_msg_header_t, mach_msg_port_descriptor_t,
    mach_msg_trailer_t,
};
use mach2::port::{MACH_PORT_DEAD, MACH_PORT_NULL, MACH_PORT_RIGHT_RECEIVE, mach_port_t};
use mach2::task::mach_ports_lookup;
use mach2::traps::mach_task_self;
use mach2::vm::{mach_make_memory_entry_64, mach_vm_deallocate, mach_vm_map, mach_vm_remap};
use mach2::vm_inherit::VM_INHERIT_NONE;
use mach2::vm_prot::{VM_PROT_READ, VM_PROT_WRITE, vm_prot_t};

use crate::deadline::Deadline;
use crate::window::{Access, Window, WindowError};

/// A shared entry of what is mapped, as it is cached (mach/memory_object_types.h).
const MAP_MEM_VM_SHARE: vm_prot_t = 0x40_0000;
/// Flags of a mapping (mach/vm_statistics.h).
const VM_FLAGS_FIXED: i32 = 0;
const VM_FLAGS_ANYWHERE: i32 = 1;
const VM_FLAGS_OVERWRITE: i32 = 0x4000;
/// Read and write, never execute: an executable mapping of device memory can panic the host (P7.6).
const READ_WRITE: vm_prot_t = VM_PROT_READ | VM_PROT_WRITE;
/// Most entries of one message: the windows of six BARs that are each split in three.
const MAX_ENTRIES: usize = 18;

fn check(code: kern_return_t) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(mach_error(code)) }
}

fn mach_error(code: kern_return_t) -> io::Error {
    io::Error::other(format!("Mach says {code:#x}"))
}

/// A send right. Given back on drop.
#[derive(Debug)]
struct SendRight(mach_port_t);

impl Drop for SendRight {
    fn drop(&mut self) {
        // SAFETY: a right of ours, given back once.
        unsafe { mach_port_deallocate(mach_task_self(), self.0) };
    }
}

/// A message with entries: as sent, and as received with room for the trailer.
#[repr(C)]
struct Message {
    header: mach_msg_header_t,
    body: mach_msg_body_t,
    entries: [mach_msg_port_descriptor_t; MAX_ENTRIES],
    trailer: [mach_msg_trailer_t; 16],
}

/// Bytes of a message with so many entries.
fn length(entries: usize) -> u32 {
    let bytes = size_of::<mach_msg_header_t>()
        + size_of::<mach_msg_body_t>()
        + entries * size_of::<mach_msg_port_descriptor_t>();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Message {
    fn empty() -> Self {
        Self {
            header: mach_msg_header_t::default(),
            body: mach_msg_body_t::default(),
            entries: [mach_msg_port_descriptor_t::default(); MAX_ENTRIES],
            trailer: [mach_msg_trailer_t::default(); 16],
        }
    }
}

/// A part of a mapping that can be mapped elsewhere too.
#[derive(Clone, Debug)]
pub struct MemoryEntry {
    right: Arc<SendRight>,
    size: u64,
    /// Of one that came: all of it, mapped when its size was looked at.
    whole: Option<Arc<Window>>,
}

impl MemoryEntry {
    /// An entry for `length` bytes from `offset` of a window, whole pages.
    ///
    /// # Errors
    /// When the range does not lie in the window, or the kernel says no.
    pub fn of(window: &Window, offset: u64, length: u64) -> io::Result<Self> {
        let end = offset.checked_add(length).filter(|end| *end <= window.length() as u64);
        if end.is_none() || length == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut size, mut entry) = (length, 0);
        // SAFETY: the range was checked to be mapped here, and the window lives through the call;
        // places for what is made.
        check(unsafe {
            mach_make_memory_entry_64(
                mach_task_self(),
                &raw mut size,
                window.address() as u64 + offset,
                READ_WRITE | MAP_MEM_VM_SHARE,
                &raw mut entry,
                0,
            )
        })?;
        let right = Arc::new(SendRight(entry));
        if size == length {
            Ok(Self { right, size, whole: None })
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// One that came from a distrusted sender, who says that it has `size` bytes.
    fn received(right: SendRight, size: u64) -> io::Result<Self> {
        let whole = Some(Arc::new(map_whole(&right, size)?));
        Ok(Self { right: Arc::new(right), size, whole })
    }

    fn whole(&self) -> Result<Arc<Window>, WindowError> {
        if let Some(whole) = &self.whole {
            return Ok(Arc::clone(whole));
        }
        let failed = |source| WindowError::Map { offset: 0, length: self.size, source };
        map_whole(&self.right, self.size).map(Arc::new).map_err(failed)
    }

    /// Bytes, which are as many as its sender spoke of.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Maps a part of it, readable and writable.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn map(&self, offset: u64, length: usize) -> Result<Window, WindowError> {
        map_again(&self.whole()?, offset, length)
    }

    /// Puts a part of it under a window, in one step.
    ///
    /// # Errors
    /// [`WindowError`]; the window is then as it was.
    pub fn put_under(&self, window: &Window, offset: u64) -> Result<(), WindowError> {
        put_again_under(&self.whole()?, offset, window)
    }

    /// Whether both stand for the same memory.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        // One entry has one name in a task. Others may stand for the same memory too, and a new
        // connection always makes others: "not the same" is no reason to write to either.
        self.right.0 == other.right.0
    }
}

/// Maps an entry where nothing is; all of it, and its size is what was said.
fn map_whole(entry: &SendRight, size: u64) -> io::Result<Window> {
    let page = rustix::param::page_size() as u64;
    let no_such_size = || io::Error::from(io::ErrorKind::InvalidData);
    if size == 0 || !size.is_multiple_of(page) {
        return Err(no_such_size());
    }
    let beyond = size.checked_add(page).ok_or_else(no_such_size)?;
    match map_entry(entry, beyond) {
        Ok(address) => {
            // Nothing says how much that was. What is left of a larger entry stays mapped where nothing
            // else is; its sender is condemned, and is not replaced many times.
            drop(Mapping { address, length: beyond });
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the entry has more than the {size:#x} bytes that it is said to have"),
            ));
        }
        // That says nothing of the entry.
        Err(code @ (KERN_NO_SPACE | KERN_RESOURCE_SHORTAGE)) => return Err(mach_error(code)),
        Err(_past_its_end) => {}
    }
    let address = map_entry(entry, size).map_err(mach_error)?;
    let length = usize::try_from(size).map_err(|_| no_such_size())?;
    // SAFETY: mapped just now with this length, readable and writable.
    unsafe { window(address, 0, length, Access::ReadWrite, None) }.map_err(io::Error::other)
}

/// Asks for so many bytes of an entry, anywhere; where they are.
fn map_entry(entry: &SendRight, size: u64) -> Result<u64, kern_return_t> {
    let mut address = 0;
    // SAFETY: anywhere, which overlaps nothing of ours; a place for the address.
    let code = unsafe {
        mach_vm_map(
            mach_task_self(),
            &raw mut address,
            size,
            0,
            VM_FLAGS_ANYWHERE,
            entry.0,
            0,
            0,
            READ_WRITE,
            READ_WRITE,
            VM_INHERIT_NONE,
        )
    };
    if code == 0 { Ok(address) } else { Err(code) }
}

/// A second mapping of what this process has mapped, which lives by itself: what it is a mapping of
/// is kept for as long.
///
/// # Errors
/// [`WindowError`].
pub(crate) fn map_again(
    window: &Arc<Window>,
    offset: u64,
    length: usize,
) -> Result<Window, WindowError> {
    let address = remap(window, offset, length, 0, VM_FLAGS_ANYWHERE)?;
    // SAFETY: mapped just now with this length, readable and writable.
    unsafe { self::window(address, offset, length, Access::ReadWrite, Some(Arc::clone(window))) }
}

/// [`map_again`], under a window's addresses in one step.
///
/// # Errors
/// [`WindowError`]; the window is then as it was.
pub(crate) fn put_again_under(
    own: &Arc<Window>,
    offset: u64,
    window: &Window,
) -> Result<(), WindowError> {
    let flags = VM_FLAGS_FIXED | VM_FLAGS_OVERWRITE;
    remap(own, offset, window.length(), window.address() as u64, flags).map(drop)
}

fn remap(
    window: &Window,
    offset: u64,
    length: usize,
    at: u64,
    flags: i32,
) -> Result<u64, WindowError> {
    let width = length as u64;
    let whole = window.length() as u64;
    if length == 0 || offset.checked_add(width).is_none_or(|end| end > whole) {
        return Err(WindowError::OutOfRange { offset, width, length: whole });
    }
    let (mut address, mut current, mut most) = (at, 0, 0);
    // SAFETY: the source is a range of a window that lives through the call; the target is anywhere,
    // or a window of ours whose pages nobody has a reference into; places for what is told.
    let mapped = check(unsafe {
        mach_vm_remap(
            mach_task_self(),
            &raw mut address,
            width,
            0,
            flags,
            mach_task_self(),
            window.address() as u64 + offset,
            0,
            &raw mut current,
            &raw mut most,
            VM_INHERIT_NONE,
        )
    });
    mapped.map_err(|source| WindowError::Map { offset, length: width, source })?;
    Ok(address)
}

/// The window of a mapping from `offset` of something, which unmaps it and then lets go of `of`.
///
/// # Safety
/// `length` bytes at `address` are mapped with `access`, and nobody else unmaps them.
unsafe fn window(
    address: u64,
    offset: u64,
    length: usize,
    access: Access,
    of: Option<Arc<Window>>,
) -> Result<Window, WindowError> {
    let mapping = Mapping { address, length: length as u64 };
    let base = usize::try_from(address).ok().and_then(|at| NonNull::new(at as *mut u8));
    let base = base.ok_or_else(|| WindowError::Map {
        offset,
        length: length as u64,
        source: io::Error::other("mapped at 0"),
    })?;
    // SAFETY: the caller's promise; the window keeps the mapping for as long as it lives.
    unsafe { Window::foreign(base, length, access, Box::new((mapping, of))) }
}

/// What is left of a deadline, as Mach counts.
fn milliseconds(deadline: Deadline) -> u32 {
    let left = deadline.remaining().unwrap_or_default().as_millis();
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// A mapping made here. Unmapped on drop.
struct Mapping {
    address: u64,
    length: u64,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; the window that used it is gone.
        unsafe { mach_vm_deallocate(mach_task_self(), self.address, self.length) };
    }
}

/// Where a parent receives entries of one child.
#[derive(Debug)]
pub struct MemoryInbox {
    receive: mach_port_t,
}

impl MemoryInbox {
    /// An inbox that nobody can send to yet.
    ///
    /// # Errors
    /// When the task is out of ports.
    pub fn new() -> io::Result<Self> {
        let mut receive = 0;
        // SAFETY: a place for the port; then a send right of our own port under the same name.
        unsafe {
            check(mach_port_allocate(mach_task_self(), MACH_PORT_RIGHT_RECEIVE, &raw mut receive))?;
            let inbox = Self { receive };
            check(mach_port_insert_right(
                mach_task_self(),
                receive,
                receive,
                MACH_MSG_TYPE_MAKE_SEND,
            ))?;
            Ok(inbox)
        }
    }

    /// The port to register with a child that is spawned.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.receive
    }

    /// The entries that a child sent with `number`, of these sizes.
    ///
    /// # Errors
    /// When they do not come in time, or are others: the sender is distrusted, and whatever came is
    /// given back, a right to answer to included, which nobody asked for.
    pub fn receive(
        &self,
        number: u32,
        sizes: &[u64],
        deadline: Deadline,
    ) -> io::Result<Vec<MemoryEntry>> {
        let mut message = Message::empty();
        let room = u32::try_from(size_of::<Message>()).unwrap_or(u32::MAX);
        // SAFETY: a buffer of the size given, on a port of ours.
        let received = unsafe {
            mach_msg(
                &raw mut message.header,
                MACH_RCV_MSG | MACH_RCV_TIMEOUT,
                0,
                room,
                self.receive,
                milliseconds(deadline),
                0,
            )
        };
        match received {
            0 => {}
            MACH_RCV_TIMED_OUT => return Err(io::ErrorKind::TimedOut.into()),
            other => return Err(io::Error::other(format!("Mach says {other:#x}"))),
        }
        let wanted = sizes.len();
        let of_it = &message.entries[..wanted.min(MAX_ENTRIES)];
        let fits = message.header.msgh_id == number.cast_signed()
            && message.header.msgh_bits & MACH_MSGH_BITS_COMPLEX != 0
            && message.header.msgh_size == length(wanted)
            && message.header.msgh_remote_port == MACH_PORT_NULL
            && message.body.msgh_descriptor_count as usize == wanted
            && of_it.iter().all(|entry| {
                u32::from(entry.type_) == MACH_MSG_PORT_DESCRIPTOR
                    && u32::from(entry.disposition) == MACH_MSG_TYPE_MOVE_SEND
                    && ![MACH_PORT_NULL, MACH_PORT_DEAD].contains(&entry.name)
            });
        if !fits {
            // SAFETY: a message that was received, whose rights are given back once, here.
            unsafe { mach_msg_destroy(&raw mut message.header) };
            return Err(io::ErrorKind::InvalidData.into());
        }
        // All are ours from here on, also those after one that is refused.
        let rights: Vec<SendRight> = of_it.iter().map(|entry| SendRight(entry.name)).collect();
        rights
            .into_iter()
            .zip(sizes)
            .map(|(right, size)| MemoryEntry::received(right, *size))
            .collect()
    }
}

impl Drop for MemoryInbox {
    fn drop(&mut self) {
        // SAFETY: a port of ours: the send right and the receive right, given up once.
        unsafe {
            mach_port_deallocate(mach_task_self(), self.receive);
            mach_port_mod_refs(mach_task_self(), self.receive, MACH_PORT_RIGHT_RECEIVE, -1);
        }
    }
}

/// Where a child sends entries.
#[derive(Debug)]
pub struct MemoryPort(SendRight);

impl MemoryPort {
    /// The port that the parent registered for this task; `None` if it did not.
    #[must_use]
    pub fn inherited() -> Option<Self> {
        let (mut ports, mut count) = (std::ptr::null_mut(), 0);
        // SAFETY: places for the array and its length; the array is memory of ours afterwards,
        // read within its length and given back once. Rights beyond the first are given back.
        unsafe {
            check(mach_ports_lookup(mach_task_self(), &raw mut ports, &raw mut count)).ok()?;
            let mut rights = (0..count as usize).map(|at| SendRight(*ports.add(at)));
            let first = rights.next().filter(|right| right.0 != 0);
            rights.for_each(drop);
            let bytes = u64::from(count) * size_of::<mach_port_t>() as u64;
            mach_vm_deallocate(mach_task_self(), ports as u64, bytes);
            first.map(Self)
        }
    }

    /// Sends entries with a number.
    ///
    /// # Errors
    /// When there are too many, or the parent does not take them in time.
    pub fn send(
        &self,
        number: u32,
        entries: &[&MemoryEntry],
        deadline: Deadline,
    ) -> io::Result<()> {
        if entries.len() > MAX_ENTRIES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut message = Message::empty();
        message.header = mach_msg_header_t {
            msgh_bits: MACH_MSGH_BITS(MACH_MSG_TYPE_COPY_SEND, 0) | MACH_MSGH_BITS_COMPLEX,
            msgh_size: length(entries.len()),
            msgh_remote_port: self.0.0,
            msgh_id: number.cast_signed(),
            ..mach_msg_header_t::default()
        };
        message.body.msgh_descriptor_count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        for (to, entry) in message.entries.iter_mut().zip(entries) {
            *to = mach_msg_port_descriptor_t::new(entry.right.0, MACH_MSG_TYPE_COPY_SEND);
        }
        // SAFETY: a message of the length given, with rights that we hold and that are copied.
        let sent = unsafe {
            mach_msg(
                &raw mut message.header,
                MACH_SEND_MSG | MACH_SEND_TIMEOUT,
                message.header.msgh_size,
                0,
                0,
                milliseconds(deadline),
                0,
            )
        };
        check(sent)
    }
}

#[cfg(test)]
#[path = "mach_tests.rs"]
mod tests;
