//! What is to be done, decided and priced, with nothing done yet.

#[cfg(feature = "verify")]
mod file;
#[cfg(feature = "verify")]
mod made;
mod profile;
mod prospects;
#[cfg(feature = "verify")]
mod replay;
mod trials;
mod unit;

#[cfg(feature = "verify")]
pub(crate) use file::Circumstances;
#[cfg(feature = "verify")]
pub use file::{PlanFile, PlannedCalibration};
#[cfg(feature = "verify")]
pub(crate) use profile::Calibrated;
pub(crate) use profile::{Judged, Sight, all_see};
pub(crate) use prospects::Prospects;
use prospects::candidates;
#[cfg(feature = "verify")]
pub use replay::Replay;
#[cfg(feature = "verify")]
pub(crate) use trials::{Trial, Trials};
pub(crate) use unit::{Members, stacked};

use crate::error::{Error, Result};
use crate::factor::{self, Analysis, Form, Scheme};
use crate::group::Grouping;
use crate::onnx::{Conv, Model};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// How ranks are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankPolicy {
    /// The model is to have this many times fewer floating-point parameters.
    Ratio(f64),
    /// The paper's: rank `⌊rate·out⌋` for kernels larger than 1×1 and `⌊rate·min(in, out)⌋` for 1×1, and for joint
    /// schemes the rank that spends the parameters which separate decomposition would.
    Rate(f64),
}

impl RankPolicy {
    /// As a metadata property of a model that was written.
    pub(crate) fn metadata(self) -> (&'static str, String) {
        match self {
            Self::Ratio(ratio) => ("onnx_jmd.ratio", ratio.to_string()),
            Self::Rate(rate) => ("onnx_jmd.rank_rate", rate.to_string()),
        }
    }
}

/// Which form groups are decomposed in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SchemeChoice {
    /// For each convolution what promises the least error: alone or shared, with those of its role or of its residual stream, and in
    /// which unfolding.
    Auto,
    /// One form for all; a convolution that has no partner is decomposed alone.
    Only(Form),
}

impl From<Scheme> for SchemeChoice {
    fn from(scheme: Scheme) -> Self {
        Self::Only(scheme.into())
    }
}

impl std::fmt::Display for SchemeChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Only(form) => form.fmt(f),
        }
    }
}

/// What to decide by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanOptions {
    /// What the members of a group share.
    pub scheme: SchemeChoice,
    /// How ranks are chosen.
    pub policy: RankPolicy,
    /// Turns between the chains of schemes of two, where plain weights are decomposed.
    pub iterations: usize,
    /// Allow more multiply-accumulates than before: of the whole model for a ratio, of a group for a rate.
    pub allow_more_macs: bool,
    /// Store a factor that several share once for each of them, for targets that keep weights a layer.
    pub unshare: bool,
    /// Large ranks are multiples of this: runtimes compute channels in blocks. One leaves them free.
    pub align: usize,
}

impl Default for PlanOptions {
    /// [`SchemeChoice::Auto`] at ratio 2, thirty turns (the paper's K), never more multiply-accumulates, ranks in blocks of 16.
    fn default() -> Self {
        Self {
            scheme: SchemeChoice::Auto,
            policy: RankPolicy::Ratio(2.0),
            iterations: 30,
            allow_more_macs: false,
            unshare: false,
            align: 16,
        }
    }
}

/// Convolutions that are decomposed together, and how.
#[derive(Debug, Clone)]
pub struct GroupPlan {
    /// Name of the [`Group`](crate::Group) or [`Stream`](crate::Stream) they come from.
    pub group: String,
    /// Their common neighbourhood.
    pub role: String,
    /// Positions in [`Plan::convs`].
    pub members: Vec<usize>,
    /// The form used: a group of one is always [`Scheme::Separate`].
    pub form: Form,
    /// One rank a chain.
    pub ranks: Vec<usize>,
    /// Kernel weights before.
    pub parameters_before: u64,
    /// Stored elements of the factors.
    pub parameters_after: u64,
    /// Relative reconstruction error `‖W − Ŵ‖ / ‖W‖` that the spectra predict.
    pub predicted_error: f64,
    /// What else the members could have become at about the same parameters, least error first; empty where one form was asked for.
    pub alternatives: Vec<Alternative>,
    /// What the ranks were chosen by; see [`GroupPlan::analysis`].
    pub(crate) analysis: Arc<Analysis>,
}

/// Another form for the members of a group, or for each of them alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// The form's name.
    pub form: String,
    /// Parameters that it would store, as near below the chosen ones as its ranks allow.
    pub parameters: u64,
    /// Its predicted effect on the output over that of what was chosen.
    pub relative_error: f64,
}

/// A convolution that could be decomposed and is better left whole.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The node's name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The decision for a whole model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was decided by.
    pub options: PlanOptions,
    /// The convolutions it speaks of.
    pub convs: Vec<Conv>,
    /// What is decomposed, in graph order of the first members.
    pub groups: Vec<GroupPlan>,
    /// What is left whole by choice.
    pub kept: Vec<Kept>,
    /// Floating-point parameters of the model before.
    pub parameters_before: u64,
    /// Floating-point parameters after, as far as the plan can tell.
    pub parameters_after: u64,
    /// What each convolution sees, if that was measured: then errors are measured in that norm.
    pub(crate) sights: Option<Arc<[Sight]>>,
}

impl GroupPlan {
    /// The spectra with the vectors to factorize with, computed again where planning did not keep them.
    ///
    /// # Errors
    /// The solver's reason if an eigendecomposition does not converge.
    pub(crate) fn analysis(&self, convs: &[Conv], judged: Option<&Judged<'_>>) -> Result<Cow<'_, Analysis>, String> {
        if self.analysis.has_vectors() {
            return Ok(Cow::Borrowed(&self.analysis));
        }
        let (chains, kernels) = (self.form.chains(), Members { convs, members: &self.members });
        let width = self.analysis.width();
        Ok(Cow::Owned(match judged {
            None => factor::analyse(&chains, &kernels, width)?,
            Some(judged) => factor::analyse_calibrated(&chains, &kernels, &judged.seen(), width)?,
        }))
    }

    /// Bytes that decomposing it takes for a while, about.
    pub(crate) fn workspace(&self, convs: &[Conv]) -> u64 {
        let shapes = factor::Kernels::shapes(&Members { convs, members: &self.members });
        factor::workspace(&self.form.chains(), &shapes)
    }
}

impl Plan {
    /// Decides scheme, members and ranks for a model.
    ///
    /// # Errors
    /// [`Error::Options`] for a ratio or rate that makes no sense, [`Error::NothingToCompress`],
    /// [`Error::Unreachable`] (both before any decomposition), [`Error::NotFinite`] or [`Error::Numerical`].
    pub fn build(model: &Model, grouping: &Grouping, options: &PlanOptions) -> Result<Self> {
        Prospects::new(model, grouping, options, None)?.plan(options.policy)
    }

    /// One plan for each of several rank rates, the spectra computed once.
    ///
    /// # Errors
    /// As [`Plan::build`].
    pub fn at_rates(model: &Model, grouping: &Grouping, options: &PlanOptions, rates: &[f64]) -> Result<Vec<Self>> {
        let policies: Vec<RankPolicy> = rates.iter().map(|&rate| RankPolicy::Rate(rate)).collect();
        let each: Vec<PlanOptions> = policies.iter().map(|&policy| PlanOptions { policy, ..*options }).collect();
        each.iter().try_for_each(check)?;
        let Some(first) = each.first() else { return Ok(Vec::new()) };
        // Which ranks pay does not depend on the rate.
        let prospects = Prospects::new(model, grouping, first, None)?;
        policies.into_iter().map(|policy| prospects.plan(policy)).collect()
    }

    /// The largest ratio that a scheme reaches, every rank one; none if no rank pays.
    ///
    /// # Errors
    /// [`Error::NotFinite`], or [`Error::Options`] for options that make no sense.
    pub fn largest_ratio(model: &Model, grouping: &Grouping, options: &PlanOptions) -> Result<Option<f64>> {
        let any = PlanOptions { policy: RankPolicy::Ratio(LEAST_RATIO), ..*options };
        match candidates(model, grouping, &any, false) {
            Ok(candidates) => Ok(Some(candidates.largest_ratio())),
            Err(Error::NothingToCompress(_) | Error::Unreachable { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// What [`Plan::build`] refuses before any decomposition, for callers with other work to do first.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "verify")]
    pub(crate) fn precheck(model: &Model, grouping: &Grouping, options: &PlanOptions, calibrated: bool) -> Result<()> {
        candidates(model, grouping, options, calibrated).map(|_| ())
    }
}

/// The least ratio worth a plan.
pub(crate) const LEAST_RATIO: f64 = 1.02;

/// Refuses, before any work, options that no model could satisfy.
pub(crate) fn check(options: &PlanOptions) -> Result<()> {
    match options.policy {
        RankPolicy::Ratio(r) if !(r > 1.0 && r.is_finite()) => {
            return Err(Error::Options(format!("--ratio must be a number above 1, not {r}")));
        }
        RankPolicy::Rate(r) if !(r > 0.0 && r <= 1.0) => {
            return Err(Error::Options(format!("--rank-rate must be above 0 and at most 1, not {r}")));
        }
        RankPolicy::Rate(_) if options.scheme == SchemeChoice::Auto => {
            return Err(Error::Options("--rank-rate needs a --scheme: auto chooses ranks for a --ratio".into()));
        }
        RankPolicy::Ratio(_) | RankPolicy::Rate(_) => {}
    }
    match options.scheme {
        SchemeChoice::Only(form) if form.scheme.split().is_some_and(|split| !(0.0..=1.0).contains(&split)) => {
            let split = form.scheme.split().unwrap_or_default();
            Err(Error::Options(format!("--split must be from 0 to 1, not {split}")))
        }
        _ => Ok(()),
    }
}

fn unreachable(asked: f64, largest: f64, options: &PlanOptions) -> Error {
    // What is advised must itself be accepted, so it is rounded down.
    let largest = (largest * 1000.0).floor() / 1000.0;
    let advice = if largest <= 1.0 {
        "try another --scheme".to_owned()
    } else {
        let other = match options.scheme {
            SchemeChoice::Auto => " (another scheme may reach more: onnx-jmd inspect tells)",
            SchemeChoice::Only(_) => "",
        };
        format!("ask for --ratio {largest:.3} or less{other}")
    };
    Error::Unreachable { asked, scheme: options.scheme.to_string(), largest, advice }
}

fn nothing(grouping: &Grouping) -> String {
    match (grouping.convs.len(), grouping.skipped.len()) {
        (0, 0) => "the model has no convolutions".into(),
        (0, n) => {
            let first = &grouping.skipped[0];
            format!("none of its {n} convolutions can be decomposed (the first, '{}': {})", first.name, first.reason)
        }
        _ => "no rank makes any of its convolutions smaller".into(),
    }
}
