//! Pages: where they are, and the blocks, spans, links and headings in them.

use std::fs;
use std::path::{Path, PathBuf};

/// One Markdown file.
pub(crate) struct Page {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block: where it begins, what it is called, and what it holds, includes resolved.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) line: usize,
    pub(crate) tag: String,
    pub(crate) text: String,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file with this extension below a folder, in order.
pub(crate) fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The book, and the pages that lie beside what they are about.
pub(crate) fn all() -> Vec<Page> {
    let beside = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md"];
    let further = ["charts/pierhead/README.md", "packaging/README.md", "benches/README.md"];
    let mut paths: Vec<_> = beside.iter().chain(&further).map(|name| root().join(name)).collect();
    let book = files(&root().join("docs/src"), "md");
    assert!(book.len() > 30, "where is the book?");
    paths.extend(book);
    paths.into_iter().map(Page::read).collect()
}

impl Page {
    pub(crate) fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path, text }
    }

    /// The path as people write it.
    pub(crate) fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// The fenced blocks. A block in a list is indented as its fence is.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<(Block, usize)> = None;
        for (number, line) in self.text.lines().enumerate() {
            let bare = line.trim_start();
            match (&mut open, bare.strip_prefix("```")) {
                (None, Some(tag)) => {
                    let block =
                        Block { line: number + 1, tag: tag.to_owned(), text: String::new() };
                    open = Some((block, line.len() - bare.len()));
                }
                (Some(_), Some("")) => blocks.extend(open.take().map(|(block, _)| block)),
                (Some((block, indent)), _) => {
                    let line = line.get(*indent..).unwrap_or_default();
                    block.text.push_str(&self.included(line));
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", self.name());
        blocks
    }

    /// `{{#include FILE}}` as mdBook reads it.
    fn included(&self, line: &str) -> String {
        let Some(file) = line.strip_prefix("{{#include ").and_then(|l| l.strip_suffix("}}")) else {
            return line.to_owned();
        };
        let path = self.path.parent().unwrap().join(file.trim());
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {file}: {e}", self.name()))
    }

    /// What stands outside of blocks, with empty lines in their place.
    pub(crate) fn prose(&self) -> String {
        let mut inside = false;
        let mut prose = String::new();
        for line in self.text.lines() {
            let fence = line.trim_start().starts_with("```");
            if !inside && !fence {
                prose.push_str(line);
            }
            inside ^= fence;
            prose.push('\n');
        }
        prose
    }

    /// What stands between single backticks in the prose.
    pub(crate) fn spans(&self) -> Vec<String> {
        let prose = self.prose();
        prose
            .split("\n\n")
            .flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
            .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    /// The names that headings can be reached by, as mdBook and GitHub make them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let prose = self.prose();
        let headings = prose.lines().filter(|l| l.starts_with('#'));
        headings.map(|heading| anchor(heading.trim_start_matches('#').trim())).collect()
    }
}

fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn blocks_spans_and_anchors_are_found() {
    let text =
        "# A `b.C` d\n`one` and `two\nwords`\n\n- x\n  ```yaml\n  a:\n    b\n  ```\n`last`\n";
    let page = Page { path: root().join("x.md"), text: text.to_owned() };
    assert_eq!(page.blocks()[0].text, "a:\n  b\n");
    assert_eq!((page.blocks()[0].line, page.blocks()[0].tag.as_str()), (6, "yaml"));
    assert_eq!(page.spans(), ["b.C", "one", "two words", "last"]);
    assert_eq!(page.anchors(), ["a-bc-d"]);
}
