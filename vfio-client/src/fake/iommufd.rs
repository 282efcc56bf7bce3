//! The fake kernel's iommufds: address spaces, and devices that are bound to them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::{FakeMapping, FileId, State, What, file, invalid, taken};
use crate::abi::Structure;
use crate::kernel::{Described, IoasRanges};

/// Flags of a mapping: at an address of the caller's, and who may reach it how.
const FIXED: u32 = 1;
const ACCESS: u32 = 6;

#[derive(Debug, Default)]
pub(super) struct Iommufds {
    /// Of each that is open, what hangs up when it is closed.
    open: BTreeMap<FileId, UnixStream>,
    /// Devices that have files of their own, by the numbers of those.
    pub(super) cdevs: BTreeMap<u32, String>,
    /// Devices that were opened by their groups last.
    pub(super) by_group: BTreeSet<String>,
    /// Devices whose files somebody keeps open.
    pub(super) held: BTreeSet<String>,
    /// To which iommufd a device is bound, and the space that it is attached to.
    bound: BTreeMap<String, (FileId, Option<u32>)>,
    spaces: BTreeMap<(FileId, u32), BTreeMap<u64, FakeMapping>>,
    /// Whether memory is mapped by its address only, as before Linux 6.13.
    pub(super) is_old: bool,
}

fn error<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

impl Iommufds {
    pub(super) fn opened(&mut self, file: FileId, other: UnixStream) {
        self.open.insert(file, other);
    }

    /// What is gone with the last duplicate of an iommufd.
    fn settle(&mut self) {
        let hung_up =
            |other: &UnixStream| ipc::poll::wait_readable(other, ipc::Deadline::now()).unwrap();
        self.open.retain(|_, other| !hung_up(other));
        // A device that somebody keeps open stays bound, and keeps what it is bound to.
        let (open, held) = (&self.open, &self.held);
        self.bound.retain(|name, (iommufd, _)| open.contains_key(iommufd) || held.contains(name));
        let bound: BTreeSet<FileId> = self.bound.values().map(|(iommufd, _)| *iommufd).collect();
        self.spaces.retain(|(iommufd, _), _| open.contains_key(iommufd) || bound.contains(iommufd));
    }

    /// Whether a device may be asked for something.
    pub(super) fn is_usable(&mut self, device: &str) -> bool {
        self.settle();
        let has_file = self.cdevs.values().any(|one| one == device);
        !has_file || self.by_group.contains(device) || self.bound.contains_key(device)
    }

    /// Whether a device is bound to the iommufd that `to` is bound to.
    pub(super) fn is_beside(&self, device: &str, to: &str) -> bool {
        let of = |name| self.bound.get(name).map(|(iommufd, _)| *iommufd);
        of(device).is_some() && of(device) == of(to)
    }

    /// Whether a device is bound.
    pub(super) fn is_bound(&self, device: &str) -> bool {
        self.bound.contains_key(device)
    }

    /// The space that a device is attached to.
    pub(super) fn attached(&self, device: &str) -> Option<u32> {
        self.bound.get(device)?.1
    }

    /// Everything that is mapped, by bus address.
    pub(super) fn mappings(&self) -> impl Iterator<Item = (u64, FakeMapping)> {
        self.spaces.values().flatten().map(|(at, mapping)| (*at, *mapping))
    }

    /// How many spaces there are.
    pub(super) fn spaces(&mut self) -> usize {
        self.settle();
        self.spaces.len()
    }

    fn space(
        &mut self,
        iommufd: FileId,
        number: u32,
    ) -> io::Result<&mut BTreeMap<u64, FakeMapping>> {
        let none = || io::Error::from_raw_os_error(libc::ENOENT);
        self.spaces.get_mut(&(iommufd, number)).ok_or_else(none)
    }

    /// A request to an iommufd.
    pub(super) fn described(
        &mut self,
        iommufd: FileId,
        request: Described,
        structure: &mut Structure,
    ) -> io::Result<()> {
        self.settle();
        match request {
            Described::AllocateIoas => {
                let is_free = |number: &u32| !self.spaces.contains_key(&(iommufd, *number));
                let number = (1..).find(is_free).unwrap();
                self.spaces.insert((iommufd, number), BTreeMap::new());
                *structure = structure.clone().with(8, number);
            }
            Described::DestroyIommu => {
                let number = structure.field(4);
                self.space(iommufd, number)?;
                if self.bound.values().any(|bound| *bound == (iommufd, Some(number))) {
                    return error(libc::EBUSY);
                }
                self.spaces.remove(&(iommufd, number));
            }
            Described::MapFileIoas if self.is_old => return error(libc::ENOTTY),
            Described::MapIoas | Described::MapFileIoas => {
                let by_file = request == Described::MapFileIoas;
                let (flags, number) = (structure.field(4), structure.field(8));
                let [what, size, at] = [16, 24, 32].map(|field| structure.long(field));
                let is_memory = match by_file {
                    true => taken(structure.field(12).cast_signed())?
                        .is_some_and(|memory| rustix::fs::fcntl_get_seals(&memory).is_ok()),
                    false => structure.field(12) == 0,
                };
                let page = (what | at | size).is_multiple_of(4096);
                if size == 0 || flags & FIXED == 0 || flags & ACCESS == 0 || !is_memory || !page {
                    return error(libc::EINVAL);
                }
                let space = self.space(iommufd, number)?;
                let overlaps = |(from, (_, length, _)): (&u64, &FakeMapping)| {
                    *from < at + size && at < from + length
                };
                if space.iter().any(overlaps) {
                    return error(libc::EEXIST);
                }
                space.insert(at, (what, size, flags));
            }
            Described::UnmapIoas => {
                let [at, size] = [8, 16].map(|field| structure.long(field));
                let space = self.space(iommufd, structure.field(4))?;
                if space.get(&at).is_none_or(|(_, there, _)| *there != size) {
                    return error(libc::ENOENT);
                }
                space.remove(&at);
            }
            _ => return error(libc::ENOTTY),
        }
        Ok(())
    }

    /// What a space may have mapped.
    pub(super) fn ranges(
        &mut self,
        iommufd: FileId,
        number: u32,
        ranges: &[(u64, u64)],
    ) -> io::Result<IoasRanges> {
        self.settle();
        self.space(iommufd, number)?;
        Ok(IoasRanges { ranges: ranges.to_vec(), alignment: 4096 })
    }
}

impl State {
    /// A request of a device's own file about its iommufd.
    pub(super) fn bind(
        &mut self,
        name: &str,
        request: Described,
        structure: &mut Structure,
    ) -> io::Result<()> {
        self.iommufds.settle();
        let bound = self.iommufds.bound.get(name).copied();
        match (request, bound) {
            // One device is bound once.
            (Described::BindIommufd, Some(_)) => error(libc::EINVAL),
            (Described::BindIommufd, None) => {
                let iommufd = taken(structure.field(8).cast_signed())?.ok_or_else(invalid)?;
                if self.what(iommufd.as_fd())? != What::Iommufd {
                    return error(libc::EBADF);
                }
                if !self.viable {
                    return error(libc::EBUSY);
                }
                let bound = (file(iommufd.as_fd())?, None);
                self.iommufds.bound.insert(name.to_owned(), bound);
                // As the kernel resets what it opens.
                self.devices.get_mut(name).unwrap().is_new();
                *structure = structure.clone().with(12, 1);
                Ok(())
            }
            (Described::AttachIoas, Some((iommufd, None))) => {
                let number = structure.field(8);
                self.iommufds.space(iommufd, number)?;
                self.iommufds.bound.insert(name.to_owned(), (iommufd, Some(number)));
                Ok(())
            }
            (Described::DetachIoas, Some((iommufd, _))) => {
                self.iommufds.bound.insert(name.to_owned(), (iommufd, None));
                Ok(())
            }
            _ => error(libc::EINVAL),
        }
    }
}
