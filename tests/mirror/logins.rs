//! Logging in with what the operator has already: Docker's configuration, helpers, clouds.

use crate::support::auth::{Account, Auth, Bearer};
use crate::support::client::Answer;
use crate::support::cloud::{self, AWS_KEY};
use crate::support::fault::Fault;
use crate::support::image::{self, Image};
use crate::support::mirror::{Mirror, NAME, Setup, before, until};
use crate::support::record::On;
use crate::support::upstream::Upstream;

const PATH: &str = "/v2/team/app/manifests/v1";

async fn upstream_with(auth: Auth) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = image::oci(1).build();
    upstream.push("team/app", "v1", &image);
    upstream.set(|registry| registry.auth = auth);
    (upstream, image)
}

fn robot() -> Account {
    Account::new("robot", "s3cret:word")
}

/// cm9ib3Q6czNjcmV0OndvcmQ= is robot:s3cret:word.
fn docker_config(setup: &Setup, json: &str) {
    let folder = setup.folder().join(".docker");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), json).unwrap();
}

/// Prints a login as helpers do, and notes that it ran.
fn helper(setup: Setup, name: &str, script: &str) -> Setup {
    let runs = setup.folder().join("runs").display().to_string();
    let script = format!("echo x >> {runs}; server=$(cat); {script}");
    setup.program(&format!("docker-credential-{name}"), &script)
}

const PRINTS: &str =
    r#"echo "{\"ServerURL\":\"$server\",\"Username\":\"robot\",\"Secret\":\"s3cret:word\"}""#;

fn keeps_its_secrets(mirror: &Mirror, answer: Option<&Answer>) {
    let body = answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
    let shown = mirror.log() + &body.unwrap_or_default();
    for secret in ["s3cret", "ya29", "entra-token", "refresh-me", "pw-1", AWS_KEY.1] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
}

#[tokio::test]
async fn dockers_own_configuration_is_used_and_read_again_when_it_changes() {
    let (upstream, image) = upstream_with(Auth::Basic(robot())).await;
    let setup = before(&upstream).with("auth: docker-config");
    let host = upstream.host();
    docker_config(&setup, r#"{"auths":{}}"#);
    let folder = setup.folder().to_owned();
    let mirror = setup.start().await;
    assert_eq!(mirror.get(PATH).answer().await.status, 403);
    let auths =
        format!(r#"{{"auths":{{"http://{host}/v2/":{{"auth":"cm9ib3Q6czNjcmV0OndvcmQ="}}}}}}"#);
    std::fs::write(folder.join(".docker/config.json"), auths).unwrap();
    let served = |answer: &Answer| answer.is(&image.manifest.bytes);
    let answer = until("the login that was added", || mirror.get(PATH), served).await;
    keeps_its_secrets(&mirror, Some(&answer));
}

#[tokio::test]
async fn helpers_that_dockers_configuration_names_are_asked_once() {
    for config in [
        r#"{"credHelpers":{"registry.test":"mine"},"credsStore":"other"}"#,
        r#"{"auths":{"registry.test":{}},"credsStore":"mine"}"#,
    ] {
        let bearer = Bearer { account: Some(robot()), ..Bearer::usual() };
        let (upstream, image) = upstream_with(Auth::Bearer(bearer)).await;
        upstream.push("team/other", "v1", &image);
        let setup = before(&upstream).with("auth: docker-config");
        docker_config(&setup, config);
        let runs = setup.folder().join("runs");
        let check = format!(r#"[ "$server" = {NAME} ] || exit 1; {PRINTS}"#);
        let mirror = helper(setup, "mine", &check).start().await;
        mirror.pull("team/app", "v1", &image).await;
        mirror.pull("team/other", "v1", &image).await;
        assert_eq!(upstream.count(&On::get("/token")), 2);
        assert_eq!(std::fs::read_to_string(runs).unwrap(), "x\n", "its answer is kept");
        keeps_its_secrets(&mirror, None);
    }
}

#[tokio::test]
async fn a_helpers_answer_that_is_refused_is_asked_for_again() {
    let (upstream, image) = upstream_with(Auth::Basic(robot())).await;
    let setup = before(&upstream).with("auth: {helper: mine}");
    let file = setup.folder().join("login");
    let login = |secret: &str| format!(r#"{{"Username":"robot","Secret":"{secret}"}}"#);
    std::fs::write(&file, login("s3cret:word")).unwrap();
    let mirror = helper(setup, "mine", &format!("cat {}", file.display())).start().await;
    assert!(mirror.get(PATH).answer().await.is(&image.manifest.bytes));
    upstream.set(|registry| registry.auth = Auth::Basic(Account::new("robot", "another")));
    std::fs::write(&file, login("another")).unwrap();
    let path = format!("/v2/team/app/blobs/{}", image.config.digest);
    assert!(mirror.get(&path).answer().await.is(&image.config.bytes), "{}", upstream.story());
}

#[tokio::test]
async fn an_identity_token_goes_to_the_token_service_alone() {
    let refresh = Some("refresh-me".to_owned());
    let bearer = Bearer { refresh, account: Some(robot()), ..Bearer::usual() };
    let (upstream, image) = upstream_with(Auth::Bearer(bearer)).await;
    let setup = before(&upstream).with("auth: {helper: mine}");
    let prints = r#"echo '{"Username":"<token>","Secret":"refresh-me"}'"#;
    let mirror = helper(setup, "mine", prints).start().await;
    mirror.pull("team/app", "v1", &image).await;
    for asked in upstream.asked(&On::any("/v2/")) {
        assert!(!asked.query.contains("refresh-me") && asked.body.is_empty());
    }
    keeps_its_secrets(&mirror, None);
}

#[tokio::test]
async fn a_helper_that_fails_in_any_way_is_an_error_that_names_upstream_and_remedy() {
    let no_login = "echo 'credentials not found in native keychain'; exit 1";
    let endless = "while :; do echo '{\"Secret\":\"s3cret\"}'; done";
    let cases = [
        ("mine", "exit 3", "failed; run `echo registry.test | docker-credential-mine get`"),
        ("mine", "echo s3cret", "prints something that is no login"),
        ("mine", "echo '{\"Username\":\"s3cret\"}'", "prints something that is no login"),
        ("mine", "echo '{\"Username\":\"u\",\"Secret\":\"\"}'", "prints an empty secret"),
        ("mine", endless, "prints more than"),
        ("mine", no_login, "knows no login for registry.test; log in with it"),
        ("mine", "sleep 60", "did not answer within 10 s"),
        ("other", "", "there is no program docker-credential-mine; install it"),
    ];
    let tries = cases.map(async |(name, script, why)| {
        let (upstream, image) = upstream_with(Auth::Open).await;
        let setup = before(&upstream).with("auth: {helper: mine}").with("tag_ttl: 0s");
        let runs = setup.folder().join("runs");
        let mirror = helper(setup, name, script).start().await;
        assert!(mirror.get(PATH).answer().await.is(&image.manifest.bytes), "nobody asked for it");
        upstream.set(|registry| registry.auth = Auth::Basic(robot()));
        let path = format!("/v2/team/app/blobs/{}", image.config.digest);
        let answer = mirror.get(&path).answer().await;
        let (_, message) = answer.error();
        assert_eq!(answer.status, 503, "{script}: {message}");
        assert!(message.contains(NAME) && message.contains(why), "{script}: {message}");
        keeps_its_secrets(&mirror, Some(&answer));
        let stale = mirror.get(PATH).answer().await;
        assert!(stale.is(&image.manifest.bytes), "what is held is served: {}", stale.status);
        let ran = std::fs::read_to_string(runs).unwrap_or_default().len() / 2;
        assert!(ran <= 2, "{script}: {ran} runs");
    });
    futures_util::future::join_all(tries).await;
}

fn on_aws(upstream: &Upstream, aws: &crate::support::scripted::Scripted) -> Setup {
    let auth = format!("auth: {{ecr: {{region: eu-central-1, endpoint: '{}/'}}}}", aws.url());
    before(upstream).with(&auth)
}

fn ecr(number: u32) -> Auth {
    Auth::Basic(Account::new("AWS", &format!("pw-{number}")))
}

#[tokio::test]
async fn ecr_gives_a_password_for_a_signed_request_and_a_new_one_once_it_has_ended() {
    let aws = cloud::aws().await;
    let (upstream, image) = upstream_with(ecr(1)).await;
    let setup = on_aws(&upstream, &aws)
        .env("AWS_ACCESS_KEY_ID", AWS_KEY.0)
        .env("AWS_SECRET_ACCESS_KEY", AWS_KEY.1);
    let mirror = setup.start().await;
    let path = |place: usize| format!("/v2/team/app/blobs/{}", image.layers[place].digest);
    assert!(mirror.get(&path(0)).answer().await.is(&image.layers[0].bytes), "{}", aws.story());
    assert!(mirror.get(PATH).answer().await.is(&image.manifest.bytes));
    assert_eq!(aws.count(&On::any("")), 1, "{}", aws.story());
    // ECR tells the end of a password by a text, not by a challenge.
    upstream.next(1, On::any(&image.layers[1].digest), [Fault::Plain(403)]);
    upstream.set(|registry| registry.auth = ecr(2));
    assert!(mirror.get(&path(1)).answer().await.is(&image.layers[1].bytes), "{}", upstream.story());
    assert_eq!(aws.count(&On::any("")), 2, "{}", aws.story());
    keeps_its_secrets(&mirror, None);
}

#[tokio::test]
async fn ecr_that_refuses_and_a_machine_without_aws_credentials_are_told() {
    let aws = cloud::aws().await;
    let (upstream, _) = upstream_with(ecr(1)).await;
    let wrong = on_aws(&upstream, &aws)
        .env("AWS_ACCESS_KEY_ID", AWS_KEY.0)
        .env("AWS_SECRET_ACCESS_KEY", "wrong");
    let none = on_aws(&upstream, &aws).env("AWS_EC2_METADATA_DISABLED", "true");
    for (setup, why) in [
        (wrong, "ECR answered 400 Bad Request (InvalidSignatureException); let this machine"),
        (none, "no usable AWS credentials"),
    ] {
        let mirror = setup.start().await;
        let answer = mirror.get(PATH).answer().await;
        let (_, message) = answer.error();
        assert_eq!(answer.status, 503, "{message}");
        assert!(message.contains(NAME) && message.contains(why), "{message}");
    }
}

#[tokio::test]
async fn a_service_accounts_key_and_the_metadata_server_give_googles_token() {
    for by_key in [true, false] {
        let google = cloud::google().await;
        let account = Account::new("oauth2accesstoken", "ya29.access");
        let bearer = Bearer { account: Some(account), ..Bearer::usual() };
        let (upstream, image) = upstream_with(Auth::Bearer(bearer)).await;
        let setup = before(&upstream);
        let key = setup.folder().join("key.json");
        std::fs::write(&key, cloud::google_key_file(&google)).unwrap();
        let setup = if by_key {
            setup.with(&format!("auth: {{gcp: {{key_file: {}}}}}", key.display()))
        } else {
            setup.with("auth: {gcp: {}}").env("GCE_METADATA_HOST", &google.host())
        };
        let mirror = setup.start().await;
        mirror.pull("team/app", "v1", &image).await;
        assert_eq!(google.count(&On::any("")), 1, "{}", google.story());
        keeps_its_secrets(&mirror, None);
    }
}

#[tokio::test]
async fn azures_identity_is_exchanged_for_a_refresh_token() {
    let azure = cloud::azure().await;
    let refresh = Some("refresh-me".to_owned());
    let bearer = Bearer { refresh, account: Some(robot()), ..Bearer::usual() }
        .reply(r#"{"access_token":"{token}"}"#);
    let (upstream, image) = upstream_with(Auth::Bearer(bearer)).await;
    let setup = before(&upstream)
        .with("auth: {acr: {}}")
        .env("IDENTITY_ENDPOINT", &format!("{}/identity", azure.url()))
        .env("IDENTITY_HEADER", "header");
    let mirror = setup.start().await;
    mirror.pull("team/app", "v1", &image).await;
    assert_eq!(upstream.count(&On::any("/oauth2/exchange")), 1, "{}", upstream.story());
    assert_eq!(azure.count(&On::any("")), 1, "{}", azure.story());
    keeps_its_secrets(&mirror, None);
}
