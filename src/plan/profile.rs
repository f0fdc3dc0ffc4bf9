//! What each rank of a unit does to its members' outputs, and that to the network's.

use super::trials::{Trial, Trials};
use super::unit::{Members, Unit};
use crate::error::Result;
use crate::factor::{self, Analysis, ChainForm, Moment, OutputNorm, Ownership, Seen};
use crate::onnx::Conv;
use ndarray::{Array2, Array4, Axis, s};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How far the network's output moves, relative to its own variation, when some convolutions get other kernels.
pub(crate) type Sensitivity<'s> = dyn Fn(&[usize], &[Array4<f64>]) -> Result<f64> + Sync + 's;

/// What calibration adds to a decision.
pub(crate) struct Calibrated<'s> {
    /// What each convolution sees.
    pub(crate) sights: Arc<[Sight]>,
    /// Measured on the network itself.
    pub(crate) sensitivity: &'s Sensitivity<'s>,
    /// What was tried before, and what is tried now.
    pub(crate) trials: &'s Trials,
}

/// What one convolution sees and how its output is judged.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    /// Moments of what each group of its channels reads.
    pub(crate) moments: Vec<Moment>,
    /// `E[g·gᵀ]` of the network's gradients `g` at its output, a pixel; none if they are not known.
    gradient: Option<Array2<f64>>,
    /// One a group of channels; none if nothing is known.
    norms: Vec<OutputNorm>,
}

/// Added to a gradient's second moment, relative to its mean diagonal: a few images do not tell what never matters.
const DAMPING: f64 = 0.1;

impl Sight {
    /// # Errors
    /// The solver's reason if an eigendecomposition does not converge.
    pub(crate) fn new(moments: Vec<Moment>, gradient: Option<Array2<f64>>) -> Result<Self, String> {
        // What is decomposed by its plain weights needs no norm.
        let gradient = gradient.filter(|_| !moments.iter().any(Moment::is_blind));
        let norms = gradient.iter().flat_map(|g| {
            let out = g.nrows() / moments.len().max(1);
            let own = move |part: usize| part * out..(part + 1) * out;
            (0..moments.len()).map(move |p| OutputNorm::new(&g.slice(s![own(p), own(p)]).to_owned(), DAMPING))
        });
        let norms = norms.collect::<Result<_, String>>()?;
        Ok(Self { moments, gradient, norms })
    }

    /// Whether it reads more than the samples tell.
    pub(crate) fn is_blind(&self) -> bool {
        self.moments.iter().any(Moment::is_blind)
    }

    /// What a kernel makes of the mean of what is read.
    pub(crate) fn respond(&self, kernel: &Array4<f64>) -> Vec<f64> {
        let out = (kernel.dim().0 / self.moments.len().max(1)).max(1);
        let parts = kernel.axis_chunks_iter(Axis(0), out).zip(&self.moments);
        parts.flat_map(|(kernel, moment)| factor::respond(&kernel.to_owned(), &moment.mean())).collect()
    }

    /// `E[g·gᵀ]`, if it is known.
    #[cfg(feature = "verify")]
    pub(crate) fn gradient(&self) -> Option<&Array2<f64>> {
        self.gradient.as_ref()
    }
}

/// What the members of a group see; none if one of them reads more than the samples tell, so that plain weights decide.
pub(crate) fn all_see<'s>(members: &[usize], sights: &'s [Sight]) -> Option<&'s [Sight]> {
    Some(sights).filter(|sights| members.iter().all(|&m| !sights[m].is_blind()))
}

/// How the outputs of some convolutions are judged: each group of channels by itself, or all alike where they share a last factor.
pub(crate) struct Judged<'s> {
    each: Vec<(&'s Moment, Option<&'s OutputNorm>)>,
    common: Option<OutputNorm>,
    shared: bool,
}

impl<'s> Judged<'s> {
    /// # Errors
    /// The solver's reason if an eigendecomposition does not converge.
    pub(crate) fn new(chains: &[ChainForm], members: &[usize], sights: &'s [Sight]) -> Result<Self, String> {
        let sights: Vec<&Sight> = members.iter().map(|&m| &sights[m]).collect();
        let shared = sights.len() > 1 && chains.iter().any(|c| c.last == Ownership::Shared);
        let scaled = |s: &&Sight| {
            let gradient = s.gradient.as_ref()?;
            let scale = gradient.diag().mean().filter(|d| *d > 0.0)?;
            Some(gradient / scale)
        };
        let mean = if shared { sights.iter().map(scaled).collect::<Option<Vec<_>>>() } else { None };
        let mean = mean.and_then(|all| all.into_iter().reduce(|a, b| a + b));
        let common = mean.map(|g| OutputNorm::new(&g, DAMPING)).transpose()?;
        let each = sights.iter().flat_map(|s| s.moments.iter().enumerate().map(|(part, m)| (m, s.norms.get(part))));
        Ok(Self { each: each.collect(), common, shared })
    }

    /// The norm of the output of one kernel.
    pub(crate) fn output(&self, at: usize) -> Option<&OutputNorm> {
        if self.shared { self.common.as_ref() } else { self.each[at].1 }
    }

    /// What all kernels see and how they are judged.
    pub(crate) fn seen(&self) -> Vec<Seen<'_>> {
        let each = self.each.iter().enumerate();
        each.map(|(i, (moment, _))| Seen { moment, output: self.output(i) }).collect()
    }
}

/// Relative output errors, about, at which factors are fitted to see what the spectra promise, and at which the effect
/// on the network is measured.
const PROBE_ERRORS: [f64; 4] = [0.03, 0.12, 0.35, 0.8];
/// Turns between the halves of a chain in such a fit.
const PROBE_SWEEPS: usize = 1;

/// Spectra of a unit and, where it was calibrated, how good factors really are.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) analysis: Arc<Analysis>,
    /// At some ranks, ascending, what fitted factors leave of each member's output, relative to what the spectra say.
    corrections: Vec<(usize, Vec<f64>)>,
    /// At some ranks, ascending, how much more all members together move the network's output than the sum of each alone.
    interactions: Vec<(usize, f64)>,
    dropped: bool,
}

/// One fitted rank of a unit: the error of each member's output and the kernels.
struct Fit {
    errors: Vec<f64>,
    kernels: Vec<Array4<f64>>,
}

impl Profile {
    pub(super) fn plain(unit: &Unit, convs: &[Conv]) -> Result<Self> {
        let kernels = Members { convs, members: &unit.members };
        let analysis = factor::analyse(&unit.chains, &kernels, unit.max_rank).map_err(|e| kernels.failed(e))?;
        Ok(Self::of(analysis))
    }

    fn of(analysis: Analysis) -> Self {
        Self { analysis: Arc::new(analysis), corrections: Vec::new(), interactions: Vec::new(), dropped: false }
    }

    /// What is left when nothing more is to be fitted; the vectors are computed again for what is chosen.
    pub(super) fn lean(self) -> Self {
        let analysis = Arc::unwrap_or_clone(self.analysis);
        Self { analysis: Arc::new(analysis.without_vectors()), ..self }
    }

    /// Spectra in the calibrated norm, nothing fitted yet.
    pub(super) fn calibrated(unit: &Unit, convs: &[Conv], sights: &[Sight]) -> Result<Self> {
        let Some(sights) = all_see(&unit.members, sights) else { return Self::plain(unit, convs) };
        let kernels = Members { convs, members: &unit.members };
        let judged = Judged::new(&unit.chains, &unit.members, sights).map_err(|e| kernels.failed(e))?;
        let analysis = factor::analyse_calibrated(&unit.chains, &kernels, &judged.seen(), unit.max_rank);
        Ok(Self::of(analysis.map_err(|e| kernels.failed(e))?))
    }

    /// The ranks at which the members' errors are about those of a probe.
    pub(super) fn probe_ranks(&self, unit: &Unit) -> BTreeSet<usize> {
        let n = unit.members.len();
        let mean = |rank: usize| (0..n).map(|i| self.spectral(unit, i, rank)).sum::<f64>() / n as f64;
        let ranks = unit.form.least_rank()..=unit.max_rank;
        let means: Vec<(usize, f64)> = ranks.map(|r| (r, mean(r).max(1e-12))).collect();
        let nearest = |wanted: f64| {
            let off = |error: f64| (error / wanted).ln().abs();
            means.iter().min_by(|a, b| off(a.1).total_cmp(&off(b.1))).map(|m| m.0)
        };
        PROBE_ERRORS.iter().filter_map(|&e| nearest(e)).collect()
    }

    /// Fits factors at some ranks, to see what the spectra promise, and if they are `wanted` then, measures what they do to the
    /// network, all members together.
    pub(super) fn trial(
        &mut self,
        unit: &Unit,
        convs: &[Conv],
        calibrated: &Calibrated<'_>,
        ranks: BTreeSet<usize>,
        wanted: &dyn Fn(&Self) -> bool,
    ) -> Result<Trial> {
        let key = format!("{:?} {:?} {ranks:?}", unit.members, unit.form);
        let mut fits = None;
        let mut trial = match calibrated.trials.get(&key) {
            Some(known) => known,
            None => {
                let fitted = self.fit(unit, convs, &calibrated.sights, &ranks)?;
                let errors = fitted.iter().map(|fit| fit.errors.clone()).collect();
                fits = Some(fitted);
                Trial { errors, moved: None }
            }
        };
        let correction = |(&rank, errors): (&usize, &Vec<f64>)| {
            let each = errors.iter().enumerate().map(|(i, e)| e.max(1e-12) / self.spectral(unit, i, rank));
            (rank, each.collect())
        };
        self.corrections = ranks.iter().zip(&trial.errors).map(correction).collect();
        let wanted = wanted(self);
        if wanted && trial.moved.is_none() {
            let fits = match fits {
                Some(fits) => fits,
                None => self.fit(unit, convs, &calibrated.sights, &ranks)?,
            };
            let moved = fits.iter().map(|fit| (calibrated.sensitivity)(&unit.members, &fit.kernels));
            trial.moved = Some(moved.collect::<Result<_>>()?);
        }
        calibrated.trials.keep(key, &trial);
        trial.moved.take_if(|_| !wanted);
        Ok(trial)
    }

    /// Factors at some ranks, ascending.
    fn fit(&self, unit: &Unit, convs: &[Conv], sights: &[Sight], ranks: &BTreeSet<usize>) -> Result<Vec<Fit>> {
        let kernels = Members { convs, members: &unit.members };
        let Some(sights) = all_see(&unit.members, sights) else {
            let fits = ranks.iter().map(|&rank| {
                let dealt = unit.form.ranks(rank);
                let factors = factor::factorize(&unit.chains, &kernels, &dealt, PROBE_SWEEPS, &self.analysis);
                let factors = factors.map_err(|e| kernels.failed(e))?;
                Ok(Fit {
                    errors: self.by_member(unit, |part| self.analysis.member_error(part, &dealt)),
                    kernels: kernels.reconstruct(&factors).collect(),
                })
            });
            return fits.collect();
        };
        let judged = Judged::new(&unit.chains, &unit.members, sights).map_err(|e| kernels.failed(e))?;
        let fits = ranks.iter().map(|&rank| {
            let (dealt, seen) = (unit.form.ranks(rank), judged.seen());
            let solved =
                factor::factorize_calibrated(&unit.chains, &kernels, &seen, &dealt, PROBE_SWEEPS, &self.analysis);
            let (factors, errors) = solved.map_err(|e| kernels.failed(e))?;
            Ok(Fit {
                errors: self.by_member(unit, |part| errors[part]),
                kernels: kernels.reconstruct(&factors).collect(),
            })
        });
        fits.collect()
    }

    /// An error of each kernel as one of each member.
    fn by_member(&self, unit: &Unit, error: impl Fn(usize) -> f64) -> Vec<f64> {
        unit.parts.iter().map(|parts| self.analysis.mean_error(parts.clone(), &error)).collect()
    }

    fn spectral(&self, unit: &Unit, member: usize, rank: usize) -> f64 {
        let ranks = unit.form.ranks(rank);
        self.analysis.mean_error(unit.parts[member].clone(), |part| self.analysis.member_error(part, &ranks)).max(1e-12)
    }

    /// Relative squared error of one member at a rank.
    pub(super) fn member_error(&self, unit: &Unit, member: usize, rank: usize) -> f64 {
        let spectral = self.spectral(unit, member, rank);
        spectral * between(&self.corrections, rank, |c| c[member])
    }

    /// Takes from a trial what its members do together. Less than the sum of each is taken for luck.
    pub(super) fn interact(&mut self, unit: &Unit, trial: &Trial, effects: &BTreeMap<usize, Effect>) {
        let moved = trial.moved.iter().flatten();
        let each = self.corrections.iter().zip(&trial.errors).zip(moved).map(|(((rank, _), errors), together)| {
            let alone = unit.members.iter().zip(errors).map(|(m, &error)| effects.get(m).map_or(0.0, |e| e.at(error)));
            let alone: f64 = alone.sum();
            (*rank, if alone > 0.0 { (together / alone).max(1.0) } else { 1.0 })
        });
        self.interactions = each.collect();
    }

    /// Takes the unit out of what is chosen from.
    pub(super) fn drop(&mut self) {
        self.dropped = true;
    }

    pub(super) fn dropped(&self) -> bool {
        self.dropped
    }

    /// How much more than the sum of its members' effects a unit's effect is.
    pub(super) fn interaction(&self, rank: usize) -> f64 {
        between(&self.interactions, rank, |&i| i)
    }

    /// Relative squared error of the whole unit that the spectra predict.
    pub(super) fn group_error(&self, unit: &Unit, rank: usize) -> f64 {
        let energy = self.analysis.energy();
        if energy > 0.0 { self.analysis.error(&unit.form.ranks(rank)) / energy } else { 0.0 }
    }
}

/// A value known at some ranks, in between linearly, beyond as at the last; one if none is known.
fn between<T>(known: &[(usize, T)], rank: usize, value: impl Fn(&T) -> f64) -> f64 {
    let above = known.partition_point(|k| k.0 < rank);
    match (above.checked_sub(1).map(|i| &known[i]), known.get(above)) {
        (Some((r0, a)), Some((r1, b))) => {
            let share = (rank - r0) as f64 / (r1 - r0) as f64;
            value(a) + share * (value(b) - value(a))
        }
        (Some((_, v)), None) | (None, Some((_, v))) => value(v),
        (None, None) => 1.0,
    }
}

/// How far the network's output moves by the relative error of one convolution: measured points, in between a power law.
#[derive(Debug, Clone, Default)]
pub(super) struct Effect {
    /// `(relative error, movement)`, both ascending.
    points: Vec<(f64, f64)>,
}

impl Effect {
    /// From the trial of the convolution's probe.
    pub(super) fn new(trial: &Trial) -> Self {
        let mut points: Vec<(f64, f64)> = Vec::new();
        let each = trial.errors.iter().flatten().zip(trial.moved.iter().flatten());
        let mut each: Vec<(f64, f64)> = each.map(|(error, moved)| (error.max(1e-12), moved.max(1e-12))).collect();
        // From the largest rank, the smallest error, on.
        each.reverse();
        for (error, moved) in each {
            // A larger error that moves less is the luck of few images.
            if points.last().is_none_or(|p| p.0 < error && p.1 < moved) {
                points.push((error, moved));
            }
        }
        Self { points }
    }

    pub(super) fn at(&self, error: f64) -> f64 {
        if error <= 0.0 {
            return 0.0;
        }
        let above = self.points.partition_point(|p| p.0 < error);
        match (above.checked_sub(1).map(|i| self.points[i]), self.points.get(above)) {
            (Some((e0, m0)), Some(&(e1, m1))) => {
                let share = (error / e0).ln() / (e1 / e0).ln();
                m0 * (m1 / m0).powf(share)
            }
            (None, Some(&(e, m))) | (Some((e, m)), None) => m * error / e,
            (None, None) => error,
        }
    }
}
