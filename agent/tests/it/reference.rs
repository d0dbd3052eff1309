//! docs/reference.md says what the code says.

use std::path::Path;

use podcred::{config, reject};

use crate::harness::registered_metrics;

const REFERENCE: &str = include_str!("../../../docs/reference.md");

/// What stands between `<!-- name: … -->` and `<!-- /name -->`.
fn section(name: &str) -> &str {
    let (_, from) = REFERENCE.split_once(&format!("<!-- {name}: ")).expect("the section begins");
    let (_, from) = from.split_once("-->\n").expect("the marker ends");
    from.split_once(&format!("<!-- /{name} -->")).expect("the section ends").0
}

/// On a mismatch the text that belongs there is printed whole, to be pasted.
fn check(name: &str, expected: &str) {
    let found = section(name);
    assert!(found == expected, "the section {name} of docs/reference.md should be:\n{expected}");
}

#[test]
fn every_flag_is_in_it() {
    check("flags", &config::flag_table());
}

#[test]
fn every_refusal_is_in_it() {
    check("refusals", &reject::table());
}

#[test]
fn every_metric_is_in_it() {
    let table = section("metrics");
    for name in registered_metrics() {
        assert!(table.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn every_log_event_is_in_it() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let (table, mut events) = (section("events"), 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).expect("source");
            for event in source.split("event = \"").skip(1).filter_map(|rest| rest.split('"').next()) {
                events += 1;
                assert!(table.contains(&format!("`{event}`")), "{event} of {}", path.display());
            }
        }
    }
    assert!(events > 20, "only {events} found");
}
