//! docs/events.schema.json and the tables of docs/events.md are what the types say. With
//! `CORDON_WRITE_DOCS=1` the test writes them.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;

use super::super::{Event, Record, SCHEMA};

/// Where the generated part of docs/events.md begins.
const MARK: &str = "<!-- From here on written by cordon/src/event/tests/schema.rs. -->\n";

fn documents() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn schema() -> Value {
    schemars::schema_for!(Record).to_value()
}

/// A schema, or what it refers to.
fn resolved<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let reference = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    reference.map_or(schema, |name| &root["$defs"][name])
}

/// Its description on one line.
fn description(schema: &Value) -> String {
    schema["description"]
        .as_str()
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a field may be.
fn kind(root: &Value, schema: &Value) -> String {
    let found = resolved(root, schema);
    if let Some(all) = found["oneOf"].as_array().or(found["anyOf"].as_array()) {
        let all: Vec<_> =
            all.iter().map(|one| kind(root, one)).filter(|one| one != "null").collect();
        return all.join(", ");
    }
    if let Some(word) = found["const"].as_str() {
        return format!("`{word}`");
    }
    if let Some(words) = found["enum"].as_array() {
        let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    let name = match &found["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|one| *one != "null"),
        one => one.as_str(),
    };
    match name {
        Some("array") => format!("array of {}", kind(root, &found["items"])),
        Some(name) => name.to_owned(),
        None => panic!("{found}"),
    }
}

/// Rows for the fields of an object, those of objects in it indented by their path.
fn rows(root: &Value, schema: &Value, path: &str, text: &mut String) {
    let schema = resolved(root, schema);
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if name == "event" {
            continue;
        }
        let presence = if required.contains(&name.as_str()) { "" } else { ", may be absent" };
        let said = description(field);
        let said = if said.is_empty() { description(resolved(root, field)) } else { said };
        assert!(!said.is_empty(), "{name} is not documented");
        writeln!(text, "| `{path}{name}` | {}{presence} | {said} |", kind(root, field)).unwrap();
        let items = resolved(root, &field["items"]);
        if items["properties"].is_object() {
            rows(root, items, &format!("{path}{name}[]."), text);
        }
    }
}

/// The schemas of the kinds, by name.
fn kinds(schema: &Value) -> Vec<(String, &Value)> {
    let all = schema["oneOf"].as_array().unwrap().iter();
    let named =
        all.map(|one| (one["properties"]["event"]["const"].as_str().unwrap().to_owned(), one));
    named.collect()
}

fn tables(schema: &Value) -> String {
    let mut text = String::from(MARK);
    let table = "\n| field | type | |\n| --- | --- | --- |\n";
    write!(text, "\n## Fields of every line\n{table}").unwrap();
    rows(schema, schema, "", &mut text);
    writeln!(text, "| `event` | string | The kind: one of those below |").unwrap();
    for (name, kind) in kinds(schema) {
        let said = description(kind);
        assert!(!said.is_empty(), "{name} is not documented");
        write!(text, "\n## `{name}`\n\nSince schema {SCHEMA}. {said}\n").unwrap();
        let mut fields = String::new();
        rows(schema, kind, "", &mut fields);
        if !fields.is_empty() {
            write!(text, "{table}{fields}").unwrap();
        }
    }
    text
}

#[test]
fn the_schema_and_its_page_are_what_the_types_say() {
    let (schema, folder) = (schema(), documents());
    let (json, page) = (folder.join("events.schema.json"), folder.join("events.md"));
    let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    let before = std::fs::read_to_string(&page).unwrap();
    let (intro, _) = before.split_once(MARK).unwrap();
    let whole = format!("{intro}{}", tables(&schema));
    if std::env::var_os("CORDON_WRITE_DOCS").is_some() {
        std::fs::write(&json, &text).unwrap();
        std::fs::write(&page, &whole).unwrap();
    }
    let hint = "CORDON_WRITE_DOCS=1 cargo test -p cordon-cli schema writes it";
    assert!(std::fs::read_to_string(json).unwrap() == text, "events.schema.json: {hint}");
    assert!(std::fs::read_to_string(page).unwrap() == whole, "events.md: {hint}");
}

#[test]
fn every_event_is_of_a_kind_of_the_schema_with_its_fields_and_no_others() {
    let schema = schema();
    let kinds = kinds(&schema);
    let mut seen = std::collections::BTreeSet::new();
    for event in super::all() {
        let name = event.name();
        seen.insert(name.to_owned());
        let kind = kinds.iter().find(|(one, _)| one == name).unwrap_or_else(|| panic!("{name}")).1;
        let record = Record::now(7, event);
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(serde_json::from_value::<Record>(value.clone()).unwrap(), record);
        let of = |schema: &Value, what: &str| -> Vec<String> {
            match &schema[what] {
                Value::Object(fields) => fields.keys().cloned().collect(),
                Value::Array(names) => {
                    names.iter().map(|one| one.as_str().unwrap().to_owned()).collect()
                }
                _ => Vec::new(),
            }
        };
        let all = |what: &str| {
            let target = resolved(&schema, kind);
            [of(&schema, what), of(kind, what), of(target, what)].concat()
        };
        let (known, required) = (all("properties"), all("required"));
        let fields = value.as_object().unwrap();
        assert!(fields.keys().all(|field| known.contains(field)), "{value}: {known:?}");
        assert!(required.iter().all(|field| fields.contains_key(field)), "{value}: {required:?}");
    }
    let named = kinds.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(seen, named, "`all` has one of each");
}

#[test]
fn a_line_says_when_it_was_told_by_both_clocks() {
    let (first, second) = (Record::now(1, Event::Ready), Record::now(2, Event::Ready));
    assert_eq!(first.schema, SCHEMA);
    assert!(second.monotonic_us >= first.monotonic_us && first.monotonic_us > 0);
    let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).count();
    // 2026-01-02T03:04:05.678901Z
    assert_eq!((first.time.len(), digits(&first.time)), (27, 20), "{}", first.time);
    assert!(first.time.ends_with('Z') && first.time <= second.time);
}
