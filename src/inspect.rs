//! What a model is made of, as far as it matters for compression: nothing is decided and nothing written.

use crate::error::Result;
use crate::factor::{self, Form, Scheme, Unfolding};
use crate::group::{GroupOptions, Grouping, find_groups};
use crate::onnx::{Conv, Graph, Model};
use crate::plan::{Members, Plan, PlanOptions, SchemeChoice};
use crate::report::{BlockRow, LeftRow, blocks, channel_groups, channels, json, left_alone, table, thousands, total};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Version of the JSON layout, that of `tools/schema/inspection-1.schema.json`; it grows as
/// [`REPORT_VERSION`](crate::REPORT_VERSION) does.
pub const INSPECTION_VERSION: u32 = 1;

/// Shares of a kernel's energy at which ranks are told.
const SHARES: [f64; 2] = [0.9, 0.99];

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inspection {
    /// [`INSPECTION_VERSION`].
    pub inspection_version: u32,
    /// Version of onnx-jmd.
    pub version: String,
    /// Version of ONNX's intermediate representation.
    pub ir_version: i64,
    /// Version of ONNX's operators.
    pub opset: i64,
    /// Who wrote the model.
    pub producer: String,
    /// Floating-point parameters, each stored tensor once.
    pub parameters: u64,
    /// Weights of convolutions and fully connected layers, with the latter's biases.
    pub weights: u64,
    /// Multiply-accumulates of the convolutions; none if a size is unknown.
    pub macs: Option<u64>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// What has to be fed.
    pub inputs: Vec<InputRow>,
    /// Kernels that several nodes read: how many, and their elements.
    pub shared_kernels: SharedRow,
    /// Repeated blocks.
    pub blocks: Vec<BlockRow>,
    /// Convolutions that play one role.
    pub groups: Vec<InspectedGroup>,
    /// For each scheme the largest ratio, every rank one; none if it never pays.
    pub reach: Vec<ReachRow>,
    /// Convolutions that would be left alone.
    pub left_alone: Vec<LeftRow>,
}

/// An input of the model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InputRow {
    /// Its name.
    pub name: String,
    /// ONNX's name of the element type.
    pub element_type: String,
    /// Dimensions, none where they are open.
    pub dims: Vec<Option<u64>>,
}

/// Kernels that several nodes read.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct SharedRow {
    /// How many.
    pub kernels: usize,
    /// Nodes that read them.
    pub readers: usize,
    /// Elements stored.
    pub parameters: u64,
    /// Elements there would be if each reader had its own.
    pub unshared: u64,
}

/// Convolutions that play one role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InspectedGroup {
    /// Short name.
    pub group: String,
    /// The neighbourhood that defines it.
    pub role: String,
    /// Node names.
    pub members: Vec<String>,
    /// Kernel shapes `[out, in, kh, kw]`, one a member.
    pub kernels: Vec<[usize; 4]>,
    /// One a member, ONNX's attribute `group`; left out where no member is a grouped convolution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channel_groups: Vec<usize>,
    /// Weights of all kernels.
    pub weights: u64,
    /// Multiply-accumulates, where sizes are known.
    pub macs: Option<u64>,
    /// How fast the spectra of its kernels fall, alone and together, in the paper's unfolding.
    pub spectra: Vec<SpectrumRow>,
}

/// The ranks that a form needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpectrumRow {
    /// What is shared.
    pub scheme: String,
    /// Members that this speaks of: the most of one kernel shape.
    pub members: usize,
    /// The largest rank there is.
    pub full: usize,
    /// Rank that keeps 90 % of the kernels' energy.
    pub rank_90: usize,
    /// Rank that keeps 99 % of it.
    pub rank_99: usize,
}

/// How small a scheme can make the model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReachRow {
    /// The scheme.
    pub scheme: String,
    /// The largest ratio; none if no rank pays.
    pub ratio: Option<f64>,
}

/// Looks at a model.
///
/// # Errors
/// Those of [`find_groups`], [`Error::NotFinite`](crate::Error::NotFinite) and
/// [`Error::Numerical`](crate::Error::Numerical).
pub fn inspect(model: &Model, options: &GroupOptions) -> Result<Inspection> {
    model.check_shapes(&options.input_shapes)?;
    model.check_numbers()?;
    let wide = model.mostly_in_f32();
    let full = model.in_full();
    let grouping = find_groups(full.as_ref().or(wide.as_ref()).unwrap_or(model), options)?;
    let graph = Graph::new(model)?;
    grouping.convs.iter().try_for_each(Conv::check_finite)?;
    let input = |(name, element_type, dims)| InputRow { name, element_type, dims };
    let macs = total(grouping.convs.iter().map(Conv::known_macs));
    let skipped = total(grouping.skipped.iter().map(|s| s.macs));
    let groups = grouping.groups.par_iter().with_max_len(1).map(|group| {
        let members = || group.members.iter().map(|&m| &grouping.convs[m]);
        Ok(InspectedGroup {
            group: group.name.clone(),
            role: group.role.clone(),
            members: members().map(|c| c.name.clone()).collect(),
            kernels: members().map(|c| c.shape).collect(),
            channel_groups: channel_groups(members()),
            weights: members().map(Conv::weights).sum(),
            macs: total(members().map(Conv::known_macs)),
            spectra: spectra(&grouping, &group.members)?,
        })
    });
    let proto = model.proto();
    let producer = format!("{} {}", proto.producer_name(), proto.producer_version());
    Ok(Inspection {
        inspection_version: INSPECTION_VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        ir_version: proto.ir_version(),
        opset: graph.opset(),
        producer: producer.trim().to_owned(),
        parameters: model.parameters(),
        weights: graph.layer_weights(),
        macs: macs.zip(skipped).map(|(a, b)| a.saturating_add(b)),
        file_bytes: model.file_bytes(),
        inputs: model.inputs().into_iter().map(input).collect(),
        shared_kernels: shared_kernels(&graph),
        blocks: BlockRow::all(&grouping),
        groups: groups.collect::<Result<_>>()?,
        reach: reach(wide.as_ref().unwrap_or(model), &grouping)?,
        left_alone: grouping.skipped.iter().map(LeftRow::skipped).collect(),
    })
}

/// Ranks that the members need alone and, those of one shape, together.
fn spectra(grouping: &Grouping, members: &[usize]) -> Result<Vec<SpectrumRow>> {
    let convs = &grouping.convs;
    // Convolutions of one role have as many groups of channels.
    let grouped = members.iter().any(|&m| convs[m].channel_groups() > 1);
    let mut shapes: BTreeMap<[usize; 4], Vec<usize>> = BTreeMap::new();
    members.iter().for_each(|&m| shapes.entry(convs[m].shape).or_default().push(m));
    // Of as many the first.
    let Some(alike) = shapes.into_values().rev().max_by_key(Vec::len) else { return Ok(Vec::new()) };
    let schemes = [Scheme::Separate, Scheme::LeftShared, Scheme::RightShared];
    let together = alike.len() > 1 && !grouped;
    let rows = schemes.into_iter().filter(|s| *s == Scheme::Separate || together).map(|scheme| {
        let chains = Form::from(scheme).chains();
        let kernels = Members { convs, members: &alike };
        let failed = |reason| crate::Error::Numerical { what: convs[alike[0]].name.clone(), reason };
        let analysis = factor::analyse(&chains, &kernels, 1).map_err(failed)?;
        let (rows, columns) = Unfolding::SPATIAL.matrix_shape(convs[alike[0]].part_shape());
        let full = match scheme {
            Scheme::LeftShared => rows.min(columns * alike.len()),
            Scheme::RightShared => columns.min(rows * alike.len()),
            _ => rows.min(columns),
        };
        let needed = |share: f64| {
            let left = (1.0 - share) * analysis.energy();
            (1..full).find(|&rank| analysis.error(&[rank]) <= left).unwrap_or(full)
        };
        let [rank_90, rank_99] = SHARES.map(needed);
        Ok(SpectrumRow { scheme: scheme.to_string(), members: alike.len(), full, rank_90, rank_99 })
    });
    rows.collect()
}

/// The largest ratio of each scheme.
fn reach(model: &Model, grouping: &Grouping) -> Result<Vec<ReachRow>> {
    const SPLIT: f64 = 0.5;
    let two_chains = [
        Scheme::BothShared { split: SPLIT },
        Scheme::PartlyCoupled { split: SPLIT },
        Scheme::CoupledTensorTrain { split: SPLIT },
    ];
    let one_chain = [Scheme::Separate, Scheme::LeftShared, Scheme::RightSharedWithFirst, Scheme::RightShared];
    let form = |scheme: Scheme| match scheme {
        Scheme::CoupledTensorTrain { .. } => scheme.on(Unfolding::TUCKER),
        _ => scheme.into(),
    };
    let only =
        one_chain.into_iter().chain(two_chains).map(|scheme| (scheme.to_string(), SchemeChoice::Only(form(scheme))));
    let train = ("tt".to_owned(), SchemeChoice::Only(Scheme::Separate.on(Unfolding::TUCKER)));
    let all = std::iter::once(("auto".to_owned(), SchemeChoice::Auto)).chain(only).chain([train]);
    let rows = all.map(|(name, scheme)| {
        let ratio = Plan::largest_ratio(model, grouping, &PlanOptions { scheme, ..PlanOptions::default() })?;
        Ok(ReachRow { scheme: name, ratio })
    });
    rows.collect()
}

/// Convolution kernels that several nodes read.
fn shared_kernels(graph: &Graph<'_>) -> SharedRow {
    let mut readers: BTreeMap<&str, usize> = BTreeMap::new();
    for node in graph.nodes().iter().filter(|n| n.op_type() == "Conv") {
        if let Some(kernel) = node.input.get(1).filter(|k| graph.constant(k).is_some()) {
            *readers.entry(kernel).or_default() += 1;
        }
    }
    readers.retain(|_, count| *count > 1);
    readers.into_iter().fold(SharedRow::default(), |sum, (kernel, count)| {
        let dims = graph.constant(kernel).map_or(&[][..], |t| &t.dims);
        let elements: u64 = dims.iter().map(|d| d.unsigned_abs()).fold(1, u64::saturating_mul);
        SharedRow {
            kernels: sum.kernels + 1,
            readers: sum.readers + count,
            parameters: sum.parameters.saturating_add(elements),
            unshared: sum.unshared.saturating_add(elements.saturating_mul(count as u64)),
        }
    })
}

impl Inspection {
    /// The facts as JSON, ending in a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        json(self)
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims = |row: &InputRow| {
            let each = row.dims.iter().map(|d| d.map_or("?".to_owned(), |n| n.to_string()));
            format!("'{}' {} [{}]", row.name, row.element_type, each.collect::<Vec<_>>().join(", "))
        };
        writeln!(f, "Model")?;
        let by = if self.producer.is_empty() { String::new() } else { format!(", by {}", self.producer) };
        writeln!(f, "  ONNX IR version {}, opset {}{by}", self.ir_version, self.opset)?;
        writeln!(f, "  inputs      {}", self.inputs.iter().map(dims).collect::<Vec<_>>().join(", "))?;
        writeln!(f, "  parameters  {}", thousands(self.parameters))?;
        writeln!(f, "  weights     {} (convolutions, fully connected)", thousands(self.weights))?;
        match self.macs {
            Some(macs) => writeln!(f, "  multiply-accumulates of these {}", thousands(macs))?,
            None => writeln!(
                f,
                "  multiply-accumulates unknown, as the size of some convolution is (--input-shape may help)"
            )?,
        }
        writeln!(f, "  file bytes  {}", thousands(self.file_bytes))?;
        if self.shared_kernels.kernels > 0 {
            let shared = self.shared_kernels;
            writeln!(
                f,
                "  {} kernels are shared by {} convolutions: {} parameters stored, {} if each had its own",
                shared.kernels,
                shared.readers,
                thousands(shared.parameters),
                thousands(shared.unshared)
            )?;
        }
        writeln!(f)?;
        blocks(f, &self.blocks)?;
        if !self.groups.is_empty() {
            writeln!(f, "Groups, and the ranks that keep 90 and 99 % of their kernels' energy, of those there are")?;
            let mut rows = table(&["group", "convs", "kernel", "weights", "alone", "first shared", "last shared"]);
            for group in &self.groups {
                let mut row = vec![
                    group.group.clone(),
                    group.members.len().to_string(),
                    channels(&group.kernels, &group.channel_groups),
                    thousands(group.weights),
                ];
                let ranks = |s: &SpectrumRow| format!("{} {} of {}", s.rank_90, s.rank_99, s.full);
                row.extend((0..3).map(|at| group.spectra.get(at).map_or_else(String::new, ranks)));
                rows.add_row(row);
            }
            writeln!(f, "{}\n", rows.trim_fmt())?;
        }
        writeln!(f, "Largest ratio, every rank one")?;
        for row in &self.reach {
            let ratio = row.ratio.map_or("never pays".to_owned(), |r| format!("{r:.2}"));
            writeln!(f, "  {:<9} {ratio}", row.scheme)?;
        }
        left_alone(f, &self.left_alone)
    }
}
