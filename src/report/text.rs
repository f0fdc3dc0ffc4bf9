//! The report as text: tables, and lists of names.

use super::{Approximation, BlockRow, GroupRow, LeftRow, Report, Verification};
use comfy_table::{CellAlignment, Table, presets};
use std::collections::BTreeMap;
use std::fmt;

impl Report {
    /// Rows of tables: kernels decomposed by themselves stand in one row a group.
    pub(crate) fn rows(&self) -> BTreeMap<(usize, &str), Vec<&GroupRow>> {
        let mut rows: BTreeMap<(usize, &str), Vec<&GroupRow>> = BTreeMap::new();
        for row in &self.groups {
            rows.entry((row.number(), &row.scheme)).or_default().push(row);
        }
        rows
    }

    fn group_table(&self) -> Table {
        let mut table = table(&["group", "convs", "kernel", "scheme", "rank", "before", "after", "error"]);
        for rows in self.rows().values() {
            let members: usize = rows.iter().map(|r| r.members.len()).sum();
            let (before, after) =
                rows.iter().fold((0, 0), |t, r| (t.0 + r.parameters_before, t.1 + r.parameters_after));
            table.add_row(vec![
                rows[0].group.clone(),
                members.to_string(),
                kernels(rows),
                rows[0].scheme.clone(),
                ranks(rows),
                thousands(before),
                thousands(after),
                errors(rows),
            ]);
        }
        table
    }

    fn totals_table(&self) -> Table {
        let mut table = table(&["", "before", "after", "ratio"]);
        let totals = &self.totals;
        let file = totals.file_bytes.map(|c| ("file bytes", c));
        let macs = totals.macs.map(|c| ("multiply-accumulates of these", c));
        let parameters =
            [("parameters", totals.parameters), ("weights (convolutions, fully connected)", totals.weights)];
        for (name, change) in parameters.into_iter().chain(macs).chain(file) {
            let ratio = format!("{:.2}", change.ratio);
            table.add_row(vec![name.to_owned(), thousands(change.before), thousands(change.after), ratio]);
        }
        table
    }
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 1 }, 1));
        if header[index].is_empty() || matches!(header[index], "group" | "kernel" | "scheme") {
            continue;
        }
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// `kh×kw in→out`, the range of `in` where members differ.
pub(crate) fn kernels(rows: &[&GroupRow]) -> String {
    let kernels: Vec<[usize; 4]> = rows.iter().flat_map(|r| r.kernels.iter().copied()).collect();
    channels(&kernels, &rows[0].channel_groups)
}

/// The same of kernels of one size, with `/g` behind it where they are those of convolutions in g groups of channels.
pub(crate) fn channels(kernels: &[[usize; 4]], groups: &[usize]) -> String {
    let groups = groups.first().copied().unwrap_or(1);
    let [out, _, kh, kw] = kernels[0];
    let beside = if groups > 1 { format!("/{groups}") } else { String::new() };
    format!("{kh}×{kw} {}→{out}{beside}", range(kernels.iter().map(|k| k[1] * groups)))
}

pub(crate) fn ranks(rows: &[&GroupRow]) -> String {
    let chains = rows[0].ranks.len();
    let chains = (0..chains).map(|c| range(rows.iter().map(|r| r.ranks[c])));
    chains.collect::<Vec<_>>().join("+")
}

fn range(values: impl Iterator<Item = usize>) -> String {
    let all: Vec<usize> = values.collect();
    match (all.iter().min(), all.iter().max()) {
        (Some(a), Some(b)) if a == b => a.to_string(),
        (Some(a), Some(b)) => format!("{a}–{b}"),
        _ => String::new(),
    }
}

fn errors(rows: &[&GroupRow]) -> String {
    let all = rows.iter().map(|r| r.reconstruction_error.unwrap_or(r.predicted_error));
    let (low, high) = all.fold((f64::MAX, 0.0f64), |(a, b), e| (a.min(e), b.max(e)));
    if high - low < 5e-4 { format!("{high:.3}") } else { format!("{low:.3}–{high:.3}") }
}

/// `1234567` as `1 234 567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Names separated by commas, in lines of about a hundred characters.
fn wrapped(names: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let name = if index + 1 < names.len() { format!("{name}, ") } else { (*name).to_owned() };
        match lines.last_mut() {
            Some(line) if line.chars().count() + name.chars().count() < 100 => line.push_str(&name),
            _ => lines.push(name),
        }
    }
    lines.iter().map(|l| l.trim_end().to_owned()).collect()
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// The repeated blocks, and an empty line.
pub(crate) fn blocks(f: &mut fmt::Formatter<'_>, blocks: &[BlockRow]) -> fmt::Result {
    if blocks.is_empty() {
        return Ok(());
    }
    writeln!(f, "Repeated blocks")?;
    for block in blocks {
        let first = block.occurrences.first().and_then(|o| o.first()).map_or("", String::as_str);
        writeln!(f, "  {} × [{}], the first from '{first}'", block.occurrences.len(), block.structure)?;
    }
    writeln!(f)
}

/// After an empty line, what is left alone by its reasons.
pub(crate) fn left_alone(f: &mut fmt::Formatter<'_>, rows: &[LeftRow]) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(f, "\nLeft alone")?;
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in rows {
        reasons.entry(&row.reason).or_default().push(&row.name);
    }
    for (reason, names) in reasons {
        writeln!(f, "  {reason}:")?;
        wrapped(&names).iter().try_for_each(|line| writeln!(f, "    {line}"))?;
    }
    Ok(())
}

impl fmt::Display for Approximation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snr = self.snr_db.map_or("∞".to_owned(), |s| format!("{s:.1}"));
        write!(f, "{:.4} relative, SNR {snr} dB, cosine {:.4}", self.relative_error, self.cosine)?;
        match self.broken {
            0 => Ok(()),
            broken => write!(f, ", but {broken} values are finite in one and not in the other"),
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self;
        writeln!(f, "Verification by tract, {} seeded inputs", v.inputs)?;
        if let Some(parts) = &v.parts {
            writeln!(f, "  NOT as a whole: {}", parts.reason)?;
            let beside = parts.whole_difference.map_or("", |_| "up to that operator as a whole, and ");
            writeln!(f, "  {beside}each of {} decomposed convolutions by itself, at its own output", parts.checked)?;
            if !parts.unchecked.is_empty() {
                writeln!(f, "  not at all: {}", parts.unchecked.join(", "))?;
            }
        }
        writeln!(
            f,
            "  rewrite error        {:.1e} of the largest output, within {:.0e}: the file computes what was decided",
            v.rewrite_error, v.rewrite_tolerance
        )?;
        write!(f, "  approximation error  {}", v.approximation)?;
        match v.approximation.agreement {
            Some(share) => writeln!(f, ", top-1 agreement {} on noise", percent(share)),
            None => writeln!(f),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        blocks(f, &self.blocks)?;
        if !self.groups.is_empty() {
            writeln!(f, "{}", if self.dry_run { "Plan (errors predicted)" } else { "Groups" })?;
            writeln!(f, "{}\n", self.group_table().trim_fmt())?;
        }
        if let Some(calibration) = &self.calibration {
            let (samples, source) = (calibration.samples, &calibration.source);
            let mirrored = if calibration.mirrored { ", and the mirror image of each" } else { "" };
            writeln!(f, "Calibrated on {samples} samples: {source}{mirrored}")?;
            writeln!(f, "  errors above are those of the kernels, not of what the layers see\n")?;
        }
        if !self.agreement_curve.is_empty() {
            writeln!(f, "Kept on held-out samples")?;
            for row in &self.agreement_curve {
                writeln!(f, "  {:6.2}×  {}", row.ratio, percent(row.kept))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "Totals\n{}", self.totals_table().trim_fmt())?;
        if self.totals.macs.is_none() {
            writeln!(f, "  multiply-accumulates unknown, as the size of some convolution is (--input-shape may help)")?;
        }
        left_alone(f, &self.left_alone)?;
        if !self.refitted.is_empty() {
            writeln!(f, "\nNot decomposed, refitted (convolutions: the bias)")?;
            let names: Vec<&str> = self.refitted.iter().map(String::as_str).collect();
            wrapped(&names).iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        if let Some(tuning) = &self.tuning {
            write!(f, "\n{tuning}")?;
            writeln!(f, "  errors of kernels above are those before tuning")?;
        }
        if let Some(verification) = &self.verification {
            write!(f, "\n{verification}")?;
        }
        if let Some(score) = &self.score {
            writeln!(f, "\nImages, {}", score.images)?;
            if let (Some(before), Some(after)) = (score.top1_before, score.top1_after) {
                let change = 100.0 * (after - before);
                writeln!(f, "  top-1 {} → {} ({change:+.2} points)", percent(before), percent(after))?;
            }
            writeln!(f, "  agreement with the original {}", percent(score.agreement))?;
        }
        if !self.notes.is_empty() {
            writeln!(f, "\nNotes")?;
            self.notes.iter().try_for_each(|n| writeln!(f, "  {n}"))?;
        }
        if self.show_timings {
            writeln!(f, "\nSeconds")?;
            self.timings.iter().try_for_each(|(stage, seconds)| writeln!(f, "  {stage:<12} {seconds:8.1}"))?;
        }
        Ok(())
    }
}
