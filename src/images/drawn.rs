//! Pictures that nobody took: *dead leaves*, discs of many sizes that hide each other.
//!
//! With radii of density `p(r) ∝ r⁻³` a picture looks alike at every scale, as photographs do: its power spectrum falls as
//! `1/f²`, and it has what convolutions answer to, which noise lacks: edges, corners and surfaces (Ruderman 1997; Lee,
//! Mumford and Huang 2001). What a calibration needs of real images is that, and that pictures differ in brightness, contrast
//! and colour; what they show matters less.

use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;
use std::f32::consts::TAU;

/// Smallest radius as a share of the picture's shorter side, at least one pixel; drawn evenly in its logarithm, as pictures
/// are near or far, busy or calm.
const SMALLEST: [f32; 2] = [0.03, 0.15];
/// Largest radius, likewise.
const LARGEST: [f32; 2] = [0.5, 2.0];
/// Brightness of the middle tone: its mean and its spread from picture to picture.
const BRIGHTNESS: [f32; 2] = [0.45, 0.13];
/// Spread of the discs' brightness in a picture: its median, and the spread of its logarithm from picture to picture.
const CONTRAST: [f32; 2] = [0.24, 0.35];
/// Spread of colour along blue–yellow and green–magenta as shares of the contrast, as principal components of photographs.
const CHROMA: [f32; 2] = [0.14, 0.06];
/// Directions of those in red, green and blue, of length √3 as that of brightness.
const AXES: [[f32; 3]; 2] = [[1.225, 0.0, -1.225], [0.707, -1.414, 0.707]];
/// Share of colour that a whole picture has in common.
const TINT: f32 = 0.5;
/// Spread of the slope of brightness across a disc, as a share of the contrast.
const SLOPE: f32 = 0.4;
/// Mean spread of the texture inside a disc, as a share of the contrast.
const TEXTURE: f32 = 0.25;
/// Spread of the final blur in pixels, drawn evenly between these.
const BLUR: [f32; 2] = [0.3, 0.6];
/// A pixel of which less than this shows through is covered.
const COVERED: f32 = 1.0 / 256.0;
/// Discs may cover the picture this many times; what is bare then shows the middle tone.
const LAYERS: f32 = 40.0;

/// Picture `index` of a seed: rows of pixels of `channels` bytes. It depends on no other picture.
pub(super) fn draw(seed: u64, index: u64, height: usize, width: usize, channels: usize) -> Vec<u8> {
    // Far apart for neighbouring indices, and hashed again by the generator.
    let mut rng = Pcg64Mcg::seed_from_u64(seed ^ (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let picture = Picture::new(height, width, &mut rng);
    let mut colours = picture.leaves(&mut rng);
    blur(&mut colours, height, width, between(BLUR, &mut rng));
    let bytes = colours.iter().flat_map(|colour| {
        let [r, g, b] = colour.map(|c| (c.clamp(0.0, 1.0) * 255.0).round() as u8);
        let grey = (colour.iter().sum::<f32>() / 3.0).clamp(0.0, 1.0) * 255.0;
        let pixel = if channels == 1 { [grey.round() as u8, 0, 0, 0] } else { [r, g, b, 255] };
        pixel.into_iter().take(channels)
    });
    bytes.collect()
}

fn normal(rng: &mut Pcg64Mcg) -> f32 {
    StandardNormal.sample(rng)
}

fn between([low, high]: [f32; 2], rng: &mut Pcg64Mcg) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

/// What the discs of one picture have in common.
struct Picture {
    height: usize,
    width: usize,
    /// Smallest and largest radius.
    radii: [f32; 2],
    middle: [f32; 3],
    contrast: f32,
    texture: Vec<f32>,
}

impl Picture {
    fn new(height: usize, width: usize, rng: &mut Pcg64Mcg) -> Self {
        let side = height.min(width) as f32;
        let radii = [SMALLEST, LARGEST].map(|range| (between(range.map(f32::ln), rng).exp() * side).max(1.0));
        let contrast = (CONTRAST[0] * (CONTRAST[1] * normal(rng)).exp()).min(0.5);
        let bright = BRIGHTNESS[0] + BRIGHTNESS[1] * normal(rng);
        let middle = colour(bright, TINT.sqrt() * contrast, rng);
        Self { height, width, radii, middle, contrast, texture: texture(height, width, rng) }
    }

    /// Discs from the nearest to the farthest, each where something still shows through, until the picture is covered.
    fn leaves(&self, rng: &mut Pcg64Mcg) -> Vec<[f32; 3]> {
        let (height, width) = (self.height as f32, self.width as f32);
        let mut colours = vec![[0.0f32; 3]; self.height * self.width];
        let mut bare = vec![1.0f32; colours.len()];
        let (mut left, mut painted) = (colours.len(), 0.0);
        let inverse = |r: f32| r.powi(-2);
        while left > 0 && painted < LAYERS * height * width {
            // The inverse of the distribution function of p(r) ∝ r⁻³.
            let radius = between(self.radii.map(inverse), rng).powf(-0.5);
            // Centres outside count as far as discs reach, or the rim would be covered less often.
            let centre = [height, width].map(|side| between([-radius, side + radius], rng));
            // … and that larger field takes more discs of a large radius; the excess of small ones is dropped.
            let field = |r: f32| (height + 2.0 * r) * (width + 2.0 * r);
            if rng.random::<f32>() > field(radius) / field(self.radii[1]) {
                continue;
            }
            painted += TAU / 2.0 * radius * radius;
            let leaf = Leaf::new(self, radius, rng);
            let span = |middle: f32, side: usize| {
                let from = (middle - radius).floor().max(0.0) as usize;
                from..((middle + radius).ceil().max(0.0) as usize + 1).min(side)
            };
            for y in span(centre[0], self.height) {
                for x in span(centre[1], self.width) {
                    let at = y * self.width + x;
                    if bare[at] < COVERED {
                        continue;
                    }
                    let [dy, dx] = [y as f32 + 0.5 - centre[0], x as f32 + 0.5 - centre[1]];
                    let cover = (radius + 0.5 - dy.hypot(dx)).clamp(0.0, 1.0);
                    let colour = leaf.at(self, y, x, dy, dx);
                    for (sum, part) in colours[at].iter_mut().zip(colour) {
                        *sum += bare[at] * cover * part;
                    }
                    bare[at] *= 1.0 - cover;
                    left -= usize::from(bare[at] < COVERED);
                }
            }
        }
        for (colour, bare) in colours.iter_mut().zip(bare) {
            colour.iter_mut().zip(self.middle).for_each(|(sum, middle)| *sum += bare * middle);
        }
        colours
    }
}

/// A colour of this brightness, its chroma drawn for a contrast.
fn colour(bright: f32, contrast: f32, rng: &mut Pcg64Mcg) -> [f32; 3] {
    let shifts = CHROMA.map(|share| share * contrast * normal(rng));
    [0, 1, 2].map(|c| bright + shifts[0] * AXES[0][c] + shifts[1] * AXES[1][c])
}

/// One disc: a colour, how it changes across, and its texture.
struct Leaf {
    colour: [f32; 3],
    slope: [f32; 2],
    texture: f32,
    offset: [usize; 2],
}

impl Leaf {
    fn new(picture: &Picture, radius: f32, rng: &mut Pcg64Mcg) -> Self {
        let mut own = colour(picture.contrast * normal(rng), (1.0 - TINT).sqrt() * picture.contrast, rng);
        own.iter_mut().zip(picture.middle).for_each(|(c, middle)| *c += middle);
        let (angle, steep) = (between([0.0, TAU], rng), SLOPE * picture.contrast * normal(rng) / radius);
        // Most surfaces are smooth and some are rough.
        let rough = -(1.0 - rng.random::<f32>()).ln();
        Self {
            colour: own,
            slope: [steep * angle.sin(), steep * angle.cos()],
            texture: TEXTURE * picture.contrast * rough,
            offset: [rng.random_range(0..picture.height), rng.random_range(0..picture.width)],
        }
    }

    /// The colour at pixel `y, x`, which is `dy, dx` from the centre.
    fn at(&self, picture: &Picture, y: usize, x: usize, dy: f32, dx: f32) -> [f32; 3] {
        let (v, u) = ((y + self.offset[0]) % picture.height, (x + self.offset[1]) % picture.width);
        let more = self.slope[0] * dy + self.slope[1] * dx + self.texture * picture.texture[v * picture.width + u];
        self.colour.map(|c| c + more)
    }
}

/// Noise of amplitude `1/f` and unit variance that continues at its borders: one octave of smooth noise for each halving.
fn texture(height: usize, width: usize, rng: &mut Pcg64Mcg) -> Vec<f32> {
    let mut sum = vec![0.0f32; height * width];
    let mut cells = 1;
    while cells <= height.max(width) {
        let grid: Vec<f32> = (0..cells * cells).map(|_| normal(rng)).collect();
        let place = |at: usize, side: usize| {
            let exact = at as f32 * cells as f32 / side as f32;
            let cell = (exact as usize).min(cells - 1);
            (cell, (cell + 1) % cells, exact - cell as f32)
        };
        for y in 0..height {
            let (top, bottom, v) = place(y, height);
            for x in 0..width {
                let (left, right, u) = place(x, width);
                let row = |r: usize| grid[r * cells + left] * (1.0 - u) + grid[r * cells + right] * u;
                // Equal power in every octave is amplitude 1/f in two dimensions.
                sum[y * width + x] += row(top) * (1.0 - v) + row(bottom) * v;
            }
        }
        cells *= 2;
    }
    let count = sum.len() as f32;
    let mean = sum.iter().sum::<f32>() / count;
    let spread = (sum.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count).sqrt().max(f32::MIN_POSITIVE);
    sum.iter_mut().for_each(|x| *x = (*x - mean) / spread);
    sum
}

/// A Gaussian blur, the border repeated.
fn blur(colours: &mut Vec<[f32; 3]>, height: usize, width: usize, spread: f32) {
    let weights = [-2.0f32, -1.0, 0.0, 1.0, 2.0].map(|d| (-0.5 * (d / spread).powi(2)).exp());
    let total: f32 = weights.iter().sum();
    let pass = |from: &[[f32; 3]], step: usize, side: usize, place: &dyn Fn(usize) -> usize| {
        let blurred = (0..from.len()).map(|at| {
            let here = place(at);
            let mut sum = [0.0f32; 3];
            for (shift, weight) in weights.iter().enumerate() {
                let there = (here + shift).saturating_sub(2).min(side - 1);
                let pixel = from[at - here * step + there * step];
                sum.iter_mut().zip(pixel).for_each(|(s, p)| *s += weight / total * p);
            }
            sum
        });
        blurred.collect::<Vec<_>>()
    };
    let across = pass(colours, 1, width, &|at| at % width);
    *colours = pass(&across, width, height, &|at| at / width);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 64;

    fn pictures(count: u64) -> Vec<Vec<f64>> {
        let picture = |index| draw(3, index, SIDE, SIDE, 3).into_iter().map(|b| f64::from(b) / 255.0).collect();
        (0..count).map(picture).collect()
    }

    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (mean, (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt())
    }

    #[test]
    fn a_picture_depends_on_its_seed_and_number_alone() {
        let all: Vec<_> = (0..4).map(|i| draw(7, i, 24, 40, 3)).collect();
        assert!(all.iter().all(|p| p.len() == 24 * 40 * 3));
        assert!(draw(7, 2, 24, 40, 3) == all[2] && all[2] != all[3] && draw(8, 2, 24, 40, 3) != all[2]);
        // Grey and with alpha it is the same picture.
        let opaque = draw(7, 2, 24, 40, 4);
        assert!(opaque.chunks(4).zip(all[2].chunks(3)).all(|(a, b)| a[..3] == *b && a[3] == 255));
        let grey = draw(7, 2, 24, 40, 1);
        let near = |(g, p): (&u8, &[u8])| {
            // Where no channel is clipped, grey is their mean.
            let sum: f64 = p.iter().map(|&b| f64::from(b)).sum();
            p.iter().any(|&b| b == 0 || b == 255) || (f64::from(*g) - sum / 3.0).abs() <= 1.0
        };
        assert!(grey.iter().zip(all[2].chunks(3)).all(near));
    }

    #[test]
    fn pictures_differ_in_brightness_and_contrast_and_are_rarely_clipped() {
        let all = pictures(64);
        let (means, spreads): (Vec<f64>, Vec<f64>) = all.iter().map(|p| moments(p)).unzip();
        let ((bright, varied), (contrast, more)) = (moments(&means), moments(&spreads));
        assert!((0.4..0.55).contains(&bright) && varied > 0.08, "{bright} ± {varied}");
        assert!((0.12..0.3).contains(&contrast) && more > 0.03, "{contrast} ± {more}");
        let clipped = all.iter().flatten().filter(|&&x| x == 0.0 || x == 1.0).count();
        assert!(clipped * 8 < all.len() * SIDE * SIDE * 3, "{clipped}");
    }

    #[test]
    fn channels_go_together_as_in_photographs() {
        let all = pictures(64);
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let channel = |c: usize| all.iter().flatten().skip(c).step_by(3).copied().collect::<Vec<_>>();
            let (x, y) = (channel(a), channel(b));
            let ((mx, sx), (my, sy)) = (moments(&x), moments(&y));
            let inner = x.iter().zip(&y).map(|(p, q)| (p - mx) * (q - my)).sum::<f64>() / x.len() as f64;
            let correlation = inner / (sx * sy);
            assert!((0.8..0.995).contains(&correlation), "channels {a} and {b}: {correlation}");
        }
    }

    #[test]
    fn power_falls_with_the_square_of_the_frequency() {
        let side = SIDE as f64;
        let turn = |k: usize, n: usize| (std::f64::consts::TAU * (k * n % SIDE) as f64 / side).sin_cos();
        let mut power = vec![(0.0, 0.0); SIDE / 2];
        for picture in pictures(24) {
            let grey: Vec<f64> = picture.chunks(3).map(|p| p.iter().sum::<f64>() / 3.0).collect();
            let (mean, _) = moments(&grey);
            // A window, as the picture does not continue at its borders.
            let window = |at: usize| (std::f64::consts::PI * (at as f64 + 0.5) / side).sin().powi(2);
            let windowed = |y: usize, x: usize| (grey[y * SIDE + x] - mean) * window(y) * window(x);
            let mut rows = vec![(0.0, 0.0); SIDE * SIDE];
            for y in 0..SIDE {
                for k in 0..SIDE / 2 {
                    for x in 0..SIDE {
                        let (sin, cos) = turn(k, x);
                        rows[y * SIDE + k].0 += windowed(y, x) * cos;
                        rows[y * SIDE + k].1 -= windowed(y, x) * sin;
                    }
                }
            }
            for k in 0..SIDE / 2 {
                for l in 0..SIDE {
                    let (mut re, mut im) = (0.0, 0.0);
                    for y in 0..SIDE {
                        let ((sin, cos), (a, b)) = (turn(l, y), rows[y * SIDE + k]);
                        re += a * cos + b * sin;
                        im += b * cos - a * sin;
                    }
                    let vertical = l.min(SIDE - l) as f64;
                    let bin = vertical.hypot(k as f64).round() as usize;
                    if bin < SIDE / 2 {
                        power[bin].0 += re * re + im * im;
                        power[bin].1 += 1.0;
                    }
                }
            }
        }
        let points: Vec<(f64, f64)> =
            (3..SIDE / 2 - 6).map(|f| ((f as f64).ln(), (power[f].0 / power[f].1).ln())).collect();
        let (mean_x, _) = moments(&points.iter().map(|p| p.0).collect::<Vec<_>>());
        let slope = points.iter().map(|p| (p.0 - mean_x) * p.1).sum::<f64>()
            / points.iter().map(|p| (p.0 - mean_x).powi(2)).sum::<f64>();
        assert!((-3.0..-1.5).contains(&slope), "{slope}");
    }
}
