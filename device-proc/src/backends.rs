//! Which backends there are: the one place where the roles' crate names one.

use cordon_backend::{Backend, BackendError};
use dext_client::{Dext, Endpoint};

/// The backend at `endpoint`.
///
/// # Errors
/// [`BackendError`] when this build cannot talk to it.
pub fn open(endpoint: &Endpoint) -> Result<Box<dyn Backend>, BackendError> {
    match endpoint {
        #[cfg(target_os = "linux")]
        Endpoint::Vfio => Ok(Box::new(vfio_client::Vfio::default())),
        endpoint => Ok(Box::new(Dext::at(endpoint)?)),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use sandbox_profiles::policy::vfio;

    #[test]
    fn the_policy_lets_through_what_the_vfio_client_asks() {
        let asked = [
            vfio_client::DEVICE_SET_IRQS,
            vfio_client::DEVICE_RESET,
            vfio_client::IOMMU_MAP_DMA,
            vfio_client::IOMMU_UNMAP_DMA,
            vfio_client::DEVICE_PCI_HOT_RESET,
            vfio_client::IOMMU_IOAS_MAP,
            vfio_client::IOMMU_IOAS_MAP_FILE,
            vfio_client::IOMMU_IOAS_UNMAP,
        ];
        let allowed = [
            vfio::SET_INTERRUPTS,
            vfio::RESET,
            vfio::MAP_DMA,
            vfio::UNMAP_DMA,
            vfio::RESET_BUS,
            vfio::MAP_IOAS,
            vfio::MAP_FILE_IOAS,
            vfio::UNMAP_IOAS,
        ];
        assert_eq!(asked.map(u64::from), allowed);
    }
}
