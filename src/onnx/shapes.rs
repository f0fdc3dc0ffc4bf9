//! Shapes of values, as far as convolutions need them: for the padding that `auto_pad` leaves open, for counting
//! multiply-accumulates, and for telling the stages of a network apart.

use super::graph::{Graph, is_standard};
use super::inputs::{InputShape, dimensions};
use super::proto::NodeProto;
use super::tensor::read_integers;
use super::window::{LARGEST, Window};
use super::{attributes, read_floats};
use std::collections::{BTreeSet, HashMap};

/// Dimensions, `None` where unknown.
pub(crate) type Shape = Vec<Option<usize>>;

/// How far a value is downsampled from the graph's input: the product of the strides on the way, of the first spatial axis and of
/// all others, and the last node that resamples by an amount not known here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Level {
    scale: [f64; 2],
    after: Option<usize>,
}

/// What is known of every value's size.
#[derive(Debug, Default)]
pub(crate) struct Resolutions {
    shape: HashMap<String, Shape>,
    level: HashMap<String, Level>,
    fixed: bool,
}

impl Resolutions {
    /// Propagates shapes from the graph's inputs and its `value_info`; from the user's `shapes` for inputs alone if there are any, as what
    /// is stored is of others.
    pub(crate) fn new(graph: &Graph<'_>, shapes: &[InputShape]) -> Self {
        let mut known = Self::default();
        let proto = graph.proto();
        let fed = proto.input.iter().filter(|input| graph.constant(input.name()).is_none());
        known.fixed = fed.map(dimensions).all(|dims| !dims.is_empty() && dims.iter().skip(1).all(Option::is_some));
        let stored = if shapes.is_empty() { &proto.value_info[..] } else { &[] };
        for value in stored.iter().chain(&proto.input) {
            let dims = dimensions(value).into_iter().map(|d| d.and_then(|n| usize::try_from(n).ok()));
            let dims: Shape = dims.collect();
            // A value without a shape may be of any rank.
            if !dims.is_empty() {
                known.shape.insert(value.name().to_owned(), dims);
            }
        }
        for shape in shapes {
            let fed = || proto.input.iter().find(|i| graph.constant(i.name()).is_none());
            let only = || Some(fed()?.name().to_owned());
            if let Some(name) = shape.name.clone().or_else(only) {
                known.shape.insert(name, shape.dims.iter().map(|&d| sound(d)).collect());
            }
        }
        for &index in graph.order() {
            let node = &graph.nodes()[index];
            let inferred = if is_standard(node) { known.infer(graph, node) } else { None };
            let level = known.infer_level(graph, node, index);
            for (at, output) in node.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
                // What follows from the inputs comes first: stored sizes may be those of another input.
                if let Some(mut shape) = inferred.clone().filter(|_| at == 0 || node.op_type() == "Split") {
                    let stated = known.shape.get(output).filter(|s| s.len() == shape.len());
                    for (axis, dim) in shape.iter_mut().enumerate() {
                        *dim = dim.or(stated.and_then(|s| s[axis])).and_then(sound);
                    }
                    known.shape.insert(output.clone(), shape);
                }
                known.level.insert(output.clone(), level);
            }
        }
        known
    }

    /// Whether the model itself says all sizes of its inputs but for the batch's.
    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// The shape of a value, if its rank is known.
    pub(crate) fn shape(&self, value: &str) -> Option<&[Option<usize>]> {
        self.shape.get(value).map(Vec::as_slice)
    }

    /// The shape of a constant as it is stored, or is after what rearranges it.
    pub(crate) fn stored(&self, graph: &Graph<'_>, name: &str) -> Option<Shape> {
        let dims = graph.constant(name).map(|t| t.dims.iter().map(|&d| usize::try_from(d).ok()).collect());
        dims.or_else(|| self.shape.get(name).filter(|_| graph.is_constant(name)).cloned())
    }

    /// The sizes of a value's spatial axes; empty if they are not known.
    pub(crate) fn spatial(&self, value: &str) -> &[Option<usize>] {
        self.shape(value).and_then(|s| s.get(2..)).unwrap_or_default()
    }

    /// The number of a value's axes, if that is known.
    pub(super) fn rank(&self, graph: &Graph<'_>, value: &str) -> Option<usize> {
        self.of(graph, value).map(|shape| shape.len())
    }

    /// The window of a transposed convolution with the pads that it does not say itself, as far as sizes are known.
    pub(super) fn closed(&self, graph: &Graph<'_>, node: &NodeProto) -> Option<Window> {
        let kernel = self.of(graph, node.input.get(1)?)?;
        let closed = window(node, &kernel)?.closed(node, self.spatial(node.input.first()?));
        closed.padding.auto_pad().is_none().then_some(closed)
    }

    pub(crate) fn level(&self, value: &str) -> Level {
        self.level.get(value).copied().unwrap_or(Level { scale: [1.0; 2], after: None })
    }

    fn infer(&self, graph: &Graph<'_>, node: &NodeProto) -> Option<Shape> {
        let name = |at: usize| node.input.get(at).map(String::as_str).filter(|n| !n.is_empty());
        let shape = |at: usize| self.of(graph, name(at)?);
        let integers = |at: usize| read_integers(graph.constant(name(at)?)?);
        let first = shape(0);
        match node.op_type() {
            "Concat" => {
                let all = (0..node.input.len()).map(shape).collect::<Option<Vec<Shape>>>()?;
                let (rank, mut joined) = (all.first()?.len(), all.first()?.clone());
                let axis = axis(attributes::int(node, "axis")?, rank)?;
                if all.iter().any(|s| s.len() != rank) {
                    return None;
                }
                for (at, dim) in joined.iter_mut().enumerate() {
                    *dim = match at == axis {
                        true => all.iter().map(|s| s[at]).sum(),
                        false => all.iter().find_map(|s| s[at]),
                    };
                }
                Some(joined)
            }
            "Split" => {
                let mut whole = first?;
                let axis = axis(attributes::int(node, "axis").unwrap_or(0), whole.len())?;
                let stated = attributes::ints(node, "split").map(<[i64]>::to_vec).or_else(|| integers(1));
                let even = stated.as_ref().is_none_or(|s| s.iter().all(|n| Some(n) == s.first()));
                // Of parts that are not equal each output is another.
                let parts = node.output.len().max(1);
                let known = stated.is_some() || node.input.get(1).is_none_or(String::is_empty);
                whole[axis] = whole[axis].filter(|n| known && even && n.is_multiple_of(parts)).map(|n| n / parts);
                Some(whole)
            }
            "Transpose" => {
                let first = first?;
                match attributes::ints(node, "perm") {
                    None => Some(first.into_iter().rev().collect()),
                    Some(order) => order.iter().map(|&at| first.get(usize::try_from(at).ok()?).copied()).collect(),
                }
            }
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => regrouped(graph, node, first.as_deref()),
            "Gemm" => {
                let (a, b) = (first?, shape(1)?);
                let turned = |name: &str| usize::from(attributes::int(node, name).unwrap_or(0) != 0);
                Some(vec![*a.get(turned("transA"))?, *b.get(1 - turned("transB"))?])
            }
            "MatMul" => {
                let (a, b) = (first?, shape(1)?);
                if a.len() < 2 || b.len() < 2 {
                    return None;
                }
                let mut shape = broadcast(&[a[..a.len() - 2].to_vec(), b[..b.len() - 2].to_vec()]);
                shape.extend([a[a.len() - 2], b[b.len() - 1]]);
                Some(shape)
            }
            op if op.starts_with("Reduce") => {
                let axes = attributes::ints(node, "axes").map(<[i64]>::to_vec).or_else(|| integers(1))?;
                let first = first?;
                let axes: Vec<usize> = axes.iter().map(|&a| axis(a, first.len())).collect::<Option<_>>()?;
                let keep = attributes::int(node, "keepdims").unwrap_or(1) != 0;
                let each = first.iter().enumerate().filter(|(at, _)| keep || !axes.contains(at));
                Some(each.map(|(at, d)| if axes.contains(&at) { Some(1) } else { *d }).collect())
            }
            op if BROADCAST.contains(&op) => {
                let all: Vec<Shape> = (0..node.input.len()).map(shape).collect::<Option<_>>()?;
                Some(broadcast(&all))
            }
            op if KEEPS_SHAPE.contains(&op) => first,
            _ => self.resampled(graph, node, first),
        }
    }

    /// The output of an operator that changes the sizes of the spatial axes, `first` what it reads.
    fn resampled(&self, graph: &Graph<'_>, node: &NodeProto, first: Option<Shape>) -> Option<Shape> {
        let name = |at: usize| node.input.get(at).map(String::as_str).filter(|n| !n.is_empty());
        let integers = |at: usize| read_integers(graph.constant(name(at)?)?);
        match node.op_type() {
            "Conv" | "ConvTranspose" => {
                let (kernel, transposed) = (self.of(graph, name(1)?)?, node.op_type() == "ConvTranspose");
                let window = window(node, &kernel)?;
                let sizes = first.as_ref().and_then(|f| f.get(2..)).unwrap_or_default();
                let window = if transposed { window.closed(node, sizes) } else { window };
                let groups = usize::try_from(attributes::int(node, "group").unwrap_or(1)).ok()?;
                let out = if transposed { kernel[1]?.checked_mul(groups) } else { kernel[0] };
                let stated = attributes::ints(node, "output_shape").filter(|_| transposed);
                let spatial = |axis: usize| -> Option<usize> {
                    if let Some(sizes) = stated.filter(|s| s.len() == window.kernel.len()) {
                        return usize::try_from(sizes[axis]).ok();
                    }
                    let size = (*first.as_ref()?.get(axis + 2)?)?;
                    if transposed { window.grown(axis, size) } else { window.output(axis, size) }
                };
                let head = [first.as_ref().and_then(|f| *f.first()?), out];
                Some(head.into_iter().chain((0..window.kernel.len()).map(spatial)).collect())
            }
            "MaxPool" | "AveragePool" | "LpPool" => {
                let (first, window) = (first?, Window::of_pool(node));
                let spatial = |(axis, size): (usize, &Option<usize>)| window.as_ref()?.output(axis, (*size)?);
                // With dilations runtimes are of several opinions on what SAME is.
                let agreed = |w: &&Window| w.padding.auto_pad().is_none() || w.dilations.iter().all(|&d| d == 1);
                let window = window.as_ref().filter(|w| w.kernel.len() + 2 == first.len()).filter(agreed);
                let spatial = |each| window.and_then(|_| spatial(each));
                let sizes = first.iter().skip(2).enumerate().map(spatial);
                Some(first.iter().take(2).copied().chain(sizes).collect())
            }
            "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
                Some(first?.iter().enumerate().map(|(axis, &d)| if axis < 2 { d } else { Some(1) }).collect())
            }
            "Pad" => {
                let first = first?;
                let pads = attributes::ints(node, "pads").map(<[i64]>::to_vec).or_else(|| integers(1))?;
                let axes = first.len();
                let fits = pads.len() == 2 * axes && name(3).is_none();
                let sum = |(axis, d): (usize, &Option<usize>)| added((*d)?, &[pads[axis], pads[axis + axes]]);
                if fits { Some(first.iter().enumerate().map(sum).collect()) } else { Some(vec![None; axes]) }
            }
            "Crop" => match (&first?[..], attributes::ints(node, "border")) {
                (&[n, c, h, w], Some(&[l, t, r, b])) => {
                    let less =
                        |size: Option<usize>, by: [i64; 2]| added(size?, &[by[0].checked_neg()?, by[1].checked_neg()?]);
                    Some(vec![n, c, less(h, [t, b]), less(w, [l, r])])
                }
                (other, _) => Some(vec![None; other.len()]),
            },
            "Upsample" | "Resize" => {
                let first = first?;
                let policy = attributes::string(node, "keep_aspect_ratio_policy");
                let stretched = policy.is_none_or(|policy| policy == "stretch");
                let cropped = attributes::string(node, "coordinate_transformation_mode") == Some("tf_crop_and_resize");
                let sizes = integers(3).filter(|s| stretched && s.len() == first.len());
                let scale = scales(graph, node).filter(|s| !cropped && s.len() == first.len());
                let size = |(axis, d): (usize, &Option<usize>)| match (&scale, &sizes) {
                    // Some multiply in float32: just below a whole number that makes one, and nobody knows.
                    (Some(scale), _) => {
                        let (d, scale) = ((*d)?, scale[axis]);
                        let exact = (d as f64 * scale).floor() as usize;
                        Some(exact).filter(|&n| n == (d as f32 * scale as f32).floor() as usize)
                    }
                    (None, Some(sizes)) => usize::try_from(sizes[axis]).ok(),
                    _ => None,
                };
                Some(first.iter().enumerate().map(size).collect())
            }
            _ => None,
        }
    }

    /// The shape of a constant or of a value that was seen before.
    fn of(&self, graph: &Graph<'_>, name: &str) -> Option<Shape> {
        let dim = |&d: &i64| usize::try_from(d).ok().and_then(sound);
        let stored = || Some(graph.constant(name)?.dims.iter().map(dim).collect());
        self.shape.get(name).cloned().or_else(stored)
    }

    fn infer_level(&self, graph: &Graph<'_>, node: &NodeProto, index: usize) -> Level {
        // The most downsampled of the inputs: constants and fresh inputs stand at 1.
        let mut level = Level { scale: [1.0; 2], after: None };
        let data = || node.input.iter().filter(|n| !n.is_empty() && !graph.is_constant(n));
        let is_gate = |name: &str| {
            let spatial = self.spatial(name);
            !spatial.is_empty() && spatial.iter().all(|d| *d == Some(1))
        };
        let all_gates = data().all(|name| is_gate(name));
        for name in data() {
            // One number a channel, as in squeeze and excite, takes the level of what it is multiplied with.
            if is_gate(name) && !all_gates {
                continue;
            }
            let other = self.level(name);
            level.scale = [level.scale[0].max(other.scale[0]), level.scale[1].max(other.scale[1])];
            level.after = level.after.max(other.after);
        }
        let by_strides = |window: Option<Window>| -> Option<[f64; 2]> {
            let strides: Vec<f64> = window?.strides.iter().map(|&s| s as f64).collect();
            Some(two(&strides))
        };
        let kernel = || self.of(graph, node.input.get(1)?);
        let by = match node.op_type() {
            "Conv" => by_strides(kernel().and_then(|k| window(node, &k))),
            "ConvTranspose" => by_strides(kernel().and_then(|k| window(node, &k))).map(|s| s.map(f64::recip)),
            "MaxPool" | "AveragePool" | "LpPool" => by_strides(Window::of_pool(node)),
            "Upsample" | "Resize" => scales(graph, node).map(|s| two(&s[s.len().min(2)..]).map(f64::recip)),
            // One pixel is one pixel, whatever it was pooled from.
            "GlobalAveragePool" | "GlobalMaxPool" => return Level { scale: [f64::INFINITY; 2], after: None },
            "DepthToSpace" | "SpaceToDepth" => None,
            _ => Some([1.0; 2]),
        };
        match by {
            Some([h, w]) => level.scale = [level.scale[0] * h, level.scale[1] * w],
            None => level.after = Some(index),
        }
        level
    }
}

/// A size that is taken for one.
fn sound(size: usize) -> Option<usize> {
    Some(size).filter(|&n| n <= LARGEST as usize)
}

/// Factors of any number of axes as those of two: the first one's, and the product of the others.
fn two(factors: &[f64]) -> [f64; 2] {
    match factors {
        [one] => [1.0, *one],
        [first, rest @ ..] => [*first, rest.iter().product()],
        [] => [1.0; 2],
    }
}

/// The window of a convolution with a kernel of this shape.
fn window(node: &NodeProto, kernel: &[Option<usize>]) -> Option<Window> {
    let spatial: Option<Vec<usize>> = kernel.get(2..)?.iter().copied().collect();
    Window::of(node, &spatial?).ok()
}

/// A size with amounts added; none if that is no size.
fn added(size: usize, by: &[i64]) -> Option<usize> {
    let sum = by.iter().try_fold(i64::try_from(size).ok()?, |n, b| n.checked_add(*b))?;
    usize::try_from(sum).ok()
}

/// An axis counted from the front.
fn axis(stated: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    usize::try_from(if stated < 0 { stated + rank } else { stated }).ok().filter(|&a| (a as i64) < rank)
}

fn product(dims: &[Option<usize>]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, d| n.checked_mul((*d)?))
}

/// What `Reshape`, `Flatten`, `Squeeze` or `Unsqueeze` makes of a value of these dimensions; none where its rank is not known.
pub(super) fn regrouped(graph: &Graph<'_>, node: &NodeProto, from: Option<&[Option<usize>]>) -> Option<Shape> {
    let input = || node.input.get(1).filter(|name| !name.is_empty());
    // Attributes in the first versions, inputs since.
    let given = |name: &str| {
        let stated = attributes::ints(node, name).map(<[i64]>::to_vec);
        stated.or_else(|| read_integers(graph.constant(input()?)?))
    };
    if node.op_type() == "Reshape" {
        return Some(reshaped(from, &given("shape")?));
    }
    let (from, axes) = (from?, given("axes"));
    let places =
        |axes: Vec<i64>, rank: usize| axes.into_iter().map(|a| axis(a, rank)).collect::<Option<BTreeSet<usize>>>();
    match (node.op_type(), axes) {
        ("Flatten", _) => {
            let at = attributes::int(node, "axis").unwrap_or(1);
            let at = if usize::try_from(at) == Ok(from.len()) { from.len() } else { axis(at, from.len())? };
            let (rows, columns) = from.split_at(at);
            Some(vec![product(rows), product(columns)])
        }
        ("Squeeze", Some(axes)) => {
            let axes = places(axes, from.len())?;
            Some((0..from.len()).filter(|a| !axes.contains(a)).map(|a| from[a]).collect())
        }
        // Every axis of one, if it is known which are.
        ("Squeeze", None) => {
            let known = input().is_none() && from.iter().all(Option::is_some);
            known.then(|| from.iter().copied().filter(|d| *d != Some(1)).collect())
        }
        ("Unsqueeze", Some(axes)) => {
            let rank = from.len() + axes.len();
            let (axes, mut rest) = (places(axes, rank)?, from.iter());
            let shape: Shape =
                (0..rank).map(|a| if axes.contains(&a) { Some(1) } else { rest.next().copied().flatten() }).collect();
            (axes.len() + from.len() == rank).then_some(shape)
        }
        _ => None,
    }
}

/// What `Reshape` makes: zeros keep a dimension, -1 takes what is left.
fn reshaped(from: Option<&[Option<usize>]>, wanted: &[i64]) -> Shape {
    let kept = |at: usize| from.and_then(|f| *f.get(at)?);
    let dims = wanted.iter().enumerate().map(|(at, &n)| if n == 0 { kept(at) } else { usize::try_from(n).ok() });
    let mut dims: Shape = dims.collect();
    if let Some(open) = wanted.iter().position(|&n| n == -1) {
        let others: Vec<Option<usize>> = dims.iter().enumerate().filter(|(at, _)| *at != open).map(|d| *d.1).collect();
        let all = from.and_then(product);
        dims[open] = all.zip(product(&others)).and_then(|(all, others)| all.checked_div(others));
    }
    dims
}

/// ONNX's multidirectional broadcasting. An operand of size one takes the other's, and an unknown one may be of any size.
fn broadcast(all: &[Shape]) -> Shape {
    let rank = all.iter().map(Vec::len).max().unwrap_or(0);
    let dim = |at: usize| {
        let each = all.iter().filter_map(|s| Some(s[at.checked_sub(rank - s.len())?]));
        let each: Shape = each.collect();
        let known = each.iter().flatten().copied().max();
        known.filter(|&n| n > 1 || each.iter().all(Option::is_some))
    };
    (0..rank).map(dim).collect()
}

/// Operators whose output is as large as their inputs broadcast.
const BROADCAST: [&str; 13] =
    ["Add", "And", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum"];

/// Operators whose first output is as large as their first input.
const KEEPS_SHAPE: [&str; 39] = [
    "Abs",
    "Affine",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "DequantizeLinear",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "ImageScaler",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "Mish",
    "Neg",
    "QuantizeLinear",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
];

/// Scales of an `Upsample` or `Resize`, one an axis, when constant.
fn scales(graph: &Graph<'_>, node: &NodeProto) -> Option<Vec<f64>> {
    let position = if node.op_type() == "Upsample" { 1 } else { node.input.len().saturating_sub(1).clamp(1, 2) };
    let read = || Some(read_floats(graph.constant(node.input.get(position)?)?)?.iter().copied().collect());
    let all: Vec<f32> = attributes::floats(node, "scales").map(<[f32]>::to_vec).or_else(read)?;
    let fits = all.len() > 2 && all.iter().all(|&s| s > 0.0);
    fits.then(|| all.iter().map(|&s| f64::from(s)).collect())
}
