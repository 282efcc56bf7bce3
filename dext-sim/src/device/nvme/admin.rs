//! Admin commands.

use ipc::Window;

use super::queue::{CompletionQueue, SubmissionQueue};
use super::{Command, Controller, DOORBELLS, MAX_ENTRIES, MAX_TRANSFER, Status, identify, prp};
use crate::hardware::Hardware;

const NUMBER_OF_QUEUES: u8 = 0x07;
const MAX_EVENTS: usize = 4;

type Done = Result<u32, Status>;

impl Controller {
    /// Carries out an admin command; `None` for one that completes later.
    pub(super) fn admin(
        &mut self,
        command: &Command,
        hardware: &Hardware,
        registers: &Window,
    ) -> Option<(Status, u32)> {
        let done = match command.opcode() {
            0x00 => self.delete_submission_queue(command),
            0x01 => self.create_submission_queue(command, registers),
            0x02 => self.log_page(command, hardware),
            0x04 => self.delete_completion_queue(command),
            0x05 => self.create_completion_queue(command, registers),
            0x06 => self.identify(command, hardware),
            // Abort: the command had completed already, or cannot be found.
            0x08 => Ok(1),
            0x09 => self.set_features(command),
            0x0a => self.get_features(command),
            0x0c if self.events < MAX_EVENTS => {
                // Nothing ever happens to this controller that an event would tell.
                self.events += 1;
                return None;
            }
            0x0c => Err(Status::EventLimit),
            _ => Err(Status::InvalidOpcode),
        };
        Some(match done {
            Ok(result) => (Status::Success, result),
            Err(status) => (status, 0),
        })
    }

    /// Number and entries of a queue to create, and the place for it.
    fn new_queue(&self, command: &Command) -> Result<(usize, u32), Status> {
        let number = command.word(10) & 0xffff;
        let entries = (command.word(10) >> 16) + 1;
        let slot = usize::try_from(number).unwrap_or(usize::MAX);
        if slot == 0 || slot >= self.submission.len() {
            return Err(Status::InvalidQueueId);
        }
        if !(2..=MAX_ENTRIES).contains(&entries) {
            return Err(Status::InvalidQueueSize);
        }
        if command.word(11) & 1 == 0 || !command.double(6).is_multiple_of(self.page) {
            // Queues must be contiguous (CAP.CQR).
            return Err(Status::InvalidField);
        }
        Ok((slot, entries))
    }

    fn create_completion_queue(&mut self, command: &Command, registers: &Window) -> Done {
        let (slot, entries) = self.new_queue(command)?;
        if self.completion[slot].is_some() {
            return Err(Status::InvalidQueueId);
        }
        let interrupts = command.word(11) & 0b10 != 0;
        let vector = u16::try_from(command.word(11) >> 16).unwrap_or(u16::MAX);
        if interrupts && vector > self.queues {
            return Err(Status::InvalidVector);
        }
        let _ = registers.store_u32(DOORBELLS + 8 * slot as u64 + 4, 0);
        let vector = interrupts.then_some(vector);
        self.completion[slot] = Some(CompletionQueue::new(command.double(6), entries, vector));
        Ok(0)
    }

    fn create_submission_queue(&mut self, command: &Command, registers: &Window) -> Done {
        let (slot, entries) = self.new_queue(command)?;
        if self.submission[slot].is_some() {
            return Err(Status::InvalidQueueId);
        }
        let target = u16::try_from(command.word(11) >> 16).unwrap_or(u16::MAX);
        let exists = self.completion.get(usize::from(target)).is_some_and(Option::is_some);
        if target == 0 || !exists {
            return Err(Status::InvalidCompletionQueue);
        }
        let _ = registers.store_u32(DOORBELLS + 8 * slot as u64, 0);
        self.submission[slot] = Some(SubmissionQueue::new(command.double(6), entries, target));
        Ok(0)
    }

    fn delete_submission_queue(&mut self, command: &Command) -> Done {
        let slot = usize::try_from(command.word(10) & 0xffff).unwrap_or(0);
        let queue = self.submission.get_mut(slot).filter(|_| slot != 0);
        queue.and_then(Option::take).map(|_| 0).ok_or(Status::InvalidQueueId)
    }

    fn delete_completion_queue(&mut self, command: &Command) -> Done {
        let slot = usize::try_from(command.word(10) & 0xffff).unwrap_or(0);
        let used = self.submission.iter().flatten().any(|q| usize::from(q.completion) == slot);
        if used && slot != 0 {
            return Err(Status::InvalidQueueDeletion);
        }
        let queue = self.completion.get_mut(slot).filter(|_| slot != 0);
        queue.and_then(Option::take).map(|_| 0).ok_or(Status::InvalidQueueId)
    }

    fn identify(&mut self, command: &Command, hardware: &Hardware) -> Done {
        let namespace = command.namespace();
        let data = match command.word(10) & 0xff {
            0 if namespace == 1 => identify::namespace(self.blocks()),
            0 | 3 if namespace != 1 => return Err(Status::InvalidNamespace),
            1 => identify::controller(self.serial),
            2 => identify::namespaces(namespace),
            3 => identify::descriptors(self.serial),
            _ => return Err(Status::InvalidField),
        };
        self.give(command, &data, hardware)
    }

    fn log_page(&mut self, command: &Command, hardware: &Hardware) -> Done {
        let words = u64::from(command.word(10) >> 16) | u64::from(command.word(11) & 0xffff) << 16;
        let length = usize::try_from(4 * (words + 1)).unwrap_or(usize::MAX);
        if length > MAX_TRANSFER {
            return Err(Status::InvalidField);
        }
        let page = identify::log(command.word(10) & 0xff, length).ok_or(Status::InvalidField)?;
        self.give(command, &page, hardware)
    }

    /// Writes `data` where the command's PRPs say.
    fn give(&self, command: &Command, data: &[u8], hardware: &Hardware) -> Done {
        let mut rest = data;
        for piece in prp::pieces(command, data.len(), self.page, hardware)? {
            let (now, later) = rest.split_at(piece.length);
            hardware.dma_write(piece.address, now).map_err(|_| Status::TransferError)?;
            rest = later;
        }
        Ok(0)
    }

    fn set_features(&mut self, command: &Command) -> Done {
        let [feature, ..] = command.word(10).to_le_bytes();
        match feature {
            NUMBER_OF_QUEUES => Ok(self.number_of_queues()),
            0x01..=0x0b => {
                self.features[usize::from(feature)] = command.word(11);
                Ok(0)
            }
            _ => Err(Status::InvalidField),
        }
    }

    fn get_features(&self, command: &Command) -> Done {
        let [feature, ..] = command.word(10).to_le_bytes();
        match feature {
            NUMBER_OF_QUEUES => Ok(self.number_of_queues()),
            0x01..=0x0b => Ok(self.features[usize::from(feature)]),
            _ => Err(Status::InvalidField),
        }
    }

    /// What there is, whatever was asked for; both counts are one less.
    fn number_of_queues(&self) -> u32 {
        let count = u32::from(self.queues - 1);
        count | count << 16
    }
}
