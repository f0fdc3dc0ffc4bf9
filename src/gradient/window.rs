//! How the kernels of convolutions and poolings slide over one or two spatial axes.

use crate::onnx::attributes;
use crate::onnx::proto::NodeProto;
use std::ops::Range;

/// Sizes and attributes beyond this are taken for damage.
const LARGEST: i64 = 1 << 24;

/// The attributes of a sliding window.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// One or two.
    axes: usize,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    padding: Padding,
}

#[derive(Debug, Clone)]
enum Padding {
    /// Before each axis, then after each.
    Given(Vec<usize>),
    /// As much as the output's size asks for, the odd one after.
    SameUpper,
    /// The odd one before.
    SameLower,
}

/// One spatial axis of a window on a value of known size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slide {
    pub(crate) kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
    after: usize,
    pub(crate) input: usize,
    pub(crate) output: usize,
}

impl Window {
    /// Reads the attributes of a window of one or two axes.
    pub(crate) fn of(node: &NodeProto, axes: usize) -> Option<Self> {
        let read = |name: &str, count: usize, least: i64| -> Option<Option<Vec<usize>>> {
            let Some(values) = attributes::ints(node, name) else { return Some(None) };
            let fits = values.len() == count && values.iter().all(|v| (least..=LARGEST).contains(v));
            fits.then(|| Some(values.iter().map(|&v| v as usize).collect()))
        };
        let padding = match attributes::string(node, "auto_pad").unwrap_or("NOTSET") {
            "NOTSET" | "" => Padding::Given(read("pads", 2 * axes, 0)?.unwrap_or(vec![0; 2 * axes])),
            "VALID" => Padding::Given(vec![0; 2 * axes]),
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            _ => return None,
        };
        let strides = read("strides", axes, 1)?.unwrap_or(vec![1; axes]);
        let dilations = read("dilations", axes, 1)?.unwrap_or(vec![1; axes]);
        (1..=2).contains(&axes).then_some(Self { axes, strides, dilations, padding })
    }

    /// Whether the padding is known without the input's size.
    pub(crate) fn is_given(&self) -> bool {
        matches!(self.padding, Padding::Given(_))
    }

    /// The window over inputs and outputs of these spatial sizes; one axis is taken for the second of two.
    pub(crate) fn slides(&self, kernel: &[usize], input: &[usize], output: &[usize]) -> Option<[Slide; 2]> {
        if [kernel.len(), input.len(), output.len()] != [self.axes; 3] || kernel.contains(&0) {
            return None;
        }
        let mut slides = [Slide { kernel: 1, stride: 1, dilation: 1, before: 0, after: 0, input: 1, output: 1 }; 2];
        for (axis, slide) in slides.iter_mut().skip(2 - self.axes).enumerate() {
            let (stride, dilation) = (self.strides[axis], self.dilations[axis]);
            let reach = dilation * (kernel[axis] - 1) + 1;
            let total = (output[axis].saturating_sub(1) * stride + reach).saturating_sub(input[axis]);
            let (before, after) = match &self.padding {
                Padding::Given(pads) => (pads[axis], pads[axis + self.axes]),
                Padding::SameUpper => (total / 2, total - total / 2),
                Padding::SameLower => (total - total / 2, total / 2),
            };
            let (input, output) = (input[axis], output[axis]);
            *slide = Slide { kernel: kernel[axis], stride, dilation, before, after, input, output };
        }
        Some(slides)
    }
}

impl Slide {
    /// The input that a tap of the kernel meets at an output.
    pub(crate) fn source(&self, output: usize, tap: usize) -> Option<usize> {
        (output * self.stride + tap * self.dilation).checked_sub(self.before).filter(|&at| at < self.input)
    }

    /// Outputs at which a tap meets the input.
    fn outputs(&self, tap: usize) -> Range<usize> {
        let shift = tap * self.dilation;
        // A pad may be wider than the plane.
        let from = self.before.saturating_sub(shift).div_ceil(self.stride).min(self.output);
        let to = (self.input + self.before).saturating_sub(shift).div_ceil(self.stride).min(self.output);
        from..to.max(from)
    }

    /// Taps that meet the input at an output, or also its padding.
    pub(crate) fn met(&self, output: usize, padding: bool) -> usize {
        let inside = |tap: &usize| {
            let at = output * self.stride + tap * self.dilation;
            if padding { at < self.before + self.input + self.after } else { self.source(output, *tap).is_some() }
        };
        (0..self.kernel).filter(inside).count()
    }

    /// Whether input and output are the same places.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.before == 0 && self.input == self.output
    }
}

/// How one tap of a kernel that slides pixel by pixel over planes of one size moves them: as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shift {
    /// From an output to its input.
    by: isize,
    /// Columns of the output that meet the input.
    columns: (usize, usize),
    width: usize,
}

/// One for each tap, if all slides go pixel by pixel over planes of one size.
pub(crate) fn shifts([y, x]: &[Slide; 2]) -> Option<Vec<Shift>> {
    let whole = |s: &Slide| s.stride == 1 && s.input == s.output && s.input > 0;
    let taps = (0..y.kernel).flat_map(|ky| (0..x.kernel).map(move |kx| (ky, kx)));
    let shift = |(ky, kx): (usize, usize)| {
        let from = |s: &Slide, tap: usize| (tap * s.dilation).cast_signed() - s.before.cast_signed();
        let columns = x.outputs(kx);
        let by = from(y, ky) * x.input.cast_signed() + from(x, kx);
        Shift { by, columns: (columns.start, columns.end), width: x.input }
    };
    (whole(y) && whole(x)).then(|| taps.map(shift).collect())
}

impl Shift {
    /// Outputs of a plane whose inputs are in the plane, if rows are taken to go on in each other.
    fn met(&self, plane: usize) -> Range<usize> {
        let (before, beyond) = ((-self.by).max(0).cast_unsigned(), self.by.max(0).cast_unsigned());
        let from = before.min(plane);
        from..plane.saturating_sub(beyond).max(from)
    }

    /// Sets to zero what meets no input.
    fn clear(&self, output: &mut [f32]) {
        let met = self.met(output.len());
        output[..met.start].fill(0.0);
        output[met.end..].fill(0.0);
        if self.columns != (0, self.width) {
            for row in output.chunks_exact_mut(self.width) {
                row[..self.columns.0].fill(0.0);
                row[self.columns.1..].fill(0.0);
            }
        }
    }

    /// `output = input`, zero where there is none.
    pub(crate) fn gather(&self, input: &[f32], output: &mut [f32]) {
        let met = self.met(output.len());
        if !met.is_empty() {
            let from = met.start.wrapping_add_signed(self.by);
            output[met.clone()].copy_from_slice(&input[from..from + met.len()]);
        }
        self.clear(output);
    }

    /// `input += output`, and zero to what of the output meets no input.
    pub(crate) fn scatter(&self, input: &mut [f32], output: &mut [f32], add: impl Fn(&mut [f32], &[f32])) {
        self.clear(output);
        let met = self.met(output.len());
        if !met.is_empty() {
            let from = met.start.wrapping_add_signed(self.by);
            add(&mut input[from..from + met.len()], &output[met]);
        }
    }
}

/// Whether a window is of one pixel and touches each once.
pub(crate) fn is_pointwise(slides: &[Slide; 2]) -> bool {
    slides.iter().all(Slide::is_pointwise)
}

/// A row of outputs that meet a row of inputs under one tap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) tap: usize,
    /// First output in its plane; the others follow one by one.
    output: usize,
    /// First input in its plane.
    input: usize,
    /// From one input to the next.
    step: usize,
    count: usize,
}

impl Run {
    /// `input += output` along the run, for two planes.
    pub(crate) fn scatter(&self, input: &mut [f32], output: &[f32]) {
        let output = &output[self.output..self.output + self.count];
        if self.step == 1 {
            let to = &mut input[self.input..self.input + self.count];
            return to.iter_mut().zip(output).for_each(|(to, from)| *to += from);
        }
        let to = input[self.input..].iter_mut().step_by(self.step);
        to.zip(output).for_each(|(to, from)| *to += from);
    }

    /// `output = input` along the run, for two planes.
    pub(crate) fn gather(&self, input: &[f32], output: &mut [f32]) {
        let output = &mut output[self.output..self.output + self.count];
        if self.step == 1 {
            return output.copy_from_slice(&input[self.input..self.input + self.count]);
        }
        let from = input[self.input..].iter().step_by(self.step);
        output.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// `output += input` along the run, for two planes.
    pub(crate) fn collect(&self, input: &[f32], output: &mut [f32]) {
        let from = input[self.input..].iter().step_by(self.step);
        output[self.output..self.output + self.count].iter_mut().zip(from).for_each(|(to, from)| *to += *from);
    }

    /// Whether another run goes on where this one ends; it is then part of this one.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        let follows = self.tap == next.tap
            && (self.step, next.step) == (1, 1)
            && self.output + self.count == next.output
            && self.input + self.count == next.input;
        self.count += if follows { next.count } else { 0 };
        follows
    }
}

/// All meetings of taps, outputs and inputs.
pub(crate) fn runs([y, x]: &[Slide; 2]) -> Vec<Run> {
    let mut runs = Vec::new();
    for (ky, kx) in (0..y.kernel).flat_map(|ky| (0..x.kernel).map(move |kx| (ky, kx))) {
        let columns = x.outputs(kx);
        let Some(first) = x.source(columns.start, kx).filter(|_| !columns.is_empty()) else { continue };
        for row in y.outputs(ky) {
            let Some(source) = y.source(row, ky) else { continue };
            runs.push(Run {
                tap: ky * x.kernel + kx,
                output: row * x.output + columns.start,
                input: source * x.input + first,
                step: x.stride,
                count: columns.len(),
            });
        }
    }
    runs
}
