//! Published attacks: of registries, of the HTTP server we stand on, of clients, and cases that are
//! nobody's. Each is a row with a name, and a test that bears it; tests that stand elsewhere, beside
//! what they are about, bear it too. [`ROWS`] lists them all.
//!
//! Spegel has no advisory that is known. CVE-2026-53488, CVE-2026-53489 and CVE-2026-53492 of containerd
//! are of what a node believes in an image: nothing a mirror could do.

mod cases;
mod clients;
mod pingora;
mod registries;
mod secrets;

use std::path::Path;

use hyper::Method;
use serde_json::json;

use crate::clients::{basic, htpasswd};
use crate::keys::Signer;
use crate::support::client::Ask;
use crate::support::image::{Content, Image};
use crate::support::mirror::{Mirror, before, files_under};
use crate::support::upstream::Upstream;

/// Every row, and the tests that are it.
const ROWS: &[(&str, &[&str])] = &[
    // Registries and caches.
    ("CVE-2026-33540", &["cve_2026_33540_ghsa_3p65_76g6_3w7r"]),
    ("GHSA-3p65-76g6-3w7r", &["cve_2026_33540_ghsa_3p65_76g6_3w7r"]),
    ("CVE-2026-35172", &["cve_2026_35172_ghsa_f2g3_hh2r_cwgc"]),
    ("GHSA-f2g3-hh2r-cwgc", &["cve_2026_35172_ghsa_f2g3_hh2r_cwgc"]),
    ("CVE-2026-41888", &["cve_2026_41888"]),
    ("CVE-2025-24976", &["cve_2025_24976_ghsa_phw4_mc57_4hwc"]),
    ("GHSA-phw4-mc57-4hwc", &["cve_2025_24976_ghsa_phw4_mc57_4hwc"]),
    ("CVE-2023-2253", &["cve_2023_2253_ghsa_hqxw_f8mx_cpmw"]),
    ("GHSA-hqxw-f8mx-cpmw", &["cve_2023_2253_ghsa_hqxw_f8mx_cpmw"]),
    ("CVE-2021-41190", &[AMBIGUOUS]),
    ("GHSA-qq97-vm5h-rrhg", &[AMBIGUOUS]),
    ("GHSA-mc8v-mgrf-8f4m", &[AMBIGUOUS]),
    ("CVE-2017-11468", &["cve_2017_11468", "cve_2017_11468_pushed"]),
    ("CVE-2024-39897", &["cve_2024_39897_ghsa_55r9_5mx9_qq7r"]),
    ("GHSA-55r9-5mx9-qq7r", &["cve_2024_39897_ghsa_55r9_5mx9_qq7r"]),
    ("CVE-2025-23208", &["cve_2025_23208_ghsa_c9p4_xwr9_rfhx"]),
    ("GHSA-c9p4-xwr9-rfhx", &["cve_2025_23208_ghsa_c9p4_xwr9_rfhx"]),
    ("CVE-2026-31801", &["cve_2026_31801_ghsa_85jx_fm8m_x8c6_a_tag_that_cannot_be_moved_stays"]),
    (
        "GHSA-85jx-fm8m-x8c6",
        &["cve_2026_31801_ghsa_85jx_fm8m_x8c6_a_tag_that_cannot_be_moved_stays"],
    ),
    ("harbor c080060", &["harbor_c080060"]),
    ("harbor 22900", &["harbor_22900_harbor_23270", GONE_WITH_TOKENS]),
    ("harbor 23270", &["harbor_22900_harbor_23270", GONE_WITH_TOKENS]),
    ("CVE-2026-4404", &["cve_2026_4404"]),
    ("CVE-2022-31666", &["cve_2022_31666_to_31671"]),
    ("CVE-2022-46463", &["cve_2022_46463"]),
    ("CVE-2020-13788", &[ODD_TARGETS]),
    ("CVE-2026-32589", &["cve_2026_32589_an_upload_belongs_to_who_began_it"]),
    ("CVE-2026-2376", &["cve_2026_2376"]),
    ("CVE-2025-4374", &["cve_2025_4374"]),
    ("CVE-2026-0600", &[ODD_TARGETS]),
    ("CVE-2024-4956", &["cve_2024_4956"]),
    ("nexus firewall", &["nexus_firewall_coalesced_waiters"]),
    ("CVE-2024-6915", &["cve_2024_6915"]),
    ("artifact-keeper 2925", &["artifact_keeper_2925"]),
    ("CVE-2026-27771", &["cve_2026_27771_distribution_1899_the_matrix_of_who_may_read_what"]),
    ("distribution 1899", &["cve_2026_27771_distribution_1899_the_matrix_of_who_may_read_what"]),
    (
        "distribution 2367",
        &["distribution_2367_purge_lets_an_image_leave_and_nothing_that_others_need"],
    ),
    ("distribution 4381", &["distribution_4381"]),
    // Pingora.
    (
        "CVE-2025-4366",
        &["cve_2025_4366_an_unread_body_on_a_hit_is_drained_before_the_next_request"],
    ),
    ("CVE-2026-2833", &["cve_2026_2833"]),
    (
        "CVE-2026-2835",
        &[
            "cve_2026_2835",
            "cve_2026_2835_http_1_0_with_a_transfer_encoding_does_not_keep_the_connection",
        ],
    ),
    ("CVE-2026-2836", &["cve_2026_2836"]),
    ("RUSTSEC-2026-0002", &["rustsec_2026_0002"]),
    // Clients and libraries.
    ("CVE-2020-15157", &[FOREIGN_LAYERS]),
    ("GHSA-742w-89gc-8m9c", &[FOREIGN_LAYERS]),
    ("GHSA-qvqc-4c52-x6qp", &[FOREIGN_LAYERS]),
    ("GHSA-5j5w-g665-5m35", &[AMBIGUOUS]),
    ("CVE-2026-50195", &["cve_2026_50195_ghsa_cvxm_645q_p574"]),
    ("GHSA-cvxm-645q-p574", &["cve_2026_50195_ghsa_cvxm_645q_p574"]),
    ("moby 42022", &["moby_42022_cve_2021_41092"]),
    ("CVE-2021-41092", &["moby_42022_cve_2021_41092"]),
    ("CVE-2014-8178", &["cve_2014_8178_cve_2014_8179"]),
    ("CVE-2014-8179", &["cve_2014_8178_cve_2014_8179"]),
    ("CVE-2024-24557", &["cve_2024_24557"]),
    ("CVE-2024-3727", &DIGESTS),
    ("GHSA-6wvf-f2vw-3425", &DIGESTS),
    ("CVE-2019-10214", &["cve_2019_10214_t16_credentials_go_only_where_they_belong"]),
    ("GHSA-xf85-363p-868w", &["ghsa_xf85_363p_868w_cve_2026_48978_ghsa_vh4v_2xq2_g5cg"]),
    ("CVE-2026-48978", &["ghsa_xf85_363p_868w_cve_2026_48978_ghsa_vh4v_2xq2_g5cg"]),
    ("GHSA-vh4v-2xq2-g5cg", &["ghsa_xf85_363p_868w_cve_2026_48978_ghsa_vh4v_2xq2_g5cg"]),
    (
        "GHSA-jxpm-75mh-9fp7",
        &["ghsa_jxpm_75mh_9fp7", "ghsa_jxpm_75mh_9fp7_an_upload_leads_nowhere_but_where_it_began"],
    ),
    ("ggcr 2193", &["ggcr_2193_ggcr_2258_ghsa_9m43_p3cx_w8j5"]),
    ("ggcr 2258", &["ggcr_2193_ggcr_2258_ghsa_9m43_p3cx_w8j5"]),
    ("GHSA-9m43-p3cx-w8j5", &["ggcr_2193_ggcr_2258_ghsa_9m43_p3cx_w8j5"]),
    ("CVE-2024-45336", &[COME_BACK]),
    ("CVE-2025-4673", &[COME_BACK]),
    ("CVE-2024-29902", &["cve_2024_29902_cve_2024_29903_cve_2023_33958"]),
    ("CVE-2024-29903", &["cve_2024_29902_cve_2024_29903_cve_2023_33958"]),
    ("CVE-2023-33958", &["cve_2024_29902_cve_2024_29903_cve_2023_33958"]),
    // Cases that are nobody's.
    ("T1", &["t1_a_reference_in_somebody_elses_manifest_proves_nothing"]),
    ("T2", &["t2_what_is_held_is_told_to_nobody_without_the_right_to_it"]),
    ("T3", &["t3_shared_credentials_are_another_matter_than_the_callers_own"]),
    ("T4", &["t4_a_cold_fill_is_joined_only_by_those_who_may"]),
    ("T5", &["t5_while_the_upstream_is_down_no_right_arises_and_none_goes_on_unless_told"]),
    ("T6", &["t6_a_decompression_bomb_is_bounded"]),
    (
        "T7",
        &[
            "t7_slow_peers_and_giant_headers_harm_nobody_else",
            "t7_a_pull_beside_clients_that_hang_is_not_held_up",
        ],
    ),
    (
        "T8",
        &["t8_more_ranges_than_anyone_needs_do_not_multiply_the_answer", "t8_head_ignores_a_range"],
    ),
    ("T9", &["t9_a_matching_etag_is_a_304", "t9_a_matching_etag_of_a_manifest_is_a_304_too"]),
    (
        "T10",
        &["t10_a_flood_of_resets_harms_nobody_else", "t10_a_flood_of_continuations_is_cut_off"],
    ),
    ("T11", &["t11_a_transfer_encoding_without_a_body_moves_no_frame"]),
    ("T12", &["t12_a_line_break_gets_into_no_header"]),
    ("T13", &["t13_errors_are_json_and_no_page"]),
    (
        "T14",
        &[
            "t14_an_ns_in_an_odd_form_is_the_same_upstream_or_refused",
            "t14_a_repeated_ns_is_refused_and_nothing_is_dialled",
        ],
    ),
    ("T15", &["t15_scopes_are_bounded", "t15_access_lists_are_bounded"]),
    (
        "T16",
        &[
            "t16_strange_realms_get_no_credentials",
            "cve_2019_10214_t16_credentials_go_only_where_they_belong",
        ],
    ),
    ("T17", &["t17_no_secret_is_found_in_logs_metrics_or_files"]),
];

// Names that stand for several rows.
const AMBIGUOUS: &str =
    "cve_2021_41190_ghsa_qq97_vm5h_rrhg_ghsa_mc8v_mgrf_8f4m_ghsa_5j5w_g665_5m35";
const GONE_WITH_TOKENS: &str =
    "harbor_22900_harbor_23270_a_user_who_is_gone_or_has_another_password_is_gone_with_his_tokens";
const ODD_TARGETS: &str =
    "cve_2020_13788_cve_2026_0600_odd_targets_choose_no_host_that_is_not_configured";
const FOREIGN_LAYERS: &str = "cve_2020_15157_ghsa_742w_89gc_8m9c_ghsa_qvqc_4c52_x6qp";
const COME_BACK: &str =
    "cve_2024_45336_cve_2025_4673_credentials_do_not_come_back_on_a_redirect_that_returns";
const DIGESTS: [&str; 2] =
    ["cve_2024_3727_ghsa_6wvf_f2vw_3425", "cve_2024_3727_ghsa_6wvf_f2vw_3425_pushed"];

/// Every test there is in these folders, by its name; one that is ignored is none.
fn tests_in(folders: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = folders.iter().flat_map(|folder| files_under(&root.join(folder)));
    let mut found = Vec::new();
    for file in files.filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(&file).expect("a source");
        let mut marked = false;
        for line in text.lines().map(str::trim_start) {
            let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
            match name.and_then(|rest| rest.split_once('(')) {
                Some((name, _)) if std::mem::take(&mut marked) => found.push(name.to_owned()),
                _ if line.starts_with("#[test]") || line.starts_with("#[tokio::test") => {
                    marked = true;
                }
                _ if line.starts_with("#[ignore") => marked = false,
                _ => {}
            }
        }
    }
    found
}

/// A row's name as a part of a function's.
fn as_words(id: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("_{}_", id.chars().map(word).collect::<String>())
}

#[test]
fn every_row_is_a_test_with_its_name() {
    let tests = tests_in(&["tests/mirror", "src"]);
    let bears = |name: &str, id: &str| format!("_{name}_").contains(&as_words(id));
    for (id, names) in ROWS {
        assert!(!names.is_empty(), "{id} has no test");
        for name in *names {
            assert!(bears(name, id), "{name} does not bear the name of {id}");
            let count = tests.iter().filter(|test| test == name).count();
            assert_eq!(count, 1, "{id}: there are {count} tests {name}");
        }
    }
    // And the other way round: whatever bears the name of a row is listed under it.
    let numbered = |name: &str| {
        let case = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
        case.is_some_and(|(number, _)| number.parse::<u8>().is_ok())
    };
    for test in &tests {
        for (id, names) in ROWS {
            assert!(
                !bears(test, id) || names.contains(&test.as_str()),
                "{test} is not listed under {id}"
            );
        }
        let named = ["cve_", "ghsa_", "rustsec_"].iter().any(|start| test.starts_with(start));
        let listed = ROWS.iter().any(|(_, names)| names.contains(&test.as_str()));
        assert!(listed || !(named || numbered(test)), "{test} is of no row");
    }
    let cases = ROWS.iter().filter(|(id, _)| numbered(&format!("{}_", id.to_lowercase())));
    assert_eq!(cases.count(), 17, "T1 to T17");
}

/// A mirror that hosts what alice has below `a/` and bob below `b/`, and nothing is both's.
struct Two {
    mirror: Mirror,
    _upstream: Upstream,
}

impl Two {
    async fn start() -> Self {
        let upstream = Upstream::start().await;
        let setup = before(&upstream);
        let file = htpasswd(&setup, &[("alice", "pw"), ("bob", "pw")]);
        let rule = |user: &str, below: &str| {
            format!(
                "{{users: [{user}], actions: [pull, push, delete], repositories: ['{below}/**']}}"
            )
        };
        let clients = format!(
            "hosted: {{repositories: ['**']}}\nclients:\n  htpasswd: {}\n  rules: [{}, {}]",
            file.display(),
            rule("alice", "a"),
            rule("bob", "b")
        );
        Self { mirror: setup.raw(&clients).start().await, _upstream: upstream }
    }

    fn as_(&self, user: &str, method: Method, path: &str) -> Ask {
        self.mirror.ask(method, path).header("authorization", &basic(user, "pw"))
    }

    fn manifest(&self, user: &str, repository: &str, tag: &str, manifest: &Content) -> Ask {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let ask = self.as_(user, Method::PUT, &path).body(manifest.bytes.clone());
        ask.header("content-type", &manifest.media_type)
    }

    async fn push(&self, user: &str, repository: &str, tag: &str, image: &Image) {
        for blob in image.blobs() {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest);
            let put = self.as_(user, Method::POST, &path).body(blob.bytes.clone()).answer().await;
            assert_eq!(put.status, 201, "{:?}", put.body);
        }
        let put = self.manifest(user, repository, tag, &image.manifest).answer().await;
        assert_eq!(put.status, 201, "{:?}", put.body);
    }
}

/// A mirror that believes the tokens of `signer`, and lets `ci` pull.
async fn believes(signer: &Signer, upstream: &Upstream) -> Mirror {
    let setup = before(upstream);
    let file = setup.folder().join("keys.json");
    std::fs::write(&file, json!({"keys": [signer.public()]}).to_string()).expect("a file");
    let jwt = format!("jwt: {{jwks: {}, issuer: them, audience: mirror}}", file.display());
    let rule = "{users: [ci], actions: [pull], repositories: ['**']}";
    setup.raw(&format!("clients:\n  {jwt}\n  rules: [{rule}]")).start().await
}

async fn status(mirror: &Mirror, token: &str) -> u16 {
    let ask = mirror.get("/v2/team/app/manifests/v1").header("authorization", token);
    ask.answer().await.status
}

/// What is on loopback under another name is another host.
fn elsewhere(upstream: &Upstream) -> String {
    upstream.url().replace("127.0.0.1", "localhost")
}
