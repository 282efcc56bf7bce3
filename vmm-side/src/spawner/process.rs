//! The spawner's own process: takes its grant, and then one request after the other until the server is
//! gone.
//!
//! It distrusts whoever asks. It has one thread, no signal ends it but a kill, since whoever stops a
//! service signals all of its processes and it is the last one that is needed; the kernel kills it with
//! the server.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use ipc::poll::{self, Source};
use ipc::socket_file::{Access, LeftFile};
use ipc::wire::handshake;
use ipc::wire::spawn::{
    Grant, MAX_FUNCTIONS, MAX_GRANTED_PATH, MAX_GRANTED_SOCKETS, Reply, Request, Role,
};
use ipc::{Deadline, Handles, MemoryInbox, SocketFile, Tube, TubeError};
use rustix::fs::FileType;

use super::programs::Programs;
use super::{SpawnerError, TIMEOUT, arguments};
use crate::child::{Isolation, Start};
use crate::limits::MAX_RUNNING;
use crate::sys::{self, Birth};

/// Serves the socket until whoever has the other end is gone. For a process of its own with one thread,
/// which does nothing else.
///
/// # Errors
/// [`SpawnerError`] when it cannot begin, or what came is no message.
pub fn run(socket: OwnedFd) -> Result<(), SpawnerError> {
    sys::become_spawner().map_err(SpawnerError::Start)?;
    let mut tube = Tube::from_fd(socket);
    let deadline = Deadline::after(TIMEOUT);
    tube.handshake(handshake::Role::Spawner, handshake::Role::Vmm, deadline)?;
    let grant = tube.receive::<Grant>(deadline)?.message;
    let checked = check(&grant).and_then(|()| match grant.user {
        Some(user) => {
            sys::be_killed_by(user).map_err(|error| format!("Cannot be another user: {error}"))
        }
        None => Ok(()),
    });
    if let Err(why) = checked {
        return Ok(tube.send(0, &Reply::Refused(why), &[], deadline)?);
    }
    // Its children need not make one each.
    sys::leave_network();
    tube.send(0, &Reply::Granted, &[], deadline)?;
    let made = grant.sockets.iter().map(|_| None).collect();
    let programs = Programs::new(&grant.program);
    Serving { tube, grant, programs, made, running: Vec::new() }.serve()
}

fn check(grant: &Grant) -> Result<(), String> {
    let paths = grant.sockets.iter().chain([&grant.program, &grant.dext]);
    let fits = grant.devices.len() <= MAX_FUNCTIONS
        && grant.sockets.len() <= MAX_GRANTED_SOCKETS
        && grant.socket_mode <= 0o777
        && paths.into_iter().all(|path| path.len() <= MAX_GRANTED_PATH && !path.contains(&0));
    if !fits {
        return Err("the grant makes no sense".to_owned());
    }
    if !["handed", "described", "trapped"].contains(&grant.windows.as_str()) {
        return Err(format!("'{}' is no way of windows", grant.windows));
    }
    Ok(())
}

/// A child that was started: its pidfd, and what is dropped when it has ended.
struct Running {
    pidfd: OwnedFd,
    _group: sys::ChildGroup,
}

struct Serving {
    tube: Tube,
    grant: Grant,
    programs: Programs,
    /// Files of the sockets that were made, by number.
    made: Vec<Option<LeftFile>>,
    running: Vec<Running>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Tube,
    Ended(usize),
}

impl Serving {
    fn serve(mut self) -> Result<(), SpawnerError> {
        loop {
            let mut sources = vec![Source::readable(&self.tube, Token::Tube)];
            for (at, child) in self.running.iter().enumerate() {
                sources.push(Source::readable(&child.pidfd, Token::Ended(at)));
            }
            let ready = poll::wait(&sources, None).map_err(SpawnerError::Start)?;
            // From the last one, so that numbers stay what they are.
            for token in ready.iter().rev() {
                match *token {
                    Token::Ended(at) => drop(self.running.swap_remove(at)),
                    Token::Tube => {
                        if !self.one()? {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Takes one request; whether there may be another.
    fn one(&mut self) -> Result<bool, SpawnerError> {
        let frame = match self.tube.receive_frame(Deadline::now()) {
            Ok(frame) => frame,
            Err(TubeError::Disconnected) => return Ok(false),
            Err(TubeError::TimedOut) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let (id, request) = (frame.id, frame.decode::<Request>());
        let beside = frame.handles;
        let mut handles = Vec::new();
        let reply = request.map_err(|error| ipc::chain(&error));
        let reply = reply.and_then(|request| self.carry_out(&request, beside, &mut handles));
        let reply = reply.unwrap_or_else(Reply::Refused);
        let borrowed: Vec<BorrowedFd<'_>> = handles.iter().map(|fd| fd.as_fd()).collect();
        match self.tube.send(id, &reply, &borrowed, Deadline::after(TIMEOUT)) {
            Ok(()) => Ok(true),
            Err(TubeError::Disconnected) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn carry_out(
        &mut self,
        request: &Request,
        mut beside: Handles,
        handles: &mut Vec<OwnedFd>,
    ) -> Result<Reply, String> {
        let expected = match request {
            Request::Start { .. } => 2,
            Request::Program => 1,
            Request::Listen(_) | Request::Remove(_) | Request::Forget(_) => 0,
        };
        beside.expect(expected).map_err(|error| error.to_string())?;
        match request {
            Request::Start { address, role, program } => {
                self.start(*address, role, *program, beside, handles)
            }
            Request::Program if !self.grant.programs => {
                Err("no other program may be given: this server has no control socket".to_owned())
            }
            Request::Program => {
                let file = beside.next().ok_or("a program comes as a descriptor")?;
                Ok(Reply::Program(self.programs.add(file)?))
            }
            Request::Forget(number) => {
                self.programs.forget(*number);
                Ok(Reply::Forgotten)
            }
            Request::Listen(number) => {
                let at = self.socket(*number)?;
                let path = PathBuf::from(OsStr::from_bytes(&self.grant.sockets[at]));
                let access =
                    Access { mode: self.grant.socket_mode, group: self.grant.socket_group };
                let made = SocketFile::listen_for(&path, access);
                let made = made.map_err(|error| ipc::chain(&error))?;
                let left = made.leave().map_err(|error| error.to_string())?;
                handles.push(left.0);
                self.made[at] = Some(left.1);
                Ok(Reply::Listening)
            }
            Request::Remove(number) => {
                let at = self.socket(*number)?;
                if let Some(file) = self.made[at].take() {
                    file.remove();
                }
                Ok(Reply::Removed)
            }
        }
    }

    /// The place of a socket of the grant.
    fn socket(&self, number: u32) -> Result<usize, String> {
        let at = usize::try_from(number).ok().filter(|at| *at < self.made.len());
        at.ok_or_else(|| format!("{number} is none of the sockets that were named at the start"))
    }

    fn start(
        &mut self,
        address: ipc::PciAddress,
        role: &Role,
        program: u32,
        mut beside: Handles,
        handles: &mut Vec<OwnedFd>,
    ) -> Result<Reply, String> {
        let most = MAX_RUNNING * self.grant.devices.len();
        if self.running.len() >= most {
            return Err(format!("{most} processes run already"));
        }
        let left = sys::has_left_network();
        let arguments = arguments::write(&self.grant, address, role, left)?;
        let wrong = || "a pipe and a socket belong to a process".to_owned();
        let (stderr, tube) = (beside.next().ok_or_else(wrong)?, beside.next().ok_or_else(wrong)?);
        if !is(&stderr, FileType::Fifo) || !is(&tube, FileType::Socket) {
            return Err(wrong());
        }
        let inbox = MemoryInbox::new().map_err(|error| error.to_string())?;
        let isolation = if self.grant.strict { Isolation::Required } else { Isolation::Preferred };
        let (program, file) = self.programs.find(program)?;
        let start = Start {
            program: &program,
            arguments: &arguments,
            stderr: stderr.as_fd(),
            tube: tube.as_fd(),
            isolation,
            inbox: &inbox,
        };
        let birth = Birth { sibling: true, user: self.grant.user, file };
        let mut strays = Vec::new();
        let spawned = sys::spawn_as(&start, birth, &mut strays);
        let reply = spawned.map_err(|error| error.to_string()).and_then(|process| {
            let (pid, pidfd, group) = process.give_up();
            let own = pidfd.try_clone();
            handles.push(pidfd);
            let pidfd = own.map_err(|error| format!("cannot keep its descriptor: {error}"))?;
            self.running.push(Running { pidfd, _group: group });
            Ok(Reply::Started { pid })
        });
        // One that is refused all the same is the server's to end and to reap.
        handles.append(&mut strays);
        Ok(reply.unwrap_or_else(Reply::Refused))
    }
}

fn is(fd: &OwnedFd, kind: FileType) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::PciAddress;

    fn refused(change: impl FnOnce(&mut Grant)) -> Option<String> {
        let mut grant = Grant {
            program: b"/usr/libexec/device-proc".to_vec(),
            dext: b"sim:/run/dext".to_vec(),
            strict: false,
            windows: "handed".to_owned(),
            devices: Vec::new(),
            sockets: Vec::new(),
            socket_mode: 0o600,
            socket_group: None,
            user: None,
            programs: false,
        };
        change(&mut grant);
        check(&grant).err()
    }

    #[test]
    fn a_grant_of_one_more_than_there_may_be_makes_no_sense() {
        let device: PciAddress = "01:00.0".parse().unwrap();
        let path = |length| vec![b'x'; length];
        for (over, is_refused) in [(0, false), (1, true)] {
            let says = is_refused.then(|| "the grant makes no sense".to_owned());
            assert_eq!(refused(|grant| grant.devices = vec![device; MAX_FUNCTIONS + over]), says);
            let sockets = vec![path(1); MAX_GRANTED_SOCKETS + over];
            assert_eq!(refused(|grant| grant.sockets = sockets), says);
            assert_eq!(refused(|grant| grant.program = path(MAX_GRANTED_PATH + over)), says);
            assert_eq!(refused(|grant| grant.dext = path(MAX_GRANTED_PATH + over)), says);
            let sockets = vec![path(MAX_GRANTED_PATH + over)];
            assert_eq!(refused(|grant| grant.sockets = sockets), says);
        }
    }
}
