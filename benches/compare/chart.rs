//! A chart of ratios as SVG: a bar for each workload, depth and number of queues,
//! from the line where both daemons are alike to the ratio of the first to the
//! second. The scale is logarithmic, so that twice and half are equally far.

use std::fmt::Write;

use crate::counters::median;
use crate::report::{Metric, Outcome};

const LABELS: f64 = 400.0;
const BARS: f64 = 560.0;
const VALUES: f64 = 60.0;
const WIDTH: f64 = LABELS + BARS + VALUES;
const BAR_HEIGHT: f64 = 13.0;
const GAP: f64 = 9.0;
const TOP: f64 = 92.0;
/// Bars end at eight times and an eighth.
const MAX_POWER: f64 = 3.0;
const BETTER: &str = "#2171b5";
const WORSE: &str = "#d94801";

/// What a chart shows.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    /// Settings and date.
    pub(crate) subtitle: &'a str,
    pub(crate) metric: Metric,
    /// Whether a ratio below 1 is good.
    pub(crate) less_is_better: bool,
}

/// A bar with what stands beside it.
struct Bar {
    workload: &'static str,
    case: String,
    ratio: f64,
}

impl Chart<'_> {
    /// Draws the ratio of the first daemon to the second.
    pub(crate) fn draw(&self, outcomes: &[Outcome]) -> String {
        let bar = |outcome: &Outcome| {
            let case = &outcome.case;
            let plural = if case.queues > 1 { "s" } else { "" };
            Some(Bar {
                workload: case.workload.name,
                case: format!("{} queue{plural}, depth {}", case.queues, case.depth),
                ratio: median(&outcome.ratios(1, self.metric))?,
            })
        };
        let bars: Vec<_> = outcomes.iter().filter_map(bar).collect();
        let scale = Scale::of(&bars);
        let mut body = String::new();
        let mut y = TOP;
        let mut last = "";
        for bar in &bars {
            if bar.workload != last {
                y += GAP;
                text(&mut body, (12.0, y), "start", "#000", bar.workload);
                last = bar.workload;
            }
            self.draw_bar(&mut body, bar, &scale, y);
            y += BAR_HEIGHT;
        }
        self.head(&scale, y + GAP) + &body + "</svg>\n"
    }

    fn draw_bar(&self, into: &mut String, bar: &Bar, scale: &Scale, y: f64) {
        let (one, end) = (scale.x(1.0), scale.x(bar.ratio));
        let is_better = (bar.ratio < 1.0) == self.less_is_better;
        let colour = if is_better { BETTER } else { WORSE };
        writeln!(
            into,
            r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{colour}"/>"#,
            one.min(end),
            y + 1.0,
            (end - one).abs().max(1.0),
            BAR_HEIGHT - 2.0,
        )
        .unwrap();
        text(into, (LABELS - 10.0, y), "end", "#555", &bar.case);
        let is_cut = bar.ratio.log2().abs() > MAX_POWER;
        let arrow = |arrow| if is_cut { arrow } else { "" };
        if bar.ratio < 1.0 {
            let value = format!("{}{:.2}", arrow("← "), bar.ratio);
            text(into, (end - 5.0, y), "end", "#000", &value);
        } else {
            let value = format!("{:.2}{}", bar.ratio, arrow(" →"));
            text(into, (end + 5.0, y), "start", "#000", &value);
        }
    }

    /// The title and the lines of the scale.
    fn head(&self, scale: &Scale, bottom: f64) -> String {
        let mut head = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{0:.0}\" \
             viewBox=\"0 0 {WIDTH} {0:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"12\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{1}</text>\n\
             <text x=\"12\" y=\"44\" font-size=\"12\" fill=\"#555\">{2}</text>\n",
            bottom + 14.0,
            escaped(self.title),
            escaped(self.subtitle),
        );
        for power in scale.low..=scale.high {
            let ratio = f64::from(power).exp2();
            let x = scale.x(ratio);
            let style = if power == 0 {
                "stroke=\"#000\" stroke-width=\"1.5\""
            } else {
                "stroke=\"#ddd\""
            };
            writeln!(
                head,
                r#"<line x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{bottom:.1}" {style}/>"#,
                TOP - 6.0
            )
            .unwrap();
            let label = match power {
                0 => "1 = as B".to_owned(),
                _ => format!("{ratio}"),
            };
            text(&mut head, (x, TOP - 22.0), "middle", "#000", &label);
        }
        head
    }
}

/// Powers of two from the left edge to the right one.
struct Scale {
    low: i32,
    high: i32,
}

impl Scale {
    /// Wide enough for all bars that are not cut.
    fn of(bars: &[Bar]) -> Self {
        let log = |bar: &Bar| bar.ratio.log2().clamp(-MAX_POWER, MAX_POWER);
        let logs = || bars.iter().map(log);
        Self {
            low: logs().fold(-1.0, f64::min).floor() as i32,
            high: logs().fold(1.0, f64::max).ceil() as i32,
        }
    }

    fn x(&self, ratio: f64) -> f64 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let place = (ratio.log2().clamp(low, high) - low) / (high - low);
        // Room for the value beside a bar that reaches the edge.
        LABELS + VALUES / 2.0 + place * (BARS - VALUES / 2.0)
    }
}

/// In the line whose upper edge is `y`.
fn text(into: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, content: &str) {
    writeln!(
        into,
        r#"<text x="{x:.1}" y="{:.1}" text-anchor="{anchor}" fill="{colour}">{}</text>"#,
        y + BAR_HEIGHT - 3.0,
        escaped(content)
    )
    .unwrap();
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
