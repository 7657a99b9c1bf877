//! Every registry that is known to differ, by its own rules: private and public, cold and warm.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::support::auth::{Account, Auth, Bearer};
use crate::support::cdn::Cdn;
use crate::support::fault::Fault;
use crate::support::image;
use crate::support::mirror::before;
use crate::support::record::On;
use crate::support::registry::{Limit, Referrers, Registry};
use crate::support::upstream::Upstream;

/// What is special about one registry.
struct Rules {
    name: &'static str,
    /// As whom private content is read; the same name stands in the sample.
    user: &'static str,
    auth: Way,
    /// With which status blobs are redirected; 0: they are served.
    redirect: u16,
    more: fn(&mut Registry, &Arc<Cdn>),
    faults: &'static [(On1, Fault1)],
}

/// How it lets people in.
#[derive(Clone)]
enum Way {
    Open,
    Basic,
    Bearer { challenge: &'static str, reply: &'static str, scope: &'static str },
}

#[derive(Clone, Copy)]
enum On1 {
    HeadBlobs,
    Manifests,
}

#[derive(Clone, Copy)]
enum Fault1 {
    Refused,
    NoDigest,
    Gzip,
}

const USUAL: &str = r#"Bearer realm="{realm}",service="the.registry",scope="{scope}""#;
const BOTH: &str = r#"{"token":"{token}","access_token":"{token}","expires_in":300}"#;
const PULL: &str = "repository:{repository}:pull";

fn usual() -> Way {
    Way::Bearer { challenge: USUAL, reply: BOTH, scope: PULL }
}

fn plain(name: &'static str, user: &'static str, auth: Way, redirect: u16) -> Rules {
    Rules { name, user, auth, redirect, more: |_, _| {}, faults: &[] }
}

#[rustfmt::skip]
fn all() -> Vec<Rules> {
    let bearer = |challenge, reply, scope| Way::Bearer { challenge, reply, scope };
    vec![
        Rules { more: |r, _| r.limit = Some(Limit::of(100)), ..plain("docker.io", "first", usual(), 307) },
        Rules {
            more: |r, _| { r.strict_accept = true; r.referrers = Referrers::SeeOther; r.many_ranges = 501; },
            ..plain("ghcr.io", "anybody", usual(), 307)
        },
        plain("quay.io", "organisation+puller", usual(), 302),
        Rules {
            faults: &[(On1::Manifests, Fault1::NoDigest), (On1::Manifests, Fault1::Gzip)],
            ..plain("registry.redhat.io", "1234567|puller", usual(), 302)
        },
        Rules {
            more: |r, _| r.many_ranges = 400,
            ..plain("europe-docker.pkg.dev", "oauth2accesstoken", bearer(r#"Bearer realm="{realm}""#, BOTH, PULL), 302)
        },
        plain("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "AWS", Way::Basic, 307),
        Rules {
            faults: &[(On1::HeadBlobs, Fault1::Refused)],
            ..plain("public.ecr.aws", "AWS",
                bearer(r#"Bearer realm="{realm}",service="public.ecr.aws",scope="aws""#, BOTH, "aws"), 307)
        },
        Rules {
            more: |r, _| r.strict_accept = true,
            ..plain("example.azurecr.io", "00000000-0000-0000-0000-000000000000",
                bearer(USUAL, r#"{"access_token":"{token}"}"#, PULL), 307)
        },
        plain("mcr.microsoft.com", "", Way::Open, 307),
        plain("artifactory.example.com", "puller", bearer(USUAL, r#"{"token":"{token}","expires_in":3600}"#, PULL), 302),
        plain("artifactory-basic.example.com", "puller", Way::Basic, 0),
        plain("registry.gitlab.com", "gitlab+deploy-token-1", usual(), 307),
        Rules { more: |r, _| r.referrers = Referrers::Html, ..plain("harbor.example.com", "robot$team+puller", usual(), 0) },
        Rules {
            more: |r, cdn| r.manifests_at = Some((307, Arc::clone(cdn))),
            ..plain("registry.k8s.io", "", Way::Open, 307)
        },
        plain("nvcr.io", "$oauthtoken", bearer(r#"Bearer realm="{realm}",scope="{scope}""#, BOTH, PULL), 307),
    ]
}

impl Rules {
    fn auth(&self, account: Option<Account>) -> Auth {
        match (&self.auth, account) {
            (Way::Open, _) => Auth::Open,
            (Way::Basic, Some(account)) => Auth::Basic(account),
            (Way::Basic, None) => Auth::Open,
            (Way::Bearer { challenge, reply, scope }, account) => {
                let bearer = Bearer::usual().challenge(challenge).reply(reply);
                Auth::Bearer(Bearer { account, scope: (*scope).to_owned(), ..bearer })
            }
        }
    }

    /// Pulls by tag, cold and then warm, and looks at what each host was asked.
    async fn pull(&self, private: bool) {
        let (upstream, cdn) = (Upstream::start().await, Cdn::start().await);
        let image = image::oci(1).build();
        upstream.push("team/app", "v1", &image);
        let account = private.then(|| Account::new(self.user, "s3cret/+="));
        upstream.set(|registry| {
            registry.auth = self.auth(account.clone());
            if self.redirect > 0 {
                registry.blobs_at = Some((self.redirect, Arc::clone(&cdn)));
            }
            (self.more)(registry, &cdn);
        });
        for (on, fault) in self.faults {
            let on = match on {
                On1::HeadBlobs => On::head("/blobs/"),
                On1::Manifests => On::any("/manifests/"),
            };
            let fault = match fault {
                Fault1::Refused => Fault::Status(401),
                Fault1::NoDigest => Fault::NoHeader("docker-content-digest"),
                Fault1::Gzip => Fault::Gzip,
            };
            upstream.always(on, fault);
        }
        let mut setup = before(&upstream);
        if private {
            let user = self.user;
            setup = setup.with(&format!("auth: {{username: '{user}', password: 's3cret/+='}}"));
        }
        let mirror = setup.start().await;
        let what = format!("{}, {}", self.name, if private { "private" } else { "public" });
        mirror.pull("team/app", "v1", &image).await;
        let cold = upstream.count(&On::get("/v2/"));
        let words = mirror.pull("team/app", "v1", &image).await;
        assert!(words.iter().all(|word| word.contains("hit")), "{what}: {words:?}");
        assert_eq!(upstream.count(&On::get("/v2/")), cold, "{what}: {}", upstream.story());
        assert!(!mirror.log().contains("s3cret"), "{what}");
        for asked in cdn.asked(&On::any("")) {
            assert!(!asked.headers.contains_key("authorization"), "{what}: {asked:?}");
        }
        let basic = account.as_ref().map(Account::basic);
        for asked in upstream.asked(&On::any("")) {
            let sent = asked.header("authorization");
            let known =
                sent.is_empty() || sent.starts_with("Bearer ") || Some(sent) == basic.as_deref();
            assert!(known, "{what}: {asked:?}");
        }
    }
}

#[tokio::test]
async fn public_images_are_pulled_through_every_registry_cold_and_warm() {
    let all = all();
    for some in all.chunks(4) {
        join_all(some.iter().map(|rules| rules.pull(false))).await;
    }
}

#[tokio::test]
async fn private_images_are_pulled_through_every_registry_cold_and_warm() {
    let all = all();
    let private: Vec<_> = all.iter().filter(|rules| !matches!(rules.auth, Way::Open)).collect();
    for some in private.chunks(4) {
        join_all(some.iter().map(|rules| rules.pull(true))).await;
    }
}
