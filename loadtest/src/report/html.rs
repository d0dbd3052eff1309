//! `report.html`: one file that needs no network and no script.

use anyhow::Result;

use super::chart::Ink;
use super::charts::{self, Titled};
use super::run::Run;
use super::tables::{self, Table, command_line};

const STYLE: &str = include_str!("html/style.css");
/// The browser itself sees to it that the page loads nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// `goose` is the name of goose's own report, where it lies beside this page.
pub(super) fn page(run: &Run, goose: Option<&str>) -> Result<String> {
    let missed = run.expected.iter().any(|expected| !expected.held);
    let class = match run.expected.is_empty() {
        true => "none",
        false if missed => "missed",
        false => "held",
    };
    let title = format!("podcred · {}", run.scenario);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{inks}</style></head>\n<body><main>\n\
         <header><p class=\"what\">podcred load test · {started}</p><h1>{scenario}</h1>\n\
         <p class=\"question\">{question}</p>\n<p class=\"verdict {class}\">{verdict}</p></header>\n",
        title = escape(&title),
        inks = Ink::style(),
        started = escape(&run.started),
        scenario = escape(&run.scenario),
        question = escape(&run.question),
        verdict = escape(&tables::verdict(run)),
    );
    page += &expectations(run);
    page += &figures(run);
    page += &charts(run)?;
    page += &section("Groups of pods", "numbers", &tables::groups(run));
    page += &section("Failures", "", &tables::failures(run));
    page += &list("To judge the figures", &run.notes);
    page += &repeat(run);
    page += &others(goose);
    page += "</main></body></html>\n";
    Ok(page)
}

fn expectations(run: &Run) -> String {
    let row = |expected: &super::Expected| {
        let (class, sign) = if expected.held { ("held", "✓ held") } else { ("missed", "✗ not held") };
        format!(
            "<tr><td><code>{}</code></td><td>{}</td><td class=\"{class}\">{sign}</td></tr>\n",
            escape(&expected.condition),
            escape(&expected.was)
        )
    };
    let rows: String = run.expected.iter().map(row).collect();
    match rows.is_empty() {
        true => String::new(),
        false => format!(
            "<section><div class=\"scroll\"><table class=\"expected\"><thead><tr><th>expected</th><th>was</th>\
             <th></th></tr></thead><tbody>\n{rows}</tbody></table></div></section>\n"
        ),
    }
}

fn figures(run: &Run) -> String {
    let tile = |figure: tables::Figure| {
        format!(
            "<div class=\"figure\"><span>{}</span><strong>{}</strong><small>{}</small></div>\n",
            escape(figure.name),
            escape(&figure.value),
            escape(&figure.beside)
        )
    };
    let tiles: String = tables::figures(run).into_iter().map(tile).collect();
    format!("<section class=\"figures\">\n{tiles}</section>\n")
}

fn charts(run: &Run) -> Result<String> {
    let mut section = String::from("<section class=\"charts\">\n");
    for Titled { title, chart } in charts::of(run) {
        let key = |series: &super::chart::Series| {
            format!("<i style=\"background:var(--{})\"></i>{}", series.ink.name(), escape(&series.name))
        };
        let keys: Vec<String> = chart.series.iter().map(key).collect();
        let keys = if keys.len() > 1 { keys.join(" ") } else { String::new() };
        section += &format!(
            "<figure role=\"img\" aria-label=\"{title}\"><figcaption><b>{title}</b><span>{keys}</span></figcaption>\n\
             {}</figure>\n",
            chart.svg()?
        );
    }
    section += "</section>\n";
    let mark = |mark: &super::Mark| format!("<li>at {:.0} s: {}</li>", mark.at_seconds, escape(&mark.what));
    let marks: String = run.marks.iter().map(mark).collect();
    if !marks.is_empty() {
        section += &format!("<section class=\"marks\"><h2>What happened</h2><ol>{marks}</ol></section>\n");
    }
    Ok(section)
}

/// What it takes to do it again.
fn repeat(run: &Run) -> String {
    let mut section =
        format!("<section><h2>Once more</h2><pre>{}</pre>\n", escape(&command_line(&run.command)));
    if let Some(agent) = &run.agent_command {
        section += &format!("<p>The agent:</p><pre>{}</pre>\n", escape(&command_line(agent)));
    }
    let settings = table("", &tables::settings(run));
    let versions = table("", &tables::versions(run));
    section + &format!("<div class=\"columns\">{settings}{versions}</div></section>\n")
}

fn others(goose: Option<&str>) -> String {
    let link = |name: &str, what: &str| format!("<a href=\"{0}\">{0}</a> ({what})", escape(name));
    let mut links =
        vec![link("report.json", "all of it, for programs"), link("report.md", "the tables, for a log")];
    links.extend(goose.map(|name| link(name, "goose's own page; its charts need a network")));
    format!("<footer>{}</footer>\n", links.join(" · "))
}

/// Nothing where the table has no row.
fn section(title: &str, class: &str, content: &Table) -> String {
    match content.rows.is_empty() {
        true => String::new(),
        false => format!("<section><h2>{}</h2>{}</section>\n", escape(title), table(class, content)),
    }
}

fn table(class: &str, table: &Table) -> String {
    let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    if table.rows.is_empty() {
        return String::new();
    }
    let head = row("th", &mut table.header.iter().copied());
    let body: String =
        table.rows.iter().map(|cells| row("td", &mut cells.iter().map(String::as_str))).collect();
    format!(
        "<div class=\"scroll\"><table class=\"{class}\"><thead>{head}</thead><tbody>\n{body}</tbody></table></div>\n"
    )
}

fn list(title: &str, lines: &[String]) -> String {
    let items: String = lines.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
    match items.is_empty() {
        true => String::new(),
        false => format!("<section><h2>{}</h2><ul>{items}</ul></section>\n", escape(title)),
    }
}

/// Good for text and for an attribute in quotes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_page_asks_the_network_for_nothing() {
        let page = page(&sample::outage(), Some("goose.html")).unwrap();
        // The name of SVG's namespace is a name.
        let page = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for what in ["http:", "https:", "//", "url(", "@import", "<script", "<link", "<img", " src="] {
            assert!(!page.contains(what), "{what}");
        }
        assert!(page.contains("href=\"goose.html\""), "what lies beside it is linked");
    }

    #[test]
    fn text_of_the_run_is_text_on_the_page() {
        let mut run = sample::outage();
        run.scenario = "<script>alert('1')</script>".to_owned();
        run.failures[0].class = "<img src=x onerror=\"a\">".to_owned();
        run.groups[1].name = "<b>&".to_owned();
        run.marks[0].what = "</svg><i>".to_owned();
        let page = page(&run, None).unwrap();
        for raw in ["<script", "<img", "<b>&", "</svg><i>"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("&lt;b&gt;&amp;"));
    }

    #[test]
    fn a_run_of_nothing_has_a_page() {
        let page = page(&sample::empty(), None).unwrap();
        assert!(page.contains("Nothing was expected of this run") && !page.contains("<svg"), "{page}");
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
