//! What the pages quote of `kubectl get` has the columns that the definitions give it.

use anyhow::{Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::{read, root};

/// The columns of a definition as kubectl heads them; a wide table has those of every priority.
fn header(definition: &CustomResourceDefinition, wide: bool) -> Vec<String> {
    let columns =
        definition.spec.versions.iter().flat_map(|version| version.additional_printer_columns.iter().flatten());
    let shown = columns.filter(|column| wide || column.priority.unwrap_or(0) == 0);
    ["NAME".to_owned()].into_iter().chain(shown.map(|column| column.name.to_uppercase())).collect()
}

#[test]
fn quoted_tables_have_the_columns_of_their_definition() -> Result<()> {
    let definitions = breakwater_crds::yaml::definitions();
    let readme = read(&root().join("README.md"))?;
    for definition in &definitions {
        let names = &definition.spec.names;
        let short = names.short_names.iter().flatten().chain([&names.plural]);
        let asked = short.map(|name| format!("$ kubectl get {name}")).collect::<Vec<_>>();
        let lines: Vec<_> = readme.lines().collect();
        let at = lines.iter().position(|line| asked.iter().any(|command| line.starts_with(command)));
        let Some(at) = at else { anyhow::bail!("README.md: must quote {asked:?}") };
        let expected = header(definition, lines[at].ends_with("-o wide"));
        let mut table = lines[at + 1..].iter().take_while(|line| !line.is_empty() && !line.starts_with(['$', '`']));
        let found: Vec<_> = table.next().into_iter().flat_map(|line| line.split_whitespace()).collect();
        assert_eq!(found, expected, "README.md: the table of {}", lines[at]);
        let rows: Vec<_> = table.collect();
        ensure!(!rows.is_empty(), "README.md: {} must show a row", lines[at]);
        for row in rows {
            assert_eq!(row.split_whitespace().count(), expected.len(), "README.md: cells of {row:?}");
        }
    }
    Ok(())
}
