//! What is known of a function and its clients, by the calls that were done.

use std::collections::BTreeMap;

use cordon_ipc::wire::dext::selector;

/// A call that was done.
pub(super) struct Asked<'a> {
    /// Which client's.
    pub(super) client: usize,
    pub(super) selector: u32,
    pub(super) inputs: &'a [u64],
    /// Where in the clients' memory, if that came beside it.
    pub(super) memory: Option<u64>,
}

/// What calls have come to.
pub(super) struct Known {
    /// Bytes of the clients' memory now.
    pub(super) memory: u64,
    /// Whose claim holds the device open.
    pub(super) opener: Option<usize>,
    /// Keys of what is registered, with whose and its size.
    regions: BTreeMap<u64, (usize, u64)>,
}

impl Known {
    pub(super) fn new(memory: u64) -> Self {
        Self { memory, opener: None, regions: BTreeMap::new() }
    }

    /// A client is gone, and all that was its.
    pub(super) fn gone(&mut self, client: usize) {
        self.regions.retain(|_, (of, _)| *of != client);
        self.opener = self.opener.filter(|of| *of != client);
    }

    /// A call was done: whether it may have been.
    pub(super) fn done(&mut self, asked: &Asked<'_>) {
        let Asked { client, selector, inputs, memory } = *asked;
        let needs_claim = [
            selector::ALLOCATE_DMA_BUFFER,
            selector::REGISTER_DMA_REGION,
            selector::SETUP_INTERRUPTS,
            selector::RESET_DEVICE,
        ];
        assert!(self.opener.is_some() || !needs_claim.contains(&selector), "{selector} unclaimed");
        match selector {
            selector::CLAIM => {
                self.opener.get_or_insert(client);
            }
            selector::REGISTER_DMA_REGION => {
                let [key, address, size] = inputs[..3] else { panic!("{inputs:?}") };
                let end = memory.and_then(|offset| offset.checked_add(size));
                assert!(end.is_some_and(|end| end <= self.memory), "{memory:?} {inputs:x?}");
                let end = key.checked_add(size).expect("a range");
                let before = self.regions.range(..end).next_back();
                assert!(before.is_none_or(|(start, (_, size))| start + size <= key), "{key:#x}");
                assert!(size > 0 && address > 0, "{inputs:?}");
                self.regions.insert(key, (client, size));
            }
            selector::UNREGISTER_DMA_REGION => {
                let removed = self.regions.remove(&inputs[0]);
                assert_eq!(removed.map(|(of, _)| of), Some(client), "{inputs:x?}");
            }
            selector::PROBE_DMA_REGION => {
                let [key, offset] = inputs[..2] else { panic!("{inputs:?}") };
                let (of, size) = self.regions[&key];
                assert!(of == client && offset.checked_add(8).is_some_and(|end| end <= size));
            }
            _ => {}
        }
    }
}
