//! Runs models: the only user of tract.
//!
//! The batch is fixed at one: tract takes fixed dimensions far better than symbolic ones, and runs several single images on
//! several threads faster than one batch of them. Stored `value_info` is not trusted, as exporters write symbols
//! there that contradict a fixed input.

use crate::error::{Error, Result};
use crate::onnx::{InputShape, Model};
use ndarray::{ArrayD, ArrayViewD};
use rayon::prelude::*;
use std::borrow::Borrow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_core::internal::{DimLike, TractErrorContext};
use tract_core::ops::cnn::{Conv, PaddingSpec};
use tract_core::prelude::{
    Framework, IntoTensor, TDim, TValue, TVec, Tensor, TractResult, TypedModel, TypedRunnableModel, tvec,
};
use tract_onnx::prelude::{DatumType, InferenceFact, InferenceModelExt, IntoRunnable};

/// The values fed to a model in one run, one array an input.
pub(crate) type Feed = Vec<ArrayD<f32>>;

/// A model ready to run.
pub(crate) struct Runner {
    plan: Arc<TypedRunnableModel>,
    types: Vec<DatumType>,
    what: &'static str,
}

impl Input {
    /// An input of float32.
    pub(crate) fn floats(name: String, dims: Vec<usize>) -> Self {
        Self { name, dims, datum_type: DatumType::F32 }
    }

    pub(crate) fn is_float(&self) -> bool {
        self.datum_type.is_float()
    }
}

/// An input that has to be fed: its name, its dimensions, the batch at one, and element type.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) dims: Vec<usize>,
    pub(crate) datum_type: DatumType,
}

/// The inputs of a model with every dimension fixed: a symbolic first one is the batch and becomes one, others
/// have to be given by the user.
///
/// # Errors
/// [`Error::Options`] naming the input whose shape is open, or too large to run.
pub(crate) fn inputs(model: &Model, shapes: &[InputShape]) -> Result<Vec<Input>> {
    let inputs = model.inputs();
    let given = |name: &str| {
        let by_name = shapes.iter().find(|s| s.name.as_deref() == Some(name));
        by_name.or_else(|| shapes.iter().find(|s| s.name.is_none() && inputs.len() == 1))
    };
    let fixed = inputs.iter().map(|(name, element_type, dims_stated)| {
        let datum_type = datum_type(element_type);
        if let Some(shape) = given(name) {
            return Ok(Input { name: name.clone(), dims: shape.dims.clone(), datum_type });
        }
        let known = dims_stated.iter().enumerate().map(|(axis, d)| match (axis, d) {
            (_, Some(d)) => usize::try_from(*d).ok(),
            (0, None) => Some(1),
            (_, None) => None,
        });
        let dims: Option<Vec<usize>> = known.collect();
        let dims = dims.ok_or_else(|| open_shape(name, dims_stated))?;
        Ok(Input { name: name.clone(), dims, datum_type })
    });
    let fixed: Vec<Input> = fixed.collect::<Result<_>>()?;
    for (input, (name, ..)) in fixed.iter().zip(&inputs) {
        let elements = input.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements.is_none_or(|n| n > LARGEST_INPUT) {
            let reason = format!(
                "input '{name}' of shape {:?} is too large to run: give a smaller --input-shape if the model leaves it open, or compress it with --no-verify",
                input.dims
            );
            return Err(Error::Options(reason));
        }
    }
    Ok(fixed)
}

/// What to give for an input whose shape is not known, a batch of one first.
fn open_shape(name: &str, stated: &[Option<u64>]) -> Error {
    let dim = |(axis, d): (usize, &Option<u64>)| match (axis, d) {
        (_, Some(n)) => n.to_string(),
        (0, None) => "1".into(),
        (_, None) => "?".into(),
    };
    let dims: Vec<String> = stated.iter().enumerate().map(dim).collect();
    let dims = dims.join(",");
    Error::Options(format!(
        "input '{name}' has an open shape, or one too large to run: give --input-shape {name}:{dims} with a number for each ?"
    ))
}

/// Names and dimensions of inputs.
pub(crate) fn shapes(inputs: &[Input]) -> Vec<(&str, &[usize])> {
    inputs.iter().map(|i| (i.name.as_str(), &i.dims[..])).collect()
}

/// Elements of the largest input that is run: a gigabyte of f32.
const LARGEST_INPUT: usize = 1 << 28;

impl Runner {
    /// Loads and optimises a model, or an equivalent copy that tract can load, for the given inputs. `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with tract's reason.
    pub(crate) fn load(model: &Model, inputs: &[Input], what: &'static str) -> Result<Self> {
        let unavailable = |reason: String| Error::Unavailable { what: what.into(), reason };
        let shape = |input: &Input| InputShape { name: Some(input.name.clone()), dims: input.dims.clone() };
        let shapes: Vec<InputShape> = inputs.iter().map(shape).collect();
        // tract knows operators by their names, whatever their domain, and a function may have that of any.
        let plain = model.without_calls();
        let model = plain.as_ref().unwrap_or(model);
        let wide = model.in_widest();
        let model = wide.as_ref().unwrap_or(model);
        let copy = model.legalised(&shapes);
        let copy = copy.as_ref().map_or(model, |(copy, _)| copy);
        if let Some(reason) = copy.unreasonable(&shapes) {
            return Err(unavailable(reason));
        }
        let bytes = copy.to_bytes();
        let load = || -> TractResult<(Arc<TypedRunnableModel>, Vec<DatumType>)> {
            let mut graph = tract_onnx::onnx().with_ignore_value_info(true).model_for_read(&mut &bytes[..])?;
            let mut types = Vec::new();
            for (index, input) in inputs.iter().enumerate() {
                graph.set_input_fact(index, InferenceFact::dt_shape(input.datum_type, &input.dims))?;
                types.push(input.datum_type);
            }
            let mut graph = graph.into_typed()?;
            say_pads(&mut graph)?;
            Ok((graph.into_optimized()?.into_runnable()?, types))
        };
        let (plan, types) = guarded(load).map_err(unavailable)?;
        Ok(Self { plan, types, what })
    }

    /// The outputs of one run, as f32.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with tract's reason.
    pub(crate) fn run<A: Borrow<ArrayD<f32>>>(&self, feed: &[A]) -> Result<Vec<ArrayD<f32>>> {
        let run = || -> TractResult<Vec<ArrayD<f32>>> {
            let mut values = tvec!();
            for (array, datum_type) in feed.iter().zip(&self.types) {
                let array = array.borrow().as_standard_layout();
                let data = array.as_slice().unwrap_or_default();
                let tensor = Tensor::from_shape(array.shape(), data)?.cast_to_dt(*datum_type)?.into_owned();
                values.push(TValue::from(tensor.into_tensor()));
            }
            let outputs = self.plan.run(values)?;
            let numbers = outputs.iter().map(|value| {
                let cast = value.cast_to::<f32>()?;
                let view = cast.to_plain_array_view::<f32>()?;
                let data: Vec<f32> = view.iter().copied().collect();
                Ok(ArrayD::from_shape_vec(view.shape(), data)?)
            });
            numbers.collect()
        };
        guarded(run).map_err(|reason| Error::Unavailable { what: self.what.into(), reason })
    }

    /// Runs every feed, spread over the threads, results in order.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with tract's reason.
    pub(crate) fn run_all(&self, feeds: &[Feed]) -> Result<Vec<Vec<ArrayD<f32>>>> {
        feeds.par_iter().with_max_len(1).map(|feed| self.run(feed)).collect()
    }
}

/// Gives convolutions the pads that `auto_pad` stands for: where tract 0.23 moves a stride that stands behind such a one to before it,
/// it would take those of the smaller input.
fn say_pads(graph: &mut TypedModel) -> TractResult<()> {
    for at in 0..graph.nodes.len() {
        let Some(conv) = graph.nodes[at].op_as::<Conv>() else { continue };
        if !matches!(conv.pool_spec.padding, PaddingSpec::SameUpper | PaddingSpec::SameLower) {
            continue;
        }
        let read = graph.outlet_fact(graph.nodes[at].inputs[0])?.shape.to_tvec();
        let sizes = conv.pool_spec.data_format.shape(read)?.hw_dims().to_vec();
        let pads = conv.pool_spec.computed_padding(&sizes);
        let known = |pads: &mut dyn Iterator<Item = &TDim>| {
            pads.map(|pad| Ok(pad.to_usize()?)).collect::<TractResult<TVec<_>>>()
        };
        let open = || format!("the pads of '{}' follow from a size that shows only as it runs", graph.nodes[at].name);
        let before = known(&mut pads.iter().map(|axis| &axis.pad_before)).with_context(open)?;
        let after = known(&mut pads.iter().map(|axis| &axis.pad_after)).with_context(open)?;
        if let Some(conv) = graph.nodes[at].op_as_mut::<Conv>() {
            conv.pool_spec.padding = PaddingSpec::Explicit(before, after);
        }
    }
    Ok(())
}

/// tract's word for an ONNX element type.
fn datum_type(element_type: &str) -> DatumType {
    match element_type {
        "DOUBLE" => DatumType::F64,
        "FLOAT16" => DatumType::F16,
        "INT64" => DatumType::I64,
        "INT32" => DatumType::I32,
        "INT8" => DatumType::I8,
        "UINT8" => DatumType::U8,
        "BOOL" => DatumType::Bool,
        _ => DatumType::F32,
    }
}

/// tract's error chain in one line, a panic inside it included.
fn guarded<T>(action: impl FnOnce() -> TractResult<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            // Without the graph that tract prints behind some of its sentences.
            let said = |text: String| {
                let text = text.split(" ModelPatch {").next().and_then(|text| text.split("Stack backtrace:").next());
                text.unwrap_or_default().trim().replace('\n', " ")
            };
            let chain: Vec<String> = error.chain().map(|e| said(e.to_string())).collect();
            Err(chain.join(": "))
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("it panicked: {}", text.unwrap_or("without a word").replace('\n', " ")))
        }
    }
}

/// `[batch, classes]`, or with further axes of one.
pub(crate) fn is_scores(output: &ArrayD<f32>) -> bool {
    let shape = output.shape();
    shape.len() >= 2 && shape[1] > 1 && shape[2..].iter().all(|&d| d == 1)
}

/// The class of the largest score of each answer in a batch; none where a score is no number.
pub(crate) fn best_classes(scores: &ArrayD<f32>) -> Vec<Option<usize>> {
    let best = |row: ArrayViewD<'_, f32>| {
        let known = row.iter().all(|score| !score.is_nan());
        let all = row.into_iter().enumerate();
        known.then(|| all.fold((0, f32::NEG_INFINITY), |b, (i, &s)| if s > b.1 { (i, s) } else { b }).0)
    };
    scores.outer_iter().map(best).collect()
}
