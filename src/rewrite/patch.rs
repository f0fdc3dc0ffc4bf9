//! What takes the place of one convolution: the factors of each chain one behind the other, and the sum of the chains.

use super::new_bias;
use crate::factor::{Chain, Factor, Factors};
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType};
use crate::onnx::{Conv, Namer, Precision, initializer};
use crate::plan::GroupPlan;
use ndarray::Array4;
use std::collections::HashMap;

/// What replaces one convolution.
pub(super) struct Patch {
    /// The nodes, in order, in place of the convolution.
    pub(super) nodes: Vec<NodeProto>,
    pub(super) initializers: Vec<TensorProto>,
}

/// What a group's patches are made of.
pub(super) struct Parts<'p> {
    pub(super) factors: &'p Factors,
    /// Names of the shared ones, by chain and factor.
    pub(super) shared: HashMap<(usize, usize), String>,
    /// The type that they are stored in.
    pub(super) precision: Precision,
}

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
    /// The patch of one member; `given` is its bias, if that is not its own.
    pub(super) fn new(
        node: &NodeProto,
        conv: &Conv,
        given: Option<&Vec<f32>>,
        parts: &Parts<'_>,
        member: usize,
        namer: &mut Namer,
    ) -> Self {
        let Parts { factors, shared, precision } = parts;
        let mut patch = Self { nodes: Vec::new(), initializers: Vec::new() };
        let stored =
            |name: String, kernel: &Array4<f32>| initializer(name, kernel.shape(), kernel.iter().copied(), *precision);
        let own = new_bias(conv, given).map(|values| {
            let name = namer.fresh(&format!("{}/jmd_bias", conv.name));
            patch.initializers.push(initializer(name.clone(), &[conv.shape[0]], values.into_iter(), *precision));
            name
        });
        let bias = own.or_else(|| conv.bias.clone());
        let mut sums = Vec::new();
        for (c, chain) in factors.chains.iter().enumerate() {
            let mut value = conv.input.clone();
            for (f, factor) in chain.factors.iter().enumerate() {
                let place = place(factors, c, f);
                let kernel = factor.of(member);
                let weight = match shared.get(&(c, f)) {
                    Some(name) => name.clone(),
                    None => {
                        let name = namer.fresh(&format!("{}/jmd_{place}", conv.kernel_name));
                        patch.initializers.push(stored(name.clone(), kernel));
                        name
                    }
                };
                // The first member of a shared factor brings it along.
                if let (Some(name), Factor::Shared(kernel), 0) = (shared.get(&(c, f)), factor, member) {
                    patch.initializers.push(stored(name.clone(), kernel));
                }
                let last = f + 1 == chain.factors.len();
                let output = if last && factors.chains.len() == 1 {
                    conv.output.clone()
                } else {
                    namer.fresh(&format!("{}/jmd_{place}", conv.output))
                };
                let mut input = vec![value, weight];
                input.extend(bias.clone().filter(|_| last && c == 0));
                patch.nodes.push(NodeProto {
                    input,
                    output: vec![output.clone()],
                    name: Some(namer.fresh(&format!("{}/jmd_{place}", conv.name))),
                    op_type: Some("Conv".into()),
                    domain: node.domain.clone(),
                    attribute: attributes(conv, chain, member, f),
                    ..NodeProto::default()
                });
                value = output;
            }
            sums.push(value);
        }
        if sums.len() > 1 {
            let add = |a: String, b: String, output: String, name: String| NodeProto {
                input: vec![a, b],
                output: vec![output],
                name: Some(name),
                op_type: Some("Add".into()),
                domain: node.domain.clone(),
                ..NodeProto::default()
            };
            let count = sums.len();
            let mut sums = sums.into_iter();
            let mut total = sums.next().unwrap_or_default();
            for (at, term) in sums.enumerate() {
                let output = if at + 2 == count {
                    conv.output.clone()
                } else {
                    namer.fresh(&format!("{}/jmd_sum", conv.output))
                };
                let name = namer.fresh(&format!("{}/jmd_add", conv.name));
                patch.nodes.push(add(total, term, output.clone(), name));
                total = output;
            }
        }
        // What was written about the convolution stays with the node that gives its result.
        if let Some(last) = patch.nodes.last_mut() {
            last.doc_string.clone_from(&node.doc_string);
            last.metadata_props.clone_from(&node.metadata_props);
        }
        patch
    }
}

/// Attributes of one factor: it takes stride, dilation and pads of the axes that it carries.
fn attributes(conv: &Conv, chain: &Chain, member: usize, factor: usize) -> Vec<AttributeProto> {
    let extent = |f: usize, axis: usize| chain.factors[f].of(member).shape()[2 + axis];
    let carries = |axis: usize| {
        // An axis of extent one everywhere goes to the first factor: a stride is cheapest there.
        let carrier = (0..chain.factors.len()).find(|&f| extent(f, axis) > 1).unwrap_or(0);
        carrier == factor
    };
    let pick = |values: [usize; 2], otherwise: usize| [0, 1].map(|a| if carries(a) { values[a] } else { otherwise });
    let [top, left, bottom, right] = conv.pads.unwrap_or_default();
    let begin = pick([top, left], 0);
    let end = pick([bottom, right], 0);
    let ints = |name: &str, values: &[usize]| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.iter().map(|&v| v as i64).collect(),
        ..AttributeProto::default()
    };
    let padding = match &conv.auto_pad {
        // Each axis is resolved by the factor that slides over it; along an axis of extent one nothing is padded.
        Some(mode) => AttributeProto {
            name: Some("auto_pad".into()),
            r#type: Some(AttributeType::String as i32),
            s: Some(mode.as_bytes().to_vec()),
            ..AttributeProto::default()
        },
        None => ints("pads", &[begin[0], begin[1], end[0], end[1]]),
    };
    vec![
        ints("dilations", &pick(conv.dilations, 1)),
        ints("kernel_shape", &[extent(factor, 0), extent(factor, 1)]),
        padding,
        ints("strides", &pick(conv.strides, 1)),
    ]
}
