//! What else the host has on its PCI buses, for `cordon devices --all`: where that can be known.

use std::fmt;

use ipc::PciAddress;
use serde::Serialize;

/// A function of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "where this cannot be known there is none")]
pub(crate) struct HostFunction {
    /// As the host writes it: `0000:01:00.0`.
    pub(crate) address: String,
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// 24 bits: base class, subclass, interface.
    pub(crate) class: u32,
    /// The driver that has it; `None` when none has.
    pub(crate) driver: Option<String>,
    /// The group that an IOMMU keeps apart, where there is an IOMMU.
    pub(crate) iommu_group: Option<u32>,
}

/// What the host has, or why that is not known.
pub(crate) type Host = Result<Vec<HostFunction>, String>;

/// An IOMMU group as a user of Linux's VFIO needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(dead_code, reason = "where there is no VFIO there are none")]
pub(crate) struct Group {
    pub(crate) number: u32,
    /// Everything that is in it, in the order of addresses.
    pub(crate) members: Vec<Member>,
    /// Its file, which there is while a function of it is VFIO's.
    pub(crate) file: Option<GroupFile>,
    /// Whether its functions are opened by files of their own, for an iommufd: this user may use all of them.
    pub(crate) iommufd: bool,
    /// What keeps it from being served; nothing if it could be.
    pub(crate) obstacle: Option<Obstacle>,
}

/// A function of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(dead_code, reason = "where there is no VFIO there are none")]
pub(crate) struct Member {
    /// As the host writes it: `0000:01:00.0`.
    pub(crate) address: String,
    /// The driver that has it; `None` when none has.
    pub(crate) driver: Option<String>,
    /// How the kernel could reset it.
    pub(crate) reset: ResetReach,
}

/// What a reset of a function reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "where there is no VFIO there are none")]
pub(crate) enum ResetReach {
    /// The function alone.
    Function,
    /// Its whole bus, which is of its group: while nothing else of that is in use.
    Bus,
    /// There is none: its bus has functions of other groups.
    None,
}

/// The file by which a group is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(dead_code, reason = "where there is no VFIO there are none")]
pub(crate) struct GroupFile {
    pub(crate) path: String,
    /// Permissions, as octal digits.
    pub(crate) mode: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The process that has it open, as far as whoever asks may see.
    pub(crate) held_by: Option<String>,
}

/// What stands in the way, and what helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(dead_code, reason = "where there is no VFIO there are none")]
pub(crate) struct Obstacle {
    pub(crate) cause: String,
    pub(crate) cure: String,
}

impl fmt::Display for ResetReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "the kernel can reset it alone",
            Self::Bus => {
                "the kernel can reset it only with its whole bus: while nothing else of that is in use"
            }
            Self::None => {
                "no reset: the kernel cannot reset it alone, and its bus has functions of other groups"
            }
        })
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.driver.as_deref().unwrap_or("no driver"))
    }
}

impl Group {
    /// For people, seen from the function at `address`: who else is in it, its file, and what stands in the way.
    pub(crate) fn lines(&self, address: &str) -> Vec<String> {
        let own = address.parse::<PciAddress>().ok();
        let is_own = |member: &&Member| own.is_some() && member.address.parse().ok() == own;
        let others = self.members.iter().filter(|member| !is_own(member));
        let others: Vec<String> = others.map(ToString::to_string).collect();
        let with = match others.is_empty() {
            true => "alone in it".to_owned(),
            false => format!("with {}", others.join(", ")),
        };
        let mut lines = vec![format!("IOMMU group {}, {with}", self.number)];
        if let Some(file) = &self.file {
            let GroupFile { path, mode, uid, gid, held_by } = file;
            let held = held_by.as_ref().map_or_else(String::new, |by| format!(", open in {by}"));
            lines.push(format!("{path}: mode {mode}, user {uid}, group {gid}{held}"));
        }
        if let Some(member) = self.members.iter().find(is_own) {
            lines.push(member.reset.to_string());
        }
        lines.push(match &self.obstacle {
            None if self.iommufd => {
                "VFIO could serve it, by its own file and an iommufd".to_owned()
            }
            None => "VFIO could serve it".to_owned(),
            Some(Obstacle { cause, cure }) => format!("VFIO could not serve it: {cause}: {cure}"),
        });
        lines
    }
}
