//! Poolings over the planes of channels.

use super::op::{Op, Seen};
use crate::gradient::{Run, Slide, runs};

/// The largest of each window; equal ones: the first.
pub(super) struct MaxPool {
    pub(super) slides: [Slide; 2],
}

/// The mean of each window.
pub(super) struct AveragePool {
    plane: usize,
    runs: Vec<Run>,
    /// One over the elements that each window counts.
    shares: Vec<f32>,
}

impl MaxPool {
    /// For each window its largest element's place.
    fn each(&self, x: &[f32], mut found: impl FnMut(usize, usize)) {
        let [rows, columns] = &self.slides;
        for row in 0..rows.output {
            for column in 0..columns.output {
                let mut largest: Option<usize> = None;
                for y in (0..rows.kernel).filter_map(|k| rows.source(row, k)) {
                    for c in (0..columns.kernel).filter_map(|k| columns.source(column, k)) {
                        let place = y * columns.input + c;
                        if largest.is_none_or(|l| x[place] > x[l]) {
                            largest = Some(place);
                        }
                    }
                }
                if let Some(place) = largest {
                    found(row * columns.output + column, place);
                }
            }
        }
    }

    fn planes(&self) -> (usize, usize) {
        (self.slides.iter().map(|s| s.input).product(), self.slides.iter().map(|s| s.output).product())
    }
}

impl Op for MaxPool {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        let (input, output) = self.planes();
        for (x, y) in x[0].chunks_exact(input).zip(y.chunks_exact_mut(output)) {
            self.each(x, |at, place| y[at] = x[place]);
        }
    }

    fn backward(&self, _: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        let (input, output) = self.planes();
        let planes = seen.x[0].chunks_exact(input).zip(seen.g.chunks_exact(output));
        for ((x, g), into) in planes.zip(into.chunks_exact_mut(input)) {
            self.each(x, |at, place| into[place] += g[at]);
        }
    }
}

impl AveragePool {
    pub(super) fn new(slides: &[Slide; 2], count_padding: bool) -> Self {
        let [rows, columns] = slides;
        let share = |at: usize| {
            let met = rows.met(at / columns.output, count_padding) * columns.met(at % columns.output, count_padding);
            1.0 / met.max(1) as f32
        };
        Self {
            plane: rows.input * columns.input,
            runs: runs(slides),
            shares: (0..rows.output * columns.output).map(share).collect(),
        }
    }
}

impl Op for AveragePool {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        for (x, y) in x[0].chunks_exact(self.plane).zip(y.chunks_exact_mut(self.shares.len())) {
            y.fill(0.0);
            self.runs.iter().for_each(|run| run.collect(x, y));
            y.iter_mut().zip(&self.shares).for_each(|(y, share)| *y *= share);
        }
    }

    fn backward(&self, _: usize, seen: &Seen<'_>, into: &mut [f32], scratch: &mut Vec<f32>) {
        for (g, into) in seen.g.chunks_exact(self.shares.len()).zip(into.chunks_exact_mut(self.plane)) {
            scratch.clear();
            scratch.extend(g.iter().zip(&self.shares).map(|(g, share)| g * share));
            self.runs.iter().for_each(|run| run.scatter(into, scratch));
        }
    }
}
