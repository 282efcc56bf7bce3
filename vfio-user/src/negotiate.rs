//! VERSION: what both sides can do.
//!
//! The reply is short: QEMU takes none that is longer than its own request. `write_multiple` and
//! `twin_socket` are left out: no client needs them.

use crate::protocol::{MAX_DATA, MAX_DESCRIPTORS, MAX_MAPS, Refusal, at_least, refuse};

/// The only major version there is.
const MAJOR: u16 = 0;
/// The newest minor version that is spoken.
const MINOR: u16 = 1;

/// Checks the client's version and capabilities; the body of the answer.
pub(super) fn version(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut fields = at_least(body, 4)?;
    let (major, minor) = (fields.half(), fields.half());
    if major != MAJOR {
        return refuse(libc::EINVAL, format!("version {major}.{minor}: {MAJOR}.{MINOR} is spoken"));
    }
    capabilities(fields.0)?;
    let mut answer = Vec::new();
    answer.extend_from_slice(&MAJOR.to_le_bytes());
    answer.extend_from_slice(&minor.min(MINOR).to_le_bytes());
    let json = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{MAX_DESCRIPTORS},\
         \"max_data_xfer_size\":{MAX_DATA},\"max_dma_maps\":{MAX_MAPS},\
         \"pgsizes\":4096,\"migration\":{{\"pgsize\":4096}}}}}}\0"
    );
    answer.extend_from_slice(json.as_bytes());
    Ok(answer)
}

/// The client's capabilities: JSON that ends in NUL, or nothing. What it says bounds what it is
/// sent, which is never more than one descriptor and what it asked for.
fn capabilities(bytes: &[u8]) -> Result<(), Refusal> {
    let Some((last, text)) = bytes.split_last() else { return Ok(()) };
    if *last != 0 {
        return refuse(libc::EINVAL, "the capabilities do not end in NUL");
    }
    match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(value) if value.is_object() => Ok(()),
        Ok(_) => refuse(libc::EINVAL, "the capabilities are no JSON object"),
        Err(error) => refuse(libc::EINVAL, format!("the capabilities are no JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_fits_in_the_smallest_request() {
        // QEMU's request has 214 bytes with its header.
        assert!(version(b"\0\0\0\0{}\0").unwrap().len() + 16 <= 214);
    }

    #[test]
    fn the_minor_version_is_the_clients_if_it_is_older() {
        assert_eq!(version(&[0, 0, 0, 0]).unwrap()[..4], [0, 0, 0, 0]);
        assert_eq!(version(&[0, 0, 1, 0]).unwrap()[..4], [0, 0, 1, 0]);
        assert_eq!(version(&[0, 0, 9, 0]).unwrap()[..4], [0, 0, 1, 0]);
    }
}
