//! The real binary, as a child process with a configuration and a cache folder of its own.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::client::{Answer, Ask};
use super::image::{Image, sha256};
use super::soon;
use super::upstream::Upstream;

/// The name under which tests configure their upstream, where the name does not matter.
pub(crate) const NAME: &str = "registry.test";

/// A configuration in the making.
pub(crate) struct Setup {
    folder: TempDir,
    upstreams: Vec<(String, String)>,
    default_upstream: String,
    cache: String,
    listen: String,
    rest: String,
    wrap: Option<String>,
    env: Env,
    own_program: bool,
    activated: Option<std::os::fd::OwnedFd>,
}

/// Variables that the mirror is started with.
type Env = Vec<(String, String)>;

/// A mirror with one upstream, asked for everything.
pub(crate) fn before(upstream: &Upstream) -> Setup {
    Setup::new().upstream(NAME, upstream)
}

impl Setup {
    pub(crate) fn new() -> Self {
        let folder = TempDir::with_prefix("pierhead-test-").expect("a temporary folder");
        Self {
            folder,
            upstreams: Vec::new(),
            default_upstream: NAME.to_owned(),
            cache: String::new(),
            listen: "127.0.0.1:0".to_owned(),
            rest: String::new(),
            wrap: None,
            env: Vec::new(),
            own_program: false,
            activated: None,
        }
    }

    /// Has the mirror find this socket as systemd leaves it to a service.
    pub(crate) fn activated(mut self, socket: std::net::TcpListener) -> Self {
        self.activated = Some(socket.into());
        self.after("exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$")
    }

    /// Runs a copy of the binary, in the folder, that can be replaced.
    pub(crate) fn own_program(mut self) -> Self {
        self.own_program = true;
        self
    }

    /// A variable of the mirror's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A program that the mirror finds by its name: a shell script.
    pub(crate) fn program(self, name: &str, script: &str) -> Self {
        let folder = self.folder.path().join("bin");
        std::fs::create_dir_all(&folder).expect("the temporary folder takes a folder");
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("it takes a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("our own file");
        let usual = std::env::var("PATH").unwrap_or_default();
        self.env("PATH", &format!("{}:{usual}", folder.display()))
    }

    /// The folder that all of this is in; it is the mirror's home.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn upstream(self, name: &str, upstream: &Upstream) -> Self {
        self.endpoints(name, &[&upstream.url()])
    }

    pub(crate) fn endpoints(mut self, name: &str, urls: &[&str]) -> Self {
        self.upstreams.push((name.to_owned(), format!("endpoints: [{}]\n", urls.join(", "))));
        self
    }

    /// Adds YAML to the upstream that was named last.
    pub(crate) fn with(mut self, yaml: &str) -> Self {
        let (_, options) = self.upstreams.last_mut().expect("an upstream was named before");
        writeln!(options, "{yaml}").expect("a String takes all that is written to it");
        self
    }

    pub(crate) fn default_upstream(mut self, name: &str) -> Self {
        name.clone_into(&mut self.default_upstream);
        self
    }

    /// Where to listen, instead of a plain address.
    pub(crate) fn listen(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.listen);
        self
    }

    /// Adds YAML at the top level.
    pub(crate) fn raw(mut self, yaml: &str) -> Self {
        writeln!(self.rest, "{yaml}").expect("a String takes all that is written to it");
        self
    }

    /// Adds a line of YAML to the section `cache`.
    pub(crate) fn cache(mut self, yaml: &str) -> Self {
        writeln!(self.cache, "  {yaml}").expect("a String takes all that is written to it");
        self
    }

    /// Has a shell run these commands before it becomes the mirror.
    pub(crate) fn after(mut self, commands: &str) -> Self {
        self.wrap = Some(commands.to_owned());
        self
    }

    pub(crate) fn cache_folder(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    pub(crate) fn yaml(&self) -> String {
        let cache = self.cache_folder();
        let mut yaml = format!(
            "listen: {}\nadmin: 127.0.0.1:0\ncache:\n  path: {}\n  min_free: 0%\n{}\
             default_upstream: {}\nupstreams:\n",
            self.listen,
            cache.display(),
            self.cache,
            self.default_upstream,
        );
        for (name, options) in &self.upstreams {
            writeln!(yaml, "  {name}:").expect("a String takes all that is written to it");
            for line in options.lines() {
                writeln!(yaml, "    {line}").expect("a String takes all that is written to it");
            }
        }
        yaml + &self.rest
    }

    pub(crate) async fn start(self) -> Mirror {
        let config = self.folder.path().join("pierhead.yaml");
        std::fs::write(&config, self.yaml()).expect("the temporary folder takes a file");
        let folder = self.folder.path();
        let program = self.own_program.then(|| folder.join("pierhead"));
        if let Some(program) = &program {
            std::fs::copy(env!("CARGO_BIN_EXE_pierhead"), program).expect("it takes the binary");
        }
        let wrap = self.wrap;
        let input = self.activated.map_or_else(Stdio::null, Stdio::from);
        let (wrapped, own) = (wrap.as_deref(), program.as_deref());
        let process = Process::start(folder, &self.env, wrapped, own, input).await;
        let (folder, env) = (self.folder, self.env);
        let successors = Vec::new();
        Mirror { folder, env, process: Some(process), wrap, program, successors }
    }
}

/// A running mirror. Dropped, it is killed; if its test failed, its log is shown.
pub(crate) struct Mirror {
    folder: TempDir,
    env: Env,
    process: Option<Process>,
    wrap: Option<String>,
    program: Option<PathBuf>,
    /// The processes that have taken over, one from the other.
    successors: Vec<u32>,
}

struct Process {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Mirror {
    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.running().address
    }

    pub(crate) fn ask(&self, method: Method, path: &str) -> Ask {
        Ask::new(self.address(), method, path)
    }

    pub(crate) fn get(&self, path: &str) -> Ask {
        self.ask(Method::GET, path)
    }

    pub(crate) fn head(&self, path: &str) -> Ask {
        self.ask(Method::HEAD, path)
    }

    /// Where it is watched.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.running().admin
    }

    /// GET on the admin address.
    pub(crate) fn admin(&self, path: &str) -> Ask {
        Ask::new(self.running().admin, Method::GET, path)
    }

    /// POST on the admin address.
    pub(crate) fn post_admin(&self, path: &str) -> Ask {
        Ask::new(self.running().admin, Method::POST, path)
    }

    /// Pulls by tag as containerd does, checks every byte, and returns the Cache-Status of each
    /// answer.
    pub(crate) async fn pull(&self, repository: &str, tag: &str, image: &Image) -> Vec<String> {
        let mut words = Vec::new();
        let head = self.head(&format!("/v2/{repository}/manifests/{tag}")).answer().await;
        if head.status != 200 {
            let told = self.get(&format!("/v2/{repository}/manifests/{tag}"));
            panic!("HEAD of {tag}: {}, {:?}", head.status, told.answer().await);
        }
        assert_eq!(head.header("docker-content-digest"), image.manifest.digest);
        let manifest = format!("/v2/{repository}/manifests/{}", image.manifest.digest);
        let blobs =
            image.blobs().map(|blob| (format!("/v2/{repository}/blobs/{}", blob.digest), blob));
        for (path, content) in [(manifest, &image.manifest)].into_iter().chain(blobs) {
            let answer = self.get(&path).answer().await;
            assert!(answer.is(&content.bytes), "{path}: {} {:?}", answer.status, answer.headers);
            words.push(answer.cache().to_owned());
        }
        words
    }

    /// The sum of a metric over all its series that have these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.admin("/metrics").answer().await;
        let text = String::from_utf8_lossy(&text.body).into_owned();
        let wanted: Vec<String> =
            labels.iter().map(|(key, text)| format!("{key}=\"{text}\"")).collect();
        text.lines()
            .filter(|line| {
                line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} "))
            })
            .filter(|line| wanted.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The folder of its own.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the mirror wrote to standard error, over all its lives.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        let first = || self.running().child.id().expect("the child was not waited for");
        self.successors.last().copied().unwrap_or_else(first)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id().try_into().expect("a process id")), signal)
            .expect("our own child");
    }

    /// How often the log says these words.
    pub(crate) fn says(&self, words: &str) -> usize {
        self.log().matches(words).count()
    }

    /// Waits until the log has said these words so often.
    pub(crate) async fn until_said(&self, times: usize, words: &str) {
        soon(words, async {
            while self.says(words) < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Has the program that stands there now take over. Returns the id of the process before, which
    /// may still be there.
    pub(crate) async fn upgrade(&mut self) -> u32 {
        const SERVES: &str = "upgrade: the new process serves";
        let (before, times) = (self.id(), self.says(SERVES));
        self.signal(Signal::SIGUSR2);
        self.until_said(times + 1, SERVES).await;
        let log = self.log();
        let line = log.lines().rfind(|line| line.contains(SERVES)).expect("it was said");
        let line: serde_json::Value =
            serde_json::from_str(line).expect("a line of the log is JSON");
        let id = line["pid"].as_u64().expect("the new process has an id");
        self.successors.push(id.try_into().expect("a process id"));
        before
    }

    /// Waits until a process of this mirror has gone.
    pub(crate) async fn until_gone(&mut self, id: u32) {
        if self.running().child.id() == Some(id) {
            let child = &mut self.process.as_mut().expect("it was started").child;
            let _status = soon("the end of the first process", child.wait()).await;
            return;
        }
        soon("the end of a process", async {
            while self.is_there(id) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Whether a process of this mirror is still running.
    pub(crate) fn is_there(&self, id: u32) -> bool {
        let program = std::fs::read_link(format!("/proc/{id}/exe"));
        program.is_ok_and(|path| path.starts_with(self.folder.path()))
    }

    /// Changes the configuration's text, and has the mirror read it. Returns once it has, whether
    /// that has put it into force.
    pub(crate) async fn reload(&self, change: impl FnOnce(String) -> String) -> bool {
        const DONE: [&str; 2] = ["configuration reloaded", "; the old one stays"];
        let path = self.folder.path().join("pierhead.yaml");
        let text = std::fs::read_to_string(&path).expect("our own file");
        std::fs::write(&path, change(text)).expect("our own file");
        let said = || DONE.map(|words| self.log().matches(words).count());
        let before = said();
        self.signal(Signal::SIGHUP);
        soon("the end of a reload", async {
            while said() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        said()[0] > before[0]
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the mirror is running");
        soon("the end of the mirror", process.child.wait()).await.expect("our own child")
    }

    /// Ends the process the polite way.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Starts it again over the same configuration and folder, on other ports.
    pub(crate) async fn start(&mut self) {
        assert!(self.process.is_none(), "the mirror is running");
        let program = self.program.as_deref();
        let wrap = self.wrap.as_deref();
        let (folder, input) = (self.folder.path(), Stdio::null());
        let process = Process::start(folder, &self.env, wrap, program, input).await;
        self.successors.clear();
        self.process = Some(process);
    }

    /// The bytes of all files in the cache folder.
    pub(crate) fn folder_bytes(&self) -> u64 {
        bytes_under(&self.cache())
    }

    /// The file that keeps this digest, under `blobs/` or `sums/`.
    pub(crate) fn file_of(&self, folder: &str, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        self.cache().join(folder).join(algorithm).join(&hex[..2]).join(hex)
    }

    /// Every file under `blobs/` must be what its name says. Returns how many there are.
    pub(crate) fn check_store(&self) -> usize {
        let files = files_under(&self.cache().join("blobs"));
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if file.components().any(|part| part.as_os_str() == "sha256") {
                let bytes = std::fs::read(file).expect("a file of the store");
                assert_eq!(sha256(&bytes), format!("sha256:{name}"), "{}", file.display());
            }
        }
        files.len()
    }

    /// Waits until that many objects are kept, and checks them. A client may have its last byte
    /// before the file is in its place.
    pub(crate) async fn until_kept(&self, objects: usize) {
        let kept = async {
            while self.check_store() < objects {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(&format!("{objects} objects to be kept"), kept).await;
        assert_eq!(self.check_store(), objects);
    }

    /// Whether this digest is kept under `blobs/`.
    pub(crate) fn keeps(&self, digest: &str) -> bool {
        let (_, hex) = digest.split_once(':').expect("a digest");
        let files = files_under(&self.cache().join("blobs"));
        files.iter().any(|file| file.file_name().is_some_and(|name| name.to_string_lossy() == *hex))
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("the mirror is running")
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for id in &self.successors {
            if self.is_there(*id) {
                let id = Pid::from_raw((*id).try_into().expect("a process id"));
                let _gone = kill(id, Signal::SIGKILL);
            }
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(6000);
            let from = (from..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or_default();
            eprintln!("--- the mirror's log ---\n{}\n---", &log[from..]);
        }
    }
}

impl Process {
    async fn start(
        folder: &Path,
        env: &Env,
        wrap: Option<&str>,
        program: Option<&Path>,
        input: Stdio,
    ) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
        let log = log.expect("the temporary folder takes a file");
        let program = program.unwrap_or(Path::new(env!("CARGO_BIN_EXE_pierhead")));
        let mut child = command(wrap, program)
            .args(["serve", "--config"])
            .arg(folder.join("pierhead.yaml"))
            .env("HOME", folder)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary under test starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let mut seen: [Option<SocketAddr>; 2] = [None, None];
        let reading = async {
            while seen.iter().any(Option::is_none) {
                let Ok(Some(line)) = lines.next_line().await else {
                    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                    panic!("the mirror did not start: {log}");
                };
                for (place, word) in ["mirror", "admin"].into_iter().enumerate() {
                    if let Some(rest) = line.trim_start().strip_prefix(word) {
                        let address = rest.trim_start().trim_start_matches("http://");
                        let address = address.trim_start_matches("https://");
                        seen[place] = seen[place].or(address.trim_end().parse().ok());
                    }
                }
            }
        };
        soon("the mirror's addresses", reading).await;
        // Goes on reading, so that the mirror never meets a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let [Some(address), Some(admin)] = seen else { unreachable!("both were awaited") };
        Self { child, address, admin }
    }
}

/// The binary under test, deaf to the environment of whoever runs the tests.
fn command(wrap: Option<&str>, program: &Path) -> Command {
    let mut command = Command::new(if wrap.is_some() { Path::new("sh") } else { program });
    if let Some(commands) = wrap {
        command.args(["-c", &format!("{commands}; exec \"$0\" \"$@\"")]).arg(program);
    }
    for (name, _) in std::env::vars() {
        let name = name.as_str();
        if name.starts_with("PIERHEAD_")
            || name.to_ascii_lowercase().ends_with("_proxy")
            || ["RUST_LOG", "DOCKER_CONFIG", "GCE_METADATA_HOST"].contains(&name)
            || ["AWS_", "AZURE_", "GOOGLE_", "IDENTITY_", "MSI_", "OTEL_"]
                .iter()
                .any(|p| name.starts_with(p))
        {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the binary to its end, for starts that must fail.
pub(crate) async fn run(arguments: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_pierhead"));
    let running = command(None, program).args(arguments).output();
    soon("the end of the program", running).await.expect("the binary under test starts")
}

/// Asks again and again until the answer satisfies `done`.
pub(crate) async fn until(
    what: &str,
    ask: impl Fn() -> Ask,
    done: impl Fn(&Answer) -> bool,
) -> Answer {
    soon(what, async {
        loop {
            let answer = ask().answer().await;
            if done(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

/// The bytes of all files below a folder, as far as they do not leave meanwhile.
pub(crate) fn bytes_under(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let bytes = |path: PathBuf| match path.symlink_metadata() {
        Ok(about) if about.is_dir() => bytes_under(&path),
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    entries.filter_map(|entry| Some(bytes(entry.ok()?.path()))).sum()
}

pub(crate) fn files_under(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.expect("an entry of our own folder").path());
    paths.flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path] }).collect()
}
