//! One convolution, its attributes resolved and validated, or the reason why it is left alone.

use super::graph::{Graph, label};
use super::kind::Kind;
use super::proto::{NodeProto, TensorProto, tensor_proto::DataType};
use super::shapes::Resolutions;
use super::skip::SkipReason;
use super::window::{Padding, Window};
use super::{BatchNorm, Storage, attributes, tensor};
use crate::error::{Error, Result};
use crate::factor::{self, ChainForm};
use ndarray::{Array1, Array4, ArrayD, Axis};
use std::ops::Range;

/// A convolution, or what computes one (a transposed convolution, a fully connected layer), with a constant kernel that nothing
/// else uses, and the batch norm behind it if that is to be folded in.
#[derive(Debug, Clone)]
pub struct Conv {
    /// The node's name, or its operator and output where it has none.
    pub name: String,
    /// Name of the kernel's tensor.
    pub kernel_name: String,
    /// Kernel shape `[out, in, kh, kw]`: of one spatial axis `kh` is one, of three `kw` counts the last two, of a fully connected
    /// layer both are one. `in` counts the channels of one group, see [`Conv::channel_groups`].
    pub shape: [usize; 4],
    /// Height and width of the input, where known; of one or three spatial axes as in `shape`.
    pub input_extent: [Option<usize>; 2],
    /// Height and width of the output, where known.
    pub output_extent: [Option<usize>; 2],
    pub(crate) node: usize,
    pub(crate) kind: Kind,
    pub(crate) storage: Storage,
    /// Zeros before each spatial axis, then after each; none where `auto_pad` leaves them to an input size that is not known.
    pub pads: Option<Vec<usize>>,
    pub(crate) input: String,
    /// The value that carries the result: the batch norm's output if one is folded in.
    pub(crate) output: String,
    pub(crate) bias: Option<String>,
    pub(crate) batch_norm: Option<BatchNorm>,
    /// Others that read the same kernel: what becomes of it becomes of theirs.
    pub(crate) twins: Vec<Self>,
    /// Shares its bytes with the model.
    kernel: TensorProto,
    bias_values: Option<Vec<f64>>,
    /// Whether nothing else reads the bias.
    own_bias: bool,
}

impl Conv {
    /// Validates one node. `fold` says whether a batch norm behind it becomes part of it.
    ///
    /// Of several that read one kernel the first of the graph stands for all, the others its [`Conv::twins`], and nothing is folded:
    /// what stands behind one does not behind another. None for the others.
    pub(crate) fn new(
        graph: &Graph<'_>,
        resolutions: &Resolutions,
        index: usize,
        fold: bool,
    ) -> Result<Option<Self>, SkipReason> {
        let kernel = graph.nodes()[index].input.get(1);
        let readers = kernel.map_or(Vec::new(), |kernel| graph.layers_reading(kernel));
        if readers.len() < 2 {
            return Self::read(graph, resolutions, index, fold, 1).map(Some);
        }
        let each = readers.iter().map(|&at| Self::read(graph, resolutions, at, false, readers.len()));
        let mut each = each.collect::<Result<Vec<_>, _>>()?;
        let first = each.remove(0);
        if let Some(other) = each.iter().find(|t| t.family() != first.family() || t.shape != first.shape) {
            let what = format!("'{}' reads its kernel as another operator", other.name);
            return Err(SkipReason::Inconsistent { what });
        }
        Ok((first.node == index).then_some(Self { twins: each, ..first }))
    }

    /// One node whose kernel is read as often as `readers` says.
    fn read(
        graph: &Graph<'_>,
        resolutions: &Resolutions,
        index: usize,
        fold: bool,
        readers: usize,
    ) -> Result<Self, SkipReason> {
        let node = &graph.nodes()[index];
        let inconsistent = |what: String| SkipReason::Inconsistent { what };
        if !graph.is_live(index) {
            return Err(SkipReason::Unread);
        }
        let (Some(input), Some(weight)) = (node.input.first(), node.input.get(1)) else {
            return Err(inconsistent("it has no kernel".into()));
        };
        if weight.is_empty() {
            return Err(inconsistent("it has no kernel".into()));
        }
        if let Some((attribute, stated, right)) = attributes::mistyped(node) {
            return Err(inconsistent(format!(
                "its {attribute} is of type {stated}, not {right}: no operator reads it so"
            )));
        }
        let tensor = graph.folded(weight).filter(|_| !graph.is_widely_quantized(weight));
        let Some(tensor) = tensor else { return Err(unknown_kernel(graph, weight)) };
        let channel_groups = attributes::int(node, "group").unwrap_or(1);
        if channel_groups != 1 && node.op_type() == "ConvTranspose" {
            return Err(SkipReason::Grouped { channel_groups });
        }
        let dims: Vec<usize> = tensor.dims.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
        if dims.contains(&0) {
            return Err(inconsistent(format!("its kernel has an empty axis: {dims:?}")));
        }
        let kind = kind(node, &dims, resolutions)?;
        // Types other than float32 come here as copies in it, or are read as if they were.
        if tensor.data_type() != DataType::Float as i32 && !graph.reads_as_float(&tensor) {
            let element_type = DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined);
            return Err(SkipReason::KernelType { element_type: element_type.as_str_name().into() });
        }
        let uses = graph.constant_uses(weight);
        if uses != readers {
            return Err(SkipReason::KernelReused { tensor: weight.clone(), uses });
        }
        let shape = kind.shape(&dims).ok_or(SkipReason::Axes { axes: dims.len() })?;
        check_groups(kind.groups(), shape, resolutions.shape(input))?;
        let bias = node.input.get(2).filter(|b| !b.is_empty()).cloned();
        let bias_values = bias.as_ref().and_then(|b| tensor::read_numbers(&graph.folded(b)?));
        let fits = |b: &ArrayD<f64>| b.len() == shape[0] && b.shape().last() == Some(&shape[0]);
        if !kind.is_dense() && bias_values.as_ref().is_some_and(|b| !fits(b)) {
            return Err(inconsistent(format!("its bias does not have {} elements", shape[0])));
        }
        // That of a fully connected layer may be any matrix or number that is as large when broadcast, and one column for all rows.
        let bias_values: Option<Vec<f64>> = bias_values.filter(fits).map(|b| b.iter().copied().collect());
        let [written] = &node.output[..] else {
            return Err(inconsistent(format!("it has {} outputs", node.output.len())));
        };
        let foldable = fold && (bias.is_none() || bias_values.is_some());
        let batch_norm = match kind {
            _ if readers > 1 => None,
            Kind::MatMul => BatchNorm::adding(graph, written, shape[0], resolutions.rank(graph, input)),
            _ if foldable => BatchNorm::reading(graph, written, shape[0]),
            _ => None,
        };
        let output = batch_norm.as_ref().map_or(written, |b| &b.output).clone();
        let extent = |value: &str| kind.extent(resolutions.shape(value));
        Ok(Self {
            name: label(node),
            kernel_name: weight.clone(),
            shape,
            pads: kind.window().map_or(Some(Vec::new()), |w| w.pads(resolutions.spatial(input))),
            input_extent: extent(input),
            output_extent: extent(written),
            node: index,
            input: input.clone(),
            output,
            batch_norm,
            twins: Vec::new(),
            kernel: tensor,
            own_bias: bias.as_ref().is_some_and(|b| graph.constant_uses(b) == 1),
            bias,
            bias_values,
            storage: graph.storage(weight),
            kind,
        })
    }

    /// `SAME_UPPER` or `SAME_LOWER` if the file leaves the pads open; the factors then say so themselves.
    #[must_use]
    pub fn auto_pad(&self) -> Option<&'static str> {
        self.kind.window()?.padding.auto_pad()
    }

    /// The kernel in f64, axes `out, in, kh, kw`, with the batch norm's scale folded in.
    #[must_use]
    pub fn kernel(&self) -> Array4<f64> {
        // Type and shape were checked when the node was.
        let dims: Vec<usize> = self.kernel.dims.iter().map(|&d| d as usize).collect();
        let elements = tensor::floats_within(&self.kernel, 0..usize::MAX);
        let kernel = self.kind.read(&dims, elements).unwrap_or_default();
        match &self.batch_norm {
            Some(norm) => per_output(kernel, norm.scale.iter().copied()),
            None => kernel,
        }
    }

    /// Whether its kernel is read in float64.
    pub(crate) fn is_double(&self) -> bool {
        self.kernel.data_type() == DataType::Double as i32
    }

    /// What convolutions have in common that store kernels alike, so that they can share one.
    pub(crate) fn family(&self) -> String {
        let kind = self.kind.family();
        self.storage.name().map_or_else(|| kind.clone(), |stored| format!("{kind} {stored}"))
    }

    /// How many convolutions beside each other it is, each with as many of its channels and with kernels of its own: ONNX's
    /// attribute `group`.
    #[must_use]
    pub fn channel_groups(&self) -> usize {
        self.kind.groups()
    }

    /// The shape of the kernel of one group of channels.
    pub(crate) fn part_shape(&self) -> [usize; 4] {
        let [out, inputs, kh, kw] = self.shape;
        [out / self.channel_groups(), inputs, kh, kw]
    }

    /// The parts of something that has one row a channel of the output, one a group of channels.
    pub(crate) fn output_parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let [out, ..] = self.part_shape();
        (0..self.channel_groups()).map(move |part| part * out..(part + 1) * out)
    }

    /// The kernel of one group of channels.
    pub(crate) fn part_kernel(&self, part: usize) -> Array4<f64> {
        if self.channel_groups() == 1 {
            return self.kernel();
        }
        let shape = self.part_shape();
        let count: usize = shape.iter().product();
        // One after the other, as ONNX stores them.
        let elements = tensor::floats_within(&self.kernel, part * count..(part + 1) * count);
        let kernel = Array4::from_shape_vec(shape, elements).unwrap_or_default();
        match &self.batch_norm {
            Some(norm) => per_output(kernel, norm.scale.iter().skip(part * shape[0]).take(shape[0]).copied()),
            None => kernel,
        }
    }

    /// Checks that every weight, and what is added to the output, is a number.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if one is NaN or infinite.
    pub(crate) fn check_finite(&self) -> Result<()> {
        if !tensor::is_finite(&self.kernel) {
            return Err(Error::NotFinite { node: self.name.clone(), tensor: self.kernel_name.clone() });
        }
        self.all().try_for_each(|conv| {
            let bias = conv.bias.as_ref().zip(conv.bias_values.as_ref());
            match bias.filter(|(_, values)| !values.iter().all(|x| x.is_finite())) {
                Some((name, _)) => Err(Error::NotFinite { node: conv.name.clone(), tensor: name.clone() }),
                None => Ok(()),
            }
        })
    }

    /// The bias with the batch norm folded in, `scale·b + shift`; none where the node's own bias stays.
    pub(crate) fn folded_bias(&self) -> Option<Vec<f64>> {
        let norm = self.batch_norm.as_ref()?;
        let bias = self.bias_values.clone().unwrap_or_else(|| vec![0.0; self.shape[0]]);
        Some(bias.iter().zip(&norm.scale).zip(&norm.shift).map(|((b, s), t)| s * b + t).collect())
    }

    /// Whether it has no bias and may be given one.
    pub(crate) fn gains_bias(&self) -> bool {
        self.bias.is_none() && self.batch_norm.is_none() && self.twins.is_empty()
    }

    /// The constant that is added to the output, zero where there is no bias; none if the bias is computed, or that of several.
    pub(crate) fn effective_bias(&self) -> Option<Vec<f64>> {
        if !self.twins.is_empty() {
            return None;
        }
        match (&self.bias, &self.bias_values) {
            _ if self.batch_norm.is_some() => self.folded_bias(),
            (None, _) => Some(vec![0.0; self.shape[0]]),
            (Some(_), values) => values.clone(),
        }
    }

    /// Stored parameters that folding the batch norm takes away, the new bias counted; negative if it adds some.
    pub(crate) fn folded_parameters(&self) -> i64 {
        let Some(norm) = &self.batch_norm else { return 0 };
        let old_bias = if self.own_bias { self.shape[0] } else { 0 };
        norm.own_parameters as i64 + old_bias as i64 - self.shape[0] as i64
    }

    /// It and its twins.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.twins)
    }

    /// Weights in the kernel.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Input and output sizes; where they are not known, those of a large output.
    pub(crate) fn extents(&self) -> ([usize; 2], [usize; 2]) {
        let otherwise = match self.kind {
            Kind::Gemm { .. } => [1, 1],
            Kind::MatMul => [1, LARGE],
            _ => [LARGE, LARGE],
        };
        let known = |extent: [Option<usize>; 2]| [0, 1].map(|axis| extent[axis].unwrap_or(otherwise[axis]));
        let strides = self.kind.strides();
        let (input, output) = (known(self.input_extent), known(self.output_extent));
        // Of one that is known the other follows, about.
        if self.kind.is_transposed() {
            (input, [0, 1].map(|axis| self.output_extent[axis].unwrap_or(input[axis] * strides[axis])))
        } else {
            ([0, 1].map(|axis| self.input_extent[axis].unwrap_or(output[axis] * strides[axis])), output)
        }
    }

    /// A shape of what it reads, one image of it, at which every tap of the kernel and every stride takes part.
    #[cfg(feature = "verify")]
    pub(crate) fn sample_shape(&self) -> Vec<usize> {
        let inputs = self.shape[1] * self.channel_groups();
        let Some(window) = self.kind.window() else { return vec![2, inputs] };
        let mut dims = vec![1, inputs];
        // Where the file says the size of an output, the input has but one.
        match (self.kind.is_transposed(), window.kernel.len(), self.input_extent) {
            (true, 1, [_, Some(width)]) => dims.push(width),
            (true, 2, [Some(height), Some(width)]) => dims.extend([height, width]),
            _ => dims.extend((0..window.kernel.len()).map(|axis| window.reach(axis) + 2 * window.strides[axis] + 1)),
        }
        dims
    }

    /// Multiply-accumulates, if the sizes of input and output are known.
    #[must_use]
    pub fn known_macs(&self) -> Option<u64> {
        let known = |extent: [Option<usize>; 2]| Some([extent[0]?, extent[1]?]);
        Some(self.macs((known(self.input_extent)?, known(self.output_extent)?)))
    }

    /// Multiply-accumulates for an input and an output of these heights and widths.
    pub(crate) fn macs(&self, (input, output): ([usize; 2], [usize; 2])) -> u64 {
        // A transposed convolution multiplies each pixel that it reads, others each that they write.
        let [height, width] = if self.kind.is_transposed() { input } else { output };
        let own = self.weights().saturating_mul(height as u64).saturating_mul(width as u64);
        self.twins.iter().map(|t| t.macs(t.extents())).fold(own, u64::saturating_add)
    }

    /// The same of the factors of some chains.
    pub(crate) fn macs_of(
        &self,
        chains: &[ChainForm],
        ranks: &[usize],
        (input, output): ([usize; 2], [usize; 2]),
    ) -> u64 {
        let part = factor::macs(chains, ranks, self.part_shape(), [input, output], self.kind.is_transposed());
        let own = part.saturating_mul(self.channel_groups() as u64);
        self.twins.iter().map(|t| t.macs_of(chains, ranks, t.extents())).fold(own, u64::saturating_add)
    }

    /// Multiply-accumulates of some convolutions as they are, for sizes of [`Conv::extents`].
    pub(crate) fn total_macs<'c>(convs: impl Iterator<Item = &'c Self>) -> u64 {
        convs.map(|c| c.macs(c.extents())).fold(0, u64::saturating_add)
    }
}

/// Height and width that an unknown size is taken for.
const LARGE: usize = 64;

/// The operator of a node with a kernel of these dimensions.
fn kind(node: &NodeProto, dims: &[usize], resolutions: &Resolutions) -> Result<Kind, SkipReason> {
    let inconsistent = |what: String| SkipReason::Inconsistent { what };
    let window = || match dims {
        [_, _, spatial @ ..] if (1..=3).contains(&spatial.len()) => Window::of(node, spatial).map_err(inconsistent),
        _ => Err(SkipReason::Axes { axes: dims.len() }),
    };
    let matrix = || match dims {
        [_, _] => Ok(()),
        [_, _, ..] => Err(SkipReason::KernelStack { dims: dims.to_vec() }),
        _ => Err(inconsistent(format!("its weight is no matrix: {dims:?}"))),
    };
    match node.op_type() {
        "ConvTranspose" => {
            // Of a model that leaves sizes open, the next input may be of another.
            let sizes = if resolutions.is_fixed() { resolutions.spatial(&node.input[0]) } else { &[] };
            let window = window()?.closed(node, sizes);
            let open = !matches!(window.padding, Padding::Given(_));
            if open { Err(SkipReason::OpenPads) } else { Ok(Kind::ConvTranspose(window)) }
        }
        "Gemm" => {
            matrix()?;
            let one = |name: &str| attributes::float(node, name).unwrap_or(1.0) == 1.0;
            if !one("alpha") || !one("beta") || attributes::int(node, "transA").unwrap_or(0) != 0 {
                return Err(inconsistent("its alpha or beta is not 1, or it has transA".into()));
            }
            Ok(Kind::Gemm { transposed: attributes::int(node, "transB").unwrap_or(0) != 0 })
        }
        "MatMul" => matrix().map(|()| Kind::MatMul),
        _ => window().map(Kind::Conv),
    }
}

/// Refuses groups that kernel or input contradict, and those of single channels.
fn check_groups(
    groups: usize,
    [out, inputs, ..]: [usize; 4],
    read: Option<&[Option<usize>]>,
) -> Result<(), SkipReason> {
    if groups == 1 {
        return Ok(());
    }
    if (out, inputs) == (groups, 1) {
        return Err(SkipReason::Depthwise { channel_groups: groups });
    }
    let channels = read.and_then(|shape| *shape.get(1)?);
    let fits = out.is_multiple_of(groups) && channels.is_none_or(|c| Some(c) == inputs.checked_mul(groups));
    let what = || format!("its group = {groups} does not fit its kernel's {out} × {inputs} channels and its input's");
    if fits { Ok(()) } else { Err(SkipReason::Inconsistent { what: what() }) }
}

/// Why there is no tensor behind the kernel of a node.
fn unknown_kernel(graph: &Graph<'_>, weight: &str) -> SkipReason {
    if graph.is_overridable(weight) {
        return SkipReason::KernelOverridable { tensor: weight.to_owned() };
    }
    if graph.is_sparse(weight) {
        return SkipReason::KernelSparse { tensor: weight.to_owned() };
    }
    let mut name = weight;
    // A few steps tell; a long way back is computed, whatever it starts from.
    for _ in 0..8 {
        let found = graph.producer(name).map(|n| &graph.nodes()[n]).filter(|_| graph.is_constant(name));
        let Some(node) = found else { break };
        if node.op_type() == "DequantizeLinear" {
            return SkipReason::KernelQuantized { value: weight.to_owned() };
        }
        let Some(input) = node.input.first() else { break };
        name = input;
    }
    SkipReason::KernelComputed { value: weight.to_owned() }
}

/// Multiplies each output channel of a kernel.
fn per_output(kernel: Array4<f64>, factors: impl Iterator<Item = f64>) -> Array4<f64> {
    let factors = Array1::from_iter(factors);
    kernel * factors.insert_axis(Axis(1)).insert_axis(Axis(2)).insert_axis(Axis(3))
}
