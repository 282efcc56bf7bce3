//! Memory entries and mappings, by their C functions.

use super::*;
use crate::vm;

const SHARE: i32 = 0x40_0000;
const NAMED_CREATE: i32 = 0x2_0000;
const ANYWHERE: i32 = 1;
const OVERWRITE: i32 = 0x4000;
const BOTH: u64 = 3 | 3 << 32;

fn allocate(size: u64) -> u64 {
    let mut address = 0;
    assert_eq!(vm::allocate(SELF, &raw mut address, size, ANYWHERE), 0);
    assert!(address.is_multiple_of(PAGE));
    address
}

fn at<'m>(address: u64, size: u64) -> &'m mut [u8] {
    // SAFETY: mapped by the test, which is the only one to use it.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u8, usize::try_from(size).unwrap()) }
}

fn entry(address: u64, size: &mut u64, permission: i32) -> Result<Name, Code> {
    let mut name = NULL;
    match vm::make_memory_entry(SELF, size, address, permission, &raw mut name, NULL) {
        0 => Ok(name),
        code => Err(code),
    }
}

fn map(name: Name, address: u64, size: u64, flags: i32, offset: u64) -> Result<u64, Code> {
    let mut address = address;
    match vm::map(SELF, &raw mut address, size, 0, flags, name, offset, 0, BOTH, 0) {
        0 => Ok(address),
        code => Err(code),
    }
}

/// A shared entry of a page that begins so.
pub(super) fn entry_with(bytes: &[u8]) -> Name {
    let address = allocate(PAGE);
    at(address, PAGE)[..bytes.len()].copy_from_slice(bytes);
    entry(address, &mut { PAGE }, 3 | SHARE).unwrap()
}

pub(super) fn bytes_of<'m>(name: Name, size: u64) -> &'m mut [u8] {
    at(map(name, 0, size, ANYWHERE, 0).unwrap(), size)
}

/// vm_map.c vm_map_enter_mem_object: "for a vm_map_copy, we can only map it whole".
#[test]
fn a_shared_entry_is_mapped_whole_whatever_is_asked_for() {
    begin();
    let memory = allocate(4 * PAGE);
    for page in 0..4 {
        at(memory, 4 * PAGE)[usize::try_from(page * PAGE).unwrap()] =
            u8::try_from(page).unwrap() + 1;
    }
    let name = entry(memory, &mut { 4 * PAGE }, 3 | SHARE).unwrap();
    // One page at an offset of two is asked for, and four from the beginning come, over what lay behind.
    let room = allocate(8 * PAGE);
    at(room, 8 * PAGE).fill(9);
    assert_eq!(map(name, room + PAGE, PAGE, OVERWRITE, 2 * PAGE), Ok(room + PAGE));
    let seen: Vec<u8> = (0..8).map(|page| at(room, 8 * PAGE)[page * 0x4000]).collect();
    assert_eq!(seen, [9, 1, 2, 3, 4, 9, 9, 9]);
    // It is the same memory.
    at(room, 8 * PAGE)[0x4001] = 77;
    assert_eq!(at(memory, PAGE)[1], 77);
    // What tells its true size: more than it has fails.
    assert_eq!(map(name, 0, 5 * PAGE, ANYWHERE, 0), Err(kern::INVALID_ARGUMENT));
    assert_eq!(map(name, 0, PAGE, ANYWHERE, 4 * PAGE), Err(kern::INVALID_ARGUMENT));
}

/// vm_memory_entry.c mach_make_memory_entry_named_create: of an object, offset and size count.
#[test]
fn an_entry_of_an_object_is_mapped_in_parts() {
    begin();
    let mut size = 3 * PAGE + 1;
    let name = entry(0x1234, &mut size, 3 | NAMED_CREATE).unwrap();
    assert_eq!(size, 4 * PAGE);
    bytes_of(name, 4 * PAGE)[0x8000] = 5;
    let part = map(name, 0, PAGE, ANYWHERE, 2 * PAGE).unwrap();
    assert_eq!(at(part, PAGE)[0], 5);
}

/// vm_map.c vm_map_remap: offset and size count, which is how parts of a shared entry are cut.
#[test]
fn a_remap_takes_offset_and_size() {
    begin();
    let memory = allocate(4 * PAGE);
    at(memory, 4 * PAGE)[0x8000] = 5;
    let (mut to, mut current, mut most) = (0, 0, 0);
    let code = vm::remap(
        SELF,
        &raw mut to,
        PAGE,
        0,
        ANYWHERE,
        SELF,
        memory + 2 * PAGE,
        0,
        &raw mut current,
        &raw mut most,
        2,
    );
    assert_eq!((code, current, most), (0, 3, 3));
    at(to, PAGE)[1] = 6;
    assert_eq!(at(memory, 4 * PAGE)[0x8000..0x8002], [5, 6]);
}

/// vm_map.c, vm_memory_entry.c: codes of what cannot be.
#[test]
fn mappings_that_cannot_be_have_their_codes() {
    begin();
    let memory = allocate(PAGE);
    assert_eq!(entry(memory, &mut 0, 3 | SHARE), Err(kern::INVALID_ARGUMENT));
    assert_eq!(entry(8 * PAGE, &mut { PAGE }, 3 | SHARE), Err(kern::INVALID_ADDRESS));
    // More than the entry has.
    let name = entry(memory, &mut { PAGE }, 1 | SHARE).unwrap();
    assert_eq!(map(name, 0, PAGE, ANYWHERE, 0), Err(kern::INVALID_RIGHT));
    // A fixed place that is taken, without OVERWRITE.
    let name = entry(memory, &mut { PAGE }, 3 | SHARE).unwrap();
    assert_eq!(map(name, memory, PAGE, 0, 0), Err(kern::NO_SPACE));
    // What is no entry.
    let port = receive_right();
    assert_eq!(map(port, 0, PAGE, ANYWHERE, 0), Err(kern::INVALID_ARGUMENT));
    assert_eq!(vm::deallocate(SELF, memory, PAGE), 0);
    assert_eq!(entry(memory, &mut { PAGE }, 3 | SHARE), Err(kern::INVALID_ADDRESS));
}

/// vm_user.c mach_vm_read_overwrite, mach_vm_write: a missing page is a code and no signal.
#[test]
fn copies_of_the_kernels_say_what_is_not_there() {
    begin();
    let memory = allocate(8 * PAGE);
    at(memory, 8 * PAGE)[..4].copy_from_slice(&[1, 2, 3, 4]);
    let mut into = vec![0u8; 5 * 0x4000];
    let (to, length, mut copied) = (into.as_mut_ptr() as u64, into.len() as u64, 0);
    assert_eq!(vm::copy::read_overwrite(SELF, memory, length, to, &raw mut copied), 0);
    assert_eq!((copied, &into[..4]), (length, &[1, 2, 3, 4][..]));
    assert_eq!(vm::deallocate(SELF, memory + 4 * PAGE, PAGE), 0);
    let code = vm::copy::read_overwrite(SELF, memory, length, to, &raw mut copied);
    assert_eq!(code, kern::INVALID_ADDRESS);
    assert_eq!(vm::copy::write(SELF, memory, into.as_ptr() as usize, 4), 0);
    let hole = memory + 4 * PAGE;
    assert_eq!(vm::copy::write(SELF, hole, into.as_ptr() as usize, 4), kern::INVALID_ADDRESS);
    assert_eq!(vm::protect(SELF, memory, PAGE, 0, 1), 0);
    let code = vm::copy::write(SELF, memory, into.as_ptr() as usize, 4);
    assert_eq!(code, kern::PROTECTION_FAILURE);
}
