use crate::EINVAL;
use cordon_tests::vfio_user::{Served, words};
use cordon_vfio_user::protocol::command::IRQ_INFO;

#[test]
fn each_index_has_its_flags_and_count() {
    let served = Served::probe();
    let mut client = served.client();
    for (index, flags, count) in [(0, 7, 1), (1, 9, 32), (2, 9, 32), (3, 0, 0), (4, 0, 0)] {
        let body = client.ok(IRQ_INFO, &words(&[16, 0, index, 0]));
        assert_eq!(body, words(&[16, flags, index, count]));
    }
}

#[test]
fn indexes_and_sizes_that_are_not_there_are_refused() {
    let served = Served::probe();
    let mut client = served.client();
    assert_eq!(client.refused(IRQ_INFO, &words(&[16, 0, 5, 0]), &[]), EINVAL);
    assert_eq!(client.refused(IRQ_INFO, &words(&[16, 0, u32::MAX, 0]), &[]), EINVAL);
    assert_eq!(client.refused(IRQ_INFO, &words(&[12, 0, 0, 0]), &[]), EINVAL);
    assert_eq!(client.refused(IRQ_INFO, &words(&[16, 0, 0]), &[]), EINVAL);
}
