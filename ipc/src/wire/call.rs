//! Typed calls: a request type knows its reply type and its name.
//!
//! A conversation is an enum of requests, made by the macro `conversation!` from one type each. Whoever
//! asks encodes one request type ([`Tagged`], the bytes of the enum's variant) and decodes exactly
//! the [`Call::Reply`] of it; whoever answers matches on the enum. So a reply of another kind is a
//! malformed message, not a case to handle.
//!
//! After the handshake a child sends one `Result<Ready, Failure>`, and from then on one
//! `Result<Reply, Failure>` for each request, under its number: in order, except where answering
//! one takes other work of the process ([`Doorbell`](super::function::Doorbell)).

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::ser::Serializer;

/// A request of the conversation `Q`.
pub trait Call<Q>: Serialize {
    /// What answers it.
    type Reply: Serialize + DeserializeOwned;
    /// Number of its variant in `Q`.
    const TAG: u32;

    /// Its name, for people and for fault plans: the type's, except where one type has several.
    fn name(&self) -> &'static str;
}

/// A request as it travels: the bytes of `Q`'s variant that holds it.
#[derive(Debug)]
pub struct Tagged<'c, Q, C>(&'c C, PhantomData<fn() -> Q>);

impl<'c, Q, C: Call<Q>> Tagged<'c, Q, C> {
    /// Of `call`.
    pub fn new(call: &'c C) -> Self {
        Self(call, PhantomData)
    }
}

impl<Q, C: Call<Q>> Serialize for Tagged<'_, Q, C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_variant("Request", C::TAG, self.0.name(), self.0)
    }
}

/// The names of one request type where it is not the type's own.
pub(crate) trait Names {
    /// All of them.
    const NAMES: &'static [&'static str];
    /// Of this one.
    fn name(&self) -> &'static str;
}

/// Makes the enum of a conversation and the [`Call`] of each request in it.
macro_rules! conversation {
    (
        $(#[$meta:meta])*
        pub enum $Request:ident {
            $( $(#[$variant:meta])* $Name:ident -> $Reply:ty $(, names of $Named:ty)? ; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $Request {
            $( $(#[$variant])* $Name($Name), )*
        }

        impl $Request {
            /// The names of all requests.
            #[must_use]
            pub fn names() -> Vec<&'static str> {
                let mut names = Vec::new();
                $( names.extend_from_slice(conversation!(@names $Name $(, $Named)?)); )*
                names
            }
        }

        const _: () = {
            enum Tag { $( $Name, )* }
            $(
                impl From<$Name> for $Request {
                    fn from(call: $Name) -> Self {
                        Self::$Name(call)
                    }
                }

                impl $crate::wire::call::Call<$Request> for $Name {
                    type Reply = $Reply;
                    const TAG: u32 = Tag::$Name as u32;
                    fn name(&self) -> &'static str {
                        conversation!(@name self, $Name $(, $Named)?)
                    }
                }
            )*
        };
    };
    (@names $Name:ident) => { &[stringify!($Name)] };
    (@names $Name:ident, $Named:ty) => { <$Named as $crate::wire::call::Names>::NAMES };
    (@name $self:ident, $Name:ident) => { stringify!($Name) };
    (@name $self:ident, $Name:ident, $Named:ty) => { $crate::wire::call::Names::name($self) };
}
pub(crate) use conversation;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::wire::function::{Access, AddMemory, Request, Reset, Space};

    #[test]
    fn a_tagged_call_is_the_variant_that_holds_it() {
        let access = Access::read(Space::Bar(2), 0x10, 4);
        let memory = AddMemory { base: 1, size: 2, offset: 3, writable: true };
        let pairs = [
            (
                codec::encode(&Tagged::<Request, _>::new(&access), 64).unwrap(),
                Request::Access(access),
            ),
            (
                codec::encode(&Tagged::<Request, _>::new(&memory), 64).unwrap(),
                Request::AddMemory(memory),
            ),
            (codec::encode(&Tagged::<Request, _>::new(&Reset), 64).unwrap(), Request::Reset(Reset)),
        ];
        for (bytes, request) in pairs {
            assert_eq!(codec::decode::<Request>(&bytes).unwrap(), request);
        }
    }

    #[test]
    fn an_access_is_named_for_what_it_does() {
        let name = |access: Access| Call::<Request>::name(&access);
        assert_eq!(name(Access::read(Space::Config, 0, 4)), "ConfigRead");
        assert_eq!(name(Access::write(Space::Bar(0), 0, 4, 1)), "BarWrite");
        let names = Request::names();
        for expected in ["ConfigRead", "ConfigWrite", "BarRead", "BarWrite", "Reset", "Doorbell"] {
            assert!(names.contains(&expected), "{expected}");
        }
    }
}
