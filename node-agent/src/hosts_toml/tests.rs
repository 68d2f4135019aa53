//! Foreign files in, merged files out, and every byte back.

use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use toml_edit::DocumentMut;

const RELAY: &str = "http://127.0.0.1:429";

fn entry(server: Server) -> Entry {
    Entry { mirror: "docker-io".into(), relay: RELAY.into(), server }
}

fn check_merge(foreign: &str, server: Server, expected: &Expect) {
    let entry = entry(server);
    let merged = merge(foreign, &entry).unwrap();
    expected.assert_eq(&merged);
    assert_eq!(merge(&merged, &entry).unwrap(), merged, "merging again changes nothing");
    assert_eq!(unmerge(&merged, RELAY).as_deref(), Some(foreign), "the file comes back as it was");
}

#[test]
fn a_file_of_ours_is_the_documented_text() {
    expect![[r#"
        # Managed by Breakwater: RegistryMirror/docker-io
        [host."http://127.0.0.1:429"]
        capabilities = ["pull", "resolve"]
        dial_timeout = "1s"
    "#]]
    .assert_eq(&render(&entry(Server::Default)));
    expect![[r#"
        # Managed by Breakwater: RegistryMirror/docker-io
        server = "http://registry.example.com:5000"

        [host."http://127.0.0.1:429"]
        capabilities = ["pull", "resolve"]
        dial_timeout = "1s"
    "#]]
    .assert_eq(&render(&entry(Server::Url("http://registry.example.com:5000".into()))));
    for server in [Server::Default, Server::Url("https://r.example".into()), Server::Relay] {
        assert_eq!(unmerge(&render(&entry(server)), RELAY).as_deref(), Some(""));
    }
}

#[test]
fn another_mirror_stays_as_the_next_host() {
    let foreign = "# corp\nserver = \"https://registry-1.docker.io\" # theirs\n\n# near\n[host.\"https://m.corp\"]\n  \
                   ca = \"corp.crt\"\n[host.\"https://m.corp\".header]\nx = \"y\"\n";
    check_merge(
        foreign,
        Server::Default,
        &expect![[r#"
            # corp
            server = "https://registry-1.docker.io" # theirs
            # Managed by Breakwater: RegistryMirror/docker-io
            [host."http://127.0.0.1:429"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "1s"

            # near
            [host."https://m.corp"]
              ca = "corp.crt"
            [host."https://m.corp".header]
            x = "y"
        "#]],
    );
}

#[test]
fn without_fallback_a_foreign_server_yields_and_comes_back() {
    check_merge(
        "server = \"https://registry-1.docker.io\"\n[host.\"https://m.corp\"]\n",
        Server::Relay,
        &expect![[r#"
            # Kept by Breakwater: server = "https://registry-1.docker.io"
            # Managed by Breakwater: RegistryMirror/docker-io
            server = "http://127.0.0.1:429"

            [host."http://127.0.0.1:429"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "1s"
            [host."https://m.corp"]
        "#]],
    );
}

#[test]
fn a_server_that_somebody_wrote_beside_the_one_that_yielded_stays_alone() {
    let kept = "# Kept by Breakwater: server = \"https://registry-1.docker.io\"\n";
    let theirs = format!("{kept}server = \"https://mine.example\"\n");
    assert_eq!(unmerge(&theirs, RELAY), None);
    let merged = merge(&theirs, &entry(Server::Default)).unwrap();
    assert_eq!(unmerge(&merged, RELAY), Some(theirs.clone()));
    let ours = render(&entry(Server::Relay));
    assert_eq!(unmerge(&format!("{theirs}{ours}"), RELAY), Some(theirs), "though the file was invalid");
}

#[test]
fn a_server_only_file_without_a_last_newline_gets_our_table_behind() {
    check_merge(
        "server = \"https://r.example\"",
        Server::Url("http://other.example".into()),
        &expect![[r#"
            server = "https://r.example"
            # Managed by Breakwater: RegistryMirror/docker-io
            [host."http://127.0.0.1:429"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "1s""#]],
    );
}

#[test]
fn the_empty_host_table_that_old_containerd_needs_stays() {
    check_merge(
        "server = \"https://r.example\"\n[host]\n",
        Server::Default,
        &expect![[r#"
            server = "https://r.example"
            # Managed by Breakwater: RegistryMirror/docker-io
            [host."http://127.0.0.1:429"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "1s"
            [host]
        "#]],
    );
}

#[test]
fn invalid_and_inextensible_files_are_refused() {
    let entry = entry(Server::Default);
    assert!(matches!(merge("server = ", &entry), Err(Unmergeable::Parse(_))));
    assert!(matches!(merge("host = {\"https://m\" = {}}\n", &entry), Err(Unmergeable::Extend(_))));
    assert!(matches!(merge("[[host]]\n", &entry), Err(Unmergeable::Extend(_))));
}

#[test]
fn our_table_is_known_without_its_comment_and_with_another_port() {
    let stripped = "[host.\"http://127.0.0.1:429\"]\ncapabilities = [\"pull\"]\n\n[host.\"https://m\"]\n";
    assert_eq!(unmerge(stripped, RELAY).as_deref(), Some("\n[host.\"https://m\"]\n"));
    let elsewhere = render(&Entry { relay: "http://127.0.0.1:555".into(), ..entry(Server::Relay) });
    assert_eq!(unmerge(&elsewhere, RELAY).as_deref(), Some(""));
    assert_eq!(unmerge("[host.\"https://m\"]\n", RELAY), None);
}

#[test]
fn relative_certificates_are_found_wherever_they_stand() {
    for text in ["ca = \"a.crt\"", "[host.\"https://m\"]\nclient = [\"a\"]", "host = {\"https://m\" = {ca = \"x\"}}"] {
        assert!(names_files(text).unwrap(), "{text}");
    }
    assert!(!names_files("server = \"https://ca\"\n[host.\"https://m\"]\nskip_verify = true").unwrap());
}

fn blank() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just("  ".into()), Just("# a comment".into()), Just("\t# [host.\"x\"] = é".into())]
}

fn server_line() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "server = \"https://r.example\"",
        "  server=\"https://r.example\"   # why",
        "\"server\" = 'https://r.example'",
        "server = \"\"\"\nhttps://\\\nr.example\"\"\" # three lines",
    ])
    .prop_map(str::to_owned)
}

fn root_line() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "capabilities = [\n  \"pull\", # both\n  \"resolve\",\n]",
        "skip_verify = false",
        "header.x-a = [\"1\"]",
        "header.\"x b\".c = { d = 1, e = [[2], [3]] }",
        "\"server \" = 1",
    ])
    .prop_map(str::to_owned)
}

fn host_table() -> impl Strategy<Value = String> {
    (0..1000u16, prop::sample::select(vec!["", "  ", "\t"]), blank()).prop_map(|(n, indent, comment)| {
        let comment = if comment.starts_with('#') { format!(" {comment}") } else { comment };
        format!(
            "{indent}[host.\"https://m{n}.example\"]{comment}\n{indent}capabilities = [\"pull\"]\n{indent}[host.\"https://m{n}.example\".header]\n\
             {indent}x-y = [\"\"\"\n# Managed\n[z]\n\"\"\"]"
        )
    })
}

prop_compose! {
    fn foreign_file()(
        bom in any::<bool>(),
        head in prop::collection::vec(blank(), 0..3),
        server in prop::option::of(server_line()),
        roots in prop::sample::subsequence(vec![0usize, 1, 2, 3, 4], 0..4),
        root_pool in prop::collection::vec(root_line(), 5),
        middle in prop::collection::vec(blank(), 0..3),
        host in any::<bool>(),
        tables in prop::collection::btree_map(0..1000u16, (host_table(), blank()), 0..4),
        crlf in any::<bool>(),
        last_newline in any::<bool>(),
    ) -> String {
        let mut lines = head;
        lines.extend(server);
        let mut seen = std::collections::BTreeSet::new();
        for root in roots.into_iter().map(|i| root_pool[i].clone()) {
            if seen.insert(root.clone()) { lines.push(root); }
        }
        lines.extend(middle);
        if host { lines.push("[host]".into()); }
        for (table, comment) in tables.into_values() { lines.push(table); lines.push(comment); }
        let mut text = lines.join("\n");
        if last_newline && !text.is_empty() { text.push('\n'); }
        if crlf { text = text.replace('\n', "\r\n"); }
        if bom { text.insert(0, '\u{feff}'); }
        text
    }
}

/// The explicit host headers in the order containerd 2.x walks them.
fn hosts_in_order(text: &str) -> Vec<String> {
    let document: DocumentMut = text.parse().unwrap();
    let Some(hosts) = document.get("host").and_then(Item::as_table) else { return Vec::new() };
    let mut found: Vec<_> =
        hosts.iter().filter_map(|(name, item)| Some((item.as_table()?.position()?, name.to_owned()))).collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

fn root_server(text: &str) -> Option<String> {
    text.parse::<DocumentMut>().unwrap().get("server").and_then(Item::as_str).map(str::to_owned)
}

proptest! {
    #[test]
    fn a_foreign_file_comes_back_byte_for_byte(
        foreign in foreign_file(),
        server in prop_oneof![Just(Server::Default), Just(Server::Url("https://u.example".into())), Just(Server::Relay)],
    ) {
        prop_assume!(Document::parse(foreign.as_str()).is_ok());
        let entry = entry(server.clone());
        let merged = merge(&foreign, &entry).unwrap();
        prop_assert_eq!(&merge(&merged, &entry).unwrap(), &merged);
        prop_assert_eq!(unmerge(&merged, RELAY), Some(foreign.clone()));
        let mut expected = vec![RELAY.to_owned()];
        expected.extend(hosts_in_order(&foreign));
        prop_assert_eq!(hosts_in_order(&merged), expected);
        let theirs = root_server(&foreign);
        let wanted = match server {
            Server::Default => theirs,
            Server::Url(url) => theirs.or(Some(url)),
            Server::Relay => Some(RELAY.to_owned()),
        };
        prop_assert_eq!(root_server(&merged), wanted);
    }

    #[test]
    fn no_text_at_all_breaks_merging(text in "(\\PC|[\r\n\t\"\\[\\]=#]){0,80}") {
        if let Ok(merged) = merge(&text, &entry(Server::Relay)) {
            prop_assert_eq!(unmerge(&merged, RELAY), Some(text));
        }
    }

    #[test]
    fn a_change_of_mind_between_servers_leaves_no_trace(foreign in foreign_file()) {
        prop_assume!(Document::parse(foreign.as_str()).is_ok());
        let first = merge(&foreign, &entry(Server::Relay)).unwrap();
        let second = merge(&first, &entry(Server::Default)).unwrap();
        prop_assert_eq!(second, merge(&foreign, &entry(Server::Default)).unwrap());
    }
}
