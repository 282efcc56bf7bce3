//! Wrong that a confined process is asked to do, for people who test by killing. Only the
//! program that is made for it obeys; `device-proc` refuses.

use serde::{Deserialize, Serialize};

use super::dext::IoReturn;

/// When, relative to the next request that is not itself [`Misbehaviour`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Point {
    /// Before it is carried out.
    Before,
    /// After it was carried out and before its reply.
    During,
    /// After its reply.
    After,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wrong {
    /// It loops forever.
    Hang,
    /// It sends bytes that are no message.
    Garbage,
    /// It sends the first half of a message.
    Truncated,
    /// It closes its end of the tube and goes on existing.
    Closed,
    /// The next call of a selector fails, as if the dext had refused it.
    Selector {
        /// The dext's selector.
        selector: u32,
        /// What it returns.
        code: IoReturn,
    },
}

/// What to do, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misbehaviour {
    /// When. A failing selector is armed at once.
    pub point: Point,
    /// What.
    pub wrong: Wrong,
}

/// Do wrong at the next request; refused by a program that is not made for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misbehave(pub Misbehaviour);
