// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A comparison as one page of HTML: ratios with their intervals, the distribution of each row, both environments. It
//! loads nothing and runs nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::stats::Verdict;
use super::{verdict, Comparison, Row};

const STYLE: &str = "\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } .words td { text-align: left; vertical-align: top }
svg { display: block; margin: .3em 0 1.2em } .a { fill: #999; stroke: #999 } .b { fill: #06c; stroke: #06c }
.bar { fill-opacity: .45; stroke: none } .one { stroke: #c00; stroke-dasharray: 3 3 } text { font-size: 11px }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } text { fill: #ddd } }";

/// Pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 90.0;
/// Bars of a distribution.
const BARS: usize = 64;

/// The page.
pub fn page(all: &Comparison) -> String {
    let (base, other) = (escape(&all.base.device), escape(&all.other.device));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<title>{other} beside {base}</title>\n\
         <style>\n{STYLE}\n</style>\n<h1>{other} beside {base}</h1>\n\
         <p>Ticks per operation, after the iterations to warm up. A ratio is of medians, {other} over {base}: less \
         than 1 is quicker. The interval holds 95 of 100 ratios when both sides are drawn again from their own \
         samples; where it holds 1 there is no ratio, since chance would do.</p>\n"
    );
    page.push_str("<h2>Ratios</h2>\n");
    ratios(&mut page, all);
    let _ = write!(
        page,
        "<h2>Rows</h2>\n<table><tr><th>operation<th colspan=3>{base}: p50, p90, p99<th colspan=3>{other}: p50, p90, p99\
         <th>ratio\n"
    );
    for row in &all.rows {
        let (a, b) = (&row.base, &row.other);
        let _ = writeln!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            escape(&row.meaning),
            a.p50,
            a.p90,
            a.p99,
            b.p50,
            b.p90,
            b.p99,
            verdict(&row.verdict)
        );
    }
    page.push_str("</table>\n<h2>Distributions</h2>\n<p>Grey: ");
    let _ = writeln!(
        page,
        "{base}. Blue: {other}. Beyond the right end lies the last hundredth of either.</p>"
    );
    for row in &all.rows {
        distribution(&mut page, row);
    }
    environments(&mut page, all);
    page.push_str("</html>\n");
    page
}

/// A line for each row: its interval, on a scale of logarithms.
fn ratios(page: &mut String, all: &Comparison) {
    let known: Vec<(&Row, f64, f64)> = all
        .rows
        .iter()
        .filter_map(|row| match row.verdict {
            Verdict::Differs { low, high, .. } | Verdict::NoDifference { low, high } => {
                Some((row, low, high))
            }
            Verdict::Unknown => None,
        })
        .collect();
    let ends = known.iter().flat_map(|(_, low, high)| [*low, *high]);
    let (least, most) = ends.fold((0.5f64, 2.0f64), |(least, most), end| {
        (least.min(end.max(0.001)), most.max(end))
    });
    let left = 260.0;
    let x = |ratio: f64| {
        let part = (ratio.max(least) / least).ln() / (most / least).ln();
        left + part * (WIDTH - left - 10.0)
    };
    let height = known.len() as f64 * 16.0 + 24.0;
    let _ = writeln!(
        page,
        "<svg width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"ratios\">"
    );
    let one = x(1.0);
    let _ = writeln!(
        page,
        "<line class=\"one\" x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"0\" y2=\"{:.0}\"/>\
         <text x=\"{one:.1}\" y=\"{:.0}\">1</text>",
        height - 18.0,
        height - 6.0
    );
    for (n, (row, low, high)) in known.iter().enumerate() {
        let y = n as f64 * 16.0 + 10.0;
        let (from, to) = (x(*low), x(*high));
        let _ = writeln!(
            page,
            "<text x=\"0\" y=\"{:.0}\">{}</text><line class=\"b\" stroke-width=\"6\" x1=\"{:.1}\" x2=\"{:.1}\" \
             y1=\"{y:.0}\" y2=\"{y:.0}\"/>",
            y + 4.0,
            escape(&row.meaning),
            from - 1.5,
            to + 1.5
        );
    }
    page.push_str("</svg>\n");
}

/// Both histograms of a row over one another.
fn distribution(page: &mut String, row: &Row) {
    let (a, b) = (&row.base, &row.other);
    let (from, to) = (a.min.min(b.min), a.p99.max(b.p99));
    let width = (to - from + 1).div_ceil(BARS as u64).max(1);
    let bars = row.samples.each_ref().map(|samples| {
        let mut bars = [0usize; BARS];
        for sample in samples.iter().filter(|sample| **sample <= to) {
            bars[(((sample - from) / width) as usize).min(BARS - 1)] += 1;
        }
        bars.map(|count| count as f64 / samples.len().max(1) as f64)
    });
    let most = bars
        .iter()
        .flatten()
        .fold(f64::MIN_POSITIVE, |m, bar| m.max(*bar));
    let _ = writeln!(
        page,
        "<h3>{}</h3><svg width=\"{WIDTH}\" height=\"{:.0}\" role=\"img\" aria-label=\"distributions\">",
        escape(&row.meaning),
        HEIGHT + 14.0
    );
    let step = WIDTH / BARS as f64;
    for (class, side) in ["a", "b"].iter().zip(&bars) {
        for (n, bar) in side.iter().enumerate().filter(|(_, bar)| **bar > 0.0) {
            let high = (bar / most * HEIGHT).max(1.0);
            let _ = writeln!(
                page,
                "<rect class=\"{class} bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{step:.1}\" height=\"{high:.1}\"/>",
                n as f64 * step,
                HEIGHT - high
            );
        }
    }
    let _ = writeln!(
        page,
        "<text x=\"0\" y=\"{:.0}\">{from}</text><text x=\"{WIDTH}\" y=\"{:.0}\" text-anchor=\"end\">{to}</text></svg>",
        HEIGHT + 12.0,
        HEIGHT + 12.0
    );
}

fn environments(page: &mut String, all: &Comparison) {
    let (a, b) = (&all.base.environment, &all.other.environment);
    let _ = writeln!(
        page,
        "<h2>Taken on</h2>\n<table class=\"words\"><tr><th><th>{}<th>{}",
        escape(&all.base.device),
        escape(&all.other.device)
    );
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for name in names {
        let of = |run: &std::collections::BTreeMap<String, String>| {
            escape(run.get(name).map_or("", |v| v))
        };
        let _ = writeln!(page, "<tr><td>{}<td>{}<td>{}", escape(name), of(a), of(b));
    }
    page.push_str("</table>\n");
    if !all.left_out.is_empty() {
        let rows = escape(&all.left_out.join(", "));
        let _ = writeln!(
            page,
            "<p>Left out, without samples on both sides: {rows}.</p>"
        );
    }
}

/// Text that is no markup.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}
