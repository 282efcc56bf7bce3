//! Physical region pages: where a command's data is in guest memory.

use super::{Command, Status};
use crate::hardware::Hardware;

/// A contiguous piece of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) length: usize,
}

/// The pieces of `length` bytes, in order, neighbours joined. `length` is capped by the caller,
/// and so is the number of list entries that are read.
pub(super) fn pieces(
    command: &Command,
    length: usize,
    page: u64,
    hardware: &Hardware,
) -> Result<Vec<Piece>, Status> {
    let (first, second) = (command.double(6), command.double(8));
    let page_length = usize::try_from(page).map_err(|_| Status::InvalidField)?;
    let in_page = usize::try_from(first % page).map_err(|_| Status::InvalidField)?;
    let mut pieces = Pieces { all: Vec::new(), left: length };
    pieces.push(first, page_length - in_page);
    if pieces.left == 0 {
        return Ok(pieces.all);
    }
    if pieces.left <= page_length {
        aligned(second, page)?;
        pieces.push(second, page_length);
        return Ok(pieces.all);
    }
    let mut list = second;
    while pieces.left > 0 {
        if !list.is_multiple_of(8) {
            return Err(Status::InvalidPrp);
        }
        let room = usize::try_from(page - list % page).map_err(|_| Status::InvalidPrp)? / 8;
        let wanted = pieces.left.div_ceil(page_length);
        let chained = wanted > room;
        let mut bytes = vec![0; 8 * if chained { room } else { wanted }];
        hardware.dma_read(list, &mut bytes).map_err(|_| Status::TransferError)?;
        let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
        let mut entries: Vec<u64> = entries.collect();
        // The last entry of a list page that is not enough leads to the next.
        list = if chained { entries.pop().unwrap_or_default() } else { 0 };
        if chained && entries.is_empty() {
            return Err(Status::InvalidPrp);
        }
        for entry in entries {
            aligned(entry, page)?;
            pieces.push(entry, page_length);
        }
    }
    Ok(pieces.all)
}

fn aligned(address: u64, page: u64) -> Result<(), Status> {
    if address.is_multiple_of(page) { Ok(()) } else { Err(Status::InvalidPrp) }
}

struct Pieces {
    all: Vec<Piece>,
    left: usize,
}

impl Pieces {
    fn push(&mut self, address: u64, room: usize) {
        let length = room.min(self.left);
        self.left -= length;
        if let Some(last) = self.all.last_mut()
            && last.address.checked_add(last.length as u64) == Some(address)
        {
            last.length += length;
        } else {
            self.all.push(Piece { address, length });
        }
    }
}
