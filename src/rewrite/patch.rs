//! What takes the place of one convolution: the factors of each chain one behind the other, and the sum of the chains.

use super::new_bias;
use crate::factor::{Chain, Factor, Factors, StoredKernel, Width};
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType};
use crate::onnx::{
    Conv, Kind, Namer, Precision, Storage, initializer, int8_initializer, kernel_initializer, quantized,
};
use crate::plan::{GroupPlan, stacked};
use std::collections::HashMap;
use std::ops::Range;

/// What replaces one convolution.
pub(super) struct Patch {
    /// The nodes, in order, in place of the convolution.
    pub(super) nodes: Vec<NodeProto>,
    /// Nodes that make factors of what is stored.
    pub(super) converting: Vec<NodeProto>,
    pub(super) initializers: Vec<TensorProto>,
    /// Names of the factors, by chain and place.
    pub(super) weights: HashMap<(usize, usize), String>,
    /// Name of its bias.
    #[cfg(feature = "tune")]
    pub(super) bias: Option<String>,
}

/// What a group's patches are made of.
pub(super) struct Parts<'p> {
    pub(super) factors: &'p Factors,
    /// Names of the shared ones, by chain and factor.
    pub(super) shared: HashMap<(usize, usize), String>,
    /// The type that they are stored in.
    pub(super) precision: Precision,
    /// The version of the operators that they are written in.
    pub(super) opset: i64,
}

/// From this version on `Gemm` needs no bias.
const GEMM_WITHOUT_BIAS: i64 = 11;

/// Places within a chain, for names.
const PLACES: [&str; 3] = ["first", "second", "third"];

/// `first`, or `a_first` when there are several chains.
fn place(factors: &Factors, chain: usize, factor: usize) -> String {
    let place = PLACES.get(factor).map_or_else(|| format!("factor{}", factor + 1), |p| (*p).to_owned());
    match factors.chains.len() {
        1 => place,
        _ => format!("{}_{place}", char::from(b'a' + (chain % 26) as u8)),
    }
}

/// Names of the shared factors of a group, by chain and factor.
pub(super) fn shared_names(
    group: &GroupPlan,
    index: usize,
    factors: &Factors,
    namer: &mut Namer,
) -> HashMap<(usize, usize), String> {
    let mut names = HashMap::new();
    for (c, chain) in factors.chains.iter().enumerate() {
        for (f, factor) in chain.factors.iter().enumerate() {
            if matches!(factor, Factor::Shared(_)) {
                let wanted = format!("{}_{}/jmd_shared_{}", group.group, index + 1, place(factors, c, f));
                names.insert((c, f), namer.fresh(&wanted));
            }
        }
    }
    names
}

impl Patch {
    /// The patch of one member, whose `own` kernels are those of its groups of channels, and which `brings` shared factors along or
    /// not; `given` is its bias, if that is not its own.
    pub(super) fn new(
        node: &NodeProto,
        conv: &Conv,
        given: Option<&Vec<f64>>,
        parts: &Parts<'_>,
        (own, brings): (Range<usize>, bool),
        namer: &mut Namer,
    ) -> Self {
        let Parts { factors, shared, precision, opset } = parts;
        let kind = &conv.kind;
        let (nodes, converting, initializers) = (Vec::new(), Vec::new(), Vec::new());
        let mut patch = Self {
            nodes,
            converting,
            initializers,
            weights: HashMap::new(),
            #[cfg(feature = "tune")]
            bias: None,
        };
        let changed = new_bias(conv, given).map(|values| {
            let name = namer.fresh(&format!("{}/jmd_bias", conv.name));
            patch.initializers.push(initializer(name.clone(), &[conv.shape[0]], values.into_iter(), *precision));
            name
        });
        let bias = changed.or_else(|| conv.bias.clone());
        #[cfg(feature = "tune")]
        patch.bias.clone_from(&bias);
        // A `MatMul` has no place for it.
        let (bias, added) = if *kind == Kind::MatMul { (None, bias) } else { (bias, None) };
        let mut zero: Option<String> = None;
        let alone = factors.chains.len() == 1 && added.is_none();
        let mut sums = Vec::new();
        for (c, chain) in factors.chains.iter().enumerate() {
            let mut value = conv.input.clone();
            for (f, factor) in chain.factors.iter().enumerate() {
                let place = place(factors, c, f);
                let kernel = || match (own.len(), factor.of(own.start).width()) {
                    (1, _) => factor.of(own.start).clone(),
                    (_, Width::Double) => {
                        StoredKernel::new(stacked(own.clone().map(|part| factor.of(part).to_f64())), Width::Double)
                    }
                    (_, Width::Single) => stacked(own.clone().map(|part| factor.of(part).floats().into_owned())).into(),
                };
                let weight = match shared.get(&(c, f)) {
                    Some(name) => name.clone(),
                    None => {
                        let name = namer.fresh(&format!("{}/jmd_{place}", conv.kernel_name));
                        patch.store(conv, &name, &kernel(), *precision, namer);
                        name
                    }
                };
                patch.weights.insert((c, f), weight.clone());
                if let (Some(name), Factor::Shared(kernel), true) = (shared.get(&(c, f)), factor, brings) {
                    patch.store(conv, name, kernel, *precision, namer);
                }
                let last = f + 1 == chain.factors.len();
                let output = if last && alone {
                    conv.output.clone()
                } else {
                    namer.fresh(&format!("{}/jmd_{place}", conv.output))
                };
                let mut input = vec![value, weight];
                input.extend(bias.clone().filter(|_| last && c == 0));
                if matches!(kind, Kind::Gemm { .. }) && input.len() == 2 && *opset < GEMM_WITHOUT_BIAS {
                    input.push(zero.clone().unwrap_or_else(|| {
                        let name = namer.fresh(&format!("{}/jmd_zero", conv.name));
                        patch.initializers.push(initializer(name.clone(), &[1], std::iter::once(0.0), *precision));
                        zero.insert(name).clone()
                    }));
                }
                patch.nodes.push(NodeProto {
                    input,
                    output: vec![output.clone()],
                    name: Some(namer.fresh(&format!("{}/jmd_{place}", conv.name))),
                    op_type: Some(kind.op_type().into()),
                    domain: node.domain.clone(),
                    attribute: attributes(conv, chain, own.start, f),
                    ..NodeProto::default()
                });
                value = output;
            }
            sums.push(value);
        }
        sums.extend(added);
        let count = sums.len();
        let mut sums = sums.into_iter();
        let mut total = sums.next().unwrap_or_default();
        for (at, term) in sums.enumerate() {
            let output =
                if at + 2 == count { conv.output.clone() } else { namer.fresh(&format!("{}/jmd_sum", conv.output)) };
            patch
                .nodes
                .push(NodeProto { domain: node.domain.clone(), ..sum(conv, [total, term], output.clone(), namer) });
            total = output;
        }
        // What was written about the convolution stays with the node that gives its result.
        if let Some(last) = patch.nodes.last_mut() {
            last.doc_string.clone_from(&node.doc_string);
            last.metadata_props.clone_from(&node.metadata_props);
        }
        patch
    }

    /// Stores a factor under a name as its kernel was stored; `read` is the type that the operator reads.
    fn store(&mut self, conv: &Conv, name: &str, kernel: &StoredKernel, read: Precision, namer: &mut Namer) {
        let node = (conv.storage != Storage::Plain).then(|| namer.fresh(&format!("{name}_read")));
        let mut converted = |by: &str, inputs: Vec<String>, attribute: Vec<AttributeProto>| {
            self.converting.push(NodeProto {
                input: inputs,
                output: vec![name.to_owned()],
                name: node.clone(),
                op_type: Some(by.into()),
                attribute,
                ..NodeProto::default()
            });
        };
        let (dims, ordered) = (conv.kind.dims(kernel.dim()), || kernel.clone().arranged(&conv.kind));
        match conv.storage {
            Storage::Plain => self.initializers.push(kernel_initializer(name.to_owned(), &dims, ordered(), read)),
            Storage::Cast(narrow) => {
                let stored = namer.fresh(&format!("{name}_stored"));
                converted("Cast", vec![stored.clone()], vec![integer("to", read.data_type() as i64)]);
                self.initializers.push(kernel_initializer(stored, &dims, ordered(), narrow));
            }
            Storage::Quantized { per_channel, .. } => {
                let (numbers, scales) = quantized(kernel.floats().view(), per_channel);
                let (dims, elements) = conv.kind.store(numbers.view());
                let stored = namer.fresh(&format!("{name}_quantized"));
                let scale = namer.fresh(&format!("{name}_scale"));
                let axis = per_channel.then(|| integer("axis", conv.kind.output_axis() as i64));
                converted("DequantizeLinear", vec![stored.clone(), scale.clone()], axis.into_iter().collect());
                self.initializers.push(int8_initializer(stored, &dims, elements.into_iter()));
                let dims = if per_channel { vec![scales.len()] } else { Vec::new() };
                self.initializers.push(initializer(scale, &dims, scales.into_iter(), Precision::Single));
            }
        }
    }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

/// The sum of two values of a convolution.
pub(super) fn sum(conv: &Conv, terms: [String; 2], output: String, namer: &mut Namer) -> NodeProto {
    NodeProto {
        input: terms.to_vec(),
        output: vec![output],
        name: Some(namer.fresh(&format!("{}/jmd_add", conv.name))),
        op_type: Some("Add".into()),
        ..NodeProto::default()
    }
}

/// Attributes of one factor: it takes stride, dilation and pads of the axes that it carries.
fn attributes(conv: &Conv, chain: &Chain, member: usize, factor: usize) -> Vec<AttributeProto> {
    let ints = |name: &str, values: Vec<usize>| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.iter().map(|&v| v as i64).collect(),
        ..AttributeProto::default()
    };
    let window = match &conv.kind {
        Kind::Conv(window) | Kind::ConvTranspose(window) => window,
        Kind::Gemm { transposed } => {
            return if *transposed { vec![integer("transB", 1)] } else { Vec::new() };
        }
        Kind::MatMul => return Vec::new(),
    };
    let extent = |f: usize, axis: usize| <[usize; 4]>::from(chain.factors[f].of(member).dim())[2 + axis];
    let carries = |axis: usize| {
        // An axis of extent one everywhere goes where a stride is cheapest: it makes a value smaller, transposed larger.
        let cheapest = if conv.kind.is_transposed() { chain.factors.len() - 1 } else { 0 };
        let carrier = (0..chain.factors.len()).find(|&f| extent(f, axis) > 1).unwrap_or(cheapest);
        carrier == factor
    };
    let axes = window.kernel.len();
    let mut carried = vec![false; axes];
    for (half, range) in conv.kind.axes().into_iter().enumerate() {
        carried[range].fill(carries(half));
    }
    let pick = |values: &[usize], otherwise: usize| -> Vec<usize> {
        values.iter().enumerate().map(|(at, &value)| if carried[at % axes] { value } else { otherwise }).collect()
    };
    let padding = match window.padding.auto_pad() {
        // Each axis is resolved by the factor that slides over it; along an axis of extent one nothing is padded.
        Some(mode) => AttributeProto {
            name: Some("auto_pad".into()),
            r#type: Some(AttributeType::String as i32),
            s: Some(mode.into()),
            ..AttributeProto::default()
        },
        None => ints("pads", pick(conv.pads.as_deref().unwrap_or_default(), 0)),
    };
    let mut all = vec![
        ints("dilations", pick(&window.dilations, 1)),
        ints("kernel_shape", conv.kind.spatial([extent(factor, 0), extent(factor, 1)])),
        padding,
        ints("strides", pick(&window.strides, 1)),
    ];
    if window.groups > 1 {
        all.push(integer("group", window.groups as i64));
    }
    if window.output_padding.iter().any(|&p| p > 0) {
        all.push(ints("output_padding", pick(&window.output_padding, 0)));
    }
    all
}
