//! The DMA space of a group, shared by its functions: a container of type 1, or an address space of an iommufd.
//!
//! What one function of the group was given all of them reach, so a range that two of them ask for is mapped
//! once, and is there until the last one gives it back.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use crate::container::Container;
use crate::error::VfioError;
use crate::ioas::Ioas;

/// What the IOMMU before the devices of a group can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// Addresses and sizes are multiples of this.
    pub(crate) granule: u64,
    /// First and last of each range of bus addresses; empty where the kernel does not say.
    pub(crate) ranges: Vec<(u64, u64)>,
    /// Most mappings.
    pub(crate) mappings: u64,
}

/// A mapping that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    size: u64,
    writable: bool,
    /// Which memory, as the file system knows it, and where in it.
    memory: (u64, u64, u64),
    users: u32,
}

/// A range of memory to map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range<'m> {
    /// Bus address.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Where it is mapped in this process, if it is.
    pub(crate) mapped_at: Option<usize>,
    /// Whether devices may write it.
    pub(crate) writable: bool,
    /// The file of the memory, by device and number, and where in it the range begins.
    pub(crate) memory: (u64, u64, u64),
    /// The file itself.
    pub(crate) file: BorrowedFd<'m>,
}

impl Range<'_> {
    /// Where it is mapped in this process.
    ///
    /// # Errors
    /// [`VfioError::Invalid`] when it is not.
    pub(crate) fn address(&self) -> Result<u64, VfioError> {
        let unmapped = || VfioError::Invalid("the memory is not mapped here".to_owned());
        self.mapped_at.map(|at| at as u64).ok_or_else(unmapped)
    }
}

/// Who maps.
#[derive(Debug)]
pub(crate) enum Mapper {
    /// A container.
    Container(Container),
    /// An address space of an iommufd.
    Ioas(Ioas),
}

/// The DMA space of a group.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    mapper: Mapper,
    space: Space,
    /// How much this process may lock, as it was before it confined itself: it cannot ask then.
    limit: Option<u64>,
    mappings: BTreeMap<u64, Mapping>,
    /// Whether a process before this one used it, which is dead: what that mapped is there.
    adopted: bool,
}

impl Mapper {
    fn describe(&self) -> Result<Space, VfioError> {
        match self {
            Self::Container(container) => container.describe(),
            Self::Ioas(ioas) => ioas.describe(),
        }
    }

    /// Has the kernel map a range.
    ///
    /// # Errors
    /// As the kernel reports them, with the name of the request.
    fn map(&self, range: &Range<'_>) -> Result<(), VfioError> {
        match self {
            Self::Container(container) => container.map(range),
            Self::Ioas(ioas) => ioas.map(range),
        }
    }

    /// Has the kernel take a range back; how many bytes that were.
    fn unmap(&self, at: u64, size: u64) -> Result<u64, VfioError> {
        match self {
            Self::Container(container) => container.unmap(at, size),
            Self::Ioas(ioas) => ioas.unmap(at, size),
        }
    }
}

impl AddressSpace {
    /// One that nobody has used.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn new(mapper: Mapper) -> Result<Self, VfioError> {
        Self::described(mapper, false)
    }

    /// One that a dead process used, with what that mapped.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn adopted(mapper: Mapper) -> Result<Self, VfioError> {
        Self::described(mapper, true)
    }

    fn described(mapper: Mapper, adopted: bool) -> Result<Self, VfioError> {
        let space = mapper.describe()?;
        let limit = getrlimit(Resource::Memlock).current;
        Ok(Self { mapper, space, limit, mappings: BTreeMap::new(), adopted })
    }

    /// The descriptor that keeps it: a container's or an iommufd's.
    pub(crate) fn descriptor(&self) -> Arc<OwnedFd> {
        match &self.mapper {
            Mapper::Container(container) => container.descriptor(),
            Mapper::Ioas(ioas) => ioas.descriptor(),
        }
    }

    /// Who maps.
    pub(crate) fn mapper(&self) -> &Mapper {
        &self.mapper
    }

    /// What its IOMMU can do.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Whether a range must be mapped in this process, and the file of its memory is not enough.
    pub(crate) fn needs_mapping(&self) -> bool {
        match &self.mapper {
            Mapper::Container(_) => true,
            Mapper::Ioas(ioas) => !ioas.maps_files(),
        }
    }

    /// Maps a range.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn map(&mut self, range: &Range<'_>) -> Result<(), VfioError> {
        self.add(range, false)
    }

    /// Maps a range that the dead process may have mapped: then it is there already. The kernel looks for that
    /// first, and pins and counts nothing twice. It says that something is there and not what, so only who
    /// kept account of everything that was mapped may ask.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn adopt(&mut self, range: &Range<'_>) -> Result<(), VfioError> {
        if !self.adopted {
            return Err(VfioError::Invalid("nobody used its DMA space before".to_owned()));
        }
        self.add(range, true)
    }

    fn add(&mut self, range: &Range<'_>, adopting: bool) -> Result<(), VfioError> {
        let Range { at, size, writable, memory, .. } = *range;
        if let Some(there) = self.mappings.get_mut(&at) {
            let same = (there.size, there.writable, there.memory) == (size, writable, memory);
            if !same {
                return Err(VfioError::Mapped { address: at, size });
            }
            there.users += 1;
            return Ok(());
        }
        self.check_addresses(at, size)?;
        let failed = |error: VfioError| match error {
            VfioError::Refused { request, source } => match source.raw_os_error() {
                Some(libc::EEXIST) => VfioError::Mapped { address: at, size },
                Some(libc::ENOMEM) => VfioError::Locked {
                    size,
                    limit: written(self.limit),
                    of_user: matches!(self.mapper, Mapper::Ioas(_)),
                },
                _ => VfioError::Refused { request, source },
            },
            other => other,
        };
        match self.mapper.map(range).map_err(failed) {
            Err(VfioError::Mapped { .. }) if adopting => {}
            other => other?,
        }
        self.mappings.insert(at, Mapping { size, writable, memory, users: 1 });
        Ok(())
    }

    fn check_addresses(&self, at: u64, size: u64) -> Result<(), VfioError> {
        let ranges = &self.space.ranges;
        let last = size.checked_sub(1).and_then(|more| at.checked_add(more));
        let in_one =
            |last| ranges.iter().any(|(from, to)| (*from..=*to).contains(&at) && last <= *to);
        if last.is_some_and(|last| ranges.is_empty() || in_one(last)) {
            return Ok(());
        }
        let ranges: Vec<String> =
            ranges.iter().map(|(from, to)| format!("{from:#x} to {to:#x}")).collect();
        Err(VfioError::Reserved { address: at, size, ranges: ranges.join(", ") })
    }

    /// Takes a range back that begins `at`, unless another function of the group has it too.
    ///
    /// # Errors
    /// [`VfioError`]; it is then still there, as far as is known.
    pub(crate) fn unmap(&mut self, at: u64) -> Result<(), VfioError> {
        let nothing = || VfioError::Invalid(format!("nothing is mapped at {at:#x}"));
        let there = self.mappings.get_mut(&at).ok_or_else(nothing)?;
        if there.users > 1 {
            there.users -= 1;
            return Ok(());
        }
        let size = there.size;
        let gone = self.mapper.unmap(at, size)?;
        if gone != size {
            let why = format!("of {at:#x}+{size:#x} the kernel took back {gone:#x} bytes");
            return Err(VfioError::Invalid(why));
        }
        self.mappings.remove(&at);
        Ok(())
    }
}

/// A limit of locked memory, as people write it.
fn written(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes"))
}

#[cfg(test)]
#[path = "address_space_tests.rs"]
mod tests;
