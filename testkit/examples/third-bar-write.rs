//! Has the function process killed at the third BAR write, and sees the guest live.

use cordon_testkit::{PassthroughDevice as _, Rig, function};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kill = function().at_bar_write(3).during().kill();
    let rig = Rig::with_device("01:00.0=probe").fault(kill).start()?;
    let device = rig.attach("01:00.0")?;
    for number in 0..6u32 {
        let (at, mut back) = (0x10 + 4 * u64::from(number), [0; 4]);
        device.bar_write(0, at, &number.to_le_bytes())?;
        device.bar_read(0, at, &mut back)?;
        assert_eq!(u32::from_le_bytes(back), number, "the guest noticed");
    }
    let [survived] = &rig.survived(&device)?[..] else { panic!("there is one fault") };
    assert_ne!(survived.process, survived.successor, "{survived}");
    Ok(rig.finish()?)
}
