//! VERSION: what both sides can do.
//!
//! The reply is short: QEMU takes none that is longer than its own request. `write_multiple` and
//! `twin_socket` are left out, since no client needs them, and `migration`, since its presence says
//! that the device migrates.

use serde_json::{Map, Value};

use crate::limits::MAX_TOLD_DATA as ABSURD_DATA;
use crate::limits::MAX_TOLD_DESCRIPTORS as ABSURD_DESCRIPTORS;
use crate::protocol::{MAX_DATA, MAX_DESCRIPTORS, Refusal, at_least, refuse};

/// The only major version there is.
const MAJOR: u16 = 0;
/// The newest minor version that is spoken.
const MINOR: u16 = 1;

/// The smallest page there is.
const SMALLEST_PAGE: u64 = 4096;

/// What a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Descriptors beside a message.
    pub(super) descriptors: u64,
    /// Bytes of data in a message.
    pub(super) data: u32,
}

impl Default for Capabilities {
    /// What the protocol says of a client that does not say.
    fn default() -> Self {
        Self { descriptors: 8, data: MAX_DATA }
    }
}

/// Checks the client's version and capabilities. What it takes, and the body of the answer, which
/// allows it `regions` regions of memory and `most` bytes of data in a message.
pub(super) fn version(
    body: &[u8],
    regions: usize,
    most: u32,
) -> Result<(Capabilities, Vec<u8>), Refusal> {
    let mut fields = at_least(body, 4)?;
    let (major, minor) = (fields.half(), fields.half());
    if major != MAJOR {
        return refuse(libc::EINVAL, format!("version {major}.{minor}: {MAJOR}.{MINOR} is spoken"));
    }
    let capabilities = capabilities(fields.0)?;
    let capabilities = Capabilities { data: capabilities.data.min(most), ..capabilities };
    let mut answer = Vec::new();
    answer.extend_from_slice(&MAJOR.to_le_bytes());
    answer.extend_from_slice(&minor.min(MINOR).to_le_bytes());
    let page = rustix::param::page_size();
    let json = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{MAX_DESCRIPTORS},\
         \"max_data_xfer_size\":{most},\"max_dma_maps\":{regions},\"pgsizes\":{page}}}}}\0"
    );
    answer.extend_from_slice(json.as_bytes());
    Ok((capabilities, answer))
}

/// The client's capabilities: JSON that ends in NUL, or nothing.
fn capabilities(bytes: &[u8]) -> Result<Capabilities, Refusal> {
    let Some((last, text)) = bytes.split_last() else { return Ok(Capabilities::default()) };
    if *last != 0 {
        return refuse(libc::EINVAL, "the capabilities do not end in NUL");
    }
    let parsed = serde_json::from_slice(text);
    let parsed: Value = parsed
        .or_else(|error| refuse(libc::EINVAL, format!("the capabilities are no JSON: {error}")))?;
    let Value::Object(all) = parsed else {
        return refuse(libc::EINVAL, "the capabilities are no JSON object");
    };
    object(&all, "capabilities")?.map_or(Ok(Capabilities::default()), checked)
}

/// Checks each capability that has a meaning; others are the client's own.
fn checked(all: &Map<String, Value>) -> Result<Capabilities, Refusal> {
    let default = Capabilities::default();
    let descriptors = number(all, "max_msg_fds", 0, ABSURD_DESCRIPTORS)?;
    let data = number(all, "max_data_xfer_size", 1, ABSURD_DATA)?;
    number(all, "max_dma_maps", 0, u32::MAX.into())?;
    if let Some(sizes) = number(all, "pgsizes", 1, u64::MAX)?
        && sizes % SMALLEST_PAGE != 0
    {
        return refuse(libc::EINVAL, format!("pgsizes {sizes:#x} has sizes that no page has"));
    }
    for name in ["write_multiple", "cmd_multiple"] {
        if all.get(name).is_some_and(|value| !value.is_boolean()) {
            return refuse(libc::EINVAL, format!("{name} is neither true nor false"));
        }
    }
    object(all, "twin_socket")?;
    if let Some(migration) = object(all, "migration")? {
        number(migration, "max_bitmap_size", 0, u64::MAX)?;
        if let Some(size) = number(migration, "pgsize", 1, u64::MAX)?
            && (!size.is_power_of_two() || size < SMALLEST_PAGE)
        {
            return refuse(libc::EINVAL, format!("migration.pgsize {size} is no size of a page"));
        }
    }
    let data = data.map(|data| u32::try_from(data).unwrap_or(u32::MAX).min(MAX_DATA));
    Ok(Capabilities {
        descriptors: descriptors.unwrap_or(default.descriptors),
        data: data.unwrap_or(default.data),
    })
}

fn object<'v>(
    of: &'v Map<String, Value>,
    name: &str,
) -> Result<Option<&'v Map<String, Value>>, Refusal> {
    match of.get(name) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(other) => refuse(libc::EINVAL, format!("{name} is no object: {}", short(other))),
    }
}

fn number(
    of: &Map<String, Value>,
    name: &str,
    least: u64,
    most: u64,
) -> Result<Option<u64>, Refusal> {
    let Some(value) = of.get(name) else { return Ok(None) };
    match value.as_u64() {
        Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => {
            let why = format!("{name} is no number from {least} to {most}: {}", short(value));
            refuse(libc::EINVAL, why)
        }
    }
}

/// The beginning of what came instead, for the log.
fn short(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(json: &str) -> Result<Capabilities, Refusal> {
        version(format!("\0\0\0\0{json}\0").as_bytes(), 1024, MAX_DATA)
            .map(|(capabilities, _)| capabilities)
    }

    #[test]
    fn the_reply_fits_in_the_smallest_request() {
        // QEMU's request has 214 bytes with its header.
        assert!(version(b"\0\0\0\0{}\0", 65_535, MAX_DATA).unwrap().1.len() + 16 <= 214);
    }

    #[test]
    fn the_minor_version_is_the_clients_if_it_is_older() {
        for (asked, answered) in [(0, 0), (1, 1), (9, 1)] {
            assert_eq!(
                version(&[0, 0, asked, 0], 1, MAX_DATA).unwrap().1[..4],
                [0, 0, answered, 0]
            );
        }
    }

    #[test]
    fn what_the_client_takes_is_what_it_says_up_to_what_is_sent() {
        let said = r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":4096,"own":[1]}}"#;
        assert_eq!(taken(said).unwrap(), Capabilities { descriptors: 1, data: 4096 });
        let more = r#"{"capabilities":{"max_data_xfer_size":67108864,"pgsizes":2101248}}"#;
        assert_eq!(taken(more).unwrap(), Capabilities::default());
        assert_eq!(taken("{}").unwrap(), Capabilities::default());
    }
}
