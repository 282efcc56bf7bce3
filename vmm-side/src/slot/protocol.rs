//! What the VMM side and a function process say to each other.

use ipc::wire::faults::Misbehaviour;
use ipc::wire::function::{Ready, Reply, Request};
use ipc::wire::handshake::Role;

use crate::supervisor::Protocol;

/// What is said to a function process.
#[derive(Debug)]
pub struct FunctionProtocol;

impl Protocol for FunctionProtocol {
    type Request = Request;
    type Reply = Reply;
    type Ready = Ready;
    const ROLE: Role = Role::Function;
    const COMMAND: &'static str = "function";

    fn shutdown() -> Request {
        Request::Shutdown
    }

    fn misbehave(misbehaviour: Misbehaviour) -> Option<Request> {
        Some(Request::Misbehave(misbehaviour))
    }
}
