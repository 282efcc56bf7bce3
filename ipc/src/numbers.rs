//! The numbers by which both sides of a connection process name the functions of its isolation group.
//!
//! A function of the device that the process was started for has its function number, 0 to 7. A group of an
//! IOMMU's may have functions of other devices: they are numbered from 8 on, in the order in which the process
//! says that it has them ([`crate::wire::connection::Ready`]). Both sides number alike, from what the process says.

use crate::address::PciAddress;

/// The number of the first function that is of another device than the one that the process was started for.
const FIRST_OF_OTHERS: u8 = 8;

/// Every function with its number; of more than 256 the rest has none, and cannot be spoken of.
///
/// ```
/// let group = ["01:00.0", "02:00.0", "02:00.1"].map(|one| one.parse().unwrap());
/// let numbers: Vec<u8> = cordon_ipc::numbered(group[1], group).map(|(number, _)| number).collect();
/// assert_eq!(numbers, [8, 0, 1]);
/// ```
pub fn numbered(
    device: PciAddress,
    functions: impl IntoIterator<Item = PciAddress>,
) -> impl Iterator<Item = (u8, PciAddress)> {
    let mut others = FIRST_OF_OTHERS..=u8::MAX;
    functions.into_iter().filter_map(move |address| {
        let number = match address.same_device(device) {
            true => Some(address.function()),
            false => others.next(),
        };
        number.map(|number| (number, address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_functions_have_a_number_and_those_of_the_device_keep_theirs() {
        let device = PciAddress::new(1, 0, 3).unwrap();
        let all = (1..=3).flat_map(|bus| {
            (0..32).flat_map(move |device| {
                (0..8).map(move |function| PciAddress::new(bus, device, function).unwrap())
            })
        });
        let numbered: Vec<_> = numbered(device, all).collect();
        assert_eq!(numbered.len(), 256, "as many as there are numbers");
        let mut numbers: Vec<_> = numbered.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 256);
        let of_it = numbered.iter().filter(|(_, address)| address.same_device(device));
        assert!(of_it.clone().all(|(number, address)| *number == address.function()));
        assert_eq!(of_it.count(), 8);
    }
}
