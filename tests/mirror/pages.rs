//! Lists: the tags of a repository, and what refers to a manifest.

use serde_json::{Value, json};

use crate::support::client::Answer;
use crate::support::fault::Fault;
use crate::support::image::{self, Image, OCI_INDEX};
use crate::support::mirror::{Mirror, NAME, Setup, before};
use crate::support::record::On;
use crate::support::registry::Referrers;
use crate::support::upstream::Upstream;

/// A registry with the tags `t00` to `t24`.
async fn twenty_five_tags() -> Upstream {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    for number in 0..25 {
        upstream.push("team/app", &format!("t{number:02}"), &image);
    }
    upstream
}

fn tags(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.header("content-type").starts_with("application/json"), "{answer:?}");
    let tags = &answer.json()["tags"];
    let tags = tags.as_array().unwrap_or_else(|| panic!("no list of tags in {answer:?}"));
    tags.iter().map(|tag| tag.as_str().expect("a tag is a string").to_owned()).collect()
}

/// The target of `Link: <target>; rel="next"`.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link");
    if link.is_empty() {
        return None;
    }
    let (target, rest) = link
        .strip_prefix('<')
        .and_then(|link| link.split_once('>'))
        .expect("a target in angle brackets");
    assert!(rest.contains("rel=\"next\"") || rest.contains("rel=next"), "{link}");
    assert!(target.starts_with("/v2/"), "a path of the mirror's own, whatever its name is: {link}");
    Some(target.to_owned())
}

/// Follows the links from `path` on, and returns every page.
async fn walk(mirror: &Mirror, path: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut path = Some(path.to_owned());
    while let Some(target) = path {
        let answer = mirror.get(&target).answer().await;
        pages.push(tags(&answer));
        path = next(&answer);
        assert!(pages.len() < 50, "the links never end");
    }
    pages
}

#[tokio::test]
async fn the_tags_of_a_repository_are_listed() {
    let upstream = twenty_five_tags().await;
    let mirror = before(&upstream).start().await;
    let answer = mirror.get("/v2/team/app/tags/list").answer().await;
    assert_eq!(tags(&answer).len(), 25);
    assert_eq!(answer.json()["name"], "team/app");
    assert_eq!(next(&answer), None);
    let head = mirror.head("/v2/team/app/tags/list").answer().await;
    assert!([200, 405].contains(&head.status), "{head:?}");
}

#[tokio::test]
async fn a_list_of_tags_comes_in_pages_that_lead_to_each_other_through_the_mirror() {
    for absolute in [false, true] {
        let upstream = twenty_five_tags().await;
        upstream.set(|registry| registry.absolute_links = absolute);
        let mirror = before(&upstream).start().await;
        let pages = walk(&mirror, "/v2/team/app/tags/list?n=10").await;
        let sizes: Vec<usize> = pages.iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 5]);
        let all = pages.concat();
        assert_eq!((all.len(), all[0].as_str(), all[24].as_str()), (25, "t00", "t24"));
        let asked = upstream.asked(&On::get("/tags/list"));
        assert!(asked.iter().all(|one| one.query.contains("n=10")), "{}", upstream.story());
    }
}

/// ECR caps at 1000, Docker Hub at some hundreds.
#[tokio::test]
async fn an_upstream_that_caps_its_pages_is_walked_all_the_same() {
    let upstream = twenty_five_tags().await;
    upstream.set(|registry| registry.page = 4);
    let mirror = before(&upstream).start().await;
    for path in ["/v2/team/app/tags/list?n=10", "/v2/team/app/tags/list"] {
        let all = walk(&mirror, path).await.concat();
        assert_eq!(all.len(), 25, "{path}: {all:?}");
    }
}

#[tokio::test]
async fn a_list_of_tags_starts_after_last() {
    let upstream = twenty_five_tags().await;
    let mirror = before(&upstream).start().await;
    let answer = mirror.get("/v2/team/app/tags/list?n=3&last=t19").answer().await;
    assert_eq!(tags(&answer), ["t20", "t21", "t22"]);
    let answer = mirror.get("/v2/team/app/tags/list?last=t22").answer().await;
    assert_eq!(tags(&answer), ["t23", "t24"]);
}

#[tokio::test]
async fn a_page_of_no_tags_is_empty_and_leads_nowhere() {
    let upstream = twenty_five_tags().await;
    let mirror = before(&upstream).start().await;
    let answer = mirror.get("/v2/team/app/tags/list?n=0").answer().await;
    assert_eq!(tags(&answer), Vec::<String>::new());
    assert_eq!(next(&answer), None);
}

#[tokio::test]
async fn a_page_size_that_makes_no_sense_is_refused_or_bounded() {
    let upstream = twenty_five_tags().await;
    let mirror = before(&upstream).start().await;
    for n in ["-1", "abc", "9223372036854775808", "99999999999999999999999999", "1e3", ""] {
        let answer = mirror.get(&format!("/v2/team/app/tags/list?n={n}")).answer().await;
        if answer.status == 200 {
            assert!(tags(&answer).len() <= 25, "{n}");
        } else {
            assert_eq!(answer.status, 400, "{n}");
            answer.error();
        }
    }
    for last in ["..%2F..", "%0d%0aX-Injected:%20yes", &"x".repeat(5000)] {
        let answer = mirror.get(&format!("/v2/team/app/tags/list?last={last}")).answer().await;
        assert!(answer.status < 500, "{last:.20}: {}", answer.status);
        assert!(!answer.headers.contains_key("x-injected"));
    }
    assert!(upstream.asked(&On::any("")).iter().all(|one| !one.headers.contains_key("x-injected")));
}

#[tokio::test]
async fn links_of_a_list_that_was_asked_for_by_ns_or_prefix_lead_to_the_same_upstream() {
    let (first, second) = (Upstream::start().await, twenty_five_tags().await);
    let setup = Setup::new().upstream(NAME, &first).upstream("second.test", &second);
    let mirror = setup.start().await;
    for path in
        ["/v2/second.test/team/app/tags/list?n=10", "/v2/team/app/tags/list?n=10&ns=second.test"]
    {
        let all = walk(&mirror, path).await.concat();
        assert_eq!(all.len(), 25, "{path}");
    }
    assert_eq!(first.connections(), 0);
}

#[tokio::test]
async fn the_tags_of_official_images_are_listed_under_the_short_name_too() {
    let hub = Upstream::start().await;
    hub.push("library/alpine", "v1", &image::oci(1).build());
    let mirror =
        Setup::new().upstream("docker.io", &hub).default_upstream("docker.io").start().await;
    assert_eq!(tags(&mirror.get("/v2/alpine/tags/list").answer().await), ["v1"]);
}

#[tokio::test]
async fn a_list_of_tags_that_cannot_be_had_is_an_error_and_never_an_empty_list() {
    let upstream = twenty_five_tags().await;
    let mirror = before(&upstream).start().await;
    mirror.get("/v2/team/none/tags/list").answer().await.assert_error(404, "NAME_UNKNOWN");
    let faults = [
        Fault::Html,
        Fault::Body("{\"tags\":".into()),
        Fault::Body("[]".into()),
        Fault::Body("{\"name\":\"team/app\",\"tags\":[17]}".into()),
        Fault::Body(" ".repeat(30_000_000).into()),
        Fault::Status(500),
        Fault::CutAfter(20),
    ];
    for fault in faults {
        let name = format!("{fault:.40?}");
        upstream.always(On::any("/tags/"), fault);
        let answer = mirror.get("/v2/team/app/tags/list").answer().await;
        let (_, message) = answer.error();
        assert!(answer.status >= 500, "{name:.40}: {}", answer.status);
        assert!(message.contains(NAME), "{name:.40}: {message}");
        upstream.behave();
    }
    assert_eq!(tags(&mirror.get("/v2/team/app/tags/list").answer().await).len(), 25);
}

#[tokio::test]
async fn a_link_to_another_host_is_not_handed_on() {
    let upstream = twenty_five_tags().await;
    let links = [
        "<http://evil.test/v2/team/app/tags/list?last=t05>; rel=\"next\"",
        "<//evil.test/x>; rel=\"next\"",
        "nonsense",
        "<>",
    ];
    let mirror = before(&upstream).start().await;
    for link in links {
        upstream.always(On::any("/tags/"), Fault::Header("link", link.to_owned()));
        let answer = mirror.get("/v2/team/app/tags/list?n=5").answer().await;
        assert!(!answer.header("link").contains("evil.test"), "{answer:?}");
        assert!(!answer.header("link").contains("nonsense"), "{answer:?}");
        upstream.behave();
    }
}

#[tokio::test]
async fn a_null_list_is_an_empty_one() {
    let upstream = twenty_five_tags().await;
    upstream.always(On::any("/tags/"), Fault::Body("{\"name\":\"team/app\",\"tags\":null}".into()));
    let mirror = before(&upstream).start().await;
    let answer = mirror.get("/v2/team/app/tags/list").answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.json()["tags"].as_array().is_none_or(Vec::is_empty));
}

/// An image with a signature and a bill of materials.
struct Referred {
    upstream: Upstream,
    mirror: Mirror,
    image: Image,
    signature: Image,
    path: String,
}

const SIGNATURE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const MATERIALS: &str = "application/spdx+json";

impl Referred {
    async fn start(referrers: Referrers) -> Self {
        let upstream = Upstream::start().await;
        let image = image::oci(1).build();
        let signature = image::artifact(2, SIGNATURE, &image.manifest).build();
        let materials = image::artifact(3, MATERIALS, &image.manifest).build();
        upstream.push("team/app", "v1", &image);
        upstream.push("team/app", "signature", &signature);
        upstream.push("team/app", "materials", &materials);
        upstream.set(|registry| registry.referrers = referrers);
        let mirror = before(&upstream).start().await;
        let path = format!("/v2/team/app/referrers/{}", image.manifest.digest);
        Self { upstream, mirror, image, signature, path }
    }

    async fn list(&self, query: &str) -> Vec<Value> {
        let answer = self.mirror.get(&format!("{}{query}", self.path)).answer().await;
        assert_eq!((answer.status, answer.header("content-type")), (200, OCI_INDEX), "{answer:?}");
        let body = answer.json();
        assert_eq!((&body["schemaVersion"], &body["mediaType"]), (&json!(2), &json!(OCI_INDEX)));
        body["manifests"].as_array().expect("a list of descriptors").clone()
    }
}

#[tokio::test]
async fn referrers_are_passed_on() {
    let referred = Referred::start(Referrers::Present).await;
    let all = referred.list("").await;
    assert_eq!(all.len(), 2);
    let types: Vec<_> = all.iter().filter_map(|one| one["artifactType"].as_str()).collect();
    assert!(types.contains(&SIGNATURE) && types.contains(&MATERIALS), "{types:?}");
    let path = format!("/v2/team/app/manifests/{}", referred.signature.manifest.digest);
    assert!(referred.mirror.get(&path).answer().await.is(&referred.signature.manifest.bytes));
}

#[tokio::test]
async fn referrers_are_filtered_by_artifact_type_and_the_filter_is_owned_up_to() {
    let referred = Referred::start(Referrers::Present).await;
    let query = format!("?artifactType={}", SIGNATURE.replace('/', "%2F").replace('+', "%2B"));
    let list = referred.list(&query).await;
    let digests: Vec<_> = list.iter().map(|one| &one["digest"]).collect();
    let answer = referred.mirror.get(&format!("{}{query}", referred.path)).answer().await;
    if answer.header("oci-filters-applied") == "artifactType" {
        assert_eq!(digests, [&json!(referred.signature.manifest.digest)]);
    } else {
        assert_eq!(list.len(), 2, "unfiltered, and not said to be filtered");
    }
}

#[tokio::test]
async fn nothing_refers_to_most_things() {
    let referred = Referred::start(Referrers::Present).await;
    let path = format!("/v2/team/app/referrers/{}", referred.signature.manifest.digest);
    let answer = referred.mirror.get(&path).answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, OCI_INDEX));
    assert_eq!(answer.json()["manifests"], json!([]));
}

#[tokio::test]
async fn where_the_api_lacks_the_fallback_tag_is_read() {
    for lacking in [Referrers::Absent, Referrers::Html, Referrers::SeeOther] {
        let referred = Referred::start(lacking).await;
        let mut descriptor = referred.signature.manifest.descriptor();
        descriptor["artifactType"] = SIGNATURE.into();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor]});
        let index = image::Content::new(image::Algorithm::Sha256, OCI_INDEX, index.to_string());
        referred.upstream.push_manifest("team/app", &index);
        let tag = referred.image.manifest.digest.replace(':', "-");
        referred.upstream.tag("team/app", &tag, &index);
        let answer = referred.mirror.get(&referred.path).answer().await;
        // Either is lawful: the list built from the tag, or 404, whereupon clients read the tag.
        if answer.status == 200 {
            assert_eq!(answer.header("content-type"), OCI_INDEX, "{lacking:?}");
            assert_eq!(answer.json()["manifests"][0]["digest"], referred.signature.manifest.digest);
        } else {
            assert_eq!(answer.status, 404, "{lacking:?}: {answer:?}");
            answer.error();
        }
        let answer = referred.mirror.get(&format!("/v2/team/app/manifests/{tag}")).answer().await;
        assert!(answer.is(&index.bytes), "{lacking:?}");
    }
}

#[tokio::test]
async fn where_neither_api_nor_fallback_tag_is_there_nothing_refers() {
    for lacking in [Referrers::Absent, Referrers::Html, Referrers::SeeOther] {
        let referred = Referred::start(lacking).await;
        let answer = referred.mirror.get(&referred.path).answer().await;
        match answer.status {
            200 => assert_eq!(answer.json()["manifests"], json!([]), "{lacking:?}"),
            404 => drop(answer.error()),
            other => panic!("{lacking:?}: {other}"),
        }
        assert!(!answer.header("content-type").contains("html"), "{lacking:?}");
    }
}

#[tokio::test]
async fn referrers_that_cannot_be_asked_for_are_an_error_and_never_an_empty_list() {
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::CutHead] {
        let referred = Referred::start(Referrers::Present).await;
        referred.upstream.always(On::any(""), fault.clone());
        let answer = referred.mirror.get(&referred.path).answer().await;
        answer.error();
        assert!([429, 502, 503].contains(&answer.status), "{fault:?}: {}", answer.status);
        referred.upstream.behave();
        assert_eq!(referred.list("").await.len(), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn endless_pages_of_referrers_come_to_an_end() {
    let referred = Referred::start(Referrers::Present).await;
    let link = format!("<{}?page=again>; rel=\"next\"", referred.path);
    referred.upstream.always(On::any("/referrers/"), Fault::Header("link", link));
    let answer = referred.mirror.get(&referred.path).answer().await;
    assert!(answer.status < 500 || answer.error().1.contains(NAME), "{answer:?}");
    assert!(referred.upstream.count(&On::any("/referrers/")) <= 100);
}
