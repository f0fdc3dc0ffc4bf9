//! Which convolutions play the same role, and which blocks of the network repeat: from structure alone.

mod blocks;
mod protocol;
mod role;
mod stream;

pub use blocks::RepeatedBlock;
pub use protocol::Protocol;
pub use stream::Stream;

use crate::error::{Error, Result};
use crate::onnx::{Conv, Graph, InputShape, Model, Resolutions, SkipReason, VERSION_KEY, is_layer};
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
    for &index in graph.order() {
        let node = &graph.nodes()[index];
        let unknown = |name: String, reason: SkipReason| Skipped { name, reason, macs: None };
        let owner = || crate::onnx::label(node);
        let function =
            model.proto().functions.iter().find(|f| f.name() == node.op_type() && f.domain() == node.domain());
        skipped.extend(function.into_iter().flat_map(|f| f.node.iter()).filter(|n| role::is_conv(n)).map(|n| {
            let within = SkipReason::InFunction { function: node.op_type().to_owned() };
            unknown(format!("{}/{}", owner(), crate::onnx::label(n)), within)
        }));
        skipped
            .extend(role::inner_convs(node).into_iter().map(|n| unknown(n, SkipReason::InSubgraph { node: owner() })));
        if !is_layer(&graph, node) {
            if matches!(node.op_type(), "Conv" | "ConvTranspose") {
                skipped.push(unknown(owner(), SkipReason::ForeignDomain { domain: node.domain().to_owned() }));
            }
            continue;
        }
        match candidate(&graph, &resolutions, index, model, options) {
            Ok(conv) => convs.extend(conv),
            Err(reason) => {
                let node = &graph.nodes()[index];
                let kernel = node.input.get(1).and_then(|w| graph.unconverted(w));
                let weights = kernel.map(|t| t.dims.iter().map(|&d| d.unsigned_abs()).fold(1, u64::saturating_mul));
                let sizes = node.output.first().map_or(&[][..], |o| resolutions.spatial(o));
                let known = |pixels: u64, size: &Option<usize>| Some(pixels.saturating_mul((*size)? as u64));
                let pixels = sizes.iter().try_fold(1, known).filter(|_| !sizes.is_empty());
                let macs = weights.zip(pixels).map(|(w, p)| w.saturating_mul(p));
                skipped.push(Skipped { name: crate::onnx::label(node), reason, macs });
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
                let role = role::of(graph, conv);
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
