//! Whose memory a served function reaches: that of its client, or, where functions reach the same memory, that of the
//! one VMM that is the client of them all.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cordon_vmm::Container;
use parking_lot::Mutex;

use crate::sys::{self, Life};

/// The memory that a server gives its function. Clones are of the same guest.
#[derive(Clone, Debug)]
pub struct Guest {
    container: Arc<Container>,
    /// Who has it, where several servers serve one guest.
    tenancy: Option<Arc<Mutex<Tenancy>>>,
}

/// The process whose guest it is, for as long as it is the client of one of the servers.
#[derive(Debug, Default)]
struct Tenancy {
    /// It; none when nobody has it, or the system does not say.
    process: Option<Process>,
    /// How many of its clients are there, or are gone and something of them is left.
    clients: usize,
    /// How many are there.
    connected: usize,
}

/// A process that is the client of a server.
#[derive(Debug)]
struct Process {
    number: u32,
    /// Its number is another's once this is over.
    life: Life,
}

impl Process {
    /// That of a client.
    ///
    /// # Errors
    /// Why it cannot be told from others, for people.
    fn of(client: &UnixStream) -> Result<Option<Self>, String> {
        let Some(number) = sys::peer(client) else { return Ok(None) };
        let life = sys::life(client).map_err(|error| {
            format!("a client was sent away: process {number} cannot be looked at: {error}")
        })?;
        Ok(Some(Self { number, life }))
    }
}

impl From<Arc<Container>> for Guest {
    /// Of one server, whose clients come one after the other.
    fn from(container: Arc<Container>) -> Self {
        Self { container, tenancy: None }
    }
}

impl Guest {
    /// Of the servers of functions that reach the same memory whoever has them, as those of an IOMMU group do: what one of
    /// their clients maps the device of another client could read and write. So at any time their clients are one
    /// process, which describes its guest's memory to each of them; another one is sent away until it has left
    /// all of them and nothing of it is left in the functions.
    ///
    /// Who a client is says the number of the process that connected; of a connected pair of sockets, of the one that made
    /// it. One that the system does not number for us (it is in a PID namespace that is not beneath ours) may have one
    /// function of them. A client that is gone has no number any more: nobody is let in until what it left is taken back.
    /// Nor has a process that has ended and whose connections others have inherited: nobody else is let in until they
    /// have left. That it has ended is known on Linux from 6.5 on (`SO_PEERPIDFD`); on older kernels a process which is
    /// given the number of one that has ended is taken for that. Other systems number nobody.
    #[must_use]
    pub fn shared(container: Arc<Container>) -> Self {
        Self { container, tenancy: Some(Arc::default()) }
    }

    /// The memory, for whoever attaches the functions.
    #[must_use]
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// Lets a client in for as long as what is returned is kept.
    ///
    /// # Errors
    /// Why not, for people: another process is a client of a function that reaches the same memory.
    pub(crate) fn admit(&self, client: &UnixStream) -> Result<Stay, String> {
        self.admit_client(client, false)
    }

    /// Lets a client in that another server had, with those that it had of the same guest: its process may have ended
    /// meanwhile, or before.
    ///
    /// # Errors
    /// As [`Guest::admit`].
    pub(crate) fn admit_again(&self, client: &UnixStream) -> Result<Stay, String> {
        self.admit_client(client, true)
    }

    fn admit_client(&self, client: &UnixStream, again: bool) -> Result<Stay, String> {
        // Nobody is told from others where there is one server.
        let process = self.tenancy.as_ref().map(|_| Process::of(client)).transpose()?.flatten();
        self.admit_process(process, again)
    }

    fn admit_process(&self, process: Option<Process>, again: bool) -> Result<Stay, String> {
        let stay = |tenancy| Stay { tenancy, is_connected: true };
        let Some(tenancy) = &self.tenancy else { return Ok(stay(None)) };
        let mut now = tenancy.lock();
        if now.clients > 0 && now.connected == 0 {
            return Err("a client was sent away: what another one left in functions of the same IOMMU group is not taken \
                        back yet"
                .to_owned());
        }
        if now.clients > 0 {
            let number = |process: &Option<Process>| process.as_ref().map(|one| one.number);
            let name = |process: &Option<Process>| {
                number(process)
                    .map_or_else(|| "one without a number".to_owned(), |pid| pid.to_string())
            };
            if process.is_none() || number(&now.process) != number(&process) {
                return Err(format!(
                    "a client that is process {} was sent away: process {} has a function of the same IOMMU group, \
                     and what one of them is given all of them reach",
                    name(&process),
                    name(&now.process)
                ));
            }
            // Two that live at one time and have one number are one.
            let mut both = now.process.iter().chain(&process);
            if !again && both.any(|one| one.life.is_over()) {
                return Err(format!(
                    "a client was sent away: process {} has ended, its number may be another's by now, and a connection \
                     of it to a function of the same IOMMU group is there",
                    name(&process)
                ));
            }
        } else {
            now.process = process;
        }
        now.clients += 1;
        now.connected += 1;
        Ok(stay(Some(Arc::clone(tenancy))))
    }
}

/// A client is there, or something of it is left.
#[derive(Debug)]
pub(crate) struct Stay {
    tenancy: Option<Arc<Mutex<Tenancy>>>,
    is_connected: bool,
}

impl Stay {
    /// The client is gone. Until what it left is taken back nobody else is let in, nor one of its number.
    pub(crate) fn leaves(&mut self) {
        if let Some(tenancy) = self.tenancy.as_ref().filter(|_| self.is_connected) {
            tenancy.lock().connected -= 1;
        }
        self.is_connected = false;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.leaves();
        if let Some(tenancy) = &self.tenancy {
            let mut now = tenancy.lock();
            now.clients -= 1;
            if now.clients == 0 {
                now.process = None;
            }
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[path = "guest_tests.rs"]
mod tests;
