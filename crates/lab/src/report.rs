//! Markdown tables and SVG charts.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Options that say where things are on this machine, and change no figure.
const PLACES: [&str; 4] = ["--bin-dir", "--out", "--work", "--raw"];

/// The command that this process was started with, for whoever wants the same figures.
pub(crate) fn command() -> String {
    reproducible(std::env::args().skip(1))
}

fn reproducible(arguments: impl Iterator<Item = String>) -> String {
    let mut command = "cargo run --release -p damselfly-lab --".to_owned();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if PLACES.contains(&argument.as_str()) {
            // Its value goes with it.
            arguments.next();
        } else if !PLACES.iter().any(|place| argument.strip_prefix(place).is_some_and(|rest| rest.starts_with('='))) {
            command.push(' ');
            command.push_str(&argument);
        }
    }
    command
}

/// Writes a file of the report.
pub(crate) fn write(out: &Path, name: &str, text: &str) -> Result<()> {
    let path = out.join(name);
    fs::create_dir_all(out)
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("{} cannot be written", path.display()))
}

/// A Markdown table.
pub(crate) struct Table<const N: usize> {
    text: String,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heads: [&str; N]) -> Self {
        Self { text: format!("| {} |\n|{}\n", heads.join(" | "), " --- |".repeat(N)) }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A chart of a few lines.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: String,
    /// Whether each step to the right doubles.
    pub(crate) logarithmic: bool,
    /// Whether each point stands with its value: good for few.
    pub(crate) values: bool,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 4] = ["#0b6e99", "#c0392b", "#4d8b31", "#8e5ea2"];

impl Chart {
    pub(crate) fn svg(&self) -> String {
        let place = |x: f64| if self.logarithmic { x.max(1.0).log2() } else { x };
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let right = all().map(|(x, _)| place(*x)).fold(1.0, f64::max);
        let top = all().map(|(_, y)| *y).fold(1.5, f64::max).ceil();
        let at = |x: f64, y: f64| {
            let across = (WIDTH - LEFT - RIGHT) * place(x) / right;
            (LEFT + across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top)
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n<text x=\"{LEFT}\" y=\"{}\">{}</text>\n",
            escape(&self.title),
            HEIGHT - 10.0,
            escape(&self.x),
        );
        let mut draw = |element: String| {
            svg.push_str(&element);
            svg.push('\n');
        };
        for step in 0..=(top as u32) {
            let (_, y) = at(0.0, f64::from(step));
            draw(format!(
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{step}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0
            ));
        }
        for x in self.marks() {
            let (x_at, y_at) = at(x, 0.0);
            draw(format!("<text x=\"{x_at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x}</text>", y_at + 16.0));
        }
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<String> =
                line.points.iter().map(|&(x, y)| at(x, y)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            draw(format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" ")
            ));
            for &(x, y) in line.points.iter().filter(|_| self.values) {
                let (x_at, y_at) = at(x, y);
                draw(format!(
                    "<circle cx=\"{x_at:.1}\" cy=\"{y_at:.1}\" r=\"3\" fill=\"{colour}\"/>\
                     <text x=\"{x_at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{colour}\">{y:.2}</text>",
                    y_at - 8.0
                ));
            }
        }
        for (n, (line, colour)) in self.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let x = LEFT + 160.0 * n as f64;
            draw(format!(
                "<rect x=\"{x}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"40\">{}</text>",
                x + 16.0,
                escape(&line.name)
            ));
        }
        svg.push_str("</svg>\n");
        svg
    }
}

impl Chart {
    /// What stands below the axis: each value where there are few, ten steps otherwise.
    fn marks(&self) -> Vec<f64> {
        let mut marks: Vec<f64> = self.lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        match marks.last() {
            Some(most) if marks.len() > 12 => {
                let step = (most / 10.0).max(1.0).round();
                (0..).map(|n| step * f64::from(n)).take_while(|mark| mark <= most).collect()
            }
            _ => marks,
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_points_inside_and_its_words_escaped() {
        let chart = Chart {
            title: "a < b".to_owned(),
            x: "hosts".to_owned(),
            logarithmic: true,
            values: true,
            lines: vec![Line { name: "one".to_owned(), points: vec![(1.0, 1.1), (8.0, 2.7), (32.0, 3.3)] }],
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"), "{svg}");
        let points: Vec<(f64, f64)> = svg
            .split_once("points=\"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .map(|(points, _)| points.split(' ').filter_map(|point| point.split_once(',')))
            .expect("a line")
            .map(|(x, y)| (x.parse().expect("a number"), y.parse().expect("a number")))
            .collect();
        assert_eq!(points.len(), 3);
        assert!(
            points.iter().all(|&(x, y)| (LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y))
        );
        assert!(points.is_sorted_by(|a, b| a.0 < b.0), "to the right: {points:?}");
    }

    #[test]
    fn a_command_names_no_place_of_this_machine() {
        let arguments =
            ["headline", "--out", "/x", "--hosts", "1,2", "--bin-dir=/y", "--nice", "-10"].map(str::to_owned);
        let expected = "cargo run --release -p damselfly-lab -- headline --hosts 1,2 --nice -10";
        assert_eq!(reproducible(arguments.into_iter()), expected);
    }

    #[test]
    fn a_cell_cannot_break_its_table() {
        let mut table = Table::new(["a", "b"]);
        table.row(["1|2".to_owned(), "3".to_owned()]);
        assert_eq!(table.to_string(), "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |\n");
    }
}
