//! CoreFoundation, as far as IOKit's clients here ask for it: strings, and the dictionaries that describe a match.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use darwin_abi::Symbol;

use crate::fail;

/// `kCFAllocatorDefault` is null (CF-1153, CFBase.c).
static ALLOCATOR: usize = 0;

pub(crate) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_kCFAllocatorDefault" => &raw const ALLOCATOR,
    "_CFRetain" => retain as extern "C" fn(_) -> _,
    "_CFRelease" => release as extern "C" fn(_),
    "_CFGetTypeID" => type_id as extern "C" fn(_) -> _,
    "_CFStringGetTypeID" => string_type_id as extern "C" fn() -> _,
    "_CFStringCreateWithCString" => create_string as extern "C" fn(_, _, _) -> _,
    "_CFStringGetCString" => get_string as extern "C" fn(_, _, _, _) -> _,
};

/// kCFStringEncodingUTF8.
const UTF8: u32 = 0x0800_0100;
/// `_kCFRuntimeIDCFString` and `_kCFRuntimeIDCFDictionary` (CF-1153, CFRuntime_Internal.h).
const STRING: usize = 7;
const DICTIONARY: usize = 18;

/// An object.
pub(crate) struct Object {
    references: AtomicUsize,
    pub(crate) value: Value,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    /// `IOServiceMatching`.
    ClassMatch(String),
    /// `IORegistryEntryIDMatching`.
    IdMatch(u64),
}

pub(crate) fn new(value: Value) -> *mut Object {
    Box::into_raw(Box::new(Object { references: AtomicUsize::new(1), value }))
}

/// # Safety
/// An object of this file's that the caller has a reference of.
pub(crate) unsafe fn get<'o>(object: *const Object) -> &'o Object {
    if object.is_null() {
        fail::abort("CoreFoundation was given NULL");
    }
    // SAFETY: the caller's promise.
    unsafe { &*object }
}

extern "C" fn retain(object: *const Object) -> *const Object {
    // SAFETY: the Darwin call's object.
    unsafe { get(object) }.references.fetch_add(1, Ordering::Relaxed);
    object
}

/// Of NULL it ends the process, as on a Mac.
pub(crate) extern "C" fn release(object: *const Object) {
    // SAFETY: the Darwin call's object.
    if unsafe { get(object) }.references.fetch_sub(1, Ordering::AcqRel) == 1 {
        // SAFETY: the last reference is gone.
        drop(unsafe { Box::from_raw(object.cast_mut()) });
    }
}

extern "C" fn type_id(object: *const Object) -> usize {
    // SAFETY: the Darwin call's object.
    match unsafe { get(object) }.value {
        Value::Text(_) => STRING,
        Value::ClassMatch(_) | Value::IdMatch(_) => DICTIONARY,
    }
}

extern "C" fn string_type_id() -> usize {
    STRING
}

extern "C" fn create_string(
    _allocator: *const c_void,
    text: *const c_char,
    encoding: u32,
) -> *mut Object {
    if encoding != UTF8 {
        fail::not_simulated(&format!("a CFString in the encoding {encoding:#x}"));
    }
    // SAFETY: the Darwin call's string.
    match unsafe { CStr::from_ptr(text) }.to_str() {
        Ok(text) => new(Value::Text(text.to_owned())),
        Err(_) => std::ptr::null_mut(),
    }
}

/// True if it fits, with its NUL.
extern "C" fn get_string(
    object: *const Object,
    into: *mut c_char,
    room: isize,
    encoding: u32,
) -> u8 {
    if encoding != UTF8 {
        fail::not_simulated(&format!("a CFString in the encoding {encoding:#x}"));
    }
    // SAFETY: the Darwin call's object.
    let Value::Text(text) = (unsafe { &get(object).value }) else {
        fail::abort("CFStringGetCString of what is no string");
    };
    if usize::try_from(room).is_ok_and(|room| text.len() < room) {
        // SAFETY: the Darwin call's buffer, which has room for the text and a NUL.
        unsafe {
            into.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
            into.add(text.len()).write(0);
        }
        return 1;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_read_where_it_fits_with_its_nul() {
        let text = create_string(std::ptr::null(), c"abc".as_ptr(), UTF8);
        assert_eq!(type_id(text), string_type_id());
        let mut into: [c_char; 4] = [1; 4];
        assert_eq!(get_string(text, into.as_mut_ptr(), 3, UTF8), 0);
        assert_eq!(get_string(text, into.as_mut_ptr(), 4, UTF8), 1);
        assert_eq!(into.map(|byte| byte as u8), *b"abc\0");
        release(retain(text).cast());
        release(text);
    }
}
