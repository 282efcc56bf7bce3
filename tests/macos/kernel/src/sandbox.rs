//! Seatbelt: `sandbox_*` of libsystem_sandbox, over the profile checker of cordon-sandbox-profiles. The profile is
//! evaluated in the process that it confines, wherever the runner or this library sees a call that it mediates; the
//! kernel process knows it too, for children and for whoever asks from outside.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use cordon_sandbox_profiles::seatbelt::{Profile, Target};
use darwin_abi::{Symbol, error};

use crate::client::ask;
use crate::codes::{Code, kern};
use crate::fail;
use crate::wire::{Reply, Request};

pub(crate) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_sandbox_init" => init as extern "C" fn(_, _, _) -> _,
    "_sandbox_init_with_parameters" => init_with_parameters as extern "C" fn(_, _, _, _) -> _,
    "_sandbox_free_error" => free_error as extern "C" fn(_),
    "_sandbox_check" => check as extern "C" fn(_, _, _, _, _, _, _, _, _) -> _,
};

/// What this process is confined by.
static PROFILE: OnceLock<Profile> = OnceLock::new();
/// Applying is done once.
static APPLYING: Mutex<()> = Mutex::new(());

/// `sandbox_init`'s SANDBOX_NAMED.
const NAMED: u64 = 1;

/// Takes over what this process was born with.
pub(crate) fn start() {
    if let Reply::Confinement(Some((text, parameters))) =
        ask(&Request::Confinement { pid: std::process::id() })
        && let Ok(profile) = parse(&text, &parameters)
    {
        let _ = PROFILE.set(profile);
    }
}

fn parse(text: &str, parameters: &[(String, String)]) -> Result<Profile, String> {
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Profile::parse(text, &parameters).map_err(|error| error.to_string())
}

/// Whether a profile lets `operation` happen on `target`.
fn allows(profile: &Profile, operation: &str, target: &Target<'_>) -> Option<bool> {
    profile.allows(operation, target).ok()
}

/// Whether this process may. True while it is not confined. An operation that the checker does not know ends the
/// process: nobody knows what the system would say.
pub(crate) fn may(operation: &str, target: &Target<'_>) -> bool {
    let Some(profile) = PROFILE.get() else { return true };
    if let Target::Call(call) = target {
        return may_call(profile, operation, call);
    }
    match allows(profile, operation, target) {
        Some(allowed) => allowed,
        None => fail::not_simulated(&format!("the sandbox operation {operation}")),
    }
}

/// KERN_DENIED where the profile's finite lists do not have a Mach trap (osfmk/kern/task.c
/// `mac_task_mach_trap_evaluate`), by its constant of osfmk/mach/mach_traps.h.
pub(crate) fn trap(name: &str) -> Result<(), Code> {
    call("syscall-mach", name)
}

/// The same for a routine of the kernel's that MIG calls (osfmk/kern/ipc_kobject.c,
/// `mac_task_kobj_msg_evaluate`).
pub(crate) fn routine(name: &str) -> Result<(), Code> {
    call("syscall-mig", name)
}

fn call(operation: &str, name: &str) -> Result<(), Code> {
    if may(operation, &Target::Call(name)) {
        return Ok(());
    }
    let _ = writeln!(std::io::stderr(), "[mach] Sandbox: deny {operation} {name}");
    Err(kern::DENIED)
}

/// As [`may`], for a call, which is asked for each time: the answers are kept. A constant is of one operation only.
fn may_call(profile: &Profile, operation: &str, call: &str) -> bool {
    static KNOWN: RwLock<Option<HashMap<String, bool>>> = RwLock::new(None);
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(allowed) = known.as_ref().and_then(|known| known.get(call)) {
        return *allowed;
    }
    drop(known);
    match allows(profile, operation, &Target::Call(call)) {
        Some(allowed) => {
            let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
            let is_new = known.get_or_insert_default().insert(call.to_owned(), allowed).is_none();
            drop(known);
            if is_new && allowed {
                let (operation, call) = (operation.to_owned(), call.to_owned());
                ask(&Request::Seen { operation, call });
            }
            allowed
        }
        None => fail::not_simulated(&format!("the sandbox operation {operation}")),
    }
}

/// As [`may`], for an object by its name: what kind of object it is follows from the operation.
pub(crate) fn permits(operation: &str, object: &str) -> bool {
    let target = match operation {
        _ if operation.starts_with("file-") || operation.starts_with("process-exec") => {
            Target::Path(object)
        }
        _ if operation.starts_with("iokit-open") => Target::Class(object),
        _ if operation.starts_with("syscall-") || operation == "system-fcntl" => {
            Target::Call(object)
        }
        _ if operation.starts_with("process-info") || operation == "signal" => match object {
            "self" => Target::OwnProcess,
            _ => Target::OtherProcess,
        },
        _ if object.is_empty() => Target::Nothing,
        _ => Target::Name(object),
    };
    may(operation, &target)
}

/// # Safety
/// `text` is a string that ends in NUL, or null.
unsafe fn string(text: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

extern "C" fn init(profile: *const c_char, flags: u64, said: *mut *mut c_char) -> c_int {
    init_with_parameters(profile, flags, std::ptr::null(), said)
}

/// Applies a profile for good. For a second time it is refused with EPERM, as the kernel does
/// (`deny(1) forbidden-sandbox-reinit`).
extern "C" fn init_with_parameters(
    profile: *const c_char,
    flags: u64,
    parameters: *const *const c_char,
    said: *mut *mut c_char,
) -> c_int {
    if flags & NAMED != 0 || flags != 0 {
        fail::not_simulated(&format!("sandbox_init with the flags {flags:#x}"));
    }
    // SAFETY: the Darwin call's string.
    let Some(text) = (unsafe { string(profile) }) else {
        return refuse(said, error::EINVAL, "no profile");
    };
    let mut words = Vec::new();
    let mut at = parameters;
    // SAFETY: the Darwin call's list of strings, which ends in null.
    while let Some(word) = unsafe { (!at.is_null()).then(|| string(*at)).flatten() } {
        words.push(word);
        // SAFETY: as above; this was not its end.
        at = unsafe { at.add(1) };
    }
    if words.len() % 2 != 0 {
        return refuse(said, error::EINVAL, "a parameter without a value");
    }
    let pairs = words.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    apply(text, pairs, said)
}

fn apply(text: String, parameters: Vec<(String, String)>, said: *mut *mut c_char) -> c_int {
    let _one = APPLYING.lock().unwrap_or_else(PoisonError::into_inner);
    if PROFILE.get().is_some() {
        return refuse(said, error::EPERM, "Operation not permitted");
    }
    let profile = match parse(&text, &parameters) {
        Ok(profile) => profile,
        Err(why) => return refuse(said, error::EINVAL, &why),
    };
    match ask(&Request::Confine { profile: text, parameters }) {
        Reply::Done { was_last: true } => {}
        Reply::Done { was_last: false } => {
            return refuse(said, error::EPERM, "Operation not permitted");
        }
        other => fail::not_simulated(&format!("an answer to a profile: {other:?}")),
    }
    let _ = PROFILE.set(profile);
    if !said.is_null() {
        // SAFETY: the Darwin call's place for a string.
        unsafe { *said = std::ptr::null_mut() };
    }
    0
}

fn refuse(said: *mut *mut c_char, errno: c_int, why: &str) -> c_int {
    if !said.is_null() {
        let why = CString::new(why.replace('\0', "")).unwrap_or_default();
        // SAFETY: the Darwin call's place for a string, which `free_error` frees.
        unsafe { *said = why.into_raw() };
    }
    darwin_abi::fail(errno)
}

extern "C" fn free_error(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: a string of `refuse`, freed once.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// `sandbox_filter_type`: what the variadic argument is.
const NONE: c_int = 0;
const PATH: c_int = 1;
const GLOBAL_NAME: c_int = 2;
/// SANDBOX_CHECK_NO_REPORT.
const NO_REPORT: c_int = 0x4000_0000;

/// `sandbox_check`: 0 allowed, 1 denied, -1 with errno for what cannot be asked. Without an operation: whether the
/// process is confined at all. The variadic argument is the first on the stack.
extern "C" fn check(
    pid: c_int,
    operation: *const c_char,
    kind: c_int,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    argument: *const c_char,
) -> c_int {
    // The question is a call of the policy's own: __mac_syscall "Sandbox".
    if !may("system-mac-syscall", &Target::Nothing) {
        return darwin_abi::fail(error::EPERM);
    }
    let pid = u32::try_from(pid).unwrap_or_default();
    let profile = match ask(&Request::Confinement { pid }) {
        Reply::NoProcess => return darwin_abi::fail(error::ESRCH),
        Reply::Confinement(None) => None,
        Reply::Confinement(Some((text, parameters))) => match parse(&text, &parameters) {
            Ok(profile) => Some(profile),
            Err(why) => fail::not_simulated(&format!("a profile of another process: {why}")),
        },
        other => fail::not_simulated(&format!("an answer to sandbox_check: {other:?}")),
    };
    // SAFETY: the Darwin call's string, or null.
    let Some(operation) = (unsafe { string(operation) }) else {
        return c_int::from(profile.is_some());
    };
    // Of this one libsandbox never knows the answer; of the same with a star it does (seen by others, macOS 26).
    if operation == "process-exec" {
        return darwin_abi::fail(error::EINVAL);
    }
    let argument = match kind & !NO_REPORT {
        NONE => None,
        // SAFETY: these filters take one string.
        PATH | GLOBAL_NAME => unsafe { string(argument) },
        other => fail::not_simulated(&format!("sandbox_check with a filter of type {other}")),
    };
    let target = match (kind & !NO_REPORT, &argument) {
        (PATH, Some(path)) => Target::Path(path),
        (GLOBAL_NAME, Some(name)) => Target::Name(name),
        _ => Target::Nothing,
    };
    let operation =
        operation.strip_suffix("exec*").map_or(operation.clone(), |_| "process-exec".to_owned());
    // An operation must be one also where nothing confines.
    static ANY: OnceLock<Profile> = OnceLock::new();
    let any = ANY.get_or_init(|| match Profile::parse("(version 1)\n(deny default)", &[]) {
        Ok(profile) => profile,
        Err(why) => fail::not_simulated(&format!("the smallest profile: {why}")),
    });
    if allows(any, &operation, &target).is_none() {
        return darwin_abi::fail(error::EINVAL);
    }
    match profile.and_then(|profile| allows(&profile, &operation, &target)) {
        None | Some(true) => 0,
        Some(false) => 1,
    }
}
