//! Arguments, environment and the image's own path, as dyld gives them.

use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt as _;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use darwin_abi::{Symbol, symbols};

use super::runner;
use crate::image::Loaded;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "__NSGetArgc" => argc,
    "__NSGetArgv" => argv,
    "__NSGetEnviron" => environ,
    "__NSGetExecutablePath" => executable_path,
    "__dyld_image_count" => image_count,
    "__dyld_get_image_header" => image_header,
    "__dyld_get_image_name" => image_name,
    "__dyld_get_image_vmaddr_slide" => image_slide,
    "_dlsym" => dlsym,
    "_getenv" => getenv,
};

static ARGC: AtomicI32 = AtomicI32::new(0);
static ARGV: AtomicPtr<*mut c_char> = AtomicPtr::new(std::ptr::null_mut());
static ENVIRON: AtomicPtr<*mut c_char> = AtomicPtr::new(std::ptr::null_mut());

/// A null-terminated array of strings that is never freed.
fn array(strings: impl IntoIterator<Item = CString>) -> *mut *mut c_char {
    let strings = strings.into_iter().map(CString::into_raw);
    let array: Vec<_> = strings.chain([std::ptr::null_mut()]).collect();
    array.leak().as_mut_ptr()
}

type Start = (c_int, *const *mut c_char, *const *mut c_char, *const *mut c_char);

/// Makes them those of this process; what `main` is called with.
pub(crate) fn publish(loaded: &Loaded, words: Vec<OsString>) -> Result<Start, String> {
    let argc = c_int::try_from(words.len()).map_err(|error| error.to_string())?;
    let text = |word: OsString| CString::new(word.into_vec()).map_err(|error| error.to_string());
    let argv = array(words.into_iter().map(text).collect::<Result<Vec<_>, _>>()?);
    let variables = std::env::vars_os().filter(|(name, _)| !runner::is_ours(name));
    let variables = variables.map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        text(name)
    });
    let environ = array(variables.collect::<Result<Vec<_>, _>>()?);
    let path = [b"executable_path=", loaded.path.as_bytes()].concat();
    let apple = array([CString::new(path).map_err(|error| error.to_string())?]);
    ARGC.store(argc, Ordering::Relaxed);
    ARGV.store(argv, Ordering::Relaxed);
    ENVIRON.store(environ, Ordering::Relaxed);
    Ok((argc, argv, environ, apple))
}

extern "C" fn argc() -> *mut c_int {
    ARGC.as_ptr()
}

extern "C" fn argv() -> *mut *mut *mut c_char {
    ARGV.as_ptr()
}

extern "C" fn environ() -> *mut *mut *mut c_char {
    ENVIRON.as_ptr()
}

/// The variables of this process, as the program has them now.
pub(crate) fn current_environment() -> *const *const c_char {
    ENVIRON.load(Ordering::Relaxed).cast_const().cast()
}

unsafe extern "C" fn getenv(name: *const c_char) -> *const c_char {
    // SAFETY: a string of the caller's.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let mut at = current_environment();
    loop {
        // SAFETY: a null-terminated array of strings, which the program keeps so.
        let variable = unsafe { *at };
        if variable.is_null() {
            return std::ptr::null();
        }
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(variable) }.to_bytes();
        if text.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&b'=')) {
            // SAFETY: inside the same string.
            return unsafe { variable.add(name.len() + 1) };
        }
        // SAFETY: not yet at the array's end.
        at = unsafe { at.add(1) };
    }
}

/// 0, or -1 and the size that is needed when the buffer is too small (dyld-1284.13, `DyldAPIs.cpp`).
unsafe extern "C" fn executable_path(buffer: *mut c_char, size: &mut u32) -> c_int {
    let Some(loaded) = Loaded::get() else { return -1 };
    let path = loaded.path.as_bytes_with_nul();
    if (*size as usize) < path.len() {
        *size = path.len() as u32;
        return -1;
    }
    // SAFETY: the caller's buffer, which is large enough.
    unsafe { std::ptr::copy_nonoverlapping(path.as_ptr(), buffer.cast(), path.len()) };
    0
}

extern "C" fn image_count() -> u32 {
    1
}

extern "C" fn image_header(index: u32) -> usize {
    Loaded::get().filter(|_| index == 0).map_or(0, Loaded::base)
}

extern "C" fn image_name(index: u32) -> *const c_char {
    Loaded::get().filter(|_| index == 0).map_or(std::ptr::null(), |loaded| loaded.path.as_ptr())
}

extern "C" fn image_slide(index: u32) -> usize {
    Loaded::get().filter(|_| index == 0).map_or(0, |loaded| loaded.slide)
}

/// Null for what is not implemented, as for a symbol that came with a later macOS: callers go on without.
unsafe extern "C" fn dlsym(_handle: usize, name: *const c_char) -> usize {
    // SAFETY: a string of the caller's.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    crate::imports::find(&format!("_{name}")).unwrap_or(0)
}
