//! Files of IOMMU groups that whoever starts this program opened: `--vfio-fd group=3,container=4`.

use std::collections::BTreeSet;
use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;

use crate::Failure;

/// The numbers of descriptors of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VfioFds {
    group: RawFd,
    container: Option<RawFd>,
}

/// The files of a group: its own, and that of a container.
pub(crate) type Files = (OwnedFd, Option<OwnedFd>);

impl FromStr for VfioFds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut group, mut container) = (None, None);
        for part in text.split(',') {
            let (name, number) = part.split_once('=').unwrap_or((part, ""));
            let place = match name {
                "group" => &mut group,
                "container" => &mut container,
                _ => return Err(format!("'{part}' is neither group=NUMBER nor container=NUMBER")),
            };
            let parsed = number.parse::<RawFd>().ok().filter(|number| *number > 2);
            let number = parsed.ok_or_else(|| {
                format!("'{number}' is no number of a descriptor: 3 or above is expected")
            })?;
            if place.replace(number).is_some() {
                return Err(format!("{name} is said twice"));
            }
        }
        let group = group.ok_or("group=NUMBER is missing")?;
        Ok(Self { group, container })
    }
}

/// Takes them: see [`crate::sys::inherited::take`]. None of them is in `taken`, and all are afterwards.
pub(crate) fn take(fds: &[VfioFds], taken: &mut BTreeSet<RawFd>) -> Result<Vec<Files>, Failure> {
    let mut one = |number: RawFd| -> Result<OwnedFd, Failure> {
        if !taken.insert(number) {
            return Err(format!("descriptor {number} is named twice").into());
        }
        crate::sys::inherited::take(number).map_err(|_| {
            let why = "is not open here: whoever starts this program must pass it on";
            format!("Descriptor {number} {why}").into()
        })
    };
    let files = |fds: &VfioFds| Ok((one(fds.group)?, fds.container.map(&mut one).transpose()?));
    fds.iter().map(files).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_by_what_they_are() {
        let parse = |text: &str| text.parse::<VfioFds>();
        assert_eq!(parse("group=3"), Ok(VfioFds { group: 3, container: None }));
        let both = Ok(VfioFds { group: 3, container: Some(4) });
        assert_eq!(
            (parse("group=3,container=4"), parse("container=4,group=3")),
            (both.clone(), both)
        );
        for (text, says) in [
            ("", "'' is neither"),
            ("3", "'3' is neither group=NUMBER"),
            ("container=4", "group=NUMBER is missing"),
            ("group=2", "'2' is no number of a descriptor: 3 or above"),
            ("group=-1", "'-1' is no number"),
            ("group=banana", "'banana' is no number"),
            ("group=3,group=4", "group is said twice"),
            ("group=3,device=4", "'device=4' is neither"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_number_is_taken_once_and_only_if_it_is_open() {
        const CLOSED: RawFd = 1 << 20;
        let fds = [VfioFds { group: CLOSED, container: None }];
        let error = take(&fds, &mut BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("1048576 is not open here"), "{error}");
        let error = take(&fds, &mut BTreeSet::from([CLOSED])).unwrap_err().to_string();
        assert!(error.contains("1048576 is named twice"), "{error}");
    }
}
