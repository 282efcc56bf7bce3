//! Names of hosts: numbers and `localhost`, since no test may ask a network.

use std::ffi::{CStr, c_char, c_int};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use darwin_abi::{Symbol, symbols};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_getaddrinfo" => getaddrinfo,
    "_freeaddrinfo" => freeaddrinfo,
    "_gai_strerror" => gai_strerror,
};

const NO_NAME: c_int = 8;

/// `struct addrinfo`, whose name comes before the address.
#[repr(C)]
struct Info {
    flags: c_int,
    family: c_int,
    kind: c_int,
    protocol: c_int,
    length: u32,
    name: *mut c_char,
    address: *mut u8,
    next: *mut Info,
}

/// An entry and what it points to.
#[repr(C)]
struct Entry {
    info: Info,
    address: [u8; 28],
}

unsafe extern "C" fn getaddrinfo(
    host: *const c_char,
    service: *const c_char,
    hints: *const Info,
    to: *mut *mut Info,
) -> c_int {
    // SAFETY: the caller's strings, which may be null, and its hints.
    let (host, service, hints) = unsafe {
        let text = |text: *const c_char| {
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        (text(host), text(service), hints.as_ref())
    };
    let port: u16 = match service.map_or(Ok(0), |service| service.parse()) {
        Ok(port) => port,
        Err(_) => return NO_NAME,
    };
    let ip = match host.as_deref() {
        None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(host) => match host.parse() {
            Ok(ip) => ip,
            Err(_) => return NO_NAME,
        },
    };
    let (kind, protocol) =
        hints.map_or((libc::SOCK_STREAM, 0), |hints| (hints.kind, hints.protocol));
    let mut address = [0; 28];
    let (family, length) = match ip {
        IpAddr::V4(ip) => {
            address[4..8].copy_from_slice(&ip.octets());
            (super::AF_INET, 16)
        }
        IpAddr::V6(ip) => {
            let octets: [u8; 16] = Ipv6Addr::octets(&ip);
            address[8..24].copy_from_slice(&octets);
            (super::AF_INET6, 28)
        }
    };
    address[0] = length as u8;
    address[1] = family as u8;
    address[2..4].copy_from_slice(&port.to_be_bytes());
    let (name, next) = (std::ptr::null_mut(), std::ptr::null_mut());
    let info = Info {
        flags: 0,
        family,
        kind: if kind == 0 { libc::SOCK_STREAM } else { kind },
        protocol,
        length,
        name,
        address: std::ptr::null_mut(),
        next,
    };
    let entry = Box::into_raw(Box::new(Entry { info, address }));
    // SAFETY: the entry that was just made, and the caller's place.
    unsafe {
        (*entry).info.address = (&raw mut (*entry).address).cast();
        to.write(entry.cast());
    }
    0
}

unsafe extern "C" fn freeaddrinfo(info: *mut Info) {
    if !info.is_null() {
        // SAFETY: made by getaddrinfo, which gives one entry, and given up by the caller.
        drop(unsafe { Box::from_raw(info.cast::<Entry>()) });
    }
}

extern "C" fn gai_strerror(error: c_int) -> *const c_char {
    let text = match error {
        NO_NAME => c"nodename nor servname provided, or not known",
        _ => c"Unknown error",
    };
    text.as_ptr()
}
