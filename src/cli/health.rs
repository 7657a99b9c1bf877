//! `health`: whether a mirror is there, by an exit code, for the health checks of containers and the
//! tests of charts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use http::StatusCode;
use url::Url;

use super::ops::{AdminArgs, health, told};
use super::{failed, runtime};
use crate::config::units::Span;

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The pause between two questions.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    to: AdminArgs,
    /// Ask this URL instead of the admin address; 401 is an answer too, of a mirror that wants a
    /// log-in.
    #[arg(long, value_name = "URL", conflicts_with = "admin")]
    url: Option<Url>,
    /// Do not check the certificate.
    #[arg(long, requires = "url")]
    insecure: bool,
    /// Ask again for so long, until the answer is good.
    #[arg(long, value_name = "TIME", value_parser = span)]
    wait: Option<Duration>,
    /// Ask every address behind the URL's name; all must answer.
    #[arg(long, requires = "url")]
    all: bool,
    /// Ask for so long after that, during which no new address may turn up.
    #[arg(long, value_name = "TIME", value_parser = span, requires = "all")]
    settle: Option<Duration>,
}

fn span(text: &str) -> Result<Duration, String> {
    Span::parse(text).map(Span::get).map_err(|error| error.to_string())
}

/// Runs the command.
pub(super) fn run(args: &HealthArgs) -> ExitCode {
    let deadline = Instant::now() + args.wait.unwrap_or_default();
    let Some(url) = &args.url else {
        return told(&args.to, async |admin| {
            loop {
                match health(admin).await {
                    Err(_) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                    outcome => return outcome,
                }
            }
        });
    };
    let outcome = runtime(1).and_then(|runtime| runtime.block_on(until_well(url, args, deadline)));
    match outcome {
        Ok(()) if args.to.json => say!("{{\"healthy\":true}}\n"),
        Ok(()) => say!("healthy\n"),
        Err(error) => return failed(&error),
    }
    ExitCode::SUCCESS
}

/// Asks until all is well, and has been for as long as it is to settle.
async fn until_well(url: &Url, args: &HealthArgs, deadline: Instant) -> anyhow::Result<()> {
    let settle = args.settle.unwrap_or_default();
    let mut well: Option<(BTreeSet<SocketAddr>, Instant)> = None;
    loop {
        match look(url, args).await {
            Ok(addresses) => {
                let since = match well.take() {
                    Some((known, since)) if known.is_superset(&addresses) => since,
                    _ => Instant::now(),
                };
                if since.elapsed() >= settle {
                    return Ok(());
                }
                well = Some((addresses, since));
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => well = None,
        }
        if well.is_some() && Instant::now() >= deadline {
            bail!(
                "{url} answers, but new addresses have turned up until now; wait longer (--wait)"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks once; which addresses have answered.
async fn look(url: &Url, args: &HealthArgs) -> anyhow::Result<BTreeSet<SocketAddr>> {
    if !args.all {
        ask(url, args, None).await?;
        return Ok(BTreeSet::new());
    }
    let host = url.host_str().context("the URL names no host")?;
    let port = url.port_or_known_default().context("the URL names no port")?;
    let plain = host.trim_matches(['[', ']']);
    let found = tokio::net::lookup_host((plain, port)).await;
    let found = found.with_context(|| format!("{host} cannot be resolved"))?;
    let addresses: BTreeSet<SocketAddr> = found.collect();
    if addresses.is_empty() {
        bail!("{host} has no address");
    }
    for address in &addresses {
        ask(url, args, Some((host, *address))).await?;
    }
    Ok(addresses)
}

async fn ask(url: &Url, args: &HealthArgs, at: Option<(&str, SocketAddr)>) -> anyhow::Result<()> {
    // Straight there: a proxy would tell of itself.
    let mut client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(args.insecure)
        .timeout(ANSWER_WITHIN);
    if let Some((host, address)) = at {
        client = client.resolve(host, address);
    }
    let place = at.map_or_else(String::new, |(_, address)| format!(" at {address}"));
    let answer = client.build()?.get(url.clone()).send().await;
    let status = answer
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("{url}{place} does not answer"))?
        .status();
    if status.is_success() || status == StatusCode::UNAUTHORIZED {
        return Ok(());
    }
    bail!("{url}{place} answers {status}")
}
