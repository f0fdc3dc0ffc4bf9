//! The trainable view of an ONNX graph: its nodes as steps over flat buffers with every shape fixed, one sample at a time.
//!
//! Shapes, and whatever follows from shapes and weights alone, are what tract finds on one sample; so is what the steps are
//! held against before anything is trained. Rearrangements of any kind become index maps, read off by running the operator once on
//! the numbers of its elements.

use super::conv::{Conv, Linear};
use super::op::{Arithmetic, BatchNorm, Binary, Concat, Elementwise, Foreign, Op, Rearranged, Reduced, Seen};
use super::pool::{AveragePool, MaxPool};
use crate::error::{Error, Result};
use crate::gradient::{Constants, Local, Rule, read};
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType};
use crate::onnx::{Graph, Model, float_initializer, is_standard, label, read_floats};
use crate::runtime::{Feed, Input, Runner};
use ndarray::ArrayD;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Largest difference to tract's values, of the largest value, that rounding explains.
const TOLERANCE: f32 = 1e-4;
/// Elements of a value that numbers in float32 can tell apart.
const COUNTABLE: usize = 1 << 23;

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In a buffer of each workspace.
    Buffer(usize),
    Parameter(usize),
    Constant(usize),
}

/// A graph as steps.
pub(crate) struct Tape {
    inputs: Vec<usize>,
    /// Elements of each buffer, and whether it has a cotangent.
    buffers: Vec<(usize, bool)>,
    parameters: Vec<Parameter>,
    constants: Vec<Vec<f32>>,
    steps: Vec<Step>,
    values: BTreeMap<String, Value>,
    outputs: Vec<String>,
    /// Scores before a softmax at an output.
    logits: HashMap<String, String>,
    blocks: Vec<String>,
}

/// A tensor that is trained.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) values: Vec<f32>,
}

#[derive(Debug, Clone)]
struct Value {
    at: At,
    dims: Vec<usize>,
}

struct Step {
    name: String,
    op: Box<dyn Op>,
    operands: Vec<At>,
    output: usize,
    /// Positions of operands that get a cotangent.
    flowing: Vec<usize>,
}

/// Buffers of one thread.
pub(crate) struct Workspace {
    values: Vec<Vec<f32>>,
    /// Zero between two samples.
    cotangents: Vec<Vec<f32>>,
    scratch: Vec<f32>,
}

/// One gradient for each parameter.
pub(crate) type Gradients = Vec<Vec<f32>>;

impl Tape {
    /// The view of a model in float32, for inputs of these shapes, in which the initializers that `trained` names are
    /// parameters.
    ///
    /// # Errors
    /// [`Error::Tuning`] naming the node whose operator has no rule, or whose values differ from tract's;
    /// [`Error::Unavailable`] if tract cannot run the model.
    pub(crate) fn new(model: &Model, inputs: &[Input], sample: &Feed, trained: &HashSet<String>) -> Result<Self> {
        let graph = Graph::new(model)?;
        let fed = inputs.iter().map(|i| i.name.as_str());
        let moving = graph.descendants(fed.chain(trained.iter().map(String::as_str)));
        let learning = graph.descendants(trained.iter().map(String::as_str));
        let steps = graph.order().iter().copied().filter(|&n| graph.is_live(n));
        let steps = steps.map(|n| &graph.nodes()[n]).filter(|n| n.input.iter().any(|i| moving.contains(i.as_str())));
        let steps: Vec<&NodeProto> = steps.filter(|n| n.op_type() != "Shape" && n.op_type() != "Size").collect();
        let seen = Sight::new(model, &graph, inputs, sample, &steps, &moving)?;
        let mut tape = Self {
            inputs: Vec::new(),
            buffers: Vec::new(),
            parameters: Vec::new(),
            constants: Vec::new(),
            steps: Vec::new(),
            values: BTreeMap::new(),
            outputs: model.outputs(),
            logits: HashMap::new(),
            blocks: Vec::new(),
        };
        for input in inputs {
            let at = tape.buffer(input.dims.iter().product(), false);
            tape.inputs.push(at);
            tape.values.insert(input.name.clone(), Value { at: At::Buffer(at), dims: input.dims.clone() });
        }
        let constants = Constants::new(&graph);
        let builder =
            Builder { model, graph: &graph, constants: &constants, seen: &seen, trained, learning: &learning };
        for node in steps {
            tape.add(&builder, node)?;
        }
        if let Some(output) = tape.outputs.iter().find(|o| !tape.values.contains_key(*o)) {
            return Err(Error::Tuning(format!("output '{output}' does not follow from what is fed to the model")));
        }
        tape.compare(sample, &seen)?;
        Ok(tape)
    }

    fn buffer(&mut self, size: usize, cotangent: bool) -> usize {
        self.buffers.push((size, cotangent));
        self.buffers.len() - 1
    }

    /// Where an operand lies, a constant taken in when it is first read.
    fn operand(&mut self, builder: &Builder<'_>, name: &str) -> Option<Value> {
        if let Some(value) = self.values.get(name) {
            return Some(value.clone());
        }
        let found = builder.seen.constant(builder.graph, name)?;
        let dims = found.shape().to_vec();
        let values: Vec<f32> = found.iter().copied().collect();
        let at = if builder.trained.contains(name) {
            self.parameters.push(Parameter { name: name.to_owned(), values });
            At::Parameter(self.parameters.len() - 1)
        } else {
            self.constants.push(values);
            At::Constant(self.constants.len() - 1)
        };
        let value = Value { at, dims };
        self.values.insert(name.to_owned(), value.clone());
        Some(value)
    }

    fn add(&mut self, builder: &Builder<'_>, node: &NodeProto) -> Result<()> {
        let refuse = || {
            let operator = node.op_type();
            Error::Tuning(format!(
                "node '{}': operator {operator} cannot be trained through, leave out --tune",
                label(node)
            ))
        };
        for (place, output) in node.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
            let Some(dims) = builder.seen.dims(output) else { continue };
            let rule = read(node, builder.graph, builder.constants);
            // Nothing moves but the shape.
            if matches!(rule, Some(Rule::Pass | Rule::Reshape)) && place == 0 {
                let from = self.operand(builder, &node.input[0]).ok_or_else(refuse)?;
                self.values.insert(output.clone(), Value { at: from.at, dims });
                continue;
            }
            if matches!(rule, Some(Rule::Softmax { .. })) && self.outputs.contains(output) {
                self.logits.insert(output.clone(), node.input[0].clone());
            }
            let names: Vec<&str> = node.input.iter().map(String::as_str).filter(|i| !i.is_empty()).collect();
            let operands: Option<Vec<Value>> = names.iter().map(|n| self.operand(builder, n)).collect();
            let operands = operands.ok_or_else(refuse)?;
            let shapes: Vec<&[usize]> = operands.iter().map(|o| &o.dims[..]).collect();
            let made = native(node, rule.as_ref(), &shapes, &dims);
            let made =
                made.filter(|_| place == 0).map_or_else(|| builder.other(node, place, rule, &operands, &dims), Some);
            let (op, count, differentiable) = made.ok_or_else(refuse)?;
            let moves = |v: &Value| match v.at {
                At::Buffer(at) => self.buffers[at].1,
                At::Parameter(_) => true,
                At::Constant(_) => false,
            };
            let flowing: Vec<usize> = (0..count).filter(|&i| moves(&operands[i])).collect();
            if flowing.iter().any(|i| !differentiable.contains(i)) {
                return Err(refuse());
            }
            if matches!(node.op_type(), "Add" | "Concat") && flowing.len() != 1 && dims.len() > 2 {
                self.blocks.push(output.clone());
            }
            let output_at = self.buffer(dims.iter().product(), !flowing.is_empty());
            let operands = operands[..count].iter().map(|o| o.at).collect();
            self.steps.push(Step { name: label(node), op, operands, output: output_at, flowing });
            self.values.insert(output.clone(), Value { at: At::Buffer(output_at), dims });
        }
        Ok(())
    }

    /// Refuses unless all values are tract's on the sample.
    fn compare(&self, sample: &Feed, seen: &Sight) -> Result<()> {
        let mut workspace = self.workspace();
        self.forward(&mut workspace, &self.initial(), sample);
        for step in &self.steps {
            let named = self.values.iter().find(|(_, v)| v.at == At::Buffer(step.output));
            let Some(theirs) = named.and_then(|(name, _)| seen.values.get(name)) else { continue };
            let ours = &workspace.values[step.output];
            let largest = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let apart =
                ours.iter().zip(theirs).fold(0.0f32, |m, (a, b)| if (a - b).abs() <= m { m } else { (a - b).abs() });
            if apart.is_nan() || apart > TOLERANCE * largest.max(1e-3) {
                return Err(Error::Tuning(format!(
                    "node '{}': the trainable view gives other values than tract (they differ by {apart:.1e} of {largest:.1e}): \
                     leave out --tune, and report this model",
                    step.name
                )));
            }
        }
        Ok(())
    }

    /// The parameters as they are in the model.
    pub(crate) fn initial(&self) -> Vec<Vec<f32>> {
        self.parameters.iter().map(|p| p.values.clone()).collect()
    }

    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    pub(crate) fn zeros(&self) -> Gradients {
        self.parameters.iter().map(|p| vec![0.0; p.values.len()]).collect()
    }

    pub(crate) fn workspace(&self) -> Workspace {
        let values = self.buffers.iter().map(|b| vec![0.0; b.0]).collect();
        let cotangents = self.buffers.iter().map(|b| vec![0.0; if b.1 { b.0 } else { 0 }]).collect();
        Workspace { values, cotangents, scratch: Vec::new() }
    }

    /// Bytes of a workspace, but for what the largest product needs.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.buffers.iter().map(|b| size_of::<f32>() * b.0 * (1 + usize::from(b.1))).sum()
    }

    /// The dimensions of a value that follows from what is fed.
    pub(crate) fn dims(&self, name: &str) -> Option<&[usize]> {
        let value = self.values.get(name)?;
        matches!(value.at, At::Buffer(_)).then_some(&value.dims[..])
    }

    /// Whether what is trained changes a value.
    pub(crate) fn learns(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|v| matches!(v.at, At::Buffer(at) if self.buffers[at].1))
    }

    pub(crate) fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// What sums of several ways through the network give: the outputs of its blocks.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().map(String::as_str)
    }

    /// What a softmax makes an output of, if one does.
    pub(crate) fn logits<'t>(&'t self, output: &'t str) -> &'t str {
        self.logits.get(output).map_or(output, String::as_str)
    }

    /// A value after [`Tape::forward`].
    pub(crate) fn value<'w>(&self, workspace: &'w Workspace, name: &str) -> &'w [f32] {
        match self.values.get(name).map(|v| v.at) {
            Some(At::Buffer(at)) => &workspace.values[at],
            _ => &[],
        }
    }

    /// The cotangent of a value, to be added to before [`Tape::backward`].
    pub(crate) fn cotangent<'w>(&self, workspace: &'w mut Workspace, name: &str) -> &'w mut [f32] {
        match self.values.get(name).map(|v| v.at) {
            Some(At::Buffer(at)) => &mut workspace.cotangents[at],
            _ => &mut [],
        }
    }

    /// Runs all steps on one sample.
    pub(crate) fn forward<A: std::borrow::Borrow<ArrayD<f32>>>(
        &self,
        workspace: &mut Workspace,
        parameters: &[Vec<f32>],
        feed: &[A],
    ) {
        for (&at, value) in self.inputs.iter().zip(feed) {
            let value = value.borrow();
            match value.as_slice() {
                Some(values) => workspace.values[at].copy_from_slice(values),
                None => workspace.values[at].iter_mut().zip(value).for_each(|(to, from)| *to = *from),
            }
        }
        for step in &self.steps {
            let mut y = std::mem::take(&mut workspace.values[step.output]);
            let x: Vec<&[f32]> =
                step.operands.iter().map(|&at| self.slice(&workspace.values, parameters, at)).collect();
            step.op.forward(&x, &mut y, &mut workspace.scratch);
            workspace.values[step.output] = y;
        }
    }

    fn slice<'s>(&'s self, values: &'s [Vec<f32>], parameters: &'s [Vec<f32>], at: At) -> &'s [f32] {
        match at {
            At::Buffer(at) => &values[at],
            At::Parameter(at) => &parameters[at],
            At::Constant(at) => &self.constants[at],
        }
    }

    /// Adds to `gradients` what follows from the cotangents given, `W̄ += (∂y/∂W)ᵀ·ȳ`, and leaves all cotangents zero.
    pub(crate) fn backward(&self, workspace: &mut Workspace, parameters: &[Vec<f32>], gradients: &mut Gradients) {
        let Workspace { values, cotangents, scratch } = workspace;
        for step in self.steps.iter().rev().filter(|s| !s.flowing.is_empty()) {
            let mut g = std::mem::take(&mut cotangents[step.output]);
            let x: Vec<&[f32]> = step.operands.iter().map(|&at| self.slice(values, parameters, at)).collect();
            let seen = Seen { x, y: &values[step.output], g: &g };
            for &position in &step.flowing {
                match step.operands[position] {
                    At::Buffer(at) => step.op.backward(position, &seen, &mut cotangents[at], scratch),
                    At::Parameter(at) => step.op.backward(position, &seen, &mut gradients[at], scratch),
                    At::Constant(_) => {}
                }
            }
            g.fill(0.0);
            cotangents[step.output] = g;
        }
    }
}

/// An operator, how many of the node's operands it reads, and by which of them it can be differentiated.
type Made = (Box<dyn Op>, usize, Vec<usize>);

/// Operators with loops of their own.
fn native(node: &NodeProto, rule: Option<&Rule>, shapes: &[&[usize]], output: &[usize]) -> Option<Made> {
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
            // A row of numbers, or all of them.
            let fits =
                shapes.get(2).is_none_or(|b| b.last() == Some(&outputs) && b[..b.len() - 1].iter().all(|&d| d == 1));
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
struct Builder<'b> {
    model: &'b Model,
    graph: &'b Graph<'b>,
    constants: &'b Constants<'b>,
    seen: &'b Sight,
    trained: &'b HashSet<String>,
    /// What changes while the parameters do.
    learning: &'b HashSet<&'b str>,
}

impl Builder<'_> {
    /// Operators whose loops are tract's: index maps, or slow.
    fn other(
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
            graph: Some(graph),
            ..ModelProto::default()
        });
        Runner::load(&alone, &inputs, "a node").ok()
    }
}

/// What tract gives on one sample.
struct Sight {
    values: HashMap<String, ArrayD<f32>>,
}

impl Sight {
    fn new(
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

    fn dims(&self, name: &str) -> Option<Vec<usize>> {
        self.values.get(name).map(|v| v.shape().to_vec())
    }

    /// A value that no input changes.
    fn constant(&self, graph: &Graph<'_>, name: &str) -> Option<ArrayD<f32>> {
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
