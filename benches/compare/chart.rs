//! A chart of ratios as SVG: one bar for each workload, depth and queue count
//! of the first setting, against the other daemon at 1.

use std::fmt::Write;

use crate::report::{Metric, Outcome, median};

const LABEL_WIDTH: f64 = 270.0;
const BAR_WIDTH: f64 = 480.0;
const BAR_HEIGHT: f64 = 12.0;
const GAP: f64 = 8.0;
/// The right edge of the bars.
const MAX_RATIO: f64 = 4.0;
const TOP: f64 = 56.0;
/// From light to dark: the first depth to the last.
const COLOURS: [&str; 4] = ["#9ecae1", "#4292c6", "#08519c", "#08306b"];

/// Draws the ratio of daemon A to daemon B.
pub(crate) fn ratios(title: &str, outcomes: &[Outcome], metric: Metric) -> String {
    let mut body = String::new();
    let mut depths: Vec<usize> = Vec::new();
    let mut y = TOP;
    let mut last = "";
    for outcome in outcomes {
        let Some(ratio) = median(&outcome.ratios(1, metric)) else {
            continue;
        };
        let depth = outcome.case.depth;
        if !depths.contains(&depth) {
            depths.push(depth);
        }
        let name = outcome.case.workload.name;
        if name != last {
            y += GAP;
            text(&mut body, LABEL_WIDTH - 8.0, y + 10.0, "end", name);
            last = name;
        }
        let place = depths.iter().position(|known| *known == depth);
        let colour = COLOURS[place.unwrap_or(0) % COLOURS.len()];
        let width = ratio.min(MAX_RATIO) / MAX_RATIO * BAR_WIDTH;
        writeln!(
            body,
            r#"<rect x="{LABEL_WIDTH}" y="{y:.0}" width="{width:.1}" height="{:.0}" fill="{colour}"/>"#,
            BAR_HEIGHT - 1.0
        )
        .unwrap();
        let label = format!("{ratio:.2}  (depth {depth})");
        text(
            &mut body,
            LABEL_WIDTH + width + 5.0,
            y + 10.0,
            "start",
            &label,
        );
        y += BAR_HEIGHT;
    }
    let (width, height) = (LABEL_WIDTH + BAR_WIDTH + 110.0, y + 20.0);
    let one = LABEL_WIDTH + BAR_WIDTH / MAX_RATIO;
    let mut head = String::new();
    writeln!(
        head,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">"#
    )
    .unwrap();
    writeln!(
        head,
        r#"<rect width="{width}" height="{height}" fill="white"/>"#
    )
    .unwrap();
    writeln!(
        head,
        r#"<text x="12" y="22" font-size="15" font-weight="bold">{title}</text>"#
    )
    .unwrap();
    writeln!(
        head,
        r##"<line x1="{one}" y1="{:.0}" x2="{one}" y2="{y:.0}" stroke="#cb181d" stroke-dasharray="4 3"/>"##,
        TOP - 4.0
    )
    .unwrap();
    text(&mut head, one, TOP - 10.0, "middle", "as B");
    head + &body + "</svg>\n"
}

fn text(into: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    writeln!(
        into,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{content}</text>"#
    )
    .unwrap();
}
