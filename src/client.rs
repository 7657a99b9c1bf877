//! What a client has to be told to use this mirror, in the client's own configuration language.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::Config;

/// The first line of the files that we may take away again.
const MARK: &str = "# written by pierhead";

/// Where a file of somebody else's waits meanwhile.
const ASIDE: &str = "hosts.toml.before-pierhead";

/// A mirror as its clients see it.
#[derive(Debug)]
pub struct Mirror<'a> {
    config: &'a Config,
    address: SocketAddr,
}

impl<'a> Mirror<'a> {
    /// The mirror that a configuration describes; `address` where it is already bound.
    pub fn new(config: &'a Config, address: Option<SocketAddr>) -> Self {
        let configured = config.listen.first().map(|l| l.address);
        let address =
            address.or(configured).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 5000)));
        Self { config, address }
    }

    /// `host:port`; an address that stands for all of this machine's is told as this machine.
    fn authority(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        address.to_string()
    }

    fn url(&self) -> String {
        let tls = self.config.listen.first().is_some_and(|listen| listen.tls.is_some());
        format!("{}://{}", if tls { "https" } else { "http" }, self.authority())
    }

    /// For `/etc/docker/daemon.json`. Docker sends only Docker Hub's images to a mirror.
    pub fn docker(&self) -> String {
        let mut json = serde_json::json!({"registry-mirrors": [self.url()]});
        if !self.address.ip().is_loopback() && !self.address.ip().is_unspecified() {
            json["insecure-registries"] = serde_json::json!([self.authority()]);
        }
        pretty(&json)
    }

    /// `hosts.toml` for one registry, for containerd's `config_path`. The registry itself stays
    /// the fallback.
    pub fn containerd(&self, name: &str) -> String {
        let server = match self.config.upstreams.get(name).and_then(|u| u.endpoints.first()) {
            Some(url) if name == "docker.io" || url.host_str() != Some(name) => {
                url.as_str().trim_end_matches('/').to_owned()
            }
            _ => format!("https://{name}"),
        };
        format!(
            "server = \"{server}\"\n\n[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
            self.url()
        )
    }

    /// Writes one `hosts.toml` for each upstream below a folder such as `/etc/containerd/certs.d`. A
    /// file of somebody else's is set aside, to be put back by `remove_containerd`.
    ///
    /// # Errors
    /// What the file system says.
    #[expect(clippy::disallowed_methods, reason = "writing these files is what the command is for")]
    pub fn write_containerd(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for name in self.config.upstreams.keys() {
            let folder = folder.join(name);
            std::fs::create_dir_all(&folder)?;
            let path = folder.join("hosts.toml");
            if path.exists() && !is_ours(&path)? {
                std::fs::rename(&path, folder.join(ASIDE))?;
            }
            // Staged, since containerd reads it anew for each pull.
            let stage = folder.join(".hosts.toml.new");
            std::fs::write(&stage, format!("{MARK}\n{}", self.containerd(name)))?;
            std::fs::rename(&stage, &path)?;
            written.push(path);
        }
        Ok(written)
    }

    /// For `/etc/containers/registries.conf`, or a file in `registries.conf.d`.
    pub fn podman(&self) -> String {
        let authority = self.authority();
        self.config.upstreams.keys().map(|name| {
            format!("[[registry]]\nprefix = \"{name}\"\nlocation = \"{name}\"\n\n[[registry.mirror]]\nlocation = \"{authority}/{name}\"\ninsecure = true\n\n")
        }).collect()
    }

    /// For `buildkitd.toml`.
    pub fn buildkit(&self) -> String {
        let authority = self.authority();
        let mirrors: String = self
            .config
            .upstreams
            .keys()
            .map(|name| format!("[registry.\"{name}\"]\n  mirrors = [\"{authority}/{name}\"]\n\n"))
            .collect();
        format!("{mirrors}[registry.\"{authority}\"]\n  http = true\n")
    }

    /// For `/etc/rancher/k3s/registries.yaml`.
    pub fn k3s(&self) -> String {
        let url = self.url();
        let mirrors: String = self
            .config
            .upstreams
            .keys()
            .map(|name| format!("  \"{name}\":\n    endpoint:\n      - \"{url}\"\n"))
            .collect();
        format!("mirrors:\n{mirrors}")
    }

    /// All of containerd's files in one text, each with its path.
    pub fn containerd_all(&self) -> String {
        self.config
            .upstreams
            .keys()
            .map(|name| {
                format!("# /etc/containerd/certs.d/{name}/hosts.toml\n{}\n", self.containerd(name))
            })
            .collect()
    }
}

/// Takes away what `write_containerd` has written below a folder, and puts back what it set aside.
///
/// # Errors
/// What the file system says.
#[expect(clippy::disallowed_methods, reason = "removing these files is what the command is for")]
pub fn remove_containerd(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let folder = entry?.path();
        let path = folder.join("hosts.toml");
        if !path.is_file() || !is_ours(&path)? {
            continue;
        }
        let aside = folder.join(ASIDE);
        if aside.exists() {
            std::fs::rename(aside, &path)?;
        } else {
            std::fs::remove_file(&path)?;
            let _ = std::fs::remove_dir(&folder); // it stays where something else is in it
        }
        removed.push(path);
    }
    removed.sort();
    Ok(removed)
}

#[expect(clippy::disallowed_methods, reason = "a look at a file of a few lines")]
fn is_ours(path: &Path) -> io::Result<bool> {
    Ok(std::fs::read_to_string(path)?.starts_with(MARK))
}

fn pretty(json: &serde_json::Value) -> String {
    serde_json::to_string_pretty(json).unwrap_or_default() + "\n"
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests look into files; they serve nobody meanwhile")]
mod tests {
    use super::*;

    #[test]
    fn the_snippets_name_the_mirror_and_keep_the_registry_as_fallback() {
        let config = Config::default();
        let mirror = Mirror::new(&config, Some("0.0.0.0:5000".parse().unwrap()));
        assert!(mirror.docker().contains("\"http://127.0.0.1:5000\""));
        let hosts = mirror.containerd("docker.io");
        assert!(hosts.starts_with("server = \"https://registry-1.docker.io\""), "{hosts}");
        assert!(hosts.contains("[host.\"http://127.0.0.1:5000\"]"));
        assert!(mirror.containerd("ghcr.io").starts_with("server = \"https://ghcr.io\""));
        assert!(mirror.podman().contains("location = \"127.0.0.1:5000/docker.io\""));
    }

    #[test]
    fn what_is_written_is_taken_away_and_what_was_there_comes_back() {
        let config = Config::default();
        let folder = tempfile::tempdir().unwrap();
        let theirs = folder.path().join("quay.io/hosts.toml");
        std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        std::fs::write(&theirs, "server = \"x\"\n").unwrap();
        let mirror = Mirror::new(&config, None);
        for _ in 0..2 {
            let written = mirror.write_containerd(folder.path()).unwrap();
            assert_eq!(written.len(), config.upstreams.len());
        }
        assert!(is_ours(&theirs).unwrap());
        let removed = remove_containerd(folder.path()).unwrap();
        assert_eq!(removed.len(), config.upstreams.len());
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "server = \"x\"\n");
        assert!(!folder.path().join("ghcr.io").exists());
        assert_eq!(remove_containerd(folder.path()).unwrap().len(), 0);
    }
}
