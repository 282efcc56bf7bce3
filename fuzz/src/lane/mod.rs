//! Both ends of a lane (`cordon_ipc::lane`), each in turn, against a peer that rewrites every word of the
//! shared memory at the moments that the input says.
//!
//! Everything happens in one thread: the peer of a caller acts whenever the caller publishes, looks or
//! wakes, so that a finding repeats. Asserted: no panic; a call ends in time; an answer only for a
//! request of ours, and as it was in the words; a slot is used by one request at a time; nothing but the side's own
//! words is written.

mod caller;
mod server;
mod words;

use arbitrary::Arbitrary;

/// One end, and what its peer does.
#[derive(Arbitrary, Debug)]
pub enum Input {
    /// Calls, and what is rewritten meanwhile.
    Caller(Vec<caller::Call>),
    /// What a server does, and what is rewritten in between.
    Server(Vec<server::Step>),
}

/// Does it.
pub fn run(input: Input) {
    match input {
        Input::Caller(calls) => caller::run(&calls),
        Input::Server(steps) => server::run(&steps),
    }
}
