//! Whose memory a served function reaches: that of its client, or, where functions reach the same memory, that of the
//! one VMM that is the client of them all.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cordon_vmm::Container;
use parking_lot::Mutex;

use crate::sys;

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
    /// Its number; none when nobody has it, or the system does not say.
    process: Option<u32>,
    /// How many of its clients are there, or are gone and something of them is left.
    clients: usize,
    /// How many are there.
    connected: usize,
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
        self.admit_process(sys::peer(client))
    }

    fn admit_process(&self, process: Option<u32>) -> Result<Stay, String> {
        let stay = |tenancy| Stay { tenancy, is_connected: true };
        let Some(tenancy) = &self.tenancy else { return Ok(stay(None)) };
        let mut now = tenancy.lock();
        if now.clients > 0 && now.connected == 0 {
            return Err("a client was sent away: what another one left in functions of the same IOMMU group is not taken \
                        back yet"
                .to_owned());
        }
        if now.clients > 0 && (process.is_none() || now.process != process) {
            let name = |process: Option<u32>| {
                process.map_or_else(|| "one without a number".to_owned(), |pid| pid.to_string())
            };
            return Err(format!(
                "a client that is process {} was sent away: process {} has a function of the same IOMMU group, and \
                 what one of them is given all of them reach",
                name(process),
                name(now.process)
            ));
        }
        now.process = process;
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
mod tests {
    use super::*;
    use cordon_vmm::DmaMode;

    fn container() -> Arc<Container> {
        Arc::new(Container::new(DmaMode::Direct))
    }

    #[test]
    fn clients_of_a_shared_guest_are_one_process_until_the_last_has_left() {
        let guest = Guest::shared(container());
        let other = guest.clone();
        let first = guest.admit_process(Some(7)).unwrap();
        let second = other.admit_process(Some(7)).unwrap();
        let refused = other.admit_process(Some(8)).unwrap_err();
        assert!(refused.contains("process 8") && refused.contains("process 7"), "{refused}");
        drop(first);
        assert!(guest.admit_process(Some(8)).is_err() && guest.admit_process(None).is_err());
        drop(second);
        let _next = guest.admit_process(Some(8)).unwrap();
        assert!(other.admit_process(Some(7)).is_err());
    }

    #[test]
    fn while_something_of_a_client_is_left_that_is_gone_nobody_is_let_in() {
        let guest = Guest::shared(container());
        let mut first = guest.admit_process(Some(7)).unwrap();
        let mut second = guest.admit_process(Some(7)).unwrap();
        first.leaves();
        first.leaves();
        // The one who is still there.
        drop(guest.admit_process(Some(7)).unwrap());
        second.leaves();
        // Its number may be another's by now.
        let refused = guest.admit_process(Some(7)).unwrap_err();
        assert!(refused.contains("not taken back yet"), "{refused}");
        drop(first);
        assert!(guest.admit_process(Some(8)).is_err());
        drop(second);
        assert!(guest.admit_process(Some(8)).is_ok());
    }

    #[test]
    fn of_processes_that_nobody_numbers_there_is_one_client() {
        let guest = Guest::shared(container());
        let first = guest.admit_process(None).unwrap();
        assert!(guest.admit_process(None).is_err() && guest.admit_process(Some(7)).is_err());
        drop(first);
        assert!(guest.admit_process(Some(7)).is_ok());
    }

    #[test]
    fn a_guest_of_one_server_asks_nobody() {
        let guest = Guest::from(container());
        let _first = guest.admit_process(Some(7)).unwrap();
        assert!(guest.admit_process(Some(8)).is_ok() && guest.admit_process(None).is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_at_the_other_end_is_known() {
        let (one, other) = UnixStream::pair().unwrap();
        assert_eq!(sys::peer(&one), Some(std::process::id()));
        drop(other);
    }
}
