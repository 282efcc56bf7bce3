//! A session of one client without a thread and a listening socket, for the fuzz targets.

use std::os::unix::net::UnixStream;

use cordon_vmm::{Container, DeviceError, PassthroughDevice};
use ipc::Event;

use crate::options::Options;
use crate::socket::Socket;
use crate::{handover, session};

/// What of the device is put back between two clients.
pub struct Handover(handover::Handover);

impl Default for Handover {
    fn default() -> Self {
        Self(handover::Handover::new())
    }
}

impl Handover {
    /// Takes back what the last client left, and before the first notes how the device is.
    ///
    /// # Errors
    /// [`DeviceError`] of the device.
    pub fn clean(&mut self, device: &dyn PassthroughDevice) -> Result<(), DeviceError> {
        self.0.clean(device)
    }
}

/// A connected client.
pub struct Session<'d>(session::Session<'d>);

impl<'d> Session<'d> {
    /// Of the client at the other end of `stream`.
    pub fn new(
        stream: UnixStream,
        stopped: &'d Event,
        device: &'d dyn PassthroughDevice,
        container: &'d Container,
        handover: &'d mut Handover,
        options: Options,
    ) -> Self {
        let socket = Socket::new(stream, stopped);
        Self(session::Session::new(socket, device, container, &mut handover.0, options))
    }

    /// Serves one message, which has come; what would be reported of it.
    ///
    /// # Errors
    /// Why the client is served no more.
    pub fn serve_one(&mut self) -> Result<Option<String>, String> {
        self.0.serve_one().map_err(|error| error.to_string())
    }

    /// The client is gone: its memory is taken back.
    pub fn end(&mut self) {
        let _ = self.0.end();
    }
}
