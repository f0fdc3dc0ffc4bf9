//! What a published comparison leaves whole, so that its figures can be reproduced.

use super::Stream;
use std::collections::BTreeSet;

/// A published way of comparing decompositions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// That of arXiv 2107.04386, §V: the stem, the first stage and the shortcuts stay whole.
    Paper,
}

/// For each of `count` convolutions in graph order why the paper leaves it whole, if it does. A stage's convolutions are those
/// up to the last one that writes its residual stream; a shortcut's reads one stream and writes another.
pub(super) fn left_whole(count: usize, streams: &[Stream]) -> Vec<Option<&'static str>> {
    let readers: BTreeSet<usize> = streams.iter().flat_map(|s| s.readers.iter().copied()).collect();
    let writers: BTreeSet<usize> = streams.iter().flat_map(|s| s.writers.iter().copied()).collect();
    // What a single convolution writes, as the stem before bottlenecks, is no stage's.
    let first = streams.iter().filter(|s| s.writers.len() > 1).min_by_key(|s| s.writers[0]);
    let end = first.and_then(|s| s.writers.last()).map_or(0, |last| last + 1);
    let reason = |conv: usize| match conv {
        early if early < end => Some("the stem and the first stage"),
        both if readers.contains(&both) && writers.contains(&both) => Some("shortcuts"),
        _ => None,
    };
    (0..count).map(reason).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stem_first_stage_and_shortcuts_are_left_whole() {
        // 0 stem; 1, 2 a block; 3, 4 a block with shortcut 5; 6, 7 a block.
        let stream = |readers: &[usize], writers: &[usize]| Stream {
            name: String::new(),
            readers: readers.to_vec(),
            writers: writers.to_vec(),
        };
        let whole = left_whole(8, &[stream(&[1, 3, 5], &[0, 2]), stream(&[6], &[4, 5, 7])]);
        let kept: Vec<usize> = (0..8).filter(|&i| whole[i].is_none()).collect();
        assert_eq!(kept, [3, 4, 6, 7]);
        assert_eq!((whole[0], whole[5]), (Some("the stem and the first stage"), Some("shortcuts")));
    }
}
