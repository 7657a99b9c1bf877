//! `fills`: the downloads under way, as a table.

use std::fmt::Write as _;

use serde_json::Value;

use super::ask::Admin;
use super::ops::{age, pretty, size, word};

/// Asks for them and makes the table.
pub(super) async fn list(admin: &Admin) -> anyhow::Result<String> {
    let told = admin.get("/api/fills", &[]).await?;
    if admin.json {
        return Ok(pretty(&told["fills"]));
    }
    Ok(table(&told))
}

fn table(told: &Value) -> String {
    let rows = told["fills"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return "nothing is being downloaded\n".to_owned();
    }
    let mut out = format!(
        "{:<8}  {:>6}  {:>22}  {:>5}  {:>5}  {:<8}  what\n",
        "at", "since", "bytes", "parts", "wait", "for"
    );
    for fill in rows {
        // A String takes all.
        let _ = writeln!(
            out,
            "{:<8}  {:>6}  {:>22}  {:>5}  {:>5}  {:<8}  {}/{} {}",
            word(&fill["stage"]),
            age(whole_seconds(fill)),
            bytes(fill),
            fill["transfers"],
            fill["waiters"],
            word(&fill["why"]),
            word(&fill["upstream"]),
            word(&fill["repository"]),
            word(&fill["digest"]),
        );
    }
    let more = told["count"].as_u64().unwrap_or_default().saturating_sub(rows.len() as u64);
    if more > 0 {
        let _ = writeln!(out, "and {more} more");
    }
    out
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an age, which is not negative and no more than years"
)]
fn whole_seconds(fill: &Value) -> Option<u64> {
    fill["seconds"].as_f64().map(|seconds| seconds as u64)
}

/// Those that have come, of how many, where that is known.
fn bytes(fill: &Value) -> String {
    format!("{} of {}", size(&fill["bytes"]), size(&fill["total_bytes"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_and_says_what_it_leaves_out() {
        let fill = json!({
            "digest": "sha256:abc", "upstream": "docker.io", "repository": "library/alpine",
            "stage": "fetching", "why": "client", "bytes": 1024, "total_bytes": null,
            "transfers": 3, "waiters": 2, "seconds": 61.5,
        });
        let text = table(&json!({"fills": [fill, fill], "count": 5}));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with("at ") && lines[3] == "and 3 more", "{text}");
        let row: Vec<&str> = lines[1].split_whitespace().collect();
        let wanted = "fetching 61s 1.0 KiB of - 3 2 client docker.io/library/alpine sha256:abc";
        assert_eq!(row.join(" "), wanted);
        assert_eq!(table(&json!({"fills": [], "count": 0})), "nothing is being downloaded\n");
    }
}
