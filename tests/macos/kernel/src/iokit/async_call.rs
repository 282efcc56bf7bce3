//! Asynchronous methods, and their completions as messages (IOUserClient.cpp `_sendAsyncResult64`,
//! OSMessageNotification.h).

use std::sync::PoisonError;

use cordon_ipc::wire::dext::Request as DextRequest;
use darwin_abi::Symbol;

use super::connect::{Connection, scalars};
use super::{connection, returned};
use crate::client::ask;
use crate::codes::{Code, NULL, Name};
use crate::ports::put;
use crate::wire::{Reply, Request};
use crate::{fail, sandbox};

pub(super) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_IOConnectCallAsyncScalarMethod" => call as extern "C" fn(_, _, _, _, _, _, _, _, _) -> _,
};

/// kOSNotificationMessageID and kIOAsyncCompletionNotificationType.
pub(super) const MESSAGE: i32 = 53;
pub(super) const COMPLETION: u32 = 150;
/// kOSAsyncRef64Count; the first belongs to the kernel (kIOAsyncReservedIndex).
pub(super) const REFERENCES: usize = 8;

/// What is told when the call completes.
pub(crate) struct Armed {
    /// The kernel's right to the wake port.
    held: u64,
    reference: [u64; REFERENCES],
}

/// Header and content of a notification: {size, type, 8 references} and then what it says, packed.
pub(super) fn notification(kind: u32, reference: &[u64; REFERENCES], content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut body: Vec<u8> = [size, kind].into_iter().flat_map(u32::to_le_bytes).collect();
    body.extend(reference.iter().flat_map(|word| word.to_le_bytes()));
    body.extend(content);
    body
}

pub(crate) extern "C" fn call(
    connect: Name,
    selector: u32,
    wake: Name,
    reference: *mut u64,
    reference_count: u32,
    input: *const u64,
    input_count: u32,
    _output: *mut u64,
    output_count: *mut u32,
) -> Code {
    if let Err(code) = sandbox::routine("io_connect_async_method") {
        return code;
    }
    let called = connection(connect).and_then(|connection| {
        if reference_count == 0 || reference_count as usize > REFERENCES {
            return Err(returned::BAD_ARGUMENT);
        }
        // SAFETY: the Darwin call's arrays and their lengths.
        let (inputs, given) =
            unsafe { (scalars(input, input_count)?, scalars(reference, reference_count)?) };
        let mut reference = [0; REFERENCES];
        reference[..given.len()].copy_from_slice(&given);
        reference[0] = 0;
        // MIG makes a send right of the wake port.
        let held = match ask(&Request::Hold { name: wake }) {
            Reply::Number(held) => held,
            Reply::Code(code) => return Err(code),
            other => fail::not_simulated(&format!("an answer to a wake port: {other:?}")),
        };
        // In its place before the dext may complete it: a newer one releases the older without a word.
        let before = connection
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(Armed { held, reference });
        let asked = connection.exchange(&DextRequest::CallAsync { selector, inputs }, &[]);
        let old = match asked {
            Ok(_) => before,
            // No completion comes, and what was armed before still is.
            Err(code) => {
                let mut armed = connection.armed.lock().unwrap_or_else(PoisonError::into_inner);
                let failed = std::mem::replace(&mut *armed, before);
                drop(armed);
                let_go(failed);
                return Err(code);
            }
        };
        let_go(old);
        Ok(())
    });
    match called {
        Ok(()) => {
            if !output_count.is_null() {
                // SAFETY: the Darwin call's place for a count.
                unsafe { put(output_count, 0) };
            }
            returned::SUCCESS
        }
        Err(code) => code,
    }
}

fn let_go(armed: Option<Armed>) {
    if let Some(armed) = armed {
        ask(&Request::LetGo { held: armed.held });
    }
}

/// The end of a connection: what is armed is dropped without a last message.
pub(super) fn drop_armed(connection: &Connection) {
    let_go(connection.armed.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// The dext completed the call: one message, to a port that is not the sender's to answer.
pub(super) fn complete(connection: &Connection) {
    let armed = connection.armed.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Armed { held, reference }) = armed {
        let body = notification(COMPLETION, &reference, &returned::SUCCESS.to_le_bytes());
        ask(&Request::FromKernel { held, id: MESSAGE, body, is_last: true });
    }
}

/// The send right of a port, to be told by later; 0 if the port is none.
pub(super) fn hold(port: Name) -> Option<u64> {
    match ask(&Request::Hold { name: port }) {
        Reply::Number(held) if port != NULL => Some(held),
        _ => None,
    }
}
