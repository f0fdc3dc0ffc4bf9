//! Charts: lines and bars over two axes.

use maud::{Markup, html};

/// An axis: the values at its ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) logarithmic: bool,
}

impl Scale {
    /// Where a value stands between the ends.
    fn at(self, value: f64) -> f64 {
        let of = |v: f64| if self.logarithmic { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let range = of(self.high) - of(self.low);
        if range > 0.0 { ((of(value) - of(self.low)) / range).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Values to write at the axis: powers of ten (and, where these are few, values between), or round steps.
    fn ticks(self, most: usize) -> Vec<f64> {
        let within = |v: &f64| *v >= self.low * (1.0 - 1e-9) && *v <= self.high * (1.0 + 1e-9);
        if self.logarithmic {
            let powers = || (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
            let tens: Vec<f64> = powers().map(|p| 10f64.powi(p)).filter(within).collect();
            if tens.len() > 2 {
                let every = tens.len().div_ceil(most);
                return tens.into_iter().rev().step_by(every).collect();
            }
            return powers().flat_map(|p| WITHIN_TEN.map(|m| m * 10f64.powi(p))).filter(within).collect();
        }
        let rough = (self.high - self.low).max(f64::MIN_POSITIVE) / most as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|v| *v <= self.high + step * 1e-9).collect()
    }
}

/// Where a logarithmic axis of few powers is marked.
const WITHIN_TEN: [f64; 7] = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0];

/// A chart's frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) x: Scale,
    pub(super) y: Scale,
    pub(super) x_title: &'static str,
    pub(super) y_title: &'static str,
    /// Ticks below.
    pub(super) ticks: usize,
    /// Whether these are counts, with nothing between them.
    pub(super) whole: bool,
}

const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 36.0;

impl Frame {
    pub(super) fn px(&self, x: f64) -> f64 {
        LEFT + self.x.at(x) * (self.width - LEFT - RIGHT)
    }

    pub(super) fn py(&self, y: f64) -> f64 {
        self.height - BOTTOM - self.y.at(y) * (self.height - TOP - BOTTOM)
    }

    /// A line through points.
    pub(super) fn line(&self, points: &[(f64, f64)], class: &str) -> Markup {
        let each = points.iter().map(|&(x, y)| format!("{:.1} {:.1}", self.px(x), self.py(y)));
        html! { path class=(format!("line {class}")) d=(format!("M{}", each.collect::<Vec<_>>().join("L"))) {} }
    }

    /// A marked point that says something when it is pointed at.
    pub(super) fn dot(&self, (x, y): (f64, f64), class: &str, told: &str) -> Markup {
        html! {
            circle class=(format!("dot {class}")) cx=(format!("{:.1}", self.px(x))) cy=(format!("{:.1}", self.py(y))) r="3.6" {
                title { (told) }
            }
        }
    }

    /// A bar from the axis up.
    pub(super) fn bar(&self, (x, y): (f64, f64), width: f64, class: &str, told: &str) -> Markup {
        let (x, y) = (self.px(x) - width / 2.0, self.py(y));
        let height = (self.height - BOTTOM - y).max(0.5);
        html! {
            rect class=(format!("bar {class}")) x=(format!("{x:.1}")) y=(format!("{y:.1}")) width=(format!("{width:.1}")) height=(format!("{height:.1}")) {
                title { (told) }
            }
        }
    }

    /// A word at a point.
    pub(super) fn word(&self, (x, y): (f64, f64), class: &str, word: &str) -> Markup {
        html! { text class=(class) x=(format!("{:.1}", self.px(x))) y=(format!("{:.1}", self.py(y))) { (word) } }
    }

    /// Axes with what is drawn between them.
    pub(super) fn draw(&self, label: &str, content: &Markup) -> Markup {
        let (bottom, right) = (self.height - BOTTOM, self.width - RIGHT);
        html! {
            svg.chart viewBox=(format!("0 0 {:.0} {:.0}", self.width, self.height)) role="img" aria-label=(label) {
                @for y in self.y.ticks(5) {
                    path.grid d=(format!("M{LEFT:.1} {0:.1}H{right:.1}", self.py(y))) {}
                    text.tick.left x=(format!("{:.1}", LEFT - 6.0)) y=(format!("{:.1}", self.py(y) + 3.5)) { (number(y, self.y.logarithmic)) }
                }
                @for x in self.x.ticks(self.ticks).into_iter().filter(|x| !self.whole || x.fract() == 0.0) {
                    text.tick x=(format!("{:.1}", self.px(x))) y=(format!("{:.1}", bottom + 15.0)) { (number(x, false)) }
                }
                path.axis d=(format!("M{LEFT:.1} {bottom:.1}H{right:.1}")) {}
                text.tick.title x=(format!("{:.1}", f64::midpoint(LEFT, right))) y=(format!("{:.1}", self.height - 4.0)) { (self.x_title) }
                text.tick.left.title x=(format!("{:.1}", LEFT - 40.0)) y="10" style="text-anchor:start" { (self.y_title) }
                (content)
            }
        }
    }
}

/// A number as short as it can be; powers of ten as such.
fn number(value: f64, power: bool) -> String {
    if power && value < 0.5 {
        let exponent = value.log10().round() as i32;
        let digits = exponent.unsigned_abs().to_string();
        let raised =
            digits.chars().map(|d| ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][d as usize - '0' as usize]);
        return format!("10⁻{}", raised.collect::<String>());
    }
    let rounded = format!("{value:.3}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = |low, high, logarithmic| Scale { low, high, logarithmic };
        assert_eq!(scale(0.0, 48.0, false).ticks(5), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(scale(88.0, 93.0, false).ticks(5), [88.0, 89.0, 90.0, 91.0, 92.0, 93.0]);
        assert_eq!(scale(1.0, 5.0, true).ticks(5), [1.0, 1.5, 2.0, 3.0, 4.0]);
        assert_eq!(scale(1e-4, 1.0, true).ticks(5).len(), 5);
        assert_eq!(
            (number(1e-4, true), number(0.1, true), number(1.0, true), number(0.25, false)),
            ("10⁻⁴".into(), "10⁻¹".into(), "1".into(), "0.25".into())
        );
        // One value, as of a single layer, is no reason to divide by nothing.
        assert_eq!(scale(3.0, 3.0, false).at(3.0), 0.0);
    }
}
