//! What a published comparison leaves whole, so that its figures can be reproduced.

use super::Stream;

/// A published way of comparing decompositions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// That of arXiv 2107.04386, §V: the stem, the first stage, the shortcuts and fully connected layers stay whole.
    Paper,
}

/// For each convolution in graph order, of which some are `dense` layers, why the paper leaves it whole, if it does; nothing for a network without
/// residual stages. A stage's convolutions are those up to the last one that writes its residual stream; a shortcut's reads one
/// stream and writes the next.
pub(super) fn left_whole(dense: &[bool], streams: &[Stream]) -> Option<Vec<Option<&'static str>>> {
    // What a single convolution writes, as the stem before bottlenecks, is no stage's.
    let stages = || streams.iter().filter(|s| s.writers.len() > 1);
    let end = 1 + stages().min_by_key(|s| s.writers[0])?.writers.last()?;
    let shortcut = |conv: usize| {
        let mut written = stages().filter(|s| s.writers.contains(&conv) && !s.readers.contains(&conv));
        written.next().is_some() && streams.iter().any(|s| s.readers.contains(&conv))
    };
    let reason = |conv: usize| match conv {
        head if dense[head] => Some("fully connected layers"),
        early if early < end => Some("the stem and the first stage"),
        conv if shortcut(conv) => Some("shortcuts"),
        _ => None,
    };
    Some((0..dense.len()).map(reason).collect())
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
        let whole = left_whole(&[false; 8], &[stream(&[1, 3, 5], &[0, 2]), stream(&[6], &[4, 5, 7])]).unwrap();
        let kept: Vec<usize> = (0..8).filter(|&i| whole[i].is_none()).collect();
        assert_eq!(kept, [3, 4, 6, 7]);
        assert!(left_whole(&[false; 8], &[stream(&[1, 2], &[0])]).is_none());
        assert_eq!((whole[0], whole[5]), (Some("the stem and the first stage"), Some("shortcuts")));
    }
}
