//! From a node to its rule: operator and attributes, read and checked once for all images.

use super::rule::{Border, Cut, Grid, Rounding, Rule, Unary};
use super::window::Window;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{Graph, attributes, is_standard, read_floats, read_integers};
use ndarray::{Array1, ArrayD, IxDyn};
use std::collections::HashMap;

/// Larger blocks of pixels are taken for damage.
const LARGEST_BLOCK: usize = 1 << 12;

/// What a graph knows before it runs, an initializer that callers may replace at its default.
pub(crate) struct Constants<'g> {
    graph: &'g Graph<'g>,
    initializers: HashMap<&'g str, &'g TensorProto>,
}

impl<'g> Constants<'g> {
    pub(crate) fn new(graph: &'g Graph<'g>) -> Self {
        let initializers = graph.proto().initializer.iter().map(|t| (t.name(), t)).collect();
        Self { graph, initializers }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensor(name).is_some() || self.node(name).is_some()
    }

    pub(super) fn floats(&self, name: &str) -> Option<ArrayD<f32>> {
        if let Some(tensor) = self.tensor(name) {
            return read_floats(tensor);
        }
        let node = self.node(name)?;
        match (attributes::float(node, "value_float"), attributes::floats(node, "value_floats")) {
            (Some(value), _) => Some(ArrayD::from_elem(IxDyn(&[]), value)),
            (None, values) => Some(Array1::from(values?.to_vec()).into_dyn()),
        }
    }

    fn integers(&self, name: &str) -> Option<Vec<i64>> {
        if let Some(tensor) = self.tensor(name) {
            return read_integers(tensor);
        }
        let node = self.node(name)?;
        let values = attributes::ints(node, "value_ints").map(<[i64]>::to_vec);
        attributes::int(node, "value_int").map(|v| vec![v]).or(values)
    }

    fn is_zero(&self, name: &str) -> bool {
        let zero =
            |t: &TensorProto| t.raw_data.iter().flatten().all(|&b| b == 0) && t.int32_data.iter().all(|&v| v == 0);
        self.tensor(name).is_some_and(zero)
    }

    fn tensor(&self, name: &str) -> Option<&'g TensorProto> {
        self.graph.constant(name).or_else(|| self.initializers.get(name).copied())
    }

    /// A `Constant` node that holds no tensor.
    fn node(&self, name: &str) -> Option<&'g NodeProto> {
        let node = &self.graph.nodes()[self.graph.producer(name)?];
        let numbers = ["value_float", "value_floats", "value_int", "value_ints"];
        let plain = node.attribute.iter().any(|a| numbers.contains(&a.name()));
        (is_standard(node) && node.op_type() == "Constant" && plain).then_some(node)
    }
}

/// One node and what is constant around it.
struct Site<'s> {
    node: &'s NodeProto,
    constants: &'s Constants<'s>,
    opset: i64,
}

/// The rule of a node, if there is one.
pub(crate) fn read<'g>(node: &'g NodeProto, graph: &Graph<'g>, constants: &Constants<'g>) -> Option<Rule> {
    let subgraphs = node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
    if subgraphs || !is_standard(node) {
        return None;
    }
    let site = Site { node, constants, opset: graph.opset() };
    site.elementwise().or_else(|| site.arithmetic()).or_else(|| site.layout()).or_else(|| site.reduction())
}

impl Site<'_> {
    fn int(&self, name: &str, default: i64) -> i64 {
        attributes::int(self.node, name).unwrap_or(default)
    }

    fn float(&self, name: &str, default: f32) -> f32 {
        attributes::float(self.node, name).unwrap_or(default)
    }

    fn string(&self, name: &str, default: &'static str) -> &str {
        attributes::string(self.node, name).unwrap_or(default)
    }

    /// Name of an input that is there.
    fn input(&self, position: usize) -> Option<&str> {
        self.node.input.get(position).map(String::as_str).filter(|i| !i.is_empty())
    }

    /// Integers given as an attribute or as a constant input; none if computed, an empty option if absent.
    fn integers(&self, attribute: &str, position: usize) -> Option<Option<Vec<i64>>> {
        if let Some(values) = attributes::ints(self.node, attribute) {
            return Some(Some(values.to_vec()));
        }
        match self.input(position) {
            Some(name) => self.constants.integers(name).map(Some),
            None => Some(None),
        }
    }

    /// A number given as an attribute or as a constant input; none if computed.
    fn number(&self, attribute: &str, position: usize, default: f32) -> Option<f32> {
        match (attributes::float(self.node, attribute), self.input(position)) {
            (Some(value), _) => Some(value),
            (None, Some(name)) => self.constants.floats(name)?.first().copied(),
            (None, None) => Some(default),
        }
    }

    fn elementwise(&self) -> Option<Rule> {
        let unary = match self.node.op_type() {
            "Relu" => Unary::Relu,
            "LeakyRelu" => Unary::LeakyRelu { alpha: self.float("alpha", 0.01) },
            "Clip" => Unary::Clip { low: self.number("min", 1, f32::MIN)?, high: self.number("max", 2, f32::MAX)? },
            "Elu" => Unary::Elu { alpha: self.float("alpha", 1.0) },
            "Celu" => Unary::Celu { alpha: self.float("alpha", 1.0) },
            "Selu" => Unary::Selu { alpha: self.float("alpha", 1.673_263_2), gamma: self.float("gamma", 1.050_701) },
            "Sigmoid" => Unary::Sigmoid,
            "HardSigmoid" => Unary::HardSigmoid { alpha: self.float("alpha", 0.2), beta: self.float("beta", 0.5) },
            "HardSwish" => Unary::HardSwish,
            "Tanh" => Unary::Tanh,
            "Softplus" => Unary::Softplus,
            "Softsign" => Unary::Softsign,
            "Mish" => Unary::Mish,
            "Erf" => Unary::Erf,
            "Gelu" if self.string("approximate", "none") == "tanh" => Unary::GeluTanh,
            "Gelu" => Unary::Gelu,
            "Neg" => Unary::Neg,
            "Abs" => Unary::Abs,
            "Exp" => Unary::Exp,
            "Log" => Unary::Log,
            "Sqrt" => Unary::Sqrt,
            "Reciprocal" => Unary::Reciprocal,
            _ => return None,
        };
        Some(Rule::Unary(unary))
    }

    fn arithmetic(&self) -> Option<Rule> {
        // Before opset 7 an attribute says where the second operand's axes begin.
        let aligned = attributes::int(self.node, "axis").is_none();
        let groups = || usize::try_from(self.int("group", 1)).ok().filter(|&g| g > 0);
        Some(match self.node.op_type() {
            "Add" if aligned => Rule::Add,
            "Sum" => Rule::Add,
            "Sub" if aligned => Rule::Sub,
            "Mul" if aligned => Rule::Mul,
            "Div" if aligned => Rule::Div,
            "Pow" if aligned => Rule::Pow,
            "PRelu" => Rule::PRelu,
            "Conv" => Rule::Conv { window: Window::of(self.node, self.kernel_axes()?)?, groups: groups()? },
            "ConvTranspose" => {
                let window = Window::of(self.node, self.kernel_axes()?)?;
                let given = window.is_given() && attributes::ints(self.node, "output_shape").is_none();
                return given.then_some(Rule::ConvTranspose { window, groups: groups()? });
            }
            "BatchNormalization" => {
                let inference = self.int("training_mode", 0) == 0 && self.int("spatial", 1) == 1;
                let constant = [1, 4].iter().all(|&p| self.input(p).is_some_and(|n| self.constants.contains(n)));
                let rule = Rule::BatchNorm { epsilon: self.float("epsilon", 1e-5) };
                return (inference && constant).then_some(rule);
            }
            "InstanceNormalization" => Rule::InstanceNorm { epsilon: self.float("epsilon", 1e-5) },
            "LRN" => Rule::Lrn {
                size: usize::try_from(self.int("size", 0)).ok().filter(|&s| s > 0)?,
                alpha: self.float("alpha", 1e-4),
                beta: self.float("beta", 0.75),
                bias: self.float("bias", 1.0),
            },
            "Softmax" | "LogSoftmax" => {
                let flat = self.opset < 13;
                let axis = self.int("axis", if flat { 1 } else { -1 });
                Rule::Softmax { axis, flat, log: self.node.op_type() == "LogSoftmax" }
            }
            "Gemm" => Rule::Gemm {
                alpha: self.float("alpha", 1.0),
                beta: self.float("beta", 1.0),
                transposed: [self.int("transA", 0) != 0, self.int("transB", 0) != 0],
            },
            "MatMul" => Rule::MatMul,
            _ => return None,
        })
    }

    /// Spatial axes of a convolution's constant kernel.
    fn kernel_axes(&self) -> Option<usize> {
        self.constants.tensor(self.input(1)?)?.dims.len().checked_sub(2)
    }

    fn layout(&self) -> Option<Rule> {
        Some(match self.node.op_type() {
            "Identity" => Rule::Pass,
            "Dropout" => {
                // Absent or false is inference.
                let training = self.input(2).is_some_and(|name| !self.constants.is_zero(name));
                return (!training).then_some(Rule::Pass);
            }
            // Float, half, double and bfloat16.
            "Cast" => return matches!(self.int("to", 0), 1 | 10 | 11 | 16).then_some(Rule::Pass),
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => Rule::Reshape,
            "Expand" => Rule::Expand,
            "Concat" => Rule::Concat { axis: self.int("axis", 1) },
            "Split" => {
                let sizes = self.integers("split", 1)?;
                let sizes = sizes.map(|s| s.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>());
                let sizes = if let Some(sizes) = sizes { Some(sizes?) } else { None };
                Rule::Split { axis: self.int("axis", 0), sizes }
            }
            "Slice" => {
                let (starts, axes) = (self.integers("starts", 1)??, self.integers("axes", 3)?);
                let steps = self.integers("steps", 4)?.unwrap_or(vec![1; starts.len()]);
                let axes = axes.unwrap_or((0..starts.len() as i64).collect());
                if axes.len() != starts.len() || steps.len() != starts.len() || steps.contains(&0) {
                    return None;
                }
                let cuts = axes.iter().zip(&starts).zip(&steps);
                Rule::Slice(cuts.map(|((&axis, &start), &step)| Cut { axis, start, step }).collect())
            }
            "Pad" => {
                let border = match self.string("mode", "constant") {
                    "constant" => Border::Constant,
                    "edge" => Border::Edge,
                    "reflect" => Border::Reflect,
                    _ => return None,
                };
                let name = if self.opset == 1 { "paddings" } else { "pads" };
                let pads = self.integers(name, 1)??;
                let count = pads.len() / 2;
                let axes = self.integers("axes", 3)?.unwrap_or((0..count as i64).collect());
                Rule::Pad { before: axes.into_iter().zip(pads.into_iter().take(count)).collect(), border }
            }
            "Gather" => {
                let name = self.input(1)?;
                let scalar = match self.constants.tensor(name) {
                    Some(tensor) if tensor.dims.len() > 1 => return None,
                    Some(tensor) => tensor.dims.is_empty(),
                    None => attributes::int(self.constants.node(name)?, "value_int").is_some(),
                };
                Rule::Gather { axis: self.int("axis", 0), indices: self.constants.integers(name)?, scalar }
            }
            "Transpose" => {
                let order = attributes::ints(self.node, "perm").filter(|p| !p.is_empty());
                let order = order.map(|p| p.iter().map(|&a| usize::try_from(a).ok()).collect::<Option<Vec<_>>>());
                Rule::Transpose { order: if let Some(order) = order { Some(order?) } else { None } }
            }
            "DepthToSpace" | "SpaceToDepth" => {
                let block =
                    usize::try_from(self.int("blocksize", 0)).ok().filter(|b| (1..=LARGEST_BLOCK).contains(b))?;
                if self.node.op_type() == "SpaceToDepth" {
                    return Some(Rule::SpaceToDepth { block });
                }
                Rule::DepthToSpace { block, columns_first: self.string("mode", "DCR") == "CRD" }
            }
            "Resize" | "Upsample" => return self.resize(),
            _ => return None,
        })
    }

    fn resize(&self) -> Option<Rule> {
        let old = self.node.op_type() == "Upsample" || self.opset < 11;
        let linear = match self.string("mode", "nearest") {
            "nearest" => false,
            "linear" | "bilinear" => true,
            _ => return None,
        };
        let grid = match self.string("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" }) {
            "half_pixel" => Grid::HalfPixel,
            "pytorch_half_pixel" => Grid::HalfPixelTorch,
            "asymmetric" => Grid::Asymmetric,
            "align_corners" => Grid::AlignCorners,
            _ => return None,
        };
        let rounding = match self.string("nearest_mode", if old { "floor" } else { "round_prefer_floor" }) {
            "round_prefer_floor" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            _ => return None,
        };
        let special = self.int("antialias", 0) != 0
            || attributes::ints(self.node, "axes").is_some()
            || self.string("keep_aspect_ratio_policy", "stretch") != "stretch";
        if special || attributes::int(self.node, "exclude_outside").is_some_and(|e| e != 0) {
            return None;
        }
        let read = || Some(self.constants.floats(self.input(if old { 1 } else { 2 })?)?.iter().copied().collect());
        let scales: Option<Vec<f32>> = attributes::floats(self.node, "scales").map(<[f32]>::to_vec).or_else(read);
        let scales = scales.filter(|s| !s.is_empty());
        if scales.iter().flatten().any(|s| !s.is_finite() || *s <= 0.0) {
            return None;
        }
        Some(Rule::Resize { scales, grid, linear, rounding })
    }

    fn reduction(&self) -> Option<Rule> {
        let kernel = || -> Option<Vec<usize>> {
            let kernel = attributes::ints(self.node, "kernel_shape")?;
            kernel.iter().map(|&k| usize::try_from(k).ok()).collect()
        };
        Some(match self.node.op_type() {
            "MaxPool" => {
                let kernel = kernel()?;
                Rule::MaxPool { window: Window::of(self.node, kernel.len())?, kernel }
            }
            "AveragePool" => {
                let kernel = kernel()?;
                let count_padding = self.int("count_include_pad", 0) != 0;
                Rule::AveragePool { window: Window::of(self.node, kernel.len())?, kernel, count_padding }
            }
            "GlobalAveragePool" => Rule::Reduce { axes: None, keep: true, mean: true },
            "GlobalMaxPool" => Rule::GlobalMaxPool,
            "ReduceMean" | "ReduceSum" => {
                let axes = self.integers("axes", 1)?.unwrap_or_default();
                if axes.is_empty() && self.int("noop_with_empty_axes", 0) != 0 {
                    return Some(Rule::Pass);
                }
                let mean = self.node.op_type() == "ReduceMean";
                Rule::Reduce { axes: Some(axes), keep: self.int("keepdims", 1) != 0, mean }
            }
            _ => return None,
        })
    }
}
