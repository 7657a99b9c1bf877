//! Azure's registries: a token of Entra, exchanged at the registry for a refresh token.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use azure_core::credentials::{Secret, TokenCredential};
use azure_core::http::{ClientOptions, HttpClient, RetryOptions, Transport};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::cloud::Cloud;
use super::credentials::{Fetched, Login};
use super::redirect;
use crate::config;
use crate::error::{Error, Kind, Result};

/// For which service Entra makes the token out.
const SCOPE: &str = "https://containerregistry.azure.net/.default";

/// The life of a refresh token that does not tell its own; in truth they live for three hours.
const LIFE: Duration = Duration::from_secs(3600);

/// Where a registry's refresh tokens come from.
#[derive(Debug)]
pub(super) struct Acr {
    upstream: Arc<str>,
    /// The registry's own `/oauth2/exchange`.
    exchange: Url,
    /// The registry's host, for which the refresh token is made out.
    service: String,
    client_id: Option<String>,
    cloud: Cloud,
    transport: Arc<dyn HttpClient>,
}

#[derive(Deserialize)]
struct Answer {
    refresh_token: String,
}

impl Acr {
    /// Nothing is read or dialled yet.
    pub(super) fn new(
        upstream: &Arc<str>,
        config: &config::Acr,
        endpoints: &[Url],
    ) -> Result<Self> {
        let usual = Url::parse(&format!("https://{upstream}"));
        let endpoint = match endpoints.first() {
            Some(url) => url.clone(),
            None => usual.map_err(|e| Error::internal("an upstream's name is no host", e))?,
        };
        let exchange = endpoint
            .join("/oauth2/exchange")
            .map_err(|e| Error::internal("cannot build the URL of the exchange", e))?;
        let cloud = Cloud::new()?;
        let transport = Arc::new(cloud.far.clone());
        Ok(Self {
            upstream: Arc::clone(upstream),
            exchange,
            service: redirect::authority(&endpoint),
            client_id: config.client_id.clone(),
            cloud,
            transport,
        })
    }

    /// Gets a token of Entra and exchanges it.
    pub(super) async fn fetch(&self) -> Result<Fetched> {
        let tenant = set("AZURE_TENANT_ID");
        let token = self.entra(set).await?;
        let fields = [("grant_type", "access_token"), ("service", &self.service)];
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .extend_pairs(tenant.iter().map(|tenant| ("tenant", tenant)))
            .append_pair("access_token", token.secret())
            .finish();
        let request = http::Request::post(self.exchange.as_str())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Bytes::from(form))
            .map_err(|e| Error::internal("cannot build the request of the exchange", e))?;
        let answer = self.cloud.send(request).await.map_err(|e| {
            self.fail("the registry's /oauth2/exchange cannot be reached; check the endpoint")
                .because(e)
        })?;
        if !answer.status().is_success() {
            return Err(self.fail(&format!(
                "the registry's /oauth2/exchange answered {}; give the identity the role AcrPull on the registry",
                answer.status()
            )));
        }
        let Answer { refresh_token } = serde_json::from_slice(answer.body()).map_err(|_| {
            self.fail("the registry's /oauth2/exchange answered with no token; check the endpoint")
        })?;
        let life = life_of(&refresh_token).unwrap_or(LIFE);
        Ok(Fetched::living(Login::Identity { token: refresh_token }, life))
    }

    fn fail(&self, why: &str) -> Error {
        Error::new(Kind::NoLogin, format!("no login for {}: {why}", self.upstream))
    }

    /// A token of Entra: as the environment says a service principal or a workload identity, else
    /// the machine's managed identity.
    async fn entra(&self, set: fn(&str) -> Option<String>) -> Result<Secret> {
        let tenant = set("AZURE_TENANT_ID");
        let client_id = self.client_id.clone().or_else(|| set("AZURE_CLIENT_ID"));
        let options = || ClientOptions {
            transport: Some(Transport::new(Arc::clone(&self.transport))),
            retry: RetryOptions::none(), // a deadline of ours runs
            ..ClientOptions::default()
        };
        let secret = set("AZURE_CLIENT_SECRET");
        let (what, credential): (_, azure_core::Result<Arc<dyn TokenCredential>>) =
            match (tenant, client_id, secret, set("AZURE_FEDERATED_TOKEN_FILE")) {
                (Some(tenant), Some(id), Some(secret), _) => {
                    let options = ClientSecretCredentialOptions { client_options: options() };
                    let made = ClientSecretCredential::new(
                        &tenant,
                        id,
                        Secret::from(secret),
                        Some(options),
                    );
                    ("the service principal of AZURE_CLIENT_ID", made.map(|one| one as _))
                }
                (Some(tenant), Some(id), None, Some(file)) => {
                    let credential_options =
                        ClientAssertionCredentialOptions { client_options: options() };
                    let options = WorkloadIdentityCredentialOptions {
                        credential_options,
                        client_id: Some(id),
                        tenant_id: Some(tenant),
                        token_file_path: Some(file.into()),
                    };
                    let made = WorkloadIdentityCredential::new(Some(options));
                    (
                        "the workload identity of AZURE_FEDERATED_TOKEN_FILE",
                        made.map(|one| one as _),
                    )
                }
                _ => {
                    let options = ManagedIdentityCredentialOptions {
                        user_assigned_id: self.client_id.clone().map(UserAssignedId::ClientId),
                        client_options: options(),
                    };
                    let made = ManagedIdentityCredential::new(Some(options));
                    ("the machine's managed identity", made.map(|one| one as _))
                }
            };
        let fail = |error: azure_core::Error| {
            // Entra's words name tenants and applications; only the kind of the error is kept.
            self.fail(&format!(
                "Entra gives {what} no token; set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or give the machine a managed identity"
            ))
            .because(format!("{:?}", error.kind()))
        };
        let token = credential.map_err(fail)?.get_token(&[SCOPE], None).await.map_err(fail)?;
        Ok(token.token)
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What is left of the life of a token that is a JWT. Its signature is the registry's business.
fn life_of(token: &str) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(exp.saturating_sub(now).clamp(120, 43_200)))
}

#[cfg(test)]
mod tests {
    use azure_core::http::headers::Headers;
    use azure_core::http::{AsyncRawResponse, Body, Request, StatusCode};
    use parking_lot::Mutex;

    use super::*;

    /// Entra, as far as a service principal sees it.
    #[derive(Debug, Default)]
    struct Entra(Mutex<Vec<String>>);

    #[async_trait::async_trait]
    impl HttpClient for Entra {
        async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
            let Body::Bytes(form) = request.body() else { panic!("a form") };
            let asked = format!("{} {}", request.url(), String::from_utf8_lossy(form));
            let right = asked.contains("client_secret=s3cret");
            self.0.lock().push(asked);
            let (status, body) = if right {
                let body = r#"{"token_type":"Bearer","expires_in":3599,"access_token":"entra"}"#;
                (StatusCode::Ok, body)
            } else {
                (StatusCode::Unauthorized, r#"{"error":"invalid_client"}"#)
            };
            Ok(AsyncRawResponse::from_bytes(status, Headers::new(), body))
        }
    }

    fn acr(entra: &Arc<Entra>) -> Acr {
        let _ = rustls::crypto::ring::default_provider().install_default(); // as `main` does
        let config = config::Acr::default();
        let transport: Arc<dyn HttpClient> = Arc::<Entra>::clone(entra);
        Acr { transport, ..Acr::new(&"x.azurecr.io".into(), &config, &[]).unwrap() }
    }

    fn env(name: &str, secret: &str) -> Option<String> {
        match name {
            "AZURE_TENANT_ID" => Some("tenant".to_owned()),
            "AZURE_CLIENT_ID" => Some("client".to_owned()),
            "AZURE_CLIENT_SECRET" => Some(secret.to_owned()),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_service_principal_asks_entra_for_the_registrys_scope() {
        let entra = Arc::new(Entra::default());
        let token = acr(&entra).entra(|name| env(name, "s3cret")).await.unwrap();
        assert_eq!(token.secret(), "entra");
        let asked = entra.0.lock().join(" ");
        assert!(asked.starts_with("https://login.microsoftonline.com/tenant/oauth2/v2.0/token"));
        assert!(asked.contains("containerregistry.azure.net%2F.default"), "{asked}");
        let error = acr(&entra).entra(|name| env(name, "wr0ng")).await.unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("x.azurecr.io") && !text.contains("wr0ng"), "{text}");
    }

    #[test]
    fn a_refresh_token_tells_its_life() {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"exp":4102444800}"#);
        assert_eq!(life_of(&format!("h.{claims}.s")), Some(Duration::from_secs(43_200)));
        assert_eq!(life_of("opaque"), None);
    }
}
