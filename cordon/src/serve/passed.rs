//! Sockets that a service manager made and passed on (socket activation): which of them is whose.
//!
//! A name says it: that of a function is its address with `-` for `:`, as 01-00.0, or what the config file
//! says; that of its companion has `-companion` after it. Those that nobody is named by are given to the
//! functions that are left, in order, if there are as many: a manager that is told no names calls each after
//! its unit.

use ipc::PciAddress;

use super::inherited::Inherited;
use crate::Failure;

/// What was passed on, until it is somebody's.
#[derive(Debug, Default)]
pub(super) struct Passed(Vec<(String, Inherited)>);

impl Passed {
    /// All that were.
    pub(super) fn take() -> Result<Self, Failure> {
        let passed = crate::sys::passed()
            .map_err(|error| format!("the sockets that were passed on are not told: {error}"))?;
        let take = |(number, name)| Ok((name, Inherited::take(number)?));
        Ok(Self(passed.into_iter().map(take).collect::<Result<_, Failure>>()?))
    }

    /// Whether there is none left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one of this name.
    pub(super) fn named(&mut self, name: &str) -> Option<Inherited> {
        let at = self.0.iter().position(|(one, _)| one == name)?;
        Some(self.0.remove(at).1)
    }

    /// All that are left, in order, for so many functions.
    pub(super) fn rest(&mut self, functions: usize) -> Result<Vec<Inherited>, Failure> {
        if functions == self.0.len() {
            return Ok(self.0.drain(..).map(|(_, socket)| socket).collect());
        }
        let names: Vec<String> = self.0.iter().map(|(name, _)| format!("'{name}'")).collect();
        let left = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(format!(
            "{functions} functions have no socket, and of those that were passed on {left} is nobody's: \
             a socket is called as its function, 01-00.0 for 01:00.0"
        )
        .into())
    }
}

/// What the socket of a function is called.
pub(super) fn name(address: PciAddress) -> String {
    address.to_string().replace(':', "-")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_come_first_and_the_rest_in_order_if_it_is_as_many() {
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| {
            let path = folder.path().join(name);
            let listener = UnixListener::bind(path).unwrap();
            (name.to_owned(), Inherited::of(listener.into()).unwrap())
        };
        let mut passed = Passed(["a", "01-00.1", "b"].map(socket).into());
        let file = |socket: &Inherited| socket.name().file_name().unwrap().to_owned();
        assert!(passed.named("01-00.0").is_none());
        let named = passed.named(&name("01:00.1".parse().unwrap())).unwrap();
        assert_eq!(file(&named), "01-00.1");
        let error = passed.rest(1).unwrap_err().to_string();
        assert!(error.contains("1 functions have no socket") && error.contains("'a', 'b'"));
        let rest = passed.rest(2).unwrap();
        assert_eq!(rest.iter().map(file).collect::<Vec<_>>(), ["a", "b"]);
        assert!(passed.is_empty() && passed.rest(0).unwrap().is_empty());
        assert!(passed.rest(1).unwrap_err().to_string().contains("none is nobody's"));
    }
}
