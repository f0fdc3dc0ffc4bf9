//! The report in pictures: what they show is gathered here, drawn by the other files, and put on one page by `page`.

mod chart;
mod diagram;
mod page;
mod trace;

pub(crate) use diagram::Diagram;
pub(crate) use trace::trace;

use crate::plan::GroupPlan;
use crate::report::Score;

/// What a report in pictures shows beside the facts of a [`Report`](crate::Report).
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// Of each group of the report how much of its energy each rank leaves.
    pub(crate) spectra: Vec<Spectrum>,
    /// A block of each group, before and after.
    pub(crate) diagrams: Vec<Diagram>,
    /// The error at each convolution.
    pub(crate) trace: Vec<TraceRow>,
    /// What it was followed on.
    pub(crate) traced: String,
    /// What other ratios would have kept of the images' classes.
    pub(crate) curve: Vec<CurvePoint>,
}

/// How fast what a group is decomposed by falls.
#[derive(Debug, Clone)]
pub(crate) struct Spectrum {
    /// For each chain the share of the energy that is left beyond rank 0, 1, 2, …
    pub(crate) left: Vec<Vec<f64>>,
    /// The rank chosen, one a chain.
    pub(crate) ranks: Vec<usize>,
}

/// `‖y − ŷ‖ / ‖y‖` at the output of one convolution.
#[derive(Debug, Clone)]
pub(crate) struct TraceRow {
    /// The convolution.
    pub(crate) name: String,
    /// Whether it was decomposed.
    pub(crate) decomposed: bool,
    /// Where it reads what it reads in the original.
    pub(crate) alone: f64,
    /// Where it reads what the compressed network gives it.
    pub(crate) arrived: f64,
}

/// What one ratio keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CurvePoint {
    /// Parameters before ÷ after.
    pub(crate) ratio: f64,
    pub(crate) score: Score,
}

impl Spectrum {
    pub(crate) fn of(group: &GroupPlan) -> Self {
        let left = group.analysis.spectra().into_iter().map(|spectrum| {
            let whole = spectrum.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            let mut left: Vec<f64> = Vec::with_capacity(spectrum.len() + 1);
            // From the end, so that small values are not lost beside large ones.
            left.extend(spectrum.iter().rev().scan(0.0, |sum, s| {
                *sum += s / whole;
                Some(*sum)
            }));
            left.reverse();
            left.push(0.0);
            left
        });
        Self { left: left.collect(), ranks: group.ranks.clone() }
    }
}
