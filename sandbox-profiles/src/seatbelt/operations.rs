//! The operations of the language that our profiles and probes name, and those that (deny default)
//! forgets.

/// Operations, those that we name.
pub(super) const OPERATIONS: &[&str] = &[
    "file-map-executable",
    "file-mount",
    "file-read-data",
    "file-read-metadata",
    "file-read-xattr",
    "file-write-create",
    "file-write-data",
    "file-write-unlink",
    "hid-control",
    "iokit-get-properties",
    "iokit-open-service",
    "iokit-open-user-client",
    "iokit-set-properties",
    "ipc-posix-sem",
    "ipc-posix-shm-read-data",
    "ipc-posix-shm-read-metadata",
    "ipc-posix-shm-write-create",
    "mach-lookup",
    "mach-priv-task-port",
    "mach-register",
    "mach-task-special-port-get",
    "mach-task-special-port-set",
    "network-bind",
    "network-inbound",
    "network-outbound",
    "nvram-get",
    "nvram-set",
    "process-exec",
    "process-exec-interpreter",
    "process-fork",
    "process-info-listpids",
    "process-info-pidfdinfo",
    "process-info-pidinfo",
    "process-info-setcontrol",
    "signal",
    "syscall-mach",
    "syscall-mig",
    "syscall-unix",
    "sysctl-read",
    "sysctl-write",
    "system-fcntl",
    "system-kext-load",
    "system-mac-syscall",
    "system-privilege",
    "system-socket",
];

/// Operations that (deny default) leaves open, in a profile of either version. That a profile of version
/// 3 closes some of them by itself is not relied on: all are denied by name.
pub(super) const LEFT_OPEN: &[&str] = &[
    "iokit-get-properties",
    "process-info*",
    "nvram*",
    "file-map-executable",
    "syscall-unix",
    "syscall-mach",
    "syscall-mig",
    "system-fcntl",
    "system-mac-syscall",
    "system-privilege",
    "mach-task-special-port-*",
];

/// What each of [`LEFT_OPEN`] says.
pub(super) fn left_open(operation: &str) -> bool {
    LEFT_OPEN.iter().any(|open| names(open, operation))
}

/// Whether a rule's operation, which may end in a star, names `operation`.
pub(super) fn names(pattern: &str, operation: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => operation.starts_with(prefix),
        None => pattern == operation,
    }
}
