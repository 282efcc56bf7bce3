//! Files of VFIO's that whoever starts this program opened: `--vfio-fd group=3,container=4`, or
//! `--vfio-fd device=3,iommufd=4`.

use std::collections::BTreeSet;
use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;

use crate::Failure;

/// The numbers of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VfioFds {
    /// Of a group, and of a container.
    Group(RawFd, Option<RawFd>),
    /// Of a function's own file, and of an iommufd.
    Device(RawFd, Option<RawFd>),
}

/// The files.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "counted where there is no VFIO"))]
pub(crate) enum Files {
    /// That of a group, and that of a container.
    Group(OwnedFd, Option<OwnedFd>),
    /// A function's own, and that of the iommufd of its group.
    Device(OwnedFd, Option<OwnedFd>),
    /// That of the iommufd of a group whose functions' own name none: of the first such group the first.
    Iommufd(OwnedFd),
}

impl FromStr for VfioFds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = [None; 4];
        const NAMES: [&str; 4] = ["group", "container", "device", "iommufd"];
        for part in text.split(',') {
            let (name, number) = part.split_once('=').unwrap_or((part, ""));
            let Some(at) = NAMES.iter().position(|one| *one == name) else {
                return Err(format!(
                    "'{part}' is none of group=NUMBER, container=NUMBER, device=NUMBER and iommufd=NUMBER"
                ));
            };
            let parsed = number.parse::<RawFd>().ok().filter(|number| *number > 2);
            let number = parsed.ok_or_else(|| {
                format!("'{number}' is no number of a descriptor: 3 or above is expected")
            })?;
            if found[at].replace(number).is_some() {
                return Err(format!("{name} is said twice"));
            }
        }
        match found {
            [Some(group), container, None, None] => Ok(Self::Group(group, container)),
            [None, None, Some(device), iommufd] => Ok(Self::Device(device, iommufd)),
            [None, Some(_), None, _] => Err("group=NUMBER is missing".to_owned()),
            [None, None, None, _] => Err("device=NUMBER is missing".to_owned()),
            _ => Err("a group has a container, and a device an iommufd: they go apart".to_owned()),
        }
    }
}

/// Takes them: see [`crate::sys::inherited::take`]. None of them is in `taken`, and all are afterwards.
pub(crate) fn take(
    fds: &[VfioFds],
    iommufds: &[RawFd],
    taken: &mut BTreeSet<RawFd>,
) -> Result<Vec<Files>, Failure> {
    let mut one = |number: RawFd| -> Result<OwnedFd, Failure> {
        if !taken.insert(number) {
            return Err(format!("descriptor {number} is named twice").into());
        }
        crate::sys::inherited::take(number).map_err(|_| {
            let why = "is not open here: whoever starts this program must pass it on";
            format!("Descriptor {number} {why}").into()
        })
    };
    let mut files = Vec::new();
    for fds in fds {
        files.push(match *fds {
            VfioFds::Group(group, container) => {
                Files::Group(one(group)?, container.map(&mut one).transpose()?)
            }
            VfioFds::Device(device, iommufd) => {
                Files::Device(one(device)?, iommufd.map(&mut one).transpose()?)
            }
        });
    }
    for iommufd in iommufds {
        files.push(Files::Iommufd(one(*iommufd)?));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_by_what_they_are() {
        let parse = |text: &str| text.parse::<VfioFds>();
        assert_eq!(parse("group=3"), Ok(VfioFds::Group(3, None)));
        assert_eq!(parse("device=3"), Ok(VfioFds::Device(3, None)));
        assert_eq!(parse("iommufd=4,device=3"), Ok(VfioFds::Device(3, Some(4))));
        let both = Ok(VfioFds::Group(3, Some(4)));
        assert_eq!(
            (parse("group=3,container=4"), parse("container=4,group=3")),
            (both.clone(), both)
        );
        for (text, says) in [
            ("", "'' is none of"),
            ("3", "'3' is none of group=NUMBER"),
            ("iommufd=4", "device=NUMBER is missing"),
            ("device=3,container=4", "they go apart"),
            ("group=3,iommufd=4", "they go apart"),
            ("container=4", "group=NUMBER is missing"),
            ("group=2", "'2' is no number of a descriptor: 3 or above"),
            ("group=-1", "'-1' is no number"),
            ("group=banana", "'banana' is no number"),
            ("group=3,group=4", "group is said twice"),
            ("group=3,device=4", "they go apart"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_number_is_taken_once_and_only_if_it_is_open() {
        const CLOSED: RawFd = 1 << 20;
        let fds = [VfioFds::Group(CLOSED, None)];
        let error = take(&fds, &[], &mut BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("1048576 is not open here"), "{error}");
        let error = take(&fds, &[], &mut BTreeSet::from([CLOSED])).unwrap_err().to_string();
        assert!(error.contains("1048576 is named twice"), "{error}");
    }
}
