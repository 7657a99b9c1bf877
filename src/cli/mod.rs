//! The command line: each command a few lines, each failure one sentence and an exit code.

#![expect(clippy::print_stderr, reason = "a command's output is its answer")]

/// Writes a command's answer. A reader that has enough, as `head` has, is no failure of ours.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        if write!(std::io::stdout(), $($text)*).is_err() {
            std::process::exit(0);
        }
    }};
}

/// The same, with an end of line.
macro_rules! sayln {
    ($($text:tt)*) => {{
        say!($($text)*);
        say!("\n");
    }};
}

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

mod ask;
mod fills;
mod gc;
mod health;
mod node;
mod ops;
mod serve;
mod warm;

use ops::AdminArgs;

use crate::client;
use crate::config::units::Span;
use crate::config::{self, Config, Loaded, Overrides};
use crate::demo;
use crate::limits::BLOCKING_THREADS_MAX;

/// Wrong configuration: `EX_USAGE` of sysexits, as other proxies use it.
const BAD_CONFIGURATION: u8 = 64;

/// A pull-through caching mirror for container registries.
#[derive(Debug, Parser)]
#[command(name = "pierhead", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the mirror.
    Serve {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        overrides: OverrideArgs,
    },
    /// Load and check a configuration, and name every fault with its place and a remedy.
    Check {
        #[command(flatten)]
        file: File,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the resolved configuration, its schema, or an annotated sample.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Print a client's configuration for this mirror.
    Client {
        /// Which client.
        client: ClientKind,
        #[command(flatten)]
        file: File,
        /// The address that clients reach the mirror at, instead of the configured one.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
        /// Write containerd's `hosts.toml` files below this folder instead of printing them.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
        /// Take away the files that `--write` has written below this folder.
        #[arg(long, value_name = "DIR", conflicts_with = "write")]
        remove: Option<PathBuf>,
    },
    /// Remove hosted content that no tag and no referrer holds.
    Gc {
        /// Only tell what would go, and why.
        #[arg(long)]
        dry_run: bool,
        /// How long nobody must have had a use for it, instead of the configured `gc_grace`.
        #[arg(long, value_name = "TIME")]
        grace: Option<String>,
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Show what a running mirror holds, its bounds and its hit ratios.
    Status {
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Show the downloads under way: how far each is, who waits, and what it is at.
    Fills {
        #[command(flatten)]
        to: AdminArgs,
    },
    /// List repositories, the tags of one of them, or objects.
    Ls {
        /// A repository, whose tags are listed.
        repository: Option<String>,
        /// List objects instead: `biggest`, `oldest` or `newest`.
        #[arg(long, value_name = "ORDER", conflicts_with = "repository")]
        objects: Option<String>,
        /// Only repositories of this upstream.
        #[arg(long, value_name = "NAME", conflicts_with = "repository")]
        upstream: Option<String>,
        /// How many lines at most; 0 lists all.
        #[arg(short, default_value_t = 0)]
        n: usize,
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Have an image, a repository, an upstream's content or a digest leave the cache.
    Purge {
        /// An image by tag or digest, with what nothing else refers to.
        #[arg(required_unless_present_any = ["repository", "upstream", "digest"])]
        image: Option<String>,
        /// A whole repository.
        #[arg(long, value_name = "NAME", conflicts_with = "image")]
        repository: Option<String>,
        /// All of an upstream.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "repository"])]
        upstream: Option<String>,
        /// One object.
        #[arg(long, value_name = "DIGEST", conflicts_with_all = ["image", "repository", "upstream"])]
        digest: Option<String>,
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Pin an image, so that it never leaves; without one, list the pins.
    Pin {
        /// The image, by tag or digest.
        image: Option<String>,
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Take a pin away.
    Unpin {
        /// The image, as it was pinned.
        image: String,
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Read everything that is held and compare it with its digest.
    Verify {
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Pull images into the running cache.
    Warm {
        /// The images.
        #[arg(required_unless_present = "file")]
        images: Vec<String>,
        /// A file with an image on each line; `#` begins a comment, `-` is standard input.
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// For which machine, such as `linux/arm64`; `all` for every one. Default: this one's.
        #[arg(long, value_name = "PLATFORM")]
        platform: Option<String>,
        #[command(flatten)]
        to: AdminArgs,
    },
    /// Ask a running mirror whether it is alive: exit code 0 or 1, for a container's health check.
    Health {
        #[command(flatten)]
        args: health::HealthArgs,
    },
    /// Make a folder of a node ready for a mirror that does not run as root.
    Prepare {
        /// The folder.
        folder: PathBuf,
        /// The group that the mirror runs as.
        #[arg(long, value_name = "GID")]
        group: Option<u32>,
    },
    /// Pull a sample image twice through a mirror, with an upstream that needs no network.
    Demo {
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print shell completions.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or that of a command.
    Man {
        /// The command, such as `client` or `config show`.
        command: Vec<String>,
        /// Write a page for each command into this folder instead.
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// The resolved configuration, with where each value came from; secrets are hidden.
    Show {
        #[command(flatten)]
        file: File,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// The JSON Schema of the configuration.
    Schema,
    /// An annotated sample.
    Init,
}

#[derive(Debug, Args)]
struct File {
    /// The configuration file; without one the built-in configuration is used.
    #[arg(long, short, value_name = "FILE", env = "PIERHEAD_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct OverrideArgs {
    /// The address for clients, instead of the configured one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The address for metrics and health.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// The cache folder.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClientKind {
    Docker,
    Containerd,
    Podman,
    Crio,
    Buildkit,
    K3s,
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve { file, overrides } => serve::serve(&file, overrides),
        Command::Check { file, json } => check(&file, json),
        Command::Config { what } => config_command(&what),
        Command::Client { remove: Some(folder), .. } => remove_client(&folder),
        Command::Client { client, file, listen, write, remove: None } => {
            print_client(client, &file, listen, write.as_deref())
        }
        Command::Gc { dry_run, grace, to } => collect(&to, dry_run, grace.as_deref()),
        Command::Demo { json } => demo(json),
        Command::Status { to } => ops::told(&to, ops::status),
        Command::Fills { to } => ops::told(&to, fills::list),
        Command::Ls { repository, objects, upstream, n, to } => {
            let wanted = ops::Wanted { repository, objects, upstream, n };
            ops::told(&to, async |admin| ops::list(admin, &wanted).await)
        }
        Command::Purge { image, repository, upstream, digest, to } => {
            let order = serde_json::json!({
                "image": image, "repository": repository, "upstream": upstream, "digest": digest,
            });
            ops::told(&to, async |admin| ops::purge(admin, &order).await)
        }
        Command::Pin { image, to } => {
            ops::told(&to, async |admin| ops::pin(admin, image.as_deref()).await)
        }
        Command::Unpin { image, to } => {
            ops::told(&to, async |admin| ops::unpin(admin, &image).await)
        }
        Command::Verify { to } => ops::told(&to, ops::verify),
        Command::Warm { images, file, platform, to } => {
            let wanted = warm::Wanted { images, file, platform };
            ops::told(&to, async |admin| warm::run(admin, &wanted).await)
        }
        Command::Health { args } => health::run(&args),
        Command::Prepare { folder, group } => match node::prepare(&folder, group) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pierhead", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Man { write: Some(folder), .. } => {
            done(clap_mangen::generate_to(Cli::command(), folder))
        }
        Command::Man { command, write: None } => man(&command),
    }
}

/// Prints the page of a command.
fn man(names: &[String]) -> ExitCode {
    let mut page = Cli::command();
    page.build();
    for name in names {
        let Some(command) = page.find_subcommand(name) else {
            eprintln!("error: there is no command {}; see 'pierhead --help'", names.join(" "));
            return ExitCode::from(2);
        };
        page = command.clone();
    }
    done(clap_mangen::Man::new(page).render(&mut std::io::stdout()))
}

fn load(file: &File, overrides: &Overrides) -> Result<Loaded, ExitCode> {
    let loaded = Config::load(file.config.as_deref(), config::environment(), overrides).map_err(
        |faults| {
            eprintln!("{faults}");
            ExitCode::from(BAD_CONFIGURATION)
        },
    )?;
    if !loaded.warnings.is_empty() {
        eprintln!("{}", loaded.warnings);
    }
    Ok(loaded)
}

fn check(file: &File, json: bool) -> ExitCode {
    let name =
        file.config.as_deref().map_or("built-in configuration".into(), |p| p.display().to_string());
    match Config::load(file.config.as_deref(), config::environment(), &Overrides::default()) {
        Ok(loaded) if json => sayln!(
            "{}",
            serde_json::json!({"good": true, "file": name, "upstreams": loaded.config.upstreams.len()})
        ),
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                eprintln!("{}", loaded.warnings);
            }
            let count = loaded.config.upstreams.len();
            sayln!("{name}: good, {count} upstream{}", if count == 1 { "" } else { "s" });
        }
        Err(faults) => {
            if json {
                let list: Vec<String> = faults.iter().map(ToString::to_string).collect();
                sayln!("{}", serde_json::json!({"good": false, "file": name, "faults": list}));
            } else {
                eprintln!("{faults}");
            }
            return ExitCode::from(BAD_CONFIGURATION);
        }
    }
    ExitCode::SUCCESS
}

fn config_command(what: &ConfigCommand) -> ExitCode {
    match what {
        ConfigCommand::Show { file, json } => match load(file, &Overrides::default()) {
            Ok(loaded) => say!("{}", config::show(&loaded, *json)),
            Err(code) => return code,
        },
        ConfigCommand::Schema => sayln!("{}", config::schema()),
        ConfigCommand::Init => say!("{}", config::init()),
    }
    ExitCode::SUCCESS
}

fn print_client(
    kind: ClientKind,
    file: &File,
    listen: Option<SocketAddr>,
    write: Option<&Path>,
) -> ExitCode {
    let loaded = match load(file, &Overrides::default()) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let mirror = client::Mirror::new(&loaded.config, listen);
    if let Some(folder) = write {
        if kind != ClientKind::Containerd {
            eprintln!("error: --write goes with containerd only");
            return ExitCode::from(2);
        }
        return list(mirror.write_containerd(folder), "write", folder);
    }
    say!(
        "{}",
        match kind {
            ClientKind::Docker => mirror.docker(),
            ClientKind::Containerd => mirror.containerd_all(),
            ClientKind::Podman | ClientKind::Crio => mirror.podman(),
            ClientKind::Buildkit => mirror.buildkit(),
            ClientKind::K3s => mirror.k3s(),
        }
    );
    ExitCode::SUCCESS
}

/// Needs no configuration: it runs where the mirror has gone.
fn remove_client(folder: &Path) -> ExitCode {
    list(client::remove_containerd(folder), "remove", folder)
}

fn list(paths: std::io::Result<Vec<PathBuf>>, what: &str, folder: &Path) -> ExitCode {
    match paths {
        Ok(paths) => {
            for path in paths {
                sayln!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(e) => failed(
            &anyhow::Error::new(e).context(format!("cannot {what} below {}", folder.display())),
        ),
    }
}

fn collect(to: &AdminArgs, dry_run: bool, grace: Option<&str>) -> ExitCode {
    match grace.map(Span::parse).transpose() {
        Ok(grace) => ops::told(to, async |admin| gc::run(admin, dry_run, grace).await),
        Err(error) => {
            eprintln!("error: --grace: {error}");
            ExitCode::from(2)
        }
    }
}

fn demo(json: bool) -> ExitCode {
    let outcome = runtime(0).and_then(|runtime| runtime.block_on(demo::run()));
    match outcome {
        Ok(report) => {
            say!("{}", if json { report.json() } else { report.table() });
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    Ok(builder.max_blocking_threads(BLOCKING_THREADS_MAX).enable_all().build()?)
}

fn done(result: std::io::Result<()>) -> ExitCode {
    result.map_or_else(|e| failed(&e.into()), |()| ExitCode::SUCCESS)
}

/// One sentence on standard error: the failure and its causes in a row.
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
