//! The page of troubleshooting quotes what the program says, word for word; `…` stands for what it fills in.

use std::fs;

use crate::page::{Page, files, root};

/// All that the sources say, with lines that go on joined as the compiler joins them.
fn said() -> String {
    let mut said = String::new();
    for path in files(&root().join("src"), "rs") {
        let text = fs::read_to_string(path).unwrap();
        let mut goes_on = false;
        for line in text.lines() {
            let line = if goes_on { line.trim_start() } else { line };
            let begun = line.strip_suffix('\\');
            goes_on = begun.is_some();
            said.push_str(begun.unwrap_or(line));
            if !goes_on {
                said.push('\n');
            }
        }
    }
    // What is filled in, `{name}`, is of no length here; `{{` is a brace.
    let mut plain = String::new();
    let mut rest = said.as_str();
    while let Some(at) = rest.find('{') {
        plain.push_str(&rest[..at]);
        let end = rest[at..].find(['}', '\n', '"']).map_or(rest.len(), |end| at + end + 1);
        plain.push('…');
        rest = &rest[end..];
    }
    plain + rest
}

#[test]
fn every_message_in_the_page_is_one_of_ours() {
    let page = Page::read(root().join("docs/src/troubleshooting.md"));
    let said = said();
    let quoted = page.text.lines().filter_map(|l| l.strip_prefix("### `")?.strip_suffix('`'));
    let mut count = 0;
    for message in quoted {
        count += 1;
        let parts = message.split('…').map(str::trim).filter(|part| part.len() > 5);
        for part in parts {
            assert!(said.contains(part), "`{message}`: nothing in the sources says `{part}`");
        }
    }
    assert!(count > 40, "only {count} messages were found");
}
