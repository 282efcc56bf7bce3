//! Two functions of one group: one holder has both, and they share their mappings.

use serde_json::{Value, json};
use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU};

use crate::kernel::{Container, Group};
use crate::{Failure, outcome};

pub(crate) fn check(first: &str, second: &str) -> Result<Value, Failure> {
    let (container, group) = (Container::open()?, Group::open(first)?);
    let viable = group.flags()? & VFIO_GROUP_FLAGS_VIABLE != 0;
    group.enter(&container)?;
    container.set(VFIO_TYPE1v2_IOMMU)?;
    let (one, other) = (group.device(first), group.device(second));
    let resets = [&one, &other].map(|device| match device {
        Ok(device) => outcome(&device.reset()),
        Err(error) => error.to_string(),
    });
    Ok(json!({
        "same_group": Group::path(first)? == Group::path(second)?,
        "viable": viable,
        "opened": [outcome(&one), outcome(&other)],
        "second_holder": outcome(&Group::open(second)),
        "resets": resets,
    }))
}
