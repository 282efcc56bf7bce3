//! Tubes (`cordon_ipc::tube`) against a peer that sends any packets, pieces, headers and descriptors: over
//! SEQPACKET as on Linux, and over STREAM as on macOS.
//!
//! Asserted: what is received is what a model of the framing says, byte by byte and descriptor by
//! descriptor; nothing is allocated by a length that was only said; no descriptor stays open; two
//! processes agree on no more than each of them offered.

mod handshake;
mod packet;
mod peer;
mod stream;

use arbitrary::Arbitrary;

/// A flavour, and what its peer does.
#[derive(Arbitrary, Debug)]
pub enum Input {
    /// SEQPACKET.
    Packet(Vec<packet::Step>),
    /// STREAM.
    Stream(Vec<stream::Step>),
    /// The first message of a tube.
    Handshake(handshake::Input),
}

/// Does it.
pub fn run(input: Input) {
    match input {
        Input::Packet(steps) => packet::run(&steps),
        Input::Stream(steps) => stream::run(&steps),
        Input::Handshake(input) => handshake::run(&input),
    }
}
