//! How the error grows on its way through the network.

use super::TraceRow;
use crate::error::Result;
use crate::onnx::{Conv, InputShape, Model};
use crate::plan::Plan;
use crate::runtime::{Feed, Input, Runner, inputs};
use ndarray::ArrayD;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// The error at the output of each convolution for some inputs: each alone, on what it reads in the original, and all together.
///
/// # Errors
/// [`Error::Unavailable`](crate::Error::Unavailable) if tract cannot run one of the models.
pub(crate) fn trace(
    model: &Model,
    plan: &Plan,
    compressed: &Model,
    feeds: &[Feed],
    shapes: &[InputShape],
) -> Result<Vec<TraceRow>> {
    let fed = inputs(model, shapes)?;
    let convs = &plan.convs;
    let decomposed: BTreeSet<usize> = plan.groups.iter().flat_map(|g| g.members.iter().copied()).collect();
    // What the convolutions read, but for the model's own inputs, and what they give.
    let own = |value: &str| fed.iter().any(|i| i.name == value);
    let read: BTreeSet<&str> = convs.iter().map(|c| c.input.as_str()).filter(|v| !own(v)).collect();
    let read: Vec<&str> = read.into_iter().collect();
    let given: Vec<&str> = convs.iter().map(|c| c.output.as_str()).collect();
    let load = |model: &Model, values: &[&str], what| Runner::load(&model.stretch(&|_| None, values)?, &fed, what);
    let all: Vec<&str> = given.iter().chain(&read).copied().collect();
    let whole = load(model, &all, "the model")?;
    let small = load(compressed, &given, "the compressed model")?;
    let mut each: Option<(Runner, Vec<Source>)> = None;
    let mut sums = vec![[0.0f64; 3]; convs.len()];
    for feed in feeds {
        // One input at a time, as every value of the network is kept.
        let original = whole.run(feed)?;
        let arrived = small.run(feed)?;
        let (outputs, values) = original.split_at(given.len());
        let (runner, sources) = match &each {
            Some(known) => known,
            None => each.insert(fed_with(compressed, &fed, &read, values, &given)?),
        };
        let feed_alone: Vec<&ArrayD<f32>> = sources
            .iter()
            .map(|source| match *source {
                Source::Fed(at) => &feed[at],
                Source::Read(at) => &values[at],
            })
            .collect();
        let alone = runner.run(&feed_alone)?;
        sums.par_iter_mut().enumerate().for_each(|(at, sums)| {
            sums[0] += squares(&outputs[at], None);
            sums[1] += squares(&outputs[at], Some(&alone[at]));
            sums[2] += squares(&outputs[at], Some(&arrived[at]));
        });
    }
    let relative = |noise: f64, signal: f64| if signal > 0.0 { (noise / signal).sqrt() } else { 0.0 };
    let row = |(at, (conv, [signal, alone, arrived])): (usize, (&Conv, &[f64; 3]))| TraceRow {
        name: conv.name.clone(),
        decomposed: decomposed.contains(&at),
        alone: relative(*alone, *signal),
        arrived: relative(*arrived, *signal),
    };
    Ok(convs.iter().zip(&sums).enumerate().map(row).collect())
}

/// Where an input of the convolutions alone comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The model's inputs.
    Fed(usize),
    /// What the convolutions read.
    Read(usize),
}

/// The convolutions of a model, each by itself: fed with what they read, of the shapes of `values`.
fn fed_with(
    model: &Model,
    fed: &[Input],
    read: &[&str],
    values: &[ArrayD<f32>],
    given: &[&str],
) -> Result<(Runner, Vec<Source>)> {
    let known = |name: &str| read.iter().position(|r| *r == name);
    let part = model.stretch(&|name| known(name).map(|at| values[at].shape().to_vec()), given)?;
    let inputs = part.inputs().into_iter().filter_map(|(name, ..)| match known(&name) {
        Some(at) => Some((Input::floats(name, values[at].shape().to_vec()), Source::Read(at))),
        None => fed.iter().position(|i| i.name == name).map(|at| (fed[at].clone(), Source::Fed(at))),
    });
    let (inputs, sources): (Vec<Input>, Vec<Source>) = inputs.unzip();
    Ok((Runner::load(&part, &inputs, "the compressed model")?, sources))
}

/// `Σ (x − y)²`, or `Σ x²`.
fn squares(x: &ArrayD<f32>, y: Option<&ArrayD<f32>>) -> f64 {
    match y {
        Some(y) => x.iter().zip(y).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum(),
        None => x.iter().map(|&a| f64::from(a).powi(2)).sum(),
    }
}
