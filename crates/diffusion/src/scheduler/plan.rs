//! Which part of a schedule a job goes through.
//!
//! Source: `get_timesteps` of `pipeline_stable_diffusion_xl_img2img.py` and the cutoffs of `denoising_end` there and in
//! `pipeline_stable_diffusion_xl.py`, diffusers 0.42.

use std::ops::Range;

use crate::error::BeginError;

/// What is asked of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Steps of the whole way from noise to picture.
    pub(crate) steps: usize,
    /// Of the whole way, the share at the end that a picture to start from is led through; above 0, up to 1.
    pub(crate) strength: Option<f32>,
    /// The share of the whole way that another model has already gone (`denoising_start`), between 0 and 1. The
    /// strength means nothing then.
    pub(crate) start: Option<f32>,
    /// The share of the whole way after which another model goes on (`denoising_end`), between 0 and 1.
    pub(crate) end: Option<f32>,
    /// How much of each step's noise is fresh, 0 to 1, with DDIM (its eta) and TCD (its gamma); none by default, as in
    /// diffusers' pipelines. The other schedules have no such choice.
    pub(crate) eta: Option<f32>,
}

/// What of a plan cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} is {value}: {reason}")]
pub(crate) struct PlanError {
    /// As the request calls it.
    pub(crate) field: &'static str,
    pub(crate) value: String,
    /// What is in range.
    pub(crate) reason: String,
}

impl PlanError {
    pub(super) fn new(
        field: &'static str,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            field,
            value: value.to_string(),
            reason: reason.into(),
        }
    }
}

impl From<PlanError> for BeginError {
    fn from(error: PlanError) -> Self {
        let PlanError {
            field,
            value,
            reason,
        } = error;
        Self::Parameter {
            field,
            value,
            reason,
        }
    }
}

/// The number that was meant: 0.7 in f32 is a little less than the 0.7 that Python computes with, and would lose a step.
pub(super) fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

impl Plan {
    /// Checks what does not depend on the schedule.
    pub(super) fn check(&self, most_steps: usize) -> Result<(), PlanError> {
        if !(1..=most_steps).contains(&self.steps) {
            let reason = format!("expected 1 to {most_steps}");
            return Err(PlanError::new("steps", self.steps, reason));
        }
        let eta = self.eta.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&eta) {
            return Err(PlanError::new("eta", eta, "expected 0 to 1"));
        }
        if let Some(strength) = self.strength
            && !(strength > 0.0 && strength <= 1.0)
        {
            let reason = "expected more than 0 and at most 1";
            return Err(PlanError::new("strength", strength, reason));
        }
        let ends = [("denoising_start", self.start), ("denoising_end", self.end)];
        for (field, share) in ends {
            if let Some(share) = share
                && !(share > 0.0 && share < 1.0)
            {
                let reason = "expected more than 0 and less than 1";
                return Err(PlanError::new(field, share, reason));
            }
        }
        if let (Some(start), Some(end)) = (self.start, self.end)
            && start >= end
        {
            let reason = format!("expected less than denoising_end, which is {end}");
            return Err(PlanError::new("denoising_start", start, reason));
        }
        Ok(())
    }

    /// Which of all evaluations take part. `order` is how many there are a step: 2 means each timestep but the first
    /// comes twice.
    pub(super) fn part(
        &self,
        timesteps: &[f32],
        order: usize,
        train_steps: usize,
    ) -> Result<Range<usize>, PlanError> {
        let cutoff = |share: f32| {
            let train = train_steps as f64;
            (train - as_written(share) * train).round_ties_even() as f32
        };
        let begin = if let Some(share) = self.start {
            let cutoff = cutoff(share);
            let mut left = timesteps.iter().filter(|t| **t < cutoff).count();
            if order == 2 && left.is_multiple_of(2) {
                // Not between the two halves of a step.
                left += 1;
            }
            timesteps.len().saturating_sub(left)
        } else {
            let strength = as_written(self.strength.unwrap_or(1.0));
            let left = (self.steps as f64 * strength) as usize;
            self.steps.saturating_sub(left) * order
        };
        let Some(rest) = timesteps.get(begin..).filter(|rest| !rest.is_empty()) else {
            return Err(match (self.start, self.strength) {
                (Some(share), _) => self.empty("denoising_start", share),
                (None, strength) => self.empty("strength", strength.unwrap_or(1.0)),
            });
        };
        let Some(share) = self.end else {
            return Ok(begin..timesteps.len());
        };
        let cutoff = cutoff(share);
        match rest.iter().filter(|t| **t >= cutoff).count() {
            0 => Err(self.empty("denoising_end", share)),
            count => Ok(begin..begin + count),
        }
    }

    fn empty(&self, field: &'static str, share: f32) -> PlanError {
        let reason = format!("of {} steps none is left", self.steps);
        PlanError::new(field, share, reason)
    }
}
