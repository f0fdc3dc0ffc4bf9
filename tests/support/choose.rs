//! Options chosen number by number: by a seed in tests, by the fuzzer in tools/fuzz.

use super::mutate::Pick;
use onnx_jmd::{GroupBy, GroupOptions, PlanOptions, Protocol, RankPolicy, Scheme, SchemeChoice, Unfolding};

/// Numbers that a choice takes at most.
pub const NUMBERS: usize = 12;

/// A way to group and to decompose.
pub fn options(pick: Pick<'_>) -> (GroupOptions, PlanOptions) {
    let split = pick(16) as f64 / 15.0;
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
    let unfolding = Unfolding::named(names[pick(4)]).unwrap_or(Unfolding::SPATIAL);
    let scheme = match schemes.get(pick(8)) {
        Some(scheme) => SchemeChoice::Only(scheme.on(unfolding)),
        None => SchemeChoice::Auto,
    };
    let policy = match pick(8) {
        // One that most models reach.
        0..5 => RankPolicy::Ratio(1.3),
        5 => RankPolicy::Ratio(1.0 + pick(128) as f64 / 16.0),
        _ => RankPolicy::Rate((1 + pick(128)) as f64 / 128.0),
    };
    let groups = GroupOptions {
        group_by: [GroupBy::Role, GroupBy::Shape][pick(2)],
        keep_batch_norm: pick(2) == 1,
        protocol: (pick(16) == 15).then_some(Protocol::Paper),
        ..GroupOptions::default()
    };
    let plan = PlanOptions {
        scheme,
        policy,
        iterations: 2,
        allow_more_macs: pick(2) == 1,
        unshare: pick(2) == 1,
        align: [1, 16][pick(2)],
    };
    (groups, plan)
}
