//! Which convolutions play the same role, and which blocks of the network repeat: from structure alone.

mod blocks;
mod protocol;
mod role;
mod stream;

pub use blocks::RepeatedBlock;
pub use protocol::Protocol;
pub use stream::Stream;

use crate::error::{Error, Result};
use crate::onnx::proto::NodeProto;
use crate::onnx::{
    Conv, Graph, InputShape, Model, Resolutions, SkipReason, VERSION_KEY, Within, attributes, is_layer, is_standard,
};
use regex::Regex;
use std::collections::BTreeMap;

/// What makes convolutions candidates for sharing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GroupBy {
    /// The same place in repeated blocks of one stage.
    #[default]
    Role,
    /// Equal kernel shapes, wherever they stand.
    Shape,
}

/// How convolutions are found and grouped.
#[derive(Debug, Clone, Default)]
pub struct GroupOptions {
    /// What makes convolutions interchangeable.
    pub group_by: GroupBy,
    /// Leave `BatchNormalization` nodes in the graph instead of folding them into decomposed kernels.
    pub keep_batch_norm: bool,
    /// Only convolutions whose name matches.
    pub include: Option<Regex>,
    /// No convolution whose name matches.
    pub exclude: Option<Regex>,
    /// Leave whole what this comparison does.
    pub protocol: Option<Protocol>,
    /// Shapes of graph inputs, where the file leaves them open.
    pub input_shapes: Vec<InputShape>,
}

/// Convolutions that play one role: equal output channels and kernel size, not necessarily input channels.
#[derive(Debug, Clone)]
pub struct Group {
    /// Short name, `g1`, `g2`, … in graph order.
    pub name: String,
    /// The neighbourhood that the members have in common, this convolution marked `●`.
    pub role: String,
    /// Positions in [`Grouping::convs`], in graph order.
    pub members: Vec<usize>,
}

/// A convolution that is left alone.
#[derive(Debug, Clone)]
pub struct Skipped {
    /// The node's name.
    pub name: String,
    /// Why.
    pub reason: SkipReason,
    /// Its multiply-accumulates, where kernel and size are known.
    pub macs: Option<u64>,
}

/// Everything that matching found.
#[derive(Debug, Clone)]
pub struct Grouping {
    /// Convolutions that can be decomposed, in graph order.
    pub convs: Vec<Conv>,
    /// A partition of them.
    pub groups: Vec<Group>,
    /// The others.
    pub skipped: Vec<Skipped>,
    /// Repeated blocks of the network.
    pub blocks: Vec<RepeatedBlock>,
    /// Residual streams with several readers or writers among the convolutions.
    pub streams: Vec<Stream>,
}

/// Convolutions and products of whole numbers.
const INTEGERS: [&str; 4] = ["ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"];

/// Finds the convolutions of a model, groups those that play the same role and reports the repeated blocks.
///
/// # Errors
/// Those of a damaged graph, which a model from [`Model::open`] has none of; [`Error::Options`] if a protocol is not for such a
/// network.
pub fn find_groups(model: &Model, options: &GroupOptions) -> Result<Grouping> {
    let graph = Graph::new(model)?;
    let resolutions = Resolutions::new(&graph, &options.input_shapes);
    let mut convs = Vec::new();
    let mut skipped = Vec::new();
    let mut within = Within::new(model.proto());
    for &index in graph.order() {
        let node = &graph.nodes()[index];
        let unknown = |name: String, reason: SkipReason| Skipped { name, reason, macs: None };
        let owner = || crate::onnx::label(node);
        skipped.extend(
            within
                .called_by(node)
                .into_iter()
                .map(|(function, way)| unknown(way, SkipReason::InFunction { function: function.to_owned() })),
        );
        skipped
            .extend(role::inner_convs(node).into_iter().map(|n| unknown(n, SkipReason::InSubgraph { node: owner() })));
        if !is_layer(&graph, node) {
            if let Some(value) = constant_on_the_left(&graph, node) {
                let reason = match graph.is_live(index) {
                    true => SkipReason::KernelOnTheLeft { value: value.to_owned() },
                    false => SkipReason::Unread,
                };
                skipped.push(Skipped { name: owner(), reason, macs: whole_macs(&graph, &resolutions, node) });
            } else if is_standard(node) && INTEGERS.contains(&node.op_type()) {
                skipped.push(unknown(owner(), SkipReason::Integers { operator: node.op_type().to_owned() }));
            } else if matches!(node.op_type(), "Conv" | "ConvTranspose") {
                skipped.push(unknown(owner(), SkipReason::ForeignDomain { domain: node.domain().to_owned() }));
            }
            continue;
        }
        match candidate(&graph, &resolutions, index, model, options) {
            Ok(conv) => convs.extend(conv),
            Err(reason) => {
                let macs = whole_macs(&graph, &resolutions, node);
                skipped.push(Skipped { name: owner(), reason, macs });
            }
        }
    }
    if options.protocol == Some(Protocol::Paper) {
        // Of all of them, whatever is left out besides.
        let all = graph.order().iter().filter(|&&index| is_layer(&graph, &graph.nodes()[index]));
        let all = all.filter_map(|&index| Conv::new(&graph, &resolutions, index, !options.keep_batch_norm).ok()?);
        let all: Vec<Conv> = all.collect();
        let dense: Vec<bool> = all.iter().map(|c| c.kind.is_dense()).collect();
        let whole = protocol::left_whole(&dense, &stream::streams(&graph, &all));
        let no_stage =
            || Error::Options("--protocol paper is for residual networks; this one has no stage of blocks".into());
        let whole = whole.ok_or_else(no_stage)?;
        convs.retain(|conv| {
            let reason = all.iter().position(|c| c.node == conv.node).and_then(|at| whole[at]);
            skipped.extend(reason.map(|part| Skipped {
                name: conv.name.clone(),
                reason: SkipReason::Protocol { part },
                macs: conv.known_macs(),
            }));
            reason.is_none()
        });
    }
    let groups = group(&graph, &resolutions, &convs, options.group_by);
    let streams = stream::streams(&graph, &convs);
    Ok(Grouping { groups, skipped, blocks: blocks::repeated(&graph), streams, convs })
}

/// The constant of a product that has it on its left side alone.
fn constant_on_the_left<'m>(graph: &Graph<'m>, node: &'m NodeProto) -> Option<&'m str> {
    let [left, right, ..] = &node.input[..] else { return None };
    let product = is_standard(node) && matches!(node.op_type(), "Gemm" | "MatMul");
    (product && graph.is_constant(left) && !graph.is_constant(right)).then_some(left)
}

/// Multiply-accumulates of a node that is left alone, if its kernel and the size of its output are known; an open batch is one.
fn whole_macs(graph: &Graph<'_>, resolutions: &Resolutions, node: &NodeProto) -> Option<u64> {
    let dims = |at: usize| Some(&graph.unconverted(node.input.get(at)?)?.dims[..]);
    let is = |name: &str| attributes::int(node, name).unwrap_or(0) != 0;
    let output = resolutions.shape(node.output.first()?)?;
    // Of a product each element is a sum along the axis that both sides have.
    let (each, sizes) = match (node.op_type(), dims(0), dims(1)) {
        ("Gemm" | "MatMul", _, Some([.., rows, columns])) => {
            (vec![if is("transB") { *columns } else { *rows }], output)
        }
        ("Gemm" | "MatMul", Some([.., rows, columns]), None) => {
            (vec![if is("transA") { *rows } else { *columns }], output)
        }
        ("Conv" | "ConvTranspose", _, Some(kernel)) => (kernel.to_vec(), output.get(2..).filter(|s| !s.is_empty())?),
        _ => return None,
    };
    let batch = (sizes.len() == output.len()).then_some(1);
    let sizes = sizes.iter().enumerate().map(|(at, size)| size.or(batch.filter(|_| at == 0)));
    let mut sizes = sizes.map(|size| Some(size? as u64)).chain(each.iter().map(|d| Some(d.unsigned_abs())));
    sizes.try_fold(1u64, |product, size| Some(product.saturating_mul(size?)))
}

fn candidate(
    graph: &Graph<'_>,
    resolutions: &Resolutions,
    index: usize,
    model: &Model,
    options: &GroupOptions,
) -> Result<Option<Conv>, SkipReason> {
    let Some(conv) = Conv::new(graph, resolutions, index, !options.keep_batch_norm)? else { return Ok(None) };
    let named = |pattern: &Option<Regex>| pattern.as_ref().map(|p| p.is_match(&conv.name));
    if named(&options.include) == Some(false) || named(&options.exclude) == Some(true) {
        return Err(SkipReason::Excluded);
    }
    // Our own factors would be found again as repeated convolutions.
    if model.metadata(VERSION_KEY).is_some() && conv.kernel_name.contains("jmd_") {
        return Err(SkipReason::AlreadyFactored);
    }
    Ok(Some(conv))
}

fn group(graph: &Graph<'_>, resolutions: &Resolutions, convs: &[Conv], by: GroupBy) -> Vec<Group> {
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (index, conv) in convs.iter().enumerate() {
        let [out, inputs, kh, kw] = conv.shape;
        let family = conv.family();
        let (role, key) = match by {
            GroupBy::Role => {
                let role = role::of(graph, resolutions, conv);
                let level = resolutions.level(&role.exit);
                (role.text.clone(), format!("{} {family} {out} {kh}x{kw} {level:?}", role.text))
            }
            GroupBy::Shape => ("equal shape".to_owned(), format!("{family} {out} {inputs} {kh}x{kw}")),
        };
        let at = *place.entry(key).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Group { name: format!("g{}", at + 1), role, members: Vec::new() });
        }
        groups[at].members.push(index);
    }
    groups
}
