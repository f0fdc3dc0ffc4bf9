//! From stored pixels to what a model reads: scale, mean, deviation and the order of the axes.

use crate::error::{Error, Result};
use crate::onnx::Elements;
use crate::onnx::PixelRange;
use serde::{Deserialize, Serialize};

/// How pixels are turned into what a model reads: `(scale·x − mean) / std`, channel by channel. What is left out comes from
/// the preset, and without any of these from the model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocessing {
    /// A known combination of the three values.
    pub preset: Option<Preset>,
    /// Pixels are multiplied by this first; by default bytes by 1/255 and floats by 1.
    pub scale: Option<f32>,
    /// Then this is subtracted: one value, or one a channel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mean: Vec<f32>,
    /// Then this is divided by: one value, or one a channel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub std: Vec<f32>,
    /// Axes of the arrays given, where their shape does not tell.
    pub layout: Option<Layout>,
}

/// Combinations of scale, mean and deviation that networks are trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// 0 to 1, mean 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225.
    #[serde(rename = "imagenet")]
    ImageNet,
    /// 0 to 1, mean 0.4914, 0.4822, 0.4465, deviation 0.2470, 0.2435, 0.2616.
    #[serde(rename = "cifar")]
    Cifar,
    /// 0 to 1.
    #[serde(rename = "0-1")]
    ZeroToOne,
    /// 0 to 255.
    #[serde(rename = "0-255")]
    Bytes,
    /// −1 to 1.
    #[serde(rename = "-1-1")]
    MinusOneToOne,
}

/// Order of an image's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Channels, height, width.
    Nchw,
    /// Height, width, channels.
    Nhwc,
}

impl Preset {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageNet => "imagenet",
            Self::Cifar => "cifar",
            Self::ZeroToOne => "0-1",
            Self::Bytes => "0-255",
            Self::MinusOneToOne => "-1-1",
        }
    }

    fn values(self) -> (Option<f32>, &'static [f32], &'static [f32]) {
        match self {
            Self::ImageNet => (None, &[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225]),
            Self::Cifar => (None, &[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616]),
            Self::ZeroToOne => (None, &[], &[]),
            Self::Bytes => (Some(1.0), &[], &[]),
            Self::MinusOneToOne => (None, &[0.5], &[0.5]),
        }
    }
}

impl Preprocessing {
    /// The map that these options ask for.
    pub(super) fn affine(&self) -> Affine {
        let (scale, mean, std) = self.preset.unwrap_or(Preset::ZeroToOne).values();
        let or = |own: &[f32], preset: &[f32]| if own.is_empty() { preset.to_vec() } else { own.to_vec() };
        Affine { scale: self.scale.or(scale), mean: or(&self.mean, mean), std: or(&self.std, std) }
    }

    /// Whether nothing is said of the values, so that they have to be assumed.
    pub(super) fn is_open(&self) -> bool {
        self.preset.is_none() && self.scale.is_none() && self.mean.is_empty() && self.std.is_empty()
    }

    /// # Errors
    /// [`Error::Options`] for values that make no pixel a number.
    pub(crate) fn check(&self) -> Result<()> {
        let usable = |x: f32| x.is_finite() && x != 0.0;
        if !self.std.iter().all(|&s| usable(s)) || self.mean.iter().any(|m| !m.is_finite()) {
            return Err(Error::Options("--mean and --std must be finite and --std not zero".into()));
        }
        if !self.scale.is_none_or(usable) {
            return Err(Error::Options("--scale must be finite and not zero".into()));
        }
        Ok(())
    }
}

/// What is assumed where nothing is said, and why.
pub(super) fn assumed(range: Option<PixelRange>, bytes: bool, pictures: Option<usize>) -> (Preset, &'static str) {
    match (range, pictures) {
        (Some(PixelRange::Bytes), _) => (Preset::Bytes, "the model normalises bytes itself"),
        (Some(PixelRange::Unit), _) => (Preset::ZeroToOne, "the model normalises itself"),
        (None, _) if bytes => (Preset::Bytes, "the model reads bytes"),
        (None, Some(3)) => (Preset::ImageNet, "as most networks for colour pictures"),
        (None, _) => (Preset::ZeroToOne, "bytes / 255, floats as they are"),
    }
}

/// `(scale·x − mean) / std`.
#[derive(Debug, Clone, Default)]
pub(super) struct Affine {
    scale: Option<f32>,
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Affine {
    /// The sentence that says why it cannot be applied to so many channels.
    pub(super) fn misfit(&self, channels: usize) -> Option<String> {
        let named = [("--mean", &self.mean), ("--std", &self.std)];
        let (name, values) = named.into_iter().find(|(_, v)| v.len() > 1 && v.len() != channels)?;
        Some(format!("{name} has {} values for {channels} channels: give one, or one a channel", values.len()))
    }

    /// Bytes and floats scaled.
    pub(super) fn scaled(&self, values: Elements) -> Vec<f32> {
        match (values, self.scale) {
            (Elements::Bytes(bytes), None) => bytes.into_iter().map(|b| f32::from(b) / 255.0).collect(),
            (Elements::Bytes(bytes), Some(scale)) => bytes.into_iter().map(|b| scale * f32::from(b)).collect(),
            (Elements::Floats(values) | Elements::Integers(values), None) => values,
            (Elements::Floats(values) | Elements::Integers(values), Some(scale)) => {
                values.into_iter().map(|x| scale * x).collect()
            }
        }
    }

    /// Mean and deviation of scaled values, `channel_of` an element's place.
    pub(super) fn normalise(&self, values: &mut [f32], channel_of: impl Fn(usize) -> usize) {
        let of = |all: &[f32], channel: usize, none: f32| match all {
            [] => none,
            [one] => *one,
            many => many[channel],
        };
        if self.mean.is_empty() && self.std.is_empty() {
            return;
        }
        for (place, x) in values.iter_mut().enumerate() {
            let channel = channel_of(place);
            *x = (*x - of(&self.mean, channel, 0.0)) / of(&self.std, channel, 1.0);
        }
    }
}
