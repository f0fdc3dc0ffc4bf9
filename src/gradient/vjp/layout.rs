//! Operators that move elements, and interpolation.

use super::{Given, place, reshaped};
use crate::gradient::Seen;
use crate::gradient::rule::{Border, Cut, Grid, Rounding};
use ndarray::{ArrayD, Axis, IxDyn, Slice};

pub(super) fn concat(g: &ArrayD<f32>, seen: &Seen<'_>, axis: i64, position: usize) -> Option<ArrayD<f32>> {
    let axis = Axis(place(axis, g.ndim())?);
    let size = |i: usize| seen.input(i)?.shape().get(axis.0).copied();
    let sizes: Vec<usize> = (0..seen.inputs).map(size).collect::<Option<_>>()?;
    let from: usize = sizes.get(..position)?.iter().sum();
    let to = from + sizes.get(position)?;
    (to <= g.len_of(axis)).then(|| g.slice_axis(axis, Slice::from(from..to)).to_owned())
}

pub(super) fn split(given: &Given<'_>, shape: &[usize], axis: i64, sizes: Option<&[usize]>) -> Option<ArrayD<f32>> {
    let axis = Axis(place(axis, shape.len())?);
    let part = shape[axis.0].div_ceil(given.len().max(1));
    let mut result = ArrayD::zeros(shape);
    let mut from = 0;
    for (output, g) in given.iter().enumerate() {
        let size = sizes.map_or(Some(part.min(shape[axis.0] - from)), |s| s.get(output).copied())?;
        let to = from.checked_add(size).filter(|&to| to <= shape[axis.0])?;
        let mut part = result.slice_axis_mut(axis, Slice::from(from..to));
        if let Some(g) = g {
            (part.shape() == g.shape()).then(|| part.assign(g))?;
        }
        from = to;
    }
    Some(result)
}

/// A linear map along one axis: `y[o] = Σ weight·x[i]` over `(o, i, weight)`.
type Taps = Vec<(usize, usize, f32)>;

/// The transposed map: `x̄[i] = Σ weight·g[o]`.
fn scattered(g: &ArrayD<f32>, axis: usize, size: usize, taps: &Taps) -> Option<ArrayD<f32>> {
    let outputs = *g.shape().get(axis)?;
    let mut shape = g.shape().to_vec();
    shape[axis] = size;
    let mut result = ArrayD::zeros(shape);
    for &(output, input, weight) in taps {
        if output >= outputs || input >= size {
            return None;
        }
        let from = g.index_axis(Axis(axis), output);
        result.index_axis_mut(Axis(axis), input).zip_mut_with(&from, |x, g| *x += weight * g);
    }
    Some(result)
}

pub(super) fn slice(g: &ArrayD<f32>, shape: &[usize], cuts: &[Cut]) -> Option<ArrayD<f32>> {
    let mut result = g.clone();
    for cut in cuts {
        let axis = place(cut.axis, shape.len())?;
        let size = i64::try_from(shape[axis]).ok()?;
        let start = if cut.start < 0 { cut.start.saturating_add(size) } else { cut.start };
        let start = if cut.step > 0 { start.clamp(0, size) } else { start.clamp(0, (size - 1).max(0)) };
        let source = |o: usize| usize::try_from(cut.step.checked_mul(o as i64)?.checked_add(start)?).ok();
        let taps = (0..*g.shape().get(axis)?).map(|o| Some((o, source(o)?, 1.0)));
        result = scattered(&result, axis, shape[axis], &taps.collect::<Option<Taps>>()?)?;
    }
    Some(result)
}

pub(super) fn pad(g: &ArrayD<f32>, shape: &[usize], before: &[(i64, i64)], border: Border) -> Option<ArrayD<f32>> {
    let mut result = g.clone();
    for &(axis, before) in before {
        let axis = place(axis, shape.len())?;
        let size = i64::try_from(shape[axis]).ok()?;
        let outputs = *g.shape().get(axis)?;
        if before == 0 && outputs == shape[axis] {
            continue;
        }
        let source = |o: usize| {
            let at = (o as i64).checked_sub(before)?;
            let at = match border {
                Border::Constant => at,
                Border::Edge => at.clamp(0, (size - 1).max(0)),
                Border::Reflect if at < 0 => -at,
                Border::Reflect if at >= size => 2 * (size - 1) - at,
                Border::Reflect => at,
            };
            usize::try_from(at).ok().filter(|&i| i < shape[axis])
        };
        let taps = (0..outputs).filter_map(|o| Some((o, source(o)?, 1.0))).collect();
        result = scattered(&result, axis, shape[axis], &taps)?;
    }
    Some(result)
}

pub(super) fn gather(
    g: &ArrayD<f32>,
    shape: &[usize],
    axis: i64,
    indices: &[i64],
    scalar: bool,
) -> Option<ArrayD<f32>> {
    let axis = place(axis, shape.len())?;
    let size = shape[axis];
    let taps = indices.iter().enumerate().map(|(o, &i)| Some((o, place(i, size)?, 1.0))).collect::<Option<Taps>>()?;
    if scalar && axis <= g.ndim() {
        return scattered(&g.clone().insert_axis(Axis(axis)), axis, size, &taps);
    }
    scattered(g, axis, size, &taps)
}

/// By interpolation, or with a rounding from the nearest pixel.
pub(super) fn resize(
    g: &ArrayD<f32>,
    shape: &[usize],
    scales: Option<&[f32]>,
    grid: Grid,
    rounding: Option<Rounding>,
) -> Option<ArrayD<f32>> {
    if g.ndim() != shape.len() || scales.is_some_and(|s| s.len() != shape.len()) {
        return None;
    }
    let mut result = g.clone();
    for (axis, &size) in shape.iter().enumerate() {
        let outputs = g.shape()[axis];
        let scale = scales.map_or(outputs as f32 / size as f32, |s| s[axis]);
        if outputs == size || size == 0 {
            continue;
        }
        let mut taps = Vec::new();
        for output in 0..outputs {
            let o = output as f32;
            let at = match grid {
                Grid::HalfPixelTorch if outputs == 1 => 0.0,
                Grid::HalfPixel | Grid::HalfPixelTorch => (o + 0.5) / scale - 0.5,
                Grid::Asymmetric => o / scale,
                Grid::AlignCorners if outputs == 1 => 0.0,
                Grid::AlignCorners => o * (size - 1) as f32 / (outputs - 1) as f32,
            };
            let last = (size - 1) as f32;
            let nearest = match rounding {
                Some(Rounding::Floor) => at.floor(),
                Some(Rounding::Ceil) => at.ceil(),
                Some(Rounding::PreferFloor) => (at - 0.5).ceil(),
                Some(Rounding::PreferCeil) => (at + 0.5).floor(),
                None => {
                    let at = at.clamp(0.0, last);
                    let share = at - at.floor();
                    taps.push((output, at.floor() as usize, 1.0 - share));
                    if share > 0.0 {
                        taps.push((output, at.floor() as usize + 1, share));
                    }
                    continue;
                }
            };
            taps.push((output, nearest.clamp(0.0, last) as usize, 1.0));
        }
        result = scattered(&result, axis, size, &taps)?;
    }
    (result.shape() == shape).then_some(result)
}

pub(super) fn transpose(g: &ArrayD<f32>, order: Option<&[usize]>) -> Option<ArrayD<f32>> {
    let mut back = vec![g.ndim(); g.ndim()];
    match order {
        None => back = (0..g.ndim()).rev().collect(),
        Some(order) if order.len() == g.ndim() => {
            order.iter().enumerate().try_for_each(|(to, &from)| back.get_mut(from).map(|b| *b = to))?;
        }
        Some(_) => return None,
    }
    permuted(g, &back)
}

fn permuted(g: &ArrayD<f32>, order: &[usize]) -> Option<ArrayD<f32>> {
    let valid = order.len() == g.ndim() && (0..g.ndim()).all(|axis| order.contains(&axis));
    valid.then(|| g.view().permuted_axes(IxDyn(order)).as_standard_layout().into_owned())
}

pub(super) fn depth_to_space(g: &ArrayD<f32>, block: usize, columns_first: bool) -> Option<ArrayD<f32>> {
    let &[n, c, h, w] = g.shape() else { return None };
    let split = reshaped(g, &[n, c, h / block, block, w / block, block])?;
    let order = if columns_first { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
    reshaped(&permuted(&split, &order)?, &[n, c * block * block, h / block, w / block])
}

pub(super) fn space_to_depth(g: &ArrayD<f32>, block: usize) -> Option<ArrayD<f32>> {
    let &[n, c, h, w] = g.shape() else { return None };
    let channels = c / (block * block);
    let split = reshaped(g, &[n, block, block, channels, h, w])?;
    reshaped(&permuted(&split, &[0, 3, 4, 1, 5, 2])?, &[n, channels, h * block, w * block])
}
