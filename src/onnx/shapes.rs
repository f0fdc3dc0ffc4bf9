//! Heights and widths of values, as far as convolutions need them: for the padding that `auto_pad`
//! leaves open, for counting multiply-accumulates, and for telling the stages of a network apart.

use super::graph::{Graph, is_standard};
use super::model::{InputShape, dimensions};
use super::proto::NodeProto;
use super::{attributes, tensor::read_integers};
use std::collections::HashMap;

/// Height and width, `None` where unknown.
pub(crate) type Extent = [Option<usize>; 2];

/// How far a value is downsampled from the graph's input: the product of the strides on the way, per
/// axis, and the last node that resamples by an amount not known here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Level {
    scale: [f64; 2],
    after: Option<usize>,
}

/// Sizes and attributes beyond this are taken for damage; products of two of them do not overflow.
pub(super) const LARGEST: i64 = 1 << 24;

/// What is known of every value's spatial size.
#[derive(Debug, Default)]
pub(crate) struct Resolutions {
    extent: HashMap<String, Extent>,
    level: HashMap<String, Level>,
}

impl Resolutions {
    /// Propagates sizes from the graph's inputs (or the user's `shapes` for them) and its `value_info`.
    pub(crate) fn new(graph: &Graph<'_>, shapes: &[InputShape]) -> Self {
        let mut known = Self::default();
        let proto = graph.proto();
        for value in proto.value_info.iter().chain(&proto.input) {
            if let [_, _, h, w] = dimensions(value)[..] {
                let extent = [h, w].map(|d| d.and_then(|n| usize::try_from(n).ok()));
                known.extent.insert(value.name().to_owned(), extent);
            }
        }
        for shape in shapes {
            let fed = || proto.input.iter().find(|i| graph.constant(i.name()).is_none());
            let only = || Some(fed()?.name().to_owned());
            if let ([_, _, h, w], Some(name)) = (&shape.dims[..], shape.name.clone().or_else(only)) {
                known.extent.insert(name, [Some(*h), Some(*w)]);
            }
        }
        for &index in graph.order() {
            let node = &graph.nodes()[index];
            let extent = known.infer(graph, node);
            let level = known.infer_level(graph, node, index);
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                let stated = known.extent.entry(output.clone()).or_default();
                // What follows from the inputs comes first: stored sizes may be those of another input.
                *stated = [0, 1].map(|axis| extent[axis].or(stated[axis]).filter(|&n| n <= LARGEST as usize));
                known.level.insert(output.clone(), level);
            }
        }
        known
    }

    pub(crate) fn extent(&self, value: &str) -> Extent {
        self.extent.get(value).copied().unwrap_or_default()
    }

    pub(crate) fn level(&self, value: &str) -> Level {
        self.level.get(value).copied().unwrap_or(Level { scale: [1.0; 2], after: None })
    }

    fn infer(&self, graph: &Graph<'_>, node: &NodeProto) -> Extent {
        let data: Vec<&str> =
            node.input.iter().map(String::as_str).filter(|i| !i.is_empty() && graph.constant(i).is_none()).collect();
        let Some(&first) = data.first().filter(|_| is_standard(node)) else {
            return [None; 2];
        };
        let extent = self.extent(first);
        match node.op_type() {
            "Conv" | "MaxPool" | "AveragePool" | "LpPool" => {
                let window = Window::of(graph, node);
                std::array::from_fn(|axis| window.as_ref()?.output(axis, extent[axis]?))
            }
            "ConvTranspose" => std::array::from_fn(|axis| {
                let window = Window::of(graph, node)?;
                let extra = attributes::ints(node, "output_padding").map_or(0, |p| p.get(axis).copied().unwrap_or(0));
                let extra = extra.clamp(0, LARGEST);
                if attributes::ints(node, "output_shape").is_some() || window.same {
                    return None;
                }
                let grown = (extent[axis]? as i64 - 1) * window.strides[axis] + window.reach(axis) + extra;
                usize::try_from(grown - window.pads[axis] - window.pads[axis + 2]).ok()
            }),
            "GlobalAveragePool" | "GlobalMaxPool" => [Some(1); 2],
            "Pad" => {
                let computed = node.input.get(1).and_then(|p| read_integers(graph.constant(p)?));
                let pads = attributes::ints(node, "pads").map(<[i64]>::to_vec).or(computed).unwrap_or_default();
                std::array::from_fn(|axis| match pads[..] {
                    [_, _, t, l, _, _, b, r] => grown(extent[axis]?, &[[t, l][axis], [b, r][axis]]),
                    _ => None,
                })
            }
            "Crop" => match attributes::ints(node, "border") {
                Some(&[l, t, r, b]) => std::array::from_fn(|axis| {
                    grown(extent[axis]?, &[[t, l][axis].checked_neg()?, [b, r][axis].checked_neg()?])
                }),
                _ => [None; 2],
            },
            "Upsample" | "Resize" => {
                let scale = scales(graph, node);
                let sizes = node.input.get(3).and_then(|s| read_integers(graph.constant(s)?));
                std::array::from_fn(|axis| match (&scale, sizes.as_deref()) {
                    (Some(scale), _) => Some((extent[axis]? as f64 * scale[axis]).floor() as usize),
                    (None, Some(&[_, _, h, w])) => usize::try_from([h, w][axis]).ok(),
                    _ => None,
                })
            }
            "Concat" if attributes::int(node, "axis").is_some_and(|a| a != 1 && a != -3) => [None; 2],
            op if KEEPS_SIZE.contains(&op) => {
                // Broadcasting: an operand of size one takes the other's, and an unknown one may be of any size.
                let all: Vec<Extent> = data.iter().map(|d| self.extent(d)).collect();
                std::array::from_fn(|axis| {
                    let known = all.iter().filter_map(|e| e[axis]).max();
                    known.filter(|&n| n > 1 || all.iter().all(|e| e[axis].is_some()))
                })
            }
            _ => [None; 2],
        }
    }

    fn infer_level(&self, graph: &Graph<'_>, node: &NodeProto, index: usize) -> Level {
        // The most downsampled of the inputs: constants and fresh inputs stand at 1.
        let mut level = Level { scale: [1.0; 2], after: None };
        let data = || node.input.iter().filter(|n| !n.is_empty() && graph.constant(n).is_none());
        let is_gate = |name: &str| self.extent(name) == [Some(1); 2];
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
        let by = match node.op_type() {
            "Conv" | "MaxPool" | "AveragePool" | "LpPool" => {
                Window::of(graph, node).map(|w| w.strides.map(|s| s as f64))
            }
            "ConvTranspose" => Window::of(graph, node).map(|w| w.strides.map(|s| 1.0 / s as f64)),
            "Upsample" | "Resize" => scales(graph, node).map(|s| s.map(|x| 1.0 / x)),
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

/// A size with amounts added; none if that is no size.
fn grown(size: usize, by: &[i64]) -> Option<usize> {
    let sum = by.iter().try_fold(i64::try_from(size).ok()?, |n, b| n.checked_add(*b))?;
    usize::try_from(sum).ok()
}

/// Operators whose output is as high and wide as their (broadcast) data inputs.
const KEEPS_SIZE: [&str; 40] = [
    "Abs",
    "Add",
    "Affine",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Div",
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
    "LeakyRelu",
    "Log",
    "Max",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
];

/// The sliding window of a convolution or pooling, two spatial axes.
struct Window {
    kernel: [i64; 2],
    strides: [i64; 2],
    dilations: [i64; 2],
    pads: [i64; 4],
    same: bool,
    ceil: bool,
}

impl Window {
    fn of(graph: &Graph<'_>, node: &NodeProto) -> Option<Self> {
        let pair = |name: &str| match attributes::ints(node, name) {
            None => Some([1, 1]),
            Some(&[a, b]) => [a, b].iter().all(|v| (1..=LARGEST).contains(v)).then_some([a, b]),
            Some(_) => None,
        };
        let weight = || match graph.constant(node.input.get(1)?)?.dims[..] {
            [_, _, h, w] => Some([h, w]),
            _ => None,
        };
        let kernel = match attributes::ints(node, "kernel_shape") {
            Some(&[h, w]) => [h, w],
            _ => weight()?,
        };
        let pads = match attributes::ints(node, "pads") {
            None => [0; 4],
            Some(&[t, l, b, r]) => [t, l, b, r],
            Some(_) => return None,
        };
        if kernel.iter().any(|k| !(1..=LARGEST).contains(k))
            || pads.iter().any(|p| p.unsigned_abs() > LARGEST.unsigned_abs())
        {
            return None;
        }
        let auto = attributes::string(node, "auto_pad").unwrap_or("NOTSET");
        Some(Self {
            kernel,
            strides: pair("strides")?,
            dilations: pair("dilations")?,
            pads: if auto == "VALID" { [0; 4] } else { pads },
            same: auto.starts_with("SAME"),
            ceil: attributes::int(node, "ceil_mode").unwrap_or(0) == 1,
        })
    }

    /// Extent of the dilated kernel.
    fn reach(&self, axis: usize) -> i64 {
        self.dilations[axis] * (self.kernel[axis] - 1) + 1
    }

    fn output(&self, axis: usize, input: usize) -> Option<usize> {
        let (input, stride) = (i64::try_from(input).ok()?, self.strides[axis]);
        if self.same {
            return usize::try_from((input + stride - 1) / stride).ok();
        }
        let room = input + self.pads[axis] + self.pads[axis + 2] - self.reach(axis);
        let steps = if self.ceil { (room + stride - 1) / stride } else { room.div_euclid(stride) };
        usize::try_from(steps + 1).ok()
    }
}

/// Spatial scales of an `Upsample` or `Resize`, when constant.
fn scales(graph: &Graph<'_>, node: &NodeProto) -> Option<[f64; 2]> {
    let position = if node.op_type() == "Upsample" { 1 } else { node.input.len().saturating_sub(1).clamp(1, 2) };
    let read = || Some(super::read_floats(graph.constant(node.input.get(position)?)?)?.iter().copied().collect());
    let all: Vec<f32> = attributes::floats(node, "scales").map(<[f32]>::to_vec).or_else(read)?;
    match all[..] {
        [_, _, h, w] if h > 0.0 && w > 0.0 => Some([f64::from(h), f64::from(w)]),
        _ => None,
    }
}
