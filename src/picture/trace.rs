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
    let run = |model: &Model, inputs: &[Input], values: &[&str], feed: &Feed, what| -> Result<Vec<ArrayD<f32>>> {
        let part = model.stretch(&|_| None, values)?;
        Runner::load(&part, inputs, what)?.run(feed)
    };
    let mut sums = vec![[0.0f64; 3]; convs.len()];
    for feed in feeds {
        // One input at a time, as every value of the network is kept.
        let all: Vec<&str> = given.iter().chain(&read).copied().collect();
        let original = run(model, &fed, &all, feed, "the model")?;
        let arrived = run(compressed, &fed, &given, feed, "the compressed model")?;
        let (outputs, values) = original.split_at(given.len());
        let known = |name: &str| read.iter().position(|r| *r == name).map(|at| &values[at]);
        let part = compressed.stretch(&|name| known(name).map(|v| v.shape().to_vec()), &given)?;
        let reads = part.inputs().into_iter().map(|(name, ..)| match known(&name) {
            Some(value) => Some((Input::floats(name, value.shape().to_vec()), value.clone())),
            None => {
                let at = fed.iter().position(|i| i.name == name)?;
                Some((fed[at].clone(), feed.get(at)?.clone()))
            }
        });
        let (reads, fed_alone): (Vec<Input>, Feed) = reads.flatten().unzip();
        let alone = Runner::load(&part, &reads, "the compressed model")?.run(&fed_alone)?;
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

/// `Σ (x − y)²`, or `Σ x²`.
fn squares(x: &ArrayD<f32>, y: Option<&ArrayD<f32>>) -> f64 {
    match y {
        Some(y) => x.iter().zip(y).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum(),
        None => x.iter().map(|&a| f64::from(a).powi(2)).sum(),
    }
}
