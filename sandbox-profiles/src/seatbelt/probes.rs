//! Questions to a profile, with the answers that they must have.

use super::Target;

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// An operation.
    pub operation: &'static str,
    /// What it is tried on.
    pub target: Target<'static>,
    /// Whether a process that confined itself may.
    pub confined: bool,
    /// Whether one may that confined itself by the profile of version 1.
    pub fallback: bool,
    /// Whether a process that was started confined may.
    pub launched: bool,
}

const fn never(operation: &'static str, target: Target<'static>) -> Probe {
    Probe { operation, target, confined: false, fallback: false, launched: false }
}

const fn both(operation: &'static str, target: Target<'static>) -> Probe {
    Probe { operation, target, confined: true, fallback: true, launched: true }
}

const fn launched(operation: &'static str, target: Target<'static>) -> Probe {
    Probe { operation, target, confined: false, fallback: false, launched: true }
}

/// Only lists of calls deny it.
const fn by_lists(operation: &'static str, call: &'static str) -> Probe {
    let target = Target::Call(call);
    Probe { operation, target, confined: false, fallback: true, launched: true }
}

use Target::{Call, Class, Nothing, OtherProcess, OwnProcess, Path};

/// Every question.
pub const PROBES: &[Probe] = &[
    // A dext, or any other driver, again.
    launched("iokit-open-service", Class("IOUserService")),
    never("iokit-open-service", Class("IOSurfaceRoot")),
    never("iokit-open-service", Class("AppleKeyStore")),
    launched("iokit-open-user-client", Class("IOUserUserClient")),
    never("iokit-open-user-client", Class("IOSurfaceRootUserClient")),
    never("iokit-open-user-client", Class("AppleKeyStoreUserClient")),
    never("iokit-open-user-client", Class("RootDomainUserClient")),
    launched("iokit-get-properties", Target::Name("IOUserClass")),
    launched("iokit-get-properties", Target::Name("IOUserClientCreator")),
    never("iokit-get-properties", Target::Name("IOPlatformSerialNumber")),
    never("iokit-get-properties", Target::Name("IOMACAddress")),
    never("iokit-set-properties", Target::Name("IOUserClass")),
    // Files.
    never("file-read-data", Path("/etc/passwd")),
    never("file-read-data", Path("/Users/someone/.ssh/id_ed25519")),
    never("file-read-metadata", Path("/Users/someone")),
    never("file-read-data", Path("/private/var/db/dslocal/nodes/Default/users/root.plist")),
    never("file-read-data", Path("/dev/disk0")),
    launched("file-read-data", Path("/opt/cordon/device-proc")),
    launched("file-read-data", Path("/usr/lib/libobjc.A.dylib")),
    launched("file-read-data", Path("/System/Library/Frameworks/IOKit.framework/IOKit")),
    launched("file-read-data", Path("/dev/null")),
    never("file-read-data", Path("/usr/libexec/path_helper")),
    never("file-write-data", Path("/opt/cordon/device-proc")),
    never("file-write-create", Path("/tmp/x")),
    never("file-write-unlink", Path("/tmp/x")),
    never("file-write-data", Path("/dev/null")),
    launched("file-map-executable", Path("/usr/lib/libobjc.A.dylib")),
    never("file-map-executable", Path("/tmp/evil.dylib")),
    // Programs.
    launched("process-exec", Path("/opt/cordon/device-proc")),
    never("process-exec", Path("/bin/sh")),
    never("process-exec-interpreter", Path("/bin/sh")),
    never("process-fork", Nothing),
    // Other processes.
    both("signal", OwnProcess),
    never("signal", OtherProcess),
    both("process-info-pidinfo", OwnProcess),
    never("process-info-pidinfo", OtherProcess),
    never("process-info-listpids", Nothing),
    never("process-info-pidfdinfo", OtherProcess),
    both("process-info-setcontrol", OwnProcess),
    never("process-info-setcontrol", OtherProcess),
    never("mach-priv-task-port", OtherProcess),
    // Services.
    never("mach-lookup", Target::Name("com.apple.windowserver.active")),
    never("mach-lookup", Target::Name("com.apple.SecurityServer")),
    never("mach-lookup", Target::Name("com.apple.system.opendirectoryd.libinfo")),
    never("mach-lookup", Target::Name("com.apple.logd")),
    never("mach-register", Target::Name("org.example.cordon")),
    never("ipc-posix-shm-read-data", Target::Name("/someone-elses")),
    never("ipc-posix-shm-write-create", Target::Name("/own")),
    never("ipc-posix-sem", Target::Name("/sem")),
    // The network.
    never("network-outbound", Nothing),
    never("network-inbound", Nothing),
    never("network-bind", Nothing),
    never("system-socket", Nothing),
    // The machine.
    both("sysctl-read", Target::Name("hw.pagesize")),
    both("sysctl-read", Target::Name("kern.usrstack64")),
    never("sysctl-read", Target::Name("kern.hostname")),
    never("sysctl-read", Target::Name("kern.proc.all")),
    never("sysctl-write", Target::Name("kern.hostname")),
    never("nvram-get", Target::Name("boot-args")),
    never("nvram-set", Target::Name("boot-args")),
    never("hid-control", Nothing),
    never("system-kext-load", Nothing),
    never("file-mount", Path("/Volumes/x")),
    never("system-privilege", Nothing),
    never("mach-task-special-port-set", Nothing),
    launched("mach-task-special-port-get", Nothing),
    launched("system-mac-syscall", Nothing),
    never("ipc-posix-shm-read-metadata", Target::Name("/someone-elses")),
    // Calls.
    both("system-fcntl", Call("F_SETFD")),
    launched("system-fcntl", Call("F_GETPATH")),
    launched("system-fcntl", Call("F_ADDFILESIGS_RETURN")),
    both("syscall-unix", Call("SYS_poll")),
    both("syscall-unix", Call("SYS_recvmsg")),
    both("syscall-mach", Call("MSC_mach_msg2_trap")),
    both("syscall-mig", Call("io_connect_method")),
    by_lists("syscall-unix", "SYS_open"),
    by_lists("syscall-unix", "SYS_socket"),
    by_lists("syscall-unix", "SYS_connect"),
    by_lists("syscall-unix", "SYS_fork"),
    by_lists("syscall-unix", "SYS_execve"),
    by_lists("syscall-unix", "SYS_posix_spawn"),
    by_lists("syscall-unix", "SYS_kill"),
    by_lists("syscall-unix", "SYS_ptrace"),
    by_lists("syscall-unix", "SYS_shm_open"),
    by_lists("syscall-unix", "SYS_ioctl"),
    by_lists("syscall-unix", "SYS___mac_syscall"),
    by_lists("syscall-mach", "MSC_task_for_pid"),
    by_lists("syscall-mach", "MSC_pid_for_task"),
    by_lists("syscall-mach", "MSC_iokit_user_client_trap"),
    by_lists("syscall-mig", "io_service_open_extended"),
    by_lists("syscall-mig", "task_set_special_port"),
    by_lists("syscall-mig", "mach_ports_register"),
    by_lists("syscall-mig", "host_request_notification"),
];
