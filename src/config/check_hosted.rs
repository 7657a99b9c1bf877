//! What is wrong with hosted repositories: patterns that match nothing, and names taken from others.

use super::check::{Checker, path};
use super::{Config, hosts};
use crate::patterns;

impl Checker<'_> {
    /// Runs every check of hosted repositories.
    pub(super) fn hosted(&mut self, config: &Config) {
        let hosted = &config.hosted;
        self.repositories(&["repositories"], &hosted.repositories);
        for (index, rule) in hosted.immutable.iter().enumerate() {
            let index = index.to_string();
            self.repositories(&["immutable", &index, "repositories"], &rule.repositories);
            let at = path(["hosted", "immutable", &index, "tags"]);
            let text = "no tag fits an empty list or pattern; write one such as v*";
            if rule.tags.is_empty() || rule.tags.iter().any(String::is_empty) {
                self.fault(&[at], text);
            }
        }
        for (index, quota) in hosted.quotas.iter().enumerate() {
            let index = index.to_string();
            self.repositories(&["quotas", &index, "repositories"], &quota.repositories);
            if quota.max_size.bytes() == 0 {
                let text = "nothing fits into no bytes; write how much a repository may hold";
                self.fault(&[path(["hosted", "quotas", &index, "max_size"])], text);
            }
        }
        for (index, sink) in hosted.events.iter().enumerate() {
            let at = |key: &str| path(["hosted", "events", &index.to_string(), key]);
            let url = url::Url::parse(&sink.url).ok();
            let url = url.filter(|u| matches!(u.scheme(), "http" | "https") && u.host().is_some());
            if url.is_none() {
                let text =
                    "events are posted by HTTP; write a URL such as https://ci.example.com/hook";
                self.fault(&[at("url")], text);
            }
            if url.is_some_and(|u| !u.username().is_empty() || u.password().is_some()) {
                let text = "credentials do not belong in a URL, which is logged; use token_file";
                self.fault(&[at("url")], text);
            }
            if let Some(text) = sink.token_file.as_deref().and_then(hosts::file_path) {
                self.fault(&[at("token_file")], text);
            }
        }
        // Docker sends what it looks for on Docker Hub as library/NAME, and names no registry.
        let official = |pattern: &String| patterns::matches(pattern, "library/alpine");
        if let Some(index) = hosted.repositories.iter().position(official)
            && config.default_upstream.is_some()
        {
            let text = format!(
                "`{}` hosts library/… as well, so Docker's registry-mirrors find nothing here; \
                 write narrower patterns such as team/**",
                hosted.repositories[index]
            );
            self.warn(&path(["hosted", "repositories", &index.to_string()]), &text);
        }
    }

    fn repositories(&mut self, keys: &[&str], all: &[String]) {
        for (index, pattern) in all.iter().enumerate() {
            if let Some(text) = hosts::pattern(pattern, "hosted") {
                let steps = ["hosted"].iter().chain(keys).map(|&step| step.to_owned());
                self.fault(&[steps.chain([index.to_string()]).collect()], &text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn faults_of_hosted_repositories_are_named() {
        let text = "hosted: {repositories: ['Team/*'], immutable: [{repositories: [a], tags: []}], \
                    quotas: [{repositories: [a], max_size: 0}], events: [{url: 'ftp://x/'}]}";
        let faults = Config::parse("f", text).unwrap_err().to_string();
        for word in ["lower case", "no tag fits", "into no bytes", "by HTTP"] {
            assert!(faults.contains(word), "{faults}");
        }
    }

    #[test]
    fn a_pattern_that_takes_the_official_images_is_warned_of() {
        let loaded = Config::parse("f", "hosted: {repositories: ['**']}").unwrap();
        assert!(loaded.warnings.to_string().contains("registry-mirrors"));
        let loaded = Config::parse("f", "hosted: {repositories: ['*', 'team/**']}").unwrap();
        assert!(loaded.warnings.is_empty());
    }
}
