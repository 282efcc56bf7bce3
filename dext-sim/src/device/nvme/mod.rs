//! An NVMe 1.4 controller with one namespace, good enough for Linux's driver.
//!
//! BAR 0, 64 KiB: registers at 0, doorbells at 0x1000, MSI-X table at 0x8000, pending bits at
//! 0xc000. One MSI-X vector for the admin queue and one for each I/O queue. It distrusts the
//! guest: queue sizes, identifiers, addresses and lengths are checked, a bad doorbell is ignored,
//! and a DMA fault ends the one command with a transfer error.

mod admin;
mod backend;
mod identify;
mod prp;
mod queue;

use std::path::Path;

use ipc::Window;
use ipc::wire::common::BarInfo;

use self::backend::Backend;
use self::queue::{Completion, CompletionQueue, SubmissionQueue};
use super::Model;
use crate::config_space::{BarShape, MsixShape, Shape};
use crate::dart::DartError;
use crate::hardware::Hardware;

const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

const READY: u32 = 1;
const FATAL: u32 = 1 << 1;
const SHUTDOWN_COMPLETE: u32 = 2 << 2;

/// Entries of the largest queue.
const MAX_ENTRIES: u32 = 1024;
/// Largest transfer in bytes: MDTS 5 with 4 KiB pages.
const MAX_TRANSFER: usize = 128 << 10;
const MDTS: u8 = 5;
/// Bytes of a block.
const BLOCK: u64 = 512;
/// Commands taken from one queue before the next has its turn.
const BURST: usize = 32;

/// Status of a command: type and code, as bits 11:1 of the completion's status field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Success = 0x000,
    InvalidOpcode = 0x001,
    InvalidField = 0x002,
    TransferError = 0x004,
    InternalError = 0x006,
    InvalidNamespace = 0x00b,
    InvalidPrp = 0x013,
    OutOfRange = 0x080,
    InvalidCompletionQueue = 0x100,
    InvalidQueueId = 0x101,
    InvalidQueueSize = 0x102,
    EventLimit = 0x105,
    InvalidVector = 0x108,
    InvalidQueueDeletion = 0x10c,
}

/// A command as it was copied out of the queue, once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command([u8; 64]);

impl Command {
    fn word(&self, number: usize) -> u32 {
        let at = 4 * number;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn double(&self, number: usize) -> u64 {
        u64::from(self.word(number)) | u64::from(self.word(number + 1)) << 32
    }

    fn opcode(&self) -> u8 {
        self.0[0]
    }

    fn id(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    fn namespace(&self) -> u32 {
        self.word(1)
    }
}

/// What its config space shows.
pub(super) fn shape(queues: u16) -> Shape {
    Shape {
        vendor: 0xc0d0,
        device: 0x0001,
        class: 0x01_08_02,
        multi_function: false,
        bars: vec![BarShape { number: 0, size: 64 << 10, kind: BarInfo::WIDTH_64 }],
        msix: Some(MsixShape { vectors: queues + 1, bar: 0, table: 0x8000, pba: 0xc000 }),
        msi_log2: 5,
        serial: 0,
    }
}

/// The controller.
pub(super) struct Controller {
    backend: Backend,
    /// I/O queue pairs.
    queues: u16,
    serial: u64,
    enabled: bool,
    page: u64,
    submission: Vec<Option<SubmissionQueue>>,
    completion: Vec<Option<CompletionQueue>>,
    events: usize,
    features: [u32; 256],
}

impl Controller {
    pub(super) fn new(
        size: u64,
        queues: u16,
        image: Option<&Path>,
        serial: u64,
    ) -> std::io::Result<Self> {
        let slots = usize::from(queues) + 1;
        Ok(Self {
            backend: Backend::new(size, image)?,
            queues,
            serial,
            enabled: false,
            page: 4096,
            submission: (0..slots).map(|_| None).collect(),
            completion: (0..slots).map(|_| None).collect(),
            events: 0,
            features: [0; 256],
        })
    }

    fn blocks(&self) -> u64 {
        self.backend.size() / BLOCK
    }

    /// Everything that CC.EN = 0 takes away.
    fn disable(&mut self, registers: &Window) {
        self.submission.fill_with(|| None);
        self.completion.fill_with(|| None);
        self.events = 0;
        self.features = [0; 256];
        self.enabled = false;
        self.clear_doorbells(registers);
        let _ = registers.store_u32(CSTS, 0);
    }

    fn clear_doorbells(&self, registers: &Window) {
        let doorbells = 8 * (usize::from(self.queues) + 1);
        let _ = registers.copy_in(DOORBELLS, &vec![0; doorbells]);
    }

    /// CC.EN = 1: the admin queues begin where the registers say, and at zero. A doorbell that was
    /// rung before, by a guest that has not noticed a reset, is of queues that are no more: what it
    /// points at may be anything by now, and so may be what its commands would write to.
    fn enable(&mut self, registers: &Window, configuration: u32) {
        let attributes = registers.read::<u32>(AQA).unwrap_or_default();
        let base = |at| registers.read::<u64>(at).unwrap_or_default();
        let (submission, completion) = (attributes & 0xfff, (attributes >> 16) & 0xfff);
        self.page = 4096 << ((configuration >> 7) & 0xf);
        self.enabled = true;
        self.clear_doorbells(registers);
        let aligned = (base(ASQ) | base(ACQ)).is_multiple_of(4096);
        if submission == 0 || completion == 0 || !aligned || self.page > 4096 << 4 {
            let _ = registers.store_u32(CSTS, FATAL);
            return;
        }
        self.submission[0] = Some(SubmissionQueue::new(base(ASQ), submission + 1, 0));
        self.completion[0] = Some(CompletionQueue::new(base(ACQ), completion + 1, Some(0)));
        let _ = registers.store_u32(CSTS, READY);
    }

    /// Follows CC. Whether the controller runs.
    fn follow_configuration(&mut self, registers: &Window) -> bool {
        let configuration = registers.load_u32(CC).unwrap_or_default();
        let enable = configuration & 1 != 0;
        if enable != self.enabled {
            if enable {
                self.enable(registers, configuration);
            } else {
                self.disable(registers);
            }
        }
        let status = registers.load_u32(CSTS).unwrap_or_default();
        if (configuration >> 14) & 0b11 != 0 && status & (0b11 << 2) == 0 {
            let _ = self.backend.flush();
            let _ = registers.store_u32(CSTS, status | SHUTDOWN_COMPLETE);
        }
        self.enabled && status & (READY | FATAL) == READY
    }

    /// Serves one submission queue; whether it had commands.
    fn serve(&mut self, number: usize, hardware: &Hardware, registers: &Window) -> bool {
        let doorbell = DOORBELLS + 8 * number as u64;
        let tail = registers.load_u32(doorbell).unwrap_or_default();
        let mut served = false;
        for _ in 0..BURST {
            let Some(queue) = self.submission[number].as_mut() else {
                break;
            };
            let target = queue.completion;
            let head_at = DOORBELLS + 8 * u64::from(target) + 4;
            let head = registers.load_u32(head_at).unwrap_or_default();
            let room = self.completion[usize::from(target)].as_ref().is_some_and(|q| q.room(head));
            if !room {
                break;
            }
            let mut bytes = [0; 64];
            let Some(at) = queue.next(tail) else { break };
            let fetched = hardware.dma_read(at, &mut bytes);
            let head = queue.head();
            if fetched.is_err() {
                let _ = registers.store_u32(CSTS, FATAL);
                break;
            }
            served = true;
            let command = Command(bytes);
            let done = if number == 0 {
                self.admin(&command, hardware, registers)
            } else {
                Some((self.io(&command, hardware), 0))
            };
            let Some((status, result)) = done else {
                continue;
            };
            let completion = Completion {
                result,
                head,
                queue: u16::try_from(number).unwrap_or_default(),
                command: command.id(),
                status: status as u16,
            };
            if self.complete(usize::from(target), &completion, hardware).is_err() {
                let _ = registers.store_u32(CSTS, FATAL);
                break;
            }
        }
        served
    }

    /// Tells the guest. A queue that cannot be written to is an error that no completion can tell.
    fn complete(
        &mut self,
        number: usize,
        completion: &Completion,
        hardware: &Hardware,
    ) -> Result<(), DartError> {
        let Some(queue) = self.completion.get_mut(number).and_then(Option::as_mut) else {
            return Ok(());
        };
        queue.post(completion, hardware)?;
        if let Some(vector) = queue.vector {
            hardware.raise(vector);
        }
        Ok(())
    }

    /// An I/O command.
    fn io(&mut self, command: &Command, hardware: &Hardware) -> Status {
        const FLUSH: u8 = 0x00;
        const WRITE: u8 = 0x01;
        const READ: u8 = 0x02;
        const WRITE_ZEROES: u8 = 0x08;
        let namespace = command.namespace();
        if namespace != 1 && !(command.opcode() == FLUSH && namespace == u32::MAX) {
            return Status::InvalidNamespace;
        }
        match command.opcode() {
            FLUSH => self.backend.flush().map_or(Status::InternalError, |()| Status::Success),
            WRITE | READ => self.transfer(command, hardware, command.opcode() == WRITE),
            WRITE_ZEROES => match self.range(command) {
                Ok((at, length)) => self
                    .backend
                    .zero(at, length)
                    .map_or(Status::InternalError, |()| Status::Success),
                Err(status) => status,
            },
            _ => Status::InvalidOpcode,
        }
    }

    /// Byte offset and length of the blocks that a command names.
    fn range(&self, command: &Command) -> Result<(u64, u64), Status> {
        let first = command.double(10);
        let count = u64::from(command.word(12) & 0xffff) + 1;
        match first.checked_add(count) {
            Some(end) if end <= self.blocks() => Ok((first * BLOCK, count * BLOCK)),
            _ => Err(Status::OutOfRange),
        }
    }

    fn transfer(&mut self, command: &Command, hardware: &Hardware, write: bool) -> Status {
        let (mut at, length) = match self.range(command) {
            Ok(range) => range,
            Err(status) => return status,
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_TRANSFER {
            return Status::InvalidField;
        }
        let pieces = match prp::pieces(command, length, self.page, hardware) {
            Ok(pieces) => pieces,
            Err(status) => return status,
        };
        let mut buffer = vec![0; pieces.iter().map(|piece| piece.length).max().unwrap_or(0)];
        for piece in pieces {
            let bytes = &mut buffer[..piece.length];
            let moved = if write {
                hardware.dma_read(piece.address, bytes).map(|()| self.backend.write(at, bytes))
            } else {
                match self.backend.read(at, bytes) {
                    Ok(()) => hardware.dma_write(piece.address, bytes).map(Ok),
                    Err(error) => Ok(Err(error)),
                }
            };
            match moved {
                Ok(Ok(())) => at += piece.length as u64,
                Ok(Err(_)) => return Status::InternalError,
                Err(_) => return Status::TransferError,
            }
        }
        Status::Success
    }
}

impl Model for Controller {
    fn poll(&mut self, hardware: &Hardware) -> bool {
        let Some(registers) = hardware.registers(0) else {
            return false;
        };
        if !self.follow_configuration(registers) {
            return false;
        }
        let mut busy = false;
        for number in 0..self.submission.len() {
            if self.submission[number].is_some() {
                busy |= self.serve(number, hardware, registers);
            }
        }
        busy
    }

    /// NVMe 1.4, 7.6.1: while a completion queue that interrupts has entries that the guest's head
    /// doorbell has not passed.
    fn asserts(&self, hardware: &Hardware) -> bool {
        let Some(registers) = hardware.registers(0) else { return false };
        (0u64..).zip(&self.completion).any(|(number, queue)| {
            let head = registers.load_u32(DOORBELLS + 8 * number + 4).unwrap_or_default();
            queue.as_ref().is_some_and(|queue| queue.asserts(head))
        })
    }

    fn reset(&mut self, hardware: &Hardware) {
        let Some(registers) = hardware.registers(0) else {
            return;
        };
        let _ = self.backend.flush();
        self.disable(registers);
        let _ = registers.copy_in(0, &[0; 0x1000]);
        // Queues contiguous, enable within 10 s, NVM command set, pages of 4 to 64 KiB.
        let capabilities = u64::from(MAX_ENTRIES - 1) | 1 << 16 | 20 << 24 | 1 << 37 | 4 << 52;
        let _ = registers.write(CAP, capabilities);
        let _ = registers.write(VS, 0x0001_0400u32);
    }
}

#[cfg(test)]
mod tests;
