//! The report as one page of HTML that needs nothing else: no script, no network, for light and dark screens of any width.

use super::chart::{Frame, Scale};
use super::{CurvePoint, Pictures, Spectrum, TraceRow};
use crate::report::{Change, GroupRow, Report, kernels, percent, ranks, thousands};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::collections::BTreeMap;

const STYLE: &str = include_str!("page.css");
/// Colours there are for lines side by side.
const COLOURS: usize = 5;
/// Shares of energy and errors below this are not told apart.
const LEAST: f64 = 1e-4;

impl Report {
    /// The report as a page of HTML; `name` is what was compressed.
    #[must_use]
    pub fn to_html(&self, name: &str, pictures: &Pictures) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { "onnx-jmd: " (name) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        h1 { (name) (self.outcome()) }
                        p.lead { (self.lead()) }
                        (self.tiles())
                        (self.group_section())
                        (diagram_section(pictures))
                        (spectrum_section(self, pictures))
                        (trace_section(self, pictures))
                        (curve_section(self, &pictures.curve))
                        (tuning_section(self))
                        (self.left_section())
                        (self.proof_section())
                        footer { "Written by onnx-jmd " (self.version) "." }
                    }
                }
            }
        };
        page.into_string()
    }

    /// What became of the model, after its name.
    fn outcome(&self) -> String {
        let ratio = self.totals.parameters.ratio;
        match (self.groups.is_empty(), self.dry_run) {
            (true, _) => ": nothing to compress".into(),
            (false, true) => format!(": a plan to make it {ratio:.2} times smaller"),
            (false, false) => format!(", {ratio:.2} times smaller"),
        }
    }

    /// What was asked for, in a sentence.
    fn lead(&self) -> String {
        let asked = match (self.ratio, self.rank_rate) {
            (Some(ratio), _) => format!("ratio {ratio:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
            (_, Some(rate)) => format!("rank rate {rate}"),
            _ => String::new(),
        };
        let calibrated = self.calibration.as_ref().map_or("plain weights".to_owned(), |c| {
            let mirrored = if c.mirrored { " and their mirror images" } else { "" };
            format!("calibrated on {} samples ({}){mirrored}", c.samples, c.source)
        });
        match &self.plan {
            Some(plan) => format!("By the plan {plan} (scheme {}, {asked}), {calibrated}.", self.scheme),
            None => format!("Scheme {}, {asked}, {calibrated}.", self.scheme),
        }
    }

    fn tiles(&self) -> Markup {
        let change = |name: &str, c: &Change| {
            tile(&format!("{:.2}×", c.ratio), &format!("fewer {name}: {} → {}", short(c.before), short(c.after)))
        };
        html! {
            div.tiles {
                (change("parameters", &self.totals.parameters))
                @if let Some(macs) = &self.totals.macs { (change("multiply-accumulates", macs)) }
                @if let Some(bytes) = &self.totals.file_bytes { (change("bytes", bytes)) }
                @if let Some(score) = &self.score {
                    @if let (Some(before), Some(after)) = (score.top1_before, score.top1_after) {
                        (tile(&percent(after), &format!("top-1 on {} images, before {}", score.images, percent(before))))
                    } @else {
                        (tile(&percent(score.agreement), &format!("of {} images in the same class as before", score.images)))
                    }
                } @else if let Some(v) = &self.verification {
                    (tile(&v.approximation.snr_db.map_or("∞".into(), |s| format!("{s:.1} dB")), "signal to noise ratio on seeded inputs"))
                }
            }
        }
    }

    /// Groups with bars.
    fn group_section(&self) -> Markup {
        let rows = self.rows();
        let most = |of: &dyn Fn(&GroupRow) -> u64| {
            rows.values().map(|r| r.iter().map(|g| of(g)).sum::<u64>()).max().unwrap_or(1)
        };
        let (parameters, macs) =
            (most(&|g| g.parameters_before), most(&|g| g.macs_before.unwrap_or(0).max(g.macs_after.unwrap_or(0))));
        if rows.is_empty() {
            return html! {};
        }
        html! {
            h2 { "What each group became" }
            div.legend { span { i {} "before" } span { i.after {} "after" } }
            div.scroll {
                table {
                    thead { tr { th { "group" } th { "convolutions" } th { "scheme" } th { "rank" } th { "parameters" } th { "multiply-accumulates" } } }
                    tbody {
                        @for rows in rows.values() {
                            @let sum = |of: &dyn Fn(&GroupRow) -> Option<u64>| rows.iter().map(|g| of(g)).sum::<Option<u64>>();
                            tr {
                                td { (rows[0].group) }
                                td title=(rows[0].role) { (rows.iter().map(|r| r.members.len()).sum::<usize>()) " × " (kernels(rows)) }
                                td { (rows[0].scheme) }
                                td { (ranks(rows)) }
                                td.bars { (pair(sum(&|g| Some(g.parameters_before)), sum(&|g| Some(g.parameters_after)), parameters)) }
                                td.bars { (pair(sum(&|g| g.macs_before), sum(&|g| g.macs_after), macs)) }
                            }
                        }
                    }
                }
            }
        }
    }

    fn left_section(&self) -> Markup {
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        self.left_alone.iter().for_each(|row| reasons.entry(&row.reason).or_default().push(&row.name));
        html! {
            @if !reasons.is_empty() || !self.refitted.is_empty() {
                h2 { "Left alone" }
                div.scroll {
                    table {
                        thead { tr { th { "why" } th { "convolutions" } } }
                        tbody {
                            @for (reason, names) in &reasons { tr { td.why { (reason) } td.why { (names.join(", ")) } } }
                            @if !self.refitted.is_empty() {
                                tr { td.why { "not decomposed, refitted (convolutions: the bias)" } td.why { (self.refitted.join(", ")) } }
                            }
                        }
                    }
                }
            }
        }
    }

    fn proof_section(&self) -> Markup {
        html! {
            @if let Some(v) = &self.verification {
                h2 { "Verification by tract" }
                @if let Some(parts) = &v.parts {
                    p {
                        "Not as a whole: " (parts.reason) ". "
                        @if parts.whole_difference.is_some() { "Up to that operator as a whole, and each" } @else { "Each" }
                        " of " (parts.checked) " decomposed convolutions by itself, at its own output."
                        @if !parts.unchecked.is_empty() { " Not at all: " (parts.unchecked.join(", ")) "." }
                    }
                }
                p {
                    "On " (v.inputs) " seeded inputs " (if v.parts.is_some() { "what was run of the file" } else { "the file" }) " computes what was decided: it is " (format!("{:.1e}", v.rewrite_error))
                    " of the largest output away from the original with every kernel replaced by what its factors multiply out to ("
                    (format!("{:.0e}", v.rewrite_tolerance)) " is allowed). From the original itself it is away by " (v.approximation) "."
                }
            }
            @if !self.notes.is_empty() {
                h2 { "Notes" }
                @for note in &self.notes { p { (note) } }
            }
        }
    }
}

fn tile(figure: &str, meaning: &str) -> Markup {
    html! { div.tile { b { (figure) } span { (meaning) } } }
}

/// `1234567` as `1.23 M`.
fn short(n: u64) -> String {
    match n {
        0..10_000 => thousands(n).replace(' ', "\u{a0}"),
        10_000..1_000_000 => format!("{:.1}\u{a0}k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2}\u{a0}M", n as f64 / 1e6),
        _ => format!("{:.2}\u{a0}G", n as f64 / 1e9),
    }
}

/// Two bars, of which the longest on the page takes most of its cell.
fn pair(before: Option<u64>, after: Option<u64>, most: u64) -> Markup {
    let width = |n: u64| format!("width:{:.1}%", 68.0 * n as f64 / most.max(1) as f64);
    html! {
        @if let (Some(before), Some(after)) = (before, after) {
            div.pair { i style=(width(before)) {} (short(before)) }
            div.pair { i.after style=(width(after)) {} (short(after)) }
        } @else {
            "unknown"
        }
    }
}

fn diagram_section(pictures: &Pictures) -> Markup {
    html! {
        @if !pictures.diagrams.is_empty() {
            h2 { "A block of each group, before and after" }
            div.legend {
                span { i.whole {} "decomposed" } span { i.own {} "factor of its own" } span { i.shared {} "factor stored once for several" }
            }
            @for diagram in &pictures.diagrams {
                figure.block { figcaption { (diagram.groups.join(", ")) } (diagram.draw()) }
            }
        }
    }
}

fn spectrum_section(report: &Report, pictures: &Pictures) -> Markup {
    let mut groups: BTreeMap<usize, Vec<(&GroupRow, &Spectrum)>> = BTreeMap::new();
    for (row, spectrum) in report.groups.iter().zip(&pictures.spectra) {
        let at = row.number();
        groups.entry(at).or_default().push((row, spectrum));
    }
    let norm = if report.calibration.is_some() { "of what the layers give" } else { "of the kernels" };
    html! {
        @if !groups.is_empty() {
            h2 { "Spectra" }
            p { "The share of the energy " (norm) " that is left beyond each rank, and the ranks chosen. A curve that falls fast can be cut early." }
            div.grid-of-charts { @for rows in groups.values() { (spectrum_chart(rows)) } }
        }
    }
}

fn spectrum_chart(rows: &[(&GroupRow, &Spectrum)]) -> Markup {
    let chains =
        || rows.iter().flat_map(|(row, s)| s.left.iter().zip(&s.ranks).map(move |(left, rank)| (*row, left, *rank)));
    let longest = chains().map(|(_, left, _)| left.iter().filter(|l| **l > LEAST).count()).max().unwrap_or(1);
    let farthest = chains().map(|c| c.2).max().unwrap_or(1);
    let frame = Frame {
        width: 320.0,
        height: 190.0,
        x: Scale { low: 0.0, high: longest.max(farthest + 1) as f64, logarithmic: false },
        y: Scale { low: LEAST, high: 1.0, logarithmic: true },
        x_title: "rank",
        y_title: "energy left",
        ticks: 6,
        whole: true,
    };
    let row = rows[0].0;
    let convs: usize = rows.iter().map(|(row, _)| row.members.len()).sum();
    let all: Vec<&GroupRow> = rows.iter().map(|r| r.0).collect();
    html! {
        figure {
            figcaption { b { (row.group) } ", " (convs) " × " (kernels(&all)) br; small { (row.role) } }
            (frame.draw(&format!("spectra of group {}", row.group), &html! {
                @for (at, (_, left, _)) in chains().enumerate() {
                    (frame.line(&points(left), &format!("thin c{}", at % COLOURS)))
                }
                @for (at, (row, left, rank)) in chains().enumerate() {
                    @let kept = left.get(rank).copied().unwrap_or(0.0);
                    (frame.dot((rank as f64, kept.max(LEAST)), &format!("c{}", at % COLOURS),
                        &format!("{}: {}, rank {rank} leaves {:.2} %", row.members.join(", "), row.scheme, 100.0 * kept)))
                }
            }))
        }
    }
}

/// A spectrum's curve down to the least that is shown.
fn points(left: &[f64]) -> Vec<(f64, f64)> {
    let end = left.iter().position(|l| *l <= LEAST).unwrap_or(left.len());
    left.iter().take(end + 1).enumerate().map(|(rank, l)| (rank as f64, l.max(LEAST))).collect()
}

fn trace_section(report: &Report, pictures: &Pictures) -> Markup {
    let trace: &[TraceRow] = &pictures.trace;
    let most = trace.iter().map(|r| r.arrived.max(r.alone)).fold(0.05, f64::max);
    let frame = Frame {
        width: 1000.0,
        height: 260.0,
        x: Scale { low: 0.3, high: trace.len() as f64 + 0.7, logarithmic: false },
        y: Scale { low: 0.0, high: most, logarithmic: false },
        x_title: "convolution, in graph order",
        y_title: "relative error of the output",
        ticks: 12,
        whole: true,
    };
    let width = (0.62 * (frame.px(1.0) - frame.px(0.0))).min(26.0);
    let place = |at: usize| (at + 1) as f64;
    html! {
        @if !trace.is_empty() {
            h2 { "The error on its way through the network" }
            p {
                "On " (pictures.traced) ". Bars: each convolution alone, on what it reads in the original. Line: all of them together, where the error of those before is passed on"
                @if report.calibration.is_some() { " and, as far as layers were refitted, made up for" } "."
            }
            div.legend { span { i.after {} "decomposed" } span { i {} "whole" } span { i.shared {} "arrived" } }
            figure {
                div.scroll { div style="min-width:760px" {
                    (frame.draw("relative error at each convolution", &html! {
                        @for (at, row) in trace.iter().enumerate() {
                            (frame.bar((place(at), row.alone), width, if row.decomposed { "decomposed" } else { "" },
                                &format!("{}: alone {:.4}, arrived {:.4}", row.name, row.alone, row.arrived)))
                        }
                        (frame.line(&trace.iter().enumerate().map(|(at, r)| (place(at), r.arrived)).collect::<Vec<_>>(), "c1"))
                        @for (at, row) in trace.iter().enumerate() {
                            (frame.dot((place(at), row.arrived), "c1", &format!("{}: alone {:.4}, arrived {:.4}", row.name, row.alone, row.arrived)))
                        }
                    }))
                } }
            }
        }
    }
}

fn curve_section(report: &Report, curve: &[CurvePoint]) -> Markup {
    let labelled = curve.iter().all(|p| p.score.top1_after.is_some());
    let value = |p: &CurvePoint| 100.0 * p.score.top1_after.unwrap_or(p.score.agreement);
    let scored: Vec<(f64, f64)> = curve.iter().map(|p| (p.ratio, value(p))).collect();
    let held_out: Vec<(f64, f64)> = report.agreement_curve.iter().map(|r| (r.ratio, 100.0 * r.kept)).collect();
    let original = curve.first().and_then(|p| p.score.top1_before).map(|b| 100.0 * b);
    let images = curve.first().map_or(0, |p| p.score.images);
    html! {
        @if scored.len() > 1 {
            h2 { "What ratios keep" }
            p {
                @if labelled { "Top-1 on " } @else { "Share in the same class as before, of " } (images)
                " images; every point is a model of its own, " @if report.calibration.is_some() { "refitted" } @else { "from the plain weights" } ". The marked one was written."
            }
            (curve_chart(&scored, original, report.totals.parameters.ratio, if labelled { "top-1, %" } else { "same class, %" }))
        }
        @if held_out.len() > 1 {
            h2 { "What ratios keep on held-out samples" }
            p { "By what this ratio was found: samples that no factor was fitted to." }
            (curve_chart(&held_out, None, report.ratio.unwrap_or(0.0), "kept, %"))
        }
    }
}

/// How held-out images were answered while the model was tuned.
fn tuning_section(report: &Report) -> Markup {
    let Some(tuning) = report.tuning.as_ref().filter(|t| t.curve.len() > 1) else { return html! {} };
    let points: Vec<(f64, f64)> = tuning.curve.iter().map(|row| (row.epoch, 100.0 * row.agreement)).collect();
    let (low, high) = points.iter().fold((f64::MAX, 0.0f64), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let room = ((high - low) * 0.12).max(0.2);
    let frame = Frame {
        width: 640.0,
        height: 280.0,
        x: Scale { low: 0.0, high: points.last().map_or(1.0, |p| p.0), logarithmic: false },
        y: Scale { low: (low - room).max(0.0), high: (high + room).min(100.0), logarithmic: false },
        x_title: "passes over the images",
        y_title: "agreement with the original, %",
        ticks: 8,
        whole: false,
    };
    html! {
        h2 { "Tuning" }
        p {
            (thousands(tuning.parameters)) " parameters were trained to give the original's answers on " (tuning.images)
            " images (" (tuning.source) "), and judged by " (tuning.held_out) " that were not shown. The marked look was kept"
            @if tuning.kept == 0 { ": tuning did not help, and the model is as it was before" } "."
        }
        figure style="max-width:720px" {
            div.scroll { div style="min-width:480px" { (frame.draw("agreement with the original while tuning", &html! {
                (frame.line(&points, ""))
                @for (at, (point, row)) in points.iter().zip(&tuning.curve).enumerate() {
                    (frame.dot(*point, if at == tuning.kept { "c1" } else { "" },
                        &format!("pass {:.2}, {:.0} s: loss {:.4}, agreement {:.2} %", row.epoch, row.seconds, row.held_out_loss, point.1)))
                }
            })) } }
        }
    }
}

fn curve_chart(points: &[(f64, f64)], original: Option<f64>, written: f64, title: &'static str) -> Markup {
    let values = || points.iter().map(|p| p.1).chain(original);
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let room = ((high - low) * 0.12).max(0.2);
    let ends = (points.first().map_or(1.0, |p| p.0), points.last().map_or(2.0, |p| p.0));
    let frame = Frame {
        width: 640.0,
        height: 280.0,
        x: Scale { low: (ends.0 / 1.12).max(1.0), high: ends.1 * 1.12, logarithmic: true },
        y: Scale { low: (low - room).max(0.0), high: (high + room).min(100.0), logarithmic: false },
        x_title: "times fewer parameters",
        y_title: title,
        ticks: 8,
        whole: false,
    };
    let nearest = |p: &&(f64, f64)| ((p.0 - written).abs() * 1e9) as u64;
    let marked = points.iter().min_by_key(nearest);
    html! {
        figure style="max-width:720px" {
            div.scroll { div style="min-width:480px" { (frame.draw("accuracy against ratio", &html! {
                @if let Some(original) = original {
                    (frame.line(&[(frame.x.low, original), (frame.x.high, original)], "dashed"))
                    (frame.word((frame.x.low, original + (frame.y.high - frame.y.low) * 0.02), "note", &format!(" original {original:.2}")))
                }
                (frame.line(points, ""))
                @for point in points {
                    (frame.dot(*point, if Some(point) == marked { "c1" } else { "" }, &format!("{:.2}×: {:.2} %", point.0, point.1)))
                    (frame.word((point.0, point.1 - (frame.y.high - frame.y.low) * 0.075), "tick", &format!("{:.2}", point.1)))
                }
            })) } }
        }
    }
}
