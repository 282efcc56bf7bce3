//! What the image imports is bound to what the runner implements.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::image::fixups::Import;

/// Everything that is implemented, by name.
fn table() -> &'static HashMap<&'static str, usize> {
    static TABLE: OnceLock<HashMap<&'static str, usize>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let ours = crate::libsystem::symbols().into_iter();
        let rest = [crate::unwind::SYMBOLS, crate::tlv::SYMBOLS];
        let all = ours.chain(rest).chain(mach_kernel::symbols()).flatten();
        let mut table = HashMap::new();
        for symbol in all {
            let twice = table.insert(symbol.name, symbol.address as usize);
            assert!(twice.is_none(), "{} is implemented twice", symbol.name);
        }
        table
    })
}

/// The address of a symbol, by its name in an image.
pub(crate) fn find(name: &str) -> Option<usize> {
    table().get(name).copied()
}

/// The addresses of all imports; names what is not implemented.
pub(crate) fn bind(imports: &[Import]) -> Result<Vec<usize>, String> {
    let found: Vec<_> = imports.iter().map(|import| (import, find(&import.name))).collect();
    let missing: Vec<&str> = found
        .iter()
        .filter(|(import, address)| address.is_none() && !import.weak)
        .map(|(import, _)| import.name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(found.into_iter().map(|(_, address)| address.unwrap_or(0)).collect());
    }
    let (asked, implemented) = (imports.len(), imports.len() - missing.len());
    let missing = missing.join(", ");
    Err(format!("imports: {asked} asked, {implemented} implemented; not implemented: {missing}"))
}
