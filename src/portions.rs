//! Work cut into portions, so that a model of many large layers does not take the temporaries of all at once.

use crate::error::Result;
use rayon::prelude::*;

/// Bytes that the temporaries of one portion may take in any case, about.
const LEAST_ROOM: u64 = 1 << 30;

/// Bytes that the temporaries of one portion may take, about, for a model of so many parameters: a quarter of it in float32.
pub(crate) fn room(parameters: u64) -> u64 {
    parameters.max(LEAST_ROOM)
}

/// Does some work for each item, portion by portion, the items of one on all threads; results in the order of the items. `bytes`
/// says what the work for an item takes for a while, about; a portion takes no more than there is `room`, unless it is one item.
///
/// # Errors
/// The first of the work's own, in the order of the items.
pub(crate) fn in_portions<T: Sync, R: Send>(
    items: &[T],
    room: u64,
    bytes: impl Fn(&T) -> u64,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mut done = Vec::with_capacity(items.len());
    let mut left = items;
    while !left.is_empty() {
        let sums = left.iter().scan(0u64, |sum, item| {
            *sum = sum.saturating_add(bytes(item));
            Some(*sum)
        });
        let (portion, rest) = left.split_at(sums.take_while(|&sum| sum <= room).count().max(1));
        // All of them first, or it would be left to chance which of several errors is returned.
        let each: Vec<Result<R>> = portion.par_iter().with_max_len(1).map(&work).collect();
        for item in each {
            done.push(item?);
        }
        left = rest;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    #[test]
    fn portions_are_in_order_and_take_no_more_than_they_may() {
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let sizes = [40, 40, 50, 1, 250, 120, 0, 0, 5];
        let done = in_portions(
            &sizes,
            120,
            |&size| size,
            |&size| {
                most.fetch_max(now.fetch_add(size, SeqCst) + size, SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(2));
                now.fetch_sub(size, SeqCst);
                Ok(size)
            },
        );
        assert_eq!(done.unwrap(), sizes);
        let failing = in_portions(
            &sizes,
            120,
            |&size| size,
            |&size| {
                std::thread::sleep(std::time::Duration::from_millis(if size == 40 { 5 } else { 0 }));
                Err::<(), _>(Error::Options(size.to_string()))
            },
        );
        assert!(matches!(failing, Err(Error::Options(which)) if which == "40"));
        // One item is more than there is room for, and stands alone.
        assert_eq!(most.into_inner(), 250);
    }
}
