//! Convolutions, transposed convolutions and fully connected layers as matrix products, image by image.

use super::op::{Op, Seen};
use super::product::{Factor, add_product, product};
use super::simd::{add_to, sum};
use crate::gradient::{Run, Shift, Slide, is_pointwise, runs, shifts};

/// `y = W·im2col(x) + b`, group by group.
pub(super) struct Conv {
    images: usize,
    groups: usize,
    /// Channels of one group.
    inputs: usize,
    outputs: usize,
    taps: usize,
    /// Elements of a channel.
    plane: usize,
    places: usize,
    moves: Moves,
    /// The product `x̄ = col2im(Wᵀ·ȳ)` is the operator, and its adjoint the other one: `ConvTranspose`.
    transposed: bool,
}

/// How planes become columns of a matrix, one row a tap.
enum Moves {
    /// They are columns.
    None,
    Shifts(Vec<Shift>),
    Runs(Vec<Run>),
}

impl Moves {
    fn of(slides: &[Slide; 2]) -> Self {
        match shifts(slides) {
            _ if is_pointwise(slides) => Self::None,
            Some(shifts) => Self::Shifts(shifts),
            None => Self::Runs(joined(runs(slides))),
        }
    }
}

impl Conv {
    /// `kernel` is ONNX's shape of W, `slides` are those of the convolution (of a transposed one, from its output to its input).
    pub(super) fn new(images: usize, kernel: &[usize], groups: usize, slides: &[Slide; 2], transposed: bool) -> Self {
        Self {
            images,
            groups,
            inputs: kernel[1],
            outputs: kernel[0] / groups,
            taps: slides.iter().map(|s| s.kernel).product(),
            plane: slides.iter().map(|s| s.input).product(),
            places: slides.iter().map(|s| s.output).product(),
            moves: Moves::of(slides),
            transposed,
        }
    }

    /// The weights of a group as `outputs × inputs·taps`.
    fn kernel<'w>(&self, w: &'w [f32], group: usize) -> Factor<'w> {
        let size = self.outputs * self.inputs * self.taps;
        Factor::new(&w[group * size..], self.outputs, self.inputs * self.taps)
    }

    /// Where a group of an image lies among planes of so many elements.
    fn part(&self, image: usize, group: usize, channels: usize, size: usize) -> std::ops::Range<usize> {
        let from = (image * self.groups + group) * channels * size;
        from..from + channels * size
    }

    fn gathered<'c>(&self, x: &'c [f32], columns: &'c mut Vec<f32>) -> Factor<'c> {
        let rows = self.inputs * self.taps;
        if columns.len() < rows * self.places {
            columns.resize(rows * self.places, 0.0);
        }
        match &self.moves {
            Moves::None => return Factor::new(x, rows, self.places),
            Moves::Shifts(shifts) => {
                let rows = columns.chunks_exact_mut(self.places);
                let from = x.chunks_exact(self.plane).flat_map(|plane| shifts.iter().map(move |shift| (plane, shift)));
                rows.zip(from).for_each(|(row, (plane, shift))| shift.gather(plane, row));
            }
            Moves::Runs(runs) => {
                columns[..rows * self.places].fill(0.0);
                for (plane, rows) in x.chunks_exact(self.plane).zip(columns.chunks_exact_mut(self.taps * self.places)) {
                    for run in runs {
                        run.gather(plane, &mut rows[run.tap * self.places..][..self.places]);
                    }
                }
            }
        }
        Factor::new(columns, rows, self.places)
    }

    /// `y += W·im2col(x)`.
    fn apply(&self, w: &[f32], x: &[f32], y: &mut [f32], columns: &mut Vec<f32>) {
        for (image, group) in self.parts() {
            let x = &x[self.part(image, group, self.inputs, self.plane)];
            let to = self.part(image, group, self.outputs, self.places);
            add_product(&mut y[to], self.kernel(w, group), self.gathered(x, columns));
        }
    }

    /// `x += col2im(Wᵀ·y)`.
    fn adjoint(&self, w: &[f32], y: &[f32], x: &mut [f32], columns: &mut Vec<f32>) {
        let rows = self.inputs * self.taps;
        for (image, group) in self.parts() {
            let y = &y[self.part(image, group, self.outputs, self.places)];
            let x = &mut x[self.part(image, group, self.inputs, self.plane)];
            let (kernel, y) = (self.kernel(w, group).t(), Factor::new(y, self.outputs, self.places));
            if matches!(self.moves, Moves::None) {
                add_product(x, kernel, y);
                continue;
            }
            if columns.len() < rows * self.places {
                columns.resize(rows * self.places, 0.0);
            }
            product(columns, kernel, y);
            let parts = columns.chunks_exact_mut(self.taps * self.places);
            for (plane, rows) in x.chunks_exact_mut(self.plane).zip(parts) {
                match &self.moves {
                    Moves::None => {}
                    Moves::Shifts(shifts) => {
                        let each = rows.chunks_exact_mut(self.places).zip(shifts);
                        each.for_each(|(row, shift)| shift.scatter(plane, row, add_to));
                    }
                    Moves::Runs(runs) => {
                        runs.iter().for_each(|run| run.scatter(plane, &rows[run.tap * self.places..][..self.places]));
                    }
                }
            }
        }
    }

    /// `W̄ += y·im2col(x)ᵀ`.
    fn weights(&self, x: &[f32], y: &[f32], into: &mut [f32], columns: &mut Vec<f32>) {
        let size = self.outputs * self.inputs * self.taps;
        for (image, group) in self.parts() {
            let x = &x[self.part(image, group, self.inputs, self.plane)];
            let y = &y[self.part(image, group, self.outputs, self.places)];
            let into = &mut into[group * size..(group + 1) * size];
            add_product(into, Factor::new(y, self.outputs, self.places), self.gathered(x, columns).t());
        }
    }

    fn parts(&self) -> impl Iterator<Item = (usize, usize)> {
        let groups = self.groups;
        (0..self.images).flat_map(move |image| (0..groups).map(move |group| (image, group)))
    }

    /// Elements of a channel of what is written.
    fn written(&self) -> usize {
        if self.transposed { self.plane } else { self.places }
    }
}

impl Op for Conv {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], columns: &mut Vec<f32>) {
        match x.get(2) {
            Some(bias) => {
                let planes = y.chunks_exact_mut(self.written());
                planes.zip(bias.iter().cycle()).for_each(|(plane, bias)| plane.fill(*bias));
            }
            None => y.fill(0.0),
        }
        match self.transposed {
            false => self.apply(x[1], x[0], y, columns),
            true => self.adjoint(x[1], x[0], y, columns),
        }
    }

    fn backward(&self, position: usize, seen: &Seen<'_>, into: &mut [f32], columns: &mut Vec<f32>) {
        let (x, w, g) = (seen.x[0], seen.x[1], seen.g);
        match (position, self.transposed) {
            (0, false) => self.adjoint(w, g, into, columns),
            (0, true) => self.apply(w, g, into, columns),
            (1, false) => self.weights(x, g, into, columns),
            (1, true) => self.weights(g, x, into, columns),
            _ => {
                let channels = into.len();
                g.chunks_exact(self.written()).enumerate().for_each(|(at, g)| into[at % channels] += sum(g));
            }
        }
    }
}

/// Runs that continue each other, as one.
fn joined(runs: Vec<Run>) -> Vec<Run> {
    let mut found: Vec<Run> = Vec::new();
    for run in runs {
        if !found.last_mut().is_some_and(|last| last.absorb(&run)) {
            found.push(run);
        }
    }
    found
}

/// `Y = X·W + b` for rows of X, W stored `in × out` or its transpose.
pub(super) struct Linear {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) transposed: bool,
}

impl Linear {
    fn weight<'w>(&self, w: &'w [f32]) -> Factor<'w> {
        match self.transposed {
            true => Factor::new(w, self.outputs, self.inputs).t(),
            false => Factor::new(w, self.inputs, self.outputs),
        }
    }
}

impl Op for Linear {
    fn forward(&self, x: &[&[f32]], y: &mut [f32], _: &mut Vec<f32>) {
        match x.get(2) {
            // One number a column, or one a place.
            Some(bias) if !bias.is_empty() => {
                y.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
            }
            _ => y.fill(0.0),
        }
        add_product(y, Factor::new(x[0], self.rows, self.inputs), self.weight(x[1]));
    }

    fn backward(&self, position: usize, seen: &Seen<'_>, into: &mut [f32], _: &mut Vec<f32>) {
        let g = Factor::new(seen.g, self.rows, self.outputs);
        let x = || Factor::new(seen.x[0], self.rows, self.inputs);
        match (position, self.transposed) {
            (0, _) => add_product(into, g, self.weight(seen.x[1]).t()),
            (1, false) => add_product(into, x().t(), g),
            (1, true) => add_product(into, g.t(), x()),
            _ => seen.g.chunks_exact(into.len()).for_each(|row| add_to(into, row)),
        }
    }
}
