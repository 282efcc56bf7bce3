//! An in-process dext for unit tests: remembers every call, answers from a script.
//!
//! Function 01:00.0 with the probe device's BARs, 32 MSI-X vectors with the table in BAR 0 at
//! 0x8000, and config bytes that can be computed.
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small numbers of a test's making"
)]
#![allow(missing_docs, reason = "for unit tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use ipc::event::Signaller;
use ipc::wire::dext::{ENABLED_WORDS, INTERRUPT_PAGE, IoReturn, memory, selector};
use ipc::{Access, Event, SharedMemory, TubeError, Window};

use crate::{Behind, Client, Mapped, SelectorError, UserClient};

/// A call as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub selector: u32,
    pub inputs: Vec<u64>,
}

#[derive(Default)]
struct FakeState {
    calls: Vec<Call>,
    fails: BTreeMap<u32, IoReturn>,
    map_fails: BTreeSet<u32>,
    mapped: Vec<u32>,
    dead: bool,
    registered: BTreeMap<u64, u64>,
    asserts: bool,
    page: Option<Window>,
    completion: Option<Signaller>,
    fires_before_arming: Vec<u16>,
}

/// The test's side.
#[derive(Clone)]
pub struct Fake(Arc<Mutex<FakeState>>);

struct Connection {
    state: Fake,
    event: Event,
}

/// Index, size, type as in the ABI.
const BARS: [Option<[u64; 3]>; 6] = [
    Some([0, 0x20000, 0]),
    Some([1, 0x1000, 0]),
    Some([2, 0x10000, 0b1100]),
    None,
    Some([3, 64, 0b0001]),
    None,
];

impl Fake {
    pub fn client() -> (Self, Client) {
        let (fake, connection) = Self::connection();
        let client = Client::new(connection).unwrap();
        (fake, client)
    }

    pub fn connection() -> (Self, Box<dyn UserClient>) {
        let fake = Self(Arc::default());
        let event = Event::new().unwrap();
        fake.state().completion = Some(event.signaller().unwrap());
        let connection = Box::new(Connection { state: fake.clone(), event });
        (fake, connection)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.0.lock().unwrap()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    pub fn calls_of(&self, selector: u32) -> Vec<Vec<u64>> {
        let calls = self.calls().into_iter();
        calls.filter(|call| call.selector == selector).map(|call| call.inputs).collect()
    }

    pub fn fail(&self, selector: u32, code: IoReturn) {
        self.state().fails.insert(selector, code);
    }

    pub fn recover(&self, selector: u32) {
        self.state().fails.remove(&selector);
    }

    /// Mapping it fails: as BadArgument, as every failure of a memory map reaches the client.
    pub fn fail_map(&self, bar: u32) {
        self.state().map_fails.insert(memory::BAR0 + bar);
    }

    pub fn die(&self) {
        self.state().dead = true;
    }

    pub fn mapped_bars(&self) -> Vec<u32> {
        self.state().mapped.iter().map(|kind| kind - memory::BAR0).collect()
    }

    pub fn registered(&self) -> Vec<(u64, u64)> {
        self.state().registered.iter().map(|(key, size)| (*key, *size)).collect()
    }

    /// The words of the interrupt page that say which vectors are recorded.
    #[must_use]
    pub fn enabled_words(&self) -> Vec<u64> {
        let state = self.state();
        let page = state.page.as_ref().unwrap();
        [0, 8, 16, 24].map(|word| page.load_u64(ENABLED_WORDS + word).unwrap()).to_vec()
    }

    /// The device fires vectors, masked or not.
    pub fn pend(&self, vectors: &[u16]) {
        let state = self.state();
        state.pend(vectors);
        state.completion.as_ref().unwrap().signal();
    }

    /// The device fires vectors just before the next notification is armed.
    pub fn fire_before_arming(&self, vectors: &[u16]) {
        self.state().fires_before_arming = vectors.to_vec();
    }

    /// Whether STATUS shows that the device asserts its pin.
    pub fn assert_pin(&self, asserts: bool) {
        self.state().asserts = asserts;
    }

    /// The bytes that config space holds.
    pub fn config_bytes(offset: u64, length: usize) -> Vec<u8> {
        let byte = |at: u64| match at {
            0x06 => 0x10,
            0x34 => 0x40,
            0x40 => 0x11,
            0x41 => 0,
            0x42 => 31,
            0x43 => 0,
            0x44..0x48 => 0x8000u32.to_le_bytes()[(at - 0x44) as usize],
            0x48..0x4c => 0xc000u32.to_le_bytes()[(at - 0x48) as usize],
            other => (other.wrapping_mul(37) >> 3) as u8,
        };
        (offset..).take(length).map(byte).collect()
    }
}

impl FakeState {
    fn pend(&self, vectors: &[u16]) {
        let Some(page) = &self.page else { return };
        for vector in vectors {
            page.set_bits_u64(u64::from(vector / 64) * 8, 1 << (vector % 64)).unwrap();
        }
    }

    /// Arms a notification, which completes at once when a bit is pending.
    fn arm(&mut self) {
        let fires = std::mem::take(&mut self.fires_before_arming);
        self.pend(&fires);
        let Some(page) = &self.page else { return };
        if [0, 8, 16, 24].iter().any(|word| page.load_u64(*word).unwrap() != 0) {
            self.completion.as_ref().unwrap().signal();
        }
    }

    fn answer(&mut self, selector: u32, inputs: &[u64]) -> Result<Vec<u64>, IoReturn> {
        if let Some(code) = self.fails.get(&selector) {
            return Err(*code);
        }
        Ok(match selector {
            selector::GET_IDENTITY => vec![1, 0, 0, 0xc0d0, 2, 0xff_00_00],
            selector::CONFIG_READ => {
                let mut value = [0; 8];
                let width = inputs[1] as usize;
                value[..width].copy_from_slice(&Fake::config_bytes(inputs[0], width));
                let status = u64::from(self.asserts && inputs[0] == 6) << 3;
                vec![u64::from_le_bytes(value) | status]
            }
            selector::GET_BAR_INFO => BARS[inputs[0] as usize].ok_or(IoReturn::NOT_FOUND)?.to_vec(),
            selector::SETUP_INTERRUPTS => vec![32],
            selector::CHECK_INTERRUPT => {
                let page = self.page.as_ref().ok_or(IoReturn::NOT_READY)?;
                [0, 8, 16, 24].map(|word| page.swap_u64(word, 0).unwrap()).to_vec()
            }
            selector::SET_IRQ_MASK => {
                if let Some(page) = &self.page {
                    for (word, value) in (0..).zip(inputs) {
                        page.store_u64(ENABLED_WORDS + 8 * word, *value).unwrap();
                    }
                }
                vec![]
            }
            selector::WAIT_INTERRUPT => {
                self.arm();
                vec![]
            }
            selector::REGISTER_DMA_REGION => {
                if self.registered.contains_key(&inputs[0]) {
                    return Err(IoReturn::STILL_OPEN);
                }
                self.registered.insert(inputs[0], inputs[2]);
                vec![1, inputs[0], inputs[2]]
            }
            selector::UNREGISTER_DMA_REGION => {
                self.registered.remove(&inputs[0]).ok_or(IoReturn::NOT_FOUND)?;
                vec![]
            }
            _ => vec![],
        })
    }
}

impl UserClient for Connection {
    fn call(
        &mut self,
        selector: u32,
        inputs: &[u64],
        outputs: &mut [u64],
        _behind: Option<Behind<'_>>,
    ) -> Result<(), SelectorError> {
        let mut state = self.state.state();
        if state.dead {
            return Err(SelectorError::Tube(TubeError::Disconnected));
        }
        state.calls.push(Call { selector, inputs: inputs.to_vec() });
        let answer = state.answer(selector, inputs).map_err(SelectorError::Code)?;
        outputs.copy_from_slice(&answer[..outputs.len()]);
        Ok(())
    }

    fn call_async(&mut self, selector: u32, inputs: &[u64]) -> Result<(), SelectorError> {
        self.call(selector, inputs, &mut [], None)
    }

    fn map(&mut self, kind: u32) -> Result<Mapped, SelectorError> {
        let mut state = self.state.state();
        if state.map_fails.contains(&kind) {
            return Err(SelectorError::Code(IoReturn::BAD_ARGUMENT));
        }
        let size = if kind == memory::INTERRUPT_STATE {
            INTERRUPT_PAGE as u64
        } else {
            state.mapped.push(kind);
            let bar = BARS[(kind - memory::BAR0) as usize];
            bar.ok_or(SelectorError::Code(IoReturn::BAD_ARGUMENT))?[1].next_multiple_of(16384)
        };
        let shared = SharedMemory::create("fake", size).unwrap();
        let map = || shared.map_all(Access::ReadWrite).unwrap();
        if kind == memory::INTERRUPT_STATE {
            state.page = Some(map());
        }
        Ok(Mapped { window: map(), memory: Some(shared) })
    }

    fn completion(&self) -> &Event {
        &self.event
    }

    fn liveness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.event.descriptors()
    }
}
