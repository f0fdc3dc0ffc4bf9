//! The trainable view of an ONNX graph: its nodes as steps over flat buffers with every shape fixed, one sample at a time.
//!
//! Shapes, and whatever follows from shapes and weights alone, are what tract finds on one sample; so is what the steps are
//! held against before anything is trained.

use super::op::{Op, Seen};
use super::step::{Builder, Sight, native};
use crate::error::{Error, Result};
use crate::gradient::{Constants, Rule, read};
use crate::onnx::proto::NodeProto;
use crate::onnx::{Graph, Model, is_layer, label};
use crate::runtime::{Feed, Input};
use ndarray::ArrayD;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Largest difference to tract's values, of the largest value, that rounding explains.
const TOLERANCE: f32 = 1e-4;

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
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

/// A value of the graph.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) at: At,
    pub(super) dims: Vec<usize>,
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
            let (operator, name) = (node.op_type(), label(node));
            let read = node.input.first().and_then(|input| builder.seen.dims(input)).map_or(0, |dims| dims.len());
            let solid = operator.starts_with("Conv") && read == 5;
            let over = if solid { " over three spatial axes" } else { "" };
            let made = node.input.get(1).and_then(|w| builder.graph.producer(w)).map(|at| &builder.graph.nodes()[at]);
            if let Some(made) = made.filter(|made| made.op_type() != "Constant" && is_layer(builder.graph, node)) {
                let by = made.op_type();
                return Error::Tuning(format!(
                    "node '{name}': its kernel is made by {by}, and only kernels that are initializers are trained; compress without tuning"
                ));
            }
            Error::Tuning(format!(
                "node '{name}': there is no rule to train through {operator}{over}; compress without tuning"
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
