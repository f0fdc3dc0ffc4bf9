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
use onnx_jmd::{
    Error, Form, GroupBy, GroupOptions, Model, Plan, PlanOptions, Protocol, RankPolicy, Result, Scheme, SchemeChoice,
    Unfolding, apply, find_groups, inspect, reference,
};

/// A number below `n`, from the fuzzer's bytes; zero when they are used up.
pub fn pick(u: &mut Unstructured<'_>, n: usize) -> usize {
    u.int_in_range(0..=n.max(1) - 1).unwrap_or(0)
}

/// Options from four bytes.
pub fn options(bytes: [u8; 4]) -> (GroupOptions, PlanOptions) {
    let [scheme, unfolding, policy, flags] = bytes;
    let split = f64::from(flags >> 4) / 15.0;
    let schemes = [
        Scheme::Separate,
        Scheme::LeftShared,
        Scheme::RightSharedWithFirst,
        Scheme::RightShared,
        Scheme::BothShared { split },
        Scheme::PartlyCoupled { split },
        Scheme::CoupledTensorTrain { split },
    ];
    let names = ["spatial", "filter-bank", "pointwise-first", "tucker"];
    let unfolding = Unfolding::named(names[usize::from(unfolding) % names.len()]).unwrap_or(Unfolding::SPATIAL);
    let scheme = match schemes.get(usize::from(scheme) % 8) {
        Some(scheme) => SchemeChoice::Only(Form::from(*scheme).scheme.on(unfolding)),
        None => SchemeChoice::Auto,
    };
    let policy = match policy {
        0..128 => RankPolicy::Ratio(1.0 + f64::from(policy) / 16.0),
        _ => RankPolicy::Rate(f64::from(policy - 127) / 128.0),
    };
    let groups = GroupOptions {
        group_by: if flags & 1 == 0 { GroupBy::Role } else { GroupBy::Shape },
        keep_batch_norm: flags & 2 != 0,
        protocol: (flags & 12 == 12).then_some(Protocol::Paper),
        ..GroupOptions::default()
    };
    let plan = PlanOptions {
        scheme,
        policy,
        iterations: 2,
        allow_more_macs: flags & 4 != 0,
        unshare: flags & 8 != 0,
        align: if flags & 8 == 0 { 1 } else { 16 },
    };
    (groups, plan)
}

/// Everything short of running the model. What is written must be readable, and say what was decided.
pub fn through(model: &Model, choice: [u8; 4]) {
    // Large kernels only take time.
    if model.parameters() > 20_000 {
        return;
    }
    let (groups, plan) = options(choice);
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
    assert_eq!(again.parameters(), compiled.model.parameters());
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
