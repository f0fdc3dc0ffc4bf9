//! Bounds on how far a result may be from the original.

use crate::error::{Error, Result};
use crate::report::Approximation;

/// Bounds on the approximation error.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Gates {
    /// Least signal-to-noise ratio in dB, on the seeded inputs.
    pub min_snr: Option<f64>,
    /// Least share of equal top-1 classes: on the images if there are any, else on the seeded inputs.
    pub min_agreement: Option<f64>,
}

/// What follows from a gate that is not met.
pub(crate) const SMALLER: &str = "nothing was written; ask for a smaller ratio";

#[cfg(feature = "tune")]
pub(crate) const LONGER: &str = "nothing was written; tune longer, or a model of a smaller ratio";

impl Gates {
    /// Refuses, before any work, bounds that are none.
    pub(crate) fn sound(&self) -> Result<()> {
        if self.min_snr.is_some_and(f64::is_nan) {
            return Err(Error::Options("--min-snr must be a number".into()));
        }
        if self.min_agreement.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(Error::Options("--min-agreement must be from 0 to 1".into()));
        }
        Ok(())
    }

    /// Holds what was measured against the bounds; `agreement` is the share of equal top-1 classes, where there is one.
    pub(crate) fn check(
        &self,
        approximation: Option<Approximation>,
        agreement: Option<f64>,
        advice: &'static str,
    ) -> Result<()> {
        let gate = |measure: &'static str, found: String, asked: String| Error::Gate { measure, found, asked, advice };
        if let Some(least) = self.min_snr {
            if let Some(broken) = approximation.map(|a| a.broken).filter(|broken| *broken > 0) {
                let found = format!("not defined, as {broken} values are finite in one and not in the other");
                return Err(gate("the signal-to-noise ratio", found, format!("{least} dB or more")));
            }
            let snr = approximation.map_or(f64::INFINITY, |a| a.snr_db.unwrap_or(f64::INFINITY));
            if snr < least {
                return Err(gate("the signal-to-noise ratio", format!("{snr:.2} dB"), format!("{least} dB or more")));
            }
        }
        if let Some(least) = self.min_agreement {
            let missing = || Error::Options("--min-agreement needs a model whose first output is class scores".into());
            let share = agreement.ok_or_else(missing)?;
            if share < least {
                return Err(gate("the top-1 agreement", format!("{share:.4}"), format!("{least} or more")));
            }
        }
        Ok(())
    }
}
