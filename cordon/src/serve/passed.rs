//! Sockets that a service manager made and passed on (socket activation), and files of VFIO's that it opened: which
//! of them is whose.
//!
//! A file is called `vfio-group` or `vfio-container`, or `vfio-device` or `vfio-iommufd`. Which group it is of is seen
//! by itself; containers belong to groups in their order, and iommufds to groups of functions' own files.
//!
//! A name says it: that of a function is its address with `-` for `:`, as 01-00.0, or what the config file
//! says; that of its companion has `-companion` after it. Those that nobody is named by are given to the
//! functions that are left, in order, if there are as many: a manager that is told no names calls each after
//! its unit.

use std::collections::BTreeSet;
use std::os::fd::{OwnedFd, RawFd};

use ipc::PciAddress;

use super::inherited::{Inherited, InheritedError};
use crate::Failure;
use crate::vfio_fds::Files;

/// What files of groups are called, and those of containers.
const GROUP: &str = "vfio-group";
const CONTAINER: &str = "vfio-container";
/// What functions' own files are called, and those of iommufds.
const DEVICE: &str = "vfio-device";
const IOMMUFD: &str = "vfio-iommufd";

/// What was passed on, until it is somebody's.
#[derive(Debug, Default)]
pub(super) struct Passed {
    sockets: Vec<(String, Inherited)>,
    groups: Vec<OwnedFd>,
    containers: Vec<OwnedFd>,
    devices: Vec<OwnedFd>,
    iommufds: Vec<OwnedFd>,
    /// Of all of them.
    numbers: BTreeSet<RawFd>,
}

impl Passed {
    /// All that were.
    pub(super) fn take() -> Result<Self, Failure> {
        let passed = crate::sys::passed()
            .map_err(|error| format!("the sockets that were passed on are not told: {error}"))?;
        let mut taken = Self::default();
        for (number, name) in passed {
            taken.numbers.insert(number);
            if cordon_vmm::kept::is_ours(&name) {
                // What a keeper has of functions, which the store takes.
                continue;
            }
            let file =
                || crate::sys::inherited::take(number).map_err(|_| InheritedError::Closed(number));
            match name.as_str() {
                GROUP => taken.groups.push(file()?),
                CONTAINER => taken.containers.push(file()?),
                DEVICE => taken.devices.push(file()?),
                IOMMUFD => taken.iommufds.push(file()?),
                _ => taken.sockets.push((name, Inherited::take(number)?)),
            }
        }
        Ok(taken)
    }

    /// The numbers of all that were.
    pub(super) fn numbers(&self) -> BTreeSet<RawFd> {
        self.numbers.clone()
    }

    /// The files of VFIO's: those of a group, each with the container that is in the same place of its own row.
    pub(super) fn files(&mut self) -> Result<Vec<Files>, Failure> {
        let (groups, containers) = (self.groups.len(), self.containers.len());
        if containers != 0 && containers != groups {
            let why = format!(
                "{groups} descriptors that were passed on are called {GROUP}, and {containers} {CONTAINER}: one for \
                 each group, in the same order, or none"
            );
            return Err(why.into());
        }
        let mut containers = self.containers.drain(..);
        let groups = self.groups.drain(..).map(|group| Files::Group(group, containers.next()));
        let mut files: Vec<Files> = groups.collect();
        files.extend(self.devices.drain(..).map(|device| Files::Device(device, None)));
        files.extend(self.iommufds.drain(..).map(Files::Iommufd));
        Ok(files)
    }

    /// Whether there is none left.
    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The one of this name.
    pub(super) fn named(&mut self, name: &str) -> Option<Inherited> {
        let at = self.sockets.iter().position(|(one, _)| one == name)?;
        Some(self.sockets.remove(at).1)
    }

    /// All that are left, in order, for so many functions.
    pub(super) fn rest(&mut self, functions: usize) -> Result<Vec<Inherited>, Failure> {
        if functions == self.sockets.len() {
            return Ok(self.sockets.drain(..).map(|(_, socket)| socket).collect());
        }
        let names: Vec<String> = self.sockets.iter().map(|(name, _)| format!("'{name}'")).collect();
        let left = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(format!(
            "{functions} functions have no socket, and of those that were passed on {left} is nobody's: \
             a socket is called as its function, 01-00.0 for 01:00.0"
        )
        .into())
    }
}

/// What the socket of a function is called.
pub(super) fn name(address: PciAddress) -> String {
    address.to_string().replace(':', "-")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_come_first_and_the_rest_in_order_if_it_is_as_many() {
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| {
            let path = folder.path().join(name);
            let listener = UnixListener::bind(path).unwrap();
            (name.to_owned(), Inherited::of(listener.into()).unwrap())
        };
        let sockets = ["a", "01-00.1", "b"].map(socket).into();
        let mut passed = Passed { sockets, ..Passed::default() };
        let file = |socket: &Inherited| socket.name().file_name().unwrap().to_owned();
        assert!(passed.named("01-00.0").is_none());
        let named = passed.named(&name("01:00.1".parse().unwrap())).unwrap();
        assert_eq!(file(&named), "01-00.1");
        let error = passed.rest(1).unwrap_err().to_string();
        assert!(error.contains("1 functions have no socket") && error.contains("'a', 'b'"));
        let rest = passed.rest(2).unwrap();
        assert_eq!(rest.iter().map(file).collect::<Vec<_>>(), ["a", "b"]);
        assert!(passed.is_empty() && passed.rest(0).unwrap().is_empty());
        assert!(passed.rest(1).unwrap_err().to_string().contains("none is nobody's"));
    }

    #[test]
    fn containers_belong_to_groups_in_their_order_or_there_are_none() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let files = |groups: usize, containers: usize| {
            let many = |count| std::iter::repeat_with(null).take(count).collect();
            let (groups, containers) = (many(groups), many(containers));
            Passed { groups, containers, ..Passed::default() }.files()
        };
        for (groups, containers) in [(0, 0), (2, 0), (2, 2)] {
            let found = files(groups, containers).unwrap();
            let with = found.iter().filter(|one| matches!(one, Files::Group(_, Some(_)))).count();
            assert_eq!((found.len(), with), (groups, containers));
        }
        let error = files(2, 1).unwrap_err().to_string();
        assert!(error.contains("2 descriptors") && error.contains("1 vfio-container"), "{error}");
        assert!(files(0, 1).is_err());
    }
}
