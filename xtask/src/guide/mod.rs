//! The user guide, `docs/book`: rendered, its links checked, and the commands run that it marks.
//!
//! It is laid out as mdBook has it, which renders it where there is one ([`mdbook`]). Building mdBook takes a machine of
//! two processors a quarter of an hour, so what is checked here is read and rendered by pulldown-cmark, which mdBook
//! reads with too: every chapter is in the summary, every link leads to a file and a heading that are there, and
//! every block marked `sh run` is run by a shell in a folder of its own, with the programs of this build.

mod mdbook;
mod picture;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use console::say;
use pulldown_cmark::{CodeBlockKind, CowStr, Event, Options, Parser, Tag, TagEnd, html};

use crate::apt::{make, write};
use crate::{Failure, Result, process, root, target, times};

/// Where chapters are.
const SOURCE: &str = "docs/book/src";
/// What a block begins with that is run.
const MARK: &str = "sh run";

/// Draws the picture of the guide anew.
pub(crate) fn draw() -> Result {
    write(&root().join(SOURCE).join(picture::NAME), &picture::svg())
}

/// Pictures of what tortures measured, and how these are told apart. They are of the machine and the day that they were
/// made on, so they are made anew by hand.
const MEASURED: [(&str, &[&str]); 2] =
    [("recovery.svg", &[]), ("recovery-standby.svg", &["--standby"])];
/// Deaths of each.
const KILLS: &str = "2000";

/// Measures what the guide shows of recovery, with the programs in `programs`, and draws it anew.
pub(crate) fn measure(programs: &Path) -> Result {
    for (name, options) in MEASURED {
        let mut torture = Command::new(programs.join("cordon"));
        torture.args(["torture", "--kills", KILLS]).args(options);
        torture.arg("--svg").arg(root().join(SOURCE).join(name));
        crate::run_aloud(&format!("the torture of {name}"), torture)?;
    }
    Ok(())
}

/// Checks and renders the guide, and runs its commands with the programs in `programs`; a line that says what was done.
pub(crate) fn check(programs: &Path) -> Result<String> {
    times::heading("the guide, and its commands")?;
    let source = root().join(SOURCE);
    let drawn = read(&source.join(picture::NAME))?;
    if drawn != picture::svg() {
        return Err(
            format!("{} is not what is drawn: cargo xtask guide --draw", picture::NAME).into()
        );
    }
    let names = chapters(&source)?;
    mdbook::check()?;
    let into = target().join("guide");
    make(&into)?;
    write(&into.join(picture::NAME), &drawn)?;
    for (name, _) in MEASURED {
        write(&into.join(name), &read(&source.join(name))?)?;
    }
    let (mut links, mut commands) = (0, 0);
    for name in &names {
        let text = read(&source.join(name))?;
        links += check_links(&source.join(name), &text)?;
        write(&into.join(name).with_extension("html"), &page(&source, &text))?;
        for block in marked(&text) {
            commands += run_block(name, &block, programs)?;
        }
    }
    say!("{} chapters rendered to {}, {links} links lead somewhere", names.len(), into.display())?;
    say!("{}", mdbook::render(&names)?)?;
    Ok(format!("guide: {commands} commands run"))
}

fn read(path: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?)
}

fn events(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// Where links and pictures of a text lead.
fn destinations(text: &str) -> Vec<String> {
    let destination = |event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    };
    events(text).filter_map(destination).collect()
}

/// The chapters, as the summary orders them: all that there are.
fn chapters(source: &Path) -> Result<Vec<String>> {
    let listed = destinations(&read(&source.join("SUMMARY.md"))?);
    let entries = std::fs::read_dir(source).map_err(|error| format!("{SOURCE}: {error}"))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let there: BTreeSet<String> =
        names.filter(|name| name.ends_with(".md") && name != "SUMMARY.md").collect();
    let differ: Vec<String> =
        there.symmetric_difference(&listed.iter().cloned().collect()).cloned().collect();
    if differ.is_empty() && listed.len() == there.len() {
        Ok(listed)
    } else {
        Err(format!("the summary of the guide and its chapters differ: {differ:?}").into())
    }
}

/// The names by which the headings of a text are linked to.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut found, mut heading) = (BTreeSet::new(), None::<String>);
    for event in events(text) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
            (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
            (Event::End(TagEnd::Heading(_)), Some(text)) => {
                let kept = text.to_lowercase().replace(' ', "-");
                found.insert(
                    kept.replace(|one: char| !(one.is_alphanumeric() || "-_".contains(one)), ""),
                );
                heading = None;
            }
            _ => {}
        }
    }
    found
}

/// Checks that every link of a file's text that leads to a file has one; how many there are. What is elsewhere is not
/// asked for.
fn check_links(file: &Path, text: &str) -> Result<usize> {
    let mut count = 0;
    for link in destinations(text).into_iter().filter(|link| !link.contains("://")) {
        let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let to = if path.is_empty() { file.to_owned() } else { file.with_file_name(path) };
        let nowhere = |what: &str| -> Failure {
            format!("{}: the link {link} leads nowhere: {what}", file.display()).into()
        };
        if !to.exists() {
            return Err(nowhere("there is no such file"));
        }
        if !anchor.is_empty() && !anchors(&read(&to)?).contains(anchor) {
            return Err(nowhere("there is no such heading"));
        }
        count += 1;
    }
    Ok(count)
}

/// A chapter as a page. Its links to chapters lead to pages, others to where the files are.
fn page(source: &Path, text: &str) -> String {
    let events = events(text).map(|event| match event {
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let dest_url = CowStr::from(page_of(source, &dest_url));
            Event::Start(Tag::Link { link_type, dest_url, title, id })
        }
        other => other,
    });
    let mut page =
        String::from("<!doctype html>\n<meta charset=\"utf-8\">\n<title>Cordon</title>\n");
    html::push_html(&mut page, events);
    page
}

fn page_of(source: &Path, link: &str) -> String {
    if link.contains("://") || link.starts_with('#') {
        return link.to_owned();
    }
    if let (Some((name, anchor)), false) = (link.split_once(".md"), link.contains('/')) {
        return format!("{name}.html{anchor}");
    }
    let mut whole = PathBuf::new();
    for part in source.join(link).components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            other => whole.push(other),
        }
    }
    whole.display().to_string()
}

/// The blocks of a text that are run.
fn marked(text: &str) -> Vec<String> {
    let (mut blocks, mut block) = (Vec::new(), None::<String>);
    for event in events(text) {
        match (event, &mut block) {
            (Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))), _) if &*info == MARK => {
                block = Some(String::new());
            }
            (Event::Text(text), Some(block)) => block.push_str(&text),
            (Event::End(TagEnd::CodeBlock), Some(_)) => blocks.extend(block.take()),
            _ => {}
        }
    }
    blocks
}

/// How many commands a block has: its lines, but for those that go on.
fn commands(block: &str) -> usize {
    let lines = block.lines().filter(|line| !line.trim().is_empty());
    lines.filter(|line| !line.ends_with('\\') && !line.starts_with('#')).count()
}

/// Runs a block; how many commands it has. What it leaves running is ended.
fn run_block(chapter: &str, block: &str, programs: &Path) -> Result<usize> {
    let folder = tempfile::tempdir()?;
    let mut path = vec![programs.to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut shell = Command::new("sh");
    // The shell leads a group of its own, in which is what it started.
    shell.args(["-euc", &format!("trap 'trap \"\" TERM; kill 0' EXIT\n{block}")]);
    shell.current_dir(folder.path()).env("PATH", std::env::join_paths(path)?);
    let what = format!("a block of the guide's {chapter}");
    let output = process::output(&what, &mut shell)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        return Err(format!("{what} failed: {}\n{block}\n{said}", output.status).into());
    }
    for line in block.lines() {
        say!("{chapter}: {line}")?;
    }
    Ok(commands(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one.md");
        let other = "# A heading: of `two` words\n\n## Second\n";
        std::fs::write(folder.path().join("two.md"), other).unwrap();
        let good = "# Top\n[a](two.md) [b](two.md#a-heading-of-two-words) [c](#top) [d](https://x.example/y)\n";
        std::fs::write(&file, good).unwrap();
        assert_eq!(check_links(&file, good).unwrap(), 3);
        for (bad, why) in [
            ("[a](three.md)", "no such file"),
            ("![a](picture.svg)", "no such file"),
            ("[a](two.md#third)", "no such heading"),
            ("[a](#nothing)", "no such heading"),
        ] {
            let error = check_links(&file, bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_marked_blocks_are_run_and_their_commands_counted() {
        let text = "```sh run\none &\ntwo \\\n    more\n# no command\n\n```\n\n```sh\nthree\n```\n";
        let blocks = marked(text);
        assert_eq!(blocks, ["one &\ntwo \\\n    more\n# no command\n\n"]);
        assert_eq!(commands(&blocks[0]), 2);
    }

    #[test]
    fn the_summary_has_every_chapter_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        make("SUMMARY.md", "[One](one.md)\n\n- [Two](two.md)\n");
        make("one.md", "");
        assert!(chapters(folder.path()).unwrap_err().to_string().contains("two.md"));
        make("two.md", "");
        assert_eq!(chapters(folder.path()).unwrap(), ["one.md", "two.md"]);
        make("three.md", "");
        assert!(chapters(folder.path()).unwrap_err().to_string().contains("three.md"));
    }

    #[test]
    fn links_of_a_page_lead_to_pages_and_files() {
        let source = Path::new("/r/docs/book/src");
        assert_eq!(page_of(source, "faq.md#x"), "faq.html#x");
        assert_eq!(page_of(source, "../../../README.md"), "/r/README.md");
        assert_eq!(page_of(source, "https://x.example/"), "https://x.example/");
        let page = page(source, "[a](faq.md)");
        assert!(page.contains("<a href=\"faq.html\">a</a>"), "{page}");
    }

    #[test]
    fn the_guide_of_this_tree_has_links_that_lead_somewhere_and_its_picture() {
        let source = root().join(SOURCE);
        for name in chapters(&source).unwrap() {
            let text = read(&source.join(&name)).unwrap();
            check_links(&source.join(&name), &text).unwrap();
        }
        assert_eq!(read(&source.join(picture::NAME)).unwrap(), picture::svg());
    }
}
