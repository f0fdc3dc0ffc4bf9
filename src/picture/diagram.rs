//! A block of the network as a drawing, before and after: operators from left to right by their distance from the block's input.

use crate::group::Grouping;
use crate::onnx::{Conv, Graph, Model, label};
use crate::plan::Plan;
use crate::report::number;
use crate::rewrite::Compiled;
use maud::{Markup, html};
use std::collections::{HashMap, HashSet};

/// Blocks of more operators than this are not drawn.
const MOST_STEPS: usize = 60;

/// Size of an operator's box and the way from one to the next.
const WIDTH: f64 = 88.0;
const HEIGHT: f64 = 40.0;
const ACROSS: f64 = 112.0;
const DOWN: f64 = 62.0;

/// A block, before and after.
#[derive(Debug, Clone)]
pub(crate) struct Diagram {
    /// The groups whose convolutions it shows.
    pub(crate) groups: Vec<String>,
    before: Vec<Step>,
    after: Vec<Step>,
}

/// What became of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kept,
    Decomposed,
    /// A factor of one convolution.
    Own,
    /// A factor that so many convolutions read.
    Shared(usize),
}

/// An operator and its place.
#[derive(Debug, Clone)]
struct Step {
    operator: String,
    detail: String,
    /// To be told when it is pointed at.
    name: String,
    kind: Kind,
    column: usize,
    row: usize,
    /// Places of those that it reads; none is the block's input.
    from: Vec<Option<usize>>,
}

impl Diagram {
    /// One block for each group of a plan, those that stand in one block together.
    pub(crate) fn all(model: &Model, grouping: &Grouping, plan: &Plan, compiled: &Compiled) -> Vec<Self> {
        let (Ok(before), Ok(after)) = (Graph::new(model), Graph::new(&compiled.model)) else { return Vec::new() };
        let decomposed: HashSet<usize> =
            plan.groups.iter().flat_map(|g| &g.members).map(|&m| plan.convs[m].node).collect();
        let mut drawn: Vec<Self> = Vec::new();
        for (group, members) in by_name(plan) {
            let convs = || members.iter().map(|&m| &plan.convs[m]);
            // Rather a member that stands in a repeated block than one of the block before.
            let Some(conv) = convs().find(|c| occurrence(grouping, c).is_some()).or(convs().next()) else { continue };
            if let Some(with) = drawn.iter_mut().find(|d| d.before.iter().any(|s| convs().any(|c| c.name == s.name))) {
                with.groups.push(group.to_owned());
                continue;
            }
            let (ends, starts) = bounds(&before, grouping, conv);
            let steps = |graph: &Graph<'_>, kind: &dyn Fn(usize) -> Kind| steps(graph, &ends, &starts, kind);
            let kind = |n: usize| if decomposed.contains(&n) { Kind::Decomposed } else { Kind::Kept };
            let readers = |n: usize| {
                let node = &after.nodes()[n];
                let kernel = node.input.get(1).filter(|k| node.op_type() == "Conv" && k.contains("jmd_"));
                match kernel.map(|k| after.uses(k).len()) {
                    None => Kind::Kept,
                    Some(1) => Kind::Own,
                    Some(readers) => Kind::Shared(readers),
                }
            };
            if let (Some(before), Some(after)) = (steps(&before, &kind), steps(&after, &readers)) {
                drawn.push(Self { groups: vec![group.to_owned()], before, after });
            }
        }
        drawn.iter_mut().for_each(|d| d.groups.sort_by_key(|g| number(g)));
        drawn.sort_by_key(|d| d.groups.first().map_or(usize::MAX, |g| number(g)));
        drawn
    }

    /// The drawing.
    pub(crate) fn draw(&self) -> Markup {
        html! {
            div.scroll { (drawing(&self.before, "before")) }
            div.scroll { (drawing(&self.after, "after")) }
        }
    }
}

/// The members of the groups of one name, in the order of the plan.
fn by_name(plan: &Plan) -> Vec<(&str, Vec<usize>)> {
    let mut found: Vec<(&str, Vec<usize>)> = Vec::new();
    for group in &plan.groups {
        match found.iter_mut().find(|f| f.0 == group.group) {
            Some((_, members)) => members.extend(&group.members),
            None => found.push((&group.group, group.members.clone())),
        }
    }
    found
}

/// The smallest repeated block that a convolution stands in, if it can be drawn.
fn occurrence<'g>(grouping: &'g Grouping, conv: &Conv) -> Option<&'g Vec<String>> {
    let occurrences = grouping.blocks.iter().flat_map(|b| &b.occurrences);
    let within = occurrences.filter(|o| o.contains(&conv.name)).min_by_key(|o| o.len());
    within.filter(|names| names.len() <= MOST_STEPS)
}

/// The values that a convolution's repeated block ends with and begins with; its own, if it stands in none.
fn bounds<'g>(graph: &Graph<'g>, grouping: &Grouping, conv: &'g Conv) -> (Vec<&'g str>, HashSet<&'g str>) {
    let Some(names) = occurrence(grouping, conv) else {
        return (vec![&conv.output], HashSet::from([conv.input.as_str()]));
    };
    let inside: HashSet<usize> =
        (0..graph.nodes().len()).filter(|&n| names.contains(&label(&graph.nodes()[n]))).collect();
    let nodes = || inside.iter().map(|&n| &graph.nodes()[n]);
    let produced: HashSet<&str> = nodes().flat_map(|n| n.output.iter().map(String::as_str)).collect();
    let read: HashSet<&str> = nodes().flat_map(|n| n.input.iter().map(String::as_str)).collect();
    let mut ends: Vec<&str> = produced.difference(&read).copied().collect();
    ends.sort_unstable();
    (ends, read.difference(&produced).copied().collect())
}

/// The operators on the way from some values to others, in graph order; none if they are too many.
fn steps(graph: &Graph<'_>, ends: &[&str], starts: &HashSet<&str>, kind: &dyn Fn(usize) -> Kind) -> Option<Vec<Step>> {
    let mut inside: HashSet<usize> = HashSet::new();
    let mut open: Vec<&str> = ends.to_vec();
    while let Some(value) = open.pop() {
        let producer = if starts.contains(value) { None } else { graph.producer(value) };
        if let Some(node) = producer.filter(|&n| inside.insert(n)) {
            open.extend(graph.nodes()[node].input.iter().map(String::as_str));
        }
        if inside.len() > MOST_STEPS {
            return None;
        }
    }
    // Constants are no steps.
    inside.retain(|&n| !graph.nodes()[n].output.iter().all(|o| graph.is_constant(o)));
    let order: Vec<usize> = graph.order().iter().copied().filter(|n| inside.contains(n)).collect();
    let place: HashMap<usize, usize> = order.iter().enumerate().map(|(at, &n)| (n, at)).collect();
    let mut steps: Vec<Step> = Vec::with_capacity(order.len());
    let mut taken: HashSet<(usize, usize)> = HashSet::new();
    for &index in &order {
        let node = &graph.nodes()[index];
        let from = node.input.iter().filter(|i| !i.is_empty() && !graph.is_constant(i)).map(|value| {
            if starts.contains(value.as_str()) { None } else { place.get(&graph.producer(value)?).copied() }
        });
        let from: Vec<Option<usize>> = from.collect();
        let column = 1 + from.iter().flatten().map(|&f| steps[f].column).max().unwrap_or(0);
        // In the row of what it reads first, or the next that is free.
        let wanted = from.iter().flatten().map(|&f| steps[f].row).min().unwrap_or(0);
        let row = (wanted..).find(|&row| taken.insert((column, row))).unwrap_or(wanted);
        let (operator, detail) = described(graph, index);
        steps.push(Step { operator, detail, name: label(node), kind: kind(index), column, row, from });
    }
    Some(steps)
}

/// An operator, of a convolution with its kernel and channels.
fn described(graph: &Graph<'_>, index: usize) -> (String, String) {
    let node = &graph.nodes()[index];
    let kernel = node.input.get(1).filter(|_| node.op_type() == "Conv").and_then(|k| graph.unconverted(k));
    match kernel.map(|k| &k.dims[..]) {
        Some([out, inputs, kh, kw]) => (format!("Conv {kh}×{kw}"), format!("{inputs} → {out}")),
        _ if node.op_type() == "BatchNormalization" => ("BatchNorm".into(), String::new()),
        _ => (node.op_type().to_owned(), String::new()),
    }
}

fn drawing(steps: &[Step], title: &str) -> Markup {
    let columns = steps.iter().map(|s| s.column).max().unwrap_or(0);
    let rows = 1 + steps.iter().map(|s| s.row).max().unwrap_or(0);
    // Room for lines over the first row, and for what is written above its boxes.
    let over =
        |s: &Step| s.row == 0 && s.from.iter().any(|f| f.map_or(s.column > 1, |f| s.column > steps[f].column + 1));
    let top = match (steps.iter().any(over), steps.iter().any(|s| matches!(s.kind, Kind::Shared(_)))) {
        (true, _) => 38.0,
        (false, true) => 20.0,
        (false, false) => 6.0,
    };
    let left = 80.0;
    let (width, height) = (left + ACROSS * columns as f64 + 10.0, top + DOWN * rows as f64);
    let centre = |step: &Step| (left + ACROSS * (step.column - 1) as f64, top + DOWN * step.row as f64 + HEIGHT / 2.0);
    let start = (left - 30.0, top + HEIGHT / 2.0);
    html! {
        svg.diagram viewBox=(format!("0 0 {width:.0} {height:.0}")) width=(format!("{width:.0}")) height=(format!("{height:.0}"))
            role="img" aria-label=(format!("the block {title}")) {
            text.quiet x="0" y=(format!("{:.1}", start.1 + 4.0)) { (title) }
            circle.port cx=(format!("{:.1}", start.0)) cy=(format!("{:.1}", start.1)) r="3.5" {}
            @for step in steps {
                @for from in &step.from {
                    path.edge d=(way(from.map(|f| &steps[f]).map_or((start, 0, 0), |f| {
                        let (x, y) = centre(f);
                        ((x + WIDTH, y), f.column, f.row)
                    }), (centre(step), step.column, step.row), top)) {}
                }
            }
            @for step in steps {
                @let (x, y) = centre(step);
                g class=(class(step.kind)) {
                    title { (step.name) }
                    rect x=(format!("{x:.1}")) y=(format!("{:.1}", y - HEIGHT / 2.0)) width=(WIDTH) height=(HEIGHT) rx="8" {}
                    text x=(format!("{:.1}", x + WIDTH / 2.0)) y=(format!("{:.1}", if step.detail.is_empty() { y + 4.0 } else { y - 2.0 })) { (step.operator) }
                    @if !step.detail.is_empty() {
                        text.detail x=(format!("{:.1}", x + WIDTH / 2.0)) y=(format!("{:.1}", y + 13.0)) { (step.detail) }
                    }
                    @if let Kind::Shared(readers) = step.kind {
                        text.badge x=(format!("{:.1}", x + WIDTH / 2.0)) y=(format!("{:.1}", y - HEIGHT / 2.0 - 5.0)) { "shared by " (readers) }
                    }
                }
            }
        }
    }
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Kept => "step",
        Kind::Decomposed => "step decomposed",
        Kind::Own => "step own",
        Kind::Shared(_) => "step shared",
    }
}

/// A point with its column and row.
type End = ((f64, f64), usize, usize);

/// The line from one operator to another: straight to the next, over what stands between if that is in its row.
fn way((a, from, row): End, (b, to, other): End, top: f64) -> String {
    let ((x0, y0), (x1, y1)) = (a, b);
    if to > from + 1 && row == other {
        // Above the row, in at the top.
        let over = if row == 0 { top - 26.0 } else { y0 - HEIGHT * 0.62 };
        let (x2, y2) = (x1 + WIDTH / 2.0, y1 - HEIGHT / 2.0);
        return format!(
            "M{x0:.1} {y0:.1}C{:.1} {over:.1} {:.1} {over:.1} {:.1} {over:.1}L{:.1} {over:.1}Q{x2:.1} {over:.1} {x2:.1} {y2:.1}",
            x0 + 6.0,
            x0 + 14.0,
            x0 + 26.0,
            x2 - 18.0
        );
    }
    let middle = f64::midpoint(x0, x1);
    format!("M{x0:.1} {y0:.1}C{middle:.1} {y0:.1} {middle:.1} {y1:.1} {x1:.1} {y1:.1}")
}
