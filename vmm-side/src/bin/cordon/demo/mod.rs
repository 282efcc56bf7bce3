//! .
use clap::Args;
/// .
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {}
pub(crate) fn run(_: &DemoOptions) -> Result<(), crate::Failure> {
    Ok(())
}
