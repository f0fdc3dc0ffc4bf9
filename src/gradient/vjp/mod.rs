//! Vector-Jacobian products, one function an operator: `x̄ = (∂y/∂x)ᵀ·ȳ`, with `g` for `ȳ`. Here are those of reductions and matrix
//! products, `pointwise` has functions of single elements and normalisations, `layout` what moves elements, `sliding` convolutions and
//! poolings.
//!
//! All give none where the shapes of the forward values contradict the operator.

mod layout;
mod pointwise;
mod sliding;

use super::Seen;
use super::rule::{Rule, Unary};
use layout::{concat, depth_to_space, gather, pad, resize, slice, space_to_depth, split, transpose};
use ndarray::{Array2, Array3, ArrayD, ArrayView2, ArrayViewD, Axis, IxDyn};
use pointwise::{batch_norm, derivative, div, elementwise, instance_norm, lrn, pow, prelu, softmax, with};
use sliding::{average_pool, conv, conv_transpose, global_max_pool, max_pool};

type Given<'c> = [Option<&'c ArrayD<f32>>];

/// The cotangent of the input at `position`; `given` holds those of the outputs, none for zero.
pub(super) fn vjp(rule: &Rule, seen: &Seen<'_>, given: &Given<'_>, position: usize) -> Option<ArrayD<f32>> {
    if let Rule::Split { axis, sizes } = rule {
        return split(given, seen.input(0)?.shape(), *axis, sizes.as_deref());
    }
    let g = *given.first()?.as_ref()?;
    let x = |i: usize| seen.input(i);
    match rule {
        Rule::Pass => Some(g.clone()),
        Rule::Reshape => reshaped(g, x(0)?.shape()),
        Rule::Unary(Unary::Neg) => Some(g.mapv(|g| -g)),
        Rule::Unary(unary) if unary.is_of_output() => elementwise(g, seen.output()?, |y| derivative(*unary, y)),
        Rule::Unary(unary) => elementwise(g, x(0)?, |x| derivative(*unary, x)),
        Rule::PRelu => prelu(g, x(0)?, x(1)?),
        Rule::Add | Rule::Expand => summed_to(g.clone(), x(position)?.shape()),
        Rule::Sub => summed_to(if position == 0 { g.clone() } else { g.mapv(|g| -g) }, x(position)?.shape()),
        Rule::Mul => summed_to(with(g, x(1 - position.min(1))?, |g, b| g * b)?, x(position)?.shape()),
        Rule::Div => div(g, x(0)?, x(1)?, position),
        Rule::Pow => pow(g, x(0)?, x(1)?),
        Rule::BatchNorm { epsilon } => batch_norm(g, x(1)?, x(4)?, *epsilon),
        Rule::InstanceNorm { epsilon } => instance_norm(g, x(0)?, x(1)?, *epsilon),
        Rule::Lrn { size, alpha, beta, bias } => lrn(g, x(0)?, *size, [*alpha, *beta, *bias]),
        Rule::Softmax { axis, flat, log } => softmax(g, seen.output()?, *axis, *flat, *log),
        Rule::Concat { axis } => concat(g, seen, *axis, position),
        Rule::Split { .. } => None,
        Rule::Slice(cuts) => slice(g, x(0)?.shape(), cuts),
        Rule::Pad { before, border } => pad(g, x(0)?.shape(), before, *border),
        Rule::Resize { scales, grid, linear, rounding } => {
            resize(g, x(0)?.shape(), scales.as_deref(), *grid, (!linear).then_some(*rounding))
        }
        Rule::Gather { axis, indices, scalar } => gather(g, x(0)?.shape(), *axis, indices, *scalar),
        Rule::Conv { window, groups } => conv(g, x(0)?.shape(), x(1)?, window, *groups),
        Rule::ConvTranspose { window, groups } => conv_transpose(g, x(0)?.shape(), x(1)?, window, *groups),
        Rule::MaxPool { window, kernel } => max_pool(g, x(0)?, window, kernel),
        Rule::AveragePool { window, kernel, count_padding } => {
            average_pool(g, x(0)?.shape(), window, kernel, *count_padding)
        }
        Rule::GlobalMaxPool => global_max_pool(g, x(0)?),
        Rule::Reduce { axes, keep, mean } => reduce(g, x(0)?.shape(), axes.as_deref(), *keep, *mean),
        Rule::Gemm { alpha, beta, transposed } => gemm(g, seen, [*alpha, *beta], *transposed, position),
        Rule::MatMul => mat_mul(g, x(0)?, x(1)?, position),
        Rule::Transpose { order } => transpose(g, order.as_deref()),
        Rule::DepthToSpace { block, columns_first } => depth_to_space(g, *block, *columns_first),
        Rule::SpaceToDepth { block } => space_to_depth(g, *block),
    }
}

/// The elements in row-major order under another shape.
fn reshaped(g: &ArrayD<f32>, shape: &[usize]) -> Option<ArrayD<f32>> {
    ArrayD::from_shape_vec(IxDyn(shape), g.iter().copied().collect()).ok()
}

/// Sums over the axes along which a value of this shape was broadcast.
fn summed_to(mut g: ArrayD<f32>, shape: &[usize]) -> Option<ArrayD<f32>> {
    while g.ndim() > shape.len() {
        g = g.sum_axis(Axis(0));
    }
    for (axis, &size) in shape.iter().enumerate() {
        if size == 1 && g.shape().get(axis).is_some_and(|&n| n != 1) {
            g = g.sum_axis(Axis(axis)).insert_axis(Axis(axis));
        }
    }
    (g.shape() == shape).then_some(g)
}

/// An axis counted from either end.
fn place(axis: i64, axes: usize) -> Option<usize> {
    let count = i64::try_from(axes).ok()?;
    let axis = if axis < 0 { axis.checked_add(count)? } else { axis };
    (0..count).contains(&axis).then_some(axis as usize)
}

fn flat(a: &ArrayD<f32>, shape: [usize; 2]) -> Option<Array2<f32>> {
    Array2::from_shape_vec(shape, a.iter().copied().collect()).ok()
}

fn flat3(a: &ArrayD<f32>, shape: [usize; 3]) -> Option<Array3<f32>> {
    Array3::from_shape_vec(shape, a.iter().copied().collect()).ok()
}

fn reduce(g: &ArrayD<f32>, shape: &[usize], axes: Option<&[i64]>, keep: bool, mean: bool) -> Option<ArrayD<f32>> {
    let mut axes: Vec<usize> = match axes {
        None => (2..shape.len()).collect(),
        Some([]) => (0..shape.len()).collect(),
        Some(axes) => axes.iter().map(|&a| place(a, shape.len())).collect::<Option<_>>()?,
    };
    axes.sort_unstable();
    let mut g = g.clone();
    for &axis in axes.iter().filter(|_| !keep) {
        if axis > g.ndim() {
            return None;
        }
        g.insert_axis_inplace(Axis(axis));
    }
    let count: usize = axes.iter().map(|&a| shape[a]).product();
    let share = if mean { 1.0 / count.max(1) as f32 } else { 1.0 };
    Some(g.broadcast(shape)?.mapv(|g| g * share))
}

/// Of `Y = α·A·B + β·C`, A and B as they enter the product: `Ā = α·g·Bᵀ`, `B̄ = α·Aᵀ·g`, `C̄ = β·g`.
fn gemm(
    g: &ArrayD<f32>,
    seen: &Seen<'_>,
    [alpha, beta]: [f32; 2],
    transposed: [bool; 2],
    position: usize,
) -> Option<ArrayD<f32>> {
    if position == 2 {
        return summed_to(g.mapv(|g| beta * g), seen.input(2)?.shape());
    }
    let other = 1 - position.min(1);
    let matrix = matrix(seen.input(other)?.view())?;
    let matrix = if transposed[other] { matrix.reversed_axes() } else { matrix };
    let g = self::matrix(g.view())?;
    let product = if position == 0 { product(g, matrix.t())? } else { product(matrix.t(), g)? } * alpha;
    let product = if transposed[position] { product.reversed_axes() } else { product };
    Some(product.as_standard_layout().into_owned().into_dyn())
}

fn matrix(a: ArrayViewD<'_, f32>) -> Option<ArrayView2<'_, f32>> {
    a.into_dimensionality().ok()
}

fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Option<Array2<f32>> {
    (a.ncols() == b.nrows()).then(|| a.dot(&b))
}

/// `Ā = g·Bᵀ`, `B̄ = Aᵀ·g` for each matrix of a stack, summed where one was broadcast.
fn mat_mul(g: &ArrayD<f32>, a: &ArrayD<f32>, b: &ArrayD<f32>, position: usize) -> Option<ArrayD<f32>> {
    let (mut g, mut a2, mut b2) = (g.view(), a.view(), b.view());
    // A vector is a row on the left and a column on the right.
    if b2.ndim() == 1 {
        b2.insert_axis_inplace(Axis(1));
        g.insert_axis_inplace(Axis(g.ndim()));
    }
    if a2.ndim() == 1 {
        a2.insert_axis_inplace(Axis(0));
        g.insert_axis_inplace(Axis(g.ndim().checked_sub(1)?));
    }
    let stack = g.shape().get(..g.ndim().checked_sub(2)?)?.to_vec();
    let wide = |m: &ArrayViewD<'_, f32>| -> Option<ArrayD<f32>> {
        let own = m.shape().get(m.ndim().checked_sub(2)?..)?;
        let m = m.broadcast([&stack[..], own].concat())?;
        let count = stack.iter().product::<usize>();
        ArrayD::from_shape_vec(vec![count, own[0], own[1]], m.iter().copied().collect()).ok()
    };
    let (g3, a3, b3) = (wide(&g)?, wide(&a2)?, wide(&b2)?);
    let mut flat = Vec::new();
    for ((g, a), b) in g3.outer_iter().zip(a3.outer_iter()).zip(b3.outer_iter()) {
        let (g, a, b) = (matrix(g)?, matrix(a)?, matrix(b)?);
        let part = if position == 0 { product(g, b.t())? } else { product(a.t(), g)? };
        flat.extend(part.iter().copied());
    }
    let (view, own) = if position == 0 { (&a2, a.shape()) } else { (&b2, b.shape()) };
    let shape = [&stack[..], view.shape().get(view.ndim().checked_sub(2)?..)?].concat();
    let stacked = ArrayD::from_shape_vec(shape, flat).ok()?;
    reshaped(&summed_to(stacked, view.shape())?, own)
}
