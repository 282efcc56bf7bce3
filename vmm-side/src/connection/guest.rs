//! Whose memory the functions of a group reach, where what one of them is given all of them reach: one guest's.

use std::sync::{Arc, Weak};

use ipc::PciAddress;

use super::NotReserved;
use crate::container::Container;

/// The guest, for as long as a function of the group is in use.
#[derive(Debug, Default)]
pub(super) struct Guest(Weak<Container>);

impl Guest {
    /// A function is to be attached for the guest whose memory `container` is, while another one is in use, or none.
    ///
    /// # Errors
    /// [`NotReserved::OtherGuest`] when the one in use is another guest's.
    pub(super) fn admit(
        &mut self,
        container: &Arc<Container>,
        in_use: Option<PciAddress>,
    ) -> Result<(), NotReserved> {
        match in_use {
            Some(other) if !std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(container)) => {
                Err(NotReserved::OtherGuest(other))
            }
            _ => {
                self.0 = Arc::downgrade(container);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DmaMode;

    #[test]
    fn functions_of_a_group_are_of_one_guest_until_the_last_is_gone() {
        let [one, other] = [(); 2].map(|()| Arc::new(Container::new(DmaMode::Direct)));
        let first = "01:00.0".parse().unwrap();
        let mut guest = Guest::default();
        guest.admit(&one, None).unwrap();
        guest.admit(&one, Some(first)).unwrap();
        assert_eq!(guest.admit(&other, Some(first)), Err(NotReserved::OtherGuest(first)));
        guest.admit(&one, Some(first)).unwrap();
        guest.admit(&other, None).unwrap();
        assert_eq!(guest.admit(&one, Some(first)), Err(NotReserved::OtherGuest(first)));
        // A container that is gone is nobody's, also if another one is where it was.
        drop(other);
        assert_eq!(guest.admit(&one, Some(first)), Err(NotReserved::OtherGuest(first)));
    }
}
