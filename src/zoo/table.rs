//! The summary as text.

use super::Summary;
use super::row::{Outcome, Row, Sizes};
use comfy_table::{CellAlignment, Table, presets};
use std::fmt;

const COLUMNS: [&str; 9] = ["model", "outcome", "result", "ratio", "parameters", "after", "file bytes", "after", "s"];
/// Of these the first are words.
const WORDS: usize = 3;

impl Summary {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(COLUMNS);
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 2 } else { 1 }, 1));
            if index >= WORDS {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in &self.rows {
            let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let [before, after] = cells(row.parameters);
            let [bytes_before, bytes_after] = cells(row.file_bytes);
            let seconds = format!("{:.1}", row.seconds);
            let words = [row.model.clone(), row.words(), row.figure()];
            table.add_row(words.into_iter().chain([ratio, before, after, bytes_before, bytes_after, seconds]));
        }
        table
    }

    /// After an empty line, the models that ended so, each with its reason.
    fn reasons(&self, f: &mut fmt::Formatter<'_>, heading: &str, outcome: Outcome) -> fmt::Result {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.outcome == outcome).collect();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{heading}")?;
        rows.iter().try_for_each(|row| writeln!(f, "  {}: {}", row.model, row.reason.as_deref().unwrap_or_default()))
    }
}

fn cells(sizes: Option<Sizes>) -> [String; 2] {
    sizes.map_or([String::new(), String::new()], |sizes| [thousands(sizes.before), thousands(sizes.after)])
}

/// `1234567` as `1 234 567`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|part| str::from_utf8(part).ok()).collect();
    groups.join(" ")
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Models\n{}", self.table().trim_fmt())?;
        self.reasons(f, "Left alone", Outcome::LeftAlone)?;
        self.reasons(f, "Refused", Outcome::Refused)?;
        let count = |outcome| self.count(outcome);
        writeln!(
            f,
            "\nIn all\n  {} models: {} compressed, {} left alone, {} refused; {} were up to date",
            self.rows.len(),
            count(Outcome::Compressed),
            count(Outcome::LeftAlone),
            count(Outcome::Refused),
            self.rows.iter().filter(|row| row.up_to_date).count()
        )?;
        self.path.iter().try_for_each(|path| writeln!(f, "  {}", path.display()))
    }
}
