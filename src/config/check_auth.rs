//! What is wrong with logins: passwords that cannot be read, helpers that cannot be run.

use url::Url;

use super::check::{Checker, Path, path};
use super::check_upstreams::is_near;
use super::secret;
use super::{Auth, Config, Ecr, Gcp, Password, Upstream};

impl Checker<'_> {
    /// Checks every account of an upstream.
    pub(super) fn auth(&mut self, name: &str, upstream: &Upstream, config: &Config) {
        let at = path(["upstreams", name, "auth"]);
        match &upstream.auth {
            Auth::Several(all) => {
                for (index, one) in all.iter().enumerate() {
                    let mut at = at.clone();
                    at.push(index.to_string());
                    self.account(name, one, &at);
                }
            }
            one => self.account(name, one, &at),
        }
        if upstream.auth.accounts().iter().any(|one| *one != Auth::Anonymous) {
            self.exposure(name, upstream, config, &at);
        }
    }

    fn account(&mut self, name: &str, auth: &Auth, at: &Path) {
        let below = |keys: &[&str]| {
            let mut at = at.clone();
            at.extend(keys.iter().map(|key| (*key).to_owned()));
            at
        };
        match auth {
            Auth::Anonymous | Auth::DockerConfig | Auth::Passthrough(_) | Auth::Several(_) => {}
            Auth::Static { username, password } => {
                if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
                    let text = "a user's name cannot be empty or hold `:` or control characters; \
                                correct it";
                    self.fault(&[below(&["username"])], text);
                }
                let (key, wrong) = match password {
                    Password::Inline(text) => ("password", secret::wrong(text)),
                    Password::File(path) => ("password_file", secret::wrong_file(path)),
                };
                if let Some(wrong) = wrong {
                    self.fault(&[below(&[key])], &wrong);
                }
            }
            Auth::Helper(helper) => {
                // It becomes part of a program's name: nothing that could be a path.
                let lawful = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if helper.is_empty() || helper.starts_with('.') || !helper.chars().all(lawful) {
                    let text = format!(
                        "`{helper}` is no name of a helper; write what stands behind \
                         `docker-credential-`, such as ecr-login"
                    );
                    self.fault(&[below(&["helper"])], &text);
                }
            }
            Auth::Ecr(ecr) => self.ecr(name, ecr, at, &below),
            Auth::Gcp(Gcp { key_file }) => {
                if let Some(wrong) = key_file.as_deref().and_then(secret::wrong_key_file) {
                    self.fault(&[below(&["gcp", "key_file"])], &wrong);
                }
            }
            Auth::Acr(_) => {}
        }
        let cloud = matches!(auth, Auth::Ecr(_) | Auth::Gcp(_) | Auth::Acr(_));
        if cloud && !cfg!(feature = "cloud-auth") {
            let text = "this pierhead was built without the feature `cloud-auth`; build it with, \
                        or log in by a helper";
            self.fault(std::slice::from_ref(at), text);
        }
    }

    fn ecr(&mut self, name: &str, ecr: &Ecr, at: &Path, below: &dyn Fn(&[&str]) -> Path) {
        match &ecr.region {
            None if super::auth::ecr_region(name).is_none() => {
                let text = format!(
                    "the region cannot be told from `{name}`; write it: {{ecr: {{region: \
                     eu-central-1}}}}"
                );
                self.fault(std::slice::from_ref(at), &text);
            }
            Some(region)
                if region.is_empty()
                    || !region
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') =>
            {
                let text = format!("`{region}` is no region; write one such as eu-central-1");
                self.fault(&[below(&["ecr", "region"])], &text);
            }
            _ => {}
        }
        if let Some(role) = ecr.role.as_deref().filter(|role| !role.starts_with("arn:")) {
            let text =
                format!("`{role}` is no ARN of a role; write arn:aws:iam::ACCOUNT:role/NAME");
            self.fault(&[below(&["ecr", "role"])], &text);
        }
        if let Some(url) = ecr.endpoint.as_ref().filter(|url| is_in_the_clear(url)) {
            let text =
                format!("{url} would get the request for a password in the clear; use https");
            self.fault(&[below(&["ecr", "endpoint"])], &text);
        }
    }

    /// Who else gets something of a login, which may be what is wanted.
    fn exposure(&mut self, name: &str, upstream: &Upstream, config: &Config, at: &Path) {
        if let Some(url) = upstream.endpoints.iter().find(|url| is_in_the_clear(url)) {
            self.warn(at, &format!("the password goes to {url} in the clear; use https"));
        }
        let own = matches!(upstream.auth, Auth::Passthrough(_));
        let open = config.listen.iter().find(|listen| !listen.address.ip().is_loopback());
        if let Some(open) = open.filter(|_| !own && config.clients.is_none()) {
            let text = format!(
                "whoever reaches {} can read all that {} may read at {name}; shut others out by a \
                 firewall",
                open.address,
                upstream.auth.whose()
            );
            self.warn(at, &text);
        }
    }
}

pub(super) fn is_in_the_clear(url: &Url) -> bool {
    url.scheme() == "http" && !is_near(url)
}

#[cfg(test)]
mod tests {
    use crate::config::check::tests::told;

    #[test]
    fn logins_that_cannot_work_are_found() {
        for (auth, wanted) in [
            (
                "{username: 'a:b', password: ''}",
                "1:37: a user's name cannot be empty or hold `:` or control characters; correct it\n\
                 1:54: the password is empty; write one, or `auth: anonymous`",
            ),
            (
                "{username: a, password: b, password_file: c}",
                "1:26: both password and password_file are given; keep one",
            ),
            (
                "{username: a, password_file: /nowhere/at/all}",
                "1:55: the password file /nowhere/at/all cannot be used (No such file or directory (os error 2)); check the path and its permissions",
            ),
            (
                "admin:hunter2",
                "1:26: this is no way to log in; write `anonymous`, `passthrough`, `docker-config`, or a map with username and either password or password_file, or with one of helper, ecr, gcp, acr",
            ),
            (
                "{helper: ../evil}",
                "1:35: `../evil` is no name of a helper; write what stands behind `docker-credential-`, such as ecr-login",
            ),
            (
                "{ecr: {}}",
                "1:26: the region cannot be told from `x.io`; write it: {ecr: {region: eu-central-1}}",
            ),
            (
                "{ecr: {region: x y, role: admin, endpoint: 'http://api.x.io'}}",
                "1:41: `x y` is no region; write one such as eu-central-1\n\
                 1:52: `admin` is no ARN of a role; write arn:aws:iam::ACCOUNT:role/NAME\n\
                 1:69: http://api.x.io/ would get the request for a password in the clear; use https",
            ),
            (
                "{gcp: {key_file: /nowhere/at/all}}",
                "1:43: the key file /nowhere/at/all cannot be used (No such file or directory (os error 2)); check the path and its permissions",
            ),
            (
                "[anonymous, {helper: ''}]",
                "1:47: `` is no name of a helper; write what stands behind `docker-credential-`, such as ecr-login",
            ),
            ("[[anonymous]]", "1:26: a list in a list of accounts; write one list"),
        ] {
            assert_eq!(told(&format!("upstreams: {{x.io: {{auth: {auth}}}}}")), wanted, "{auth}");
        }
    }

    #[test]
    fn logins_that_many_could_use_are_warned_of() {
        let text = "listen: 0.0.0.0:5000\nupstreams:\n  x.io:\n    endpoints: ['http://x.io']\n    auth: {username: a, password: b}";
        assert_eq!(
            told(text),
            "5:11: the password goes to http://x.io/ in the clear; use https\n\
             5:11: whoever reaches 0.0.0.0:5000 can read all that `a` may read at x.io; shut others out by a firewall"
        );
    }
}
