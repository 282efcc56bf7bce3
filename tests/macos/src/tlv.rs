//! Thread-local variables of the image, by dyld's protocol (dyld-1284.13, libdyld/ThreadLocalVariables).
//!
//! A variable is a descriptor of three words: a function, a key, and the offset in the thread's block. Code
//! calls the function with the descriptor and gets the variable's address; every other register is kept.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::OnceLock;

use darwin_abi::{Symbol, symbols};

use crate::image::{Loaded, Section};

/// The symbols of this file.
pub(crate) const SYMBOLS: &[Symbol] =
    symbols! { "__tlv_bootstrap" => get, "__tlv_atexit" => at_exit };

/// What a thread's block begins as.
#[derive(Debug)]
struct Template {
    content: usize,
    content_size: usize,
    size: usize,
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let Some(loaded) = Loaded::get() else {
            return Template { content: 0, content_size: 0, size: 0 };
        };
        let kinds = [Section::THREAD_LOCAL, Section::THREAD_LOCAL_ZEROS];
        let of = |kinds: &[u8]| -> Vec<(usize, usize)> {
            let sections = loaded.image.sections.iter();
            let sections = sections.filter(|section| kinds.contains(&section.kind));
            sections.map(|section| (section.address, section.address + section.size)).collect()
        };
        let all = of(&kinds);
        let start = all.iter().map(|(start, _)| *start).min().unwrap_or(0);
        let end = all.iter().map(|(_, end)| *end).max().unwrap_or(0);
        let content = of(&kinds[..1]).iter().map(|(_, end)| *end).max().unwrap_or(start);
        Template {
            content: start.wrapping_add(loaded.slide),
            content_size: content - start,
            size: end - start,
        }
    })
}

thread_local! {
    static BLOCK: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
    static ENDING: Destructors = const { Destructors(RefCell::new(Vec::new())) };
}

type Destructor = unsafe extern "C" fn(*mut c_void);

/// Destructors of this thread's variables. Dropped when the thread ends, which runs them.
struct Destructors(RefCell<Vec<(Destructor, *mut c_void)>>);

impl Destructors {
    /// Last registered, first run. One that registers another has it run too.
    fn run(&self) {
        loop {
            let next = self.0.borrow_mut().pop();
            let Some((destructor, object)) = next else { return };
            // SAFETY: registered as a pair by the image, for this thread, and run once.
            unsafe { destructor(object) };
        }
    }
}

impl Drop for Destructors {
    fn drop(&mut self) {
        self.run();
        BLOCK.with(|block| {
            // SAFETY: of this thread's own making, by malloc's family, or null; nothing uses it afterwards.
            unsafe { libc::free(block.replace(std::ptr::null_mut()).cast()) };
        });
    }
}

/// Runs the destructors of the calling thread: exit does so for the thread that calls it.
pub(crate) fn run_destructors() {
    let _ = ENDING.try_with(Destructors::run);
}

/// `_tlv_atexit`.
unsafe extern "C" fn at_exit(destructor: Destructor, object: *mut c_void) {
    let added = ENDING.try_with(|ending| ending.0.borrow_mut().push((destructor, object)));
    // A thread that ends already destroys nothing more.
    let _ = added;
}

/// The address of a variable of the calling thread.
unsafe extern "C" fn address(descriptor: *const usize) -> usize {
    // SAFETY: a descriptor of the image has three words.
    let offset = unsafe { descriptor.add(2).read() };
    let mut block = BLOCK.get();
    if block.is_null() {
        block = make();
        BLOCK.set(block);
        // So that the block is freed when the thread ends.
        let _ = ENDING.try_with(|_| ());
    }
    block as usize + offset
}

fn make() -> *mut u8 {
    const ALIGNMENT: usize = 64;
    let template = template();
    let size = template.size.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
    // SAFETY: a size that is a multiple of the alignment; the template is mapped and not longer than the block.
    unsafe {
        let block: *mut u8 = libc::aligned_alloc(ALIGNMENT, size).cast();
        if block.is_null() {
            libc::abort();
        }
        let content = template.content as *const u8;
        std::ptr::copy_nonoverlapping(content, block, template.content_size);
        block.add(template.content_size).write_bytes(0, size - template.content_size);
        block
    }
}

/// What the first word of every descriptor becomes: [`address`] with every register but x0, x16 and x17 kept.
#[unsafe(naked)]
unsafe extern "C" fn get() {
    std::arch::naked_asm!(
        "stp x29, x30, [sp, #-16]!",
        "mov x29, sp",
        "stp x1, x2, [sp, #-16]!",
        "stp x3, x4, [sp, #-16]!",
        "stp x5, x6, [sp, #-16]!",
        "stp x7, x8, [sp, #-16]!",
        "stp x9, x10, [sp, #-16]!",
        "stp x11, x12, [sp, #-16]!",
        "stp x13, x14, [sp, #-16]!",
        "mrs x14, nzcv",
        "stp x15, x14, [sp, #-16]!",
        "stp q0, q1, [sp, #-32]!",
        "stp q2, q3, [sp, #-32]!",
        "stp q4, q5, [sp, #-32]!",
        "stp q6, q7, [sp, #-32]!",
        "stp q16, q17, [sp, #-32]!",
        "stp q18, q19, [sp, #-32]!",
        "stp q20, q21, [sp, #-32]!",
        "stp q22, q23, [sp, #-32]!",
        "stp q24, q25, [sp, #-32]!",
        "stp q26, q27, [sp, #-32]!",
        "stp q28, q29, [sp, #-32]!",
        "stp q30, q31, [sp, #-32]!",
        "bl {address}",
        "ldp q30, q31, [sp], #32",
        "ldp q28, q29, [sp], #32",
        "ldp q26, q27, [sp], #32",
        "ldp q24, q25, [sp], #32",
        "ldp q22, q23, [sp], #32",
        "ldp q20, q21, [sp], #32",
        "ldp q18, q19, [sp], #32",
        "ldp q16, q17, [sp], #32",
        "ldp q6, q7, [sp], #32",
        "ldp q4, q5, [sp], #32",
        "ldp q2, q3, [sp], #32",
        "ldp q0, q1, [sp], #32",
        "ldp x15, x14, [sp], #16",
        "msr nzcv, x14",
        "ldp x13, x14, [sp], #16",
        "ldp x11, x12, [sp], #16",
        "ldp x9, x10, [sp], #16",
        "ldp x7, x8, [sp], #16",
        "ldp x5, x6, [sp], #16",
        "ldp x3, x4, [sp], #16",
        "ldp x1, x2, [sp], #16",
        "ldp x29, x30, [sp], #16",
        "ret",
        address = sym address,
    )
}
