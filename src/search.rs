//! Several ratios of one model: the largest that keeps what is asked for, and what others cost.

use crate::calibrate::HeldOut;
use crate::compare::Scorer;
use crate::error::{Error, Result};
use crate::picture::CurvePoint;
use crate::plan::{Plan, RankPolicy};
use crate::progress::Progress;
use crate::report::AgreementRow;
use crate::rewrite::Compiled;

/// A plan and, unless it is a dry run, the model.
pub(crate) type Built = (Plan, Option<Compiled>);
/// What is made at a ratio.
type Build<'b> = dyn Fn(RankPolicy) -> Result<Built> + 'b;

/// Ratios this close are taken for equal.
const RATIO_STEP: f64 = 1.05;
/// The first ratio tried.
const FIRST_RATIO: f64 = 1.5;
/// Ratios tried at most.
const RATIOS_TRIED: usize = 10;

/// The largest ratio, to within a few percent, at which what is kept on held-out samples stays within a bound: up by half as much
/// again while it does, then by halves between.
pub(crate) fn largest_ratio(
    drop: f64,
    held_out: &HeldOut,
    largest: f64,
    build: &Build<'_>,
    progress: &Progress<'_>,
) -> Result<(Vec<AgreementRow>, Built)> {
    // What is asked for must be reached whatever rounding does.
    let largest = (largest * 1000.0).floor() / 1000.0;
    let mut curve: Vec<AgreementRow> = Vec::new();
    let mut best = None;
    let (mut low, mut high) = (1.0f64, f64::INFINITY);
    let mut next = FIRST_RATIO.min(largest);
    while curve.len() < RATIOS_TRIED && next > 1.0 {
        let (plan, compiled) = match build(RankPolicy::Ratio(next)) {
            Err(Error::NothingToCompress(_)) => break,
            other => other?,
        };
        let kept = compiled.as_ref().map_or(Ok(1.0), |c| held_out.kept(&c.model))?;
        progress.say(&format!("ratio {next:.2} keeps {:.2} %", 100.0 * kept));
        curve.push(AgreementRow { ratio: next, kept });
        if kept >= 1.0 - drop {
            low = next;
            best = Some((plan, compiled));
        } else {
            high = next;
        }
        let up = (low * 1.5).min(largest);
        next = if high.is_finite() { (low * high).sqrt() } else { up };
        if (high.is_finite() && high / low < RATIO_STEP) || (!high.is_finite() && up <= low * 1.001) {
            break;
        }
    }
    curve.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    let tried = || curve.first().map_or(String::new(), |r| format!("{:.2} % at ratio {:.2}", 100.0 * r.kept, r.ratio));
    let best = best.ok_or_else(|| Error::Gate {
        measure: "what is kept on held-out samples",
        found: tried(),
        asked: format!("{:.2} % or more", 100.0 * (1.0 - drop)),
        advice: "nothing was written; allow a larger --max-drop, or give more --calib samples",
    })?;
    Ok((curve, best))
}

/// What other plans keep of the images' classes.
pub(crate) fn scored_curve(
    plans: Vec<Plan>,
    build: &dyn Fn(Plan) -> Result<Built>,
    scorer: Option<&Scorer<'_>>,
    progress: &Progress<'_>,
) -> Result<Vec<CurvePoint>> {
    let mut curve = Vec::new();
    for plan in plans {
        let (plan, compiled) = build(plan)?;
        let Some((compiled, scorer)) = compiled.zip(scorer) else { continue };
        let ratio = plan.parameters_before as f64 / compiled.model.parameters().max(1) as f64;
        let score = scorer.score(&compiled.model)?;
        let kept = score.top1_after.unwrap_or(score.agreement);
        progress.say(&format!("ratio {ratio:.2}: {:.2} %", 100.0 * kept));
        curve.push(CurvePoint { ratio, score });
    }
    Ok(curve)
}
