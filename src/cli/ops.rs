//! The commands that ask or tell a running mirror.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use bytesize::ByteSize;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::ask::Admin;
use super::{File, Overrides, failed, load, runtime};
use crate::config::admin::token;
use crate::config::{Config, Loaded};

/// Entries asked for at a time.
const PAGE: usize = 1000;

/// How often a run's progress is asked for.
const EVERY: Duration = Duration::from_millis(200);

/// Which mirror is asked, and how it is told.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    #[command(flatten)]
    file: File,
    /// The mirror's admin address, instead of the configured one.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// The file with the admin address's token, instead of the configured one.
    #[arg(long, value_name = "FILE", env = "PIERHEAD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs a command against the mirror that the arguments name, and prints what it says.
pub(super) fn told(
    to: &AdminArgs,
    work: impl AsyncFnOnce(&Admin) -> anyhow::Result<String>,
) -> ExitCode {
    let (authority, configured) = match &to.admin {
        Some(authority) => (authority.clone(), None),
        None => match load(&to.file, &Overrides::default()) {
            Ok(Loaded { config: Config { admin, .. }, .. }) => {
                (reachable(admin.address), admin.token_file)
            }
            Err(code) => return code,
        },
    };
    let file = to.token_file.clone().or(configured);
    let outcome = runtime(1).and_then(|runtime| {
        let token = file.map(|file| token(&file)).transpose().map_err(anyhow::Error::msg)?;
        let admin = Admin::new(authority, token, to.json)?;
        runtime.block_on(work(&admin))
    });
    match outcome {
        Ok(text) => {
            say!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// An address that stands for all of this machine's is reached on this machine.
fn reachable(mut address: std::net::SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address.to_string()
}

/// `status`: sizes, bounds and hit ratios.
pub(super) async fn status(admin: &Admin) -> anyhow::Result<String> {
    let status = admin.get("/api/status", &[]).await?;
    if admin.json {
        return Ok(pretty(&status));
    }
    let cache = &status["cache"];
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<12} {text}"); // a String takes all
    };
    line(
        "version",
        format!("{}, up {}", word(&status["version"]), age(status["uptime_seconds"].as_u64())),
    );
    line("cache", word(&cache["path"]).to_owned());
    let used = cache["bytes"].as_u64().unwrap_or_default();
    let bound = cache["max_bytes"].as_u64().unwrap_or_default();
    let percent = used.saturating_mul(100).checked_div(bound).unwrap_or_default();
    line(
        "held",
        format!(
            "{} of {} ({percent} %), {} objects",
            size(&cache["bytes"]),
            size(&cache["max_bytes"]),
            cache["objects"]
        ),
    );
    line("pinned", size(&cache["pinned_bytes"]));
    line(
        "disk",
        format!(
            "{} free of {}, {} stay free",
            size(&cache["disk_free_bytes"]),
            size(&cache["disk_total_bytes"]),
            size(&cache["min_free_bytes"])
        ),
    );
    line("memory", size(&cache["memory_bytes"]));
    if cache["writable"] == json!(false) {
        line(
            "trouble",
            "the disk took no more when last asked: content is passed on without being kept"
                .to_owned(),
        );
    }
    if cache["ready"] == json!(false) {
        line("starting", "the cache folder is still being read".to_owned());
    }
    for (name, key) in [("biggest", "biggest"), ("oldest", "oldest")] {
        if let Some(digest) = cache[key]["digest"].as_str() {
            line(
                name,
                format!(
                    "{digest} {}, used {}",
                    size(&cache[key]["bytes"]),
                    since(&cache[key]["used"])
                ),
            );
        }
    }
    line("downloads", format!("{} under way", status["fills"]));
    line("hits", ratios(&status["requests"]));
    for (name, tally) in status["upstreams"].as_object().into_iter().flatten() {
        line(&format!("  {name}"), ratios(tally));
    }
    Ok(out)
}

fn ratios(tally: &Value) -> String {
    let percent = |key: &str| {
        tally[key]
            .as_f64()
            .map_or_else(|| "nothing asked".to_owned(), |r| format!("{:.1} %", 100.0 * r))
    };
    format!(
        "{} of {} requests, {} of {}",
        percent("hit_ratio"),
        tally["requests"],
        percent("hit_byte_ratio"),
        size(&tally["bytes"])
    )
}

/// What `ls` is to list.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) repository: Option<String>,
    pub(super) objects: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) n: usize,
}

/// `ls`: repositories, tags or objects.
pub(super) async fn list(admin: &Admin, wanted: &Wanted) -> anyhow::Result<String> {
    if let Some(order) = &wanted.objects {
        let n = if wanted.n == 0 { PAGE } else { wanted.n }.to_string();
        let list = admin.get("/api/objects", &[("sort", order), ("n", &n)]).await?;
        let row = |o: &Value| {
            format!(
                "{:>10}  {:>12}  {}{}",
                size(&o["bytes"]),
                since(&o["used"]),
                word(&o["digest"]),
                pinned(o)
            )
        };
        return Ok(shown(admin, &list["objects"], row));
    }
    if let Some(repository) = &wanted.repository {
        let rows =
            pages(admin, "/api/tags", "tags", &[("repository", repository)], wanted.n).await?;
        let row = |t: &Value| {
            let objects = format!("{}/{}", t["objects_held"], t["objects"]);
            format!(
                "{:<30}  {:>10}  {objects:>7}  {}{}",
                word(&t["tag"]),
                size(&t["bytes_held"]),
                word(&t["digest"]),
                pinned(t)
            )
        };
        return Ok(shown(admin, &rows, row));
    }
    let upstream = wanted.upstream.as_deref();
    let query: Vec<_> = upstream.map(|name| ("upstream", name)).into_iter().collect();
    let rows = pages(admin, "/api/repositories", "repositories", &query, wanted.n).await?;
    let row = |r: &Value| {
        format!(
            "{:>10}  {:>6} objects  {:>5} tags  {}",
            size(&r["bytes"]),
            r["objects"],
            r["tags"],
            word(&r["name"])
        )
    };
    Ok(shown(admin, &rows, row))
}

/// Asks for page after page, until there is no next one or there are `n` rows.
async fn pages(
    admin: &Admin,
    path: &str,
    key: &str,
    query: &[(&str, &str)],
    n: usize,
) -> anyhow::Result<Value> {
    let limit = if n == 0 { usize::MAX } else { n };
    let mut rows = Vec::new();
    let mut after: Option<String> = None;
    while rows.len() < limit {
        let count = PAGE.min(limit - rows.len()).to_string();
        let mut query = query.to_vec();
        query.push(("n", &count));
        query.extend(after.as_deref().map(|after| ("after", after)));
        let page = admin.get(path, &query).await?;
        rows.extend(page[key].as_array().cloned().unwrap_or_default());
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    Ok(rows.into())
}

fn shown(admin: &Admin, rows: &Value, row: impl Fn(&Value) -> String) -> String {
    if admin.json {
        return pretty(rows);
    }
    let rows = rows.as_array().into_iter().flatten();
    rows.map(|one| row(one) + "\n").collect()
}

fn pinned(row: &Value) -> &'static str {
    if row["pinned"] == json!(true) { "  pinned" } else { "" }
}

/// `purge`.
pub(super) async fn purge(admin: &Admin, order: &Value) -> anyhow::Result<String> {
    let purged = admin.post("/api/purge", order).await?;
    if admin.json {
        return Ok(pretty(&purged));
    }
    let mut text = format!(
        "purged {} objects, {}, and {} records\n",
        purged["objects"],
        size(&purged["bytes"]),
        purged["records"]
    );
    for (key, why) in [("pinned", "are pinned"), ("shared", "belong to other repositories too")] {
        if purged[key].as_u64().is_some_and(|n| n > 0) {
            let _ = writeln!(text, "{} objects stay: they {why}", purged[key]); // a String takes all
        }
    }
    Ok(text)
}

/// `pin`, or the list of pins.
pub(super) async fn pin(admin: &Admin, image: Option<&str>) -> anyhow::Result<String> {
    let Some(image) = image else {
        let pins = admin.get("/api/pins", &[]).await?;
        let row = |p: &Value| {
            let joint = if word(&p["reference"]).contains(':') { '@' } else { ':' };
            format!(
                "{}/{}{joint}{}  {}",
                word(&p["upstream"]),
                word(&p["repository"]),
                word(&p["reference"]),
                word(&p["digest"])
            )
        };
        return Ok(shown(admin, &pins["pins"], row));
    };
    let done = admin.post("/api/pin", &json!({"image": image})).await?;
    if admin.json {
        return Ok(pretty(&done));
    }
    let mut text = format!(
        "pinned {image}: {} of {} objects are held\n",
        done["objects_held"], done["objects"]
    );
    if done["objects_held"] != done["objects"] {
        let _ = writeln!(text, "the rest stays once it has come: pierhead warm {image}"); // a String takes all
    }
    Ok(text)
}

/// `unpin`.
pub(super) async fn unpin(admin: &Admin, image: &str) -> anyhow::Result<String> {
    let done = admin.post("/api/unpin", &json!({"image": image})).await?;
    Ok(if admin.json { pretty(&done) } else { format!("unpinned {image}\n") })
}

/// `health`.
pub(super) async fn health(admin: &Admin) -> anyhow::Result<String> {
    if admin.is_well("/healthz").await? {
        return Ok(if admin.json {
            "{\"healthy\":true}\n".to_owned()
        } else {
            "healthy\n".to_owned()
        });
    }
    bail!("the mirror answers, and is not well; see its log")
}

/// `verify`: runs the scrubber at once, and waits for its end. Rot that was found is a failure, so
/// that scripts notice.
pub(super) async fn verify(admin: &Admin) -> anyhow::Result<String> {
    let mut state = admin.post("/api/verify", &json!({})).await?;
    let bar = bar(admin.json, state["bytes_total"].as_u64().unwrap_or_default());
    while state["running"] == json!(true) {
        bar.set_length(state["bytes_total"].as_u64().unwrap_or_default());
        bar.set_position(state["bytes"].as_u64().unwrap_or_default());
        tokio::time::sleep(EVERY).await;
        state = admin.get("/api/verify", &[]).await?;
    }
    bar.finish_and_clear();
    let rotten = state["rotten"].as_u64().unwrap_or_default();
    let text = if admin.json {
        pretty(&state)
    } else {
        format!(
            "verified {} objects, {}: {rotten} rotten\n",
            state["objects"],
            size(&state["bytes"])
        )
    };
    if rotten > 0 {
        say!("{text}");
        bail!(
            "{rotten} objects did not have their digest; they were set aside and are fetched again when they are asked for"
        );
    }
    Ok(text)
}

/// A bar for people at a terminal; nothing elsewhere.
pub(super) fn bar(json: bool, bytes: u64) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    );
    let bar = ProgressBar::new(bytes);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

pub(super) fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string())
}

/// How long ago a second since 1970 was.
fn since(value: &Value) -> String {
    let now = jiff::Timestamp::now().as_second();
    let then = value.as_i64().unwrap_or(now);
    format!("{} ago", age(u64::try_from(now - then).ok()))
}

pub(super) fn age(seconds: Option<u64>) -> String {
    match seconds.unwrap_or_default() {
        s if s < 120 => format!("{s}s"),
        s if s < 7200 => format!("{}m", s / 60),
        s if s < 172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}
