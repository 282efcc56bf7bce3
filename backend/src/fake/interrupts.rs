//! Interrupts of a fake function, of both kinds.

use std::io;
use std::os::fd::BorrowedFd;

use ipc::event::Signaller;
use ipc::wire::function::InterruptIndex;

use super::Operation;
use super::handle::Handle;
use crate::error::{BackendError, ErrorKind};
use crate::interrupts::{KernelInterrupts, NotifiedInterrupts, VectorSet};

impl NotifiedInterrupts for Handle {
    fn drain(&mut self) -> Result<VectorSet, BackendError> {
        self.notified(Operation::Drain, |notified| std::mem::take(&mut notified.pending))
    }

    fn arm(&mut self) -> Result<(), BackendError> {
        self.notified(Operation::Arm, |notified| {
            notified.armed = true;
            notified.notify();
        })
    }

    fn set_mask(&mut self, recorded: VectorSet) -> Result<(), BackendError> {
        self.notified(Operation::SetMask, |notified| notified.recorded = recorded)
    }
}

impl KernelInterrupts for Handle {
    fn connect(
        &mut self,
        index: InterruptIndex,
        signallers: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), BackendError> {
        let operation = Operation::Connect;
        let own = |fd: &Option<BorrowedFd<'_>>| {
            let owned = fd.map(|fd| fd.try_clone_to_owned()).transpose();
            owned.map(|fd| fd.map(Signaller::from_trusted))
        };
        let own: io::Result<Vec<_>> = signallers.iter().map(own).collect();
        let own =
            own.map_err(|error| self.error(ErrorKind::NoSpace, operation, &error.to_string()))?;
        self.claimed(operation, |function| {
            function.kernel = (!own.is_empty()).then_some((index, own));
            function.intx_masked = false;
            Ok(())
        })
    }

    fn mask_intx(&mut self, masked: bool) -> Result<(), BackendError> {
        self.claimed(Operation::MaskIntx, |function| {
            function.intx_masked = masked;
            Ok(())
        })
    }
}
