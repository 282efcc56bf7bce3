//! Exit statuses, the same in every program. Where sysexits.h has a number for it, it is that one,
//! so that service managers have a name for it.

/// Everything was done.
pub const DONE: u8 = 0;
/// It failed; one line on standard error says why.
pub const FAILED: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// Nothing failed as far as is known, and not everything is known.
pub const UNKNOWN: u8 = 3;
/// Nothing is left to serve (EX_UNAVAILABLE).
pub const NOTHING_LEFT: u8 = 69;
/// No server answers (EX_UNAVAILABLE).
pub const NO_SERVER: u8 = 69;
/// It did not stop in order in time, and its child processes were killed (EX_SOFTWARE).
pub const FORCED: u8 = 70;
/// What was printed cannot be written (EX_IOERR).
pub const UNWRITTEN: u8 = 74;
/// Added to the number of a signal that ended the program, after it cleaned up.
pub const SIGNAL: u8 = 128;

/// For the end of `--help`.
pub const HELP: &str = "\
Exit status:
    0  done
    1  failed; one line on standard error says why
    2  the command line makes no sense
   74  standard output cannot be written (closed pipe, full disk)
  129, 130, 143
       ended by SIGHUP, SIGINT or SIGTERM, after cleaning up";

/// For the end of `--help` of a command that asks a server.
pub const CONTROL_HELP: &str = "\
Exit status:
    0  done
    1  the server did not do it; one line on standard error says why
    2  the command line makes no sense
   69  no cordon serve answers at the control socket
   74  standard output cannot be written (closed pipe, full disk)";

/// For the end of `--help` of a program that serves until it is stopped.
pub const SERVICE_HELP: &str = "\
Exit status:
    0  stopped in order, by SIGINT, SIGTERM or SIGHUP
    1  failed; one line on standard error says why
    2  the command line makes no sense
   69  every function was given up, and there is no --control socket to revive them
       by, or --exit-when-given-up was said
   70  did not stop in order within two seconds: its child processes were killed
   74  stopped in order, but some output could not be written";
