//! Lists and rare cases of an input. `arbitrary` by itself ends a list at every other element and takes every
//! other case to be the unusual one: a target that needs several steps to get anywhere would get
//! there in few runs.

use arbitrary::{Arbitrary, Result, Unstructured};

/// Most steps of an input.
const MOST: usize = 40;

/// As many as the input has bytes for: what an input ends with.
pub(crate) fn rest<'a, T: Arbitrary<'a>>(input: &mut Unstructured<'a>) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while !input.is_empty() && all.len() < MOST {
        all.push(input.arbitrary()?);
    }
    Ok(all)
}

/// A few.
pub(crate) fn several<'a, T: Arbitrary<'a>>(input: &mut Unstructured<'a>) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while all.len() < MOST && input.arbitrary::<u8>()? >= 64 {
        all.push(input.arbitrary()?);
    }
    Ok(all)
}

/// Once in 32 times; what there is no input for is nothing unusual.
pub(crate) fn rarely<'a, T: Arbitrary<'a>>(input: &mut Unstructured<'a>) -> Result<Option<T>> {
    if input.arbitrary::<u8>()? >= 248 { input.arbitrary().map(Some) } else { Ok(None) }
}
