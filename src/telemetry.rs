//! Logs: to standard error, text for people and JSON for machines.
//!
//! Everything goes through tracing. The access log has a layer of its own, since it writes a line
//! for each request, and the lines go out in batches from a thread of their own: no request waits
//! for standard error, and one that is blocked costs lines, not service.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::{Log, LogFormat};

/// The target of access lines.
pub const ACCESS: &str = "access";

/// Lines are written when there are this many bytes of them, or after `PATIENCE`.
const BATCH_BYTES: usize = 32 * 1024;

/// How long a line waits for others.
const PATIENCE: Duration = Duration::from_millis(100);

/// Beyond this, standard error is blocked, and lines are dropped rather than memory filled.
const BACKLOG_BYTES_MAX: usize = 4 * 1024 * 1024;

static OUTPUT: OnceLock<Output> = OnceLock::new();

/// What is logged, to be changed by a reload.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging; `RUST_LOG` wins over the configuration.
pub fn start(log: &Log) {
    let (filter, handle) = reload::Layer::new(filter(log));
    let terminal = io::stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let output = OUTPUT.get_or_init(Output::start).clone();
    let others = FilterFn::new(|about| about.target() != ACCESS);
    let access = FilterFn::new(|about| about.target() == ACCESS);
    let format = tracing_subscriber::fmt::layer().with_writer(output.clone());
    let plain = (!json).then(|| format.with_ansi(terminal).with_filter(others.clone()));
    let machine = json.then(|| {
        let format = tracing_subscriber::fmt::layer().with_writer(output.clone()).json();
        format
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_filter(others)
    });
    let lines = Access { output, json }.with_filter(access);
    // A second start in one process (tests, the demo) keeps the first.
    let started = tracing_subscriber::registry()
        .with(filter)
        .with(plain)
        .with(machine)
        .with(lines)
        .try_init();
    if started.is_ok() {
        let _ = LEVEL.set(handle); // set here only, once
    }
}

/// Changes what is logged; `RUST_LOG` still wins.
pub fn set_level(log: &Log) {
    if let Some(level) = LEVEL.get() {
        let _ = level.reload(filter(log)); // the log lives as long as the process
    }
}

/// Pingora's own remarks are for its developers, and are left out unless they are asked for.
fn filter(log: &Log) -> EnvFilter {
    let usual = log.level.eq_ignore_ascii_case("info");
    let level = if usual { "info,pingora_core=warn,pingora_core::apps=off" } else { &log.level };
    EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(level))
        .unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Writes out what is waiting; for the end of the process.
pub fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.write_out();
    }
}

/// Standard error, in batches.
#[derive(Clone, Debug)]
struct Output(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    lines: Mutex<Lines>,
    enough: Condvar,
    /// Held while writing, so that batches keep their order.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Output {
    fn start() -> Self {
        let output = Self(Arc::default());
        let writer = output.clone();
        // Where no thread can be had, lines go out when the backlog is full and at the end.
        let _ = std::thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                {
                    let mut lines = writer.0.lines.lock();
                    if lines.bytes.len() < BATCH_BYTES {
                        let _ = writer.0.enough.wait_for(&mut lines, PATIENCE);
                    }
                }
                writer.write_out();
            }
        });
        output
    }

    fn push(&self, line: &[u8]) {
        let mut lines = self.0.lines.lock();
        if lines.bytes.len() + line.len() > BACKLOG_BYTES_MAX {
            lines.dropped += 1;
            return;
        }
        let before = lines.bytes.len();
        lines.bytes.extend_from_slice(line);
        if before < BATCH_BYTES && lines.bytes.len() >= BATCH_BYTES {
            self.0.enough.notify_one();
        }
    }

    fn write_out(&self) {
        let _order = self.0.writing.lock();
        let Lines { bytes, dropped } = std::mem::take(&mut *self.0.lines.lock());
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(&bytes); // nobody is left to tell
        if dropped > 0 {
            let _ = writeln!(
                stderr,
                "{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"lines\":{dropped}}}"
            );
        }
    }
}

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        self.0.enough.notify_one(); // what is said now and then need not wait for others
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Writes access lines, one allocation-free pass for each.
struct Access {
    output: Output,
    json: bool,
}

impl<S: Subscriber> Layer<S> for Access {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local!(static LINE: RefCell<String> = const { RefCell::new(String::new()) });
        LINE.with_borrow_mut(|line| {
            line.clear();
            line.push_str(if self.json { "{\"timestamp\":\"" } else { "" });
            stamp(line);
            line.push_str(if self.json {
                "\",\"level\":\"INFO\",\"target\":\"access\""
            } else {
                "  INFO access:"
            });
            event.record(&mut Fields { line, json: self.json });
            line.push_str(if self.json { "}\n" } else { "\n" });
            self.output.push(line.as_bytes());
        });
    }
}

/// Appends the time; the part down to the second is made once a second.
fn stamp(line: &mut String) {
    thread_local!(static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) });
    let now = jiff::Timestamp::now();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.as_second() {
            *second = now.as_second();
            text.clear();
            let _ = write!(text, "{}", now.strftime("%Y-%m-%dT%H:%M:%S")); // a String takes all
        }
        line.push_str(text);
    });
    let _ = write!(line, ".{:06}Z", now.subsec_microsecond());
}

struct Fields<'a> {
    line: &'a mut String,
    json: bool,
}

impl Fields<'_> {
    fn name(&mut self, field: &Field) {
        self.line.push_str(if self.json { ",\"" } else { " " });
        self.line.push_str(field.name());
        self.line.push_str(if self.json { "\":" } else { "=" });
    }

    fn text(&mut self, text: &str) {
        let plain = text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\' && b != 0x7f);
        match (plain, self.json) {
            (true, true) => {
                self.line.push('"');
                self.line.push_str(text);
                self.line.push('"');
            }
            (true, false) if !text.is_empty() && !text.contains(' ') => self.line.push_str(text),
            _ => self.line.push_str(&serde_json::Value::from(text).to_string()),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.text(value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        let _ = write!(self.line, "{value}");
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        let _ = write!(self.line, "{value}");
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.name(field);
        let start = self.line.len();
        let _ = write!(self.line, "{value:?}"); // a String takes all
        let text = self.line.split_off(start);
        self.text(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_within_its_field() {
        let mut line = String::new();
        Fields { line: &mut line, json: true }.text("a\"b\n\\");
        assert_eq!(line, r#""a\"b\n\\""#);
        line.clear();
        Fields { line: &mut line, json: false }.text("a b=1");
        assert_eq!(line, r#""a b=1""#);
    }

    #[test]
    fn a_backlog_is_bounded() {
        let output = Output(Arc::default());
        for _ in 0..10_000 {
            output.push(&[b'x'; 1000]);
        }
        let lines = output.0.lines.lock();
        assert!(lines.bytes.len() <= BACKLOG_BYTES_MAX && lines.dropped > 0);
    }
}
