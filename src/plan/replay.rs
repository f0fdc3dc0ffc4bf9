//! A plan from a file, fitted to a model: what was decided then is done again, or refused with the line that does not fit.

use super::file::{GroupEntry, MemberEntry, PlanFile, weights_hash};
use super::profile::{Profile, Sight};
use super::unit::{Unit, too_many_bases};
use super::{Kept, Plan};
use crate::error::{Error, Result};
use crate::factor::{Form, Scheme};
use crate::group::Grouping;
use crate::onnx::{Conv, Model};
use crate::portions::{in_portions, room};
use std::collections::BTreeSet;
use std::sync::Arc;
use toml::Spanned;

/// A plan to replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The file.
    pub file: PlanFile,
    /// Accept other weights than those that were planned for.
    pub retrained: bool,
}

/// One group of the file with its members found in the model.
#[derive(Debug)]
pub(crate) struct Decision {
    unit: Unit,
    rank: usize,
}

impl Replay {
    /// What was decided, for the convolutions of a model.
    ///
    /// # Errors
    /// [`Error::Plan`] with the line that does not fit, [`Error::NotFinite`].
    pub(crate) fn decisions(&self, grouping: &Grouping, calibrated: bool) -> Result<Vec<Decision>> {
        let mut taken = BTreeSet::new();
        let groups = self.file.document.group.iter();
        let decided = groups.map(|group| self.decision(group, grouping, &mut taken, calibrated));
        let decided = decided.collect::<Result<Vec<Decision>>>()?;
        taken.iter().try_for_each(|&m| grouping.convs[m].check_finite())?;
        if decided.is_empty() {
            return Err(Error::NothingToCompress("the plan has no groups".into()));
        }
        Ok(decided)
    }

    fn decision(
        &self,
        group: &GroupEntry,
        grouping: &Grouping,
        taken: &mut BTreeSet<usize>,
        calibrated: bool,
    ) -> Result<Decision> {
        let convs = &grouping.convs;
        let each = group.members.iter().map(|member| self.member(member, grouping, taken));
        let mut members = each.collect::<Result<Vec<usize>>>()?;
        members.sort_unstable();
        let form = self.form(group)?;
        let Some(&first) = members.first() else {
            return Err(self.file.wrong(group.name.span(), "the group has no members: leave it out".into()));
        };
        if members.len() == 1 && form.scheme != Scheme::Separate {
            let reason = format!("a group of one shares nothing: its scheme is separate, not {}", form.scheme);
            return Err(self.file.wrong(group.scheme.span(), reason));
        }
        let alike = |conv: &Conv| {
            let [out, inputs, kh, kw] = convs[first].shape;
            let equal = !form.scheme.needs_equal_inputs() || conv.shape[1] == inputs;
            let stored = conv.family() == convs[first].family();
            equal && stored && [conv.shape[0], conv.shape[2], conv.shape[3]] == [out, kh, kw]
        };
        if let Some(&other) = members.iter().find(|&&m| form.scheme != Scheme::Separate && !alike(&convs[m])) {
            let (a, b) = (&convs[first], &convs[other]);
            let reason = format!(
                "{} shares between kernels of one shape, but '{}' is {:?} and '{}' {:?}",
                form.scheme, a.name, a.shape, b.name, b.shape
            );
            return Err(self.file.wrong(group.scheme.span(), reason));
        }
        if let Some(&grouped) =
            members.iter().find(|&&m| form.scheme != Scheme::Separate && convs[m].channel_groups() > 1)
        {
            let reason = format!(
                "'{}' is a grouped convolution, whose groups share nothing: its scheme is separate, not {}",
                convs[grouped].name, form.scheme
            );
            return Err(self.file.wrong(group.scheme.span(), reason));
        }
        if let Some(&small) = members.iter().find(|&&m| form.unfolding.fit(convs[m].part_shape()) != form.unfolding) {
            let reason = format!("tucker cuts kernels larger than 1×1, and that of '{}' is not", convs[small].name);
            return Err(self.file.wrong(group.unfolding.span(), reason));
        }
        let rank = group.ranks.get_ref().iter().fold(0usize, |sum, &r| sum.saturating_add(r));
        let label = (group.name.get_ref().as_str(), group.role.as_str());
        let width = rank.max(group.basis);
        let unit = Unit::decided(label, members, form, convs, width, (&self.file.plan_options()?, calibrated));
        let most = unit.largest_rank();
        if rank > most {
            let reason = format!("rank {rank} is more than these kernels have: {most} at most");
            return Err(self.file.wrong(group.ranks.span(), reason));
        }
        Ok(Decision { unit, rank })
    }

    /// The form of a group, its ranks counted.
    fn form(&self, group: &GroupEntry) -> Result<Form> {
        let ranks = group.ranks.get_ref();
        // Two ranks say themselves how they are dealt; at 0 and 1 a scheme of two chains is one.
        let split = match (&ranks[..], &group.split) {
            (&[a, b], _) => a as f64 / a.saturating_add(b).max(1) as f64,
            (_, Some(split)) => *split.get_ref(),
            _ => 0.5,
        };
        let form = self.file.scheme(&group.scheme, split)?.on(self.file.unfolding(&group.unfolding)?);
        let wrong = |reason: String| Err(self.file.wrong(group.ranks.span(), reason));
        match form.least_rank() {
            _ if ranks.contains(&0) => wrong("ranks are 1 or more".into()),
            chains if chains != ranks.len() => {
                let each = if chains == 1 { "one rank" } else { "two ranks, one a chain" };
                wrong(format!("{form} takes {each}, not {}", ranks.len()))
            }
            _ => Ok(form),
        }
    }

    /// The convolution that a line speaks of.
    fn member(&self, member: &Spanned<MemberEntry>, grouping: &Grouping, taken: &mut BTreeSet<usize>) -> Result<usize> {
        let wrong = |reason: String| Err(self.file.wrong(member.span(), reason));
        let MemberEntry { node, kernel, weights } = member.get_ref();
        let named = || grouping.convs.iter().enumerate().filter(|(_, conv)| conv.name == *node).map(|(m, _)| m);
        // Names need not be unique; weights nearly are.
        let free = || named().filter(|m| !taken.contains(m));
        let found = free().find(|&m| weights_hash(&grouping.convs[m]) == *weights);
        let Some(at) = found.or(free().next()) else {
            if named().next().is_some() {
                return wrong(format!("convolution '{node}' stands in the plan twice"));
            }
            return match grouping.skipped.iter().find(|s| s.name == *node) {
                Some(skipped) => wrong(format!("convolution '{node}' cannot be decomposed: {}", skipped.reason)),
                None => wrong(format!("the model has no convolution '{node}'")),
            };
        };
        let conv = &grouping.convs[at];
        if conv.shape != *kernel {
            return wrong(format!("the kernel of '{node}' is {:?} in the model, not {kernel:?}", conv.shape));
        }
        if found.is_none() && !self.retrained {
            return wrong(format!(
                "convolution '{node}' has other weights than those planned for: plan anew, or accept them with --retrained"
            ));
        }
        taken.insert(at);
        Ok(at)
    }

    /// What a reader of the report should know.
    pub(crate) fn notes(&self, model: &Model, samples: Option<&str>) -> Vec<String> {
        let document = &self.file.document;
        let mut notes = Vec::new();
        let version = env!("CARGO_PKG_VERSION");
        if document.onnx_jmd != version {
            notes.push(format!(
                "the plan was made by onnx-jmd {}, this is {version}: last bits may differ",
                document.onnx_jmd
            ));
        }
        if document.model.sha256 != model.digest() {
            notes.push("the model is not the file that the plan was made for".into());
        }
        let planned = document.calibration.as_ref().and_then(|c| c.sha256.as_deref());
        if let (Some(planned), Some(samples)) = (planned, samples)
            && planned != samples
        {
            notes.push("calibrated on other samples than the plan was".into());
        }
        notes
    }
}

impl Plan {
    /// The plan that decisions make.
    ///
    /// # Errors
    /// [`Error::Options`] for options that make no sense, [`Error::Numerical`].
    pub(crate) fn decided(
        model: &Model,
        grouping: &Grouping,
        replay: &Replay,
        decisions: &[Decision],
        sights: Option<Arc<[Sight]>>,
    ) -> Result<Self> {
        let convs = &grouping.convs;
        let lean = too_many_bases(decisions.iter().map(|d| &d.unit));
        let planned = |decision: &Decision| {
            let profile = match &sights {
                Some(sights) => Profile::calibrated(&decision.unit, convs, sights)?,
                None => Profile::plain(&decision.unit, convs)?,
            };
            let profile = if lean { profile.lean() } else { profile };
            Ok(decision.unit.planned(decision.rank, &profile, Vec::new()))
        };
        let groups = in_portions(decisions, room(model.parameters()), |d| d.unit.workspace(), planned)?;
        let before = model.parameters();
        let after = decisions.iter().fold(before, |after, d| {
            // Folding gives a convolution without a bias one, and takes a batch norm away.
            after.saturating_sub(d.unit.whole).saturating_add(d.unit.cost(d.rank))
        });
        let planned: BTreeSet<usize> = groups.iter().flat_map(|g| g.members.iter().copied()).collect();
        let left = convs.iter().enumerate().filter(|(m, _)| !planned.contains(m));
        Ok(Self {
            options: replay.file.plan_options()?,
            convs: convs.clone(),
            kept: left.map(|(_, c)| Kept { name: c.name.clone(), reason: "not in the plan".into() }).collect(),
            groups,
            parameters_before: before,
            parameters_after: after,
            sights,
        })
    }
}
