//! Bytes, texts, and numbers.

use std::ffi::{c_char, c_int};

use darwin_abi::{Symbol, error, symbols, to_linux};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_memcpy" => libc::memcpy,
    "_memmove" => libc::memmove,
    "_memset" => libc::memset,
    "_memcmp" => libc::memcmp,
    "_bzero" => bzero,
    "_memset_pattern16" => memset_pattern16,
    "_strlen" => libc::strlen,
    "_strerror_r" => strerror_r,
    "_fmod" => fmod,
    "_log" => log,
    "_log10" => log10,
    "_pow" => pow,
    "___exp10" => exp10,
};

unsafe extern "C" fn bzero(place: *mut u8, size: usize) {
    // SAFETY: the caller's memory.
    unsafe { place.write_bytes(0, size) };
}

unsafe extern "C" fn memset_pattern16(place: *mut u8, pattern: *const u8, size: usize) {
    for at in (0..size).step_by(16) {
        // SAFETY: the caller's memory and its pattern of 16 bytes; the last copy is not longer than what is left.
        unsafe { std::ptr::copy_nonoverlapping(pattern, place.add(at), 16.min(size - at)) };
    }
}

/// EINVAL and a text all the same for a number that is none, ERANGE and what fits when it is too long.
unsafe extern "C" fn strerror_r(errno: c_int, buffer: *mut c_char, size: usize) -> c_int {
    if size == 0 {
        return error::ERANGE;
    }
    let known = (0..=106).contains(&errno);
    let text = if known {
        // std's own text ends with the Linux number.
        let text = std::io::Error::from_raw_os_error(to_linux(errno)).to_string();
        text.split(" (os error").next().unwrap_or_default().to_owned()
    } else {
        format!("Unknown error: {errno}")
    };
    let length = text.len().min(size - 1);
    // SAFETY: the caller's buffer; one byte of it is left for the end.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), length);
        buffer.add(length).write(0);
    }
    match (known, length < text.len()) {
        (_, true) => error::ERANGE,
        (true, false) => 0,
        (false, false) => error::EINVAL,
    }
}

extern "C" fn fmod(x: f64, y: f64) -> f64 {
    x % y
}

extern "C" fn log(x: f64) -> f64 {
    x.ln()
}

extern "C" fn log10(x: f64) -> f64 {
    x.log10()
}

extern "C" fn pow(x: f64, y: f64) -> f64 {
    x.powf(y)
}

/// Darwin's own name (`math.h` of macOS 10.9 and later): compilers make it of a power of ten.
extern "C" fn exp10(x: f64) -> f64 {
    10f64.powf(x)
}
