//! Config writes of a guest against the permission table (P6.4): a device takes what is forwarded, and a
//! model made of the table's rows, bit by bit, says what that may be.
//!
//! Asserted: no bit reaches the device but those that a row forwards, and these as they were written; a
//! bit of a byte that is forwarded in part is as the host had it; accesses are aligned and in order;
//! checking what was checked changes nothing; what was never forwarded is at the end as it was. A
//! read shows what the guest wrote, the device, or nothing, as the rows say; a reset is asked for
//! when one was written, of a device that is capable of it.
//!
//! Whole config spaces are compared and summed up without a branch for each byte: with coverage
//! counted, 4096 branches cost more than all the rest.

mod reads;

use arbitrary::Arbitrary;
use cordon_pci::bar::BAR_COUNT;
use cordon_pci::permission::{Forward, Layout, MAX_WRITE, Structure, StructureId, Treatment};
use cordon_pci::registers::{COMMAND, CONFIG_SPACE, EXTENDED, HEADER};
use cordon_pci::{ConfigSpace, Description, Options};

use self::reads::Reads;
use super::device::{AnyBar, Device, put};
use crate::lists;

/// A device, a front end, and what a guest writes.
#[derive(Arbitrary, Debug)]
pub struct Input {
    device: Device,
    bars: [Option<AnyBar>; BAR_COUNT],
    linked: bool,
    #[arbitrary(with = lists::rest)]
    writes: Vec<Write>,
}

#[derive(Arbitrary, Debug)]
struct Write {
    place: Place,
    data: Data,
}

/// Where a guest writes.
#[derive(Arbitrary, Debug)]
enum Place {
    /// One of the first bytes of a row of one of the device's structures.
    Row(u8, u8, u8),
    /// Somewhere in one of the device's structures, or up to 3 bytes in front of it.
    Structure(u8, u8),
    /// In config space.
    Inside(u16),
    /// Past config space as well.
    Anywhere(u32),
}

#[derive(Arbitrary, Debug)]
enum Data {
    One(u8),
    Two([u8; 2]),
    Four([u8; 4]),
    Any(Vec<u8>),
}

/// A structure of the device: offset, length and rows.
type Laid = (u16, u16, &'static Structure);

impl Write {
    fn offset(&self, structures: &[Laid]) -> u32 {
        match self.place {
            Place::Row(number, row, into) => {
                let (start, _, structure) = structures[usize::from(number) % structures.len()];
                let row = structure.fields[usize::from(row) % structure.fields.len()];
                u32::from(start) + u32::from(row.offset) + u32::from(into) % 4
            }
            Place::Structure(number, into) => {
                let number = usize::from(number) % structures.len();
                let (start, length, _) = structures[number];
                let into = u32::from(into) % (u32::from(length) + 3);
                (u32::from(start) + into).saturating_sub(3)
            }
            Place::Inside(at) => u32::from(at) % CONFIG_SPACE as u32,
            Place::Anywhere(at) => at,
        }
    }

    fn data(&self) -> &[u8] {
        match &self.data {
            Data::One(byte) => std::slice::from_ref(byte),
            Data::Two(bytes) => bytes,
            Data::Four(bytes) => bytes,
            Data::Any(bytes) => &bytes[..bytes.len().min(MAX_WRITE)],
        }
    }
}

/// What may be done to each byte, by the rows.
struct Model {
    forwarded: Vec<u8>,
    ours: Vec<u8>,
    /// Byte with the power state, and whether the device loses its state in D3hot.
    power: Option<(usize, bool)>,
    /// Byte with the maximum read request size.
    request: Option<usize>,
    /// Bytes and bits by which a function-level reset is asked for.
    resets: Vec<(usize, u8)>,
}

impl Model {
    /// Every structure that has a bit says what may be done to it, and the strictest holds.
    fn new(structures: &[Laid], config: &[u8]) -> Self {
        let mut forwarded = vec![0; CONFIG_SPACE];
        // What no structure covers is the device's own in the first 256 bytes, and nobody's behind them.
        forwarded[HEADER..EXTENDED].fill(0xff);
        let (mut refused, mut ours) = (vec![0; CONFIG_SPACE], vec![0; CONFIG_SPACE]);
        for (start, length, structure) in structures {
            for field in structure.fields {
                // Bytes without a bit of the field are passed over.
                let end = field.offset.saturating_add(field.length).min(*length);
                for into in field.offset..end {
                    let (place, mask) =
                        (usize::from(*start) + usize::from(into), field.mask(into, *length));
                    match field.treatment {
                        Treatment::Forwarded => forwarded[place] |= mask,
                        _ => refused[place] |= mask,
                    }
                    if field.treatment == Treatment::Ours {
                        ours[place] |= mask;
                    }
                }
            }
        }
        forwarded.iter_mut().zip(&refused).for_each(|(bits, refused)| *bits &= !refused);
        let first = |id: u8| {
            let mut all = structures.iter();
            all.find(|one| one.2.id == StructureId::Standard(id)).map(|one| usize::from(one.0))
        };
        // Bit 3 of the control register: no soft reset.
        let power = first(0x01).map(|at| (at + 4, config[at + 4] & 8 == 0));
        if let Some((at, true)) = power {
            forwarded[at] &= !0b11;
        }
        let request = first(0x10).map(|at| at + 9);
        // Bit 28 of the device capabilities, and bit 1 of those of Advanced Features.
        let express = first(0x10).filter(|at| config[at + 7] & 0x10 != 0);
        let advanced = first(0x13).filter(|at| config[at + 3] & 2 != 0);
        let resets = express.map(|at| (at + 9, 0x80)).into_iter();
        let resets = resets.chain(advanced.map(|at| (at + 4, 1))).collect();
        Self { forwarded, ours, power, request, resets }
    }

    /// Whether a write asks for a function-level reset.
    fn asks_for_reset(&self, offset: u32, data: &[u8]) -> bool {
        let byte = |at: usize| at.checked_sub(offset as usize).and_then(|into| data.get(into));
        self.resets.iter().any(|(at, bit)| byte(*at).is_some_and(|byte| byte & bit != 0))
    }
}

/// Does it.
pub fn run(input: &Input) {
    let config = input.device.config();
    let bars = input.bars.map(|bar| bar.map(AnyBar::bar));
    let described = Description { config: &config, bars, vectors: 32 };
    let options = if input.linked { Options::linked() } else { Options::vfio_user() };
    let mut space = ConfigSpace::new(&described, options).ok();
    // A layout is made once, and twice where there is no config space.
    let layout = space.as_ref().map_or_else(|| Layout::new(&config), |one| one.layout().clone());
    let structures: Vec<_> = layout.structures().collect();
    let model = Model::new(&structures, &config);
    let found: Vec<u8> = (0..CONFIG_SPACE as u16).map(|at| layout.forwarded_bits(at)).collect();
    if found != model.forwarded {
        let at = found.iter().zip(&model.forwarded).position(|(one, other)| one != other);
        panic!("{at:x?} of {layout:?}");
    }
    let mut reads = Reads::new(&structures, &config);
    let mut device = config.clone();
    for write in &input.writes {
        let (offset, data) = (write.offset(&structures), write.data());
        let forwards = layout.split(offset, data);
        judge(&model, &config, offset, data, &forwards);
        for one in forwards.iter() {
            let value = one.value.to_le_bytes();
            let again = layout.split(one.offset.into(), &value[..one.width.into()]);
            assert_eq!(&again[..], [*one], "what was checked is checked again");
            put(&mut device, one.offset.into(), &value[..one.width.into()]);
        }
        if let Some(space) = &mut space {
            let effects = space.write(offset, data).unwrap();
            assert_eq!(effects.forwards, forwards);
            reads.write(offset, data, &model, effects.reset);
            reads.check(space, offset, data.len());
        }
    }
    space.iter().for_each(|space| reads.check_all(space));
    let bits = config.iter().zip(&device).zip(model.forwarded.iter().zip(&model.ours));
    let changed =
        bits.fold(0, |all, ((before, after), (sent, ours))| all | (before ^ after) & !sent & !ours);
    assert_eq!(changed, 0, "a bit that was not forwarded");
}

/// Whether these accesses are what a write may come to.
fn judge(model: &Model, host: &[u8], offset: u32, data: &[u8], forwards: &[Forward]) {
    // By the byte of the write that they are.
    let (mut sent, mut last) = ([None; MAX_WRITE], 0);
    for one in forwards {
        let at = usize::from(one.offset);
        let width = usize::from(one.width);
        assert!(matches!(width, 1 | 2 | 4) && at.is_multiple_of(width) && at >= last, "{one:?}");
        assert!(width == 1 || !(COMMAND..COMMAND + 2).contains(&at), "{one:?}");
        last = at + width;
        for (at, value) in (at..).zip(one.value.to_le_bytes()).take(width) {
            let into = at.checked_sub(offset as usize).filter(|into| *into < data.len());
            sent[into.expect("bytes that nobody wrote")] = Some(value);
        }
    }
    for ((at, value), sent) in (offset as usize..).zip(data).zip(sent) {
        let Some(forwarded) = model.forwarded.get(at).copied() else {
            assert!(sent.is_none(), "{at:#x} is no byte of config space");
            continue;
        };
        let refused =
            model.power.is_some_and(|(power, _)| power == at) && matches!(value & 3, 1 | 2);
        let Some(found) = sent else {
            assert!(forwarded == 0 || refused, "{at:#x} is dropped");
            continue;
        };
        assert!(forwarded != 0 && !refused, "{at:#x} is sent");
        let mut wanted = value & forwarded | host[at] & !forwarded & !model.ours[at];
        if model.request == Some(at) {
            let size = (wanted >> 4 & 7).min(host[at] >> 4 & 7);
            wanted = wanted & !0x70 | size << 4;
        }
        assert_eq!(found, wanted, "{at:#x}");
    }
}
