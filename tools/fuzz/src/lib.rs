//! What the fuzz targets share: how a model goes through everything short of running it.
//!
//! ```text
//! cargo run --example seeds -- corpus                                     # here, a first corpus for each target
//! cargo +nightly fuzz run --fuzz-dir tools/fuzz -s none -a compile        # at the root; also bytes_to_model, mutated_model
//! cargo +nightly fuzz run --fuzz-dir tools/fuzz -s none -a --features verify parsers   # builds tract: half an hour
//! ```
//! `-a` turns on checks of overflow. No sanitizer is needed, as the crate has no unsafe code but its allocator.

#[path = "../../../tests/support/mod.rs"]
pub mod support;

use arbitrary::Unstructured;
use onnx_jmd::{Error, GroupOptions, Model, Plan, PlanOptions, Result, apply, find_groups, inspect, reference};
use support::choose;

/// A number below `n`, from the fuzzer's bytes; zero when they are used up.
pub fn pick(u: &mut Unstructured<'_>, n: usize) -> usize {
    u.int_in_range(0..=n.max(1) - 1).unwrap_or(0)
}

/// Bytes from which options are chosen.
pub type Choice = [u8; choose::NUMBERS];

/// Everything short of running the model. What is written must be readable, and say what was decided.
pub fn through(model: &Model, choice: Choice) {
    // Large kernels only take time.
    if model.parameters() > 20_000 {
        return;
    }
    let mut numbers = choice.into_iter().map(usize::from);
    let (groups, plan) = choose::options(&mut |n| numbers.next().unwrap_or(0) % n);
    let (found, made) = (inspect(model, &groups), compressed(model, &groups, &plan));
    for error in [found.err(), made.err()].into_iter().flatten() {
        sentence(&error);
    }
}

fn compressed(model: &Model, groups: &GroupOptions, options: &PlanOptions) -> Result<()> {
    let grouping = find_groups(model, groups)?;
    let plan = Plan::build(model, &grouping, options)?;
    let compiled = apply(model, &plan)?;
    let bytes = compiled.model.to_bytes();
    assert_eq!(bytes.len() as u64, compiled.model.file_bytes());
    let again = Model::from_bytes(bytes).expect("what was written cannot be read");
    // A function that a decomposed node's subgraph called may not have to stay any more: what it dequantizes is seen then.
    if again.inlined().is_empty() {
        assert_eq!(again.parameters(), compiled.model.parameters());
    }
    assert_eq!(again.outputs(), model.outputs());
    let reference = reference(model, &plan, &compiled)?.to_bytes();
    Model::from_bytes(reference).expect("the reference cannot be read");
    // Again, as users may: what was compressed is left alone or compressed further, and never damaged.
    match find_groups(&again, groups).and_then(|grouping| Plan::build(&again, &grouping, options)) {
        Ok(plan) => drop(Model::from_bytes(apply(&again, &plan)?.model.to_bytes()).expect("the second time")),
        Err(error) => sentence(&error),
    }
    Ok(())
}

/// Every error is one line that says something.
pub fn sentence(error: &Error) {
    assert!(error.to_string().len() > 10, "{error:?}");
    assert!(error.exit_code() > 0);
}
