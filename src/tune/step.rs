//! Which step a node becomes: an operator with loops of its own, an index map, or tract's.
//!
//! Rearrangements of any kind become index maps, read off by running the operator once on the numbers of its elements.

use super::conv::{Conv, Linear};
use super::op::{Arithmetic, BatchNorm, Binary, Concat, Elementwise, Foreign, Op, Rearranged, Reduced};
use super::pool::{AveragePool, MaxPool};
use super::tape::{At, Value};
use crate::error::Result;
use crate::gradient::{Constants, Local, Rule};
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType};
use crate::onnx::{Graph, Model, float_initializer, is_standard, read_floats};
use crate::runtime::{Feed, Input, Runner};
use ndarray::ArrayD;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Elements of a value that numbers in float32 can tell apart.
const COUNTABLE: usize = 1 << 23;

/// An operator, how many of the node's operands it reads, and by which of them it can be differentiated.
pub(super) type Made = (Box<dyn Op>, usize, Vec<usize>);

/// Operators with loops of their own.
pub(super) fn native(node: &NodeProto, rule: Option<&Rule>, shapes: &[&[usize]], output: &[usize]) -> Option<Made> {
    let first = *shapes.first()?;
    let all = |op: Box<dyn Op>| Some((op, shapes.len(), (0..shapes.len()).collect::<Vec<usize>>()));
    let one = |op: Box<dyn Op>| Some((op, 1, vec![0]));
    let binary = |arithmetic| {
        let both = [first, *shapes.get(1)?];
        (shapes.len() == 2).then(|| all(Box::new(Binary::new(arithmetic, both, output)?)))?
    };
    match rule? {
        Rule::Unary(unary) => one(Box::new(Elementwise(*unary))),
        Rule::Add if shapes.len() == 2 => binary(Arithmetic::Add),
        Rule::Sub => binary(Arithmetic::Sub),
        Rule::Mul => binary(Arithmetic::Mul),
        Rule::Div => binary(Arithmetic::Div),
        Rule::Conv { window, groups } => {
            let slides = window.slides(shapes[1].get(2..)?, first.get(2..)?, output.get(2..)?)?;
            all(Box::new(Conv::new(first[0], shapes[1], *groups, &slides, false)))
        }
        Rule::ConvTranspose { window, groups } => {
            let slides = window.slides(shapes[1].get(2..)?, output.get(2..)?, first.get(2..)?)?;
            all(Box::new(Conv::new(first[0], shapes[1], *groups, &slides, true)))
        }
        Rule::Gemm { alpha, beta, transposed: [false, transposed] } if (*alpha, *beta) == (1.0, 1.0) => {
            let &[rows, inputs] = first else { return None };
            let outputs = *output.get(1)?;
            // A row of numbers, or one for all.
            let fits = shapes.get(2).is_none_or(|b| {
                let rest = if b.last() == Some(&outputs) { &b[..b.len() - 1] } else { b };
                rest.iter().all(|&d| d == 1)
            });
            fits.then(|| all(Box::new(Linear { rows, inputs, outputs, transposed: *transposed })))?
        }
        Rule::MatMul => {
            let &[inputs, outputs] = *shapes.get(1)? else { return None };
            let rows = first.iter().product::<usize>() / inputs.max(1);
            (first.len() >= 2).then(|| all(Box::new(Linear { rows, inputs, outputs, transposed: false })))?
        }
        Rule::BatchNorm { epsilon } => {
            let (&channels, plane) = (first.get(1)?, first.get(2..)?.iter().product());
            let op = BatchNorm { channels, plane, epsilon: *epsilon };
            (shapes.len() == 5).then(|| (Box::new(op) as Box<dyn Op>, 5, vec![0, 1, 2]))
        }
        Rule::Concat { axis } => {
            let axis =
                usize::try_from(if *axis < 0 { *axis + i64::try_from(first.len()).ok()? } else { *axis }).ok()?;
            let runs = shapes.iter().map(|s| s.get(axis..).map(|s| s.iter().product())).collect::<Option<_>>()?;
            all(Box::new(Concat { runs }))
        }
        Rule::MaxPool { window, kernel } if node.output.get(1).is_none_or(String::is_empty) => {
            let slides = window.slides(kernel, first.get(2..)?, output.get(2..)?)?;
            one(Box::new(MaxPool { slides }))
        }
        Rule::AveragePool { window, kernel, count_padding } => {
            let slides = window.slides(kernel, first.get(2..)?, output.get(2..)?)?;
            one(Box::new(AveragePool::new(&slides, *count_padding)))
        }
        Rule::Reduce { axes, mean, .. } => {
            let rank = i64::try_from(first.len()).ok()?;
            let mut axes: Vec<i64> = match axes.as_deref() {
                None => (2..rank).collect(),
                Some([]) => (0..rank).collect(),
                Some(axes) => axes.iter().map(|&a| if a < 0 { a + rank } else { a }).collect(),
            };
            axes.sort_unstable();
            // Only what stands together at the end.
            let last = axes.iter().copied().eq(rank - i64::try_from(axes.len()).ok()?..rank);
            let run: usize = first[first.len() - axes.len()..].iter().product();
            let share = if *mean { 1.0 / run.max(1) as f32 } else { 1.0 };
            (last && run > 0).then(|| one(Box::new(Reduced { run, share })))?
        }
        _ => None,
    }
}

/// What steps are made from.
pub(super) struct Builder<'b> {
    pub(super) model: &'b Model,
    pub(super) graph: &'b Graph<'b>,
    pub(super) constants: &'b Constants<'b>,
    pub(super) seen: &'b Sight,
    pub(super) trained: &'b HashSet<String>,
    /// What changes while the parameters do.
    pub(super) learning: &'b HashSet<&'b str>,
}

impl Builder<'_> {
    /// Operators whose loops are tract's: index maps, or slow.
    pub(super) fn other(
        &self,
        node: &NodeProto,
        place: usize,
        rule: Option<Rule>,
        operands: &[Value],
        output: &[usize],
    ) -> Option<Made> {
        const REARRANGING: [&str; 13] = [
            "Transpose",
            "Slice",
            "Pad",
            "Split",
            "Gather",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
            "Resize",
            "Upsample",
            "Squeeze",
            "Identity",
        ];
        let subgraphs = node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        if subgraphs || !is_standard(node) {
            return None;
        }
        let names: Vec<&str> = node.input.iter().map(String::as_str).filter(|i| !i.is_empty()).collect();
        if REARRANGING.contains(&node.op_type())
            && let Some(op) = self.rearranged(node, place, &names, operands, output)
        {
            return Some((Box::new(op), 1, vec![0]));
        }
        if place > 0 {
            return None;
        }
        let moving = |at: &usize| !matches!(operands[*at].at, At::Constant(_));
        let mut fed: Vec<usize> = (0..operands.len()).filter(moving).collect();
        fed.retain(|&at| names.iter().position(|n| *n == names[at]) == Some(at));
        let runner = self.runner(node, place, &names, &fed, operands)?;
        let learning = names.iter().any(|n| self.learning.contains(n));
        let differentiable =
            (0..operands.len()).filter(|&at| rule.as_ref().is_some_and(|r| r.differentiates(at))).collect();
        let local = match rule {
            Some(rule) => Local::new(rule, operands.len()),
            None if learning => return None,
            None => Local::new(Rule::Pass, operands.len()),
        };
        let shapes = operands.iter().map(|o| o.dims.clone()).collect();
        let op = Foreign { runner, local, shapes, output: output.to_vec(), fed };
        Some((Box::new(op), operands.len(), differentiable))
    }

    /// The map of an operator that moves elements and computes nothing.
    fn rearranged(
        &self,
        node: &NodeProto,
        place: usize,
        names: &[&str],
        operands: &[Value],
        output: &[usize],
    ) -> Option<Rearranged> {
        let dims = &operands.first()?.dims;
        let count: usize = dims.iter().product();
        let others = operands[1..].iter().all(|o| matches!(o.at, At::Constant(_)));
        if !others || count == 0 || count > COUNTABLE || output.iter().product::<usize>() > COUNTABLE {
            return None;
        }
        let runner = self.runner(node, place, names, &[0], operands)?;
        let run = |sign: f32| -> Option<Vec<f32>> {
            let numbers = (0..count).map(|i| sign * (i + 1) as f32).collect();
            let fed = ArrayD::from_shape_vec(&dims[..], numbers).ok()?;
            Some(runner.run(&[fed]).ok()?.first()?.iter().copied().collect())
        };
        let (there, back) = (run(1.0)?, run(-1.0)?);
        // What is the same of both was not read from the operand.
        let filling = there.iter().zip(&back).find(|(a, b)| a == b).map_or(0.0, |(a, _)| *a);
        let entry = |(&a, &b): (&f32, &f32)| match (a, b) {
            _ if a == -b && a.fract() == 0.0 && (1.0..=count as f32).contains(&a) => Some(a as u32 - 1),
            _ if a == b && a == filling => Some(u32::MAX),
            _ => None,
        };
        Some(Rearranged { map: there.iter().zip(&back).map(entry).collect::<Option<_>>()?, filling })
    }

    /// One node alone, some of its operands fed, the others as they are.
    fn runner(
        &self,
        node: &NodeProto,
        place: usize,
        names: &[&str],
        fed: &[usize],
        operands: &[Value],
    ) -> Option<Runner> {
        let proto = self.model.proto();
        let constant = |(at, name): (usize, &&str)| -> Option<TensorProto> {
            let position = node.input.iter().position(|i| i == name)?;
            if let Some(tensor) = self.graph.constant(name) {
                return Some(TensorProto { name: Some((*name).to_owned()), ..tensor.clone() });
            }
            if let Some(tensor) = self.graph.folded(name) {
                return Some(TensorProto { name: Some((*name).to_owned()), ..tensor });
            }
            let values = self.seen.values.get(*name)?;
            let float = matches!((node.op_type(), position), ("Resize", 1 | 2) | ("Upsample", 1) | ("Pad", 2));
            let shapes =
                ["Reshape", "Slice", "Pad", "Split", "Gather", "Expand", "Tile", "Resize", "Squeeze", "Unsqueeze"];
            let dims = &operands[at].dims;
            if float || !(shapes.contains(&node.op_type()) || node.op_type().starts_with("Reduce")) {
                return Some(float_initializer((*name).to_owned(), dims, values.iter().copied()));
            }
            Some(TensorProto {
                name: Some((*name).to_owned()),
                dims: dims.iter().map(|&d| d as i64).collect(),
                data_type: Some(DataType::Int64 as i32),
                int64_data: values.iter().map(|&x| x as i64).collect(),
                ..TensorProto::default()
            })
        };
        let others = names.iter().enumerate().filter(|(at, n)| !fed.iter().any(|&f| f == *at || names[f] == **n));
        let mut initializer: Vec<TensorProto> = others.map(constant).collect::<Option<_>>()?;
        let mut listed = BTreeSet::new();
        initializer.retain(|t| listed.insert(t.name().to_owned()));
        let input = |&at: &usize| Input::floats(names[at].to_owned(), operands[at].dims.clone());
        let inputs: Vec<Input> = fed.iter().map(input).collect();
        let named = |name: &str| ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() };
        let graph = GraphProto {
            name: Some("node".into()),
            node: vec![node.clone()],
            initializer,
            input: inputs.iter().map(|i| crate::onnx::float_value(&i.name, &i.dims)).collect(),
            output: vec![named(node.output.get(place)?)],
            ..GraphProto::default()
        };
        let alone = Model::from_proto(ModelProto {
            ir_version: proto.ir_version,
            opset_import: proto.opset_import.clone(),
            functions: proto.functions.clone(),
            graph: Some(graph),
            ..ModelProto::default()
        });
        Runner::load(&alone, &inputs, "a node").ok()
    }
}

/// What tract gives on one sample.
pub(super) struct Sight {
    pub(super) values: HashMap<String, ArrayD<f32>>,
}

impl Sight {
    pub(super) fn new(
        model: &Model,
        graph: &Graph<'_>,
        inputs: &[Input],
        sample: &Feed,
        steps: &[&NodeProto],
        moving: &HashSet<&str>,
    ) -> Result<Self> {
        let computed =
            |name: &&str| !name.is_empty() && graph.producer(name).is_some() && graph.constant(name).is_none();
        let read = steps.iter().flat_map(|n| &n.input).map(String::as_str).filter(|i| !moving.contains(i));
        let read = read.filter(|name| graph.folded(name).is_none());
        let used = |name: &&str| !graph.uses(name).is_empty();
        let written = steps.iter().flat_map(|n| &n.output).map(String::as_str).filter(used);
        let wanted: BTreeSet<&str> = read.chain(written).filter(computed).collect();
        let wanted: Vec<&str> = wanted.into_iter().collect();
        let all = model.stretch(&|_| None, &wanted)?;
        let names: HashSet<String> = all.inputs().into_iter().map(|i| i.0).collect();
        let kept: Vec<usize> = (0..inputs.len()).filter(|&i| names.contains(&inputs[i].name)).collect();
        let fed: Vec<Input> = kept.iter().map(|&i| inputs[i].clone()).collect();
        let feed: Feed = kept.iter().map(|&i| sample[i].clone()).collect();
        let values = Runner::load(&all, &fed, "the model")?.run(&feed)?;
        Ok(Self { values: wanted.into_iter().map(str::to_owned).zip(values).collect() })
    }

    pub(super) fn dims(&self, name: &str) -> Option<Vec<usize>> {
        self.values.get(name).map(|v| v.shape().to_vec())
    }

    /// A value that no input changes.
    pub(super) fn constant(&self, graph: &Graph<'_>, name: &str) -> Option<ArrayD<f32>> {
        let floats = graph.folded(name).and_then(|tensor| read_floats(&tensor));
        let other = || {
            // Shapes, axes and bounds, which no step reads: tract does, when it is asked for an index map.
            let dims =
                graph.constant(name)?.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?;
            Some(ArrayD::zeros(dims))
        };
        floats.or_else(|| self.values.get(name).cloned()).or_else(other)
    }
}
