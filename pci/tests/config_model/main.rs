//! Random config accesses against a model of P6.4 that was written by hand: what reaches the device, what a guest
//! reads, and when the function is reset. Through the front end's model and the function process's table as they
//! are in the product, and through each of the two alone, as if the other were taken over.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod samples;

use std::convert::Infallible;

use cordon_pci::permission::{Forward, Layout};
use cordon_pci::{Bar, BarKind, ConfigSpace, Description, Options};
use proptest::prelude::*;
use samples::{Cell, Sample};

/// What is written by whom.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// A front end, and the function process behind it.
    Both,
    /// A function process that lets everything through.
    FrontOnly,
    /// A VMM without any model: the function process alone.
    FunctionOnly,
}

/// The device and its guest's view, by the samples' tables.
struct Model<'s> {
    sample: &'s Sample,
    writable: Vec<u8>,
    zero: Vec<u8>,
    device: Vec<u8>,
    cells: Vec<Cell>,
    is_asleep: bool,
    resets: usize,
}

impl<'s> Model<'s> {
    fn new(sample: &'s Sample) -> Self {
        let mut writable = vec![0; 4096];
        writable[0x40..0x100].fill(0xff);
        let mut zero = vec![0; 4096];
        for (range, mask) in &sample.writable {
            writable[usize::from(range.start)..usize::from(range.end)].fill(*mask);
        }
        for (at, mask) in &sample.sent_as_zero {
            zero[usize::from(*at)] = *mask;
        }
        let (cells, device) = (sample.cells.clone(), sample.config.clone());
        Self { sample, writable, zero, device, cells, is_asleep: false, resets: 0 }
    }

    /// A byte of the device as a write leaves it.
    fn sent(&self, at: usize, value: u8) -> u8 {
        let (mask, host) = (self.writable[at], self.sample.config[at]);
        let is_power = self.sample.power.is_some_and(|(power, _)| usize::from(power) == at);
        if mask == 0 || is_power && matches!(value & 3, 1 | 2) {
            return self.device[at];
        }
        let mut sent = value & mask | host & !mask & !self.zero[at];
        if self.sample.read_request.is_some_and(|register| usize::from(register) == at) {
            let size = (sent >> 4 & 7).min(host >> 4 & 7);
            sent = sent & 0x8f | size << 4;
        }
        sent
    }

    fn write(&mut self, offset: u32, data: &[u8], way: Way) {
        let mut is_reset = false;
        for (at, value) in (offset as usize..4096).zip(data) {
            self.device[at] = self.sent(at, *value);
            is_reset |= self
                .sample
                .resets
                .iter()
                .any(|(of, bit)| usize::from(*of) == at && value & bit != 0);
            if way != Way::FunctionOnly {
                is_reset |= self.write_cells(at, *value);
            }
        }
        if is_reset {
            self.resets += 1;
            self.cells.clone_from(&self.sample.cells);
            self.is_asleep = false;
        }
    }

    /// Whether the function is to be reset.
    fn write_cells(&mut self, at: usize, value: u8) -> bool {
        let power = self.sample.power.filter(|(power, _)| usize::from(*power) == at);
        if power.is_some() && matches!(value & 3, 1 | 2) {
            return false;
        }
        for cell in self.cells.iter_mut().filter(|cell| usize::from(cell.at) == at) {
            cell.initial = cell.initial & !cell.writable | value & cell.writable;
        }
        let Some((_, keeps_state)) = power else { return false };
        let was_asleep = std::mem::replace(&mut self.is_asleep, value & 3 == 3);
        was_asleep && !self.is_asleep && !keeps_state
    }

    fn read(&self, offset: u32, length: usize) -> Vec<u8> {
        let read = |at: usize| {
            let Some(device) = self.device.get(at) else { return 0 };
            let of_it = self.cells.iter().filter(|cell| usize::from(cell.at) == at);
            of_it.fold(*device, |byte, cell| byte & !cell.shown | cell.initial & cell.shown)
        };
        (offset as usize..).take(length).map(read).collect()
    }
}

/// The product: both halves of it, and a device that takes what comes.
struct Product {
    front: ConfigSpace,
    function: Layout,
    device: Vec<u8>,
    resets: usize,
    sent: Vec<Forward>,
}

impl Product {
    fn new(sample: &Sample, options: Options) -> Self {
        let bar = |(size, kind)| Bar { size, kind: BarKind::from_bits(kind) };
        let bars = sample.bars.map(|one| one.map(bar));
        let described = Description { config: &sample.config, bars, vectors: 16 };
        Self {
            front: ConfigSpace::new(&described, options).unwrap(),
            function: Layout::new(&sample.config),
            device: sample.config.clone(),
            resets: 0,
            sent: Vec::new(),
        }
    }

    fn take(&mut self, one: &Forward) {
        let bytes = &one.value.to_le_bytes()[..one.width.into()];
        self.device[usize::from(one.offset)..][..bytes.len()].copy_from_slice(bytes);
        self.sent.push(*one);
    }

    fn behind_front(&mut self, one: &Forward, way: Way) {
        if way == Way::FrontOnly {
            return self.take(one);
        }
        let bytes = &one.value.to_le_bytes()[..one.width.into()];
        assert!(!self.function.asks_for_reset(one.offset.into(), bytes), "{one:x?}");
        for one in self.function.split(one.offset.into(), bytes).iter() {
            self.take(one);
        }
    }

    fn write(&mut self, offset: u32, data: &[u8], way: Way) {
        self.sent.clear();
        if way == Way::FunctionOnly {
            for one in self.function.split(offset, data).iter() {
                self.take(one);
            }
            self.resets += usize::from(self.function.asks_for_reset(offset, data));
            return;
        }
        let effects = self.front.write(offset, data).unwrap();
        for one in effects.forwards.iter() {
            self.behind_front(one, way);
        }
        self.resets += usize::from(effects.reset.is_some());
    }

    fn read(&self, offset: u32, length: usize) -> Vec<u8> {
        let mut data = vec![0xa5; length];
        let device = |at: u32, inside: &mut [u8]| {
            inside.copy_from_slice(&self.device[at as usize..][..inside.len()]);
            Ok::<_, Infallible>(())
        };
        self.front.read_with(offset, &mut data, device).unwrap();
        data
    }
}

#[derive(Clone, Debug)]
enum Access {
    Read { offset: u32, length: usize },
    Write { offset: u32, data: Vec<u8> },
}

/// Any offset, often near the capabilities; 1, 2 or 4 bytes; values with many ones and zeros.
fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![
        6 => 0u32..0x100,
        2 => 0x100u32..0x320,
        1 => 0u32..0x1008,
        1 => prop_oneof![Just(u32::MAX), Just(0x1000), Just(0xfff), Just(0xffd)],
    ];
    let length = prop_oneof![Just(1usize), Just(2), Just(4)];
    let byte = prop_oneof![any::<u8>(), Just(0xff), Just(0), (0u8..8).prop_map(|bit| 1 << bit)];
    let data = prop::collection::vec(byte, 4);
    (any::<bool>(), offset, length, data).prop_map(|(is_read, offset, length, mut data)| {
        if is_read {
            return Access::Read { offset, length };
        }
        data.truncate(length);
        Access::Write { offset, data }
    })
}

/// What was sent has the form of P6.1 and P6.3.
fn check_form(sent: &[Forward]) -> Result<(), TestCaseError> {
    for one in sent {
        prop_assert!(matches!(one.width, 1 | 2 | 4), "{:?}", one);
        prop_assert_eq!(one.offset % u16::from(one.width), 0, "{:?}", one);
        prop_assert!(!(4..6).contains(&one.offset) || one.width == 1, "{:?}", one);
    }
    Ok(())
}

fn drive(
    sample: &Sample,
    options: Options,
    way: Way,
    accesses: &[Access],
) -> Result<(), TestCaseError> {
    let (mut model, mut product) = (Model::new(sample), Product::new(sample, options));
    let name = sample.name;
    for access in accesses {
        match access {
            Access::Write { offset, data } => {
                model.write(*offset, data, way);
                product.write(*offset, data, way);
                check_form(&product.sent)?;
                let differs = (0..4096).find(|at| product.device[*at] != model.device[*at]);
                prop_assert_eq!(
                    differs.map(|at| (at, product.device[at])),
                    differs.map(|at| (at, model.device[at])),
                    "{} {:?}: {:x?}",
                    name,
                    way,
                    access
                );
                prop_assert_eq!(product.resets, model.resets, "{} {:?}: {:x?}", name, way, access);
            }
            // Without a front end the device itself is read.
            Access::Read { .. } if way == Way::FunctionOnly => {}
            Access::Read { offset, length } => {
                let (read, expected) =
                    (product.read(*offset, *length), model.read(*offset, *length));
                prop_assert_eq!(read, expected, "{} {:?}: {:x?}", name, way, access);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn p6_4_what_reaches_the_device_and_what_a_guest_reads_is_as_the_model_says(
        accesses in prop::collection::vec(access(), 1..80),
    ) {
        for sample in samples::all() {
            for way in [Way::Both, Way::FrontOnly, Way::FunctionOnly] {
                for options in [Options::linked(), Options::vfio_user()] {
                    drive(&sample, options, way, &accesses)?;
                }
            }
        }
    }
}

/// Every byte by itself, with every bit: nothing is left to chance.
#[test]
fn p6_4_every_bit_of_every_sample_is_as_the_model_says() {
    for sample in samples::all() {
        for value in [0x00, 0xff, 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80] {
            let at = |offset| {
                let write = Access::Write { offset, data: vec![value] };
                [write, Access::Read { offset, length: 1 }]
            };
            let accesses: Vec<_> = (0..4096).flat_map(at).collect();
            for way in [Way::Both, Way::FrontOnly, Way::FunctionOnly] {
                drive(&sample, Options::linked(), way, &accesses).unwrap();
            }
        }
    }
}
