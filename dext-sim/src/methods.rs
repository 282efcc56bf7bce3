//! The external methods: their names and how many scalars each takes and gives, by selector.

/// One external method.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    /// Scalars that it takes at least.
    pub(crate) takes: usize,
    /// Scalars that the caller must have room for.
    pub(crate) gives: usize,
}

const fn method(name: &'static str, takes: usize, gives: usize) -> Method {
    Method { name, takes, gives }
}

/// All of them; the selector is the index.
pub(crate) const METHODS: [Method; 18] = [
    method("GetIdentity", 0, 6),
    method("Claim", 0, 0),
    method("Terminate", 0, 0),
    method("AllocateDMABuffer", 2, 6),
    method("FreeDMABuffer", 0, 0),
    method("RegisterDMARegion", 3, 3),
    method("UnregisterDMARegion", 1, 0),
    method("ProbeDMARegion", 2, 1),
    method("ConfigRead", 2, 1),
    method("ConfigWrite", 3, 0),
    method("GetBARInfo", 1, 3),
    method("MMIORead", 3, 1),
    method("MMIOWrite", 4, 0),
    method("SetupInterrupts", 0, 1),
    method("CheckInterrupt", 0, 4),
    method("WaitInterrupt", 0, 0),
    method("SetIRQMask", 4, 0),
    method("ResetDevice", 0, 0),
];

/// The method of a selector.
pub(crate) fn find(selector: u32) -> Option<&'static Method> {
    METHODS.get(usize::try_from(selector).ok()?)
}
