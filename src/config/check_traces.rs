//! What is wrong with where traces are sent.

use http::{HeaderName, HeaderValue};
use url::Url;

use super::check::{Checker, path};
use super::check_auth::is_in_the_clear;
use super::{Config, Traces};

impl Traces {
    /// The collector's URL with its path; `None` where there is none, or none that can be used.
    pub fn collector(&self) -> Option<Url> {
        let mut url = Url::parse(self.otlp.as_deref()?).ok()?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return None;
        }
        if url.path() == "/" {
            url.set_path("/v1/traces");
        }
        Some(url)
    }
}

impl Checker<'_> {
    /// Runs every check of traces.
    pub(super) fn traces(&mut self, config: &Config) {
        let traces = &config.traces;
        let otlp = path(["traces", "otlp"]);
        for (name, value) in &traces.headers {
            let at = path(["traces", "headers", name]);
            if HeaderName::try_from(name).is_err() {
                self.fault_at_key(
                    &at,
                    "this is no name of a header; write one such as authorization",
                );
            } else if HeaderValue::from_str(value.reveal()).is_err() {
                let text = "a header's value is one line of plain characters; this one is not";
                self.fault(&[at], text);
            }
        }
        if traces.otlp.is_none() {
            if !traces.headers.is_empty() {
                let text = "nothing is traced, so the collector's headers go nowhere; write `otlp`";
                self.warn(&path(["traces", "headers"]), text);
            }
            return;
        }
        if !cfg!(feature = "otel") {
            let text = "this pierhead was built without the feature `otel`; build it with, or leave \
                        `traces` out";
            return self.fault(&[otlp], text);
        }
        let Some(url) = traces.collector() else {
            let text =
                "traces are sent by OTLP over HTTP; write a URL such as http://127.0.0.1:4318";
            return self.fault(&[otlp], text);
        };
        if !url.username().is_empty() || url.password().is_some() {
            let text = "credentials do not belong in a URL; write them as a header, such as \
                        authorization";
            self.fault(std::slice::from_ref(&otlp), text);
        }
        if url.port() == Some(4317) {
            let text = "4317 is a collector's port for gRPC, which is not spoken here; its port for \
                        HTTP is mostly 4318";
            self.warn(&otlp, text);
        }
        if !traces.headers.is_empty() && is_in_the_clear(&url) {
            self.warn(&otlp, "the headers go to the collector in the clear; use https");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::check::tests::told;

    #[cfg(feature = "otel")]
    #[test]
    fn what_no_collector_would_take_is_found() {
        for (text, wanted) in [
            ("{otlp: 'collector:4318'}", "write a URL such as http://127.0.0.1:4318"),
            ("{otlp: ''}", "write a URL such as http://127.0.0.1:4318"),
            ("{otlp: 'grpc://x:4317'}", "write a URL such as http://127.0.0.1:4318"),
            ("{otlp: 'http://a:b@x:4318'}", "credentials do not belong in a URL"),
            ("{otlp: 'http://127.0.0.1:4317'}", "mostly 4318"),
            ("{otlp: 'http://127.0.0.1:4318', headers: {'a b': x}}", "no name of a header"),
            ("{otlp: 'http://127.0.0.1:4318', headers: {a: \"x\\ny\"}}", "one line"),
            ("{otlp: 'http://192.0.2.1:4318', headers: {a: x}}", "in the clear"),
            ("{headers: {a: x}}", "write `otlp`"),
            ("{otlp: 'http://127.0.0.1:4318', ratio: 1.5}", "from 0 to 1"),
            ("{otlp: 'http://127.0.0.1:4318', ratio: -1}", "from 0 to 1"),
            ("{otlp: 'http://127.0.0.1:4318', ratio: all}", "from 0 to 1"),
            ("{otlp: 'http://127.0.0.1:4318', ratios: 1}", "did you mean `ratio`"),
        ] {
            let said = told(&format!("traces: {text}"));
            assert!(said.contains(wanted) && said.lines().count() == 1, "{text}: {said}");
        }
        for good in ["{}", "{otlp: 'https://x', ratio: 1, headers: {api-key: x}}", "{ratio: 0}"] {
            assert_eq!(told(&format!("traces: {good}")), "", "{good}");
        }
    }

    #[cfg(not(feature = "otel"))]
    #[test]
    fn a_program_that_cannot_trace_says_so() {
        let said = told("traces: {otlp: 'http://127.0.0.1:4318'}");
        assert!(said.contains("without the feature `otel`"), "{said}");
        assert_eq!(told("traces: {ratio: 0.5}"), "");
    }

    #[test]
    fn a_collector_has_a_path_of_its_own_or_the_usual_one() {
        for (otlp, wanted) in [
            ("http://x:4318", Some("http://x:4318/v1/traces")),
            ("https://x/", Some("https://x/v1/traces")),
            ("https://x/otlp/v1/traces?a=b", Some("https://x/otlp/v1/traces?a=b")),
            ("ftp://x/", None),
        ] {
            let mut config = Config::default();
            config.traces.otlp = Some(otlp.to_owned());
            assert_eq!(config.traces.collector().map(String::from).as_deref(), wanted);
        }
    }
}
