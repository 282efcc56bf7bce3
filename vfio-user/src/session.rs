//! One client: its commands in order, and what is taken back when it is gone.

use std::os::fd::{AsFd as _, BorrowedFd};

use crate::config::VirtualConfig;
use crate::dma::Maps;
use crate::protocol::{Refusal, command, flag, refuse};
use crate::socket::{Message, Socket, SocketError};
use crate::{access, info, interrupts, negotiate};
use cordon_vmm::device::BarMemory;
use cordon_vmm::{Container, PassthroughDevice};

/// A connected client.
pub(super) struct Session<'d> {
    socket: Socket,
    device: &'d dyn PassthroughDevice,
    container: &'d Container,
    config: VirtualConfig,
    maps: Maps,
    negotiated: bool,
    /// Of the memory behind the windows when this client came.
    windows: u64,
}

/// What is sent back.
#[derive(Default)]
struct Answer {
    body: Vec<u8>,
    memory: Option<BarMemory>,
}

impl From<Vec<u8>> for Answer {
    fn from(body: Vec<u8>) -> Self {
        Self { body, memory: None }
    }
}

impl<'d> Session<'d> {
    pub(super) fn new(
        socket: Socket,
        device: &'d dyn PassthroughDevice,
        container: &'d Container,
    ) -> Self {
        let config = VirtualConfig::new(&device.info().bars);
        let (maps, windows) = (Maps::default(), device.windows_generation());
        Self { socket, device, container, config, maps, negotiated: false, windows }
    }

    /// Whether this client may still map windows of memory that is not the device's any more: its
    /// dext died, and a client cannot be told to map again. All ones, until another client comes.
    fn is_stale(&self) -> bool {
        self.device.windows_generation() != self.windows
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Receives one message and answers it; why it was refused, if it was.
    pub(super) fn serve_one(&mut self) -> Result<Option<String>, SocketError> {
        let message = match self.socket.receive() {
            Err(error @ SocketError::Size { id, command, .. }) => {
                // Out of step from here on, but the client may still be told.
                let header = crate::protocol::Header { id, command, size: 0, flags: 0, error: 0 };
                let _ = self.socket.error(&header, libc::EINVAL);
                return Err(error);
            }
            other => other?,
        };
        let header = message.header;
        let silent = header.flags & flag::NO_REPLY != 0;
        match self.handle(message) {
            Ok(answer) if !silent => {
                let memory = answer.memory.as_ref().and_then(|memory| memory.memory.descriptor());
                self.socket.reply(&header, &answer.body, memory)?;
                Ok(None)
            }
            Ok(_) => Ok(None),
            Err(refusal) => {
                if !silent {
                    self.socket.error(&header, refusal.errno)?;
                }
                Ok(Some(format!("command {}: {}", header.command, refusal.why)))
            }
        }
    }

    fn handle(&mut self, message: Message) -> Result<Answer, Refusal> {
        let Message { header, body, descriptors, too_many } = message;
        if header.flags & flag::TYPE != flag::COMMAND {
            return refuse(libc::EINVAL, format!("flags {:#x} are no command's", header.flags));
        }
        if too_many {
            return refuse(libc::EINVAL, "too many descriptors came and were closed");
        }
        let takes_descriptors = matches!(header.command, command::DMA_MAP | command::SET_IRQS);
        if !takes_descriptors && !descriptors.is_empty() {
            return refuse(libc::EINVAL, format!("{} descriptors came", descriptors.len()));
        }
        if self.negotiated == (header.command == command::VERSION) {
            let why =
                if self.negotiated { "VERSION came twice" } else { "VERSION must come first" };
            return refuse(libc::EINVAL, why);
        }
        let device = self.device;
        Ok(match header.command {
            command::VERSION => {
                let answer = negotiate::version(&body)?;
                self.negotiated = true;
                answer.into()
            }
            command::DMA_MAP => {
                self.maps.map(self.container, &body, descriptors)?;
                Answer::default()
            }
            command::DMA_UNMAP => self.maps.unmap(self.container, &body)?.into(),
            command::GET_INFO => info::device(&body)?.into(),
            command::REGION_INFO => {
                let region = info::region(device, &body)?;
                Answer { body: region.body, memory: region.memory }
            }
            command::IRQ_INFO => info::interrupt(device, &body)?.into(),
            command::SET_IRQS => {
                interrupts::set(device, &body, descriptors)?;
                Answer::default()
            }
            command::REGION_READ if self.is_stale() => access::read_nothing(device, &body)?.into(),
            command::REGION_WRITE if self.is_stale() => {
                access::write_nothing(device, &body)?.into()
            }
            command::REGION_READ => access::read(device, &self.config, &body)?.into(),
            command::REGION_WRITE => access::write(device, &mut self.config, &body)?.into(),
            command::RESET => {
                device.reset()?;
                self.config.reset();
                Answer::default()
            }
            other => return refuse(libc::EOPNOTSUPP, format!("command {other} is not served")),
        })
    }

    /// The client is gone: the device may not touch its memory any more, and wakes nobody. The
    /// device itself stays as it is for the next client.
    pub(super) fn end(mut self) {
        if let Err(error) = self.device.quiesce()
            && !error.is_absent()
        {
            tracing::warn!("quiescing after a client: {error}");
        }
        self.maps.clear(self.container);
    }
}
